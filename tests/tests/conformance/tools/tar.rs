//! GNU tar: archives of what is newer than a time, and incremental archives with holes.

use super::Tool;
use crate::stage::{recipe, sh};
use std::path::{Path, PathBuf};
use tests::process::Outcome;

/// A full archive, and those after it up to the one that is wanted.
fn extract(archives: &str, options: &str, number: usize, count: usize, into: &Path) -> PathBuf {
    assert_eq!(sh(&format!("ls {archives}/*.tar | wc -l")).trim(), count.to_string());
    let into = into.display();
    sh(&format!(
        "mkdir {into}; for n in $(seq -f %04g 0 {number}); do tar -xC {into} {options} -f {archives}/$n.tar; done"
    ));
    format!("{into}/mail01").into()
}

pub struct Listed;

impl Tool for Listed {
    fn prepare(&mut self) {}

    fn back_up(&mut self) -> Outcome {
        recipe("tar/nightly")
    }

    fn processes(&self) -> &'static [&'static str] {
        &["tar"]
    }

    fn restore(&mut self, number: usize, count: usize, into: &Path) -> PathBuf {
        extract("/srv/tar/mail01", "--listed-incremental=/dev/null", number, count, into)
    }

    fn reads_holes(&self) -> bool {
        false
    }
}

pub struct Newer;

impl Tool for Newer {
    fn prepare(&mut self) {}

    fn back_up(&mut self) -> Outcome {
        recipe("tar/newer")
    }

    fn processes(&self) -> &'static [&'static str] {
        &["tar"]
    }

    fn restore(&mut self, number: usize, count: usize, into: &Path) -> PathBuf {
        extract("/srv/tar-newer/mail01", "", number, count, into)
    }
}
