//! chunkfs: a disk image as a directory of chunk files with true change times, and back.
//!
//! The rooms, in reading order; each uses only those before it. docs/architecture.md tells the story.

pub mod core;
pub mod source;
pub mod index;
pub mod resolve;
pub mod view;
pub mod fuse;
pub mod mount;
pub mod watch;
pub mod limits;
pub mod copy;
pub mod verify;
pub mod error;
pub mod serve;
pub mod cli;
pub mod log;
pub mod command;

#[cfg(test)]
pub(crate) mod split;
