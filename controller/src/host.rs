//! What we may do to a machine and ask of it, and nothing more: the seam between deciding and doing.
//! No implementation: `sim` is a machine in memory, `machine` this one.
//!
//! Three promises that every implementor keeps, because cleanup after a crash rests on them:
//!
//! - **A verb that returned is on disk.** File verbs have synced the file and its directory. A crash in the middle of
//!   `append` may leave a part of the bytes at the end; all other verbs happen whole or not at all.
//! - **An error means "perhaps".** What a failed verb was to do may have been done. The caller undoes it anyway.
//! - **Undoing what is not there is `AlreadyGone`,** not an error, also when the domain or the directory it was in is
//!   gone. So every undo may be repeated.

mod bitmaps;
mod copying;
pub mod definitions;
pub mod exec;
pub mod libvirt;
pub mod local;
pub mod machine;
mod processes;
mod scope;
mod strict;
pub mod sim;
mod thin;
mod volumes;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::core::domain::{Disk, DomainId};
use crate::core::facts::{CheckpointFacts, DiskFacts, Fingerprint, GuestFacts, IndexedDisk, SnapshotFacts};
use crate::core::lock::{BootId, ProcessId};
use crate::core::names::{CheckpointName, JobId, Target, Uuid};
use crate::core::step::{BackupRequest, CopyRequest, ImageService, Overlay, OverlayRequest, ViewService};
use crate::core::tpm::Found;
use crate::core::units::Bytes;
use crate::core::volume::{ThinDelta, Volume, VolumeMount, VolumeSnapshot};

/// A machine with guests.
pub trait Host: Files + Processes + Guests + Volumes {}
impl<T: Files + Processes + Guests + Volumes> Host for T {}

/// Files that are ours. Paths are absolute.
pub trait Files {
    /// None: there is no such file.
    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>>;
    fn entry(&self, path: &Path) -> Result<Entry>;
    /// The names in a directory, sorted. None: there is no such directory.
    fn list(&self, dir: &Path) -> Result<Option<Vec<String>>>;
    fn fingerprint(&self, path: &Path) -> Result<Option<Fingerprint>>;
    /// What is free on the file system of a directory or of the nearest one above it that exists.
    fn free(&self, dir: &Path) -> Result<Bytes>;

    /// Makes a file that was not there; it appears with all of its content. Mode 0600.
    fn create(&self, path: &Path, content: &[u8]) -> Result<Created>;
    /// Puts a file in the place of the one that is or is not there; nobody sees a part of it. Mode 0600.
    fn replace(&self, path: &Path, content: &[u8]) -> Result<()>;
    fn append(&self, path: &Path, content: &[u8]) -> Result<()>;
    /// A copy of a small file, on disk under its name only when it is whole. Mode 0600. Gives the digest of what was copied.
    fn copy_file(&self, from: &Path, to: &Path) -> Result<blake3::Hash>;
    /// What was written to these files is on the disk; what is written meanwhile, as far as it goes quickly.
    fn bring_to_disk(&self, paths: &[PathBuf]) -> Result<()>;
    /// What is in a directory that others write to: no link is followed, not even to the directory. None: there is none.
    fn look_into(&self, dir: &Path) -> Result<Option<Vec<(String, Found)>>>;
    /// A copy of a regular file in such a directory, an error when it is larger. Mode 0600, and whole as `copy_file` has it.
    fn copy_small(&self, dir: &Path, name: &str, at_most: Bytes, to: &Path) -> Result<blake3::Hash>;
    /// A file that shares its blocks with another one; the name is new. Not synced: nobody needs it after a crash.
    fn clone_file(&self, from: &Path, to: &Path) -> Result<()>;
    /// With the directories above it. Mode 0700 for those it makes, 0711 where QEMU must pass.
    fn make_dir(&self, path: &Path) -> Result<Created>;
    /// The same, for the last of them: nobody else looks into it.
    fn make_private_dir(&self, path: &Path) -> Result<Created>;
    /// A file, a socket, a link; never a directory.
    fn remove_file(&self, path: &Path) -> Result<Removal>;
    /// A directory with all that is in it. Follows no link.
    fn remove_tree(&self, path: &Path) -> Result<Removal>;
    /// Only an empty one.
    fn remove_dir(&self, path: &Path) -> Result<Removal>;
    /// Exclusive access for as long as the guard lives, at most as long as this process. None: somebody else has it.
    fn guard(&self, path: &Path) -> Result<Option<Guard>>;
}

/// Processes of ours and mounts.
pub trait Processes {
    fn this_process(&self) -> Result<ProcessId>;
    /// Seconds since 1970.
    fn epoch(&self) -> Result<u64>;
    fn boot_id(&self) -> Result<BootId>;
    fn new_job_id(&self) -> Result<JobId>;
    /// Waits until what a killed process asked of libvirt or the kernel just before has happened or failed: a second
    /// since its last sign of life, the last change of this file.
    fn let_settle(&self, last_sign: &Path) -> Result<()>;
    fn lives(&self, process: &ProcessId) -> Result<bool>;
    /// The source of what is mounted at a path, unescaped. None: nothing is mounted there.
    fn mounted_at(&self, path: &Path) -> Result<Option<String>>;
    /// Where something is mounted below a directory.
    fn mounted_below(&self, dir: &Path) -> Result<Option<PathBuf>>;

    /// Starts `chunkfs` so that it outlives us, and waits until its view can be read. On an error it may still run.
    fn start_view(&self, service: &ViewService) -> Result<ProcessId>;
    /// Stops every daemon that was started with this specification, found by the argument, and waits for its end.
    /// Says nothing about the mount.
    fn stop_view(&self, service: &ViewService) -> Result<Removal>;
    /// Unmounts what is mounted at the path, detaching it if readers still hold it.
    fn unmount(&self, path: &Path) -> Result<Removal>;

    /// Starts `qemu-nbd --read-only`, and waits until it listens.
    fn serve_image(&self, service: &ImageService) -> Result<ProcessId>;
    /// Stops every server that was started for this socket and removes the socket.
    fn stop_image(&self, socket: &Path) -> Result<Removal>;

    /// Reads all of a disk and writes it where it is to go: a file has its name only when it is whole and on disk.
    /// Gives the digest as `b3sum` prints it. Ends early when `interrupted` says so or room runs short.
    fn copy_disk(&self, copy: &CopyRequest, interrupted: &(dyn Fn() -> bool + Sync)) -> Result<String>;

    /// What the indexes of a VM say. No directory: no disks.
    fn indexes(&self, dir: &Path) -> Result<BTreeMap<Target, IndexedDisk>>;
    /// Closes the generation that the daemon opened by this specification: what is unresolved becomes pending, each
    /// disk's index names its `checkpoint_after`, and the indexes of disks that are not in the specification name
    /// none any more. On disk when it returns. `AlreadyGone` when no daemon ever opened it or it is closed.
    ///
    /// It may be cut off between two disks, and the daemon may have been cut off before it opened them all. Then some
    /// indexes name the new checkpoint and some the older one; both are kept, and the next close ends that.
    fn close_generation(&self, spec: &Path) -> Result<Removal>;
}

/// Logical volumes, through LVM, and the file systems that are on them.
pub trait Volumes {
    fn volume_exists(&self, volume: &Volume) -> Result<bool>;
    /// Has the tag of its owner from the first moment on.
    fn snapshot_volume(&self, snapshot: &VolumeSnapshot) -> Result<()>;
    /// Only one with the tag of its owner; any other is `AlreadyGone`. `Spoilt` when it could not be read any more.
    fn remove_volume(&self, volume: &Volume, owner: &Uuid) -> Result<Removal>;
    /// Removes all that have the tag of this owner, but for those to be kept: they have no device from now on, also after a restart
    /// of the machine, so nobody writes to them, scans them or takes them for their origins. `Spoilt` as above.
    fn settle_volumes(&self, owner: &Uuid, keep: &[Volume]) -> Result<Removal>;
    /// Writes the file anew, as `volume::ThinChanges`: that nothing can be found out is no error.
    fn thin_delta(&self, delta: &ThinDelta) -> Result<()>;
    /// Lets go of the metadata of the pool that this file says are held, and removes the file.
    fn free_thin_metadata(&self, file: &Path) -> Result<Removal>;
    /// Read-only, and as the file system that it is said to have.
    fn mount_volume(&self, mount: &VolumeMount) -> Result<()>;
    /// Not before nobody uses it any more, for as long as that may take after its last user was stopped.
    fn unmount_volume(&self, point: &Path) -> Result<Removal>;
}

/// The guests, through the hypervisor. All verbs find the domain by UUID.
pub trait Guests {
    /// None: there is no such domain. By name or UUID.
    fn domain_xml(&self, vm: &str, view: XmlView) -> Result<Option<String>>;
    fn guest(&self, domain: &DomainId) -> Result<GuestFacts>;
    /// `volume`: the one behind an image file, where the user knows better.
    fn disk(&self, domain: &DomainId, disk: &Disk, volume: Option<&Volume>) -> Result<DiskFacts>;
    /// All that libvirt knows of the domain.
    fn snapshots(&self, domain: &DomainId) -> Result<Vec<SnapshotFacts>>;
    /// The files of all disks of all domains, with the domain's name: what must not be removed.
    fn files_in_use(&self) -> Result<Vec<(String, PathBuf)>>;
    /// All of the domain's, also those of others. None of a domain that is gone.
    fn checkpoints(&self, domain: &DomainId) -> Result<Vec<CheckpointFacts>>;

    /// One point in time for all disks: the job and the checkpoint are there together or not at all. Asks for the
    /// bitmap names of `step::export_bitmap`.
    fn begin_backup(&self, request: &BackupRequest) -> Result<()>;
    /// Ends the job that serves on this socket; any other job is somebody else's and left alone. Leaves no scratch
    /// file or socket open.
    fn abort_backup(&self, domain: &DomainId, socket: &Path) -> Result<Removal>;
    /// Merges what the checkpoint tracks into the one before. `Later` when the guest is off: its images' bitmaps can
    /// only be deleted while it runs.
    fn delete_checkpoint(&self, domain: &DomainId, name: &CheckpointName) -> Result<Removal>;
    /// One point in time for all disks: from then on the guest writes to overlays, for all of them or for none.
    fn take_overlays(&self, request: &OverlayRequest) -> Result<()>;
    /// Merges an overlay into its image, whether the guest runs or not, and removes it once the guest's fresh description
    /// proves that the image is in use. Whatever fails leaves the overlay and every write of the guest.
    fn merge_overlay(&self, domain: &DomainId, overlay: &Overlay) -> Result<Removal>;
    /// An error when the guest's agent does not answer in time, or there is none.
    fn ask_agent(&self, domain: &DomainId, within: Duration) -> Result<()>;
    /// Freezes the guest's file systems, within the time or not at all. Something that outlives us thaws them soon after
    /// the time if we do not.
    fn freeze(&self, domain: &DomainId, within: Duration) -> Result<()>;
    /// `AlreadyGone` when nothing was frozen any more.
    fn thaw(&self, domain: &DomainId) -> Result<Removal>;
    /// QEMU has written all it had when this returns.
    fn suspend(&self, domain: &DomainId) -> Result<()>;
    /// `AlreadyGone` when it is not suspended.
    fn resume(&self, domain: &DomainId) -> Result<Removal>;
    /// Asks the guest, and waits for its end.
    fn shut_down(&self, domain: &DomainId, within: Duration) -> Result<()>;
    fn start(&self, domain: &DomainId, begin: Begin) -> Result<Removal>;
}

/// How a guest is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    Running,
    /// It has a QEMU, and does not run before it is resumed.
    Suspended,
}

/// Which description of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XmlView {
    /// As it is now.
    Live,
    /// As it would be defined again, with secrets.
    Definition,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    Absent,
    Directory,
    /// A file, a socket, a device.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    Now,
    WasThere,
}

/// What became of something that was to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    Removed,
    AlreadyGone,
    /// It stays for now, does no harm, and a later job removes it: why.
    Later(String),
    /// It is gone, and was no good any more before: who read it got errors. Why.
    Spoilt(String),
}

impl Removal {
    /// What became of several things: what somebody has to be told goes before the rest.
    pub fn and(self, other: Removal) -> Removal {
        match (self, other) {
            (removal, Removal::AlreadyGone) => removal,
            (told @ (Removal::Later(_) | Removal::Spoilt(_)), Removal::Removed) => told,
            (_, removal) => removal,
        }
    }
}

/// Given back when it is dropped, or by the kernel when this process dies.
pub struct Guard(#[expect(dead_code, reason = "held for the sake of its drop")] Box<dyn std::any::Any>);

impl Guard {
    pub fn new(held: impl std::any::Any) -> Guard {
        Guard(Box::new(held))
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guard")
    }
}
