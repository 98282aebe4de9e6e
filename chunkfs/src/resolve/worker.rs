//! The threads that compare leaves: what somebody waits for first, then in disk order.
//! A worker takes a leaf, compares it, and stores a few of them in one transaction.

use super::compare::{Buffer, compare};
use super::queue::{Parked, Queue, Retry};
use super::tracked::{NotShown, Tracked};
use crate::core::changes::LeafSet;
use crate::core::geometry::{ByteRange, LeafIndex};
use crate::core::layout::DiskSlot;
use crate::index::record::{Chunk, Content, Record};
use crate::index::{Index, IndexError, Publication, Run};
use crate::source::{SourceError, next_data};
use serde::Serialize;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// A transaction holds so many leaves at most, and is not older than this when it is stored.
const BATCH_LEAVES: usize = 32;
const BATCH_AGE: Duration = Duration::from_millis(200);
/// How often it is stored how far the scan has come.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// How far the comparison is.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Progress {
    pub done: bool,
    pub pending_leaves: u64,
    pub compared_leaves: u64,
    pub changed_chunks: u64,
    pub bytes_read: u64,
    /// From the start until the last leaf was compared, or until now.
    pub secs: f64,
}

/// Compares the leaves of some disks of one index in the background.
#[derive(Debug)]
pub struct Resolver {
    shared: Arc<Shared>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    index: Arc<Index>,
    disks: Vec<Arc<Tracked>>,
    queue: Mutex<Queue>,
    wake: Condvar,
    started: Instant,
    finished: Mutex<Option<Instant>>,
    progress_saved: Mutex<Instant>,
    compared_leaves: AtomicU64,
    changed_chunks: AtomicU64,
    bytes_read: AtomicU64,
}

impl Resolver {
    pub fn start(index: Arc<Index>, disks: Vec<Arc<Tracked>>, threads: usize) -> std::io::Result<Resolver> {
        let now = Instant::now();
        let shared = Arc::new(Shared {
            index,
            disks,
            queue: Mutex::default(),
            wake: Condvar::new(),
            started: now,
            finished: Mutex::new(None),
            progress_saved: Mutex::new(now),
            compared_leaves: AtomicU64::new(0),
            changed_chunks: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
        });
        let resolver = Resolver { shared: Arc::clone(&shared), threads: Mutex::default() };
        for number in 0..threads {
            let shared = Arc::clone(&shared);
            let thread =
                std::thread::Builder::new().name(format!("compare-{number}")).spawn(move || shared.work())?;
            resolver.threads.lock().expect("no panic while the lock is held").push(thread);
        }
        Ok(resolver)
    }

    /// Answers later: when some of these leaves have been compared.
    pub fn park(&self, slot: DiskSlot, leaves: Range<u64>, retry: Retry) {
        let shared = &self.shared;
        let Some(disk) = shared.disks.iter().position(|disk| disk.slot == slot) else { return retry() };
        let mut queue = shared.queue();
        if queue.stopped {
            // Dropped, it answers with an error.
            return;
        }
        // Compared in the meantime: under the queue's lock, so that nobody is parked after the last wake-up.
        if shared.disks[disk].is_answered(&leaves) {
            drop(queue);
            return retry();
        }
        queue.park(Parked { disk, leaves, retry });
        drop(queue);
        shared.wake.notify_all();
    }

    pub fn progress(&self) -> Progress {
        let shared = &self.shared;
        let pending_leaves = shared.disks.iter().map(|disk| disk.pending_leaves()).sum();
        let finished = *shared.finished.lock().expect("no panic while the lock is held");
        Progress {
            done: pending_leaves == 0,
            pending_leaves,
            compared_leaves: shared.compared_leaves.load(Ordering::Relaxed),
            changed_chunks: shared.changed_chunks.load(Ordering::Relaxed),
            bytes_read: shared.bytes_read.load(Ordering::Relaxed),
            secs: finished.unwrap_or_else(Instant::now).duration_since(shared.started).as_secs_f64(),
        }
    }

    /// Ends the workers after the leaf that each of them has, and stores how far they came.
    /// Whoever still waits is answered: with an error.
    pub fn stop(&self) -> Result<(), IndexError> {
        self.shared.queue().stopped = true;
        self.shared.wake.notify_all();
        for thread in self.threads.lock().expect("no panic while the lock is held").drain(..) {
            if thread.join().is_err() {
                tracing::error!("a comparing thread panicked");
            }
        }
        let waiting = self.shared.queue().unpark_all();
        drop(waiting);
        self.shared.save_progress()
    }
}

/// A leaf, or a run of empty ones, that a worker has compared and not yet stored.
struct Finding {
    disk: usize,
    leaves: Range<u64>,
    /// `None`: all is as the index has it.
    publication: Option<Publication>,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no panic while the lock is held")
    }

    fn work(&self) {
        let mut buffer = Buffer::default();
        let mut batch: Vec<Finding> = Vec::new();
        let mut since = Instant::now();
        while let Some((disk, leaf)) = self.next(&mut batch) {
            if batch.is_empty() {
                since = Instant::now();
            }
            // A thread that ended here would keep its leaves for ever, and whoever waits for them.
            let found = catch_unwind(AssertUnwindSafe(|| self.find(disk, leaf, &mut buffer)));
            match found.unwrap_or_else(|_| Err(panicked(&self.disks[disk]))) {
                Ok(finding) => batch.push(finding),
                Err(why) => self.give_up(disk, leaf, why),
            }
            if batch.len() >= BATCH_LEAVES || since.elapsed() >= BATCH_AGE || self.is_urgent(&batch) {
                self.flush(&mut batch);
            }
        }
        self.flush(&mut batch);
    }

    /// Does somebody wait for a leaf of the batch? Whoever waits for a directory can wait for the batch, too.
    fn is_urgent(&self, batch: &[Finding]) -> bool {
        let queue = self.queue();
        batch.iter().any(|finding| queue.is_urgent(finding.disk, &finding.leaves))
    }

    /// The next leaf to compare, leased to the caller. Waits while there is none; then stores the batch first.
    /// `None`: the resolver stops.
    fn next(&self, batch: &mut Vec<Finding>) -> Option<(usize, LeafIndex)> {
        loop {
            let mut queue = self.queue();
            if queue.stopped {
                return None;
            }
            if let Some((disk, leaf)) = self.pick(&queue) {
                queue.leased.push((disk, leaf.0..leaf.0 + 1));
                return Some((disk, leaf));
            }
            if !batch.is_empty() {
                drop(queue);
                self.flush(batch);
                continue;
            }
            drop(
                self.wake
                    .wait_timeout(queue, Duration::from_secs(1))
                    .expect("no panic while the lock is held"),
            );
        }
    }

    fn pick(&self, queue: &Queue) -> Option<(usize, LeafIndex)> {
        let wanted = queue.parked().find_map(|parked| self.pick_in(queue, parked.disk, &parked.leaves));
        wanted.or_else(|| {
            (0..self.disks.len()).find_map(|disk| {
                let (cursor, end) = (self.disks[disk].live().cursor, self.disks[disk].geometry.leaf_count());
                self.pick_in(queue, disk, &(cursor..end)).or_else(|| self.pick_in(queue, disk, &(0..cursor)))
            })
        })
    }

    /// The first leaf of `leaves` that is pending and that no worker has.
    fn pick_in(&self, queue: &Queue, disk: usize, leaves: &Range<u64>) -> Option<(usize, LeafIndex)> {
        let live = self.disks[disk].live();
        if live.dead.is_some() {
            return None;
        }
        let mut from = leaves.start;
        while let Some(found) = live.pending.first_in(&(from..leaves.end)) {
            match queue.first_free(disk, &found) {
                Some(leaf) => return Some((disk, LeafIndex(leaf))),
                None => from = found.end,
            }
        }
        None
    }

    fn find(&self, number: usize, leaf: LeafIndex, buffer: &mut Buffer) -> Result<Finding, NotShown> {
        let disk = &self.disks[number];
        let (run, listed) = disk.index.leaf_at(disk.slot, leaf)?;
        if let Some(finding) = self.find_empty_run(number, leaf, &run)? {
            return Ok(finding);
        }
        let all = leaf.0 >= disk.live().all_from;
        let candidates = disk.candidates(leaf, &run.record, listed, all);
        let compared =
            compare(&*disk.source, &disk.geometry, leaf, &run.record, &candidates, disk.stamp, buffer)?;
        self.bytes_read.fetch_add(compared.bytes_read, Ordering::Relaxed);
        self.compared_leaves.fetch_add(1, Ordering::Relaxed);
        let changed = (0..disk.geometry.chunks_in(leaf))
            .filter(|slot| compared.record.chunk(*slot).stamp != run.record.chunk(*slot).stamp)
            .count();
        self.changed_chunks.fetch_add(changed as u64, Ordering::Relaxed);
        let leaves = leaf.0..leaf.0 + 1;
        // Listed candidates have to be struck off even if nothing has changed.
        let same = compared.record == run.record && listed.is_empty() && compared.still_open.is_empty();
        let publication = (!same).then(|| Publication {
            slot: disk.slot,
            run: Run { leaves: leaves.clone(), record: compared.record },
            still_open: compared.still_open,
        });
        Ok(Finding { disk: number, leaves, publication })
    }

    /// A whole run of leaves at once, where it is uniform in the index and a hole in the source:
    /// so that an empty disk of any size takes no time.
    fn find_empty_run(&self, number: usize, leaf: LeafIndex, run: &Run) -> Result<Option<Finding>, NotShown> {
        let disk = &self.disks[number];
        let Record::Uniform(known) = run.record else { return Ok(None) };
        let rest = ByteRange::new(
            disk.geometry.leaf_range(leaf).start,
            disk.geometry.leaf_range(LeafIndex(run.leaves.end - 1)).end,
        );
        let empty_to = match next_data(&*disk.source, rest)? {
            Some(data) => disk.geometry.leaf_at(data).0,
            None => run.leaves.end,
        };
        // Only leaves that are pending, that no other worker has, and that lie in one stretch.
        let mut queue = self.queue();
        let live = disk.live();
        let Some(stretch) = live.pending.first_in(&(leaf.0..empty_to)).filter(|s| s.start == leaf.0) else {
            return Ok(None);
        };
        let taken = queue
            .leased
            .iter()
            .filter(|(other, l)| *other == number && l.start > leaf.0)
            .map(|(_, l)| l.start);
        let leaves = leaf.0..stretch.end.min(taken.min().unwrap_or(u64::MAX));
        if leaves.end - leaves.start < 2 {
            return Ok(None);
        }
        queue.release(number, &(leaf.0..leaf.0 + 1));
        queue.leased.push((number, leaves.clone()));
        drop((queue, live));
        self.compared_leaves.fetch_add(leaves.end - leaves.start, Ordering::Relaxed);
        let zero = Content::Zero;
        let stamp = if known.content == zero { known.stamp } else { disk.stamp };
        let record = Record::Uniform(Chunk { stamp, content: zero });
        let same = record == run.record && !disk.index.has_candidates(disk.slot, &leaves)?;
        let run = Run { leaves: leaves.clone(), record };
        let publication = (!same).then_some(Publication { slot: disk.slot, run, still_open: LeafSet::EMPTY });
        Ok(Some(Finding { disk: number, leaves, publication }))
    }

    /// Stores what was found; only then is it shown, and whoever waited for it answered.
    fn flush(&self, batch: &mut Vec<Finding>) {
        let publications: Vec<Publication> =
            batch.iter().filter_map(|finding| finding.publication.clone()).collect();
        if !publications.is_empty()
            && let Err(error) = self.index.publish(&publications)
        {
            tracing::error!("{error}; no more changes can be shown in this view");
            let why = NotShown::Index(Arc::new(error));
            for finding in batch.drain(..) {
                self.give_up(finding.disk, LeafIndex(finding.leaves.start), why.clone());
            }
            return;
        }
        let mut retries = Vec::new();
        for Finding { disk, leaves, publication } in batch.drain(..) {
            let newest = publication.map(|publication| publication.run.record.newest());
            let mut queue = self.queue();
            self.disks[disk].done(leaves.clone(), newest);
            queue.release(disk, &leaves);
            retries.extend(queue.unpark(disk, |asked| {
                asked.start < leaves.end && leaves.start < asked.end && self.disks[disk].is_answered(asked)
            }));
        }
        for retry in retries {
            retry();
        }
        self.note_progress();
    }

    fn note_progress(&self) {
        let done = self.disks.iter().all(|disk| disk.is_done());
        if done {
            self.finished.lock().expect("no panic while the lock is held").get_or_insert_with(Instant::now);
        }
        let mut saved = self.progress_saved.lock().expect("no panic while the lock is held");
        if done || saved.elapsed() > PROGRESS_INTERVAL {
            *saved = Instant::now();
            drop(saved);
            if let Err(error) = self.save_progress() {
                tracing::warn!("{error}; the next view will compare more than it would have to");
            }
        }
    }

    fn save_progress(&self) -> Result<(), IndexError> {
        self.disks.iter().try_for_each(|disk| self.index.set_compared_to(disk.slot, disk.compared_to()))
    }

    /// The disk cannot be compared any further: whoever waits for it gets the error.
    fn give_up(&self, disk: usize, leaf: LeafIndex, why: NotShown) {
        if let NotShown::Source(error) = &why {
            tracing::error!("{error}");
        }
        self.disks[disk].live().dead.get_or_insert(why);
        let mut queue = self.queue();
        queue.leased.retain(|(other, leaves)| *other != disk || !leaves.contains(&leaf.0));
        let retries = queue.unpark(disk, |_| true);
        drop(queue);
        retries.into_iter().for_each(|retry| retry());
    }
}

fn panicked(disk: &Tracked) -> NotShown {
    NotShown::Source(SourceError::Damaged {
        what: disk.source.describe(),
        why: "comparing it made chunkfs panic; please report this".to_owned(),
    })
}
