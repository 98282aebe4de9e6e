//! What the user asked for, parsed once.
//! Not the command line itself: `clap` fills these in.

use std::collections::BTreeSet;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::compression::Compression;
use super::dumpcmd::DumpCommand;
use super::names::{Target, Uuid, VmName};
use super::retention::{ArchiveName, Policy};
use super::units::Bytes;
use super::volume::Volume;

/// What `chunkmount` may be told about one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunkmount {
    pub method: MethodChoice,
    pub quiesce: Quiesce,
    pub tracking: Tracking,
    pub exclude: BTreeSet<Target>,
    pub chunk_size: ChunkSize,
    pub pause: Pause,
    pub running: Running,
    pub memory: Memory,
    /// Room for a thick snapshot of a logical volume.
    pub snapsize: Bytes,
    pub snapshots: Snapshots,
    pub thin: ThinSnapshots,
    /// `--lvm`: the volume behind the image files, where it is not to be found out.
    pub volume: Option<Volume>,
    /// How a program calls us back, up to the subcommand.
    pub own_command: Vec<String>,
}

/// `--offline`: may the guest stay suspended for as long as the work takes, where nothing else gives a point in time?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    Never,
    AsLongAsItTakes,
}

/// `--no-snapshot`: may logical volumes have snapshots?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Snapshots {
    Allowed,
    Forbidden,
}

/// `--keep-thin`: what becomes of the snapshot of a thin volume at cleanup?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThinSnapshots {
    Removed,
    /// It stays until the next backup has been compared with it.
    Kept,
}

/// `--state`: is the memory saved together with the disks?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    LeftOut,
    Saved,
}

/// `--shutdown`: is a running guest shut down first, and started again as soon as its point in time is taken?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Running {
    Stays,
    ShutDown { within_secs: u32 },
}

/// What `dump` and `convert` may be told besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dump {
    pub form: DumpForm,
    /// Bytes a second.
    pub pace: Option<NonZeroU64>,
    pub lock: LockAfter,
}

/// What becomes of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DumpForm {
    /// `<vm>_vda.img`, with the extension of the compressor.
    Image(Compression),
    /// `<vm>_vda.qcow2`
    Qcow2(Clusters),
    /// Into the input of a command of the user's.
    Piped(DumpCommand, Compression),
}

/// What `archive` may be told besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    /// The archives of a VM are in a directory of its name in this one.
    pub base: PathBuf,
    pub name: ArchiveName,
    pub clusters: Clusters,
    /// What the domain in the archive is called. None: `<vm>-restore-<archive>`.
    pub new_name: Option<VmName>,
    /// Its UUID.
    pub uuid: Uuid,
    pub macs: Macs,
    pub policy: Policy,
}

/// `--new-mac`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Macs {
    Kept,
    New,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clusters {
    Plain,
    Compressed,
}

/// `--keep-lock`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockAfter {
    GivenBack,
    Kept,
}

/// `--max-backups`: how many jobs may be alive at once on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobLimit {
    Unlimited,
    AtMost(NonZeroU32),
}

/// `--method`: how a point in time is to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodChoice {
    Auto,
    Pull,
    External,
    Lvm,
    Reflink,
    Offline,
}

/// `--quiesce`: are the guest's file systems frozen for the moment of the snapshot?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quiesce {
    /// When the guest agent is there; go on without when it fails.
    Auto,
    Require,
    No,
}

/// `--track`: how changed chunks are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    /// Dirty bitmaps where a disk can have one.
    Auto,
    /// Dirty bitmaps on all disks, or fail.
    Bitmap,
    /// Compare digests of all chunks; no checkpoint is left in the domain.
    Digest,
    /// Take every chunk for changed; no checkpoint is left in the domain.
    None,
}

/// `--blocksize`: bytes a chunk. Fixed for a disk once chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChunkSize(u64);

#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text:?} is not {wanted}")]
pub struct OptionError {
    pub(super) text: String,
    pub(super) wanted: &'static str,
}

impl ChunkSize {
    pub const DEFAULT: ChunkSize = ChunkSize(256 << 10);
    /// What `chunkfs` takes.
    const MIN: u64 = 4 << 10;
    const MAX: u64 = 64 << 20;

    /// None: not a size that `chunkfs` takes.
    pub fn new(bytes: u64) -> Option<ChunkSize> {
        let fits = (Self::MIN..=Self::MAX).contains(&bytes) && bytes.is_multiple_of(Self::MIN);
        fits.then_some(ChunkSize(bytes))
    }

    pub fn bytes(self) -> u64 {
        self.0
    }
}

/// `262144`, `256K`, `256KiB`, `1M`: powers of 1024.
pub fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" | "B" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "m" | "MiB" => 20,
        "G" | "g" | "GiB" => 30,
        "T" | "t" | "TiB" => 40,
        _ => return None,
    };
    let plain = digits.bytes().all(|b| b.is_ascii_digit());
    let count: u64 = digits.parse().ok().filter(|_| plain)?;
    count.checked_mul(1 << shift)
}

impl FromStr for ChunkSize {
    type Err = OptionError;

    /// `262144`, `256K`, `256KiB`, `1M`: powers of 1024.
    fn from_str(text: &str) -> Result<ChunkSize, OptionError> {
        let wanted = "a chunk size: a multiple of 4096 from 4K to 64M, such as 262144 or 256K";
        let error = || OptionError { text: text.to_owned(), wanted };
        bytes(text).and_then(ChunkSize::new).ok_or_else(error)
    }
}

macro_rules! words {
    ($name:ident, $wanted:literal, $($word:literal => $value:ident),*) => {
        impl FromStr for $name {
            type Err = OptionError;
            fn from_str(text: &str) -> Result<$name, OptionError> {
                match text {
                    $($word => Ok($name::$value),)*
                    _ => Err(OptionError { text: text.to_owned(), wanted: $wanted }),
                }
            }
        }
    };
}
words!(MethodChoice, "a method: auto, pull, external, lvm, reflink, offline", "auto" => Auto, "pull" => Pull,
    "external" => External, "lvm" => Lvm, "reflink" => Reflink, "offline" => Offline);
words!(Quiesce, "one of auto, require, no", "auto" => Auto, "require" => Require, "no" => No);
words!(Tracking, "one of auto, bitmap, digest, none", "auto" => Auto, "bitmap" => Bitmap, "digest" => Digest,
    "none" => None);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_sizes_are_numbers_with_binary_suffixes() {
        for (text, bytes) in
            [("262144", 262_144), ("256K", 262_144), ("256KiB", 262_144), ("1m", 1 << 20), ("64M", 64 << 20)]
        {
            assert_eq!(text.parse(), Ok(ChunkSize(bytes)));
        }
        for text in [
            "",
            "K",
            "0",
            "-1",
            "+1K",
            "1 K",
            "511",
            "5000",
            "2G",
            "256KB",
            "1e6",
            "99999999999999999999",
            "18014398509481985K",
        ] {
            assert!(text.parse::<ChunkSize>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn words_are_the_documented_ones_and_the_error_lists_them() {
        assert_eq!("pull".parse(), Ok(MethodChoice::Pull));
        assert_eq!("require".parse(), Ok(Quiesce::Require));
        assert_eq!("digest".parse(), Ok(Tracking::Digest));
        let error = "push".parse::<MethodChoice>().unwrap_err().to_string();
        assert_eq!(error, "\"push\" is not a method: auto, pull, external, lvm, reflink, offline");
    }
}
