//! Which blocks of a piece are to be written, which to be made zero, and which are as they should be.
//! Pure.

use crate::core::digest::is_zero;
use std::ops::Range;

/// The unit in which bytes are compared and left out: that of most file systems.
pub(super) const BLOCK: usize = 4096;

/// What the target is known to have where the piece goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Before<'a> {
    Zeros,
    Unknown,
    Bytes(&'a [u8]),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Keep,
    /// It is zero and is to stay so; but it may be stored, and need not.
    KeepZero,
    Write,
    MakeZero,
}

/// Blocks that lie side by side and have the same action, in order; together all of the piece. The last block may
/// be short.
pub(super) fn runs(piece: &[u8], before: Before<'_>) -> Vec<(Range<usize>, Action)> {
    let mut runs: Vec<(Range<usize>, Action)> = Vec::new();
    for start in (0..piece.len()).step_by(BLOCK) {
        let block = start..piece.len().min(start + BLOCK);
        let action = action(&piece[block.clone()], before, &block);
        match runs.last_mut().filter(|(_, last)| *last == action) {
            Some((range, _)) => range.end = block.end,
            None => runs.push((block, action)),
        }
    }
    runs
}

fn action(block: &[u8], before: Before<'_>, at: &Range<usize>) -> Action {
    match (before, is_zero(block)) {
        (Before::Zeros, true) => Action::Keep,
        (Before::Unknown, true) => Action::MakeZero,
        (Before::Bytes(bytes), true) if is_zero(&bytes[at.clone()]) => Action::KeepZero,
        (Before::Bytes(_), true) => Action::MakeZero,
        (Before::Bytes(bytes), false) if bytes[at.clone()] == *block => Action::Keep,
        (_, false) => Action::Write,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_tile_the_piece_and_say_what_to_do() {
        use Action::*;
        // Blocks: zero, one, one, zero, and a short one.
        let mut piece = vec![0; 4 * BLOCK + 10];
        piece[BLOCK..3 * BLOCK].fill(1);
        piece[4 * BLOCK..].fill(1);
        let mut old = vec![0; piece.len()];
        old[2 * BLOCK..4 * BLOCK].fill(1);
        for (before, expected) in [
            (Before::Zeros, vec![Keep, Write, Write, Keep, Write]),
            (Before::Unknown, vec![MakeZero, Write, Write, MakeZero, Write]),
            (Before::Bytes(&old), vec![KeepZero, Write, Keep, MakeZero, Write]),
            (Before::Bytes(&piece), vec![KeepZero, Keep, Keep, KeepZero, Keep]),
        ] {
            let mut at = 0;
            let mut actions = Vec::new();
            for (range, action) in runs(&piece, before) {
                assert_eq!(range.start, at);
                at = range.end;
                actions.extend(std::iter::repeat_n(action, range.len().div_ceil(BLOCK)));
            }
            assert_eq!(at, piece.len());
            assert_eq!(actions, expected);
        }
        assert_eq!(runs(&[], Before::Zeros), []);
    }
}
