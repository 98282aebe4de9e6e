//! A Linux that writes and syncs all the time, backed up in every form while it does: each comes back, boots, and has every
//! line that was on the disk when its backup began.

use std::fs;
use std::path::{Path, PathBuf};

use tests::libvirt::{Agent, Lab, Linux, lines_in, names_in, virsh_ok, with_libvirt};
use tests::process::run_well;

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().unwrap().to_owned()
}

/// What a backup tool keeps of a view.
fn keep_tree(lab: &Lab, name: &str, words: &[&str]) -> PathBuf {
    lab.run(&[&["chunkmount", "mail01"], words].concat()).ok();
    let kept = lab.path(name);
    run_well("rsync", &["-a", &format!("{}/", text(lab.path("b/mail01"))), &text(&kept)]);
    lab.run(&["cleanup", "mail01"]).ok();
    kept
}

/// What a backup tool keeps of a dump.
fn keep_dump(lab: &Lab, name: &str, words: &[&str]) -> PathBuf {
    lab.run(words).ok();
    let kept = lab.path(name);
    run_well("cp", &["-a", &text(lab.path("b/mail01")), &text(&kept)]);
    lab.run(&["cleanup", "mail01"]).ok();
    kept
}

fn keep_archive(lab: &Lab) -> PathBuf {
    let base = lab.path("archives");
    lab.run(&["archive", "mail01", "--compress", &format!("--backup-base-dir={}", text(&base))]).ok();
    let home = base.join("mail01");
    home.join(&names_in(&home)[0])
}

#[test]
fn libvirt_a_linux_that_writes_comes_back_from_every_form_of_backup_with_every_line() {
    with_libvirt("libvirt_a_linux_that_writes_comes_back_from_every_form_of_backup_with_every_line", |lab| {
        let guest = lab.linux("mail01", Agent::Absent);
        virsh_ok(&["start", "mail01"]);
        guest.wait_for_line(20);
        type Keep = fn(&Lab) -> PathBuf;
        let forms: [(&str, Keep); 5] = [
            ("tree-pull", |lab| keep_tree(lab, "tree-pull", &["--method=pull"])),
            ("tree-external", |lab| keep_tree(lab, "tree-external", &["--method=external"])),
            ("dump", |lab| keep_dump(lab, "dump", &["dump", "mail01", "--compress=zstd"])),
            ("convert", |lab| keep_dump(lab, "convert", &["convert", "mail01", "--method=external"])),
            ("archive", keep_archive),
        ];
        let kept = forms.map(|(name, keep)| {
            let before = guest.lines_on_disk();
            let kept = keep(lab);
            lab.assert_nothing_left_of("mail01");
            guest.assert_writes_on();
            let after = guest.lines_on_disk();
            (name, kept, before, after)
        });
        virsh_ok(&["destroy", "mail01"]);
        // All that it ever printed is on its own disk.
        let printed = guest.lines_on_disk();
        let on_disk = lines_in(&guest.image);
        assert!(on_disk >= printed, "{on_disk} of {printed}");

        let mut restored = Vec::new();
        for (name, kept, before, after) in &kept {
            let to = lab.path(&format!("{name}-restored"));
            fs::create_dir(&to).unwrap();
            let named = format!("--name={name}");
            lab.run(&["restore", &text(kept), &named, &format!("--to={}", text(&to))]).ok();
            let image = to.join(&names_in(&to)[0]);
            let format = if image.extension().unwrap() == "qcow2" { "qcow2" } else { "raw" };
            // Looked at in a copy, so that the guest itself finds what its backup was.
            let copy = to.join("copy");
            let convert = ["convert", "-f", format, "-O", "raw", &text(&image), &text(&copy)];
            run_well("qemu-img", &convert);
            let lines = lines_in(&copy);
            println!("{name}: {lines} lines; {before} were printed before, {after} some lines later");
            assert!((*before..=*after).contains(&lines), "{name}: {lines} of {before} to {after}");
            restored.push((Linux::restored(&lab.path("images"), name, image, &guest), lines));
        }
        // All at once, for that takes no longer than one after the other.
        restored.iter().for_each(|(linux, _)| drop(virsh_ok(&["start", &linux.name])));
        for (linux, lines) in &restored {
            assert_eq!(linux.wait_until_it_lives(), (*lines, 0), "{}", linux.name);
            linux.wait_for_line(lines + 3);
        }
    });
}

#[test]
fn libvirt_a_linux_goes_on_from_its_saved_memory_and_misses_no_line() {
    with_libvirt("libvirt_a_linux_goes_on_from_its_saved_memory_and_misses_no_line", |lab| {
        // With an agent: a guest that is frozen in its memory would stay so for ever.
        let guest = lab.linux("mail01", Agent::Present);
        virsh_ok(&["start", "mail01"]);
        guest.wait_for_agent();
        guest.wait_for_line(20);
        let before = guest.lines_on_disk();
        let kept = keep_dump(lab, "dump", &["dump", "mail01", "--state"]);
        lab.assert_nothing_left_of("mail01");
        guest.assert_writes_on();
        let after = guest.lines_on_disk();
        virsh_ok(&["destroy", "mail01"]);

        lab.run(&["restore", &text(&kept), "--state", "--force"]).ok();
        guest.wait_for_line(before + 10);
        guest.wait_for_agent();
        // QEMU prints to the file anew, and may begin in the middle of a line.
        assert!(!guest.printed().contains("GUEST LIVES"), "it was booted: {}", guest.printed());
        let numbers = guest.numbers();
        assert!((before..=after).contains(&numbers[0]), "{before} to {after}: {numbers:?}");
        let last = numbers[0] + numbers.len() as u64;
        assert_eq!(numbers, (numbers[0]..last).collect::<Vec<_>>(), "one after the other");
        println!("{before} lines before, went on with line {}, {after} some lines later", numbers[0]);
        virsh_ok(&["destroy", "mail01"]);
        assert!(lines_in(&guest.image) >= numbers[numbers.len() - 1]);
    });
}
