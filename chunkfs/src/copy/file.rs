//! The life of a target that is a file: it has its name only while it is whole.
//! Nothing here copies bytes: that is the sink's.
//!
//! ```text
//! new         create TARGET.partial --- copy, fsync --- rename to TARGET, fsync the directory
//! in place    rename TARGET to TARGET.partial, fsync the directory --- compare, copy, fsync --- rename back, fsync
//! ```

use super::sink::{Content, Medium, Sink};
use super::{Job, Mode, Outcome, RestoreError};
use crate::core::geometry::ByteRange;
use rustix::fs::{AtFlags, FileType, Mode as Bits, OFlags, RenameFlags};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// Where the file is to be.
struct Place {
    directory: File,
    target: PathBuf,
    partial: PathBuf,
}

/// `target` has no link in it, up to the file's own name.
pub(super) fn restore(job: &Job<'_>, target: &Path) -> Result<Outcome, RestoreError> {
    let place = Place::of(target)?;
    let there = place.kind(&place.target)?;
    match (job.mode, there) {
        (Mode::New, Some(_)) => Err(RestoreError::Exists { path: place.target }),
        (Mode::New | Mode::Replace, _) => place.restore_anew(job),
        (Mode::InPlace, Some(_)) => {
            // Of a restore to a new file: in place, this name and TARGET are never there together.
            place.remove_partial()?;
            place.restore_in_place(job, &place.target)
        }
        (Mode::InPlace, None) if place.kind(&place.partial)?.is_some() => {
            place.restore_in_place(job, &place.partial)
        }
        (Mode::InPlace, None) => place.restore_anew(job),
    }
}

impl Place {
    fn of(target: &Path) -> Result<Place, RestoreError> {
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(target_error("naming", target)(io::ErrorKind::IsADirectory.into()));
        };
        let directory = File::open(parent).map_err(target_error("opening", parent))?;
        let mut partial = OsString::from(name);
        partial.push(".partial");
        Ok(Place { directory, target: target.to_owned(), partial: parent.join(partial) })
    }

    fn restore_anew(&self, job: &Job<'_>) -> Result<Outcome, RestoreError> {
        self.remove_partial()?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = self.open(&self.partial, flags)?;
        // From here to there another run may have taken it for a left-over one; then the name is no longer ours.
        self.lock(&file, &self.partial)?;
        let partial = Partial { place: self, removed: false };
        match self.fill_anew(job, file) {
            Ok(outcome) => {
                partial.keep();
                self.sync_named()?;
                Ok(outcome)
            }
            Err(cause) => Err(partial.remove(cause)),
        }
    }

    fn fill_anew(&self, job: &Job<'_>, file: File) -> Result<Outcome, RestoreError> {
        let mut sink = Sink::new(file, &self.partial, Medium::File, Content::Hole)?;
        sink.set_len(job.len())?;
        job.copy(job.everything(), &mut sink)?;
        sink.sync()?;
        match job.mode {
            Mode::Replace => self.rename(&self.partial, &self.target, RenameFlags::empty())?,
            Mode::New | Mode::InPlace => self.rename(&self.partial, &self.target, RenameFlags::NOREPLACE)?,
        }
        Ok(job.outcome(&sink))
    }

    /// `from` is the target, or what an interrupted run left of it under the other name.
    fn restore_in_place(&self, job: &Job<'_>, from: &Path) -> Result<Outcome, RestoreError> {
        let file = self.open(from, OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC)?;
        let stat =
            rustix::fs::fstat(&file).map_err(io::Error::from).map_err(target_error("looking at", from))?;
        if stat.st_nlink > 1 {
            return Err(RestoreError::HardLinked { path: from.to_owned(), names: stat.st_nlink });
        }
        self.lock(&file, from)?;
        let mut sink = Sink::new(file, &self.partial, Medium::File, Content::Old)?;
        if from == self.target {
            self.rename(from, &self.partial, RenameFlags::NOREPLACE)?;
            self.sync_directory()?;
        }
        let done = self.fill_in_place(job, &mut sink);
        match done {
            Ok(()) => {
                self.sync_named()?;
                Ok(job.outcome(&sink))
            }
            // Nothing was changed, so it may have its name again - unless an earlier run left it without.
            Err(cause) if from == self.target && !sink.is_changed() => {
                match self.rename(&self.partial, &self.target, RenameFlags::NOREPLACE) {
                    Ok(()) => Err(cause),
                    Err(_) => Err(self.unfinished("it is unchanged: rename it back", cause)),
                }
            }
            Err(cause) => {
                Err(self.unfinished("it is partly restored: run the same again with --in-place", cause))
            }
        }
    }

    fn fill_in_place(&self, job: &Job<'_>, sink: &mut Sink) -> Result<(), RestoreError> {
        sink.set_len(job.len())?;
        job.copy(job.everything(), sink)?;
        sink.sync()?;
        self.rename(&self.partial, &self.target, RenameFlags::NOREPLACE)
    }

    fn unfinished(&self, state: &'static str, cause: RestoreError) -> RestoreError {
        RestoreError::Unfinished { path: self.partial.clone(), state, cause: Box::new(cause) }
    }

    fn open(&self, path: &Path, flags: OFlags) -> Result<File, RestoreError> {
        let opened = rustix::fs::openat(&self.directory, name(path), flags, Bits::RUSR | Bits::WUSR);
        opened.map(File::from).map_err(|error| target_error("opening", path)(error.into()))
    }

    /// Is there a regular file of that name? Anything else is an error: we neither replace nor write to it.
    fn kind(&self, path: &Path) -> Result<Option<()>, RestoreError> {
        match rustix::fs::statat(&self.directory, name(path), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => Ok(Some(())),
            Ok(_) => Err(RestoreError::NotAFile { path: path.to_owned() }),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(target_error("looking at", path)(error.into())),
        }
    }

    /// What an interrupted run has left, unless a run that goes on has it.
    fn remove_partial(&self) -> Result<(), RestoreError> {
        if self.kind(&self.partial)?.is_none() {
            return Ok(());
        }
        let left_over =
            self.open(&self.partial, OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC)?;
        self.lock(&left_over, &self.partial)?;
        self.unlink_partial().map_err(target_error("removing", &self.partial))
    }

    /// Two runs with one target would each take the other's file for a left-over one. The lock counts only when the
    /// file still has the name: the other run may have finished, or removed it, just before.
    fn lock(&self, file: &File, path: &Path) -> Result<(), RestoreError> {
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(RestoreError::Busy { path: path.to_owned() }),
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(target_error("locking", path)(error)),
        }
        let ours = rustix::fs::fstat(file).map(|stat| (stat.st_dev, stat.st_ino));
        let named = rustix::fs::statat(&self.directory, name(path), AtFlags::SYMLINK_NOFOLLOW);
        match named.map(|stat| (stat.st_dev, stat.st_ino)) == ours {
            true => Ok(()),
            false => Err(RestoreError::Busy { path: path.to_owned() }),
        }
    }

    fn unlink_partial(&self) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.directory, name(&self.partial), AtFlags::empty())?)
    }

    fn rename(&self, from: &Path, to: &Path, flags: RenameFlags) -> Result<(), RestoreError> {
        let directory = &self.directory;
        match rustix::fs::renameat_with(directory, name(from), directory, name(to), flags) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(RestoreError::Exists { path: to.to_owned() }),
            // The file system cannot refuse to replace (NFS, some of FUSE's), so we look, and then do.
            Err(Errno::INVAL | Errno::NOSYS) if !flags.is_empty() => match self.kind(to)? {
                Some(()) => Err(RestoreError::Exists { path: to.to_owned() }),
                None => self.rename(from, to, RenameFlags::empty()),
            },
            Err(error) => Err(target_error("renaming", from)(error.into())),
        }
    }

    /// The file has its name; so that it keeps it.
    fn sync_named(&self) -> Result<(), RestoreError> {
        self.sync_directory().map_err(|cause| RestoreError::Unfinished {
            path: self.target.clone(),
            state: "it is whole, but its name may not outlive a power cut",
            cause: Box::new(cause),
        })
    }

    fn sync_directory(&self) -> Result<(), RestoreError> {
        let parent = self.target.parent().unwrap_or(Path::new("/"));
        self.directory.sync_all().map_err(target_error("syncing", parent))
    }
}

/// A new file without its name. Goes when the work fails, even by a panic.
struct Partial<'a> {
    place: &'a Place,
    removed: bool,
}

impl Partial<'_> {
    fn keep(mut self) {
        self.removed = true;
    }

    fn remove(mut self, cause: RestoreError) -> RestoreError {
        self.removed = true;
        match self.place.unlink_partial() {
            Ok(()) => cause,
            Err(_) => self.place.unfinished("it could not be removed: remove it", cause),
        }
    }
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        if !self.removed {
            // A panic is under way and will be heard of; the next run removes what is left.
            _ = self.place.unlink_partial();
        }
    }
}

impl Job<'_> {
    fn everything(&self) -> ByteRange {
        ByteRange::new(0, self.len())
    }
}

fn name(path: &Path) -> &OsStr {
    path.file_name().expect("a place has names")
}

fn target_error(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> RestoreError + use<> {
    let path = path.to_owned();
    move |error| RestoreError::Target { doing, path: path.clone(), error }
}
