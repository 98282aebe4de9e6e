//! Writes much to a file or device, so that it is on its way to the disk while more is written.
//! Syncs nothing: whoever has to know that it is on the disk asks for that, and then has little left to wait for.

use super::blocks::{Action, Before, runs};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// Written by one call. A file system that keeps its cache in large pieces looks for memory in one piece as long as the
/// call, which takes four times as long for 1 MiB as for 128 KiB (docs/performance.md).
const PIECE: usize = 128 << 10;
/// Sent on its way at once.
const STRETCH: u64 = 8 << 20;

/// What was written to one file and is not on its way yet.
#[derive(Debug, Default)]
pub struct Bulk {
    bytes: u64,
    span: Option<Range<u64>>,
}

impl Bulk {
    pub fn write_all_at(&mut self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut at = offset;
        for piece in bytes.chunks(PIECE) {
            file.write_all_at(piece, at)?;
            at += piece.len() as u64;
        }
        let span = self.span.take().unwrap_or(offset..at);
        let span = span.start.min(offset)..span.end.max(at);
        self.bytes += bytes.len() as u64;
        if self.bytes < STRETCH {
            self.span = Some(span);
            return Ok(());
        }
        self.bytes = 0;
        send_on_its_way(file, &span)
    }

    /// To a place that is a hole: what is zero stays one. The error comes with the offset of what could not be written.
    pub fn write_sparse_at(
        &mut self,
        file: &File,
        bytes: &[u8],
        offset: u64,
    ) -> Result<(), (u64, io::Error)> {
        for (run, _) in runs(bytes, Before::Zeros).into_iter().filter(|(_, action)| *action == Action::Write)
        {
            let offset = offset + run.start as u64;
            self.write_all_at(file, &bytes[run], offset).map_err(|error| (offset, error))?;
        }
        Ok(())
    }
}

/// Where a file system finds no place for what it has taken, this is told here, and a later sync does not tell it again.
#[expect(unsafe_code, reason = "no crate has this call")]
fn send_on_its_way(file: &File, span: &Range<u64>) -> io::Result<()> {
    let number = |value: u64| i64::try_from(value).map_err(io::Error::other);
    let (start, len) = (number(span.start)?, number(span.end - span.start)?);
    // SAFETY: a system call that takes numbers only; the descriptor is open for as long as `file` is.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), start, len, libc::SYNC_FILE_RANGE_WRITE) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            // Then all is left to the sync.
            error if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL | libc::ESPIPE)) => {
                Ok(())
            }
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::blocks::BLOCK;
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn what_is_written_in_any_order_and_size_is_there_and_zeros_stay_holes() {
        let file = tempfile::tempfile().unwrap();
        let mut bulk = Bulk::default();
        let mut expected = vec![0; 24 << 20];
        // Longer than a stretch, backwards, a byte, and nothing.
        for (offset, len) in [(12 << 20, 9 << 20), (1 << 20, 300 << 10), (5000, 1), (0, 0)] {
            let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8 + 1).collect();
            expected[offset..offset + len].copy_from_slice(&bytes);
            bulk.write_all_at(&file, &bytes, offset as u64).unwrap();
        }
        file.set_len(expected.len() as u64).unwrap();
        let mut found = vec![1; expected.len()];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == expected);

        let sparse = tempfile::tempfile().unwrap();
        sparse.set_len(expected.len() as u64).unwrap();
        Bulk::default().write_sparse_at(&sparse, &expected, 0).unwrap();
        sparse.read_exact_at(&mut found, 0).unwrap();
        assert!(found == expected);
        assert!(sparse.metadata().unwrap().blocks() * 512 < 10 << 20);
    }

    #[test]
    fn an_error_names_the_place() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut bytes = vec![0; 3 * BLOCK];
        bytes[2 * BLOCK] = 1;
        let (offset, error) = Bulk::default().write_sparse_at(&full, &bytes, 1 << 20).unwrap_err();
        assert_eq!((offset, error.raw_os_error()), ((1 << 20) + 8192, Some(libc::ENOSPC)));
    }
}
