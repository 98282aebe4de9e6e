//! The only door to other programs: argument vectors, a time limit, LC_ALL=C, and their own words in the error.
//! No shell, and no program is found by anything but its name or path.

use std::ffi::{OsStr, OsString};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

/// How long what a program said may take to arrive once it has ended: a daemon that it started may hold the pipe.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Runs a program until it ends, and fails unless it ends well.
pub(super) fn run(program: &Path, arguments: &[OsString], within: Duration) -> Result<()> {
    let mut child = spawn(program, command(program, arguments).stderr(Stdio::piped()))?;
    wait(program, &mut child, within)
}

/// The same, and gives what the program wrote to its standard output, at most 16 MiB.
pub(super) fn output(program: &Path, arguments: &[OsString], within: Duration) -> Result<Vec<u8>> {
    let mut command = command(program, arguments);
    let mut child = spawn(program, command.stderr(Stdio::piped()).stdout(Stdio::piped()))?;
    let stdout = child.stdout.take().context("its output was asked for")?;
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.take(16 << 20).read_to_end(&mut bytes).map(|_| bytes)
    });
    wait(program, &mut child, within)?;
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
    wait(program, &mut child, Duration::from_secs(10))
}

fn spawn(program: &Path, command: &mut Command) -> Result<Child> {
    command.spawn().map_err(|error| match error.kind() {
        ErrorKind::NotFound => anyhow!("{} is not installed", program.display()),
        _ => anyhow!(error).context(format!("start {}", program.display())),
    })
}

fn wait(program: &Path, child: &mut Child, within: Duration) -> Result<()> {
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy();
    let words = listen(child);
    let deadline = Instant::now() + within;
    let status = loop {
        if let Some(status) = child.try_wait().with_context(|| format!("wait for {name}"))? {
            break status;
        }
        if Instant::now() >= deadline {
            // It may have ended just now.
            drop(child.kill());
            drop(child.wait());
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

/// Runs a program of the user's, with our own input and output.
pub fn run_attached(words: &[OsString]) -> Result<std::process::ExitStatus> {
    let (program, arguments) = words.split_first().context("there is no command to run")?;
    Command::new(program).args(arguments).status().with_context(|| format!("run {}", program.display()))
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

fn listen(child: &mut Child) -> mpsc::Receiver<String> {
    let (said, words) = mpsc::channel();
    let stderr = child.stderr.take();
    std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(stderr) = stderr {
            // What could be read is what there is to tell.
            drop(stderr.take(64 << 10).read_to_end(&mut text));
        }
        // Nobody waits for the words of a program that ended well.
        drop(said.send(String::from_utf8_lossy(&text).into_owned()));
    });
    words
}

/// Words to a vector of arguments.
pub(super) fn arguments<'a>(words: impl IntoIterator<Item = &'a OsStr>) -> Vec<OsString> {
    words.into_iter().map(OsStr::to_owned).collect()
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
}
