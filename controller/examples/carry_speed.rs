//! How fast a raw image becomes a file of a dump: `carry_speed IMAGE DIRECTORY [COMPRESSION]`, timed until it is on the disk.
//! Leaves DIRECTORY/carried. Compare with `cp --sparse=always IMAGE X && sync X`, and with `gzip -6 <IMAGE >X`.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use chunkfs::source::Source;
use chunkfs::source::image::ImageSource;
use chunkfs::watch::Unwatched;
use virt_backup::carry::{Compression, Directory, Existing, Options, to_file};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [image, directory, rest @ ..] = arguments.as_slice() else {
        return Err("give an image and a directory".into());
    };
    let compression = Compression::parse(rest.first().map_or("none", String::as_str))?;
    let source = ImageSource::open(Path::new(image))?;
    let directory = Directory::open(Path::new(directory))?;
    let options = Options { disk: "vda", compression, bytes_per_sec: None, existing: Existing::Replace };
    let begun = Instant::now();
    let carried = to_file(&source, &directory, "carried", &options, &Unwatched)?;
    let secs = begun.elapsed().as_secs_f64();
    println!("{:.2} GB/s, {secs:.2} s, {}", source.len().bytes() as f64 / secs / 1e9, carried.digest);
    Ok(())
}
