//! How long work tells whoever waits for it how far it is, and learns that it is to stop.
//! Nothing here shows anything: a progress bar is one watcher, a test another.

/// Called from several threads.
pub trait Watch: Sync {
    /// So many bytes are to be gone through.
    fn expect(&self, bytes: u64) {
        _ = bytes;
    }

    /// So many more bytes are done.
    fn advance(&self, bytes: u64) {
        _ = bytes;
    }

    /// Asked between two pieces of work. After `true` nothing more is begun.
    fn is_stopped(&self) -> bool {
        false
    }
}

/// Nobody watches.
#[derive(Clone, Copy, Debug)]
pub struct Unwatched;

impl Watch for Unwatched {}
