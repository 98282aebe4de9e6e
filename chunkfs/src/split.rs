//! Splits an image in memory into a directory of chunks with digests, for tests of what reads such a directory.
//! Written on its own, from docs/format.md and not from the view, so that the two can be held against each other.

use crate::core::digest::{Digest, DigestLines};
use crate::core::geometry::{ByteRange, ChunkIndex, ChunkSize, Geometry, ImageLen};
use crate::core::layout::Node;
use std::fs;
use std::path::{Path, PathBuf};

/// A tree of chunks in a directory of its own.
pub(crate) struct SplitTree {
    home: tempfile::TempDir,
    pub(crate) geometry: Geometry,
}

/// Splits into `vda` and `vda.b3`.
pub(crate) fn split(bytes: &[u8], chunk_size: u64) -> SplitTree {
    let home = tempfile::Builder::new().prefix("chunkfs-test-").tempdir().unwrap();
    let len = ImageLen::new(bytes.len() as u64).unwrap();
    let geometry = Geometry::new(len, ChunkSize::new(chunk_size).unwrap());
    let tree = SplitTree { home, geometry };
    fs::create_dir(tree.chunks()).unwrap();
    fs::create_dir(tree.digests()).unwrap();
    for chunk in (0..geometry.chunk_count()).map(ChunkIndex) {
        let ByteRange { start, end } = geometry.range_of(chunk).unwrap();
        let path = tree.chunk(chunk.0);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &bytes[start as usize..end as usize]).unwrap();
    }
    tree.digest_anew();
    tree
}

impl SplitTree {
    pub(crate) fn chunks(&self) -> PathBuf {
        self.home.path().join("vda")
    }

    pub(crate) fn digests(&self) -> PathBuf {
        self.home.path().join("vda.b3")
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn chunk(&self, chunk: u64) -> PathBuf {
        self.chunks().join(Node::of_chunk(ChunkIndex(chunk)).path())
    }

    pub(crate) fn digest_file(&self, leaf: u64) -> PathBuf {
        self.digests().join(Node::of_leaf(crate::core::geometry::LeafIndex(leaf)).path())
    }

    pub(crate) fn without_digests(self) -> SplitTree {
        fs::remove_dir_all(self.digests()).unwrap();
        self
    }

    /// Writes the digests of the chunks as they are now.
    pub(crate) fn digest_anew(&self) {
        for leaf in (0..self.geometry.leaf_count()).map(crate::core::geometry::LeafIndex) {
            let lines = DigestLines::new("vda", leaf);
            let text: String = self
                .geometry
                .chunk_range(leaf)
                .map(|chunk| {
                    lines.line(ChunkIndex(chunk), &Digest::of(&fs::read(self.chunk(chunk)).unwrap()))
                })
                .collect();
            let path = self.digest_file(leaf.0);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }
}

/// Bytes that differ from chunk to chunk; every fifth block of 4096 is zero.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| if at / 4096 % 5 == 3 { 0 } else { (at / 4096 * 7 + at % 251 + 1) as u8 }).collect()
}
