//! The way back from a compressed disk: its bytes, one after the other.
//! Sequential: where a stream of any of these formats goes on is known only to whoever has read what was before.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use super::CarryError;
use crate::core::compression::Compression;
use crate::host::exec;

const BUFFER: usize = 1 << 20;

/// What a file holds, expanded. Damage that the format notices is an error of the reader's.
pub fn expand(file: File, compression: Compression) -> Result<Box<dyn Read + Send>, CarryError> {
    let failed = |error: io::Error| CarryError::Expand { compression, why: error.to_string() };
    Ok(match compression {
        Compression::None => Box::new(file),
        Compression::Gzip => Box::new(MultiGzDecoder::new(BufReader::with_capacity(BUFFER, file))),
        Compression::Zstd => Box::new(zstd::Decoder::new(file).map_err(failed)?),
        other => {
            let known = other.expanders();
            let installed = known.iter().find(|filter| exec::is_installed(Path::new(filter.program)));
            let filter =
                installed.ok_or_else(|| CarryError::NoProgram { program: known[0].program.to_owned() })?;
            let arguments = exec::arguments(filter.arguments.iter().map(AsRef::as_ref));
            let drawn = exec::draw(Path::new(filter.program), &arguments, file);
            Box::new(drawn.map_err(|error| CarryError::Expand { compression, why: format!("{error:#}") })?)
        }
    })
}
