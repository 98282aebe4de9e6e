//! A FUSE session: mounted, served by threads, and unmounted at the end.
//! Never by itself: when the process dies, the mount stays as a dead one, and readers get an error, not an empty
//! directory that a backup tool would take for "all files are gone".

use super::points::{self, MountPoint};
use crate::fuse::{Adapter, Caching, Counters, Linger};
use crate::view::View;
use fuser::{Config, MountOption, Session, SessionACL};
use rustix::mount::UnmountFlags;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How a view is mounted.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// What stands in the mount table as the source, after `chunkfs-`.
    pub name: String,
    pub caching: Caching,
    /// Others than the user who mounts may look, too.
    pub allow_other: bool,
    pub threads: usize,
}

/// A mounted view.
#[derive(Debug)]
pub struct Mounted {
    pub point: MountPoint,
    pub counters: Arc<Counters>,
}

/// Why nothing was mounted, or not unmounted.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("FUSE is not available: {0}; load the module `fuse`, and see that /dev/fuse can be opened")]
    NoFuse(io::Error),
    #[error("mounting is not permitted: {0}; run as root, or install fuse3{1}")]
    NotPermitted(io::Error, &'static str),
    #[error("mounting is not permitted: opening /dev/fuse: {0}; run as root, or let users open it")]
    NoAccess(io::Error),
    #[error("mounting on {}: {error}", .path.display())]
    Mount { path: PathBuf, error: io::Error },
    #[error("{}: busy{}; end them, or use --lazy", .path.display(), by(.holders))]
    Busy { path: PathBuf, holders: Vec<String> },
    #[error("unmounting {}: {error}", .path.display())]
    Unmount { path: PathBuf, error: io::Error },
}

fn by(holders: &[String]) -> String {
    if holders.is_empty() { String::new() } else { format!(": used by {}", holders.join(", ")) }
}

/// Mounts a view. `point` was checked. `on_end` is called when nobody can reach the view any more: it was unmounted,
/// by whomever, and is no longer used.
pub fn mount<V: View>(
    view: Arc<V>,
    point: &Path,
    options: &MountOptions,
    on_end: impl FnOnce() + Send + Sync + 'static,
) -> Result<Mounted, SessionError> {
    let counters = Arc::new(Counters::default());
    let linger = Arc::new(Linger::default());
    let adapter = Adapter::new(view, options.caching, Arc::clone(&counters), Arc::clone(&linger), on_end);
    let session =
        Session::new(adapter, point, &config_of(options)).map_err(|error| explain(error, point, options))?;
    let mounted = points::at(point).ok().flatten().filter(MountPoint::is_chunkfs);
    let failed = |error| SessionError::Mount { path: point.to_owned(), error };
    let point = mounted.ok_or_else(|| failed(io::Error::other("it does not stand in the mount table")))?;
    linger.at(&session).map_err(failed)?;
    let background = session.spawn().map_err(failed)?;
    // Dropped, it would unmount by path once more when the view is gone already (fuser 0.18 takes an error of its
    // device for "still mounted"), and by then something else may be mounted there. We unmount by path ourselves.
    std::mem::forget(background);
    Ok(Mounted { point, counters })
}

fn config_of(options: &MountOptions) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(format!("chunkfs-{}", options.name)),
        // `MountOption::Subtype` is ignored where fuser mounts without fusermount.
        MountOption::CUSTOM("subtype=chunkfs".to_owned()),
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoAtime,
    ];
    // The kernel asks for the attributes of every directory on the way to check them, and those of one that is still
    // being compared are known last of all. Where only the owner may come in, there is nothing to check.
    config.mount_options.extend(options.allow_other.then_some(MountOption::DefaultPermissions));
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(options.threads);
    config.clone_fd = true;
    config
}

/// Can FUSE be used at all? Found out before anything is changed.
pub fn check_device() -> Result<(), SessionError> {
    match std::fs::File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(SessionError::NoAccess(error)),
        Err(error) => Err(SessionError::NoFuse(error)),
    }
}

fn explain(error: io::Error, point: &Path, options: &MountOptions) -> SessionError {
    let hint = if options.allow_other { ", and write `user_allow_other` to /etc/fuse.conf" } else { "" };
    match error.kind() {
        io::ErrorKind::PermissionDenied => SessionError::NotPermitted(error, hint),
        io::ErrorKind::NotFound => SessionError::NoFuse(error),
        _ => SessionError::Mount { path: point.to_owned(), error },
    }
}

/// How much a mount that is in use matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmounting {
    /// An error.
    Plain,
    /// It disappears from the tree at once, and ends when the last one who uses it is done.
    Lazy,
}

/// How long a mount may be busy before that is an error. A process that ends, and the child that a process with an open
/// file has just forked, hold it for a moment more.
const PASSING: Duration = Duration::from_millis(300);

/// Unmounts by path, and looks whether it is gone.
pub fn unmount(mount: &MountPoint, how: Unmounting) -> Result<(), SessionError> {
    unmount_within(mount, how, PASSING)
}

fn unmount_within(mount: &MountPoint, how: Unmounting, patience: Duration) -> Result<(), SessionError> {
    let deadline = Instant::now() + patience;
    loop {
        match unmount_now(mount, how) {
            Err(SessionError::Busy { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            done => return done,
        }
    }
}

fn unmount_now(mount: &MountPoint, how: Unmounting) -> Result<(), SessionError> {
    let flags = match how {
        Unmounting::Plain => UnmountFlags::NOFOLLOW,
        Unmounting::Lazy => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
    };
    let path = mount.path.clone();
    match rustix::mount::unmount(&mount.path, flags) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::BUSY) => Err(SessionError::Busy { path, holders: points::holders(mount) }),
        Err(rustix::io::Errno::PERM) => unmount_by_helper(mount, how),
        // Gone already: somebody else was faster.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(SessionError::Unmount { path, error: error.into() }),
    }
}

/// Who is not root has to ask fusermount.
fn unmount_by_helper(mount: &MountPoint, how: Unmounting) -> Result<(), SessionError> {
    let mut command = std::process::Command::new("fusermount3");
    command.arg("-u").args((how == Unmounting::Lazy).then_some("-z")).arg("--").arg(&mount.path);
    let failed = |error| SessionError::Unmount { path: mount.path.clone(), error };
    let output = command.env("LC_ALL", "C").output().map_err(failed)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(failed(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))),
    }
}

/// Unmounts when the process is told to end. Waits a little for readers, then takes the view from the tree.
pub fn unmount_for_exit(mount: &MountPoint, patience: Duration) -> Result<(), SessionError> {
    match unmount_within(mount, Unmounting::Plain, patience) {
        Err(busy @ SessionError::Busy { .. }) => {
            tracing::warn!("{busy}; unmounted lazily");
            unmount(mount, Unmounting::Lazy)
        }
        done => done,
    }
}
