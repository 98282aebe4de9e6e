//! Opens what lies beneath one directory, and nothing else: no symbolic link is followed, no name leads out.
//! Nothing here knows of chunks. A backup may have been written by whoever it protects us from.

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// A directory that is open, and where it was found.
#[derive(Debug)]
pub struct Beneath {
    directory: OwnedFd,
    path: PathBuf,
}

/// What stands at a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    File,
    Directory,
    SymbolicLink,
    Fifo,
    Socket,
    Device,
}

/// Why there is no file to read at a name.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("missing")]
    Missing,
    #[error("a symbolic link or a way out of the directory stands in its path")]
    Detour,
    #[error("not a regular file but {0}")]
    NotAFile(Kind),
    #[error("not a directory but {0}")]
    NotADirectory(Kind),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Fault {
    pub fn into_io(self) -> io::Error {
        match self {
            Fault::Io(error) => error,
            Fault::Missing => io::ErrorKind::NotFound.into(),
            other => io::Error::other(other.to_string()),
        }
    }
}

impl Beneath {
    /// `path` is the user's word, so links in it are followed; from there on none is.
    pub fn open(path: &Path) -> io::Result<Beneath> {
        let path = path.canonicalize()?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&path, flags, Mode::empty())?;
        Ok(Beneath { directory, path })
    }

    /// The directory of that name beside this one, which is no link either. `None`: there is nothing of that name.
    pub fn sibling(&self, name: &OsStr) -> Result<Option<Beneath>, Fault> {
        let Some(parent) = self.path.parent() else { return Ok(None) };
        Beneath::open(parent)?.child(name)
    }

    /// The directory of that name in this one, which is no link. `None`: there is nothing of that name.
    pub fn child(&self, name: &OsStr) -> Result<Option<Beneath>, Fault> {
        match self.directory(name) {
            Ok(directory) => Ok(Some(Beneath { directory, path: self.path.join(name) })),
            Err(Fault::Missing) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Without links: where the directory was when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a regular file for reading, with its length. Neither a FIFO nor a device is ever opened, for the
    /// first would block and a driver may act on the second.
    pub fn file(&self, path: impl AsRef<Path>) -> Result<(File, u64), Fault> {
        let path = path.as_ref();
        let (seen, kind) = self.look(path)?;
        if kind != Kind::File {
            return Err(Fault::NotAFile(kind));
        }
        // What was looked at may have been replaced since, so the opened file is looked at again.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW;
        let file = File::from(self.resolve(path, flags)?);
        let stat = rustix::fs::fstat(&file).map_err(io::Error::from)?;
        match (stat.st_dev, stat.st_ino) == (seen.st_dev, seen.st_ino) {
            true => Ok((file, stat.st_size as u64)),
            false => Err(Fault::Io(io::Error::other("it was replaced while it was opened"))),
        }
    }

    /// Opens a directory for listing; the empty path is this one.
    pub fn directory(&self, path: impl AsRef<Path>) -> Result<OwnedFd, Fault> {
        let path = match path.as_ref() {
            path if path.as_os_str().is_empty() => Path::new("."),
            path => path,
        };
        match self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW) {
            Err(Fault::NotADirectory(_)) => Err(Fault::NotADirectory(self.kind(path)?.0)),
            other => other,
        }
    }

    /// What stands there, and its length in bytes. A symbolic link is itself, not what it points to.
    pub fn kind(&self, path: impl AsRef<Path>) -> Result<(Kind, u64), Fault> {
        self.look(path.as_ref()).map(|(stat, kind)| (kind, stat.st_size as u64))
    }

    fn look(&self, path: &Path) -> Result<(Stat, Kind), Fault> {
        let found = self.resolve(path, OFlags::PATH | OFlags::NOFOLLOW)?;
        let stat = rustix::fs::fstat(&found).map_err(io::Error::from)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::SymbolicLink,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            _ => Kind::Device,
        };
        Ok((stat, kind))
    }

    fn resolve(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Fault> {
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        // The kernel gives up with EAGAIN when anything anywhere is renamed meanwhile: see openat2(2).
        for _ in 0..100 {
            match rustix::fs::openat2(&self.directory, path, flags | OFlags::CLOEXEC, Mode::empty(), within) {
                Ok(found) => return Ok(found),
                Err(Errno::AGAIN | Errno::INTR) => continue,
                Err(Errno::NOENT) => return Err(Fault::Missing),
                Err(Errno::LOOP | Errno::XDEV) => return Err(Fault::Detour),
                Err(Errno::NOTDIR) if flags.contains(OFlags::DIRECTORY) => {
                    return Err(Fault::NotADirectory(Kind::File));
                }
                // A file stands where a directory on the way should be: nothing can be beneath it.
                Err(Errno::NOTDIR) => return Err(Fault::Missing),
                Err(error) => return Err(Fault::Io(error.into())),
            }
        }
        Err(Fault::Io(Errno::AGAIN.into()))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::File => "a regular file",
            Kind::Directory => "a directory",
            Kind::SymbolicLink => "a symbolic link",
            Kind::Fifo => "a FIFO",
            Kind::Socket => "a socket",
            Kind::Device => "a device",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_but_a_regular_file_beneath_the_directory_is_opened() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("root");
        std::fs::create_dir_all(root.join("in/dir")).unwrap();
        std::fs::write(home.path().join("secret"), "secret").unwrap();
        std::fs::write(root.join("in/file"), "12345").unwrap();
        symlink("file", root.join("in/link")).unwrap();
        symlink("in", root.join("way")).unwrap();
        symlink(home.path(), root.join("out")).unwrap();
        let fifo = root.join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();

        let beneath = Beneath::open(&root).unwrap();
        assert_eq!(beneath.file("in/file").unwrap().1, 5);
        for (path, fault) in [
            ("in/none", "missing"),
            ("none/file", "missing"),
            ("in/file/x", "missing"),
            ("in/dir", "not a regular file but a directory"),
            ("in/link", "not a regular file but a symbolic link"),
            ("fifo", "not a regular file but a FIFO"),
            ("way/file", "a symbolic link or a way out of the directory stands in its path"),
            ("out/secret", "a symbolic link or a way out of the directory stands in its path"),
            ("../secret", "a symbolic link or a way out of the directory stands in its path"),
            ("/etc/passwd", "a symbolic link or a way out of the directory stands in its path"),
        ] {
            assert_eq!(beneath.file(path).unwrap_err().to_string(), fault, "{path}");
        }
        assert_eq!(
            beneath.directory("in/file").unwrap_err().to_string(),
            "not a directory but a regular file"
        );
        assert!(beneath.directory("way").is_err());
        assert!(beneath.directory("").is_ok());
        assert!(beneath.sibling("none".as_ref()).unwrap().is_none());
        symlink("root", home.path().join("beside")).unwrap();
        assert!(beneath.sibling("beside".as_ref()).is_err());
    }
}
