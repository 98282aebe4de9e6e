//! Locks, limits, leftovers and strangers: what a session does when it is not alone.
//! On the simulated host.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up its world has to stop")]

#[expect(dead_code, reason = "the crash sweep uses the rest")]
mod world;

use std::cell::RefCell;
use std::num::NonZeroU32;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

use virt_backup::command::{self, Failure, Mounted};
use virt_backup::core::lock::{BootId, Lock, ProcessId};
use virt_backup::core::names::{JobId, Names, VmName};
use virt_backup::core::options::{Chunkmount, JobLimit, Quiesce};
use virt_backup::host::sim::world::{Freezing, Job, Program};
use virt_backup::host::sim::{Node, Power, SimHost, World};
use virt_backup::host::{Files, Removal};
use virt_backup::session::{self, Session};

use world::{machine, options, our_checkpoints, places, uuid};

type Shared = Rc<RefCell<World>>;

fn running() -> Shared {
    Rc::new(RefCell::new(machine(Power::On, &[("vda", "qcow2"), ("vdb", "raw")])))
}

fn names() -> Names {
    Names::new(&places(), &VmName::new("mail01").unwrap())
}

/// A process of its own for one command.
fn process<T>(world: &Shared, act: impl FnOnce(&SimHost) -> T) -> T {
    let host = SimHost::new(world, None);
    let outcome = act(&host);
    host.exit();
    outcome
}

fn chunkmount_within(world: &Shared, limit: JobLimit) -> Result<Mounted, Failure> {
    process(world, |host| command::chunkmount(host, &places(), "mail01", &options(), limit, &|| false))
}

fn chunkmount(world: &Shared) -> Result<Mounted, Failure> {
    chunkmount_within(world, JobLimit::Unlimited)
}

fn cleanup(world: &Shared) -> Result<session::Unwound, Failure> {
    process(world, |host| command::cleanup(host, &places(), "mail01"))
}

fn files(world: &Shared) -> Vec<String> {
    let world = world.borrow();
    let ours = world.nodes.iter().filter(|(path, node)| **node != Node::Dir && !path.ends_with("guard"));
    ours.map(|(path, _)| path.display().to_string()).filter(|path| !path.starts_with("/images")).collect()
}

fn put_file(world: &Shared, path: &str, content: &str) {
    world.borrow_mut().nodes.insert(path.into(), Node::File(content.into()));
}

fn put_lock(world: &Shared, vm: &str, worker: u32, view: Option<u32>) {
    let process = |pid: u32| ProcessId { pid, start_ticks: u64::from(pid) };
    let lock = Lock {
        version: 1,
        vm: VmName::new(vm).unwrap(),
        job: JobId::from_bits(77),
        boot: BootId("boot 0".to_owned()),
        worker: process(worker),
        view: view.map(process),
        kept: false,
    };
    put_file(world, &format!("/b/{vm}.lock"), &lock.to_text());
}

#[test]
fn a_vm_that_is_being_worked_on_is_busy_and_stays_untouched() {
    let world = running();
    let first = SimHost::new(&world, None);
    let held = Session::open(&first, &names(), JobLimit::Unlimited).unwrap();
    let before = files(&world);
    for outcome in [chunkmount(&world).map(drop), cleanup(&world).map(drop)] {
        let failure = outcome.unwrap_err();
        assert_eq!(
            (failure.exit_status, failure.story.as_str()),
            (4, "mail01: another virt-backup is at work on it")
        );
    }
    assert_eq!(files(&world), before);
    held.release().unwrap();
    first.exit();
    assert!(chunkmount(&world).is_ok());
}

#[test]
fn a_lock_from_another_state_directory_is_respected_while_its_worker_lives() {
    let world = running();
    let other = world.borrow_mut().start_process(Program::VirtBackup);
    put_lock(&world, "mail01", other, None);
    let failure = chunkmount(&world).unwrap_err();
    assert_eq!(failure.exit_status, 4);
    assert!(failure.story.contains("is at work on it (job 000000000000004d)"), "{failure}");
    let refused = process(&world, |host| session::unlock(host, &names()).unwrap_err().exit_status());
    assert_eq!(refused, 4);

    world.borrow_mut().end_process(other);
    assert!(chunkmount(&world).is_ok());
}

#[test]
fn a_dead_lock_is_taken_over_and_said_so() {
    let world = running();
    put_lock(&world, "mail01", 999, None);
    let host = SimHost::new(&world, None);
    let session = Session::open(&host, &names(), JobLimit::Unlimited).unwrap();
    assert!(format!("{:?}", session.taken_over()).contains("Dead"));
}

#[test]
fn a_lock_of_another_program_is_busy_until_it_is_unlocked() {
    let world = running();
    put_file(&world, "/b/mail01.lock", "");
    let failure = chunkmount(&world).unwrap_err();
    assert_eq!(failure.exit_status, 4);
    assert!(failure.story.contains("virt-backup unlock"), "{failure}");
    assert_eq!(process(&world, |host| session::unlock(host, &names()).unwrap()), Removal::Removed);
    assert_eq!(process(&world, |host| session::unlock(host, &names()).unwrap()), Removal::AlreadyGone);
    assert!(chunkmount(&world).is_ok());
}

#[test]
fn max_backups_counts_live_jobs_of_other_vms_as_numbers() {
    // Of ten locks, two workers and one view are alive.
    let world = running();
    let living: Vec<_> = (0..3).map(|_| world.borrow_mut().start_process(Program::VirtBackup)).collect();
    for (vm, worker, view) in
        [("a", living[0], None), ("b", living[1], None), ("c", 900, Some(living[2])), ("d", 901, None)]
    {
        put_lock(&world, vm, worker, view);
    }
    put_file(&world, "/b/e.lock", "");
    let before = files(&world);
    for (limit, status) in [(1, Some(4)), (3, Some(4)), (4, None), (10, None)] {
        let world = Rc::new(RefCell::new(world.borrow().clone()));
        let limit = JobLimit::AtMost(NonZeroU32::new(limit).unwrap());
        let outcome = chunkmount_within(&world, limit);
        assert_eq!(outcome.as_ref().err().map(|failure| failure.exit_status), status, "{limit:?}");
        if status.is_some() {
            assert_eq!(files(&world), before, "nothing is touched");
        }
    }
}

#[test]
fn the_lock_and_the_journal_stay_with_the_view_and_name_its_daemon() {
    let world = running();
    chunkmount(&world).unwrap();
    let daemon =
        *world.borrow().processes.iter().find(|(_, p)| matches!(p, Program::Chunkfs { .. })).unwrap().0;
    process(&world, |host| {
        let lock: Lock =
            serde_json::from_slice(&host.read(Path::new("/b/mail01.lock")).unwrap().unwrap()).unwrap();
        assert_eq!(lock.view.map(|view| view.pid), Some(daemon));
        let live = session::live_jobs(host, &names()).unwrap();
        assert_eq!(live, [VmName::new("mail01").unwrap()]);
        assert!(session::peek(host, &names()).unwrap().is_some_and(|journal| !journal.owed().is_empty()));
    });
    world.borrow_mut().end_process(daemon);
    assert_eq!(process(&world, |host| session::live_jobs(host, &names()).unwrap()), []);
    cleanup(&world).unwrap();
    assert_eq!(files(&world), [""; 0]);
}

#[test]
fn an_interrupted_job_is_taken_back_at_whatever_step() {
    for after in 0..12 {
        let world = running();
        let asked = AtomicUsize::new(0);
        let interrupted = || asked.fetch_add(1, Ordering::Relaxed) == after;
        let outcome = process(&world, |host| {
            command::chunkmount(host, &places(), "mail01", &options(), JobLimit::Unlimited, &interrupted)
        });
        let Err(failure) = outcome else {
            assert!(after >= asked.load(Ordering::Relaxed), "every step asks");
            return;
        };
        assert_eq!(failure.exit_status, 1, "{failure}");
        assert!(failure.story.starts_with("interrupted before it could "), "{failure}");
        assert_eq!(files(&world), [""; 0], "after {after} steps");
        assert_eq!(our_checkpoints(&world.borrow()), [], "after {after} steps");
    }
    panic!("the plan is longer than this test thought");
}

#[test]
fn a_backup_job_of_somebody_else_is_never_aborted() {
    let world = running();
    let theirs =
        Job { socket: "/tmp/theirs".into(), frozen_disks: Default::default(), exported: Default::default() };
    world.borrow_mut().guests.get_mut(&uuid()).unwrap().job = Some(theirs);
    let failure = chunkmount(&world).unwrap_err();
    assert_eq!(failure.exit_status, 1);
    cleanup(&world).unwrap();
    assert!(world.borrow().guests[&uuid()].job.is_some());
    assert_eq!(files(&world), [""; 0]);
}

#[test]
fn what_is_not_ours_is_left_where_it_is() {
    let world = running();
    world.borrow_mut().add_dirs(Path::new("/b/mail01"));
    put_file(&world, "/b/mail01/holiday.jpg", "x");
    let failure = chunkmount(&world).unwrap_err();
    assert!(failure.story.contains("exists and is not empty"), "{failure}");
    cleanup(&world).unwrap();
    assert_eq!(files(&world), ["/b/mail01/holiday.jpg"]);
}

#[test]
fn a_damaged_journal_is_reported_and_nothing_is_acted_upon() {
    let world = running();
    chunkmount(&world).unwrap();
    let path = names().journal();
    if let Some(Node::File(journal)) = world.borrow_mut().nodes.get_mut(&path) {
        journal[200] ^= 1;
    }
    let before = files(&world);
    for outcome in [chunkmount(&world).map(drop), cleanup(&world).map(drop)] {
        let failure = outcome.unwrap_err();
        assert_eq!(failure.exit_status, 3, "{failure}");
        assert!(failure.story.contains("of the journal is damaged"), "{failure}");
    }
    assert_eq!(files(&world), before);
}

#[test]
fn cleanup_finds_what_is_ours_by_name_when_the_journal_is_lost() {
    let world = running();
    chunkmount(&world).unwrap();
    world.borrow_mut().nodes.remove(&names().journal());
    let unwound = cleanup(&world).unwrap();
    assert!(unwound.done.iter().any(|done| done.starts_with("stop the view")), "{:?}", unwound.done);
    assert_eq!(files(&world), [""; 0]);
    assert!(world.borrow().mounts.is_empty());
    assert!(world.borrow().guests[&uuid()].job.is_none());
    assert_eq!(our_checkpoints(&world.borrow()).len(), 1);
}

#[test]
fn cleanup_of_a_domain_that_is_gone_succeeds() {
    let world = running();
    chunkmount(&world).unwrap();
    world.borrow_mut().guests.clear();
    let unwound = cleanup(&world).unwrap();
    assert!(
        unwound.notes.iter().any(|note| note.contains("there is no domain \"mail01\"")),
        "{:?}",
        unwound.notes
    );
    assert_eq!(files(&world), [""; 0]);
    assert!(world.borrow().mounts.is_empty());
}

#[test]
fn a_guest_that_powered_off_under_its_view_is_cleaned_up_and_says_what_waits() {
    let world = running();
    chunkmount(&world).unwrap();
    cleanup(&world).unwrap();
    chunkmount(&world).unwrap();
    {
        let mut world = world.borrow_mut();
        let guest = world.guests.get_mut(&uuid()).unwrap();
        (guest.power, guest.job) = (Power::Off, None);
    }
    let unwound = cleanup(&world).unwrap();
    assert!(
        unwound.notes.iter().any(|note| note.contains("later: the guest is shut off")),
        "{:?}",
        unwound.notes
    );
    assert_eq!(files(&world), [""; 0]);
    world.borrow_mut().guests.values_mut().for_each(|guest| guest.power = Power::On);
    chunkmount(&world).unwrap();
    cleanup(&world).unwrap();
    assert_eq!(our_checkpoints(&world.borrow()).len(), 1);
}

#[test]
fn a_dry_run_changes_nothing() {
    let world = running();
    let host = SimHost::new(&world, None);
    let plan = command::plan(&host, &places(), "mail01", &options()).unwrap();
    assert!(plan.to_string().contains("begin a pull backup"));
    assert_eq!((host.effects(), files(&world)), (0, vec![]));
}

#[test]
fn an_unknown_vm_is_told_from_a_broken_host() {
    let world = running();
    let failure = process(&world, |host| {
        command::chunkmount(host, &places(), "nobody", &options(), JobLimit::Unlimited, &|| false)
            .unwrap_err()
    });
    assert_eq!(
        (failure.exit_status, failure.story.as_str()),
        (1, "there is no domain \"nobody\": see `virt-backup list`")
    );
}

#[test]
fn a_process_that_mounted_may_clean_up_itself() {
    let world = running();
    process(&world, |host| {
        command::chunkmount(host, &places(), "mail01", &options(), JobLimit::Unlimited, &|| false).unwrap();
        command::cleanup(host, &places(), "mail01").unwrap();
    });
    assert_eq!(files(&world), [""; 0]);
}

#[test]
fn a_backup_is_called_frozen_only_when_the_guest_was_frozen_at_its_point_in_time() {
    let (silent, short) = ("does not answer", "were not frozen any more");
    for (freezing, why_not) in
        [(Freezing::AsAsked, None), (Freezing::Never, Some(silent)), (Freezing::TooShort, Some(short))]
    {
        for quiesce in [Quiesce::Auto, Quiesce::Require] {
            let world = running();
            let pristine = files(&world);
            world.borrow_mut().guests.values_mut().for_each(|guest| guest.freezing = freezing);
            let options = Chunkmount { quiesce, ..options() };
            let mounted = process(&world, |host| {
                command::chunkmount(host, &places(), "mail01", &options, JobLimit::Unlimited, &|| false)
            });
            let about = process(&world, |host| host.read(&names().saved_about())).unwrap();
            let frozen = about.is_some_and(|about| String::from_utf8(about).unwrap().contains("\"frozen\""));
            let case = format!("{freezing:?}, {quiesce:?}");
            match (quiesce, why_not) {
                (Quiesce::Require, Some(why)) => {
                    let failure = mounted.unwrap_err();
                    assert_eq!(failure.exit_status, 1, "{case}: {failure}");
                    assert!(failure.story.contains(why), "{case}: {failure}");
                    assert_eq!(files(&world), pristine, "{case}");
                }
                (_, why) => {
                    let notes = mounted.unwrap().notes.join("; ");
                    assert!(notes.contains(why.unwrap_or_default()), "{case}: {notes}");
                    assert_eq!(
                        (frozen, notes.contains("not quiesced")),
                        (why.is_none(), why.is_some()),
                        "{case}"
                    );
                }
            }
            assert!(world.borrow().guests.values().all(|guest| !guest.frozen), "{case}");
        }
    }
}
