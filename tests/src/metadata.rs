//! What a backup tool sees of a file: all of `stat`, and walks over whole trees.

use rustix::fs::Stat;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What decides whether a file is read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub inode: u64,
    pub size: u64,
    pub mode: u32,
    pub owner: (u32, u32),
    pub nlink: u64,
    pub mtime: i64,
}

#[track_caller]
pub fn stat(path: impl AsRef<Path>) -> Stat {
    let path = path.as_ref();
    rustix::fs::lstat(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[track_caller]
pub fn shown(path: impl AsRef<Path>) -> Shown {
    let stat = stat(path);
    Shown {
        inode: stat.st_ino,
        size: stat.st_size as u64,
        mode: stat.st_mode,
        owner: (stat.st_uid, stat.st_gid),
        nlink: stat.st_nlink,
        mtime: stat.st_mtime,
    }
}

/// Everything at and below a path, by its path below it.
#[track_caller]
pub fn tree(root: &Path) -> BTreeMap<PathBuf, Shown> {
    let mut found = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let here = shown(&path);
        if here.mode & 0o170000 == 0o040000 {
            left.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.insert(path.strip_prefix(root).unwrap().to_owned(), here);
    }
    found
}

/// The time in whole seconds.
pub fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap().as_secs() as i64
}
