//! Reads ahead of whoever reads in order: the next pieces are fetched while the reader is busy with the last.
//! For sources that are read with the caller's own thread; exports have a read-ahead of their own.

use super::{Extent, Source, SourceError};
use crate::core::geometry::{ByteRange, ImageLen};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};

/// Readers that are told apart.
const STREAMS: usize = 4;
/// Pieces that are fetched ahead. With one, whoever asks for it would often have to wait for the rest of it; with two, one
/// processor fetches while the other hands out.
const DEPTH: usize = 2;

/// Another source, and what is fetched of it ahead.
pub struct ReadAhead<S> {
    inner: S,
    streams: Mutex<Streams>,
    fetched: Condvar,
}

#[derive(Default)]
struct Streams {
    all: [Stream; STREAMS],
    /// Buffers to fetch into: making new ones would cost as much as the reading.
    spare: Vec<Vec<u8>>,
    /// Counts reads, to find the stream that has been idle longest.
    clock: u64,
    /// Readers that wait for a piece to be here.
    waiting: usize,
}

/// One who reads in order, as far as we can tell.
#[derive(Default)]
struct Stream {
    /// Where it will read next, and how much, if it goes on as before.
    next: ByteRange,
    /// It did go on as before.
    confirmed: bool,
    /// The bytes of `next`, of the range behind it, and so on.
    ahead: VecDeque<Piece>,
    last_used: u64,
}

enum Piece {
    Fetching,
    Here(Vec<u8>),
    /// It could not be read; the error is for whoever asks for the bytes.
    Failed,
}

impl<S: Source> ReadAhead<S> {
    pub fn new(inner: S) -> ReadAhead<S> {
        ReadAhead { inner, streams: Mutex::default(), fetched: Condvar::new() }
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().expect("no panic while the lock is held")
    }

    /// The bytes of `range`, if they were fetched ahead; waits while somebody does. Notes where the stream goes on.
    fn take(&self, range: ByteRange) -> Option<Vec<u8>> {
        let mut streams = self.streams();
        loop {
            let Some(at) = streams.all.iter().position(|stream| stream.next == range) else {
                streams.begin(range);
                return None;
            };
            if let Some(Piece::Fetching) = streams.all[at].ahead.front() {
                streams.waiting += 1;
                streams = self.fetched.wait(streams).expect("no panic while the lock is held");
                streams.waiting -= 1;
                continue;
            }
            streams.clock += 1;
            let clock = streams.clock;
            let stream = &mut streams.all[at];
            (stream.confirmed, stream.last_used, stream.next) = (true, clock, following(range));
            return match stream.ahead.pop_front() {
                Some(Piece::Here(bytes)) => Some(bytes),
                _ => None,
            };
        }
    }
}

impl Streams {
    fn keep(&mut self, buffer: Vec<u8>) {
        if self.spare.len() < STREAMS * DEPTH {
            self.spare.push(buffer);
        }
    }

    /// A reader that is new, or has gone elsewhere, takes the place of the one that was idle longest.
    fn begin(&mut self, range: ByteRange) {
        self.clock += 1;
        let idle = self.all.iter_mut().filter(|stream| !stream.is_fetched_for());
        if let Some(stream) = idle.min_by_key(|stream| stream.last_used) {
            let next = following(range);
            *stream = Stream { next, confirmed: false, ahead: VecDeque::new(), last_used: self.clock };
        }
    }

    /// The next range that is to be fetched for whoever has read up to `end`, if there is one; from now on it is being fetched.
    fn begin_fetching(&mut self, end: u64, len: u64) -> Option<(ByteRange, Vec<u8>)> {
        // It may have read on since.
        let reads_there = |stream: &&mut Stream| {
            let most = stream.next.len().saturating_mul(DEPTH as u64);
            stream.confirmed && (end..=end.saturating_add(most)).contains(&stream.next.start)
        };
        let stream = self.all.iter_mut().find(reads_there)?;
        let range = nth(stream.next, stream.ahead.len());
        if stream.ahead.len() >= DEPTH || range.is_empty() || range.end > len {
            return None;
        }
        stream.ahead.push_back(Piece::Fetching);
        Some((range, self.spare.pop().unwrap_or_default()))
    }

    fn end_fetching(&mut self, range: ByteRange, piece: Piece) {
        let mut pieces = self.all.iter_mut().flat_map(|stream| {
            let (next, ahead) = (stream.next, &mut stream.ahead);
            (0..).map(move |number| nth(next, number)).zip(ahead)
        });
        let fetched = pieces.find(|(of, piece)| *of == range && matches!(piece, Piece::Fetching));
        *fetched.expect("a stream stays while it is fetched for").1 = piece;
    }
}

impl Stream {
    fn is_fetched_for(&self) -> bool {
        self.ahead.iter().any(|piece| matches!(piece, Piece::Fetching))
    }
}

/// The range of the same length so many lengths behind one.
fn nth(range: ByteRange, number: usize) -> ByteRange {
    let start = range.start.saturating_add(range.len().saturating_mul(number as u64));
    ByteRange::new(start, start.saturating_add(range.len()))
}

fn following(range: ByteRange) -> ByteRange {
    nth(range, 1)
}

impl<S: Source> Source for ReadAhead<S> {
    fn len(&self) -> ImageLen {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        self.inner.read_at(offset, buffer)
    }

    fn read_into(&self, range: ByteRange, buffer: &mut Vec<u8>) -> Result<(), SourceError> {
        if let Some(bytes) = self.take(range) {
            let old = std::mem::replace(buffer, bytes);
            self.streams().keep(old);
            // They were read a while ago, and have to be what they were still.
            return self.inner.check();
        }
        self.inner.read_into(range, buffer)
    }

    fn read_ahead(&self, end: u64) {
        let len = self.len().bytes();
        // The first time there is more than one piece to be fetched, and then one for each that is read.
        for _ in 0..DEPTH {
            let Some((range, mut bytes)) = self.streams().begin_fetching(end, len) else { return };
            let piece = match self.inner.read_into(range, &mut bytes) {
                Ok(()) => Piece::Here(bytes),
                Err(_) => Piece::Failed,
            };
            let mut streams = self.streams();
            streams.end_fetching(range, piece);
            if streams.waiting > 0 {
                self.fetched.notify_all();
            }
        }
    }

    fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, SourceError> {
        self.inner.extents(range)
    }

    fn check(&self) -> Result<(), SourceError> {
        self.inner.check()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

impl<S: Source> std::fmt::Debug for ReadAhead<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadAhead").field("inner", &self.inner.describe()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::faulty::FaultySource;
    use crate::source::memory::MemorySource;

    fn image() -> Vec<u8> {
        (0..64 * 1024u32).map(|n| ((n * 31) >> 7) as u8).collect()
    }

    #[test]
    fn readers_in_any_order_get_the_bytes_of_the_image() {
        let image = image();
        let source = ReadAhead::new(MemorySource::new(image.clone()));
        std::thread::scope(|scope| {
            for reader in 0..6u64 {
                let (source, image) = (&source, &image);
                scope.spawn(move || {
                    let mut buffer = Vec::new();
                    for step in 0..400u64 {
                        let size = 1000 + reader % 3;
                        // In order, but for a jump now and then.
                        let start = (step + step / 50 * (reader + 3)) * size % (image.len() as u64 - size);
                        source.read_into(ByteRange::new(start, start + size), &mut buffer).unwrap();
                        assert!(buffer == image[start as usize..(start + size) as usize]);
                        source.read_ahead(start + size);
                    }
                });
            }
        });
    }

    #[test]
    fn only_who_reads_in_order_is_read_ahead_for() {
        let (inner, faults) = FaultySource::new(MemorySource::new(image()));
        let source = ReadAhead::new(inner);
        let mut buffer = Vec::new();
        let mut read = |start: u64| {
            source.read_into(ByteRange::new(start, start + 4096), &mut buffer).unwrap();
            source.read_ahead(start + 4096);
            faults.reads()
        };
        assert_eq!([read(0), read(8192), read(20480)], [1, 2, 3]);
        // The second in order fetches the two behind it, and each after that one more.
        assert_eq!([read(24576), read(28672), read(32768)], [6, 7, 8]);
        // Of the last pieces of the image there is but one behind, and then none.
        assert_eq!([read(53248), read(57344), read(61440)], [9, 11, 11]);
    }

    #[test]
    fn bytes_that_were_fetched_are_not_given_out_when_the_source_has_changed_since() {
        let (inner, faults) = FaultySource::new(MemorySource::new(image()));
        let source = ReadAhead::new(inner);
        let mut buffer = Vec::new();
        for start in [0, 4096] {
            source.read_into(ByteRange::new(start, start + 4096), &mut buffer).unwrap();
            source.read_ahead(start + 4096);
        }
        assert_eq!(faults.reads(), 4);
        faults.vanish();
        assert!(source.read_into(ByteRange::new(8192, 12288), &mut buffer).is_err());
    }

    #[test]
    fn who_reads_on_while_pieces_are_fetched_gets_each_once() {
        let (inner, faults) = FaultySource::new(MemorySource::new(image()));
        let source = ReadAhead::new(inner);
        let mut buffer = Vec::new();
        // What is behind the last two reads is fetched late, when the reader is past it.
        for start in [0, 4096, 8192, 12288] {
            source.read_into(ByteRange::new(start, start + 4096), &mut buffer).unwrap();
        }
        assert_eq!(faults.reads(), 4);
        source.read_ahead(8192);
        assert_eq!(faults.reads(), 6);
        source.read_ahead(4096);
        for start in [16384, 20480] {
            source.read_into(ByteRange::new(start, start + 4096), &mut buffer).unwrap();
            assert!(buffer == image()[start as usize..start as usize + 4096]);
        }
        assert_eq!(faults.reads(), 6);
    }

    #[test]
    fn an_error_ahead_is_told_to_who_reads_it_and_to_nobody_else() {
        let (inner, faults) = FaultySource::new(MemorySource::new(image()));
        let source = ReadAhead::new(inner);
        faults.fail_in(ByteRange::new(8192, 8193));
        let mut buffer = Vec::new();
        for start in [0, 4096] {
            source.read_into(ByteRange::new(start, start + 4096), &mut buffer).unwrap();
            source.read_ahead(start + 4096);
        }
        assert!(source.read_into(ByteRange::new(8192, 12288), &mut buffer).is_err());
        source.read_into(ByteRange::new(12288, 16384), &mut buffer).unwrap();
    }
}
