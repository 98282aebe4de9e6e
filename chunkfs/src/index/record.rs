//! What the index knows of the chunks of a leaf, and the bytes in which it is stored.
//! Pure: no database. docs/format.md describes the bytes; samples of them are kept in tests/data.

use crate::core::changes::LeafSet;
use crate::core::digest::Digest;
use crate::core::stamp::Stamp;

/// What is known of a chunk's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Never read, or not since it may have changed.
    Unknown,
    Zero,
    Digest(Digest),
}

/// What is known of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The generation that last saw it change, by its stamp.
    pub stamp: Stamp,
    pub content: Content,
}

/// What is known of a leaf, or of a run of leaves that are all alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// All chunks are alike, however many there are: never compared, or all zero.
    Uniform(Chunk),
    /// One leaf, chunk by chunk.
    Leaf(Leaf),
}

/// The chunks of a leaf, 1 to 256.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    pub chunks: Vec<Chunk>,
    /// When the leaf last lost chunks at its end: its list of digests changed then, though no chunk did.
    pub cut: Option<Stamp>,
}

impl Record {
    pub fn chunk(&self, slot: usize) -> Chunk {
        match self {
            Record::Uniform(chunk) => *chunk,
            Record::Leaf(leaf) => leaf.chunks[slot],
        }
    }

    /// The newest stamp of all chunks.
    pub fn newest(&self) -> Stamp {
        match self {
            Record::Uniform(chunk) => chunk.stamp,
            Record::Leaf(leaf) => leaf.chunks.iter().map(|c| c.stamp).max().expect("a leaf has a chunk"),
        }
    }

    /// The stamp of the list of digests.
    pub fn digests_stamp(&self) -> Stamp {
        match self {
            Record::Uniform(chunk) => chunk.stamp,
            Record::Leaf(leaf) => self.newest().max(leaf.cut.unwrap_or(Stamp(i64::MIN))),
        }
    }

    /// The leaf chunk by chunk, of which there are `count`.
    pub fn to_leaf(&self, count: usize) -> Leaf {
        match self {
            Record::Uniform(chunk) => Leaf { chunks: vec![*chunk; count], cut: None },
            Record::Leaf(leaf) => leaf.clone(),
        }
    }

    /// The chunks of which nothing is known.
    pub fn unknown(&self, count: usize) -> LeafSet {
        let mut set = LeafSet::EMPTY;
        (0..count)
            .filter(|slot| self.chunk(*slot).content == Content::Unknown)
            .for_each(|slot| set.insert(slot));
        set
    }
}

impl Leaf {
    /// The shorter form, where it says the same.
    pub fn into_record(self) -> Record {
        let first = self.chunks[0];
        let uniform = !matches!(first.content, Content::Digest(_))
            && self.cut.is_none_or(|cut| cut <= first.stamp)
            && self.chunks.iter().all(|chunk| *chunk == first);
        if uniform { Record::Uniform(first) } else { Record::Leaf(self) }
    }
}

const UNIFORM_UNKNOWN: u8 = 0;
const UNIFORM_ZERO: u8 = 1;
const LEAF: u8 = 2;
/// "No such stamp" on disk.
const NEVER: i64 = i64::MIN;

/// The bytes of a record. Integers are little endian.
///
/// ```text
/// uniform   kind: 0 unknown, 1 zero | stamp: i64
/// leaf      kind: 2 | chunks - 1: u8 | cut: i64, or its minimum
///           | known: 256 bits | zero: 256 bits
///           | runs of equal stamps - 1: u8 | for each: chunks - 1: u8, stamp: i64
///           | for each chunk that is known and not zero: BLAKE3, 32 bytes
/// ```
pub fn encode(record: &Record) -> Vec<u8> {
    match record {
        Record::Uniform(chunk) => {
            let kind = match chunk.content {
                Content::Unknown => UNIFORM_UNKNOWN,
                Content::Zero => UNIFORM_ZERO,
                Content::Digest(_) => unreachable!("chunks with digests are stored one by one"),
            };
            [&[kind][..], &chunk.stamp.0.to_le_bytes()].concat()
        }
        Record::Leaf(leaf) => encode_leaf(leaf),
    }
}

fn encode_leaf(leaf: &Leaf) -> Vec<u8> {
    assert!((1..=256).contains(&leaf.chunks.len()), "a leaf has 1 to 256 chunks");
    let (mut known, mut zero) = (LeafSet::EMPTY, LeafSet::EMPTY);
    for (slot, chunk) in leaf.chunks.iter().enumerate() {
        match chunk.content {
            Content::Unknown => {}
            Content::Zero => zero.insert(slot),
            Content::Digest(_) => known.insert(slot),
        }
    }
    let mut bytes = vec![LEAF, (leaf.chunks.len() - 1) as u8];
    bytes.extend(leaf.cut.map_or(NEVER, |cut| cut.0).to_le_bytes());
    bytes.extend(known.union(&zero).to_bytes());
    bytes.extend(zero.to_bytes());
    let runs: Vec<&[Chunk]> = leaf.chunks.chunk_by(|a, b| a.stamp == b.stamp).collect();
    bytes.push((runs.len() - 1) as u8);
    for run in runs {
        bytes.push((run.len() - 1) as u8);
        bytes.extend(run[0].stamp.0.to_le_bytes());
    }
    for chunk in &leaf.chunks {
        if let Content::Digest(digest) = chunk.content {
            bytes.extend(digest.0);
        }
    }
    bytes
}

/// `None`: no record has these bytes.
pub fn decode(bytes: &[u8]) -> Option<Record> {
    let mut reader = Reader(bytes);
    let record = match reader.u8()? {
        UNIFORM_UNKNOWN => Record::Uniform(Chunk { stamp: reader.stamp()?, content: Content::Unknown }),
        UNIFORM_ZERO => Record::Uniform(Chunk { stamp: reader.stamp()?, content: Content::Zero }),
        LEAF => Record::Leaf(decode_leaf(&mut reader)?),
        _ => return None,
    };
    reader.0.is_empty().then_some(record)
}

fn decode_leaf(reader: &mut Reader<'_>) -> Option<Leaf> {
    let count = usize::from(reader.u8()?) + 1;
    let cut = Some(reader.stamp()?).filter(|cut| cut.0 != NEVER);
    let known = LeafSet::from_bytes(reader.take()?);
    let zero = LeafSet::from_bytes(reader.take()?);
    let mut stamps = Vec::with_capacity(count);
    for _ in 0..usize::from(reader.u8()?) + 1 {
        let length = usize::from(reader.u8()?) + 1;
        stamps.extend(std::iter::repeat_n(reader.stamp()?, length));
    }
    let past_the_end = (count..256).any(|slot| known.contains(slot));
    if stamps.len() != count || known.union(&zero) != known || past_the_end {
        return None;
    }
    let mut chunks = Vec::with_capacity(count);
    for (slot, stamp) in stamps.into_iter().enumerate() {
        let content = match (known.contains(slot), zero.contains(slot)) {
            (false, _) => Content::Unknown,
            (true, true) => Content::Zero,
            (true, false) => Content::Digest(Digest(*reader.take()?)),
        };
        chunks.push(Chunk { stamp, content });
    }
    Some(Leaf { chunks, cut })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|byte| byte[0])
    }

    fn stamp(&mut self) -> Option<Stamp> {
        self.take().map(|bytes| Stamp(i64::from_le_bytes(*bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_chunk() -> impl Strategy<Value = Chunk> {
        let content = prop_oneof![
            Just(Content::Unknown),
            Just(Content::Zero),
            any::<[u8; 32]>().prop_map(|bytes| Content::Digest(Digest(bytes)))
        ];
        (0i64..8, content).prop_map(|(stamp, content)| Chunk { stamp: Stamp(stamp), content })
    }

    fn any_leaf() -> impl Strategy<Value = Leaf> {
        (prop::collection::vec(any_chunk(), 1..=256), prop::option::of(0i64..8))
            .prop_map(|(chunks, cut)| Leaf { chunks, cut: cut.map(Stamp) })
    }

    #[test]
    fn the_bytes_of_records_stay_as_they_are() {
        let chunk = |stamp, content| Chunk { stamp: Stamp(stamp), content };
        assert_eq!(encode(&Record::Uniform(chunk(258, Content::Zero))), [1, 2, 1, 0, 0, 0, 0, 0, 0]);
        let digest = Content::Digest(Digest([7; 32]));
        let leaf = Leaf {
            chunks: vec![chunk(1, digest), chunk(1, Content::Zero), chunk(2, Content::Unknown)],
            cut: None,
        };
        let mut expected = vec![2, 2, 0, 0, 0, 0, 0, 0, 0, 0x80, 3];
        expected.extend([0; 31]);
        expected.push(2);
        expected.extend([0; 31]);
        expected.extend([1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([7; 32]);
        assert_eq!(encode(&Record::Leaf(leaf)), expected);
    }

    proptest! {
        #[test]
        fn records_survive_their_bytes(leaf in any_leaf()) {
            let record = leaf.clone().into_record();
            prop_assert_eq!(decode(&encode(&record)), Some(record.clone()));
            prop_assert_eq!(decode(&encode(&Record::Leaf(leaf.clone()))), Some(Record::Leaf(leaf.clone())));
            let digests = record.digests_stamp();
            prop_assert_eq!(digests, Record::Leaf(leaf.clone()).digests_stamp());
            for slot in 0..leaf.chunks.len() {
                prop_assert_eq!(record.chunk(slot), leaf.chunks[slot]);
            }
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(record) = decode(&bytes) {
                prop_assert_eq!(encode(&record), bytes);
            }
        }
    }
}
