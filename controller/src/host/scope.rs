//! How what has to outlive its caller is started: where systemd runs, in a scope of its own, for systemd ends all that a unit
//! has started when the unit ends - a cron job, an ssh session, a backup tool's service.
//! Knows nothing of what is started.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use super::exec;

/// systemd answers at once, or is in trouble.
const STARTS_WITHIN: Duration = Duration::from_secs(10);

/// Runs what starts a daemon: where systemd runs, so that the daemon does not end with the unit that called us.
pub(super) fn run_apart(what: &str, program: &Path, words: &[OsString], within: Duration) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let scopes = Scopes::find(Path::new("/run/systemd/system"), &path);
    let Some((tool, scoped)) = within_scope(&scopes, what, program, words) else {
        return exec::run(program, words, within);
    };
    // Tried out with something that cannot fail, so that a failure of the scope is never taken for one of the program.
    let harmless = within_scope(&scopes, what, Path::new("true"), &[]);
    let tried = harmless.map_or(Ok(()), |(tool, words)| exec::run(&tool, &words, STARTS_WITHIN));
    if let Err(error) = tried {
        tracing::warn!(
            "{what} has no scope of its own, so systemd ends it with its caller's unit: {error:#}"
        );
        return exec::run(program, words, within);
    }
    exec::run(&tool, &scoped, within)
}

/// What is there to start a scope with.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scopes {
    /// By this `systemd-run`.
    By(PathBuf),
    /// systemd is not the first process, or its tool is not installed.
    None,
}

/// A program and its arguments.
type Words = (PathBuf, Vec<OsString>);

impl Scopes {
    /// `booted`: the directory that is there if, and only if, systemd is the first process: sd_booted(3).
    fn find(booted: &Path, path: &OsStr) -> Scopes {
        if !booted.is_dir() {
            return Scopes::None;
        }
        let tools = std::env::split_paths(path).map(|dir| dir.join("systemd-run"));
        tools.into_iter().find(|tool| tool.is_file()).map_or(Scopes::None, Scopes::By)
    }
}

/// `program` with `arguments` in a scope. `None`: there are no scopes.
///
/// A scope and not a service: `systemd-run --scope` becomes the program itself once the scope is there, so that its exit
/// status, its messages and its environment are what they are without. The unit has no name of ours: that of an earlier
/// one, should systemd not have let go of it yet, would be in the way.
fn within_scope(scopes: &Scopes, what: &str, program: &Path, arguments: &[OsString]) -> Option<Words> {
    let Scopes::By(systemd_run) = scopes else { return None };
    let description = format!("--description={what}");
    let options =
        ["--scope", "--quiet", "--collect", "--no-ask-password", &description, "--"].map(OsStr::new);
    let mut words = exec::arguments(options);
    words.push(program.into());
    words.extend_from_slice(arguments);
    Some((systemd_run.clone(), words))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(scopes: &Scopes) -> Option<Vec<String>> {
        let arguments = exec::arguments(["mount", "--view", "/a b"].map(OsStr::new));
        let (program, words) =
            within_scope(scopes, "view of my vm", Path::new("/usr/bin/chunkfs"), &arguments)?;
        let all = std::iter::once(program.into_os_string()).chain(words);
        Some(all.map(|word| word.into_string().unwrap()).collect())
    }

    #[test]
    fn in_a_scope_the_words_of_the_program_stay_as_they_are() {
        let tool = PathBuf::from("/usr/bin/systemd-run");
        let expected = [
            "/usr/bin/systemd-run",
            "--scope",
            "--quiet",
            "--collect",
            "--no-ask-password",
            "--description=view of my vm",
            "--",
            "/usr/bin/chunkfs",
            "mount",
            "--view",
            "/a b",
        ];
        assert_eq!(words(&Scopes::By(tool)).unwrap(), expected);
        assert_eq!(words(&Scopes::None), None);
    }

    #[test]
    fn a_scope_needs_systemd_as_the_first_process_and_its_tool() {
        let home = tempfile::tempdir().unwrap();
        let (booted, bin) = (home.path().join("booted"), home.path().join("bin"));
        std::fs::create_dir(&bin).unwrap();
        let path = std::env::join_paths([home.path(), &bin]).unwrap();
        let find = || Scopes::find(&booted, &path);
        assert_eq!(find(), Scopes::None);
        std::fs::write(bin.join("systemd-run"), "").unwrap();
        assert_eq!(find(), Scopes::None, "the tool alone");
        std::fs::create_dir(&booted).unwrap();
        assert_eq!(find(), Scopes::By(bin.join("systemd-run")));
        std::fs::remove_file(bin.join("systemd-run")).unwrap();
        assert_eq!(find(), Scopes::None, "systemd alone");
    }
}
