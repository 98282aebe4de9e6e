//! Copies a source to a file or a block device, so that an interrupted copy is never taken for a finished one.
//! Nothing here mounts anything, and no target has its name, or its first chunk, before it is whole and on the disk.

mod aligned;
mod blocks;
mod bulk;
mod cached;
mod device;
mod direct;
mod file;
mod pieces;
mod sink;

use crate::core::geometry::{ByteRange, ChunkSize};
use crate::source::{Source, SourceError};
use crate::watch::Watch;
pub use aligned::{ALIGNMENT, Aligned};
pub use bulk::{Bulk, WriteError, sparse_runs};
pub use direct::PIECE;
use serde::Serialize;
use sink::Sink;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// What may become of what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A file must not exist. A block device is overwritten: it cannot but exist.
    New,
    /// A file that exists is replaced as soon as the new one is whole.
    Replace,
    /// Only what differs is written over.
    InPlace,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// The length of the image.
    pub bytes: u64,
    /// So many of them were written.
    pub written: u64,
    /// So many were made zero on a target that had, or may have had, something else there.
    pub zeroed: u64,
    /// The device is longer than the image by so many bytes; they are what they were.
    pub beyond: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("{doing} {path}: {error}")]
    Target { doing: &'static str, path: PathBuf, error: io::Error },
    #[error("{path} exists: --force replaces it, --in-place rewrites what differs")]
    Exists { path: PathBuf },
    #[error("{path} is neither a regular file nor a block device")]
    NotAFile { path: PathBuf },
    #[error("{path} has {names} names (hard links): what is written to it would appear under all of them")]
    HardLinked { path: PathBuf, names: u64 },
    #[error("{path}: there is no such device")]
    NoSuchDevice { path: PathBuf },
    #[error("{path} is in use: it is mounted, or a part of another device")]
    InUse { path: PathBuf },
    #[error("{path} is being restored to by another process")]
    Busy { path: PathBuf },
    #[error("{path} has {bytes} bytes, but the image has {needed}")]
    TooSmall { path: PathBuf, bytes: u64, needed: u64 },
    #[error("starting a thread to read: {0}")]
    Threads(io::Error),
    #[error("stopped")]
    Stopped,
    /// Something was left behind that is not what it was, nor what it should be.
    #[error("{cause}; {path} was left behind, {state}")]
    Unfinished { path: PathBuf, state: &'static str, cause: Box<RestoreError> },
}

/// Copies all of `source` to `target`. Data is read in whole chunks of `chunk_size`.
///
/// On success everything is on the disk. On any error but `Unfinished` everything is as it was.
pub fn restore(
    source: &dyn Source,
    chunk_size: ChunkSize,
    target: &Path,
    mode: Mode,
    watch: &dyn Watch,
) -> Result<Outcome, RestoreError> {
    let job = Job { source, piece_len: pieces::piece_len(chunk_size), mode, watch };
    watch.expect(job.len());
    let error = |doing| move |error| RestoreError::Target { doing, path: target.to_owned(), error };
    match target.metadata() {
        Ok(found) if found.file_type().is_block_device() => {
            device::restore(&job, &target.canonicalize().map_err(error("looking for"))?)
        }
        Ok(found) if found.is_file() => {
            file::restore(&job, &target.canonicalize().map_err(error("looking for"))?)
        }
        Ok(_) => Err(RestoreError::NotAFile { path: target.to_owned() }),
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => file::restore(&job, &new_path(target)?),
        Err(other) => Err(error("looking at")(other)),
    }
}

/// Where a file that does not exist yet will be, without links.
fn new_path(target: &Path) -> Result<PathBuf, RestoreError> {
    let error = |error| RestoreError::Target { doing: "looking for", path: target.to_owned(), error };
    let Some(name) = target.file_name() else {
        return Err(error(io::ErrorKind::NotFound.into()));
    };
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let parent = parent.canonicalize().map_err(error)?;
    // A device's name with a slip of the pen must not become a file that fills the memory.
    if parent.starts_with("/dev") && !parent.starts_with("/dev/shm") {
        return Err(RestoreError::NoSuchDevice { path: target.to_owned() });
    }
    Ok(parent.join(name))
}

/// What is to be copied, for either kind of target.
struct Job<'a> {
    source: &'a dyn Source,
    piece_len: u64,
    mode: Mode,
    watch: &'a dyn Watch,
}

impl Job<'_> {
    fn len(&self) -> u64 {
        self.source.len().bytes()
    }

    fn copy(&self, range: ByteRange, sink: &mut Sink) -> Result<(), RestoreError> {
        pieces::for_each(self.source, range, self.piece_len, self.watch, |piece| sink.put(piece))
    }

    fn outcome(&self, sink: &Sink) -> Outcome {
        Outcome { bytes: self.len(), written: sink.written, zeroed: sink.zeroed, beyond: 0 }
    }
}

#[cfg(test)]
mod tests;
