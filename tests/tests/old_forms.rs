//! What users of chunkfs 0.8 have in their scripts.

use tests::{CHUNK, Home, Image};

#[test]
fn fuse_the_forms_of_older_versions_work() {
    let home = Home::new("old");
    Image::full(&home.path("disk.img"), 5 * CHUNK + 9);
    home.sh(&format!("ln -s {} unchunkfs; mkdir out", tests::process::chunkfs().display())).ok();
    for options in ["", "-o allow_other", "-o allow_other,ro"] {
        home.run(&format!("chunkfs {options} 262144 disk.img mnt")).ok();
        home.sh("find mnt -type f | LC_ALL=C sort | xargs cat | cmp - disk.img").ok();
        home.sh("test $(find mnt -type f | wc -l) = 6").ok();
        home.run(&format!("./unchunkfs {options} mnt out")).ok();
        home.run("cmp out/image disk.img").ok();
        assert_eq!(home.run("ls -A out").ok(), "image\n");
        home.run("umount out").ok();
        home.run("fusermount3 -u mnt").ok();
    }
    home.run("chunkfs 65536 disk.img mnt").ok();
    home.sh("test $(find mnt -type f | wc -l) = 21").ok();
    home.unmount();
}

#[test]
fn fuse_a_line_in_fstab_works_with_the_type_that_stands_in_the_mount_table() {
    let home = Home::new("fstab");
    Image::full(&home.path("disk.img"), 3 * CHUNK);
    home.run("chunkfs mount disk.img mnt").ok();
    home.run("umount -t fuse.chunkfs mnt").ok();
    assert!(!home.is_mounted("mnt"));
}
