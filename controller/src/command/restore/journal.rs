//! What a restore owes until it is kept: a line for each thing to undo, on disk before the thing is done.
//! Undoes nothing.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::core::domain::DomainId;
use crate::core::names::Names;
use crate::core::restore::{FileId, Undo};

use super::Ground;

/// `<state>/<vm>/restore`, and `<state>/<vm>/booted` of a guest that runs from a backup.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    /// Of a guest that runs from a backup. None: the journal is older than this line.
    origin: Option<Origin>,
    /// In the order in which it was done.
    undos: Vec<Undo>,
    kept: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    Owes(Undo),
    /// Only what is called `.partial` goes from here on.
    Kept,
    From(Origin),
}

/// What a guest runs from, and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    pub(super) tree: PathBuf,
    /// In seconds since 1970.
    pub(super) since_secs: i64,
}

impl Journal {
    pub(super) fn begin(ground: &dyn Ground, path: PathBuf) -> Result<Journal> {
        ground.replace(&path, b"").context("begin the journal")?;
        Ok(Journal { path, origin: None, undos: Vec::new(), kept: false })
    }

    /// None: nothing is owed.
    pub(super) fn read(ground: &dyn Ground, path: PathBuf) -> Result<Option<Journal>> {
        let Some(text) = ground.read(&path)? else { return Ok(None) };
        let mut journal = Journal { path, origin: None, undos: Vec::new(), kept: false };
        // The last line may be torn: then what it announces was not begun.
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        for line in text[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let reading = || {
                format!(
                    "read {} (what it describes is not touched: look at it, then remove it)",
                    journal.path.display()
                )
            };
            match serde_json::from_slice(line).with_context(reading)? {
                Line::Owes(undo) => journal.undos.push(undo),
                Line::Kept => journal.kept = true,
                Line::From(origin) => journal.origin = Some(origin),
            }
        }
        Ok(Some(journal))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn owe(&mut self, ground: &dyn Ground, undo: Undo) -> Result<()> {
        self.write(ground, &Line::Owes(undo.clone()))?;
        self.undos.push(undo);
        Ok(())
    }

    pub(super) fn say_from(&mut self, ground: &dyn Ground, origin: Origin) -> Result<()> {
        self.write(ground, &Line::From(origin.clone()))?;
        self.origin = Some(origin);
        Ok(())
    }

    pub(super) fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    pub(super) fn keep(&mut self, ground: &dyn Ground) -> Result<()> {
        self.write(ground, &Line::Kept)?;
        self.kept = true;
        Ok(())
    }

    pub(super) fn is_kept(&self) -> bool {
        self.kept
    }

    /// What is to be undone, newest first. Once it is kept, only names that are no longer needed go.
    pub(super) fn owed(&self) -> impl Iterator<Item = &Undo> {
        let kept = self.kept;
        self.undos.iter().rev().filter(move |undo| !kept || undo.goes_when_kept())
    }

    /// The guest that runs from a backup, by what would end it.
    pub(super) fn runs(&self) -> Option<&DomainId> {
        self.undos.iter().find_map(|undo| match undo {
            Undo::Destroy { id } => Some(id),
            _ => None,
        })
    }

    pub(super) fn was_replaced(&self, id: FileId) -> bool {
        self.undos
            .iter()
            .any(|undo| matches!(undo, Undo::Unname { before: Some(before), .. } if before.is_still(id)))
    }

    pub(super) fn forget(&mut self, ground: &dyn Ground) -> Result<()> {
        ground.remove_file(&self.path).map(drop).context("forget the journal")
    }

    fn write(&self, ground: &dyn Ground, line: &Line) -> Result<()> {
        let mut text = serde_json::to_string(line).expect("plain data always serialises");
        text.push('\n');
        ground.append(&self.path, text.as_bytes()).context("write the journal")
    }
}

pub(super) fn of_restore(names: &Names) -> PathBuf {
    names.home().join("restore")
}

pub(super) fn of_boot(names: &Names) -> PathBuf {
    names.home().join("booted")
}
