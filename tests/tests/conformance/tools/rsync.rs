//! rsync: a mirror, and a directory for each backup with hard links.

use super::Tool;
use crate::stage::{recipe, sh};
use crate::vm::{State, count_equal};
use std::path::{Path, PathBuf};
use tests::process::Outcome;

pub struct Mirror;

impl Tool for Mirror {
    fn prepare(&mut self) {
        sh("mkdir /srv/rsync");
    }

    fn back_up(&mut self) -> Outcome {
        recipe("rsync/nightly")
    }

    fn processes(&self) -> &'static [&'static str] {
        &["rsync"]
    }

    fn restore(&mut self, number: usize, count: usize, _into: &Path) -> PathBuf {
        assert_eq!(number + 1, count, "it keeps only the last");
        "/srv/rsync/mail01".into()
    }

    fn keeps_all(&self) -> bool {
        false
    }

    fn kept_of_killed(&self, now: &State) -> u64 {
        count_equal(Path::new("/srv/rsync/mail01"), now, 0)
    }
}

/// As the mirror, but told what has changed.
pub struct Changed;

impl Tool for Changed {
    fn prepare(&mut self) {
        sh("mkdir /srv/rsync-changed");
    }

    fn back_up(&mut self) -> Outcome {
        recipe("rsync/changed")
    }

    fn processes(&self) -> &'static [&'static str] {
        &["rsync"]
    }

    fn restore(&mut self, number: usize, count: usize, _into: &Path) -> PathBuf {
        assert_eq!(number + 1, count, "it keeps only the last");
        "/srv/rsync-changed/mail01".into()
    }

    fn keeps_all(&self) -> bool {
        false
    }

    fn kept_of_killed(&self, now: &State) -> u64 {
        count_equal(Path::new("/srv/rsync-changed/mail01"), now, 0)
    }
}

pub struct Snapshots;

impl Tool for Snapshots {
    fn prepare(&mut self) {}

    fn back_up(&mut self) -> Outcome {
        recipe("rsync/snapshots")
    }

    fn processes(&self) -> &'static [&'static str] {
        &["rsync"]
    }

    fn restore(&mut self, number: usize, count: usize, _into: &Path) -> PathBuf {
        let all = sh("ls -d /srv/snapshots/mail01/2*");
        let all: Vec<&str> = all.lines().filter(|path| !path.ends_with(".partial")).collect();
        assert_eq!(all.len(), count, "{all:?}");
        all[number].into()
    }
}
