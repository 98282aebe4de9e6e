//! The witness: keeps what was ever shown, and knows the contract. It reads neither index nor view by itself.

use crate::disk::{CHUNK, geometry};
use chunkfs::core::digest::{Digest, DigestLines, is_zero};
use chunkfs::core::geometry::{ChunkIndex, Geometry, LeafIndex};
use chunkfs::core::layout::Node;
use chunkfs::view::{Attributes, Kind};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The bytes of a disk in one generation.
pub(crate) struct Shown {
    pub name: String,
    pub bytes: Arc<Vec<u8>>,
    /// Chunks that cannot be read.
    pub bad: Vec<ChunkIndex>,
    digests: Vec<Digest>,
}

impl Shown {
    pub(crate) fn new(name: &str, bytes: Arc<Vec<u8>>, bad: Vec<ChunkIndex>) -> Shown {
        let digests = bytes.chunks(CHUNK as usize).map(Digest::of).collect();
        Shown { name: name.to_owned(), bytes, bad, digests }
    }

    pub(crate) fn has_bad(&self, leaf: LeafIndex) -> bool {
        self.bad.iter().any(|chunk| chunk.leaf() == leaf)
    }

    pub(crate) fn geometry(&self) -> Geometry {
        geometry(&self.bytes)
    }

    pub(crate) fn chunk(&self, chunk: ChunkIndex) -> &[u8] {
        let range = self.geometry().range_of(chunk).unwrap();
        &self.bytes[range.start as usize..range.end as usize]
    }

    pub(crate) fn digest(&self, chunk: ChunkIndex) -> Digest {
        self.digests[chunk.0 as usize]
    }

    pub(crate) fn digests_text(&self, leaf: LeafIndex) -> String {
        let lines = DigestLines::new(&self.name, leaf);
        let geometry = self.geometry();
        geometry
            .chunk_range(leaf)
            .map(|chunk| lines.line(ChunkIndex(chunk), &self.digest(ChunkIndex(chunk))))
            .collect()
    }
}

/// What somebody may have seen of a file over all generations.
#[derive(Default)]
struct File {
    /// Which content each stamp stood for (T2): for ever.
    by_stamp: BTreeMap<i64, Digest>,
}

/// What a complete comparison has found of a chunk, if nothing has happened to it since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Vouched {
    digest: Digest,
    stamp: i64,
}

/// What is to be remembered over generations.
#[derive(Default)]
pub(crate) struct Witness {
    files: HashMap<String, File>,
    inodes: HashMap<String, u64>,
    paths: HashMap<u64, String>,
    vouched: HashMap<(String, u64), Vouched>,
    vouched_lists: HashMap<(String, u64), Vouched>,
    /// What this view has shown so far, settled.
    now: HashMap<String, Attributes>,
    /// Stamps of all generations.
    stamps: Vec<i64>,
    closed: i64,
    pub shown: u64,
}

impl Witness {
    /// A view begins to be shown. `disks` are what it is made of.
    pub(crate) fn begin(&mut self, stamp: i64, ready: i64, disks: &[Shown]) {
        assert!(stamp > self.closed, "stamp {stamp}, but the view before was closed at {}", self.closed);
        assert!(stamp <= ready, "stamp {stamp} is in the future of {ready}");
        assert!(self.stamps.last().is_none_or(|last| *last < stamp));
        self.stamps.push(stamp);
        self.now.clear();
        self.forget_changed(disks);
    }

    /// Whatever a generation has changed is not vouched for any more, seen or not.
    fn forget_changed(&mut self, disks: &[Shown]) {
        self.vouched.retain(|(name, chunk), vouched| {
            let Some(disk) = disks.iter().find(|disk| disk.name == *name) else { return true };
            let exists = disk.geometry().range_of(ChunkIndex(*chunk)).is_some();
            exists
                && !disk.bad.contains(&ChunkIndex(*chunk))
                && disk.digest(ChunkIndex(*chunk)) == vouched.digest
        });
        self.vouched_lists.retain(|(name, leaf), vouched| {
            let Some(disk) = disks.iter().find(|disk| disk.name == *name) else { return true };
            let leaf = LeafIndex(*leaf);
            !disk.has_bad(leaf) && Digest::of(disk.digests_text(leaf).as_bytes()) == vouched.digest
        });
    }

    /// A generation that nobody ever saw found disks of these lengths. What a shorter one lacks is forgotten, and is
    /// new when it comes back; so is the chunk in which it ends.
    pub(crate) fn unseen(&mut self, disks: &[Shown]) {
        let whole = |name: &str, chunk: ChunkIndex| {
            let disk = disks.iter().find(|disk| disk.name == *name);
            disk.is_none_or(|disk| {
                let range = disk.geometry().range_of(chunk);
                range.is_some_and(|range| range.len() == disk.geometry().chunk_size().bytes())
            })
        };
        self.vouched.retain(|(name, chunk), _| whole(name, ChunkIndex(*chunk)));
        self.vouched_lists.retain(|(name, leaf), _| whole(name, LeafIndex(*leaf).chunk(255)));
    }

    /// Nobody can look any more, from `now` on.
    pub(crate) fn end(&mut self, now: i64) {
        self.closed = now;
    }

    /// Somebody saw a chunk's attributes.
    pub(crate) fn chunk_seen(&mut self, disk: &Shown, chunk: ChunkIndex, seen: &Attributes) {
        let path = format!("{}/{}", disk.name, Node::of_chunk(chunk).path());
        let bytes = disk.chunk(chunk);
        self.seen(&path, seen);
        assert_eq!((seen.kind, seen.nlink, seen.mode), (Kind::File, 1, 0o400), "{path}");
        assert_eq!(seen.size, bytes.len() as u64, "{path}");
        match seen.blocks {
            0 => assert!(is_zero(bytes), "{path}: data without blocks would be archived as zeros"),
            blocks => assert_eq!(blocks, seen.size.div_ceil(512), "{path}"),
        }
        let digest = disk.digest(chunk);
        self.content_seen(&path, seen.stamp.0, digest);
        if let Some(vouched) = self.vouched.get(&(disk.name.clone(), chunk.0)) {
            assert_eq!(vouched.digest, digest);
            assert_eq!(seen.stamp.0, vouched.stamp, "{path} is unchanged (T3), but its stamp is not");
        }
    }

    pub(crate) fn digests_seen(&mut self, disk: &Shown, leaf: LeafIndex, seen: &Attributes) {
        let path = format!("{}.b3/{}", disk.name, Node::of_leaf(leaf).path());
        self.seen(&path, seen);
        let text = disk.digests_text(leaf);
        assert_eq!((seen.kind, seen.nlink, seen.mode), (Kind::File, 1, 0o400), "{path}");
        assert_eq!(seen.size, text.len() as u64, "{path}");
        if !disk.has_bad(leaf) {
            let digest = Digest::of(text.as_bytes());
            self.content_seen(&path, seen.stamp.0, digest);
            if let Some(vouched) = self.vouched_lists.get(&(disk.name.clone(), leaf.0)) {
                assert_eq!(*vouched, Vouched { digest, stamp: seen.stamp.0 }, "{path} is unchanged (T3)");
            }
        }
    }

    pub(crate) fn file_seen(&mut self, name: &str, content: &[u8], seen: &Attributes) {
        self.seen(name, seen);
        assert_eq!(seen.size, content.len() as u64);
        self.content_seen(name, seen.stamp.0, Digest::of(content));
    }

    /// T2: a stamp stands for one content for ever, and later content has the later stamp.
    fn content_seen(&mut self, path: &str, stamp: i64, content: Digest) {
        let file = self.files.entry(path.to_owned()).or_default();
        let before = file.by_stamp.entry(stamp).or_insert(content);
        assert_eq!(*before, content, "{path}: stamp {stamp} has stood for other content (T2)");
        let (last, _) = file.by_stamp.last_key_value().unwrap();
        assert_eq!(*last, stamp, "{path}: the stamp has gone back");
    }

    pub(crate) fn directory_seen(&mut self, path: &str, seen: &Attributes) {
        assert_eq!((seen.kind, seen.mode, seen.size), (Kind::Directory, 0o500, 4096), "{path}");
        if seen.settled {
            self.seen(path, seen);
        } else {
            self.inode_seen(path, seen);
        }
    }

    /// The root is one second newer than this generation where a file is.
    pub(crate) fn root_seen(&mut self, seen: &Attributes, has_newest: bool) {
        let generation = self.stamps.last().copied().unwrap();
        match has_newest {
            true => assert_eq!(seen.stamp.0, generation + 1),
            false => self.directory_seen("", seen),
        }
    }

    /// What is true of everything: one inode for ever, a stamp of a generation, and no change while a view is open.
    fn seen(&mut self, path: &str, seen: &Attributes) {
        self.shown += 1;
        self.inode_seen(path, seen);
        assert!(seen.settled);
        assert!(
            self.stamps.binary_search(&seen.stamp.0).is_ok(),
            "{path}: {} is of no generation",
            seen.stamp
        );
        let before = *self.now.entry(path.to_owned()).or_insert(*seen);
        assert_eq!(before, *seen, "{path} has changed while the view was open");
    }

    fn inode_seen(&mut self, path: &str, seen: &Attributes) {
        let inode = *self.inodes.entry(path.to_owned()).or_insert(seen.inode.0);
        assert_eq!(inode, seen.inode.0, "{path} has another inode");
        let other = self.paths.entry(inode).or_insert_with(|| path.to_owned());
        assert_eq!(other, path, "two files have inode {inode}");
    }

    /// All of a disk was compared, and this is what its chunks and its lists of digests show: from now on nothing
    /// may change without reason.
    pub(crate) fn vouch(&mut self, disk: &Shown, stamps: &[i64], lists: &[i64]) {
        for (leaf, stamp) in
            lists.iter().enumerate().filter(|(leaf, _)| !disk.has_bad(LeafIndex(*leaf as u64)))
        {
            let digest = Digest::of(disk.digests_text(LeafIndex(leaf as u64)).as_bytes());
            self.vouched_lists.insert((disk.name.clone(), leaf as u64), Vouched { digest, stamp: *stamp });
        }
        assert_eq!(stamps.len() as u64, (disk.bytes.len() as u64).div_ceil(CHUNK));
        for (chunk, stamp) in stamps.iter().enumerate() {
            let index = ChunkIndex(chunk as u64);
            if !disk.bad.contains(&index) {
                let vouched = Vouched { digest: disk.digest(index), stamp: *stamp };
                self.vouched.insert((disk.name.clone(), index.0), vouched);
            }
        }
    }
}
