//! The simulated machine's logical volumes: those of the group `vg0`, and the file system on its volume `images`, which is
//! mounted at `/lv`; those of the group `thin` are all in one pool.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use chunkfs::serve::Told;

use crate::core::names::Uuid;
use crate::core::units::Bytes;
use crate::core::volume::{
    Behind, Delta, FileSystem, Place, ThinChanges, ThinDelta, Volume, VolumeFacts, VolumeKind, VolumeMount,
    VolumeSnapshot,
};
use crate::host::{Removal, Volumes};

use super::world::{CHUNK_BYTES, CHUNKS, Image, Mount, Program};
use super::{Guest, Node, Power, SimHost, World};

const MOUNTED_AT: &str = "/lv";
const THIN: &str = "thin";

/// Where an image is, with its snapshots of this owner.
pub(super) fn behind_of(world: &World, path: &Path, owner: &Uuid) -> Behind {
    let mut behind = behind(path);
    if let Behind::Volume(VolumeFacts { volume, kind: VolumeKind::Thin { kept, .. }, .. }) = &mut behind {
        let begin = format!("{}_", volume.device().display());
        kept.extend(
            ours(world, owner)
                .filter(|kept| kept.device().to_str().is_some_and(|path| path.starts_with(&begin))),
        );
    }
    behind
}

fn ours<'a>(world: &'a World, owner: &'a Uuid) -> impl Iterator<Item = Volume> + 'a {
    world.nodes.iter().filter_map(move |(path, node)| match node {
        Node::Snapshot { owner: marked, .. } if marked == owner => path.to_str()?.parse().ok(),
        _ => None,
    })
}

/// Where an image's path tells that it is.
pub(super) fn behind(path: &Path) -> Behind {
    let facts = |name: &str, place| {
        let volume = Volume::new("vg0", name)?;
        let kind = VolumeKind::Thick { size: Bytes(1 << 30), free: Bytes(1 << 40) };
        Some(Behind::Volume(VolumeFacts { volume, kind, place }))
    };
    let thin = |name: &str| {
        let kind = VolumeKind::Thin {
            pool: Volume::new(THIN, "pool")?,
            data_percent: 0,
            metadata_percent: 0,
            kept: Vec::new(),
            delta: Delta::Possible,
        };
        Some(Behind::Volume(VolumeFacts { volume: Volume::new(THIN, name)?, kind, place: Place::Whole }))
    };
    let in_pool = path.strip_prefix("/dev/thin").ok().and_then(Path::to_str);
    if let Some(found) = in_pool.and_then(thin) {
        return found;
    }
    let found = match (path.strip_prefix("/dev/vg0"), path.strip_prefix(MOUNTED_AT)) {
        (Ok(name), _) => name.to_str().and_then(|name| facts(name, Place::Whole)),
        (_, Ok(below)) => {
            facts("images", Place::Within { file_system: FileSystem::Ext4, path: below.to_owned() })
        }
        _ => None,
    };
    found.unwrap_or_else(|| Behind::Nothing { why: format!("{} is on no logical volume", path.display()) })
}

/// The images on a volume, by their path on it; a volume that is an image has it at the empty path.
fn images_on(world: &World, volume: &Volume) -> BTreeMap<PathBuf, Image> {
    let on = |path: &PathBuf| match behind(path) {
        Behind::Volume(facts) if facts.volume == *volume => Some(match facts.place {
            Place::Whole => PathBuf::new(),
            Place::Within { path, .. } => path,
        }),
        _ => None,
    };
    let images = world.nodes.iter().filter_map(|(path, node)| match node {
        Node::Image(image) => Some((on(path)?, image.clone())),
        _ => None,
    });
    images.collect()
}

impl Volumes for SimHost {
    fn volume_exists(&self, volume: &Volume) -> Result<bool> {
        self.ask(|world| Ok(world.nodes.contains_key(&volume.device())))
    }

    fn snapshot_volume(&self, snapshot: &VolumeSnapshot) -> Result<()> {
        self.effect("snapshot_volume", |world| {
            let device = snapshot.snapshot.device();
            if world.nodes.contains_key(&device) {
                bail!("{} exists already", snapshot.snapshot);
            }
            let held = |guest: &Guest| guest.power == Power::Off || guest.suspended;
            let is_on = |path: &PathBuf| matches!(behind(path), Behind::Volume(facts) if facts.volume == snapshot.origin);
            let writes = |guest: &&Guest| guest.disks.values().any(is_on) && !held(guest);
            // One snapshot of raw images is a point in time by itself.
            let is_whole = |path: &PathBuf| is_on(path) && path.extension() == Some("raw".as_ref());
            if world.guests.values().any(|guest| writes(&guest) && !guest.disks.values().all(is_whole)) {
                world.violations.push(format!("{} is snapshotted while its guest writes", snapshot.origin));
            }
            let files = images_on(world, &snapshot.origin);
            world.nodes.insert(device, Node::Snapshot { owner: snapshot.owner.clone(), files });
            Ok(())
        })
    }

    fn remove_volume(&self, volume: &Volume, owner: &Uuid) -> Result<Removal> {
        self.effect("remove_volume", |world| {
            let device = volume.device();
            match world.nodes.get(&device) {
                Some(Node::Snapshot { owner: marked, .. }) if marked == owner => {}
                _ => return Ok(Removal::AlreadyGone),
            }
            let mounted = world.mounts.values().any(|mount| Path::new(&mount.source) == device);
            let served =
                |program: &Program| matches!(program, Program::QemuNbd { image, .. } if *image == device);
            if mounted || world.processes.values().any(served) {
                bail!("{volume} is in use");
            }
            world.nodes.remove(&device);
            Ok(Removal::Removed)
        })
    }

    fn settle_volumes(&self, owner: &Uuid, keep: &[Volume]) -> Result<Removal> {
        let unnamed = self.ask(|world| {
            Ok(ours(world, owner).filter(|volume| !keep.contains(volume)).collect::<Vec<_>>())
        })?;
        let mut settled = Removal::AlreadyGone;
        for volume in unnamed {
            settled = settled.and(self.remove_volume(&volume, owner)?);
        }
        Ok(settled)
    }

    fn thin_delta(&self, delta: &ThinDelta) -> Result<()> {
        let write = |world: &mut World, changes: &ThinChanges| {
            let text = serde_json::to_vec(changes)?;
            world.nodes.insert(delta.to.clone(), Node::File(text));
            anyhow::Ok(())
        };
        self.effect("say that metadata are held", |world| {
            write(world, &ThinChanges::Holding { holding: delta.pool.clone() })
        })?;
        self.effect("reserve_metadata_snap", |world| {
            if world.metadata_held {
                bail!("the metadata are held already");
            }
            world.metadata_held = true;
            Ok(())
        })?;
        let ranges = self.ask(|world| {
            let of =
                |volume: &Volume| anyhow::Ok(world.image(&volume.device()).context("it is gone")?.chunks);
            let (was, is): ([u64; CHUNKS], [u64; CHUNKS]) = (of(&delta.since)?, of(&delta.snapshot)?);
            let differs = (0..CHUNKS as u64).zip(was.iter().zip(&is)).filter(|(_, (was, is))| was != is);
            Ok(differs.map(|(chunk, _)| (chunk * CHUNK_BYTES, (chunk + 1) * CHUNK_BYTES)).collect())
        })?;
        self.effect("release_metadata_snap", |world| {
            world.metadata_held = false;
            Ok(())
        })?;
        self.effect("write what thin_delta says", |world| {
            write(world, &ThinChanges::Told(Told::Ranges(ranges)))
        })
    }

    fn free_thin_metadata(&self, file: &Path) -> Result<Removal> {
        self.effect("free_thin_metadata", |world| {
            let Some(Node::File(text)) = world.nodes.get(file) else { return Ok(Removal::AlreadyGone) };
            let Ok(ThinChanges::Holding { .. }) = serde_json::from_slice(text) else {
                return Ok(Removal::AlreadyGone);
            };
            world.metadata_held = false;
            world.nodes.remove(file);
            Ok(Removal::Removed)
        })
    }

    fn mount_volume(&self, mount: &VolumeMount) -> Result<()> {
        self.effect("mount_volume", |world| {
            let device = mount.snapshot.device();
            let Some(Node::Snapshot { files, .. }) = world.nodes.get(&device).cloned() else {
                bail!("{} is not there", mount.snapshot)
            };
            if world.nodes.get(&mount.point) != Some(&Node::Dir) {
                bail!("{} is not there", mount.point.display());
            }
            let source = device.to_str().context("a plain path")?.to_owned();
            world.mounts.insert(mount.point.clone(), Mount { source, view: BTreeMap::new() });
            let shown = files.into_iter().map(|(path, image)| (mount.point.join(path), Node::Clone(image)));
            world.nodes.extend(shown);
            Ok(())
        })
    }

    fn unmount_volume(&self, point: &Path) -> Result<Removal> {
        self.effect("unmount_volume", |world| {
            let served = |program: &Program| matches!(program, Program::QemuNbd { image, .. } if image.starts_with(point));
            if world.processes.values().any(served) {
                bail!("{} is in use", point.display());
            }
            Ok(match world.unmount(point) {
                true => Removal::Removed,
                false => Removal::AlreadyGone,
            })
        })
    }
}
