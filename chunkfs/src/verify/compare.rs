//! Reads chunks in two threads and compares each with its digest and with the image.
//! Nothing here knows which chunks there should be.

use super::{Expected, Problem, ProblemKind, VerifyError};
use crate::core::digest::Digest;
use crate::core::layout::Node;
use crate::limits;
use crate::source::beneath::Fault;
use crate::source::shape::{ChunkTree, ChunksError};
use crate::source::walk::Entry;
use crate::source::{Source, SourceError};
use crate::watch::Watch;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

const WORKERS: usize = 2;
/// So many bytes are handed to a worker at once, so that small chunks do not make it wait for each.
const BATCH_BYTES: u64 = 2 << 20;

pub(super) struct Comparison<'a> {
    tree: &'a ChunkTree,
    image: Option<&'a dyn Source>,
    watch: &'a dyn Watch,
    found: &'a (dyn Fn(&Problem) + Sync),
    chunks: AtomicU64,
    bytes: AtomicU64,
    problems: AtomicU64,
    /// The image could not be read, so there is nothing to compare with.
    image_error: Mutex<Option<SourceError>>,
    failed: AtomicBool,
}

/// Where the survey puts the chunks that are to be read.
pub(super) struct Batches<'a> {
    comparison: &'a Comparison<'a>,
    batch: Vec<Expected>,
    bytes: u64,
    sender: SyncSender<Vec<Expected>>,
}

impl<'a> Comparison<'a> {
    pub(super) fn new(
        tree: &'a ChunkTree,
        image: Option<&'a dyn Source>,
        watch: &'a dyn Watch,
        found: &'a (dyn Fn(&Problem) + Sync),
    ) -> Comparison<'a> {
        let zero = || AtomicU64::new(0);
        Comparison {
            tree,
            image,
            watch,
            found,
            chunks: zero(),
            bytes: zero(),
            problems: zero(),
            image_error: Mutex::new(None),
            failed: AtomicBool::new(false),
        }
    }

    /// The survey runs in this thread, the workers beside it.
    pub(super) fn run(
        &self,
        survey: impl FnOnce(Batches<'_>) -> Result<(), ChunksError>,
    ) -> Result<(), VerifyError> {
        let (sender, receiver) = sync_channel(2 * WORKERS);
        // The workers own it, so that the survey does not wait for ever when they are gone.
        let receiver = Arc::new(Mutex::new(receiver));
        std::thread::scope(|scope| {
            limits::start_threads(scope, WORKERS, || {
                let receiver = Arc::clone(&receiver);
                move || self.work(&receiver)
            })
            .map_err(VerifyError::Threads)?;
            drop(receiver);
            survey(Batches { comparison: self, batch: Vec::new(), bytes: 0, sender })?;
            Ok::<(), VerifyError>(())
        })?;
        let error = self.image_error.lock().unwrap_or_else(PoisonError::into_inner).take();
        error.map_or(Ok(()), |error| Err(VerifyError::Image(error)))
    }

    pub(super) fn chunks(&self) -> u64 {
        self.chunks.load(Ordering::SeqCst)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }

    pub(super) fn problems(&self) -> u64 {
        self.problems.load(Ordering::SeqCst)
    }

    pub(super) fn problem(&self, path: &Path, kind: ProblemKind) {
        self.report(&Problem::new(path, kind));
    }

    pub(super) fn report(&self, problem: &Problem) {
        self.problems.fetch_add(1, Ordering::SeqCst);
        (self.found)(problem);
    }

    /// An entry of a tree that is no file of it.
    pub(super) fn problem_of_entry(&self, root: &Path, entry: Entry) {
        match entry {
            Entry::File { .. } => {}
            Entry::Wrong { node, kind } => {
                self.problem(&root.join(node.path()), ProblemKind::WrongKind { found: kind });
            }
            Entry::Foreign { path, .. } => self.problem(&root.join(path), ProblemKind::Foreign),
            Entry::Unreadable { node, error } => {
                self.problem(&root.join(node.path()), ProblemKind::Unreadable { error: error.to_string() });
            }
        }
    }

    fn is_stopped(&self) -> bool {
        self.failed.load(Ordering::SeqCst) || self.watch.is_stopped()
    }

    fn work(&self, batches: &Mutex<Receiver<Vec<Expected>>>) {
        let next = || batches.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let mut chunk = Vec::new();
        let mut image = Vec::new();
        while let Ok(batch) = next() {
            for expected in batch {
                if self.is_stopped() {
                    // Goes on taking batches, for the survey must not wait for ever.
                    break;
                }
                self.compare(&expected, &mut chunk, &mut image);
                self.watch.advance(expected.range.len());
            }
        }
    }

    fn compare(&self, expected: &Expected, chunk: &mut Vec<u8>, image: &mut Vec<u8>) {
        let path = self.tree.path_of(expected.chunk);
        if let Err(kind) = self.read(expected, chunk) {
            return self.problem(&path, kind);
        }
        self.chunks.fetch_add(1, Ordering::SeqCst);
        self.bytes.fetch_add(chunk.len() as u64, Ordering::SeqCst);
        if expected.digest.is_some_and(|digest| digest != Digest::of_chunk(chunk)) {
            self.problem(&path, ProblemKind::Stale);
        }
        let Some(source) = self.image else { return };
        image.resize(chunk.len(), 0);
        if let Err(error) = source.read_at(expected.range.start, image) {
            *self.image_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            self.failed.store(true, Ordering::SeqCst);
            return;
        }
        if let Some(at) = first_difference(chunk, image) {
            self.problem(&path, ProblemKind::DiffersFromImage { offset: expected.range.start + at });
        }
    }

    fn read(&self, expected: &Expected, buffer: &mut Vec<u8>) -> Result<(), ProblemKind> {
        let unreadable = |error: std::io::Error| ProblemKind::Unreadable { error: error.to_string() };
        let file = self.tree.root.file(Node::of_chunk(expected.chunk).path());
        let (file, bytes) = file.map_err(|fault| match fault {
            Fault::NotAFile(found) => ProblemKind::WrongKind { found },
            fault => unreadable(fault.into_io()),
        })?;
        let expected = expected.range.len();
        if bytes < expected {
            return Err(ProblemKind::Short { bytes, expected });
        }
        if bytes > expected {
            return Err(ProblemKind::TooLong { bytes, expected });
        }
        buffer.resize(expected as usize, 0);
        file.read_exact_at(buffer, 0).map_err(unreadable)
    }
}

impl Batches<'_> {
    pub(super) fn push(&mut self, expected: Expected) {
        self.bytes += expected.range.len();
        self.batch.push(expected);
        if self.bytes >= BATCH_BYTES {
            self.send();
        }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.comparison.is_stopped()
    }

    fn send(&mut self) {
        self.bytes = 0;
        // The workers are only gone when one of them panicked, and then the scope panics too.
        _ = self.sender.send(std::mem::take(&mut self.batch));
    }
}

/// The last batch is seldom full.
impl Drop for Batches<'_> {
    fn drop(&mut self) {
        self.send();
    }
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<u64> {
    // Equal slices are the rule, and their comparison is the fastest there is.
    if a == b {
        return None;
    }
    a.iter().zip(b).position(|(a, b)| a != b).map(|at| at as u64)
}
