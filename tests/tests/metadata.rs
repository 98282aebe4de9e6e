//! What chunk files and their directories present to a backup tool: the points of the contract, one test each.

use rustix::fs::{Dir, FileType, Mode, OFlags, SeekFrom, StatVfsMountFlags, XattrFlags};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tests::image::noise;
use tests::metadata::{Shown, now, shown, stat, tree};
use tests::{CHUNK, Home, Image, chunk};

/// With and without an index, bare and under a name: the words of the command line, and where the chunks are.
const FORMS: [(&str, &str); 4] = [
    ("disk.img", "mnt"),
    ("--name vda disk.img", "mnt/vda"),
    ("--index vda.index disk.img", "mnt"),
    ("--name vda --index vda.index disk.img", "mnt/vda"),
];

#[test]
fn fuse_sizes_are_exact_and_the_last_chunk_is_short() {
    for size in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 256 * CHUNK + 1, 600 * CHUNK + 77] {
        for (words, root) in FORMS {
            let home = Home::new("sizes");
            let image = Image::sparse(&home.path("disk.img"), size);
            if size > 0 {
                image.write(size - 1, b"x");
            }
            home.mount(words);
            let root = home.path(root);
            let files: Vec<(String, u64)> = tree(&root)
                .into_iter()
                .filter(|(_, shown)| shown.mode & 0o170000 == 0o100000)
                .map(|(path, shown)| (path.to_str().unwrap().to_owned(), shown.size))
                .collect();
            let expected: Vec<(String, u64)> = (0..size.div_ceil(CHUNK))
                .map(|number| (chunk(number), (size - number * CHUNK).min(CHUNK)))
                .collect();
            assert_eq!(files, expected, "{size} bytes, {words}");
            home.unmount();
        }
    }
}

#[test]
fn fuse_all_three_times_are_one_stamp_in_whole_seconds_and_not_in_the_future() {
    for (words, _) in FORMS {
        let home = Home::new("times");
        Image::full(&home.path("disk.img"), 3 * CHUNK);
        let before = now();
        for _ in 0..3 {
            home.run(&format!("chunkfs mount {words} mnt")).ok();
            let mounted = now();
            for (path, shown) in tree(&home.path("mnt")) {
                let stat = stat(home.path("mnt").join(&path));
                assert_eq!((stat.st_ctime, stat.st_atime), (stat.st_mtime, stat.st_mtime), "{path:?}");
                assert_eq!(
                    (stat.st_mtime_nsec, stat.st_ctime_nsec, stat.st_atime_nsec),
                    (0, 0, 0),
                    "{path:?}"
                );
                assert!(shown.mtime <= mounted, "{path:?}: {} is after {mounted}", shown.mtime);
                assert!(shown.mtime >= before - 5, "{path:?}: {} is long before {before}", shown.mtime);
            }
            home.unmount();
        }
    }
}

#[test]
fn fuse_owner_and_mode_are_those_asked_for_and_never_the_images() {
    let home = Home::new("owner");
    Image::full(&home.path("disk.img"), CHUNK + 1);
    home.sh("chmod 666 disk.img; chown 1:1 disk.img").ok();
    for (options, owner, file, directory) in [
        ("", (0, 0), 0o100400, 0o040500),
        ("-o uid=34", (34, 0), 0o100400, 0o040500),
        ("-o uid=34,gid=6,mode=440", (34, 6), 0o100440, 0o040550),
        ("-o gid=6 -o mode=0444", (0, 6), 0o100444, 0o040555),
        ("-o mode=777", (0, 0), 0o100777, 0o040777),
    ] {
        home.mount(&format!("{options} --name vda disk.img"));
        for (path, shown) in tree(&home.path("mnt")) {
            let is_file = shown.mode & 0o170000 == 0o100000;
            assert_eq!(shown.mode, if is_file { file } else { directory }, "{options}: {path:?}");
            assert_eq!(shown.owner, owner, "{options}: {path:?}");
            assert!(!is_file || shown.nlink == 1, "{options}: {path:?}");
        }
        home.unmount();
    }
}

#[test]
fn fuse_inodes_are_the_same_for_ever() {
    let home = Home::new("inodes");
    let image = Image::sparse(&home.path("disk.img"), 0x12346 * 4096);
    home.mount("--name vda --chunk-size 4096 --index i disk.img");
    let inode = |path: &str| shown(home.path("mnt").join(path)).inode;
    // As core/layout.rs has them: slot 1 is 1 << 53, chunks have a one at bit 51, each level above 8 bits lower.
    let golden = [
        ("", 1),
        ("vda", (1 << 53) | 1),
        ("vda/00", (1 << 53) | 2),
        ("vda/00/00", (1 << 53) | 1 << 3),
        ("vda/00/00/00/00/00", (1 << 53) | 1 << 27),
        ("vda/00/00/00/00/00/01/23", (1 << 53) | 1 << 43 | 0x123),
        ("vda/00/00/00/00/00/01/23/45", (1 << 53) | 1 << 51 | 0x12345),
        ("vda.b3", (1 << 53) | (1 << 52) | 1),
        ("vda.b3/00/00/00/00/00/01/23", (1 << 53) | (1 << 52) | 1 << 43 | 0x123),
    ];
    for (path, expected) in golden {
        assert_eq!(inode(path), expected, "{path}");
    }
    home.unmount();
    // Another disk in the same index has other inodes, and this one keeps its own.
    Image::full(&home.path("other.img"), 1);
    home.mount("--name vdb --chunk-size 4096 --index i other.img");
    assert_eq!(inode("vdb/00/00/00/00/00/00/00/00"), (2 << 53) | 1 << 51);
    home.unmount();
    image.resize(0x12347 * 4096);
    home.mount("--name vda --chunk-size 4096 --index i disk.img");
    for (path, expected) in golden {
        assert_eq!(inode(path), expected, "{path}");
    }
    home.unmount();
    home.mount("--chunk-size 4096 disk.img");
    assert_eq!(inode("00/00/00/00/00/01/23/45"), (1 << 53) | 1 << 51 | 0x12345);
    assert_eq!(inode(""), 1);
}

#[test]
fn fuse_no_two_files_of_a_mount_share_an_inode() {
    let home = Home::new("unique");
    Image::sparse(&home.path("disk.img"), 70_000 * 4096);
    home.mount("--name vda --chunk-size 4096 disk.img");
    let inodes: Vec<u64> = tree(&home.path("mnt")).values().map(|shown| shown.inode).collect();
    let unique: BTreeSet<u64> = inodes.iter().copied().collect();
    assert_eq!(unique.len(), inodes.len());
    // 70000 chunks in 274 leaves below 2 directories below 5, and as many nodes above the digests.
    assert_eq!(inodes.len(), 1 + 2 * (1 + 5 + 2 + 274) + 70_000);
}

#[test]
fn fuse_blocks_are_none_for_holes_and_never_for_data() {
    let home = Home::new("blocks");
    let image = Image::sparse(&home.path("disk.img"), 6 * CHUNK + 1000);
    image.write(0, &noise(1, CHUNK as usize));
    image.write(2 * CHUNK + 5, b"x");
    image.write(3 * CHUNK, &vec![0; CHUNK as usize]);
    let blocks = |number| stat(home.path("mnt").join(chunk(number))).st_blocks;
    let all = || (0..7).map(blocks).collect::<Vec<_>>();
    home.mount("disk.img");
    assert_eq!(all(), [512, 0, 512, 512, 0, 0, 0]);
    home.unmount();
    home.mount("--index i disk.img");
    assert_eq!(all(), [512, 0, 512, 512, 0, 0, 0]);
    home.unmount();
    // From the second view on it is known that chunk 3 is zero, although it is no hole.
    image.write(6 * CHUNK + 999, b"x");
    home.mount("--index i disk.img");
    assert_eq!(all(), [512, 0, 512, 0, 0, 0, 2]);
    // What is archived with `tar -S` is the image all the same.
    home.sh("tar -C mnt -Scf a.tar . && mkdir out && tar -C out -xf a.tar && find out -type f | sort | xargs cat | cmp - disk.img").ok();
}

#[test]
fn fuse_listings_have_dots_names_in_order_types_and_the_inodes_of_stat() {
    let home = Home::new("listing");
    Image::sparse(&home.path("disk.img"), 300 * CHUNK);
    home.mount("--name vda disk.img");
    for (directory, count) in
        [("", 2), ("vda", 1), ("vda/00/00/00/00/00/00", 2), ("vda/00/00/00/00/00/00/00", 256), ("vda.b3", 1)]
    {
        let path = home.path("mnt").join(directory);
        let handle = rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let mut entries = Vec::new();
        for entry in Dir::read_from(handle).unwrap() {
            let entry = entry.unwrap();
            entries.push((entry.file_name().to_str().unwrap().to_owned(), entry.file_type(), entry.ino()));
        }
        assert_eq!(entries.len(), count + 2, "{directory}");
        assert_eq!((entries[0].0.as_str(), entries[1].0.as_str()), (".", ".."), "{directory}");
        assert!(entries[2..].is_sorted_by_key(|(name, ..)| name), "{directory}");
        for (name, kind, inode) in &entries[2..] {
            let stat = stat(path.join(name));
            assert_eq!(
                (*kind, *inode),
                (FileType::from_raw_mode(stat.st_mode), stat.st_ino),
                "{directory}/{name}"
            );
        }
        assert!(entries[..2].iter().all(|(_, kind, _)| *kind == FileType::Directory), "{directory}");
        assert_eq!(entries[0].2, stat(&path).st_ino, "{directory}");
    }
}

#[test]
fn fuse_directories_are_as_new_as_their_newest_child_and_otherwise_never_change() {
    let home = Home::new("directories");
    let image = Image::full(&home.path("disk.img"), 70_000 * 4096);
    let mut before: Option<BTreeMap<PathBuf, Shown>> = None;
    for changed in [&[][..], &[3], &[], &[260, 69_999], &[65_536]] {
        for number in changed {
            image.write(number * 4096, &noise(now() as u64 + number, 100));
        }
        home.mount("--name vda --chunk-size 4096 --index i disk.img");
        let tree = tree(&home.path("mnt"));
        for (path, shown) in tree.iter().filter(|(_, shown)| shown.mode & 0o170000 == 0o040000) {
            let newest =
                tree.iter().filter(|(child, _)| child.parent() == Some(path)).map(|(_, c)| c.mtime).max();
            assert_eq!(newest, Some(shown.mtime), "{path:?}");
            assert_eq!(shown.size, 4096, "{path:?}");
        }
        if let Some(before) = &before {
            let touches = |path: &Path, number: &u64| {
                let (chunks, digests) =
                    (format!("vda/{}", chunk(*number)), format!("vda.b3/{}", chunk(*number)));
                Path::new(&chunks).starts_with(path) || Path::new(&digests).starts_with(path)
            };
            for (path, shown) in &tree {
                let expected = changed.iter().any(|number| touches(path, number));
                assert_eq!(before[path] != *shown, expected, "{path:?} after {changed:?}");
                let same = Shown { mtime: shown.mtime, ..before[path].clone() };
                assert_eq!(*shown, same, "{path:?}: only the time changes");
            }
        }
        before = Some(tree);
        home.unmount();
    }
}

#[test]
fn fuse_extended_attributes_are_not_supported() {
    let home = Home::new("xattrs");
    Image::full(&home.path("disk.img"), 1);
    home.mount("disk.img");
    home.run("mount -i -o remount,rw mnt").ok();
    for path in [home.path("mnt").join(chunk(0)), home.path("mnt/00")] {
        let mut buffer = [0u8; 100];
        for name in ["user.a", "security.capability", "trusted.a"] {
            assert_eq!(rustix::fs::lgetxattr(&path, name, &mut buffer), Err(Errno::OPNOTSUPP), "{name}");
        }
        assert_eq!(rustix::fs::llistxattr(&path, &mut buffer), Err(Errno::OPNOTSUPP));
        assert_eq!(rustix::fs::lsetxattr(&path, "user.a", b"x", XattrFlags::empty()), Err(Errno::OPNOTSUPP));
        assert_eq!(rustix::fs::lremovexattr(&path, "user.a"), Err(Errno::OPNOTSUPP));
    }
}

/// Every kind of write, by the name of what it does.
fn writes(root: &Path) -> Vec<(&'static str, Result<(), Errno>)> {
    use rustix::fs;
    let file = root.join(chunk(0));
    let directory = root.join("00");
    let new = root.join("00/new");
    let open = |flags| fs::open(&file, flags, Mode::empty()).map(drop);
    let here = fs::CWD;
    let times = fs::Timestamps {
        last_access: fs::Timespec { tv_sec: 1, tv_nsec: 0 },
        last_modification: fs::Timespec { tv_sec: 1, tv_nsec: 0 },
    };
    vec![
        ("open for reading and writing", open(OFlags::RDWR)),
        ("open for writing", open(OFlags::WRONLY)),
        ("open for appending", open(OFlags::WRONLY | OFlags::APPEND)),
        ("open and truncate", open(OFlags::WRONLY | OFlags::TRUNC)),
        ("create", fs::open(&new, OFlags::RDWR | OFlags::CREATE, Mode::RWXU).map(drop)),
        (
            "truncate",
            std::fs::OpenOptions::new()
                .write(true)
                .open(&file)
                .and_then(|f| f.set_len(0))
                .map_err(|e| Errno::from_raw_os_error(e.raw_os_error().unwrap())),
        ),
        ("mknod", fs::mknodat(here, &new, FileType::Fifo, Mode::RWXU, 0)),
        ("mkdir", fs::mkdir(&new, Mode::RWXU)),
        ("symlink", fs::symlink("x", &new)),
        ("link", fs::link(&file, &new)),
        ("unlink", fs::unlink(&file)),
        ("rmdir", fs::rmdir(&directory)),
        ("rename", fs::rename(&file, &new)),
        ("rename a directory", fs::rename(&directory, root.join("01"))),
        ("chmod", fs::chmod(&file, Mode::RWXU)),
        ("chmod a directory", fs::chmod(&directory, Mode::RWXU)),
        ("chown", fs::chown(&file, Some(fs::Uid::from_raw(1)), None)),
        ("utimens", fs::utimensat(here, &file, &times, fs::AtFlags::empty())),
    ]
}

#[test]
fn fuse_no_kind_of_write_is_possible_not_even_after_a_remount() {
    for caching in ["direct_io", "kernel_cache"] {
        let home = Home::new("writes");
        Image::full(&home.path("disk.img"), CHUNK);
        home.mount(&format!("-o {caching} disk.img"));
        let before = tree(&home.path("mnt"));
        for (what, result) in writes(&home.path("mnt")) {
            assert_eq!(result, Err(Errno::ROFS), "{caching}: {what}");
        }
        let flags = rustix::fs::statvfs(home.path("mnt")).unwrap().f_flag;
        let expected = StatVfsMountFlags::RDONLY | StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV;
        assert!(flags.contains(expected), "{flags:?}");
        home.run("mount -i -o remount,rw mnt").ok();
        for (what, result) in writes(&home.path("mnt")) {
            let may_open = caching == "kernel_cache" && what.starts_with("open for");
            // A kernel that caches opens files by itself; then the write is what fails.
            assert!(
                result == Err(Errno::ROFS) || (may_open && result.is_ok()),
                "{caching}: {what}: {result:?}"
            );
        }
        if caching == "kernel_cache" {
            let file = std::fs::OpenOptions::new().write(true).open(home.path("mnt").join(chunk(0)));
            let written = file.and_then(|file| std::os::unix::fs::FileExt::write_at(&file, b"x", 0));
            let error = written.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::ROFS.raw_os_error()));
        }
        assert_eq!(tree(&home.path("mnt")), before);
        home.sh("cmp mnt/00/00/00/00/00/00/00/00 disk.img").ok();
    }
}

#[test]
fn fuse_statfs_adds_up_with_what_find_and_du_count() {
    for (size, words, root) in [
        (0, "disk.img", "mnt"),
        (1, "disk.img", "mnt"),
        (300 * CHUNK + 1, "disk.img", "mnt"),
        (300 * CHUNK + 1, "--name vda disk.img", "mnt/vda"),
        (300 * CHUNK + 1, "--name vda --index i disk.img", "mnt/vda"),
    ] {
        let home = Home::new("statfs");
        Image::sparse(&home.path("disk.img"), size);
        home.mount(words);
        let totals = rustix::fs::statvfs(home.path("mnt")).unwrap();
        let found: u64 = home.sh("find mnt | wc -l").ok().trim().parse().unwrap();
        assert_eq!(totals.f_files, found, "{size}: {words}");
        let bytes: u64 = home
            .sh(&format!("find {root} -type f -printf '%s\\n' | awk '{{ n += $1 }} END {{ print n + 0 }}'"))
            .ok()
            .trim()
            .parse()
            .unwrap();
        assert_eq!(bytes, size, "{words}");
        assert_eq!(totals.f_blocks * totals.f_frsize, size.div_ceil(4096) * 4096, "{size}: {words}");
        assert_eq!((totals.f_bfree, totals.f_bavail, totals.f_ffree), (0, 0, 0));
        assert_eq!(totals.f_namemax, 255);
        let shown: u64 = home.sh("df --output=itotal mnt | tail -n 1").ok().trim().parse().unwrap();
        assert_eq!(shown, found);
    }
}

#[test]
fn fuse_holes_can_be_sought() {
    let home = Home::new("holes");
    let image = Image::sparse(&home.path("disk.img"), 4 * CHUNK + 100);
    image.write(CHUNK + 65536, &noise(1, 4096));
    image.write(2 * CHUNK, &noise(2, 4096));
    for words in ["disk.img", "--index i disk.img"] {
        home.mount(words);
        let data = |offset| SeekFrom::Data(offset);
        let hole = |offset| SeekFrom::Hole(offset);
        for (number, from, expected) in [
            (0, data(0), Err(Errno::NXIO)),
            (0, hole(0), Ok(0)),
            (0, hole(CHUNK - 1), Ok(CHUNK - 1)),
            (0, hole(CHUNK), Err(Errno::NXIO)),
            (1, data(0), Ok(65536)),
            (1, data(65537), Ok(65537)),
            (1, hole(0), Ok(0)),
            (1, hole(65536), Ok(65536 + 4096)),
            (1, data(65536 + 4096), Err(Errno::NXIO)),
            (2, data(0), Ok(0)),
            (2, hole(0), Ok(4096)),
            (4, data(0), Err(Errno::NXIO)),
            (4, hole(99), Ok(99)),
            (4, hole(100), Err(Errno::NXIO)),
        ] {
            let file = std::fs::File::open(home.path("mnt").join(chunk(number))).unwrap();
            assert_eq!(rustix::fs::seek(&file, from), expected, "{words}: chunk {number}, {from:?}");
        }
        home.unmount();
    }
}

#[test]
fn fuse_only_the_names_of_the_tree_are_found() {
    let home = Home::new("names");
    Image::sparse(&home.path("disk.img"), 0xab * CHUNK + 1);
    home.mount("--name vda disk.img");
    let leaf = "vda/00/00/00/00/00/00/00";
    for (path, expected) in [
        (format!("{leaf}/ab"), Ok(())),
        (format!("{leaf}/ac"), Err(Errno::NOENT)),
        (format!("{leaf}/AB"), Err(Errno::NOENT)),
        (format!("{leaf}/aB"), Err(Errno::NOENT)),
        (format!("{leaf}/0"), Err(Errno::NOENT)),
        (format!("{leaf}/000"), Err(Errno::NOENT)),
        (format!("{leaf}/ZZ"), Err(Errno::NOENT)),
        (format!("{leaf}/+1"), Err(Errno::NOENT)),
        (format!("{leaf}/ 1"), Err(Errno::NOENT)),
        (format!("{leaf}/00/00"), Err(Errno::NOTDIR)),
        ("vda/01".to_owned(), Err(Errno::NOENT)),
        ("vda/00/00/00/00/00/00/01".to_owned(), Err(Errno::NOENT)),
        ("vda.b3/00/00/00/00/00/00/00".to_owned(), Ok(())),
        ("vda.b3/00/00/00/00/00/00/01".to_owned(), Err(Errno::NOENT)),
        ("vda.b3/00/00/00/00/00/00/00/00".to_owned(), Err(Errno::NOTDIR)),
        ("00".to_owned(), Err(Errno::NOENT)),
        ("VDA".to_owned(), Err(Errno::NOENT)),
        ("vda.b".to_owned(), Err(Errno::NOENT)),
        ("x".repeat(255), Err(Errno::NOENT)),
    ] {
        assert_eq!(rustix::fs::lstat(home.path("mnt").join(&path)).map(drop), expected, "{path}");
    }
}

#[test]
fn fuse_reads_of_any_offset_and_length_give_the_bytes_of_the_chunk() {
    use std::os::unix::fs::FileExt;
    for caching in ["direct_io", "kernel_cache"] {
        let home = Home::new("reads");
        let size = 2 * CHUNK + 5000;
        let image = Image::full(&home.path("disk.img"), size);
        home.mount(&format!("-o {caching} disk.img"));
        for (number, offset, length) in [
            (0, 0, 1),
            (0, 4095, 2),
            (1, CHUNK - 1, 10),
            (1, CHUNK, 10),
            (1, CHUNK + 10, 10),
            (1, u64::MAX >> 2, 10),
            (2, 0, 10_000),
            (2, 4999, 1),
            (2, 5000, 1),
            (0, 3, 262_144),
            (0, 0, 2_000_000),
        ] {
            let file = std::fs::File::open(home.path("mnt").join(chunk(number))).unwrap();
            let mut buffer = vec![0; length];
            let count = file.read_at(&mut buffer, offset).unwrap();
            let end = (size - number * CHUNK).min(CHUNK);
            let expected = end.saturating_sub(offset).min(length as u64) as usize;
            assert_eq!(count, expected, "chunk {number}: {length} bytes at {offset}");
            let same = expected == 0 || buffer[..count] == image.read(number * CHUNK + offset, count);
            assert!(same, "chunk {number}: {length} bytes at {offset}");
        }
    }
}
