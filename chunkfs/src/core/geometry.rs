//! Which bytes of an image belong to which chunk, and which chunks to which leaf.
//! Pure: no I/O, no clock, no threads. A test checks this.
//!
//! ```text
//! image    |---------------------------------------------------------|   ImageLen, up to 8 EiB
//! chunks   |   0   |   1   |   2   |  ...  |  255  |  256  |  ...  | n |   ChunkSize; the last may be short
//! leaves   |               leaf 0                  |     leaf 1 ...    |   256 chunks: one directory
//! ```

use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;

/// The chunks that one directory of the tree holds.
pub const CHUNKS_PER_LEAF: u64 = 256;

/// The length of an image in bytes: 0 to 8 EiB (2^63).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageLen(u64);

impl ImageLen {
    pub const MAX: ImageLen = ImageLen(1 << 63);

    /// `None`: longer than 8 EiB.
    pub fn new(bytes: u64) -> Option<ImageLen> {
        (bytes <= Self::MAX.0).then_some(ImageLen(bytes))
    }

    pub fn bytes(self) -> u64 {
        self.0
    }
}

/// The size of every chunk but the last, in bytes: a multiple of 4096 from 4 KiB to 64 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChunkSize(u32);

impl ChunkSize {
    /// 256 KiB, as chunkfs has always had it.
    pub const DEFAULT: ChunkSize = ChunkSize(256 << 10);
    pub const MIN: ChunkSize = ChunkSize(4096);
    pub const MAX: ChunkSize = ChunkSize(64 << 20);

    /// `None`: not a multiple of 4096 from 4 KiB to 64 MiB.
    pub fn new(bytes: u64) -> Option<ChunkSize> {
        let fits = (Self::MIN.bytes()..=Self::MAX.bytes()).contains(&bytes);
        (fits && bytes.is_multiple_of(Self::MIN.bytes())).then_some(ChunkSize(bytes as u32))
    }

    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }
}

/// Why a text is not a chunk size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a chunk size: give a multiple of 4096 from 4K to 64M, in bytes or as 256K or 1M")]
pub struct ChunkSizeError(String);

impl std::str::FromStr for ChunkSize {
    type Err = ChunkSizeError;

    /// Bytes, or a number with K or M (KiB, MiB).
    fn from_str(text: &str) -> Result<ChunkSize, ChunkSizeError> {
        let (digits, shift) = match text.as_bytes().last() {
            Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
            Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
            _ => (text, 0),
        };
        // `parse` would take a leading plus sign; nobody writes a size so.
        let number =
            digits.starts_with(|c: char| c.is_ascii_digit()).then(|| digits.parse::<u64>().ok()).flatten();
        number
            .and_then(|n| n.checked_mul(1 << shift))
            .and_then(ChunkSize::new)
            .ok_or_else(|| ChunkSizeError(text.to_owned()))
    }
}

impl fmt::Display for ChunkSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A chunk's number: 0 for the one at the start of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkIndex(pub u64);

impl ChunkIndex {
    pub fn leaf(self) -> LeafIndex {
        LeafIndex(self.0 / CHUNKS_PER_LEAF)
    }

    /// The place of the chunk in its leaf: 0 to 255.
    pub fn slot_in_leaf(self) -> usize {
        (self.0 % CHUNKS_PER_LEAF) as usize
    }
}

/// The number of a leaf: the 256 chunks that stand in one directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeafIndex(pub u64);

impl LeafIndex {
    pub fn first_chunk(self) -> ChunkIndex {
        ChunkIndex(self.0 * CHUNKS_PER_LEAF)
    }

    pub fn chunk(self, slot: usize) -> ChunkIndex {
        assert!((slot as u64) < CHUNKS_PER_LEAF);
        ChunkIndex(self.0 * CHUNKS_PER_LEAF + slot as u64)
    }

    pub fn next(self) -> LeafIndex {
        LeafIndex(self.0 + 1)
    }
}

/// Bytes of the image: from `start`, up to and without `end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ByteRange {
    pub start: u64,
    pub end: u64,
}

impl ByteRange {
    pub fn new(start: u64, end: u64) -> ByteRange {
        assert!(start <= end);
        ByteRange { start, end }
    }

    pub fn len(self) -> u64 {
        self.end - self.start
    }

    pub fn is_empty(self) -> bool {
        self.start == self.end
    }
}

/// An image of a certain length, cut into chunks of a certain size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    len: ImageLen,
    chunk_size: ChunkSize,
}

impl Geometry {
    pub fn new(len: ImageLen, chunk_size: ChunkSize) -> Geometry {
        Geometry { len, chunk_size }
    }

    pub fn image_len(&self) -> ImageLen {
        self.len
    }

    pub fn chunk_size(&self) -> ChunkSize {
        self.chunk_size
    }

    /// The number of chunks; 0 for an empty image.
    pub fn chunk_count(&self) -> u64 {
        self.len.0.div_ceil(self.chunk_size.bytes())
    }

    /// The number of leaves; 0 for an empty image.
    pub fn leaf_count(&self) -> u64 {
        self.chunk_count().div_ceil(CHUNKS_PER_LEAF)
    }

    /// The bytes of a chunk. `None`: past the end. The last chunk may be short.
    pub fn range_of(&self, chunk: ChunkIndex) -> Option<ByteRange> {
        let start = chunk.0.checked_mul(self.chunk_size.bytes())?;
        let end = start.saturating_add(self.chunk_size.bytes()).min(self.len.0);
        (start < self.len.0).then_some(ByteRange { start, end })
    }

    /// The chunk that a byte belongs to. `None`: past the end.
    pub fn chunk_at(&self, offset: u64) -> Option<ChunkIndex> {
        (offset < self.len.0).then(|| ChunkIndex(offset / self.chunk_size.bytes()))
    }

    /// The number of chunks in a leaf: 256, fewer in the last, 0 past the end.
    pub fn chunks_in(&self, leaf: LeafIndex) -> usize {
        let chunks = self.chunk_range(leaf);
        (chunks.end - chunks.start) as usize
    }

    /// The numbers of the chunks in a leaf; empty past the end.
    pub fn chunk_range(&self, leaf: LeafIndex) -> Range<u64> {
        let count = self.chunk_count();
        let first = leaf.0.saturating_mul(CHUNKS_PER_LEAF).min(count);
        first..first.saturating_add(CHUNKS_PER_LEAF).min(count)
    }

    /// The bytes of a leaf; empty past the end.
    pub fn leaf_range(&self, leaf: LeafIndex) -> ByteRange {
        let chunks = self.chunk_range(leaf);
        let at = |chunk: u64| chunk.saturating_mul(self.chunk_size.bytes()).min(self.len.0);
        ByteRange { start: at(chunks.start), end: at(chunks.end) }
    }

    /// The leaf that a byte belongs to; for a byte past the end, the leaf that would hold it.
    pub fn leaf_at(&self, offset: u64) -> LeafIndex {
        LeafIndex(offset / (self.chunk_size.bytes() * CHUNKS_PER_LEAF))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn geometry(len: u64, chunk: u64) -> Geometry {
        Geometry::new(ImageLen::new(len).unwrap(), ChunkSize::new(chunk).unwrap())
    }

    pub(crate) fn any_geometry() -> impl Strategy<Value = Geometry> {
        let len = prop_oneof![0..=(1u64 << 63), 0..(1u64 << 30), Just(1 << 63), Just(0)];
        let chunk = (1u64..=16384).prop_map(|n| n * 4096);
        (len, chunk).prop_map(|(len, chunk)| geometry(len, chunk))
    }

    #[test]
    fn edges_of_the_last_chunk_have_exact_ranges() {
        let range = |start, end| Some(ByteRange { start, end });
        assert_eq!(geometry(0, 262144).chunk_count(), 0);
        assert_eq!(geometry(0, 262144).range_of(ChunkIndex(0)), None);
        assert_eq!(geometry(1, 262144).range_of(ChunkIndex(0)), range(0, 1));
        assert_eq!(geometry(262143, 262144).range_of(ChunkIndex(0)), range(0, 262143));
        assert_eq!(geometry(262144, 262144).range_of(ChunkIndex(1)), None);
        assert_eq!(geometry(262145, 262144).range_of(ChunkIndex(1)), range(262144, 262145));
        let largest = geometry(1 << 63, 4096);
        assert_eq!(largest.chunk_count(), 1 << 51);
        assert_eq!(largest.range_of(ChunkIndex((1 << 51) - 1)), range((1 << 63) - 4096, 1 << 63));
        assert_eq!(largest.range_of(ChunkIndex(u64::MAX)), None);
    }

    #[test]
    fn chunk_sizes_are_multiples_of_4096_from_4_kib_to_64_mib() {
        for (text, expected) in
            [("4096", Some(4096)), ("256K", Some(262144)), ("64M", Some(64 << 20)), ("1m", Some(1 << 20))]
        {
            assert_eq!(text.parse::<ChunkSize>().ok().map(ChunkSize::bytes), expected, "{text}");
        }
        for text in [
            "",
            "0",
            "K",
            "4095",
            "4097",
            "65M",
            "-4096",
            "+4096",
            "4096.0",
            "256KB",
            "18446744073709551615M",
            "é",
        ] {
            assert!(text.parse::<ChunkSize>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn chunks_tile_the_image_without_gap_or_overlap(g in any_geometry(), pick in any::<u64>()) {
            let count = g.chunk_count();
            prop_assume!(count > 0);
            let chunk = ChunkIndex(pick % count);
            let range = g.range_of(chunk).unwrap();
            prop_assert!(range.start < range.end);
            prop_assert_eq!(g.chunk_at(range.start), Some(chunk));
            prop_assert_eq!(g.chunk_at(range.end - 1), Some(chunk));
            match g.range_of(ChunkIndex(chunk.0 + 1)) {
                Some(next) => {
                    prop_assert_eq!(next.start, range.end);
                    prop_assert_eq!(range.len(), g.chunk_size().bytes());
                }
                None => prop_assert_eq!(range.end, g.image_len().bytes()),
            }
            prop_assert_eq!(g.range_of(ChunkIndex(0)).unwrap().start, 0);
            prop_assert_eq!(g.range_of(ChunkIndex(count)), None);
        }

        #[test]
        fn leaves_tile_the_image_as_their_chunks_do(g in any_geometry(), pick in any::<u64>()) {
            let leaves = g.leaf_count();
            prop_assume!(leaves > 0);
            let leaf = LeafIndex(pick % leaves);
            let (range, chunks) = (g.leaf_range(leaf), g.chunk_range(leaf));
            prop_assert_eq!(range.start, g.range_of(ChunkIndex(chunks.start)).unwrap().start);
            prop_assert_eq!(range.end, g.range_of(ChunkIndex(chunks.end - 1)).unwrap().end);
            prop_assert_eq!(g.leaf_at(range.start), leaf);
            prop_assert_eq!(g.leaf_at(range.end - 1), leaf);
            prop_assert_eq!(g.chunks_in(LeafIndex(leaves)), 0);
            prop_assert!(g.leaf_range(LeafIndex(leaves)).is_empty());
        }
    }
}
