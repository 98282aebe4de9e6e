//! Files in a directory that a program writes to which is not ours to trust: an emulator of a TPM, for one.
//! Follows no link, opens nothing but regular files, and reads no more than it was told to.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use chunkfs::source::beneath::{Beneath, Fault, Kind};

use crate::core::names::is_file_name;
use crate::core::tpm::Found;
use crate::core::units::Bytes;

const TRIES: u32 = 5;

/// None: there is no such directory.
pub(super) fn look_into(dir: &Path) -> Result<Option<Vec<(String, Found)>>> {
    let Some((above, name)) = above(dir)? else { return Ok(None) };
    let listed = match above.directory(name) {
        Ok(listed) => listed,
        Err(Fault::Missing) => return Ok(None),
        Err(fault) => return Err(fault.into()),
    };
    let mut found = Vec::new();
    for entry in rustix::fs::Dir::new(listed)? {
        // A name that is not text counts as something that is there, and as nothing that can be copied.
        let file = entry?.file_name().to_string_lossy().into_owned();
        if file == "." || file == ".." {
            continue;
        }
        match above.kind(Path::new(name).join(&file)) {
            Ok((Kind::File, bytes)) => found.push((file, Found::File(Bytes(bytes)))),
            Ok((other, _)) => found.push((file, Found::Other(other.to_string()))),
            // Gone since it was listed.
            Err(Fault::Missing) => {}
            Err(fault) => return Err(fault).with_context(|| format!("look at {file}")),
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(Some(found))
}

pub(super) fn read(dir: &Path, name: &str, at_most: Bytes) -> Result<Vec<u8>> {
    ensure!(is_file_name(name), "{name:?} is not the name of a file in a directory");
    let (above, dir) = above(dir)?.context("its directory is gone")?;
    let path = Path::new(dir).join(name);
    // Whoever writes it puts a new file in its place: one that was replaced while it was opened is there again.
    let opened = (1..TRIES).find_map(|_| above.file(&path).ok());
    let (file, _) = opened.map_or_else(|| above.file(&path), Ok)?;
    let mut content = Vec::new();
    file.take(at_most.0.saturating_add(1)).read_to_end(&mut content)?;
    if content.len() as u64 > at_most.0 {
        bail!("it has more than the {at_most} that it may have");
    }
    Ok(content)
}

/// The directory above, from which on no link is followed, and the name in there.
fn above(dir: &Path) -> Result<Option<(Beneath, &std::ffi::OsStr)>> {
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else {
        bail!("{} is in no directory", dir.display())
    };
    match Beneath::open(parent) {
        Ok(above) => Ok(Some((above, name))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn no_link_is_followed_and_nothing_large_is_read() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("tpm2");
        assert_eq!(look_into(&dir).unwrap(), None);
        assert_eq!(look_into(&dir.join("below")).unwrap(), None);
        fs::create_dir_all(dir.join("directory")).unwrap();
        fs::write(dir.join("state"), "state").unwrap();
        fs::write(home.path().join("secret"), "secret").unwrap();
        symlink("../secret", dir.join("link")).unwrap();
        symlink("tpm2", home.path().join("other")).unwrap();

        let found = look_into(&dir).unwrap().unwrap();
        let told: Vec<_> = found.iter().map(|(name, found)| format!("{name}: {found:?}")).collect();
        assert_eq!(
            told,
            [
                "directory: Other(\"a directory\")",
                "link: Other(\"a symbolic link\")",
                "state: File(Bytes(5))"
            ]
        );
        assert_eq!(read(&dir, "state", Bytes(5)).unwrap(), b"state");
        assert!(read(&dir, "state", Bytes(4)).unwrap_err().to_string().contains("more than"));
        for detour in ["link", "directory", "../secret", "no"] {
            assert!(read(&dir, detour, Bytes(9)).is_err(), "{detour}");
        }
        let other = home.path().join("other");
        assert!(
            look_into(&other).is_err() && read(&other, "state", Bytes(5)).is_err(),
            "a link to the directory"
        );
    }
}
