//! Running programs with a time limit, and what came of it.
//! Nothing here knows what the programs do.

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// No command of a test takes longer.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Where the program under test is.
pub fn chunkfs() -> PathBuf {
    let built = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/release/chunkfs");
    let path = std::env::var_os("CHUNKFS").map_or(built, PathBuf::from);
    match path.canonicalize() {
        Ok(path) => path,
        Err(error) => panic!(
            "{}: {error}; run `cargo build --release -p chunkfs` first, or name the program in $CHUNKFS",
            path.display()
        ),
    }
}

/// What came of a program.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub command: String,
    /// The exit status; 128 and the signal if one ended it.
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Outcome {
    /// Gives what it printed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.status, 0, "{}: {}{}", self.command, self.stdout, self.stderr);
        self.stdout
    }

    /// It failed with this status, and its message has all of these parts.
    #[track_caller]
    pub fn failed(&self, status: i32, message: &[&str]) {
        assert_eq!(self.status, status, "{}: {}{}", self.command, self.stdout, self.stderr);
        for part in message {
            assert!(self.stderr.contains(part), "{}: no {part:?} in: {}", self.command, self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "{}: {}", self.command, self.stderr);
    }
}

/// Runs a program that has to succeed.
#[track_caller]
pub fn run_well(program: &str, words: &[&str]) {
    run(Command::new(program).args(words), Duration::from_secs(600)).ok();
}

/// Runs a command to its end, and until nobody has its output open any more.
#[track_caller]
pub fn run(command: &mut Command, limit: Duration) -> Outcome {
    let words = format!("{command:?}");
    let begun = Instant::now();
    // A group of its own, so that all of a pipeline can be ended.
    let child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn();
    let mut child = child.unwrap_or_else(|error| panic!("{words}: {error}"));
    let stdout = collect(child.stdout.take().expect("it is a pipe"));
    let stderr = collect(child.stderr.take().expect("it is a pipe"));
    let text = |output: mpsc::Receiver<Vec<u8>>| {
        let left = (begun + limit).saturating_duration_since(Instant::now()).max(Duration::from_millis(100));
        output.recv_timeout(left).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    };
    let (stdout, stderr) = (text(stdout), text(stderr));
    let status = wait(&mut child, (begun + limit).saturating_duration_since(Instant::now()));
    let took = begun.elapsed();
    let (Some(status), Some(stdout), Some(stderr)) = (status, stdout, stderr) else {
        end_group(&mut child);
        panic!("{words}: not done, or its output held open, after {} s", limit.as_secs());
    };
    let status = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Outcome { command: words, status, stdout, stderr, took }
}

/// `None`: it still runs.
pub fn wait(child: &mut Child, limit: Duration) -> Option<std::process::ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        match child.try_wait().expect("it is our child") {
            Some(status) => return Some(status),
            None if Instant::now() >= deadline => return None,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Waits until something holds.
#[track_caller]
pub fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {} s: {what}", limit.as_secs());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn end_group(child: &mut Child) {
    if let Some(group) = rustix::process::Pid::from_raw(child.id() as i32) {
        // It may have ended just now.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.wait();
}

fn collect(mut output: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read until an error is what there is; whoever waited may have given up.
        let _ = output.read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    receiver
}
