//! Watches a file system that must not run full, and calls for help in time.
//! Who helps and how is not known here: a program is run.

use super::spec::RoomSpec;
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How often it is looked when there is room for a while, and when there is not.
const LEISURE: Duration = Duration::from_millis(200);
const HURRY: Duration = Duration::from_millis(10);
/// With less than this beyond the limit there is a hurry.
const A_WHILE: u64 = 4 << 30;

/// What happened, once it has.
pub(super) type Alarm = Arc<OnceLock<String>>;

/// Watches for as long as the process lives, or until there was an alarm.
pub(super) fn watch(spec: RoomSpec) -> std::io::Result<Alarm> {
    let alarm = Alarm::default();
    let told = Arc::clone(&alarm);
    std::thread::Builder::new().name("room".to_owned()).spawn(move || {
        let free = wait_until_short(&spec);
        let story = format!(
            "only {} MiB are left in {}, so the backup was ended before it could harm the guest",
            free >> 20,
            spec.dir.display()
        );
        tracing::error!("{story}");
        // Nobody else sets it.
        let _ = told.set(story);
        call(&spec.then);
    })?;
    Ok(alarm)
}

fn wait_until_short(spec: &RoomSpec) -> u64 {
    loop {
        // A directory that has gone needs no room.
        let free = rustix::fs::statvfs(&spec.dir)
            .map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
        if free < spec.least_free {
            return free;
        }
        std::thread::sleep(if free - spec.least_free < A_WHILE { HURRY } else { LEISURE });
    }
}

fn call(then: &[String]) {
    let Some((program, arguments)) = then.split_first() else { return };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => tracing::error!("{program} ended with {status}"),
        Err(error) => tracing::error!("{program} could not be run: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_is_called_once_there_is_too_little_room() {
        let dir = tempfile::tempdir().unwrap();
        let flag = dir.path().join("called");
        let spec = |least_free| RoomSpec {
            dir: dir.path().to_owned(),
            least_free,
            then: vec!["touch".to_owned(), flag.display().to_string()],
        };
        let calm = watch(spec(0)).unwrap();
        watch(spec(u64::MAX)).unwrap();
        for _ in 0..500 {
            if flag.exists() {
                break;
            }
            std::thread::sleep(HURRY);
        }
        assert!(flag.exists());
        assert_eq!(calm.get(), None);
    }
}
