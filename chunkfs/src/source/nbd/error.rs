//! What goes wrong with an export, and the end of a source once something did.
//! Nothing here is retried: an export that failed once may have lost the point in time that it stood for.

use super::options::Refusal;
use super::protocol::{ServerError, Violation};
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// Why there is no connection to an export, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    #[error("connecting to {}: {error}", socket.display())]
    Connect { socket: PathBuf, error: io::Error },
    #[error("talking to the NBD server: {0}")]
    Io(io::Error),
    #[error("the NBD server hung up")]
    HungUp,
    #[error("the NBD server has not answered for {} seconds", .0.as_secs_f32())]
    Timeout(Duration),
    #[error(transparent)]
    Violation(#[from] Violation),
    #[error("the NBD server could not do what it was asked: {0}")]
    Server(ServerError),
    #[error("the NBD server speaks an old form of the protocol, without options; update it")]
    OldServer,
    #[error("the NBD server refused {option}: {why}")]
    Refused { option: &'static str, why: String },
    #[error("the NBD server hung up when asked for the export {export:?}: it may not have it")]
    ExportRefused { export: String },
    #[error("the NBD server does not know structured replies, so it cannot tell of {0:?}")]
    NoStructuredReplies(Vec<String>),
    #[error("the NBD server has no {missing:?} for this export, only {available:?}")]
    NoContext { missing: Vec<String>, available: Vec<String> },
    #[error("the export is longer than 8 EiB: {0} bytes")]
    TooLong(u64),
    #[error(
        "the export's {bytes} bytes are no multiple of the server's minimum block size of {minimum}, \
         so its last bytes cannot be read; round the image's length up"
    )]
    OddLength { bytes: u64, minimum: u32 },
    #[error("starting a thread: {0}")]
    Thread(io::Error),
}

impl NbdError {
    pub(super) fn refused(option: &'static str, refusal: &Refusal) -> NbdError {
        NbdError::Refused { option, why: refusal.to_string() }
    }

    /// An error of a socket that has a time limit.
    pub(super) fn of_socket(error: io::Error, limit: Duration) -> NbdError {
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::WriteZero => NbdError::HungUp,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => NbdError::Timeout(limit),
            _ => NbdError::Io(error),
        }
    }
}

/// Is the source still good? Shared by all its connections: the end of one is the end of all.
#[derive(Debug, Default)]
pub(super) struct Health {
    why_not: OnceLock<String>,
    closing: AtomicBool,
    sockets: Mutex<Vec<Arc<UnixStream>>>,
}

impl Health {
    pub(super) fn guard(&self, socket: &Arc<UnixStream>) {
        self.sockets.lock().expect("no panic while the lock is held").push(Arc::clone(socket));
    }

    /// The first reason stays.
    pub(super) fn end(&self, why: &NbdError) {
        if self.closing.load(Ordering::SeqCst) || self.why_not.set(why.to_string()).is_err() {
            return;
        }
        tracing::warn!("{why}: nothing more is read from it");
        // Wakes the receiving threads, which give up what is in flight.
        for socket in self.sockets.lock().expect("no panic while the lock is held").iter() {
            // An error says that the other side has gone already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// From now on the end of a connection is no failure.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
    }

    /// `None`: all is well.
    pub(super) fn why_not(&self) -> Option<&str> {
        self.why_not.get().map(String::as_str)
    }
}
