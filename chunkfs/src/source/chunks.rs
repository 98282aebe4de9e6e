//! A directory of chunks as a source: the image that they were once cut from.
//! Works on any file system that holds them: a copy, a snapshot of rsnapshot, a mount of restic or of chunkfs.
//! Nothing here writes, follows a link or believes a length.

use super::beneath::Fault;
use super::shape::{ChunkTree, ChunksError, Digests, Known};
use super::{Extent, ExtentKind, Source, SourceError};
use crate::core::digest::Digest;
use crate::core::geometry::{
    ByteRange, CHUNKS_PER_LEAF, ChunkIndex, ChunkSize, Geometry, ImageLen, LeafIndex,
};
use crate::core::layout::Node;
use lru::LruCache;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// The verified chunks that are kept, in bytes; at least one chunk.
const CACHE_BYTES: u64 = 32 << 20;
/// The leaves whose digests are kept: 8 KiB each.
const CACHED_LEAVES: NonZeroUsize = NonZeroUsize::new(64).expect("64 is not zero");
/// Readers of chunks in different stripes do not wait for each other.
const STRIPES: usize = 16;

/// What a read checks before it gives out bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verification {
    /// Every chunk's length, and its digest where there are digests.
    Digests,
    /// Nothing but that the bytes are there: to read on past damage. What is not there is an error all the same.
    None,
}

/// The image that a directory of chunks makes.
#[derive(Debug)]
pub struct ChunksSource {
    tree: ChunkTree,
    geometry: Geometry,
    verification: Verification,
    digests: Mutex<LruCache<u64, Arc<Vec<Digest>>>>,
    verified: Mutex<LruCache<u64, Arc<Vec<u8>>>>,
    loading: [Mutex<()>; STRIPES],
}

impl ChunksSource {
    /// Where `known` says nothing, the chunk size is that of the first chunks, and the length that up to the last
    /// chunk: of the files or of the digests, whichever speak of more.
    pub fn open(path: &Path, verification: Verification, known: Known) -> Result<ChunksSource, ChunksError> {
        let digests = match verification {
            Verification::Digests => Digests::Required,
            Verification::None => Digests::Optional,
        };
        let tree = ChunkTree::open(path, digests)?;
        let geometry = geometry_of(&tree, known)?;
        let cached = NonZeroUsize::new((CACHE_BYTES / geometry.chunk_size().bytes()) as usize);
        Ok(ChunksSource {
            tree,
            geometry,
            verification,
            digests: Mutex::new(LruCache::new(CACHED_LEAVES)),
            verified: Mutex::new(LruCache::new(cached.unwrap_or(NonZeroUsize::MIN))),
            loading: Default::default(),
        })
    }

    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Without links.
    pub fn path(&self) -> &Path {
        self.tree.root.path()
    }

    /// `None`: there are no digests.
    pub fn digests_path(&self) -> Option<&Path> {
        self.tree.digests.as_ref().map(|digests| digests.root().path())
    }

    /// Is every chunk compared with its digest? Not where there are none: then only lengths are checked.
    pub fn is_verified(&self) -> bool {
        self.verification == Verification::Digests && self.tree.digests.is_some()
    }

    /// Some bytes of one chunk, from `within` on.
    fn read_chunk(&self, chunk: ChunkIndex, within: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        let len = self.geometry.range_of(chunk).expect("the range lies inside the image").len();
        assert!(within + buffer.len() as u64 <= len);
        if !self.is_verified() {
            return self.read_file(chunk, within, buffer, len);
        }
        if buffer.len() as u64 == len {
            return self.read_whole(chunk, buffer);
        }
        let bytes = self.verified_chunk(chunk, len)?;
        buffer.copy_from_slice(&bytes[within as usize..][..buffer.len()]);
        Ok(())
    }

    fn read_whole(&self, chunk: ChunkIndex, buffer: &mut [u8]) -> Result<(), SourceError> {
        let digest = self.digest_of(chunk)?;
        self.read_file(chunk, 0, buffer, buffer.len() as u64)?;
        match digest.is_none_or(|digest| digest == Digest::of_chunk(buffer)) {
            true => Ok(()),
            false => Err(self.damaged(chunk, "stale or damaged: its digest differs".to_owned())),
        }
    }

    fn verified_chunk(&self, chunk: ChunkIndex, len: u64) -> Result<Arc<Vec<u8>>, SourceError> {
        // The parts of a chunk are asked for by several threads at once: one of them reads it for all.
        let stripe = &self.loading[(chunk.0 % STRIPES as u64) as usize];
        let _loading = stripe.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(bytes) = lock(&self.verified).get(&chunk.0) {
            return Ok(Arc::clone(bytes));
        }
        let mut bytes = vec![0; len as usize];
        self.read_whole(chunk, &mut bytes)?;
        let bytes = Arc::new(bytes);
        lock(&self.verified).put(chunk.0, Arc::clone(&bytes));
        Ok(bytes)
    }

    /// `None`: there are no digests, or none are asked for.
    fn digest_of(&self, chunk: ChunkIndex) -> Result<Option<Digest>, SourceError> {
        let Some(digests) = self.leaf_digests(chunk.leaf())? else { return Ok(None) };
        match digests.get(chunk.slot_in_leaf()) {
            Some(digest) => Ok(Some(*digest)),
            None => Err(self.damaged(chunk, "surplus: the digests end before it".to_owned())),
        }
    }

    fn leaf_digests(&self, leaf: LeafIndex) -> Result<Option<Arc<Vec<Digest>>>, SourceError> {
        let Some(tree) = self.tree.digests.as_ref().filter(|_| self.is_verified()) else { return Ok(None) };
        if let Some(digests) = lock(&self.digests).get(&leaf.0) {
            return Ok(Some(Arc::clone(digests)));
        }
        let digests = tree.read(leaf).map_err(|fault| SourceError::Damaged {
            what: tree.path_of(leaf).display().to_string(),
            why: format!("{fault}; so the chunks of its leaf cannot be verified"),
        })?;
        let digests = Arc::new(digests);
        lock(&self.digests).put(leaf.0, Arc::clone(&digests));
        Ok(Some(digests))
    }

    /// Reads from the file of a chunk, which should have `full` bytes.
    fn read_file(
        &self,
        chunk: ChunkIndex,
        within: u64,
        buffer: &mut [u8],
        full: u64,
    ) -> Result<(), SourceError> {
        let (file, len) = self.tree.root.file(Node::of_chunk(chunk).path()).map_err(|fault| match fault {
            Fault::Io(error) => self.read_error(chunk, within, buffer.len(), error),
            fault => self.damaged(chunk, fault.to_string()),
        })?;
        let lengths = match self.verification {
            Verification::Digests => full..=full,
            Verification::None => within + buffer.len() as u64..=u64::MAX,
        };
        if len < *lengths.start() {
            return Err(self.damaged(chunk, format!("short: it has {len} of {full} bytes")));
        }
        if len > *lengths.end() {
            return Err(self.damaged(chunk, format!("too long: it has {len} bytes instead of {full}")));
        }
        file.read_exact_at(buffer, within)
            .map_err(|error| self.read_error(chunk, within, buffer.len(), error))
    }

    fn damaged(&self, chunk: ChunkIndex, why: String) -> SourceError {
        SourceError::Damaged { what: self.tree.path_of(chunk).display().to_string(), why }
    }

    fn read_error(&self, chunk: ChunkIndex, offset: u64, length: usize, error: io::Error) -> SourceError {
        let what = self.tree.path_of(chunk).display().to_string();
        SourceError::Read { what, offset, length: length as u64, error: Arc::new(error) }
    }
}

impl Source for ChunksSource {
    fn len(&self) -> ImageLen {
        self.geometry.image_len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let chunk = self.geometry.chunk_at(at).expect("the range lies inside the image");
            let range = self.geometry.range_of(chunk).expect("a chunk that holds a byte has a range");
            let part = rest.len().min((range.end - at) as usize);
            let (now, later) = rest.split_at_mut(part);
            self.read_chunk(chunk, at - range.start, now)?;
            at += part as u64;
            rest = later;
        }
        Ok(())
    }

    /// A chunk whose digest is that of zeros is known to be zero. Covers a leaf at most.
    fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, SourceError> {
        let all_data = vec![Extent { range, kind: ExtentKind::Data }];
        let Some(first) = self.geometry.chunk_at(range.start) else { return Ok(all_data) };
        // What is wrong with the digests is told to whoever reads, who learns it for the chunk in question.
        let Ok(Some(digests)) = self.leaf_digests(first.leaf()) else { return Ok(all_data) };
        let full = self.geometry.chunk_size().bytes();
        let zeros = Digest::of_zeros(full);
        let mut extents: Vec<Extent> = Vec::new();
        for chunk in (first.0..first.leaf().next().first_chunk().0).map(ChunkIndex) {
            let Some(bytes) = self.geometry.range_of(chunk).filter(|bytes| bytes.start < range.end) else {
                break;
            };
            let zeros = if bytes.len() == full { zeros } else { Digest::of_zeros(bytes.len()) };
            let is_zero = digests.get(chunk.slot_in_leaf()) == Some(&zeros);
            let kind = if is_zero { ExtentKind::Zero } else { ExtentKind::Data };
            let part = ByteRange::new(bytes.start.max(range.start), bytes.end.min(range.end));
            match extents.last_mut().filter(|last| last.kind == kind) {
                Some(last) => last.range.end = part.end,
                None => extents.push(Extent { range: part, kind }),
            }
        }
        assert!(extents.len() as u64 <= CHUNKS_PER_LEAF);
        Ok(extents)
    }

    fn describe(&self) -> String {
        self.path().display().to_string()
    }
}

fn geometry_of(tree: &ChunkTree, known: Known) -> Result<Geometry, ChunksError> {
    let path = || tree.root.path().to_owned();
    let shape = tree.shape(known)?;
    let chunks = shape.chunks_at_most();
    if chunks == 0 && tree.digests.is_none() && known.len.is_none() {
        // Nobody backs up an image of no bytes; but many a command line names the wrong directory.
        return Err(ChunksError::Empty { path: path() });
    }
    let chunk_size = match shape.chunk_size {
        Some(size) => size,
        None if chunks == 0 => ChunkSize::DEFAULT,
        None => return Err(ChunksError::ChunkSize { path: path() }),
    };
    match known.len {
        Some(len) => Ok(Geometry::new(len, chunk_size)),
        None => tree.geometry(chunks, chunk_size),
    }
}

/// A cache is whole whatever a thread that held it did: only lookups and insertions happen under the lock.
fn lock<T>(cache: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    cache.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests;
