//! Method external: the guest goes on in overlays beside its images, which stand still meanwhile and are read.
//! Cleanup merges each overlay into its image again, and removes it only once the guest is proven to use the image.

use std::path::PathBuf;

use crate::core::domain::{Access, Format, Sharing, Source};
use crate::core::facts::{Chain, GuestState};
use crate::core::names::{Target, overlay_of};
use crate::core::step::{Overlay, OverlayRequest, Step, Undo};

use crate::core::viewspec::{Feed, Images, ShownDisk};

use super::{Case, PointInTime, Purpose, Wanted, candidates, hold, offline};

pub(super) fn unfit(case: &Case<'_>) -> Option<String> {
    let off = case.facts.guest.state == GuestState::ShutOff;
    off.then(|| "the guest is shut off: method external needs it to run".to_owned())
}

/// Why this disk cannot be snapshotted so.
pub(super) fn obstacle(case: &Case<'_>, wanted: &Wanted<'_>) -> Option<String> {
    let disk = wanted.disk;
    let Source::File(_) = &disk.source else {
        return Some(format!("{} is no image file, beside which an overlay could be", disk.source));
    };
    if disk.sharing == Sharing::Shareable {
        return Some("it is shareable: writes of other guests break the point in time".to_owned());
    }
    if let Chain::Known(layers) = &wanted.facts.chain
        && layers.first().is_some_and(|layer| matches!(layer.format, Format::Other(_)))
    {
        return Some(format!("the format {} is not merged back into by every QEMU", disk.format));
    }
    offline::unreadable(case, wanted)
}

pub(super) fn point(case: &Case<'_>, wanted: &[Wanted<'_>]) -> PointInTime {
    // Where the guest cannot write, there is nothing to keep apart; nor could it always be merged, for others may have the image, too.
    let written = wanted.iter().filter(|wanted| wanted.disk.access == Access::ReadWrite);
    let overlays: Vec<_> = written.map(|disk| overlay(case, disk)).collect();
    let taken: Vec<_> = overlays.iter().map(|overlay| &overlay.target).collect();
    let without = case.domain.disks.iter().map(|disk| disk.target.clone());
    let without = without.filter(|target| !taken.contains(&target)).collect();

    let domain = case.domain.id.clone();
    let (mut disks, services) = offline::shown(case, wanted, offline::Read::AsTheyAre);
    let claim = |overlay: &Overlay| Step::ClaimOverlay { domain: domain.clone(), overlay: overlay.clone() };
    let mut claims: Vec<_> = overlays.iter().map(claim).collect();
    claims.extend(services.iter().map(|service| Step::ClaimFile { path: service.socket.clone() }));
    let memory = hold::saves_memory(case).then(|| case.names.saved_state());
    claims.extend(memory.iter().map(|path| Step::ClaimFile { path: path.clone() }));
    disks.extend(memory.iter().map(|path| shown_memory(case, path.clone())));
    let nothing_is_written = overlays.is_empty() && memory.is_none();
    let request = OverlayRequest { domain: domain.clone(), overlays: overlays.clone(), memory, without };
    let mut release = offline::stops(&services);
    for overlay in &overlays {
        let merge = Undo::MergeOverlay { domain: domain.clone(), overlay: overlay.clone() };
        release.entry(overlay.target.clone()).or_default().push(merge);
    }
    let mut take = match nothing_is_written {
        true => Vec::new(),
        false => hold::atomically(case, vec![Step::TakeOverlays(request)]),
    };
    take.extend(services.into_iter().map(Step::ServeImage));
    let mut notes = hold::notes(case);
    if case.purpose == Purpose::View {
        notes.push("the guest writes to overlays beside its images until cleanup".to_owned());
    }
    PointInTime { disks, notes, room: None, checkpoint: None, claims, take, release }
}

/// The memory is chunked like a disk: little of it changes from day to day.
fn shown_memory(case: &Case<'_>, path: PathBuf) -> ShownDisk {
    ShownDisk {
        snapshot: None,
        name: case.names.shown_state(),
        target: Target::new("state").expect("a plain word"),
        capacity: case.domain.memory,
        feed: Feed::Image { path },
        candidates: candidates::by_digest(case),
        base: None,
        checkpoint_after: None,
        thin_after: None,
        images: Images::AsFound(Vec::new()),
    }
}

fn overlay(case: &Case<'_>, wanted: &Wanted<'_>) -> Overlay {
    let Source::File(base) = &wanted.disk.source else { unreachable!("obstacle() refused it") };
    Overlay {
        target: wanted.disk.target.clone(),
        overlay: overlay_of(base, case.job),
        base: base.clone(),
        base_format: wanted.disk.format.clone(),
    }
}
