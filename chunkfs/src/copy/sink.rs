//! Puts the pieces of an image into an open target: only what must be written, zeros without writing them.
//! Nothing here opens, names or finishes a target.

use super::blocks::{Action, Before, runs};
use super::pieces::Piece;
use super::{Bulk, RestoreError, WriteError};
use crate::core::digest::is_zero;
use crate::core::geometry::ByteRange;
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Buffers of this size serve to compare and to write zeros.
const STEP: u64 = 1 << 20;
/// Shorter zeros are faster written than punched.
const PUNCH_MIN: u64 = 64 << 10;

/// What is there before the first piece comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// A new file: one hole.
    Hole,
    /// A device that is to be overwritten.
    Unknown,
    /// A file or a device of which only what differs is to be rewritten.
    Old,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Medium {
    File,
    Device,
}

/// An open target.
#[derive(Debug)]
pub(super) struct Sink {
    file: File,
    path: PathBuf,
    medium: Medium,
    content: Content,
    /// What is overwritten with zeros, for good, before the first change elsewhere.
    held_back: Option<ByteRange>,
    punches: Vec<FallocateFlags>,
    bulk: Bulk,
    old: Vec<u8>,
    changed: bool,
    /// Bytes that were written.
    pub(super) written: u64,
    /// Bytes that were made zero, written or punched.
    pub(super) zeroed: u64,
}

impl Sink {
    pub(super) fn new(
        file: File,
        path: &Path,
        medium: Medium,
        content: Content,
    ) -> Result<Sink, RestoreError> {
        let punches = match medium {
            Medium::File => vec![FallocateFlags::PUNCH_HOLE],
            // The first gives the blocks back where the device can; the second makes the kernel write zeros.
            Medium::Device => vec![FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE],
        };
        let path = path.to_owned();
        let bulk = Bulk::new(&file).map_err(|error| RestoreError::Target {
            doing: "opening",
            path: path.clone(),
            error,
        })?;
        Ok(Sink {
            file,
            path,
            medium,
            content,
            held_back: None,
            punches,
            bulk,
            old: Vec::new(),
            changed: false,
            written: 0,
            zeroed: 0,
        })
    }

    /// Before anything else is changed, `range` becomes zero and is on the disk as zeros.
    pub(super) fn hold_back(&mut self, range: ByteRange) {
        self.held_back = Some(range).filter(|range| !range.is_empty());
    }

    /// Was anything changed?
    pub(super) fn is_changed(&self) -> bool {
        self.changed
    }

    /// Is this already there?
    pub(super) fn has(&mut self, offset: u64, bytes: &[u8]) -> Result<bool, RestoreError> {
        let mut old = std::mem::take(&mut self.old);
        old.resize(bytes.len(), 0);
        self.read(offset, &mut old)?;
        let same = old == bytes;
        self.old = old;
        Ok(same)
    }

    pub(super) fn put(&mut self, piece: Piece<'_>) -> Result<(), RestoreError> {
        match piece {
            Piece::Data(offset, bytes) => self.put_bytes(offset, bytes),
            Piece::Zeros(range) => match (self.content, self.medium) {
                (Content::Hole, _) => Ok(()),
                (Content::Unknown, _) => self.make_zero(range),
                (Content::Old, Medium::File) => self.zero_stored(range),
                (Content::Old, Medium::Device) => self.zero_what_is_not(range),
            },
        }
    }

    pub(super) fn put_bytes(&mut self, offset: u64, bytes: &[u8]) -> Result<(), RestoreError> {
        let mut old = std::mem::take(&mut self.old);
        let before = match self.content {
            Content::Hole => Before::Zeros,
            Content::Unknown => Before::Unknown,
            Content::Old => {
                old.resize(bytes.len(), 0);
                self.read(offset, &mut old)?;
                Before::Bytes(&old)
            }
        };
        for (run, action) in runs(bytes, before) {
            let range = ByteRange::new(offset + run.start as u64, offset + run.end as u64);
            match action {
                Action::Keep => {}
                Action::KeepZero if self.medium == Medium::File => self.punch_quietly(range),
                Action::KeepZero => {}
                Action::Write => self.write(range.start, &bytes[run])?,
                Action::MakeZero => self.make_zero(range)?,
            }
        }
        self.old = old;
        Ok(())
    }

    pub(super) fn set_len(&mut self, len: u64) -> Result<(), RestoreError> {
        if self.file.metadata().map_err(self.error("looking at"))?.len() != len {
            self.changed = true;
            self.file.set_len(len).map_err(self.error("setting the length of"))?;
        }
        Ok(())
    }

    pub(super) fn sync(&mut self) -> Result<(), RestoreError> {
        self.bulk.flush().map_err(self.write_error())?;
        self.file.sync_all().map_err(self.error("syncing"))
    }

    /// Makes what is held back zero, if that was not done yet.
    pub(super) fn before_change(&mut self) -> Result<(), RestoreError> {
        self.changed = true;
        let Some(range) = self.held_back.take() else { return Ok(()) };
        self.write_zeros(range)?;
        self.sync()
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), RestoreError> {
        self.before_change()?;
        let written = self.bulk.write_all_at(bytes, offset);
        written.map_err(self.write_error())?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Afterwards the range reads as zeros, whatever was there.
    fn make_zero(&mut self, range: ByteRange) -> Result<(), RestoreError> {
        self.before_change()?;
        self.zeroed += range.len();
        let is_worth_it = self.medium == Medium::File || range.len() >= PUNCH_MIN;
        while is_worth_it && let Some(how) = self.punches.first() {
            match self.punch(range, *how) {
                Ok(()) => return Ok(()),
                Err(error) if is_unsupported(error) => {
                    self.punches.remove(0);
                }
                // A range that ends within a sector of a device.
                Err(Errno::INVAL) => break,
                Err(error) => return Err(self.error("making zeros in")(error.into())),
            }
        }
        self.write_zeros(range)
    }

    /// A part of an old file that is to be zero: only what is stored there need be punched.
    fn zero_stored(&mut self, range: ByteRange) -> Result<(), RestoreError> {
        let mut at = range.start;
        while at < range.end {
            let data = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Ok(data) if data < range.end => data,
                Ok(_) | Err(Errno::NXIO) => break,
                // A file system without holes.
                Err(Errno::INVAL) => return self.zero_what_is_not(ByteRange::new(at, range.end)),
                Err(error) => return Err(self.error("looking for data in")(error.into())),
            };
            let hole = rustix::fs::seek(&self.file, SeekFrom::Hole(data));
            let hole = hole.map_err(|error| self.error("looking for holes in")(error.into()))?.min(range.end);
            self.zero_what_is_not(ByteRange::new(data, hole))?;
            at = hole;
        }
        Ok(())
    }

    /// A part that is to be zero and may be already.
    fn zero_what_is_not(&mut self, range: ByteRange) -> Result<(), RestoreError> {
        let mut old = std::mem::take(&mut self.old);
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min(at + STEP);
            old.resize((end - at) as usize, 0);
            self.read(at, &mut old)?;
            let part = ByteRange::new(at, end);
            match is_zero(&old) {
                false => self.make_zero(part)?,
                true if self.medium == Medium::File => self.punch_quietly(part),
                true => {}
            }
            at = end;
        }
        self.old = old;
        Ok(())
    }

    /// Zeros that are stored become a hole, where that is possible; they are zeros in any case.
    fn punch_quietly(&mut self, range: ByteRange) {
        if let Some(how) = self.punches.first()
            && self.punch(range, *how).is_err_and(is_unsupported)
        {
            self.punches.clear();
        }
    }

    fn punch(&self, range: ByteRange, how: FallocateFlags) -> Result<(), Errno> {
        rustix::fs::fallocate(&self.file, how | FallocateFlags::KEEP_SIZE, range.start, range.len())
    }

    fn write_zeros(&mut self, range: ByteRange) -> Result<(), RestoreError> {
        let zeros = vec![0; range.len().min(STEP) as usize];
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(STEP);
            let zeros = &zeros[..len as usize];
            let written = self.bulk.write_all_at(zeros, at);
            written.map_err(self.write_error())?;
            at += len;
        }
        Ok(())
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), RestoreError> {
        self.file.read_exact_at(buffer, offset).map_err(self.error("reading"))
    }

    fn write_error(&self) -> impl FnOnce(WriteError) -> RestoreError + use<> {
        let error = self.error("writing to");
        move |written| error(written.error)
    }

    fn error(&self, doing: &'static str) -> impl Fn(io::Error) -> RestoreError + use<> {
        let path = self.path.clone();
        move |error| RestoreError::Target { doing, path: path.clone(), error }
    }
}

fn is_unsupported(error: Errno) -> bool {
    matches!(error, Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::PERM)
}
