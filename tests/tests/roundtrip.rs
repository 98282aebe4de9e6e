//! The tree is the image: as `cat`, `b3sum` and the commands of chunkfs see it.

use std::time::Duration;
use tests::image::noise;
use tests::{CHUNK, Home, Image, process};

const CAT: &str = "LC_ALL=C sort | xargs -r cat";

#[test]
fn fuse_find_sort_cat_of_the_tree_is_the_image() {
    const MIB: u64 = 1 << 20;
    for (size, chunk_size) in [
        (0, "262144"),
        (1, "262144"),
        (CHUNK - 1, "262144"),
        (CHUNK, "256K"),
        (CHUNK + 1, "262144"),
        (70 * MIB + 1, "262144"),
        (0, "4096"),
        (4097, "4K"),
        (3 * MIB + 4095, "4096"),
        (20 * MIB + 12289, "12288"),
        (65 * MIB, "64M"),
        (64 * MIB - 1, "67108864"),
    ] {
        let home = Home::new("cat");
        Image::full(&home.path("disk.img"), size);
        for index in ["", "--index i"] {
            home.mount(&format!("{index} --chunk-size {chunk_size} --name vda disk.img"));
            home.sh(&format!("find mnt/vda -type f | {CAT} | cmp - disk.img")).ok();
            home.unmount();
        }
        home.mount(&format!("--chunk-size {chunk_size} disk.img"));
        home.sh(&format!("find mnt -type f | {CAT} | cmp - disk.img")).ok();
    }
}

#[test]
fn fuse_find_sort_cat_of_a_sparse_3_gib_image_is_the_image() {
    let home = Home::new("cat3g");
    let image = Image::sparse(&home.path("disk.img"), 3 << 30);
    for at in [0, 5, (1 << 30) - 3, 2 << 30, (3 << 30) - 100] {
        image.write(at, &noise(at, 100));
    }
    home.mount("--index i disk.img");
    home.sh(&format!("find mnt -type f | {CAT} | cmp - disk.img")).ok();
    let data: u64 = home
        .sh("find mnt -type f -printf '%b\\n' | awk '{ n += $1 } END { print n }'")
        .ok()
        .trim()
        .parse()
        .unwrap();
    assert_eq!(data, 5 * CHUNK / 512, "only chunks with data have blocks");
}

#[test]
fn fuse_b3sum_accepts_every_list_of_digests() {
    for (size, chunk_size, name) in [
        (0, 262144, "vda"),
        (1, 262144, "vda"),
        (257 * 4096 + 1, 4096, "vda"),
        (600 * 12288, 12288, "a'b"),
        (3 << 20, 262144, "mail01_vda"),
        (70_000 * 4096, 4096, "vda"),
    ] {
        let home = Home::new("b3sum");
        let image = Image::sparse(&home.path("disk.img"), size);
        image.write(0, &noise(9, size as usize / 3));
        for index in ["", "--index i"] {
            home.run(&format!("chunkfs mount {index} --chunk-size {chunk_size} --name {name} disk.img mnt"))
                .ok();
            // Not waiting for the comparison: a list that is not known yet makes its reader wait.
            let line = format!(
                "cd mnt; find \"{name}.b3\" -type f | sort | while read -r f; do b3sum --check \"$f\" || exit 1; done | wc -l"
            );
            let checked: u64 = home.sh(&line).ok().trim().parse().unwrap();
            assert_eq!(checked, size.div_ceil(chunk_size), "{index} {size}");
            home.unmount();
        }
    }
}

#[test]
fn fuse_a_file_system_in_the_image_comes_back_clean() {
    let home = Home::new("ext4");
    Image::sparse(&home.path("disk.img"), 64 << 20);
    home.sh("mkdir in; cp -r /usr/include/linux in/; mkfs.ext4 -q -d in disk.img").ok();
    home.mount("--name vda --index i disk.img");
    home.run("rsync -a mnt/ backup/").ok();
    home.unmount();
    home.run("chunkfs verify backup/vda --source disk.img").ok();
    home.run("chunkfs restore backup/vda back.img").ok();
    home.run("cmp disk.img back.img").ok();
    home.run("fsck.ext4 -fn back.img").ok();
    home.run("chunkfs join backup/vda mnt").ok();
    home.run("fsck.ext4 -fn mnt/image").ok();
    home.run("cmp mnt/image disk.img").ok();
}

#[test]
fn fuse_200_readers_at_once_all_read_the_right_bytes() {
    let home = Home::new("readers");
    let image = Image::full(&home.path("disk.img"), 300 * CHUNK);
    let bytes = image.read(0, 300 * CHUNK as usize);
    for words in ["disk.img", "--index i disk.img", "-o kernel_cache --index i --compare-all disk.img"] {
        home.run(&format!("chunkfs mount {words} mnt")).ok();
        std::thread::scope(|scope| {
            for reader in 0..200u64 {
                let (home, bytes) = (&home, &bytes);
                scope.spawn(move || {
                    for step in 0..5 {
                        let number = (reader * 7 + step * 61) % 300;
                        let path = home.path("mnt").join(tests::chunk(number));
                        let at = (number * CHUNK) as usize;
                        assert!(
                            std::fs::read(path).unwrap() == bytes[at..at + CHUNK as usize],
                            "chunk {number}"
                        );
                    }
                });
            }
        });
        home.unmount();
    }
}

#[test]
fn fuse_a_view_of_several_disks_and_files_has_them_all() {
    let home = Home::new("several");
    Image::full(&home.path("a.img"), 3 * CHUNK + 1);
    Image::full(&home.path("b.img"), 40_000);
    std::fs::write(home.path("vm.xml"), "<domain/>\n").unwrap();
    let at = |name: &str| home.path(name).display().to_string();
    let spec = serde_json::json!({
        "name": "mail01", "index": at("i"),
        "disks": [
            {"name": "mail01_vda", "source": {"image": at("a.img")}},
            {"name": "mail01_vdb", "source": {"image": at("b.img")}, "chunk_size": 4096},
        ],
        "files": [{"name": "mail01.xml", "path": at("vm.xml")}, {"name": "mail01.json", "path": at("vm.xml"), "newest": true}],
    });
    std::fs::write(home.path("view.json"), spec.to_string()).unwrap();
    let mut inodes = Vec::new();
    for _ in 0..2 {
        home.run("chunkfs mount --view view.json mnt").ok();
        process::until("the comparison", Duration::from_secs(20), || {
            home.status("mnt")["scan"]["done"] == true
        });
        let names = home.run("ls mnt").ok();
        assert_eq!(names, "mail01.json\nmail01.xml\nmail01_vda\nmail01_vda.b3\nmail01_vdb\nmail01_vdb.b3\n");
        home.sh(&format!("find mnt/mail01_vda -type f | {CAT} | cmp - a.img && find mnt/mail01_vdb -type f | {CAT} | cmp - b.img && cmp mnt/mail01.xml vm.xml")).ok();
        home.sh("cd mnt && find . -path '*.b3/*' -type f | xargs b3sum --quiet --check").ok();
        let stamps = home.sh("stat -c %Y mnt/mail01_vda mnt/mail01.json mnt").ok();
        let stamps: Vec<i64> = stamps.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(stamps[2], stamps[1], "the root is as new as the newest file");
        assert!(stamps[1] > stamps[0]);
        let table = home.sh("grep -F mnt /proc/self/mountinfo").ok();
        assert!(table.contains(" - fuse.chunkfs chunkfs-mail01 ro,"), "{table}");
        inodes.push(home.sh("find mnt -printf '%i %p\\n' | sort").ok());
        home.unmount();
    }
    assert_eq!(inodes[0], inodes[1]);
}
