//! Pieces that are written past the page cache (O_DIRECT), several at once. Which bytes make a piece is not decided here.
//!
//! A copy of a disk is not read again soon. In the cache it would push out what guests and others need, its memory has to
//! be found first, and all of it waits for the sync.

use super::aligned::{ALIGNMENT, Aligned};
use super::bulk::WriteError;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Measured, as all here (docs/performance.md): 1 MiB takes a fifth longer, and so does a single thread; with 8 MiB, or
/// with more threads, nothing is gained.
pub const PIECE: usize = 4 << 20;
const WRITERS: usize = 4;
/// One for each to write, and one on the way.
const UNDER_WAY: usize = WRITERS + 1;
/// Less than so much is faster written through the cache.
const LEAST: usize = 256 << 10;
/// How long a wait goes on before it looks whether anybody is left to wait for.
const PATIENCE: Duration = Duration::from_secs(1);

/// Runs of bytes, and where they go.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) memory: Aligned,
    /// Of the first byte of the memory. A multiple of the alignment.
    pub(super) offset: u64,
    pub(super) runs: Vec<Range<usize>>,
}

impl Piece {
    pub(super) fn is_worth_it(&self) -> bool {
        self.runs.iter().any(|run| aligned_part(run).is_some())
    }

    /// Calls `write` for each run with its place in the file.
    pub(super) fn for_each(
        &self,
        mut write: impl FnMut(&Range<usize>, u64) -> Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        self.runs.iter().try_for_each(|run| write(run, self.offset + run.start as u64))
    }
}

/// What of a run goes past the cache, if that is worth it.
fn aligned_part(run: &Range<usize>) -> Option<Range<usize>> {
    let part = run.start.next_multiple_of(ALIGNMENT)..run.end / ALIGNMENT * ALIGNMENT;
    (part.len() >= LEAST).then_some(part)
}

/// Writes pieces in threads of its own, which end with it.
#[derive(Debug)]
pub(super) struct Direct {
    target: Arc<Target>,
    /// None while it ends.
    filled: Option<Sender<Piece>>,
    waiting: Arc<Mutex<Receiver<Piece>>>,
    done: Receiver<Done>,
    tell: Sender<Done>,
    writers: Vec<JoinHandle<()>>,
    spare: Vec<Aligned>,
    under_way: usize,
}

type Done = (Piece, Result<(), WriteError>);

#[derive(Debug)]
struct Target {
    cached: File,
    direct: File,
    refused: AtomicBool,
}

impl Direct {
    /// `None`: the file system does not say that it can, or has rules of its own for it. Nor where the cache keeps more in a
    /// page than is written past it: what goes through it beside a piece would bring back what was there before.
    pub(super) fn to(file: &File) -> Option<Direct> {
        if rustix::param::page_size() > ALIGNMENT {
            return None;
        }
        let told = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
        let can = |alignment: u32| alignment != 0 && ALIGNMENT.is_multiple_of(alignment as usize);
        let is_told = told.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
        if !is_told || !can(told.stx_dio_mem_align) || !can(told.stx_dio_offset_align) {
            return None;
        }
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let direct =
            rustix::fs::open(path, OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let target = Target {
            cached: file.try_clone().ok()?,
            direct: File::from(direct),
            refused: AtomicBool::new(false),
        };
        Some(Direct::with(target))
    }

    fn with(target: Target) -> Direct {
        let (filled, waiting) = channel();
        let (tell, done) = channel();
        Direct {
            target: Arc::new(target),
            filled: Some(filled),
            waiting: Arc::new(Mutex::new(waiting)),
            done,
            tell,
            writers: Vec::new(),
            spare: Vec::new(),
            under_way: 0,
        }
    }

    /// As if the file system had said that it can, and then `direct` were what it does.
    #[cfg(test)]
    pub(super) fn pretending(file: &File, direct: File) -> Direct {
        let cached = file.try_clone().expect("a file can be opened again");
        Direct::with(Target { cached, direct, refused: AtomicBool::new(false) })
    }

    /// Has the file system taken back what it said? What was handed over by then is written all the same.
    pub(super) fn is_refused(&self) -> bool {
        self.target.refused.load(Ordering::Relaxed)
    }

    /// Memory of a piece that has been written, if there is any.
    pub(super) fn spare(&mut self) -> Option<Aligned> {
        self.spare.pop()
    }

    /// Overlaps nothing that is under way. An error may be one of an earlier piece.
    pub(super) fn send(&mut self, piece: Piece) -> Result<(), WriteError> {
        assert!(piece.offset.is_multiple_of(ALIGNMENT as u64));
        while let Ok(done) = self.done.try_recv() {
            self.take_back(done)?;
        }
        if self.under_way == UNDER_WAY {
            self.wait_for_one()?;
        }
        if self.writers.len() < WRITERS && self.start_writer().is_err() && self.writers.is_empty() {
            // There may be no thread but this one.
            let result = self.target.write(&piece);
            self.spare.push(piece.memory);
            return result;
        }
        self.under_way += 1;
        let filled = self.filled.as_ref().expect("it is there until this ends");
        filled.send(piece).expect("its receiver is here");
        Ok(())
    }

    /// Until all that was sent is written, though not synced.
    pub(super) fn wait(&mut self) -> Result<(), WriteError> {
        while self.under_way > 0 {
            self.wait_for_one()?;
        }
        Ok(())
    }

    fn wait_for_one(&mut self) -> Result<(), WriteError> {
        loop {
            match self.done.recv_timeout(PATIENCE) {
                Ok(done) => return self.take_back(done),
                Err(RecvTimeoutError::Timeout) => {
                    assert!(
                        !self.writers.iter().any(JoinHandle::is_finished),
                        "a thread that writes has panicked"
                    );
                }
                Err(RecvTimeoutError::Disconnected) => unreachable!("a sender is here"),
            }
        }
    }

    fn take_back(&mut self, (piece, result): Done) -> Result<(), WriteError> {
        self.under_way -= 1;
        self.spare.push(piece.memory);
        result
    }

    fn start_writer(&mut self) -> io::Result<()> {
        let (target, waiting, tell) =
            (Arc::clone(&self.target), Arc::clone(&self.waiting), self.tell.clone());
        let write = move || {
            loop {
                let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok(piece) = next else { return };
                let result = target.write(&piece);
                if tell.send((piece, result)).is_err() {
                    return;
                }
            }
        };
        self.writers.push(std::thread::Builder::new().name("writer".to_owned()).spawn(write)?);
        Ok(())
    }
}

impl Drop for Direct {
    /// Nothing is written to the file any more after this.
    fn drop(&mut self) {
        self.filled = None;
        for writer in self.writers.drain(..) {
            // That one has panicked is told already.
            _ = writer.join();
        }
    }
}

impl Target {
    fn write(&self, piece: &Piece) -> Result<(), WriteError> {
        let put = |file: &File, part: Range<usize>| {
            let offset = piece.offset + part.start as u64;
            file.write_all_at(&piece.memory[part], offset).map_err(|error| WriteError { offset, error })
        };
        piece.for_each(|run, _| {
            let Some(part) = aligned_part(run) else { return put(&self.cached, run.clone()) };
            match put(&self.direct, part.clone()) {
                Err(refused) if is_refusal(&refused.error) => {
                    self.refused.store(true, Ordering::Relaxed);
                    put(&self.cached, part.clone())?;
                }
                done => done?,
            }
            put(&self.cached, run.start..part.start)?;
            put(&self.cached, part.end..run.end)
        })
    }
}

fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
}
