//! A process that stays behind: it starts as a child, says when it is ready, and lets go of its caller.
//!
//! The caller may be a pre-command over ssh that ends when the last one closes its output, so that after "ready"
//! nothing of the caller's is held: a session of its own, `/` as directory, no terminal, no inherited output.

use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Set in the environment of the child: report on standard output.
const MARK: &str = "CHUNKFS_REPORT_READY";

/// What the child says, on one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Report {
    Ready,
    Failed { status: u8, message: String },
}

/// Am I the child?
pub fn is_child() -> bool {
    std::env::var_os(MARK).is_some()
}

/// What the caller left open beyond the three usual descriptors - the lock of a cron job, say - would stay open as
/// long as the view does. It closes when the daemon starts.
#[expect(unsafe_code, reason = "what the caller left open is known by its number only")]
fn let_go_of_descriptors() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if number > 2 {
            // SAFETY: it is open, for /proc has just said so and no other thread runs yet, and stays open here.
            let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
            rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::CLOEXEC)?;
        }
    }
    Ok(())
}

/// Starts this program again with the same arguments, and waits until it is ready or has failed.
pub fn start() -> io::Result<Report> {
    let_go_of_descriptors()?;
    let mut words = std::env::args_os();
    let mut command = Command::new(std::env::current_exe()?);
    // By the name that we were called by, which may be that of a link.
    command.arg0(words.next().unwrap_or_default());
    let mut child = command.args(words).env(MARK, "1").stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("its output is a pipe")).read_line(&mut line)?;
    match serde_json::from_str(&line) {
        Ok(report) => Ok(report),
        // It died before it could tell why: its own words are on stderr.
        Err(_) => {
            let status = child.wait()?;
            Ok(Report::Failed {
                status: 1,
                message: format!("the daemon ended before it was ready: {status}"),
            })
        }
    }
}

/// The child's first act: out of the caller's session, so that its end does not signal us.
pub fn leave_session() {
    // Fails only for the leader of a process group, who has nobody above to be signalled by.
    let _ = rustix::process::setsid();
}

/// Tells the parent, and lets go of everything that is the caller's. Errors: there is no parent any more to be told.
pub fn report(report: &Report, log: Option<&Path>) -> io::Result<()> {
    let line = serde_json::to_string(report).expect("a report has only numbers and texts");
    writeln!(io::stdout(), "{line}")?;
    if *report == Report::Ready {
        detach(log)?;
    }
    Ok(())
}

fn detach(log: Option<&Path>) -> io::Result<()> {
    let null: OwnedFd = OpenOptions::new().read(true).write(true).open("/dev/null")?.into();
    let log = match log {
        Some(path) => Some(open_log(path)?.into()),
        None => journal().ok(),
    };
    rustix::stdio::dup2_stdin(null.as_fd())?;
    rustix::stdio::dup2_stdout(null.as_fd())?;
    rustix::stdio::dup2_stderr(log.as_ref().unwrap_or(&null).as_fd())?;
    std::env::set_current_dir("/")
}

/// Opened before the view is ready, too, so that a log that cannot be written is an error of the caller's.
pub fn open_log(path: &Path) -> io::Result<std::fs::File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// A stream into systemd's journal: what is written to it becomes entries, a line each.
/// The header is that of systemd-cat: identifier, unit, priority, and what not to do.
fn journal() -> io::Result<OwnedFd> {
    let path = PathBuf::from("/run/systemd/journal/stdout");
    let mut stream = UnixStream::connect(path)?;
    stream.write_all(b"chunkfs\n\n6\n0\n0\n0\n0\n")?;
    Ok(stream.into())
}
