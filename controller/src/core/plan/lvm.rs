//! Method lvm: snapshots of the logical volumes that the disks are, or that their images are on, taken while the guest is
//! suspended for that moment; the snapshots are read. Cleanup removes them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::core::domain::{Sharing, Source};
use crate::core::facts::local_path;
use crate::core::names::Target;
use crate::core::options::Snapshots;
use crate::core::step::{Step, Undo};
use crate::core::volume::{Behind, Place, Volume, VolumeFacts, VolumeMount, VolumeSnapshot};

use super::{Case, PointInTime, Wanted, hold, offline};

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
    for (shown, disk) in disks.iter_mut().zip(wanted) {
        shown.snapshot = Some(taken[&volume_of(disk).volume].snapshot.snapshot.device());
    }

    let mut claims: Vec<_> =
        taken.values().map(|taken| Step::ClaimVolume { snapshot: taken.snapshot.clone() }).collect();
    claims.extend(services.iter().map(|service| Step::ClaimFile { path: service.socket.clone() }));
    let snapshots = taken.values().map(|taken| Step::SnapshotVolume(taken.snapshot.clone())).collect();
    let originals = wanted.iter().filter_map(|disk| local_path(&disk.disk.source).cloned()).collect();
    // QEMU brings what it has to the disk before it is suspended, and LVM what the file system has.
    let mut take = vec![Step::BringToDisk { paths: originals }];
    take.extend(hold::suspended(case, snapshots));
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
    PointInTime { disks, notes: hold::notes(case), room: None, checkpoint: None, claims, take, release }
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
        let snapshot = snapshot.expect("obstacle() looked at the name");
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
