//! The proof by sample of what a change tracker calls clean (T4).
//! Reads a few chunks; nothing has been shown yet when it does.

use super::compare::{Buffer, content_of};
use crate::core::geometry::{CHUNKS_PER_LEAF, ChunkIndex};
use crate::index::record::Content;
use crate::index::{DiskState, Index, IndexError, Tracking};
use crate::source::Source;
use std::hash::{BuildHasher, RandomState};

/// How many clean chunks of a disk are read all the same: of a disk that has no more, all.
const SAMPLE: u64 = 16;

/// Reads some chunks that are said to be unchanged. One that is not makes this generation and the next compare
/// everything: nothing has been shown yet, so nothing wrong ever is.
pub fn check_sample(index: &Index, source: &dyn Source, state: &mut DiskState) -> Result<(), IndexError> {
    if matches!(state.tracking, Tracking::Digests { .. }) {
        return Ok(());
    }
    let clean_to = (state.compared_to.saturating_mul(CHUNKS_PER_LEAF)).min(state.geometry.chunk_count());
    let mut buffer = Buffer::default();
    for number in sample_below(clean_to) {
        let chunk = ChunkIndex(number);
        let (run, candidates) = index.leaf_at(state.slot, chunk.leaf())?;
        let known = run.record.chunk(chunk.slot_in_leaf()).content;
        if known == Content::Unknown || candidates.contains(chunk.slot_in_leaf()) {
            continue;
        }
        let range = state.geometry.range_of(chunk).expect("the chunk is in the image");
        // What cannot be read is found out by whoever reads it.
        let Ok(now) = content_of(source, range, &mut buffer, &mut 0) else { continue };
        if now != known {
            let why = format!("chunk {number} was said to be unchanged, and is not");
            tracing::error!("disk {}: {why}; this view and the next compare all chunks", state.name);
            index.distrust(state.slot)?;
            state.compared_to = 0;
            state.tracking = Tracking::Digests { why };
            break;
        }
    }
    Ok(())
}

/// `SAMPLE` numbers below `below`, or all of them.
fn sample_below(below: u64) -> Vec<u64> {
    match below {
        0..=SAMPLE => (0..below).collect(),
        // Its keys come from the system's random numbers.
        _ => (0..SAMPLE).map(|number| RandomState::new().hash_one(number) % below).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_of_few_is_all_of_them_and_of_many_is_spread() {
        assert!(sample_below(0).is_empty());
        assert_eq!(sample_below(SAMPLE), (0..SAMPLE).collect::<Vec<_>>());
        let mut seen = [0; 4];
        for _ in 0..100 {
            let sample = sample_below(1 << 51);
            assert_eq!(sample.len() as u64, SAMPLE);
            sample.iter().for_each(|number| seen[(number >> 49) as usize] += 1);
        }
        assert!(seen.iter().all(|count| *count > 300), "{seen:?}");
    }
}
