//! Stamps: the change time that a chunk shows, and which one a generation gives.
//! Pure: the clock is handed in.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Whole seconds since 1970-01-01 UTC. Shown as mtime, ctime and atime, nanoseconds 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Stamp(pub i64);

impl Stamp {
    pub fn plus(self, secs: i64) -> Stamp {
        Stamp(self.0.saturating_add(secs))
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The number of a generation: 1 for the first view of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// How far a new stamp lies before the clock. borg forgets files that are as new as the newest that it saw
/// in a run: something newer stands in the tree, and no chunk is that young.
pub const HEAD_START_SECS: i64 = 5;

/// What is known of the generation before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Previous {
    pub stamp: Stamp,
    /// When it was closed. `None`: it never was, its daemon was killed, so it may have been read until now.
    pub closed: Option<Stamp>,
}

/// The stamp of a new generation: later than every moment at which a consumer may have read the one before,
/// so that neither a comparison of times nor "newer than my last run" misses a chunk.
pub fn stamp_for(now: Stamp, previous: Option<Previous>) -> Stamp {
    let early = now.plus(-HEAD_START_SECS);
    match previous {
        None => early,
        Some(Previous { stamp, closed }) => early.max(closed.unwrap_or(now).max(stamp).plus(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stamps_follow_the_close_of_the_generation_before() {
        let closed = |stamp, at| Some(Previous { stamp: Stamp(stamp), closed: Some(Stamp(at)) });
        let killed = |stamp| Some(Previous { stamp: Stamp(stamp), closed: None });
        for (now, previous, expected) in [
            (1000, None, 995),
            (1000, closed(100, 200), 995),
            (1000, closed(985, 990), 995),
            (1000, closed(985, 997), 998),
            (1000, closed(985, 1000), 1001),
            (1000, killed(500), 1001),
            (1000, closed(4000, 5000), 5001),
        ] {
            assert_eq!(stamp_for(Stamp(now), previous), Stamp(expected), "{now} {previous:?}");
        }
    }

    proptest! {
        #[test]
        fn stamps_strictly_increase_whatever_the_clock_does(now in 0i64..1 << 40, before in 0i64..1 << 40, open_for in 0i64..1 << 20, killed in any::<bool>()) {
            let closed = (!killed).then(|| Stamp(before).plus(open_for));
            let next = stamp_for(Stamp(now), Some(Previous { stamp: Stamp(before), closed }));
            prop_assert!(next > Stamp(before));
            prop_assert!(closed.is_none_or(|closed| next > closed));
        }
    }
}
