//! What stands beside the files of a backup to verify them by: a list of digests, and the manifest of an archive.
//! Text to types and back; compares nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::names::{Uuid, VmName};
use super::units::Bytes;

/// The name of the manifest in the directory of an archive. It is written last: where it is, all else is.
pub const MANIFEST: &str = "manifest.json";

/// What an archive holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub version: u32,
    /// The domain that was archived.
    pub vm: VmName,
    pub uuid: Uuid,
    /// The name that the domain has in the archive's XML.
    pub name: VmName,
    /// Every file but the manifest.
    pub files: Vec<ManifestFile>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Below the archive's directory: `vda.qcow2`, `snapshots/before.xml`.
    pub name: String,
    pub bytes: Bytes,
    pub blake3: String,
}

#[derive(Debug, Error)]
pub enum ManifestError {
    #[error("the manifest is damaged: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the manifest is of version {0}, which this program does not know")]
    Version(u32),
    #[error("line {line} is not a digest and a name, as `b3sum` prints them")]
    Line { line: usize },
}

impl Manifest {
    pub const VERSION: u32 = 1;

    pub fn parse(text: &[u8]) -> Result<Manifest, ManifestError> {
        let manifest: Manifest = serde_json::from_slice(text)?;
        match manifest.version {
            Self::VERSION => Ok(manifest),
            other => Err(ManifestError::Version(other)),
        }
    }

    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("plain data always serialises");
        text.push('\n');
        text
    }
}

/// Reads what `b3sum` prints: `<64 hex digits>  <name>`, a name with a backslash or a line feed escaped.
pub fn digests(text: &str) -> Result<BTreeMap<String, blake3::Hash>, ManifestError> {
    let lines = text.lines().enumerate();
    lines.map(|(index, line)| entry(line).ok_or(ManifestError::Line { line: index + 1 })).collect()
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
        ] {
            assert!(digests(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_manifest_survives_its_text_and_a_newer_one_is_refused() {
        let manifest = Manifest {
            version: Manifest::VERSION,
            vm: VmName::new("mail01").unwrap(),
            uuid: Uuid::new("a0b1c2d3-0000-4000-8000-00000000000f").unwrap(),
            name: VmName::new("mail01-restore").unwrap(),
            files: vec![ManifestFile {
                name: "vda.qcow2".to_owned(),
                bytes: Bytes(5),
                blake3: blake3::hash(b"").to_string(),
            }],
        };
        let text = manifest.to_json();
        assert_eq!(Manifest::parse(text.as_bytes()).unwrap(), manifest);
        let newer = text.replace("\"version\": 1", "\"version\": 2");
        assert!(matches!(Manifest::parse(newer.as_bytes()), Err(ManifestError::Version(2))));
        let hostile = text.replace("mail01-restore", "../x");
        assert!(matches!(Manifest::parse(hostile.as_bytes()), Err(ManifestError::Json(_))));
    }
}
