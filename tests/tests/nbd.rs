//! Disks that an NBD server exports: right, slow, failing and gone. With the servers of QEMU and nbdkit.

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant};
use tests::image::noise;
use tests::nbd::Server;
use tests::{CHUNK, Home, Image, chunk, process};

const COMPARE: &str = "find mnt -type f | LC_ALL=C sort | xargs cat | cmp - disk.img";

#[test]
fn fuse_an_export_is_shown_as_its_image_would_be() {
    for server in ["qemu", "nbdkit"] {
        let home = Home::new("export");
        let image = Image::sparse(&home.path("disk.img"), 300 * CHUNK);
        image.write(3 * CHUNK, &noise(3, 40 * CHUNK as usize));
        image.write(299 * CHUNK + 17, b"x");
        let start = || match server {
            "qemu" => Server::qemu(&home, "disk.img"),
            _ => Server::nbdkit(&home, &format!("file {}", home.path("disk.img").display())),
        };
        let served = start();
        for index in ["", "--index i"] {
            home.mount(&format!("{index} {}", served.uri));
            home.sh(COMPARE).ok();
            let zero = home.sh("find mnt -type f -size 0c -o -type f -printf '%b\\n' | grep -c '^0$'").ok();
            assert_eq!(zero.trim(), "259", "{server}: holes have no blocks");
            home.unmount();
        }
        drop(served);
        image.write(5 * CHUNK, b"changed");
        let served = start();
        home.mount(&format!("--index i {}", served.uri));
        assert_eq!(home.status("mnt")["scan"]["changed_chunks"], 1, "{server}");
        home.sh(COMPARE).ok();
        home.unmount();
        let files = home.run("chunkfs index diff --format files-from i").ok();
        assert_eq!(files, format!("{}\n", chunk(5)), "{server}");
    }
}

/// The memory that chunks are received in is used again and again.
#[test]
fn fuse_what_is_open_or_mapped_stays_what_it_is_while_all_else_is_read() {
    for options in ["", "-o kernel_cache"] {
        let home = Home::new("mapped");
        // More than is kept in memory, some of it zero, and a short chunk at the end.
        let image = Image::full(&home.path("disk.img"), 300 * CHUNK + 4608);
        image.write(9 * CHUNK, &vec![0; CHUNK as usize]);
        let served = Server::qemu(&home, "disk.img");
        home.mount(&format!("{options} {}", served.uri));
        let open = |number| File::open(home.path("mnt").join(chunk(number))).unwrap();
        let at = |number| image.read(number * CHUNK, if number == 300 { 4608 } else { CHUNK as usize });
        let all = |mut file: &File| {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            bytes
        };

        let mapped: Vec<(u64, Mapped)> = [5, 9, 300].map(|number| (number, Mapped::of(open(number)))).into();
        let opened: Vec<(u64, File)> =
            (20..220).chain([5, 9, 300]).map(|number| (number, open(number))).collect();
        let again = open(7);
        drop(open(7));
        for _ in 0..3 {
            home.sh(COMPARE).ok();
        }
        for (number, mapped) in &mapped {
            assert!(mapped.bytes() == at(*number), "{options}: chunk {number}, mapped");
        }
        for (number, file) in opened.iter().chain([&(7, again)]) {
            assert!(all(file) == at(*number), "{options}: chunk {number}, open");
        }
        drop(opened);
        home.sh(COMPARE).ok();
        for tool in ["cp -r mnt copy", "tar -c mnt | tar -x --one-top-level=copy --strip-components=1"] {
            home.sh(&format!("rm -rf copy && {tool} && diff -r mnt copy")).ok();
        }
        for (number, size) in [(6, "bs=64k iflag=direct"), (6, "bs=7 count=999"), (300, "bs=1M")] {
            let part = format!("dd status=none if=mnt/{} {size}", chunk(number));
            let compared = format!("cmp - disk.img -i 0:{} -n $({part} | wc -c)", number * CHUNK);
            home.sh(&format!("{part} | {compared}")).ok();
        }
        drop(mapped);
        home.unmount();
    }
}

/// A file that is mapped, and closed.
struct Mapped(*const u8, usize);

#[expect(unsafe_code, reason = "maps memory")]
impl Mapped {
    fn of(file: File) -> Mapped {
        let length = file.metadata().unwrap().len() as usize;
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let memory = unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ,
                MapFlags::PRIVATE | MapFlags::POPULATE,
                &file,
                0,
            )
        };
        Mapped(memory.unwrap().cast(), length)
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: it is mapped with this length until it is dropped.
        unsafe { std::slice::from_raw_parts(self.0, self.1) }
    }
}

#[expect(unsafe_code, reason = "maps memory")]
impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length.
        let _ = unsafe { munmap(self.0.cast_mut().cast(), self.1) };
    }
}

#[test]
fn fuse_an_export_that_is_not_there_is_refused() {
    let home = Home::new("noexport");
    Image::full(&home.path("disk.img"), CHUNK);
    let served = Server::qemu(&home, "disk.img");
    let other = served.uri.replace("/disk?", "/other?");
    let refused = home.run(&format!("chunkfs mount --index i {other} mnt"));
    refused.failed(1, &["other"]);
    assert!(!home.is_mounted("mnt") && !home.path("i").exists());
    drop(served);
    let socket = home.path("qemu.sock");
    let _ = std::fs::remove_file(&socket);
    let gone = home.run(&format!("chunkfs mount --index i nbd+unix:///disk?socket={} mnt", socket.display()));
    gone.failed(1, &["qemu.sock"]);
    std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let silent =
        home.run(&format!("chunkfs mount --index i nbd+unix:///disk?socket={} mnt", socket.display()));
    silent.failed(1, &["qemu.sock"]);
    assert!(!home.is_mounted("mnt") && !home.path("i").exists());
}

#[test]
fn fuse_an_error_of_the_server_ends_the_view_and_never_becomes_zeros() {
    let home = Home::new("badsector");
    let image = Image::full(&home.path("disk.img"), 20 * CHUNK);
    // The error filter fails every read while the trigger file is there.
    let words = format!(
        "--filter=error file {} error-pread=EIO error-pread-rate=100% error-file={}",
        home.path("disk.img").display(),
        home.path("trigger").display()
    );
    let served = Server::nbdkit(&home, &words);
    let fails = |number| {
        let error = std::fs::read(home.path("mnt").join(chunk(number))).map(drop).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()), "chunk {number}");
    };
    // Without an index, so that nothing was read, and is remembered, before.
    home.mount(&served.uri);
    home.run("touch trigger").ok();
    fails(4);
    home.run("rm trigger").ok();
    // It may have been the overflow of a snapshot: nothing is read from it any more, although it could be.
    fails(4);
    fails(19);
    home.unmount();
    home.mount(&format!("--index i {}", served.uri));
    home.sh(COMPARE).ok();
    home.unmount();
    // An error while comparing is one for whoever asks, and none for the next view.
    image.write(7 * CHUNK, b"changed");
    home.run("touch trigger").ok();
    home.run(&format!("chunkfs mount --index i {} mnt", served.uri)).ok();
    fails(7);
    home.unmount();
    home.run("rm trigger").ok();
    home.mount(&format!("--index i {}", served.uri));
    assert_eq!(home.status("mnt")["scan"]["changed_chunks"], 1);
    home.sh(COMPARE).ok();
}

#[test]
fn fuse_a_server_that_dies_fails_reads_and_the_view_can_be_unmounted() {
    for server in ["qemu", "nbdkit"] {
        let home = Home::new("dies");
        Image::full(&home.path("disk.img"), 50 * CHUNK);
        let mut served = match server {
            "qemu" => Server::qemu(&home, "disk.img"),
            _ => Server::nbdkit(&home, &format!("file {}", home.path("disk.img").display())),
        };
        home.mount(&format!("--index i {}", served.uri));
        let pid = home.daemon("mnt");
        assert!(std::fs::read(home.path("mnt").join(chunk(4))).is_ok());
        served.kill();
        let fails = |number| {
            let read = std::fs::read(home.path("mnt").join(chunk(number))).map(drop);
            read.is_err_and(|error| error.raw_os_error() == Some(Errno::IO.raw_os_error()))
        };
        // What was read ahead before may still be given.
        process::until("the error", process::LIMIT, || fails(4) && fails(30));
        assert!(home.is_running(pid));
        // Not even when it comes back: it may serve something else by now.
        let _again = match server {
            "qemu" => Server::qemu(&home, "disk.img"),
            _ => Server::nbdkit(&home, &format!("file {}", home.path("disk.img").display())),
        };
        assert!(std::fs::read(home.path("mnt").join(chunk(4))).is_err(), "{server}");
        home.unmount();
        home.wait_for_end_of(pid);
    }
}

#[test]
fn fuse_readers_wait_for_a_slow_source_and_umount_does_not() {
    let home = Home::new("slow");
    let image = Image::full(&home.path("disk.img"), 50_000 * 4096);
    let file = home.path("disk.img");
    let fast = Server::nbdkit(&home, &format!("file {}", file.display()));
    home.mount(&format!("--chunk-size 4096 --index i {}", fast.uri));
    home.unmount();
    drop(fast);
    image.write(49_999 * 4096, b"changed");
    let slow = Server::nbdkit(&home, &format!("--filter=delay file {} rdelay=2", file.display()));
    home.run(&format!("chunkfs mount --chunk-size 4096 --index i {} mnt", slow.uri)).ok();
    assert_eq!(home.status("mnt")["scan"]["done"], false, "the comparison is still under way");
    // Who asks is served before the rest of the disk: here the last leaf of 196.
    let begun = Instant::now();
    let newest = home.sh(&format!("stat -c %Y mnt/{}", chunk(49_999))).ok();
    let other = home.sh(&format!("stat -c %Y mnt/{}", chunk(49_998))).ok();
    assert!(newest.trim().parse::<i64>().unwrap() > other.trim().parse::<i64>().unwrap());
    let took = begun.elapsed();
    assert_eq!(std::fs::read(home.path("mnt").join(chunk(1))).unwrap(), image.read(4096, 4096));
    let begun = Instant::now();
    let pid = home.daemon("mnt");
    home.unmount();
    home.wait_for_end_of(pid);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    assert!(took < Duration::from_secs(25), "{took:?}");
    assert!(!home.is_mounted("mnt"));
}

#[test]
fn fuse_a_signal_ends_a_view_whose_readers_wait_for_a_comparison() {
    let home = Home::new("slowsignal");
    Image::full(&home.path("disk.img"), 40 << 20);
    let file = home.path("disk.img");
    let fast = Server::nbdkit(&home, &format!("file {}", file.display()));
    home.mount(&format!("--index i {}", fast.uri));
    home.unmount();
    drop(fast);
    let slow = Server::nbdkit(&home, &format!("--filter=delay file {} rdelay=2", file.display()));
    home.run(&format!("chunkfs mount --index i {} mnt", slow.uri)).ok();
    let mut readers: Vec<_> =
        (0..20).map(|number| home.start(&format!("stat mnt/{}", chunk(number)))).collect();
    std::thread::sleep(Duration::from_millis(300));
    let pid = home.daemon("mnt");
    let begun = Instant::now();
    home.kill(pid, rustix::process::Signal::TERM);
    process::until("the end", Duration::from_secs(30), || !home.is_running(pid));
    assert!(!home.is_mounted("mnt"), "after {:?}", begun.elapsed());
    for reader in &mut readers {
        assert!(process::wait(reader, Duration::from_secs(10)).is_some(), "a reader waits for ever");
    }
    drop(slow);
    let fast = Server::nbdkit(&home, &format!("file {}", file.display()));
    home.mount(&format!("--index i {}", fast.uri));
    home.sh(COMPARE).ok();
}
