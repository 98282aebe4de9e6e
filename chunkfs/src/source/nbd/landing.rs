//! Where the bytes of a read go: into blocks that follow each other, each with somebody who waits for it.
//! What a reply may say is not judged here; no socket is read.

use super::answer::Promise;
use super::buffers::{Buffers, Content};
use std::ops::Range;

/// Places are offsets in what was asked for.
#[derive(Debug)]
pub(super) struct Landing {
    block_bytes: usize,
    /// The last may be short.
    blocks: Vec<Block>,
}

#[derive(Debug)]
struct Block {
    content: Option<Content>,
    /// Bytes that have not come yet.
    left: usize,
    promise: Promise<Content>,
}

/// Whether all of a block has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    Not,
    Whole,
}

impl Landing {
    /// `bytes` from the start of a block on; a promise for each that there is something of.
    pub(super) fn new(block_bytes: usize, bytes: usize, promises: Vec<Promise<Content>>) -> Landing {
        assert_eq!(promises.len(), bytes.div_ceil(block_bytes), "a promise for each block");
        let starts = (0..bytes).step_by(block_bytes);
        let block = |(start, promise)| Block { content: None, left: block_bytes.min(bytes - start), promise };
        Landing { block_bytes, blocks: starts.zip(promises).map(block).collect() }
    }

    /// Has the bytes at `place` written, which come now for the first time, a part in each block. What stands in a
    /// buffer before is never seen: a reply that does not overwrite all of it is not complete.
    pub(super) fn write<E>(
        &mut self,
        place: Range<usize>,
        buffers: &Buffers,
        mut write: impl FnMut(&mut [u8], Filled) -> Result<(), E>,
    ) -> Result<(), E> {
        for (block, part) in self.parts(place) {
            let block = &mut self.blocks[block];
            block.left -= part.len();
            let filled = if block.left == 0 { Filled::Whole } else { Filled::Not };
            let content = block.content.get_or_insert_with(|| Content::Bytes(buffers.take()));
            match content {
                Content::Bytes(bytes) => write(&mut bytes[part], filled)?,
                Content::Zeros => unreachable!("all of it has come as a hole, so nothing more was accepted"),
            }
        }
        Ok(())
    }

    /// The bytes at `place` are zeros.
    pub(super) fn zero(&mut self, place: Range<usize>, buffers: &Buffers) {
        for (block, part) in self.parts(place) {
            let block = &mut self.blocks[block];
            block.left -= part.len();
            if block.left == 0 && block.content.is_none() {
                block.content = Some(Content::Zeros);
            } else if let Content::Bytes(bytes) =
                block.content.get_or_insert_with(|| Content::Bytes(buffers.take()))
            {
                bytes[part].fill(0);
            }
        }
    }

    /// All has come.
    pub(super) fn finish(self) {
        for block in self.blocks {
            block.promise.keep(block.content.expect("what is complete has content"));
        }
    }

    /// The blocks that have something of `place`, and which part of each.
    fn parts(&self, place: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
        let size = self.block_bytes;
        (place.start / size..place.end.div_ceil(size)).map(move |block| {
            let start = block * size;
            (block, place.start.max(start) - start..place.end.min(start + size) - start)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::answer::{Answer, promise};
    use super::*;
    use std::convert::Infallible;
    use std::sync::Arc;

    fn landing(bytes: usize) -> (Landing, Vec<Arc<Answer<Content>>>) {
        let (promises, answers) = (0..bytes.div_ceil(8)).map(|_| promise()).unzip();
        (Landing::new(8, bytes, promises), answers)
    }

    fn bytes_of(answer: &Answer<Content>) -> Option<&[u8]> {
        match answer.wait().unwrap() {
            Content::Bytes(bytes) => Some(bytes),
            Content::Zeros => None,
        }
    }

    #[test]
    fn bytes_come_to_their_blocks_in_whatever_pieces() {
        let buffers = Buffers::new(8);
        for cuts in [vec![0, 20], vec![0, 3, 8, 9, 20], vec![0, 7, 17, 20]] {
            let (mut landing, answers) = landing(20);
            for (from, to) in cuts.iter().zip(&cuts[1..]).rev() {
                let mut next = *from as u8;
                let write = |part: &mut [u8], _| {
                    part.iter_mut().for_each(|byte| (*byte, next) = (next, next + 1));
                    Ok::<(), Infallible>(())
                };
                landing.write(*from..*to, &buffers, write).unwrap();
            }
            landing.finish();
            let came: Vec<u8> =
                answers.iter().flat_map(|answer| bytes_of(answer).unwrap().to_vec()).collect();
            assert_eq!(came[..20], (0..20).collect::<Vec<u8>>(), "{cuts:?}");
        }
    }

    #[test]
    fn a_block_that_is_all_hole_takes_no_buffer_and_one_that_is_not_is_written() {
        let buffers = Buffers::new(8);
        let (mut landing, answers) = landing(20);
        landing.zero(5..20, &buffers);
        let write = |part: &mut [u8], filled| {
            assert_eq!(filled, Filled::Whole, "the rest has come before");
            part.fill(7);
            Ok::<(), Infallible>(())
        };
        landing.write(0..5, &buffers, write).unwrap();
        landing.finish();
        assert_eq!(bytes_of(&answers[0]), Some(&[7, 7, 7, 7, 7, 0, 0, 0][..]));
        assert!(answers[1..].iter().all(|answer| bytes_of(answer).is_none()), "the short one, too");
    }

    #[test]
    fn who_waits_for_a_block_of_a_read_that_ends_before_it_is_complete_is_told() {
        let (mut landing, answers) = landing(16);
        landing.zero(0..8, &Buffers::new(8));
        drop(landing);
        assert!(answers.iter().all(|answer| answer.wait().is_none()));
    }
}
