//! What BackupPC alone has: full backups, and commands before and after whose failure counts.

use crate::stage::{VIEW, path, scene, sh};
use crate::tools::Tool;
use crate::tools::backuppc::{BackupPc, Kind, back_up};
use crate::vm::{Vm, assert_is, read_in};
use std::path::Path;

#[test]
fn libvirt_backuppc_keeps_what_it_has_when_its_command_before_fails() {
    scene("backuppc::libvirt_backuppc_keeps_what_it_has_when_its_command_before_fails", || {
        let mut vm = Vm::new();
        let mut tool = BackupPc::default();
        tool.prepare();
        let full = back_up(Kind::Full);
        assert_eq!((full.status, read_in(&full.stdout)), (0, 96), "{}", full.stdout);
        assert!(!Path::new(VIEW).exists(), "its command after has cleaned up");
        let before = vm.state(None);

        vm.change(0, [1, 2, 3]);
        let image = vm.image(1).display();
        sh(&format!("mv {image} {image}.away"));
        let failed = back_up(Kind::Incremental);
        assert_eq!(failed.status, 1);
        assert!(failed.stdout.contains("DumpPreUserCmd returned error status"), "{}", failed.stdout);
        assert!(!failed.stdout.contains("rsync_bpc"), "the transfer was begun: {}", failed.stdout);
        assert!(!Path::new(VIEW).exists(), "no view, no directory");
        let found = tool.restore(0, 1, &path("restored"));
        assert_is(&found, &before, "the backup before");
        sh(&format!("rm -rf {}; mv {image}.away {image}", found.display()));

        let next = back_up(Kind::Incremental);
        assert_eq!((next.status, read_in(&next.stdout)), (0, 3), "{}", next.stdout);
        let again = back_up(Kind::Full);
        assert_eq!((again.status, read_in(&again.stdout)), (0, 96), "a full one compares everything");
        for (number, state) in [before, vm.state(None), vm.state(None)].iter().enumerate() {
            let found = tool.restore(number, 3, &path("restored"));
            assert_is(&found, state, &format!("backup {number}"));
            sh(&format!("rm -rf {}", found.display()));
        }
    });
}
