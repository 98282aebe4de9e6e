//! A source whose bytes come from files that nobody may touch meanwhile, the images behind an export, say, or from devices
//! that may fail at any time, as snapshots do. Once one of them is not as it was, every read fails: what was written
//! since must never be mixed in, and what happens to be cached is not told from what can be read.

use super::image::{Identity, identity_of, open_whatever};
use super::{Extent, Source, SourceError};
use crate::core::geometry::{ByteRange, ImageLen};
use rustix::fs::{Mode, OFlags};
use rustix::io::pread;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

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
    devices: Vec<Device>,
    broken: OnceLock<String>,
}

#[derive(Debug)]
struct Guarded {
    path: PathBuf,
    file: OwnedFd,
    identity: Identity,
}

/// A device is asked whether it can be read still when this has passed since it was asked last.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// What can be read past the page cache of any device: a multiple of its blocks, at a multiple in memory.
const BLOCK: usize = 4096;

#[derive(Debug)]
struct Device {
    path: PathBuf,
    file: OwnedFd,
    asked: Mutex<Instant>,
}

impl Device {
    fn open(path: &Path) -> rustix::io::Result<Device> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECT;
        let file = rustix::fs::open(path, flags, Mode::empty())?;
        let device = Device { path: path.to_owned(), file, asked: Mutex::new(Instant::now()) };
        device.ask().map(|()| device)
    }

    fn ask(&self) -> rustix::io::Result<()> {
        let mut memory = [0; 2 * BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        match pread(&self.file, &mut memory[start..start + BLOCK], 0)? {
            BLOCK => Ok(()),
            _ => Err(rustix::io::Errno::IO),
        }
    }

    /// Asks, unless it has done so just now or another thread is at it.
    fn check(&self) -> rustix::io::Result<()> {
        let Ok(mut asked) = self.asked.try_lock() else { return Ok(()) };
        if asked.elapsed() < ASK_AGAIN_AFTER {
            return Ok(());
        }
        self.ask()?;
        *asked = Instant::now();
        Ok(())
    }
}

impl GuardedSource {
    /// Errors: a file is not there any more, or has been touched already; a device cannot be read.
    pub fn new(
        inner: Arc<dyn Source>,
        files: &[FileState],
        devices: &[PathBuf],
    ) -> Result<GuardedSource, SourceError> {
        let open = |state: &FileState| {
            let file = open_whatever(&state.path).map_err(|error| {
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
            Ok(Guarded { path: state.path.clone(), file: file.into(), identity })
        };
        let files = files.iter().map(open).collect::<Result<Vec<_>, SourceError>>()?;
        let watch = |path: &PathBuf| {
            Device::open(path).map_err(|error| {
                let why = format!("{} cannot be read: {error}", path.display());
                SourceError::Invalid { what: inner.describe(), why }
            })
        };
        let devices = devices.iter().map(watch).collect::<Result<Vec<_>, SourceError>>()?;
        let broken = OnceLock::new();
        let guarded = GuardedSource { inner: Arc::clone(&inner), files, devices, broken };
        guarded.check_all().map(|()| guarded)
    }

    fn check_all(&self) -> Result<(), SourceError> {
        for guarded in &self.files {
            let now = rustix::fs::fstat(&guarded.file).map(|stat| identity_of(&stat));
            if now != Ok(guarded.identity) {
                // Who was first has told the reason.
                let _ = self.broken.set(format!("{} was written to or replaced", guarded.path.display()));
            }
        }
        for device in &self.devices {
            if let Err(error) = device.check() {
                let why = format!("{} cannot be read any more: {error}", device.path.display());
                let _ = self.broken.set(why);
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
        self.check_all()
    }

    fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, SourceError> {
        let extents = self.inner.extents(range)?;
        self.check_all()?;
        Ok(extents)
    }

    fn check(&self) -> Result<(), SourceError> {
        self.inner.check()?;
        self.check_all()
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
    fn once_a_device_cannot_be_read_nothing_more_is() {
        let mut device = tempfile::NamedTempFile::new().unwrap();
        device.write_all(&[1; 2 * BLOCK]).unwrap();
        let paths = [device.path().to_owned()];
        let guard = || GuardedSource::new(Arc::new(MemorySource::new(vec![7; 4096])), &[], &paths);
        let guarded = guard().unwrap();
        guarded.read_at(0, &mut [0; 16]).unwrap();

        device.as_file().set_len(0).unwrap();
        std::thread::sleep(ASK_AGAIN_AFTER);
        let error = guarded.read_at(0, &mut [0; 16]).unwrap_err().to_string();
        assert!(error.contains("cannot be read any more"), "{error}");
        device.as_file().set_len(8192).unwrap();
        guarded.check().expect_err("what has failed once is not believed again");
    }

    #[test]
    fn once_a_file_is_touched_nothing_more_is_read() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[1; 4096]).unwrap();
        let identity = ImageSource::open(file.path()).unwrap().identity().unwrap();
        let states = [FileState { path: file.path().to_owned(), identity: Some(identity) }];
        let guard = || GuardedSource::new(Arc::new(MemorySource::new(vec![7; 4096])), &states, &[]);
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
