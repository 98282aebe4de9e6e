//! chunkfs: a disk image as a directory of chunk files with true change times, and back.
//!
//! The rooms, in reading order; dependencies point upwards in this list, never down.

pub mod command;
pub mod copy;
pub mod core;
pub mod source;
pub mod verify;
pub mod watch;

#[cfg(test)]
pub(crate) mod split;
