//! Bytes to a member of gzip or a frame of zstd, each complete in itself.
//! Such pieces one behind the other are what `gzip -d`, `zcat` and `zstd -d` read as one file (RFC 1952, 2.2; RFC 8878, 3.1).

use std::io::{self, Write};

use flate2::write::GzEncoder;

use crate::core::compression::Compression;

/// What each program takes when it is not told otherwise.
const GZIP_LEVEL: u32 = 6;
const ZSTD_LEVEL: i32 = 3;

/// One for each thread.
pub(super) enum Encoder {
    Gzip,
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Encoder {
    pub(super) fn new(compression: Compression) -> io::Result<Encoder> {
        if compression != Compression::Zstd {
            return Ok(Encoder::Gzip);
        }
        let mut compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL)?;
        // As the program does it: damage is noticed wherever it is expanded.
        compressor.include_checksum(true)?;
        Ok(Encoder::Zstd(compressor))
    }

    pub(super) fn encode(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Encoder::Gzip => {
                let level = flate2::Compression::new(GZIP_LEVEL);
                let mut member = GzEncoder::new(Vec::with_capacity(bytes.len() / 2), level);
                member.write_all(bytes)?;
                member.finish()
            }
            Encoder::Zstd(compressor) => compressor.compress(bytes),
        }
    }
}
