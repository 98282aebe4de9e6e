//! What was found out about the host, the guest, its disks and what earlier jobs left: plain data.
//! Neither asks (that is `survey`) nor decides (that is `plan`).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::domain::{Format, Source};
use super::names::{CheckpointName, Target};
use super::options::ChunkSize;
use super::point::{ImagesMark, Point};
use super::tpm::TpmFacts;
use super::units::{Bytes, Generation};
use super::volume::{Behind, Volume};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub guest: GuestFacts,
    /// One for each disk of the domain.
    pub disks: BTreeMap<Target, DiskFacts>,
    pub checkpoints: Vec<CheckpointFacts>,
    pub index: BTreeMap<Target, IndexedDisk>,
    pub mount_point: MountPoint,
    /// Are there UEFI variables where the domain's XML says?
    pub nvram: Nvram,
    pub tpm: TpmFacts,
    /// What the file system of the scratch files has left.
    pub scratch_free: Bytes,
    /// When all this was looked at, in seconds since 1970.
    pub epoch: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nvram {
    There,
    /// It has none, or was never started.
    None,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestFacts {
    pub state: GuestState,
    pub stopped: Stopped,
    pub definition: Definition,
    pub agent: Agent,
    pub pull: PullSupport,
    /// A backup job that runs already. After the leftovers are cleared it can only be somebody else's.
    pub backup_job: Option<BackupJob>,
}

/// Has a guest that is off shut down?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    ByItself,
    /// It was ended, or its memory is saved, or libvirt does not know, as it does not once it was started anew: its disks
    /// may be as after a power cut.
    Perhaps,
}

/// Are libvirt and QEMU new enough for pull-mode backups?
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PullSupport {
    Yes,
    No { why: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestState {
    Running,
    Paused,
    ShutOff,
    /// On its way to somewhere else, as libvirt calls it.
    Other(String),
}

impl GuestState {
    /// Is there a QEMU that holds the disks?
    pub fn has_process(&self) -> bool {
        match self {
            GuestState::Running | GuestState::Paused | GuestState::Other(_) => true,
            GuestState::ShutOff => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Definition {
    Persistent,
    /// Gone when the guest stops: libvirt keeps no checkpoints for it.
    Transient,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agent {
    Connected,
    Absent,
}

/// A running backup job, known by where it serves: a socket of ours proves it ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupJob {
    /// None: a push job, or one that serves on TCP.
    pub socket: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFacts {
    /// What the guest sees.
    pub capacity: Bytes,
    pub bitmaps: BitmapSupport,
    /// The disk's own image first, then those below it; what can be reached as a path on this host.
    pub chain: Chain,
    pub reflink: Reflink,
    pub volume: Behind,
    /// How many snapshots are within the image.
    pub snapshots: u32,
}

/// A snapshot of the domain that libvirt knows of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFacts {
    pub name: String,
    /// As libvirt would take it to define the snapshot again, with secrets.
    pub xml: String,
}

/// Can the disk's image be cloned by sharing its blocks?
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reflink {
    Possible,
    Impossible { why: String },
}

/// Can this image keep a persistent dirty bitmap?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapSupport {
    Qcow2V3,
    /// compat=0.10
    Qcow2V2,
    NotQcow2,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chain {
    /// Complete, every format declared by the XML or by the header of the layer above.
    Known(Vec<ChainLayer>),
    /// Not to be read from here, and why: a layer without a declared format, a network disk, a missing file.
    Unknown { why: String },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainLayer {
    pub format: Format,
    pub path: PathBuf,
    pub storage: Storage,
    pub fingerprint: Fingerprint,
    pub clock: Clock,
}

/// What kind of thing a layer is kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Storage {
    File,
    /// Has no times: nothing tells whether it was written to.
    Device,
}

/// Were a file's times already old when they were read, so that a later write cannot have left them as they are?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clock {
    Settled,
    Unsettled,
}

/// Which file it is, and whether it was touched since. Times in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    pub mtime_nanos: i64,
    pub ctime_nanos: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointFacts {
    /// As libvirt has it; `CheckpointName::recognise` tells whose it is.
    pub name: String,
    pub bitmaps: BTreeMap<Target, BitmapState>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapState {
    Usable,
    /// QEMU did not close the image properly: what the bitmap says is not to be believed.
    Inconsistent,
    /// The checkpoint is there, its bitmap is not: the image was replaced or rewritten.
    Missing,
}

/// What the index of a disk says about the last generation that was closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexedDisk {
    pub generation: Generation,
    pub capacity: Bytes,
    pub chunk_size: ChunkSize,
    /// The checkpoint whose bitmap counts from that generation or an earlier one.
    pub checkpoint: Option<CheckpointName>,
    /// The images of a guest that was off, as they were then.
    pub images: Option<ImagesMark>,
    /// The snapshot of the disk's volume that was kept.
    pub thin: Option<Volume>,
    pub trust: Trust,
}

impl IndexedDisk {
    pub fn point(&self) -> Option<Point> {
        Point::new(self.checkpoint.clone(), self.images.clone(), self.thin.clone())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trust {
    AsRecorded,
    /// A sample did not match: compare everything once.
    CompareAll,
}

/// What is at `B/<vm>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountPoint {
    Absent,
    EmptyDirectory,
    /// A file, or a directory with something in it.
    Occupied,
    Mounted {
        source: String,
    },
}

/// How a source is reached on this host, for those that are plain paths.
pub fn local_path(source: &Source) -> Option<&PathBuf> {
    match source {
        Source::File(path) | Source::Block(path) => Some(path),
        _ => None,
    }
}
