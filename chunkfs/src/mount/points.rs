//! Mount points: what is mounted where, and whether a directory can become one.
//! Reads /proc/self/mountinfo rather than the directory, for `stat` on a dead mount fails or hangs.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A line of mountinfo, as far as we need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    pub path: PathBuf,
    /// Which part of the file system is mounted: `/` for all of it.
    pub root: PathBuf,
    /// The device number of what is mounted: `major:minor`.
    pub device: String,
    pub fs_type: String,
    pub source: String,
}

impl MountPoint {
    /// One of ours: a chunk view or a joined image.
    pub fn is_chunkfs(&self) -> bool {
        self.fs_type == "fuse.chunkfs" || (self.fs_type == "fuse" && self.source.starts_with("chunkfs-"))
    }
}

/// Why a directory cannot become a mount point. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum PointError {
    #[error("mount point {}: {error}", .path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("mount point {}: not there; make the directory first", .path.display())]
    Missing { path: PathBuf },
    #[error("mount point {}: not a directory", .path.display())]
    NotDirectory { path: PathBuf },
    #[error("mount point {}: not empty", .path.display())]
    NotEmpty { path: PathBuf },
    #[error("mount point {}: {what} is mounted there already", .path.display())]
    Mounted { path: PathBuf, what: String },
    #[error("mount point {}: a dead mount, whose chunkfs was killed, is there; run `chunkfs umount` on it first", .path.display())]
    Dead { path: PathBuf },
    #[error("mount point {}: {} would be hidden below it, or hold it", .path.display(), .image.display())]
    Nested { path: PathBuf, image: PathBuf },
}

/// All mounts of this process' namespace, in the order in which they were made.
pub fn all() -> io::Result<Vec<MountPoint>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(parse_line).collect())
}

/// What is mounted at a path: the last one, if several lie over each other.
pub fn at(path: &Path) -> io::Result<Option<MountPoint>> {
    Ok(all()?.into_iter().rev().find(|mount| mount.path == path))
}

/// A line: `36 35 98:0 / /mnt rw,noatime shared:1 - ext3 /dev/root rw`. The optional fields end with a dash.
fn parse_line(line: &[u8]) -> Option<MountPoint> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = fields.nth(2)?;
    let (root, path) = (fields.next()?, fields.next()?);
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let (fs_type, source) = (rest.next()?, rest.next()?);
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    Some(MountPoint {
        root: PathBuf::from(OsString::from_vec(unescape(root))),
        path: PathBuf::from(OsString::from_vec(unescape(path))),
        device: text(device),
        fs_type: text(fs_type),
        source: text(source),
    })
}

/// Space, tab, line feed and backslash stand as `\040`, `\011`, `\012` and `\134`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let octal = (field[at] == b'\\').then(|| field.get(at + 1..at + 4)).flatten();
        let value = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(value.unwrap_or(field[at]));
        at += if value.is_some() { 4 } else { 1 };
    }
    bytes
}

/// Something that is mounted in a directory, or in one below it.
pub fn below(dir: &Path) -> io::Result<Option<MountPoint>> {
    let dir = absolute(dir)?;
    Ok(all()?.into_iter().find(|mount| mount.path.starts_with(&dir) && mount.path != dir))
}

/// The absolute path of a directory, without touching the directory itself: it may be a dead mount.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    let full = std::path::absolute(path)?;
    match (full.parent(), full.file_name()) {
        // `readlink` does not ask the file system behind a mount, `stat` does: the root of a view that is still being
        // compared answers only when that is done.
        (Some(parent), Some(name)) => match std::fs::read_link(&full) {
            Ok(_) => std::fs::canonicalize(&full),
            Err(_) => Ok(std::fs::canonicalize(parent)?.join(name)),
        },
        // The root, or a path that ends in "..".
        _ => std::fs::canonicalize(&full),
    }
}

/// Was the daemon behind this mount killed? Not by `stat`, which the kernel answers from what it remembers.
pub fn is_dead(path: &Path) -> bool {
    rustix::fs::statfs(path).is_err_and(|error| error == rustix::io::Errno::NOTCONN)
}

/// Can this directory become a mount point? Gives its absolute path.
pub fn check(path: &Path) -> Result<PathBuf, PointError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => PointError::Missing { path: path.to_owned() },
        _ => PointError::Io { path: path.to_owned(), error },
    };
    let full = absolute(path).map_err(failed)?;
    if let Some(mount) = at(&full).map_err(failed)? {
        return Err(match mount.is_chunkfs() && is_dead(&full) {
            true => PointError::Dead { path: full },
            false => {
                PointError::Mounted { path: full, what: format!("{} ({})", mount.source, mount.fs_type) }
            }
        });
    }
    if !std::fs::metadata(&full).map_err(failed)?.is_dir() {
        return Err(PointError::NotDirectory { path: full });
    }
    match std::fs::read_dir(&full).map_err(failed)?.next() {
        None => Ok(full),
        Some(_) => Err(PointError::NotEmpty { path: full }),
    }
}

/// Can a mount point be made at this path? It can where nothing is, or an empty directory.
pub fn check_place(path: &Path) -> Result<PathBuf, PointError> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            absolute(path).map_err(|error| PointError::Io { path: path.to_owned(), error })
        }
        _ => check(path),
    }
}

/// Neither may hold the other: a mount would hide the image, or the view would contain itself.
/// A file that does not exist yet is where its directory is.
pub fn check_apart(point: &Path, image: &Path) -> Result<(), PointError> {
    let nested = |image: &Path| PointError::Nested { path: point.to_owned(), image: image.to_owned() };
    let Ok(image) = std::fs::canonicalize(image).or_else(|_| absolute(image)) else { return Ok(()) };
    match image.starts_with(point) || point.starts_with(&image) {
        true => Err(nested(&image)),
        false => Ok(()),
    }
}

/// The processes that keep a mount busy, as far as we may see: `pid (name)`.
pub fn holders(mount: &MountPoint) -> Vec<String> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let holds = |process: &Path| {
        let links = ["cwd", "root"].map(|link| process.join(link)).into_iter();
        let files = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten().map(|fd| fd.path());
        links
            .chain(files)
            .filter_map(|link| std::fs::read_link(link).ok())
            .any(|to| to.starts_with(&mount.path))
    };
    let mut found = Vec::new();
    for process in processes.flatten() {
        let path = process.path();
        if process.file_name().as_bytes().first().is_some_and(u8::is_ascii_digit) && holds(&path) {
            let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
            found.push(format!("{} ({})", process.file_name().to_string_lossy(), name.trim()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo_are_read_with_their_escapes() {
        let line = br"36 35 0:45 / /mnt/a\040b\134c rw,noatime shared:1 master:2 - fuse.chunkfs chunkfs-m\040x ro,user_id=0";
        let mount = parse_line(line).unwrap();
        assert_eq!(mount.path, Path::new("/mnt/a b\\c"));
        assert_eq!(
            (mount.device.as_str(), mount.fs_type.as_str(), mount.source.as_str()),
            ("0:45", "fuse.chunkfs", "chunkfs-m x")
        );
        assert!(mount.is_chunkfs());
        assert_eq!(parse_line(b""), None);
        assert_eq!(unescape(br"\04"), br"\04");
        assert_eq!(unescape(br"\999"), br"\999");
    }

    #[test]
    fn only_an_empty_directory_can_become_a_mount_point() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir(path("empty")).unwrap();
        std::fs::write(path("file"), b"x").unwrap();
        assert!(check(&path("empty")).is_ok());
        assert!(matches!(check(&path("missing")), Err(PointError::Missing { .. })));
        assert!(matches!(check(&path("missing/deeper")), Err(PointError::Missing { .. })));
        assert!(matches!(check(&path("file")), Err(PointError::NotDirectory { .. })));
        assert!(matches!(check(dir.path()), Err(PointError::NotEmpty { .. })));
        assert!(matches!(check(Path::new("/proc")), Err(PointError::Mounted { .. })));
    }
}
