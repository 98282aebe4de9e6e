//! A machine for one backup tool: namespaces with a libvirt of their own, and the directories of the recipes in place, so
//! that the files in docs/examples/ run as they stand there. Nothing of the host is touched.

use rustix::process::Pid;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tests::libvirt::{program, workspace};
use tests::process::{self, Outcome};

/// Set inside: the directory of the stage, which is on a real file system.
const STAGE: &str = "CONFORMANCE_STAGE";
/// Set inside: what is played there.
const PLAY: &str = "CONFORMANCE_PLAY";

const LIMIT: Duration = Duration::from_secs(240);

/// The directory above the view.
pub const VIEW: &str = "/var/lib/libvirt/backup/mail01";

const SETTING: &str = include_str!("setting");

/// Runs `body` on a stage of its own: this test again, in other namespaces. Gives what it printed, as it came to an end.
pub fn on_stage(test: &str, play: &str) -> Outcome {
    let directory = tempfile::Builder::new().prefix("conformance.").tempdir().unwrap();
    let mut command = Command::new(workspace().join("scripts/with-libvirt"));
    command.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]);
    command.env(STAGE, directory.path()).env(PLAY, play);
    process::run(&mut command, LIMIT)
}

/// A test that is played on a stage of its own.
#[track_caller]
pub fn scene(test: &str, body: impl FnOnce()) {
    if play().is_some() {
        return body();
    }
    let told = on_stage(test, test).ok();
    assert!(told.contains("1 passed"), "no test is called {test}: {told}");
}

/// What is to be played, if this is the stage already; it is set up then.
pub fn play() -> Option<String> {
    let play = std::env::var(PLAY).ok()?;
    let backuppc = Path::new("/var/cache/chunkfs-test/backuppc");
    assert!(backuppc.join("usr/share/backuppc").is_dir(), "BackupPC is missing: run scripts/setup test");
    let mut setting = Command::new("bash");
    setting.args(["-c", SETTING, "stage"]).arg(path(""));
    setting.arg(program("CHUNKFS", "chunkfs")).arg(program("VIRT_BACKUP", "virt-backup")).arg(backuppc);
    process::run(&mut setting, process::LIMIT).ok();
    Some(play)
}

/// A path on the stage's own file system.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(std::env::var_os(STAGE).unwrap()).join(name)
}

/// A command with the environment that cron would give it.
pub fn command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", path("home"));
    command.env("LC_ALL", "C").current_dir("/");
    command
}

/// Runs a file of docs/examples.
pub fn recipe(name: &str) -> Outcome {
    process::run(&mut command(example(name)), LIMIT)
}

pub fn example(name: &str) -> PathBuf {
    workspace().join("docs/examples").join(name)
}

/// Runs a line of shell, which must succeed.
#[track_caller]
pub fn sh(line: &str) -> String {
    try_sh(line).ok()
}

pub fn try_sh(line: &str) -> Outcome {
    process::run(command("bash").args(["-euo", "pipefail", "-c", line]), LIMIT)
}

/// Processes of these names. There are no others than those of the stage: it has its own process ids.
pub fn processes(names: &[&str]) -> Vec<Pid> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    let is_named = |pid: &Pid| {
        let name = std::fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero()));
        name.is_ok_and(|name| names.contains(&name.trim_end()))
    };
    pids.filter(is_named).collect()
}
