//! Whom libvirt runs emulators of TPMs as: what its settings say, or else its own choice.
//! Changes nothing.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::super::exec;

const SETTINGS: &str = "/etc/libvirt/qemu.conf";
/// libvirt's choice where its settings say nothing, and root where there is no such user.
const USUAL: &str = "tss";
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

pub(super) fn owner() -> Result<(u32, u32)> {
    let settings = match std::fs::read_to_string(SETTINGS) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("read {SETTINGS}")),
    };
    let id = |what: &str, setting: &str, database: &str| match value(&settings, setting) {
        Some(name) => number(database, &name)
            .with_context(|| format!("find the {what} {name:?}, the {setting} of {SETTINGS}")),
        None => Ok(number(database, USUAL).unwrap_or(0)),
    };
    Ok((id("user", "swtpm_user", "passwd")?, id("group", "swtpm_group", "group")?))
}

/// The last that a setting is given: `swtpm_user = "tss"`.
fn value(settings: &str, name: &str) -> Option<String> {
    let mut assigned =
        settings.lines().filter_map(|line| line.trim().strip_prefix(name)?.trim().strip_prefix('='));
    let value = assigned.next_back()?.trim();
    let quoted = value.strip_prefix('"').and_then(|rest| rest.split('"').next());
    let plain = || value.split(['#', ' ']).next().unwrap_or(value);
    Some(quoted.unwrap_or_else(plain).to_owned())
}

/// A name in one of the system's databases, or a number, which libvirt also takes with a plus sign.
fn number(database: &str, name: &str) -> Result<u32> {
    if let Ok(number) = name.strip_prefix('+').unwrap_or(name).parse() {
        return Ok(number);
    }
    let words: Vec<OsString> = [database, name].map(OsString::from).into();
    let entry = exec::output(Path::new("getent"), &words, ANSWERS_WITHIN)?;
    let entry = String::from_utf8_lossy(&entry).into_owned();
    let number = entry.split(':').nth(2).with_context(|| format!("understand {entry:?}"))?;
    number.trim().parse().with_context(|| format!("understand {entry:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_what_was_said_last() {
        let text =
            "#swtpm_user = \"tss\"\nswtpm_user = \"one\" # first\n  swtpm_user=\"two\"\nswtpm_group = 12\n";
        assert_eq!(value(text, "swtpm_user").as_deref(), Some("two"));
        assert_eq!(value(text, "swtpm_group").as_deref(), Some("12"));
        assert_eq!(value("#swtpm_user = \"tss\"\nswtpm_users = 1\n", "swtpm_user"), None);
    }

    #[test]
    fn a_user_is_found_by_name_and_by_number() {
        assert_eq!(number("passwd", "root").unwrap(), 0);
        assert_eq!(number("passwd", "+107").unwrap(), 107);
        assert_eq!(number("group", "108").unwrap(), 108);
        assert!(number("passwd", "nobody-has-this-name").is_err());
    }
}
