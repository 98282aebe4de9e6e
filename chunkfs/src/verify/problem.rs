//! What can be wrong with a tree of chunks, in words and as JSON.
//! Nothing here looks at a tree.

use crate::source::beneath::Kind;
use serde::Serialize;
use std::fmt;
use std::path::Path;

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// For people: what is not text in a file's name is escaped, since the tree may hold any name.
    pub path: String,
    #[serde(flatten)]
    pub kind: ProblemKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "problem", rename_all = "kebab-case")]
pub enum ProblemKind {
    /// There is no such chunk, nor any of those up to `last`: `chunks` in all.
    Missing {
        last: String,
        chunks: u64,
    },
    Short {
        bytes: u64,
        expected: u64,
    },
    TooLong {
        bytes: u64,
        expected: u64,
    },
    /// The bytes are not those that the digest was made of: an old chunk, or a damaged one, or one in the place of
    /// another, or an old digest.
    Stale,
    /// The chunk is not what the image has there. `offset` is that of the first byte that differs, in the image.
    DiffersFromImage {
        offset: u64,
    },
    /// A chunk, or a file of digests, past the end of the image.
    Surplus,
    /// Something else stands where a file or directory of the tree belongs.
    WrongKind {
        found: Kind,
    },
    /// A name that is none of the tree's.
    Foreign,
    Unreadable {
        error: String,
    },
    /// Other leaves have digests; these chunks have none.
    NoDigests,
    DamagedDigests {
        error: String,
    },
    /// The file lists fewer or more chunks than the leaf has.
    WrongDigestCount {
        lines: u64,
        expected: u64,
    },
}

impl Problem {
    pub(super) fn new(path: &Path, kind: ProblemKind) -> Problem {
        Problem { path: printable(path), kind }
    }

    pub(super) fn missing(first: &Path, last: &Path, chunks: u64) -> Problem {
        Problem::new(first, ProblemKind::Missing { last: printable(last), chunks })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.kind)
    }
}

impl fmt::Display for ProblemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use ProblemKind::*;
        match self {
            Missing { chunks: 1, .. } => f.write_str("missing"),
            Missing { last, chunks } => write!(f, "missing, as are all up to {last}: {chunks} chunks"),
            Short { bytes, expected } => write!(f, "short: it has {bytes} of {expected} bytes"),
            TooLong { bytes, expected } => write!(f, "too long: it has {bytes} bytes instead of {expected}"),
            Stale => f.write_str("stale or damaged: its digest differs"),
            DiffersFromImage { offset } => write!(f, "differs from the image, first at byte {offset}"),
            Surplus => f.write_str("surplus: the image ends before it"),
            WrongKind { found } => write!(f, "{found} is in its place"),
            Foreign => f.write_str("foreign: no part of the tree has such a name"),
            Unreadable { error } => write!(f, "cannot be read: {error}"),
            NoDigests => f.write_str("missing: the chunks of this leaf have no digests"),
            DamagedDigests { error } => write!(f, "{error}; the chunks of this leaf cannot be verified"),
            WrongDigestCount { lines, expected } => {
                write!(f, "lists {lines} chunks where there should be {expected}")
            }
        }
    }
}

/// A name may hold what moves a terminal's cursor.
fn printable(path: &Path) -> String {
    let text = path.to_string_lossy();
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}
