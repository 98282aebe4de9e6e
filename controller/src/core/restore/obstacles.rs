//! What is in the way of a restore: what would be overwritten, what does not fit, who is in use.
//! Only finds reasons; what is done when there are none is the plan's.

use std::collections::BTreeMap;
use std::path::Path;

use super::{
    Activity, Backup, Destination, Existing, Facts, FileId, Form, Format, Identity, InUse, Kept, Standing,
    Then, Wish, Writing, format_of, identity, memory_of, nvram_of, tpm_cannot_move, tpm_of,
};
use crate::core::domain::DomainId;
use crate::core::names::Target;

pub(super) fn find(backup: &Backup, wish: &Wish, destinations: &[Destination], facts: &Facts) -> Vec<String> {
    let mut reasons = domain_in_the_way(backup, wish, facts);
    for to in destinations {
        let kept = backup.disks.get(&to.target).expect("destinations are of disks that are there");
        let why = of_disk(backup, wish, facts, to, kept);
        reasons.extend(why.into_iter().map(|why| format!("{}: {why}", to.target)));
    }
    reasons.extend(said_twice(destinations, facts));
    let small = nvram_of(backup, wish).into_iter().chain(memory_of(backup, wish, destinations));
    for path in small {
        reasons.extend(file_in_the_way(backup, wish, facts, &path));
    }
    reasons.extend(tpm_in_the_way(backup, wish, facts));
    if wish.then == Then::Resume {
        reasons.extend(cannot_resume(backup, wish));
    }
    reasons
}

/// Its directory is made.
fn tpm_in_the_way(backup: &Backup, wish: &Wish, facts: &Facts) -> Vec<String> {
    let id = match identity(backup, wish) {
        Identity::Own(id) => id,
        Identity::New(name) => DomainId { name, uuid: facts.fresh_uuid.clone() },
    };
    let files = tpm_of(backup, wish, &id);
    let there = |path: &Path| facts.standing.get(path).is_some_and(|there| *there != Standing::NoDirectory);
    let taken = files.iter().filter(|(_, path)| there(path));
    let mut reasons: Vec<_> =
        taken.flat_map(|(_, path)| file_in_the_way(backup, wish, facts, path)).collect();
    if !files.is_empty() {
        reasons.extend(tpm_cannot_move(backup, &id));
    }
    reasons
}

fn domain_in_the_way(backup: &Backup, wish: &Wish, facts: &Facts) -> Vec<String> {
    let mut reasons = Vec::new();
    if wish.then == Then::Nothing {
        return reasons;
    }
    let own = match identity(backup, wish) {
        Identity::Own(own) => own,
        Identity::New(name) => {
            let taken = facts.of_this_name.is_some();
            return Vec::from_iter(
                taken.then(|| format!("there is a domain {name} already: choose another --name")),
            );
        }
    };
    if let Some(known) = facts.of_this_name.as_ref().filter(|known| known.id.uuid != own.uuid) {
        let (name, uuid) = (&known.id.name, &known.id.uuid);
        reasons.push(format!(
            "there is another domain {name}, of the UUID {uuid}: restore under another --name"
        ));
    }
    if let Some(known) = &facts.of_this_uuid {
        if known.id.name != own.name {
            reasons.push(format!(
                "its UUID is that of the domain {}: restore under another --name",
                known.id.name
            ));
        } else if known.activity == Activity::Active {
            reasons.push(format!("{} runs: shut it off first, or restore under another --name", own.name));
        } else if known.activity == Activity::Saved {
            reasons.push(format!(
                "{0} has saved memory, which belongs to its disks as they are: start it, or virsh managedsave-remove {0}",
                own.name
            ));
        } else if wish.existing == Existing::Protected {
            reasons.push(format!(
                "{} is defined: --force puts the backup in its place, --name restores beside it",
                own.name
            ));
        }
    }
    reasons
}

fn of_disk(backup: &Backup, wish: &Wish, facts: &Facts, to: &Destination, kept: &Kept) -> Vec<String> {
    let mut reasons = file_in_the_way(backup, wish, facts, &to.path);
    let format = format_of(backup, wish, &to.target, kept);
    if let (Some(Standing::Block { bytes, .. }), Some(needed)) = (facts.standing.get(&to.path), kept.bytes)
        && *bytes < needed
    {
        reasons.push(format!("{} has {bytes}, and the disk has {needed}", to.path.display()));
    }
    if let Some(Standing::Block { .. }) = facts.standing.get(&to.path)
        && wish.format == Some(Format::Qcow2)
    {
        reasons.push(format!("{} is a device: it gets the bytes as they are, not qcow2", to.path.display()));
    }
    if wish.writing == Writing::InPlace {
        if !matches!(kept.form, Form::Chunks | Form::Raw) {
            reasons
                .push(format!("--in-place compares with chunks or a raw image, and this is {}", kept.form));
        }
        let declared = backup.domain.disk(&to.target).map(|disk| &disk.format);
        let is_device = matches!(facts.standing.get(&to.path), Some(Standing::Block { .. }));
        match &wish.format {
            Some(Format::Qcow2) => reasons.push("--in-place writes raw images, not qcow2".to_owned()),
            None if !is_device && declared == Some(&Format::Qcow2) => reasons.push(format!(
                "--in-place writes raw images, and {} is declared as qcow2: without --in-place it is made anew, \
                 with --format=raw it becomes a raw image",
                to.path.display()
            )),
            _ => {}
        }
    }
    if !matches!(format, Format::Raw | Format::Qcow2) {
        reasons.push(format!("--format is raw or qcow2, not {format}"));
    }
    reasons
}

/// A file, or a device, that something would be lost of.
fn file_in_the_way(backup: &Backup, wish: &Wish, facts: &Facts, path: &Path) -> Vec<String> {
    let shown = path.display();
    let mut reasons = Vec::new();
    let real = facts.behind_links.get(path).map_or(path, |real| real.as_path());
    if path.starts_with(&backup.root) || real.starts_with(&backup.root) {
        reasons.push(format!("{shown} is in the backup itself"));
    }
    let id = match facts.standing.get(path) {
        None | Some(Standing::Absent) => return reasons,
        Some(Standing::NoDirectory) => {
            reasons.push(format!("the directory of {shown} does not exist"));
            return reasons;
        }
        Some(Standing::Other) => {
            reasons.push(format!("{shown} is neither a file nor a block device"));
            return reasons;
        }
        Some(Standing::File(id) | Standing::Block { id, .. }) => *id,
    };
    let is_file = matches!(facts.standing.get(path), Some(Standing::File(_)));
    let users: Vec<_> = users(facts, id).collect();
    for user in &users {
        let name = &user.domain.name;
        if user.activity == Activity::Active {
            reasons.push(format!("{shown} is in use: {name} runs with it"));
        } else if wish.existing == Existing::Protected {
            reasons.push(format!("{shown} is a disk of the domain {name}: --force overwrites it"));
        }
    }
    let protected = wish.existing == Existing::Protected && wish.writing == Writing::Whole;
    if users.is_empty() && is_file && protected {
        reasons.push(format!("{shown} exists: --force replaces it"));
    }
    reasons
}

/// By what it is, not by what it is called: a link or another mount leads to the same file.
fn users(facts: &Facts, id: FileId) -> impl Iterator<Item = &InUse> {
    let mut seen = std::collections::BTreeSet::new();
    facts.in_use.iter().filter(move |user| user.file == Some(id) && seen.insert(user.domain.uuid.clone()))
}

fn said_twice(destinations: &[Destination], facts: &Facts) -> Vec<String> {
    let mut by_path: BTreeMap<&Path, &Target> = BTreeMap::new();
    let mut by_file: BTreeMap<FileId, &Target> = BTreeMap::new();
    let mut reasons = Vec::new();
    for to in destinations {
        let id = match facts.standing.get(&to.path) {
            Some(Standing::File(id) | Standing::Block { id, .. }) => Some(*id),
            _ => None,
        };
        let same_path = by_path.insert(&to.path, &to.target);
        let same_file = id.and_then(|id| by_file.insert(id, &to.target));
        if let Some(other) = same_path.or(same_file) {
            reasons.push(format!("{other} and {} would both go to {}", to.target, to.path.display()));
        }
    }
    reasons
}

fn cannot_resume(backup: &Backup, wish: &Wish) -> Vec<String> {
    let mut reasons = Vec::new();
    if backup.memory.is_none() {
        reasons.push("the backup has no memory of the guest: it was made without --state".to_owned());
    }
    if identity(backup, wish) != Identity::Own(backup.domain.id.clone()) {
        // QEMU's stream names the machine that it was taken from.
        reasons.push(
            "saved memory belongs to the domain of its own name and UUID: --state does not go with --name"
                .to_owned(),
        );
    }
    if !wish.exclude.is_empty() {
        reasons.push("the memory knows all disks: --state does not go with --exclude".to_owned());
    }
    reasons
}
