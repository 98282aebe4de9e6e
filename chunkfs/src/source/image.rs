//! An image file or a block device, read with `pread`.
//! The bytes are taken as they are: raw. No format is ever probed, for a guest could have written any header.

use super::{Extent, ExtentKind, Source, SourceError};
use crate::core::geometry::{ByteRange, ImageLen};
use rustix::fs::{FileType, Mode, OFlags, SeekFrom};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Somebody writes to it all the time: then it is no image to be read without its guest.
const ROUNDS_TO_DISK: usize = 3;

/// Which file it is and when it was last changed. Equal identities mean that nothing was written in between,
/// as far as the file system's clock can tell: see `Identity::is_settled`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    pub mtime_ns: i128,
    pub ctime_ns: i128,
}

impl Identity {
    /// Were the times already old at `now_secs`, so that a later write cannot have left them as they are?
    /// File systems count time in steps of up to two seconds.
    pub fn is_settled(&self, now_secs: i64) -> bool {
        let newest = self.mtime_ns.max(self.ctime_ns).div_euclid(1_000_000_000);
        newest + 2 < i128::from(now_secs)
    }
}

/// A regular file or block device that is not written to while we read it.
#[derive(Debug)]
pub struct ImageSource {
    file: File,
    path: PathBuf,
    len: ImageLen,
    /// Of a regular file. Its change makes the source invalid.
    identity: Option<Identity>,
    invalid: AtomicBool,
}

impl ImageSource {
    /// Errors: the file is missing, not readable, or neither a regular file nor a block device.
    pub fn open(path: &Path) -> io::Result<ImageSource> {
        let file = open_whatever(path)?;
        let stat = stat_when_written(&file)?;
        let (bytes, identity) = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => (stat.st_size as u64, Some(identity_of(&stat))),
            FileType::BlockDevice => (rustix::fs::seek(&file, SeekFrom::End(0))?, None),
            FileType::Directory => return Err(io::ErrorKind::IsADirectory.into()),
            _ => return Err(io::Error::other("neither a regular file nor a block device")),
        };
        let len = ImageLen::new(bytes).ok_or_else(|| io::Error::other("longer than 8 EiB"))?;
        Ok(ImageSource { file, path: path.to_owned(), len, identity, invalid: AtomicBool::new(false) })
    }

    /// `None`: a block device has no times to tell it by.
    pub fn identity(&self) -> Option<Identity> {
        self.identity
    }

    fn invalidate(&self, why: &str) -> SourceError {
        self.invalid.store(true, Ordering::SeqCst);
        SourceError::Invalid { what: self.describe(), why: why.to_owned() }
    }

    fn read_error(&self, range: ByteRange, error: io::Error) -> SourceError {
        let what = self.describe();
        SourceError::Read { what, offset: range.start, length: range.len(), error: Arc::new(error) }
    }

    /// The next data or hole at or after `offset`; the end of the file where there is none.
    fn seek(&self, to: SeekFrom, range: ByteRange) -> Result<u64, SourceError> {
        match rustix::fs::seek(&self.file, to) {
            Ok(offset) => Ok(offset.min(range.end)),
            Err(rustix::io::Errno::NXIO) => Ok(range.end),
            Err(error) => Err(self.read_error(range, error.into())),
        }
    }
}

impl Source for ImageSource {
    fn len(&self) -> ImageLen {
        self.len
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        let range = ByteRange::new(offset, offset + buffer.len() as u64);
        match self.file.read_exact_at(buffer, offset) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(self.invalidate("it is shorter than it was"));
            }
            Err(error) => return Err(self.read_error(range, error)),
        }
        // After the read, so that bytes written since the view was made are never handed out.
        self.check()
    }

    fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, SourceError> {
        self.check()?;
        if self.identity.is_none() {
            return Ok(vec![Extent { range, kind: ExtentKind::Data }]);
        }
        // Two seeks and no loop: a file of a million holes costs as much as is asked for, not more.
        let data = self.seek(SeekFrom::Data(range.start), range)?;
        let mut extents = Vec::with_capacity(2);
        if data > range.start {
            extents.push(Extent { range: ByteRange::new(range.start, data), kind: ExtentKind::Zero });
        }
        if data < range.end {
            let hole = self.seek(SeekFrom::Hole(data), range)?;
            extents.push(Extent { range: ByteRange::new(data, hole), kind: ExtentKind::Data });
        }
        self.check()?;
        Ok(extents)
    }

    fn check(&self) -> Result<(), SourceError> {
        if self.invalid.load(Ordering::SeqCst) {
            return Err(self.invalidate("it was changed while it was read"));
        }
        let Some(identity) = self.identity else { return Ok(()) };
        let stat = rustix::fs::fstat(&self.file)
            .map_err(|error| self.read_error(ByteRange::new(0, 0), error.into()))?;
        match identity_of(&stat) == identity {
            true => Ok(()),
            false => Err(self.invalidate("it was changed while it was read")),
        }
    }

    fn describe(&self) -> String {
        self.path.display().to_string()
    }
}

/// A FIFO would block the open for ever, and a device with a driver behind it might act on it.
pub(crate) fn open_whatever(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

/// Who writes by way of a memory map changes the times only with the first write to a page since that was on the disk. So
/// what has been written goes there first: whatever is written to a regular file from now on, its times tell.
fn stat_when_written(file: &File) -> io::Result<rustix::fs::Stat> {
    let mut stat = rustix::fs::fstat(file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(stat);
    }
    for _ in 0..ROUNDS_TO_DISK {
        // A file system that cannot has no pages of its own to bring.
        let _ = rustix::fs::fdatasync(file);
        let before = std::mem::replace(&mut stat, rustix::fs::fstat(file)?);
        if identity_of(&before) == identity_of(&stat) {
            break;
        }
    }
    Ok(stat)
}

pub(super) fn identity_of(stat: &rustix::fs::Stat) -> Identity {
    let ns = |secs: i64, nanos: u64| i128::from(secs) * 1_000_000_000 + i128::from(nanos);
    Identity {
        device: stat.st_dev,
        inode: stat.st_ino,
        size: stat.st_size as u64,
        mtime_ns: ns(stat.st_mtime, stat.st_mtime_nsec),
        ctime_ns: ns(stat.st_ctime, stat.st_ctime_nsec),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const KIB: u64 = 1024;

    fn image(bytes: &[u8]) -> (tempfile::NamedTempFile, ImageSource) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let source = ImageSource::open(file.path()).unwrap();
        (file, source)
    }

    #[test]
    fn holes_are_known_without_reading() {
        let (file, _) = image(b"");
        file.as_file().set_len(1024 * KIB).unwrap();
        file.as_file().write_all_at(&[7; 4096], 256 * KIB).unwrap();
        let source = ImageSource::open(file.path()).unwrap();
        let kinds: Vec<_> =
            source.extents(ByteRange::new(0, 1024 * KIB)).unwrap().iter().map(|e| e.kind).collect();
        assert_eq!(kinds, [ExtentKind::Zero, ExtentKind::Data]);
        assert!(crate::source::is_hole(&source, ByteRange::new(0, 256 * KIB)).unwrap());
        assert!(!crate::source::is_hole(&source, ByteRange::new(0, 257 * KIB)).unwrap());
        assert!(crate::source::is_hole(&source, ByteRange::new(512 * KIB, 1024 * KIB)).unwrap());
        assert_eq!(
            crate::source::next_data(&source, ByteRange::new(0, 1024 * KIB)).unwrap(),
            Some(256 * KIB)
        );
        assert_eq!(crate::source::next_data(&source, ByteRange::new(512 * KIB, 1024 * KIB)).unwrap(), None);
    }

    #[test]
    fn an_image_that_shrinks_is_never_read_again() {
        let (file, source) = image(&[1; 8192]);
        let mut buffer = [0; 4096];
        source.read_at(4096, &mut buffer).unwrap();
        file.as_file().set_len(5000).unwrap();
        assert!(matches!(source.read_at(4096, &mut buffer), Err(SourceError::Invalid { .. })));
        file.as_file().set_len(8192).unwrap();
        assert!(matches!(source.read_at(0, &mut buffer), Err(SourceError::Invalid { .. })));
    }

    #[test]
    fn an_image_that_is_written_to_is_never_read_again() {
        let (file, source) = image(&[1; 8192]);
        // Clocks of file systems go in steps of some milliseconds.
        std::thread::sleep(std::time::Duration::from_millis(20));
        file.as_file().write_all_at(b"x", 0).unwrap();
        assert!(matches!(source.read_at(4096, &mut [0; 16]), Err(SourceError::Invalid { .. })));
    }

    #[test]
    fn what_is_no_image_is_refused() {
        for path in ["/", "/dev/null", "/nonexistent/image"] {
            assert!(ImageSource::open(Path::new(path)).is_err(), "{path}");
        }
    }
}
