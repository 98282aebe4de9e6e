//! Guests on a libvirt of the test's own, and `virt-backup` on them.
//! Each test runs itself again under `scripts/with-libvirt`, so that tests disturb neither the host nor each other.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up its world has to stop")]

mod device;
mod diary;
mod guest;
mod lab;
mod linux;
mod lvm;
mod storage;
mod monitor;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub use device::LoopDevice;
pub use diary::Diary;
pub use guest::{Disk, Guest, Storage, virsh, virsh_ok};
pub use lab::{Lab, Ran, content_of, first_difference, names_if_any, names_in};
pub use linux::{Agent, Linux, lines_in, needs_recovery};
pub use lvm::{
    LogicalVolume, Provisioning, fullness, in_vm, in_vm_confined, mounts_below, snapshots_of_ours,
};
pub use monitor::Monitor;
pub use storage::OwnFileSystem;

/// Set inside.
const INSIDE: &str = "TEST_HAS_ITS_OWN_LIBVIRT";

/// Runs the body of the test of this name beside a private libvirt. Needs root, and fails without.
pub fn with_libvirt(test: &str, body: impl FnOnce(&Lab)) {
    if std::env::var_os(INSIDE).is_some() {
        return body(&Lab::new());
    }
    let mut command = Command::new(workspace().join("scripts/with-libvirt"));
    run_again(command.env(INSIDE, "1"), test);
}

/// This test once more, as the arguments of a command.
fn run_again(command: &mut Command, test: &str) {
    command.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    println!("{}", text[0]);
    assert!(output.status.success(), "{}", text[1]);
    assert!(text[0].contains("1 passed"), "no test is called {test}: {}", text[0]);
    eprintln!("{}", text[1]);
}

pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A program of this workspace: as `scripts/test` says, or else one that `cargo build` made.
pub fn program(variable: &str, name: &str) -> PathBuf {
    let built = || {
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
        target.join(profile).join(name)
    };
    let path = std::env::var_os(variable).map_or_else(built, PathBuf::from);
    assert!(path.is_file(), "{} is missing: run cargo build, or set {variable}", path.display());
    path
}
