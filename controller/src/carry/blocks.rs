//! Reads a source in blocks, in several threads, works on each, and hands on what came of it in their order.
//! What is known to be zero is not read. At the end the digest of it all is known.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chunkfs::copy::Aligned;
use chunkfs::core::geometry::ByteRange;
use chunkfs::limits;
use chunkfs::source::Source;
use chunkfs::watch::Watch;

use super::jobs::{Job, Jobs};
use super::tree::{Leaf, Tree};
use super::{CarryError, Options};

/// So many blocks for each thread may be read before their turn comes, and so many bytes at least in all: whoever writes
/// them is held up now and then for as long as some take to be read.
const AHEAD: u64 = 4;
const AHEAD_AT_LEAST: u64 = 32 << 20;
/// And at most, however many threads there are.
const AHEAD_AT_MOST: u64 = 256 << 20;
/// How long a wait goes on before it looks whether it is to stop.
const PATIENCE: Duration = Duration::from_millis(100);

pub(super) struct Reading<'a> {
    pub(super) source: &'a dyn Source,
    /// A power of two.
    pub(super) block_len: u64,
    /// Are holes within a block to be zeros in its buffer?
    pub(super) fills_holes: bool,
    pub(super) options: &'a Options<'a>,
    pub(super) watch: &'a dyn Watch,
}

pub(super) enum Block {
    Zeros(ByteRange),
    /// The offset of the first byte, and the bytes. Whoever takes them leaves others in their place.
    ///
    /// What is in none of the ranges is a hole, and is zero in the buffer only where `Reading` says so.
    Data(u64, Aligned, Vec<Range<usize>>),
}

/// Buffers that are used again: new memory for each block would cost as much as reading it.
pub(super) struct Buffers {
    len: u64,
    spare: Mutex<Vec<Aligned>>,
}

impl Buffers {
    pub(super) fn new(len: u64) -> Buffers {
        Buffers { len, spare: Mutex::new(Vec::new()) }
    }

    pub(super) fn take(&self) -> Aligned {
        lock(&self.spare).pop().unwrap_or_else(|| Aligned::new(self.len as usize))
    }

    pub(super) fn give_back(&self, buffer: Aligned) {
        lock(&self.spare).push(buffer);
    }
}

/// `work` runs in several threads, each with a state of its own; `put` in this one, in order.
pub(super) fn for_each<S, T: Send>(
    reading: &Reading<'_>,
    state: impl Fn() -> Result<S, CarryError> + Sync,
    work: impl Fn(&mut S, &mut Block) -> Result<T, CarryError> + Sync,
    mut put: impl FnMut(T) -> Result<(), CarryError>,
) -> Result<blake3::Hash, CarryError> {
    assert!(reading.block_len.is_power_of_two());
    let len = reading.source.len().bytes();
    let workers = std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
    let belt = Belt::new(reading, workers as u64);
    reading.watch.expect(len);
    let digest = std::thread::scope(|scope| {
        let (belt, state, work) = (&belt, &state, &work);
        // However this thread goes on, none of the others may wait for it.
        let _ended = Ended(belt);
        let started = limits::start_threads(scope, workers, || move || belt.work(state, work));
        started.map_err(|error| CarryError::Threads { disk: reading.options.disk.to_owned(), error })?;
        let mut tree = Tree::default();
        for block in 0..len.div_ceil(reading.block_len) {
            let (leaf, made) = belt.take(block)?;
            tree.push(leaf);
            put(made)?;
            reading.watch.advance(reading.block_len.min(len - block * reading.block_len));
        }
        Ok(tree.digest())
    })?;
    // What was read was of one point in time, up to the last byte.
    reading.source.check().map_err(|error| reading.source_error(len, error))?;
    Ok(digest)
}

impl Reading<'_> {
    pub(super) fn source_error(&self, offset: u64, error: chunkfs::source::SourceError) -> CarryError {
        CarryError::Source { disk: self.options.disk.to_owned(), offset, error }
    }

    fn stopped(&self) -> CarryError {
        CarryError::Stopped { disk: self.options.disk.to_owned() }
    }
}

/// What the threads share.
struct Belt<'a, T> {
    reading: &'a Reading<'a>,
    jobs: Mutex<Jobs>,
    ahead: u64,
    done: Mutex<Done<T>>,
    changed: Condvar,
}

struct Done<T> {
    /// The block whose turn it is.
    turn: u64,
    /// So many that have data are being read, or wait for their turn.
    reading: u64,
    made: BTreeMap<u64, Made<T>>,
    failure: Option<CarryError>,
    ended: bool,
}

impl<T> Done<T> {
    fn is_over(&self) -> bool {
        self.ended || self.failure.is_some()
    }
}

struct Made<T> {
    leaf: Leaf,
    result: T,
    was_read: bool,
}

impl<'a, T> Belt<'a, T> {
    fn new(reading: &'a Reading<'a>, workers: u64) -> Belt<'a, T> {
        let done = Done { turn: 0, reading: 0, made: BTreeMap::new(), failure: None, ended: false };
        Belt {
            reading,
            jobs: Mutex::new(Jobs::new()),
            ahead: (AHEAD * workers)
                .min(AHEAD_AT_MOST / reading.block_len)
                .max(AHEAD_AT_LEAST / reading.block_len),
            done: Mutex::new(done),
            changed: Condvar::new(),
        }
    }

    /// What was made of the block whose turn it is.
    fn take(&self, block: u64) -> Result<(Leaf, T), CarryError> {
        let mut done = lock(&self.done);
        loop {
            // Also where all is there in time: a signal must not wait for a slow disk.
            if self.reading.watch.is_stopped() {
                return Err(self.reading.stopped());
            }
            if let Some(made) = done.made.remove(&block) {
                done.turn = block + 1;
                done.reading -= u64::from(made.was_read);
                self.changed.notify_all();
                return Ok((made.leaf, made.result));
            }
            if let Some(failure) = done.failure.take() {
                return Err(failure);
            }
            assert!(!done.ended, "a thread that reads has panicked");
            done = self.changed.wait_timeout(done, PATIENCE).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn work<S>(
        &self,
        state: &impl Fn() -> Result<S, CarryError>,
        work: &impl Fn(&mut S, &mut Block) -> Result<T, CarryError>,
    ) {
        let ended = Ended(self);
        let mut buffer = Aligned::new(self.reading.block_len as usize);
        let result = state().and_then(|mut state| {
            while let Some(job) = self.next_job()? {
                let made;
                (made, buffer) = self.do_job(&job, &mut state, work, buffer)?;
                lock(&self.done).made.insert(job.number, made);
                self.changed.notify_all();
            }
            Ok(())
        });
        if let Err(error) = result {
            // The first failure is the cause; those of the others may only be its consequences.
            lock(&self.done).failure.get_or_insert(error);
            self.changed.notify_all();
        }
        std::mem::forget(ended);
    }

    fn do_job<S>(
        &self,
        job: &Job,
        state: &mut S,
        work: &impl Fn(&mut S, &mut Block) -> Result<T, CarryError>,
        mut buffer: Aligned,
    ) -> Result<(Made<T>, Aligned), CarryError> {
        let len = self.reading.source.len().bytes();
        if job.data.is_empty() {
            let leaf = Leaf::of([zeros(job.range.len())], job.range, len);
            let result = work(state, &mut Block::Zeros(job.range))?;
            return Ok((Made { leaf, result, was_read: false }, buffer));
        }
        self.wait_until(job.not_before)?;
        buffer.set_len(job.range.len() as usize);
        let place = |at: u64| (at - job.range.start) as usize;
        let parts: Vec<_> = job.data.iter().map(|part| place(part.start)..place(part.end)).collect();
        for (part, from) in parts.iter().zip(&job.data) {
            let read = self.reading.source.read_at(from.start, &mut buffer[part.clone()]);
            read.map_err(|error| self.reading.source_error(from.start, error))?;
        }
        let leaf = Leaf::of(bytes_and_zeros(&buffer, &parts), job.range, len);
        if self.reading.fills_holes {
            holes(buffer.len(), &parts).for_each(|hole| buffer[hole].fill(0));
        }
        let mut block = Block::Data(job.range.start, buffer, parts);
        let result = work(state, &mut block)?;
        let Block::Data(_, left, _) = block else { unreachable!("bytes are left in the place of bytes") };
        Ok((Made { leaf, result, was_read: true }, left))
    }

    /// None: all is read, or nobody waits for more.
    fn next_job(&self) -> Result<Option<Job>, CarryError> {
        loop {
            let mut jobs = lock(&self.jobs);
            let (turn, may_read) = {
                let done = lock(&self.done);
                if done.is_over() {
                    return Ok(None);
                }
                (done.turn, done.reading < self.ahead)
            };
            if let Some(job) = jobs.take(self.reading, turn, may_read)? {
                lock(&self.done).reading += u64::from(!job.data.is_empty());
                return Ok(Some(job));
            }
            if jobs.are_taken(self.reading) {
                return Ok(None);
            }
            drop(jobs);
            let mut done = lock(&self.done);
            while done.turn == turn && !done.is_over() {
                done = self.changed.wait_timeout(done, PATIENCE).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    fn wait_until(&self, moment: Instant) -> Result<(), CarryError> {
        loop {
            let left = moment.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            if self.reading.watch.is_stopped() || lock(&self.done).ended {
                return Err(self.reading.stopped());
            }
            std::thread::sleep(left.min(PATIENCE));
        }
    }
}

/// Whoever goes before all is done, by an error or a panic, is not waited for.
struct Ended<'b, 'a, T>(&'b Belt<'a, T>);

impl<T> Drop for Ended<'_, '_, T> {
    fn drop(&mut self) {
        lock(&self.0.done).ended = true;
        self.0.changed.notify_all();
    }
}

/// What is in none of the parts, which are in order, of so many bytes: before each, and after the last. May be empty.
fn holes(len: usize, parts: &[Range<usize>]) -> impl Iterator<Item = Range<usize>> {
    let starts = [0].into_iter().chain(parts.iter().map(|part| part.end));
    let ends = parts.iter().map(|part| part.start).chain([len]);
    starts.zip(ends).map(|(start, end)| start..end)
}

/// All of the block in order, whatever is in its buffer where it has holes.
fn bytes_and_zeros<'b>(buffer: &'b [u8], parts: &'b [Range<usize>]) -> impl Iterator<Item = &'b [u8]> {
    let bytes = parts.iter().map(|part| &buffer[part.clone()]).chain([&[][..]]);
    holes(buffer.len(), parts).zip(bytes).flat_map(|(hole, bytes)| [zeros(hole.len() as u64), bytes])
}

/// Read as often as there are holes: pages of the kernel's one page of zeros.
fn zeros(len: u64) -> &'static [u8] {
    static ZEROS: LazyLock<Vec<u8>> = LazyLock::new(|| vec![0; super::ZSTD_BLOCK as usize]);
    &ZEROS[..len as usize]
}

/// Only insertions and removals happen under the locks: what a thread that panicked left is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
