//! The user's own command that a dump is piped into: its words, and the names that are put into them.
//! Starts nothing. No shell reads it: what only a shell could mean is refused, not passed on as text.

use thiserror::Error;

use super::names::{Target, VmName};

const VM: &str = "__VIRT_BACKUP_VM__";
const DISK: &str = "__VIRT_BACKUP_DISK__";
/// What the command also finds in its environment, for scripts that quote it themselves.
pub const VM_VARIABLE: &str = "VIRT_BACKUP_VM";
pub const DISK_VARIABLE: &str = "VIRT_BACKUP_DISK";

/// A command with its placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpCommand {
    words: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DumpCommandError {
    #[error("--dumpcmd is empty")]
    Empty,
    #[error("--dumpcmd ends within {0} quotes")]
    Unclosed(char),
    #[error("--dumpcmd ends with a backslash")]
    Backslash,
    #[error(
        "--dumpcmd has {0:?} outside of quotes, which only a shell understands, and no shell reads it: \
         write sh -c '...' or a script"
    )]
    ForAShell(char),
    #[error(
        "the name {name:?} cannot stand in the place of {placeholder}: a shell may read more than a name in it; \
         use the variable {variable} in a script"
    )]
    Name { placeholder: &'static str, name: String, variable: &'static str },
}

impl DumpCommand {
    /// Words as a shell splits them: by white space, with '...', "..." and \ to quote. Nothing is expanded.
    pub fn parse(text: &str) -> Result<DumpCommand, DumpCommandError> {
        let words = split(text)?;
        if words.first().is_none_or(String::is_empty) {
            Err(DumpCommandError::Empty)
        } else {
            Ok(DumpCommand { words })
        }
    }

    /// The program and its arguments for one disk, none of them ever split again.
    pub fn words(&self, vm: &VmName, disk: &Target) -> Result<Vec<String>, DumpCommandError> {
        let filled = self.words.iter().map(|word| {
            let word = fill(word, VM, vm.as_str(), VM_VARIABLE)?;
            fill(&word, DISK, disk.as_str(), DISK_VARIABLE)
        });
        filled.collect()
    }

    pub fn program(&self) -> &str {
        &self.words[0]
    }
}

/// The word may be a script for a shell, here (`sh -c`) or elsewhere (`ssh`): only a name that means itself to it
/// may become a part of one.
fn fill(
    word: &str,
    placeholder: &'static str,
    name: &str,
    variable: &'static str,
) -> Result<String, DumpCommandError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-:+@,".contains(c);
    let an_option = word.starts_with(placeholder) && name.starts_with('-');
    if word.contains(placeholder) && (an_option || !name.chars().all(plain)) {
        return Err(DumpCommandError::Name { placeholder, name: name.to_owned(), variable });
    }
    Ok(word.replace(placeholder, name))
}

fn split(text: &str) -> Result<Vec<String>, DumpCommandError> {
    let mut words = Vec::new();
    // None: between two words. An empty pair of quotes is a word.
    let mut word: Option<String> = None;
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\'' => word.get_or_insert_default().push_str(&quoted(&mut rest)?),
            '"' => word.get_or_insert_default().push_str(&double_quoted(&mut rest)?),
            '\\' => word.get_or_insert_default().push(rest.next().ok_or(DumpCommandError::Backslash)?),
            '|' | '&' | ';' | '<' | '>' | '(' | ')' | '$' | '`' => {
                return Err(DumpCommandError::ForAShell(c));
            }
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

fn quoted(rest: &mut std::str::Chars<'_>) -> Result<String, DumpCommandError> {
    let mut inner = String::new();
    loop {
        match rest.next() {
            Some('\'') => return Ok(inner),
            Some(c) => inner.push(c),
            None => return Err(DumpCommandError::Unclosed('\'')),
        }
    }
}

/// A shell would expand these two here as well.
fn double_quoted(rest: &mut std::str::Chars<'_>) -> Result<String, DumpCommandError> {
    let mut inner = String::new();
    loop {
        match rest.next() {
            Some('"') => return Ok(inner),
            Some(c @ ('$' | '`')) => return Err(DumpCommandError::ForAShell(c)),
            Some('\\') => match rest.next() {
                Some(c @ ('"' | '\\' | '$' | '`')) => inner.push(c),
                Some(c) => inner.extend(['\\', c]),
                None => return Err(DumpCommandError::Backslash),
            },
            Some(c) => inner.push(c),
            None => return Err(DumpCommandError::Unclosed('"')),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str, vm: &str) -> Result<Vec<String>, DumpCommandError> {
        DumpCommand::parse(text)?.words(&VmName::new(vm).unwrap(), &Target::new("vda").unwrap())
    }

    #[test]
    fn words_are_those_of_a_shell_without_its_expansions() {
        for (text, expected) in [
            ("cat", vec!["cat"]),
            ("  ssh -p 22\tb@h\n", vec!["ssh", "-p", "22", "b@h"]),
            ("a 'b  c' \"d 'e'\" f\\ g", vec!["a", "b  c", "d 'e'", "f g"]),
            ("a '' b''c \"\"", vec!["a", "", "bc", ""]),
            (r#"a "\"\\\$\n" 'x\y'"#, vec!["a", r#""\$\n"#, r"x\y"]),
            ("sh -c 'cat > /b/$X | y'", vec!["sh", "-c", "cat > /b/$X | y"]),
            ("a *.img ~ {b,c} #d", vec!["a", "*.img", "~", "{b,c}", "#d"]),
            (
                "ssh h \"cat > /b/__VIRT_BACKUP_VM__/__VIRT_BACKUP_DISK__\"",
                vec!["ssh", "h", "cat > /b/mail01/vda"],
            ),
            (
                "x __VIRT_BACKUP_VM___(__VIRT_BACKUP_VM__)".replace('(', "'('").replace(')', "')'").as_str(),
                vec!["x", "mail01_(mail01)"],
            ),
        ] {
            assert_eq!(
                words(text, "mail01").as_deref(),
                Ok(&expected.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>()[..]),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_not_a_command_of_its_own_is_refused() {
        use DumpCommandError::*;
        for (text, expected) in [
            ("", Empty),
            (" \t", Empty),
            ("'' x", Empty),
            ("a 'b", Unclosed('\'')),
            ("a \"b'", Unclosed('"')),
            ("a b\\", Backslash),
            ("a > b", ForAShell('>')),
            ("a | b", ForAShell('|')),
            ("a; b", ForAShell(';')),
            ("a $B", ForAShell('$')),
            ("a \"$B\"", ForAShell('$')),
            ("a `b`", ForAShell('`')),
        ] {
            assert_eq!(words(text, "mail01"), Err(expected), "{text}");
        }
    }

    #[test]
    fn a_name_never_becomes_more_than_a_name() {
        for vm in ["a b", "a;b", "$(x)", "it's", "a\"b", "*", "größe"] {
            for text in ["x __VIRT_BACKUP_VM__", "sh -c 'cat >/b/__VIRT_BACKUP_VM__'"] {
                assert!(matches!(words(text, vm), Err(DumpCommandError::Name { .. })), "{vm} {text}");
            }
            assert!(words("x __VIRT_BACKUP_DISK__", vm).is_ok(), "{vm}");
        }
        assert!(words("x __VIRT_BACKUP_VM__", "-rf").is_err());
        assert_eq!(words("x /b/__VIRT_BACKUP_VM__", "-rf").unwrap(), ["x", "/b/-rf"]);
    }
}
