//! The view specification: what the `chunkfs` daemon is to show for one VM, as a file it is given.
//! Also the content of `<vm>.json` in the view, less what a consumer has no use for.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::domain::LeftOut;
use super::facts::ChainLayer;
use super::names::{CheckpointName, Target, Uuid, VmName};
use super::options::ChunkSize;
use super::units::{Bytes, Generation};

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
    pub chunk_size: ChunkSize,
    pub index_dir: PathBuf,
    pub files: Vec<ShownFile>,
    pub disks: Vec<ShownDisk>,
    pub left_out: Vec<LeftOut>,
}

/// The method that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    Pull,
    Offline,
}

/// A small file that is shown as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownFile {
    pub name: String,
    pub from: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownDisk {
    /// `mail01_vda`
    pub name: String,
    pub target: Target,
    pub capacity: Bytes,
    pub feed: Feed,
    pub candidates: Candidates,
    /// What the index is to name once this generation is closed: later changes count from there.
    pub checkpoint_after: Option<CheckpointName>,
    /// Files that must stay as they are; a touched one makes all further reads fail. Goes into the index.
    pub images: Vec<ChainLayer>,
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
    /// The images are untouched.
    PendingOnly,
}

impl ViewSpec {
    pub fn to_json(&self) -> String {
        let mut text =
            serde_json::to_string_pretty(self).expect("plain data with string keys always serialises");
        text.push('\n');
        text
    }
}
