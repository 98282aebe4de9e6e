//! `chunkfs umount` and `chunkfs status`: what is asked of a daemon, or done without it where it was killed.

use crate::cli::{StatusOf, Umount};
use crate::error::{CommandError, Status};
use crate::mount::control::{self, Answer, Request};
use crate::mount::points::{self, MountPoint};
use crate::mount::session::{self, SessionError, Unmounting};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

/// How long a daemon may take to store what it knows. Its mount is gone by then.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) fn run(args: &Umount) -> Result<Status, CommandError> {
    let mount = find(&args.mountpoint)?;
    let how = if args.lazy { Unmounting::Lazy } else { Unmounting::Plain };
    let asked = control::ask(&mount, Request::Unmount { lazy: args.lazy }, PATIENCE);
    match asked.map_err(CommandError::io(format!("asking the daemon of {}", mount.path.display())))? {
        Some(Answer::Unmounted) => Ok(Status::Done),
        Some(Answer::Busy(message)) => Err(CommandError::Reported { status: Status::Busy as u8, message }),
        Some(Answer::Failed(message)) => {
            Err(CommandError::Reported { status: Status::Failed as u8, message })
        }
        Some(Answer::Status(_)) | None => unmount_alone(&mount, how),
    }
}

/// Without the daemon. A dead mount has nothing to lose, so it is detached where it is still held.
fn unmount_alone(mount: &MountPoint, how: Unmounting) -> Result<Status, CommandError> {
    let dead = points::is_dead(&mount.path);
    match session::unmount(mount, how) {
        Err(SessionError::Busy { .. }) if dead => session::unmount(mount, Unmounting::Lazy)?,
        done => done?,
    }
    match points::at(&mount.path).map_err(CommandError::io("reading the mount table"))? {
        Some(still) if still.device == mount.device => Err(CommandError::Session(SessionError::Unmount {
            path: mount.path.clone(),
            error: std::io::Error::other("it is still mounted"),
        })),
        _ => {
            // Of the daemon that was killed, if it had one.
            let _ = std::fs::remove_file(control::path_of(mount));
            Ok(Status::Done)
        }
    }
}

pub(super) fn status(args: &StatusOf) -> Result<Status, CommandError> {
    let mount = find(&args.mountpoint)?;
    let answer = control::ask(&mount, Request::Status, Duration::from_secs(10));
    let answer =
        answer.map_err(CommandError::io(format!("asking the daemon of {}", mount.path.display())))?;
    let Some(Answer::Status(status)) = answer else {
        let message = format!(
            "{}: its daemon does not answer; if it was killed, run `chunkfs umount`",
            mount.path.display()
        );
        return Err(CommandError::Reported { status: Status::Owed as u8, message });
    };
    let text = if args.json { format!("{status}\n") } else { text_of(&status) };
    std::io::stdout().write_all(text.as_bytes()).map_err(CommandError::io("writing the status"))?;
    Ok(Status::Done)
}

fn text_of(status: &serde_json::Value) -> String {
    let mut text =
        format!("{}: process {}, stamp {}\n", show(&status["mount_point"]), status["pid"], status["stamp"]);
    for disk in status["disks"].as_array().into_iter().flatten() {
        text += &format!(
            "  {}: {} bytes, {} chunks of {}; {}{} of them read\n",
            show(&disk["name"]),
            disk["length"],
            disk["chunks"],
            disk["chunk_size"],
            if disk["read"]["exact"] == false { "at least " } else { "" },
            disk["read"]["chunks"]
        );
    }
    text += &format!(
        "  {} reads, {} bytes, {} errors\n",
        status["reads"], status["bytes_read"], status["read_errors"]
    );
    for trouble in status["troubles"].as_array().into_iter().flatten() {
        text += &format!("  TROUBLE: {}\n", show(trouble));
    }
    let scan = &status["scan"];
    if !scan.is_null() {
        text += &format!(
            "  compared {} leaves, {} to go; {} chunks changed; {} bytes read\n",
            scan["compared_leaves"], scan["pending_leaves"], scan["changed_chunks"], scan["bytes_read"]
        );
    }
    text
}

fn show(value: &serde_json::Value) -> &str {
    value.as_str().unwrap_or("?")
}

fn find(path: &Path) -> Result<MountPoint, CommandError> {
    let missing = || CommandError::NotMounted { path: path.to_owned() };
    let full = points::absolute(path).map_err(|_| missing())?;
    let mount = points::at(&full).map_err(CommandError::io("reading the mount table"))?;
    mount.filter(MountPoint::is_chunkfs).ok_or_else(missing)
}
