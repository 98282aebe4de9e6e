//! Reads from a socket that may stay silent only for so long.
//! Time is counted in ticks spent waiting, so that a process that was stopped and goes on blames nobody.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A block needs fewer reads than this. A server that needs more, and longer than the limit, is feeding us crumbs.
const MAX_READS: u32 = 512;

#[derive(Debug)]
pub(super) struct Patient {
    socket: Arc<UnixStream>,
    /// How many requests are in flight. With none, silence is as it should be.
    waited_for: Arc<AtomicUsize>,
    limit: Duration,
    max_ticks: u32,
    /// Since the last request was answered, or a block of one had come, while one was waited for.
    ticks: u32,
    reads: u32,
    since: Instant,
}

impl Patient {
    pub(super) fn new(
        socket: Arc<UnixStream>,
        waited_for: Arc<AtomicUsize>,
        limit: Duration,
    ) -> io::Result<Patient> {
        let tick = (limit / 8).clamp(Duration::from_millis(5), Duration::from_secs(1));
        socket.set_read_timeout(Some(tick))?;
        // One more, because the request may have been made late in the first tick.
        let max_ticks = limit.as_nanos().div_ceil(tick.as_nanos()).try_into().unwrap_or(u32::MAX - 1) + 1;
        Ok(Patient { socket, waited_for, limit, max_ticks, ticks: 0, reads: 0, since: Instant::now() })
    }

    /// A request was answered, or a whole block has come.
    pub(super) fn progressed(&mut self) {
        (self.ticks, self.reads, self.since) = (0, 0, Instant::now());
    }

    fn tick(&mut self) -> io::Result<()> {
        if self.waited_for.load(Ordering::SeqCst) == 0 {
            self.progressed();
            return Ok(());
        }
        self.ticks += 1;
        match self.ticks < self.max_ticks {
            true => Ok(()),
            false => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Read for Patient {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match (&*self.socket).read(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.tick()?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => {
                    self.reads += 1;
                    let crumbs = self.reads > MAX_READS && self.since.elapsed() > self.limit;
                    return if crumbs { Err(io::ErrorKind::TimedOut.into()) } else { other };
                }
            }
        }
    }
}
