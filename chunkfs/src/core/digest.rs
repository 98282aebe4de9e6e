//! The digest of a chunk, and the text in which a leaf's digests stand in the tree.
//! Pure. The text is what `b3sum --check` reads: docs/format.md has an example.

use super::geometry::{ChunkIndex, Geometry, LeafIndex};
use super::layout::Node;
use std::collections::HashMap;
use std::fmt;
use std::sync::Mutex;

/// BLAKE3 of the bytes of a chunk, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(*blake3::hash(bytes).as_bytes())
    }

    /// As `of`, but without hashing when all bytes are zero, which is many times faster to find out.
    pub fn of_chunk(bytes: &[u8]) -> Digest {
        if is_zero(bytes) { Digest::of_zeros(bytes.len() as u64) } else { Digest::of(bytes) }
    }

    /// The digest of so many zero bytes: at most a chunk of 64 MiB.
    pub fn of_zeros(len: u64) -> Digest {
        static KNOWN: Mutex<Option<HashMap<u64, Digest>>> = Mutex::new(None);
        let mut known = KNOWN.lock().expect("no panic while the lock is held");
        let known = known.get_or_insert_with(HashMap::new);
        *known.entry(len).or_insert_with(|| {
            const ZEROS: [u8; 4096] = [0; 4096];
            let mut hasher = blake3::Hasher::new();
            for _ in 0..len / 4096 {
                hasher.update(&ZEROS);
            }
            Digest(*hasher.update(&ZEROS[..(len % 4096) as usize]).finalize().as_bytes())
        })
    }

    /// `None`: not 64 lower case hex digits.
    pub fn parse(hex: &str) -> Option<Digest> {
        if hex.bytes().any(|c| c.is_ascii_uppercase()) {
            return None;
        }
        blake3::Hash::from_hex(hex).ok().map(|hash| Digest(*hash.as_bytes()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// Are all bytes zero? Reads 16 bytes at a time.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<64>();
    // Whole lines first, so that the compiler can use wide registers; out at the first line that is not zero.
    let line_is_zero = |line: &[u8; 64]| line.iter().fold(0, |or, byte| or | byte) == 0;
    words.iter().all(line_is_zero) && rest.iter().all(|byte| *byte == 0)
}

/// Writes and reads the lines of one leaf of a disk: `<hex>  <disk>/00/00/00/00/00/01/23/45`.
///
/// b3sum escapes a backslash or a line feed in a name, and then puts a backslash in front of the line.
#[derive(Clone, Debug)]
pub struct DigestLines {
    escape: &'static str,
    directory: String,
}

impl DigestLines {
    /// `disk` is the name of the disk's directory, `leaf` the leaf whose digests the lines list.
    pub fn new(disk: &str, leaf: LeafIndex) -> DigestLines {
        let escaped = disk.replace('\\', "\\\\").replace('\n', "\\n");
        let escape = if escaped == disk { "" } else { "\\" };
        DigestLines { escape, directory: format!("{escaped}/{}", Node::of_leaf(leaf).path()) }
    }

    /// The length of each line in bytes, with its line feed: all are alike.
    pub fn line_len(&self) -> u64 {
        (self.escape.len() + 64 + 2 + self.directory.len() + 1 + 2 + 1) as u64
    }

    pub fn line(&self, chunk: ChunkIndex, digest: &Digest) -> String {
        let name = Node::of_chunk(chunk).name();
        format!("{}{digest}  {}/{}\n", self.escape, self.directory, name.as_str())
    }
}

/// What is wrong with a file of digests.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestsError {
    #[error("line {0} is not a digest of this leaf, as `b3sum` writes it")]
    Line(usize),
    #[error("more than 256 lines")]
    TooMany,
}

/// Reads a leaf's digests, in the order of its chunks. The disk may have had another name when they were written.
pub fn parse_digests(text: &str, leaf: LeafIndex) -> Result<Vec<Digest>, DigestsError> {
    let path = Node::of_leaf(leaf).path();
    let mut digests = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if at >= 256 {
            return Err(DigestsError::TooMany);
        }
        let place = format!("/{path}/{}", Node::of_chunk(leaf.chunk(at)).name().as_str());
        let line = line.strip_prefix('\\').unwrap_or(line);
        let digest = line
            .split_once("  ")
            .filter(|(_, file)| file.ends_with(&place))
            .and_then(|(hex, _)| Digest::parse(hex));
        digests.push(digest.ok_or(DigestsError::Line(at + 1))?);
    }
    Ok(digests)
}

/// The length in bytes of a leaf's file of digests.
pub fn digests_len(geometry: &Geometry, leaf: LeafIndex, lines: &DigestLines) -> u64 {
    geometry.chunks_in(leaf) as u64 * lines.line_len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn digests_are_those_that_b3sum_prints() {
        assert_eq!(
            Digest::of(b"").to_string(),
            "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        );
        assert_eq!(Digest::of_zeros(0), Digest::of(b""));
        for len in [1usize, 4095, 4096, 4097, 262144] {
            assert_eq!(Digest::of_zeros(len as u64), Digest::of(&vec![0; len]), "{len}");
            assert_eq!(Digest::of_chunk(&vec![0; len]), Digest::of(&vec![0; len]), "{len}");
        }
    }

    #[test]
    fn lines_are_written_as_b3sum_writes_them() {
        let digest = Digest::of(b"");
        let line = |disk| DigestLines::new(disk, LeafIndex(0x123)).line(ChunkIndex(0x12345), &digest);
        assert_eq!(line("mail01_vda"), format!("{digest}  mail01_vda/00/00/00/00/00/01/23/45\n"));
        assert_eq!(line("a\\b\nc"), format!("\\{digest}  a\\\\b\\nc/00/00/00/00/00/01/23/45\n"));
    }

    #[test]
    fn damaged_lines_are_named_and_never_guessed_at() {
        let leaf = LeafIndex(0);
        let good = DigestLines::new("vda", leaf).line(ChunkIndex(0), &Digest::of(b""));
        assert_eq!(parse_digests("", leaf), Ok(vec![]));
        assert_eq!(parse_digests(&good, leaf), Ok(vec![Digest::of(b"")]));
        let twice = format!("{good}{good}");
        for (text, error) in [
            (twice.as_str(), DigestsError::Line(2)),
            (&good[1..], DigestsError::Line(1)),
            (&good[..70], DigestsError::Line(1)),
            (&good.to_uppercase(), DigestsError::Line(1)),
            ("\n", DigestsError::Line(1)),
        ] {
            assert_eq!(parse_digests(text, leaf), Err(error), "{text}");
        }
        assert!(parse_digests(&good, LeafIndex(1)).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(leaf in 0u64..1 << 43, count in 0usize..=256, disk in "[a-z\\\\\n _%]{1,12}") {
            let leaf = LeafIndex(leaf);
            let lines = DigestLines::new(&disk, leaf);
            let digests: Vec<_> = (0..count).map(|n| Digest::of(&[n as u8])).collect();
            let text: String = digests.iter().enumerate().map(|(n, d)| lines.line(leaf.chunk(n), d)).collect();
            prop_assert_eq!(text.len() as u64, count as u64 * lines.line_len());
            prop_assert_eq!(parse_digests(&text, leaf), Ok(digests));
        }

        #[test]
        fn zero_is_found_exactly(len in 0usize..300, at in any::<prop::sample::Index>(), value in 1u8..) {
            let mut bytes = vec![0; len];
            prop_assert!(is_zero(&bytes));
            if len > 0 {
                bytes[at.index(len)] = value;
                prop_assert!(!is_zero(&bytes));
            }
        }
    }
}
