//! borg, with a local repository.

use super::Tool;
use crate::stage::{VIEW, recipe, sh};
use std::path::{Path, PathBuf};
use tests::process::Outcome;

pub struct Borg;

const BORG: &str = "export BORG_REPO=/srv/borg BORG_PASSCOMMAND='cat /etc/borg-passphrase'; borg";

impl Tool for Borg {
    fn prepare(&mut self) {
        sh(&format!("echo secret >/etc/borg-passphrase; {BORG} init --encryption repokey-blake2"));
    }

    fn back_up(&mut self) -> Outcome {
        recipe("borg/nightly")
    }

    fn processes(&self) -> &'static [&'static str] {
        &["borg"]
    }

    fn restore(&mut self, number: usize, count: usize, into: &Path) -> PathBuf {
        // The one that was killed has left its lock.
        let all = sh(&format!("{BORG} list --short"));
        let all: Vec<&str> = all.lines().collect();
        assert_eq!(all.len(), count, "{all:?}");
        sh(&format!("mkdir {0}; cd {0}; {BORG} extract ::{1}", into.display(), all[number]));
        into.join(&VIEW[1..])
    }
}
