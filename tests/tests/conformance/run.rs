//! `virt-backup run` as other programs are used to it: output, input and exit status are those of the command.

use crate::stage::{VIEW, scene, try_sh};
use crate::vm::Vm;

#[test]
fn libvirt_what_a_command_beside_a_view_prints_is_all_that_is_on_its_output() {
    scene("run::libvirt_what_a_command_beside_a_view_prints_is_all_that_is_on_its_output", || {
        let vm = Vm::new();
        let command = format!(
            "echo piped | virt-backup run mail01 -- sh -c 'cat; head -c 5 {VIEW}/mail01.xml; exit 7'"
        );
        let outcome = try_sh(&command);
        assert_eq!((outcome.status, outcome.stdout.as_str()), (7, "piped\n<doma"), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("generation 1 is shown at"), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("0 of 96 chunks were read"), "{}", outcome.stderr);
        // So an archive can go straight into a pipe.
        let tar = "virt-backup run mail01 -- tar -C /var/lib/libvirt/backup -c mail01 | tar -x -C /srv";
        try_sh(tar).ok();
        crate::vm::assert_is(std::path::Path::new("/srv/mail01"), &vm.state(None), "out of a pipe");
    });
}
