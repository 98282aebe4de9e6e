//! What a mount is to show, as text: from the command line, or from a file that another program wrote.

use crate::core::geometry::{ByteRange, ChunkSize};
use crate::source::guarded::FileState;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A whole mount. Paths are absolute.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ViewSpec {
    /// What stands in the mount table after `chunkfs-`.
    pub name: String,
    /// `None`: every chunk shows the time of the mount.
    #[serde(default)]
    pub index: Option<PathBuf>,
    /// `true`: the tree of the only disk stands at the root of the mount, as chunkfs has always shown it.
    #[serde(default)]
    pub bare: bool,
    pub disks: Vec<DiskSpec>,
    #[serde(default)]
    pub files: Vec<FileSpec>,
    /// `true`: the mount point is not there yet; it is made last, and removed when the view has ended. So there is
    /// never an empty directory that a backup tool could take for the view.
    #[serde(default)]
    pub make_point: bool,
    #[serde(default)]
    pub room: Option<RoomSpec>,
    /// What whoever wrote this wants to find again. Not looked at.
    #[serde(default)]
    pub about: serde_json::Value,
}

/// What to do before a file system that the view's sources need is full.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoomSpec {
    pub dir: PathBuf,
    /// In bytes.
    pub least_free: u64,
    /// When less is free, this program is run, once, with these arguments.
    pub then: Vec<String>,
}

/// A disk of a mount.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// The name of its directory; also what the index knows it by.
    pub name: String,
    pub source: SourceSpec,
    /// In bytes.
    #[serde(default = "default_chunk_size")]
    pub chunk_size: u64,
    #[serde(default)]
    pub changes: ChangesSpec,
    /// Files that have to stay as they were: once one is not, nothing more is read from the source.
    #[serde(default)]
    pub unchanged: Vec<FileState>,
    /// Devices that have to stay readable, as a snapshot does until it overflows: once one is not, nothing more is read from
    /// the source, not even what is cached.
    #[serde(default)]
    pub readable: Vec<PathBuf>,
}

fn default_chunk_size() -> u64 {
    ChunkSize::DEFAULT.bytes()
}

/// Where a disk's bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceSpec {
    /// A regular file or a block device, raw.
    Image(PathBuf),
    /// An export of an NBD server: `nbd+unix:///EXPORT?socket=PATH`.
    Nbd(String),
}

/// How the changes since the last generation can be found out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "by")]
pub enum ChangesSpec {
    /// By the times of the image, if it is a regular file; else by comparing digests.
    #[default]
    Times,
    /// By comparing all digests.
    Digests { why: String },
    /// Only these ranges have changed since the point in time `since`; this one is called `point`.
    Ranges { since: String, point: String, ranges: Vec<(u64, u64)> },
    /// As this file says, a [`Told`] in JSON: whoever wrote it knew no more than its path when the rest of this was written.
    Told { since: String, point: String, file: PathBuf },
    /// Only what this metadata context of the NBD export calls dirty has changed since the point in time `since`;
    /// this one is called `point`.
    Bitmap { context: String, since: String, point: String },
    /// Every chunk counts as changed: no digest is compared, all get the stamp of this generation.
    Everything { why: String },
    /// Nothing is known of before; what is counted from now on counts from `point`.
    Start { point: String, why: String },
}

/// What another program found out about changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Told {
    /// Only these ranges have changed, start to end, in bytes.
    Ranges(Vec<(u64, u64)>),
    /// Nothing, and why.
    Unknown(String),
}

impl ChangesSpec {
    /// The ranges, start to end, that may have changed.
    pub(super) fn ranges(ranges: &[(u64, u64)]) -> impl Iterator<Item = ByteRange> + '_ {
        ranges.iter().map(|(start, end)| ByteRange::new(*start, (*end).max(*start)))
    }
}

/// A plain file beside the disks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// `NAME`, or `DIRECTORY/NAME`: directories are there for the files in them, one level deep.
    pub name: String,
    pub path: PathBuf,
    /// `true`: it is stamped one second after this generation's chunks, and so is the newest of the tree in each.
    #[serde(default)]
    pub newest: bool,
}
