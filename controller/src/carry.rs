//! Carries a disk into a file of a dump, or into a command of the user's: read, hashed, compressed, on all cores.
//! Takes no snapshot and knows no guest. A file has its name only when it is whole and on the disk.
//!
//! ```text
//! source ── blocks, several threads ──┬── hash each ── join the hashes (tree)
//!           holes are not read        └── raw: write past the page cache, holes stay holes
//!           (blocks)                      gzip, zstd: compress each (encode) ── append in order
//!                                         a program: into its input in order, its output is the file
//! ```

mod blocks;
mod command;
mod encode;
mod error;
mod expand;
mod jobs;
mod partial;
#[cfg(test)]
mod tests;
mod tree;

use std::num::NonZeroU64;

use chunkfs::copy::{Aligned, PIECE, sparse_runs};
use chunkfs::source::Source;
use chunkfs::watch::Watch;

pub use crate::core::compression::Compression;
pub use crate::core::dumpcmd::DumpCommand;
use crate::core::units::Bytes;
pub use error::CarryError;
pub use expand::expand;
pub use partial::Directory;

use blocks::{Block, Buffers, Reading};
use command::Feed;
use partial::Partial;

/// How a disk is carried.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// What errors call the disk: `vda`.
    pub disk: &'a str,
    pub compression: Compression,
    /// At most so many bytes a second are read; holes cost nothing.
    pub bytes_per_sec: Option<NonZeroU64>,
    pub existing: Existing,
}

/// What becomes of a file that has the name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It stays, and nothing is carried.
    Refuse,
    /// It is replaced at the moment when the new one is whole.
    Replace,
}

/// What was carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// The length of the disk.
    pub bytes: Bytes,
    /// BLAKE3 of the disk's content, holes included: what `b3sum` says of the raw image.
    pub digest: blake3::Hash,
}

/// The unit of piped disks, and of gzip's members.
const BLOCK: u64 = 1 << 20;
/// A frame of zstd ends where nothing is remembered: a longer one compresses better.
const ZSTD_BLOCK: u64 = 4 << 20;

/// Can disks be compressed so on this machine? To be asked before anything is touched.
pub fn check_available(compression: Compression) -> Result<(), CarryError> {
    match compression.compressor() {
        Some(filter) => command::find(filter.program),
        None => Ok(()),
    }
}

/// Can a disk be piped into this command? To be asked before anything is touched.
pub fn check_command(command: &DumpCommand) -> Result<(), CarryError> {
    command::find(command.program())
}

/// Copies all of `source` to the file `name` in a directory. `watch` hears of the bytes, and may stop it.
///
/// On an error there is no new file, or `CarryError::Left` names it; the name is what it was.
pub fn to_file(
    source: &dyn Source,
    directory: &Directory,
    name: &str,
    options: &Options<'_>,
    watch: &dyn Watch,
) -> Result<Carried, CarryError> {
    check_available(options.compression)?;
    let partial = Partial::create(directory, name, options.existing)?;
    match fill(source, &partial, options, watch) {
        Ok(carried) => {
            partial.finish()?;
            Ok(carried)
        }
        Err(cause) => Err(partial.discard(cause)),
    }
}

/// Pipes all of `source` into a command. What it prints goes to our stderr.
pub fn to_command(
    source: &dyn Source,
    words: &[String],
    environment: &[(&str, &str)],
    options: &Options<'_>,
    watch: &dyn Watch,
) -> Result<Carried, CarryError> {
    let feed = Feed::command(words, environment, options)?;
    pipe(source, feed, options, watch)
}

/// The digest alone: nothing is written.
pub fn digest(source: &dyn Source, options: &Options<'_>, watch: &dyn Watch) -> Result<Carried, CarryError> {
    let reading = Reading { source, block_len: BLOCK, fills_holes: false, options, watch };
    let digest = blocks::for_each(&reading, || Ok(()), |(): &mut (), _: &mut Block| Ok(()), |()| Ok(()))?;
    Ok(Carried { bytes: Bytes(source.len().bytes()), digest })
}

fn fill(
    source: &dyn Source,
    partial: &Partial<'_>,
    options: &Options<'_>,
    watch: &dyn Watch,
) -> Result<Carried, CarryError> {
    match options.compression {
        Compression::None => raw(source, partial, options, watch),
        Compression::Gzip => encoded(source, partial, options, watch, BLOCK),
        Compression::Zstd => encoded(source, partial, options, watch, ZSTD_BLOCK),
        _ => {
            let filter = options.compression.compressor().expect("all others are programs");
            let feed = Feed::filter(&filter, partial.output()?, options)?;
            pipe(source, feed, options, watch)
        }
    }
}

/// Written from one thread: a file system lays out best what comes in order.
fn raw(
    source: &dyn Source,
    partial: &Partial<'_>,
    options: &Options<'_>,
    watch: &dyn Watch,
) -> Result<Carried, CarryError> {
    let len = source.len().bytes();
    let file = partial.file();
    file.set_len(len).map_err(|error| partial.error("lengthening", 0, error))?;
    let block_len = PIECE as u64;
    let buffers = Buffers::new(block_len);
    let take = |(): &mut (), block: &mut Block| {
        Ok(match block {
            Block::Zeros(_) => None,
            Block::Data(offset, bytes, parts) => {
                // The file has just been made: all of it is a hole.
                let runs = parts.iter().flat_map(|part| {
                    sparse_runs(&bytes[part.clone()]).map(|run| part.start + run.start..part.start + run.end)
                });
                let runs: Vec<_> = runs.collect();
                Some((std::mem::replace(bytes, buffers.take()), *offset, runs))
            }
        })
    };
    let mut bulk = partial.bulk()?;
    let write = |block: Option<(Aligned, u64, Vec<_>)>| {
        let Some((bytes, offset, runs)) = block else { return Ok(()) };
        let written = bulk.write_runs(bytes, offset, runs);
        while let Some(spare) = bulk.spare() {
            buffers.give_back(spare);
        }
        written.map_err(|error| partial.unwritten(error))
    };
    let reading = Reading { source, block_len, fills_holes: false, options, watch };
    let digest = blocks::for_each(&reading, || Ok(()), take, write)?;
    bulk.flush().map_err(|error| partial.unwritten(error))?;
    Ok(Carried { bytes: Bytes(len), digest })
}

/// Every block becomes a whole member or frame of its own, so that all cores can be at it.
fn encoded(
    source: &dyn Source,
    partial: &Partial<'_>,
    options: &Options<'_>,
    watch: &dyn Watch,
    block_len: u64,
) -> Result<Carried, CarryError> {
    let failed = |error| CarryError::Compress { disk: options.disk.to_owned(), error };
    let encoder = || encode::Encoder::new(options.compression).map_err(failed);
    // A disk may have a million blocks of zeros.
    let zeros = encoder()?.encode(&vec![0; block_len as usize]).map_err(failed)?;
    let mut bulk = partial.bulk()?;
    let mut written = 0;
    let mut append = |bytes: &[u8]| {
        bulk.write_all_at(bytes, written).map_err(|error| partial.unwritten(error))?;
        written += bytes.len() as u64;
        Ok(())
    };
    let len = source.len().bytes();
    if len == 0 {
        append(&encoder()?.encode(&[]).map_err(failed)?)?;
    }
    let compress = |encoder: &mut encode::Encoder, block: &mut Block| match block {
        Block::Zeros(range) if range.len() == block_len => Ok(None),
        Block::Zeros(range) => encoder.encode(&vec![0; range.len() as usize]).map(Some).map_err(failed),
        Block::Data(_, bytes, _) => encoder.encode(bytes).map(Some).map_err(failed),
    };
    let reading = Reading { source, block_len, fills_holes: true, options, watch };
    let digest = blocks::for_each(&reading, encoder, compress, |block: Option<Vec<u8>>| {
        append(block.as_deref().unwrap_or(&zeros))
    })?;
    bulk.flush().map_err(|error| partial.unwritten(error))?;
    Ok(Carried { bytes: Bytes(len), digest })
}

fn pipe(
    source: &dyn Source,
    mut feed: Feed,
    options: &Options<'_>,
    watch: &dyn Watch,
) -> Result<Carried, CarryError> {
    let zeros = vec![0; BLOCK as usize];
    let buffers = Buffers::new(BLOCK);
    let take = |(): &mut (), block: &mut Block| {
        Ok(match block {
            Block::Zeros(range) => Err(range.len()),
            Block::Data(_, bytes, _) => Ok(std::mem::replace(bytes, buffers.take())),
        })
    };
    let reading = Reading { source, block_len: BLOCK, fills_holes: true, options, watch };
    // On an error the program is ended before anybody acts on its file.
    let digest = blocks::for_each(
        &reading,
        || Ok(()),
        take,
        |block: Result<Aligned, u64>| match block {
            Ok(bytes) => {
                let put = feed.put(&bytes, watch);
                buffers.give_back(bytes);
                put
            }
            Err(zero) => feed.put(&zeros[..zero as usize], watch),
        },
    )?;
    feed.finish(watch)?;
    Ok(Carried { bytes: Bytes(source.len().bytes()), digest })
}
