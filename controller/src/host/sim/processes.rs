//! The simulated machine's processes and mounts, with a `chunkfs` daemon that keeps an index.
//! The daemon's steps are effects of their own: it can hang or die between any two.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use chunkfs::serve::Told;

use crate::core::facts::{IndexedDisk, Trust};
use crate::core::lock::{BootId, ProcessId};
use crate::core::names::{JobId, Target, partial_of};
use crate::core::step::{CopyRequest, ImageService, ViewService};
use crate::core::viewspec::{Candidates, Feed, ShownDisk, ViewSpec};
use crate::core::volume::ThinChanges;
use crate::host::{Processes, Removal};

use super::world::{CHUNK_BYTES, CHUNKS, Index, Mount, Program};
use super::{Node, SimHost, World};

impl Processes for SimHost {
    fn this_process(&self) -> Result<ProcessId> {
        self.ask(|_| Ok(process_id(self.pid)))
    }

    fn epoch(&self) -> Result<u64> {
        // Later for every job: a snapshot that is kept has an epoch in its name.
        self.ask(|world| Ok(1_752_513_887 + world.jobs_named))
    }

    fn boot_id(&self) -> Result<BootId> {
        self.ask(|world| Ok(BootId(format!("boot {}", world.boots))))
    }

    fn new_job_id(&self) -> Result<JobId> {
        let world = &mut *self.world.borrow_mut();
        world.jobs_named += 1;
        Ok(JobId::from_bits(world.jobs_named))
    }

    /// Here everything happens at once.
    fn let_settle(&self, _last_sign: &Path) -> Result<()> {
        Ok(())
    }

    fn lives(&self, process: &ProcessId) -> Result<bool> {
        self.ask(|world| Ok(world.processes.contains_key(&process.pid)))
    }

    fn mounted_at(&self, path: &Path) -> Result<Option<String>> {
        self.ask(|world| Ok(world.mounts.get(path).map(|mount| mount.source.clone())))
    }

    fn mounted_below(&self, dir: &Path) -> Result<Option<PathBuf>> {
        let below = |point: &&PathBuf| point.starts_with(dir) && **point != dir;
        self.ask(|world| Ok(world.mounts.keys().find(below).cloned()))
    }

    fn start_view(&self, service: &ViewService) -> Result<ProcessId> {
        let spec: ViewSpec =
            self.ask(|world| read_spec(world, &service.spec)?.context("there is no specification"))?;
        let spec_path = service.spec.clone();
        let program = Program::Chunkfs { spec: spec_path };
        let pid = self.effect("chunkfs starts", |world| Ok(world.start_process(program)))?;
        for file in &spec.files {
            if self.ask(|world| Ok(!matches!(world.nodes.get(&file.from), Some(Node::File(_)))))? {
                bail!("{} is to be shown and is not there", file.from.display());
            }
        }
        for disk in &spec.disks {
            self.effect("chunkfs opens an index", |world| open_index(world, &spec, disk))?;
        }
        self.effect("chunkfs makes the mount point", |world| {
            world.add_dirs(&service.mount_point);
            Ok(())
        })?;
        self.effect("chunkfs mounts", |world| {
            let view = spec.disks.iter().map(|disk| Ok((disk.target.clone(), feed(world, &disk.feed)?)));
            let view = view.collect::<Result<BTreeMap<_, _>>>()?;
            let source = service.mount_source.clone();
            world.mounts.insert(service.mount_point.clone(), Mount { source, view });
            Ok(process_id(pid))
        })
    }

    fn stop_view(&self, service: &ViewService) -> Result<Removal> {
        self.effect("stop chunkfs", |world| Ok(stop(world, &Program::Chunkfs { spec: service.spec.clone() })))
    }

    fn unmount(&self, path: &Path) -> Result<Removal> {
        self.effect("unmount", |world| Ok(removal(world.mounts.remove(path).is_some())))
    }

    fn serve_image(&self, service: &ImageService) -> Result<ProcessId> {
        let image = service.chain.first().context("an image without a layer")?.path.clone();
        let program = Program::QemuNbd { socket: service.socket.clone(), image };
        let pid = self.effect("qemu-nbd starts", |world| Ok(world.start_process(program)))?;
        self.effect("qemu-nbd listens", |world| {
            world.nodes.insert(service.socket.clone(), Node::Socket);
            Ok(process_id(pid))
        })
    }

    fn stop_image(&self, socket: &Path) -> Result<Removal> {
        self.effect("stop qemu-nbd", |world| {
            let ours = |p: &Program| matches!(p, Program::QemuNbd { socket: s, .. } if s == socket);
            let servers: Vec<_> =
                world.processes.iter().filter(|(_, p)| ours(p)).map(|(pid, _)| *pid).collect();
            servers.iter().for_each(|pid| world.end_process(*pid));
            let there = world.nodes.remove(socket).is_some();
            Ok(removal(there || !servers.is_empty()))
        })
    }

    fn copy_disk(&self, copy: &CopyRequest, interrupted: &(dyn Fn() -> bool + Sync)) -> Result<String> {
        let content = self.ask(|world| feed(world, &copy.feed))?;
        let Some((dir, name)) = copy.to.file() else {
            return self.effect("pipe a disk", |_| Ok(String::new()));
        };
        self.effect("begin a copy", |world| {
            world.nodes.insert(dir.join(partial_of(name)), Node::File(b"half".to_vec()));
            Ok(())
        })?;
        if interrupted() {
            bail!("interrupted");
        }
        self.effect("end a copy", |world| {
            world.nodes.remove(&dir.join(partial_of(name)));
            world.nodes.insert(dir.join(name), Node::File(format!("{content:?}").into_bytes()));
            Ok("digest".to_owned())
        })
    }

    fn indexes(&self, dir: &Path) -> Result<BTreeMap<Target, IndexedDisk>> {
        self.ask(|world| {
            let disks = world.indexes.get(dir).into_iter().flatten();
            Ok(disks.filter_map(|(target, index)| Some((target.clone(), index.closed.clone()?))).collect())
        })
    }

    fn close_generation(&self, spec: &Path) -> Result<Removal> {
        let Some(spec) = self.ask(|world| read_spec(world, spec))? else { return Ok(Removal::AlreadyGone) };
        let mut closed = false;
        // Not all at once: it can be cut off between two disks.
        for disk in &spec.disks {
            closed |= self.effect("close an index", |world| Ok(close_index(world, &spec, disk)))?;
        }
        self.effect("other disks name no checkpoint", |world| {
            for (target, index) in world.indexes.get_mut(&spec.index_dir).into_iter().flatten() {
                let shown = spec.disks.iter().any(|disk| disk.target == *target);
                if let Some(closed) = index.closed.as_mut().filter(|_| closed && !shown) {
                    (closed.checkpoint, closed.thin) = (None, None);
                }
            }
            Ok(removal(closed))
        })
    }
}

fn process_id(pid: u32) -> ProcessId {
    ProcessId { pid, start_ticks: u64::from(pid) }
}

fn removal(was_there: bool) -> Removal {
    if was_there { Removal::Removed } else { Removal::AlreadyGone }
}

fn stop(world: &mut World, program: &Program) -> Removal {
    let found: Vec<_> = world.processes.iter().filter(|(_, p)| *p == program).map(|(pid, _)| *pid).collect();
    found.iter().for_each(|pid| world.end_process(*pid));
    removal(!found.is_empty())
}

fn read_spec(world: &World, path: &Path) -> Result<Option<ViewSpec>> {
    match world.nodes.get(path) {
        Some(Node::File(content)) => Ok(Some(ViewSpec::from_json(content)?)),
        _ => Ok(None),
    }
}

/// What the daemon reads.
fn feed(world: &World, feed: &Feed) -> Result<[u64; CHUNKS]> {
    match feed {
        Feed::Image { path } => Ok(world.image(path).context("the image is gone")?.chunks),
        Feed::Nbd { socket, export } => {
            let job = world.guests.values().filter_map(|g| g.job.as_ref()).find(|job| job.socket == *socket);
            if let Some(job) = job {
                let disk = job.frozen_disks.iter().find(|(target, _)| target.as_str() == export);
                return disk.map(|(_, chunks)| *chunks).ok_or_else(|| anyhow!("no export {export:?}"));
            }
            let server = world.processes.values().find_map(|program| match program {
                Program::QemuNbd { socket: s, image } if s == socket => Some(image),
                _ => None,
            });
            let image = server.and_then(|image| world.image(image));
            Ok(image.ok_or_else(|| anyhow!("nobody serves on {}", socket.display()))?.chunks)
        }
    }
}

/// Opens the generation. Every second candidate is resolved at once, the others stay pending: what happens when a
/// consumer reads a part of the view.
fn open_index(world: &mut World, spec: &ViewSpec, disk: &ShownDisk) -> Result<()> {
    let content = feed(world, &disk.feed)?;
    let called_dirty = match &disk.candidates {
        Candidates::All { .. } | Candidates::Stamped => [true; CHUNKS],
        Candidates::PendingOnly => [false; CHUNKS],
        Candidates::ThinDelta { file, .. } => match world.nodes.get(file) {
            Some(Node::File(text)) => in_ranges(&serde_json::from_slice(text)?)?,
            _ => bail!("{} is not there", file.display()),
        },
        Candidates::DirtyBitmap { .. } => {
            let Feed::Nbd { socket, .. } = &disk.feed else { bail!("an image has no bitmap to ask for") };
            let jobs = world.guests.values().filter_map(|g| g.job.as_ref());
            let bitmap =
                jobs.filter(|job| job.socket == *socket).find_map(|job| job.exported.get(&disk.target));
            *bitmap.ok_or_else(|| anyhow!("no bitmap is exported for {}", disk.target))?
        }
    };
    let indexes = world.indexes.entry(spec.index_dir.clone()).or_default();
    let fresh = Index { closed: None, content: [0; CHUNKS], pending: [true; CHUNKS], open: None };
    let index = indexes.entry(disk.target.clone()).or_insert(fresh);
    for chunk in 0..CHUNKS {
        let candidate = called_dirty[chunk] || index.pending[chunk];
        if !candidate && index.content[chunk] != content[chunk] {
            world
                .violations
                .push(format!("generation {}: {} chunk {chunk} skipped", spec.generation, disk.target));
        }
        index.pending[chunk] = candidate && chunk % 2 == 1;
        if candidate && !index.pending[chunk] {
            index.content[chunk] = content[chunk];
        }
    }
    index.open = Some(spec.generation);
    Ok(())
}

fn in_ranges(changes: &ThinChanges) -> Result<[bool; CHUNKS]> {
    let ThinChanges::Told(Told::Ranges(ranges)) = changes else { bail!("the ranges were not written") };
    let changed =
        |chunk: u64| ranges.iter().any(|(start, end)| (*start..*end).contains(&(chunk * CHUNK_BYTES)));
    Ok(std::array::from_fn(|chunk| changed(chunk as u64)))
}

fn close_index(world: &mut World, spec: &ViewSpec, disk: &ShownDisk) -> bool {
    let indexes = world.indexes.entry(spec.index_dir.clone()).or_default();
    let Some(index) = indexes.get_mut(&disk.target).filter(|index| index.open == Some(spec.generation))
    else {
        return false;
    };
    index.open = None;
    index.closed = Some(IndexedDisk {
        generation: spec.generation,
        capacity: disk.capacity,
        chunk_size: spec.chunk_size,
        checkpoint: disk.checkpoint_after.clone(),
        images: disk.images.mark(),
        thin: disk.thin_after.clone(),
        trust: Trust::AsRecorded,
    });
    true
}
