//! The spelling of version 0.2, turned into today's: `--action=X` and its short forms become the subcommand X.
//! What an option means is `cli`'s to say.

use std::ffi::OsString;

/// The words of a command line, the program's name first, as `cli` understands them.
pub(crate) fn words(words: Vec<OsString>) -> Vec<OsString> {
    let (mut ours, theirs) = match words.iter().position(|word| word == "--") {
        Some(end) => (words[..end].to_vec(), words[end..].to_vec()),
        None => (words, Vec::new()),
    };
    if ours.first().is_some_and(|name| is_vm_backup(name)) {
        ours = archive_words(ours);
    } else if let Some(action) = take_action(&mut ours) {
        ours.insert(1.min(ours.len()), action.into());
    }
    ours.into_iter().chain(theirs).collect()
}

/// Under this name, as a link, the program is the script that made archives, with that script's options and defaults.
fn is_vm_backup(name: &std::ffi::OsStr) -> bool {
    let file = std::path::Path::new(name).file_name().and_then(|name| name.to_str());
    matches!(file, Some("vm_backup" | "vm_backup.sh"))
}

/// `--vm-domain` names the VM, and `--max-backups` says how many archives are kept: 6 unless told otherwise.
fn archive_words(words: Vec<OsString>) -> Vec<OsString> {
    let renamed = |word: OsString| match word.to_str() {
        Some("--vm-domain") => "--vm".into(),
        Some("--max-backups") => "--keep".into(),
        Some(text) => match text.split_once('=') {
            Some(("--vm-domain", value)) => format!("--vm={value}").into(),
            Some(("--max-backups", value)) => format!("--keep={value}").into(),
            _ => word,
        },
        None => word,
    };
    let mut ours: Vec<_> = words.into_iter().map(renamed).collect();
    let says = |word: &OsString| word.to_str().is_some_and(|word| word.starts_with("--keep"));
    if !ours.iter().any(says) {
        ours.push("--keep=6".into());
    }
    ours.insert(1, "archive".into());
    ours
}

fn take_action(words: &mut Vec<OsString>) -> Option<String> {
    for at in 1..words.len() {
        let word = words[at].to_str()?.to_owned();
        match word.as_str() {
            "--action" if at + 1 < words.len() => {
                words.remove(at);
                return words.remove(at).into_string().ok();
            }
            "--dump" | "--cleanup" | "--unlock" | "--convert" | "--chunkmount" => {
                words.remove(at);
                return Some(word.trim_start_matches('-').to_owned());
            }
            _ => {}
        }
        if let Some(action) = word.strip_prefix("--action=") {
            words.remove(at);
            return Some(action.to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turned(line: &str) -> String {
        let given = line.split(' ').map(OsString::from).collect();
        let turned: Vec<_> = words(given).into_iter().filter_map(|word| word.into_string().ok()).collect();
        turned.join(" ")
    }

    #[test]
    fn the_old_spelling_means_the_same() {
        for (old, new) in [
            ("v --action=chunkmount --vm=a,b", "v chunkmount --vm=a,b"),
            ("v --vm=a --action chunkmount", "v chunkmount --vm=a"),
            ("v --cleanup --vm=a", "v cleanup --vm=a"),
            ("v --debug --unlock --vm a", "v unlock --debug --vm a"),
            ("v --dump --vm=a --compress", "v dump --vm=a --compress"),
            ("v --action=convert --vm=a", "v convert --vm=a"),
            ("/usr/bin/vm_backup.sh --vm-domain a", "/usr/bin/vm_backup.sh archive --vm a --keep=6"),
            ("vm_backup --vm-domain=a --max-backups 3", "vm_backup archive --vm=a --keep 3"),
            ("v chunkmount a", "v chunkmount a"),
            ("v run a -- sh --cleanup --dump", "v run a -- sh --cleanup --dump"),
        ] {
            assert_eq!(turned(old), new, "{old}");
        }
    }
}
