//! One step of a restore: what takes it back is written down, then it is done.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use crate::core::domain::Format;
use crate::core::restore::{Step, Undo, partial_of};
use crate::host::libvirt::file_id;

use super::backup::Opened;
use super::journal::Journal;
use super::{Ground, image};

/// Why a step failed, and what that means for the exit status.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: anyhow::Error,
    /// The backup is not what it was.
    pub(super) is_damage: bool,
    /// Something is neither what it was nor what it should be.
    pub(super) is_unfinished: bool,
}

pub(super) fn act(
    ground: &dyn Ground,
    opened: &Opened,
    step: &Step,
    journal: &mut Journal,
    tools: &image::Tools<'_>,
) -> Result<(), Failed> {
    match step {
        Step::MakeFile { from, to, format, .. } => {
            journal.owe(ground, Undo::Remove { path: to.clone() })?;
            image::make(ground, opened, from, (to, format), journal, tools)
        }
        Step::MakeMemory { from, to } => {
            journal.owe(ground, Undo::Remove { path: to.clone() })?;
            image::make(ground, opened, from, (to, &Format::Raw), journal, tools)
        }
        Step::CopySmall { from, to } => {
            journal.owe(ground, Undo::Remove { path: to.clone() })?;
            Ok(image::copy_small(opened, from, to)?)
        }
        Step::MakeTpmDir { dirs } => Ok(make_tpm_dirs(ground, dirs, journal)?),
        Step::CopyTpm { from, to } => {
            journal.owe(ground, Undo::Remove { path: to.clone() })?;
            Ok(image::copy_owned(opened, from, to, ground.tpm_owner()?)?)
        }
        Step::Join { from, point, .. } => {
            let chunks = opened.path(&from.name);
            Ok(image::join(ground, &chunks, point, journal, tools.chunkfs)?)
        }
        Step::Overlay { over, to, .. } => {
            journal.owe(ground, Undo::Discard { path: to.clone() })?;
            Ok(image::overlay(over, to, tools)?)
        }
        Step::Run { id, xml } => {
            journal.owe(ground, Undo::Destroy { id: id.clone() })?;
            Ok(ground.run(xml)?)
        }
        Step::Rewrite { from, path, writing, .. } => image::rewrite(opened, from, path, *writing, tools),
        Step::Name { path } => Ok(name(ground, path, journal)?),
        Step::Define { id, xml, before } => {
            let id = id.clone();
            if before.is_none() && ground.by_uuid(&id.uuid)?.is_some() {
                return Err(anyhow!("a domain of this UUID has just been defined by somebody else").into());
            }
            journal.owe(
                ground,
                match before {
                    Some(xml) => Undo::Redefine { id, xml: xml.clone() },
                    None => Undo::Undefine { id },
                },
            )?;
            Ok(ground.define(xml)?)
        }
        Step::Snapshot { id, xml, .. } => Ok(ground.redefine_snapshot(id, xml)?),
        Step::Keep => Ok(keep(ground, journal)?),
        Step::Start { id } => Ok(ground.begin(id)?),
        Step::Resume { memory, disks, .. } => {
            ground.resume_from(memory, disks)?;
            Ok(ground.remove_file(memory).map(drop)?)
        }
    }
}

/// Those that are there stay as they are. What is made is the emulator's, as libvirt makes it.
fn make_tpm_dirs(ground: &dyn Ground, dirs: &[PathBuf], journal: &mut Journal) -> Result<()> {
    let missing = dirs.iter().position(|dir| !dir.exists()).unwrap_or(dirs.len());
    let Some((last, above)) = dirs[missing..].split_last() else { return Ok(()) };
    if let Some(root) = dirs[missing].parent() {
        ground.make_dir(root)?;
    }
    journal.owe(ground, Undo::DiscardTree { path: dirs[missing].clone() })?;
    for dir in above {
        ground.make_dir(dir)?;
    }
    ground.make_private_dir(last)?;
    image::own(last, ground.tpm_owner()?)
}

fn name(ground: &dyn Ground, path: &Path, journal: &mut Journal) -> Result<()> {
    let partial = partial_of(path);
    let made = file_id(&partial).ok_or_else(|| anyhow!("{} is gone", partial.display()))?;
    let before = file_id(path);
    let modified_ns = image::modified_ns(&partial);
    journal.owe(ground, Undo::Unname { path: path.to_owned(), made, before, modified_ns })?;
    match before {
        Some(_) => {
            image::like(&partial, path)?;
            image::exchange(&partial, path)
        }
        None => image::rename_new(&partial, path),
    }
}

/// What was replaced goes.
fn keep(ground: &dyn Ground, journal: &mut Journal) -> Result<()> {
    journal.keep(ground)?;
    for undo in journal.owed() {
        if let Undo::Remove { path } = undo {
            ground.remove_file(path).context("remove what was replaced")?;
        }
    }
    Ok(())
}

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Failed {
        Failed { error, is_damage: false, is_unfinished: false }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}
