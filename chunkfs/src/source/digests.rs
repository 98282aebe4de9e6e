//! The digests that stand beside a directory of chunks: `DIR.b3` for `DIR`, a file for each leaf.
//! Nothing here compares them with any bytes.

use super::beneath::{Beneath, Fault};
use super::walk::last_file;
use crate::core::digest::{Digest, DigestsError, parse_digests};
use crate::core::geometry::{CHUNKS_PER_LEAF, LeafIndex};
use crate::core::layout::{Node, Tree};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// No file of 256 lines is longer: a line has 64 digits, and a name of which every byte may be escaped.
const FILE_LEN_MAX: u64 = CHUNKS_PER_LEAF * 1024;

/// The tree of digests of one disk.
#[derive(Debug)]
pub struct DigestTree {
    root: Beneath,
}

/// What is wrong with a leaf's file of digests.
#[derive(Debug, thiserror::Error)]
pub enum DigestFault {
    #[error(transparent)]
    File(#[from] Fault),
    #[error("damaged: {0}")]
    Text(#[from] DigestsError),
    #[error("damaged: {0} bytes are more than 256 lines have")]
    TooLong(u64),
    #[error("damaged: not text")]
    NotText,
    #[error("damaged: it lists no chunk")]
    Empty,
}

/// How many chunks there are by the digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DigestCount {
    /// Every leaf that there are digests of is full, so that more files may have followed.
    AtLeast(u64),
    /// The last file has fewer lines than a full leaf: here the image ended.
    Exactly(u64),
}

impl DigestCount {
    pub fn chunks(self) -> u64 {
        match self {
            DigestCount::AtLeast(chunks) | DigestCount::Exactly(chunks) => chunks,
        }
    }
}

/// What the digests of a directory of chunks are called.
fn of(name: &OsStr) -> OsString {
    let mut name = OsString::from(name);
    name.push(".b3");
    name
}

impl DigestTree {
    /// The digests of the chunks in a directory. `None`: it has none.
    pub fn beside(chunks: &Beneath) -> Result<Option<DigestTree>, Fault> {
        let Some(name) = chunks.path().file_name() else { return Ok(None) };
        Ok(chunks.sibling(&of(name))?.map(|root| DigestTree { root }))
    }

    /// The same by the name that the user gave, which may be that of a link to the directory.
    pub fn beside_name(chunks: &Path) -> Result<Option<DigestTree>, Fault> {
        let Some(name) = chunks.file_name() else { return Ok(None) };
        let parent = chunks.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = Beneath::open(parent.unwrap_or(Path::new(".")))?;
        Ok(parent.child(&of(name))?.map(|root| DigestTree { root }))
    }

    pub fn root(&self) -> &Beneath {
        &self.root
    }

    pub fn path_of(&self, leaf: LeafIndex) -> PathBuf {
        self.root.path().join(Node::of_leaf(leaf).path())
    }

    /// The digests of a leaf's chunks, in their order: 1 to 256.
    pub fn read(&self, leaf: LeafIndex) -> Result<Vec<Digest>, DigestFault> {
        let (file, len) = self.root.file(Node::of_leaf(leaf).path())?;
        if len > FILE_LEN_MAX {
            return Err(DigestFault::TooLong(len));
        }
        let mut bytes = Vec::with_capacity(len as usize);
        file.take(FILE_LEN_MAX).read_to_end(&mut bytes).map_err(Fault::Io)?;
        let text = str::from_utf8(&bytes).map_err(|_| DigestFault::NotText)?;
        match parse_digests(text, leaf)? {
            digests if digests.is_empty() => Err(DigestFault::Empty),
            digests => Ok(digests),
        }
    }

    /// The last file decides. Where it is damaged, it still proves that its leaf had a chunk.
    pub fn count(&self) -> io::Result<DigestCount> {
        let last = last_file(&self.root, Tree::Digests)?.and_then(Node::leaf);
        let Some(last) = last else { return Ok(DigestCount::Exactly(0)) };
        let before = last.first_chunk().0;
        Ok(match self.read(last) {
            Ok(digests) if digests.len() as u64 == CHUNKS_PER_LEAF => {
                DigestCount::AtLeast(before + CHUNKS_PER_LEAF)
            }
            Ok(digests) => DigestCount::Exactly(before + digests.len() as u64),
            Err(_) => DigestCount::AtLeast(before + 1),
        })
    }
}
