//! An image in memory, for tests: the simplest source that there can be.

use super::{Extent, ExtentKind, Source, SourceError};
use crate::core::geometry::{ByteRange, ImageLen};

/// Bytes, and which blocks of 4096 of them are holes: those that are all zero.
#[derive(Clone, Debug)]
pub struct MemorySource {
    bytes: Vec<u8>,
}

impl MemorySource {
    pub fn new(bytes: Vec<u8>) -> MemorySource {
        MemorySource { bytes }
    }
}

impl Source for MemorySource {
    fn len(&self) -> ImageLen {
        ImageLen::new(self.bytes.len() as u64).expect("memory is smaller than 8 EiB")
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        let start = offset as usize;
        buffer.copy_from_slice(&self.bytes[start..start + buffer.len()]);
        Ok(())
    }

    fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, SourceError> {
        const BLOCK: u64 = 4096;
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let end = ((at / BLOCK + 1) * BLOCK).min(range.end);
            let zero = crate::core::digest::is_zero(&self.bytes[at as usize..end as usize]);
            let kind = if zero { ExtentKind::Zero } else { ExtentKind::Data };
            match extents.last_mut() {
                Some(last) if last.kind == kind => last.range.end = end,
                _ => extents.push(Extent { range: ByteRange::new(at, end), kind }),
            }
            at = end;
        }
        Ok(extents)
    }

    fn describe(&self) -> String {
        "an image in memory".to_owned()
    }
}
