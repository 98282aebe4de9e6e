//! QEMU as hypervisors run it: not as root, and confined by AppArmor with the profiles that libvirt brings. Nothing is set
//! up for us, and everything works. In a virtual machine, for profiles are the kernel's.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tests::libvirt::{Disk, in_vm_confined, virsh, virsh_ok};

const DISKS: [Disk; 2] = [Disk { format: "qcow2", mib: 8 }, Disk { format: "raw", mib: 4 }];

#[test]
fn libvirt_a_confined_guest_is_backed_up_restored_and_booted() {
    in_vm_confined("libvirt_a_confined_guest_is_backed_up_restored_and_booted", |lab| {
        // QEMU's user has to find the images.
        for dir in [lab.path("."), lab.path("images")] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o711)).unwrap();
        }
        // As strict as systemd's units and administrators are.
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        let mut guest = lab.guest("mail01", &DISKS);
        let labels = fs::read_dir("/proc").unwrap().filter_map(|process| {
            let process = process.unwrap().path();
            let name = fs::read_to_string(process.join("comm")).ok()?;
            name.starts_with("qemu-system").then(|| fs::read_to_string(process.join("attr/current")).unwrap())
        });
        let labels: Vec<_> = labels.collect();
        assert!(labels.len() == 1 && labels[0].contains("(enforce)"), "{labels:?}");

        for words in [&[][..], &["--method=external"], &["--state"], &[]] {
            guest.write_chunks(0, 21, [1, 8]);
            guest.write_chunks(1, 22, [3]);
            let then = guest.content.clone();
            lab.run(&[&["chunkmount", "mail01"], words].concat()).ok();
            guest.write_chunks(0, 23, [2, 8]);
            lab.rsync("mail01");
            lab.assert_restored("mail01", &then);
            lab.run(&["cleanup", "mail01"]).ok();
            lab.assert_nothing_left(&guest);
        }
        guest.assert_content();

        let (tree, images) = (lab.path("copy/mail01"), lab.path("images"));
        let (tree, images) = (tree.to_str().unwrap(), images.to_str().unwrap());
        lab.run(&["restore", tree, "--name=copy01", &format!("--to={images}"), "--start"]).ok();
        assert_eq!(virsh_ok(&["domstate", "copy01"]).trim(), "running");
        virsh_ok(&["destroy", "copy01"]);

        lab.run(&["boot", tree, "--name=booted"]).ok();
        assert_eq!(virsh_ok(&["domstate", "booted"]).trim(), "running");
        lab.run(&["boot", "--stop=booted"]).ok();
        assert!(!virsh(&["domstate", "booted"]).0);
        virsh_ok(&["undefine", "copy01"]);
    });
}
