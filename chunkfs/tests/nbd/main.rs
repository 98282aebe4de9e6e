//! The NBD source against real servers, against a server that breaks every rule, and against damaged recordings.
//! Needs nbdkit, qemu-nbd, qemu-img and qemu-io, and fails where they are missing.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod fake;
mod handshake;
mod hostile;
mod parts;
mod real;
mod replay;
