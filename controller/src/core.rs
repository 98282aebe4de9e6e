//! Everything that is decided: text to types, facts to plans, journals to debts.
//! Pure: no file system, process, clock, environment or hypervisor. `tests/purity.rs` checks this.

pub mod compression;
pub mod domain;
pub mod dumpcmd;
pub mod facts;
pub mod journal;
pub mod lock;
pub mod manifest;
pub mod names;
pub mod options;
pub mod plan;
pub mod point;
pub mod restore;
pub mod retention;
pub mod rewrite;
pub mod step;
pub mod tpm;
pub mod units;
pub mod viewspec;
pub mod volume;
