//! A file that has its name only when it is whole: NAME.partial until then.
//! Knows nothing of what is written to it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use chunkfs::copy::{Bulk, WriteError};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::{CarryError, Existing};

/// A directory that is open: whatever its path leads to later, files are made in it.
#[derive(Debug)]
pub struct Directory {
    file: File,
    path: PathBuf,
}

impl Directory {
    pub fn open(path: &Path) -> io::Result<Directory> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        Ok(Directory { file, path: path.to_owned() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn kind(&self, name: &str) -> io::Result<Option<FileType>> {
        match rustix::fs::statat(&self.file, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The file under its first name. Goes when the work fails, even by a panic.
#[derive(Debug)]
pub(super) struct Partial<'d> {
    directory: &'d Directory,
    name: String,
    partial: String,
    existing: Existing,
    file: File,
    done: bool,
}

impl<'d> Partial<'d> {
    /// Removes what an earlier run left under that name: the caller holds the lock of its VM.
    pub(super) fn create(
        directory: &'d Directory,
        name: &str,
        existing: Existing,
    ) -> Result<Partial<'d>, CarryError> {
        if name.is_empty() || name.contains(['/', '\0']) || name == "." || name == ".." {
            return Err(CarryError::Name { name: name.to_owned() });
        }
        let partial = format!("{name}.partial");
        let failed = |doing| {
            let path = directory.path.join(&partial);
            move |error| CarryError::File { doing, path, offset: 0, error }
        };
        if existing == Existing::Refuse && directory.kind(name).map_err(failed("looking for"))?.is_some() {
            return Err(CarryError::Exists { path: directory.path.join(name) });
        }
        if directory.kind(&partial).map_err(failed("looking for"))?.is_some() {
            let removed = rustix::fs::unlinkat(&directory.file, partial.as_str(), AtFlags::empty());
            removed.map_err(io::Error::from).map_err(failed("removing"))?;
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&directory.file, partial.as_str(), flags, Mode::RUSR | Mode::WUSR);
        let file = File::from(opened.map_err(io::Error::from).map_err(failed("making"))?);
        let name = name.to_owned();
        Ok(Partial { directory, name, partial, existing, file, done: false })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// For much that is written by this process.
    pub(super) fn bulk(&self) -> Result<Bulk, CarryError> {
        Bulk::new(&self.file).map_err(|error| self.error("opening", 0, error))
    }

    pub(super) fn unwritten(&self, unwritten: WriteError) -> CarryError {
        self.error("writing", unwritten.offset, unwritten.error)
    }

    /// For a program that writes it.
    pub(super) fn output(&self) -> Result<File, CarryError> {
        self.file.try_clone().map_err(|error| self.error("opening", 0, error))
    }

    pub(super) fn error(&self, doing: &'static str, offset: u64, error: io::Error) -> CarryError {
        CarryError::File { doing, path: self.path(), offset, error }
    }

    /// All of it is on the disk, then it has its name, then the name is on the disk.
    pub(super) fn finish(mut self) -> Result<(), CarryError> {
        let named = self.file.sync_all().map_err(|error| self.error("syncing", 0, error));
        match named.and_then(|()| self.rename()) {
            Ok(()) => self.done = true,
            Err(cause) => return Err(self.discard(cause)),
        }
        self.directory.file.sync_all().map_err(|error| CarryError::File {
            doing: "syncing the name of",
            path: self.directory.path.join(&self.name),
            offset: 0,
            error,
        })
    }

    pub(super) fn discard(mut self, cause: CarryError) -> CarryError {
        self.done = true;
        match self.unlink() {
            Ok(()) => cause,
            Err(error) => CarryError::Left { path: self.path(), error, cause: Box::new(cause) },
        }
    }

    fn rename(&self) -> Result<(), CarryError> {
        let (from, to, dir) = (self.partial.as_str(), self.name.as_str(), &self.directory.file);
        let exists = || CarryError::Exists { path: self.directory.path.join(to) };
        let flags = match self.existing {
            Existing::Replace => RenameFlags::empty(),
            Existing::Refuse => RenameFlags::NOREPLACE,
        };
        match rustix::fs::renameat_with(dir, from, dir, to, flags) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(exists()),
            // The file system cannot refuse to replace (NFS, some of FUSE's), so we look, and then do.
            Err(Errno::INVAL | Errno::NOSYS) if !flags.is_empty() => {
                match self.directory.kind(to).map_err(|error| self.error("looking beside", 0, error))? {
                    Some(_) => Err(exists()),
                    None => rustix::fs::renameat(dir, from, dir, to)
                        .map_err(|error| self.error("renaming", 0, error.into())),
                }
            }
            Err(error) => Err(self.error("renaming", 0, error.into())),
        }
    }

    fn unlink(&self) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.directory.file, self.partial.as_str(), AtFlags::empty())?)
    }

    fn path(&self) -> PathBuf {
        self.directory.path.join(&self.partial)
    }
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        if !self.done {
            // Only a panic comes here, and it is told already.
            _ = self.unlink();
        }
    }
}
