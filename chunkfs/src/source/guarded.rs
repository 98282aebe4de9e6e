//! A source whose bytes come from files that nobody may touch meanwhile: the images behind an export, say.
//! Once one of them is not as it was, every read fails: what was written since must never be mixed in.

use super::image::{Identity, identity_of};
use super::{Extent, Source, SourceError};
use crate::core::geometry::{ByteRange, ImageLen};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// A file, and how it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileState {
    pub path: PathBuf,
    /// `None`: as it is when the source is opened.
    #[serde(default)]
    pub identity: Option<Identity>,
}

/// See above.
#[derive(Debug)]
pub struct GuardedSource {
    inner: Arc<dyn Source>,
    files: Vec<Guarded>,
    broken: OnceLock<String>,
}

#[derive(Debug)]
struct Guarded {
    path: PathBuf,
    file: OwnedFd,
    identity: Identity,
}

impl GuardedSource {
    /// Errors: a file is not there any more, or has been touched already.
    pub fn new(inner: Arc<dyn Source>, files: &[FileState]) -> Result<GuardedSource, SourceError> {
        let open = |state: &FileState| {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
            let file = rustix::fs::open(&state.path, flags, Mode::empty()).map_err(|error| {
                let why = format!("{} cannot be watched: {error}", state.path.display());
                SourceError::Invalid { what: inner.describe(), why }
            })?;
            let now = rustix::fs::fstat(&file).map(|stat| identity_of(&stat));
            let identity = match (state.identity, now) {
                (Some(identity), _) | (None, Ok(identity)) => identity,
                (None, Err(error)) => {
                    let why = format!("{} cannot be watched: {error}", state.path.display());
                    return Err(SourceError::Invalid { what: inner.describe(), why });
                }
            };
            Ok(Guarded { path: state.path.clone(), file, identity })
        };
        let files = files.iter().map(open).collect::<Result<Vec<_>, SourceError>>()?;
        let guarded = GuardedSource { inner: Arc::clone(&inner), files, broken: OnceLock::new() };
        guarded.check_files().map(|()| guarded)
    }

    fn check_files(&self) -> Result<(), SourceError> {
        for guarded in &self.files {
            let now = rustix::fs::fstat(&guarded.file).map(|stat| identity_of(&stat));
            if now != Ok(guarded.identity) {
                // Who was first has told the reason.
                let _ = self.broken.set(format!("{} was written to or replaced", guarded.path.display()));
            }
        }
        match self.broken.get() {
            None => Ok(()),
            Some(why) => Err(SourceError::Invalid { what: self.describe(), why: why.clone() }),
        }
    }
}

impl Source for GuardedSource {
    fn len(&self) -> ImageLen {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        self.inner.read_at(offset, buffer)?;
        // After the read, so that bytes written since are never handed out.
        self.check_files()
    }

    fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, SourceError> {
        let extents = self.inner.extents(range)?;
        self.check_files()?;
        Ok(extents)
    }

    fn check(&self) -> Result<(), SourceError> {
        self.inner.check()?;
        self.check_files()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::image::ImageSource;
    use crate::source::memory::MemorySource;
    use std::io::Write;

    #[test]
    fn once_a_file_is_touched_nothing_more_is_read() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[1; 4096]).unwrap();
        let identity = ImageSource::open(file.path()).unwrap().identity().unwrap();
        let states = [FileState { path: file.path().to_owned(), identity: Some(identity) }];
        let guard = || GuardedSource::new(Arc::new(MemorySource::new(vec![7; 4096])), &states);
        let guarded = guard().unwrap();
        guarded.read_at(0, &mut [0; 16]).unwrap();

        // Clocks of file systems go in steps of some milliseconds.
        std::thread::sleep(std::time::Duration::from_millis(20));
        file.write_all(b"x").unwrap();
        for outcome in [guarded.read_at(0, &mut [0; 16]), guarded.check(), guard().map(drop)] {
            let error = outcome.unwrap_err().to_string();
            assert!(error.contains("was written to or replaced"), "{error}");
        }
    }
}
