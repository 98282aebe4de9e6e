//! What stands beside the files of a backup to verify them by: a list of digests, and the manifest of an archive.
//! Text to types; compares nothing.

use std::collections::BTreeMap;

use serde::Deserialize;
use thiserror::Error;

use super::domain::DomainId;
use super::names::{Uuid, VmName};

/// What an archive is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The domain that was archived.
    pub origin: DomainId,
    /// The name that the domain has in the archive, and in the archive's names.
    pub name: VmName,
    /// Every file of the archive, by its path in there.
    pub files: Vec<String>,
}

#[derive(Debug, Error)]
pub enum ManifestError {
    #[error("the manifest is damaged: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the manifest is of version {0}, which this program does not know")]
    Version(u32),
    #[error("line {line} is not a digest and a name, as `b3sum` prints them")]
    Line { line: usize },
    #[error("{name:?} is in it twice")]
    Twice { name: String },
}

impl Manifest {
    /// Reads what `archive` writes. What it says besides is for people.
    pub fn parse(text: &[u8]) -> Result<Manifest, ManifestError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        #[derive(Deserialize)]
        struct First {
            vm: VmName,
            uuid: Uuid,
            domain: VmName,
            files: Vec<String>,
        }
        match serde_json::from_slice::<Version>(text)?.version {
            1 => {
                let First { vm, uuid, domain, files } = serde_json::from_slice(text)?;
                Ok(Manifest { origin: DomainId { name: vm, uuid }, name: domain, files })
            }
            other => Err(ManifestError::Version(other)),
        }
    }
}

/// Reads what `b3sum` prints: `<64 hex digits>  <name>`, a name with a backslash or a line feed escaped.
pub fn digests(text: &str) -> Result<BTreeMap<String, blake3::Hash>, ManifestError> {
    let mut digests = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let (name, digest) = entry(line).ok_or(ManifestError::Line { line: index + 1 })?;
        if digests.insert(name.clone(), digest).is_some() {
            return Err(ManifestError::Twice { name });
        }
    }
    Ok(digests)
}

fn entry(line: &str) -> Option<(String, blake3::Hash)> {
    let (line, escaped) = match line.strip_prefix('\\') {
        Some(line) => (line, true),
        None => (line, false),
    };
    let (hex, name) = line.split_once("  ")?;
    let name = if escaped { unescaped(name)? } else { name.to_owned() };
    let lower_case = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (lower_case && !name.is_empty()).then_some(())?;
    Some((name, blake3::Hash::from_hex(hex).ok()?))
}

fn unescaped(name: &str) -> Option<String> {
    let mut out = String::new();
    let mut rest = name.chars();
    while let Some(c) = rest.next() {
        out.push(match c {
            '\\' => match rest.next()? {
                '\\' => '\\',
                'n' => '\n',
                _ => return None,
            },
            c => c,
        });
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_what_b3sum_prints() {
        let hash = blake3::hash(b"x");
        let hex = hash.to_hex();
        let text = format!("{hex}  mail01_vda.img\n\\{hex}  a\\\\b\\nc\n{hex}    two blanks\n");
        let list = digests(&text).unwrap();
        let names: Vec<_> = list.keys().map(String::as_str).collect();
        assert_eq!(names, ["  two blanks", "a\\b\nc", "mail01_vda.img"]);
        assert!(list.values().all(|found| *found == hash));
        assert!(digests("").unwrap().is_empty());
        for bad in [
            "x  y".to_owned(),
            format!("{hex} y"),
            format!("{hex}  "),
            format!("{}  y", hex.to_uppercase()),
            format!("\\{hex}  a\\x"),
            format!("{hex}  a\n\n"),
            format!("{hex}  a\n{}  a\n", "0".repeat(64)),
        ] {
            assert!(digests(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_manifest_says_what_it_is_of_and_a_newer_one_is_refused() {
        let text = r#"{"version": 1, "vm": "mail01", "uuid": "a0b1c2d3-0000-4000-8000-00000000000f", "more": [],
            "domain": "mail01-restore", "files": ["vda.qcow2", "manifest.json"]}"#;
        let manifest = Manifest::parse(text.as_bytes()).unwrap();
        assert_eq!((manifest.origin.name.as_str(), manifest.name.as_str()), ("mail01", "mail01-restore"));
        assert_eq!(manifest.files, ["vda.qcow2", "manifest.json"]);
        let newer = text.replace("\"version\": 1", "\"version\": 2");
        assert!(matches!(Manifest::parse(newer.as_bytes()), Err(ManifestError::Version(2))));
        for hostile in [text.replace("mail01-restore", "../x"), text.replace("mail01", ".."), String::new()] {
            assert!(matches!(Manifest::parse(hostile.as_bytes()), Err(ManifestError::Json(_))), "{hostile}");
        }
    }
}
