//! Logical volumes and their snapshots: what they are called, what marks one as ours, what they need, how long they stay.
//! Runs no program of LVM: that is `host::volumes`.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use chunkfs::serve::Told;
use serde::{Deserialize, Serialize};

use super::names::Uuid;
use super::options::OptionError;
use super::units::Bytes;

/// What LVM allows in a name, lvm(8): up to 127 of these characters, and no `-` at the begin.
const NAME_MAX: usize = 127;
/// A pool that is as full as this, in percent, gets no snapshot: a full one stops its guests.
const POOL_NEARLY_FULL: u8 = 95;

/// `vg0/mail01`
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Volume {
    group: String,
    name: String,
}

/// A snapshot of a volume that is to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSnapshot {
    pub origin: Volume,
    /// `<origin>_<epoch>`, in the same group.
    pub snapshot: Volume,
    /// The domain whose backup it is for: its tag is the proof that the snapshot is ours.
    pub owner: Uuid,
    /// What it has to keep old content in. None: it is thin and shares its pool.
    pub room: Option<Bytes>,
    pub stays: Stays,
}

/// How long a snapshot is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stays {
    UntilCleanup,
    /// For as long as the index names it, so that the next one can be compared with it. Nobody can write to it.
    WhileNamed,
}

/// In what a snapshot of a thin volume differs from an older one is written to a file, as [`ThinChanges`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ThinDelta {
    pub pool: Volume,
    pub since: Volume,
    pub snapshot: Volume,
    pub to: PathBuf,
}

/// In JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ThinChanges {
    /// The metadata of this pool may be held for us.
    Holding { holding: Volume },
    /// For `chunkfs` to read.
    Told(Told),
}

/// The file system of a volume, or of its snapshot, and where it is mounted, read-only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    pub snapshot: Volume,
    pub file_system: FileSystem,
    pub point: PathBuf,
}

/// The file systems that can be mounted a second time from a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileSystem {
    Ext2,
    Ext3,
    Ext4,
    Xfs,
}

/// What is known of the volume that a disk's image is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeFacts {
    pub volume: Volume,
    pub kind: VolumeKind,
    pub place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeKind {
    /// A snapshot needs room of its own, of what the group has free.
    Thick { size: Bytes, free: Bytes },
    /// A snapshot shares the pool, of which so much is used, in percent.
    Thin {
        pool: Volume,
        data_percent: u8,
        metadata_percent: u8,
        /// Its snapshots of ours that nobody can write to.
        kept: Vec<Volume>,
        delta: Delta,
    },
}

/// Can two snapshots of a thin volume be compared by what their pool knows of them?
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta {
    Possible,
    Impossible { why: String },
}

/// Where on its volume an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The volume is the image.
    Whole,
    /// The image is a file of the volume's file system, at this path below its root.
    Within { file_system: FileSystem, path: PathBuf },
}

/// Is there a logical volume behind an image?
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Behind {
    Volume(VolumeFacts),
    Nothing { why: String },
}

impl Volume {
    /// None: LVM has no such names.
    pub fn new(group: &str, name: &str) -> Option<Volume> {
        let fits = |name: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "+_.-".contains(c);
            (1..=NAME_MAX).contains(&name.len())
                && name.chars().all(allowed)
                && !name.starts_with('-')
                && name != "."
                && name != ".."
        };
        (fits(group) && fits(name)).then(|| Volume { group: group.to_owned(), name: name.to_owned() })
    }

    pub fn group(&self) -> &str {
        &self.group
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn device(&self) -> PathBuf {
        Path::new("/dev").join(&self.group).join(&self.name)
    }

    /// `<name>_<epoch>` in the same group. None: the name would be too long for LVM.
    pub fn snapshot(&self, epoch: u64) -> Option<Volume> {
        Volume::new(&self.group, &format!("{}_{epoch}", self.name))
    }
}

impl FromStr for Volume {
    type Err = OptionError;

    /// `/dev/vg0/mail01` or `vg0/mail01`
    fn from_str(text: &str) -> Result<Volume, OptionError> {
        let names = text.strip_prefix("/dev/").unwrap_or(text).split_once('/');
        names.and_then(|(group, name)| Volume::new(group, name)).ok_or_else(|| OptionError {
            text: text.to_owned(),
            wanted: "a logical volume, such as /dev/vg0/images",
        })
    }
}

impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.group, self.name)
    }
}

/// The tag of the snapshots that are made for backups of a domain.
pub fn tag_of(owner: &Uuid) -> String {
    format!("virt-backup:{owner}")
}

impl VolumeFacts {
    /// Why no snapshot of it can be made. `asked`: the room for a thick one.
    pub fn obstacle(&self, asked: Bytes) -> Option<String> {
        if self.volume.snapshot(u64::MAX).is_none() {
            return Some(format!("the name {} is too long for a snapshot's beside it", self.volume));
        }
        match &self.kind {
            VolumeKind::Thick { size, free } => {
                let needed = asked.min(*size);
                (needed > *free).then(|| {
                    format!(
                        "snapshot {}: insufficient free space ({free} free in {}, {needed} asked): see --snapsize",
                        self.volume,
                        self.volume.group()
                    )
                })
            }
            VolumeKind::Thin { pool, data_percent, metadata_percent, .. } => {
                let fullest = *data_percent.max(metadata_percent);
                (fullest >= POOL_NEARLY_FULL)
                    .then(|| format!("the thin pool {pool} is {fullest} % full: extend it with lvextend"))
            }
        }
    }

    /// `epoch`: when the backup began, in seconds since 1970. None where `obstacle` says why.
    pub fn snapshot(&self, epoch: u64, owner: &Uuid, asked: Bytes) -> Option<VolumeSnapshot> {
        Some(VolumeSnapshot {
            origin: self.volume.clone(),
            snapshot: self.volume.snapshot(epoch)?,
            owner: owner.clone(),
            room: match &self.kind {
                VolumeKind::Thick { .. } => Some(asked),
                VolumeKind::Thin { .. } => None,
            },
            stays: Stays::UntilCleanup,
        })
    }
}

impl FileSystem {
    /// As the kernel calls it. None: it cannot be mounted twice, or nobody has tried.
    pub fn of_kernel(name: &str) -> Option<FileSystem> {
        Some(match name {
            "ext2" => FileSystem::Ext2,
            "ext3" => FileSystem::Ext3,
            "ext4" => FileSystem::Ext4,
            "xfs" => FileSystem::Xfs,
            _ => return None,
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            FileSystem::Ext2 => "ext2",
            FileSystem::Ext3 => "ext3",
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
        }
    }

    /// What mount(8) takes as options beside those that are the same for all.
    pub fn mount_options(self) -> Option<&'static str> {
        match self {
            FileSystem::Ext2 | FileSystem::Ext3 | FileSystem::Ext4 => None,
            // A snapshot has the UUID of its origin, which is mounted.
            FileSystem::Xfs => Some("nouuid"),
        }
    }
}

/// A path without any way out of the directory that it is below.
pub fn is_below(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_))) && path.components().next().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thick(size: u64, free: u64) -> VolumeFacts {
        VolumeFacts {
            volume: Volume::new("vg0", "mail01").unwrap(),
            kind: VolumeKind::Thick { size: Bytes(size), free: Bytes(free) },
            place: Place::Whole,
        }
    }

    #[test]
    fn only_names_that_lvm_takes_are_volumes() {
        for text in ["/dev/vg0/mail01", "vg0/mail01"] {
            assert_eq!(text.parse::<Volume>().unwrap().device(), Path::new("/dev/vg0/mail01"));
        }
        for text in ["vg0", "/dev/mapper/vg0/mail01", "vg0/-rf", "vg0/..", "/vg0/x", "vg0/a b", "/dev/vg0/"] {
            assert!(text.parse::<Volume>().is_err(), "{text}");
        }
        let longest = "x".repeat(NAME_MAX - 3);
        assert_eq!(Volume::new("vg0", &longest).unwrap().snapshot(1_752_513_887), None);
    }

    #[test]
    fn a_thick_snapshot_needs_the_room_that_is_asked_for_and_no_more_than_its_volume() {
        assert_eq!(thick(1 << 30, 5 << 30).obstacle(Bytes(5 << 30)), None);
        assert_eq!(thick(1 << 30, 1 << 30).obstacle(Bytes(5 << 30)), None);
        let why = thick(9 << 30, 64 << 20).obstacle(Bytes(5 << 30)).unwrap();
        assert_eq!(
            why,
            "snapshot vg0/mail01: insufficient free space (64 MiB free in vg0, 5 GiB asked): see --snapsize"
        );
    }

    #[test]
    fn a_pool_that_is_nearly_full_gets_no_snapshot() {
        let thin = |data_percent, metadata_percent| VolumeFacts {
            kind: VolumeKind::Thin {
                pool: Volume::new("vg0", "pool").unwrap(),
                data_percent,
                metadata_percent,
                kept: Vec::new(),
                delta: Delta::Possible,
            },
            ..thick(0, 0)
        };
        assert_eq!(thin(94, 10).obstacle(Bytes::ZERO), None);
        assert!(thin(95, 10).obstacle(Bytes::ZERO).unwrap().contains("vg0/pool is 95 % full"));
        assert!(thin(5, 99).obstacle(Bytes::ZERO).is_some());
    }
}
