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
    /// Those who wait for the fewest leaves come first, so that whoever asks for a directory keeps nobody from
    /// a leaf; among equals, who came first.
    parked: Vec<Parked>,
    pub stopped: bool,
    /// Leaves that a worker has: disk and range.
    pub leased: Vec<(usize, Range<u64>)>,
}

impl Queue {
    pub(super) fn park(&mut self, new: Parked) {
        let width = |parked: &Parked| parked.leaves.end - parked.leaves.start;
        let at = self.parked.partition_point(|parked| width(parked) <= width(&new));
        self.parked.insert(at, new);
    }

    pub(super) fn parked(&self) -> impl Iterator<Item = &Parked> {
        self.parked.iter()
    }

    /// Does somebody wait for one of these leaves and no other?
    pub(super) fn is_urgent(&self, disk: usize, leaves: &Range<u64>) -> bool {
        self.parked
            .iter()
            .take_while(|parked| parked.leaves.end - parked.leaves.start == 1)
            .any(|parked| parked.disk == disk && leaves.contains(&parked.leaves.start))
    }

    /// Takes out who waits on a disk for leaves of which `is_answer` is true.
    pub(super) fn unpark(&mut self, disk: usize, is_answer: impl Fn(&Range<u64>) -> bool) -> Vec<Retry> {
        let waits = |parked: &Parked| parked.disk == disk && is_answer(&parked.leaves);
        self.parked.extract_if(.., |parked| waits(parked)).map(|parked| parked.retry).collect()
    }

    /// Takes out everybody. To be dropped when the queue is no longer locked: what is parked may hold the last
    /// handle of whatever locks it.
    pub(super) fn unpark_all(&mut self) -> Vec<Parked> {
        std::mem::take(&mut self.parked)
    }

    /// Where the lease ends that a leaf is under. `None`: no worker has it.
    pub(super) fn leased_to(&self, disk: usize, leaf: u64) -> Option<u64> {
        let lease = self.leased.iter().find(|(other, leaves)| *other == disk && leaves.contains(&leaf));
        lease.map(|(_, leaves)| leaves.end)
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
