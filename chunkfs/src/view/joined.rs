//! The reverse of a chunk tree: a directory with one file, the image.

use super::{Attributes, Entry, Kind, Owner, Room, Seek, Totals, View, ViewError, Wait};
use crate::core::geometry::ByteRange;
use crate::core::layout::Inode;
use crate::core::stamp::Stamp;
use crate::resolve::Retry;
use crate::source::{ExtentKind, Source};
use std::ffi::OsStr;
use std::sync::Arc;

const IMAGE: Inode = Inode(2);

/// One image file over a source.
pub struct JoinedImage {
    source: Arc<dyn Source>,
    name: String,
    stamp: Stamp,
    owner: Owner,
}

impl JoinedImage {
    /// `stamp` is the time that the file shows.
    pub fn new(source: Arc<dyn Source>, name: String, stamp: Stamp, owner: Owner) -> JoinedImage {
        JoinedImage { source, name, stamp, owner }
    }

    fn size(&self) -> u64 {
        self.source.len().bytes()
    }

    fn attributes_of(&self, kind: Kind) -> Attributes {
        let (inode, size, nlink) = match kind {
            Kind::Directory => (Inode::MOUNT_ROOT, super::disk::DIRECTORY_SIZE, 2),
            Kind::File => (IMAGE, self.size(), 1),
        };
        Attributes {
            inode,
            kind,
            size,
            blocks: size.div_ceil(512),
            stamp: self.stamp,
            mode: self.owner.mode_of(kind),
            uid: self.owner.uid,
            gid: self.owner.gid,
            nlink,
            block_size: 256 << 10,
            settled: true,
        }
    }
}

impl View for JoinedImage {
    fn lookup(&self, parent: Inode, name: &OsStr) -> Result<Attributes, ViewError> {
        match (parent, name == self.name.as_str()) {
            (Inode::MOUNT_ROOT, true) => Ok(self.attributes_of(Kind::File)),
            _ => Err(ViewError::NoEntry),
        }
    }

    fn attributes(&self, inode: Inode) -> Result<Attributes, ViewError> {
        match inode {
            Inode::MOUNT_ROOT => Ok(self.attributes_of(Kind::Directory)),
            IMAGE => Ok(self.attributes_of(Kind::File)),
            _ => Err(ViewError::NoEntry),
        }
    }

    fn list(
        &self,
        directory: Inode,
        from: u64,
        each: &mut dyn FnMut(Entry<'_>) -> Room,
    ) -> Result<(), ViewError> {
        if directory != Inode::MOUNT_ROOT {
            return Err(ViewError::NotDirectory);
        }
        if from == 0 {
            each(Entry { name: &self.name, attributes: self.attributes_of(Kind::File), next: 1 });
        }
        Ok(())
    }

    fn read(&self, file: Inode, offset: u64, buffer: &mut [u8]) -> Result<usize, ViewError> {
        if file != IMAGE {
            return Err(ViewError::IsDirectory);
        }
        let count = self.size().saturating_sub(offset).min(buffer.len() as u64) as usize;
        self.source.read_at(offset, &mut buffer[..count])?;
        Ok(count)
    }

    fn seek(&self, file: Inode, offset: u64, to: Seek) -> Result<u64, ViewError> {
        if file != IMAGE {
            return Err(ViewError::IsDirectory);
        }
        if offset >= self.size() {
            return Err(ViewError::Nowhere);
        }
        let mut at = offset;
        while at < self.size() {
            for extent in self.source.extents(ByteRange::new(at, self.size()))? {
                if (extent.kind == ExtentKind::Data) == (to == Seek::Data) {
                    return Ok(extent.range.start);
                }
                at = extent.range.end;
            }
        }
        if to == Seek::Hole { Ok(self.size()) } else { Err(ViewError::Nowhere) }
    }

    fn totals(&self) -> Totals {
        Totals { bytes: self.size(), inodes: 2 }
    }

    fn park(&self, _wait: Wait, retry: Retry) {
        retry();
    }
}

impl std::fmt::Debug for JoinedImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinedImage").field("source", &self.source.describe()).finish_non_exhaustive()
    }
}
