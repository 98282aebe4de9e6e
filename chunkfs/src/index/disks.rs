//! The disks of an index at the start of a generation: which they are, how long, and what may have changed.
//! Decides when a change tracker is believed (T4).

use super::record::{Chunk, Content, Leaf, Record};
use super::runs::Run;
use super::{Index, IndexError};
use crate::core::changes::{ChangeSet, LeafSet};
use crate::core::geometry::{ChunkSize, Geometry, ImageLen, LeafIndex};
use crate::core::layout::DiskSlot;
use crate::core::stamp::Stamp;
use crate::source::image::Identity;
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

/// A disk as a new generation finds it.
#[derive(Clone, Debug)]
pub struct DiskAtOpen {
    /// What the disk is known by; it keeps its slot, and with it its inodes, for ever.
    pub name: String,
    pub geometry: Geometry,
    pub evidence: Evidence,
}

/// What is known of the changes since the generation before.
#[derive(Clone, Debug)]
pub enum Evidence {
    /// Nothing: every chunk is compared.
    None { why: String },
    /// A file that nobody has open for writing, and its times.
    File(Identity),
    /// A change tracker's: what it counts from, what to call this point in time, and what it has counted.
    Changes { since: String, point: String, changes: ChangeSet },
    /// A change tracker counts from here on, and can tell nothing of what was before.
    Start { point: String, why: String },
    /// None is wanted: every chunk counts as changed, whatever it held and holds.
    Renewed { why: String },
}

/// How a generation finds out what has changed on a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "by")]
pub enum Tracking {
    /// Every chunk is read and its digest compared.
    Digests { why: String },
    /// Only these candidates are.
    Changes { chunks: u64 },
    /// The file is as it was: nothing is read.
    Unchanged,
}

/// A disk in an open generation.
#[derive(Clone, Debug)]
pub struct DiskState {
    pub name: String,
    pub slot: DiskSlot,
    pub geometry: Geometry,
    pub tracking: Tracking,
    /// The leaves from here on have not all been compared since the last time that all had to be.
    pub compared_to: u64,
}

/// What the digests of a disk describe, but for its candidates. Stored as JSON.
// Not tagged from the inside: serde then keeps the fields in a form that has no place for nanoseconds of 128 bits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Base {
    File { identity: Identity, settled: bool },
    Point { name: String },
}

pub(super) struct DiskRow {
    pub slot: DiskSlot,
    pub name: String,
    pub geometry: Geometry,
    pub compared_to: u64,
    pub base: Option<Base>,
}

impl DiskRow {
    pub(super) fn point(&self) -> Option<&str> {
        match self.base.as_ref()? {
            Base::Point { name } => Some(name),
            Base::File { .. } => None,
        }
    }
}

impl Index {
    pub(super) fn open_disk(
        &self,
        connection: &Connection,
        disk: &DiskAtOpen,
        stamp: Stamp,
        now: Stamp,
    ) -> Result<DiskState, IndexError> {
        let row = match self.disk_row(connection, &disk.name)? {
            Some(row) => row,
            None => return self.new_disk(connection, disk, stamp, now),
        };
        let (known, asked) = (row.geometry.chunk_size().bytes(), disk.geometry.chunk_size().bytes());
        if known != asked {
            return Err(IndexError::ChunkSize { disk: disk.name.clone(), known, asked });
        }
        let mut compared_to = row.compared_to;
        if let Evidence::Renewed { .. } = disk.evidence {
            self.cut_runs(connection, row.slot, LeafIndex(0))?;
            self.put_new_leaves(connection, row.slot, 0, disk.geometry.leaf_count(), stamp)?;
        } else if row.geometry != disk.geometry {
            self.resize(connection, &row, &disk.geometry, stamp)?;
            compared_to = compared_to.min(disk.geometry.leaf_count());
        }
        let tracking = judge(&row, disk);
        match (&tracking, &disk.evidence) {
            (Tracking::Digests { .. }, _) => compared_to = 0,
            (Tracking::Changes { .. }, Evidence::Changes { changes, .. }) => {
                for (leaf, chunks) in changes.iter().filter(|(leaf, _)| leaf.0 < compared_to) {
                    self.put_candidates(connection, row.slot, leaf, chunks)?;
                }
            }
            _ => {}
        }
        let state = DiskState {
            name: disk.name.clone(),
            slot: row.slot,
            geometry: disk.geometry,
            tracking,
            compared_to,
        };
        self.put_disk(connection, &state, base_after(&disk.evidence, now), now)?;
        Ok(state)
    }

    fn new_disk(
        &self,
        connection: &Connection,
        disk: &DiskAtOpen,
        stamp: Stamp,
        now: Stamp,
    ) -> Result<DiskState, IndexError> {
        // Slots of disks that were forgotten are not given out again: the table keeps its rows.
        let last: Option<u64> = connection
            .query_row("SELECT max(slot) FROM disk", [], |row| row.get(0))
            .map_err(|error| self.error("reading the disks", error))?;
        let slot = DiskSlot::new(last.unwrap_or(0) + 1)
            .ok_or_else(|| IndexError::NoSlot { path: self.path.clone() })?;
        let tracking = Tracking::Digests { why: "it is new to the index".to_owned() };
        let state =
            DiskState { name: disk.name.clone(), slot, geometry: disk.geometry, tracking, compared_to: 0 };
        self.put_disk(connection, &state, base_after(&disk.evidence, now), now)?;
        self.put_new_leaves(connection, slot, 0, disk.geometry.leaf_count(), stamp)?;
        Ok(state)
    }

    fn put_new_leaves(
        &self,
        connection: &Connection,
        slot: DiskSlot,
        from: u64,
        to: u64,
        stamp: Stamp,
    ) -> Result<(), IndexError> {
        let record = Record::Uniform(Chunk { stamp, content: Content::Unknown });
        match from < to {
            true => self.put_run(connection, slot, &Run { leaves: from..to, record }),
            false => Ok(()),
        }
    }

    /// Chunks past the old end compare as new; the chunk whose length changes has changed; what was cut is forgotten.
    fn resize(
        &self,
        connection: &Connection,
        row: &DiskRow,
        new: &Geometry,
        stamp: Stamp,
    ) -> Result<(), IndexError> {
        let (old, slot) = (&row.geometry, row.slot);
        let shorter = old.image_len().min(new.image_len());
        let (old_leaves, new_leaves) = (old.leaf_count(), new.leaf_count());
        // The leaf in which the shorter of the two ends, if it has a chunk in both.
        let edge = old_leaves.min(new_leaves).checked_sub(1).map(LeafIndex);
        if let Some(edge) = edge {
            let known = self.run_at_in(connection, slot, edge)?.record.to_leaf(old.chunks_in(edge));
            let kept = old.chunks_in(edge).min(new.chunks_in(edge));
            let whole =
                (shorter.bytes() / new.chunk_size().bytes()).saturating_sub(edge.first_chunk().0) as usize;
            let fresh = Chunk { stamp, content: Content::Unknown };
            let mut chunks = known.chunks;
            chunks.truncate(kept.min(whole));
            chunks.resize(new.chunks_in(edge), fresh);
            let cut = (new.chunks_in(edge) < old.chunks_in(edge)).then_some(stamp).or(known.cut);
            let mut open = LeafSet::EMPTY;
            (0..chunks.len()).filter(|at| chunks[*at] == fresh).for_each(|at| open.insert(at));
            let mut candidates = self.candidates_in(connection, slot, edge)?.union(&open);
            (chunks.len()..256).for_each(|gone| candidates.remove(gone));
            self.cut_runs(connection, slot, edge)?;
            let record = Leaf { chunks, cut }.into_record();
            self.put_run(connection, slot, &Run { leaves: edge.0..edge.0 + 1, record })?;
            if edge.0 < row.compared_to && !candidates.is_empty() {
                self.put_candidates(connection, slot, edge, &candidates)?;
            }
        } else {
            self.cut_runs(connection, slot, LeafIndex(0))?;
        }
        let from = edge.map_or(0, |edge| edge.0 + 1);
        self.put_new_leaves(connection, slot, from, new_leaves, stamp)
    }

    pub(super) fn disk_row(
        &self,
        connection: &Connection,
        name: &str,
    ) -> Result<Option<DiskRow>, IndexError> {
        let row = connection
            .query_row(
                // Not by the index of names, which has no checksum: a disk that is not found there would get a
                // second slot, and all its inodes would change.
                "SELECT slot, name, chunk_size, length, compared_to, base FROM disk NOT INDEXED WHERE name = ?1",
                [name],
                RawDisk::from,
            )
            .optional()
            .map_err(|error| self.error("reading the disks", error))?;
        row.map(|raw| self.parse_disk(raw)).transpose()
    }

    pub(super) fn parse_disk(&self, raw: RawDisk) -> Result<DiskRow, IndexError> {
        let damaged = || self.damaged(format!("the row of disk {:?}", raw.name));
        let length = ImageLen::new(raw.length as u64).ok_or_else(damaged)?;
        let chunk_size = ChunkSize::new(raw.chunk_size).ok_or_else(damaged)?;
        // A base of a kind that this version does not know is none.
        let base = raw.base.as_deref().and_then(|json| serde_json::from_str(json).ok());
        Ok(DiskRow {
            slot: DiskSlot::new(raw.slot).ok_or_else(damaged)?,
            geometry: Geometry::new(length, chunk_size),
            compared_to: raw.compared_to,
            base,
            name: raw.name,
        })
    }

    fn put_disk(
        &self,
        connection: &Connection,
        disk: &DiskState,
        base: Option<Base>,
        now: Stamp,
    ) -> Result<(), IndexError> {
        let base = base.map(|base| serde_json::to_string(&base).expect("a base has only numbers and names"));
        connection
            .execute(
                "INSERT OR REPLACE INTO disk (slot, name, chunk_size, length, compared_to, base, last_seen)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![
                    disk.slot.number(),
                    disk.name,
                    disk.geometry.chunk_size().bytes(),
                    // 2^63 does not fit the database's integers; as a negative number it keeps its bits.
                    disk.geometry.image_len().bytes() as i64,
                    disk.compared_to,
                    base,
                    now.0
                ],
            )
            .map_err(|error| self.error("storing a disk", error))?;
        Ok(())
    }

    /// A clean chunk was found to have changed: this generation, and the next, compare everything.
    pub fn distrust(&self, slot: DiskSlot) -> Result<(), IndexError> {
        self.write("storing a disk", |connection| {
            connection
                .execute("UPDATE disk SET compared_to = 0, base = NULL WHERE slot = ?1", [slot.number()])
                .map_err(|error| self.error("storing a disk", error))?;
            self.seal(connection)
        })
    }

    /// The disks of other names describe no point in time any more: their next comparison is one of everything.
    /// Whatever counted changes for them may be given up.
    pub fn forget_points_except(&self, names: &[&str]) -> Result<(), IndexError> {
        let others = self.points()?.into_iter().filter(|disk| disk.point.is_some());
        let others: Vec<_> = others.filter(|disk| !names.contains(&disk.name.as_str())).collect();
        if others.is_empty() {
            return Ok(());
        }
        self.write("storing a disk", |connection| {
            for disk in &others {
                connection
                    .execute("UPDATE disk SET base = NULL WHERE name = ?1", [&disk.name])
                    .map_err(|error| self.error("storing a disk", error))?;
            }
            self.seal(connection)
        })
    }

    /// All leaves before `leaf` have been compared, but for those with candidates.
    pub fn set_compared_to(&self, slot: DiskSlot, leaf: LeafIndex) -> Result<(), IndexError> {
        self.write("storing progress", |connection| {
            connection
                .execute("UPDATE disk SET compared_to = ?2 WHERE slot = ?1", params![slot.number(), leaf.0])
                .map_err(|error| self.error("storing progress", error))?;
            self.seal(connection)
        })
    }
}

pub(super) struct RawDisk {
    slot: u64,
    name: String,
    chunk_size: u64,
    length: i64,
    compared_to: u64,
    base: Option<String>,
}

impl RawDisk {
    pub(super) fn from(row: &rusqlite::Row<'_>) -> rusqlite::Result<RawDisk> {
        Ok(RawDisk {
            slot: row.get(0)?,
            name: row.get(1)?,
            chunk_size: row.get(2)?,
            length: row.get(3)?,
            compared_to: row.get(4)?,
            base: row.get(5)?,
        })
    }
}

/// Is the tracker's word on what changed to be believed? Only if it counts from what the index describes.
fn judge(row: &DiskRow, disk: &DiskAtOpen) -> Tracking {
    let all = |why: &str| Tracking::Digests { why: why.to_owned() };
    match (&disk.evidence, &row.base) {
        (Evidence::None { why } | Evidence::Start { why, .. } | Evidence::Renewed { why }, _) => all(why),
        (Evidence::File(now), Some(Base::File { identity, settled: true })) if now == identity => {
            Tracking::Unchanged
        }
        (Evidence::File(now), Some(Base::File { identity, settled: false })) if now == identity => {
            all("the image was written just before the last view of it, so its times prove nothing")
        }
        (Evidence::File(_), Some(Base::File { .. })) => {
            all("the image was written or replaced since the last view")
        }
        (Evidence::File(_), _) => all("the index describes no file"),
        // A tracker that followed the disk through a change of its length may have lost count.
        (Evidence::Changes { .. }, _) if row.geometry != disk.geometry => all("the disk was resized"),
        (Evidence::Changes { since, changes, .. }, Some(Base::Point { name })) if since == name => {
            Tracking::Changes { chunks: changes.len() }
        }
        (Evidence::Changes { .. }, Some(Base::Point { .. })) => {
            all("the changes count from another point in time")
        }
        (Evidence::Changes { .. }, _) => {
            all("the index describes no point in time that changes could count from")
        }
    }
}

fn base_after(evidence: &Evidence, now: Stamp) -> Option<Base> {
    match evidence {
        Evidence::None { .. } | Evidence::Renewed { .. } => None,
        Evidence::File(identity) => {
            Some(Base::File { identity: *identity, settled: identity.is_settled(now.0) })
        }
        Evidence::Changes { point, .. } | Evidence::Start { point, .. } => {
            Some(Base::Point { name: point.clone() })
        }
    }
}
