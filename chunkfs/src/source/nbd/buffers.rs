//! Buffers of one block each, used again and again.
//! A buffer that is taken may hold old bytes: whoever takes it overwrites all that is shown of it.

use std::sync::Mutex;

/// What a block of the image holds.
#[derive(Debug)]
pub(super) enum Content {
    Zeros,
    /// As long as a block; of the last block of an image, only the start is used.
    Bytes(Box<[u8]>),
}

#[derive(Debug)]
pub(super) struct Buffers {
    block_bytes: usize,
    free: Mutex<Vec<Box<[u8]>>>,
}

/// As many as are read ahead for one reader; more would only be memory that nobody uses.
const MAX_FREE: usize = super::WINDOW as usize;

impl Buffers {
    pub(super) fn new(block_bytes: usize) -> Buffers {
        Buffers { block_bytes, free: Mutex::new(Vec::new()) }
    }

    pub(super) fn take(&self) -> Box<[u8]> {
        let free = self.free.lock().expect("no panic while the lock is held").pop();
        free.unwrap_or_else(|| vec![0; self.block_bytes].into_boxed_slice())
    }

    pub(super) fn give_back(&self, content: Content) {
        let Content::Bytes(bytes) = content else { return };
        let mut free = self.free.lock().expect("no panic while the lock is held");
        if free.len() < MAX_FREE {
            free.push(bytes);
        }
    }
}
