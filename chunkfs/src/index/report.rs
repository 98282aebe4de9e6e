//! What an index can tell: its disks, whether it is whole, and what has changed since a generation.
//! Reads only.

use super::disks::{DiskRow, RawDisk};
use super::record::Content;
use super::{GenerationInfo, Index, IndexError};
use crate::core::geometry::{ByteRange, ChunkIndex, Geometry, LeafIndex};
use crate::core::stamp::Stamp;
use serde::Serialize;

/// A disk, as the index knows it.
#[derive(Clone, Debug, Serialize)]
pub struct DiskInfo {
    pub name: String,
    pub slot: u16,
    pub length: u64,
    pub chunk_size: u64,
    pub chunks: u64,
    /// Chunks whose digest is known, all-zero ones included.
    pub known: u64,
    pub zero: u64,
    /// Chunks that the next view has to compare whatever a change tracker says.
    pub pending: u64,
}

/// What is needed to know whether a change tracker's word will be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskPoint {
    pub name: String,
    pub length: u64,
    pub chunk_size: u64,
    /// The point in time that the digests describe, by the name that a change tracker gave it.
    pub point: Option<String>,
}

/// An index in numbers.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub generations: Vec<GenerationInfo>,
    pub disks: Vec<DiskInfo>,
}

/// A chunk that has changed, or that nobody has compared yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    pub chunk: ChunkIndex,
    pub range: ByteRange,
    pub stamp: Stamp,
    /// Not compared in the last generation: it may have changed, too.
    pub pending: bool,
}

impl Index {
    /// Quick: no chunk is looked at.
    pub fn points(&self) -> Result<Vec<DiskPoint>, IndexError> {
        let point = |row: DiskRow| DiskPoint {
            point: row.point().map(str::to_owned),
            length: row.geometry.image_len().bytes(),
            chunk_size: row.geometry.chunk_size().bytes(),
            name: row.name,
        };
        Ok(self.disk_rows()?.into_iter().map(point).collect())
    }

    pub fn summary(&self) -> Result<Summary, IndexError> {
        let disks = self.disk_rows()?.iter().map(|row| self.disk_info(row)).collect::<Result<_, _>>()?;
        Ok(Summary { generations: self.generations()?, disks })
    }

    /// Reads every row and every page.
    pub fn check(&self) -> Result<Summary, IndexError> {
        let failed = |error| self.error("checking the index", error);
        let verdict: String = self.read(|connection| {
            connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(failed)
        })?;
        if verdict != "ok" {
            return Err(self.damaged(verdict));
        }
        self.check_seal()?;
        for row in self.disk_rows()? {
            let mut next = 0;
            self.for_each_run(&row, |leaves, _, _| {
                if leaves.start != next {
                    return Err(
                        self.damaged(format!("disk {:?}: leaf {next} has no record, or two", row.name))
                    );
                }
                next = leaves.end;
                Ok(())
            })?;
            if next != row.geometry.leaf_count() {
                return Err(self.damaged(format!("disk {:?}: its records end at leaf {next}", row.name)));
            }
            for leaf in self.candidate_leaves(row.slot)? {
                self.candidates(row.slot, leaf)?;
            }
        }
        self.summary()
    }

    /// The geometry of a disk. Without a name: of the only disk.
    pub fn disk_named(&self, name: Option<&str>) -> Result<(String, Geometry), IndexError> {
        let mut rows = self.disk_rows()?;
        let known = rows.iter().map(|row| row.name.clone()).collect::<Vec<_>>().join(", ");
        match name {
            Some(name) => rows.retain(|row| row.name == name),
            None if rows.len() > 1 => rows.clear(),
            None => {}
        }
        let row = rows.pop().ok_or_else(|| IndexError::NoDisk {
            path: self.path.clone(),
            disk: name.unwrap_or("").to_owned(),
            known,
        })?;
        Ok((row.name, row.geometry))
    }

    /// Calls `each` for every chunk that has changed since `stamp`, or may have: in disk order.
    pub fn changed_since(
        &self,
        disk: &str,
        stamp: Stamp,
        mut each: impl FnMut(Changed),
    ) -> Result<(), IndexError> {
        let row = self.disk_rows()?.into_iter().find(|row| row.name == disk);
        let Some(row) = row else { return Ok(()) };
        self.for_each_run(&row, |leaves, record, candidates| {
            let chunks = row.geometry.chunk_range(LeafIndex(leaves.start)).start
                ..row.geometry.chunk_range(LeafIndex(leaves.end - 1)).end;
            // Of many leaves that are alike and old, only those that were not compared are gone through.
            let first = match leaves.end - leaves.start > 1 && record.newest() <= stamp {
                true => LeafIndex(row.compared_to).first_chunk().0.clamp(chunks.start, chunks.end),
                false => chunks.start,
            };
            for chunk in first..chunks.end {
                let index = ChunkIndex(chunk);
                let known =
                    record.chunk(if leaves.end - leaves.start == 1 { index.slot_in_leaf() } else { 0 });
                let pending = index.leaf().0 >= row.compared_to || candidates(index);
                if known.stamp > stamp || pending {
                    let range = row.geometry.range_of(index).expect("the chunk is in the image");
                    each(Changed { chunk: index, range, stamp: known.stamp, pending });
                }
            }
            Ok(())
        })
    }

    fn disk_rows(&self) -> Result<Vec<DiskRow>, IndexError> {
        let failed = |error| self.error("reading the disks", error);
        let raw: Vec<RawDisk> = self.read(|connection| {
            let mut statement = connection
                .prepare("SELECT slot, name, chunk_size, length, compared_to, base FROM disk ORDER BY slot")
                .map_err(failed)?;
            let rows = statement.query_map([], RawDisk::from).map_err(failed)?;
            rows.collect::<Result<_, _>>().map_err(failed)
        })?;
        raw.into_iter().map(|raw| self.parse_disk(raw)).collect()
    }

    fn disk_info(&self, row: &DiskRow) -> Result<DiskInfo, IndexError> {
        let (mut known, mut zero, mut pending) = (0, 0, 0);
        self.for_each_run(row, |leaves, record, candidates| {
            let chunks = row.geometry.chunk_range(LeafIndex(leaves.start)).start
                ..row.geometry.chunk_range(LeafIndex(leaves.end - 1)).end;
            if let super::record::Record::Uniform(chunk) = record {
                let count = chunks.end - chunks.start;
                zero += if chunk.content == Content::Zero { count } else { 0 };
                known += if chunk.content == Content::Unknown { 0 } else { count };
            } else {
                for chunk in chunks.clone() {
                    let content = record.chunk(ChunkIndex(chunk).slot_in_leaf()).content;
                    zero += u64::from(content == Content::Zero);
                    known += u64::from(content != Content::Unknown);
                }
            }
            let watermark = LeafIndex(row.compared_to).first_chunk().0.clamp(chunks.start, chunks.end);
            pending += chunks.end - watermark;
            if leaves.end - leaves.start == 1 {
                pending +=
                    (chunks.start..watermark).filter(|chunk| candidates(ChunkIndex(*chunk))).count() as u64;
            }
            Ok(())
        })?;
        Ok(DiskInfo {
            name: row.name.clone(),
            slot: row.slot.number(),
            length: row.geometry.image_len().bytes(),
            chunk_size: row.geometry.chunk_size().bytes(),
            chunks: row.geometry.chunk_count(),
            known,
            zero,
            pending,
        })
    }

    /// Calls `each` with every run, in order, and a way to ask for candidates.
    fn for_each_run(
        &self,
        row: &DiskRow,
        mut each: impl FnMut(
            &std::ops::Range<u64>,
            &super::record::Record,
            &dyn Fn(ChunkIndex) -> bool,
        ) -> Result<(), IndexError>,
    ) -> Result<(), IndexError> {
        let with_candidates: std::collections::BTreeSet<u64> =
            self.candidate_leaves(row.slot)?.into_iter().map(|leaf| leaf.0).collect();
        let mut leaf = 0;
        while leaf < row.geometry.leaf_count() {
            let run = self.run_at(row.slot, LeafIndex(leaf))?;
            let set = match with_candidates.contains(&leaf) {
                true => self.candidates(row.slot, LeafIndex(leaf))?,
                false => crate::core::changes::LeafSet::EMPTY,
            };
            // Leaves with candidates may lie inside a uniform run: cut it there.
            let end =
                with_candidates.range(leaf + 1..).next().copied().unwrap_or(u64::MAX).min(run.leaves.end);
            let end = if set.is_empty() { end } else { leaf + 1 };
            let asked = LeafIndex(leaf);
            let candidates = |chunk: ChunkIndex| chunk.leaf() == asked && set.contains(chunk.slot_in_leaf());
            each(&(leaf..end), &run.record, &candidates)?;
            leaf = end;
        }
        Ok(())
    }
}
