//! How long a guest does not run while its point in time is taken, by QEMU's own clock, and how long a Linux that writes and
//! syncs all the time gets nothing done, by each method. All is printed.

use std::time::Duration;

use tests::libvirt::{
    Agent, Disk, Guest, Lab, LogicalVolume, Monitor, OwnFileSystem, Provisioning, Storage, in_vm, virsh_ok,
    with_libvirt,
};

const DISKS: [Disk; 2] = [Disk { format: "qcow2", mib: 256 }, Disk { format: "raw", mib: 128 }];
const ROUNDS: usize = 3;
/// With two disks, and much that the host has not brought to the disk yet. A machine that is busy with other things may
/// need longer now and then, but not each time.
const SUSPENDED: Duration = Duration::from_millis(200);
/// Without a backup a line takes a few hundredths of a second, on a machine that is not busy.
const SILENT: Duration = Duration::from_secs(1);

fn assert_one_below(limit: Duration, what: &str, measured: &[Duration]) {
    assert!(measured.iter().any(|duration| *duration < limit), "{what}: {measured:?}");
}

/// Each method, and how many times it suspends a guest.
const METHODS: [(&str, usize); 3] = [("pull", 0), ("external", 0), ("reflink", 1)];

#[test]
fn libvirt_a_guest_with_two_disks_is_suspended_for_a_moment_at_most() {
    with_libvirt("libvirt_a_guest_with_two_disks_is_suspended_for_a_moment_at_most", |lab| {
        let _images = OwnFileSystem::mount(lab, "xfs", "2G");
        let mut guest = lab.guest_off("mail01", &DISKS);
        guest.add_monitor();
        guest.start();
        let mut monitor: Monitor = guest.monitor();
        for (method, times) in METHODS {
            let mut suspended = Vec::new();
            for _ in 0..ROUNDS {
                guest.write(0, 1, 0, 256 << 20);
                guest.write(1, 2, 0, 128 << 20);
                lab.quiet(&["chunkmount", "mail01", &format!("--method={method}")]).ok();
                lab.quiet(&["cleanup", "mail01"]).ok();
                let stopped = monitor.stopped();
                assert_eq!(stopped.len(), times, "{method}: {stopped:?}");
                suspended.extend(stopped);
            }
            println!("{method}: suspended for {suspended:?} in {ROUNDS} backups");
            if times > 0 {
                assert_one_below(SUSPENDED, method, &suspended);
            }
        }
        guest.assert_content();
        lab.assert_nothing_left(&guest);
    });
}

/// In a virtual machine a program takes ten times as long as on a hypervisor: what the guest waits for is printed, and judged
/// only where it need not wait at all.
#[test]
fn libvirt_a_guest_on_one_volume_is_never_suspended() {
    in_vm("libvirt_a_guest_on_one_volume_is_never_suspended", |lab| {
        const RAWS: [Disk; 2] = [Disk { format: "raw", mib: 8 }; 2];
        let volume = LogicalVolume::make("images", 400, Provisioning::Thick);
        let carried = volume.carry_images(lab, "xfs");
        assert_eq!(suspended_by_lvm(lab, lab.guest_off("mail01", &RAWS)), []);
        drop((carried, volume));
        let volumes = Storage::Volumes(Provisioning::Thin);
        assert_eq!(suspended_by_lvm(lab, lab.guest_kept("web01", &RAWS[..1], volumes)), []);
        let two = suspended_by_lvm(lab, lab.guest_kept("db01", &RAWS, volumes));
        println!("two volumes, emulated: suspended for {two:?}");
        assert_eq!(two.len(), 1);
    });
}

/// Its view is right, though the guest wrote up to it and goes on writing.
fn suspended_by_lvm(lab: &Lab, mut guest: Guest) -> Vec<Duration> {
    guest.add_monitor();
    guest.start();
    for disk in 0..guest.images.len() {
        guest.write(disk, 3, 0, 6 << 20);
    }
    let (name, then) = (guest.name.clone(), guest.content.clone());
    let mut monitor = guest.monitor();
    lab.run(&["chunkmount", &name, "--method=lvm", "--snapsize=32M"]).ok();
    for disk in 0..guest.images.len() {
        guest.write_chunks(disk, 9, [0, 5]);
    }
    lab.rsync(&name);
    lab.assert_restored(&name, &then);
    lab.run(&["cleanup", &name]).ok();
    let stopped = monitor.stopped();
    lab.assert_nothing_left(&guest);
    guest.assert_content();
    guest.power_off();
    virsh_ok(&["undefine", &name]);
    stopped
}

#[test]
fn libvirt_a_linux_that_writes_hardly_notices_its_backup() {
    with_libvirt("libvirt_a_linux_that_writes_hardly_notices_its_backup", |lab| {
        let _images = OwnFileSystem::mount(lab, "xfs", "2G");
        let guest = lab.linux("mail01", Agent::Present);
        virsh_ok(&["start", "mail01"]);
        guest.wait_for_agent();
        guest.wait_for_line(20);
        let silences =
            |act: &dyn Fn()| -> Vec<_> { (0..ROUNDS).map(|_| guest.longest_silence(act)).collect() };
        let quiet = silences(&|| std::thread::sleep(Duration::from_secs(1)));
        println!("without a backup, nothing was written for {quiet:?} at most");
        for (method, _) in METHODS {
            for quiesce in ["no", "require"] {
                let words = [format!("--method={method}"), format!("--quiesce={quiesce}")];
                let backup = || {
                    lab.quiet(&["chunkmount", "mail01", &words[0], &words[1]]).ok();
                    lab.quiet(&["cleanup", "mail01"]).ok();
                };
                let silent = silences(&backup);
                println!("{words:?}: nothing was written for {silent:?} at most");
                assert_one_below(SILENT, method, &silent);
            }
        }
        guest.assert_writes_on();
        lab.assert_nothing_left_of("mail01");
    });
}
