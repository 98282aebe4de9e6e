//! What the index promises, against naive models and tables.

mod damage;
mod disks;
mod runs;
mod sample;

use super::{Access, DiskAtOpen, Evidence, Index, IndexError, Opened};
use crate::core::geometry::{ChunkSize, Geometry, ImageLen};
use crate::core::stamp::Stamp;
use std::path::PathBuf;
use std::time::Duration;

/// A directory for indexes, in memory where there is such a place: thousands of transactions are made here.
fn home() -> tempfile::TempDir {
    let fast = PathBuf::from("/dev/shm");
    let place = if fast.is_dir() { fast } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("chunkfs-test-").tempdir_in(place).unwrap()
}

fn open(home: &tempfile::TempDir) -> Index {
    Index::open(&home.path().join("index"), Access::Write { wait: Duration::ZERO }).unwrap()
}

/// A disk of so many bytes, in chunks of 4096.
fn geometry(bytes: u64) -> Geometry {
    Geometry::new(ImageLen::new(bytes).unwrap(), ChunkSize::MIN)
}

fn at_open(name: &str, bytes: u64, evidence: Evidence) -> DiskAtOpen {
    DiskAtOpen { name: name.to_owned(), geometry: geometry(bytes), evidence }
}

fn none() -> Evidence {
    Evidence::None { why: "the test says so".to_owned() }
}

/// Begins a generation of the disk `vda`.
fn begin(index: &Index, bytes: u64, evidence: Evidence, now: i64) -> Result<Opened, IndexError> {
    index.open_generation(&[at_open("vda", bytes, evidence)], Stamp(now))
}
