//! Memory from which files are written past the page cache.

use rustix::mm::{Advice, madvise};
use std::ops::{Deref, DerefMut};

/// Of memory and of offsets, in bytes: no device has larger blocks.
pub const ALIGNMENT: usize = 4096;
/// Of the processor's larger pages. What lies in one is a single piece for a disk, not one for each 4 KiB: 2 GiB were
/// written in 1.1 to 1.2 s, where it took 1.5 s otherwise (docs/performance.md).
const HUGE: usize = 2 << 20;

/// A buffer that begins at a multiple of [`ALIGNMENT`], and of a larger page where it is as long as one. It holds zeros at first.
#[derive(Debug)]
pub struct Aligned {
    memory: Vec<u8>,
    skip: usize,
    len: usize,
}

impl Aligned {
    pub fn new(len: usize) -> Aligned {
        let alignment = if len < HUGE { ALIGNMENT } else { HUGE };
        let mut memory = vec![0; len + alignment];
        let skip = memory.as_ptr().align_offset(alignment);
        if len >= HUGE {
            advise(&mut memory[skip..skip + len]);
        }
        Aligned { memory, skip, len }
    }

    /// Only the first `len` bytes count from now on. Panics where it was made for fewer.
    pub fn set_len(&mut self, len: usize) {
        assert!(self.skip + len <= self.memory.len(), "a buffer has {} bytes, not {len}", self.len);
        self.len = len;
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.skip..self.skip + self.len]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.skip..self.skip + self.len]
    }
}

#[expect(unsafe_code, reason = "no crate has this call as a safe one")]
fn advise(memory: &mut [u8]) {
    // SAFETY: the bytes are ours, and the advice leaves them as they are.
    // Without it all is as well, and slower.
    _ = unsafe { madvise(memory.as_mut_ptr().cast(), memory.len(), Advice::LinuxHugepage) };
}
