//! Sets of chunks: those of a leaf, and those of a disk that may have changed.
//! Pure.

use super::geometry::{ByteRange, CHUNKS_PER_LEAF, Geometry, LeafIndex};
use std::collections::BTreeMap;

/// A set of the 256 chunks of a leaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeafSet([u64; 4]);

impl LeafSet {
    pub const EMPTY: LeafSet = LeafSet([0; 4]);
    pub const ALL: LeafSet = LeafSet([u64::MAX; 4]);

    pub fn insert(&mut self, slot: usize) {
        self.0[slot / 64] |= 1 << (slot % 64);
    }

    pub fn remove(&mut self, slot: usize) {
        self.0[slot / 64] &= !(1 << (slot % 64));
    }

    pub fn contains(&self, slot: usize) -> bool {
        self.0[slot / 64] & 1 << (slot % 64) != 0
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::EMPTY
    }

    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    pub fn union(&self, other: &LeafSet) -> LeafSet {
        LeafSet(std::array::from_fn(|n| self.0[n] | other.0[n]))
    }

    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..CHUNKS_PER_LEAF as usize).filter(|slot| self.contains(*slot))
    }

    /// 32 bytes, the lowest chunk in the lowest bit of the first.
    pub fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (bytes, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub fn from_bytes(bytes: &[u8; 32]) -> LeafSet {
        let (words, _) = bytes.as_chunks::<8>();
        LeafSet(std::array::from_fn(|n| u64::from_le_bytes(words[n])))
    }
}

/// The chunks of a disk that may have changed, by leaf: at most 40 bytes a leaf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeSet {
    leaves: BTreeMap<u64, LeafSet>,
}

impl ChangeSet {
    /// Every chunk that has a byte in the range. Bytes past the end of the image are left out.
    pub fn insert(&mut self, geometry: &Geometry, bytes: ByteRange) {
        let end = bytes.end.min(geometry.image_len().bytes());
        let Some(first) = geometry.chunk_at(bytes.start).filter(|_| bytes.start < end) else { return };
        let last = geometry.chunk_at(end - 1).expect("the byte before the end is in the image");
        for leaf in first.leaf().0..=last.leaf().0 {
            let set = self.leaves.entry(leaf).or_default();
            let chunks = geometry.chunk_range(LeafIndex(leaf));
            for chunk in chunks.start.max(first.0)..chunks.end.min(last.0 + 1) {
                set.insert((chunk % CHUNKS_PER_LEAF) as usize);
            }
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (LeafIndex, &LeafSet)> {
        self.leaves.iter().map(|(leaf, set)| (LeafIndex(*leaf), set))
    }

    pub fn get(&self, leaf: LeafIndex) -> LeafSet {
        self.leaves.get(&leaf.0).copied().unwrap_or_default()
    }

    /// The number of chunks.
    pub fn len(&self) -> u64 {
        self.leaves.values().map(|set| set.len() as u64).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.leaves.values().all(LeafSet::is_empty)
    }
}

#[cfg(test)]
mod tests {
    use super::super::geometry::{ChunkIndex, ChunkSize, ImageLen};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_change_marks_exactly_the_chunks_that_it_touches(start in 0u64..1 << 24, len in 0u64..1 << 22, image in 0u64..1 << 24) {
            let g = Geometry::new(ImageLen::new(image).unwrap(), ChunkSize::MIN);
            let range = ByteRange::new(start, start + len);
            let mut changes = ChangeSet::default();
            changes.insert(&g, range);
            for chunk in 0..g.chunk_count() {
                let bytes = g.range_of(ChunkIndex(chunk)).unwrap();
                let touched = bytes.start < range.end && range.start < bytes.end && !range.is_empty();
                let marked = changes.get(ChunkIndex(chunk).leaf()).contains(ChunkIndex(chunk).slot_in_leaf());
                prop_assert_eq!(marked, touched, "chunk {}", chunk);
            }
        }

        #[test]
        fn sets_survive_their_bytes(slots in prop::collection::btree_set(0usize..256, 0..256)) {
            let mut set = LeafSet::EMPTY;
            slots.iter().for_each(|slot| set.insert(*slot));
            prop_assert_eq!(LeafSet::from_bytes(&set.to_bytes()), set);
            prop_assert_eq!(set.len(), slots.len());
            prop_assert!(set.iter().eq(slots.iter().copied()));
            slots.iter().for_each(|slot| set.remove(*slot));
            prop_assert!(set.is_empty());
        }
    }
}
