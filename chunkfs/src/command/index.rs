//! `chunkfs index`: what an index knows, whether it is whole, and what has changed.

use crate::cli::{DiffFormat, Index as IndexArgs, Since};
use crate::core::geometry::LeafIndex;
use crate::core::layout::Node;
use crate::core::stamp::Stamp;
use crate::error::{CommandError, Status};
use crate::index::{Access, Changed, Index, Summary};
use serde_json::json;
use std::io::{self, Write};
use std::path::Path;

pub(super) fn run(args: IndexArgs) -> Result<Status, CommandError> {
    match args {
        IndexArgs::Show { index, json } => print_summary(&open(&index)?.summary()?, json),
        IndexArgs::Check { index, json } => print_summary(&open(&index)?.check()?, json),
        IndexArgs::Diff { index, disk, since, format: DiffFormat::ViewFiles } => {
            view_files(&open(&index)?, disk, since)
        }
        IndexArgs::Diff { index, disk, since, format } => {
            diff(&open(&index)?, disk.as_deref(), since, format)
        }
    }?;
    Ok(Status::Done)
}

fn open(path: &Path) -> Result<Index, CommandError> {
    if let Err(error) = std::fs::metadata(path) {
        return Err(CommandError::Io { doing: format!("opening the index {}", path.display()), error });
    }
    Ok(Index::open(path, Access::Read)?)
}

fn print_summary(summary: &Summary, json: bool) -> Result<(), CommandError> {
    let mut out = io::stdout().lock();
    let printed = match json {
        true => writeln!(out, "{}", serde_json::to_string_pretty(summary).expect("only numbers and texts")),
        false => print_text(&mut out, summary),
    };
    printed.map_err(CommandError::io("printing"))
}

fn print_text(out: &mut impl Write, summary: &Summary) -> io::Result<()> {
    for disk in &summary.disks {
        writeln!(
            out,
            "disk {}: slot {}, {} bytes, {} chunks of {}: {} known, {} of them zero; {} to be compared",
            disk.name,
            disk.slot,
            disk.length,
            disk.chunks,
            disk.chunk_size,
            disk.known,
            disk.zero,
            disk.pending
        )?;
    }
    for generation in &summary.generations {
        let closed = generation.closed.map_or("not closed".to_owned(), |at| format!("closed {at}"));
        writeln!(
            out,
            "generation {}: stamp {}, opened {}, {closed}",
            generation.number, generation.stamp, generation.opened
        )?;
    }
    Ok(())
}

fn diff(
    index: &Index,
    disk: Option<&str>,
    since: Option<Since>,
    format: DiffFormat,
) -> Result<(), CommandError> {
    let (disk, geometry) = index.disk_named(disk)?;
    let since = stamp_of(index, since)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let (mut listed, mut failed, mut changed) = (Vec::new(), Ok(()), 0u64);
    index.changed_since(&disk, since, |chunk| {
        changed += 1;
        let path = Node::of_chunk(chunk.chunk).path();
        let line = match format {
            DiffFormat::Json => return listed.push(chunk),
            DiffFormat::FilesFrom | DiffFormat::ViewFiles => writeln!(out, "{path}"),
            DiffFormat::Text => {
                let mark = if chunk.pending { " not compared" } else { "" };
                writeln!(out, "{} {} {path}{mark}", chunk.range.start, chunk.range.len())
            }
        };
        failed = std::mem::replace(&mut failed, Ok(())).and(line);
    })?;
    if format == DiffFormat::Json {
        let changes: Vec<_> = listed.iter().map(json_of).collect();
        let object = json!({
            "disk": disk, "length": geometry.image_len(), "chunk_size": geometry.chunk_size().bytes(),
            "since": since, "changed": changes,
        });
        failed = writeln!(out, "{object}");
    }
    failed.and_then(|()| out.flush()).map_err(CommandError::io("printing"))
}

/// The changed chunks as a view shows them, each leaf's before the file of its digests.
fn view_files(index: &Index, disk: Option<String>, since: Option<Since>) -> Result<(), CommandError> {
    let disks = match disk {
        Some(disk) => vec![index.disk_named(Some(&disk))?.0],
        None => index.points()?.into_iter().map(|point| point.name).collect(),
    };
    let since = stamp_of(index, since)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut failed = Ok(());
    for disk in disks {
        let mut last: Option<LeafIndex> = None;
        let digests = |leaf: LeafIndex| format!("{disk}.b3/{}\n", Node::of_leaf(leaf).path());
        index.changed_since(&disk, since, |changed| {
            let left = last.replace(changed.chunk.leaf()).filter(|leaf| *leaf != changed.chunk.leaf());
            let lines = left.map(digests).unwrap_or_default();
            let line = writeln!(out, "{lines}{disk}/{}", Node::of_chunk(changed.chunk).path());
            failed = std::mem::replace(&mut failed, Ok(())).and(line);
        })?;
        let line = out.write_all(last.map(digests).unwrap_or_default().as_bytes());
        failed = failed.and(line);
    }
    failed.and_then(|()| out.flush()).map_err(CommandError::io("printing"))
}

fn json_of(changed: &Changed) -> serde_json::Value {
    json!({
        "chunk": changed.chunk.0, "offset": changed.range.start, "length": changed.range.len(),
        "path": Node::of_chunk(changed.chunk).path(), "stamp": changed.stamp, "compared": !changed.pending,
    })
}

/// Chunks with a later stamp have changed: that of the generation asked for, or of the last but one.
fn stamp_of(index: &Index, since: Option<Since>) -> Result<Stamp, CommandError> {
    let generations = index.generations()?;
    match since {
        None if generations.len() < 2 => Ok(Stamp(i64::MIN)),
        None => Ok(generations[generations.len() - 2].stamp),
        Some(Since::Stamp(secs)) => Ok(Stamp(secs)),
        Some(Since::Generation(0)) => Ok(Stamp(i64::MIN)),
        Some(Since::Generation(number)) => {
            let found = generations.iter().find(|generation| generation.number.0 == number);
            found.map(|generation| generation.stamp).ok_or_else(|| {
                let (first, last) = (generations.first(), generations.last());
                let known = first
                    .zip(last)
                    .map_or("none".to_owned(), |(f, l)| format!("{} to {}", f.number, l.number));
                CommandError::Usage(format!("--since {number}: no such generation; the index knows {known}"))
            })
        }
    }
}
