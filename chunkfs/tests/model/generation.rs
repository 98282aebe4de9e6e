//! A view as a consumer has it: asked for this and that at any moment, waited for where it has no answer yet.

use crate::chance::Chance;
use crate::disk::{CHUNK, Frozen};
use crate::witness::{Shown, Witness};
use chunkfs::core::geometry::{ChunkIndex, LeafIndex};
use chunkfs::core::layout::{Inode, Node};
use chunkfs::core::stamp::Generation as Number;
use chunkfs::index::Index;
use chunkfs::resolve::Resolver;
use chunkfs::view::{Attributes, Kind, Room, Seek, View, ViewError, WholeView};
use std::ffi::OsStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

/// Longer than this nobody waits, unless he was forgotten.
const PATIENCE: Duration = Duration::from_secs(30);

/// A mounted generation.
pub(crate) struct Generation {
    pub number: Number,
    /// Is there a file that is newer than all chunks?
    pub has_newest: bool,
    pub index: Arc<Index>,
    pub view: Arc<WholeView>,
    pub resolver: Arc<Resolver>,
    pub shown: Vec<Shown>,
    pub sources: Vec<Arc<Frozen>>,
    pub files: Vec<(String, Vec<u8>)>,
    /// The index takes nothing more.
    pub broken: AtomicBool,
}

/// An entry of a listing, as it was handed out.
struct Listed {
    name: String,
    attributes: Attributes,
}

impl Generation {
    /// Asks until there is an answer. `None`: an error that has its reason.
    fn ask<T>(&self, what: &str, ask: impl Fn(&WholeView) -> Result<T, ViewError>) -> Option<T> {
        loop {
            match ask(&self.view) {
                Ok(answer) => return Some(answer),
                Err(ViewError::Wait(wait)) => {
                    let (told, news) = mpsc::channel();
                    self.view.park(wait.clone(), Box::new(move || told.send(()).unwrap_or(())));
                    match news.recv_timeout(PATIENCE) {
                        Ok(()) => {}
                        Err(error) => panic!("{what}: {error}, waiting for {wait:?}: {:?}", self.resolver),
                    }
                }
                Err(ViewError::Source(error)) => {
                    let has_reason = self.shown.iter().any(|disk| !disk.bad.is_empty())
                        || self.sources.iter().any(|source| source.gone.load(Ordering::SeqCst));
                    assert!(has_reason, "{what}: {error}");
                    return None;
                }
                Err(ViewError::Index(error)) => {
                    assert!(self.broken.load(Ordering::SeqCst), "{what}: {error}");
                    return None;
                }
                Err(error) => panic!("{what}: {error}"),
            }
        }
    }

    pub(crate) fn is_failing(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
            || self.sources.iter().any(|source| source.gone.load(Ordering::SeqCst) || !source.bad.is_empty())
    }

    /// Goes down to a node of a tree, name by name, as the kernel does; looks at each directory on the way.
    fn walk(&self, top: &str, path: &str, witness: &Mutex<Witness>) -> Option<Attributes> {
        let mut at = Inode::MOUNT_ROOT;
        let mut walked = String::new();
        let mut found = None;
        let names: Vec<&str> =
            [top].into_iter().chain(path.split('/').filter(|name| !name.is_empty())).collect();
        for (level, name) in names.iter().enumerate() {
            if level > 0 {
                walked.push('/');
            }
            walked.push_str(name);
            let attributes = self.ask(&walked, |view| view.lookup(at, OsStr::new(name)))?;
            if attributes.kind == Kind::Directory {
                witness.lock().unwrap().directory_seen(&walked, &attributes);
            }
            at = attributes.inode;
            found = Some(attributes);
        }
        found
    }

    fn list(&self, path: &str, directory: Inode, few: u64) -> Option<Vec<Listed>> {
        let mut listed: Vec<Listed> = Vec::new();
        loop {
            // In pieces, as the kernel's buffers are.
            let piece = self.ask(path, |view| {
                let (mut piece, mut next) = (Vec::new(), listed.len() as u64);
                let result = view.list(directory, next, &mut |entry| {
                    if piece.len() as u64 == few {
                        return Room::Full;
                    }
                    next += 1;
                    assert_eq!(entry.next, next);
                    piece.push(Listed { name: entry.name.to_owned(), attributes: entry.attributes });
                    Room::Left
                });
                match result {
                    Err(ViewError::Wait(_)) if !piece.is_empty() => Ok(piece),
                    result => result.map(|()| piece),
                }
            })?;
            if piece.is_empty() {
                return Some(listed);
            }
            listed.extend(piece);
        }
    }

    /// One look at something.
    pub(crate) fn look(&self, witness: &Mutex<Witness>, chance: &mut Chance) {
        let disk = chance.pick(&self.shown);
        let chunks = disk.geometry().chunk_count();
        if chunks == 0 {
            self.walk(&disk.name, "", witness);
            return;
        }
        let chunk = ChunkIndex(chance.of(0..chunks));
        match chance.of(0..12) {
            0..3 => self.look_at_chunk(disk, chunk, witness),
            3..5 => self.read_chunk(disk, chunk, witness, chance),
            5..7 => self.look_at_leaf(disk, chunk.leaf(), witness, chance.of(1..300)),
            7 => self.look_at_digests(disk, chunk.leaf(), witness),
            8 => self.read_digests(disk, chunk.leaf(), witness),
            9 => self.look_at_directory(disk, chunk, witness, chance),
            10 => self.look_at_file(witness),
            _ => self.seek(disk, chunk, witness),
        }
    }

    fn look_at_chunk(&self, disk: &Shown, chunk: ChunkIndex, witness: &Mutex<Witness>) {
        let Some(found) = self.walk(&disk.name, &Node::of_chunk(chunk).path(), witness) else { return };
        witness.lock().unwrap().chunk_seen(disk, chunk, &found);
        if let Some(again) = self.ask("a chunk", |view| view.attributes(found.inode)) {
            assert_eq!(again, found);
        }
    }

    fn read_chunk(&self, disk: &Shown, chunk: ChunkIndex, witness: &Mutex<Witness>, chance: &mut Chance) {
        let Some(found) = self.walk(&disk.name, &Node::of_chunk(chunk).path(), witness) else { return };
        witness.lock().unwrap().chunk_seen(disk, chunk, &found);
        let expected = disk.chunk(chunk);
        let offset = chance.of(0..expected.len() as u64 + 2);
        let room = chance.of(1..2 * CHUNK) as usize;
        let read = self.ask("reading", |view| {
            let mut buffer = vec![0xee; room];
            let count = view.read(found.inode, offset, &mut buffer)?;
            buffer.truncate(count);
            Ok(buffer)
        });
        let Some(read) = read else { return };
        let rest = expected.get(offset as usize..).unwrap_or_default();
        assert!(read == rest[..rest.len().min(room)], "other bytes than the disk's: chunk {}", chunk.0);
    }

    fn look_at_leaf(&self, disk: &Shown, leaf: LeafIndex, witness: &Mutex<Witness>, few: u64) {
        let path = Node::of_leaf(leaf).path();
        let Some(found) = self.walk(&disk.name, &path, witness) else { return };
        let Some(listed) = self.list(&path, found.inode, few) else { return };
        assert_eq!(listed.len(), disk.geometry().chunks_in(leaf));
        let mut witness = witness.lock().unwrap();
        for (slot, entry) in listed.iter().enumerate() {
            assert_eq!(entry.name, Node::of_chunk(leaf.chunk(slot)).name().as_str());
            witness.chunk_seen(disk, leaf.chunk(slot), &entry.attributes);
        }
    }

    fn look_at_digests(&self, disk: &Shown, leaf: LeafIndex, witness: &Mutex<Witness>) {
        let top = format!("{}.b3", disk.name);
        let Some(found) = self.walk(&top, &Node::of_leaf(leaf).path(), witness) else { return };
        witness.lock().unwrap().digests_seen(disk, leaf, &found);
    }

    fn read_digests(&self, disk: &Shown, leaf: LeafIndex, witness: &Mutex<Witness>) {
        let top = format!("{}.b3", disk.name);
        let Some(found) = self.walk(&top, &Node::of_leaf(leaf).path(), witness) else { return };
        witness.lock().unwrap().digests_seen(disk, leaf, &found);
        let text = self.ask("reading digests", |view| {
            let mut buffer = vec![0; found.size as usize + 1];
            let count = view.read(found.inode, 0, &mut buffer)?;
            buffer.truncate(count);
            Ok(buffer)
        });
        if let Some(text) = text {
            assert!(text == disk.digests_text(leaf).as_bytes(), "the digests of leaf {} are wrong", leaf.0);
        }
    }

    /// Waits for the stamp of a directory, which may take the whole scan.
    fn look_at_directory(
        &self,
        disk: &Shown,
        chunk: ChunkIndex,
        witness: &Mutex<Witness>,
        chance: &mut Chance,
    ) {
        let mut node = Node::of_chunk(chunk);
        (0..chance.of(1..8)).for_each(|_| node = node.parent());
        let path = node.path();
        let Some(found) = self.walk(&disk.name, &path, witness) else { return };
        let full = if path.is_empty() { disk.name.clone() } else { format!("{}/{path}", disk.name) };
        if let Some(settled) = self.ask(&full, |view| view.attributes(found.inode)) {
            assert!(settled.settled);
            witness.lock().unwrap().directory_seen(&full, &settled);
        }
    }

    fn look_at_file(&self, witness: &Mutex<Witness>) {
        for (name, content) in &self.files {
            let Some(found) = self.walk(name, "", witness) else { return };
            witness.lock().unwrap().file_seen(name, content, &found);
        }
        if self.has_newest && !self.is_failing() {
            // Then nobody waits for a scan to be told the root's.
            assert!(self.view.attributes(Inode::MOUNT_ROOT).unwrap().settled);
        }
        if let Some(root) = self.ask("the root", |view| view.attributes(Inode::MOUNT_ROOT)) {
            witness.lock().unwrap().root_seen(&root, self.has_newest);
        }
    }

    fn seek(&self, disk: &Shown, chunk: ChunkIndex, witness: &Mutex<Witness>) {
        let Some(found) = self.walk(&disk.name, &Node::of_chunk(chunk).path(), witness) else { return };
        let sought = self.ask("seeking", |view| match view.seek(found.inode, 0, Seek::Data) {
            Ok(data) => Ok(data),
            Err(ViewError::Nowhere) => Ok(found.size),
            Err(error) => Err(error),
        });
        if let Some(data) = sought {
            assert!(disk.chunk(chunk)[..data as usize].iter().all(|byte| *byte == 0), "data in a hole");
        }
    }

    /// Looks at everything when all is compared, and has it vouched for.
    pub(crate) fn look_at_all(&self, witness: &Mutex<Witness>) {
        for disk in &self.shown {
            let (mut stamps, mut lists) = (Vec::new(), Vec::new());
            for leaf in (0..disk.geometry().leaf_count()).map(LeafIndex) {
                let path = Node::of_leaf(leaf).path();
                let directory = self.walk(&disk.name, &path, witness).unwrap();
                let listed = self.list(&path, directory.inode, 1000).unwrap();
                let mut witness_now = witness.lock().unwrap();
                for (slot, entry) in listed.iter().enumerate() {
                    witness_now.chunk_seen(disk, leaf.chunk(slot), &entry.attributes);
                    stamps.push(entry.attributes.stamp.0);
                }
                drop(witness_now);
                let newest = listed.iter().map(|entry| entry.attributes.stamp).max().unwrap();
                assert_eq!(directory.stamp, newest, "leaf {} is as new as its newest chunk", leaf.0);
                assert_eq!((directory.nlink, directory.settled), (2, true));
                let list = self.walk(&format!("{}.b3", disk.name), &path, witness).unwrap();
                assert!(list.stamp >= newest);
                lists.push(list.stamp.0);
                self.read_digests(disk, leaf, witness);
            }
            if let Some(newest) = stamps.iter().max() {
                let root = self.walk(&disk.name, "", witness).unwrap();
                assert_eq!((root.stamp.0, root.nlink), (*newest, 3));
            }
            witness.lock().unwrap().vouch(disk, &stamps, &lists);
        }
    }
}
