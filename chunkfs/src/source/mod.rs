//! A source is bytes at offsets that do not change: an image file, a device, an export, a directory of chunks.
//! Nothing here knows of chunk files' metadata or of FUSE.

pub mod memory;
pub mod faulty;
pub mod image;
pub mod ahead;
pub mod guarded;
pub mod nbd;
pub mod beneath;
pub mod walk;
pub mod digests;
pub mod shape;
pub mod chunks;

use crate::core::geometry::{ByteRange, ImageLen};
use std::sync::Arc;

/// Bytes of one point in time.
///
/// A read gives all the bytes asked for, or an error: never fewer, never zeros in the place of what could not be
/// read. Once a source is no longer what it was (it shrank, was written to, went away), every read fails.
#[expect(clippy::len_without_is_empty, reason = "an empty image is an image like any other")]
pub trait Source: Send + Sync {
    fn len(&self) -> ImageLen;

    /// Fills `buffer` with the bytes from `offset` on. The range lies inside the image.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SourceError>;

    /// As `read_at`, into a buffer that becomes as long as the range; it may be exchanged for another.
    fn read_into(&self, range: ByteRange, buffer: &mut Vec<u8>) -> Result<(), SourceError> {
        buffer.resize(range.len() as usize, 0);
        self.read_at(range.start, buffer)
    }

    /// The same bytes from where they lie already, without a copy. `None`: there is no such place, read them.
    fn lend(&self, range: ByteRange) -> Result<Option<Lent>, SourceError> {
        _ = range;
        Ok(None)
    }

    /// Whoever read up to `end` has got it: there is time to fetch what comes next.
    fn read_ahead(&self, end: u64) {
        _ = end;
    }

    /// Which parts of `range` hold data and which are known to be zero, in order, tiling the range.
    /// May say data where there are zeros, never the other way round. May cover only a first part of the range,
    /// but never nothing of a range that is not empty.
    fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, SourceError> {
        Ok(vec![Extent { range, kind: ExtentKind::Data }])
    }

    /// Is the source still what it was? An error here is one for every read that follows.
    fn check(&self) -> Result<(), SourceError> {
        Ok(())
    }

    /// What it is, for messages: a path, an address.
    fn describe(&self) -> String;
}

impl std::fmt::Debug for dyn Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.describe())
    }
}

/// Bytes that stay what they are for as long as this is held.
pub type Lent = Box<dyn AsRef<[u8]>>;

/// A part of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub range: ByteRange,
    pub kind: ExtentKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    Data,
    /// Reads as zeros, and nothing needs to be read to know it.
    Zero,
}

/// Why a source gave no bytes. Each is EIO to a reader.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SourceError {
    #[error("{what}: reading {length} bytes at {offset}: {error}")]
    Read { what: String, offset: u64, length: u64, error: Arc<std::io::Error> },
    #[error("{what}: {why}; nothing more is read from it: start over with a new mount")]
    Invalid { what: String, why: String },
    /// What the bytes should be is known, and they are not.
    #[error("{what}: {why}")]
    Damaged { what: String, why: String },
}

/// Is all of `range` known to be zero?
pub fn is_hole(source: &dyn Source, range: ByteRange) -> Result<bool, SourceError> {
    let mut at = range.start;
    while at < range.end {
        for extent in source.extents(ByteRange::new(at, range.end))? {
            if extent.kind == ExtentKind::Data {
                return Ok(false);
            }
            assert_eq!(extent.range.start, at);
            at = extent.range.end;
        }
    }
    Ok(true)
}

/// The first byte of `range` that may hold data. `None`: all of it is known to be zero.
pub fn next_data(source: &dyn Source, range: ByteRange) -> Result<Option<u64>, SourceError> {
    let mut at = range.start;
    while at < range.end {
        for extent in source.extents(ByteRange::new(at, range.end))? {
            if extent.kind == ExtentKind::Data {
                return Ok(Some(extent.range.start));
            }
            at = extent.range.end;
        }
    }
    Ok(None)
}
