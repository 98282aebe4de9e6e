//! Compressed disks, which can only be read from their beginning to their end: hashed, or written one after the other.
//! What is compressed is expanded by `carry`.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use chunkfs::copy::Bulk;
use chunkfs::watch::Watch;
use rustix::fs::OFlags;

use crate::carry;
use crate::core::restore::{Form, Kept};
use crate::core::units::Bytes;

use super::act::Failed;
use super::backup::Opened;
use super::image;

const PIECE: usize = 1 << 20;

/// Its length and its digest.
pub(super) fn digest(
    opened: &Opened,
    from: &Kept,
    watch: &dyn Watch,
) -> Result<(Bytes, blake3::Hash), Failed> {
    for_each(opened, from, watch, |_, _| Ok(()))
}

pub(super) fn to_new_file(opened: &Opened, from: &Kept, to: &Path, watch: &dyn Watch) -> Result<(), Failed> {
    let file = image::new_file(to)?;
    let writing = || format!("write {}", to.display());
    let mut bulk = Bulk::new(&file).with_context(writing)?;
    let (bytes, digest) = for_each(opened, from, watch, |at, piece| {
        // The file is new: all of it is a hole.
        bulk.write_sparse_at(piece, at).with_context(writing)
    })?;
    bulk.flush().with_context(writing)?;
    compare(opened, from, digest)?;
    Ok(file.set_len(bytes.0).and_then(|()| file.sync_all()).with_context(writing)?)
}

/// The first piece comes last: a device without it is not taken for a whole one.
pub(super) fn to_device(opened: &Opened, from: &Kept, path: &Path, watch: &dyn Watch) -> Result<(), Failed> {
    let exclusive = OFlags::EXCL.bits() as i32;
    let device = OpenOptions::new().write(true).custom_flags(exclusive).open(path);
    let device = device.with_context(|| format!("open {} alone", path.display()))?;
    let writing = || format!("write {}", path.display());
    let (mut first, mut bulk) = (Vec::new(), Bulk::new(&device).with_context(writing)?);
    let unfinished = |failed: Failed| Failed { is_unfinished: true, ..failed };
    let mut is_touched = false;
    let expanded = for_each(opened, from, watch, |at, piece| {
        if at == 0 {
            first = piece.to_vec();
            is_touched = true;
            let nothing = vec![0; piece.len()];
            device.write_all_at(&nothing, 0).and_then(|()| device.sync_all()).with_context(writing)?;
            return Ok(());
        }
        bulk.write_all_at(piece, at).with_context(writing)
    });
    let (_, digest) = expanded.map_err(|failed| Failed { is_unfinished: is_touched, ..failed })?;
    bulk.flush().with_context(writing).map_err(|error| unfinished(error.into()))?;
    compare(opened, from, digest).map_err(unfinished)?;
    let end = |device: &File| {
        device.sync_all()?;
        device.write_all_at(&first, 0)?;
        device.sync_all()
    };
    end(&device).with_context(writing).map_err(|error| unfinished(error.into()))
}

fn for_each(
    opened: &Opened,
    from: &Kept,
    watch: &dyn Watch,
    mut put: impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<(Bytes, blake3::Hash), Failed> {
    let Form::Compressed(compression) = from.form else { unreachable!("only what is compressed comes here") };
    let path = opened.path(&from.name);
    let mut reader = carry::expand(opened.file(&from.name)?, compression).map_err(|error| anyhow!(error))?;
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    loop {
        if watch.is_stopped() {
            return Err(anyhow!("stopped").into());
        }
        let filled = fill(&mut reader, &mut piece).map_err(|error| Failed {
            error: anyhow!(error)
                .context(format!("{} is damaged behind byte {at} of the disk", path.display())),
            is_damage: true,
            is_unfinished: false,
        })?;
        if filled == 0 {
            return Ok((Bytes(at), hasher.finalize()));
        }
        hasher.update(&piece[..filled]);
        put(at, &piece[..filled])?;
        watch.advance(filled as u64);
        at += filled as u64;
    }
}

/// Less than a whole piece is the end.
fn fill(reader: &mut dyn Read, piece: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < piece.len() {
        match reader.read(&mut piece[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// With what was written down when the disk was dumped.
pub(super) fn compare(opened: &Opened, from: &Kept, digest: blake3::Hash) -> Result<(), Failed> {
    match opened.digests.get(from.listed_as()) {
        Some(expected) if *expected != digest => Err(Failed {
            error: anyhow!("{} is damaged: its digest differs", opened.path(&from.name).display()),
            is_damage: true,
            is_unfinished: false,
        }),
        _ => Ok(()),
    }
}
