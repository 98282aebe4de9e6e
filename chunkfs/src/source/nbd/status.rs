//! What a metadata context says of the image: holes, from a few spans that are remembered, and dirty ranges.
//! Every byte of the image is told of by the server, or the answer is an error: silence never means clean.

use super::protocol::STATE_ZERO;
use super::reply::{MAX_RUNS, Runs};
use super::{NbdSource, SourceError};
use crate::core::geometry::ByteRange;
use crate::source::{Extent, ExtentKind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Up to 256 KiB each.
const MAX_SPANS: usize = 16;

/// The least that is asked for at once: in steps of 4 KiB, as many runs as an answer keeps.
const MIN_ASKED: u64 = (MAX_RUNS as u64) << 12;
const MAX_ASKED: u64 = 2 << 30;

/// The most that a length of 32 bits can ask for, in the largest alignment that there is.
const MAX_DIRTY_ASKED: u64 = 0xffff_0000;

/// The spans of the image whose holes are known, the one that was needed last at the end.
#[derive(Debug)]
pub(super) struct Spans {
    spans: Mutex<Vec<Runs>>,
    /// How much to ask for: more where there is little to be said.
    asked: AtomicU64,
}

impl Spans {
    pub(super) fn new() -> Spans {
        Spans { spans: Mutex::new(Vec::new()), asked: AtomicU64::new(MIN_ASKED) }
    }

    /// A first part of the range, which is not empty. `None`: nothing is known of its first byte.
    fn lookup(&self, range: ByteRange) -> Option<Vec<Extent>> {
        let mut spans = self.spans.lock().expect("no panic while the lock is held");
        let at = spans.iter().position(|span| span.start <= range.start && range.start < span.end())?;
        let span = spans.remove(at);
        let extents = extents_of(&span, range);
        spans.push(span);
        Some(extents)
    }

    fn remember(&self, span: Runs) {
        let asked = self.asked.load(Ordering::Relaxed);
        let next = if span.runs.len() < MAX_RUNS / 64 { asked * 2 } else { asked / 2 };
        self.asked.store(next.clamp(MIN_ASKED, MAX_ASKED), Ordering::Relaxed);
        let mut spans = self.spans.lock().expect("no panic while the lock is held");
        if spans.len() == MAX_SPANS {
            spans.remove(0);
        }
        spans.push(span);
    }
}

fn extents_of(span: &Runs, range: ByteRange) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    for (part, flags) in span.within(range) {
        // A hole that does not say that it is zero may read as anything.
        let kind = if flags & STATE_ZERO != 0 { ExtentKind::Zero } else { ExtentKind::Data };
        match extents.last_mut() {
            Some(last) if last.kind == kind => last.range.end = part.end,
            _ => extents.push(Extent { range: part, kind }),
        }
    }
    extents
}

impl NbdSource {
    /// The range is not empty, and `context` is the place of `base:allocation` among those agreed upon.
    pub(super) fn allocation(&self, range: ByteRange, context: usize) -> Result<Vec<Extent>, SourceError> {
        if let Some(extents) = self.spans.lookup(range) {
            return Ok(extents);
        }
        let span = self.block_status(range.start, self.spans.asked.load(Ordering::Relaxed), context)?;
        let extents = extents_of(&span, range);
        self.spans.remember(span);
        Ok(extents)
    }

    /// The ranges that a dirty bitmap (`qemu:dirty-bitmap:NAME`, one of the `contexts` of the options) calls dirty,
    /// in order, with a clean byte between any two.
    ///
    /// What comes before the first error is dirty for sure; that the rest is clean is proven only when the iterator
    /// ends without one. Errors: the context was not among the options', and all those of a source.
    pub fn dirty_ranges(&self, context: &str) -> Result<DirtyRanges<'_>, SourceError> {
        match self.agreed.contexts.iter().position(|known| known == context) {
            Some(place) => Ok(DirtyRanges { source: self, context: place, at: 0, runs: None, ended: false }),
            None => {
                Err(self.fault(0, 0, format!("{context:?} was not among the contexts that were asked for")))
            }
        }
    }

    /// What a context says from `start` on: something, and never more than the image.
    fn block_status(&self, start: u64, length: u64, context: usize) -> Result<Runs, SourceError> {
        let alignment = u64::from(self.agreed.sizes.minimum);
        let start = start - start % alignment;
        let end = start.saturating_add(length).min(self.agreed.len.bytes());
        let mut answers = self.ask_status(ByteRange::new(start, end))?;
        Ok(answers.swap_remove(context))
    }
}

/// See `NbdSource::dirty_ranges`.
#[derive(Debug)]
pub struct DirtyRanges<'a> {
    source: &'a NbdSource,
    context: usize,
    /// Everything before it was told of.
    at: u64,
    runs: Option<Runs>,
    ended: bool,
}

impl DirtyRanges<'_> {
    /// The next part of the image that has the same state throughout, as far as one answer tells. `None`: the end.
    fn part(&mut self) -> Result<Option<(ByteRange, bool)>, SourceError> {
        let end = self.source.agreed.len.bytes();
        if self.at == end {
            return Ok(None);
        }
        if self.runs.as_ref().is_none_or(|runs| runs.end() <= self.at) {
            self.runs = Some(self.source.block_status(self.at, MAX_DIRTY_ASKED, self.context)?);
        }
        let runs = self.runs.as_ref().expect("set above");
        // Flags that are not known are taken for dirty: to tell too much is allowed, too little is not.
        let part = runs.within(ByteRange::new(self.at, end)).next();
        let Some((range, flags)) = part.filter(|(range, _)| range.start == self.at && !range.is_empty())
        else {
            return Err(self.source.fault(self.at, 0, "a block status does not tell of it".to_owned()));
        };
        self.at = range.end;
        Ok(Some((range, flags != 0)))
    }

    fn next_dirty(&mut self) -> Result<Option<ByteRange>, SourceError> {
        let mut dirty: Option<ByteRange> = None;
        while let Some((part, is_dirty)) = self.part()? {
            match (&mut dirty, is_dirty) {
                (None, true) => dirty = Some(part),
                (Some(dirty), true) => dirty.end = part.end,
                (Some(_), false) => break,
                (None, false) => {}
            }
        }
        Ok(dirty)
    }
}

impl Iterator for DirtyRanges<'_> {
    type Item = Result<ByteRange, SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.next_dirty().and_then(|dirty| self.source.check_health().map(|()| dirty)).transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}
