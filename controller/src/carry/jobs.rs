//! Which block is read next. Data first, so that whoever writes it never waits; where enough of that is under way, the
//! zeros further on, which cost nothing but their digest.
//! Reads no data.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use chunkfs::core::geometry::ByteRange;
use chunkfs::source::{Extent, ExtentKind};

use super::CarryError;
use super::blocks::Reading;

/// So many blocks after the one whose turn it is are looked at, and may be done before it.
const SIGHT: u64 = 1 << 14;

/// A block and the parts of it that have to be read.
pub(super) struct Job {
    pub(super) number: u64,
    pub(super) range: ByteRange,
    pub(super) data: Vec<ByteRange>,
    pub(super) not_before: Instant,
}

/// The jobs that nobody has taken yet.
pub(super) struct Jobs {
    /// The first block that was not looked at.
    next: u64,
    /// Of the source, from there on.
    extents: VecDeque<Extent>,
    data: VecDeque<Job>,
    zeros: VecDeque<Job>,
    /// Nothing may be read before.
    not_before: Instant,
}

impl Jobs {
    pub(super) fn new() -> Jobs {
        Jobs {
            next: 0,
            extents: VecDeque::new(),
            data: VecDeque::new(),
            zeros: VecDeque::new(),
            not_before: Instant::now(),
        }
    }

    /// `turn`: of the first block that is not done. `may_read`: may it be one that has data?
    ///
    /// `None`: not now. The blocks of either kind come in order, so the one whose turn it is has been taken, or is the
    /// first of its kind.
    pub(super) fn take(
        &mut self,
        reading: &Reading<'_>,
        turn: u64,
        may_read: bool,
    ) -> Result<Option<Job>, CarryError> {
        loop {
            let found = if may_read { self.data.pop_front() } else { self.zeros.pop_front() };
            if let Some(mut job) = found {
                self.limit(&mut job, reading);
                return Ok(Some(job));
            }
            if self.next >= turn.saturating_add(SIGHT) || !self.look(reading)? {
                return Ok(self.zeros.pop_front());
            }
        }
    }

    /// Has each been taken?
    pub(super) fn are_taken(&self, reading: &Reading<'_>) -> bool {
        self.next * reading.block_len >= reading.source.len().bytes()
            && self.data.is_empty()
            && self.zeros.is_empty()
    }

    /// At the next block. False: there is none.
    fn look(&mut self, reading: &Reading<'_>) -> Result<bool, CarryError> {
        let len = reading.source.len().bytes();
        let start = self.next * reading.block_len;
        if start >= len {
            return Ok(false);
        }
        let range = ByteRange::new(start, start.saturating_add(reading.block_len).min(len));
        let mut data = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let extent = self.extent_at(at, reading)?;
            let part = ByteRange::new(at, extent.range.end.min(range.end));
            if extent.kind == ExtentKind::Data {
                data.push(part);
            }
            at = part.end;
        }
        let jobs = if data.is_empty() { &mut self.zeros } else { &mut self.data };
        jobs.push_back(Job { number: self.next, range, data, not_before: self.not_before });
        self.next += 1;
        Ok(true)
    }

    fn limit(&mut self, job: &mut Job, reading: &Reading<'_>) {
        let Some(rate) = reading.options.bytes_per_sec else { return };
        job.not_before = self.not_before;
        let bytes: u64 = job.data.iter().map(|part| part.len()).sum();
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.get());
        // Time in which nothing could be read is not made up for.
        self.not_before =
            self.not_before.max(Instant::now()) + Duration::from_nanos(nanos.try_into().unwrap_or(u64::MAX));
    }

    fn extent_at(&mut self, at: u64, reading: &Reading<'_>) -> Result<Extent, CarryError> {
        while self.extents.front().is_some_and(|extent| extent.range.end <= at) {
            self.extents.pop_front();
        }
        if self.extents.is_empty() {
            let rest = ByteRange::new(at, reading.source.len().bytes());
            let extents = reading.source.extents(rest).map_err(|error| reading.source_error(at, error))?;
            self.extents = extents.into();
        }
        Ok(*self.extents.front().expect("a source covers something of a range that is not empty"))
    }
}

#[cfg(test)]
mod tests {
    use chunkfs::core::geometry::ImageLen;
    use chunkfs::source::{Source, SourceError};
    use chunkfs::watch::Unwatched;

    use super::super::{Compression, Existing, Options};
    use super::*;

    const BLOCK: u64 = 1 << 20;

    /// So long, with data in the first and the last block only. Nothing may be read.
    struct Ends(u64);

    impl Source for Ends {
        fn len(&self) -> ImageLen {
            ImageLen::new(self.0).unwrap()
        }

        fn read_at(&self, offset: u64, _: &mut [u8]) -> Result<(), SourceError> {
            panic!("read at {offset}");
        }

        fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, SourceError> {
            let (start, kind) = (range.start, ExtentKind::Data);
            let (end, kind) = match start {
                0..BLOCK => (BLOCK, kind),
                _ if start >= self.0 - BLOCK => (self.0, kind),
                _ => (self.0 - BLOCK, ExtentKind::Zero),
            };
            Ok(vec![Extent { range: ByteRange::new(start, end), kind }])
        }

        fn describe(&self) -> String {
            "ends".to_owned()
        }
    }

    fn taken(jobs: &mut Jobs, source: &Ends, turn: u64, may_read: bool) -> Option<u64> {
        let options = Options {
            disk: "vda",
            compression: Compression::None,
            bytes_per_sec: None,
            existing: Existing::Refuse,
        };
        let reading =
            Reading { source, block_len: BLOCK, fills_holes: false, options: &options, watch: &Unwatched };
        let job = jobs.take(&reading, turn, may_read).unwrap();
        assert_eq!(job.is_none() && turn * BLOCK >= source.0, jobs.are_taken(&reading) && job.is_none());
        job.map(|job| job.number)
    }

    #[test]
    fn data_comes_first_and_zeros_while_nothing_may_be_read() {
        let (mut jobs, source) = (Jobs::new(), Ends(8 * BLOCK));
        let mut next = |turn, may_read| taken(&mut jobs, &source, turn, may_read);
        assert_eq!([next(0, false), next(0, true), next(0, true)], [Some(1), Some(0), Some(7)]);
        assert_eq!([next(1, true), next(1, false), next(1, false)], [Some(2), Some(3), Some(4)]);
        assert_eq!([next(1, true), next(1, false), next(8, true)], [Some(5), Some(6), None]);
    }

    #[test]
    fn what_is_done_before_its_turn_is_bounded_however_large_the_disk_is() {
        let (mut jobs, source) = (Jobs::new(), Ends(1 << 44));
        assert_eq!(taken(&mut jobs, &source, 0, true), Some(0));
        for block in 1..SIGHT {
            assert_eq!(taken(&mut jobs, &source, 0, block % 2 == 0), Some(block));
        }
        assert_eq!([true, false].map(|may| taken(&mut jobs, &source, 0, may)), [None, None]);
        assert_eq!(taken(&mut jobs, &source, 1, false), Some(SIGHT));
    }
}
