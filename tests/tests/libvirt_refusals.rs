//! What cannot be done is refused in words, with the right exit status, and nothing is touched.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};
use tests::libvirt::{Disk, virsh_ok, with_libvirt};
use tests::process;

const SMALL: Disk = Disk { format: "qcow2", mib: 4 };

#[test]
fn libvirt_every_refusal_says_why_and_leaves_nothing() {
    with_libvirt("libvirt_every_refusal_says_why_and_leaves_nothing", |lab| {
        let guest = lab.guest("mail01", &[SMALL]);
        for (words, status, why) in [
            (&["chunkmount", "nobody"][..], 1, "nobody: there is no domain \"nobody\""),
            (&["cleanup", "nobody"], 1, "there is no domain \"nobody\""),
            (&["chunkmount"], 2, "no VM was named"),
            (&["chunkmount", "mail01", "--exclude=vda"], 1, "there is no disk to back up"),
            (&["chunkmount", "mail01", "--blocksize=5000"], 2, "multiple of 4096"),
            (&["chunkmount", "mail01", "--track=perhaps"], 2, "one of auto, bitmap, digest, none"),
            (&["chunkmount", "mail01", "--method=lvm"], 1, "this would work for it: --method=pull"),
            (&["chunkmount", "mail01", "--method=offline"], 1, "the guest is not shut off"),
            (&["chunkmount", "mail01", "--quiesce=require"], 1, "freeze the guest's file systems"),
            (&["--action=frobnicate", "--vm=mail01"], 2, "frobnicate"),
            (&["chunkmount", "mail01", "--backupdir=/nonexistent/b"], 1, "/nonexistent/b does not exist"),
            (
                &["chunkmount", "mail01", "--connect=qemu+unix:///system?socket=/nonexistent"],
                1,
                "connect to libvirt",
            ),
        ] {
            let ran = lab.run(words);
            assert_eq!(ran.status, status, "{words:?}: {ran:?}");
            assert!(ran.stderr.contains(why), "{words:?}: {ran:?}");
            lab.assert_nothing_left(&guest);
        }
        fs::remove_dir(lab.path("b")).unwrap();
        let ran = lab.run(&["chunkmount", "mail01"]);
        assert_eq!(ran.status, 1);
        assert!(ran.stderr.contains("does not exist: make it"), "{ran:?}");
    });
}

#[test]
fn libvirt_several_vms_do_not_disturb_each_other() {
    with_libvirt("libvirt_several_vms_do_not_disturb_each_other", |lab| {
        let (a, b) = (lab.guest("a", &[SMALL]), lab.guest("b b", &[SMALL]));
        let ran = lab.run(&["--action=chunkmount", "--vm=a,nobody,b b"]);
        assert_eq!(ran.status, 5, "{ran:?}");
        assert!(ran.stderr.contains("nobody: there is no domain"), "{ran:?}");
        for vm in ["a", "b b"] {
            lab.rsync(vm);
            assert!(lab.path("copy").join(vm).join(format!("{vm}.xml")).is_file());
        }
        let ran = lab.run(&["chunkmount", "--max-backups=1", "a"]);
        assert_eq!((ran.status, ran.stderr.contains("--max-backups is 1")), (4, true), "{ran:?}");
        // What is written down of some makes no sense: the others are told of, and cleaned up.
        let nonsense = [("c", "booted"), ("d", "journal"), ("e", "restore")];
        for (vm, file) in nonsense {
            fs::create_dir(lab.state.join(vm)).unwrap();
            fs::write(lab.state.join(vm).join(file), "nonsense\nnonsense\n").unwrap();
        }
        let told = lab.run(&["status"]);
        assert_eq!(told.status, 3, "{told:?}");
        for words in
            ["a: shown at", "b b: shown at", "c: what is written", "d: what is written", "e: what is written"]
        {
            assert!(told.stdout.contains(words), "{words}: {told:?}");
        }
        let ran = lab.run(&["cleanup", "--all"]);
        assert_eq!(ran.status, 5, "{ran:?}");
        assert!(ran.stderr.contains("d: ") && ran.stderr.contains("of the journal is damaged"), "{ran:?}");
        nonsense.iter().for_each(|(vm, _)| fs::remove_dir_all(lab.state.join(vm)).unwrap());
        lab.assert_nothing_left(&a);
        lab.assert_nothing_left(&b);
        lab.run(&["cleanup", "--all"]).ok();
    });
}

#[test]
fn libvirt_a_lock_is_respected_waited_for_and_can_be_removed() {
    with_libvirt("libvirt_a_lock_is_respected_waited_for_and_can_be_removed", |lab| {
        let guest = lab.guest("mail01", &[SMALL]);
        let lock = lab.path("b").join("mail01.lock");
        fs::write(&lock, "of another program").unwrap();
        let ran = lab.run(&["chunkmount", "mail01"]);
        assert_eq!((ran.status, ran.stderr.contains("virt-backup unlock")), (4, true), "{ran:?}");
        let waiting = lab.spawn(&["chunkmount", "--wait=30", "mail01"]);
        std::thread::sleep(std::time::Duration::from_millis(300));
        lab.run(&["--unlock", "--vm=mail01"]).ok();
        assert!(waiting.wait_with_output().unwrap().status.success());
        // Over the leftovers of a job whose cleanup never came.
        lab.run(&["chunkmount", "mail01"]).ok();
        lab.run(&["--cleanup", "--vm=mail01"]).ok();
        lab.assert_nothing_left(&guest);
        lab.run(&["cleanup", "mail01"]).ok();
    });
}

#[test]
fn libvirt_run_cleans_up_whatever_becomes_of_the_command() {
    with_libvirt("libvirt_run_cleans_up_whatever_becomes_of_the_command", |lab| {
        let guest = lab.guest("mail01", &[SMALL]);
        let xml = lab.path("b").join("mail01/mail01.xml").display().to_string();
        for (command, status) in
            [(&["test", "-f", &xml][..], 0), (&["sh", "-c", "exit 42"], 42), (&["/nonexistent"], 1)]
        {
            let ran = lab.run(&[&["run", "mail01", "--"], command].concat());
            assert_eq!(ran.status, status, "{ran:?}");
            lab.assert_nothing_left(&guest);
        }
        // Whoever ends us means the command, too.
        let begun = lab.path("begun");
        let script = format!("touch {}; exec sleep 60", begun.display());
        let ran = lab.spawn(&["run", "mail01", "--", "sh", "-c", &script]);
        process::until("the command to run", process::LIMIT, || begun.exists());
        kill_process(Pid::from_child(&ran), Signal::TERM).unwrap();
        let ran = ran.wait_with_output().unwrap();
        assert_eq!(ran.status.code(), Some(128 + 15), "{ran:?}");
        lab.assert_nothing_left(&guest);
    });
}

#[test]
fn libvirt_a_dry_run_tells_the_plan_and_touches_nothing() {
    with_libvirt("libvirt_a_dry_run_tells_the_plan_and_touches_nothing", |lab| {
        let guest = lab.guest("mail01", &[SMALL]);
        let ran = lab.run(&["chunkmount", "--dry-run", "mail01"]).ok();
        assert!(ran.stdout.contains("begin a pull backup"), "{ran:?}");
        assert!(!lab.state.exists());
        assert_eq!(guest.checkpoints(), [""; 0]);
        lab.assert_nothing_left(&guest);
    });
}

#[test]
fn libvirt_the_list_tells_what_auto_would_take_and_why_nothing_better() {
    with_libvirt("libvirt_the_list_tells_what_auto_would_take_and_why_nothing_better", |lab| {
        let raw = Disk { format: "raw", ..SMALL };
        let guests = [lab.guest("a", &[SMALL]), lab.guest_off("b", &[SMALL]), lab.guest_off("c", &[raw])];
        // Other guests could write to the disk of c: no method has a point in time of it.
        let xml = virsh_ok(&["dumpxml", "--inactive", "c"]);
        let xml = xml.replace("<target dev='vda'", "<shareable/><target dev='vda'");
        let file = lab.path("images/c.xml");
        fs::write(&file, xml).unwrap();
        virsh_ok(&["define", file.to_str().unwrap()]);
        guests[2].start();
        let told = lab.run(&["list", "--json"]).ok().stdout;
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        let of = |name: &str| told.as_array().unwrap().iter().find(|vm| vm["name"] == name).unwrap();
        let auto = |name: &str| (of(name)["auto"]["method"].clone(), of(name)["state"].clone());
        assert_eq!(auto("a"), ("pull".into(), "running".into()));
        assert_eq!(of("a")["auto"]["passed_over"], serde_json::json!([]));
        assert_eq!(auto("b"), ("offline".into(), "shut off".into()));
        assert_eq!(auto("c"), (serde_json::Value::Null, "running".into()));
        let over = of("c")["auto"]["passed_over"].as_array().unwrap();
        let methods: Vec<_> = over.iter().map(|over| over["method"].as_str().unwrap()).collect();
        assert_eq!(methods, ["pull", "external", "lvm", "reflink"]);
        assert!(over[0]["why"].as_str().unwrap().starts_with("vda: it is shareable"), "{over:?}");

        // While a view is up, too: the next job would clear it.
        lab.run(&["chunkmount", "a"]).ok();
        let told = lab.run(&["list"]).ok().stdout;
        let line = |name: &str| told.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line("a").ends_with("  method pull") && line("c").ends_with("  no method works"), "{told}");
        assert!(told.contains("  not by method pull: vda: it is shareable"), "{told}");
        lab.run(&["cleanup", "a"]).ok();
        lab.assert_nothing_left(&guests[0]);
    });
}

#[test]
fn libvirt_a_file_and_the_environment_say_what_options_are_when_nobody_does() {
    with_libvirt("libvirt_a_file_and_the_environment_say_what_options_are_when_nobody_does", |lab| {
        let (a, b) = (lab.guest("a", &[SMALL]), lab.guest("b b", &[SMALL]));
        let file = lab.path("settings.toml");
        fs::write(&file, "track = 'digest'\nmethod = 'pull'\n\n[vm.\"b b\"]\nmethod = 'external'\n").unwrap();
        let config = format!("--config={}", file.display());
        let told = |words: &[&str], environment: Option<&str>| {
            let mut command = lab.command(words);
            command.envs(environment.map(|method| ("VIRT_BACKUP_METHOD", method)));
            let output = command.output().unwrap();
            let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            (output.status.code().unwrap(), text)
        };
        let methods = |text: &str| {
            let lines = text.lines().filter_map(|line| line.rsplit_once(" by method "));
            lines.map(|(_, method)| method.to_owned()).collect::<Vec<_>>()
        };
        let dry = ["chunkmount", "--dry-run", &config, "a", "b b"];
        let (status, text) = told(&dry, None);
        assert_eq!((status, methods(&text)), (0, vec!["pull".to_owned(), "external".to_owned()]), "{text}");
        assert!(!text.contains("with the checkpoint"), "--track=digest leaves none: {text}");
        let (_, text) = told(&dry, Some("external"));
        assert_eq!(methods(&text), ["external", "external"], "{text}");
        let (_, text) = told(&[&dry[..], &["--method=pull"]].concat(), Some("external"));
        assert_eq!(methods(&text), ["pull", "pull"], "{text}");

        // One after the other, as ever: what fails for one does not leak into the next.
        let (status, text) = told(&["chunkmount", &config, "a", "nobody", "b b"], None);
        assert_eq!(status, 5, "{text}");
        let (_, text) = told(&["cleanup", &config, "a", "b b"], None);
        assert!(!text.contains("fail"), "{text}");
        lab.assert_nothing_left(&a);
        lab.assert_nothing_left(&b);

        fs::write(&file, "method = 'pull'\nmetod = 'pull'\n").unwrap();
        let (status, text) = told(&dry, None);
        let expected = format!("virt-backup: {}, line 2: metod is not the name of an option", file.display());
        assert!(status == 2 && text.starts_with(&expected), "{text}");
        let (status, text) = told(&["chunkmount", "--config=/nonexistent.toml", "a"], None);
        assert!(status == 2 && text.contains("read /nonexistent.toml: No such file"), "{text}");
        let (status, text) = told(&["chunkmount", "a"], Some("quick"));
        assert!(status == 2 && text.contains("VIRT_BACKUP_METHOD: invalid value 'quick'"), "{text}");
    });
}
