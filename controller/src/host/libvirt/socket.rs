//! Where QEMU makes the socket of a backup job: in the directory that libvirt has made for this QEMU, the one place where
//! it may, whoever it runs as and whatever AppArmor or SELinux says. A link in our own directory leads there.
//! Nothing is removed here: QEMU removes its socket with the job, libvirt the directory with the guest.

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use roxmltree::Document;
use virt::domain::Domain;

use crate::core::names::SOCKET_PATH_MAX;

use super::{told, xml};

/// In it `domain-<id>-<the begin of its name>`, for each that runs; of `qemu:///system`.
const OF_ALL: &str = "/var/lib/libvirt/qemu";

/// Where QEMU is to make the socket that is `ours`; from now on `ours` leads there.
pub(super) fn place(domain: &Domain, ours: &Path) -> Result<PathBuf> {
    let Some(place) = beneath_libvirt(domain, ours)? else {
        give_to_qemu(domain, ours)?;
        return Ok(ours.to_owned());
    };
    symlink(&place, ours).with_context(|| format!("link {} to {}", ours.display(), place.display()))?;
    Ok(place)
}

/// Is this where `place` has sent QEMU?
pub(super) fn is_ours(told: &Path, ours: &Path) -> bool {
    told == ours || told.file_name() == Some(name_of(ours).as_ref())
}

fn name_of(ours: &Path) -> String {
    let digest = blake3::hash(ours.as_os_str().as_encoded_bytes()).to_hex();
    format!("virt-backup-{}.sock", &digest[..16])
}

/// None: it is another libvirt, such as that of a user, or one that keeps these directories elsewhere.
fn beneath_libvirt(domain: &Domain, ours: &Path) -> Result<Option<PathBuf>> {
    let uri = domain.connect().and_then(|connection| connection.uri()).map_err(told)?;
    let Some(id) = domain.id().filter(|_| uri.ends_with("/system")) else { return Ok(None) };
    let Ok(entries) = fs::read_dir(OF_ALL) else { return Ok(None) };
    let begin = format!("domain-{id}-");
    let is_its = |entry: &fs::DirEntry| {
        entry.file_name().to_str().is_some_and(|name| name.starts_with(&begin))
            && entry.file_type().is_ok_and(|kind| kind.is_dir())
    };
    let place = entries.flatten().find(is_its).map(|entry| entry.path().join(name_of(ours)));
    Ok(place.filter(|place| place.as_os_str().len() <= SOCKET_PATH_MAX))
}

/// QEMU makes the socket in our own directory, as whoever it runs as.
fn give_to_qemu(domain: &Domain, ours: &Path) -> Result<()> {
    let live = domain.xml_desc(0).map_err(told)?;
    let document = Document::parse(&live).context("understand the domain's XML")?;
    let (Some((user, group)), Some(dir)) = (xml::owner(&document), ours.parent()) else { return Ok(()) };
    chown(dir, Some(user), Some(group)).with_context(|| format!("let QEMU write to {}", dir.display()))
}
