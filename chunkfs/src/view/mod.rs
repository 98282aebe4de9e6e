//! Views: trees over sources, as a reader sees them. What `stat`, `ls` and `read` answer is decided here.
//! Knows nothing of FUSE.

mod disk;
mod joined;
mod reads;
mod whole;

pub use disk::{Disk, Stamps};
pub use joined::JoinedImage;
pub use reads::{ChunksRead, Reads};
pub use whole::{Layout, LayoutError, Owner, PlainFile, WholeView, check_names};

use crate::core::layout::{DiskSlot, Inode};
use crate::core::stamp::Stamp;
use crate::index::IndexError;
use crate::resolve::{NotShown, Retry};
use crate::source::{Lent, SourceError};
use std::ffi::OsStr;
use std::ops::Range;
use std::sync::Arc;

/// What `stat` shows of a file or directory. atime, mtime and ctime are the stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    pub inode: Inode,
    pub kind: Kind,
    pub size: u64,
    /// Of 512 bytes.
    pub blocks: u64,
    pub stamp: Stamp,
    /// The permission bits.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    /// The size in which reading is best: st_blksize.
    pub block_size: u32,
    /// `false`: of a directory whose stamp is not known yet; all else is as it will stay.
    pub settled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File,
}

/// An entry of a directory.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    pub name: &'a str,
    pub attributes: Attributes,
    /// Where the listing goes on after this entry.
    pub next: u64,
}

/// Whether a listing has room for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    Left,
    Full,
}

/// Where the next data or hole is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    Data,
    Hole,
}

/// What all files of a view add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub bytes: u64,
    pub inodes: u64,
}

/// Leaves that have to be compared before an answer can be given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    pub disk: DiskSlot,
    pub leaves: Range<u64>,
}

/// Why a view gives no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ViewError {
    #[error("no such file or directory")]
    NoEntry,
    #[error("not a directory")]
    NotDirectory,
    #[error("is a directory")]
    IsDirectory,
    /// Seeking past the end, or for data where there is none.
    #[error("nothing there")]
    Nowhere,
    /// Not yet: ask again after `View::park`.
    #[error("not compared yet")]
    Wait(Wait),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Index(Arc<IndexError>),
}

impl ViewError {
    fn of(disk: DiskSlot, error: NotShown) -> ViewError {
        match error {
            NotShown::Pending(leaves) => ViewError::Wait(Wait { disk, leaves }),
            NotShown::Source(error) => ViewError::Source(error),
            NotShown::Index(error) => ViewError::Index(error),
        }
    }
}

/// A tree of files that nobody can write to and that does not change.
pub trait View: Send + Sync + 'static {
    /// The attributes of a name in a directory. A directory may be unsettled; nobody waits for it here.
    fn lookup(&self, parent: Inode, name: &OsStr) -> Result<Attributes, ViewError>;

    /// Settled attributes.
    fn attributes(&self, inode: Inode) -> Result<Attributes, ViewError>;

    /// Hands out the entries of a directory from the `from`th on, until there is no more room.
    fn list(
        &self,
        directory: Inode,
        from: u64,
        each: &mut dyn FnMut(Entry<'_>) -> Room,
    ) -> Result<(), ViewError>;

    /// Fills the front of `buffer` with the bytes from `offset` on; fewer than fit only at the end of the file.
    fn read(&self, file: Inode, offset: u64, buffer: &mut [u8]) -> Result<usize, ViewError>;

    /// As `read`, of `size` bytes: what the source lends, or else in a buffer that becomes as long as what there was.
    fn read_into(
        &self,
        file: Inode,
        offset: u64,
        size: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Lent>, ViewError> {
        buffer.resize(size, 0);
        let count = self.read(file, offset, buffer)?;
        buffer.truncate(count);
        Ok(None)
    }

    /// Whoever read a file up to `end` has got it: there is time to fetch what comes next.
    fn read_ahead(&self, file: Inode, end: u64) {
        _ = (file, end);
    }

    fn seek(&self, file: Inode, offset: u64, to: Seek) -> Result<u64, ViewError>;

    fn totals(&self) -> Totals;

    /// Calls `retry` when the answer that `wait` stands for may be there.
    fn park(&self, wait: Wait, retry: Retry);
}
