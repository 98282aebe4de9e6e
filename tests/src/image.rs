//! Disk images whose every chunk is different, and where a chunk is in the tree.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The path of a chunk below the root of its tree.
pub fn chunk(number: u64) -> String {
    let digits = format!("{number:016x}");
    let pairs: Vec<&str> = (0..8).map(|at| &digits[2 * at..2 * at + 2]).collect();
    pairs.join("/")
}

/// Bytes that look random, and are the same for the same seed. No stretch of 8 of them is zero.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A file that is written to between views.
#[derive(Debug)]
pub struct Image {
    pub path: PathBuf,
    file: File,
}

impl Image {
    /// A hole of that length.
    pub fn sparse(path: &Path, length: u64) -> Image {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap();
        file.set_len(length).unwrap();
        Image { path: path.to_owned(), file }
    }

    /// Noise from end to end.
    pub fn full(path: &Path, length: u64) -> Image {
        let image = Image::sparse(path, 0);
        let piece = 1 << 20;
        for at in (0..length).step_by(piece) {
            image.write(at, &noise(at + 1, piece.min((length - at) as usize)));
        }
        image
    }

    pub fn write(&self, offset: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, offset).unwrap();
    }

    pub fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    pub fn resize(&self, length: u64) {
        self.file.set_len(length).unwrap();
    }

    /// Makes its times older than any doubt about them.
    pub fn settle(&self) {
        std::thread::sleep(std::time::Duration::from_secs(4));
    }
}
