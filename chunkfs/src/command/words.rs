//! The forms of older versions, turned into today's: `chunkfs [OPTIONS] CHUNKSIZE IMAGE MOUNTPOINT`, and
//! `unchunkfs [OPTIONS] CHUNKDIR MOUNTPOINT`.

use crate::core::geometry::ChunkSize;
use std::ffi::OsString;
use std::path::Path;

/// The words of a command line, the program's name first, as `cli` understands them.
pub fn words(mut words: Vec<OsString>) -> Vec<OsString> {
    let program = words.first().map(Path::new).and_then(Path::file_name);
    if program.is_some_and(|name| name == "unchunkfs") {
        words.insert(1, "join".into());
        return words;
    }
    let Some(at) = first_argument(&words) else { return words };
    let is_size = words[at].to_str().is_some_and(|word| {
        word.starts_with(|c: char| c.is_ascii_digit())
            && (word.parse::<ChunkSize>().is_ok() || word.parse::<u64>().is_ok())
    });
    if is_size {
        let size = words.remove(at);
        words.splice(1..1, ["mount".into(), "--chunk-size".into(), size]);
    }
    words
}

/// The place of the first word that is neither an option nor the value of one.
fn first_argument(words: &[OsString]) -> Option<usize> {
    let mut at = 1;
    while at < words.len() {
        match words[at].to_str() {
            Some("-o") => at += 2,
            Some(word) if word.starts_with('-') => at += 1,
            _ => return Some(at),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_forms_mean_what_they_always_meant() {
        for (given, expected) in [
            ("chunkfs 262144 a.img /mnt", "chunkfs mount --chunk-size 262144 a.img /mnt"),
            (
                "/usr/bin/chunkfs -o allow_other 4096 a /m",
                "/usr/bin/chunkfs mount --chunk-size 4096 -o allow_other a /m",
            ),
            ("chunkfs -f 12 a /m", "chunkfs mount --chunk-size 12 -f a /m"),
            ("/usr/bin/unchunkfs dir /mnt", "/usr/bin/unchunkfs join dir /mnt"),
            ("chunkfs mount 262144 /mnt", "chunkfs mount 262144 /mnt"),
            ("chunkfs --help", "chunkfs --help"),
            ("chunkfs", "chunkfs"),
        ] {
            let split = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
            assert_eq!(words(split(given)), split(expected), "{given}");
        }
    }
}
