//! For every plan and every effect: fail there, crash there, lose power there; clean up; the world is as before.
//! On the simulated host. Prints a table of what was tried (`--nocapture`).

#![expect(clippy::unwrap_used, reason = "a test that cannot set up its world has to stop")]

mod world;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use virt_backup::command::{self, Failure};
use virt_backup::core::options::{JobLimit, MethodChoice};
use virt_backup::host::sim::{Fault, FaultKind, SimHost, World};

use world::{
    Scenario, assert_archives_are_complete, assert_as_before, assert_dumps_are_complete, places, power_on,
    scenarios,
};

type Shared = Rc<RefCell<World>>;

fn begin(host: &SimHost, scenario: &Scenario) -> Result<(), Failure> {
    let (places, never) = (places(), || false);
    if let Some(archive) = &scenario.archive {
        let wishes = (&scenario.options, archive);
        return command::archive(host, &places, "mail01", wishes, JobLimit::Unlimited, &never).map(drop);
    }
    if let Some(dump) = &scenario.dump {
        let wishes = (&scenario.options, dump);
        return command::dump(host, &places, "mail01", wishes, JobLimit::Unlimited, &never).map(drop);
    }
    command::chunkmount(host, &places, "mail01", &scenario.options, JobLimit::Unlimited, &never).map(drop)
}

fn cleanup(host: &SimHost) -> Result<(), Failure> {
    command::cleanup(host, &places(), "mail01").map(drop)
}

/// What one job of two processes came to.
struct Told {
    effects: usize,
    failure: Option<Failure>,
    log: Vec<String>,
}

/// chunkmount or dump in one process and cleanup in the next, as a backup tool's hooks run them; effects are counted through.
fn job(world: &Shared, scenario: &Scenario, fault: Option<Fault>) -> Told {
    let first = SimHost::new(world, fault);
    let mounted = begin(&first, scenario);
    assert_dumps_are_complete(&world.borrow(), scenario.name);
    assert_archives_are_complete(&world.borrow(), false, scenario.name);
    let (effects, mut log) = (first.effects(), first.log());
    first.exit();
    if let Err(failure) = mounted {
        return Told { effects, failure: Some(failure), log };
    }
    let rest = fault.filter(|fault| fault.at > effects);
    let second = SimHost::new(world, rest.map(|fault| Fault { at: fault.at - effects, ..fault }));
    let cleaned = cleanup(&second);
    log.extend(second.log());
    let effects = effects + second.effects();
    second.exit();
    Told { effects, failure: cleaned.err(), log }
}

fn recover(world: &Shared, fault: Option<Fault>) -> (usize, Result<(), Failure>) {
    let host = SimHost::new(world, fault);
    let outcome = cleanup(&host);
    let effects = host.effects();
    host.exit();
    (effects, outcome)
}

fn share(world: &World) -> Shared {
    Rc::new(RefCell::new(world.clone()))
}

/// After the worst, the next job works and leaves exactly what one after a good job would.
fn assert_next_job_is_right(world: &Shared, scenario: &Scenario, story: &str) {
    if scenario.guest_runs {
        power_on(&mut world.borrow_mut(), scenario);
    }
    let told = job(world, scenario, None);
    assert!(told.failure.is_none(), "{story}: the next job: {:?}", told.failure);
    let world = world.borrow();
    assert_as_before(&world, scenario, &format!("{story}: after the next job"));
    let left = world::our_checkpoints(&world).len();
    // After a power cut no bitmap is to be believed, and only method pull makes a new one.
    let lost = world.boots > scenario.world.boots && scenario.options.method != MethodChoice::Auto;
    assert!(left == scenario.checkpoints_left || lost && left == 0, "{story}: {left} checkpoints are left");
}

#[test]
fn every_job_without_a_fault_leaves_the_world_as_it_was() {
    for scenario in scenarios() {
        let world = share(&scenario.world);
        let told = job(&world, &scenario, None);
        assert!(told.failure.is_none(), "{}: {:?}", scenario.name, told.failure);
        assert_as_before(&world.borrow(), &scenario, scenario.name);
        assert_eq!(
            world::our_checkpoints(&world.borrow()).len(),
            scenario.checkpoints_left,
            "{}",
            scenario.name
        );
        let (effects, again) = recover(&world, None);
        assert!(again.is_ok() && effects > 0, "cleanup after cleanup is fine");
        assert_next_job_is_right(&world, &scenario, scenario.name);
    }
}

#[test]
fn cleanup_after_a_fault_at_any_effect_restores_the_world() {
    let mut table: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for scenario in scenarios() {
        let whole = job(&share(&scenario.world), &scenario, None);
        let mut runs = 0;
        for at in 1..=whole.effects {
            for kind in FaultKind::ALL {
                let story = format!("{}: {kind:?} at {at} ({})", scenario.name, whole.log[at - 1]);
                let world = share(&scenario.world);
                let told = job(&world, &scenario, Some(Fault { at, kind }));
                check_after_fault(&world, &scenario, told, kind, &story);
                runs += 1;
            }
        }
        table.insert(scenario.name, (whole.effects, runs));
    }
    println!("{:<44} {:>7} {:>9}", "plan", "effects", "faults");
    for (name, (effects, runs)) in &table {
        println!("{name:<44} {effects:>7} {runs:>9}");
    }
    println!("{:<44} {:>7} {:>9}", "all", "", table.values().map(|(_, runs)| runs).sum::<usize>());
}

fn check_after_fault(world: &Shared, scenario: &Scenario, told: Told, kind: FaultKind, story: &str) {
    if let Some(failure) = &told.failure
        && !kind.kills()
        && failure.exit_status == 1
    {
        assert_as_before(
            &world.borrow(),
            scenario,
            &format!("{story}: it said that nothing is left ({failure})"),
        );
    }
    let (_, recovered) = recover(world, None);
    assert!(recovered.is_ok(), "{story}: cleanup: {:?}", recovered.err());
    assert_archives_are_complete(&world.borrow(), true, story);
    assert_as_before(&world.borrow(), scenario, story);
    assert_next_job_is_right(world, scenario, story);
}

#[test]
fn a_fault_in_the_cleanup_after_a_fault_is_cleaned_up_by_the_next() {
    const FIRST: [FaultKind; 2] = [FaultKind::CrashBefore, FaultKind::PowerCutAfter];
    const SECOND: [FaultKind; 3] = [FaultKind::FailBefore, FaultKind::CrashBefore, FaultKind::PowerCutAfter];
    let (mut runs, mut pairs) = (0, Vec::new());
    for scenario in scenarios().into_iter().filter(|scenario| scenario.twice) {
        let whole = job(&share(&scenario.world), &scenario, None).effects;
        for (at, kind) in (1..=whole).flat_map(|at| FIRST.map(|kind| (at, kind))) {
            let broken = share(&scenario.world);
            job(&broken, &scenario, Some(Fault { at, kind }));
            let broken = broken.borrow().clone();
            let (effects, _) = recover(&share(&broken), None);
            for (then, second) in (1..=effects).flat_map(|at| SECOND.map(|kind| (at, kind))) {
                let story =
                    format!("{}: {kind:?} at {at}, then {second:?} at {then} of cleanup", scenario.name);
                let world = share(&broken);
                drop(recover(&world, Some(Fault { at: then, kind: second })));
                let (_, recovered) = recover(&world, None);
                assert!(recovered.is_ok(), "{story}: {:?}", recovered.err());
                assert_as_before(&world.borrow(), &scenario, &story);
                runs += 1;
            }
        }
        pairs.push((scenario.name, runs));
    }
    println!("pairs of faults, running total: {pairs:?}");
}
