//! The directory of one test, and everything that lives in it: when it goes, all of it goes.
//! Daemons are ended by their ids, and only those that were started from here.

use crate::process::{self, LIMIT, Outcome};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};
use serde_json::Value;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// In the environment of all that a test starts: whose it is.
const MARK: &str = "CHUNKFS_TEST_HOME";

/// A directory of its own, with an empty directory `mnt`.
#[derive(Debug)]
pub struct Home {
    directory: tempfile::TempDir,
}

impl Home {
    pub fn new(name: &str) -> Home {
        assert!(rustix::process::geteuid().is_root(), "this test mounts: run it as root");
        assert!(Path::new("/dev/fuse").exists(), "this test mounts: load the module `fuse`");
        let directory = tempfile::Builder::new().prefix(&format!("chunkfs-e2e.{name}.")).tempdir().unwrap();
        std::fs::create_dir(directory.path().join("mnt")).unwrap();
        Home { directory }
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A command in this directory, marked as ours. `chunkfs` is the program under test.
    pub fn command<S: AsRef<OsStr>>(&self, words: &[S]) -> Command {
        let program = words[0].as_ref();
        let mut command = match program == "chunkfs" {
            true => Command::new(process::chunkfs()),
            false => Command::new(program),
        };
        command.args(&words[1..]).current_dir(self.directory.path()).env(MARK, self.directory.path());
        command.env("LC_ALL", "C").env_remove("RUST_LOG");
        command
    }

    /// Runs a line of words without blanks in them.
    #[track_caller]
    pub fn run(&self, line: &str) -> Outcome {
        process::run(&mut self.command(&line.split_whitespace().collect::<Vec<_>>()), LIMIT)
    }

    /// Runs a line of shell. `chunkfs` is the program under test.
    #[track_caller]
    pub fn sh(&self, line: &str) -> Outcome {
        let program = process::chunkfs();
        let line = format!("set -o pipefail; chunkfs() {{ '{}' \"$@\"; }}; {line}", program.display());
        process::run(&mut self.command(&["bash", "-c", &line]), LIMIT)
    }

    /// Starts a command, and lets it run.
    pub fn start(&self, line: &str) -> Child {
        let mut command = self.command(&line.split_whitespace().collect::<Vec<_>>());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Mounts at `mnt`, and waits until an index has compared everything.
    #[track_caller]
    pub fn mount(&self, words: &str) {
        self.run(&format!("chunkfs mount {words} mnt")).ok();
        if words.contains("--index") {
            process::until("the comparison", LIMIT, || self.status("mnt")["scan"]["done"] == true);
        }
    }

    #[track_caller]
    pub fn unmount(&self) {
        self.run("chunkfs umount mnt").ok();
        assert!(!self.is_mounted("mnt"), "it is still mounted");
    }

    #[track_caller]
    pub fn status(&self, point: &str) -> Value {
        serde_json::from_str(&self.run(&format!("chunkfs status --json {point}")).ok()).unwrap()
    }

    /// The daemon behind a mount.
    #[track_caller]
    pub fn daemon(&self, point: &str) -> Pid {
        let pid = self.status(point)["pid"].as_i64().unwrap();
        Pid::from_raw(pid as i32).unwrap()
    }

    pub fn is_mounted(&self, name: &str) -> bool {
        mounts_below(&self.path(name)).contains(&self.path(name))
    }

    pub fn kill(&self, pid: Pid, signal: Signal) {
        assert!(self.processes().contains(&pid), "{pid:?} was not started here");
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// All processes that were started from here and still run.
    pub fn processes(&self) -> Vec<Pid> {
        let mark = [format!("{MARK}=").as_bytes(), self.directory.path().as_os_str().as_bytes()].concat();
        let numbers = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = numbers.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
        let ours = |pid: &Pid| {
            let environment = std::fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero()));
            environment.is_ok_and(|bytes| bytes.split(|byte| *byte == 0).any(|word| word == mark))
        };
        pids.filter(ours).collect()
    }

    /// Kills the daemon behind a mount, and waits until the kernel knows that it is gone.
    #[track_caller]
    pub fn kill_daemon(&self, point: &str) {
        let pid = self.daemon(point);
        self.kill(pid, Signal::KILL);
        let is_dead = || rustix::fs::statfs(self.path(point)).is_err_and(|e| e == rustix::io::Errno::NOTCONN);
        process::until("the mount to be dead", LIMIT, is_dead);
        self.wait_for_end_of(pid);
    }

    pub fn is_running(&self, pid: Pid) -> bool {
        self.processes().contains(&pid)
    }

    /// Waits until a daemon has ended by itself.
    #[track_caller]
    pub fn wait_for_end_of(&self, pid: Pid) {
        process::until("the end of the daemon", Duration::from_secs(20), || !self.is_running(pid));
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for pid in self.processes() {
            // Whatever is still there now was left by a test that failed, or killed its daemon.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        for point in mounts_below(self.directory.path()).iter().rev() {
            let _ = rustix::mount::unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
}

/// Mount points at or below a path, in the order in which they were made. Names with blanks are not used here.
pub fn mounts_below(path: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|point| point.starts_with(path)).collect()
}
