//! What the simulated machine consists of, and its physics: guests write, power goes.
//! Knows no plan and no journal.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::core::facts::{BitmapSupport, Fingerprint, IndexedDisk};
use crate::core::names::{Target, Uuid};
use crate::core::units::{Bytes, Generation};

/// Disks are this many chunks long; the content of a chunk is a number.
pub const CHUNKS: usize = 8;
pub const CHUNK_BYTES: u64 = 256 << 10;

#[derive(Clone, Debug, Default)]
pub struct World {
    pub boots: u64,
    pub nodes: BTreeMap<PathBuf, Node>,
    pub mounts: BTreeMap<PathBuf, Mount>,
    pub processes: BTreeMap<u32, Program>,
    pub guards: BTreeMap<PathBuf, u32>,
    pub guests: BTreeMap<Uuid, Guest>,
    pub indexes: BTreeMap<PathBuf, BTreeMap<Target, Index>>,
    /// Does the pool of thin volumes hold its metadata for somebody?
    pub metadata_held: bool,
    /// What must never be and was: a changed chunk not called a candidate, for one.
    pub violations: Vec<String>,
    /// What each guest had on its disks, after each of its writes.
    pub moments: Vec<BTreeMap<Target, [u64; CHUNKS]>>,
    pub(super) next_pid: u32,
    pub(super) writes: u64,
    pub(super) jobs_named: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    Dir,
    File(Vec<u8>),
    Socket,
    Scratch,
    /// Also an overlay: what the guest sees through it.
    Image(Image),
    Clone(Image),
    /// Of a logical volume, tagged with the domain that it is for: the images that were on it.
    Snapshot {
        owner: Uuid,
        files: BTreeMap<PathBuf, Image>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub chunks: [u64; CHUNKS],
    pub bitmaps: BitmapSupport,
    /// By the name of the checkpoint: which chunks were written since.
    pub dirty: BTreeMap<String, Dirty>,
    pub touched: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirty {
    pub chunks: [bool; CHUNKS],
    pub consistent: bool,
}

#[derive(Clone, Debug)]
pub struct Mount {
    pub source: String,
    pub view: BTreeMap<Target, [u64; CHUNKS]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    VirtBackup,
    Chunkfs { spec: PathBuf },
    QemuNbd { socket: PathBuf, image: PathBuf },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    On,
    Off,
}

#[derive(Clone, Debug)]
pub struct Guest {
    pub name: String,
    pub xml: String,
    pub power: Power,
    pub frozen: bool,
    pub freezing: Freezing,
    pub suspended: bool,
    /// Disks and the images behind them.
    pub disks: BTreeMap<Target, PathBuf>,
    pub job: Option<Job>,
    /// Those of others too, in the order in which they were made.
    pub checkpoints: Vec<(String, BTreeSet<Target>)>,
    /// What the guest knows it has written last, chunk for chunk.
    pub ledger: BTreeMap<Target, [u64; CHUNKS]>,
}

/// What a guest's agent does when it is to freeze its file systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freezing {
    AsAsked,
    /// It does not answer.
    Never,
    /// They are thawed again before they have to be.
    TooShort,
}

/// A pull backup: each disk as it was when the job began.
#[derive(Clone, Debug)]
pub struct Job {
    pub socket: PathBuf,
    pub frozen_disks: BTreeMap<Target, [u64; CHUNKS]>,
    pub exported: BTreeMap<Target, [bool; CHUNKS]>,
}

/// The index of one disk: what it says, and the content its digests would be of.
#[derive(Clone, Debug)]
pub struct Index {
    pub closed: Option<IndexedDisk>,
    pub content: [u64; CHUNKS],
    pub pending: [bool; CHUNKS],
    pub open: Option<Generation>,
}

impl World {
    pub fn image(&self, path: &Path) -> Option<&Image> {
        match self.nodes.get(path) {
            Some(Node::Image(image) | Node::Clone(image)) => Some(image),
            Some(Node::Snapshot { files, .. }) => files.get(Path::new("")),
            _ => None,
        }
    }

    pub fn image_mut(&mut self, path: &Path) -> Option<&mut Image> {
        match self.nodes.get_mut(path) {
            Some(Node::Image(image)) => Some(image),
            _ => None,
        }
    }

    pub fn start_process(&mut self, program: Program) -> u32 {
        self.next_pid += 1;
        self.processes.insert(self.next_pid, program);
        self.next_pid
    }

    pub fn end_process(&mut self, pid: u32) {
        self.processes.remove(&pid);
        self.guards.retain(|_, holder| *holder != pid);
    }

    /// Each running guest writes one chunk on each disk: another one and another value each time.
    pub fn guests_write(&mut self) {
        if self.moments.is_empty() {
            self.moments.extend(self.guests.values().map(|guest| guest.ledger.clone()));
        }
        let writes = |guest: &&mut Guest| guest.power == Power::On && !guest.frozen && !guest.suspended;
        for guest in self.guests.values_mut().filter(writes) {
            for (target, path) in &guest.disks {
                self.writes += 1;
                // 5 and 8 have no common divisor: in time all chunks are written, not in order.
                let chunk = (self.writes * 5 % CHUNKS as u64) as usize;
                let Some(Node::Image(image)) = self.nodes.get_mut(path) else { continue };
                image.chunks[chunk] = 1000 + self.writes;
                image.touched += 1;
                image.dirty.values_mut().for_each(|dirty| dirty.chunks[chunk] = true);
                guest.ledger.entry(target.clone()).or_insert(image.chunks)[chunk] = 1000 + self.writes;
            }
            self.moments.push(guest.ledger.clone());
        }
    }

    /// With what was to be seen there. False: nothing was mounted.
    pub fn unmount(&mut self, point: &Path) -> bool {
        let was = self.mounts.remove(point).is_some();
        if was {
            self.nodes.retain(|path, _| path == point || !path.starts_with(point));
        }
        was
    }

    pub fn cut_power(&mut self) {
        self.boots += 1;
        self.processes.clear();
        for point in self.mounts.keys().cloned().collect::<Vec<_>>() {
            self.unmount(&point);
        }
        self.guards.clear();
        for guest in self.guests.values_mut() {
            guest.job = None;
            guest.frozen = false;
            guest.suspended = false;
            if guest.power == Power::On {
                guest.power = Power::Off;
                // QEMU writes bitmaps when it closes an image; now they are marked as in use.
                for path in guest.disks.values() {
                    let Some(Node::Image(image)) = self.nodes.get_mut(path) else { continue };
                    image.dirty.values_mut().for_each(|dirty| dirty.consistent = false);
                }
            }
        }
    }

    pub fn fingerprint(&self, path: &Path) -> Option<Fingerprint> {
        let (size, time) = match self.nodes.get(path)? {
            Node::Image(image) | Node::Clone(image) => (CHUNKS as u64 * CHUNK_BYTES, image.touched),
            Node::File(content) => (content.len() as u64, 0),
            Node::Dir | Node::Socket | Node::Scratch | Node::Snapshot { .. } => (0, 0),
        };
        Some(Fingerprint { device: 1, inode: 1, size, mtime_nanos: time, ctime_nanos: time })
    }

    pub fn capacity(&self) -> Bytes {
        Bytes(CHUNKS as u64 * CHUNK_BYTES)
    }

    pub fn add_dirs(&mut self, path: &Path) {
        for dir in path.ancestors().filter(|dir| !dir.as_os_str().is_empty()) {
            self.nodes.entry(dir.to_owned()).or_insert(Node::Dir);
        }
    }

    /// The names directly below a directory.
    pub fn names_in(&self, dir: &Path) -> Vec<String> {
        let inside = self.nodes.keys().filter(|path| path.parent() == Some(dir));
        inside.filter_map(|path| path.file_name()?.to_str()).map(str::to_owned).collect()
    }
}
