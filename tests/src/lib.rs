//! Fixtures of the end-to-end tests.

pub mod libvirt;
