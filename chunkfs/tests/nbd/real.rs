//! Bytes, holes, dirty ranges and failures of nbdkit and qemu-nbd.

use super::parts::{Server, options, run};
use chunkfs::core::geometry::ByteRange;
use chunkfs::source::nbd::{NbdError, NbdOptions, NbdSource};
use chunkfs::source::{ExtentKind, Source, SourceError, is_hole, next_data};
use std::time::{Duration, Instant};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// What nbdkit's pattern plugin serves: at each offset that is a multiple of 8, that offset in big-endian.
fn pattern(offset: u64, length: usize) -> Vec<u8> {
    (offset..offset + length as u64).map(|at| (at & !7).to_be_bytes()[(at & 7) as usize]).collect()
}

fn check_pattern(source: &NbdSource, seed: u64) {
    let len = source.len().bytes();
    let mut random = seed;
    for _ in 0..50 {
        // Any generator will do, but the same numbers each time.
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let start = (random >> 20) % len;
        let length = ((random >> 40) % (700 * KIB)).min(len - start) as usize;
        let mut bytes = vec![0xee; length];
        source.read_at(start, &mut bytes).unwrap();
        assert!(bytes == pattern(start, length), "{length} bytes at {start}");
        // The same as it lies there, while others push it out of the cache.
        let length = length.min(3000);
        let lent = source.lend(ByteRange::new(start, start + length as u64)).unwrap();
        source.read_ahead(start + length as u64);
        source.read_at(0, &mut [0; 9000]).unwrap();
        if let Some(lent) = lent {
            assert!((*lent).as_ref() == pattern(start, length), "{length} bytes lent at {start}");
        }
    }
}

fn invalid(result: Result<(), SourceError>) -> String {
    match result {
        Err(SourceError::Invalid { why, .. }) => why,
        other => panic!("not invalid: {other:?}"),
    }
}

#[test]
fn nbdkit_serves_the_right_bytes_in_every_dialect() {
    let policy = ["--filter=blocksize-policy", "blocksize-error-policy=error"];
    let dialects: &[&[&str]] = &[
        &["pattern", "4999999"],
        &["--no-sr", "pattern", "4999999"],
        &["--mask-handshake=1", "pattern", "4999999"],
        &["pattern", "4999680", policy[0], policy[1], "blocksize-minimum=512", "blocksize-maximum=64K"],
        &[
            "pattern",
            "4980736",
            policy[0],
            policy[1],
            "blocksize-minimum=64K",
            "blocksize-preferred=64K",
            "blocksize-maximum=192K",
        ],
        &["pattern", "4999999", policy[0], policy[1], "blocksize-preferred=1M"],
        &["--filter=noextents", "pattern", "4999999"],
    ];
    for (n, arguments) in dialects.iter().enumerate() {
        let server = Server::nbdkit(arguments);
        let source = server.connect();
        check_pattern(&source, n as u64);
        assert!(source.check().is_ok(), "{arguments:?}");
    }
}

#[test]
fn nbdkit_serves_many_callers_at_once_on_several_connections() {
    let server = Server::nbdkit(&["pattern", "64M"]);
    let source = NbdSource::connect(&server.address(""), options(4)).unwrap();
    std::thread::scope(|scope| {
        for seed in 0..8 {
            let source = &source;
            scope.spawn(move || check_pattern(source, seed));
        }
    });
}

#[test]
fn nbdkit_a_cache_of_four_blocks_is_enough_for_right_bytes() {
    let server = Server::nbdkit(&["pattern", "16M"]);
    let source =
        NbdSource::connect(&server.address(""), NbdOptions { cache_bytes: 0, ..options(1) }).unwrap();
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let source = &source;
            scope.spawn(move || check_pattern(source, seed));
        }
    });
    for at in (0..16 * MIB).step_by(32 * KIB as usize) {
        let mut bytes = vec![0; 32 * KIB as usize];
        source.read_at(at, &mut bytes).unwrap();
        assert!(bytes == pattern(at, bytes.len()), "{at}");
    }
}

#[test]
fn nbdkit_lengths_at_the_edge_are_read_to_the_last_byte() {
    for len in [0u64, 1, 511, 1000, 262143, 262144, 262145] {
        let server = Server::nbdkit(&["pattern", &len.to_string()]);
        let source = server.connect();
        assert_eq!(source.len().bytes(), len);
        let mut all = vec![0; len as usize];
        source.read_at(0, &mut all).unwrap();
        assert!(all == pattern(0, len as usize), "{len}");
        assert!(matches!(source.read_at(len, &mut [0]), Err(SourceError::Read { .. })));
        assert!(matches!(source.read_at(u64::MAX, &mut [0; 2]), Err(SourceError::Read { .. })));
        source.read_at(len, &mut []).unwrap();
        assert!(source.check().is_ok(), "a wrong question is no fault of the source");
    }
}

#[test]
fn nbdkit_a_length_that_cannot_be_read_in_the_servers_blocks_is_refused() {
    let server = Server::nbdkit(&["memory", "1000", "--filter=blocksize-policy", "blocksize-minimum=512"]);
    let error = NbdSource::connect(&server.address(""), options(1)).unwrap_err();
    assert!(matches!(error, NbdError::OddLength { bytes: 1000, minimum: 512 }), "{error}");
}

#[test]
fn nbdkit_old_servers_are_named_as_such() {
    for arguments in [["--oldstyle", "memory", "1M"], ["--mask-handshake=0", "memory", "1M"]] {
        let server = Server::nbdkit(&arguments);
        let error = NbdSource::connect(&server.address(""), options(1)).unwrap_err();
        assert!(matches!(error, NbdError::OldServer), "{error}");
    }
    let server = Server::nbdkit(&["--no-sr", "memory", "1M"]);
    let wanted = NbdOptions::usual(vec!["qemu:dirty-bitmap:b".to_owned()]);
    let error = NbdSource::connect(&server.address(""), wanted).unwrap_err();
    assert!(matches!(error, NbdError::NoStructuredReplies(_)), "{error}");
}

#[test]
fn nbdkit_holes_are_known_without_reading_and_read_as_zeros() {
    let server = Server::nbdkit(&["data", "size=100M", "data=@0x1000000 1 @0x3000000 2*100000"]);
    let source = server.connect();
    assert!(is_hole(&source, ByteRange::new(0, 16 * MIB)).unwrap());
    assert!(!is_hole(&source, ByteRange::new(0, 16 * MIB + 1)).unwrap());
    let first = next_data(&source, ByteRange::new(0, 100 * MIB)).unwrap().unwrap();
    assert!(first <= 16 * MIB && first > 15 * MIB, "{first}");
    assert!(is_hole(&source, ByteRange::new(60 * MIB, 100 * MIB)).unwrap());
    let mut bytes = vec![0xee; 2 * MIB as usize];
    source.read_at(15 * MIB, &mut bytes).unwrap();
    let ones: Vec<usize> = (0..bytes.len()).filter(|n| bytes[*n] != 0).collect();
    assert_eq!((ones, bytes[MIB as usize]), (vec![MIB as usize], 1));
}

#[test]
fn nbdkit_without_structured_replies_calls_everything_data() {
    let server = Server::nbdkit(&["--no-sr", "memory", "1M"]);
    let extents = server.connect().extents(ByteRange::new(0, MIB)).unwrap();
    assert_eq!(extents.len(), 1);
    assert_eq!((extents[0].range, extents[0].kind), (ByteRange::new(0, MIB), ExtentKind::Data));
}

#[test]
fn nbdkit_an_error_of_the_disk_is_the_end_even_when_it_passes() {
    for dialect in ["--new", "--no-sr"] {
        let dir = tempfile::tempdir().unwrap();
        let trigger = dir.path().join("trigger");
        let error_file = format!("error-file={}", trigger.display());
        let arguments =
            ["--filter=error", "memory", "8M", "error-pread=EIO", "error-pread-rate=1", &error_file];
        let arguments: Vec<&str> =
            (dialect == "--no-sr").then_some("--no-sr").into_iter().chain(arguments).collect();
        let server = Server::nbdkit(&arguments);
        let source = server.connect();
        let mut bytes = vec![0; 4096];
        source.read_at(0, &mut bytes).unwrap();
        std::fs::write(&trigger, "").unwrap();
        let why = invalid(source.read_at(4 * MIB, &mut bytes));
        assert!(why.contains("EIO"), "{why}");
        std::fs::remove_file(&trigger).unwrap();
        assert_eq!(invalid(source.read_at(0, &mut bytes)), why);
        assert_eq!(invalid(source.check()), why);
        assert_eq!(invalid(source.lend(ByteRange::new(0, 512)).map(drop)), why);
        assert!(source.extents(ByteRange::new(0, 1)).is_err());
    }
}

#[test]
fn nbdkit_silence_beyond_the_limit_is_the_end() {
    let server = Server::nbdkit(&["--filter=delay", "memory", "8M", "rdelay=30"]);
    let limit = Duration::from_millis(300);
    let source =
        NbdSource::connect(&server.address(""), NbdOptions { timeout: limit, ..options(1) }).unwrap();
    let start = Instant::now();
    std::thread::sleep(2 * limit);
    assert!(source.check().is_ok(), "silence is right when nothing was asked");
    let why = invalid(source.read_at(0, &mut [0; 512]));
    assert!(why.contains("has not answered"), "{why}");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn nbdkit_slow_answers_within_the_limit_are_waited_for() {
    let server = Server::nbdkit(&["--filter=delay", "pattern", "8M", "rdelay=200ms", "--threads=1"]);
    let limit = Duration::from_millis(800);
    let source =
        NbdSource::connect(&server.address(""), NbdOptions { timeout: limit, ..options(1) }).unwrap();
    // Eight blocks, one after the other: longer than the limit in all, and each within it.
    let mut bytes = vec![0; 2 * MIB as usize];
    source.read_at(0, &mut bytes).unwrap();
    assert!(bytes == pattern(0, bytes.len()));
}

#[test]
fn nbdkit_a_server_that_is_killed_is_noticed_without_a_read() {
    let mut server = Server::nbdkit(&["memory", "8M"]);
    let source = NbdSource::connect(&server.address(""), options(2)).unwrap();
    source.read_at(0, &mut [0; 512]).unwrap();
    server.kill();
    let deadline = Instant::now() + Duration::from_secs(5);
    while source.check().is_ok() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(invalid(source.read_at(0, &mut [0; 512])).contains("hung up"));
}

#[test]
fn nobody_at_the_socket_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!("nbd+unix:///?socket={}/none", dir.path().display());
    let error = NbdSource::connect(&text.parse().unwrap(), options(1)).unwrap_err();
    assert!(error.to_string().contains("/none"), "{error}");
}

/// A qcow2 image with a bitmap `b` that was empty before these writes: (offset, length) in bytes.
fn image_with_bitmap(dir: &std::path::Path, size: &str, writes: &[(u64, u64)]) -> std::path::PathBuf {
    let path = dir.join("disk.qcow2");
    let image = path.to_str().unwrap();
    run("qemu-img", &["create", "-q", "-f", "qcow2", image, size]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -q -P 1 0 64k", image]);
    run("qemu-img", &["bitmap", "--add", "-g", "64k", "-f", "qcow2", image, "b"]);
    for (offset, length) in writes {
        run("qemu-io", &["-f", "qcow2", "-c", &format!("write -q -P 0xab {offset} {length}"), image]);
    }
    path
}

fn with_bitmap(name: &str) -> NbdOptions {
    NbdOptions::usual(vec![format!("qemu:dirty-bitmap:{name}")])
}

#[test]
fn qemu_a_dirty_bitmap_is_told_exactly() {
    let dir = tempfile::tempdir().unwrap();
    // Beyond 4 GiB, so that one request cannot tell of all, and with ranges at both of its ends.
    let (kib64, gib4) = (64 * KIB, 4096 * MIB);
    let writes =
        [(5 * kib64, 4096), (100 * MIB, 200 * KIB), (gib4 - kib64, 2 * kib64), (19 * 1024 * MIB - 512, 512)];
    let image = image_with_bitmap(dir.path(), "19G", &writes);
    let server = Server::qemu(&["-f", "qcow2", "-x", "vda", "-B", "b", "-A"], &image);
    let source = NbdSource::connect(&server.address("vda"), with_bitmap("b")).unwrap();
    let ranges: Vec<ByteRange> =
        source.dirty_ranges("qemu:dirty-bitmap:b").unwrap().collect::<Result<_, _>>().unwrap();
    let expected = [
        (5 * kib64, 6 * kib64),
        (100 * MIB, 100 * MIB + 4 * kib64),
        (gib4 - kib64, gib4 + kib64),
        (19 * 1024 * MIB - kib64, 19 * 1024 * MIB),
    ];
    assert_eq!(ranges, expected.map(|(start, end)| ByteRange::new(start, end)));
    let mut bytes = [0; 512];
    source.read_at(19 * 1024 * MIB - 512, &mut bytes).unwrap();
    assert_eq!(bytes, [0xab; 512]);
    assert!(is_hole(&source, ByteRange::new(5 * 1024 * MIB, 18 * 1024 * MIB)).unwrap());
    assert_eq!(next_data(&source, ByteRange::new(kib64, gib4)).unwrap(), Some(5 * kib64));
    assert!(source.dirty_ranges("qemu:dirty-bitmap:c").is_err());
}

#[test]
fn qemu_a_bitmap_or_an_export_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let image = image_with_bitmap(dir.path(), "1M", &[]);
    let server = Server::qemu(&["-f", "qcow2", "-x", "vda", "-B", "b"], &image);
    match NbdSource::connect(&server.address("vda"), with_bitmap("other")).unwrap_err() {
        NbdError::NoContext { missing, available } => {
            assert_eq!(missing, ["qemu:dirty-bitmap:other"]);
            assert!(available.contains(&"qemu:dirty-bitmap:b".to_owned()), "{available:?}");
        }
        error => panic!("{error}"),
    }
    let error = NbdSource::connect(&server.address("vdb"), options(1)).unwrap_err();
    assert!(matches!(error, NbdError::Refused { .. }), "{error}");
}

#[test]
fn qemu_a_server_that_takes_one_client_is_read_with_one() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("raw");
    std::fs::write(&image, pattern(0, 3_000_000)).unwrap();
    let server = Server::qemu(&["-f", "raw"], &image);
    let source = NbdSource::connect(&server.address(""), options(4)).unwrap();
    let mut bytes = vec![0; 3_000_000];
    source.read_at(0, &mut bytes).unwrap();
    assert!(bytes == pattern(0, bytes.len()));
}
