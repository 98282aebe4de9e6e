//! The life of a target that is a block device: it has its first chunk only while it is whole.
//! Nothing here copies bytes: that is the sink's.
//!
//! ```text
//! read the first piece - zero its place, fsync - everything else, fsync - write the first piece, fsync
//! ```
//!
//! So a device on which a restore was interrupted has neither a partition table nor a boot sector nor most file
//! systems' superblocks, and nobody takes it for a finished one.

use super::sink::{Content, Medium, Sink};
use super::{Job, Mode, Outcome, RestoreError};
use crate::core::geometry::ByteRange;
use rustix::fs::{FileType, Mode as Bits, OFlags, SeekFrom};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::path::Path;

pub(super) fn restore(job: &Job<'_>, path: &Path) -> Result<Outcome, RestoreError> {
    let (file, size) = open(path)?;
    if size < job.len() {
        return Err(RestoreError::TooSmall { path: path.to_owned(), bytes: size, needed: job.len() });
    }
    let content = match job.mode {
        Mode::InPlace => Content::Old,
        Mode::New | Mode::Replace => Content::Unknown,
    };
    let mut sink = Sink::new(file, path, Medium::Device, content)?;
    match fill(job, &mut sink) {
        Ok(()) => Ok(Outcome { beyond: size - job.len(), ..job.outcome(&sink) }),
        Err(cause) if !sink.is_changed() => Err(cause),
        Err(cause) => Err(RestoreError::Unfinished {
            path: path.to_owned(),
            state: "its first chunk was left zero, the rest is partly restored: run the same again",
            cause: Box::new(cause),
        }),
    }
}

fn fill(job: &Job<'_>, sink: &mut Sink) -> Result<(), RestoreError> {
    let first = ByteRange::new(0, job.piece_len.min(job.len()));
    // Read before anything is touched: a source without a first chunk is found out in time.
    let mut bytes = vec![0; first.len() as usize];
    job.source.read_at(0, &mut bytes)?;
    sink.hold_back(first);
    if job.mode != Mode::InPlace {
        sink.before_change()?;
    }
    job.copy(ByteRange::new(first.end, job.len()), sink)?;
    if sink.is_changed() || !sink.has(0, &bytes)? {
        // The rest is on the disk before the first chunk is; and the first chunk is compared with the zeros that
        // are there by then, never with what was there before them.
        sink.before_change()?;
        sink.sync()?;
        sink.put_bytes(0, &bytes)?;
    }
    job.watch.advance(first.len());
    sink.sync()
}

/// With its size in bytes. Exclusively: what is mounted, or a part of something, is not written over.
fn open(path: &Path) -> Result<(File, u64), RestoreError> {
    let error = |doing| {
        move |error: Errno| RestoreError::Target { doing, path: path.to_owned(), error: error.into() }
    };
    let flags = OFlags::RDWR | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Bits::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::BUSY) => return Err(RestoreError::InUse { path: path.to_owned() }),
        Err(other) => return Err(error("opening")(other)),
    };
    let stat = rustix::fs::fstat(&file).map_err(error("looking at"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::BlockDevice {
        let replaced = io::Error::other("it was replaced while it was opened");
        return Err(RestoreError::Target { doing: "opening", path: path.to_owned(), error: replaced });
    }
    let size = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(error("asking for the size of"))?;
    Ok((file, size))
}
