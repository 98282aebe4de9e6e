//! What the suite asks of a backup tool.

pub mod backuppc;
mod borg;
mod duplicity;
pub mod restic;
mod rsnapshot;
pub mod rsync;
mod tar;

use crate::vm::State;
use std::path::{Path, PathBuf};
use tests::process::Outcome;

/// A backup tool with its recipe from docs/examples.
pub trait Tool {
    /// Makes the repository, and installs the configuration.
    fn prepare(&mut self);

    /// Runs the recipe. What it printed tells how many chunks it has read.
    fn back_up(&mut self) -> Outcome;

    /// The programs whose end in the middle is a backup that failed.
    fn processes(&self) -> &'static [&'static str];

    /// Brings the `number`th of `count` successful backups back to `into`, which is not there yet; gives the directory
    /// that has the trees of the disks.
    fn restore(&mut self, number: usize, count: usize, into: &Path) -> PathBuf;

    /// `false`: only the last backup can be brought back.
    fn keeps_all(&self) -> bool {
        true
    }

    /// The chunks of the first disk that a run which was killed has left behind whole, for the next one to find.
    fn kept_of_killed(&self, _now: &State) -> u64 {
        0
    }

    /// Whether it reads chunks that are holes.
    fn reads_holes(&self) -> bool {
        true
    }
}

/// A row of the table.
pub struct Entry {
    pub name: &'static str,
    pub tool: Result<fn() -> Box<dyn Tool>, &'static str>,
}

const fn run(name: &'static str, tool: fn() -> Box<dyn Tool>) -> Entry {
    Entry { name, tool: Ok(tool) }
}

pub const TOOLS: &[Entry] = &[
    run("backuppc", || Box::new(backuppc::BackupPc::default())),
    run("duplicity", || Box::new(duplicity::Duplicity::default())),
    run("borg", || Box::new(borg::Borg)),
    run("restic", || Box::new(restic::Restic)),
    run("rsync", || Box::new(rsync::Mirror)),
    run("rsync --files-from", || Box::new(rsync::Changed)),
    run("rsync --link-dest", || Box::new(rsync::Snapshots)),
    run("rsnapshot", || Box::new(rsnapshot::Rsnapshot)),
    run("tar --newer", || Box::new(tar::Newer)),
    run("tar -S --listed-incremental", || Box::new(tar::Listed)),
    Entry { name: "kopia", tool: Err("not run here: Debian has no package of it") },
    Entry {
        name: "rustic",
        tool: Err("not run here: Debian has no package of it, and it was not built from the registry"),
    },
];
