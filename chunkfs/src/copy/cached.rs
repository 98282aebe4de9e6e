//! Writes through the page cache, so that what was written is on its way to the disk while more is written.

use super::bulk::WriteError;
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
pub(super) struct Cached {
    bytes: u64,
    span: Option<Range<u64>>,
}

impl Cached {
    pub(super) fn write_all_at(&mut self, file: &File, bytes: &[u8], offset: u64) -> Result<(), WriteError> {
        let mut at = offset;
        for piece in bytes.chunks(PIECE) {
            file.write_all_at(piece, at).map_err(|error| WriteError { offset: at, error })?;
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
        send_on_its_way(file, &span).map_err(|error| WriteError { offset: span.start, error })
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
