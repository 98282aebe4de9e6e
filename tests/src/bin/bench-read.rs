//! Reads or walks a tree as a backup tool does and says how long that took: the yardstick of `scripts/bench`.
//! No comparing, no judging, no warming up: the script decides what is measured, and in which state.
//!
//!     bench-read read FILE|DIR [--readers N] [--block BYTES]    prints: BYTES SECONDS
//!     bench-read walk DIR [--threads N]                         prints: FILES DIRECTORIES SECONDS

use std::error::Error;
use std::fs::{self, DirEntry, File, Metadata};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("read") => {
            let readers = option(&args, "--readers", 1)?;
            let pieces = pieces(operand(&args)?, readers)?;
            let begun = Instant::now();
            let bytes = read(&pieces, readers, option(&args, "--block", 256 * 1024)?)?;
            println!("{bytes} {:.6}", begun.elapsed().as_secs_f64());
        }
        Some("walk") => {
            let threads = option(&args, "--threads", 1)?;
            let begun = Instant::now();
            let seen = walk(operand(&args)?, threads)?;
            println!("{} {} {:.6}", seen.files, seen.directories, begun.elapsed().as_secs_f64());
        }
        _ => {
            return Err(
                "usage: bench-read read FILE|DIR [--readers N] [--block BYTES] | walk DIR [--threads N]"
                    .into(),
            );
        }
    }
    Ok(())
}

fn operand(args: &[String]) -> Result<&Path> {
    args.get(1).map(Path::new).ok_or_else(|| "which file or directory?".into())
}

fn option(args: &[String], name: &str, default: usize) -> Result<usize> {
    match args.iter().position(|arg| arg == name) {
        None => Ok(default),
        Some(at) => {
            let value = args.get(at + 1).and_then(|text| text.parse().ok()).filter(|&n| n > 0);
            value.ok_or_else(|| format!("{name} wants a positive number").into())
        }
    }
}

/// What one reader opens and reads in one go.
struct Piece {
    path: PathBuf,
    start: u64,
    end: u64,
}

/// The work, in path order: every file of a directory, or a single file cut into equal parts, one for each reader.
/// Listing is not part of the time: `walk` measures it.
fn pieces(path: &Path, readers: usize) -> Result<Vec<Piece>> {
    let metadata = fs::symlink_metadata(path).map_err(story("look at", path))?;
    if !metadata.is_dir() {
        let (parts, len) = (readers as u64, metadata.len());
        let part = |n| Piece { path: path.into(), start: len * n / parts, end: len * (n + 1) / parts };
        return Ok((0..parts).map(part).collect());
    }
    let mut pieces = Vec::new();
    let mut directories = vec![path.to_path_buf()];
    while let Some(directory) = directories.pop() {
        list(&directory, |entry, metadata| match metadata.is_dir() {
            true => directories.push(entry.path()),
            false => pieces.push(Piece { path: entry.path(), start: 0, end: metadata.len() }),
        })?;
    }
    pieces.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(pieces)
}

/// Reads all pieces, each reader taking the next one when it is done with its last, and returns the bytes read.
fn read(pieces: &[Piece], readers: usize, block: usize) -> Result<u64> {
    let next = AtomicUsize::new(0);
    let reader = || -> Result<u64> {
        let mut buffer = vec![0; block];
        let mut bytes = 0;
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            read_piece(piece, &mut buffer).map_err(story("read", &piece.path))?;
            bytes += piece.end - piece.start;
        }
        Ok(bytes)
    };
    thread::scope(|scope| {
        let readers: Vec<_> = (0..readers).map(|_| scope.spawn(reader)).collect();
        readers.into_iter().map(|reader| reader.join().expect("a reader returns its errors")).sum()
    })
}

fn read_piece(piece: &Piece, buffer: &mut [u8]) -> io::Result<()> {
    let file = File::open(&piece.path)?;
    let mut at = piece.start;
    while at < piece.end {
        let wanted = (piece.end - at).min(buffer.len() as u64) as usize;
        match file.read_at(&mut buffer[..wanted], at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => at += read as u64,
        }
    }
    Ok(())
}

#[derive(Default)]
struct Seen {
    files: u64,
    directories: u64,
}

/// Lists every directory and asks for the attributes of every entry, as a backup tool does before it decides what to read.
fn walk(root: &Path, threads: usize) -> Result<Seen> {
    let frontier = Frontier::from(root);
    let walker = || -> Result<Seen> {
        let mut seen = Seen::default();
        while let Some(directory) = frontier.take() {
            let mut found = Vec::new();
            let listed = list(&directory, |entry, metadata| match metadata.is_dir() {
                true => found.push(entry.path()),
                false => seen.files += 1,
            });
            frontier.give(found);
            listed?;
            seen.directories += 1;
        }
        Ok(seen)
    };
    thread::scope(|scope| {
        let walkers: Vec<_> = (0..threads).map(|_| scope.spawn(walker)).collect();
        walkers.into_iter().try_fold(Seen::default(), |sum, walker| {
            let seen = walker.join().expect("a walker returns its errors")?;
            Ok(Seen { files: sum.files + seen.files, directories: sum.directories + seen.directories })
        })
    })
}

/// Directories that were found and not listed yet, shared by the walkers.
struct Frontier {
    state: Mutex<Waiting>,
    changed: Condvar,
}

struct Waiting {
    directories: Vec<PathBuf>,
    being_listed: usize,
}

impl Frontier {
    fn from(root: &Path) -> Frontier {
        let waiting = Waiting { directories: vec![root.into()], being_listed: 0 };
        Frontier { state: Mutex::new(waiting), changed: Condvar::new() }
    }

    /// The next directory; None once there is none left and nobody is listing one who could find more.
    fn take(&self) -> Option<PathBuf> {
        let state = self.state.lock().expect("no walker panics");
        let mut state = self
            .changed
            .wait_while(state, |waiting| waiting.directories.is_empty() && waiting.being_listed > 0)
            .expect("no walker panics");
        let next = state.directories.pop()?;
        state.being_listed += 1;
        Some(next)
    }

    /// What listing the directory taken last has found. Every `take` is followed by one `give`.
    fn give(&self, found: Vec<PathBuf>) {
        let mut state = self.state.lock().expect("no walker panics");
        state.directories.extend(found);
        state.being_listed -= 1;
        self.changed.notify_all();
    }
}

/// One readdir of `directory`, one lstat of each entry.
fn list(directory: &Path, mut entry_found: impl FnMut(&DirEntry, Metadata)) -> Result<()> {
    for entry in fs::read_dir(directory).map_err(story("list", directory))? {
        let entry = entry.map_err(story("list", directory))?;
        let metadata = entry.metadata().map_err(|error| story("look at", &entry.path())(error))?;
        entry_found(&entry, metadata);
    }
    Ok(())
}

fn story(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> Box<dyn Error + Send + Sync> {
    move |error| format!("{doing} {}: {error}", path.display()).into()
}
