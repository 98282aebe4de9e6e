//! What options are when nobody says: from a file and from the environment, put in front of the words of the command line.
//! What an option means, and which values it takes, is `cli`'s to say.
//!
//! Options that are given come first, then `VIRT_BACKUP_<OPTION>`, then the table of the VM in the file, then the top of the file.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, CommandFactory, FromArgMatches};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::cli::{Cli, Command};

const USUAL: &str = "/etc/virt-backup.toml";
const PREFIX: &str = "VIRT_BACKUP_";
/// Jobs on VMs: whose options may have another default.
const JOBS: [&str; 6] = ["chunkmount", "dump", "convert", "archive", "cleanup", "run"];
/// What one says each time, or never.
const NEVER: [&str; 8] = ["config", "help", "version", "vm", "dry-run", "keep-going", "all", "name"];
/// Not of one VM alone, though only jobs take it.
const OF_THE_HOST: &str = "max-backups";

/// A file that has been read.
#[derive(Debug, Default)]
struct Settings {
    top: BTreeMap<String, Setting>,
    vms: BTreeMap<String, BTreeMap<String, Setting>>,
}

#[derive(Clone, Debug)]
struct Setting {
    value: Value,
    /// `/etc/virt-backup.toml, line 3: method`
    origin: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Flag(bool),
    Text(String),
    List(Vec<String>),
}

/// A word to be put in front.
#[derive(Clone, Debug)]
struct Put {
    word: OsString,
    origin: String,
}

/// The command, or the same command for each of several VMs when one of them has settings of its own.
pub(crate) fn commands(words: Vec<OsString>) -> Result<Vec<Cli>, String> {
    let matches = parsed(&words).unwrap_or_else(|error| error.exit());
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    // They are words between our own processes, and must not fail for a mistake in a file.
    if matches!(cli.command, Command::EndBackup { .. } | Command::ThawLater { .. }) {
        return Ok(vec![cli]);
    }
    let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let settings = Settings::find(cli.common.config.as_deref(), &environment)?;
    let vms = match &cli.command {
        Command::Run(args) => vec![args.vm.clone()],
        command => command.vms().map(|vms| vms.list()).unwrap_or_default(),
    };
    let one = |vm: Option<&str>| with(&words, &settings.words(&matches, vm, &environment)?);
    if vms.iter().any(|vm| settings.vms.contains_key(vm)) {
        let each = vms.iter().map(|vm| {
            let Cli { common, command } = one(Some(vm))?;
            Ok(Cli { common, command: command.only(vm) })
        });
        return each.collect();
    }
    Ok(vec![one(None)?])
}

fn parsed(words: &[OsString]) -> Result<ArgMatches, clap::Error> {
    Cli::command().try_get_matches_from(words)
}

/// After the name of the command, before what was given for it: what comes later wins.
fn with(words: &[OsString], put: &[Put]) -> Result<Cli, String> {
    let at = place(words);
    let spliced = |put: &[Put]| {
        let put = put.iter().map(|put| put.word.clone());
        let words = words[..at].iter().cloned().chain(put).chain(words[at..].iter().cloned());
        parsed(&words.collect::<Vec<_>>())
    };
    match spliced(put) {
        Ok(matches) => Cli::from_arg_matches(&matches).map_err(|error| error.to_string()),
        Err(error) => {
            // The words by themselves were fine, so it is one of those that we put there.
            let wrong = put.iter().find_map(|one| Some((one, spliced(std::slice::from_ref(one)).err()?)));
            Err(match wrong {
                Some((one, error)) => format!("{}: {}", one.origin, first_line(&error)),
                None => {
                    let origins: Vec<_> = put.iter().map(|put| put.origin.as_str()).collect();
                    format!("{} ({})", first_line(&error), origins.join("; "))
                }
            })
        }
    }
}

/// Behind the name of the command.
fn place(words: &[OsString]) -> usize {
    let names: Vec<String> = Cli::command().get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    let is_name = |word: &OsString| word.to_str().is_some_and(|word| names.iter().any(|name| name == word));
    // An option's value may be called as a command is. Where a command can stand, another one can.
    let mut candidates = (1..words.len()).filter(|at| is_name(&words[*at])).filter(|at| {
        let other = words[..*at].iter().cloned().chain(["status".into()]).collect::<Vec<_>>();
        parsed(&other).is_ok_and(|matches| matches.subcommand_name() == Some("status"))
    });
    candidates.next().map_or(words.len().min(1), |at| at + 1)
}

fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

impl Settings {
    fn find(given: Option<&Path>, environment: &dyn Fn(&str) -> Option<String>) -> Result<Settings, String> {
        let named =
            given.map(Path::to_owned).or_else(|| environment("VIRT_BACKUP_CONFIG").map(PathBuf::from));
        let path = named.clone().unwrap_or_else(|| PathBuf::from(USUAL));
        match std::fs::read_to_string(&path) {
            Ok(text) => Settings::parse(&text, &path.display().to_string()),
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                Ok(Settings::default())
            }
            Err(error) => Err(format!("read {}: {error}", path.display())),
        }
    }

    fn parse(text: &str, file: &str) -> Result<Settings, String> {
        let table =
            DeTable::parse(text).map_err(|error| format!("{file}: {}", error.to_string().trim_end()))?;
        let line = |at: std::ops::Range<usize>| text[..at.start].matches('\n').count() + 1;
        let (known, mut settings) = (known(), Settings::default());
        let setting = |key: &Spanned<std::borrow::Cow<'_, str>>, value: &DeValue<'_>, of_vm: bool| {
            let origin = format!("{file}, line {}: {}", line(key.span()), key.get_ref());
            match known.get(key.get_ref().as_ref()) {
                None => Err(format!("{origin} is not the name of an option that may be here")),
                Some(Whose::Host) if of_vm => {
                    Err(format!("{origin} is for all VMs: put it above the tables"))
                }
                Some(_) => {
                    let value = read(value).ok_or_else(|| {
                        format!("{origin} is true or false, a number, a text, or a list of texts")
                    })?;
                    Ok((key.get_ref().to_string(), Setting { value, origin }))
                }
            }
        };
        for (key, value) in table.get_ref() {
            let vms = match (key.get_ref().as_ref(), value.get_ref()) {
                ("vm", DeValue::Table(vms)) => vms,
                _ => {
                    settings.top.extend([setting(key, value.get_ref(), false)?]);
                    continue;
                }
            };
            for (vm, table) in vms {
                let DeValue::Table(table) = table.get_ref() else {
                    return Err(format!("{file}, line {}: vm.{} is no table", line(vm.span()), vm.get_ref()));
                };
                let own = table.iter().map(|(key, value)| setting(key, value.get_ref(), true));
                settings.vms.insert(vm.get_ref().to_string(), own.collect::<Result<_, _>>()?);
            }
        }
        Ok(settings)
    }

    /// What is to stand before what was given.
    fn words(
        &self,
        given: &ArgMatches,
        vm: Option<&str>,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Vec<Put>, String> {
        let Some((name, given)) = given.subcommand() else { return Ok(Vec::new()) };
        let mut command = Cli::command();
        command.build();
        let Some(command) = command.find_subcommand(name) else { return Ok(Vec::new()) };
        let is_given =
            |arg: &Arg| given.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
        let own = vm.and_then(|vm| self.vms.get(vm));
        let (mut from_file, mut from_environment) = (Vec::new(), Vec::new());
        for arg in command.get_arguments().filter(|arg| arg.is_global_set() || JOBS.contains(&name)) {
            let Some(key) = arg.get_long().filter(|key| !NEVER.contains(key)) else { continue };
            if is_given(arg) || command.get_arg_conflicts_with(arg).into_iter().any(is_given) {
                continue;
            }
            let variable = format!("{PREFIX}{}", key.replace('-', "_").to_ascii_uppercase());
            let (setting, put) = match environment(&variable) {
                Some(text) => (Setting { value: Value::Text(text), origin: variable }, &mut from_environment),
                None => match own.and_then(|own| own.get(key)).or(self.top.get(key)) {
                    Some(setting) => (setting.clone(), &mut from_file),
                    None => continue,
                },
            };
            let word = word(arg, key, &setting.value).map_err(|why| format!("{}: {why}", setting.origin))?;
            put.extend(word.map(|word| Put { word: word.into(), origin: setting.origin }));
        }
        Ok(from_file.into_iter().chain(from_environment).collect())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Host,
    Vm,
}

/// The options that may be in a file, by their long names.
fn known() -> BTreeMap<String, Whose> {
    let mut command = Cli::command();
    command.build();
    let mut known = BTreeMap::new();
    for sub in command.get_subcommands().filter(|sub| JOBS.contains(&sub.get_name())) {
        for arg in sub.get_arguments() {
            let Some(key) = arg.get_long().filter(|key| !NEVER.contains(key)) else { continue };
            let of_the_host = arg.is_global_set() || key == OF_THE_HOST;
            known.insert(key.to_owned(), if of_the_host { Whose::Host } else { Whose::Vm });
        }
    }
    known
}

fn read(value: &DeValue<'_>) -> Option<Value> {
    let plain = |value: &DeValue<'_>| match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        _ => None,
    };
    match value {
        DeValue::Boolean(flag) => Some(Value::Flag(*flag)),
        DeValue::Array(list) => {
            list.iter().map(|value| plain(value.get_ref())).collect::<Option<_>>().map(Value::List)
        }
        value => plain(value).map(Value::Text),
    }
}

/// None: as if nothing had been said.
fn word(arg: &Arg, key: &str, value: &Value) -> Result<Option<String>, String> {
    let takes_none = matches!(arg.get_action(), ArgAction::SetTrue);
    let may_be_bare = arg.get_num_args().is_some_and(|range| range.min_values() == 0);
    match value {
        Value::Text(text) if takes_none => match text.as_str() {
            "1" | "true" | "yes" | "on" => Ok(Some(format!("--{key}"))),
            "0" | "false" | "no" | "off" => Ok(None),
            // For an archive it is a matter of yes or no, and of dumps which.
            "none" if key == "compress" => Ok(None),
            _ if key == "compress" => Ok(Some(format!("--{key}"))),
            _ => Err(format!("{text:?} is neither true nor false")),
        },
        Value::Flag(true) if takes_none || may_be_bare => Ok(Some(format!("--{key}"))),
        Value::Flag(false) if takes_none || may_be_bare => Ok(None),
        Value::Flag(_) => Err("it needs a value".to_owned()),
        Value::Text(text) => Ok(Some(format!("--{key}={text}"))),
        Value::List(list) if list.is_empty() => Ok(None),
        Value::List(list) if arg.get_value_delimiter().is_some() => {
            Ok(Some(format!("--{key}={}", list.join(","))))
        }
        Value::List(_) => Err("it takes one value, not a list".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "backupdir = '/b'\nmethod = \"external\"\nexclude = ['vdb', 'vdc']\ncompress = true\n\n\
        [vm.mail01]\nmethod = 'pull'\noffline = true\nblocksize = 65536\n\n[vm.\"web server\"]\nexclude = []\n";

    /// What is put before these words, for a VM.
    fn put(line: &str, vm: Option<&str>, environment: &[(&str, &str)]) -> Result<String, String> {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let settings = Settings::parse(FILE, "f")?;
        let said = |name: &str| {
            environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        let put = settings.words(&parsed(&words).unwrap(), vm, &said)?;
        with(&words, &put)?;
        let mut words: Vec<_> = put.into_iter().map(|put| put.word.into_string().unwrap()).collect();
        words.sort();
        Ok(words.join(" "))
    }

    #[test]
    fn options_come_before_the_environment_and_that_before_the_table_and_that_before_the_top() {
        for (line, vm, environment, expected) in [
            ("v chunkmount a", None, vec![], "--backupdir=/b --exclude=vdb,vdc --method=external"),
            (
                "v chunkmount mail01",
                Some("mail01"),
                vec![],
                "--backupdir=/b --blocksize=65536 --exclude=vdb,vdc --method=pull --offline",
            ),
            ("v chunkmount w", Some("web server"), vec![], "--backupdir=/b --method=external"),
            (
                "v chunkmount a",
                None,
                vec![("VIRT_BACKUP_METHOD", "reflink"), ("VIRT_BACKUP_STATE", "yes")],
                "--backupdir=/b --exclude=vdb,vdc --method=reflink --state",
            ),
            (
                "v chunkmount a --method=offline --exclude=vda --backupdir=/x",
                Some("mail01"),
                vec![("VIRT_BACKUP_METHOD", "reflink")],
                "--blocksize=65536 --offline",
            ),
            (
                "v chunkmount a --shutdown",
                None,
                vec![("VIRT_BACKUP_STATE", "1")],
                "--backupdir=/b --exclude=vdb,vdc --method=external",
            ),
            ("v dump a --method=pull", None, vec![], "--backupdir=/b --compress --exclude=vdb,vdc"),
            (
                "v archive a --method=pull",
                None,
                vec![("VIRT_BACKUP_COMPRESS", "zstd")],
                "--backupdir=/b --compress --exclude=vdb,vdc",
            ),
            ("v restore /x --backupdir=/c", None, vec![("VIRT_BACKUP_FORCE", "1")], ""),
            ("v status", None, vec![("VIRT_BACKUP_QUIET", "off")], "--backupdir=/b"),
        ] {
            assert_eq!(put(line, vm, &environment).as_deref(), Ok(expected), "{line} {environment:?}");
        }
    }

    #[test]
    fn what_was_given_wins_over_its_opposite_in_the_file() {
        let words: Vec<OsString> =
            "v chunkmount mail01 --no-offline".split(' ').map(OsString::from).collect();
        let settings = Settings::parse(FILE, "f").unwrap();
        let put = settings.words(&parsed(&words).unwrap(), Some("mail01"), &|_| None).unwrap();
        let Command::Chunkmount(args) = with(&words, &put).unwrap().command else { panic!("{words:?}") };
        let options = args.job.options(Vec::new());
        assert_eq!(options.pause, virt_backup::core::options::Pause::Never);
        assert_eq!(options.chunk_size.bytes(), 65536);
    }

    #[test]
    fn a_mistake_is_told_with_its_file_its_line_and_its_key() {
        for (text, words) in [
            ("\n\nmetod = 'pull'\n", "f, line 3: metod is not the name of an option that may be here"),
            ("vm = 'a'", "f, line 1: vm is not the name"),
            ("dry-run = true", "f, line 1: dry-run is not the name"),
            ("force = true", "f, line 1: force is not the name"),
            ("[vm.a]\nmax-backups = 1", "f, line 2: max-backups is for all VMs"),
            ("[vm.a]\nstatedir = '/x'", "f, line 2: statedir is for all VMs"),
            ("[vm]\na = 1", "f, line 2: vm.a is no table"),
            ("method = 1.5", "f, line 1: method is true or false, a number"),
            ("method = 'a'\nmethod = 'b'", "f: "),
            ("[", "f: "),
        ] {
            let told = Settings::parse(text, "f").unwrap_err();
            assert!(told.starts_with(words), "{told}");
        }
        let given: Vec<OsString> = ["v", "chunkmount", "a"].map(OsString::from).into();
        for (text, expected) in [
            ("method = 'quick'", "f, line 1: method: invalid value 'quick' for '--method"),
            ("\noffline = 'maybe'", "f, line 2: offline: \"maybe\" is neither true nor false"),
            ("method = true", "f, line 1: method: it needs a value"),
            ("method = ['pull']", "f, line 1: method: it takes one value"),
            (
                "state = true\nshutdown = true",
                "the argument '--state' cannot be used with '--shutdown' (f, line",
            ),
        ] {
            let settings = Settings::parse(text, "f").unwrap();
            let told = settings.words(&parsed(&given).unwrap(), None, &|_| None);
            let told = told.and_then(|put| with(&given, &put)).map(drop).unwrap_err();
            assert!(told.starts_with(expected), "{told}");
        }
    }

    #[test]
    fn the_example_is_understood_as_it_stands() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples/virt-backup.toml");
        let settings = Settings::find(Some(&path), &|_| None).unwrap();
        assert!(settings.top.contains_key("max-backups") && settings.vms.contains_key("mail01"));
        for vm in [None, Some("mail01"), Some("web server")] {
            for job in ["chunkmount", "dump", "convert", "archive", "cleanup"] {
                let words: Vec<OsString> = ["v", job, "mail01"].map(OsString::from).into();
                let put = settings.words(&parsed(&words).unwrap(), vm, &|_| None).unwrap();
                with(&words, &put).unwrap();
            }
        }
    }

    #[test]
    fn words_are_put_behind_the_name_of_the_command() {
        for (line, at) in [
            ("v chunkmount a", 2),
            ("v --backupdir dump chunkmount a", 4),
            ("v --quiet run a -- dump", 3),
            ("v status", 2),
        ] {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            assert_eq!(place(&words), at, "{line}");
        }
    }
}
