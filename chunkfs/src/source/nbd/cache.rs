//! The blocks that were read, or are on their way, least recently used out first; bounded in bytes.
//! What is not here is sent for; nothing here talks to a server.

use super::answer::{Answer, Promise, promise};
use super::buffers::{Buffers, Content};
use super::readahead::{Confines, Streams};
use super::slots::Slot;
use lru::LruCache;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

/// What the cache needs of whoever fills it.
pub(super) trait Fetch {
    /// Waits until a request may be sent.
    fn slot(&self) -> Slot;

    /// `None`: enough are in flight.
    fn try_slot(&self) -> Option<Slot>;

    /// Sends for a block. The promise is broken if it does not come.
    fn fetch(&self, slot: Slot, block: u64, promise: Promise<Content>);

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
        known.unwrap_or_else(|| self.send(fetch, fetch.slot(), block))
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
        for ahead in 1..=window.max(certain) {
            let next = block + ahead;
            let state = self.state.lock().expect("no panic while the lock is held");
            let wanted = ahead <= certain || fetch.worth_fetching(&state.confines, next);
            let known = state.blocks.contains(&next);
            drop(state);
            if known || !wanted {
                continue;
            }
            let Some(slot) = fetch.try_slot() else { return };
            self.send(fetch, slot, next);
        }
    }

    fn send(&self, fetch: &impl Fetch, slot: Slot, block: u64) -> Arc<Answer<Content>> {
        let mut state = self.state.lock().expect("no panic while the lock is held");
        // Somebody else may have been faster while this one waited for its slot.
        if let Some(answer) = state.blocks.get(&block) {
            return Arc::clone(answer);
        }
        let (promise, answer) = promise();
        let pushed_out = state.blocks.push(block, Arc::clone(&answer));
        drop(state);
        let unused = pushed_out.and_then(|(_, old)| Arc::into_inner(old)).and_then(Answer::into_inner);
        if let Some(content) = unused {
            self.buffers.give_back(content);
        }
        fetch.fetch(slot, block, promise);
        answer
    }
}
