//! A disk in the open generation: which of its leaves may be shown, and what they show.
//! Compares nothing itself; it says what has to be compared first.

use super::ranges::RangeSet;
use crate::core::changes::LeafSet;
use crate::core::digest::Digest;
use crate::core::geometry::{ByteRange, Geometry, LeafIndex};
use crate::core::layout::{DiskSlot, Tree};
use crate::core::stamp::Stamp;
use crate::index::record::{Content, Record};
use crate::index::{DiskState, Index, IndexError};
use crate::source::{ExtentKind, Source, SourceError};
use lru::LruCache;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

/// Leaves whose stamps are kept in memory: at most 11 KiB each.
const LEAVES_CACHED: NonZeroUsize = NonZeroUsize::new(512).expect("not zero");

/// What a leaf shows.
#[derive(Clone, Debug)]
pub struct LeafView {
    pub record: Record,
    /// Chunks that the source knows to be zero.
    pub holes: LeafSet,
}

/// Why something cannot be shown.
#[derive(Clone, Debug)]
pub enum NotShown {
    /// Not before these leaves have been compared.
    Pending(Range<u64>),
    Source(SourceError),
    Index(Arc<IndexError>),
}

impl From<SourceError> for NotShown {
    fn from(error: SourceError) -> NotShown {
        NotShown::Source(error)
    }
}

impl From<IndexError> for NotShown {
    fn from(error: IndexError) -> NotShown {
        NotShown::Index(Arc::new(error))
    }
}

/// A disk whose changes are tracked by an index.
pub struct Tracked {
    pub slot: DiskSlot,
    pub geometry: Geometry,
    /// The stamp of the open generation.
    pub stamp: Stamp,
    pub(super) source: Arc<dyn Source>,
    pub(super) index: Arc<Index>,
    live: Mutex<Live>,
}

pub(super) struct Live {
    /// Leaves that have not been compared in this generation and have to be.
    pub pending: RangeSet,
    /// All chunks of the leaves from here on are candidates; of those before, the ones that the index lists.
    pub all_from: u64,
    /// Where the scan goes on; a reader moves it to where it reads.
    pub cursor: u64,
    /// Directories of leaves, by their number, of which one has got this generation's stamp.
    changed: RangeSet,
    /// Why no more leaves can be compared.
    pub dead: Option<NotShown>,
    cache: LruCache<u64, Arc<LeafView>>,
}

impl Tracked {
    pub fn new(
        index: Arc<Index>,
        source: Arc<dyn Source>,
        disk: &DiskState,
        stamp: Stamp,
    ) -> Result<Tracked, IndexError> {
        let mut pending = RangeSet::default();
        pending.insert(disk.compared_to..disk.geometry.leaf_count());
        for leaf in index.candidate_leaves(disk.slot)? {
            pending.insert(leaf.0..leaf.0 + 1);
        }
        let live = Live {
            pending,
            all_from: disk.compared_to,
            cursor: 0,
            changed: RangeSet::default(),
            dead: None,
            cache: LruCache::new(LEAVES_CACHED),
        };
        Ok(Tracked { slot: disk.slot, geometry: disk.geometry, stamp, source, index, live: Mutex::new(live) })
    }

    pub(super) fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().expect("no panic while the lock is held")
    }

    /// What a leaf shows. It is stored in the index, so it will never be shown otherwise.
    pub fn leaf(&self, leaf: LeafIndex) -> Result<Arc<LeafView>, NotShown> {
        let (pending, all) = {
            let mut live = self.live();
            if let Some(view) = live.cache.get(&leaf.0) {
                return Ok(Arc::clone(view));
            }
            (live.pending.contains(leaf.0), leaf.0 >= live.all_from)
        };
        // In this order: a leaf that stops being pending in between has its stamps in the index.
        let (run, listed) = self.index.leaf_at(self.slot, leaf)?;
        let record = run.record;
        if pending && !self.is_settled(leaf, &record, listed, all) {
            return Err(self.live().dead.clone().unwrap_or(NotShown::Pending(leaf.0..leaf.0 + 1)));
        }
        let view = Arc::new(LeafView { holes: holes_of(&*self.source, &self.geometry, leaf)?, record });
        self.live().cache.put(leaf.0, Arc::clone(&view));
        Ok(view)
    }

    /// Can the comparison change no stamp any more, for all candidates have this generation's already?
    fn is_settled(&self, leaf: LeafIndex, record: &Record, listed: LeafSet, all: bool) -> bool {
        if let Record::Uniform(chunk) = record
            && chunk.stamp == self.stamp
        {
            return true;
        }
        let candidates = self.candidates(leaf, record, listed, all);
        candidates.iter().all(|slot| record.chunk(slot).stamp == self.stamp)
    }

    /// The chunks of a leaf that have to be compared: all, or those that the index lists and the unknown ones.
    pub(super) fn candidates(&self, leaf: LeafIndex, record: &Record, listed: LeafSet, all: bool) -> LeafSet {
        let count = self.geometry.chunks_in(leaf);
        let mut set = if all { LeafSet::ALL } else { listed.union(&record.unknown(count)) };
        (count..256).for_each(|slot| set.remove(slot));
        set
    }

    /// The newest stamp of some leaves: that of a directory.
    pub fn newest(&self, leaves: Range<u64>, tree: Tree) -> Result<Stamp, NotShown> {
        // In this order: a leaf that stops being pending in between has its stamp in the index.
        let pending = {
            let live = self.live();
            if live.has_changed_below(&leaves) {
                return Ok(self.stamp);
            }
            live.pending.intersects(&leaves)
        };
        let newest = match leaves.end - leaves.start {
            // The stamp of a file, its list of digests: from the record itself, which carries a checksum.
            1 => {
                let record = self.index.run_at(self.slot, LeafIndex(leaves.start))?.record;
                Some(if tree == Tree::Digests { record.digests_stamp() } else { record.newest() })
            }
            _ => self.index.newest_in(self.slot, leaves.clone(), tree)?,
        };
        match newest {
            // It cannot become newer, whatever is found in the leaves that are left.
            Some(newest) if newest == self.stamp => Ok(newest),
            _ if pending => Err(self.live().dead.clone().unwrap_or(NotShown::Pending(leaves))),
            Some(newest) => Ok(newest),
            None => Ok(self.stamp),
        }
    }

    /// The digests of a leaf's chunks, in order.
    pub fn digests(&self, leaf: LeafIndex) -> Result<Vec<Digest>, NotShown> {
        let count = self.geometry.chunks_in(leaf);
        if self.live().pending.contains(leaf.0) {
            return Err(self.live().dead.clone().unwrap_or(NotShown::Pending(leaf.0..leaf.0 + 1)));
        }
        // Not from the cache, which may hold the leaf as it was shown before its digests were known.
        let record = self.index.run_at(self.slot, leaf)?.record;
        (0..count)
            .map(|slot| match record.chunk(slot).content {
                Content::Digest(digest) => Ok(digest),
                Content::Zero => {
                    let range = self.geometry.range_of(leaf.chunk(slot)).expect("the leaf has the chunk");
                    Ok(Digest::of_zeros(range.len()))
                }
                Content::Unknown => Err(NotShown::Source(SourceError::Damaged {
                    what: self.source.describe(),
                    why: format!("chunk {} could not be read, so it has no digest", leaf.chunk(slot).0),
                })),
            })
            .collect()
    }

    /// A reader is here: what it brings into the page cache is compared next.
    pub fn follow(&self, leaf: LeafIndex) {
        let mut live = self.live();
        if live.pending.contains(leaf.0) {
            live.cursor = leaf.0;
        }
    }

    /// Is there an answer for whoever waits for these leaves? A directory's stamp is known when one of them is
    /// known to have this generation's, or when none is left to compare.
    pub(super) fn is_answered(&self, asked: &Range<u64>) -> bool {
        let live = self.live();
        live.dead.is_some() || !live.pending.intersects(asked) || live.has_changed_below(asked)
    }

    pub(super) fn is_done(&self) -> bool {
        self.live().pending.is_empty()
    }

    /// Chunks that are still to be compared, in whole leaves.
    pub fn pending_leaves(&self) -> u64 {
        self.live().pending.len()
    }

    /// Some leaves have been compared, and what was found is stored. `newest` is of their stamps, if any is new.
    pub(super) fn done(&self, leaves: Range<u64>, newest: Option<Stamp>) {
        let mut live = self.live();
        if newest == Some(self.stamp) {
            live.changed.insert(directories_of(&leaves));
        }
        if leaves.end - leaves.start == 1 {
            live.cache.pop(&leaves.start);
        } else {
            let cached: Vec<u64> =
                live.cache.iter().map(|(leaf, _)| *leaf).filter(|leaf| leaves.contains(leaf)).collect();
            cached.iter().for_each(|leaf| {
                live.cache.pop(leaf);
            });
        }
        live.pending.remove(leaves);
    }

    /// All leaves before this one have been compared in the last comparison of everything.
    pub(super) fn compared_to(&self) -> LeafIndex {
        let live = self.live();
        let end = self.geometry.leaf_count();
        LeafIndex(live.pending.first_in(&(live.all_from..end)).map_or(end, |range| range.start))
    }
}

impl Live {
    /// Is it known without asking the index that the newest stamp below a directory is this generation's?
    fn has_changed_below(&self, asked: &Range<u64>) -> bool {
        let is_directory = asked.start.is_multiple_of(256) && asked.end.is_multiple_of(256);
        is_directory && self.changed.intersects(&directories_of(asked))
    }
}

/// The directories that hold some leaves' directories: 256 in each.
fn directories_of(leaves: &Range<u64>) -> Range<u64> {
    leaves.start / 256..leaves.end.div_ceil(256)
}

impl std::fmt::Debug for Tracked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracked")
            .field("slot", &self.slot)
            .field("source", &self.source.describe())
            .finish_non_exhaustive()
    }
}

/// The chunks of a leaf that the source knows to be zero.
pub fn holes_of(source: &dyn Source, geometry: &Geometry, leaf: LeafIndex) -> Result<LeafSet, SourceError> {
    let mut holes = LeafSet::EMPTY;
    let range = geometry.leaf_range(leaf);
    let mut at = range.start;
    while at < range.end {
        for extent in source.extents(ByteRange::new(at, range.end))? {
            if extent.kind == ExtentKind::Zero {
                insert_whole_chunks(&mut holes, geometry, extent.range);
            }
            at = extent.range.end;
        }
    }
    Ok(holes)
}

fn insert_whole_chunks(set: &mut LeafSet, geometry: &Geometry, bytes: ByteRange) {
    let size = geometry.chunk_size().bytes();
    let first = bytes.start.div_ceil(size);
    // The last chunk may be short, and whole all the same.
    let end =
        if bytes.end == geometry.image_len().bytes() { bytes.end.div_ceil(size) } else { bytes.end / size };
    for chunk in first..end {
        set.insert(crate::core::geometry::ChunkIndex(chunk).slot_in_leaf());
    }
}
