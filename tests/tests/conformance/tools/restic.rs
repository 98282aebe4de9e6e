//! restic, with a local repository.

use super::Tool;
use crate::stage::{VIEW, recipe, sh};
use std::path::{Path, PathBuf};
use tests::process::Outcome;

pub struct Restic;

const RESTIC: &str = "export RESTIC_REPOSITORY=/srv/restic RESTIC_PASSWORD_FILE=/etc/restic-password; restic";

impl Tool for Restic {
    fn prepare(&mut self) {
        sh(&format!("echo secret >/etc/restic-password; {RESTIC} init"));
    }

    fn back_up(&mut self) -> Outcome {
        recipe("restic/nightly")
    }

    fn processes(&self) -> &'static [&'static str] {
        &["restic"]
    }

    fn restore(&mut self, number: usize, count: usize, into: &Path) -> PathBuf {
        let all = sh(&format!("{RESTIC} snapshots --json | jq -r 'sort_by(.time)[].short_id'"));
        let all: Vec<&str> = all.lines().collect();
        assert_eq!(all.len(), count, "{all:?}");
        sh(&format!("{RESTIC} restore {} --target {}", all[number], into.display()));
        into.join(&VIEW[1..])
    }
}
