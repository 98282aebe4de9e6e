//! Who waits for which leaves. Nobody waits in a thread: an answer that cannot be given yet is parked here.

use std::ops::Range;

/// Tries again to answer, and parks itself once more if it still cannot.
pub type Retry = Box<dyn FnOnce() + Send>;

/// An answer that waits for leaves of a disk.
pub(super) struct Parked {
    pub disk: usize,
    pub leaves: Range<u64>,
    pub retry: Retry,
}

#[derive(Default)]
pub(super) struct Queue {
    pub parked: Vec<Parked>,
    pub stopped: bool,
    /// Leaves that a worker has: disk and range.
    pub leased: Vec<(usize, Range<u64>)>,
}

impl Queue {
    /// Takes out whoever waits for one of these leaves.
    pub(super) fn unpark(&mut self, disk: usize, leaves: &Range<u64>) -> Vec<Retry> {
        let waits = |parked: &Parked| {
            parked.disk == disk && parked.leaves.start < leaves.end && leaves.start < parked.leaves.end
        };
        self.parked.extract_if(.., |parked| waits(parked)).map(|parked| parked.retry).collect()
    }

    pub(super) fn is_leased(&self, disk: usize, leaf: u64) -> bool {
        self.leased.iter().any(|(other, leaves)| *other == disk && leaves.contains(&leaf))
    }

    pub(super) fn release(&mut self, disk: usize, leaves: &Range<u64>) {
        self.leased.retain(|(other, leased)| (*other, leased) != (disk, leaves));
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("parked", &self.parked.len())
            .field("leased", &self.leased)
            .finish_non_exhaustive()
    }
}
