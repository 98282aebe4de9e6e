//! The Debian package: what it brings, that all of it works where it lies, and that nothing but data stays behind.
//! Installed by dpkg into a directory of the test's own, with its maintainer scripts.

use std::path::Path;
use std::process::Command;
use tests::Home;
use tests::libvirt::{program, workspace};
use tests::metadata::stat;
use tests::process;

fn dpkg(home: &Home, words: &str) {
    let root = format!("--root={}", home.path("root").display());
    let mut dpkg =
        home.command(&["dpkg", &root, "--force-script-chrootless", "--force-depends", "--log=/dev/null"]);
    process::run(dpkg.args(words.split(' ')), process::LIMIT).ok();
}

/// All that is not dpkg's own, and is no directory.
fn files(home: &Home) -> String {
    home.sh("cd root && find . -not -type d -not -path './var/lib/dpkg/*' | LC_ALL=C sort").ok()
}

#[test]
fn root_the_package_brings_all_that_belongs_to_it_and_leaves_only_data() {
    let home = Home::new("package");
    let mut make = Command::new(workspace().join("scripts/package"));
    make.arg(home.path("")).env("CHUNKFS", program("CHUNKFS", "chunkfs"));
    make.env("VIRT_BACKUP", program("VIRT_BACKUP", "virt-backup"));
    let package = process::run(&mut make, process::LIMIT * 3).ok();
    home.sh("mkdir -p root/var/lib/dpkg/info root/var/lib/dpkg/updates; touch root/var/lib/dpkg/status").ok();
    dpkg(&home, &format!("--install {}", package.trim()));

    let root = home.path("root");
    for (path, mode) in
        [("var/lib/libvirt/backup", 0o40700), ("var/lib/virt-backup", 0o40711), ("usr/bin/chunkfs", 0o100755)]
    {
        let found = stat(root.join(path));
        assert_eq!((found.st_mode, found.st_uid, found.st_gid), (mode, 0, 0), "{path}");
    }
    for (link, program) in [("unchunkfs", "chunkfs"), ("vm_backup.sh", "virt-backup")] {
        assert_eq!(std::fs::read_link(root.join("usr/bin").join(link)).unwrap(), Path::new(program));
    }
    home.sh("cd root && md5sum --quiet --check var/lib/dpkg/info/virt-backup.md5sums").ok();
    let version = format!("virt-backup {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(home.run("root/usr/bin/virt-backup --version").ok(), version);
    assert!(home.run("root/usr/bin/unchunkfs").stderr.contains("unchunkfs"), "its older name is understood");
    assert!(home.run("root/usr/bin/vm_backup.sh --help").ok().contains("--backup-base-dir"), "and this one");
    for program in ["chunkfs", "virt-backup"] {
        home.sh(&format!(
            "man --warnings --local-file root/usr/share/man/man1/{program}.1.gz | grep -q NAME"
        ))
        .ok();
        let file = format!("root/usr/share/bash-completion/completions/{program}");
        assert!(
            home.sh(&format!("source {file}; complete -p {program}")).ok().ends_with(&format!("{program}\n"))
        );
    }
    home.sh("cd root/usr/lib/systemd/system && sed -n 's/^Exec[A-Za-z]*=\\([^ ]*\\).*/\\1/p' * | sort -u >../../../../programs").ok();
    home.sh("while read -r program; do test -x root$program; done <root/programs && rm root/programs").ok();
    let enabled = "etc/systemd/system/multi-user.target.wants/virt-backup-cleanup.service";
    assert!(root.join(enabled).is_symlink(), "cleanup at boot is switched on");

    home.sh("cd root/var/lib && mkdir -p virt-backup/mail01/index && touch virt-backup/mail01/index/chunks libvirt/backup/archive").ok();
    dpkg(&home, "--purge virt-backup");
    assert_eq!(files(&home), "./var/lib/libvirt/backup/archive\n./var/lib/virt-backup/mail01/index/chunks\n");
    home.sh("rm -r root/var/lib/virt-backup root/var/lib/libvirt").ok();
    let left = home.sh("cd root && find . -type d -not -path './var/lib/dpkg*' | LC_ALL=C sort").ok();
    assert_eq!(
        left.lines().filter(|path| path.contains("virt-backup") || path.contains("chunkfs")).count(),
        0,
        "{left}"
    );
}
