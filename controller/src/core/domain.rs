//! What a libvirt domain's XML says, as types.
//! Says nothing about the state of the guest, and never what format an image is in but for what is declared.

mod parse;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::names::{Target, Uuid, VmName};
use super::units::Bytes;

pub use parse::DomainError;

/// One virtual machine, as defined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    pub id: DomainId,
    pub memory: Bytes,
    /// In the order of the XML; targets are unique.
    pub disks: Vec<Disk>,
    /// Storage that is not a disk to back up, each with the reason: nothing is left out in silence.
    pub left_out: Vec<LeftOut>,
    /// The UEFI variables of this guest.
    pub nvram: Option<PathBuf>,
    pub tpm: Option<Tpm>,
}

/// Both, because a domain can be renamed and its UUID be hard to read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DomainId {
    pub name: VmName,
    pub uuid: Uuid,
}

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    pub target: Target,
    pub bus: Option<String>,
    pub device: Device,
    pub format: Format,
    pub source: Source,
    pub backing: Backing,
    pub access: Access,
    pub sharing: Sharing,
    pub lifetime: Lifetime,
    pub cached: HostCache,
    pub snapshot: SnapshotPolicy,
}

/// Are the guest's writes held in the host's page cache until somebody asks for them to be on the disk?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostCache {
    /// Unless something else is declared.
    Used,
    PassedBy,
}

/// What the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Disk,
    /// A SCSI device whose commands go through to the host's.
    Lun,
}

/// The declared format of an image. A missing declaration means raw, as it does to libvirt: a guest can write
/// the header of any format into its raw disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Format {
    Raw,
    Qcow2,
    Other(String),
}

/// Where a disk's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    File(PathBuf),
    Block(PathBuf),
    Network {
        protocol: String,
        name: String,
    },
    Volume {
        pool: String,
        volume: String,
    },
    Directory(PathBuf),
    Nvme {
        address: String,
    },
    VhostUser {
        socket: PathBuf,
    },
    /// A kind that this program does not know: planning refuses it by name.
    Unknown {
        kind: String,
    },
    /// A drive without a medium.
    Nothing,
}

/// The images below a disk's own, nearest first, as far as the XML declares them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backing {
    pub layers: Vec<Layer>,
    pub end: ChainEnd,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    pub format: Format,
    pub source: Source,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChainEnd {
    /// `<backingStore/>`: nothing lies below the last layer.
    Declared,
    /// The XML is silent: there may be more below, which only the image's own header tells.
    #[default]
    Undeclared,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    ReadWrite,
    ReadOnly,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    Exclusive,
    /// Other guests may write to it.
    Shareable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    Persistent,
    /// What the guest writes is dropped when it is shut off.
    Transient,
}

/// The `snapshot` attribute: what the administrator wants to happen to this disk in a snapshot of the domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotPolicy {
    Unspecified,
    No,
    Internal,
    External,
    Manual,
}

/// Storage of the domain that no backup shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// `hda`, or for what has no target a description.
    pub what: String,
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tpm {
    /// `emulator`, `passthrough`, `external`.
    pub backend: String,
    pub version: Option<String>,
    /// Where its state is kept if the XML says so; libvirt's default otherwise.
    pub state: Option<TpmSource>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TpmSource {
    Directory(PathBuf),
    File(PathBuf),
}

impl Domain {
    /// Reads what `virsh dumpxml` prints. Refuses a DTD, so that no entity can be defined.
    pub fn parse(xml: &str) -> Result<Domain, DomainError> {
        parse::domain(xml)
    }

    pub fn disk(&self, target: &Target) -> Option<&Disk> {
        self.disks.iter().find(|disk| disk.target == *target)
    }
}

impl From<String> for Format {
    fn from(text: String) -> Format {
        match text.as_str() {
            "raw" => Format::Raw,
            "qcow2" => Format::Qcow2,
            _ => Format::Other(text),
        }
    }
}

impl From<Format> for String {
    fn from(format: Format) -> String {
        format.to_string()
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
            Format::Other(name) => name,
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File(path) => write!(f, "file {}", path.display()),
            Source::Block(path) => write!(f, "block device {}", path.display()),
            Source::Network { protocol, name } => write!(f, "{protocol} {name}"),
            Source::Volume { pool, volume } => write!(f, "volume {volume} in pool {pool}"),
            Source::Directory(path) => write!(f, "directory {}", path.display()),
            Source::Nvme { address } => write!(f, "NVMe device {address}"),
            Source::VhostUser { socket } => write!(f, "vhost-user {}", socket.display()),
            Source::Unknown { kind } => write!(f, "a source of the unknown kind {kind:?}"),
            Source::Nothing => write!(f, "no medium"),
        }
    }
}
