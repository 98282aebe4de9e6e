//! Why a disk was not carried: which one, at which byte, and what the machine said.
//! Nothing here acts on it.

use std::io;
use std::path::PathBuf;

use chunkfs::source::SourceError;
use thiserror::Error;

use crate::core::compression::Compression;

#[derive(Debug, Error)]
pub enum CarryError {
    #[error("disk {disk}: reading at byte {offset}: {error}")]
    Source { disk: String, offset: u64, error: SourceError },
    #[error("{doing} {path} at byte {offset}: {error}")]
    File { doing: &'static str, path: PathBuf, offset: u64, error: io::Error },
    #[error("disk {disk}: compressing: {error}")]
    Compress { disk: String, error: io::Error },
    #[error("expanding {compression}: {why}")]
    Expand { compression: Compression, why: String },
    #[error("{name:?} is not the name of a file in a directory")]
    Name { name: String },
    #[error("{path} exists already")]
    Exists { path: PathBuf },
    #[error("{program} is not installed")]
    NoProgram { program: String },
    #[error("disk {disk}: {program}: {why}")]
    Program { disk: String, program: String, why: String },
    #[error("disk {disk}: starting a thread to read: {error}")]
    Threads { disk: String, error: io::Error },
    #[error("disk {disk}: stopped")]
    Stopped { disk: String },
    /// What was begun is still there.
    #[error("{cause}; {path} was left behind and could not be removed: {error}")]
    Left { path: PathBuf, error: io::Error, cause: Box<CarryError> },
}

impl CarryError {
    /// Is the source itself not what it should be?
    pub fn is_damage(&self) -> bool {
        match self {
            CarryError::Source { error: SourceError::Damaged { .. }, .. } => true,
            CarryError::Left { cause, .. } => cause.is_damage(),
            _ => false,
        }
    }
}
