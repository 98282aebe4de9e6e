//! The records of a disk: runs of leaves that tile it, each with what is known of them.
//! A run of several leaves is uniform; most of an empty disk is one row.

use super::database::checksum;
use super::record::{self, Record};
use super::{Index, IndexError};
use crate::core::changes::LeafSet;
use crate::core::geometry::LeafIndex;
use crate::core::layout::{DiskSlot, Tree};
use crate::core::stamp::Stamp;
use rusqlite::{Connection, OptionalExtension, Row, params};
use std::ops::Range;

/// Leaves that share a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub leaves: Range<u64>,
    pub record: Record,
}

/// What a resolved leaf, or a run of them, is to be known as from now on.
#[derive(Clone, Debug)]
pub struct Publication {
    pub slot: DiskSlot,
    pub run: Run,
    /// Chunks that could not be read, and so stay candidates; of a single leaf.
    pub still_open: LeafSet,
}

impl Index {
    /// The run that a leaf belongs to. The leaf is one of the disk.
    pub fn run_at(&self, slot: DiskSlot, leaf: LeafIndex) -> Result<Run, IndexError> {
        self.read(|connection| self.run_at_in(connection, slot, leaf))
    }

    pub(super) fn run_at_in(
        &self,
        connection: &Connection,
        slot: DiskSlot,
        leaf: LeafIndex,
    ) -> Result<Run, IndexError> {
        let mut statement = connection
            .prepare_cached("SELECT first, end, body, sum FROM run WHERE slot = ?1 AND first <= ?2 ORDER BY first DESC LIMIT 1")
            .map_err(|error| self.error("reading a leaf", error))?;
        let row = statement.query_row(params![slot.number(), leaf.0], RunRow::from).optional();
        self.run_with(slot, leaf, row.map_err(|error| self.error("reading a leaf", error))?)
    }

    /// The run in a row that was looked for by a leaf, which has to be in it.
    fn run_with(&self, slot: DiskSlot, leaf: LeafIndex, row: Option<RunRow>) -> Result<Run, IndexError> {
        let run = row.map(|row| self.decode(slot, row)).transpose()?;
        run.filter(|run| run.leaves.contains(&leaf.0))
            .ok_or_else(|| self.damaged(format!("disk {} has no record of leaf {}", slot.number(), leaf.0)))
    }

    fn decode(&self, slot: DiskSlot, row: RunRow) -> Result<Run, IndexError> {
        let leaves = row.first..row.end;
        let damaged = || self.damaged(format!("the record of leaf {} of disk {}", row.first, slot.number()));
        if row.sum != run_sum(slot, &leaves, &row.body) {
            return Err(damaged());
        }
        let record = record::decode(&row.body).ok_or_else(damaged)?;
        match (&record, leaves.end.saturating_sub(leaves.start)) {
            (_, 0) => Err(damaged()),
            (Record::Leaf(_), 2..) => Err(damaged()),
            _ => Ok(Run { leaves, record }),
        }
    }

    /// The run that a leaf belongs to, and its candidates as they were at the same moment: storing a comparison
    /// changes both, so that a record of before together with the candidates of after would look compared.
    pub fn leaf_at(&self, slot: DiskSlot, leaf: LeafIndex) -> Result<(Run, LeafSet), IndexError> {
        // One statement reads as of one moment.
        const SQL: &str = "SELECT first, end, body, run.sum, chunks, candidate.sum FROM run
             LEFT JOIN candidate ON candidate.slot = ?1 AND leaf = ?2
             WHERE run.slot = ?1 AND first <= ?2 ORDER BY first DESC LIMIT 1";
        let failed = |error| self.error("reading a leaf", error);
        let row = self.read(|connection| {
            let mut statement = connection.prepare_cached(SQL).map_err(failed)?;
            let both = |row: &Row<'_>| Ok((RunRow::from(row)?, (row.get(4)?, row.get(5)?)));
            statement.query_row(params![slot.number(), leaf.0], both).optional().map_err(failed)
        })?;
        let (run, candidates) = row.unzip();
        let run = self.run_with(slot, leaf, run)?;
        let listed = match candidates {
            None | Some((None, None)) => LeafSet::EMPTY,
            Some((chunks, sum)) => {
                self.decode_candidates(slot, leaf, chunks.unwrap_or_default(), sum.unwrap_or_default())?
            }
        };
        Ok((run, listed))
    }

    /// Has one of these leaves candidates?
    pub fn has_candidates(&self, slot: DiskSlot, leaves: &Range<u64>) -> Result<bool, IndexError> {
        let failed = |error| self.error("reading candidates", error);
        self.read(|connection| {
            let mut statement = connection
                .prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM candidate WHERE slot = ?1 AND leaf >= ?2 AND leaf < ?3)",
                )
                .map_err(failed)?;
            statement
                .query_row(params![slot.number(), leaves.start, leaves.end], |row| row.get(0))
                .map_err(failed)
        })
    }

    /// The chunks of a leaf that may have changed by what a change tracker said.
    pub fn candidates(&self, slot: DiskSlot, leaf: LeafIndex) -> Result<LeafSet, IndexError> {
        self.read(|connection| self.candidates_in(connection, slot, leaf))
    }

    pub(super) fn candidates_in(
        &self,
        connection: &Connection,
        slot: DiskSlot,
        leaf: LeafIndex,
    ) -> Result<LeafSet, IndexError> {
        let failed = |error| self.error("reading candidates", error);
        let mut statement = connection
            .prepare_cached("SELECT chunks, sum FROM candidate WHERE slot = ?1 AND leaf = ?2")
            .map_err(failed)?;
        let row = statement.query_row(params![slot.number(), leaf.0], |row| Ok((row.get(0)?, row.get(1)?)));
        match row.optional().map_err(failed)? {
            Some((chunks, sum)) => self.decode_candidates(slot, leaf, chunks, sum),
            None => Ok(LeafSet::EMPTY),
        }
    }

    fn decode_candidates(
        &self,
        slot: DiskSlot,
        leaf: LeafIndex,
        chunks: Vec<u8>,
        sum: Vec<u8>,
    ) -> Result<LeafSet, IndexError> {
        match <&[u8; 32]>::try_from(chunks.as_slice()) {
            Ok(bytes) if sum == candidate_sum(slot, leaf, bytes) => Ok(LeafSet::from_bytes(bytes)),
            _ => Err(self.damaged(format!("the candidates of leaf {} of disk {}", leaf.0, slot.number()))),
        }
    }

    /// The newest stamp among some leaves' chunks, or among their lists of digests. `None`: there are none.
    pub fn newest_in(
        &self,
        slot: DiskSlot,
        leaves: Range<u64>,
        tree: Tree,
    ) -> Result<Option<Stamp>, IndexError> {
        // Runs do not overlap, so only the one that holds the first leaf may begin before it.
        let sql = match tree {
            Tree::Chunks => {
                "SELECT max(newest) FROM run INDEXED BY run_newest WHERE slot = ?1 AND first < ?3 AND end > ?2
                 AND first >= coalesce((SELECT max(first) FROM run WHERE slot = ?1 AND first <= ?2), 0)"
            }
            Tree::Digests => {
                "SELECT max(listed) FROM run INDEXED BY run_newest WHERE slot = ?1 AND first < ?3 AND end > ?2
                 AND first >= coalesce((SELECT max(first) FROM run WHERE slot = ?1 AND first <= ?2), 0)"
            }
        };
        self.read(|connection| {
            let mut statement =
                connection.prepare_cached(sql).map_err(|error| self.error("reading stamps", error))?;
            let newest =
                statement.query_row(params![slot.number(), leaves.start, leaves.end], |row| row.get(0));
            newest
                .map(|newest: Option<i64>| newest.map(Stamp))
                .map_err(|error| self.error("reading stamps", error))
        })
    }

    /// Stores what was found out. When this returns it may be shown.
    pub fn publish(&self, publications: &[Publication]) -> Result<(), IndexError> {
        self.write("storing stamps and digests", |connection| {
            for publication in publications {
                let Publication { slot, run, still_open } = publication;
                self.put_run(connection, *slot, run)?;
                self.clear_candidates(connection, *slot, &run.leaves)?;
                if !still_open.is_empty() {
                    self.put_candidates(connection, *slot, LeafIndex(run.leaves.start), still_open)?;
                }
            }
            Ok(())
        })
    }

    /// Puts a run in the place of whatever overlaps it.
    pub(super) fn put_run(
        &self,
        connection: &Connection,
        slot: DiskSlot,
        run: &Run,
    ) -> Result<(), IndexError> {
        assert!(run.leaves.start < run.leaves.end, "a run has a leaf");
        for other in self.runs_over(connection, slot, &run.leaves)? {
            self.delete_run(connection, slot, other.leaves.start)?;
            for rest in [other.leaves.start..run.leaves.start, run.leaves.end..other.leaves.end] {
                if rest.start < rest.end {
                    self.insert_run(connection, slot, &Run { leaves: rest, record: other.record.clone() })?;
                }
            }
        }
        self.insert_run(connection, slot, run)
    }

    /// Forgets all leaves from `from` on.
    pub(super) fn cut_runs(
        &self,
        connection: &Connection,
        slot: DiskSlot,
        from: LeafIndex,
    ) -> Result<(), IndexError> {
        for other in self.runs_over(connection, slot, &(from.0..i64::MAX as u64))? {
            self.delete_run(connection, slot, other.leaves.start)?;
            if other.leaves.start < from.0 {
                let kept = Run { leaves: other.leaves.start..from.0, record: other.record };
                self.insert_run(connection, slot, &kept)?;
            }
        }
        self.clear_candidates(connection, slot, &(from.0..i64::MAX as u64))
    }

    /// All runs that have a leaf in `leaves`, in order.
    pub(super) fn runs_over(
        &self,
        connection: &Connection,
        slot: DiskSlot,
        leaves: &Range<u64>,
    ) -> Result<Vec<Run>, IndexError> {
        let failed = |error| self.error("reading leaves", error);
        let mut statement = connection
            .prepare_cached(
                "SELECT first, end, body, sum FROM run WHERE slot = ?1 AND first < ?3 AND end > ?2
                 AND first >= coalesce((SELECT max(first) FROM run WHERE slot = ?1 AND first <= ?2), 0) ORDER BY first",
            )
            .map_err(failed)?;
        let rows = statement
            .query_map(params![slot.number(), leaves.start, leaves.end], RunRow::from)
            .map_err(failed)?;
        rows.map(|row| self.decode(slot, row.map_err(failed)?)).collect()
    }

    fn insert_run(&self, connection: &Connection, slot: DiskSlot, run: &Run) -> Result<(), IndexError> {
        let body = record::encode(&run.record);
        let sum = run_sum(slot, &run.leaves, &body);
        connection
            .prepare_cached("INSERT INTO run (slot, first, end, newest, listed, body, sum) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")
            .and_then(|mut insert| {
                let (newest, listed) = (run.record.newest().0, run.record.digests_stamp().0);
                insert.execute(params![slot.number(), run.leaves.start, run.leaves.end, newest, listed, body, sum])
            })
            .map_err(|error| self.error("storing a leaf", error))?;
        Ok(())
    }

    fn delete_run(&self, connection: &Connection, slot: DiskSlot, first: u64) -> Result<(), IndexError> {
        connection
            .prepare_cached("DELETE FROM run WHERE slot = ?1 AND first = ?2")
            .and_then(|mut delete| delete.execute(params![slot.number(), first]))
            .map_err(|error| self.error("storing a leaf", error))?;
        Ok(())
    }

    pub(super) fn put_candidates(
        &self,
        connection: &Connection,
        slot: DiskSlot,
        leaf: LeafIndex,
        chunks: &LeafSet,
    ) -> Result<(), IndexError> {
        let bytes = self.candidates_in(connection, slot, leaf)?.union(chunks).to_bytes();
        let sum = candidate_sum(slot, leaf, &bytes);
        connection
            .prepare_cached(
                "INSERT OR REPLACE INTO candidate (slot, leaf, chunks, sum) VALUES (?1, ?2, ?3, ?4)",
            )
            .and_then(|mut insert| insert.execute(params![slot.number(), leaf.0, bytes, sum]))
            .map_err(|error| self.error("storing candidates", error))?;
        Ok(())
    }

    pub(super) fn clear_candidates(
        &self,
        connection: &Connection,
        slot: DiskSlot,
        leaves: &Range<u64>,
    ) -> Result<(), IndexError> {
        connection
            .prepare_cached("DELETE FROM candidate WHERE slot = ?1 AND leaf >= ?2 AND leaf < ?3")
            .and_then(|mut delete| delete.execute(params![slot.number(), leaves.start, leaves.end]))
            .map_err(|error| self.error("storing candidates", error))?;
        Ok(())
    }

    /// Is the table of candidates whole? A row that got lost would leave no trace, unlike one of leaves, which tile.
    pub(super) fn check_candidates(&self) -> Result<(), IndexError> {
        let verdict: String = self.read(|connection| {
            connection
                .query_row("PRAGMA quick_check(candidate)", [], |row| row.get(0))
                .map_err(|error| self.error("reading the index", error))
        })?;
        if verdict == "ok" { Ok(()) } else { Err(self.damaged(verdict)) }
    }

    /// The leaves that have candidates, in order. All are read and checked: one that got lost would never be
    /// compared, and shown as it was.
    pub fn candidate_leaves(&self, slot: DiskSlot) -> Result<Vec<LeafIndex>, IndexError> {
        let failed = |error| self.error("reading candidates", error);
        self.read(|connection| {
            let mut statement = connection
                .prepare("SELECT leaf, chunks, sum FROM candidate WHERE slot = ?1 ORDER BY leaf")
                .map_err(failed)?;
            let mut rows = statement.query(params![slot.number()]).map_err(failed)?;
            let mut leaves = Vec::new();
            while let Some(row) = rows.next().map_err(failed)? {
                let leaf = row.get(0).map(LeafIndex).map_err(failed)?;
                let (chunks, sum) = (row.get(1).map_err(failed)?, row.get(2).map_err(failed)?);
                self.decode_candidates(slot, leaf, chunks, sum)?;
                leaves.push(leaf);
            }
            Ok(leaves)
        })
    }
}

struct RunRow {
    first: u64,
    end: u64,
    body: Vec<u8>,
    sum: Vec<u8>,
}

impl RunRow {
    fn from(row: &rusqlite::Row<'_>) -> rusqlite::Result<RunRow> {
        Ok(RunRow { first: row.get(0)?, end: row.get(1)?, body: row.get(2)?, sum: row.get(3)? })
    }
}

fn run_sum(slot: DiskSlot, leaves: &Range<u64>, body: &[u8]) -> [u8; 8] {
    checksum(&[&slot.number().to_le_bytes(), &leaves.start.to_le_bytes(), &leaves.end.to_le_bytes(), body])
}

fn candidate_sum(slot: DiskSlot, leaf: LeafIndex, chunks: &[u8; 32]) -> [u8; 8] {
    checksum(&[&slot.number().to_le_bytes(), &leaf.0.to_le_bytes(), chunks])
}
