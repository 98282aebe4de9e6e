//! One BLAKE3 digest of a whole disk from the digests of its blocks, which several threads take.
//! Only the rules of the tree (the BLAKE3 paper, 2.4): a block is a subtree, two subtrees of a size are one above them.

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use blake3::{Hash, Hasher};
use chunkfs::core::geometry::ByteRange;

/// What a block adds to the digest. The blocks have one length, a power of two from 1 KiB on; the last may be short.
#[derive(Clone, Copy, Debug)]
pub(super) enum Leaf {
    /// The only block: the root itself.
    Whole(Hash),
    Part(ChainingValue),
}

impl Leaf {
    /// `parts`: of the block, one after the other. `range`: of the block. `len`: of the disk.
    pub(super) fn of<'a>(parts: impl IntoIterator<Item = &'a [u8]>, range: ByteRange, len: u64) -> Leaf {
        let mut hasher = Hasher::new();
        hasher.set_input_offset(range.start);
        parts.into_iter().for_each(|part| _ = hasher.update(part));
        match range.len() == len {
            true => Leaf::Whole(hasher.finalize()),
            false => Leaf::Part(hasher.finalize_non_root()),
        }
    }
}

/// Takes the leaves in order.
#[derive(Debug, Default)]
pub(super) struct Tree {
    whole: Option<Hash>,
    /// Subtrees that have no partner yet, the largest first: one for each bit of the number of leaves, or one more.
    stack: Vec<ChainingValue>,
    leaves: u64,
}

impl Tree {
    pub(super) fn push(&mut self, leaf: Leaf) {
        match leaf {
            Leaf::Whole(hash) => self.whole = Some(hash),
            Leaf::Part(value) => {
                // Merged only now that more follows: what comes last is merged as the root.
                while self.stack.len() > self.leaves.count_ones() as usize {
                    self.merge();
                }
                self.stack.push(value);
            }
        }
        self.leaves += 1;
    }

    pub(super) fn digest(mut self) -> Hash {
        if self.leaves == 0 {
            return blake3::hash(b"");
        }
        while self.stack.len() > 2 {
            self.merge();
        }
        match (self.whole, self.stack.as_slice()) {
            (Some(hash), _) => hash,
            (None, [left, right]) => merge_subtrees_root(left, right, Mode::Hash),
            (None, _) => unreachable!("a part has at least one more beside it"),
        }
    }

    fn merge(&mut self) {
        let right = self.stack.pop().expect("there are more than one");
        let left = self.stack.pop().expect("there are more than one");
        self.stack.push(merge_subtrees_non_root(&left, &right, Mode::Hash));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_digest_of_the_blocks_is_that_of_the_whole(
            len in prop_oneof![0usize..200_000, (0usize..50).prop_map(|n| n * 4096), Just(65536), Just(65537)],
            block in prop_oneof![Just(1024usize), Just(4096), Just(65536)], seed in any::<u8>(),
        ) {
            let bytes: Vec<u8> = (0..len).map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ seed).collect();
            let mut tree = Tree::default();
            for (number, part) in bytes.chunks(block).enumerate() {
                let start = (number * block) as u64;
                let (one, other) = part.split_at(usize::from(seed) * part.len() / 255);
                let range = ByteRange::new(start, start + part.len() as u64);
                tree.push(Leaf::of([one, other], range, len as u64));
            }
            prop_assert_eq!(tree.digest(), blake3::hash(&bytes));
        }
    }
}
