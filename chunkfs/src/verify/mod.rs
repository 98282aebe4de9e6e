//! Goes through a whole tree of chunks and names everything that is wrong with it.
//! Nothing here mends anything, and no problem ends the work: only what keeps us from looking does.

mod compare;
mod problem;

pub use problem::{Problem, ProblemKind};

use crate::core::digest::Digest;
use crate::core::geometry::{ByteRange, ChunkIndex, ChunkSize, Geometry, LeafIndex};
use crate::core::layout::Tree;
use crate::source::beneath::Fault;
use crate::source::digests::{DigestCount, DigestFault};
use crate::source::shape::{ChunkTree, ChunksError, Digests, Known, Shape};
use crate::source::walk::{Entry, Walk};
use crate::source::{Source, SourceError};
use crate::watch::Watch;
use compare::Comparison;
use serde::Serialize;
use std::io;
use std::iter::Peekable;
use std::path::Path;

/// What to verify a tree against, besides its own digests.
#[derive(Clone, Copy)]
#[expect(missing_debug_implementations, reason = "an image need not be printable")]
pub struct Options<'a> {
    pub known: Known,
    /// The image that the tree was made of: bytes and lengths are compared with it.
    pub image: Option<&'a dyn Source>,
}

/// What was verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Chunks whose bytes were read.
    pub chunks: u64,
    pub bytes: u64,
    pub problems: u64,
    /// Without digests only names and lengths tell of damage.
    pub has_digests: bool,
    pub compared_with_image: bool,
    /// `false`: the watcher stopped it before the end.
    pub complete: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Chunks(#[from] ChunksError),
    /// The image that the chunks are to be compared with.
    #[error(transparent)]
    Image(#[from] SourceError),
    #[error("starting a thread to read: {0}")]
    Threads(io::Error),
}

/// `found` hears of each problem when it is found, roughly in the order of the tree, from several threads.
pub fn verify(
    path: &Path,
    options: &Options<'_>,
    watch: &dyn Watch,
    found: &(dyn Fn(&Problem) + Sync),
) -> Result<Report, VerifyError> {
    let tree = ChunkTree::open(path, Digests::Required)?;
    let geometry = geometry_of(&tree, options)?;
    watch.expect(geometry.image_len().bytes());
    let comparison = Comparison::new(&tree, options.image, watch, found);
    comparison.run(|batches| Survey::new(&tree, geometry, &comparison)?.run(batches))?;
    Ok(Report {
        chunks: comparison.chunks(),
        bytes: comparison.bytes(),
        problems: comparison.problems(),
        has_digests: tree.digests.is_some(),
        compared_with_image: options.image.is_some(),
        complete: !watch.is_stopped(),
    })
}

/// The image decides, where there is one; else the digests, where they tell the end; else the files.
fn geometry_of(tree: &ChunkTree, options: &Options<'_>) -> Result<Geometry, ChunksError> {
    let len = options.image.map(|image| image.len()).or(options.known.len);
    let shape = tree.shape(Known { len, ..options.known })?;
    let chunk_size = chunk_size_of(&shape);
    if let Some(len) = len {
        return Ok(Geometry::new(len, chunk_size));
    }
    let chunks = match shape.digests {
        Some(DigestCount::Exactly(chunks)) if chunks > 0 => chunks,
        _ => shape.chunks_at_most(),
    };
    if chunks == 0 && tree.digests.is_none() {
        return Err(ChunksError::Empty { path: tree.root.path().to_owned() });
    }
    tree.geometry(chunks, chunk_size)
}

/// Where no chunk tells it is still worth while to look: the first chunks are then named as damaged.
fn chunk_size_of(shape: &Shape) -> ChunkSize {
    let holds_all = ChunkSize::new(shape.longest.next_multiple_of(ChunkSize::MIN.bytes()));
    shape.chunk_size.or(holds_all).unwrap_or(ChunkSize::DEFAULT)
}

/// A chunk that is to be read, with what is known of it.
#[derive(Clone, Copy, Debug)]
struct Expected {
    chunk: ChunkIndex,
    /// In the image.
    range: ByteRange,
    digest: Option<Digest>,
}

/// The walk over both trees at once, leaf by leaf: it finds what names and lengths tell, and hands on the rest.
struct Survey<'a> {
    tree: &'a ChunkTree,
    geometry: Geometry,
    found: &'a Comparison<'a>,
    walk: Walk<'a>,
    digest_walk: Option<Peekable<Walk<'a>>>,
    leaf: Option<(LeafIndex, Option<Vec<Digest>>)>,
    /// The first chunk that the walk has not come to.
    next: u64,
}

impl<'a> Survey<'a> {
    fn new(
        tree: &'a ChunkTree,
        geometry: Geometry,
        found: &'a Comparison<'a>,
    ) -> Result<Survey<'a>, ChunksError> {
        let open_error = |error| ChunksError::Open { path: tree.root.path().to_owned(), error };
        let walk = Walk::new(&tree.root, Tree::Chunks).map_err(open_error)?;
        let digest_walk = tree.digests.as_ref().map(|digests| Walk::new(digests.root(), Tree::Digests));
        let digest_walk = digest_walk.transpose().map_err(open_error)?.map(Iterator::peekable);
        Ok(Survey { tree, geometry, found, walk, digest_walk, leaf: None, next: 0 })
    }

    fn run(mut self, batches: compare::Batches<'_>) -> Result<(), ChunksError> {
        let root = self.tree.root.path();
        let mut batches = batches;
        while let Some(entry) = self.walk.next() {
            if batches.is_stopped() {
                return Ok(());
            }
            match entry {
                Entry::File { node, .. } => {
                    let chunk = node.chunk().expect("the files of a chunk tree are chunks");
                    if let Some(expected) = self.arrive_at(chunk) {
                        batches.push(expected);
                    }
                }
                Entry::Wrong { node, kind } => {
                    if let Some(chunk) = node.chunk() {
                        self.arrive_at(chunk);
                    }
                    self.found.problem(&root.join(node.path()), ProblemKind::WrongKind { found: kind });
                }
                other => self.found.problem_of_entry(root, other),
            }
        }
        self.missing_up_to(self.geometry.chunk_count());
        self.digests_before(LeafIndex(u64::MAX));
        Ok(())
    }

    /// The walk has come to this chunk. `None`: there should be none.
    fn arrive_at(&mut self, chunk: ChunkIndex) -> Option<Expected> {
        self.missing_up_to(chunk.0.min(self.geometry.chunk_count()));
        self.next = self.next.max(chunk.0 + 1);
        let Some(range) = self.geometry.range_of(chunk) else {
            self.found.problem(&self.tree.path_of(chunk), ProblemKind::Surplus);
            return None;
        };
        if self.leaf.as_ref().is_none_or(|(leaf, _)| *leaf != chunk.leaf()) {
            let digests = self.digests_of(chunk.leaf());
            self.leaf = Some((chunk.leaf(), digests));
        }
        let digests = self.leaf.as_ref().and_then(|(_, digests)| digests.as_ref());
        let digest = digests.and_then(|digests| digests.get(chunk.slot_in_leaf())).copied();
        Some(Expected { chunk, range, digest })
    }

    fn missing_up_to(&mut self, end: u64) {
        if self.next < end {
            let path = |chunk| self.tree.path_of(ChunkIndex(chunk));
            self.found.report(&Problem::missing(&path(self.next), &path(end - 1), end - self.next));
            self.next = end;
        }
    }

    /// The digests of a leaf that has chunks, after naming what is wrong with those before it.
    fn digests_of(&mut self, leaf: LeafIndex) -> Option<Vec<Digest>> {
        self.digests_before(leaf);
        let walk = self.digest_walk.as_mut()?;
        match walk.next_if(|entry| leaf_of(entry) == Some(leaf)) {
            Some(entry) => self.read_digests(entry),
            None => {
                let digests = self.tree.digests.as_ref().expect("what is walked over is there");
                self.found.problem(&digests.path_of(leaf), ProblemKind::NoDigests);
                None
            }
        }
    }

    /// Goes through the files of digests before this leaf: their chunks are missing, or they are surplus.
    fn digests_before(&mut self, leaf: LeafIndex) {
        let not_yet = |entry: &Entry| leaf_of(entry).is_none_or(|at| at < leaf);
        while let Some(entry) = self.digest_walk.as_mut().and_then(|walk| walk.next_if(not_yet)) {
            self.read_digests(entry);
        }
    }

    fn read_digests(&self, entry: Entry) -> Option<Vec<Digest>> {
        let tree = self.tree.digests.as_ref().expect("what is walked over is there");
        let Entry::File { node, .. } = entry else {
            self.found.problem_of_entry(tree.root().path(), entry);
            return None;
        };
        let leaf = node.leaf().expect("the files of a digest tree are of leaves");
        let path = tree.path_of(leaf);
        let expected = self.geometry.chunks_in(leaf) as u64;
        if expected == 0 {
            self.found.problem(&path, ProblemKind::Surplus);
            return None;
        }
        match tree.read(leaf) {
            Ok(digests) => {
                let lines = digests.len() as u64;
                if lines != expected {
                    self.found.problem(&path, ProblemKind::WrongDigestCount { lines, expected });
                }
                Some(digests)
            }
            Err(DigestFault::File(Fault::Io(error))) => {
                self.found.problem(&path, ProblemKind::Unreadable { error: error.to_string() });
                None
            }
            Err(fault) => {
                self.found.problem(&path, ProblemKind::DamagedDigests { error: fault.to_string() });
                None
            }
        }
    }
}

/// The leaf of a file of digests, or of what stands in its place. `None`: neither.
fn leaf_of(entry: &Entry) -> Option<LeafIndex> {
    match entry {
        Entry::File { node, .. } | Entry::Wrong { node, .. } => node.leaf(),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
