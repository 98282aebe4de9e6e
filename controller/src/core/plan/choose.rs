//! Which disks are in, and by which method: the first that works for all of them together.
//! Makes no step; why a method does not work for a disk is said by the method.

use std::fmt::Write;

use serde::Serialize;

use crate::core::domain::{LeftOut, Source};
use crate::core::facts::GuestState;
use crate::core::options::{Memory, MethodChoice, Pause, Running};
use crate::core::viewspec::Method;

use super::{
    Case, Purpose, Reason, Refusal, Wanted, candidates, external, lvm, obstacles, offline, pull, reason,
    reflink, refuse,
};

/// What was chosen.
pub(super) struct Choice<'a> {
    pub method: Method,
    pub wanted: Vec<Wanted<'a>>,
    pub left_out: Vec<LeftOut>,
    pub notes: Vec<String>,
}

pub(super) fn choose<'a>(case: &Case<'a>) -> Result<Choice<'a>, Refusal> {
    let mut reasons = obstacles(case);
    let (wanted, left_out) = disks(case, &mut reasons);
    if let Some(why) = wrong_state(case) {
        return Err(refuse(case, reasons, why));
    }
    if case.purpose == Purpose::View {
        let unmet = |disk: &Wanted<'_>| Some(reason(disk.disk, candidates::obstacle(case, disk)?));
        reasons.extend(wanted.iter().filter_map(unmet));
    }
    let mut asked = asked(case);
    if case.options.method == MethodChoice::Auto && !wanted.iter().any(lvm::is_on_a_volume) {
        // Nobody has to be told that it does not work there.
        asked.retain(|method| *method != Method::Lvm);
    }
    let verdicts: Vec<_> = asked.iter().map(|method| (*method, against(case, *method, &wanted))).collect();
    let chosen = verdicts.iter().find(|(_, against)| against.is_empty()).map(|(method, _)| *method);
    let Some(method) = chosen.filter(|_| reasons.is_empty()) else {
        if chosen.is_none() {
            reasons.extend(told(case, &verdicts, &wanted));
        }
        return Err(Refusal { domain: case.domain.id.clone(), reasons });
    };
    let passed_over = verdicts.iter().take_while(|(other, _)| *other != method);
    let notes = passed_over.map(|(other, against)| format!("not by method {other}: {}", in_words(against)));
    Ok(Choice { method, notes: notes.collect(), wanted, left_out })
}

/// What `auto` would do, and what speaks against each method that would be better.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outlook {
    /// None: no backup is possible so.
    pub method: Option<Method>,
    pub passed_over: Vec<PassedOver>,
    /// What stands in the way of any method.
    pub obstacles: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PassedOver {
    pub method: Method,
    pub why: String,
}

/// Of the guest by itself: what an earlier job of ours has left is no matter, for the next one clears it.
pub fn outlook(case: &Case<'_>) -> Outlook {
    let mut reasons = Vec::new();
    let (wanted, _) = disks(case, &mut reasons);
    let of_all = wrong_state(case).into_iter().chain(super::tpm_refused(case));
    reasons.extend(of_all.map(|why| Reason { target: None, why }));
    let asked = asked(case);
    let verdicts: Vec<_> = asked.iter().map(|method| (*method, against(case, *method, &wanted))).collect();
    let fits = |(_, against): &&(Method, Vec<Reason>)| against.is_empty();
    let unfit = verdicts.iter().take_while(|verdict| !fits(verdict));
    let passed_over = unfit.map(|(method, against)| PassedOver { method: *method, why: in_words(against) });
    let obstacles: Vec<_> =
        reasons.into_iter().map(|reason| in_words(std::slice::from_ref(&reason))).collect();
    let method = verdicts.iter().find(fits).map(|(method, _)| *method).filter(|_| obstacles.is_empty());
    Outlook { method, passed_over: passed_over.collect(), obstacles }
}

/// Every disk is wanted, left out by name or for having no medium, or a reason to refuse.
fn disks<'a>(case: &Case<'a>, reasons: &mut Vec<Reason>) -> (Vec<Wanted<'a>>, Vec<LeftOut>) {
    let mut wanted = Vec::new();
    let mut left_out = case.domain.left_out.clone();
    for disk in &case.domain.disks {
        let what = disk.target.to_string();
        if case.options.exclude.contains(&disk.target) {
            left_out.push(LeftOut { what, reason: "excluded by name".to_owned() });
        } else if disk.source == Source::Nothing {
            left_out.push(LeftOut { what, reason: "no medium".to_owned() });
        } else if let Some(facts) = case.facts.disks.get(&disk.target) {
            wanted.push(Wanted { disk, facts });
        } else {
            reasons.push(reason(disk, format!("nothing could be found out about {}", disk.source)));
        }
    }
    if wanted.is_empty() && reasons.is_empty() {
        reasons.push(Reason { target: None, why: "there is no disk to back up".to_owned() });
    }
    (wanted, left_out)
}

fn wrong_state(case: &Case<'_>) -> Option<String> {
    match (&case.facts.guest.state, case.options.running) {
        (GuestState::Other(name), _) => {
            Some(format!("the guest is in the state {name:?}: neither running, paused nor shut off"))
        }
        _ if case.options.memory == Memory::Saved && wrong_for_memory(case) => {
            Some("the memory can be saved with method external only".to_owned())
        }
        (GuestState::Paused, Running::ShutDown { .. }) => {
            Some("the guest is paused and cannot shut down: resume it first".to_owned())
        }
        _ => None,
    }
}

fn wrong_for_memory(case: &Case<'_>) -> bool {
    let off = case.facts.guest.state == GuestState::ShutOff;
    !off && !matches!(case.options.method, MethodChoice::Auto | MethodChoice::External)
}

/// The methods that may be used, the best first.
fn asked(case: &Case<'_>) -> Vec<Method> {
    let off = case.facts.guest.state == GuestState::ShutOff;
    match case.options.method {
        // Only a snapshot that QEMU takes of both has them as of one point in time.
        MethodChoice::Auto if case.options.memory == Memory::Saved && !off => vec![Method::External],
        MethodChoice::Auto if off => vec![Method::Offline, Method::Lvm],
        MethodChoice::Auto if case.purpose == Purpose::Archive => {
            vec![Method::External, Method::Lvm, Method::Reflink, Method::Pull, Method::Offline]
        }
        MethodChoice::Auto => {
            let mut methods = vec![Method::Pull, Method::External, Method::Lvm, Method::Reflink];
            methods.extend((case.options.pause == Pause::AsLongAsItTakes).then_some(Method::Offline));
            methods
        }
        MethodChoice::Pull => vec![Method::Pull],
        MethodChoice::External => vec![Method::External],
        MethodChoice::Lvm => vec![Method::Lvm],
        MethodChoice::Reflink => vec![Method::Reflink],
        MethodChoice::Offline => vec![Method::Offline],
    }
}

/// What speaks against a method.
fn against(case: &Case<'_>, method: Method, wanted: &[Wanted<'_>]) -> Vec<Reason> {
    let loses = |disk: &&Wanted<'_>| {
        case.purpose == Purpose::Archive && method == Method::Pull && disk.facts.snapshots > 0
    };
    if let Some(disk) = wanted.iter().find(loses) {
        return vec![reason(disk.disk, "it would lose the snapshots that are within the image".to_owned())];
    }
    let (whole, of_disk): (_, fn(&Case<'_>, &Wanted<'_>) -> Option<String>) = match method {
        Method::Pull => (pull::unfit(case), pull::obstacle),
        Method::External => (external::unfit(case), external::obstacle),
        Method::Lvm => (lvm::unfit(case), lvm::obstacle),
        Method::Reflink => (reflink::unfit(case), reflink::obstacle),
        Method::Offline => (offline::unfit(case), offline::obstacle),
    };
    let whole = whole.map(|why| Reason { target: None, why });
    let disks = wanted.iter().filter_map(|disk| Some(reason(disk.disk, of_disk(case, disk)?)));
    whole.into_iter().chain(disks).collect()
}

/// All that was tried and what spoke against it; for each disk what would work for it alone.
fn told(case: &Case<'_>, verdicts: &[(Method, Vec<Reason>)], wanted: &[Wanted<'_>]) -> Vec<Reason> {
    let mut reasons = Vec::new();
    for (method, against) in verdicts {
        let prefixed = |reason: &Reason| Reason {
            target: reason.target.clone(),
            why: match verdicts {
                [_] => reason.why.clone(),
                _ => format!("method {method}: {}", reason.why),
            },
        };
        reasons.extend(against.iter().map(prefixed));
    }
    for disk in wanted {
        let alone = Method::ALL.into_iter().filter(|method| against(case, *method, &[*disk]).is_empty());
        let names: Vec<_> = alone.map(|method| method.to_string()).collect();
        let refused = reasons.iter().any(|reason| reason.target.as_ref() == Some(&disk.disk.target));
        let works = match names.is_empty() {
            true => format!("nothing works for it: leave it out with --exclude={}", disk.disk.target),
            false => format!("this would work for it: --method={}", names.join(" or ")),
        };
        reasons.extend(refused.then(|| reason(disk.disk, works)));
    }
    reasons
}

fn in_words(reasons: &[Reason]) -> String {
    let mut text = String::new();
    for (position, reason) in reasons.iter().enumerate() {
        let separator = if position > 0 { "; " } else { "" };
        let target = reason.target.as_ref().map(|target| format!("{target}: ")).unwrap_or_default();
        write!(text, "{separator}{target}{}", reason.why).expect("writing to a string does not fail");
    }
    text
}
