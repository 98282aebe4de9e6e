//! The ways of compressing a dumped disk, by the names that users give and the extensions that files get.
//! Compresses nothing, and does not know whether a program is installed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    None,
    Gzip,
    Zstd,
    Bzip2,
    Pbzip2,
    Lzop,
    Xz,
    Lzip,
    Plzip,
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no compressor that this program knows: there are {list}", list = Compression::names())]
pub struct UnknownCompression(String);

/// A program that compresses or expands from its input to its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    pub program: &'static str,
    pub arguments: &'static [&'static str],
}

impl Compression {
    pub const ALL: [Compression; 9] = [
        Compression::None,
        Compression::Gzip,
        Compression::Zstd,
        Compression::Bzip2,
        Compression::Pbzip2,
        Compression::Lzop,
        Compression::Xz,
        Compression::Lzip,
        Compression::Plzip,
    ];

    pub fn parse(name: &str) -> Result<Compression, UnknownCompression> {
        name.parse()
    }

    pub fn name(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
            Compression::Bzip2 => "bzip2",
            Compression::Pbzip2 => "pbzip2",
            Compression::Lzop => "lzop",
            Compression::Xz => "xz",
            Compression::Lzip => "lzip",
            Compression::Plzip => "plzip",
        }
    }

    /// What is appended to the name of a file, with its dot; nothing for a file that is not compressed.
    pub fn extension(self) -> &'static str {
        match self {
            Compression::None => "",
            Compression::Gzip => ".gz",
            Compression::Zstd => ".zst",
            Compression::Bzip2 | Compression::Pbzip2 => ".bz2",
            Compression::Lzop => ".lzo",
            Compression::Xz => ".xz",
            Compression::Lzip | Compression::Plzip => ".lz",
        }
    }

    /// What a file whose name ends so can be expanded by. Of two that write the same, the one that every system has.
    pub fn of_extension(extension: &str) -> Option<Compression> {
        Compression::ALL.into_iter().find(|compression| compression.extension() == extension)
    }

    /// The program that compresses. None: this one does it itself.
    pub fn compressor(self) -> Option<Filter> {
        let filter = |program, arguments| Some(Filter { program, arguments });
        match self {
            Compression::None | Compression::Gzip | Compression::Zstd => None,
            // All cores, where the program knows how.
            Compression::Xz => filter("xz", &["-c", "-T0"]),
            Compression::Bzip2 => filter("bzip2", &["-c"]),
            Compression::Pbzip2 => filter("pbzip2", &["-c"]),
            Compression::Lzop => filter("lzop", &["-c"]),
            Compression::Lzip => filter("lzip", &["-c"]),
            Compression::Plzip => filter("plzip", &["-c"]),
        }
    }

    /// The programs that expand what this one makes, the best first. None: this one does it itself.
    pub fn expanders(self) -> &'static [Filter] {
        const fn filter(program: &'static str) -> Filter {
            Filter { program, arguments: &["-dc"] }
        }
        const BZIP2: [Filter; 2] = [filter("bzip2"), filter("pbzip2")];
        const LZIP: [Filter; 2] = [filter("plzip"), filter("lzip")];
        const LZOP: [Filter; 1] = [filter("lzop")];
        const XZ: [Filter; 1] = [Filter { program: "xz", arguments: &["-dc", "-T0"] }];
        match self {
            Compression::None | Compression::Gzip | Compression::Zstd => &[],
            Compression::Bzip2 | Compression::Pbzip2 => &BZIP2,
            Compression::Lzop => &LZOP,
            Compression::Xz => &XZ,
            Compression::Lzip | Compression::Plzip => &LZIP,
        }
    }

    fn names() -> String {
        Compression::ALL.map(Compression::name).join(", ")
    }
}

impl FromStr for Compression {
    type Err = UnknownCompression;

    fn from_str(name: &str) -> Result<Compression, UnknownCompression> {
        let known = Compression::ALL.into_iter().find(|compression| compression.name() == name);
        known.ok_or_else(|| UnknownCompression(name.to_owned()))
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_extensions_are_the_users_word() {
        for (name, extension) in [
            ("none", ""),
            ("gzip", ".gz"),
            ("bzip2", ".bz2"),
            ("pbzip2", ".bz2"),
            ("lzop", ".lzo"),
            ("xz", ".xz"),
            ("lzip", ".lz"),
            ("plzip", ".lz"),
            ("zstd", ".zst"),
        ] {
            let compression = Compression::parse(name).unwrap();
            assert_eq!((compression.to_string().as_str(), compression.extension()), (name, extension));
            let read_by = Compression::of_extension(extension).unwrap();
            assert_eq!(read_by.extension(), extension);
            let in_process = ["none", "gzip", "zstd"].contains(&name);
            assert_eq!(
                (compression.compressor().is_none(), read_by.expanders().is_empty()),
                (in_process, in_process)
            );
        }
        assert_eq!(Compression::of_extension(".rar"), None);
        for unknown in ["", "gz", "Gzip", "gzip "] {
            let error = Compression::parse(unknown).unwrap_err().to_string();
            assert!(error.contains("there are none, gzip, zstd,"), "{error}");
        }
    }
}
