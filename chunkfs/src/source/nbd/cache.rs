//! The blocks that were read, or are on their way, least recently used out first; bounded in bytes.
//! What is not here is sent for; nothing here talks to a server.

use super::answer::{Answer, Promise, promise};
use super::buffers::{Buffers, Content};
use super::readahead::{Confines, Streams};
use super::slots::Slot;
use lru::LruCache;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// What the cache needs of whoever fills it.
pub(super) trait Fetch {
    /// Waits until a request may be sent.
    fn slot(&self) -> Slot;

    /// `None`: enough are in flight.
    fn try_slot(&self) -> Option<Slot>;

    /// How many blocks one request may be for.
    fn most_at_once(&self) -> u64;

    /// Sends for blocks that follow each other. The promises are broken if they do not come.
    fn fetch(&self, slot: Slot, first: u64, promises: Vec<Promise<Content>>);

    /// Is the block inside the image, and worth having before it is asked for?
    fn worth_fetching(&self, confines: &Confines, block: u64) -> bool;
}

#[derive(Debug)]
pub(super) struct Cache {
    state: Mutex<State>,
    buffers: Arc<Buffers>,
}

#[derive(Debug)]
struct State {
    blocks: LruCache<u64, Arc<Answer<Content>>>,
    streams: Streams,
    confines: Confines,
}

impl Cache {
    /// `blocks`: how many are kept at most.
    pub(super) fn new(blocks: NonZeroUsize, max_window: u64, buffers: Arc<Buffers>) -> Cache {
        // Two readers, reading ahead as far as they may, must not push out what the other has not read yet.
        let max_window = max_window.min(blocks.get() as u64 / 4);
        let state = State {
            blocks: LruCache::new(blocks),
            streams: Streams::new(max_window),
            confines: Confines::default(),
        };
        Cache { state: Mutex::new(state), buffers }
    }

    pub(super) fn confine(&self, confines: Confines) {
        self.state.lock().expect("no panic while the lock is held").confines = confines;
    }

    /// A block, which may still be on its way, and what comes after it. `certain`: so many blocks after it are going
    /// to be asked for as well.
    pub(super) fn get(&self, fetch: &impl Fetch, block: u64, certain: u64) -> Arc<Answer<Content>> {
        let answer = self.get_only(fetch, block);
        self.go_on(fetch, block, certain);
        answer
    }

    /// A block, which may still be on its way.
    pub(super) fn get_only(&self, fetch: &impl Fetch, block: u64) -> Arc<Answer<Content>> {
        let known = self.state.lock().expect("no panic while the lock is held").blocks.get(&block).cloned();
        known.unwrap_or_else(|| self.send(fetch, fetch.slot(), block..block + 1))
    }

    /// Sends for what comes after a block that somebody reads.
    pub(super) fn go_on(&self, fetch: &impl Fetch, block: u64, certain: u64) {
        let mut state = self.state.lock().expect("no panic while the lock is held");
        let window = state.streams.access(block);
        // Sent for in batches, half a window each: a server that is woken up for every single one is slower.
        let enough = certain == 0 && window > 2 && state.blocks.contains(&(block + window / 2));
        drop(state);
        if !enough {
            self.read_ahead(fetch, block, window, certain);
        }
    }

    fn read_ahead(&self, fetch: &impl Fetch, block: u64, window: u64, certain: u64) {
        let mut ahead = block + 1..block + 1 + window.max(certain);
        while let Some(blocks) = self.missing(fetch, ahead.clone(), block + certain) {
            let Some(slot) = fetch.try_slot() else { return };
            ahead.start = blocks.end;
            self.send(fetch, slot, blocks);
        }
    }

    /// The first blocks of these, one after the other, that are not here and worth having, or are certain to be asked
    /// for: as many as one request may be for.
    fn missing(&self, fetch: &impl Fetch, ahead: Range<u64>, certain_to: u64) -> Option<Range<u64>> {
        let state = self.state.lock().expect("no panic while the lock is held");
        let wanted = |block: &u64| {
            (*block <= certain_to || fetch.worth_fetching(&state.confines, *block))
                && !state.blocks.contains(block)
        };
        let first = ahead.clone().find(wanted)?;
        let last = ahead.end.min(first + fetch.most_at_once());
        let end = (first + 1..last).find(|block| !wanted(block)).unwrap_or(last);
        Some(first..end)
    }

    /// Sends for blocks, up to the first that is here by now. Returns the first of them.
    fn send(&self, fetch: &impl Fetch, slot: Slot, blocks: Range<u64>) -> Arc<Answer<Content>> {
        let mut state = self.state.lock().expect("no panic while the lock is held");
        // Somebody else may have been faster while this one waited for its slot.
        if let Some(answer) = state.blocks.get(&blocks.start) {
            return Arc::clone(answer);
        }
        let first = blocks.start;
        let (mut promises, mut answers) = (Vec::new(), Vec::new());
        for block in blocks {
            if state.blocks.contains(&block) {
                break;
            }
            let (promise, answer) = promise();
            promises.push(promise);
            answers.push(Arc::clone(&answer));
            let pushed_out = state.blocks.push(block, answer);
            let unused = pushed_out.and_then(|(_, old)| Arc::into_inner(old)).and_then(Answer::into_inner);
            if let Some(content) = unused {
                self.buffers.give_back(content);
            }
        }
        drop(state);
        fetch.fetch(slot, first, promises);
        answers.swap_remove(0)
    }
}
