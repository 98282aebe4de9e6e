//! Finds out how an image was cut from the chunks that are there: their size, their number, its length.
//! Reads no chunk. What cannot be found out is an error that names the remedy, never a guess.

use super::beneath::{Beneath, Fault, Kind};
use super::digests::{DigestCount, DigestTree};
use super::walk::last_file;
use crate::core::geometry::{ChunkIndex, ChunkSize, Geometry, ImageLen};
use crate::core::layout::{Node, Tree};
use std::io;
use std::path::{Path, PathBuf};

/// What the user knows of an image, and the tree need not tell.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    pub chunk_size: Option<ChunkSize>,
    pub len: Option<ImageLen>,
}

impl Known {
    pub const NOTHING: Known = Known { chunk_size: None, len: None };
}

/// A directory of chunks, with its digests where it has them.
#[derive(Debug)]
pub struct ChunkTree {
    pub root: Beneath,
    pub digests: Option<DigestTree>,
}

/// How many chunks there are, and of what size, as far as the tree tells.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// One more than the number of the last chunk file.
    pub files: u64,
    pub digests: Option<DigestCount>,
    /// `None`: no chunk tells.
    pub chunk_size: Option<ChunkSize>,
    /// The length of the longest chunk file that was looked at.
    pub longest: u64,
}

/// Why a directory is not one of chunks that we can read.
#[derive(Debug, thiserror::Error)]
pub enum ChunksError {
    #[error("{path}: {error}")]
    Open { path: PathBuf, error: io::Error },
    #[error("digests of {path}: {fault}; --no-verify reads without them")]
    Digests { path: PathBuf, fault: Fault },
    #[error("{path}: there are no chunks in it, and no digests of any beside it")]
    Empty { path: PathBuf },
    #[error(
        "{path}: its first chunks do not tell the chunk size: they are missing or damaged; give --chunk-size"
    )]
    ChunkSize { path: PathBuf },
    #[error("{path}: {chunks} chunks of {chunk_size} bytes are more than 8 EiB")]
    TooLong { path: PathBuf, chunks: u64, chunk_size: ChunkSize },
}

impl ChunkTree {
    pub fn open(path: &Path, digests: Digests) -> Result<ChunkTree, ChunksError> {
        let root = Beneath::open(path).map_err(|error| ChunksError::Open { path: path.to_owned(), error })?;
        let found = match DigestTree::beside(&root) {
            Ok(None) => DigestTree::beside_name(path),
            found => found,
        };
        let digests = match digests {
            Digests::Required => {
                found.map_err(|fault| ChunksError::Digests { path: root.path().to_owned(), fault })?
            }
            // They would only have told how many chunks there were.
            Digests::Optional => found.unwrap_or(None),
        };
        Ok(ChunkTree { root, digests })
    }

    pub fn path_of(&self, chunk: ChunkIndex) -> PathBuf {
        self.root.path().join(Node::of_chunk(chunk).path())
    }

    pub fn shape(&self, known: Known) -> Result<Shape, ChunksError> {
        let open_error = |error| ChunksError::Open { path: self.root.path().to_owned(), error };
        let last = last_file(&self.root, Tree::Chunks).map_err(open_error)?.and_then(Node::chunk);
        let files = last.map_or(0, |chunk| chunk.0 + 1);
        let digests = self.digests.as_ref().map(DigestTree::count).transpose().map_err(open_error)?;
        let last_len = last.and_then(|chunk| self.len_of(chunk));
        let count = files.max(digests.map_or(0, DigestCount::chunks));
        let by_len = known.len.is_some_and(|len| count == 1 && last_len.is_some_and(|n| n < len.bytes()));
        let (full, tail) = match last_len {
            // The file of the largest number is not the last chunk, when more chunks are known to follow.
            Some(len) if files < count || by_len => (vec![len], None),
            other => (vec![], other),
        };
        let samples = self.samples(files.saturating_sub(1)).into_iter().chain(full).collect::<Vec<_>>();
        let chunk_size = known.chunk_size.or_else(|| tell_chunk_size(&samples, tail));
        let longest = samples.iter().copied().chain(tail).max().unwrap_or(0);
        Ok(Shape { files, digests, chunk_size, longest })
    }

    /// The lengths of some chunks before the last: one that is damaged must not decide for all.
    fn samples(&self, before: u64) -> Vec<u64> {
        let mut picks = vec![0, 1, 2, before / 2, before.saturating_sub(1)];
        picks.sort_unstable();
        picks.dedup();
        picks.retain(|pick| *pick < before);
        picks.into_iter().filter_map(|pick| self.len_of(ChunkIndex(pick))).collect()
    }

    /// An image of so many chunks. Its last chunk is as long as its file, or full where no file tells.
    pub fn geometry(&self, chunks: u64, chunk_size: ChunkSize) -> Result<Geometry, ChunksError> {
        let legal = 1..=chunk_size.bytes();
        let len = match chunks.checked_sub(1) {
            None => Some(0),
            Some(last) => {
                let last_len = self.len_of(ChunkIndex(last)).filter(|len| legal.contains(len));
                let before = last.checked_mul(chunk_size.bytes());
                before.and_then(|before| before.checked_add(last_len.unwrap_or(chunk_size.bytes())))
            }
        };
        let path = || self.root.path().to_owned();
        let len = len.and_then(ImageLen::new);
        len.map(|len| Geometry::new(len, chunk_size)).ok_or_else(|| ChunksError::TooLong {
            path: path(),
            chunks,
            chunk_size,
        })
    }

    fn len_of(&self, chunk: ChunkIndex) -> Option<u64> {
        match self.root.kind(Node::of_chunk(chunk).path()) {
            Ok((Kind::File, len)) => Some(len),
            _ => None,
        }
    }
}

/// Must the digests be readable where there are any?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digests {
    Required,
    Optional,
}

impl Shape {
    /// As many chunks as anything speaks of: one that is missing, or one that is too many, must be noticed, so
    /// both count.
    pub fn chunks_at_most(&self) -> u64 {
        self.files.max(self.digests.map_or(0, DigestCount::chunks))
    }
}

/// The size that most chunks before the last have, when the last fits in; of two such, the larger. An image of one
/// chunk may be of any chunk size that holds it.
fn tell_chunk_size(before_last: &[u64], last: Option<u64>) -> Option<ChunkSize> {
    if before_last.is_empty() {
        let len = last?.max(1);
        return ChunkSize::new(len.next_multiple_of(ChunkSize::MIN.bytes()));
    }
    before_last
        .iter()
        .filter(|len| **len >= last.unwrap_or(0))
        .filter_map(|len| ChunkSize::new(*len))
        .max_by_key(|size| (before_last.iter().filter(|len| **len == size.bytes()).count(), size.bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_chunks_decide_on_the_chunk_size() {
        for (before_last, last, expected) in [
            (&[][..], None, None),
            (&[], Some(0), Some(4096)),
            (&[], Some(1), Some(4096)),
            (&[], Some(4097), Some(8192)),
            (&[], Some(65 << 20), None),
            (&[262144], Some(1), Some(262144)),
            (&[262144], None, Some(262144)),
            (&[4096], Some(262144), None),
            (&[100], Some(1), None),
            (&[4096, 262144, 262144], Some(262144), Some(262144)),
            (&[4096, 262144], Some(1), Some(262144)),
            (&[100, 262144, 5], None, Some(262144)),
        ] {
            let told = tell_chunk_size(before_last, last).map(ChunkSize::bytes);
            assert_eq!(told, expected, "{before_last:?} {last:?}");
        }
    }
}
