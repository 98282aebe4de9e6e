//! How what has to outlive its caller is started: where systemd runs, in a scope of its own, for systemd ends all that a unit
//! has started when the unit ends - a cron job, an ssh session, a backup tool's service.
//! Nothing is started here.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::exec;

/// What is there to start a scope with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scopes {
    /// By this `systemd-run`.
    By(PathBuf),
    /// systemd is not the first process, or its tool is not installed.
    None,
}

/// A program and its arguments.
pub(super) type Words = (PathBuf, Vec<OsString>);

impl Scopes {
    /// `booted`: the directory that is there if, and only if, systemd is the first process: sd_booted(3).
    pub(super) fn find(booted: &Path, path: &OsStr) -> Scopes {
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
pub(super) fn within(scopes: &Scopes, what: &str, program: &Path, arguments: &[OsString]) -> Option<Words> {
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
        let (program, words) = within(scopes, "view of my vm", Path::new("/usr/bin/chunkfs"), &arguments)?;
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
