//! The index: the database of what the chunks of some disks held, and when each last changed.
//! One file, SQLite; for one mount, with all its disks. It knows nothing of FUSE, and reads no image.
//!
//! Whatever a view shows is on disk here first, so that a stamp that somebody may have seen is never given to
//! other content, not even after a power cut. docs/format.md describes the tables.

pub mod record;
mod database;
mod disks;
mod generations;
mod report;
mod runs;

pub use database::{Access, Index};
pub use disks::{DiskAtOpen, DiskState, Evidence, Tracking};
pub use generations::{GenerationInfo, Opened};
pub use report::{Changed, DiskInfo, DiskPoint, Summary};
pub use runs::{Publication, Run};

use std::path::PathBuf;

/// Why an index cannot be used. It is left as it was.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error("{}: in use by another chunkfs; unmount that first", .path.display())]
    Busy { path: PathBuf },
    #[error("{}: not an index of chunkfs ({why}); give another --index file", .path.display())]
    Foreign { path: PathBuf, why: String },
    #[error(
        "{}: damaged ({why}); move it away and start over with a new one: the next backup then reads all chunks again",
        .path.display()
    )]
    Damaged { path: PathBuf, why: String },
    #[error("{}: {doing}: {error}", .path.display())]
    Io { path: PathBuf, doing: &'static str, error: std::io::Error },
    #[error("{}: {doing}: {error}{}", .path.display(), remedy_of(.error))]
    Database { path: PathBuf, doing: &'static str, error: rusqlite::Error },
    #[error(
        "disk {disk}: the index was made for chunks of {known} bytes, not {asked}; \
         use --chunk-size {known}, or start over with a new --index file"
    )]
    ChunkSize { disk: String, known: u64, asked: u64 },
    #[error("{}: all 1023 disk slots were given out; start over with a new --index file", .path.display())]
    NoSlot { path: PathBuf },
    #[error(
        "the clock is {secs} s behind the last generation in {}; set the clock, or wait, or start over with a \
         new --index file",
        .path.display()
    )]
    Clock { path: PathBuf, secs: i64 },
    #[error("{}: there is no disk {disk:?} in it; it has {known}", .path.display())]
    NoDisk { path: PathBuf, disk: String, known: String },
}

fn remedy_of(error: &rusqlite::Error) -> &'static str {
    use rusqlite::ErrorCode::{CannotOpen, DiskFull, ReadOnly};
    match error.sqlite_error_code() {
        Some(DiskFull) => "; make room on its file system",
        Some(ReadOnly | CannotOpen) => "; the index must be on a file system that can be written to",
        _ => "",
    }
}

#[cfg(test)]
mod tests;
