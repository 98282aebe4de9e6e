//! Method pull: one libvirt backup job serves all disks of a running guest as of one point in time.
//! The definition is not touched and the guest is not paused.

use std::collections::BTreeMap;

use crate::core::domain::{Device, Lifetime, Sharing, Source};
use crate::core::facts::{GuestState, PullSupport};
use crate::core::names::CheckpointName;
use crate::core::options::Tracking;
use crate::core::step::{BackupDisk, BackupRequest, DiskTracking, Step};
use crate::core::units::Bytes;
use crate::core::viewspec::{Candidates, Feed, Images, Room, ShownDisk};

use super::{Case, PointInTime, Wanted, candidates, hold};

/// With less room for scratch files a backup is not begun.
const LEAST_SCRATCH: Bytes = Bytes(8 << 20);
/// When less than this is left, the backup is ended, and the view with it: half of what there was, or this.
const RESERVE: Bytes = Bytes(1 << 30);

pub(super) fn unfit(case: &Case<'_>) -> Option<String> {
    match (&case.facts.guest.state, &case.facts.guest.pull) {
        (GuestState::ShutOff, _) => Some("the guest is shut off: method pull needs it to run".to_owned()),
        (_, PullSupport::No { why }) => Some(why.clone()),
        _ if case.facts.scratch_free < LEAST_SCRATCH => Some(format!(
            "{} are free for scratch files in {}: at least {LEAST_SCRATCH} are needed",
            case.facts.scratch_free,
            case.names.scratch_dir().display()
        )),
        _ => None,
    }
}

/// Why this disk cannot be part of a pull backup.
pub(super) fn obstacle(case: &Case<'_>, wanted: &Wanted<'_>) -> Option<String> {
    let disk = wanted.disk;
    let exclude = format!("leave it out with --exclude={}", disk.target);
    let why = match &disk.source {
        Source::VhostUser { .. } | Source::Directory(_) | Source::Unknown { .. } => {
            format!("{} is not within reach of QEMU's backup: {exclude}", disk.source)
        }
        _ if disk.device == Device::Lun => {
            format!(
                "a LUN takes SCSI commands past QEMU, which then cannot keep the point in time: {exclude}"
            )
        }
        _ if disk.sharing == Sharing::Shareable => {
            format!("it is shareable: writes of other guests break the point in time: {exclude}")
        }
        _ if disk.lifetime == Lifetime::Transient => {
            format!("it is transient: libvirt cannot back up its temporary layer: {exclude}")
        }
        _ if case.options.tracking == Tracking::Bitmap => candidates::no_bitmap(case, wanted)?.to_owned(),
        _ => return None,
    };
    Some(why)
}

pub(super) fn point(case: &Case<'_>, wanted: &[Wanted<'_>]) -> PointInTime {
    let generation = super::next_generation(case);
    let (names, domain) = (case.names, &case.domain.id);
    let tracked = |w: &Wanted<'_>| super::wants_checkpoints(case) && candidates::no_bitmap(case, w).is_none();
    let checkpoint =
        wanted.iter().any(tracked).then(|| CheckpointName::new(&domain.uuid, generation, case.job));

    let (mut shown, mut jobs) = (Vec::new(), Vec::new());
    for disk in wanted {
        let checkpoint = checkpoint.clone().filter(|_| tracked(disk));
        let candidates = disk_candidates(case, disk, checkpoint.as_ref());
        let target = disk.disk.target.clone();
        jobs.push(BackupDisk {
            target: target.clone(),
            scratch: names.scratch_file(&target),
            tracking: tracking(&candidates, checkpoint.as_ref()),
        });
        shown.push(ShownDisk {
            snapshot: None,
            name: names.shown_disk(&target),
            feed: Feed::Nbd { socket: names.backup_socket(), export: target.to_string() },
            capacity: disk.facts.capacity,
            candidates,
            checkpoint_after: checkpoint,
            thin_after: None,
            images: Images::AsSurveyed(Vec::new()),
            base: super::base(case, &target),
            target,
        });
    }

    let mut claims = vec![Step::MakeDir { path: names.scratch_dir() }];
    claims.extend(jobs.iter().map(|disk| Step::ClaimFile { path: disk.scratch.clone() }));
    claims.push(Step::ClaimFile { path: names.backup_socket() });

    let taken: Vec<_> = jobs.iter().map(|disk| &disk.target).collect();
    let without = case.domain.disks.iter().map(|d| &d.target).filter(|target| !taken.contains(target));
    let request = BackupRequest {
        domain: domain.clone(),
        socket: names.backup_socket(),
        checkpoint: checkpoint.clone(),
        without: without.cloned().collect(),
        disks: jobs,
    };
    let take = hold::atomically(case, vec![Step::BeginBackup(request)]);
    PointInTime {
        disks: shown,
        notes: notes(case, wanted),
        room: room(case),
        checkpoint,
        claims,
        take,
        release: BTreeMap::new(),
    }
}

/// A scratch file that cannot grow makes QEMU fail writes of the guest: the backup ends before that.
fn room(case: &Case<'_>) -> Option<Room> {
    let mut then = case.options.own_command.clone();
    let domain = &case.domain.id;
    let socket = case.names.backup_socket().to_string_lossy().into_owned();
    then.extend(["end-backup".to_owned(), domain.uuid.to_string(), socket]);
    let least_free = Bytes(case.facts.scratch_free.0 / 2).min(RESERVE);
    Some(Room { dir: case.names.scratch_dir(), least_free, then })
}

fn disk_candidates(case: &Case<'_>, disk: &Wanted<'_>, checkpoint: Option<&CheckpointName>) -> Candidates {
    match (candidates::by_bitmap(case, disk), checkpoint) {
        // Once a disk takes no part in new checkpoints, the reason for it is worth more than that none is left.
        (Candidates::All { why }, None) => {
            let reason = candidates::no_bitmap(case, disk).map_or(why, str::to_owned);
            Candidates::All { why: reason }
        }
        (Candidates::DirtyBitmap { .. }, None) => {
            let reason = candidates::no_bitmap(case, disk).unwrap_or("its changes are no longer tracked");
            Candidates::All { why: reason.to_owned() }
        }
        (candidates, _) => candidates,
    }
}

fn tracking(candidates: &Candidates, checkpoint: Option<&CheckpointName>) -> DiskTracking {
    match (candidates, checkpoint) {
        (_, None) => DiskTracking::Untracked,
        (Candidates::DirtyBitmap { since, .. }, Some(_)) => DiskTracking::Since(since.clone()),
        (_, Some(_)) => DiskTracking::Checkpoint,
    }
}

fn notes(case: &Case<'_>, wanted: &[Wanted<'_>]) -> Vec<String> {
    let mut notes = Vec::new();
    let worst = wanted.iter().fold(Bytes::ZERO, |sum, disk| sum.plus(disk.facts.capacity));
    let free = case.facts.scratch_free;
    if free < worst {
        notes.push(format!(
            "{free} are free for scratch files and a guest that overwrites everything needs {worst}: if they run \
             short, the view ends, not the guest"
        ));
    }
    notes.extend(hold::notes(case));
    notes
}
