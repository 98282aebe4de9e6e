//! Methods, storages and states of the guest: each cell of the table in docs/methods.md is a correct view of one point in
//! time, with the guest as it was afterwards, or the refusal that is written there.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up its world has to stop")]

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::{Child, Command};

use tests::libvirt::{
    Disk, Guest, Lab, LogicalVolume, OwnFileSystem, Provisioning, Storage as Kept, in_vm, virsh_ok,
    with_libvirt, workspace,
};
use tests::process::run_well;

const METHODS: [(&str, &[&str]); 5] = [
    ("pull", &["--method=pull"]),
    ("external", &["--method=external"]),
    ("lvm", &["--method=lvm", "--snapsize=64M"]),
    ("reflink", &["--method=reflink"]),
    ("offline", &["--method=offline", "--offline"]),
];
const STATES: [&str; 3] = ["running", "paused", "shut off"];
const QCOW2: Disk = Disk { format: "qcow2", mib: 4 };
const RAW: Disk = Disk { format: "raw", mib: 4 };

/// A row of the table: how the guest's disks are kept.
struct Storage {
    name: &'static str,
    file_system: &'static str,
    disks: &'static [Disk],
    special: Special,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Special {
    Nothing,
    /// Three images, each over the other.
    Chain,
    /// QEMU reaches the disk through a server.
    Network,
    /// The disks are logical volumes.
    Volumes(Provisioning),
    /// The file system is on a logical volume.
    OnVolume,
}

const STORAGES: [Storage; 11] = [
    Storage { name: "raw on ext4", file_system: "ext4", disks: &[RAW], special: Special::Nothing },
    Storage { name: "qcow2 on ext4", file_system: "ext4", disks: &[QCOW2], special: Special::Nothing },
    Storage {
        name: "qcow2 chain of three on ext4",
        file_system: "ext4",
        disks: &[QCOW2],
        special: Special::Chain,
    },
    Storage {
        name: "qcow2 and raw on ext4",
        file_system: "ext4",
        disks: &[QCOW2, RAW],
        special: Special::Nothing,
    },
    Storage {
        name: "qcow2 and raw on XFS",
        file_system: "xfs",
        disks: &[QCOW2, RAW],
        special: Special::Nothing,
    },
    Storage {
        name: "qcow2 and raw on btrfs",
        file_system: "btrfs",
        disks: &[QCOW2, RAW],
        special: Special::Nothing,
    },
    Storage { name: "network disk (NBD)", file_system: "ext4", disks: &[RAW], special: Special::Network },
    Storage {
        name: "two thick logical volumes, qcow2 and raw",
        file_system: "none",
        disks: &[QCOW2, RAW],
        special: Special::Volumes(Provisioning::Thick),
    },
    Storage {
        name: "thin logical volume",
        file_system: "none",
        disks: &[RAW],
        special: Special::Volumes(Provisioning::Thin),
    },
    Storage {
        name: "qcow2 and raw on ext4 on a logical volume",
        file_system: "ext4",
        disks: &[QCOW2, RAW],
        special: Special::OnVolume,
    },
    Storage {
        name: "raw on XFS on a logical volume",
        file_system: "xfs",
        disks: &[RAW],
        special: Special::OnVolume,
    },
];

/// A server that is ended with the test.
struct Server(Option<Child>);

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

fn prepare(guest: &Guest, special: Special) -> Server {
    let image = &guest.images[0];
    match special {
        Special::Nothing | Special::Volumes(_) | Special::OnVolume => Server(None),
        Special::Chain => {
            let below = |number: u32| image.with_extension(format!("below{number}"));
            run_well("qemu-img", &["create", "-q", "-f", "qcow2", below(1).to_str().unwrap(), "4M"]);
            for (file, base) in [(below(2), below(1)), (image.clone(), below(2))] {
                let (file, base) = (file.to_str().unwrap(), base.to_str().unwrap());
                run_well("qemu-img", &["create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", file]);
            }
            Server(None)
        }
        Special::Network => {
            let socket = image.with_extension("sock");
            let server = Command::new("qemu-nbd")
                .args(["-f", "raw", "--persistent", "--shared=0", "-k", socket.to_str().unwrap()])
                .arg(image)
                .spawn()
                .unwrap();
            let server = Server(Some(server));
            while !socket.exists() {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            let xml = virsh_ok(&["dumpxml", "--inactive", &guest.name]);
            let file = format!("<source file='{}'/>", image.display());
            let source = format!(
                "<source protocol='nbd' name=''><host transport='unix' socket='{}'/></source>",
                socket.display()
            );
            let xml = xml.replace(&file, &source).replace("<disk type='file'", "<disk type='network'");
            let path = image.with_extension("xml");
            fs::write(&path, xml).unwrap();
            virsh_ok(&["define", path.to_str().unwrap()]);
            server
        }
    }
}

/// From the state before it in `STATES` to this one.
fn bring_to(guest: &Guest, state: &str) {
    match state {
        "paused" => drop(virsh_ok(&["suspend", &guest.name])),
        "shut off" => guest.power_off(),
        _ => {}
    }
}

/// One cell, from the plan alone: in a virtual machine without KVM everything takes its time, and these are proven elsewhere.
fn planned(lab: &Lab, words: &[&str]) -> String {
    let planned = lab.run(&[&["chunkmount", "mail01", "--dry-run"], words].concat());
    if planned.status == 0 { "yes".to_owned() } else { reason(&planned.stderr).to_owned() }
}

/// One cell. What is refused tells why, and changes nothing.
fn cell(lab: &Lab, guest: &mut Guest, state: &str, words: &[&str]) -> String {
    let shape = guest.shape();
    let then = guest.content.clone();
    let words: Vec<_> = ["chunkmount", "mail01", "--track=digest"].iter().chain(words).copied().collect();
    let mounted = lab.run(&words);
    if mounted.status != 0 {
        assert_eq!(mounted.status, 1, "{mounted:?}");
        lab.assert_nothing_left(guest);
        return reason(&mounted.stderr).to_owned();
    }
    // The guest of method offline is suspended: nobody writes.
    if state != "shut off" && !words.contains(&"--offline") {
        for disk in 0..guest.images.len() {
            guest.write_chunks(disk, 77, [0, 2, 5]);
        }
    }
    lab.rsync("mail01");
    lab.assert_restored("mail01", &then);
    lab.run(&["cleanup", "mail01"]).ok();
    lab.assert_nothing_left(guest);
    assert_eq!(guest.shape(), shape);
    guest.assert_content();
    "yes".to_owned()
}

/// The words of a refusal that the table has.
fn reason(stderr: &str) -> &'static str {
    const REASONS: [(&str, &str); 8] = [
        ("needs it to run", "no: needs a running guest"),
        ("cannot share blocks", "no: the file system cannot share blocks"),
        ("is no image file", "no: not an image file"),
        ("is no logical volume", "no: not on a logical volume"),
        ("is neither a logical volume", "no: not on a logical volume"),
        ("only ext4 and XFS can be mounted", "no: btrfs cannot be mounted twice"),
        ("does not tell when a guest", "no: a device does not tell when it is written to"),
        ("cannot be read without its guest", "no: only QEMU can read it"),
    ];
    let found = REASONS.iter().find(|(words, _)| stderr.contains(words));
    found.map_or_else(|| panic!("an unknown refusal: {stderr}"), |(_, cell)| cell)
}

/// In a virtual machine, where everything takes its time.
fn is_on_volumes(storage: &Storage) -> bool {
    matches!(storage.special, Special::Volumes(_) | Special::OnVolume)
}

/// The rows of one guest, which goes through all states.
fn rows(lab: &Lab, storage: &Storage) -> [String; 3] {
    let (mut own, mut volume) = (None, None);
    let kept = match storage.special {
        Special::Nothing | Special::Chain | Special::Network => {
            own = Some(OwnFileSystem::mount(lab, storage.file_system, "512M"));
            Kept::Files
        }
        Special::Volumes(provisioning) => Kept::Volumes(provisioning),
        Special::OnVolume => {
            let made = LogicalVolume::make("images", 400, Provisioning::Thick);
            let carried = made.carry_images(lab, storage.file_system);
            volume = Some((carried, made));
            Kept::Files
        }
    };
    let mut guest = lab.guest_kept("mail01", storage.disks, kept);
    let server = prepare(&guest, storage.special);
    guest.start();
    for disk in 0..storage.disks.len() {
        guest.write(disk, 10 + disk as u8, 0, 2 << 20);
    }
    let rows = STATES.map(|state| {
        bring_to(&guest, state);
        row(lab, storage, &mut guest, state)
    });
    virsh_ok(&["undefine", "mail01", "--checkpoints-metadata"]);
    drop((server, guest, own, volume));
    rows
}

fn row(lab: &Lab, storage: &Storage, guest: &mut Guest, state: &str) -> String {
    let mut text = format!("| {} | {state} |", storage.name);
    let on_volumes = is_on_volumes(storage);
    for (method, words) in METHODS {
        let seen = match on_volumes && method != "lvm" {
            true => planned(lab, words),
            false => cell(lab, guest, state, words),
        };
        assert_eq!(virsh_ok(&["domstate", "mail01"]).trim(), state);
        write!(text, " {seen} |").unwrap();
    }
    fs::remove_dir_all(lab.path("copy")).unwrap();
    fs::create_dir(lab.path("copy")).unwrap();
    text
}

/// The lines of docs/methods.md that a storage has.
fn documented(page: &Path, storage: &Storage) -> Vec<String> {
    let text = fs::read_to_string(page).unwrap();
    let start = format!("| {} |", storage.name);
    text.lines().filter(|line| line.starts_with(&start)).map(str::to_owned).collect()
}

fn table(lab: &Lab, storages: &[Storage]) {
    for storage in storages {
        let seen = rows(lab, storage);
        println!("{}", seen.join("\n"));
        assert_eq!(documented(&workspace().join("docs/methods.md"), storage), seen, "docs/methods.md");
    }
}

#[test]
fn libvirt_every_method_on_plain_images_is_right_or_refused_as_documented() {
    with_libvirt("libvirt_every_method_on_plain_images_is_right_or_refused_as_documented", |lab| {
        table(lab, &STORAGES[..4]);
    });
}

#[test]
fn libvirt_every_method_on_other_storage_is_right_or_refused_as_documented() {
    with_libvirt("libvirt_every_method_on_other_storage_is_right_or_refused_as_documented", |lab| {
        table(lab, &STORAGES[4..7]);
    });
}

#[test]
fn libvirt_every_method_on_logical_volumes_is_right_or_refused_as_documented() {
    in_vm("libvirt_every_method_on_logical_volumes_is_right_or_refused_as_documented", |lab| {
        table(lab, &STORAGES[7..9]);
    });
}

#[test]
fn libvirt_every_method_on_files_on_volumes_is_right_or_refused_as_documented() {
    in_vm("libvirt_every_method_on_files_on_volumes_is_right_or_refused_as_documented", |lab| {
        table(lab, &STORAGES[9..]);
    });
}
