//! Domains that come and go, for restoring: this machine's libvirt.
//! Decides nothing: what may be overwritten is `core::restore`'s.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use virt::connect::Connect;
use virt::domain::Domain;
use virt::sys;

use super::super::machine::Machine;
use super::super::{Removal, definitions::Definitions};
use super::{Known as Libvirt, active, disks, ffi, swtpm, told};
use crate::core::domain::{self, DomainId, Source};
use crate::core::facts::{Agent, Chain, Definition};
use crate::core::names::{Target, Uuid, VmName};
use crate::core::restore::{Activity, FileId, InUse, Known};
use crate::core::rewrite::{self, Changes, NewDisk};

impl Definitions for Machine {
    fn by_name(&self, name: &str) -> Result<Option<Known>> {
        for libvirt in &self.guests.known {
            let found = libvirt.domain(name)?;
            // By its name alone: a name may look like a UUID.
            let found = found.map(|domain| known(&domain)).transpose()?;
            if let Some(known) = found.filter(|known| known.id.name.as_str() == name) {
                return Ok(Some(known));
            }
        }
        Ok(None)
    }

    fn by_uuid(&self, uuid: &Uuid) -> Result<Option<Known>> {
        self.guests.find(uuid.as_str())?.map(|domain| known(&domain)).transpose()
    }

    fn images_in_use(&self) -> Result<Vec<InUse>> {
        let mut images = Vec::new();
        for libvirt in &self.guests.known {
            let connection = libvirt.connect()?;
            for domain in connection.list_all_domains(0).map_err(told).context("list the domains")? {
                let name = domain.name().map_err(told)?;
                images_of(self, &connection, &domain, &mut images)
                    .with_context(|| format!("look at the disks of {name}"))?;
            }
        }
        Ok(images)
    }

    fn define(&self, xml: &str) -> Result<()> {
        self.first()?.connect()?.define_domain_xml(xml).map(drop).map_err(told)
    }

    fn undefine(&self, id: &DomainId) -> Result<Removal> {
        let Some(domain) = self.guests.get(id)? else { return Ok(Removal::AlreadyGone) };
        if active(&domain)? {
            bail!("it runs: shut it off");
        }
        let mut flags = sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            | sys::VIR_DOMAIN_UNDEFINE_KEEP_NVRAM;
        // Older ones do not know the flag, and remove the state of a TPM with its domain.
        if self.first()?.connect()?.lib_version().map_err(told)? >= KEEPS_TPM {
            flags |= sys::VIR_DOMAIN_UNDEFINE_KEEP_TPM;
        }
        domain.undefine_flags(flags).map_err(told)?;
        Ok(Removal::Removed)
    }

    fn redefine_snapshot(&self, id: &DomainId, xml: &str) -> Result<()> {
        let domain = self.guests.expect(id)?;
        domain.create_snapshot_xml(xml, sys::VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE).map(drop).map_err(told)
    }

    fn begin(&self, id: &DomainId) -> Result<()> {
        self.guests.expect(id)?.create().map(drop).map_err(told)
    }

    fn resume_from(&self, memory: &Path, disks: &BTreeMap<Target, NewDisk>) -> Result<()> {
        let connection = self.first()?.connect()?;
        let path = memory.to_str().context("the path is not text")?;
        let saved = connection.save_image_xml_desc(path, 0).map_err(told).context("read the saved memory")?;
        let changes = Changes { disks: disks.clone(), ..Changes::none() };
        let xml = rewrite::domain(&saved, &changes).context("understand the domain in the saved memory")?;
        connection.restore_domain_flags(path, Some(&xml), sys::VIR_DOMAIN_SAVE_RUNNING).map_err(told)
    }

    fn run(&self, xml: &str) -> Result<()> {
        self.first()?.connect()?.create_domain_xml(xml, 0).map(drop).map_err(told)
    }

    fn destroy(&self, id: &DomainId) -> Result<Removal> {
        let Some(domain) = self.guests.get(id)? else { return Ok(Removal::AlreadyGone) };
        if domain.is_persistent().map_err(told)? {
            bail!("it is defined: somebody has kept it");
        }
        match domain.destroy() {
            Ok(()) => Ok(Removal::Removed),
            // It may have ended by itself just now.
            Err(_) if self.guests.get(id)?.is_none() => Ok(Removal::AlreadyGone),
            Err(error) => Err(told(error)),
        }
    }

    fn pull(&self, id: &DomainId, target: &Target, stopped: &dyn Fn() -> bool) -> Result<()> {
        let domain = self.guests.expect(id)?;
        let below = || -> Result<bool> {
            let now = domain::Domain::parse(&domain.xml_desc(0).map_err(told)?)?;
            let disk = now.disk(target).with_context(|| format!("the disk {target} is gone"))?;
            Ok(!disk.backing.layers.is_empty())
        };
        let job = || ffi::block_job(&domain, target.as_str()).map_err(told);
        // One that was begun before we were interrupted goes on.
        if below()? && job()?.is_none() {
            ffi::pull(&domain, target.as_str()).map_err(told)?;
        }
        while job()?.is_some() {
            if stopped() {
                bail!("stopped; the copy goes on: the same command waits for it");
            }
            std::thread::sleep(LOOK_EVERY);
        }
        // A copy that failed ends as one that is done does; only the chain tells.
        if below()? {
            bail!("the copy ended, and it still lies over the backup: see the log of QEMU")
        } else {
            Ok(())
        }
    }

    fn agent_answers(&self, id: &DomainId) -> Result<bool> {
        let domain = self.guests.expect(id)?;
        let xml = domain.xml_desc(0).map_err(told)?;
        let document = roxmltree::Document::parse(&xml).context("understand the domain's XML")?;
        if super::xml::agent(&document) != Agent::Connected {
            return Ok(false);
        }
        // Answered by the agent alone. That it is connected only says that somebody has opened its port.
        Ok(domain.time(0).is_ok())
    }

    fn qemu_owner(&self) -> Result<(u32, u32)> {
        let xml = self.first()?.connect()?.capabilities().map_err(told)?;
        let document = roxmltree::Document::parse(&xml).context("understand libvirt's capabilities")?;
        let models = document.descendants().filter(|node| node.has_tag_name("secmodel"));
        let labels = models.flat_map(|model| model.children()).filter(|node| node.has_tag_name("baselabel"));
        let owner = labels.filter_map(|label| label.text()).find_map(|label| {
            let (user, group) = label.split_once(':')?;
            let number = |text: &str| text.trim_start_matches('+').parse().ok();
            Some((number(user)?, number(group)?))
        });
        // Without that security model QEMU runs as libvirt does.
        Ok(owner.unwrap_or((0, 0)))
    }

    fn tpm_owner(&self) -> Result<(u32, u32)> {
        swtpm::owner()
    }
}

/// The version of libvirt, as it counts them, that can keep the state of a TPM.
const KEEPS_TPM: u32 = 8_009_000;
const LOOK_EVERY: Duration = Duration::from_millis(50);

impl Machine {
    fn first(&self) -> Result<&Libvirt> {
        self.guests.known.first().ok_or_else(|| anyhow!("no libvirt was named"))
    }
}

fn known(domain: &Domain) -> Result<Known> {
    let name = VmName::new(&domain.name().map_err(told)?)?;
    let uuid = Uuid::new(&domain.uuid_string().map_err(told)?)?;
    let flags = sys::VIR_DOMAIN_XML_INACTIVE | sys::VIR_DOMAIN_XML_SECURE;
    Ok(Known {
        id: DomainId { name, uuid },
        activity: activity_of(domain)?,
        persistence: match domain.is_persistent().map_err(told)? {
            true => Definition::Persistent,
            false => Definition::Transient,
        },
        definition: domain.xml_desc(flags).map_err(told)?,
    })
}

fn activity_of(domain: &Domain) -> Result<Activity> {
    if active(domain)? {
        return Ok(Activity::Active);
    }
    let is_saved = domain.has_managed_save(0).map_err(told)?;
    Ok(if is_saved { Activity::Saved } else { Activity::Inactive })
}

fn images_of(
    machine: &Machine,
    connection: &Connect,
    domain: &Domain,
    images: &mut Vec<InUse>,
) -> Result<()> {
    let activity = activity_of(domain)?;
    // What runs may differ from what is defined, and both count.
    for flags in [0, sys::VIR_DOMAIN_XML_INACTIVE] {
        let described = domain::Domain::parse(&domain.xml_desc(flags).map_err(told)?)?;
        for disk in &described.disks {
            let mut paths: Vec<PathBuf> =
                disk.backing.layers.iter().filter_map(|layer| path_of(connection, &layer.source)).collect();
            paths.extend(path_of(connection, &disk.source));
            // What lies below as the images' own headers say it; where they cannot be read, the XML has said it.
            if let Chain::Known(layers) = disks::chain(machine, disk) {
                paths.extend(layers.into_iter().map(|layer| layer.path));
            }
            paths.extend(described.nvram.clone());
            paths.sort();
            paths.dedup();
            images.extend(paths.into_iter().map(|path| InUse {
                domain: described.id.clone(),
                activity,
                file: file_id(&path),
                path,
            }));
        }
    }
    Ok(())
}

/// A volume is where its pool says. None: not on this host, or the pool does not know it now.
fn path_of(connection: &Connect, source: &Source) -> Option<PathBuf> {
    match source {
        Source::File(path) | Source::Block(path) => Some(path.clone()),
        Source::Volume { pool, volume } => {
            let pool = connection.lookup_storage_pool_by_name(pool).ok()?;
            pool.lookup_storage_vol_by_name(volume).ok()?.path().ok().map(PathBuf::from)
        }
        _ => None,
    }
}

/// None: it is not there, or neither a file nor a device.
pub(crate) fn file_id(path: &Path) -> Option<FileId> {
    let metadata = std::fs::metadata(path).ok()?;
    let kind = metadata.file_type();
    if kind.is_file() {
        return Some(FileId::File { device: metadata.dev(), inode: metadata.ino() });
    }
    if !kind.is_block_device() {
        return None;
    }
    let number = metadata.rdev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    // A loop device is its file.
    let backing = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/loop/backing_file"));
    let file = backing.ok().and_then(|file| file_id(Path::new(file.trim_end_matches('\n'))));
    file.or(Some(FileId::Device { number }))
}
