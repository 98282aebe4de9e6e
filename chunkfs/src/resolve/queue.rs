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

    /// The first of `leaves` that no worker has. In steps of what a worker has: that may be 2^43 leaves.
    pub(super) fn first_free(&self, disk: usize, leaves: &Range<u64>) -> Option<u64> {
        let lease_of = |leaf: u64| {
            let mut all = self.leased.iter().filter(|(other, _)| *other == disk).map(|(_, leased)| leased);
            all.find(|leased| leased.contains(&leaf))
        };
        let mut leaf = leaves.start;
        while let Some(leased) = lease_of(leaf) {
            leaf = leased.end;
        }
        (leaf < leaves.end).then_some(leaf)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_leaf_that_is_free_is_found_however_many_are_not() {
        let leased = vec![(0, 0..1 << 43), (1, 5..6), (0, (1 << 43) + 1..(1 << 43) + 2), (1, 6..9)];
        let queue = Queue { leased, ..Queue::default() };
        for (disk, leaves, expected) in [
            (0, 0..1 << 44, Some(1 << 43)),
            (0, 7..1 << 43, None),
            (0, (1 << 43) + 1..1 << 44, Some((1 << 43) + 2)),
            (1, 4..9, Some(4)),
            (1, 5..9, None),
            (1, 5..10, Some(9)),
            (2, 3..4, Some(3)),
        ] {
            assert_eq!(queue.first_free(disk, &leaves), expected, "{disk}: {leaves:?}");
        }
    }
}
