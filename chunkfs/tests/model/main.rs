//! Random lives of a VM's disks and of what backs them up, against a naive model of the contract.
//!
//! Everything but FUSE is real: index, comparison, view. A world (`world.rs`) writes to disks, mounts, looks, closes
//! and kills at random; a witness (`witness.rs`) keeps all that was ever shown, and knows the contract. The clock is
//! the world's. A seed decides what happens; the threads, and so the moments, are the machine's.
//!
//! CHUNKFS_MODEL_SEED=n runs that one life; CHUNKFS_MODEL_STEPS=n makes the lives longer or shorter together;
//! CHUNKFS_MODEL_FIRST=n lives other lives than those that are lived in every run.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod chance;
mod disk;
mod generation;
mod witness;
mod world;

use std::time::Instant;
use world::World;

const LIVES: u64 = 12;
const STEPS: u64 = 8_000;

#[test]
fn whatever_happens_the_contract_holds() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let steps = number("CHUNKFS_MODEL_STEPS").unwrap_or(STEPS);
    let seeds = match number("CHUNKFS_MODEL_SEED") {
        Some(seed) => vec![seed],
        None => {
            let first = number("CHUNKFS_MODEL_FIRST").unwrap_or(1);
            (0..LIVES).map(|life| first + life).collect()
        }
    };
    let started = Instant::now();
    let mut totals = world::Totals::default();
    for seed in &seeds {
        println!("CHUNKFS_MODEL_SEED={seed}");
        totals += World::new(*seed).live(steps / seeds.len() as u64);
    }
    println!("{totals:#?} in {:.1} s", started.elapsed().as_secs_f64());
    // A test that looks at nothing finds nothing.
    assert!(totals.killed > 0 && totals.closed > 0 && totals.complete > 0, "{totals:?}");
    assert!(totals.shown > steps, "{totals:?}");
}
