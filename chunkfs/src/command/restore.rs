//! `chunkfs restore`: a directory of chunks becomes an image file, or the content of a block device.

use super::progress::{Progress, Show};
use crate::copy::{self, Mode, Outcome, RestoreError};
use crate::error::Status;
use crate::source::chunks::{ChunksSource, Verification};
use crate::source::shape::{ChunksError, Known};
use crate::source::{Source, SourceError};
use serde::Serialize;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug)]
pub struct Options {
    pub chunks: PathBuf,
    pub target: PathBuf,
    pub mode: Mode,
    pub verification: Verification,
    pub known: Known,
    pub show: Show,
}

/// What was done, as a sentence or as JSON.
#[derive(Clone, Debug, Serialize)]
pub struct Restored {
    #[serde(flatten)]
    pub outcome: Outcome,
    pub target: PathBuf,
    /// Every chunk was compared with its digest.
    pub is_verified: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Chunks(#[from] ChunksError),
    #[error("{target} lies within {chunks}, which it is to be restored from")]
    TargetWithinChunks { target: PathBuf, chunks: PathBuf },
    #[error("catching signals: {0}")]
    Signals(io::Error),
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

impl Failure {
    pub fn exit_status(&self) -> Status {
        match self {
            Failure::Restore(RestoreError::Unfinished { .. }) => Status::Owed,
            Failure::Restore(RestoreError::Busy { .. }) => Status::Busy,
            Failure::Restore(RestoreError::Source(SourceError::Damaged { .. })) => Status::Damaged,
            _ => Status::Failed,
        }
    }
}

pub fn restore(options: &Options) -> Result<Restored, Failure> {
    let source = ChunksSource::open(&options.chunks, options.verification, options.known)?;
    refuse_target_within(&options.target, &source)?;
    probe_end(&source).map_err(RestoreError::from)?;
    let progress = Progress::begin("restoring", options.show).map_err(Failure::Signals)?;
    let chunk_size = source.geometry().chunk_size();
    let outcome = copy::restore(&source, chunk_size, &options.target, options.mode, &progress)?;
    Ok(Restored { outcome, target: options.target.clone(), is_verified: source.is_verified() })
}

/// A chunk that is missing at the end, or one too many, is found out before hours of work, not after.
fn probe_end(source: &ChunksSource) -> Result<(), SourceError> {
    match source.len().bytes().checked_sub(1) {
        Some(last) => source.read_at(last, &mut [0]),
        None => Ok(()),
    }
}

fn refuse_target_within(target: &Path, source: &ChunksSource) -> Result<(), Failure> {
    // A target that does not exist yet is where its directory is.
    let real = target.canonicalize().or_else(|_| match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.canonicalize(),
        _ => Path::new(".").canonicalize(),
    });
    // Where not even that exists, the restore itself says so.
    let Ok(real) = real else { return Ok(()) };
    let chunks = source.path();
    let digests = source.digests_path();
    match real.starts_with(chunks) || digests.is_some_and(|digests| real.starts_with(digests)) {
        true => Err(Failure::TargetWithinChunks { target: target.to_owned(), chunks: chunks.to_owned() }),
        false => Ok(()),
    }
}

impl fmt::Display for Restored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { bytes, written, zeroed, beyond } = self.outcome;
        write!(f, "{}: restored {bytes} bytes: {written} written", self.target.display())?;
        if zeroed > 0 {
            write!(f, ", {zeroed} made zero")?;
        }
        if beyond > 0 {
            write!(f, "; the device has {beyond} more bytes, which are what they were")?;
        }
        if !self.is_verified {
            f.write_str("; not verified")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::split::{SplitTree, pattern, split};
    use std::fs;

    fn options(tree: &SplitTree, target: &str) -> Options {
        Options {
            chunks: tree.chunks(),
            target: tree.home().join(target),
            mode: Mode::New,
            verification: Verification::Digests,
            known: Known::NOTHING,
            show: Show::Never,
        }
    }

    #[test]
    fn a_tree_becomes_the_image_that_it_was() {
        let image = pattern(3_000_000);
        let tree = split(&image, 65536);
        let restored = restore(&options(&tree, "disk.img")).unwrap();
        assert!(fs::read(tree.home().join("disk.img")).unwrap() == image);
        assert!(restored.is_verified);
        assert!(restored.to_string().contains("restored 3000000 bytes"), "{restored}");
        let again = restore(&options(&tree, "disk.img")).unwrap_err();
        assert_eq!(again.exit_status(), Status::Failed);
        assert!(again.to_string().ends_with("exists: --force replaces it, --in-place rewrites what differs"));
    }

    #[test]
    fn a_target_within_the_chunks_or_their_digests_is_refused() {
        let tree = split(&pattern(10), 4096);
        for target in ["vda/new", "vda", "vda/00/new", "vda/00/00/00/00/00/00/00/00", "vda.b3/new"] {
            let refused = restore(&options(&tree, target)).unwrap_err();
            assert!(matches!(refused, Failure::TargetWithinChunks { .. }), "{target}: {refused}");
        }
    }

    #[test]
    fn what_is_wrong_at_the_end_is_found_before_anything_is_written() {
        let tree = split(&pattern(40 * 4096), 4096);
        fs::remove_file(tree.chunk(39)).unwrap();
        // Would take the file away from its name, were it touched.
        fs::write(tree.home().join("disk.img"), "mine").unwrap();
        let failure = restore(&Options { mode: Mode::InPlace, ..options(&tree, "disk.img") }).unwrap_err();
        assert!(failure.to_string().ends_with("27: missing"), "{failure}");
        assert_eq!(failure.exit_status(), Status::Damaged);
        assert_eq!(fs::read(tree.home().join("disk.img")).unwrap(), b"mine");
    }

    #[test]
    fn what_is_left_behind_has_its_own_status() {
        let tree = split(&pattern(40 * 4096), 4096);
        fs::write(tree.chunk(20), "").unwrap();
        fs::write(tree.home().join("disk.img"), "mine").unwrap();
        let failure = restore(&Options { mode: Mode::InPlace, ..options(&tree, "disk.img") }).unwrap_err();
        assert_eq!(failure.exit_status(), Status::Owed);
        assert!(failure.to_string().contains("disk.img.partial was left behind"), "{failure}");
    }
}
