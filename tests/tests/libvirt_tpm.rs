//! A guest with UEFI and an emulated TPM: what its firmware has stored in both comes back with its disk, to the byte.
//! OVMF under TCG, which writes UEFI variables in its first seconds, and to the TPM when it starts again.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up its world has to stop")]

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tests::image::noise;
use tests::libvirt::{Lab, content_of, names_if_any, names_in, virsh, virsh_ok, with_libvirt};

const CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const TEMPLATE: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
const STATES: &str = "/var/lib/libvirt/swtpm";
const STATE: &str = "tpm2-00.permall";
const UUID: &str = "c7a5fdbd-edaf-9455-926a-d65c16db1809";
/// OVMF has written its variables by then, on a machine that has other things to do.
const BOOTED_WITHIN: Duration = Duration::from_secs(120);

/// Defines the guest; it is off.
fn define(lab: &Lab) -> PathBuf {
    for program in ["swtpm", "swtpm_setup"] {
        let found = std::process::Command::new("which").arg(program).output().unwrap().status.success();
        assert!(found, "{program} is missing: run scripts/setup test");
    }
    let image = lab.path("images/mail01-a.raw");
    fs::write(&image, noise(1, 8 << 20)).unwrap();
    let xml = format!(
        "<domain type='qemu'><name>mail01</name><uuid>{UUID}</uuid><memory unit='MiB'>128</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64' machine='q35'>hvm</type><loader readonly='yes' type='pflash'>{CODE}</loader>\
         <nvram template='{TEMPLATE}'>{}</nvram></os><features><acpi/></features><devices>\
         <emulator>/usr/bin/qemu-system-x86_64</emulator><disk type='file' device='disk'><driver name='qemu' type='raw'/>\
         <source file='{}'/><target dev='vda' bus='virtio'/></disk>\
         <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm></devices></domain>",
        nvram(lab, "mail01").display(),
        image.display()
    );
    let file = lab.path("images/mail01.xml");
    fs::write(&file, xml).unwrap();
    virsh_ok(&["define", file.to_str().unwrap()]);
    image
}

fn nvram(lab: &Lab, name: &str) -> PathBuf {
    lab.path("images").join(format!("{name}_VARS.fd"))
}

fn state_of(uuid: &str) -> PathBuf {
    Path::new(STATES).join(uuid).join("tpm2").join(STATE)
}

fn uuid_of(name: &str) -> String {
    virsh_ok(&["domuuid", name]).trim().to_owned()
}

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + BOOTED_WITHIN;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What is in the UEFI variables and in the TPM.
fn stored(lab: &Lab) -> (Vec<u8>, Vec<u8>) {
    (fs::read(nvram(lab, "mail01")).unwrap(), fs::read(state_of(UUID)).unwrap())
}

/// The state is the emulator's own, and nobody else's.
fn assert_owned(uuid: &str) {
    let (file, dir) = (state_of(uuid), state_of(uuid).parent().unwrap().to_owned());
    let user = fs::metadata("/var/lib/swtpm-localca").unwrap().uid();
    for (path, mode) in [(&file, 0o600), (&dir, 0o700)] {
        let metadata = fs::metadata(path).unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o777), (user, mode), "{}", path.display());
    }
}

/// A restored guest, with the same in its variables and its TPM as then, which starts with them.
fn assert_comes_back(lab: &Lab, from: &Path, name: &str, then: &(Vec<u8>, Vec<u8>)) {
    let to = lab.path(name);
    fs::create_dir(&to).unwrap();
    let (name_is, to_is) = (format!("--name={name}"), format!("--to={}", to.display()));
    let told = lab.run(&["restore", from.to_str().unwrap(), &name_is, &to_is]).ok();
    assert!(!told.stderr.contains("TPM"), "{told:?}");
    let uuid = uuid_of(name);
    assert_ne!(uuid, UUID);
    let xml = virsh_ok(&["dumpxml", "--inactive", name]);
    let (_, variables) = xml.split_once("<nvram").and_then(|(_, rest)| rest.split_once('>')).unwrap();
    let (variables, _) = variables.split_once('<').unwrap();
    assert_ne!(Path::new(variables), nvram(lab, "mail01"));
    assert!(fs::read(variables).unwrap() == then.0, "{name}: the UEFI variables");
    assert!(fs::read(state_of(&uuid)).unwrap() == then.1, "{name}: the TPM");
    let image = to.join(names_in(&to).pop().unwrap());
    let format = if image.extension().unwrap() == "qcow2" { "qcow2" } else { "raw" };
    assert!(content_of(&image, format) == noise(1, 8 << 20), "{name}: the disk");
    assert_owned(&uuid);
    virsh_ok(&["start", name]);
    assert_eq!(virsh_ok(&["domstate", name]).trim(), "running");
    // A state that it does not find is made anew, with words in its log.
    let log = fs::read_to_string(format!("/var/log/swtpm/libvirt/qemu/{name}-swtpm.log")).unwrap_or_default();
    assert!(!log.contains("manufacturing"), "{log}");
    virsh_ok(&["destroy", name]);
    virsh_ok(&["undefine", "--nvram", "--tpm", name]);
}

fn archived_name(archive: &Path) -> String {
    names_in(archive).iter().find_map(|name| Some(name.strip_suffix(".b3")?.to_owned())).unwrap()
}

/// A byte that is another one, and a file that is missing, are noticed before anything is written.
fn assert_every_file_is_verified(lab: &Lab, backup: &Path, stem: &str) {
    let list = format!("{stem}.b3");
    let checked = std::process::Command::new("b3sum").args(["--check", &list]).current_dir(backup).output();
    assert!(checked.unwrap().status.success());
    let files = [format!("{stem}.xml"), format!("{stem}.nvram"), format!("{stem}.tpm/{STATE}")];
    let listed = fs::read_to_string(backup.join(&list)).unwrap();
    let to = lab.path("verified");
    fs::create_dir(&to).unwrap();
    let words = ["restore", backup.to_str().unwrap(), "--name=verified", &format!("--to={}", to.display())];
    for file in &files {
        assert!(listed.contains(&format!("  {file}\n")), "{file}: {listed}");
        let path = backup.join(file);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        let end = bad.len() - 1;
        bad[end] ^= 1;
        fs::write(&path, bad).unwrap();
        for more in [&[][..], &["--no-verify"]] {
            let told = lab.run(&[&words, more].concat());
            assert_eq!(told.status, 6, "{told:?}");
            assert!(told.stderr.contains(&format!("{file} is damaged")), "{told:?}");
        }
        if !file.ends_with(".xml") {
            fs::remove_file(&path).unwrap();
            let told = lab.run(&words);
            assert_eq!(told.status, 6, "{told:?}");
            assert!(told.stderr.contains("missing"), "{told:?}");
        }
        assert_eq!(names_in(&to), [""; 0]);
        assert!(!virsh(&["dominfo", "verified"]).0);
        fs::write(&path, good).unwrap();
    }
    fs::remove_dir(&to).unwrap();
}

#[test]
fn libvirt_what_firmware_and_tpm_have_stored_comes_back_as_of_the_point_in_time() {
    with_libvirt("libvirt_what_firmware_and_tpm_have_stored_comes_back_as_of_the_point_in_time", |lab| {
        define(lab);
        virsh_ok(&["start", "mail01"]);
        let template = fs::read(TEMPLATE).unwrap();
        wait_until("OVMF writes variables", || fs::read(nvram(lab, "mail01")).unwrap() != template);
        // Suspended, so that the test knows what there is to be found.
        virsh_ok(&["suspend", "mail01"]);
        let then = stored(lab);
        let shown = |name: &str| fs::read(lab.path("b/mail01").join(name)).unwrap();

        for method in ["--method=pull", "--method=external"] {
            lab.run(&["chunkmount", "mail01", method]).ok();
            assert!(shown("mail01.nvram") == then.0 && shown(&format!("mail01.tpm/{STATE}")) == then.1);
            assert_eq!(names_in(lab.path("b/mail01/mail01.tpm")), [STATE], "the lock is no part of it");
            let about: serde_json::Value = serde_json::from_slice(&shown("mail01.json")).unwrap();
            assert_eq!(about["tpm"], serde_json::json!({ "saved": { "files": [STATE] } }));
            let home = lab.state.join("mail01");
            let modes = ["tpm", "tpm/tpm2-00.permall", "nvram"].map(|name| mode(&home.join(name)));
            assert_eq!(modes, [0o700, 0o600, 0o600]);
            lab.rsync("mail01");
            let first = metadata(&lab.path("b/mail01/mail01.tpm"));
            lab.run(&["cleanup", "mail01"]).ok();
            assert!(!home.join("tpm").exists());
            // Unchanged in the next generation.
            lab.run(&["chunkmount", "mail01", method]).ok();
            assert_eq!(metadata(&lab.path("b/mail01/mail01.tpm")), first);
            lab.run(&["cleanup", "mail01"]).ok();
        }
        lab.run(&["dump", "mail01"]).ok();
        let dump = lab.path("dump");
        std::process::Command::new("cp").arg("-a").arg(lab.path("b/mail01")).arg(&dump).status().unwrap();
        let modes = ["mail01.tpm", "mail01.tpm/tpm2-00.permall"].map(|name| mode(&dump.join(name)));
        assert_eq!(modes, [0o700, 0o600]);
        lab.run(&["cleanup", "mail01"]).ok();
        assert_eq!(names_if_any(&lab.path("b")), [""; 0]);
        let base = format!("--backup-base-dir={}", lab.path("archives").display());
        lab.run(&["archive", "mail01", &base]).ok();
        let archives = lab.path("archives/mail01");
        let archive = archives.join(names_in(&archives).pop().unwrap());

        // The firmware goes on: what is stored now is not what was then.
        virsh_ok(&["destroy", "mail01"]);
        virsh_ok(&["start", "mail01"]);
        let differs = || {
            let now = stored(lab);
            now.0 != then.0 && now.1 != then.1
        };
        wait_until("OVMF writes to its variables and to the TPM again", differs);
        virsh_ok(&["destroy", "mail01"]);

        let tree = lab.path("copy/mail01");
        for (from, name) in [(&tree, "tree"), (&dump, "dumped"), (&archive, "archived")] {
            assert_comes_back(lab, from, name, &then);
        }
        assert_every_file_is_verified(lab, &dump, "mail01");
        let archived = archived_name(&archive);
        assert_every_file_is_verified(lab, &archive, &archived);

        let elsewhere = format!("--to={}", lab.path("images").display());
        let told = lab.run(&["restore", tree.to_str().unwrap(), &elsewhere]);
        assert_eq!(told.status, 1);
        assert!(told.stderr.contains(&format!("{} exists: --force", state_of(UUID).display())), "{told:?}");
        assert!(differs(), "a refusal changes nothing");
        lab.run(&["restore", tree.to_str().unwrap(), "--force"]).ok();
        assert!(stored(lab) == then);
        assert_owned(UUID);
        virsh_ok(&["start", "mail01"]);
        virsh_ok(&["destroy", "mail01"]);

        lab.run(&["boot", tree.to_str().unwrap()]).ok();
        let uuid = uuid_of("mail01-boot");
        assert!(state_of(&uuid).exists());
        let status = lab.status();
        assert_eq!(status.as_array().unwrap().len(), 1);
        assert_eq!(
            (&status[0]["vm"], &status[0]["state"], &status[0]["uuid"]),
            (&"mail01-boot".into(), &"runs-from-backup".into(), &uuid.into())
        );
        assert_eq!(status[0]["from"], tree.canonicalize().unwrap().to_str().unwrap());
        assert!(status[0]["since"].as_str().unwrap().ends_with('Z'), "{status}");
        let told = lab.run(&["status"]).ok().stdout;
        assert!(
            told.contains("mail01-boot: runs from ") && told.contains("boot --stop=mail01-boot"),
            "{told}"
        );
        // Somebody may need it: only its own name ends it.
        lab.run(&["cleanup", "--all"]).ok();
        assert!(virsh(&["dominfo", "mail01-boot"]).0);
        lab.run(&["cleanup", "mail01-boot"]).ok();
        assert!(!virsh(&["dominfo", "mail01-boot"]).0);
        assert_eq!(names_in(STATES), [UUID], "nothing is left of any other TPM");
        assert_eq!(lab.status(), serde_json::json!([]));

        lab.run(&["boot", tree.to_str().unwrap()]).ok();
        virsh_ok(&["destroy", "mail01-boot"]);
        let told = lab.run(&["status"]);
        assert_eq!(told.status, 3);
        assert!(told.stdout.contains("has ended: what it wrote is still there"), "{told:?}");
        lab.run(&["cleanup", "--all"]).ok();
        assert_eq!(lab.status(), serde_json::json!([]));
    });
}

#[test]
fn libvirt_a_tpm_whose_state_cannot_be_saved_is_told_of_or_refused() {
    with_libvirt("libvirt_a_tpm_whose_state_cannot_be_saved_is_told_of_or_refused", |lab| {
        define(lab);
        // It was never started.
        let told = lab.run(&["chunkmount", "mail01"]).ok();
        assert!(
            told.stderr.contains("note: the state of the TPM is not saved: there is none in"),
            "{told:?}"
        );
        let about = fs::read(lab.path("b/mail01/mail01.json")).unwrap();
        let about: serde_json::Value = serde_json::from_slice(&about).unwrap();
        assert!(about["tpm"]["not-saved"]["why"].as_str().unwrap().contains(UUID), "{about}");
        lab.run(&["cleanup", "mail01"]).ok();

        let state = state_of(UUID);
        let dir = state.parent().unwrap();
        fs::create_dir_all(dir).unwrap();
        symlink("/etc/passwd", &state).unwrap();
        let refused = |words: &str| {
            for command in ["chunkmount", "dump"] {
                let told = lab.run(&[command, "mail01"]);
                assert_eq!(told.status, 1, "{told:?}");
                assert!(told.stderr.contains(words), "{words}: {told:?}");
            }
            assert_eq!(names_if_any(&lab.path("b")), [""; 0]);
        };
        refused("tpm2-00.permall is a symbolic link, not a regular file");
        fs::remove_file(&state).unwrap();
        fs::File::create(&state).unwrap().set_len((16 << 20) + 1).unwrap();
        refused("and a TPM at most");
        fs::remove_file(&state).unwrap();
        fs::write(&state, "state").unwrap();
        fs::create_dir(dir.join("more")).unwrap();
        refused("more is a directory, not a regular file");
        fs::remove_dir(dir.join("more")).unwrap();
        fs::remove_file(&state).unwrap();
        fs::remove_dir(dir).unwrap();
        fs::create_dir(lab.path("elsewhere")).unwrap();
        symlink(lab.path("elsewhere"), dir).unwrap();
        refused("look into");
    });
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

fn metadata(path: &Path) -> (u64, u64, i64, i64, u64, u32) {
    let m = fs::metadata(path).unwrap();
    (m.ino(), m.size(), m.mtime(), m.ctime(), m.nlink(), m.mode())
}
