//! Freezing, with Debian's own guest agent in a Linux that writes and syncs all the time: the file system in the backup is
//! clean, and the guest is never left frozen: not when we are killed, nor when its agent is stopped, slow or deaf.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::libvirt::{Agent, Lab, Linux, Ran, lines_in, names_in, needs_recovery, virsh_ok, with_libvirt};

/// With an agent that answers. Without a freeze it takes half a second, or more on a busy machine.
const FROZEN_COSTS: Duration = Duration::from_secs(5);
/// What is given up must be given up by then: ten seconds, half of it again to ask for a thaw, and a busy machine.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(20);
/// A guest that was left frozen is thawed by then: twenty seconds after the freeze, and a busy machine.
const THAWED_WITHIN: Duration = Duration::from_secs(35);

/// A guest that writes, with an agent that answers.
fn guest(lab: &Lab) -> Linux {
    let guest = lab.linux("mail01", Agent::Present);
    virsh_ok(&["start", "mail01"]);
    guest.wait_for_agent();
    guest.wait_for_line(20);
    guest
}

/// Runs it, which must not take longer than `within`.
fn run_within(lab: &Lab, within: Duration, words: &[&str]) -> Ran {
    let begun = Instant::now();
    let ran = lab.run(words);
    println!("  {:.1} s", begun.elapsed().as_secs_f64());
    assert!(begun.elapsed() < within, "{:?}: {ran:?}", begun.elapsed());
    ran
}

/// The disk in the view, put together.
fn disk_in_view(lab: &Lab) -> PathBuf {
    lab.rsync("mail01");
    let image = lab.path("assembled");
    fs::write(&image, lab.restored("mail01", 0)).unwrap();
    image
}

fn consistency_in(path: PathBuf) -> String {
    let about: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    about["consistency"].as_str().unwrap().to_owned()
}

fn consistency(lab: &Lab) -> String {
    consistency_in(lab.path("b/mail01/mail01.json"))
}

fn is_frozen(guest: &Linux) -> bool {
    guest.agent("guest-fsfreeze-status", json!({})) == "frozen"
}

/// Those that would thaw the guest in our place.
fn waiting_to_thaw() -> usize {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let words = fs::read_to_string(entry.ok()?.path().join("cmdline")).ok()?;
        words.split('\0').any(|word| word == "thaw-later").then_some(())
    });
    processes.count()
}

/// A backup that was killed once the freeze was done, and before it was taken back; gives when it began. It is a moment that
/// a test on a busy machine may miss, but not each time.
fn kill_while_frozen(lab: &Lab, guest: &Linux) -> Instant {
    let frozen = |journal: &str| {
        let after = journal.split_once("freeze the guest").map_or("", |(_, after)| after);
        after.contains("\"done\"") && !after.contains("\"undone\"")
    };
    for _attempt in 0..5 {
        let begun = Instant::now();
        let ended = lab.kill_when("mail01", &["chunkmount", "mail01", "--quiesce=require"], frozen);
        if ended.is_none() && is_frozen(guest) {
            return begun;
        }
        lab.run(&["cleanup", "mail01"]).ok();
        wait_until_nobody_thaws();
    }
    panic!("no backup was killed while the guest was frozen");
}

fn wait_until_nobody_thaws() {
    wait_until(Duration::from_secs(5), "the end of who thaws", || waiting_to_thaw() == 0);
}

fn wait_until(within: Duration, what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + within;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn libvirt_a_guest_is_frozen_for_the_moment_of_its_backup_and_then_writes_on() {
    with_libvirt("libvirt_a_guest_is_frozen_for_the_moment_of_its_backup_and_then_writes_on", |lab| {
        let guest = guest(lab);
        for words in [&["--method=pull"][..], &["--method=external", "--quiesce=require"]] {
            let before = guest.lines_on_disk();
            run_within(lab, FROZEN_COSTS, &[&["chunkmount", "mail01"], words].concat()).ok();
            assert_eq!(waiting_to_thaw(), 0);
            assert!(!is_frozen(&guest));
            guest.assert_writes_on();
            assert_eq!(consistency(lab), "frozen", "{words:?}");
            let image = disk_in_view(lab);
            assert!(!needs_recovery(&image), "{words:?}");
            let lines = lines_in(&image);
            assert!(lines >= before, "{words:?}: {lines} of at least {before}");
            lab.run(&["cleanup", "mail01"]).ok();
            lab.assert_nothing_left_of("mail01");
        }

        // As after a power cut, unless it is frozen: so the check can tell one from the other.
        lab.run(&["chunkmount", "mail01", "--quiesce=no"]).ok();
        assert_eq!(consistency(lab), "crash");
        assert!(needs_recovery(&disk_in_view(lab)));
        lab.run(&["cleanup", "mail01"]).ok();

        let base = lab.path("archives");
        let to = format!("--backup-base-dir={}", base.display());
        for (quiesce, expected) in [("--quiesce=no", "crash"), ("--quiesce=require", "frozen")] {
            lab.run(&["archive", "mail01", &to, quiesce]).ok();
            let newest = names_in(base.join("mail01")).pop().unwrap();
            assert_eq!(consistency_in(base.join("mail01").join(newest).join("manifest.json")), expected);
        }
        guest.assert_writes_on();
        lab.assert_nothing_left_of("mail01");
    });
}

#[test]
fn libvirt_a_guest_that_was_left_frozen_by_a_kill_is_thawed_by_cleanup_or_by_itself() {
    with_libvirt("libvirt_a_guest_that_was_left_frozen_by_a_kill_is_thawed_by_cleanup_or_by_itself", |lab| {
        let guest = guest(lab);
        for cleanup in [true, false] {
            let begun = kill_while_frozen(lab, &guest);
            assert_eq!(waiting_to_thaw(), 1);
            if cleanup {
                run_within(lab, Duration::from_secs(5), &["cleanup", "mail01"]).ok();
                assert!(!is_frozen(&guest));
            }
            wait_until(THAWED_WITHIN, "the thaw", || !is_frozen(&guest));
            println!("thawed {:.1} s after it began; cleanup: {cleanup}", begun.elapsed().as_secs_f64());
            guest.assert_writes_on();
            wait_until_nobody_thaws();
            lab.run(&["cleanup", "mail01"]).ok();
            lab.assert_nothing_left_of("mail01");
        }
    });
}

#[test]
fn libvirt_an_agent_that_does_not_answer_costs_seconds_and_leaves_no_guest_frozen() {
    with_libvirt("libvirt_an_agent_that_does_not_answer_costs_seconds_and_leaves_no_guest_frozen", |lab| {
        let guest = guest(lab);
        let not_frozen = |words: &[&str]| {
            let ran = run_within(lab, GIVEN_UP_WITHIN, &[&["chunkmount", "mail01"], words].concat()).ok();
            assert!(ran.stderr.contains("not quiesced: "), "{ran:?}");
            assert_eq!(consistency(lab), "crash");
            lab.run(&["cleanup", "mail01"]).ok();
            lab.assert_nothing_left_of("mail01");
        };
        let refused = || {
            let words = ["chunkmount", "mail01", "--quiesce=require"];
            let ran = run_within(lab, GIVEN_UP_WITHIN, &words);
            assert_eq!(ran.status, 1, "{ran:?}");
            assert!(ran.stderr.contains("freeze the guest's file systems: "), "{ran:?}");
            lab.assert_nothing_left_of("mail01");
        };

        // Slow: it freezes after we have given up.
        guest.shell("echo 15 > /slow");
        not_frozen(&[]);
        wait_until(THAWED_WITHIN, "the thaw", || waiting_to_thaw() == 0);
        assert!(!is_frozen(&guest));
        guest.assert_writes_on();

        // Stopped: it has not been asked to freeze anything, so nobody has to wait for it.
        guest.shell("rm /slow; sleep 1; kill -STOP $(pidof qemu-ga); sleep 30; kill -CONT $(pidof qemu-ga)");
        std::thread::sleep(Duration::from_secs(2));
        not_frozen(&["--method=external"]);
        refused();
        assert_eq!(waiting_to_thaw(), 0);
        guest.wait_for_agent();
        assert!(!is_frozen(&guest));
        guest.assert_writes_on();
    });
}
