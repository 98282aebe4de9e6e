//! The simulated machine's guests: pull backups, checkpoints and their bitmaps.
//! As strict as libvirt where strictness has caught a mistake: one job, no deletion under it, no name twice.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::core::domain::{Disk, DomainId};
use crate::core::facts::{
    Agent, BackupJob, BitmapState, BitmapSupport, Chain, ChainLayer, CheckpointFacts, Clock, Definition,
    DiskFacts, GuestFacts, GuestState, PullSupport, Reflink, SnapshotFacts, Stopped, Storage,
};
use crate::core::names::{CheckpointName, Target, image_of_overlay};
use crate::core::step::{BackupRequest, DiskTracking, Overlay, OverlayRequest};
use crate::core::volume::Volume;
use crate::host::{Begin, Guests, Removal, XmlView};

use super::world::{CHUNKS, Dirty, Freezing, Job};
use super::{Guest, Image, Node, Power, SimHost, World, volumes};

impl Guests for SimHost {
    fn domain_xml(&self, vm: &str, _view: XmlView) -> Result<Option<String>> {
        self.ask(|world| {
            let found = world.guests.iter().find(|(uuid, guest)| guest.name == vm || uuid.as_str() == vm);
            Ok(found.map(|(_, guest)| live_xml(guest)))
        })
    }

    fn guest(&self, domain: &DomainId) -> Result<GuestFacts> {
        self.ask(|world| {
            let guest = world.guests.get(&domain.uuid).context("there is no such domain")?;
            let state = match guest.power {
                Power::On if guest.suspended => GuestState::Paused,
                Power::On => GuestState::Running,
                Power::Off => GuestState::ShutOff,
            };
            let backup_job = guest.job.as_ref().map(|job| BackupJob { socket: Some(job.socket.clone()) });
            let (definition, agent, pull) = (Definition::Persistent, Agent::Connected, PullSupport::Yes);
            let stopped = Stopped::ByItself;
            Ok(GuestFacts { state, stopped, definition, agent, pull, backup_job })
        })
    }

    fn disk(&self, domain: &DomainId, disk: &Disk, _volume: Option<&Volume>) -> Result<DiskFacts> {
        self.ask(|world| {
            let guest = world.guests.get(&domain.uuid).context("there is no such domain")?;
            let path = guest.disks.get(&disk.target).context("there is no such disk")?;
            let bitmaps = world.image(path).context("the image is gone")?.bitmaps;
            let fingerprint = world.fingerprint(path).context("the image is gone")?;
            let layer = ChainLayer {
                format: disk.format.clone(),
                path: path.clone(),
                storage: Storage::File,
                fingerprint,
                clock: Clock::Settled,
            };
            let (capacity, chain) = (world.capacity(), Chain::Known(vec![layer]));
            let (reflink, volume) = (Reflink::Possible, volumes::behind_of(world, path, &domain.uuid));
            Ok(DiskFacts { capacity, bitmaps, chain, reflink, volume, snapshots: 0 })
        })
    }

    fn snapshots(&self, _domain: &DomainId) -> Result<Vec<SnapshotFacts>> {
        self.ask(|_| Ok(Vec::new()))
    }

    fn files_in_use(&self) -> Result<Vec<(String, PathBuf)>> {
        self.ask(|world| {
            let of = |guest: &Guest| {
                let name = guest.name.clone();
                guest.disks.values().map(move |path| (name.clone(), path.clone())).collect::<Vec<_>>()
            };
            Ok(world.guests.values().flat_map(of).collect())
        })
    }

    fn checkpoints(&self, domain: &DomainId) -> Result<Vec<CheckpointFacts>> {
        self.ask(|world| {
            let Some(guest) = world.guests.get(&domain.uuid) else { return Ok(Vec::new()) };
            let facts = guest.checkpoints.iter().map(|(name, targets)| CheckpointFacts {
                name: name.clone(),
                bitmaps: targets.iter().map(|t| (t.clone(), bitmap_state(world, guest, t, name))).collect(),
            });
            Ok(facts.collect())
        })
    }

    fn begin_backup(&self, request: &BackupRequest) -> Result<()> {
        self.effect("begin_backup", |world| begin_backup(world, request))
    }

    fn abort_backup(&self, domain: &DomainId, socket: &Path) -> Result<Removal> {
        self.effect("abort_backup", |world| {
            let Some(guest) = world.guests.get_mut(&domain.uuid) else { return Ok(Removal::AlreadyGone) };
            if guest.job.as_ref().is_none_or(|job| job.socket != socket) {
                return Ok(Removal::AlreadyGone);
            }
            guest.job = None;
            Ok(Removal::Removed)
        })
    }

    fn delete_checkpoint(&self, domain: &DomainId, name: &CheckpointName) -> Result<Removal> {
        self.effect("delete_checkpoint", |world| {
            let Some(guest) = world.guests.get_mut(&domain.uuid) else { return Ok(Removal::AlreadyGone) };
            let Some(position) = guest.checkpoints.iter().position(|(n, _)| n == name.as_str()) else {
                return Ok(Removal::AlreadyGone);
            };
            if guest.power == Power::Off {
                return Ok(Removal::Later("the guest is shut off".to_owned()));
            }
            if guest.job.is_some() {
                bail!("a backup job uses the checkpoints of {}", guest.name);
            }
            guest.checkpoints.remove(position);
            for path in guest.disks.values() {
                if let Some(Node::Image(image)) = world.nodes.get_mut(path) {
                    image.dirty.remove(name.as_str());
                }
            }
            Ok(Removal::Removed)
        })
    }

    fn take_overlays(&self, request: &OverlayRequest) -> Result<()> {
        self.effect("take_overlays", |world| take_overlays(world, request))
    }

    fn merge_overlay(&self, domain: &DomainId, overlay: &Overlay) -> Result<Removal> {
        let on = |world: &World, path: &Path| {
            world
                .guests
                .get(&domain.uuid)
                .and_then(|guest| guest.disks.get(&overlay.target))
                .is_some_and(|p| p == path)
        };
        if self.ask(|world| Ok(on(world, &overlay.overlay)))? {
            // Once without effect on what the guest sees, and once with what it has written since.
            self.effect("commit", |world| commit(world, overlay))?;
            self.effect("pivot", |world| {
                commit(world, overlay)?;
                let guest = world.guests.get_mut(&domain.uuid).context("there is no such domain")?;
                guest.disks.insert(overlay.target.clone(), overlay.base.clone());
                Ok(())
            })?;
        }
        if !self.ask(|world| Ok(on(world, &overlay.base)))? {
            bail!("the guest is not proven to use {}", overlay.base.display());
        }
        self.effect("remove the overlay", |world| {
            let removed = world.nodes.remove(&overlay.overlay).is_some();
            Ok(if removed { Removal::Removed } else { Removal::AlreadyGone })
        })
    }

    fn suspend(&self, domain: &DomainId) -> Result<()> {
        self.effect("suspend", |world| {
            let guest = world.guests.get_mut(&domain.uuid).context("there is no such domain")?;
            if guest.power == Power::Off {
                bail!("the guest is not running");
            }
            guest.suspended = true;
            Ok(())
        })
    }

    fn resume(&self, domain: &DomainId) -> Result<Removal> {
        self.effect("resume", |world| {
            let Some(guest) = world.guests.get_mut(&domain.uuid) else { return Ok(Removal::AlreadyGone) };
            let was = std::mem::replace(&mut guest.suspended, false);
            Ok(if was { Removal::Removed } else { Removal::AlreadyGone })
        })
    }

    fn shut_down(&self, domain: &DomainId, _within: Duration) -> Result<()> {
        self.effect("shut_down", |world| {
            let guest = world.guests.get_mut(&domain.uuid).context("there is no such domain")?;
            if guest.power == Power::Off || guest.suspended {
                bail!("the guest is not running");
            }
            guest.power = Power::Off;
            guest.job = None;
            Ok(())
        })
    }

    fn start(&self, domain: &DomainId, begin: Begin) -> Result<Removal> {
        self.effect("start", |world| {
            let guest = world.guests.get_mut(&domain.uuid).context("there is no such domain")?;
            if guest.power == Power::On {
                return Ok(Removal::AlreadyGone);
            }
            guest.power = Power::On;
            guest.suspended = begin == Begin::Suspended;
            Ok(Removal::Removed)
        })
    }

    fn ask_agent(&self, domain: &DomainId, _within: Duration) -> Result<()> {
        self.ask(|world| {
            let guest = world.guests.get(&domain.uuid).context("there is no such domain")?;
            if guest.freezing == Freezing::Never { bail!("the agent does not answer") } else { Ok(()) }
        })
    }

    fn freeze(&self, domain: &DomainId, _within: Duration) -> Result<()> {
        self.effect("freeze", |world| {
            let guest = world.guests.get_mut(&domain.uuid).context("there is no such domain")?;
            guest.frozen = guest.freezing == Freezing::AsAsked;
            Ok(())
        })
    }

    fn thaw(&self, domain: &DomainId) -> Result<Removal> {
        self.effect("thaw", |world| {
            let Some(guest) = world.guests.get_mut(&domain.uuid) else { return Ok(Removal::AlreadyGone) };
            let was_frozen = std::mem::replace(&mut guest.frozen, false);
            Ok(if was_frozen { Removal::Removed } else { Removal::AlreadyGone })
        })
    }
}

/// As libvirt tells it while a disk is on an overlay.
fn live_xml(guest: &Guest) -> String {
    let mut xml = guest.xml.clone();
    for path in guest.disks.values() {
        let Some(base) = image_of_overlay(path) else { continue };
        for format in ["raw", "qcow2"] {
            let (base, overlay) = (base.display(), path.display());
            let before = format!("<driver type='{format}'/><source file='{base}'/>");
            let now = format!(
                "<driver type='qcow2'/><source file='{overlay}'/><backingStore type='file'>\
                 <format type='{format}'/><source file='{base}'/></backingStore>"
            );
            xml = xml.replace(&before, &now);
        }
    }
    xml
}

fn take_overlays(world: &mut World, request: &OverlayRequest) -> Result<()> {
    let guest = world.guests.get_mut(&request.domain.uuid).context("there is no such domain")?;
    if guest.power == Power::Off || guest.job.is_some() {
        bail!("no snapshot is possible now");
    }
    for Overlay { target, overlay, base, .. } in &request.overlays {
        if guest.disks.get(target) != Some(base) || world.nodes.contains_key(overlay) {
            bail!("{target} is not on {}", base.display());
        }
    }
    for Overlay { target, overlay, base, .. } in &request.overlays {
        let Some(Node::Image(image)) = world.nodes.get(base).cloned() else { bail!("the image is gone") };
        world.nodes.insert(overlay.clone(), Node::Image(image));
        guest.disks.insert(target.clone(), overlay.clone());
    }
    if let Some(memory) = &request.memory {
        let image = Image {
            chunks: [7; CHUNKS],
            bitmaps: BitmapSupport::NotQcow2,
            dirty: BTreeMap::new(),
            touched: 0,
        };
        world.nodes.insert(memory.clone(), Node::Clone(image));
    }
    Ok(())
}

/// What the guest has written meanwhile is in the image, too.
fn commit(world: &mut World, overlay: &Overlay) -> Result<()> {
    let Some(Node::Image(above)) = world.nodes.get(&overlay.overlay).cloned() else {
        bail!("the overlay is gone")
    };
    let base = world.image_mut(&overlay.base).context("the image is gone")?;
    base.chunks = above.chunks;
    base.touched += 1;
    for (name, dirty) in &mut base.dirty {
        match above.dirty.get(name) {
            Some(above) => {
                dirty.consistent &= above.consistent;
                dirty.chunks.iter_mut().zip(above.chunks).for_each(|(one, other)| *one |= other);
            }
            None => dirty.consistent = false,
        }
    }
    Ok(())
}

fn bitmap_state(world: &World, guest: &Guest, target: &Target, checkpoint: &str) -> BitmapState {
    let image = guest.disks.get(target).and_then(|path| world.image(path));
    match image.and_then(|image| image.dirty.get(checkpoint)) {
        Some(dirty) if dirty.consistent => BitmapState::Usable,
        Some(_) => BitmapState::Inconsistent,
        None => BitmapState::Missing,
    }
}

fn begin_backup(world: &mut World, request: &BackupRequest) -> Result<()> {
    let guest = world.guests.get(&request.domain.uuid).context("there is no such domain")?;
    if guest.power == Power::Off {
        bail!("the guest is not running");
    }
    if guest.job.is_some() {
        bail!("a backup job is already running");
    }
    let new = request.checkpoint.as_ref().map(|name| name.as_str().to_owned());
    if guest.checkpoints.iter().any(|(name, _)| Some(name) == new.as_ref()) {
        bail!("the checkpoint exists already");
    }
    let (mut frozen_disks, mut exported) = (BTreeMap::new(), BTreeMap::new());
    for disk in &request.disks {
        let image =
            guest.disks.get(&disk.target).and_then(|path| world.image(path)).context("no such disk")?;
        if disk.tracking != DiskTracking::Untracked && image.bitmaps != BitmapSupport::Qcow2V3 {
            bail!("{} cannot hold a bitmap", disk.target);
        }
        if let DiskTracking::Since(base) = &disk.tracking {
            let dirty = image.dirty.get(base.as_str()).filter(|dirty| dirty.consistent);
            exported.insert(disk.target.clone(), dirty.context("the bitmap is not usable")?.chunks);
        }
        frozen_disks.insert(disk.target.clone(), image.chunks);
    }
    take_effect(world, request, new, Job { socket: request.socket.clone(), frozen_disks, exported });
    Ok(())
}

fn take_effect(world: &mut World, request: &BackupRequest, checkpoint: Option<String>, job: Job) {
    let Some(guest) = world.guests.get_mut(&request.domain.uuid) else { return };
    let tracked = request.disks.iter().filter(|disk| disk.tracking != DiskTracking::Untracked);
    if let Some(name) = checkpoint {
        for disk in tracked.clone() {
            if let Some(Node::Image(image)) =
                guest.disks.get(&disk.target).and_then(|p| world.nodes.get_mut(p))
            {
                image.dirty.insert(name.clone(), Dirty { chunks: [false; CHUNKS], consistent: true });
            }
        }
        guest.checkpoints.push((name, tracked.map(|disk| disk.target.clone()).collect()));
    }
    guest.job = Some(job);
    world.nodes.extend(request.disks.iter().map(|disk| (disk.scratch.clone(), Node::Scratch)));
    world.nodes.insert(request.socket.clone(), Node::Socket);
}
