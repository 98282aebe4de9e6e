//! The library of `virt-backup`: backs up libvirt guests by showing their disks as chunks.
//! Read in this order: decide (`core`), the machine (`host`), do (`survey`, `session`, `carry`), and the walks (`command`).

pub mod carry;
pub mod command;
pub mod core;
pub mod host;
pub mod session;
pub mod survey;
