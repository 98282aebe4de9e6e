//! Images that nobody could read from end to end: ready at once, listed at once, in little memory.

use std::time::{Duration, Instant};
use tests::image::noise;
use tests::{CHUNK, Home, Image, chunk};

const TIB: u64 = 1 << 40;

/// The memory of a process that is its own: neither files nor shared.
fn own_memory_kib(pid: rustix::process::Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    let value = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    value("VmRSS:") - value("RssFile:") - value("RssShmem:")
}

/// A file system that can hold files of any length, sparsely: XFS in a loop device.
fn with_xfs(name: &str) -> (Home, String) {
    let home = Home::new(name);
    home.sh("truncate -s 1G xfs.img && mkfs.xfs -q xfs.img && mkdir xfs && mount -o loop xfs.img xfs").ok();
    (home, "xfs/disk.img".to_owned())
}

#[test]
fn root_16_tib_are_ready_within_a_second_and_any_leaf_is_listed_at_once() {
    // As large as a file can be where files are largest but for XFS: ext4 ends at 16 TiB less a block.
    let (home, name) = with_xfs("16tib");
    let image = Image::sparse(&home.path(&name), 16 * TIB);
    for tib in 0..16 {
        image.write(tib * TIB + 5 * CHUNK, &noise(tib, 4096));
    }
    for view in ["the first", "an unchanged", "a changed"] {
        if view == "a changed" {
            image.write(9 * TIB, b"changed");
        }
        let begun = Instant::now();
        home.run(&format!("chunkfs mount --name vda --index i {name} mnt")).ok();
        let ready = begun.elapsed();
        // A second view may have to wait for the clock to pass the end of the one before it.
        let allowed = if view == "the first" { 1000 } else { 2100 };
        assert!(ready < Duration::from_millis(allowed), "{view} view: ready after {ready:?}");
        for leaf in ["00/00/00/00/00/00/00", "00/00/00/00/03/ff/ff", "00/00/00/00/01/23/45"] {
            let begun = Instant::now();
            let listed = home.run(&format!("ls -l mnt/vda/{leaf}")).ok();
            assert_eq!(listed.lines().count(), 257, "{leaf}");
            assert!(
                begun.elapsed() < Duration::from_millis(500),
                "{view} view: {leaf} took {:?}",
                begun.elapsed()
            );
        }
        let last = 16 * TIB / CHUNK - 1;
        assert_eq!(std::fs::read(home.path("mnt/vda").join(chunk(last))).unwrap(), vec![0; CHUNK as usize]);
        let read = std::fs::read(home.path("mnt/vda").join(chunk(9 * TIB / CHUNK + 5))).unwrap();
        assert_eq!(read[..4096], noise(9, 4096));
        home.unmount();
    }
    let files = home.run("chunkfs index diff --format files-from i").ok();
    assert_eq!(files, format!("{}\n", chunk(9 * TIB / CHUNK)));
}

#[test]
fn root_rsync_of_the_files_that_the_index_names_needs_no_walk_through_4_million_chunks() {
    let (home, name) = with_xfs("files-from");
    let image = Image::sparse(&home.path(&name), TIB);
    home.mount(&format!("--name vda --index i {name}"));
    let stamp = home.status("mnt")["stamp"].as_i64().unwrap();
    home.unmount();
    let changed = [0, 999_999, TIB / CHUNK - 1];
    changed.iter().for_each(|chunk| image.write(chunk * CHUNK + 9, &noise(*chunk, 100)));
    home.mount(&format!("--name vda --index i {name}"));
    let begun = Instant::now();
    home.sh(&format!("chunkfs index diff i --since @{stamp} --format=view-files >list")).ok();
    home.run("rsync -a --files-from=list mnt/ copy/").ok();
    let took = begun.elapsed();
    let files = home.sh("cd copy && find . -type f | LC_ALL=C sort").ok();
    let expected = changed.iter().map(|number| {
        let path = chunk(*number);
        (format!("./vda.b3/{}\n", &path[..20]), format!("./vda/{path}\n"))
    });
    let (digests, chunks): (String, String) = expected.unzip();
    assert_eq!(files, digests + &chunks);
    for number in changed {
        let path = home.path("copy/vda").join(chunk(number));
        assert!(std::fs::read(path).unwrap() == image.read(number * CHUNK, CHUNK as usize), "{number}");
    }
    assert_eq!(home.status("mnt")["chunks_read"], 3);
    // To walk through them takes 16 seconds and more.
    assert!(took < Duration::from_secs(5), "{took:?}");
    eprintln!("rsync --files-from over {} chunks, 3 changed: {took:?}", TIB / CHUNK);
}

#[test]
fn root_memory_stays_below_64_mib_however_much_is_walked() {
    let (home, name) = with_xfs("memory");
    let image = Image::sparse(&home.path(&name), 16 * TIB);
    // Data in many leaves, so that the index has much to say of each.
    for leaf in 0..300 {
        image.write(leaf * 256 * CHUNK + 7 * CHUNK, &noise(leaf, 4096));
    }
    home.mount(&format!("--name vda --index i {name}"));
    let pid = home.daemon("mnt");
    home.sh("cd mnt/vda/00/00/00/00; find 00/0[0-7] 02/aa -type f -printf '%T@\\n' | sort -u | wc -l; find ../../../../../vda.b3/00/00/00/00/00/00 -type f | xargs cat | wc -l").ok();
    let kib = own_memory_kib(pid);
    assert!(kib < 64 << 10, "{kib} KiB");
    home.unmount();
    home.mount(&format!("--name vda --index i {name}"));
    let pid = home.daemon("mnt");
    home.sh("cd mnt/vda/00/00/00/00; find 00/0[0-7] -type f -printf '%T@\\n' | sort -u | wc -l").ok();
    home.sh("find mnt/vda/00/00/00/00/00/00/0? -type f | xargs -P 8 -n 64 cat | wc -c").ok();
    let kib = own_memory_kib(pid);
    assert!(kib < 64 << 10, "{kib} KiB");
}

#[test]
fn root_the_longest_file_there_can_be_is_shown_to_its_last_byte() {
    // 2^63 - 1: with chunks of 4 KiB these are 2^51 of them.
    let (home, name) = with_xfs("8eib");
    let image = Image::sparse(&home.path(&name), i64::MAX as u64);
    image.write(i64::MAX as u64 - 3, b"end");
    for (chunk_size, index) in
        [(4096, ""), (4096, "--index a"), (CHUNK, "--index b"), (64 << 20, "--index c")]
    {
        let begun = Instant::now();
        home.mount(&format!("--chunk-size {chunk_size} {index} {name}"));
        assert!(begun.elapsed() < Duration::from_secs(2), "{chunk_size} {index}: {:?}", begun.elapsed());
        let last = (i64::MAX as u64) / chunk_size;
        let path = home.path("mnt").join(chunk(last));
        home.run(&format!("stat mnt/{}", chunk(last))).ok();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, i64::MAX as u64 % chunk_size);
        assert!(bytes.ends_with(b"\0end"));
        let listed = home.run(&format!("ls {}", path.parent().unwrap().display())).ok();
        assert_eq!(listed.lines().count() as u64, last % 256 + 1);
        let totals = rustix::fs::statvfs(home.path("mnt")).unwrap();
        assert_eq!(totals.f_blocks, (i64::MAX as u64).div_ceil(4096));
        home.unmount();
    }
}
