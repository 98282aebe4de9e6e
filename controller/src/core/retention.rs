//! Which archives of a VM stay and which go, each with its reason.
//! Pure: who is complete, and who is in use, is the caller's to find out; nothing is removed here.

mod date;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU32;

use serde::Serialize;

use date::Period;
pub use date::{ArchiveName, ArchiveNameError};

/// What is to be kept. Each rule counts by itself, and what any of them keeps stays, as restic does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The newest.
    pub last: Option<NonZeroU32>,
    /// The newest of each of the last so many days that have one; and so on.
    pub daily: Option<NonZeroU32>,
    pub weekly: Option<NonZeroU32>,
    pub monthly: Option<NonZeroU32>,
    pub yearly: Option<NonZeroU32>,
}

impl Policy {
    /// Nothing is ever removed.
    pub const KEEP_ALL: Policy =
        Policy { last: None, daily: None, weekly: None, monthly: None, yearly: None };

    fn rules(&self) -> [(Period, Option<NonZeroU32>); 5] {
        [
            (Period::Each, self.last),
            (Period::Day, self.daily),
            (Period::Week, self.weekly),
            (Period::Month, self.monthly),
            (Period::Year, self.yearly),
        ]
    }
}

/// A directory whose name is that of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    pub name: ArchiveName,
    pub state: State,
    /// Domains that are defined and have a disk in it.
    pub used_by: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its manifest is there.
    Complete,
    /// Proven to be ours, without a manifest, and nobody is at work on it any more.
    CutOff,
    /// Without a manifest and without a mark of ours: perhaps another program's, and a good backup.
    Unknown,
}

/// What becomes of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub name: ArchiveName,
    pub fate: Fate,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// For all these reasons.
    Keep(Vec<Reason>),
    Remove(Useless),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// No rule was given.
    NoPolicy,
    /// Whatever its name says: the clock may have been set back.
    MadeJustNow,
    Newest,
    NewestOfDay,
    NewestOfWeek,
    NewestOfMonth,
    NewestOfYear,
    UsedBy(Vec<String>),
    NotKnownToBeOurs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Useless {
    /// It is complete, and no rule keeps it.
    Superfluous,
    CutOff,
}

/// A verdict for each archive, the newest first. `made` is the archive of this very run.
pub fn judge(archives: &[Archive], policy: &Policy, made: Option<&ArchiveName>) -> Vec<Verdict> {
    let mut sorted: Vec<&Archive> = archives.iter().collect();
    sorted.sort_by_key(|archive| Reverse(&archive.name));
    let complete: Vec<&ArchiveName> = sorted
        .iter()
        .filter(|archive| archive.state == State::Complete)
        .map(|archive| &archive.name)
        .collect();
    let kept: Vec<(Period, BTreeSet<&ArchiveName>)> = policy
        .rules()
        .into_iter()
        .map(|(period, count)| (period, newest(&complete, period, count)))
        .collect();
    let verdict = |archive: &&Archive| {
        let by_rule = kept.iter().filter(|(_, names)| names.contains(&archive.name));
        let mut reasons: Vec<Reason> = by_rule.map(|(period, _)| reason(*period)).collect();
        reasons.extend((made == Some(&archive.name)).then_some(Reason::MadeJustNow));
        reasons.extend((!archive.used_by.is_empty()).then(|| Reason::UsedBy(archive.used_by.clone())));
        reasons.extend((archive.state == State::Unknown).then_some(Reason::NotKnownToBeOurs));
        reasons.extend((*policy == Policy::KEEP_ALL).then_some(Reason::NoPolicy));
        let useless = match archive.state {
            State::Complete => Useless::Superfluous,
            State::CutOff | State::Unknown => Useless::CutOff,
        };
        let fate = if reasons.is_empty() { Fate::Remove(useless) } else { Fate::Keep(reasons) };
        Verdict { name: archive.name.clone(), fate }
    };
    sorted.iter().map(verdict).collect()
}

/// The newest of each of the last `count` periods that have any. `complete` has the newest first.
fn newest<'a>(
    complete: &[&'a ArchiveName],
    period: Period,
    count: Option<NonZeroU32>,
) -> BTreeSet<&'a ArchiveName> {
    let mut kept = BTreeSet::new();
    let count = count.map_or(0, NonZeroU32::get) as usize;
    let mut last: Option<&ArchiveName> = None;
    for name in complete {
        if kept.len() == count {
            break;
        }
        if !last.is_some_and(|last| period.holds_both(last, name)) {
            kept.insert(*name);
        }
        last = Some(name);
    }
    kept
}

fn reason(period: Period) -> Reason {
    match period {
        Period::Each => Reason::Newest,
        Period::Day => Reason::NewestOfDay,
        Period::Week => Reason::NewestOfWeek,
        Period::Month => Reason::NewestOfMonth,
        Period::Year => Reason::NewestOfYear,
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::NoPolicy => f.write_str("no limit was given"),
            Reason::MadeJustNow => f.write_str("made just now"),
            Reason::Newest => f.write_str("one of the newest"),
            Reason::NewestOfDay => f.write_str("the newest of its day"),
            Reason::NewestOfWeek => f.write_str("the newest of its week"),
            Reason::NewestOfMonth => f.write_str("the newest of its month"),
            Reason::NewestOfYear => f.write_str("the newest of its year"),
            Reason::UsedBy(domains) => write!(f, "in use by {}", domains.join(", ")),
            Reason::NotKnownToBeOurs => {
                f.write_str("it has no manifest, and nothing tells that it is one of ours")
            }
        }
    }
}

impl fmt::Display for Useless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Useless::Superfluous => "no rule keeps it",
            Useless::CutOff => "it was never completed",
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.fate {
            Fate::Keep(reasons) => {
                let reasons: Vec<_> = reasons.iter().map(Reason::to_string).collect();
                write!(f, "{} stays: {}", self.name, reasons.join("; "))
            }
            Fate::Remove(why) => write!(f, "{} goes: {why}", self.name),
        }
    }
}
