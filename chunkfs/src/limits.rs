//! What the system may refuse to a process: threads, and files above a size. Whoever meets such a limit gets an error.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::{Builder, Scope};

/// A write beyond the limit for the size of files (`ulimit -f`) fails with EFBIG from now on, where it would have ended the
/// process. Programs that are started have the limit as it was: what is caught is forgotten by exec(2).
pub fn outlive_file_size() {
    // Where it cannot be caught, such a write ends the process as it ends any other.
    _ = signal_hook::flag::register(libc::SIGXFSZ, Arc::new(AtomicBool::new(false)));
}

/// Starts so many threads that work the same, or as many as there may be.
///
/// # Errors
///
/// Not even one could be started.
pub fn start_threads<'scope, F>(
    scope: &'scope Scope<'scope, '_>,
    wanted: usize,
    mut work: impl FnMut() -> F,
) -> io::Result<()>
where
    F: FnOnce() + Send + 'scope,
{
    for started in 0..wanted {
        match Builder::new().spawn_scoped(scope, work()) {
            Err(error) if started == 0 => return Err(error),
            Err(_) => break,
            Ok(_) => {}
        }
    }
    Ok(())
}
