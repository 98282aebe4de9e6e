//! Writes much to a file or device, so that it is on its way to the disk while more is written: past the page cache where
//! the target can do that, and in large pieces.
//! Syncs nothing: whoever has to know that it is on the disk flushes, syncs, and then has little left to wait for.

use super::aligned::{ALIGNMENT, Aligned};
use super::blocks::{Action, Before, runs};
use super::cached::Cached;
use super::direct::{Direct, PIECE, Piece};
use std::fs::File;
use std::io;
use std::ops::Range;

/// What could not be written, and from where on.
#[derive(Debug, thiserror::Error)]
#[error("at byte {offset}: {error}")]
pub struct WriteError {
    pub offset: u64,
    pub error: io::Error,
}

/// What is written to one file. No two writes overlap unless there was a flush between them.
///
/// An error may be one of an earlier write. Nothing is written any more when it is dropped, and what was not flushed may
/// not have been written at all.
#[derive(Debug)]
pub struct Bulk {
    file: File,
    cached: Cached,
    direct: Option<Direct>,
    filling: Option<Filling>,
    spare: Option<Aligned>,
}

impl Bulk {
    pub fn new(file: &File) -> io::Result<Bulk> {
        let file = file.try_clone()?;
        let direct = Direct::to(&file);
        Ok(Bulk { file, cached: Cached::default(), direct, filling: None, spare: None })
    }

    pub fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> Result<(), WriteError> {
        self.see_refusal()?;
        let (mut bytes, mut offset) = (bytes, offset);
        if self.filling.as_ref().is_some_and(|filling| filling.end() != offset) {
            self.send_filled()?;
        }
        while !bytes.is_empty() {
            let Some(direct) = &mut self.direct else {
                return self.cached.write_all_at(&self.file, bytes, offset);
            };
            let filling = match &mut self.filling {
                Some(filling) => filling,
                none => none.insert(Filling::new(offset, self.spare.take().or_else(|| direct.spare()))),
            };
            let count = filling.add(bytes);
            (bytes, offset) = (&bytes[count..], offset + count as u64);
            if filling.is_full() {
                self.send_filled()?;
            }
        }
        Ok(())
    }

    /// To a place that is a hole: what is zero stays one.
    pub fn write_sparse_at(&mut self, bytes: &[u8], offset: u64) -> Result<(), WriteError> {
        for run in sparse_runs(bytes) {
            let offset = offset + run.start as u64;
            self.write_all_at(&bytes[run], offset)?;
        }
        Ok(())
    }

    /// Writes runs of a buffer, made for [`PIECE`] bytes, without copying it. `offset`, of its first byte, is a multiple
    /// of [`ALIGNMENT`].
    pub fn write_runs(
        &mut self,
        memory: Aligned,
        offset: u64,
        runs: Vec<Range<usize>>,
    ) -> Result<(), WriteError> {
        self.see_refusal()?;
        self.send_filled()?;
        self.send(Piece { memory, offset, runs })
    }

    /// A buffer that `write_runs` is done with, if there is one.
    pub fn spare(&mut self) -> Option<Aligned> {
        self.spare.take().or_else(|| self.direct.as_mut().and_then(Direct::spare))
    }

    /// Until all is written, though not synced.
    pub fn flush(&mut self) -> Result<(), WriteError> {
        self.send_filled()?;
        self.direct.as_mut().map_or(Ok(()), Direct::wait)
    }

    fn send_filled(&mut self) -> Result<(), WriteError> {
        let Some(Filling { memory, offset, run }) = self.filling.take() else { return Ok(()) };
        self.send(Piece { memory, offset, runs: vec![run] })
    }

    fn send(&mut self, piece: Piece) -> Result<(), WriteError> {
        if let Some(direct) = &mut self.direct
            && piece.is_worth_it()
        {
            return direct.send(piece);
        }
        let written = piece
            .for_each(|run, offset| self.cached.write_all_at(&self.file, &piece.memory[run.clone()], offset));
        self.spare = Some(piece.memory);
        written
    }

    /// A file system may take back that it can do without the cache.
    fn see_refusal(&mut self) -> Result<(), WriteError> {
        if self.direct.as_ref().is_some_and(Direct::is_refused) {
            self.flush()?;
            self.direct = None;
        }
        Ok(())
    }
}

/// What is not zero, in blocks of 4 KiB.
pub fn sparse_runs(bytes: &[u8]) -> impl Iterator<Item = Range<usize>> {
    runs(bytes, Before::Zeros).into_iter().filter(|(_, action)| *action == Action::Write).map(|(run, _)| run)
}

/// Bytes that lie side by side in the file, and are gathered until they are a piece.
#[derive(Debug)]
struct Filling {
    memory: Aligned,
    offset: u64,
    run: Range<usize>,
}

impl Filling {
    fn new(start: u64, spare: Option<Aligned>) -> Filling {
        let mut memory = spare.unwrap_or_else(|| Aligned::new(PIECE));
        let offset = start / ALIGNMENT as u64 * ALIGNMENT as u64;
        // It ends where a multiple of the length of a piece does.
        memory.set_len(PIECE - (offset % PIECE as u64) as usize);
        let at = (start - offset) as usize;
        Filling { memory, offset, run: at..at }
    }

    fn end(&self) -> u64 {
        self.offset + self.run.end as u64
    }

    fn is_full(&self) -> bool {
        self.run.end == self.memory.len()
    }

    /// Adds as many bytes as there is room for. How many?
    fn add(&mut self, bytes: &[u8]) -> usize {
        let room = &mut self.memory[self.run.end..];
        let count = bytes.len().min(room.len());
        room[..count].copy_from_slice(&bytes[..count]);
        self.run.end += count;
        count
    }
}

#[cfg(test)]
mod tests {
    use super::super::blocks::BLOCK;
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    fn content(file: &File) -> Vec<u8> {
        let mut found = vec![1; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut found, 0).unwrap();
        found
    }

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at % 251) as u8 + 1).collect()
    }

    /// On the disk that the build is on, which can write past the page cache or not, as the tests' home, which may not.
    fn files() -> Vec<File> {
        let beside = std::env::current_exe().unwrap();
        vec![tempfile::tempfile().unwrap(), tempfile::tempfile_in(beside.parent().unwrap()).unwrap()]
    }

    #[test]
    fn what_is_written_in_any_order_and_size_is_there_and_zeros_stay_holes() {
        for file in files() {
            let mut bulk = Bulk::new(&file).unwrap();
            let mut expected = vec![0; 24 << 20];
            // Longer than a stretch, backwards, a byte, and nothing.
            for (offset, len) in [(12 << 20, 9 << 20), (1 << 20, 300 << 10), (5000, 1), (0, 0)] {
                expected[offset..offset + len].copy_from_slice(&bytes(len));
                bulk.write_all_at(&bytes(len), offset as u64).unwrap();
            }
            bulk.flush().unwrap();
            file.set_len(expected.len() as u64).unwrap();
            assert!(content(&file) == expected);
        }
        for sparse in files() {
            let mut expected = vec![0; 24 << 20];
            expected[1 << 20..5 << 20].copy_from_slice(&bytes(4 << 20));
            expected[(2 << 20) - 100..(2 << 20) + 5000].fill(0);
            sparse.set_len(expected.len() as u64).unwrap();
            let mut bulk = Bulk::new(&sparse).unwrap();
            bulk.write_sparse_at(&expected, 0).unwrap();
            bulk.flush().unwrap();
            assert!(content(&sparse) == expected);
            assert!(sparse.metadata().unwrap().blocks() * 512 <= (4 << 20) - 4096);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        #[test]
        fn any_writes_side_by_side_and_apart(
            writes in prop::collection::vec((0usize..3_000_000, 1usize..2_500_000, any::<bool>()), 1..9),
        ) {
            for file in files() {
                let mut bulk = Bulk::new(&file).unwrap();
                let mut expected = Vec::new();
                for (gap, len, flush) in &writes {
                    let gap = if gap % 3 == 0 { 0 } else { *gap };
                    expected.resize(expected.len() + gap, 0);
                    bulk.write_all_at(&bytes(*len), expected.len() as u64).unwrap();
                    expected.extend(bytes(*len));
                    if *flush {
                        bulk.flush().unwrap();
                        prop_assert!(content(&file) == expected);
                    }
                }
                bulk.flush().unwrap();
                prop_assert!(content(&file) == expected);
            }
        }
    }

    /// A file that takes a number, and says of anything else that it is invalid.
    fn refusing() -> File {
        File::options().write(true).open("/proc/self/oom_score_adj").unwrap()
    }

    #[test]
    fn a_file_system_that_takes_back_what_it_said_gets_it_through_the_cache() {
        let file = tempfile::tempfile().unwrap();
        let direct = Some(Direct::pretending(&file, refusing()));
        let mut bulk = Bulk { direct, ..Bulk::new(&file).unwrap() };
        let expected = bytes(3 * PIECE + 12_345);
        bulk.write_all_at(&expected, 0).unwrap();
        bulk.flush().unwrap();
        bulk.write_all_at(&expected, expected.len() as u64).unwrap();
        assert!(bulk.direct.is_none());
        bulk.flush().unwrap();
        assert!(content(&file) == [&expected[..], &expected[..]].concat());
    }

    #[test]
    fn an_error_of_a_thread_is_heard_of_and_nobody_waits_for_ever() {
        let file = tempfile::tempfile().unwrap();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut bulk = Bulk { direct: Some(Direct::pretending(&file, full)), ..Bulk::new(&file).unwrap() };
        let written = bulk.write_all_at(&bytes(20 * PIECE), 8192).and_then(|()| bulk.flush()).unwrap_err();
        assert_eq!(written.error.raw_os_error(), Some(libc::ENOSPC));
        assert!(written.offset == 8192 || written.offset.is_multiple_of(PIECE as u64), "{written}");
        // What was handed over before is asked for until there is nothing more.
        while bulk.flush().is_err() {}
    }

    #[test]
    fn runs_of_a_buffer_are_written_where_they_belong() {
        for file in files() {
            file.set_len(3 * PIECE as u64).unwrap();
            let mut bulk = Bulk::new(&file).unwrap();
            let mut expected = vec![0; 3 * PIECE];
            // Aligned and long, one after the other, neither, and none at all.
            let all =
                [vec![0..1 << 20, 2 << 20..PIECE], vec![5..2 << 20, (2 << 20) + 1..(2 << 20) + 9], vec![]];
            for (at, runs) in all.into_iter().enumerate() {
                let mut memory = bulk.spare().unwrap_or_else(|| Aligned::new(PIECE));
                memory.copy_from_slice(&bytes(PIECE));
                let from = at * PIECE;
                for run in &runs {
                    expected[from + run.start..from + run.end].copy_from_slice(&memory[run.clone()]);
                }
                bulk.write_runs(memory, from as u64, runs).unwrap();
            }
            bulk.flush().unwrap();
            assert!(content(&file) == expected);
            assert!(bulk.spare().is_some());
        }
    }

    #[test]
    fn an_error_names_the_place() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut bytes = vec![0; 3 * BLOCK];
        bytes[2 * BLOCK] = 1;
        let mut bulk = Bulk::new(&full).unwrap();
        let written = bulk.write_sparse_at(&bytes, 1 << 20).and_then(|()| bulk.flush()).unwrap_err();
        assert_eq!((written.offset, written.error.raw_os_error()), ((1 << 20) + 8192, Some(libc::ENOSPC)));
    }
}
