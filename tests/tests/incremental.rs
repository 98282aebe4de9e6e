//! The whole point: what has not changed is not read again, and what has changed always is. With the real rsync.

use tests::image::noise;
use tests::metadata::{shown, tree};
use tests::{CHUNK, Home, Image, chunk};

/// Backs up with rsync as it comes, and gives the paths of the files that it transferred.
#[track_caller]
fn back_up(home: &Home, words: &str) -> Vec<String> {
    home.mount(words);
    let log = home.run("rsync -a --delete --out-format=%i:%n mnt/ backup/").ok();
    home.unmount();
    let mut sent: Vec<String> = log
        .lines()
        .filter_map(|line| line.strip_prefix(">f")?.split_once(':'))
        .map(|(_, path)| path.to_owned())
        .collect();
    sent.sort();
    sent
}

#[track_caller]
fn assert_backup_is(home: &Home, image: &str) {
    home.sh(&format!(
        "find backup -path '*.b3' -prune -o -type f -print | LC_ALL=C sort | xargs -r cat | cmp - {image}"
    ))
    .ok();
}

#[test]
fn fuse_rsync_sends_what_has_changed_and_nothing_else() {
    for settled in [false, true] {
        let home = Home::new("rsync");
        let image = Image::full(&home.path("disk.img"), 300 * CHUNK + 10);
        let all: Vec<String> = (0..301).map(chunk).collect();
        if settled {
            image.settle();
        }
        let step = |what: &str, expected: &[String]| {
            assert_eq!(back_up(&home, "--index i disk.img"), expected, "{what}, settled: {settled}");
            assert_backup_is(&home, "disk.img");
        };
        step("the first time", &all);
        step("nothing changed", &[]);
        image.write(5 * CHUNK + 7, b"changed");
        step("one chunk changed", &[chunk(5)]);
        let same = image.read(9 * CHUNK, 3 * CHUNK as usize);
        image.write(9 * CHUNK, &same);
        step("rewritten with the same bytes", &[]);
        image.write(270 * CHUNK, &vec![0; CHUNK as usize]);
        step("a chunk zeroed", &[chunk(270)]);
        image
            .write(4 * CHUNK - 1, &image.read(4 * CHUNK - 1, 2).iter().map(|byte| !byte).collect::<Vec<_>>());
        step("a write across two chunks", &[chunk(3), chunk(4)]);
        home.run("touch disk.img").ok();
        step("touched", &[]);
        home.run("fallocate --punch-hole --offset 262144 --length 262144 disk.img").ok();
        step("a hole punched", &[chunk(1)]);
        home.run("fallocate --dig-holes disk.img").ok();
        step("zeros became holes", &[]);
        home.sh("cp --sparse=never disk.img copy.img && mv copy.img disk.img").ok();
        step("replaced by an equal file", &[]);
    }
}

#[test]
fn fuse_grown_and_shrunk_disks_send_their_ends_only() {
    let home = Home::new("resize");
    let image = Image::full(&home.path("disk.img"), 4 * CHUNK);
    let step = |what: &str, size: u64, expected: &[u64]| {
        image.resize(size);
        let expected: Vec<String> = expected.iter().map(|number| chunk(*number)).collect();
        assert_eq!(back_up(&home, "--index i disk.img"), expected, "{what}");
        assert_backup_is(&home, "disk.img");
    };
    step("the first time", 4 * CHUNK, &[0, 1, 2, 3]);
    step("grown by whole chunks", 6 * CHUNK, &[4, 5]);
    step("grown by a part", 6 * CHUNK + 1, &[6]);
    step("the part grown", 6 * CHUNK + 2, &[6]);
    step("shrunk into a chunk", 3 * CHUNK + 1, &[3]);
    step("shrunk by whole chunks", 2 * CHUNK, &[]);
    step("grown again, now zero", 4 * CHUNK, &[2, 3]);
    step("to nothing", 0, &[]);
    step("from nothing", CHUNK, &[0]);
    step("over a leaf", 257 * CHUNK, &(1..257).collect::<Vec<_>>());
    step("back", CHUNK, &[]);
    image.write(0, b"changed");
    step("changed and grown", 2 * CHUNK, &[0, 1]);
}

#[test]
fn fuse_what_is_grown_again_has_new_stamps_although_its_size_is_as_before() {
    let home = Home::new("regrow");
    let image = Image::full(&home.path("disk.img"), 4 * CHUNK);
    home.mount("--index i disk.img");
    let before = shown(home.path("mnt").join(chunk(3)));
    home.unmount();
    image.resize(2 * CHUNK);
    home.mount("--index i disk.img");
    home.unmount();
    image.resize(4 * CHUNK);
    home.mount("--index i disk.img");
    assert!(shown(home.path("mnt").join(chunk(3))).mtime > before.mtime);
}

#[test]
fn fuse_link_dest_links_every_unchanged_file_digests_included() {
    let home = Home::new("linkdest");
    let image = Image::full(&home.path("disk.img"), 300 * CHUNK);
    let words = "--name vda --index i disk.img";
    home.mount(words);
    home.run("rsync -a mnt/ day.1/").ok();
    home.unmount();
    image.write(7 * CHUNK, &noise(1, 10));
    home.mount(words);
    home.run(&format!("rsync -a --link-dest={} mnt/ day.2/", home.path("day.1").display())).ok();
    home.unmount();
    let copied = home.sh("cd day.2 && find . -type f -links 1 | sort").ok();
    assert_eq!(copied, format!("./vda.b3/{}\n./vda/{}\n", &chunk(7)[..20], chunk(7)));
    home.run("chunkfs verify day.1/vda").ok();
    home.run("chunkfs verify day.2/vda --source disk.img").ok();
}

#[test]
fn fuse_nothing_that_a_backup_tool_compares_changes_with_unchanged_content() {
    let home = Home::new("unchanged");
    let image = Image::full(&home.path("disk.img"), 600 * 4096);
    let view = || {
        home.mount("--chunk-size 4096 --name vda --index i disk.img");
        let tree = tree(&home.path("mnt"));
        home.unmount();
        tree
    };
    let first = view();
    for round in 0..3 {
        home.sh("cp disk.img x && mv x disk.img && touch -d '2001-01-01' disk.img").ok();
        assert_eq!(view(), first, "copied {round}");
    }
    let _ = image;
}

#[test]
fn fuse_every_change_gets_a_larger_stamp_however_fast_views_follow_each_other() {
    let home = Home::new("fast");
    let image = Image::full(&home.path("disk.img"), 3 * CHUNK);
    let mut last = 0;
    for round in 0..6u64 {
        image.write(CHUNK, &noise(round, 64));
        home.run("chunkfs mount --index i disk.img mnt").ok();
        let stamp = shown(home.path("mnt").join(chunk(1))).mtime;
        assert!(stamp > last, "round {round}: {stamp} after {last}");
        assert!(stamp <= tests::metadata::now());
        last = stamp;
        match round % 3 {
            0 => home.unmount(),
            1 => home.run("umount mnt").ok().clear(),
            _ => {
                home.kill_daemon("mnt");
                home.run("chunkfs umount mnt").ok();
            }
        }
    }
}

#[test]
fn fuse_tar_newer_archives_what_has_changed_since_its_last_run() {
    let home = Home::new("tar");
    let image = Image::full(&home.path("disk.img"), 40 * CHUNK);
    home.mount("--index i disk.img");
    home.run("tar --listed-incremental=snar -cf 0.tar mnt").ok();
    home.unmount();
    image.write(33 * CHUNK, b"changed");
    home.mount("--index i disk.img");
    home.run("tar --listed-incremental=snar --no-check-device -cf 1.tar mnt").ok();
    let listed = home.sh("tar -tf 1.tar | grep -v '/$'").ok();
    assert_eq!(listed, format!("mnt/{}\n", chunk(33)));
}

/// A memory map changes the times of its file only with the first write to a page that is on the disk already.
#[test]
fn fuse_what_is_written_by_way_of_a_memory_map_is_never_missed() {
    use std::io::{BufRead, BufReader, Write};
    const WRITER: &str = "import mmap, sys\n\
        image = open('disk.img', 'r+b'); pages = mmap.mmap(image.fileno(), 0)\n\
        for line in sys.stdin:\n pages[300 * 262144] = int(line); print('written', flush=True)\n";
    let home = Home::new("mapped");
    let image = Image::full(&home.path("disk.img"), 600 * CHUNK);
    // Its blocks have their places: no journal brings what is written from now on to the disk before its time.
    home.run("sync disk.img").ok();
    let mut command = std::process::Command::new("python3");
    command.args(["-c", WRITER]).current_dir(home.path("."));
    let mut writer =
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let (mut words, mut answers) =
        (writer.stdin.take().unwrap(), BufReader::new(writer.stdout.take().unwrap()));
    let mut write = |byte: u8| {
        writeln!(words, "{byte}").unwrap();
        answers.read_line(&mut String::new()).unwrap();
    };
    write(1);
    // The times of the image are old enough to be believed.
    std::thread::sleep(std::time::Duration::from_secs(4));
    for round in 2..5 {
        assert!(back_up(&home, "--index i disk.img").contains(&chunk(300)), "{round}");
        assert_eq!(back_up(&home, "--index i disk.img"), [""; 0], "{round}");
        write(round);
        std::thread::sleep(std::time::Duration::from_secs(4));
    }
    drop((words, image));
    writer.wait().unwrap();
}
