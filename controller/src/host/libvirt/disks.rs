//! What can be found out about a disk's image from outside: version, layers, which files they are.
//! Never a format: that is declared by the XML, or by the header of the layer above.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::core::domain::{ChainEnd, Disk, Format};
use crate::core::facts::{BitmapSupport, Chain, ChainLayer, Clock, Fingerprint, Storage, local_path};
use crate::host::Files;

use super::qcow2;

/// A chain longer than this goes in a circle.
const MOST_LAYERS: usize = 64;
/// File systems count time in steps of up to two seconds.
const SETTLED_AFTER_NANOS: i64 = 3_000_000_000;

pub(super) fn bitmaps(disk: &Disk) -> BitmapSupport {
    let header = match (&disk.format, local_path(&disk.source)) {
        (Format::Qcow2, Some(path)) => qcow2::read(path).ok(),
        _ => None,
    };
    match header {
        Some(header) if header.version >= 3 => BitmapSupport::Qcow2V3,
        Some(_) => BitmapSupport::Qcow2V2,
        // Also an image that cannot be looked at from here: then all is compared.
        None => BitmapSupport::NotQcow2,
    }
}

pub(super) fn snapshots(disk: &Disk) -> u32 {
    match (&disk.format, local_path(&disk.source)) {
        // An image that cannot be looked at is not copied as it is, either.
        (Format::Qcow2, Some(path)) => qcow2::read(path).map_or(0, |header| header.snapshots),
        _ => 0,
    }
}

/// The disk's own image and those below it.
pub(super) fn chain(files: &dyn Files, disk: &Disk) -> Chain {
    let Some(path) = local_path(&disk.source) else {
        return Chain::Unknown { why: format!("{} cannot be read without its guest", disk.source) };
    };
    match layers(files, disk, path.clone()) {
        Ok(layers) => Chain::Known(layers),
        Err(why) => Chain::Unknown { why },
    }
}

fn layers(files: &dyn Files, disk: &Disk, top: PathBuf) -> Result<Vec<ChainLayer>, String> {
    let mut layers: Vec<ChainLayer> = Vec::new();
    let mut next = Some((top, disk.format.clone()));
    while let Some((path, format)) = next.take() {
        if layers.len() == MOST_LAYERS {
            return Err(format!("more than {MOST_LAYERS} images lie below each other"));
        }
        next = below(&path, &format, disk, layers.len())?;
        layers.push(layer(files, path, format)?);
    }
    Ok(layers)
}

/// The image below one, by its own header. What the XML declares of it must agree.
fn below(
    path: &Path,
    format: &Format,
    disk: &Disk,
    depth: usize,
) -> Result<Option<(PathBuf, Format)>, String> {
    let image = path.display();
    match format {
        Format::Raw => return Ok(None),
        Format::Qcow2 => {}
        Format::Other(_) if disk.backing.layers.is_empty() && disk.backing.end == ChainEnd::Declared => {
            return Ok(None);
        }
        Format::Other(name) => return Err(format!("what lies below the {name} image {image} is not known")),
    }
    let header = qcow2::read(path).map_err(|error| format!("{image}: {error}"))?;
    if header.encrypted || header.external_data {
        let what = if header.encrypted { "is encrypted" } else { "keeps its data in another file" };
        return Err(format!("{image} {what}"));
    }
    let Some(backing) = header.backing else { return Ok(None) };
    let file = backing.path_from(path).ok_or_else(|| format!("{image} lies over {}", backing.file))?;
    let declared = disk.backing.layers.get(depth).map(|layer| layer.format.clone());
    let format = backing.format.clone().map(Format::from).or(declared);
    let format = format.ok_or_else(|| {
        format!("the format of {} below {image} is declared nowhere (qemu-img rebase -u -F)", file.display())
    })?;
    Ok(Some((file, format)))
}

fn layer(files: &dyn Files, path: PathBuf, format: Format) -> Result<ChainLayer, String> {
    let found = files.fingerprint(&path).map_err(|error| format!("{error:#}"))?;
    let fingerprint = found.ok_or_else(|| format!("{} is missing", path.display()))?;
    let device = std::fs::metadata(&path).is_ok_and(|metadata| metadata.file_type().is_block_device());
    let storage = if device { Storage::Device } else { Storage::File };
    Ok(ChainLayer { format, path, storage, fingerprint, clock: clock(fingerprint) })
}

fn clock(fingerprint: Fingerprint) -> Clock {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64);
    let touched = fingerprint.mtime_nanos.max(fingerprint.ctime_nanos);
    if touched.saturating_add(SETTLED_AFTER_NANOS) < now { Clock::Settled } else { Clock::Unsettled }
}
