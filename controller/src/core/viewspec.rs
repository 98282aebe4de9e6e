//! The view specification: what the `chunkfs` daemon is to show for one VM, as a file it is given.
//! Two readers: `chunkfs` takes what it needs, and a later cleanup what it needs to close the generation.

use std::fmt;
use std::path::{Path, PathBuf};

use chunkfs::serve;
use chunkfs::source::guarded::FileState;
use chunkfs::source::image::Identity;
use chunkfs::source::nbd::NbdAddress;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::domain::LeftOut;
use super::facts::{ChainLayer, Fingerprint, Storage};
use super::names::{CheckpointName, Target, Uuid, VmName, index_file};
use super::options::ChunkSize;
use super::point::{ImagesMark, Point};
use super::tpm::TpmTold;
use super::units::{Bytes, Generation};
use super::volume::Volume;

/// The version of the format written here.
pub const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewSpec {
    pub version: u32,
    pub vm: VmName,
    pub uuid: Uuid,
    pub mount_point: PathBuf,
    /// What the kernel is to show as the source of the mount.
    pub mount_source: String,
    pub generation: Generation,
    pub method: Method,
    #[serde(default)]
    pub consistency: Consistency,
    pub chunk_size: ChunkSize,
    pub index_dir: PathBuf,
    /// The file with what `<vm>.json` shows.
    pub about: PathBuf,
    pub files: Vec<ShownFile>,
    pub disks: Vec<ShownDisk>,
    pub left_out: Vec<LeftOut>,
    #[serde(default)]
    pub tpm: TpmTold,
    pub room: Option<Room>,
}

/// The method that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    Pull,
    External,
    Lvm,
    Reflink,
    Offline,
}

/// What the disks are as of their point in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// As after a power cut.
    #[default]
    Crash,
    /// The guest's file systems were frozen by its agent.
    Frozen,
    /// The guest was suspended, and QEMU had written all it had.
    Suspended,
    /// The guest was off, and libvirt knows that it had shut down.
    ShutDown,
    /// The guest's memory was saved with the disks, and can be resumed.
    Memory,
}

/// A small file that is shown as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownFile {
    /// `mail01.xml`, `mail01.tpm/tpm2-00.permall`
    pub name: String,
    pub from: PathBuf,
}

/// When less is free in the directory, the command ends the backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    pub dir: PathBuf,
    pub least_free: Bytes,
    pub then: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownDisk {
    /// `mail01_vda`
    pub name: String,
    pub target: Target,
    pub capacity: Bytes,
    pub feed: Feed,
    pub candidates: Candidates,
    /// What the index named when this was decided.
    pub base: Option<Point>,
    /// What the index is to name once this generation is closed: later changes count from there.
    pub checkpoint_after: Option<CheckpointName>,
    /// The snapshot that cleanup keeps, and that the index is to name.
    #[serde(default)]
    pub thin_after: Option<Volume>,
    pub images: Images,
    /// The snapshot of a logical volume that all this is read from, which may overflow.
    #[serde(default)]
    pub snapshot: Option<PathBuf>,
}

/// Files that must stay as they are; a touched one makes all further reads fail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Images {
    /// As they were when they were looked at. Goes into the index.
    AsSurveyed(Vec<ChainLayer>),
    /// As they are once the point in time is taken: until then the guest wrote to them.
    AsFound(Vec<ChainLayer>),
}

/// Where the daemon reads the bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Feed {
    Nbd {
        socket: PathBuf,
        export: String,
    },
    /// A raw image, read directly.
    Image {
        path: PathBuf,
    },
}

/// Which chunks may have changed since the last generation that was closed. Those left pending then always may.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Candidates {
    /// Everything is compared, and why.
    All { why: String },
    /// No digest is compared: every chunk gets the new stamp.
    Stamped,
    /// What this NBD metadata context calls dirty.
    DirtyBitmap { context: String, since: CheckpointName },
    /// What this file says, in which thin_delta's word is written: in what the disk's volume differs from that snapshot.
    ThinDelta { file: PathBuf, since: Volume },
    /// The images are untouched.
    PendingOnly,
}

impl ViewSpec {
    /// What `chunkfs mount --view` reads, and `from_json`.
    pub fn to_json(&self) -> String {
        let about = serde_json::to_value(self).expect("plain data always serialises");
        let view = serve::ViewSpec { about, ..self.for_chunkfs() };
        text_of(&view)
    }

    pub fn from_json(text: &[u8]) -> Result<ViewSpec, serde_json::Error> {
        serde_json::from_value(serde_json::from_slice::<serve::ViewSpec>(text)?.about)
    }

    /// What a user finds beside the disks in `<vm>.json`.
    pub fn about_json(&self) -> String {
        let disks = self.disks.iter().map(|disk| {
            json!({
                "target": disk.target,
                "directory": disk.name,
                "bytes": disk.capacity,
                "changes": disk.candidates,
            })
        });
        text_of(&json!({
            "version": VERSION,
            "vm": self.vm,
            "uuid": self.uuid,
            "generation": self.generation,
            "method": self.method,
            "consistency": self.consistency,
            "chunk_bytes": self.chunk_size,
            "disks": disks.collect::<Vec<_>>(),
            "left_out": self.left_out,
            "tpm": self.tpm,
        }))
    }

    pub fn for_chunkfs(&self) -> serve::ViewSpec {
        let file = |file: &ShownFile| serve::FileSpec {
            name: file.name.clone(),
            path: file.from.clone(),
            newest: false,
        };
        let about =
            serve::FileSpec { name: format!("{}.json", self.vm), path: self.about.clone(), newest: true };
        serve::ViewSpec {
            name: self.vm.to_string(),
            index: Some(index_file(&self.index_dir)),
            bare: false,
            disks: self.disks.iter().map(|disk| disk.for_chunkfs(self.chunk_size)).collect(),
            files: self.files.iter().map(file).chain([about]).collect(),
            make_point: true,
            room: self.room.as_ref().map(Room::for_chunkfs),
            about: serde_json::Value::Null,
        }
    }
}

impl ShownDisk {
    /// What the index is to say of this disk.
    pub fn point(&self) -> Option<Point> {
        Point::new(self.checkpoint_after.clone(), self.images.mark(), self.thin_after.clone())
    }

    fn for_chunkfs(&self, chunk_size: ChunkSize) -> serve::DiskSpec {
        serve::DiskSpec {
            name: self.name.clone(),
            source: self.feed.for_chunkfs(),
            chunk_size: chunk_size.bytes(),
            changes: self.changes(),
            unchanged: self.images.for_chunkfs(),
            readable: self.snapshot.iter().cloned().collect(),
        }
    }

    fn changes(&self) -> serve::ChangesSpec {
        use serve::ChangesSpec::{Bitmap, Digests, Everything, Ranges, Start, Told};
        let since = self.base.as_ref().map(Point::to_string);
        let point = self.point().as_ref().map(Point::to_string);
        match (&self.candidates, since, point) {
            (Candidates::DirtyBitmap { context, .. }, Some(since), Some(point)) => {
                Bitmap { context: context.clone(), since, point }
            }
            (Candidates::ThinDelta { file, .. }, Some(since), Some(point)) => {
                Told { since, point, file: file.clone() }
            }
            (Candidates::PendingOnly, Some(since), Some(point)) => {
                Ranges { since, point, ranges: Vec::new() }
            }
            (Candidates::Stamped, _, _) => Everything { why: "asked for with --track=none".to_owned() },
            (candidates, _, point) => {
                let why = match candidates {
                    Candidates::All { why } => why.clone(),
                    _ => "nothing proves what changed".to_owned(),
                };
                match point {
                    Some(point) => Start { point, why },
                    None => Digests { why },
                }
            }
        }
    }
}

impl Images {
    /// The uppermost: the disk's own.
    pub fn first(&self) -> Option<&Path> {
        let (Images::AsSurveyed(layers) | Images::AsFound(layers)) = self;
        layers.first().map(|layer| layer.path.as_path())
    }

    /// None: they prove nothing later.
    pub fn mark(&self) -> Option<ImagesMark> {
        match self {
            Images::AsSurveyed(layers) => ImagesMark::of(layers),
            Images::AsFound(_) => None,
        }
    }

    fn for_chunkfs(&self) -> Vec<FileState> {
        let (layers, surveyed) = match self {
            Images::AsSurveyed(layers) => (layers, true),
            Images::AsFound(layers) => (layers, false),
        };
        let files = layers.iter().filter(|layer| layer.storage == Storage::File);
        let state = |layer: &ChainLayer| FileState {
            path: layer.path.clone(),
            identity: surveyed.then(|| identity(layer.fingerprint)),
        };
        files.map(state).collect()
    }
}

impl Method {
    pub const ALL: [Method; 5] =
        [Method::Pull, Method::External, Method::Lvm, Method::Reflink, Method::Offline];
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Method::Pull => "pull",
            Method::External => "external",
            Method::Lvm => "lvm",
            Method::Reflink => "reflink",
            Method::Offline => "offline",
        })
    }
}

impl Feed {
    fn for_chunkfs(&self) -> serve::SourceSpec {
        match self {
            Feed::Image { path } => serve::SourceSpec::Image(path.clone()),
            Feed::Nbd { socket, export } => {
                let address = NbdAddress::new(socket, export).expect("our sockets have short, plain paths");
                serve::SourceSpec::Nbd(address.to_string())
            }
        }
    }
}

impl Room {
    fn for_chunkfs(&self) -> serve::RoomSpec {
        serve::RoomSpec { dir: self.dir.clone(), least_free: self.least_free.0, then: self.then.clone() }
    }
}

fn identity(fingerprint: Fingerprint) -> Identity {
    Identity {
        device: fingerprint.device,
        inode: fingerprint.inode,
        size: fingerprint.size,
        mtime_ns: i128::from(fingerprint.mtime_nanos),
        ctime_ns: i128::from(fingerprint.ctime_nanos),
    }
}

fn text_of(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("plain data always serialises");
    text.push('\n');
    text
}
