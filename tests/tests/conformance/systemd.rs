//! The unit, as systemd would run it: its command lines, with a VM's name in them. Not systemd itself.

use crate::stage::{VIEW, example, scene, sh, try_sh};
use crate::vm::{Vm, assert_is, read_in};
use std::path::Path;
use tests::libvirt::workspace;

/// A setting of the unit, for mail01.
fn setting(unit: &str, key: &str) -> String {
    let value = unit.lines().find_map(|line| line.strip_prefix(&format!("{key}=")));
    value.unwrap_or_else(|| panic!("{key} is not set")).replace("%I", "mail01")
}

#[test]
fn libvirt_the_units_are_right_and_back_up_and_clean_up() {
    scene("systemd::libvirt_the_units_are_right_and_back_up_and_clean_up", || {
        let packaging = workspace().join("packaging");
        let directory = packaging.display();
        sh(&format!("cd {directory}; systemd-analyze verify --man=no *.service *.timer"));
        let unit = std::fs::read_to_string(packaging.join("virt-backup@.service")).unwrap();
        let vm = Vm::new();
        let installed = setting(&unit, "AssertFileIsExecutable");
        sh(&format!("install -D {} {installed}; mkdir /srv/rsync", example("systemd/backup").display()));

        assert_eq!(setting(&unit, "NoNewPrivileges"), "yes");
        let told = try_sh(&format!("setpriv --no-new-privs {}", setting(&unit, "ExecStart")));
        assert_eq!((told.status, read_in(&told.stderr)), (0, 96), "{}", told.stderr);
        assert_is(Path::new("/srv/rsync/mail01"), &vm.state(None), "the backup");
        sh(&setting(&unit, "ExecStopPost"));

        // Both were killed: what follows, whatever came before, leaves nothing.
        sh("virt-backup chunkmount mail01; kill -KILL $(pgrep -x chunkfs)");
        sh(&setting(&unit, "ExecStopPost"));
        assert!(!Path::new(VIEW).exists());
        assert_eq!(sh("virt-backup status"), "no job is underway, and nothing is owed\n");
    });
}
