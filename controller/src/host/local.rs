//! This machine's own files, for every host whose files they are.
//! No processes, no mounts, no guests.
//!
//! The verbs keep the promise of `Files`: what returned is on disk. A new file is written without a name and linked
//! under its name once it is whole, so that a crash leaves nothing behind; where the file system has no unnamed files,
//! and where it takes the place of another one, it is called `<name>.partial` until then: cleanup knows that name.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use chunkfs::mount::points;
use rustix::fs::{AtFlags, CWD, FlockOperation, IFlags, Mode, OFlags, flock, linkat, openat};
use rustix::io::Errno;

use crate::core::facts::Fingerprint;
use crate::core::names::partial_of;
use crate::core::tpm::Found;
use crate::core::units::Bytes;

use super::{Created, Entry, Files, Guard, Removal, strict};

/// Marks a host whose files are the files of this machine: it gets `Files` from here.
pub trait OnThisMachine {}

/// A process that was killed while it started another one leaves the guard to that one, until it becomes its program.
const GUARD_PATIENCE: Duration = Duration::from_millis(300);
const FILE_MODE: u32 = 0o600;
/// QEMU's user must reach the sockets and scratch files below, by name, and list nothing.
const DIR_MODE: u32 = 0o711;
/// What is brought to the disk sooner is little enough.
const SOON: Duration = Duration::from_millis(50);
const ROUNDS_TO_DISK: usize = 4;

impl<T: OnThisMachine> Files for T {
    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        absent(fs::read(path)).with_context(|| format!("read {}", path.display()))
    }

    fn entry(&self, path: &Path) -> Result<Entry> {
        let found =
            absent(fs::symlink_metadata(path)).with_context(|| format!("look at {}", path.display()))?;
        Ok(match found {
            None => Entry::Absent,
            Some(metadata) if metadata.is_dir() => Entry::Directory,
            Some(_) => Entry::Other,
        })
    }

    fn list(&self, dir: &Path) -> Result<Option<Vec<String>>> {
        let Some(entries) = absent(fs::read_dir(dir)).with_context(|| format!("list {}", dir.display()))?
        else {
            return Ok(None);
        };
        let mut names = Vec::new();
        for entry in entries {
            // A name that is not UTF-8 is none of ours; it still counts as something that is there.
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(Some(names))
    }

    fn fingerprint(&self, path: &Path) -> Result<Option<Fingerprint>> {
        let found = absent(fs::metadata(path)).with_context(|| format!("look at {}", path.display()))?;
        Ok(found.map(|m| Fingerprint {
            device: m.dev(),
            inode: m.ino(),
            size: m.size(),
            mtime_nanos: nanos(m.mtime(), m.mtime_nsec()),
            ctime_nanos: nanos(m.ctime(), m.ctime_nsec()),
        }))
    }

    fn free(&self, dir: &Path) -> Result<Bytes> {
        let there = dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
        let stat = rustix::fs::statvfs(there)
            .with_context(|| format!("ask for the space in {}", there.display()))?;
        Ok(Bytes(stat.f_bavail.saturating_mul(stat.f_frsize)))
    }

    fn create(&self, path: &Path, content: &[u8]) -> Result<Created> {
        put_whole(path, content, |unnamed| unnamed.link_to(path))
            .with_context(|| format!("create {}", path.display()))
    }

    fn replace(&self, path: &Path, content: &[u8]) -> Result<()> {
        let moved = |unnamed: Unnamed| unnamed.rename_over(path).map(|()| Created::Now);
        put_whole(path, content, moved).map(drop).with_context(|| format!("write {}", path.display()))
    }

    fn append(&self, path: &Path, content: &[u8]) -> Result<()> {
        let append = || {
            let mut file = OpenOptions::new().append(true).open(path)?;
            file.write_all(content)?;
            file.sync_data()
        };
        append().with_context(|| format!("append to {}", path.display()))
    }

    fn copy_file(&self, from: &Path, to: &Path) -> Result<blake3::Hash> {
        let content = fs::read(from).with_context(|| format!("read {}", from.display()))?;
        self.replace(to, &content)?;
        Ok(blake3::hash(&content))
    }

    fn bring_to_disk(&self, paths: &[PathBuf]) -> Result<()> {
        // What a guest has written in the first round takes a second, and so on; one that never stops has to wait.
        for _ in 0..ROUNDS_TO_DISK {
            let begun = Instant::now();
            for path in paths {
                let synced = File::open(path).and_then(|file| file.sync_data());
                synced.with_context(|| format!("bring {} to the disk", path.display()))?;
            }
            if begun.elapsed() < SOON {
                break;
            }
        }
        Ok(())
    }

    fn look_into(&self, dir: &Path) -> Result<Option<Vec<(String, Found)>>> {
        strict::look_into(dir).with_context(|| format!("look into {}", dir.display()))
    }

    fn copy_small(&self, dir: &Path, name: &str, at_most: Bytes, to: &Path) -> Result<blake3::Hash> {
        let content =
            strict::read(dir, name, at_most).with_context(|| format!("read {}", dir.join(name).display()))?;
        self.replace(to, &content)?;
        Ok(blake3::hash(&content))
    }

    fn clone_file(&self, from: &Path, to: &Path) -> Result<()> {
        let source = File::open(from).with_context(|| format!("open {}", from.display()))?;
        let target = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(to);
        let target = target.with_context(|| format!("create {}", to.display()))?;
        share_blocks(&source, &target)
            .with_context(|| format!("share the blocks of {} with {}", from.display(), to.display()))
    }

    fn make_dir(&self, path: &Path) -> Result<Created> {
        if path.is_dir() {
            return Ok(Created::WasThere);
        }
        let above: Vec<_> = path.ancestors().take_while(|dir| !dir.is_dir()).collect();
        for dir in above.into_iter().rev() {
            let made = fs::DirBuilder::new().mode(DIR_MODE).create(dir);
            exists(made)
                .and_then(|_| Ok(sync_parent(dir)?))
                .with_context(|| format!("make {}", dir.display()))?;
        }
        Ok(Created::Now)
    }

    fn make_private_dir(&self, path: &Path) -> Result<Created> {
        let made = exists(fs::DirBuilder::new().mode(0o700).create(path))
            .with_context(|| format!("make {}", path.display()))?;
        sync_parent(path)?;
        let metadata = fs::symlink_metadata(path).with_context(|| format!("look at {}", path.display()))?;
        if !metadata.is_dir() {
            return Err(anyhow!("{} is no directory", path.display()));
        }
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .with_context(|| format!("make {} private", path.display()))?;
        Ok(made)
    }

    fn remove_file(&self, path: &Path) -> Result<Removal> {
        let tried = match fs::remove_file(path) {
            // A file system that is read-only says so of what is not there, too.
            Err(error)
                if error.kind() == ErrorKind::ReadOnlyFilesystem
                    && fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound) =>
            {
                return Ok(Removal::AlreadyGone);
            }
            tried => tried,
        };
        removed(path, tried).with_context(|| format!("remove {}", path.display()))
    }

    fn remove_dir(&self, path: &Path) -> Result<Removal> {
        removed(path, fs::remove_dir(path))
            .with_context(|| format!("remove the directory {}", path.display()))
    }

    fn remove_tree(&self, path: &Path) -> Result<Removal> {
        // Otherwise all that is mounted there would go first, and then the rest would stay.
        let mounted =
            points::below(path).with_context(|| format!("look for mounts below {}", path.display()))?;
        if let Some(mount) = mounted {
            bail!("{} is mounted there: unmount it", mount.path.display());
        }
        removed(path, fs::remove_dir_all(path)).with_context(|| format!("remove all of {}", path.display()))
    }

    fn guard(&self, path: &Path) -> Result<Option<Guard>> {
        let open = OpenOptions::new().create(true).truncate(false).write(true).mode(FILE_MODE).open(path);
        let file = open.with_context(|| format!("open {}", path.display()))?;
        // Of the open file, not of the process: rust opens with O_CLOEXEC, so no daemon of ours inherits it.
        let deadline = Instant::now() + GUARD_PATIENCE;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(Guard::new(file))),
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(anyhow!(error).context(format!("lock {}", path.display()))),
            }
        }
    }
}

/// Has somebody a file of `Files::guard` now? Whoever wants it meanwhile has more patience than this takes.
pub fn is_guarded(path: &Path) -> Result<bool> {
    let looking = || format!("look whether {} is locked", path.display());
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        opened => opened.with_context(looking)?,
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error).with_context(looking),
    }
}

/// Can a file in this directory share blocks with another one there? Tried with two files that have no name.
pub(super) fn can_share_blocks(dir: &Path) -> std::result::Result<(), String> {
    let unnamed = || {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        Ok::<File, Errno>(openat(CWD, dir, flags, Mode::from_raw_mode(FILE_MODE))?.into())
    };
    let try_it = || {
        let (mut one, other) = (unnamed()?, unnamed()?);
        one.write_all(&[1; 4096])?;
        share_blocks(&one, &other)
    };
    try_it().map_err(|error| format!("the file system of {} cannot share blocks: {error}", dir.display()))
}

/// On btrfs both or neither must be without copy-on-write, as libvirt makes its directory of images.
fn share_blocks(source: &File, target: &File) -> std::io::Result<()> {
    let flags = |file: &File| rustix::fs::ioctl_getflags(file).unwrap_or(IFlags::empty()) & IFlags::NOCOW;
    let wanted = flags(source);
    if wanted != flags(target) {
        let others = rustix::fs::ioctl_getflags(target)? - IFlags::NOCOW;
        rustix::fs::ioctl_setflags(target, others | wanted)?;
    }
    Ok(rustix::fs::ioctl_ficlone(target, source)?)
}

/// A file that is written and synced and has no name, or a temporary one.
struct Unnamed {
    file: File,
    temporary: Option<PathBuf>,
}

impl Unnamed {
    fn new(path: &Path, content: &[u8]) -> Result<Unnamed> {
        let dir = path.parent().context("a file is in a directory")?;
        let mode = Mode::from_raw_mode(FILE_MODE);
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let mut unnamed = match openat(CWD, dir, flags, mode) {
            Ok(fd) => Unnamed { file: fd.into(), temporary: None },
            Err(Errno::OPNOTSUPP | Errno::ISDIR) => Unnamed::temporary(path)?,
            Err(error) => return Err(error.into()),
        };
        if let Err(error) = unnamed.file.write_all(content).and_then(|()| unnamed.file.sync_all()) {
            unnamed.discard();
            return Err(error.into());
        }
        Ok(unnamed)
    }

    fn temporary(of: &Path) -> Result<Unnamed> {
        let path = partial(of)?;
        let file = OpenOptions::new().create_new(true).write(true).mode(FILE_MODE).open(&path)?;
        Ok(Unnamed { file, temporary: Some(path) })
    }

    /// Gives it a name that nothing has yet.
    fn link_to(self, path: &Path) -> Result<Created> {
        let linked = match &self.temporary {
            Some(temporary) => linkat(CWD, temporary, CWD, path, AtFlags::empty()),
            None => linkat(CWD, proc_path(&self.file), CWD, path, AtFlags::SYMLINK_FOLLOW),
        };
        self.discard();
        match linked {
            Ok(()) => Ok(Created::Now),
            Err(Errno::EXIST) => Ok(Created::WasThere),
            Err(error) => Err(error.into()),
        }
    }

    /// Only a name can be renamed, so it gets one first.
    fn rename_over(mut self, path: &Path) -> Result<()> {
        let temporary = match self.temporary.take() {
            Some(temporary) => temporary,
            None => {
                let temporary = partial(path)?;
                linkat(CWD, proc_path(&self.file), CWD, &temporary, AtFlags::SYMLINK_FOLLOW)?;
                temporary
            }
        };
        fs::rename(&temporary, path).inspect_err(|_| {
            // The rename's own error is the story.
            drop(fs::remove_file(&temporary));
        })?;
        Ok(())
    }

    fn discard(&self) {
        if let Some(temporary) = &self.temporary {
            // Best effort: what matters has been done or is reported by the caller.
            drop(fs::remove_file(temporary));
        }
    }
}

fn put_whole(path: &Path, content: &[u8], place: impl FnOnce(Unnamed) -> Result<Created>) -> Result<Created> {
    let created = place(Unnamed::new(path, content)?)?;
    sync_parent(path)?;
    Ok(created)
}

/// What a file is called for a moment. One that is left of a crash is removed first.
fn partial(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().and_then(|name| name.to_str()).context("our files have plain names")?;
    let partial = path.with_file_name(partial_of(name));
    absent(fs::remove_file(&partial))?;
    Ok(partial)
}

fn proc_path(file: &File) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()))
}

fn sync_parent(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

fn removed(path: &Path, result: std::io::Result<()>) -> Result<Removal> {
    if absent(result)?.is_none() {
        return Ok(Removal::AlreadyGone);
    }
    sync_parent(path)?;
    Ok(Removal::Removed)
}

fn absent<T>(result: std::io::Result<T>) -> std::io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

fn exists(result: std::io::Result<()>) -> Result<Created> {
    match result {
        Ok(()) => Ok(Created::Now),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Created::WasThere),
        Err(error) => Err(error.into()),
    }
}

fn nanos(secs: i64, nanos: i64) -> i64 {
    secs.saturating_mul(1_000_000_000).saturating_add(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Here;
    impl OnThisMachine for Here {}

    fn names(dir: &Path) -> Vec<String> {
        Here.list(dir).unwrap().unwrap()
    }

    #[test]
    fn a_file_is_created_once_and_leaves_no_other_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web server.lock");
        assert_eq!(Here.create(&path, b"one").unwrap(), Created::Now);
        assert_eq!(Here.create(&path, b"two").unwrap(), Created::WasThere);
        assert_eq!(Here.read(&path).unwrap().unwrap(), b"one");
        Here.replace(&path, b"three").unwrap();
        Here.append(&path, b"four").unwrap();
        assert_eq!(Here.read(&path).unwrap().unwrap(), b"threefour");
        assert_eq!(names(dir.path()), ["web server.lock"]);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, FILE_MODE);
    }

    #[test]
    fn removing_what_is_not_there_is_already_gone() {
        let dir = tempfile::tempdir().unwrap();
        let (sub, file) = (dir.path().join("a/b"), dir.path().join("a/b/c"));
        assert_eq!(Here.make_dir(&sub).unwrap(), Created::Now);
        assert_eq!(Here.make_dir(&sub).unwrap(), Created::WasThere);
        Here.replace(&file, b"").unwrap();
        assert!(Here.remove_dir(&sub).is_err(), "not empty");
        assert!(Here.remove_file(&sub).is_err(), "a directory");
        assert_eq!(Here.remove_file(&file).unwrap(), Removal::Removed);
        assert_eq!(Here.remove_file(&file).unwrap(), Removal::AlreadyGone);
        assert_eq!(Here.remove_dir(&sub).unwrap(), Removal::Removed);
        assert_eq!(Here.remove_dir(&sub).unwrap(), Removal::AlreadyGone);
        assert_eq!(Here.remove_file(&file).unwrap(), Removal::AlreadyGone, "nor its directory");
    }

    #[test]
    fn what_is_not_there_is_absent_and_not_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nothing/here");
        assert_eq!(Here.read(&path).unwrap(), None);
        assert_eq!(Here.list(&path).unwrap(), None);
        assert_eq!(Here.entry(&path).unwrap(), Entry::Absent);
        assert_eq!(Here.fingerprint(&path).unwrap(), None);
        assert!(Here.free(&path).unwrap() > Bytes::ZERO);
        assert!(Here.append(&path, b"x").is_err(), "nothing to append to");
    }

    #[test]
    fn a_guard_excludes_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("guard");
        let first = Here.guard(&path).unwrap();
        assert!(first.is_some());
        assert!(Here.guard(&path).unwrap().is_none());
        drop(first);
        assert!(Here.guard(&path).unwrap().is_some());
    }

    #[test]
    fn a_touched_file_has_another_fingerprint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        Here.replace(&path, b"same").unwrap();
        let before = Here.fingerprint(&path).unwrap();
        assert_eq!(Here.fingerprint(&path).unwrap(), before);
        Here.replace(&path, b"same").unwrap();
        assert_ne!(Here.fingerprint(&path).unwrap(), before);
    }
}
