//! The only door to other programs: argument vectors, a time limit, LC_ALL=C, and their own words in the error.
//! No shell, and no program is found by anything but its name or path.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal, umask};

/// How long what a program said may take to arrive once it has ended: a daemon that it started may hold the pipe.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long it may take until a command is told that we were told to end.
const TOLD_WITHIN: Duration = Duration::from_millis(50);

/// Runs a program until it ends, and fails unless it ends well.
pub(crate) fn run(program: &Path, arguments: &[OsString], within: Duration) -> Result<()> {
    run_unless(program, arguments, within, &|| false)
}

/// The same, and ends it when it is told to stop.
pub(super) fn run_unless(
    program: &Path,
    arguments: &[OsString],
    within: Duration,
    stop: &dyn Fn() -> bool,
) -> Result<()> {
    let mut child = spawn(program, command(program, arguments).stderr(Stdio::piped()))?;
    wait(program, &mut child, within, stop)
}

/// The same, and gives what the program wrote to its standard output, at most 16 MiB.
pub(super) fn output(program: &Path, arguments: &[OsString], within: Duration) -> Result<Vec<u8>> {
    let mut command = command(program, arguments);
    let mut child = spawn(program, command.stderr(Stdio::piped()).stdout(Stdio::piped()))?;
    let stdout = child.stdout.take().context("its output was asked for")?;
    let reader = in_thread(&mut child, move || {
        let mut bytes = Vec::new();
        stdout.take(16 << 20).read_to_end(&mut bytes).map(|_| bytes)
    })?;
    wait(program, &mut child, within, &|| false)?;
    let read = reader.join().map_err(|_| anyhow!("reading it failed"))?;
    read.with_context(|| format!("read what {} says", program.display()))
}

/// Starts a program that goes on when we have ended: in a session of its own, with no input and no output.
pub(super) fn start_detached(program: &Path, arguments: &[OsString]) -> Result<()> {
    // The one of util-linux: without `--fork` it becomes the program, unless it leads its group.
    let mut words = vec!["--fork".into(), program.as_os_str().to_owned()];
    words.extend_from_slice(arguments);
    let mut command = command(Path::new("setsid"), &words);
    let mut child = spawn(program, command.stderr(Stdio::null()).current_dir("/"))?;
    wait(program, &mut child, Duration::from_secs(10), &|| false)
}

fn spawn(program: &Path, command: &mut Command) -> Result<Child> {
    command.spawn().map_err(|error| start_error(program, error))
}

fn wait(program: &Path, child: &mut Child, within: Duration, stop: &dyn Fn() -> bool) -> Result<()> {
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy();
    let words = listen(child, Echo::No)?;
    let deadline = Instant::now() + within;
    let status = loop {
        if let Some(status) = child.try_wait().with_context(|| format!("wait for {name}"))? {
            break status;
        }
        let stopped = stop();
        if stopped || Instant::now() >= deadline {
            // It may have ended just now.
            drop(child.kill());
            drop(child.wait());
            ensure!(!stopped, "{name} was stopped");
            bail!("{name} was not done within {} s", within.as_secs());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    if status.success() {
        return Ok(());
    }
    let words = words.recv_timeout(LAST_WORDS).unwrap_or_default();
    let words = words.trim().trim_start_matches(&*format!("{name}: "));
    match words.is_empty() {
        true => bail!("{name} ended with {status}"),
        false => bail!("{words}"),
    }
}

static CALLERS_UMASK: OnceLock<Mode> = OnceLock::new();

/// From now on what we make has the modes that we give to it: QEMU, as whoever it runs as, has to find what is its own, and
/// nobody else may write to a socket.
pub fn set_umask() {
    CALLERS_UMASK.get_or_init(|| umask(Mode::from_raw_mode(0o022)));
}

/// What programs of the user's make is theirs.
fn with_callers_umask<T>(start: impl FnOnce() -> T) -> T {
    let ours = CALLERS_UMASK.get().map(|callers| umask(*callers));
    let started = start();
    ours.map(umask);
    started
}

/// Runs a program of the user's, with our own input and output. Once `terminated`, so is the program, and waited for.
pub fn run_attached(words: &[OsString], terminated: &AtomicBool) -> Result<std::process::ExitStatus> {
    let (program, arguments) = words.split_first().context("there is no command to run")?;
    let running = || format!("run {}", program.display());
    let started = with_callers_umask(|| Command::new(program).args(arguments).spawn());
    let mut child = started.with_context(running)?;
    std::thread::scope(|scope| {
        let (_ended, end) = mpsc::channel::<()>();
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        if let Err(error) = &process {
            tracing::warn!("{} is not told should we be terminated: {error}", program.display());
        }
        let tell = move || {
            while end.recv_timeout(TOLD_WITHIN) == Err(RecvTimeoutError::Timeout) {
                if terminated.load(Ordering::SeqCst) {
                    if let Ok(process) = process {
                        // An error says that it has just ended.
                        let _ = pidfd_send_signal(&process, Signal::TERM);
                    }
                    return;
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().spawn_scoped(scope, tell) {
            tracing::warn!("{} is not told should we be terminated: {error}", program.display());
        }
        child.wait().with_context(running)
    })
}

/// Can this program be started? By its path, or found as it would be.
pub fn is_installed(program: &Path) -> bool {
    let executable =
        |path: &Path| path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
    if program.components().count() > 1 {
        return executable(program);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| executable(&dir.join(program)))
}

/// A program that was installed beside this one, or else one from PATH.
pub fn beside_us(name: &str) -> PathBuf {
    let ours = std::env::current_exe().ok();
    let beside = ours.and_then(|path| Some(path.parent()?.join(name)));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| PathBuf::from(name))
}

fn command(program: &Path, arguments: &[OsString]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn start_error(program: &Path, error: std::io::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::NotFound => anyhow!("{} is not installed", program.display()),
        _ => anyhow!(error).context(format!("start {}", program.display())),
    }
}

/// A program that we cannot attend to does not go on.
fn in_thread<T: Send + 'static>(
    child: &mut Child,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    std::thread::Builder::new().spawn(work).map_err(|error| {
        // It may have ended just now.
        drop(child.kill());
        drop(child.wait());
        anyhow!(error).context("start a thread to read what it says")
    })
}

/// Does what a program says go to our own standard error, too?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Echo {
    Yes,
    No,
}

fn listen(child: &mut Child, echo: Echo) -> Result<mpsc::Receiver<String>> {
    let (said, words) = mpsc::channel();
    let stderr = child.stderr.take();
    in_thread(child, move || {
        let text = stderr.map_or_else(Vec::new, |stderr| last_words(stderr, echo));
        // Of a program that ended well, mostly nobody waits for them.
        drop(said.send(String::from_utf8_lossy(&text).into_owned()));
    })?;
    Ok(words)
}

/// Of all that a program says this much at the end may tell why it failed, in bytes.
const WORDS_MAX: usize = 4 << 10;

/// Reads to the end, whatever it keeps: a program that nobody listens to any more is ended by that.
fn last_words(mut from: impl Read, echo: Echo) -> Vec<u8> {
    let (mut text, mut piece) = (Vec::new(), vec![0; WORDS_MAX]);
    loop {
        match from.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => {
                text.extend_from_slice(&piece[..read]);
                text.drain(..text.len().saturating_sub(WORDS_MAX));
                if echo == Echo::Yes {
                    // Where nobody reads ours, nothing can be told.
                    drop(std::io::stderr().write_all(&piece[..read]));
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // What could be read is what there is to tell.
            Err(_) => break,
        }
    }
    text
}

/// Words to a vector of arguments.
pub(crate) fn arguments<'a>(words: impl IntoIterator<Item = &'a OsStr>) -> Vec<OsString> {
    words.into_iter().map(OsStr::to_owned).collect()
}

/// Where what a program writes goes.
#[derive(Debug)]
pub(crate) enum Output {
    File(File),
    OurStderr,
}

/// A program that we feed. Killed when it is dropped before it has finished.
#[derive(Debug)]
pub(crate) struct Fed {
    child: Child,
    input: Option<ChildStdin>,
    words: mpsc::Receiver<String>,
    echo: Echo,
    name: String,
}

/// Why a program took no more.
#[derive(Debug)]
pub(crate) enum FeedError {
    Stopped,
    /// What it said, or how it ended.
    Ended(String),
}

/// How long a wait goes on before it asks whether it is to stop.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Starts a program whose input comes from us, with nobody's time limit but that of `put` and `finish`.
pub(crate) fn feed(
    program: &Path,
    arguments: &[OsString],
    environment: &[(&str, &str)],
    output: Output,
    echo: Echo,
) -> Result<Fed> {
    let output = match output {
        Output::File(file) => Stdio::from(file),
        Output::OurStderr => Stdio::from(std::io::stderr().as_fd().try_clone_to_owned()?),
    };
    let mut command = command(program, arguments);
    command.envs(environment.iter().copied()).stdin(Stdio::piped()).stdout(output).stderr(Stdio::piped());
    let mut child = with_callers_umask(|| command.spawn()).map_err(|error| start_error(program, error))?;
    let words = listen(&mut child, echo)?;
    let input = child.stdin.take().context("the program has no input")?;
    // So that a program that takes nothing can be waited for, and given up.
    let flags = rustix::fs::fcntl_getfl(&input)?;
    rustix::fs::fcntl_setfl(&input, flags | OFlags::NONBLOCK)?;
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    Ok(Fed { child, input: Some(input), words, echo, name })
}

impl Fed {
    pub(crate) fn put(&mut self, bytes: &[u8], stopped: &dyn Fn() -> bool) -> Result<(), FeedError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if stopped() {
                return Err(FeedError::Stopped);
            }
            let Some(input) = &mut self.input else {
                return Err(FeedError::Ended("its input is closed".to_owned()));
            };
            match input.write(rest) {
                Ok(taken) => rest = &rest[taken..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let mut ready = [PollFd::new(input, PollFlags::OUT)];
                    // Whatever came of it, writing will tell.
                    _ = poll(&mut ready, Some(&PATIENCE));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // It has closed its input: why, it says itself.
                Err(error) => {
                    self.finish(stopped)?;
                    return Err(FeedError::Ended(format!(
                        "it ended before it had taken everything: {error}"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Closes its input and waits until it ends well.
    pub(crate) fn finish(&mut self, stopped: &dyn Fn() -> bool) -> Result<(), FeedError> {
        drop(self.input.take());
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if stopped() => return Err(FeedError::Stopped),
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                Err(error) => return Err(FeedError::Ended(format!("waiting for it: {error}"))),
            }
        };
        if status.success() {
            if self.echo == Echo::Yes {
                // The last of it may still be on its way.
                drop(self.words.recv_timeout(LAST_WORDS));
            }
            return Ok(());
        }
        let words = self.words.recv_timeout(LAST_WORDS).unwrap_or_default();
        let words = words.trim().trim_start_matches(&*format!("{}: ", self.name));
        Err(FeedError::Ended(if words.is_empty() {
            format!("it ended with {status}")
        } else {
            words.to_owned()
        }))
    }
}

/// A program that expands a file, and is read from. Killed when it is dropped before its end.
#[derive(Debug)]
pub(crate) struct Drawn {
    child: Child,
    output: ChildStdout,
    words: mpsc::Receiver<String>,
    name: String,
}

pub(crate) fn draw(program: &Path, arguments: &[OsString], input: File) -> Result<Drawn> {
    let mut command = command(program, arguments);
    command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| start_error(program, error))?;
    let words = listen(&mut child, Echo::No)?;
    let output = child.stdout.take().context("the program has no output")?;
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    Ok(Drawn { child, output, words, name })
}

/// The end is an end only when the program ended well.
impl Read for Drawn {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.output.read(buffer)?;
        if read == 0 && !buffer.is_empty() {
            let status = self.child.wait()?;
            if !status.success() {
                let words = self.words.recv_timeout(LAST_WORDS).unwrap_or_default();
                let why = if words.trim().is_empty() { status.to_string() } else { words.trim().to_owned() };
                return Err(std::io::Error::other(format!("{}: {why}", self.name)));
            }
        }
        Ok(read)
    }
}

impl Drop for Drawn {
    fn drop(&mut self) {
        // One that has ended and been waited for is not killed.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Fed {
    fn drop(&mut self) {
        // One that has ended and been waited for is not killed.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, within: Duration) -> String {
        let words = arguments(["-c".as_ref(), script.as_ref()]);
        run(Path::new("/bin/sh"), &words, within)
            .map_or_else(|error| format!("{error:#}"), |()| String::new())
    }

    #[test]
    fn a_program_that_fails_tells_why_in_its_own_words() {
        let second = Duration::from_secs(5);
        assert_eq!(sh("exit 0", second), "");
        assert_eq!(sh("exit 3", second), "sh ended with exit status: 3");
        assert_eq!(sh("echo 'sh: no space left' >&2; exit 1", second), "no space left");
        assert_eq!(sh("sleep 60", Duration::from_millis(50)), "sh was not done within 0 s");
        let missing = run(Path::new("/nonexistent/tool"), &[], second).unwrap_err();
        assert_eq!(missing.to_string(), "/nonexistent/tool is not installed");
    }

    #[test]
    fn a_program_that_says_much_is_heard_to_its_end() {
        let much = "head -c 300000 /dev/zero | tr '\\0' . >&2";
        assert_eq!(sh(&format!("{much} && exit 0"), Duration::from_secs(5)), "");
        let told = sh(&format!("{much}; echo full >&2; exit 1"), Duration::from_secs(5));
        assert!(told.ends_with(".full") && told.len() < WORDS_MAX, "{told}");
    }
}
