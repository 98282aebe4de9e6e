//! Method lvm: snapshots of the logical volumes that the disks are, or that their images are on, taken while the guest is
//! suspended for that moment, unless one is all there is to take; the snapshots are read. Cleanup removes them, or keeps that of a thin volume: in what the next one
//! differs from it, the pool can tell.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::core::domain::{Format, HostCache, Sharing, Source};
use crate::core::facts::{Chain, local_path};
use crate::core::names::Target;
use crate::core::options::{Snapshots, ThinSnapshots};
use crate::core::step::{Step, Undo};
use crate::core::viewspec::{Candidates, ShownDisk};
use crate::core::volume::{
    Behind, Delta, Place, Stays, ThinDelta, Volume, VolumeFacts, VolumeKind, VolumeMount, VolumeSnapshot,
};

use super::{Case, PointInTime, Purpose, Wanted, candidates, hold, offline};

pub(super) fn unfit(case: &Case<'_>) -> Option<String> {
    (case.options.snapshots == Snapshots::Forbidden).then(|| "--no-snapshot forbids it".to_owned())
}

pub(super) fn is_on_a_volume(wanted: &Wanted<'_>) -> bool {
    matches!(wanted.facts.volume, Behind::Volume(_))
}

/// Why no snapshot can be made below this disk.
pub(super) fn obstacle(case: &Case<'_>, wanted: &Wanted<'_>) -> Option<String> {
    let disk = wanted.disk;
    let (Source::File(_) | Source::Block(_)) = &disk.source else {
        return Some(format!("{} is neither a logical volume nor a file on one", disk.source));
    };
    if disk.sharing == Sharing::Shareable {
        return Some("it is shareable: writes of other guests break the point in time".to_owned());
    }
    match &wanted.facts.volume {
        Behind::Nothing { why } => Some(why.clone()),
        Behind::Volume(volume) => {
            volume.obstacle(case.options.snapsize).or_else(|| offline::unreadable(case, wanted))
        }
    }
}

/// A volume with all disks that are on it: they share its snapshot.
struct Taken<'a> {
    snapshot: VolumeSnapshot,
    mount: Option<VolumeMount>,
    users: Vec<&'a Target>,
}

pub(super) fn point(case: &Case<'_>, wanted: &[Wanted<'_>]) -> PointInTime {
    let taken = volumes(case, wanted);
    let images = wanted.iter().map(|disk| (disk.disk.target.clone(), image(&taken, disk))).collect();
    let (mut disks, services) = offline::shown(case, wanted, offline::Read::Instead(&images));
    let (mut deltas, mut notes) = (Vec::new(), hold::notes(case));
    for (shown, disk) in disks.iter_mut().zip(wanted) {
        let snapshot = &taken[&volume_of(disk).volume].snapshot.snapshot;
        shown.snapshot = Some(snapshot.device());
        match is_kept(case, disk) {
            Kept::No => {}
            Kept::Cannot { why } => {
                notes.push(format!("{}: --keep-thin keeps no snapshot: {why}", shown.target));
            }
            Kept::Yes { pool, older } => deltas.extend(keep(case, disk, shown, (pool, older, snapshot))),
        }
    }

    let mut claims: Vec<_> =
        taken.values().map(|taken| Step::ClaimVolume { snapshot: taken.snapshot.clone() }).collect();
    claims.extend(deltas.iter().map(|delta| Step::ClaimFile { path: delta.to.clone() }));
    claims.extend(services.iter().map(|service| Step::ClaimFile { path: service.socket.clone() }));
    let snapshots = taken.values().map(|taken| Step::SnapshotVolume(taken.snapshot.clone())).collect();
    let originals = wanted.iter().filter_map(|disk| local_path(&disk.disk.source).cloned()).collect();
    // What QEMU has is brought to the disk by suspending it, and what the file system has by LVM.
    let mut take = vec![Step::BringToDisk { paths: originals }];
    take.extend(match is_one_moment(&taken, wanted) {
        true => hold::unsuspended(case, snapshots),
        false => hold::suspended(case, snapshots),
    });
    take.extend(deltas.into_iter().map(Step::ReadThinDelta));
    let mounts: Vec<_> = taken.values().filter_map(|taken| taken.mount.clone()).collect();
    if !mounts.is_empty() {
        take.push(Step::MakePrivateDir { path: case.names.volumes_dir() });
    }
    for mount in mounts {
        take.push(Step::MakePrivateDir { path: mount.point.clone() });
        take.push(Step::MountVolume(mount));
    }
    let mut release = offline::stops(&services);
    for taken in taken.values() {
        // Once the last of those that need it has been read.
        let Some(last) = taken.users.last() else { continue };
        let undos = release.entry((*last).clone()).or_default();
        undos.extend(taken.mount.iter().map(|mount| Undo::UnmountVolume { point: mount.point.clone() }));
        let (volume, owner) = (taken.snapshot.snapshot.clone(), taken.snapshot.owner.clone());
        undos.push(Undo::RemoveVolume { volume, owner });
    }
    take.extend(services.into_iter().map(Step::ServeImage));
    PointInTime { disks, notes, room: None, checkpoint: None, claims, take, release }
}

/// LVM holds all writes to a volume, and freezes its file system, for as long as it takes to make the snapshot. So that is
/// enough where it is the only one, and has all that the guest has written: QEMU keeps nothing of a raw image to itself, but the
/// host's page cache of a volume without a file system goes to the disk in any order.
fn is_one_moment(taken: &BTreeMap<Volume, Taken<'_>>, wanted: &[Wanted<'_>]) -> bool {
    let holds_all = |disk: &Wanted<'_>| match volume_of(disk).place {
        Place::Within { .. } => true,
        Place::Whole => disk.disk.cached == HostCache::PassedBy,
    };
    taken.len() == 1 && wanted.iter().all(|disk| is_plain(disk) && holds_all(disk))
}

/// A raw image, with nothing below it.
fn is_plain(disk: &Wanted<'_>) -> bool {
    matches!(&disk.facts.chain, Chain::Known(layers) if layers.len() == 1 && layers[0].format == Format::Raw)
}

/// Does the snapshot of a disk's volume stay for the next backup?
enum Kept<'a> {
    /// Nobody asked for it.
    No,
    Cannot {
        why: String,
    },
    /// In this pool, as these older ones have.
    Yes {
        pool: &'a Volume,
        older: &'a [Volume],
    },
}

fn is_kept<'a>(case: &Case<'_>, disk: &Wanted<'a>) -> Kept<'a> {
    let asked = case.options.thin == ThinSnapshots::Kept && case.purpose == Purpose::View;
    if !asked || !super::wants_checkpoints(case) {
        return Kept::No;
    }
    let facts = volume_of(disk);
    let cannot = |why: String| Kept::Cannot { why };
    let VolumeKind::Thin { pool, kept, delta, .. } = &facts.kind else {
        return cannot(format!("{} is not thin", facts.volume));
    };
    match (&facts.place, delta) {
        (Place::Within { .. }, _) => {
            cannot(format!("its image is a file, and it would be told what changed in {}", facts.volume))
        }
        (_, Delta::Impossible { why }) => cannot(why.clone()),
        (Place::Whole, _) if is_plain(disk) => Kept::Yes { pool, older: kept },
        _ => cannot("only a raw image has its content where its volume has it".to_owned()),
    }
}

/// The index is to name the snapshot. None: there is none to compare it with.
fn keep(
    case: &Case<'_>,
    disk: &Wanted<'_>,
    shown: &mut ShownDisk,
    (pool, older, snapshot): (&Volume, &[Volume], &Volume),
) -> Option<ThinDelta> {
    shown.thin_after = Some(snapshot.clone());
    let to = case.names.thin_changes(&shown.target);
    shown.candidates = candidates::by_thin_delta(case, disk, older, to.clone());
    match &shown.candidates {
        Candidates::ThinDelta { since, .. } => {
            let (pool, since, snapshot) = (pool.clone(), since.clone(), snapshot.clone());
            Some(ThinDelta { pool, since, snapshot, to })
        }
        _ => None,
    }
}

fn volume_of<'a>(disk: &Wanted<'a>) -> &'a VolumeFacts {
    match &disk.facts.volume {
        Behind::Volume(volume) => volume,
        Behind::Nothing { .. } => unreachable!("obstacle() refused it"),
    }
}

fn volumes<'a>(case: &Case<'_>, wanted: &[Wanted<'a>]) -> BTreeMap<Volume, Taken<'a>> {
    let mut taken: BTreeMap<Volume, Taken<'a>> = BTreeMap::new();
    for disk in wanted {
        let facts = volume_of(disk);
        let snapshot = facts.snapshot(case.facts.epoch, &case.domain.id.uuid, case.options.snapsize);
        let mut snapshot = snapshot.expect("obstacle() looked at the name");
        if let Kept::Yes { .. } = is_kept(case, disk) {
            snapshot.stays = Stays::WhileNamed;
        }
        let mount = match &facts.place {
            Place::Whole => None,
            Place::Within { file_system, .. } => Some(VolumeMount {
                snapshot: snapshot.snapshot.clone(),
                file_system: *file_system,
                point: case.names.volume_point(&snapshot.snapshot),
            }),
        };
        let entry = taken.entry(facts.volume.clone());
        entry.or_insert(Taken { snapshot, mount, users: Vec::new() }).users.push(&disk.disk.target);
    }
    taken
}

/// Where the disk's own image is read; those below it are nobody's to write to.
fn image(taken: &BTreeMap<Volume, Taken<'_>>, disk: &Wanted<'_>) -> PathBuf {
    let facts = volume_of(disk);
    let taken = &taken[&facts.volume];
    match (&facts.place, &taken.mount) {
        (Place::Within { path, .. }, Some(mount)) => mount.point.join(path),
        _ => taken.snapshot.snapshot.device(),
    }
}
