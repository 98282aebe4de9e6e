//! The NBD source against real servers, against a server that breaks every rule, and against damaged recordings.
//! Needs nbdkit, qemu-nbd, qemu-img and qemu-io, and fails where they are missing.

mod fake;
mod hostile;
mod parts;
mod real;
mod replay;
