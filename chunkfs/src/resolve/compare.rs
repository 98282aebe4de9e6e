//! Comparing a leaf with what the index knows of it: which chunks have changed.
//! Reads the source; neither locks nor stores anything.

use crate::core::changes::LeafSet;
use crate::core::digest::{Digest, is_zero};
use crate::core::geometry::{ByteRange, Geometry, LeafIndex};
use crate::core::stamp::Stamp;
use crate::index::record::{Chunk, Content, Record};
use crate::source::{Source, SourceError, is_hole};

/// The bytes that are read at once.
const PIECE: usize = 256 << 10;

/// What a comparison found.
#[derive(Debug)]
pub(super) struct Compared {
    pub record: Record,
    /// Chunks that could not be read.
    pub still_open: LeafSet,
    pub bytes_read: u64,
}

/// A buffer that a thread keeps.
#[derive(Debug)]
pub struct Buffer(Vec<u8>);

impl Default for Buffer {
    fn default() -> Buffer {
        Buffer(vec![0; PIECE])
    }
}

/// Reads the `candidates` of a leaf and compares their digests. Changed chunks get `stamp`.
///
/// A chunk that cannot be read counts as changed: nobody can know that it is not, and who reads it gets the error.
/// Errors: the source as a whole is no longer what it was.
pub(super) fn compare(
    source: &dyn Source,
    geometry: &Geometry,
    leaf: LeafIndex,
    known: &Record,
    candidates: &LeafSet,
    stamp: Stamp,
    buffer: &mut Buffer,
) -> Result<Compared, SourceError> {
    let count = geometry.chunks_in(leaf);
    let mut chunks = known.to_leaf(count);
    let (mut still_open, mut bytes_read) = (LeafSet::EMPTY, 0);
    for slot in candidates.iter().take_while(|slot| *slot < count) {
        let range = geometry.range_of(leaf.chunk(slot)).expect("the leaf has the chunk");
        let before = chunks.chunks[slot];
        let now = match content_of(source, range, buffer, &mut bytes_read) {
            Ok(content) => content,
            Err(invalid @ SourceError::Invalid { .. }) => return Err(invalid),
            Err(error) => {
                tracing::warn!("{error}; the chunk counts as changed");
                still_open.insert(slot);
                Content::Unknown
            }
        };
        let same = now == before.content && now != Content::Unknown;
        chunks.chunks[slot] = Chunk { stamp: if same { before.stamp } else { stamp }, content: now };
    }
    Ok(Compared { record: chunks.into_record(), still_open, bytes_read })
}

/// The digest of some bytes of the source. Holes are not read.
pub fn content_of(
    source: &dyn Source,
    range: ByteRange,
    buffer: &mut Buffer,
    bytes_read: &mut u64,
) -> Result<Content, SourceError> {
    if is_hole(source, range)? {
        return Ok(Content::Zero);
    }
    let mut hasher: Option<blake3::Hasher> = None;
    let mut at = range.start;
    while at < range.end {
        let length = (range.end - at).min(PIECE as u64) as usize;
        let piece = &mut buffer.0[..length];
        source.read_at(at, piece)?;
        *bytes_read += length as u64;
        if hasher.is_none() && !is_zero(piece) {
            hasher = Some(hasher_of_zeros(at - range.start));
        }
        if let Some(hasher) = &mut hasher {
            hasher.update(piece);
        }
        at += length as u64;
    }
    Ok(match hasher {
        Some(hasher) => Content::Digest(Digest(*hasher.finalize().as_bytes())),
        None => Content::Zero,
    })
}

/// As if `count` zero bytes had been hashed.
fn hasher_of_zeros(count: u64) -> blake3::Hasher {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut hasher = blake3::Hasher::new();
    // Pieces are multiples of 4096 bytes.
    for _ in 0..count / ZEROS.len() as u64 {
        hasher.update(&ZEROS);
    }
    hasher
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::geometry::{ChunkSize, ImageLen};
    use crate::source::faulty::FaultySource;
    use crate::source::memory::MemorySource;

    #[test]
    fn only_what_differs_gets_the_new_stamp() {
        let mut bytes = vec![0u8; 5 * 4096 + 10];
        bytes[4096] = 1;
        bytes[3 * 4096] = 3;
        let g = Geometry::new(ImageLen::new(bytes.len() as u64).unwrap(), ChunkSize::MIN);
        let digest = |n: usize| Content::Digest(Digest::of(&bytes[n * 4096..(n + 1) * 4096]));
        let at = |stamp, content| Chunk { stamp: Stamp(stamp), content };
        let known = crate::index::record::Leaf {
            chunks: vec![
                at(1, Content::Zero),
                at(1, digest(1)),
                at(1, digest(1)),
                at(1, Content::Unknown),
                at(1, digest(1)),
                at(1, Content::Zero),
            ],
            cut: None,
        };
        let (source, faults) = FaultySource::new(MemorySource::new(bytes.clone()));
        faults.fail_in(ByteRange::new(4 * 4096, 4 * 4096 + 1));
        let mut candidates = LeafSet::ALL;
        let compared = compare(
            &source,
            &g,
            LeafIndex(0),
            &Record::Leaf(known.clone()),
            &candidates,
            Stamp(9),
            &mut Buffer::default(),
        );
        let compared = compared.unwrap();
        let stamps: Vec<_> = (0..6).map(|slot| compared.record.chunk(slot).stamp.0).collect();
        // Chunk 4 is a hole now, so that the bad sector in it is never read.
        assert_eq!(stamps, [1, 1, 9, 9, 9, 1]);
        assert_eq!(compared.record.chunk(5).content, Content::Zero);
        assert!(compared.still_open.is_empty());

        faults.fail_in(ByteRange::new(4096, 4097));
        candidates.remove(3);
        let compared = compare(
            &source,
            &g,
            LeafIndex(0),
            &Record::Leaf(known),
            &candidates,
            Stamp(9),
            &mut Buffer::default(),
        );
        let compared = compared.unwrap();
        assert_eq!(compared.still_open.iter().collect::<Vec<_>>(), [1]);
        assert_eq!(compared.record.chunk(1), at(9, Content::Unknown));
        assert_eq!(compared.record.chunk(3), at(1, Content::Unknown));
        faults.vanish();
        assert!(
            compare(
                &source,
                &g,
                LeafIndex(0),
                &compared.record,
                &candidates,
                Stamp(9),
                &mut Buffer::default()
            )
            .is_err()
        );
    }

    #[test]
    fn digests_of_large_chunks_are_those_of_all_their_bytes() {
        for first in [0, PIECE, 3 * PIECE - 1, 3 * PIECE] {
            let mut bytes = vec![0u8; 3 * PIECE + 100];
            bytes[first] = 7;
            let source = MemorySource::new(bytes.clone());
            let range = ByteRange::new(0, bytes.len() as u64);
            let content = content_of(&source, range, &mut Buffer::default(), &mut 0).unwrap();
            assert_eq!(content, Content::Digest(Digest::of(&bytes)), "{first}");
        }
    }
}
