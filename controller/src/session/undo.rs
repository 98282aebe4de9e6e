//! An undo to the host's verbs, and which undos follow from names alone.
//! Each may be repeated; each removes only what its names prove ours.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::core::domain::DomainId;
use crate::core::domain::{Domain, Source};
use crate::core::names::{CheckpointName, Names, Uuid, image_of_overlay, is_thin_changes, partial_of};
use crate::core::step::{Overlay, Undo, ViewService};
use crate::host::{Begin, Host, Removal, XmlView};

pub(super) fn undo(host: &dyn Host, undo: &Undo) -> Result<Removal> {
    match undo {
        Undo::RemoveFile { path } => host.remove_file(path),
        Undo::RemoveDir { path } => host.remove_dir(path),
        Undo::SettleCheckpoints { domain, index_dir } => settle_checkpoints(host, domain, index_dir),
        Undo::CloseGeneration { spec } => {
            host.close_generation(spec).context("close the generation in the index")?;
            host.remove_file(spec)
        }
        Undo::Thaw { domain } => host.thaw(domain),
        Undo::Resume { domain } => host.resume(domain),
        Undo::Start { domain } => host.start(domain, Begin::Running),
        Undo::MergeOverlay { domain, overlay } => host.merge_overlay(domain, overlay),
        Undo::UnmountVolume { point } => host.unmount_volume(point),
        Undo::RemoveVolume { volume, owner } => host.remove_volume(volume, owner),
        Undo::SettleVolumes { owner, index_dir } => settle_volumes(host, owner, index_dir),
        Undo::FreeThinMetadata { file } => host.free_thin_metadata(file),
        Undo::AbortBackup { domain, socket } => host.abort_backup(domain, socket),
        Undo::StopImage { socket } => host.stop_image(socket),
        Undo::StopView(service) => stop_view(host, service),
    }
}

/// No view, no directory: a consumer that finds an empty directory takes the backup for empty.
fn stop_view(host: &dyn Host, service: &ViewService) -> Result<Removal> {
    let stopped = host.stop_view(service).context("stop chunkfs")?;
    match host.mounted_at(&service.mount_point)? {
        Some(source) if source == service.mount_source => {
            host.unmount(&service.mount_point).context("unmount")?;
        }
        // Somebody else's mount, over a directory that is then not empty and not ours to remove.
        Some(_) => return Ok(stopped),
        None => {}
    }
    let removed = host.remove_dir(&service.mount_point).context("remove the mount point")?;
    Ok(if stopped == Removal::Removed { stopped } else { removed })
}

/// Keeps every checkpoint that any index names: should closing have been cut off between two disks, both stay.
fn settle_checkpoints(host: &dyn Host, domain: &DomainId, index_dir: &Path) -> Result<Removal> {
    let named: Vec<_> = host.indexes(index_dir)?.into_values().filter_map(|disk| disk.checkpoint).collect();
    let there = host.checkpoints(domain)?;
    let ours = there.iter().filter_map(|c| CheckpointName::recognise(&domain.uuid, &c.name));
    let mut settled = Removal::AlreadyGone;
    for (checkpoint, _) in ours.filter(|(name, _)| !named.contains(name)) {
        let removal =
            host.delete_checkpoint(domain, &checkpoint).with_context(|| format!("delete {checkpoint}"))?;
        settled = settled.and(removal);
    }
    Ok(settled)
}

/// Keeps every snapshot that any index names.
fn settle_volumes(host: &dyn Host, owner: &Uuid, index_dir: &Path) -> Result<Removal> {
    let named: Vec<_> = host.indexes(index_dir)?.into_values().filter_map(|disk| disk.thin).collect();
    host.settle_volumes(owner, &named)
}

/// What may be here of ours when no journal says so, newest first. A mount point is only taken for ours while our
/// view is mounted on it: an empty directory has no mark.
pub(super) fn by_name(host: &dyn Host, names: &Names, domain: Option<&DomainId>) -> Result<Vec<Undo>> {
    let mut undos = Vec::new();
    let (spec, mount_point, mount_source) = (names.view_spec(), names.mount_point(), names.mount_source());
    if host.mounted_at(&mount_point)?.is_some_and(|source| source == mount_source) {
        undos.push(Undo::StopView(ViewService { spec: spec.clone(), mount_point, mount_source }));
    }
    if let Some(domain) = domain {
        undos.push(Undo::AbortBackup { domain: domain.clone(), socket: names.backup_socket() });
    }
    let sockets = host.list(&names.socket_dir())?.unwrap_or_default();
    undos.extend(sockets.iter().map(|name| Undo::StopImage { socket: names.socket_dir().join(name) }));
    undos.push(Undo::CloseGeneration { spec });
    let points = host.list(&names.volumes_dir())?.unwrap_or_default();
    for point in points.iter().map(|name| names.volumes_dir().join(name)) {
        undos.extend([Undo::UnmountVolume { point: point.clone() }, Undo::RemoveDir { path: point }]);
    }
    undos.push(Undo::RemoveDir { path: names.volumes_dir() });
    let in_home = host.list(&names.home())?.unwrap_or_default();
    for file in in_home.iter().filter(|name| is_thin_changes(name)).map(|name| names.home().join(name)) {
        undos.extend([Undo::FreeThinMetadata { file: file.clone() }, Undo::RemoveFile { path: file }]);
    }
    if let Some(domain) = domain {
        undos.extend(overlays_of(host, domain)?);
        undos.push(Undo::SettleVolumes { owner: domain.uuid.clone(), index_dir: names.index_dir() });
    }
    let scratch = host.list(&names.scratch_dir())?.unwrap_or_default();
    undos.extend(scratch.iter().map(|name| Undo::RemoveFile { path: names.scratch_dir().join(name) }));
    undos.push(Undo::RemoveDir { path: names.scratch_dir() });
    undos.extend(half_written(host, names)?.map(|path| Undo::RemoveFile { path }));
    undos.push(Undo::RemoveFile { path: names.saved_nvram() });
    let tpm = host.list(&names.saved_tpm())?.unwrap_or_default();
    undos.extend(tpm.iter().map(|name| Undo::RemoveFile { path: names.saved_tpm().join(name) }));
    undos.push(Undo::RemoveDir { path: names.saved_tpm() });
    undos.push(Undo::RemoveFile { path: names.saved_state() });
    undos.push(Undo::RemoveFile { path: names.saved_about() });
    undos.push(Undo::RemoveFile { path: names.saved_xml() });
    undos.push(Undo::RemoveDir { path: names.socket_dir() });
    if let Some(domain) = domain {
        undos.push(Undo::SettleCheckpoints { domain: domain.clone(), index_dir: names.index_dir() });
    }
    Ok(undos)
}

/// What a process was about to put in its place when it was killed.
fn half_written(host: &dyn Host, names: &Names) -> Result<impl Iterator<Item = PathBuf>> {
    let home = names.home();
    let partial = partial_of("");
    let there = host.list(&home)?.unwrap_or_default().into_iter();
    let ours = there.filter(move |name| name.ends_with(&partial)).map(move |name| home.join(name));
    let lock = names.lock();
    let of_lock = lock.file_name().and_then(|name| name.to_str()).map(partial_of);
    let of_lock = of_lock.map(|name| lock.with_file_name(name));
    Ok(ours.chain(of_lock))
}

/// The disks that the guest has on overlays of ours, known by their names.
fn overlays_of(host: &dyn Host, id: &DomainId) -> Result<Vec<Undo>> {
    let Some(xml) = host.domain_xml(id.uuid.as_str(), XmlView::Live)? else { return Ok(Vec::new()) };
    // What cannot be understood is refused by whoever plans; it is nothing to undo.
    let Ok(domain) = Domain::parse(&xml) else { return Ok(Vec::new()) };
    let overlay = |disk: &crate::core::domain::Disk| {
        let Source::File(path) = &disk.source else { return None };
        let base = image_of_overlay(path)?;
        let below = disk.backing.layers.first().filter(|layer| layer.source == Source::File(base.clone()));
        let base_format = below?.format.clone();
        let overlay = Overlay { target: disk.target.clone(), overlay: path.clone(), base, base_format };
        Some(Undo::MergeOverlay { domain: id.clone(), overlay })
    };
    Ok(domain.disks.iter().filter_map(overlay).collect())
}
