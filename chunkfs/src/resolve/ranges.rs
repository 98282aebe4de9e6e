//! A set of numbers as ranges that neither touch nor overlap. Small for what comes in order.
//! Pure.

use std::collections::BTreeMap;
use std::ops::Range;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RangeSet {
    /// Start to end.
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    pub(super) fn insert(&mut self, new: Range<u64>) {
        if new.is_empty() {
            return;
        }
        let (mut start, mut end) = (new.start, new.end);
        // All ranges that touch the new one become part of it; only the one before it may begin earlier.
        let before = self.ranges.range(..=new.start).next_back().filter(|(_, e)| **e >= new.start);
        start = before.map_or(start, |(s, _)| *s);
        let merged: Vec<u64> = self.ranges.range(start..=new.end).map(|(s, _)| *s).collect();
        for touched in merged {
            end = end.max(self.ranges.remove(&touched).expect("it was just found"));
        }
        self.ranges.insert(start, end);
    }

    pub(super) fn remove(&mut self, gone: Range<u64>) {
        if gone.is_empty() {
            return;
        }
        let first = self.ranges.range(..=gone.start).next_back().map_or(gone.start, |(s, _)| *s);
        let touched: Vec<(u64, u64)> = self
            .ranges
            .range(first..gone.end)
            .filter(|(_, e)| **e > gone.start)
            .map(|(s, e)| (*s, *e))
            .collect();
        for (start, end) in touched {
            self.ranges.remove(&start);
            if start < gone.start {
                self.ranges.insert(start, gone.start);
            }
            if gone.end < end {
                self.ranges.insert(gone.end, end);
            }
        }
    }

    pub(super) fn contains(&self, number: u64) -> bool {
        self.ranges.range(..=number).next_back().is_some_and(|(_, end)| number < *end)
    }

    pub(super) fn intersects(&self, range: &Range<u64>) -> bool {
        self.first_in(range).is_some()
    }

    /// The part of `range` that begins with its first member and is all in the set.
    pub(super) fn first_in(&self, range: &Range<u64>) -> Option<Range<u64>> {
        if self.contains(range.start) {
            let (_, end) = self.ranges.range(..=range.start).next_back()?;
            return (range.start < range.end).then(|| range.start..range.end.min(*end));
        }
        self.ranges.range(range.clone()).next().map(|(start, end)| *start..range.end.min(*end))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many numbers there are.
    pub(super) fn len(&self) -> u64 {
        self.ranges.iter().map(|(start, end)| end - start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn ranges_hold_what_a_plain_set_holds(steps in prop::collection::vec((any::<bool>(), 0u64..60, 0u64..20), 1..40), probe in 0u64..60, width in 0u64..20) {
            let (mut ranges, mut plain) = (RangeSet::default(), BTreeSet::new());
            for (insert, start, len) in steps {
                if insert {
                    ranges.insert(start..start + len);
                    plain.extend(start..start + len);
                } else {
                    ranges.remove(start..start + len);
                    plain.retain(|n| !(start..start + len).contains(n));
                }
            }
            prop_assert_eq!(ranges.len(), plain.len() as u64);
            prop_assert_eq!(ranges.is_empty(), plain.is_empty());
            prop_assert_eq!(ranges.contains(probe), plain.contains(&probe));
            let asked = probe..probe + width;
            let first = plain.range(asked.clone()).next().copied();
            prop_assert_eq!(ranges.first_in(&asked).map(|r| r.start), first);
            if let Some(found) = ranges.first_in(&asked) {
                prop_assert!(found.clone().all(|n| plain.contains(&n)));
                prop_assert!(found.end == asked.end || !plain.contains(&found.end));
            }
        }
    }
}
