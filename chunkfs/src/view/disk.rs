//! The two trees of one disk: its chunks, and their digests.
//! Says what a node shows; names beside the disk are another file's job.

use super::{Kind, Seek, ViewError};
use crate::core::digest::{Digest, DigestLines, digests_len};
use crate::core::geometry::{ByteRange, ChunkIndex, Geometry, LeafIndex};
use crate::core::layout::{DiskSlot, Node, Tree};
use crate::core::stamp::Stamp;
use crate::index::record::{Chunk, Content, Record};
use crate::resolve::{Buffer, LeafView, NotShown, Tracked, content_of, holes_of};
use crate::source::{ExtentKind, Lent, Source, SourceError};
use std::ops::Range;
use std::sync::Arc;

/// Where the stamps of a disk come from.
#[derive(Debug)]
pub enum Stamps {
    /// No index: every chunk shows the time of the mount.
    Fixed(Stamp),
    Tracked(Arc<Tracked>),
}

/// A disk in a view.
pub struct Disk {
    pub name: String,
    pub slot: DiskSlot,
    geometry: Geometry,
    source: Arc<dyn Source>,
    stamps: Stamps,
}

/// What a node shows.
pub(super) struct NodeFacts {
    pub kind: Kind,
    pub size: u64,
    pub blocks: u64,
    pub stamp: Stamp,
    pub nlink: u32,
}

/// `st_size` of a directory: the same for all and for ever.
pub(super) const DIRECTORY_SIZE: u64 = 4096;

impl Disk {
    pub fn new(
        name: String,
        slot: DiskSlot,
        geometry: Geometry,
        source: Arc<dyn Source>,
        stamps: Stamps,
    ) -> Disk {
        assert_eq!(geometry.image_len(), source.len(), "the geometry is that of the source");
        Disk { name, slot, geometry, source, stamps }
    }

    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// A node's child of a name. The node must exist in the tree.
    pub(super) fn child(&self, tree: Tree, parent: Node, name: &[u8]) -> Option<Node> {
        let node = parent.child(crate::core::layout::Name::parse(name)?)?;
        (node.level() <= tree.file_level() && node.exists(&self.geometry)).then_some(node)
    }

    pub(super) fn exists(&self, tree: Tree, node: Node) -> bool {
        node.level() <= tree.file_level() && node.exists(&self.geometry)
    }

    pub(super) fn is_file(tree: Tree, node: Node) -> bool {
        node.level() == tree.file_level()
    }

    /// The number of a directory's entries.
    pub(super) fn child_count(&self, node: Node) -> u64 {
        u64::from(node.child_count(&self.geometry))
    }

    /// What a node shows; of a directory, when its stamp is known.
    pub(super) fn facts(&self, tree: Tree, node: Node) -> Result<NodeFacts, ViewError> {
        match (tree, node.chunk(), node.leaf()) {
            (Tree::Chunks, Some(chunk), _) => self.chunk_facts(chunk, &*self.leaf(chunk.leaf())?),
            (Tree::Digests, _, Some(leaf)) => self.digests_facts(leaf),
            _ => Ok(self.directory_facts(tree, node, self.newest(node.leaves(), tree)?)),
        }
    }

    /// What a directory shows but for its stamp.
    pub(super) fn unsettled_facts(&self, tree: Tree, node: Node) -> NodeFacts {
        let stamp = match &self.stamps {
            Stamps::Fixed(stamp) => *stamp,
            Stamps::Tracked(tracked) => tracked.stamp,
        };
        self.directory_facts(tree, node, stamp)
    }

    fn directory_facts(&self, tree: Tree, node: Node, stamp: Stamp) -> NodeFacts {
        let has_directories = node.level() + 1 < tree.file_level();
        let nlink = 2 + if has_directories { u32::from(node.child_count(&self.geometry)) } else { 0 };
        NodeFacts { kind: Kind::Directory, size: DIRECTORY_SIZE, blocks: DIRECTORY_SIZE / 512, stamp, nlink }
    }

    /// What some chunks of a leaf show, without asking for the leaf once for each.
    pub(super) fn chunks_of(
        &self,
        leaf: LeafIndex,
    ) -> Result<impl Fn(usize) -> Result<NodeFacts, ViewError>, ViewError> {
        let view = self.leaf(leaf)?;
        Ok(move |slot| self.chunk_facts(leaf.chunk(slot), &view))
    }

    fn chunk_facts(&self, chunk: ChunkIndex, leaf: &LeafView) -> Result<NodeFacts, ViewError> {
        let size = self.geometry.range_of(chunk).ok_or(ViewError::NoEntry)?.len();
        let slot = chunk.slot_in_leaf();
        let known = leaf.record.chunk(slot);
        // A chunk of this generation may have been shown before anybody read it: that it is zero is then found
        // out too late, for what is shown does not change.
        let of_this_generation = matches!(&self.stamps, Stamps::Tracked(t) if t.stamp == known.stamp);
        let zero = leaf.holes.contains(slot) || (known.content == Content::Zero && !of_this_generation);
        let blocks = if zero { 0 } else { size.div_ceil(512) };
        Ok(NodeFacts { kind: Kind::File, size, blocks, stamp: known.stamp, nlink: 1 })
    }

    fn digests_facts(&self, leaf: LeafIndex) -> Result<NodeFacts, ViewError> {
        let size = digests_len(&self.geometry, leaf, &DigestLines::new(&self.name, leaf));
        let stamp = self.newest(leaf.0..leaf.0 + 1, Tree::Digests)?;
        Ok(NodeFacts { kind: Kind::File, size, blocks: size.div_ceil(512), stamp, nlink: 1 })
    }

    fn leaf(&self, leaf: LeafIndex) -> Result<Arc<LeafView>, ViewError> {
        match &self.stamps {
            Stamps::Tracked(tracked) => tracked.leaf(leaf).map_err(|error| self.error(error)),
            Stamps::Fixed(stamp) => {
                let record = Record::Uniform(Chunk { stamp: *stamp, content: Content::Unknown });
                Ok(Arc::new(LeafView { record, holes: holes_of(&*self.source, &self.geometry, leaf)? }))
            }
        }
    }

    fn newest(&self, leaves: Range<u64>, tree: Tree) -> Result<Stamp, ViewError> {
        match &self.stamps {
            Stamps::Fixed(stamp) => Ok(*stamp),
            Stamps::Tracked(tracked) => tracked.newest(leaves, tree).map_err(|error| self.error(error)),
        }
    }

    fn error(&self, error: NotShown) -> ViewError {
        ViewError::of(self.slot, error)
    }

    /// The bytes of a file of either tree.
    pub(super) fn read(
        &self,
        tree: Tree,
        node: Node,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, ViewError> {
        match (tree, node.chunk(), node.leaf()) {
            (Tree::Chunks, Some(chunk), _) => self.read_chunk(chunk, offset, buffer),
            (Tree::Digests, _, Some(leaf)) => {
                let text = self.digests_text(leaf)?;
                let text = text.as_bytes().get(offset as usize..).unwrap_or_default();
                let count = text.len().min(buffer.len());
                buffer[..count].copy_from_slice(&text[..count]);
                Ok(count)
            }
            _ => Err(ViewError::IsDirectory),
        }
    }

    fn read_chunk(&self, chunk: ChunkIndex, offset: u64, buffer: &mut [u8]) -> Result<usize, ViewError> {
        let range = self.geometry.range_of(chunk).ok_or(ViewError::NoEntry)?;
        let Some(left) = range.len().checked_sub(offset) else { return Ok(0) };
        let count = left.min(buffer.len() as u64) as usize;
        self.source.read_at(range.start + offset, &mut buffer[..count])?;
        self.follow(chunk);
        Ok(count)
    }

    /// As `read_chunk`: what the source lends, or else in a buffer that it may exchange.
    pub(super) fn read_chunk_into(
        &self,
        chunk: ChunkIndex,
        offset: u64,
        size: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Lent>, ViewError> {
        let range = self.geometry.range_of(chunk).ok_or(ViewError::NoEntry)?;
        let start = range.start.saturating_add(offset).min(range.end);
        let range = ByteRange::new(start, range.end.min(start + size as u64));
        let lent = self.source.lend(range)?;
        if lent.is_none() {
            self.source.read_into(range, buffer)?;
        }
        self.follow(chunk);
        Ok(lent)
    }

    pub(super) fn read_ahead(&self, chunk: ChunkIndex, end: u64) {
        if let Some(range) = self.geometry.range_of(chunk) {
            self.source.read_ahead(range.start.saturating_add(end).min(range.end));
        }
    }

    /// What a reader brings into the page cache is compared next.
    fn follow(&self, chunk: ChunkIndex) {
        if let Stamps::Tracked(tracked) = &self.stamps {
            tracked.follow(chunk.leaf());
        }
    }

    fn digests_text(&self, leaf: LeafIndex) -> Result<String, ViewError> {
        let digests = match &self.stamps {
            Stamps::Tracked(tracked) => tracked.digests(leaf).map_err(|error| self.error(error))?,
            Stamps::Fixed(_) => self.digests_now(leaf)?,
        };
        let lines = DigestLines::new(&self.name, leaf);
        Ok(digests.iter().enumerate().map(|(slot, digest)| lines.line(leaf.chunk(slot), digest)).collect())
    }

    /// Without an index nothing is remembered: the leaf is read.
    fn digests_now(&self, leaf: LeafIndex) -> Result<Vec<Digest>, SourceError> {
        let mut buffer = Buffer::default();
        let digest = |chunk| {
            let range = self.geometry.range_of(ChunkIndex(chunk)).expect("the leaf has the chunk");
            Ok(match content_of(&*self.source, range, &mut buffer, &mut 0)? {
                Content::Digest(digest) => digest,
                _ => Digest::of_zeros(range.len()),
            })
        };
        self.geometry.chunk_range(leaf).map(digest).collect()
    }

    pub(super) fn seek(&self, tree: Tree, node: Node, offset: u64, to: Seek) -> Result<u64, ViewError> {
        let size = self.facts(tree, node)?.size;
        if offset >= size {
            return Err(ViewError::Nowhere);
        }
        let (Tree::Chunks, Some(chunk)) = (tree, node.chunk()) else {
            return Ok(if to == Seek::Data { offset } else { size });
        };
        let range = self.geometry.range_of(chunk).ok_or(ViewError::NoEntry)?;
        let mut at = range.start + offset;
        while at < range.end {
            for extent in self.source.extents(ByteRange::new(at, range.end))? {
                if (extent.kind == ExtentKind::Data) == (to == Seek::Data) {
                    return Ok(extent.range.start - range.start);
                }
                at = extent.range.end;
            }
        }
        // There is a hole behind the end of every file, but no data.
        if to == Seek::Hole { Ok(size) } else { Err(ViewError::Nowhere) }
    }

    /// All files and directories of a tree below its root, the root included.
    pub(super) fn inode_count(&self, tree: Tree) -> u64 {
        let leaves = self.geometry.leaf_count();
        let directories: u64 = (0..7).map(|level| leaves.div_ceil(1 << (8 * level))).sum();
        1 + directories + if tree == Tree::Chunks { self.geometry.chunk_count() } else { 0 }
    }
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk")
            .field("name", &self.name)
            .field("geometry", &self.geometry)
            .finish_non_exhaustive()
    }
}
