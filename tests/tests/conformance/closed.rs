//! No view, no harm: whatever has become of a view, `rsync --delete` leaves the backup before as it was.

use crate::stage::{VIEW, command, processes, scene, sh, try_sh};
use crate::tools::Tool;
use crate::tools::rsync::Mirror;
use crate::vm::{Killer, State, Vm, assert_is, read_in};
use rustix::process::Signal;
use std::path::Path;
use tests::process::{self, LIMIT, Outcome};

const COPY: &str = "/srv/rsync/mail01";

/// As a hook or a line of cron would, which looks at nothing before.
fn rsync_delete() -> Outcome {
    process::run(command("rsync").args(["-a", "--delete", &format!("{VIEW}/"), COPY]), LIMIT)
}

#[test]
fn libvirt_rsync_delete_leaves_the_backup_as_it_was_when_there_is_no_view() {
    scene("closed::libvirt_rsync_delete_leaves_the_backup_as_it_was_when_there_is_no_view", || {
        let mut vm = Vm::new();
        let mut tool = Mirror;
        tool.prepare();
        tool.back_up().ok();
        let before = vm.state(None);
        let intact = |what: &str| {
            let tree = sh(&format!("cd {COPY} && find . | sort && cat mail01.json"));
            assert_is(Path::new(COPY), &before, what);
            tree
        };
        let tree = intact("the first backup");
        vm.change(0, 0..64);
        let refused = |what: &str, status: i32| {
            rsync_delete().failed(status, &["rsync"]);
            assert_eq!(intact(what), tree, "{what}");
        };

        let image = vm.image(1).display();
        sh(&format!("mv {image} {image}.away"));
        assert_eq!(try_sh("virt-backup chunkmount mail01").status, 1);
        refused("the view failed to mount", 23);
        assert_eq!(tool.back_up().status, 1, "nor does the recipe run rsync at all");
        assert_eq!(intact("the recipe without a view"), tree);
        sh(&format!("mv {image}.away {image}"));

        sh("virt-backup chunkmount mail01 && virt-backup cleanup mail01");
        refused("the view was cleaned up", 23);

        sh("virt-backup chunkmount mail01");
        kill_daemon();
        refused("the daemon of the view was killed", 23);
        sh("virt-backup cleanup mail01");
        refused("and cleaned up after", 23);

        let outcome = tool.back_up().stderr;
        assert_eq!(read_in(&outcome), 64, "the next backup takes what has changed");
        assert_is(Path::new(COPY), &vm.state(None), "the next backup");
    });
}

#[test]
fn libvirt_rsync_delete_deletes_nothing_when_the_daemon_dies_in_the_middle() {
    scene("closed::libvirt_rsync_delete_deletes_nothing_when_the_daemon_dies_in_the_middle", || {
        let mut vm = Vm::new();
        let mut tool = Mirror;
        tool.prepare();
        tool.back_up().ok();
        let before = vm.state(None);
        for _ in 0..5 {
            vm.change(0, 0..64);
            sh("virt-backup chunkmount mail01");
            let killer = Killer::start(&["chunkfs"], 20);
            let outcome = rsync_delete();
            killer.end();
            sh("virt-backup cleanup mail01");
            if outcome.status == 0 {
                // It was done before the daemon could be killed.
                continue;
            }
            assert_eq!(outcome.status, 23, "{}", outcome.stderr);
            let now = vm.state(Some(&before));
            assert_each_is_one_of(&before, &now);
            assert!(read_in(&tool.back_up().stderr) > 0);
            return assert_is(Path::new(COPY), &now, "the next backup");
        }
        panic!("the daemon was never killed in time");
    });
}

fn kill_daemon() {
    let pids = processes(&["chunkfs"]);
    assert_eq!(pids.len(), 1);
    rustix::process::kill_process(pids[0], Signal::KILL).unwrap();
    process::until("the end of the daemon", LIMIT, || {
        rustix::fs::statfs(VIEW).is_err_and(|error| error == rustix::io::Errno::NOTCONN)
    });
}

/// No chunk of the copy is missing, or half of one and half of the other.
fn assert_each_is_one_of(before: &State, now: &State) {
    let kept = [before, now].map(|state| crate::vm::count_equal(Path::new(COPY), state, 0));
    assert_eq!(kept[0] + kept[1], 64, "{kept:?} are as before and as now");
    assert_eq!(crate::vm::count_equal(Path::new(COPY), before, 1), 32, "the other disk");
}
