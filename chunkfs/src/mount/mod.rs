//! Mounts: checking the mount point, serving a view there until it is unmounted, and talking to those who serve.

pub mod control;
pub mod daemon;
pub mod points;
pub mod session;
