//! What stays of what, as tables.

use super::*;

const NONE: Policy = Policy::KEEP_ALL;

fn some(count: u32) -> Option<NonZeroU32> {
    NonZeroU32::new(count)
}

fn name(text: &str) -> ArchiveName {
    ArchiveName::parse(text).unwrap()
}

/// `!` behind a name: cut off; `?`: nobody knows; `*`: in use by a domain.
fn archive(text: &str) -> Archive {
    let state = match text {
        text if text.contains('!') => State::CutOff,
        text if text.contains('?') => State::Unknown,
        _ => State::Complete,
    };
    let used_by = if text.contains('*') { vec!["mail01-restore".to_owned()] } else { Vec::new() };
    Archive { name: name(text.trim_end_matches(['!', '?', '*'])), state, used_by }
}

fn judged(archives: &[&str], policy: Policy, made: Option<&str>) -> Vec<Verdict> {
    let archives: Vec<_> = archives.iter().copied().map(archive).collect();
    judge(&archives, &policy, made.map(name).as_ref())
}

fn staying(archives: &[&str], policy: Policy, made: Option<&str>) -> Vec<String> {
    let verdicts = judged(archives, policy, made).into_iter();
    verdicts.filter(|v| matches!(v.fate, Fate::Keep(_))).map(|v| v.name.to_string()).collect()
}

#[test]
fn of_nine_archives_with_two_cut_off_and_one_in_use_three_and_the_one_in_use_stay() {
    let nine = [
        "2025-07-01-020000",
        "2025-07-02-020000*",
        "2025-07-03-020000",
        "2025-07-04-020000!",
        "2025-07-05-020000",
        "2025-07-06-020000",
        "2025-07-07-020000",
        "2025-07-08-020000",
        "2025-07-09-020000!",
    ];
    let told: Vec<_> =
        judged(&nine, Policy { last: some(3), ..NONE }, None).iter().map(Verdict::to_string).collect();
    assert_eq!(
        told,
        [
            "2025-07-09-020000 goes: it was never completed",
            "2025-07-08-020000 stays: one of the newest",
            "2025-07-07-020000 stays: one of the newest",
            "2025-07-06-020000 stays: one of the newest",
            "2025-07-05-020000 goes: no rule keeps it",
            "2025-07-04-020000 goes: it was never completed",
            "2025-07-03-020000 goes: no rule keeps it",
            "2025-07-02-020000 stays: in use by mail01-restore",
            "2025-07-01-020000 goes: no rule keeps it",
        ]
    );
}

#[test]
fn each_rule_keeps_the_newest_of_its_periods() {
    let archives = [
        "2023-12-31-120000",
        "2024-06-30-120000",
        "2024-12-29-120000",
        "2024-12-30-120000",
        "2025-01-05-120000",
        "2025-01-06-060000",
        "2025-01-06-120000",
        "2025-01-07-120000",
    ];
    let cases = [
        (Policy { last: some(2), ..NONE }, vec!["2025-01-07-120000", "2025-01-06-120000"]),
        (
            Policy { daily: some(3), ..NONE },
            vec!["2025-01-07-120000", "2025-01-06-120000", "2025-01-05-120000"],
        ),
        // The week of 30 December goes up to 5 January, and has one of each year.
        (
            Policy { weekly: some(3), ..NONE },
            vec!["2025-01-07-120000", "2025-01-05-120000", "2024-12-29-120000"],
        ),
        // Months without an archive do not count.
        (
            Policy { monthly: some(3), ..NONE },
            vec!["2025-01-07-120000", "2024-12-30-120000", "2024-06-30-120000"],
        ),
        (
            Policy { yearly: some(9), ..NONE },
            vec!["2025-01-07-120000", "2024-12-30-120000", "2023-12-31-120000"],
        ),
        // What one rule keeps stays, whatever the others say; each counts by itself.
        (
            Policy { last: some(1), daily: some(2), yearly: some(2), ..NONE },
            vec!["2025-01-07-120000", "2025-01-06-120000", "2024-12-30-120000"],
        ),
    ];
    for (policy, expected) in cases {
        assert_eq!(staying(&archives, policy, None), expected, "{policy:?}");
    }
    assert_eq!(staying(&archives, NONE, None).len(), archives.len(), "without a rule all stay");
}

#[test]
fn names_count_across_clock_changes() {
    // On 26 October 2025 02:30 came twice in central Europe; on 30 March it never came.
    let autumn = ["2025-10-26-015959", "2025-10-26-023000", "2025-10-26-023000-2", "2025-10-26-030000"];
    assert_eq!(
        staying(&autumn, Policy { last: some(2), ..NONE }, None),
        ["2025-10-26-030000", "2025-10-26-023000-2"]
    );
    assert_eq!(staying(&autumn, Policy { daily: some(2), ..NONE }, None), ["2025-10-26-030000"]);
    let spring = ["2025-03-30-015959", "2025-03-30-023000", "2025-03-30-030000"];
    assert_eq!(staying(&spring, Policy { last: some(1), ..NONE }, None), ["2025-03-30-030000"]);
    // Ten of one second sort as numbers do, not as text does.
    let repeated = ["2025-10-26-023000-9", "2025-10-26-023000-10", "2025-10-26-023000"];
    assert_eq!(staying(&repeated, Policy { last: some(1), ..NONE }, None), ["2025-10-26-023000-10"]);
    // The clock was set back by a year: what was made just now does not go at once.
    let back = ["2025-07-01-020000", "2025-07-02-020000", "2024-07-03-020000"];
    let policy = Policy { last: some(2), ..NONE };
    assert_eq!(staying(&back, policy, Some("2024-07-03-020000")).len(), 3);
    assert_eq!(staying(&back, policy, None), ["2025-07-02-020000", "2025-07-01-020000"]);
}

#[test]
fn what_is_not_complete_never_counts_and_goes_only_when_it_is_ours_and_unused() {
    let archives = ["2025-07-01-020000", "2025-07-02-020000?", "2025-07-03-020000!", "2025-07-04-020000!*"];
    let policy = Policy { last: some(1), ..NONE };
    assert_eq!(
        staying(&archives, policy, None),
        ["2025-07-04-020000", "2025-07-02-020000", "2025-07-01-020000"]
    );
    assert_eq!(staying(&["2025-07-01-020000?"], policy, None), ["2025-07-01-020000"]);
}

#[test]
fn every_archive_gets_one_verdict_in_whatever_order_they_come() {
    let one = ["2025-07-02-020000", "2025-07-01-020000", "2025-07-03-020000"];
    let other = ["2025-07-03-020000", "2025-07-02-020000", "2025-07-01-020000"];
    let policy = Policy { last: some(1), ..NONE };
    assert_eq!(judged(&one, policy, None), judged(&other, policy, None));
    assert_eq!(judged(&one, policy, None).len(), 3);
}
