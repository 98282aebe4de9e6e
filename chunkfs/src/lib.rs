//! chunkfs: a disk image as a directory of chunk files with true change times, and back.
//!
//! The rooms, in reading order; dependencies point upwards in this list, never down.

pub mod core;
pub mod source;
pub mod index;
pub mod resolve;
pub mod view;
pub mod fuse;
pub mod watch;
pub mod copy;
pub mod verify;
pub mod command;

#[cfg(test)]
pub(crate) mod split;
