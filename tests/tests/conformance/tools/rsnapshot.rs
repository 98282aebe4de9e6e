//! rsnapshot, with the view made and taken away by its own hooks.

use super::Tool;
use crate::stage::{example, sh, try_sh};
use crate::vm::{State, count_equal};
use std::path::{Path, PathBuf};
use tests::process::Outcome;

pub struct Rsnapshot;

impl Tool for Rsnapshot {
    fn prepare(&mut self) {
        sh(&format!(
            "mkdir /srv/rsnapshot && cp {} /etc/rsnapshot.conf",
            example("rsnapshot/rsnapshot.conf").display()
        ));
        sh("rsnapshot configtest");
    }

    fn back_up(&mut self) -> Outcome {
        try_sh("rsnapshot sync && rsnapshot daily")
    }

    fn processes(&self) -> &'static [&'static str] {
        &["rsync"]
    }

    fn restore(&mut self, number: usize, count: usize, _into: &Path) -> PathBuf {
        assert!(
            !Path::new(&format!("/srv/rsnapshot/daily.{count}")).exists(),
            "more than the successful backups"
        );
        format!("/srv/rsnapshot/daily.{}/mail01", count - 1 - number).into()
    }

    fn kept_of_killed(&self, now: &State) -> u64 {
        count_equal(Path::new("/srv/rsnapshot/.sync/mail01"), now, 0)
    }
}
