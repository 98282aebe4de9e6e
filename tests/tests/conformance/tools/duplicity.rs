//! duplicity, with encrypted volumes in a local directory.

use super::Tool;
use crate::stage::{recipe, sh};
use std::path::{Path, PathBuf};
use tests::metadata::now;
use tests::process::{LIMIT, Outcome, until};

#[derive(Default)]
pub struct Duplicity {
    /// When each successful backup was done.
    times: Vec<i64>,
}

impl Tool for Duplicity {
    fn prepare(&mut self) {
        sh("echo secret >/etc/duplicity-passphrase; mkdir /srv/duplicity");
    }

    fn back_up(&mut self) -> Outcome {
        let outcome = recipe("duplicity/nightly");
        if outcome.status == 0 {
            let done = now();
            self.times.push(done);
            // It tells backups apart by the whole second in which they begin.
            until("the next second", LIMIT, || now() > done);
        }
        outcome
    }

    fn processes(&self) -> &'static [&'static str] {
        &["duplicity"]
    }

    fn restore(&mut self, number: usize, count: usize, into: &Path) -> PathBuf {
        assert_eq!(self.times.len(), count);
        let time = self.times[number];
        sh(&format!(
            "export PASSPHRASE=secret; duplicity restore --time {time} file:///srv/duplicity/mail01 {}",
            into.display()
        ));
        into.to_owned()
    }
}
