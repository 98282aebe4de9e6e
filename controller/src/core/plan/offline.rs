//! Method offline: the images of a guest that does not write to them: raw ones are read directly, others through `qemu-nbd`.
//! The guest is shut off already, or is suspended or shut down for as long as the work takes. Nothing keeps it from being
//! started or resumed by others: then the images change and the view's reads fail.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::core::domain::{Device, Format, Lifetime, Sharing};
use crate::core::facts::{Chain, ChainLayer, GuestState, Storage};
use crate::core::names::Target;
use crate::core::options::{Pause, Running, Tracking};
use crate::core::step::{ImageService, Step, Undo};
use crate::core::viewspec::{Candidates, Feed, Images, ShownDisk};

use super::{Case, PointInTime, Wanted, candidates, hold};

/// What stands in for a disk's images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read<'a> {
    /// The guest was off when they were looked at.
    AsSurveyed,
    /// The guest wrote until the point in time.
    AsTheyAre,
    /// These in the place of the uppermost; those below are nobody's to write to.
    Instead(&'a BTreeMap<Target, PathBuf>),
}

pub(super) fn unfit(case: &Case<'_>) -> Option<String> {
    if case.facts.guest.state == GuestState::ShutOff || case.options.pause == Pause::AsLongAsItTakes {
        return None;
    }
    Some("the guest is not shut off: method offline needs it to be, or to be suspended until cleanup with --offline".to_owned())
}

/// Why this disk cannot be read while its guest does not write.
pub(super) fn obstacle(case: &Case<'_>, wanted: &Wanted<'_>) -> Option<String> {
    let target = &wanted.disk.target;
    if wanted.disk.sharing == Sharing::Shareable {
        return Some(format!(
            "it is shareable: other guests may write to it: leave it out with --exclude={target}"
        ));
    }
    match &wanted.facts.chain {
        Chain::Known(layers) if layers.iter().any(|layer| layer.storage == Storage::Device) => Some(format!(
            "a block device does not tell when a guest that is started writes to it: start the guest, or leave the \
             disk out with --exclude={target}"
        )),
        _ => unreadable(case, wanted),
    }
}

/// Why the images cannot be read without the guest's QEMU, or not as the user wants it.
pub(super) fn unreadable(case: &Case<'_>, wanted: &Wanted<'_>) -> Option<String> {
    let target = &wanted.disk.target;
    let off = case.facts.guest.state == GuestState::ShutOff;
    match &wanted.facts.chain {
        _ if case.options.tracking == Tracking::Bitmap && !off => {
            Some("changes are tracked by bitmaps with method pull only".to_owned())
        }
        _ if wanted.disk.device == Device::Lun => Some("a LUN takes SCSI commands past QEMU".to_owned()),
        _ if wanted.disk.lifetime == Lifetime::Transient && !off => {
            Some("it is transient: what the guest writes is not in its image".to_owned())
        }
        Chain::Known(layers) if !layers.is_empty() => None,
        Chain::Known(_) => Some(format!("{} has no image", wanted.disk.source)),
        Chain::Unknown { why } if off => {
            Some(format!("{why}: start the guest, or leave it out with --exclude={target}"))
        }
        Chain::Unknown { why } => Some(why.clone()),
    }
}

pub(super) fn point(case: &Case<'_>, wanted: &[Wanted<'_>]) -> PointInTime {
    let hold = hold::for_long(case);
    let off = case.facts.guest.state == GuestState::ShutOff;
    let (disks, services) = shown(case, wanted, if off { Read::AsSurveyed } else { Read::AsTheyAre });
    let claims = services.iter().map(|s| Step::ClaimFile { path: s.socket.clone() }).collect();
    let note = match (off, case.options.running) {
        (true, _) => "a guest that is started meanwhile makes all further reads fail",
        (false, Running::ShutDown { .. }) => "the guest is shut down for as long as this takes",
        (false, Running::Stays) => "the guest is suspended for as long as this takes",
    };
    let take = hold.into_iter().chain(services.into_iter().map(Step::ServeImage)).collect();
    let notes = [note.to_owned()].into_iter().chain(hold::notes(case)).collect();
    PointInTime { disks, notes, room: None, checkpoint: None, claims, take, release: BTreeMap::new() }
}

/// For each disk that has one, what ends its server.
pub(super) fn stops(services: &[ImageService]) -> BTreeMap<Target, Vec<Undo>> {
    let stop = |service: &ImageService| {
        (service.target.clone(), vec![Undo::StopImage { socket: service.socket.clone() }])
    };
    services.iter().map(stop).collect()
}

/// The disks with where they are read, and the servers that this needs.
pub(super) fn shown(
    case: &Case<'_>,
    wanted: &[Wanted<'_>],
    read: Read<'_>,
) -> (Vec<ShownDisk>, Vec<ImageService>) {
    let (mut shown, mut services) = (Vec::new(), Vec::new());
    for disk in wanted {
        let Chain::Known(chain) = &disk.facts.chain else { unreachable!("obstacle() refused it") };
        let mut chain = chain.clone();
        let target = disk.disk.target.clone();
        if let Read::Instead(images) = read {
            chain[0].path = images[&target].clone();
        }
        let feed = feed(case, disk, &chain);
        if let Feed::Nbd { socket, .. } = &feed {
            let socket = socket.clone();
            services.push(ImageService { target: target.clone(), socket, chain: chain.clone() });
        }
        shown.push(ShownDisk {
            snapshot: None,
            name: case.names.shown_disk(&target),
            feed,
            capacity: disk.facts.capacity,
            candidates: candidates(case, disk, read),
            // A bitmap that counts from an earlier generation goes on to hold all that changes after this one.
            checkpoint_after: candidates::usable_base(case, disk)
                .ok()
                .filter(|_| super::wants_checkpoints(case)),
            thin_after: None,
            images: match read {
                Read::AsSurveyed => Images::AsSurveyed(chain),
                Read::AsTheyAre | Read::Instead(_) => Images::AsFound(chain),
            },
            base: super::base(case, &target),
            target,
        });
    }
    (shown, services)
}

fn candidates(case: &Case<'_>, disk: &Wanted<'_>, read: Read<'_>) -> Candidates {
    match read {
        Read::AsSurveyed => candidates::by_fingerprint(case, disk),
        Read::AsTheyAre | Read::Instead(_) => candidates::by_digest(case),
    }
}

fn feed(case: &Case<'_>, disk: &Wanted<'_>, chain: &[ChainLayer]) -> Feed {
    match chain {
        [only] if only.format == Format::Raw => Feed::Image { path: only.path.clone() },
        _ => Feed::Nbd { socket: case.names.image_socket(&disk.disk.target), export: String::new() },
    }
}
