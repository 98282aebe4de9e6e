//! Reads a source in blocks, in several threads, works on each, and hands on what came of it in their order.
//! What is known to be zero is not read. At the end the digest of it all is known.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chunkfs::core::geometry::ByteRange;
use chunkfs::source::{Extent, ExtentKind, Source};
use chunkfs::watch::Watch;

use super::tree::{Leaf, Tree};
use super::{CarryError, Options};

/// So many blocks for each thread may be done before their turn comes, and so many bytes at least in all: whoever writes
/// them is held up now and then for as long as some take to be read.
const AHEAD: u64 = 4;
const AHEAD_AT_LEAST: u64 = 32 << 20;
/// How long a wait goes on before it looks whether it is to stop.
const PATIENCE: Duration = Duration::from_millis(100);

pub(super) struct Reading<'a> {
    pub(super) source: &'a dyn Source,
    /// A power of two.
    pub(super) block_len: u64,
    pub(super) options: &'a Options<'a>,
    pub(super) watch: &'a dyn Watch,
}

pub(super) enum Block {
    Zeros(ByteRange),
    /// The offset of the first byte, and the bytes. Whoever takes them leaves the reader to make room anew.
    Data(u64, Vec<u8>),
}

/// `work` runs in several threads, each with a state of its own; `put` in this one, in order.
pub(super) fn for_each<S, T: Send>(
    reading: &Reading<'_>,
    state: impl Fn() -> Result<S, CarryError> + Sync,
    work: impl Fn(&mut S, &mut Block) -> Result<T, CarryError> + Sync,
    mut put: impl FnMut(T) -> Result<(), CarryError>,
) -> Result<blake3::Hash, CarryError> {
    debug_assert!(reading.block_len.is_power_of_two());
    let len = reading.source.len().bytes();
    let workers = std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
    let belt = Belt::new(reading, workers as u64);
    reading.watch.expect(len);
    let digest = std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| belt.work(&state, &work));
        }
        // However this thread goes on, none of the others may wait for it.
        let _ended = Ended(&belt);
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
    fn source_error(&self, offset: u64, error: chunkfs::source::SourceError) -> CarryError {
        CarryError::Source { disk: self.options.disk.to_owned(), offset, error }
    }

    fn stopped(&self) -> CarryError {
        CarryError::Stopped { disk: self.options.disk.to_owned() }
    }
}

/// What the threads share.
struct Belt<'a, T> {
    reading: &'a Reading<'a>,
    cursor: Mutex<Cursor>,
    ahead: u64,
    done: Mutex<Done<T>>,
    changed: Condvar,
}

/// Where the readers are.
struct Cursor {
    next: u64,
    /// Of the source, from the next block on.
    extents: VecDeque<Extent>,
    /// Nothing may be read before.
    not_before: Instant,
}

struct Done<T> {
    /// The block whose turn it is.
    turn: u64,
    made: BTreeMap<u64, (Leaf, T)>,
    failure: Option<CarryError>,
    ended: bool,
}

/// A block and the parts of it that have to be read.
struct Job {
    number: u64,
    range: ByteRange,
    data: Vec<ByteRange>,
    not_before: Instant,
}

impl<'a, T> Belt<'a, T> {
    fn new(reading: &'a Reading<'a>, workers: u64) -> Belt<'a, T> {
        let cursor = Cursor { next: 0, extents: VecDeque::new(), not_before: Instant::now() };
        let done = Done { turn: 0, made: BTreeMap::new(), failure: None, ended: false };
        Belt {
            reading,
            cursor: Mutex::new(cursor),
            ahead: (AHEAD * workers).max(AHEAD_AT_LEAST / reading.block_len),
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
                self.changed.notify_all();
                return Ok(made);
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
        let mut buffer = Vec::new();
        let result = state().and_then(|mut state| {
            while let Some(job) = self.next_job()? {
                let (leaf, made, used) = self.do_job(&job, &mut state, work, buffer)?;
                buffer = used;
                lock(&self.done).made.insert(job.number, (leaf, made));
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
        mut buffer: Vec<u8>,
    ) -> Result<(Leaf, T, Vec<u8>), CarryError> {
        let len = self.reading.source.len().bytes();
        if job.data.is_empty() {
            let leaf = Leaf::of(zeros(job.range.len()), job.range.start, len);
            let made = work(state, &mut Block::Zeros(job.range))?;
            return Ok((leaf, made, buffer));
        }
        self.wait_until(job.not_before)?;
        buffer.resize(job.range.len() as usize, 0);
        let mut at = job.range.start;
        let place = |at: u64| (at - job.range.start) as usize;
        for part in &job.data {
            buffer[place(at)..place(part.start)].fill(0);
            self.reading
                .source
                .read_at(part.start, &mut buffer[place(part.start)..place(part.end)])
                .map_err(|error| self.reading.source_error(part.start, error))?;
            at = part.end;
        }
        buffer[place(at)..].fill(0);
        let leaf = Leaf::of(&buffer, job.range.start, len);
        let mut block = Block::Data(job.range.start, buffer);
        let made = work(state, &mut block)?;
        let used = match block {
            Block::Data(_, used) => used,
            Block::Zeros(_) => Vec::new(),
        };
        Ok((leaf, made, used))
    }

    /// None: all is read, or nobody waits for more.
    fn next_job(&self) -> Result<Option<Job>, CarryError> {
        let job = lock(&self.cursor).next_job(self.reading)?;
        let Some(job) = job else { return Ok(None) };
        let mut done = lock(&self.done);
        while job.number >= done.turn + self.ahead {
            if done.ended || done.failure.is_some() {
                return Ok(None);
            }
            done = self.changed.wait_timeout(done, PATIENCE).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok((!done.ended && done.failure.is_none()).then_some(job))
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

impl Cursor {
    fn next_job(&mut self, reading: &Reading<'_>) -> Result<Option<Job>, CarryError> {
        let len = reading.source.len().bytes();
        let start = self.next * reading.block_len;
        if start >= len {
            return Ok(None);
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
        let job = Job { number: self.next, range, data, not_before: self.not_before };
        self.next += 1;
        if let Some(rate) = reading.options.bytes_per_sec {
            let bytes: u64 = job.data.iter().map(|part| part.len()).sum();
            let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.get());
            // Time in which nothing could be read is not made up for.
            self.not_before = self.not_before.max(Instant::now())
                + Duration::from_nanos(nanos.try_into().unwrap_or(u64::MAX));
        }
        Ok(Some(job))
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

/// Whoever goes before all is done, by an error or a panic, is not waited for.
struct Ended<'b, 'a, T>(&'b Belt<'a, T>);

impl<T> Drop for Ended<'_, '_, T> {
    fn drop(&mut self) {
        lock(&self.0.done).ended = true;
        self.0.changed.notify_all();
    }
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
