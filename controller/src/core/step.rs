//! The steps of a plan, each beside its undo.
//! Says what is to be done, not how: `session` carries steps out through the host.

use std::fmt;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::compression::Compression;
use super::domain::{DomainId, Format};
use super::facts::ChainLayer;
use super::names::{CheckpointName, Target, Uuid};
use super::options::Clusters;
use super::units::Bytes;
use super::viewspec::{Feed, Room, ViewSpec};
use super::volume::{Stays, ThinDelta, Volume, VolumeMount, VolumeSnapshot};

/// One effect on the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Nothing is at this path; what a later step's program puts there is ours from now on.
    ClaimFile {
        path: PathBuf,
    },
    /// The domain has no checkpoint of this name; one that a later step makes is ours.
    ClaimCheckpoint {
        domain: DomainId,
        name: CheckpointName,
        index_dir: PathBuf,
    },
    MakeDir {
        path: PathBuf,
    },
    WriteFile {
        path: PathBuf,
        content: String,
    },
    /// Puts the specification where the daemon reads it: from then on it may open a generation in the index.
    WriteSpec {
        path: PathBuf,
        spec: Box<ViewSpec>,
    },
    /// A copy of a small file of the guest's, private to us.
    CopyFile {
        from: PathBuf,
        to: PathBuf,
    },
    /// What the host has not written to the disk yet of these files, it writes now and not while the guest waits.
    BringToDisk {
        paths: Vec<PathBuf>,
    },
    /// A copy of a file that a program writes which runs beside the guest: follows no link, and takes no more than so many bytes.
    CopyTpm {
        dir: PathBuf,
        name: String,
        at_most: Bytes,
        to: PathBuf,
    },
    /// A clone that shares its blocks with the file; the place is claimed.
    CloneFile {
        from: PathBuf,
        to: PathBuf,
    },
    /// Nothing of the snapshot's name is in its group; one that a later step makes is ours.
    ClaimVolume {
        snapshot: VolumeSnapshot,
    },
    /// The index names the snapshots that are kept, and after this backup others or none: what it does not name then has to go.
    ClaimKeptVolumes {
        owner: Uuid,
        index_dir: PathBuf,
    },
    SnapshotVolume(VolumeSnapshot),
    /// The file is claimed. That nothing can be found out is written there too.
    ReadThinDelta(ThinDelta),
    /// Read-only.
    MountVolume(VolumeMount),
    /// Nothing is at the overlay's path; an overlay that a later step makes there is merged into its image again.
    ClaimOverlay {
        domain: DomainId,
        overlay: Overlay,
    },
    /// One point in time: from then on the guest writes to the overlays, which are claimed.
    TakeOverlays(OverlayRequest),
    Freeze {
        domain: DomainId,
        need: Need,
    },
    /// Writes the file anew if the guest's file systems were frozen as wished.
    IfFrozen {
        path: PathBuf,
        content: String,
    },
    /// Of a guest that runs.
    Suspend {
        domain: DomainId,
    },
    /// Asks the guest to shut itself down, and waits.
    ShutDown {
        domain: DomainId,
        within_secs: u32,
    },
    StartSuspended {
        domain: DomainId,
    },
    BeginBackup(BackupRequest),
    ServeImage(ImageService),
    /// Done when the view is ready for readers.
    StartView(ViewService),
    /// A directory that stays, for those that have to be in it.
    KeepDir {
        path: PathBuf,
    },
    /// A directory for files with guest data: nobody else can look into it.
    MakePrivateDir {
        path: PathBuf,
    },
    /// Reads a disk as of the point in time and writes it where it is to go; the files are claimed.
    CopyDisk(Box<CopyRequest>),
    /// Writes down the digests of what was copied and which files are a dump, and owes these files no more.
    KeepDump(DumpRecord),
    /// Carries out the undo of an earlier step now if that is possible, and leaves it to the end if not.
    Release(Undo),
    /// Carries out the undo of an earlier step now, and owes it no more.
    Early(Undo),
}

/// One disk to be copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CopyRequest {
    pub target: Target,
    pub feed: Feed,
    pub to: CopyTo,
    /// Bytes a second.
    pub pace: Option<NonZeroU64>,
    /// Ends the copy when less is free: the guest comes first.
    pub room: Option<Room>,
    /// What the digest stands for in the list of digests.
    pub digest_of: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyTo {
    /// The bytes that the guest sees, maybe compressed.
    Image {
        dir: PathBuf,
        name: String,
        compression: Compression,
    },
    Qcow2 {
        dir: PathBuf,
        name: String,
        clusters: Clusters,
    },
    /// A qcow2 image as it is, but for its dirty bitmaps.
    AsItIs {
        dir: PathBuf,
        name: String,
    },
    /// Into the input of a program.
    Program {
        words: Vec<String>,
        environment: Vec<(String, String)>,
        compression: Compression,
    },
}

impl CopyTo {
    /// The directory and the name of the file that is made. None: a program has it.
    pub fn file(&self) -> Option<(&Path, &str)> {
        match self {
            CopyTo::Image { dir, name, .. }
            | CopyTo::AsItIs { dir, name }
            | CopyTo::Qcow2 { dir, name, .. } => Some((dir, name)),
            CopyTo::Program { .. } => None,
        }
    }
}

/// The files of a dump, all in one directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpRecord {
    pub dir: PathBuf,
    pub names: Vec<String>,
    /// The one of these that gets the digests.
    pub digests: String,
    /// Where this is written down for cleanup. None: cleanup has nothing to do with these files.
    pub record: Option<PathBuf>,
    /// The one that is written last: where it is, everything is.
    pub manifest: Option<LastFile>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastFile {
    pub name: String,
    pub content: String,
    /// What it says instead if the guest's file systems were frozen as wished.
    pub if_frozen: String,
}

/// What a step owes. Every undo may be carried out any number of times, and when the step never happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Undo {
    RemoveFile {
        path: PathBuf,
    },
    /// Only when it is empty.
    RemoveDir {
        path: PathBuf,
    },
    /// Deletes the checkpoints of ours that the index does not name. After the generation is closed, never before:
    /// until then the older checkpoint is what the index counts from.
    SettleCheckpoints {
        domain: DomainId,
        index_dir: PathBuf,
    },
    /// Closes in the index what the daemon opened by this specification, then removes the specification.
    CloseGeneration {
        spec: PathBuf,
    },
    Thaw {
        domain: DomainId,
    },
    /// Of a guest that we suspended or started suspended.
    Resume {
        domain: DomainId,
    },
    /// Of a guest that we shut down.
    Start {
        domain: DomainId,
    },
    /// Merges what the guest wrote to the overlay into its image, lets the guest go on there, and removes the overlay
    /// once the guest is proven to use the image. Never before.
    MergeOverlay {
        domain: DomainId,
        overlay: Overlay,
    },
    UnmountVolume {
        point: PathBuf,
    },
    /// Only with the tag of its owner.
    RemoveVolume {
        volume: Volume,
        owner: Uuid,
    },
    /// Removes the snapshots with the tag of their owner that the index does not name. After the generation is closed: until
    /// then the older one is what the index describes.
    SettleVolumes {
        owner: Uuid,
        index_dir: PathBuf,
    },
    /// Lets go of the metadata of the pool that this file says are held.
    FreeThinMetadata {
        file: PathBuf,
    },
    /// Only the job that serves on this socket.
    AbortBackup {
        domain: DomainId,
        socket: PathBuf,
    },
    StopImage {
        socket: PathBuf,
    },
    /// Stops the daemon, unmounts, and removes the mount point at once: no view, no directory.
    StopView(ViewService),
}

/// What happens when the guest's file systems cannot be frozen?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    Required,
    /// Go on without, and say so.
    Wished,
}

/// One pull-mode backup job for all disks, at one point in time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackupRequest {
    pub domain: DomainId,
    pub socket: PathBuf,
    /// Made at the same point in time, on the disks that ask for it.
    pub checkpoint: Option<CheckpointName>,
    pub disks: Vec<BackupDisk>,
    /// Disks of the domain that are not part of the job.
    pub without: Vec<Target>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackupDisk {
    pub target: Target,
    /// Where QEMU saves what the guest is about to overwrite. libvirt makes the file and labels it for QEMU.
    pub scratch: PathBuf,
    pub tracking: DiskTracking,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskTracking {
    Untracked,
    /// Part of the new checkpoint.
    Checkpoint,
    /// Part of the new checkpoint, and what changed since an older one is exported as a dirty bitmap.
    Since(CheckpointName),
}

/// Where a guest writes while its image is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    pub target: Target,
    /// Always qcow2.
    pub overlay: PathBuf,
    pub base: PathBuf,
    pub base_format: Format,
}

/// Overlays for all disks, at one point in time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OverlayRequest {
    pub domain: DomainId,
    pub overlays: Vec<Overlay>,
    /// Where the memory goes, as of the same point in time. The guest runs on while it is saved.
    pub memory: Option<PathBuf>,
    /// Disks of the domain that get none.
    pub without: Vec<Target>,
}

/// `qemu-nbd --read-only` for one disk of a guest that is off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageService {
    pub target: Target,
    pub socket: PathBuf,
    /// Every layer with its format: nothing is left for QEMU to find out by itself.
    pub chain: Vec<ChainLayer>,
}

/// The `chunkfs` daemon of one VM. Its process is known by the path of its specification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewService {
    pub spec: PathBuf,
    pub mount_point: PathBuf,
    pub mount_source: String,
}

/// QEMU's name for the bitmap that a backup job exports for a disk. We ask for it, so we know it.
pub fn export_bitmap(target: &Target) -> String {
    format!("backup-{target}")
}

impl Step {
    /// What is owed from the moment this step is intended.
    pub fn undo(&self) -> Option<Undo> {
        Some(match self {
            Step::ClaimFile { path } => Undo::RemoveFile { path: path.clone() },
            Step::ClaimCheckpoint { domain, index_dir, .. } => {
                Undo::SettleCheckpoints { domain: domain.clone(), index_dir: index_dir.clone() }
            }
            Step::MakeDir { path } => Undo::RemoveDir { path: path.clone() },
            Step::WriteFile { path, .. } => Undo::RemoveFile { path: path.clone() },
            Step::WriteSpec { path, .. } => Undo::CloseGeneration { spec: path.clone() },
            Step::CopyFile { to, .. } | Step::CopyTpm { to, .. } => Undo::RemoveFile { path: to.clone() },
            Step::ClaimOverlay { domain, overlay } => {
                Undo::MergeOverlay { domain: domain.clone(), overlay: overlay.clone() }
            }
            Step::ClaimVolume { snapshot: VolumeSnapshot { stays: Stays::WhileNamed, .. } } => return None,
            Step::ClaimVolume { snapshot: VolumeSnapshot { snapshot, owner, .. } } => {
                Undo::RemoveVolume { volume: snapshot.clone(), owner: owner.clone() }
            }
            Step::ClaimKeptVolumes { owner, index_dir } => {
                Undo::SettleVolumes { owner: owner.clone(), index_dir: index_dir.clone() }
            }
            Step::ReadThinDelta(delta) => Undo::FreeThinMetadata { file: delta.to.clone() },
            Step::MountVolume(mount) => Undo::UnmountVolume { point: mount.point.clone() },
            Step::Freeze { domain, .. } => Undo::Thaw { domain: domain.clone() },
            Step::Suspend { domain } | Step::StartSuspended { domain } => {
                Undo::Resume { domain: domain.clone() }
            }
            Step::ShutDown { domain, .. } => Undo::Start { domain: domain.clone() },
            Step::BeginBackup(BackupRequest { domain, socket, .. }) => {
                Undo::AbortBackup { domain: domain.clone(), socket: socket.clone() }
            }
            Step::MakePrivateDir { path } => Undo::RemoveDir { path: path.clone() },
            Step::ServeImage(service) => Undo::StopImage { socket: service.socket.clone() },
            Step::StartView(service) => Undo::StopView(service.clone()),
            // What they make is claimed by an earlier step; so is, above, a snapshot that stays.
            Step::SnapshotVolume(_)
            | Step::CloneFile { .. }
            | Step::TakeOverlays(_)
            | Step::IfFrozen { .. }
            | Step::CopyDisk(_) => {
                return None;
            }
            Step::BringToDisk { .. } => return None,
            Step::Early(_) | Step::Release(_) | Step::KeepDump(_) | Step::KeepDir { .. } => return None,
        })
    }
}

/// May an undo be carried out while a newer one could not be?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// What failed elsewhere is no reason to leave this.
    GoesOn,
    /// It would destroy what the newer one still needs.
    WaitsForNewer,
}

impl Undo {
    /// A generation must not be closed under a daemon that may still show it, and a checkpoint not be deleted while
    /// the index may still come to name it or a job use it.
    pub fn patience(&self) -> Patience {
        match self {
            Undo::CloseGeneration { .. } | Undo::SettleCheckpoints { .. } | Undo::SettleVolumes { .. } => {
                Patience::WaitsForNewer
            }
            Undo::RemoveFile { .. }
            | Undo::RemoveDir { .. }
            | Undo::Thaw { .. }
            | Undo::Resume { .. }
            | Undo::Start { .. }
            | Undo::MergeOverlay { .. }
            | Undo::UnmountVolume { .. }
            | Undo::RemoveVolume { .. }
            | Undo::FreeThinMetadata { .. }
            | Undo::AbortBackup { .. }
            | Undo::StopImage { .. }
            | Undo::StopView(_) => Patience::GoesOn,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::ClaimFile { path } => write!(f, "claim the path {}", path.display()),
            Step::ClaimCheckpoint { name, .. } => write!(f, "claim the checkpoint name {name}"),
            Step::MakeDir { path } => write!(f, "make the directory {}", path.display()),
            Step::WriteFile { path, .. } => write!(f, "write {}", path.display()),
            Step::WriteSpec { path, spec } => {
                write!(
                    f,
                    "write the view specification of generation {} to {}",
                    spec.generation,
                    path.display()
                )
            }
            Step::Freeze { need: Need::Required, .. } => write!(f, "freeze the guest's file systems"),
            Step::Freeze { need: Need::Wished, .. } => {
                write!(f, "freeze the guest's file systems if possible")
            }
            Step::CopyFile { from, to } => write!(f, "copy {} to {}", from.display(), to.display()),
            Step::BringToDisk { paths } => {
                let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
                write!(
                    f,
                    "bring {} to the disk, so that the guest is suspended for a moment only",
                    paths.join(" and ")
                )
            }
            Step::CopyTpm { dir, name, to, .. } => {
                write!(f, "copy {} to {}", dir.join(name).display(), to.display())
            }
            Step::CloneFile { from, to } => {
                write!(f, "clone {} to {}, sharing its blocks", from.display(), to.display())
            }
            Step::ClaimOverlay { overlay, .. } => write!(f, "claim {}", overlay.overlay.display()),
            Step::ClaimVolume { snapshot } => write!(f, "claim the volume name {}", snapshot.snapshot),
            Step::SnapshotVolume(VolumeSnapshot { origin, snapshot, room: Some(room), .. }) => {
                write!(f, "snapshot {origin} as {snapshot}, with room for {room} of changes")
            }
            Step::SnapshotVolume(VolumeSnapshot { origin, snapshot, room: None, stays, .. }) => {
                write!(f, "snapshot {origin} as {snapshot}, in its thin pool")?;
                match stays {
                    Stays::UntilCleanup => Ok(()),
                    Stays::WhileNamed => write!(f, ", to be kept for the next backup"),
                }
            }
            Step::ClaimKeptVolumes { .. } => write!(f, "claim the snapshots that no index will name"),
            Step::ReadThinDelta(delta) => {
                write!(f, "ask {} in what {} differs from {}", delta.pool, delta.snapshot, delta.since)
            }
            Step::MountVolume(mount) => write!(
                f,
                "mount {} read-only at {} as {}",
                mount.snapshot,
                mount.point.display(),
                mount.file_system.name()
            ),
            Step::TakeOverlays(request) => request.fmt(f),
            Step::IfFrozen { path, .. } => {
                write!(f, "if the file systems were frozen, say so in {}", path.display())
            }
            Step::Suspend { .. } => write!(f, "suspend the guest"),
            Step::ShutDown { within_secs, .. } => {
                write!(f, "let the guest shut itself down, within {within_secs} s")
            }
            Step::StartSuspended { .. } => write!(f, "start the guest, suspended"),
            Step::BeginBackup(request) => request.fmt(f),
            Step::ServeImage(ImageService { target, socket, chain }) => {
                let formats: Vec<String> =
                    chain.iter().map(|l| format!("{} as {}", l.path.display(), l.format)).collect();
                write!(f, "serve {target} read-only on {}: {}", socket.display(), formats.join(" over "))
            }
            Step::StartView(service) => write!(f, "show the view at {}", service.mount_point.display()),
            Step::KeepDir { path } => write!(f, "make {} unless it is there", path.display()),
            Step::MakePrivateDir { path } => write!(f, "make {}", path.display()),
            Step::CopyDisk(copy) => copy.fmt(f),
            Step::KeepDump(record) => {
                write!(f, "keep what is in {}: {}", record.dir.display(), record.names.join(", "))
            }
            Step::Early(undo) | Step::Release(undo) => undo.fmt(f),
        }
    }
}

impl fmt::Display for CopyRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = &self.target;
        match &self.to {
            CopyTo::Image { dir, name, .. }
            | CopyTo::AsItIs { dir, name }
            | CopyTo::Qcow2 { dir, name, .. } => {
                write!(f, "copy {target} to {}", dir.join(name).display())
            }
            CopyTo::Program { words, .. } => write!(f, "copy {target} into {}", words.join(" ")),
        }
    }
}

impl fmt::Display for OverlayRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "let the guest write to overlays:")?;
        for (position, overlay) in self.overlays.iter().enumerate() {
            let comma = if position > 0 { "," } else { "" };
            write!(f, "{comma} {} to {}", overlay.target, overlay.overlay.display())?;
        }
        if let Some(memory) = &self.memory {
            write!(f, ", and save its memory to {}", memory.display())?;
        }
        Ok(())
    }
}

impl fmt::Display for BackupRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "begin a pull backup on {} of", self.socket.display())?;
        for (position, disk) in self.disks.iter().enumerate() {
            let comma = if position > 0 { "," } else { "" };
            match &disk.tracking {
                DiskTracking::Untracked => write!(f, "{comma} {}", disk.target)?,
                DiskTracking::Checkpoint => write!(f, "{comma} {} (tracked from now on)", disk.target)?,
                DiskTracking::Since(base) => write!(f, "{comma} {} (changes since {base})", disk.target)?,
            }
        }
        match &self.checkpoint {
            Some(name) => write!(f, ", with the checkpoint {name}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Undo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Undo::RemoveFile { path } => write!(f, "remove {}", path.display()),
            Undo::RemoveDir { path } => write!(f, "remove the directory {}", path.display()),
            Undo::SettleCheckpoints { domain, .. } => {
                write!(f, "delete the checkpoints of {domain} that are ours and that no index names")
            }
            Undo::CloseGeneration { spec } => write!(f, "close the generation of {}", spec.display()),
            Undo::Thaw { .. } => write!(f, "thaw the guest's file systems"),
            Undo::Resume { .. } => write!(f, "resume the guest"),
            Undo::Start { .. } => write!(f, "start the guest"),
            Undo::MergeOverlay { overlay, .. } => {
                write!(f, "merge {} into {}", overlay.overlay.display(), overlay.base.display())
            }
            Undo::UnmountVolume { point } => write!(f, "unmount {}", point.display()),
            Undo::RemoveVolume { volume, .. } => write!(f, "remove the snapshot {volume}"),
            Undo::SettleVolumes { .. } => {
                write!(f, "remove the snapshots of volumes that are ours and that no index names")
            }
            Undo::FreeThinMetadata { .. } => write!(f, "let go of the metadata of the thin pool"),
            Undo::AbortBackup { domain, socket } => {
                write!(f, "end the backup job of {domain} on {}", socket.display())
            }
            Undo::StopImage { socket } => write!(f, "stop serving on {}", socket.display()),
            Undo::StopView(service) => write!(f, "stop the view at {}", service.mount_point.display()),
        }
    }
}
