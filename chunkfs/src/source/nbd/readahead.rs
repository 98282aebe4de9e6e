//! Who reads on from where: how many blocks are worth fetching before they are asked for.
//! Pure. Blocks are numbers here; nothing is fetched.

use crate::core::geometry::ByteRange;

/// As many readers as are told apart. FUSE has a few threads; tools read one or a few files at once.
const STREAMS: usize = 8;

/// Readers that work for one another (the threads of one FUSE mount) come by a bit out of order.
const SLACK: u64 = 2;

#[derive(Clone, Copy, Debug)]
struct Stream {
    /// The furthest block that was read.
    position: u64,
    window: u64,
    /// When it was last seen, in accesses.
    seen: u64,
}

/// The readers that are known.
#[derive(Debug)]
pub(super) struct Streams {
    streams: Vec<Stream>,
    accesses: u64,
    max_window: u64,
}

impl Streams {
    pub(super) fn new(max_window: u64) -> Streams {
        Streams { streams: Vec::new(), accesses: 0, max_window }
    }

    /// Notes that a block is read, and says how many after it are worth having: none until a reader has gone
    /// from one block to the next, then twice as many each time.
    pub(super) fn access(&mut self, block: u64) -> u64 {
        self.accesses += 1;
        let follows = |stream: &&mut Stream| {
            let first = stream.position.saturating_sub(SLACK);
            (first..=stream.position + 1 + SLACK).contains(&block)
        };
        if let Some(stream) = self.streams.iter_mut().find(follows) {
            stream.seen = self.accesses;
            if block <= stream.position {
                return 0;
            }
            stream.position = block;
            stream.window = (stream.window * 2).max(2).min(self.max_window);
            return stream.window;
        }
        if self.streams.len() == STREAMS {
            let oldest = self.streams.iter().enumerate().min_by_key(|(_, stream)| stream.seen);
            let oldest = oldest.expect("there are streams").0;
            self.streams.swap_remove(oldest);
        }
        self.streams.push(Stream { position: block, window: 0, seen: self.accesses });
        0
    }
}

/// Where it makes sense to read ahead.
#[derive(Clone, Debug, Default)]
pub(super) enum Confines {
    #[default]
    Everywhere,
    /// In order, without overlap.
    Within(Vec<ByteRange>),
}

impl Confines {
    /// Sorts and joins the ranges.
    pub(super) fn within(mut ranges: Vec<ByteRange>) -> Confines {
        ranges.sort_by_key(|range| range.start);
        ranges.dedup_by(|next, before| {
            let joins = next.start <= before.end;
            if joins {
                before.end = before.end.max(next.end);
            }
            joins
        });
        Confines::Within(ranges)
    }

    pub(super) fn allow(&self, range: ByteRange) -> bool {
        let Confines::Within(ranges) = self else { return true };
        let at = ranges.partition_point(|known| known.end <= range.start);
        ranges.get(at).is_some_and(|known| known.start < range.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_reads_on_is_read_ahead_for() {
        let mut streams = Streams::new(16);
        let windows: Vec<u64> = [5, 5, 6, 6, 7, 8, 9, 10].map(|block| streams.access(block)).to_vec();
        assert_eq!(windows, [0, 0, 2, 0, 4, 8, 16, 16]);
        for block in [1000, 50, 7_000_000, 400, 90, u64::MAX / 2] {
            assert_eq!(streams.access(block), 0, "{block}");
        }
    }

    #[test]
    fn readers_side_by_side_and_out_of_order_are_still_seen_to_read_on() {
        let mut streams = Streams::new(16);
        let mut windows = Vec::new();
        for n in 0..6 {
            windows.push(streams.access(n));
            windows.push(streams.access(1000 + (n ^ 1)));
        }
        assert_eq!(windows[10], 16);
        assert!(windows[9] >= 4, "{windows:?}");
    }

    #[test]
    fn confines_allow_what_touches_them_and_nothing_else() {
        let ranges = [(50, 60), (10, 20), (20, 30), (12, 14)];
        let confines = Confines::within(ranges.map(|(start, end)| ByteRange::new(start, end)).to_vec());
        for (start, end, expected) in
            [(0, 10, false), (0, 11, true), (29, 40, true), (30, 50, false), (30, 51, true), (60, 99, false)]
        {
            assert_eq!(confines.allow(ByteRange::new(start, end)), expected, "{start}..{end}");
        }
        assert!(Confines::default().allow(ByteRange::new(0, 1)));
        assert!(!Confines::within(Vec::new()).allow(ByteRange::new(0, 1)));
    }
}
