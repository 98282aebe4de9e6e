//! The commands of `chunkfs`, each a story. They take plain options and know nothing of the command line.

pub mod progress;
pub mod restore;
pub mod verify;
