//! rsnapshot, beside a view. Its own hooks come too late: it looks for the source before it runs them.

use super::Tool;
use crate::stage::{example, recipe, sh};
use crate::vm::{State, count_equal};
use std::path::{Path, PathBuf};
use tests::process::Outcome;

pub struct Rsnapshot;

impl Tool for Rsnapshot {
    fn prepare(&mut self) {
        sh(&format!(
            "mkdir /srv/rsnapshot && cp {} /etc/rsnapshot-mail01.conf",
            example("rsnapshot/rsnapshot-mail01.conf").display()
        ));
    }

    fn back_up(&mut self) -> Outcome {
        recipe("rsnapshot/nightly")
    }

    fn processes(&self) -> &'static [&'static str] {
        &["rsync"]
    }

    fn restore(&mut self, number: usize, count: usize, _into: &Path) -> PathBuf {
        assert!(
            !Path::new(&format!("/srv/rsnapshot/mail01/daily.{count}")).exists(),
            "more than the successful backups"
        );
        format!("/srv/rsnapshot/mail01/daily.{}", count - 1 - number).into()
    }

    fn kept_of_killed(&self, now: &State) -> u64 {
        count_equal(Path::new("/srv/rsnapshot/mail01/.sync"), now, 0)
    }
}
