//! What the header of a qcow2 image says: its version, and what lies below it. docs: QEMU's docs/interop/qcow2.txt.
//! Read only for images that are declared to be qcow2: a guest can write any header into a raw disk.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) version: u32,
    /// What the guest sees, in bytes.
    pub(crate) capacity: u64,
    pub(crate) backing: Option<Backing>,
    pub(crate) encrypted: bool,
    /// The guest's data is in another file.
    pub(crate) external_data: bool,
    /// How many snapshots are within the image.
    pub(crate) snapshots: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Backing {
    /// As it stands there; relative to the directory of the image.
    pub(crate) file: String,
    pub(crate) format: Option<String>,
}

const MAGIC: u32 = 0x5146_49fb;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTERNAL_DATA: u64 = 1 << 2;
/// The header and its extensions lie in the first cluster, which is at least this long.
const HEADER_BYTES: usize = 64 << 10;
const LONGEST_BACKING: u32 = 1023;

pub(crate) fn read(path: &Path) -> io::Result<Header> {
    read_from(&File::open(path)?)
}

pub(crate) fn read_from(file: &File) -> io::Result<Header> {
    let mut bytes = vec![0; HEADER_BYTES];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    bytes.truncate(filled);
    parse(&bytes).ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "it is declared qcow2, and is not"))
}

fn parse(bytes: &[u8]) -> Option<Header> {
    let u32_at = |at: usize| Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
    let u64_at = |at: usize| Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
    let text = |at: usize, length: usize| {
        Some(String::from_utf8_lossy(bytes.get(at..at.checked_add(length)?)?).into_owned())
    };
    let version = u32_at(4)?;
    if u32_at(0)? != MAGIC || !(2..=3).contains(&version) {
        return None;
    }
    let (features, mut at) = match version {
        2 => (0, 72),
        _ => (u64_at(72)?, u32_at(100)? as usize),
    };
    let mut format = None;
    // Extensions: type, length, data padded to 8 bytes; type 0 ends them.
    while let (Some(kind), Some(length)) = (u32_at(at), u32_at(at.checked_add(4)?)) {
        if kind == 0 {
            break;
        }
        if kind == BACKING_FORMAT {
            format = text(at + 8, length as usize);
        }
        at = at.checked_add(8)?.checked_add((length as usize).next_multiple_of(8))?;
    }
    let (offset, length) = (usize::try_from(u64_at(8)?).ok()?, u32_at(16)?);
    let backing = match (offset, length) {
        (0, _) => None,
        (_, length) if length > LONGEST_BACKING => return None,
        (offset, length) => Some(Backing { file: text(offset, length as usize)?, format }),
    };
    Some(Header {
        version,
        capacity: u64_at(24)?,
        backing,
        encrypted: u32_at(32)? != 0,
        external_data: features & EXTERNAL_DATA != 0,
        snapshots: u32_at(60)?,
    })
}

impl Backing {
    /// None: not a plain path on this host.
    pub(crate) fn path_from(&self, image: &Path) -> Option<PathBuf> {
        let plain = self.file.strip_prefix("file:").unwrap_or(&self.file);
        let protocol = plain.split('/').next().is_some_and(|first| first.contains(':'));
        (!protocol).then(|| image.parent().unwrap_or(Path::new("/")).join(plain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(version: u32, backing: &str, format: &str) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &MAGIC.to_be_bytes());
        put(4, &version.to_be_bytes());
        put(8, &2048u64.to_be_bytes());
        put(16, &(backing.len() as u32).to_be_bytes());
        put(100, &104u32.to_be_bytes());
        put(104, &BACKING_FORMAT.to_be_bytes());
        put(108, &(format.len() as u32).to_be_bytes());
        put(112, format.as_bytes());
        put(2048, backing.as_bytes());
        bytes
    }

    #[test]
    fn what_lies_below_is_told_with_its_format() {
        let parsed = parse(&header(3, "base.img", "raw")).unwrap();
        let backing = parsed.backing.clone().unwrap();
        assert_eq!((backing.file.as_str(), backing.format.as_deref()), ("base.img", Some("raw")));
        assert_eq!(backing.path_from(Path::new("/i/top.qcow2")), Some("/i/base.img".into()));
        let far = Backing { file: "nbd:localhost:1".to_owned(), format: None };
        assert_eq!(far.path_from(Path::new("/i/top.qcow2")), None);
    }

    #[test]
    fn what_is_no_header_is_refused_whatever_it_is() {
        let good = header(3, "base.img", "raw");
        for cut in 0..104 {
            assert_eq!(parse(&good[..cut]), None, "{cut}");
        }
        let mut huge = good.clone();
        huge[108..112].copy_from_slice(&u32::MAX.to_be_bytes());
        let mut newer = good;
        newer[7] = 9;
        assert_eq!(parse(&newer), None);
        // Only that it returns is claimed.
        drop(parse(&huge));
    }
}
