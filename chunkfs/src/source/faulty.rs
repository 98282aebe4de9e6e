//! A source that fails on demand, for tests: what a real part cannot be made to do at the right moment.

use super::{Extent, Source, SourceError};
use crate::core::geometry::{ByteRange, ImageLen};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What is to go wrong. Shared with the test that sets it.
#[derive(Debug, Default)]
pub struct Faults {
    /// Reads that touch one of these bytes fail.
    bad: Mutex<Vec<ByteRange>>,
    /// The source is gone: every read fails.
    gone: AtomicBool,
    /// Reads panic.
    panics: AtomicBool,
    delay_millis: AtomicU64,
    reads: AtomicU64,
}

impl Faults {
    pub fn fail_in(&self, range: ByteRange) {
        self.bad.lock().expect("no panic while the lock is held").push(range);
    }

    pub fn heal(&self) {
        self.bad.lock().expect("no panic while the lock is held").clear();
        self.gone.store(false, Ordering::SeqCst);
        self.panics.store(false, Ordering::SeqCst);
        self.delay(Duration::ZERO);
    }

    pub fn vanish(&self) {
        self.gone.store(true, Ordering::SeqCst);
    }

    pub fn panic_on_read(&self) {
        self.panics.store(true, Ordering::SeqCst);
    }

    pub fn delay(&self, time: Duration) {
        self.delay_millis.store(time.as_millis() as u64, Ordering::SeqCst);
    }

    /// How many reads there were, failed ones included.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::SeqCst)
    }
}

/// Another source, with faults in front of it.
#[derive(Debug)]
pub struct FaultySource<S> {
    inner: S,
    faults: Arc<Faults>,
}

impl<S: Source> FaultySource<S> {
    pub fn new(inner: S) -> (FaultySource<S>, Arc<Faults>) {
        let faults = Arc::new(Faults::default());
        (FaultySource { inner, faults: Arc::clone(&faults) }, faults)
    }
}

impl<S: Source> Source for FaultySource<S> {
    fn len(&self) -> ImageLen {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        self.faults.reads.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(self.faults.delay_millis.load(Ordering::SeqCst)));
        assert!(!self.faults.panics.load(Ordering::SeqCst), "the test asked for a panic");
        self.check()?;
        let length = buffer.len() as u64;
        let bad = self.faults.bad.lock().expect("no panic while the lock is held");
        if bad.iter().any(|bad| bad.start < offset + length && offset < bad.end) {
            let error = Arc::new(std::io::Error::other("bad sector"));
            return Err(SourceError::Read { what: self.describe(), offset, length, error });
        }
        drop(bad);
        self.inner.read_at(offset, buffer)
    }

    fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, SourceError> {
        self.check()?;
        self.inner.extents(range)
    }

    fn check(&self) -> Result<(), SourceError> {
        match self.faults.gone.load(Ordering::SeqCst) {
            true => Err(SourceError::Invalid { what: self.describe(), why: "it is gone".to_owned() }),
            false => self.inner.check(),
        }
    }

    fn describe(&self) -> String {
        format!("{} with faults", self.inner.describe())
    }
}
