//! Asks the host for what a plan needs to know.
//! Changes nothing, decides nothing.

use std::path::Path;

use anyhow::{Context, Result, anyhow};

use crate::core::domain::{Domain, Source};
use crate::core::facts::{Facts, MountPoint, Nvram};
use crate::core::names::Names;
use crate::core::options::Chunkmount;
use crate::core::tpm::{self, TpmFacts};
use crate::host::{Entry, Host, XmlView};

/// A domain by its name or UUID, as it is now.
pub fn domain(host: &dyn Host, vm: &str) -> Result<Domain> {
    let xml = host.domain_xml(vm, XmlView::Live).with_context(|| format!("ask for the domain {vm:?}"))?;
    let xml = xml.ok_or_else(|| anyhow!("there is no domain {vm:?}: see `virt-backup list`"))?;
    Domain::parse(&xml).with_context(|| format!("understand the domain {vm:?}"))
}

/// The domain as libvirt would define it again.
pub fn definition(host: &dyn Host, domain: &Domain) -> Result<String> {
    let xml =
        host.domain_xml(domain.id.uuid.as_str(), XmlView::Definition).context("ask for the definition")?;
    xml.ok_or_else(|| anyhow!("the domain {} has gone", domain.id))
}

/// All that a plan decides upon.
pub fn facts(host: &dyn Host, domain: &Domain, names: &Names, options: &Chunkmount) -> Result<Facts> {
    let volume = options.volume.as_ref();
    let mut disks = std::collections::BTreeMap::new();
    for disk in domain.disks.iter().filter(|disk| disk.source != Source::Nothing) {
        let facts =
            host.disk(&domain.id, disk, volume).with_context(|| format!("look at disk {}", disk.target))?;
        disks.insert(disk.target.clone(), facts);
    }
    let nvram = match &domain.nvram {
        Some(path) if host.entry(path)? != Entry::Absent => Nvram::There,
        _ => Nvram::None,
    };
    Ok(Facts {
        nvram,
        tpm: tpm(host, domain)?,
        guest: host.guest(&domain.id).context("ask for the guest's state")?,
        disks,
        checkpoints: host.checkpoints(&domain.id).context("list the checkpoints")?,
        index: host.indexes(&names.index_dir()).context("read the index")?,
        mount_point: mount_point(host, &names.mount_point())?,
        epoch: host.epoch()?,
        scratch_free: host.free(&names.scratch_dir()).context("look for free space")?,
    })
}

fn tpm(host: &dyn Host, domain: &Domain) -> Result<TpmFacts> {
    let Some(tpm) = &domain.tpm else { return Ok(TpmFacts::NoTpm) };
    Ok(match tpm.place(&domain.id.uuid) {
        Ok(place) => tpm::judge(&place, host.look_into(&place.dir)?),
        Err(why) => TpmFacts::NotHere { why },
    })
}

fn mount_point(host: &dyn Host, path: &Path) -> Result<MountPoint> {
    if let Some(source) = host.mounted_at(path)? {
        return Ok(MountPoint::Mounted { source });
    }
    Ok(match host.entry(path)? {
        Entry::Absent => MountPoint::Absent,
        Entry::Directory if host.list(path)?.is_some_and(|names| names.is_empty()) => {
            MountPoint::EmptyDirectory
        }
        Entry::Directory | Entry::Other => MountPoint::Occupied,
    })
}
