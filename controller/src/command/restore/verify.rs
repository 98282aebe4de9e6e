//! Reads all of a backup that is wanted, and compares it with its digests, before anything is written.
//! Damage has an exit status of its own, and every place of it is named.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, anyhow};
use chunkfs::core::geometry::ImageLen;
use chunkfs::source::shape::Known;
use chunkfs::verify::{self, Options, Problem};
use chunkfs::watch::Watch;

use crate::carry;
use crate::command::Failure;
use crate::core::names::Target;
use crate::core::restore::{Form, Kept, Then};
use crate::core::units::Bytes;

use super::act::Failed;
use super::backup::Opened;
use super::{DAMAGED, expand, image};

/// More than that says no more.
const PROBLEMS_TOLD: usize = 20;

/// Also finds out how long the disks are that only tell it at their end.
pub(super) fn all(
    opened: &mut Opened,
    exclude: &BTreeSet<Target>,
    then: Then,
    watch: &dyn Watch,
) -> Result<(), Failure> {
    let mut wanted: Vec<Kept> = Vec::new();
    for (target, kept) in &opened.backup.disks {
        if !exclude.contains(target) {
            wanted.push(kept.clone());
        }
    }
    wanted.extend(opened.backup.memory.clone().filter(|_| then == Then::Resume));
    let mut problems = Vec::new();
    let mut notes = BTreeSet::new();
    for kept in &wanted {
        match one(opened, kept, watch, &mut notes) {
            Ok((bytes, found)) => {
                problems.extend(found);
                let disks = opened.backup.disks.values_mut().filter(|disk| disk.name == kept.name);
                disks.for_each(|disk| disk.bytes = disk.bytes.or(bytes));
            }
            Err(failed) if failed.is_damage => problems.push(failed.to_string()),
            Err(failed) => return Err(failed.error.into()),
        }
    }
    opened.backup.notes.extend(notes);
    if problems.is_empty() {
        return Ok(());
    }
    let more = problems.len().saturating_sub(PROBLEMS_TOLD);
    problems.truncate(PROBLEMS_TOLD);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    let id = &opened.backup.domain.id;
    let story = format!("{id}: the backup is damaged, and nothing was begun: {}{more}", problems.join("; "));
    Err(Failure { exit_status: DAMAGED, story })
}

/// The length, where it was found out, and what is wrong.
fn one(
    opened: &Opened,
    kept: &Kept,
    watch: &dyn Watch,
    notes: &mut BTreeSet<String>,
) -> Result<(Option<Bytes>, Vec<String>), Failed> {
    match kept.form {
        Form::Chunks => Ok((None, chunks(opened, kept, watch, notes)?)),
        Form::Compressed(_) => {
            let (bytes, digest) = expand::digest(opened, kept, watch)?;
            expand::compare(opened, kept, digest)?;
            Ok((Some(bytes), Vec::new()))
        }
        Form::Raw | Form::Qcow2 => {
            if opened.digests.contains_key(&kept.name) {
                let file = opened.file(&kept.name)?;
                let options = carry::Options {
                    disk: &kept.name,
                    compression: carry::Compression::None,
                    bytes_per_sec: None,
                    existing: carry::Existing::Refuse,
                };
                let read = carry::digest(&image::image(&file)?, &options, &image::Part(watch));
                let carried = read.map_err(|error| anyhow!(error))?;
                expand::compare(opened, kept, carried.digest)?;
            }
            Ok((None, Vec::new()))
        }
    }
}

fn chunks(
    opened: &Opened,
    kept: &Kept,
    watch: &dyn Watch,
    notes: &mut BTreeSet<String>,
) -> Result<Vec<String>> {
    let problems = Mutex::new(Vec::new());
    let found = |problem: &Problem| {
        problems.lock().unwrap_or_else(PoisonError::into_inner).push(problem.to_string());
    };
    let known = Known { len: kept.bytes.and_then(|Bytes(bytes)| ImageLen::new(bytes)), ..Known::NOTHING };
    let options = Options { known, image: None };
    let report = verify::verify(&opened.path(&kept.name), &options, &image::Part(watch), &found)?;
    if !report.complete {
        return Err(anyhow!("stopped"));
    }
    if !report.has_digests {
        notes.insert(format!("{}: there are no digests: only names and lengths were verified", kept.name));
    }
    Ok(problems.into_inner().unwrap_or_else(PoisonError::into_inner))
}
