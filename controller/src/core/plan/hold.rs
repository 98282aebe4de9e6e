//! What is done to the guest around the moment of the point in time: freeze, suspend, shut down; and what that makes of
//! the content. Each is taken back as soon as the point in time is taken, and by cleanup if that is not reached.

use crate::core::domain::DomainId;
use crate::core::facts::{Agent, GuestState, Stopped};
use crate::core::options::{Memory, Quiesce, Running};
use crate::core::step::{Need, Step};
use crate::core::viewspec::{Consistency, Method};

use super::Case;

/// Around what QEMU does at one point in time by itself. A guest that is to be shut down first is started again,
/// suspended, for only a guest that has a QEMU can be backed up so; it goes on from the point in time.
pub(super) fn atomically(case: &Case<'_>, take: Vec<Step>) -> Vec<Step> {
    let domain = case.domain.id.clone();
    match shut_down(case) {
        Some(shut_down) => {
            let start = Step::StartSuspended { domain };
            let resume = early(&start);
            [shut_down, start].into_iter().chain(take).chain([resume]).collect()
        }
        None => frozen(case, take),
    }
}

/// Around something that takes a moment, in which the guest must not write.
pub(super) fn suspended(case: &Case<'_>, take: Vec<Step>) -> Vec<Step> {
    unsuspended(case, around(suspend(case).filter(|_| shut_down(case).is_none()), take))
}

/// Around something that is one point in time even of a guest that writes.
pub(super) fn unsuspended(case: &Case<'_>, take: Vec<Step>) -> Vec<Step> {
    match shut_down(case) {
        Some(shut_down) => around(Some(shut_down), take),
        None => frozen(case, take),
    }
}

/// A step before, and its undo as soon as the rest is done.
fn around(hold: Option<Step>, take: Vec<Step>) -> Vec<Step> {
    let release = hold.as_ref().map(early);
    hold.into_iter().chain(take).chain(release).collect()
}

/// For as long as the work takes: cleanup takes it back.
pub(super) fn for_long(case: &Case<'_>) -> Option<Step> {
    shut_down(case).or_else(|| suspend(case))
}

fn frozen(case: &Case<'_>, take: Vec<Step>) -> Vec<Step> {
    let freeze = freeze_need(case).map(|need| Step::Freeze { domain: case.domain.id.clone(), need });
    around(freeze, take)
}

fn early(step: &Step) -> Step {
    Step::Early(step.undo().expect("what holds a guest has an undo"))
}

fn shut_down(case: &Case<'_>) -> Option<Step> {
    let domain: DomainId = case.domain.id.clone();
    match (case.options.running, &case.facts.guest.state) {
        (Running::ShutDown { within_secs }, GuestState::Running) => {
            Some(Step::ShutDown { domain, within_secs })
        }
        _ => None,
    }
}

/// None: it does not run, by somebody else's will.
fn suspend(case: &Case<'_>) -> Option<Step> {
    let running = case.facts.guest.state == GuestState::Running;
    running.then(|| Step::Suspend { domain: case.domain.id.clone() })
}

/// A guest that is off, or is shut down first, has none worth saving.
pub(super) fn saves_memory(case: &Case<'_>) -> bool {
    let off = case.facts.guest.state == GuestState::ShutOff;
    case.options.memory == Memory::Saved && case.options.running == Running::Stays && !off
}

/// A guest that was frozen when its memory was saved is frozen for ever when it goes on from there: nobody thaws it.
/// Nor does it need it, for what it has not written to its disks is in its memory.
pub(super) fn unfreezable(case: &Case<'_>) -> Option<String> {
    let both = saves_memory(case) && case.options.quiesce == Quiesce::Require;
    both.then(|| {
        "--quiesce=require does not go with --state: the guest would be frozen in its memory".to_owned()
    })
}

fn freeze_need(case: &Case<'_>) -> Option<Need> {
    if case.facts.guest.state != GuestState::Running || saves_memory(case) {
        return None;
    }
    match (case.options.quiesce, case.facts.guest.agent) {
        (Quiesce::No, _) | (Quiesce::Auto, Agent::Absent) => None,
        (Quiesce::Auto, Agent::Connected) => Some(Need::Wished),
        (Quiesce::Require, _) => Some(Need::Required),
    }
}

/// Unless the freeze that the plan tries succeeds.
pub(super) fn consistency(case: &Case<'_>, method: Method) -> Consistency {
    let guest = &case.facts.guest;
    match (&guest.state, case.options.running) {
        (GuestState::ShutOff, _) if guest.stopped == Stopped::Perhaps => Consistency::Crash,
        (GuestState::ShutOff, _) | (GuestState::Running, Running::ShutDown { .. }) => Consistency::ShutDown,
        _ if method == Method::External && case.options.memory == Memory::Saved => Consistency::Memory,
        (GuestState::Paused, _) if method == Method::Offline => Consistency::Suspended,
        (GuestState::Running, _) if method == Method::Offline => Consistency::Suspended,
        _ => Consistency::Crash,
    }
}

/// What a user of `--quiesce=auto` should know.
pub(super) fn notes(case: &Case<'_>) -> Vec<String> {
    let running = case.facts.guest.state == GuestState::Running && case.options.running == Running::Stays;
    let without = case.options.quiesce == Quiesce::Auto && case.facts.guest.agent == Agent::Absent;
    if case.options.memory == Memory::Saved && case.facts.guest.state == GuestState::ShutOff {
        return vec!["the guest is shut off: there is no memory to save".to_owned()];
    }
    let note = "no guest agent: the disks are as after a power cut".to_owned();
    (running && without && !saves_memory(case)).then_some(note).into_iter().collect()
}
