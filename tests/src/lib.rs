//! Fixtures for the end-to-end tests: the program under test, a directory for each test, images, servers.
//! No claims: those are in tests/, a file for each subject.

pub mod home;
pub mod image;
pub mod libvirt;
pub mod metadata;
pub mod nbd;
pub mod process;

pub use home::Home;
pub use image::{Image, chunk};
pub use process::Outcome;

/// The chunk size where none is given.
pub const CHUNK: u64 = 262_144;
