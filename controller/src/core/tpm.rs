//! The state of a guest's emulated TPM: where libvirt keeps it, which files it is, and how large it may be.
//! Pure: what is found there is told by the host.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::domain::{Tpm, TpmSource};
use super::names::{Uuid, tpm_dir};
use super::units::Bytes;

/// Of all files together: a TPM has a few hundred KiB.
pub const MOST_BYTES: Bytes = Bytes(16 << 20);
const MOST_FILES: usize = 64;

/// What there is of a guest's TPM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TpmFacts {
    /// The guest has none.
    NoTpm,
    State(TpmState),
    /// The guest has one, and there is nothing that could be saved: why.
    NotHere {
        why: String,
    },
    /// What is there must not be taken for its state: why.
    Refused {
        why: String,
    },
}

/// Files of one directory, sorted by their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TpmState {
    pub dir: PathBuf,
    pub files: Vec<(String, Bytes)>,
}

/// What `<vm>.json` says of the guest's TPM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TpmTold {
    #[default]
    None,
    Saved {
        files: Vec<String>,
    },
    NotSaved {
        why: String,
    },
}

/// Where the state is, and which of the files there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TpmPlace {
    pub dir: PathBuf,
    /// None: all that are there.
    pub only: Option<String>,
}

/// Something in a directory that a program writes to which is not ours to trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    File(Bytes),
    /// A link, a directory, a socket.
    Other(String),
}

impl Tpm {
    /// Only of an emulated one, and where the XML names no place that could be understood otherwise. Else: why not.
    pub fn place(&self, uuid: &Uuid) -> Result<TpmPlace, String> {
        match (self.backend.as_str(), &self.state) {
            ("emulator", None) => {
                Ok(TpmPlace { dir: tpm_dir(uuid, self.version.as_deref().unwrap_or("2.0")), only: None })
            }
            ("emulator", Some(TpmSource::Directory(dir))) => Ok(TpmPlace { dir: dir.clone(), only: None }),
            ("emulator", Some(TpmSource::File(file))) => match (file.parent(), file.file_name()) {
                (Some(dir), Some(name)) => {
                    let only = Some(name.to_string_lossy().into_owned());
                    Ok(TpmPlace { dir: dir.to_owned(), only })
                }
                _ => Err(format!("{} is no file", file.display())),
            },
            ("passthrough", _) => {
                Err("it is a device of this host, which keeps its state within itself".to_owned())
            }
            ("external", _) => Err("another program than libvirt runs it and keeps its state".to_owned()),
            (other, _) => Err(format!("a TPM of the kind {other:?} is not known")),
        }
    }
}

/// From what the directory has in it; `None`: there is no such directory.
pub fn judge(place: &TpmPlace, found: Option<Vec<(String, Found)>>) -> TpmFacts {
    let dir = &place.dir;
    let mut files = Vec::new();
    let wanted = |name: &str| place.only.as_ref().map_or_else(|| is_state(name), |only| only == name);
    for (name, found) in found.into_iter().flatten().filter(|(name, _)| wanted(name)) {
        match found {
            Found::File(bytes) => files.push((name, bytes)),
            Found::Other(what) => {
                let why = format!("{} is {what}, not a regular file", dir.join(name).display());
                return TpmFacts::Refused { why };
            }
        }
    }
    if files.is_empty() {
        let place = place.only.as_ref().map_or_else(|| dir.clone(), |only| dir.join(only));
        return TpmFacts::NotHere { why: format!("there is none in {}", place.display()) };
    }
    let bytes = Bytes(files.iter().fold(0, |sum, (_, bytes)| bytes.0.saturating_add(sum)));
    if bytes > MOST_BYTES || files.len() > MOST_FILES {
        let (count, dir) = (files.len(), dir.display());
        let why = format!(
            "{dir} has {} bytes in its files, of which there are {count}, and a TPM at most {} in {MOST_FILES}",
            bytes.0, MOST_BYTES.0
        );
        return TpmFacts::Refused { why };
    }
    files.sort();
    TpmFacts::State(TpmState { dir: dir.clone(), files })
}

/// Neither the lock of `swtpm` nor what it has not finished writing.
pub fn is_state(name: &str) -> bool {
    name != ".lock" && !name.starts_with("TMP")
}

impl TpmState {
    /// How large a file may be when it is copied: what the others leave.
    pub fn most(&self, name: &str) -> Bytes {
        let others = self.files.iter().filter(|(other, _)| other != name).map(|(_, bytes)| bytes.0);
        Bytes(MOST_BYTES.0.saturating_sub(others.sum()))
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|(name, _)| name.as_str())
    }
}

impl TpmFacts {
    pub fn state(&self) -> Option<&TpmState> {
        match self {
            TpmFacts::State(state) => Some(state),
            TpmFacts::NoTpm | TpmFacts::NotHere { .. } | TpmFacts::Refused { .. } => None,
        }
    }

    pub fn told(&self) -> TpmTold {
        match self {
            TpmFacts::NoTpm => TpmTold::None,
            TpmFacts::State(state) => TpmTold::Saved { files: state.names().map(str::to_owned).collect() },
            TpmFacts::NotHere { why } | TpmFacts::Refused { why } => TpmTold::NotSaved { why: why.clone() },
        }
    }

    pub fn note(&self) -> Option<String> {
        match self {
            TpmFacts::NotHere { why } => Some(format!("the state of the TPM is not saved: {why}")),
            _ => None,
        }
    }
}

/// Both directories that libvirt makes for a TPM, or the one that the XML names: what has to be there for its files.
pub fn dirs_of(dir: &Path) -> Vec<PathBuf> {
    match dir.parent() {
        Some(home) if home.parent() == Some(Path::new(super::names::TPM_ROOT)) => {
            vec![home.to_owned(), dir.to_owned()]
        }
        _ => vec![dir.to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tpm(backend: &str, state: Option<TpmSource>) -> Tpm {
        Tpm { backend: backend.to_owned(), version: Some("2.0".to_owned()), state }
    }

    fn uuid() -> Uuid {
        Uuid::new("c7a5fdbd-edaf-9455-926a-d65c16db1809").unwrap()
    }

    #[test]
    fn the_state_is_where_libvirt_keeps_it_or_where_the_definition_says() {
        let own = tpm("emulator", None).place(&uuid()).unwrap();
        assert_eq!(own.dir, Path::new("/var/lib/libvirt/swtpm/c7a5fdbd-edaf-9455-926a-d65c16db1809/tpm2"));
        let old = Tpm { version: Some("1.2".to_owned()), ..tpm("emulator", None) };
        assert!(old.place(&uuid()).unwrap().dir.ends_with("tpm1.2"));
        let named = tpm("emulator", Some(TpmSource::File("/t/a.state".into()))).place(&uuid()).unwrap();
        assert_eq!(named, TpmPlace { dir: "/t".into(), only: Some("a.state".to_owned()) });
        for (backend, words) in [("passthrough", "device of this host"), ("external", "another program")] {
            assert!(tpm(backend, None).place(&uuid()).unwrap_err().contains(words));
        }
        assert_eq!(dirs_of(&own.dir), [own.dir.parent().unwrap(), &own.dir]);
        assert_eq!(dirs_of(Path::new("/t/x")), [Path::new("/t/x")]);
    }

    #[test]
    fn only_small_regular_files_are_its_state() {
        let place = tpm("emulator", None).place(&uuid()).unwrap();
        let file = |name: &str, bytes| (name.to_owned(), Found::File(Bytes(bytes)));
        let usual = vec![file("tpm2-00.permall", 9), file(".lock", 0), file("TMP2-00.permall", 5)];
        let facts = judge(&place, Some(usual));
        assert_eq!(facts.state().unwrap().files, [("tpm2-00.permall".to_owned(), Bytes(9))]);
        assert_eq!(facts.state().unwrap().most("tpm2-00.permall"), MOST_BYTES);
        let two = judge(&place, Some(vec![file("b", 1), file("a", MOST_BYTES.0 - 1)]));
        assert_eq!(two.state().unwrap().most("b"), Bytes(1));
        let large = judge(&place, Some(vec![file("b", 1), file("a", MOST_BYTES.0)]));
        assert!(matches!(large, TpmFacts::Refused { why } if why.contains("tpm2 has")));
        let link = judge(&place, Some(vec![("a".to_owned(), Found::Other("a symbolic link".to_owned()))]));
        assert!(
            matches!(link, TpmFacts::Refused { why } if why.ends_with("tpm2/a is a symbolic link, not a regular file"))
        );
        for none in [None, Some(Vec::new()), Some(vec![file(".lock", 0)])] {
            assert!(matches!(judge(&place, none), TpmFacts::NotHere { .. }));
        }
        let only = TpmPlace { dir: "/t".into(), only: Some("a".to_owned()) };
        let among = judge(&only, Some(vec![file("a", 1), file("b", MOST_BYTES.0)]));
        assert_eq!(among.state().unwrap().files, [("a".to_owned(), Bytes(1))]);
    }
}
