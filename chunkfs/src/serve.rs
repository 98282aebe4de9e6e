//! From what was asked for to a view that is served until it is unmounted: index, generation, mount, readiness,
//! and the way back in the opposite order.

mod assemble;
mod open;
mod room;
mod run;
mod spec;

pub use assemble::now;
pub use run::{Serving, serve_joined, serve_view};
pub use spec::{ChangesSpec, DiskSpec, FileSpec, RoomSpec, SourceSpec, Told, ViewSpec};
