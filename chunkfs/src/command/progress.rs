//! Shows how far long work is, on a terminal, and stops it when the user asks.
//! Nothing is shown of what is done within a second.

use crate::watch::Watch;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const SILENT: Duration = Duration::from_secs(1);
const STYLE: &str =
    "{msg} {wide_bar} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";

/// Whether anybody wants to see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    OnTerminal,
    Never,
}

/// A bar on stderr. SIGINT, SIGTERM and SIGHUP ask the work to stop; a second one ends the process.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    begun: Instant,
    is_wanted: bool,
    is_shown: AtomicBool,
    stop: Arc<AtomicBool>,
}

impl Progress {
    /// `doing` stands before the bar. Errors: a signal could not be caught.
    pub fn begin(doing: &'static str, show: Show) -> io::Result<Progress> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // In this order: the first signal only sets the flag, the second finds it set.
            signal_hook::flag::register_conditional_default(signal, Arc::clone(&stop))?;
            signal_hook::flag::register(signal, Arc::clone(&stop))?;
        }
        let style = ProgressStyle::with_template(STYLE).expect("a constant, tried in a test");
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        let bar = bar.with_style(style).with_message(doing);
        let is_wanted = show == Show::OnTerminal;
        Ok(Progress { bar, begun: Instant::now(), is_wanted, is_shown: AtomicBool::new(false), stop })
    }

    /// Writes something where the bar is not in its way.
    pub fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        self.bar.suspend(write)
    }

    /// As if the user had asked for it.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

impl Watch for Progress {
    fn expect(&self, bytes: u64) {
        self.bar.set_length(bytes);
    }

    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
        if self.is_wanted && self.begun.elapsed() >= SILENT && !self.is_shown.swap(true, Ordering::SeqCst) {
            // Hides itself where stderr is no terminal.
            self.bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(5));
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_counts_and_can_be_stopped() {
        let progress = Progress::begin("testing", Show::Never).unwrap();
        progress.expect(100);
        progress.advance(30);
        progress.advance(20);
        assert_eq!((progress.bar.position(), progress.bar.length()), (50, Some(100)));
        assert!(!progress.is_stopped());
        progress.stop();
        assert!(progress.is_stopped());
    }
}
