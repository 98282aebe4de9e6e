//! Takes back what a restore has done, newest first and past failures. Each may be taken back twice.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::core::restore::{Activity, FileId, InUse, Undo, partial_of};
use crate::host::Removal;
use crate::host::libvirt::file_id;

use super::Ground;
use super::image;
use super::journal::Journal;

#[derive(Debug, Default)]
pub(super) struct Undone {
    pub(super) done: Vec<String>,
    pub(super) errors: Vec<anyhow::Error>,
}

pub(super) fn all(ground: &dyn Ground, journal: &Journal) -> Undone {
    let mut undone = Undone::default();
    let mut domain_stays = false;
    for undo in journal.owed() {
        let of_domain = matches!(undo, Undo::Undefine { .. } | Undo::Redefine { .. } | Undo::Destroy { .. });
        // A domain that stays needs its files.
        if domain_stays && !of_domain {
            continue;
        }
        match one(ground, undo, journal).with_context(|| undo.to_string()) {
            Ok(Removal::Removed) => undone.done.push(undo.to_string()),
            Ok(_) => {}
            Err(error) => {
                domain_stays |= of_domain;
                undone.errors.push(error);
            }
        }
    }
    undone
}

/// A file that was given its name and that somebody has used since: what is in it is nowhere else.
pub(super) fn used_since(ground: &dyn Ground, journal: &Journal) -> Result<Option<PathBuf>> {
    for undo in journal.owed() {
        let Undo::Unname { path, made, modified_ns, .. } = undo else { continue };
        let Some(now) = file_id(path).filter(|now| made.is_still(*now)) else { continue };
        let was_written = modified_ns.is_some() && image::modified_ns(path) != *modified_ns;
        let is_used = |user: &InUse| user.file == Some(now) && user.activity != Activity::Inactive;
        if was_written || ground.images_in_use()?.iter().any(is_used) {
            return Ok(Some(path.clone()));
        }
    }
    Ok(None)
}

fn one(ground: &dyn Ground, undo: &Undo, journal: &Journal) -> Result<Removal> {
    match undo {
        Undo::Remove { path } => {
            // Until it is kept, what was replaced is under this name: if it could not be put back, it must not go.
            if !journal.is_kept() && file_id(path).is_some_and(|id| journal.was_replaced(id)) {
                bail!("it is what was replaced, and could not be put back");
            }
            // What the copy itself was called while it was written.
            let inner = ground.remove_file(&partial_of(path))?;
            match ground.remove_file(path)? {
                Removal::AlreadyGone => Ok(inner),
                removed => Ok(removed),
            }
        }
        Undo::Unmount { point } => image::unmount(ground, point),
        Undo::Discard { path } => ground.remove_file(path),
        Undo::Destroy { id } => ground.destroy(id),
        Undo::DiscardTree { path } => ground.remove_tree(path),
        Undo::RemoveDir { path } => ground.remove_dir(path),
        Undo::Unname { path, made, before, .. } => unname(path, *made, *before),
        Undo::Undefine { id } => ground.undefine(id),
        Undo::Redefine { id, xml } => match ground.by_uuid(&id.uuid)? {
            Some(known) if known.activity != Activity::Inactive => bail!("it is not off"),
            _ => ground.define(xml).map(|()| Removal::Removed),
        },
    }
}

fn unname(path: &Path, made: FileId, before: Option<FileId>) -> Result<Removal> {
    let partial = partial_of(path);
    let is = |path: &Path, id: FileId| file_id(path).is_some_and(|now| id.is_still(now));
    match before {
        None if is(path, made) => image::rename_new(path, &partial)?,
        Some(before) if is(path, made) && is(&partial, before) => image::exchange(path, &partial)?,
        Some(_) if is(path, made) => bail!("what was there is no longer called {}", partial.display()),
        Some(before) if !is(path, before) => {
            bail!("neither what was there nor what was restored is called so")
        }
        _ => return Ok(Removal::AlreadyGone),
    }
    Ok(Removal::Removed)
}

impl fmt::Display for Undone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errors: Vec<_> = self.errors.iter().map(|error| format!("{error:#}")).collect();
        write!(f, "it could not all be taken back: {}", errors.join("; "))
    }
}
