//! Generations: each view of the disks is one, with a stamp of its own. Opened before anything is shown, closed
//! when nobody can see it any more; one that was never closed was killed.

use super::database::checksum;
use super::disks::{DiskAtOpen, DiskState};
use super::{Index, IndexError};
use crate::core::digest::Digest;
use crate::core::stamp::{Generation, Previous, Stamp, stamp_for};
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;

/// Further behind than this, the clock is wrong, and waiting is not what helps.
const LONGEST_WAIT_SECS: i64 = 60;

/// Generations whose stamps are kept, to tell what has changed since.
const GENERATIONS_KEPT: u64 = 1000;

/// A generation that was opened. Nothing of it may be shown before the clock has reached its stamp.
#[derive(Clone, Debug)]
pub struct Opened {
    pub generation: Generation,
    pub stamp: Stamp,
    /// In the order in which they were given.
    pub disks: Vec<DiskState>,
}

/// A generation, as the index remembers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GenerationInfo {
    pub number: Generation,
    pub stamp: Stamp,
    pub opened: Stamp,
    /// `None`: open still, or its daemon was killed.
    pub closed: Option<Stamp>,
}

impl Index {
    /// Begins a generation: what may have changed is written down before anybody can see a stamp of it.
    pub fn open_generation(&self, disks: &[DiskAtOpen], now: Stamp) -> Result<Opened, IndexError> {
        self.write("opening a generation", |connection| {
            let last = self.last_generation(connection)?;
            let previous = last.as_ref().map(|last| Previous { stamp: last.stamp, closed: last.closed });
            let stamp = stamp_for(now, previous);
            if stamp > now.plus(LONGEST_WAIT_SECS) {
                return Err(IndexError::Clock { path: self.path.clone(), secs: stamp.0 - now.0 });
            }
            let generation = Generation(last.map_or(0, |last| last.number.0) + 1);
            let failed = |error| self.error("opening a generation", error);
            connection
                .execute(
                    "INSERT INTO generation (number, stamp, opened) VALUES (?1, ?2, ?3)",
                    params![generation.0, stamp.0, now.0],
                )
                .map_err(failed)?;
            connection
                .execute(
                    "DELETE FROM generation WHERE number <= ?1",
                    [generation.0.saturating_sub(GENERATIONS_KEPT)],
                )
                .map_err(failed)?;
            let disks = disks
                .iter()
                .map(|disk| self.open_disk(connection, disk, stamp, now))
                .collect::<Result<_, _>>()?;
            self.seal(connection)?;
            Ok(Opened { generation, stamp, disks })
        })
    }

    /// Ends a generation: nobody can read it any more. What is left of its candidates stays for the next.
    pub fn close_generation(&self, generation: Generation, now: Stamp) -> Result<(), IndexError> {
        self.write("closing the generation", |connection| {
            connection
                .execute(
                    // A clock that was set back must not close a generation before it was opened.
                    "UPDATE generation SET closed = max(?2, opened, stamp) WHERE number = ?1 AND closed IS NULL",
                    params![generation.0, now.0],
                )
                .map_err(|error| self.error("closing the generation", error))?;
            self.seal(connection)
        })?;
        self.gather();
        Ok(())
    }

    /// Ends a generation whose daemon was killed. `None`: the last one has been closed, or there is none.
    pub fn close_abandoned(&self, now: Stamp) -> Result<Option<Generation>, IndexError> {
        let last = self.read(|connection| self.last_generation(connection))?;
        let Some(open) = last.filter(|last| last.closed.is_none()) else { return Ok(None) };
        self.close_generation(open.number, now)?;
        Ok(Some(open.number))
    }

    /// The stamp of a plain file beside the disks: that of the generation that last saw its content change.
    pub fn stamp_of_file(&self, name: &str, content: &[u8], stamp: Stamp) -> Result<Stamp, IndexError> {
        let digest = Digest::of(content);
        let failed = |error| self.error("storing the stamp of a file", error);
        self.write("storing the stamp of a file", |connection| {
            let known = connection
                .query_row("SELECT digest, stamp FROM file WHERE name = ?1", [name], |row| {
                    Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, i64>(1)?))
                })
                .optional()
                .map_err(failed)?;
            match known {
                Some((known, stamp)) if known == digest.0 => Ok(Stamp(stamp)),
                _ => {
                    connection
                        .execute(
                            "INSERT OR REPLACE INTO file (name, digest, stamp) VALUES (?1, ?2, ?3)",
                            params![name, digest.0, stamp.0],
                        )
                        .map_err(failed)?;
                    self.seal(connection)?;
                    Ok(stamp)
                }
            }
        })
    }

    /// All that the index remembers, oldest first.
    pub fn generations(&self) -> Result<Vec<GenerationInfo>, IndexError> {
        let failed = |error| self.error("reading the generations", error);
        self.read(|connection| {
            let mut statement = connection
                .prepare("SELECT number, stamp, opened, closed FROM generation ORDER BY number")
                .map_err(failed)?;
            let rows = statement.query_map([], generation_of).map_err(failed)?;
            rows.collect::<Result<_, _>>().map_err(failed)
        })
    }

    fn last_generation(&self, connection: &Connection) -> Result<Option<GenerationInfo>, IndexError> {
        connection
            .query_row(
                "SELECT number, stamp, opened, closed FROM generation ORDER BY number DESC LIMIT 1",
                [],
                generation_of,
            )
            .optional()
            .map_err(|error| self.error("reading the generations", error))
    }

    /// Renews the checksum over the small tables; the last thing that a transaction does that changes one of them.
    pub(super) fn seal(&self, connection: &Connection) -> Result<(), IndexError> {
        let sum = self.sum_of_small_tables(connection)?;
        connection
            .execute("INSERT OR REPLACE INTO seal (id, sum) VALUES (1, ?1)", [sum])
            .map_err(|error| self.error("sealing the index", error))?;
        Ok(())
    }

    pub(super) fn check_seal(&self) -> Result<(), IndexError> {
        // Of one moment: another process may be writing.
        self.read_at_once("reading the index", |connection| {
            let failed = |error| self.error("reading the index", error);
            let seal: Option<Vec<u8>> = connection
                .query_row("SELECT sum FROM seal", [], |row| row.get(0))
                .optional()
                .map_err(failed)?;
            let is_new = self.last_generation(connection)?.is_none();
            match seal {
                None if is_new => Ok(()),
                Some(seal) if seal == self.sum_of_small_tables(connection)? => Ok(()),
                _ => Err(self.damaged("its table of disks and generations")),
            }
        })
    }

    fn sum_of_small_tables(&self, connection: &Connection) -> Result<[u8; 8], IndexError> {
        let failed = |error| self.error("reading the index", error);
        let mut rows = Vec::new();
        for sql in [
            "SELECT number, stamp, opened, closed FROM generation ORDER BY number",
            "SELECT slot, name, chunk_size, length, compared_to, base FROM disk ORDER BY slot",
            "SELECT name, digest, stamp FROM file ORDER BY name",
        ] {
            let mut statement = connection.prepare_cached(sql).map_err(failed)?;
            let columns = statement.column_count();
            let mut cursor = statement.query([]).map_err(failed)?;
            while let Some(row) = cursor.next().map_err(failed)? {
                for column in 0..columns {
                    let value: rusqlite::types::Value = row.get(column).map_err(failed)?;
                    rows.push(format!("{value:?}").into_bytes());
                }
            }
        }
        Ok(checksum(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>()))
    }
}

fn generation_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<GenerationInfo> {
    Ok(GenerationInfo {
        number: Generation(row.get(0)?),
        stamp: Stamp(row.get(1)?),
        opened: Stamp(row.get(2)?),
        closed: row.get::<_, Option<i64>>(3)?.map(Stamp),
    })
}
