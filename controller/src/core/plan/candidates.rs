//! Which chunks of a disk may have changed, and on whose word.
//! A tracker is believed only when what it counts from is proven to be what the index describes.

use std::path::PathBuf;

use crate::core::facts::{BitmapState, BitmapSupport, Chain, Definition, IndexedDisk, Trust};
use crate::core::names::CheckpointName;
use crate::core::options::Tracking;
use crate::core::point::ImagesMark;
use crate::core::step::export_bitmap;
use crate::core::units::Generation;
use crate::core::viewspec::Candidates;
use crate::core::volume::Volume;

use super::{Case, Purpose, Wanted};

/// `Some` when the checkpoint of that name is ours for this domain.
pub(super) fn ours(case: &Case<'_>, name: &str) -> Option<(CheckpointName, Generation)> {
    CheckpointName::recognise(&case.domain.id.uuid, name)
}

/// A wish of the user that this disk's index cannot meet.
pub(super) fn obstacle(case: &Case<'_>, wanted: &Wanted<'_>) -> Option<String> {
    let indexed = case.facts.index.get(&wanted.disk.target)?;
    let (was, asked) = (indexed.chunk_size, case.options.chunk_size);
    (was != asked).then(|| {
        format!(
            "it has been backed up in chunks of {} bytes, and {} are asked for: keep --blocksize={0}, or start over \
             with `virt-backup forget {}`",
            was.bytes(),
            asked.bytes(),
            case.domain.id.name
        )
    })
}

/// For a disk of a running guest.
pub(super) fn by_bitmap(case: &Case<'_>, wanted: &Wanted<'_>) -> Candidates {
    if case.purpose != Purpose::View {
        return Candidates::Stamped;
    }
    match case.options.tracking {
        Tracking::None => return Candidates::Stamped,
        Tracking::Digest => return all("asked for with --track=digest"),
        Tracking::Auto | Tracking::Bitmap => {}
    }
    match usable_base(case, wanted) {
        Ok(since) => {
            let context = format!("qemu:dirty-bitmap:{}", export_bitmap(&wanted.disk.target));
            Candidates::DirtyBitmap { context, since }
        }
        Err(why) => Candidates::All { why },
    }
}

/// For a disk of a guest that is off.
pub(super) fn by_fingerprint(case: &Case<'_>, wanted: &Wanted<'_>) -> Candidates {
    match case.options.tracking {
        Tracking::None => return Candidates::Stamped,
        Tracking::Digest => return all("asked for with --track=digest"),
        Tracking::Auto | Tracking::Bitmap => {}
    }
    let indexed = match trusted_index(case, wanted) {
        Ok(indexed) => indexed,
        Err(why) => return Candidates::All { why },
    };
    let Chain::Known(layers) = &wanted.facts.chain else { return all("its images are not known") };
    match (&indexed.images, ImagesMark::of(layers)) {
        (None, _) => all("the guest ran at its last backup, or its image was written to just before"),
        (_, None) => all("its image was written to just now, so its times prove nothing yet"),
        (Some(then), Some(now)) if *then == now => Candidates::PendingOnly,
        (Some(_), Some(_)) => all("its image was touched since the last backup"),
    }
}

/// For a disk whose images have been written to until the point in time, and nothing says where.
pub(super) fn by_digest(case: &Case<'_>) -> Candidates {
    match case.options.tracking {
        Tracking::None => Candidates::Stamped,
        Tracking::Digest => all("asked for with --track=digest"),
        Tracking::Auto | Tracking::Bitmap => all("only method pull knows what a running guest has written"),
    }
}

/// For a disk that is a thin volume, of which a snapshot is kept from now on. `file`: where the difference will be written.
pub(super) fn by_thin_delta(
    case: &Case<'_>,
    wanted: &Wanted<'_>,
    kept: &[Volume],
    file: PathBuf,
) -> Candidates {
    let since = trusted_index(case, wanted).and_then(|indexed| {
        let since = indexed.thin.as_ref().ok_or("its last backup kept no snapshot")?;
        let there = kept.contains(since);
        there
            .then(|| since.clone())
            .ok_or_else(|| format!("the kept snapshot {since} is gone, or can be written to"))
    });
    match since {
        Ok(since) => Candidates::ThinDelta { file, since },
        Err(why) => Candidates::All { why },
    }
}

/// The checkpoint that an index names and that still counts: what stays named when no new one is made.
pub(super) fn usable_base(case: &Case<'_>, wanted: &Wanted<'_>) -> Result<CheckpointName, String> {
    let indexed = trusted_index(case, wanted)?;
    let base = indexed.checkpoint.as_ref().ok_or("its last backup left no checkpoint")?;
    let (base, _) = ours(case, base.as_str()).ok_or("the index names a checkpoint of another domain")?;
    let checkpoint = case.facts.checkpoints.iter().find(|c| c.name == base.as_str());
    let checkpoint = checkpoint.ok_or_else(|| format!("the checkpoint {base} is gone"))?;
    match checkpoint.bitmaps.get(&wanted.disk.target) {
        Some(BitmapState::Usable) => Ok(base),
        Some(BitmapState::Inconsistent) => {
            Err(format!("the bitmap of {base} is inconsistent: QEMU did not close it"))
        }
        Some(BitmapState::Missing) => Err(format!("the bitmap of {base} is not in the image")),
        None => Err(format!("the checkpoint {base} does not cover it")),
    }
}

fn trusted_index<'a>(case: &Case<'a>, wanted: &Wanted<'_>) -> Result<&'a IndexedDisk, String> {
    let indexed = case.facts.index.get(&wanted.disk.target).ok_or("it has not been backed up before")?;
    if indexed.trust == Trust::CompareAll {
        return Err("a sample of the last backup did not match".to_owned());
    }
    if indexed.capacity != wanted.facts.capacity {
        return Err(format!("its size changed from {} to {}", indexed.capacity, wanted.facts.capacity));
    }
    Ok(indexed)
}

/// Why changes of this disk cannot be tracked by a bitmap; None when they can.
pub(super) fn no_bitmap(case: &Case<'_>, wanted: &Wanted<'_>) -> Option<&'static str> {
    if case.facts.guest.definition == Definition::Transient {
        return Some("the domain is transient: libvirt keeps no checkpoints for it");
    }
    if wanted.disk.access == crate::core::domain::Access::ReadOnly {
        return Some("a read-only disk cannot hold a bitmap");
    }
    match wanted.facts.bitmaps {
        BitmapSupport::Qcow2V3 => None,
        BitmapSupport::Qcow2V2 => {
            Some("its qcow2 version is too old for bitmaps (qemu-img amend -o compat=1.1)")
        }
        BitmapSupport::NotQcow2 => Some("only qcow2 images can hold a bitmap"),
    }
}

/// One line for the user.
pub(super) fn describe(candidates: &Candidates) -> String {
    match candidates {
        Candidates::All { why } => format!("every chunk is compared: {why}"),
        Candidates::Stamped => "every chunk counts as changed".to_owned(),
        Candidates::DirtyBitmap { since, .. } => format!("only what changed since {since} is compared"),
        Candidates::ThinDelta { since, .. } => {
            format!("only that in which it differs from the kept snapshot {since} is compared")
        }
        Candidates::PendingOnly => "its image is untouched since the last backup".to_owned(),
    }
}

fn all(why: &str) -> Candidates {
    Candidates::All { why: why.to_owned() }
}
