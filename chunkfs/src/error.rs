//! Every way in which a command can fail, and the exit status that each has.
//! The table of statuses is the same for all programs of this project: docs/semantics.md.

use crate::command;
use crate::index::IndexError;
use crate::mount::points::PointError;
use crate::mount::session::SessionError;
use crate::source::SourceError;
use crate::source::nbd::NbdError;
use crate::source::shape::ChunksError;
use crate::view::LayoutError;
use std::io;
use std::path::PathBuf;

/// The exit status of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    Done = 0,
    /// Nothing is left behind.
    Failed = 1,
    Usage = 2,
    /// Something is still to be undone.
    Owed = 3,
    Busy = 4,
    /// Verification found damage.
    Damaged = 6,
}

#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("{0}")]
    Usage(String),
    #[error("image {}: {error}", .path.display())]
    Image { path: PathBuf, error: io::Error },
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error(transparent)]
    Point(#[from] PointError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Nbd(#[from] NbdError),
    #[error(transparent)]
    Chunks(#[from] ChunksError),
    #[error(transparent)]
    Restore(#[from] command::restore::Failure),
    #[error(transparent)]
    Verify(#[from] command::verify::Failure),
    #[error("{doing}: {error}")]
    Io { doing: String, error: io::Error },
    /// As a daemon reported it.
    #[error("{message}")]
    Reported { status: u8, message: String },
    #[error("{}: not a mount of chunkfs", .path.display())]
    NotMounted { path: PathBuf },
}

impl CommandError {
    pub fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> CommandError {
        let doing = doing.into();
        move |error| CommandError::Io { doing, error }
    }

    pub fn status(&self) -> u8 {
        let status = match self {
            CommandError::Reported { status, .. } => return *status,
            CommandError::Usage(_) | CommandError::Layout(_) => Status::Usage,
            CommandError::Index(IndexError::Busy { .. })
            | CommandError::Session(SessionError::Busy { .. }) => Status::Busy,
            CommandError::Restore(failure) => failure.exit_status(),
            _ => Status::Failed,
        };
        status as u8
    }
}
