//! The whole `<domain>`: its name, its identity, its disks and its interfaces.
//! A disk by itself is `disk`'s.

use std::collections::BTreeSet;

use roxmltree::Node;

use super::edits::{Done, Edits, child, children, path_text, text_of};
use super::{Changes, Macs, Nvram, RewriteError, Surroundings, disk, isolated};
use crate::core::names::{Target, Uuid};

pub(super) fn edit(domain: Node<'_, '_>, changes: &Changes, edits: &mut Edits<'_>) -> Done {
    let name = child(domain, "name")?;
    let name = name.ok_or_else(|| missing(domain, "name"))?;
    if let Some(new) = &changes.name {
        edits.set_text(name, "the name", new.as_str())?;
    }
    if let Some(uuid) = &changes.uuid {
        identity(domain, name, uuid, edits)?;
    }
    nvram(domain, &changes.nvram, edits)?;
    let disks = disks_of(domain)?;
    let find = |target: &Target| {
        let found = disks.iter().find(|(name, _)| name == target.as_str());
        found.map(|(_, node)| *node).ok_or_else(|| RewriteError::NoSuchDisk(target.clone()))
    };
    for target in &changes.without {
        edits.remove(find(target)?);
    }
    for target in changes.ejected.iter().filter(|target| !changes.without.contains(target)) {
        children(find(target)?, "source").for_each(|source| edits.remove(source));
    }
    for (target, new) in changes.disks.iter().filter(|(target, _)| !changes.without.contains(target)) {
        disk::edit(find(target)?, new, edits)?;
    }
    for interface in children(domain, "devices").flat_map(|devices| children(devices, "interface")) {
        if changes.surroundings == Surroundings::Kept || !isolated::goes(interface) {
            mac(interface, &changes.macs, edits)?;
        }
    }
    if let Surroundings::Isolated { console } = &changes.surroundings {
        isolated::edit(domain, console.as_deref(), edits)?;
    }
    Ok(())
}

/// Each disk with its target, as it is written.
pub(super) fn disks_of<'a, 'i>(domain: Node<'a, 'i>) -> Result<Vec<(String, Node<'a, 'i>)>, RewriteError> {
    let mut seen = BTreeSet::new();
    let mut disks = Vec::new();
    for node in children(domain, "devices").flat_map(|devices| children(devices, "disk")) {
        let target = child(node, "target")?.and_then(|target| target.attribute("dev")).unwrap_or_default();
        if !seen.insert(target.to_owned()) {
            return match Target::new(target) {
                Ok(target) => Err(RewriteError::TargetTwice(target)),
                Err(_) => Err(missing(node, "target")),
            };
        }
        disks.push((target.to_owned(), node));
    }
    Ok(disks)
}

/// libvirt refuses a domain whose SMBIOS has another UUID, and an identity of a generation that is used twice
/// defeats its purpose: an empty one is drawn anew.
fn identity(domain: Node<'_, '_>, name: Node<'_, '_>, uuid: &Uuid, edits: &mut Edits<'_>) -> Done {
    let mut same = false;
    match child(domain, "uuid")? {
        Some(node) => {
            same = Uuid::new(text_of(node).trim()).is_ok_and(|old| old == *uuid);
            if !same {
                edits.set_text(node, "the UUID", uuid.as_str())?;
            }
        }
        None => edits.insert_after(name, format!("<uuid>{uuid}</uuid>")),
    }
    let systems = children(domain, "sysinfo").flat_map(|sysinfo| children(sysinfo, "system"));
    for entry in systems.flat_map(|system| children(system, "entry")) {
        if entry.attribute("name") == Some("uuid") && !same {
            edits.set_text(entry, "the UUID", uuid.as_str())?;
        }
    }
    if !same {
        children(domain, "genid").for_each(|genid| edits.empty(genid));
        // The state of its TPM, too, is where the new UUID leads, and not where the original writes.
        let tpms = children(domain, "devices").flat_map(|devices| children(devices, "tpm"));
        let backends = tpms.flat_map(|tpm| children(tpm, "backend"));
        let emulated = backends.filter(|backend| backend.attribute("type") == Some("emulator"));
        emulated.flat_map(|backend| children(backend, "source")).for_each(|source| edits.remove(source));
    }
    Ok(())
}

/// `<nvram>/path</nvram>`, or since libvirt 8.5 `<nvram type='file'><source file='/path'/></nvram>`.
fn nvram(domain: Node<'_, '_>, change: &Nvram, edits: &mut Edits<'_>) -> Done {
    let Some(os) = child(domain, "os")? else { return Ok(()) };
    let Some(nvram) = child(os, "nvram")? else { return Ok(()) };
    let source = child(nvram, "source")?;
    match (change, source) {
        (Nvram::Keep, _) => Ok(()),
        (Nvram::Default, _) => {
            edits.remove_attribute(nvram, "type");
            edits.empty(nvram);
            Ok(())
        }
        (Nvram::At(path), Some(source)) if nvram.attribute("type") == Some("file") => {
            edits.set_attribute(source, "file", path_text(path)?)
        }
        (Nvram::At(path), _) => {
            edits.remove_attribute(nvram, "type");
            edits.set_text(nvram, "the path", path_text(path)?)
        }
    }
}

fn mac(interface: Node<'_, '_>, macs: &Macs, edits: &mut Edits<'_>) -> Done {
    let Some(mac) = child(interface, "mac")? else { return Ok(()) };
    match macs {
        Macs::Keep => Ok(()),
        Macs::Remove => {
            edits.remove(mac);
            Ok(())
        }
        Macs::DerivedFrom(uuid) => {
            let old = mac.attribute("address").unwrap_or_default().to_ascii_lowercase();
            edits.set_attribute(mac, "address", &derived_mac(uuid, &old))
        }
    }
}

/// In QEMU's own range, as libvirt's are.
fn derived_mac(uuid: &Uuid, old: &str) -> String {
    let digest = blake3::hash(format!("virt-backup MAC address\n{uuid}\n{old}\n").as_bytes());
    let [a, b, c, ..] = digest.as_bytes();
    format!("52:54:00:{a:02x}:{b:02x}:{c:02x}")
}

fn missing(node: Node<'_, '_>, child: &'static str) -> RewriteError {
    RewriteError::Missing { parent: node.tag_name().name().to_owned(), child }
}
