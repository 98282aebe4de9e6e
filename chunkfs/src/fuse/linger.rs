//! A thread that has just answered looks for the next request for a moment, before it sleeps until there is one.
//! Takes no request, and does not wait for any in particular.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

/// Who reads one chunk after the other asks again within so long, and being woken takes longer. Measured, as all that is
/// said in docs/performance.md: 5 us were too few, with 30 the thread was in the way of others.
const MOMENT: Duration = Duration::from_micros(15);
const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Where requests come from: the device of a session, once there is one.
#[derive(Debug, Default)]
pub struct Linger(OnceLock<OwnedFd>);

impl Linger {
    /// On a machine with one processor nothing is done: nobody could ask meanwhile.
    pub fn at(&self, device: &impl AsFd) -> io::Result<()> {
        if available_parallelism().is_ok_and(|processors| processors.get() > 1) {
            let _ = self.0.set(device.as_fd().try_clone_to_owned()?);
        }
        Ok(())
    }

    /// Returns when there is a request, or has been none for a moment.
    pub(super) fn a_moment(&self) {
        let Some(device) = self.0.get() else { return };
        let begun = Instant::now();
        while begun.elapsed() < MOMENT {
            // An error is one for whoever reads the request.
            if !matches!(poll(&mut [PollFd::new(device, PollFlags::IN)], Some(&AT_ONCE)), Ok(0)) {
                return;
            }
        }
    }
}
