//! Reads a source ahead, in two threads, and hands its pieces to the one that writes.
//! Nothing here writes. What is known to be zero is not read.

use super::RestoreError;
use crate::core::geometry::{ByteRange, ChunkSize};
use crate::limits;
use crate::source::{Extent, ExtentKind, Source, SourceError};
use crate::watch::Watch;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

const READERS: usize = 2;
/// A buffer for each reader to fill, one to be written, and one on the way.
const BUFFERS: usize = READERS + 2;
const PIECE_LEN: u64 = 1 << 20;
/// Zeros are handed on in parts too, so that the watcher sees something move.
const ZEROS_LEN: u64 = 1 << 30;

/// A part of the image. Pieces come roughly in order, each once, together all that was asked for.
#[derive(Debug)]
pub(super) enum Piece<'a> {
    Zeros(ByteRange),
    Data(u64, &'a [u8]),
}

/// The length of a piece of data in bytes: whole chunks, so that each is read and verified once.
pub(super) fn piece_len(chunk_size: ChunkSize) -> u64 {
    chunk_size.bytes() * (PIECE_LEN / chunk_size.bytes()).max(1)
}

/// Calls `put` for each piece of `range`, in this thread.
pub(super) fn for_each(
    source: &dyn Source,
    range: ByteRange,
    piece_len: u64,
    watch: &dyn Watch,
    mut put: impl FnMut(Piece<'_>) -> Result<(), RestoreError>,
) -> Result<(), RestoreError> {
    let cursor = Mutex::new(Cursor { source, range, piece_len, extents: VecDeque::new() });
    let (filled, pieces) = sync_channel(BUFFERS);
    let (give_back, empty) = channel();
    for _ in 0..BUFFERS {
        give_back.send(Vec::new()).expect("its receiver is in this function");
    }
    // The readers own it, as the writer owns what it receives: whoever ends first ends the other.
    let empty = Arc::new(Mutex::new(empty));
    std::thread::scope(|scope| {
        // Moved in, so that they are gone before the readers are waited for.
        let (pieces, give_back) = (pieces, give_back);
        limits::start_threads(scope, READERS, || {
            let (filled, empty, cursor) = (filled.clone(), Arc::clone(&empty), &cursor);
            move || read_ahead(source, cursor, &empty, &filled)
        })
        .map_err(RestoreError::Threads)?;
        drop((filled, empty));
        for piece in pieces {
            if watch.is_stopped() {
                return Err(RestoreError::Stopped);
            }
            let len = match piece? {
                Work::Zeros(range) => {
                    put(Piece::Zeros(range))?;
                    range.len()
                }
                Work::Data(offset, buffer) => {
                    put(Piece::Data(offset, &buffer))?;
                    let len = buffer.len() as u64;
                    // No reader is left to fill it when all is read.
                    _ = give_back.send(buffer);
                    len
                }
            };
            watch.advance(len);
        }
        Ok(())
    })
}

enum Work {
    Zeros(ByteRange),
    Data(u64, Vec<u8>),
}

/// Ends when all is read, at the first error, or when nobody takes what is read.
fn read_ahead(
    source: &dyn Source,
    cursor: &Mutex<Cursor<'_>>,
    empty: &Mutex<Receiver<Vec<u8>>>,
    filled: &SyncSender<Result<Work, SourceError>>,
) {
    loop {
        let next = cursor.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = match next {
            Ok(None) => return,
            Ok(Some(Extent { range, kind: ExtentKind::Zero })) => Ok(Work::Zeros(range)),
            Ok(Some(Extent { range, kind: ExtentKind::Data })) => {
                let buffer = empty.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok(mut buffer) = buffer else { return };
                buffer.resize(range.len() as usize, 0);
                source.read_at(range.start, &mut buffer).map(|()| Work::Data(range.start, buffer))
            }
            Err(error) => Err(error),
        };
        let failed = work.is_err();
        if filled.send(work).is_err() || failed {
            return;
        }
    }
}

/// Where the readers are.
struct Cursor<'a> {
    source: &'a dyn Source,
    range: ByteRange,
    piece_len: u64,
    extents: VecDeque<Extent>,
}

impl Cursor<'_> {
    /// The next piece: data up to the next multiple of the piece length, or zeros up to one.
    fn next(&mut self) -> Result<Option<Extent>, SourceError> {
        if self.range.is_empty() {
            return Ok(None);
        }
        let at = self.range.start;
        let piece_end = (at / self.piece_len + 1).saturating_mul(self.piece_len).min(self.range.end);
        let zeros = self.zeros_from(at)?.min(at.saturating_add(ZEROS_LEN));
        let (end, kind) = if zeros >= self.range.end {
            (self.range.end, ExtentKind::Zero)
        } else if zeros >= piece_end {
            (zeros / self.piece_len * self.piece_len, ExtentKind::Zero)
        } else {
            (piece_end, ExtentKind::Data)
        };
        assert!(at < end);
        self.range.start = end;
        Ok(Some(Extent { range: ByteRange::new(at, end), kind }))
    }

    /// Up to where the image is known to be zero from here on; `at` itself where it is not.
    fn zeros_from(&mut self, at: u64) -> Result<u64, SourceError> {
        while self.extents.front().is_some_and(|extent| extent.range.end <= at) {
            self.extents.pop_front();
        }
        if self.extents.is_empty() {
            self.extents = self.source.extents(ByteRange::new(at, self.range.end))?.into();
        }
        let first = self.extents.front().expect("a source covers something of a range that is not empty");
        Ok(if first.kind == ExtentKind::Zero { first.range.end } else { at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::faulty::FaultySource;
    use crate::source::memory::MemorySource;
    use crate::split::pattern;
    use crate::watch::Unwatched;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

        #[test]
        fn pieces_are_all_of_the_range_each_once(
            len in 0u64..200_000, holes in prop::collection::vec((0u64..200_000, 0u64..50_000), 0..4),
            piece in 1u64..5, start in any::<prop::sample::Index>(),
        ) {
            let mut image = pattern(len as usize);
            for (at, hole) in holes {
                let range = at.min(len) as usize..(at + hole).min(len) as usize;
                image[range].fill(0);
            }
            let start = start.index(len as usize + 1) as u64 / 4096 * 4096;
            let mut copy = vec![1; len as usize];
            let mut total = 0;
            let source = MemorySource::new(image.clone());
            for_each(&source, ByteRange::new(start, len), piece * 4096, &Unwatched, |piece| {
                let (at, bytes) = match piece {
                    Piece::Zeros(range) => (range.start, vec![0; range.len() as usize]),
                    Piece::Data(at, bytes) => (at, bytes.to_vec()),
                };
                copy[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
                total += bytes.len() as u64;
                Ok(())
            }).unwrap();
            prop_assert_eq!(total, len - start);
            prop_assert!(copy[start as usize..] == image[start as usize..]);
        }
    }

    #[test]
    fn an_error_on_either_side_ends_both() {
        let image = vec![1; 400 * 4096];
        let (source, faults) = FaultySource::new(MemorySource::new(image));
        let range = ByteRange::new(0, source.len().bytes());
        faults.fail_in(ByteRange::new(100 * 4096, 100 * 4096 + 1));
        let error = for_each(&source, range, 4096, &Unwatched, |_| Ok(())).unwrap_err();
        assert!(matches!(error, RestoreError::Source(SourceError::Read { .. })));
        faults.heal();
        let error = for_each(&source, range, 4096, &Unwatched, |_| Err(RestoreError::Stopped)).unwrap_err();
        assert!(matches!(error, RestoreError::Stopped));
    }

    #[test]
    #[should_panic(expected = "a scoped thread panicked")]
    fn a_panic_of_a_reader_is_never_taken_for_the_end() {
        let (source, faults) = FaultySource::new(MemorySource::new(vec![1; 400 * 4096]));
        faults.panic_on_read();
        let range = ByteRange::new(0, source.len().bytes());
        _ = for_each(&source, range, 4096, &Unwatched, |_| Ok(()));
    }
}
