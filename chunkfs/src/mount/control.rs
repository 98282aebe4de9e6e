//! The socket on which a daemon answers: how far it is, and to be unmounted. One request and one answer, a line
//! of JSON each. It lies in a directory that only its user may enter, under the device number of the mount.

use super::points::MountPoint;
use crate::resolve::Progress;
use crate::view::ChunksRead;
use serde::{Deserialize, Serialize};
use std::fs::DirBuilder;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

/// A request is shorter than this.
const LONGEST_LINE: u64 = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    Status,
    /// Answered when the view is gone and its generation closed.
    Unmount {
        lazy: bool,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    Status(serde_json::Value),
    Unmounted,
    Busy(String),
    Failed(String),
}

/// What a daemon tells of itself.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    pub pid: u32,
    pub mount_point: String,
    pub source: String,
    pub generation: Option<u64>,
    pub stamp: i64,
    pub disks: Vec<DiskStatus>,
    /// Of all disks.
    pub chunks: u64,
    /// The distinct chunks, of all disks, that somebody has read of since the view was mounted.
    pub chunks_read: u64,
    /// `false`: more than `chunks_read`.
    pub chunks_read_exact: bool,
    pub reads: u64,
    pub bytes_read: u64,
    pub read_errors: u64,
    /// Why nothing more can be read; empty while all is well.
    pub troubles: Vec<String>,
    /// Of the comparison; `null` without an index.
    pub scan: Option<Progress>,
}

#[derive(Clone, Debug, Serialize)]
pub struct DiskStatus {
    pub name: String,
    pub length: u64,
    pub chunk_size: u64,
    pub chunks: u64,
    /// Those that somebody has read of since the view was mounted.
    pub read: ChunksRead,
    /// How its changes are found; `null` without an index.
    pub tracking: Option<crate::index::Tracking>,
}

fn directory() -> PathBuf {
    match rustix::process::geteuid().is_root() {
        true => PathBuf::from("/run/chunkfs"),
        false => {
            let user = rustix::process::geteuid().as_raw();
            let run = std::env::var_os("XDG_RUNTIME_DIR")
                .map_or_else(|| format!("/run/user/{user}").into(), PathBuf::from);
            run.join("chunkfs")
        }
    }
}

/// The socket of the daemon behind a mount.
pub fn path_of(mount: &MountPoint) -> PathBuf {
    directory().join(format!("{}.sock", mount.device.replace(':', "-")))
}

/// The name of a socket, as long as it is still that socket's.
#[derive(Debug)]
pub struct SocketName {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketName {
    fn of(path: PathBuf) -> io::Result<SocketName> {
        let metadata = std::fs::symlink_metadata(&path)?;
        Ok(SocketName { path, device: metadata.dev(), inode: metadata.ino() })
    }

    /// When the mount has gone, its device number is given out again at once: by now the name may be another daemon's.
    pub fn remove(&self) -> io::Result<()> {
        match std::fs::symlink_metadata(&self.path) {
            Ok(now) if (now.dev(), now.ino()) == (self.device, self.inode) => {
                std::fs::remove_file(&self.path)
            }
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Makes the socket. One of the same name is of a daemon that was killed or is just ending: its device number was given
/// out again.
pub fn listen(mount: &MountPoint) -> io::Result<(UnixListener, SocketName)> {
    let directory = directory();
    match DirBuilder::new().mode(0o700).create(&directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let metadata = std::fs::symlink_metadata(&directory)?;
    if !metadata.is_dir()
        || metadata.uid() != rustix::process::geteuid().as_raw()
        || metadata.mode() & 0o077 != 0
    {
        return Err(io::Error::other(format!(
            "{}: not a directory that only we may enter",
            directory.display()
        )));
    }
    let path = path_of(mount);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    Ok((listener, SocketName::of(path)?))
}

/// Asks the daemon behind a mount. `None`: there is none any more, or it does not answer on a socket.
pub fn ask(mount: &MountPoint, request: Request, patience: Duration) -> io::Result<Option<Answer>> {
    let Ok(mut stream) = UnixStream::connect(path_of(mount)) else { return Ok(None) };
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    let mut line = String::new();
    match send(&mut stream, &request).and_then(|()| BufReader::new(stream).read_line(&mut line)) {
        Ok(1..) => Ok(Some(serde_json::from_str(&line)?)),
        // It ended before it answered.
        Ok(0) => Ok(None),
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Reads the request of a connection. Errors: whoever asks is too slow, or does not speak our language.
pub fn receive(stream: &UnixStream) -> io::Result<Request> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut line = String::new();
    BufReader::new(stream.take(LONGEST_LINE)).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

pub fn send(stream: &mut UnixStream, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_string(message)?;
    line.push('\n');
    stream.write_all(line.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_ends_leaves_the_socket_of_the_one_that_got_its_number() {
        // No kernel gives out such a number.
        let device = format!("chunkfs-test-{}", std::process::id());
        let mount = MountPoint {
            path: "/nowhere".into(),
            root: "/".into(),
            source: String::new(),
            device,
            fs_type: String::new(),
        };
        let (_ending, ending) = listen(&mount).unwrap();
        let (_beginning, beginning) = listen(&mount).unwrap();
        ending.remove().unwrap();
        assert!(path_of(&mount).exists(), "the second daemon can still be reached");
        beginning.remove().unwrap();
        assert!(!path_of(&mount).exists());
        beginning.remove().unwrap();
    }
}
