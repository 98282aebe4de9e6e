//! What the chunks of a reply have told so far of what was asked, and whether that is all of it.
//! Pure: no I/O. A reply that goes past what was asked, says a thing twice or leaves one out is a violation.

use super::protocol::{ContextId, Violation};
use crate::core::geometry::ByteRange;
use std::ops::Range;

/// More pieces with gaps between them than any server has a reason to send. Bounds time and memory.
const MAX_PIECES: usize = 1024;

/// The bytes of a read that have come.
#[derive(Debug)]
pub(super) struct Coverage {
    asked: ByteRange,
    /// In order, with a gap between any two.
    pieces: Vec<ByteRange>,
}

impl Coverage {
    pub(super) fn new(asked: ByteRange) -> Coverage {
        Coverage { asked, pieces: Vec::new() }
    }

    pub(super) fn asked(&self) -> ByteRange {
        self.asked
    }

    /// Notes that `length` bytes from `offset` on have come, and says where they go in the reader's buffer.
    pub(super) fn add(&mut self, offset: u64, length: u64) -> Result<Range<usize>, Violation> {
        let end = offset.checked_add(length).filter(|end| *end <= self.asked.end);
        let end = end.filter(|end| self.asked.start <= offset && offset < *end).ok_or_else(|| {
            Violation::new(format!(
                "asked for {} bytes at {}, it gave {length} at {offset}",
                self.asked.len(),
                self.asked.start
            ))
        })?;
        let at = self.pieces.partition_point(|piece| piece.end < offset);
        let count = self.pieces.len();
        match self.pieces.get_mut(at) {
            Some(next) if next.start < end && offset < next.end => {
                return Err(Violation::new(format!("it gave byte {} twice", offset.max(next.start))));
            }
            Some(before) if before.end == offset => {
                before.end = end;
                self.join_with_next(at)?;
            }
            Some(after) if after.start == end => after.start = offset,
            _ if count == MAX_PIECES => {
                return Err(Violation::new("it gave a read in more than 1024 separate pieces"));
            }
            _ => self.pieces.insert(at, ByteRange::new(offset, end)),
        }
        let place = |offset: u64| (offset - self.asked.start) as usize;
        Ok(place(offset)..place(end))
    }

    /// The piece at `at` has grown at its end.
    fn join_with_next(&mut self, at: usize) -> Result<(), Violation> {
        let end = self.pieces[at].end;
        let Some(next) = self.pieces.get(at + 1).copied() else { return Ok(()) };
        if next.start < end {
            return Err(Violation::new(format!("it gave byte {} twice", next.start)));
        }
        if next.start == end {
            self.pieces[at].end = next.end;
            self.pieces.remove(at + 1);
        }
        Ok(())
    }

    pub(super) fn complete(&self) -> Result<(), Violation> {
        if self.pieces == [self.asked] {
            return Ok(());
        }
        let came: u64 = self.pieces.iter().map(|piece| piece.len()).sum();
        Err(Violation::new(format!(
            "asked for {} bytes at {}, it gave only {came}",
            self.asked.len(),
            self.asked.start
        )))
    }
}

/// More runs than this are not kept: the answer is cut short and the rest asked for when it is needed.
pub(super) const MAX_RUNS: usize = 16384;

/// A part of the image with the same flags, from the end of the run before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) end: u64,
    pub(super) flags: u32,
}

/// What a metadata context says, from `start` on, without gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Runs {
    pub(super) start: u64,
    pub(super) runs: Vec<Run>,
}

impl Runs {
    pub(super) fn end(&self) -> u64 {
        self.runs.last().map_or(self.start, |run| run.end)
    }

    /// The parts of `range` that are known, with their flags.
    pub(super) fn within(&self, range: ByteRange) -> impl Iterator<Item = (ByteRange, u32)> + '_ {
        let first = self.runs.partition_point(|run| run.end <= range.start);
        let start = if first == 0 { self.start } else { self.runs[first - 1].end };
        let starts = std::iter::once(start).chain(self.runs[first..].iter().map(|run| run.end));
        starts.zip(&self.runs[first..]).take_while(move |(start, _)| *start < range.end).map(
            move |(start, run)| (ByteRange::new(start.max(range.start), run.end.min(range.end)), run.flags),
        )
    }
}

/// The answer of one context to a block status request, while it comes.
#[derive(Debug)]
pub(super) struct RunsBuilder {
    asked: ByteRange,
    image_end: u64,
    /// Up to where the server has told, which may be further than what is kept.
    told: u64,
    runs: Runs,
}

impl RunsBuilder {
    pub(super) fn push(&mut self, (length, flags): (u32, u32)) -> Result<(), Violation> {
        if length == 0 {
            return Err(Violation::new("a block status has a part of no length"));
        }
        if self.told >= self.asked.end {
            return Err(Violation::new("a block status goes on after the end of what was asked"));
        }
        // The last part may be longer than what was asked, where the server knows more.
        self.told += u64::from(length);
        if self.told > self.image_end {
            return Err(Violation::new("a block status reaches past the end of the export"));
        }
        let runs = &mut self.runs.runs;
        let count = runs.len();
        match runs.last_mut() {
            // What is kept ends before `told` once there are too many: nothing may be added after the gap.
            Some(last) if last.end != self.told - u64::from(length) => {}
            Some(last) if last.flags == flags => last.end = self.told,
            _ if count == MAX_RUNS => {}
            _ => runs.push(Run { end: self.told, flags }),
        }
        Ok(())
    }
}

/// The answers of all contexts of a connection to a block status request.
#[derive(Debug)]
pub(super) struct StatusReply {
    asked: ByteRange,
    image_end: u64,
    answers: Vec<Option<Runs>>,
}

impl StatusReply {
    pub(super) fn new(asked: ByteRange, image_end: u64, contexts: usize) -> StatusReply {
        StatusReply { asked, image_end, answers: vec![None; contexts] }
    }

    /// The context whose answer comes now, by its place in `contexts`, and where to put it.
    pub(super) fn begin(
        &self,
        contexts: &[ContextId],
        id: ContextId,
    ) -> Result<(usize, RunsBuilder), Violation> {
        let place = contexts.iter().position(|known| *known == id);
        let place = place.ok_or_else(|| Violation::new("a block status is of an unknown context"))?;
        if self.answers[place].is_some() {
            return Err(Violation::new("a block status has the same context twice"));
        }
        let runs = Runs { start: self.asked.start, runs: Vec::new() };
        let told = self.asked.start;
        Ok((place, RunsBuilder { asked: self.asked, image_end: self.image_end, told, runs }))
    }

    pub(super) fn end(&mut self, place: usize, answer: RunsBuilder) {
        self.answers[place] = Some(answer.runs);
    }

    pub(super) fn complete(&self) -> Result<(), Violation> {
        match self.answers.iter().all(|runs| runs.as_ref().is_some_and(|runs| runs.end() > runs.start)) {
            true => Ok(()),
            false => Err(Violation::new("a block status lacks a context")),
        }
    }

    /// By context, in the order of the connection's. Only of what is complete.
    pub(super) fn into_runs(self) -> Vec<Runs> {
        self.answers.into_iter().map(|runs| runs.expect("it is complete")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_that_come_twice_outside_or_never_are_violations() {
        let cases: &[(&[(u64, u64)], bool)] = &[
            (&[(100, 50)], true),
            (&[(140, 10), (100, 20), (120, 20)], true),
            (&[], false),
            (&[(100, 49)], false),
            (&[(101, 49)], false),
            (&[(100, 20), (121, 29)], false),
            (&[(100, 50), (100, 50)], false),
            (&[(100, 30), (120, 30)], false),
            (&[(120, 30), (100, 30)], false),
            (&[(100, 10), (130, 20), (110, 21)], false),
            (&[(99, 51)], false),
            (&[(100, 51)], false),
            (&[(100, 0), (100, 50)], false),
            (&[(150, 0), (100, 50)], false),
            (&[(u64::MAX, 2)], false),
            (&[(0, u64::MAX)], false),
        ];
        for (pieces, expected) in cases {
            let mut coverage = Coverage::new(ByteRange::new(100, 150));
            let added = pieces.iter().try_for_each(|(at, len)| coverage.add(*at, *len).map(|_| ()));
            assert_eq!(added.and_then(|()| coverage.complete()).is_ok(), *expected, "{pieces:?}");
        }
    }

    proptest! {
        #[test]
        fn a_read_is_complete_exactly_when_each_byte_came_once(
            pieces in prop::collection::vec((0u64..70, 0u64..70), 0..12),
            cuts in prop::collection::btree_set(11u64..60, 0..6),
            shuffle in any::<bool>(),
        ) {
            let asked = ByteRange::new(10, 60);
            // Half of the cases are tilings, which pieces at random would never be.
            let mut tiling: Vec<(u64, u64)> = Vec::new();
            let mut start = 10;
            for cut in cuts.into_iter().chain([60]) { tiling.push((start, cut - start)); start = cut; }
            if shuffle { tiling.reverse(); }
            for pieces in [pieces, tiling] {
                let mut coverage = Coverage::new(asked);
                let mut model = [0u32; 160];
                let mut sound = true;
                for (at, len) in pieces {
                    let fits = len > 0 && at >= 10 && at + len <= 60;
                    let free = (at..at + len).all(|byte| model[byte as usize] == 0);
                    let added = coverage.add(at, len);
                    prop_assert_eq!(added.is_ok(), fits && free);
                    let Ok(place) = added else { sound = false; break };
                    prop_assert_eq!(place, (at - 10) as usize..(at + len - 10) as usize);
                    (at..at + len).for_each(|byte| model[byte as usize] += 1);
                }
                let all = (10..60).all(|byte| model[byte] == 1);
                if sound { prop_assert_eq!(coverage.complete().is_ok(), all); }
            }
        }

        #[test]
        fn a_block_status_is_kept_as_it_was_told(parts in prop::collection::vec((0u32..40, 0u32..2), 0..20)) {
            let (asked, image_end) = (ByteRange::new(50, 150), 170);
            let ids = [ContextId(9)];
            let mut reply = StatusReply::new(asked, image_end, 1);
            let (place, mut builder) = reply.begin(&ids, ContextId(9)).unwrap();
            let mut flags_of = Vec::new();
            let mut sound = true;
            for (length, flags) in parts {
                let told = 50 + flags_of.len() as u64;
                let legal = length > 0 && told < asked.end && told + u64::from(length) <= image_end;
                prop_assert_eq!(builder.push((length, flags)).is_ok(), legal);
                if !legal { sound = false; break }
                flags_of.extend(std::iter::repeat_n(flags, length as usize));
            }
            prop_assume!(sound);
            reply.end(place, builder);
            prop_assert!(reply.begin(&ids, ContextId(9)).is_err());
            prop_assert!(reply.begin(&ids, ContextId(8)).is_err());
            prop_assert_eq!(reply.complete().is_ok(), !flags_of.is_empty());
            prop_assume!(!flags_of.is_empty());
            let runs = reply.into_runs();
            prop_assert_eq!(runs[0].end(), 50 + flags_of.len() as u64);
            for start in 50..runs[0].end() {
                let range = ByteRange::new(start, (start + 30).min(runs[0].end()));
                let mut at = start;
                for (part, flags) in runs[0].within(range) {
                    prop_assert_eq!(part.start, at);
                    prop_assert!(part.end > at);
                    prop_assert!((at..part.end).all(|byte| flags_of[(byte - 50) as usize] == flags));
                    at = part.end;
                }
                prop_assert_eq!(at, range.end);
            }
        }
    }

    #[test]
    fn a_block_status_of_too_many_runs_is_cut_short_and_stays_true() {
        let count = MAX_RUNS as u32 * 2;
        let mut reply = StatusReply::new(ByteRange::new(0, u64::from(count)), u64::from(count), 1);
        let (place, mut builder) = reply.begin(&[ContextId(1)], ContextId(1)).unwrap();
        for n in 0..count {
            builder.push((1, n % 2)).unwrap();
        }
        reply.end(place, builder);
        reply.complete().unwrap();
        let runs = reply.into_runs().remove(0);
        assert_eq!((runs.runs.len(), runs.end()), (MAX_RUNS, MAX_RUNS as u64));
        for (n, run) in runs.runs.iter().enumerate() {
            assert_eq!(*run, Run { end: n as u64 + 1, flags: n as u32 % 2 });
        }
    }
}
