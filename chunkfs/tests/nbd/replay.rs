//! Recordings of real sessions, damaged in any way: whatever a server says, the source ends in time, without a panic,
//! and no byte of the image is other than what the server said it was.

use super::fake::Fake;
use super::parts::Server;
use chunkfs::core::geometry::ByteRange;
use chunkfs::source::nbd::{NbdAddress, NbdOptions, NbdSource};
use chunkfs::source::{Source, SourceError};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What a server said, and after how many bytes of the client's.
type Recording = Vec<(usize, Vec<u8>)>;

const LEN: u64 = 700_001;

/// What the client does in each session: the same, or the recording would not fit.
fn session(address: &NbdAddress) -> Result<Vec<Vec<u8>>, String> {
    let options = NbdOptions { timeout: Duration::from_millis(600), ..NbdOptions::usual(Vec::new()) };
    let source = NbdSource::connect(address, options).map_err(|error| error.to_string())?;
    let len = source.len().bytes();
    let mut reads = Vec::new();
    let mut failed: Option<SourceError> = None;
    let mut note = |result: Result<(), SourceError>| {
        // Once it has failed, nothing but a question past the end may be answered otherwise.
        if failed.is_some() {
            assert!(matches!(result, Err(SourceError::Invalid { .. })), "{result:?} after {failed:?}");
        }
        match result {
            Err(error @ SourceError::Invalid { .. }) => failed = Some(error),
            Err(SourceError::Read { .. }) | Ok(()) => {}
            Err(error) => panic!("{error}"),
        }
    };
    let start = Instant::now();
    let mut at = 0;
    while at < len.min(LEN) && start.elapsed() < Duration::from_secs(1) {
        match source.extents(ByteRange::new(at, len)) {
            Ok(extents) => {
                assert!(extents.first().is_some_and(|extent| extent.range.start == at));
                extents.windows(2).for_each(|two| assert_eq!(two[0].range.end, two[1].range.start));
                assert!(extents.iter().all(|extent| !extent.range.is_empty() && extent.range.end <= len));
                at = extents.last().unwrap().range.end;
            }
            Err(error) => {
                note(Err(error));
                break;
            }
        }
    }
    for (start, length) in [(100, 1000), (250_000, 300_000), (LEN - 10, 10), (0, 0)] {
        let mut bytes = vec![0; length];
        let result = source.read_at(start, &mut bytes);
        // An empty one for what could not be read.
        reads.push(if result.is_ok() { bytes } else { Vec::new() });
        note(result);
    }
    Ok(reads)
}

/// Runs a session against the server with a proxy between, and returns what the server said.
fn record(server: &Server) -> (Recording, Vec<Vec<u8>>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let mut upstream = UnixStream::connect(server.socket()).unwrap();
    let recording = Arc::new(Mutex::new(Recording::new()));
    let proxy = std::thread::spawn({
        let recording = Arc::clone(&recording);
        move || {
            let (mut client, _) = listener.accept().unwrap();
            let asked = Arc::new(AtomicUsize::new(0));
            let up = std::thread::spawn({
                let (mut client, mut upstream) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
                let asked = Arc::clone(&asked);
                move || {
                    let mut bytes = vec![0; 1 << 16];
                    while let Ok(n @ 1..) = client.read(&mut bytes) {
                        asked.fetch_add(n, Ordering::SeqCst);
                        upstream.write_all(&bytes[..n]).unwrap();
                    }
                    upstream.shutdown(Shutdown::Write).unwrap();
                }
            });
            let mut bytes = vec![0; 1 << 20];
            while let Ok(n @ 1..) = upstream.read(&mut bytes) {
                recording.lock().unwrap().push((asked.load(Ordering::SeqCst), bytes[..n].to_vec()));
                if client.write_all(&bytes[..n]).is_err() {
                    break;
                }
            }
            up.join().unwrap();
        }
    });
    let reads = session(&NbdAddress::new(&path, "").unwrap()).unwrap();
    proxy.join().unwrap();
    let recording = recording.lock().unwrap().clone();
    (recording, reads)
}

/// Says what was recorded, when as much was asked as then.
fn replay(recording: Recording) -> Fake {
    Fake::start(move |stream| {
        let mut asked = 0;
        let mut bytes = [0; 4096];
        for (after, said) in recording {
            while asked < after {
                match stream.read(&mut bytes)? {
                    0 => return Ok(()),
                    n => asked += n,
                }
            }
            stream.write_all(&said)?;
        }
        // Until the client hangs up.
        while stream.read(&mut bytes)? > 0 {}
        Ok(())
    })
}

#[derive(Clone, Debug)]
enum Damage {
    Set(u8),
    Flip(u8),
    Insert(u8),
    Remove,
    CutOff,
}

fn any_damage() -> impl Strategy<Value = (prop::sample::Index, Damage)> {
    let damage = prop_oneof![
        4 => any::<u8>().prop_map(Damage::Set),
        4 => (0u8..8).prop_map(|bit| Damage::Flip(1 << bit)),
        1 => any::<u8>().prop_map(Damage::Insert),
        1 => Just(Damage::Remove),
        1 => Just(Damage::CutOff),
    ];
    (any::<prop::sample::Index>(), damage)
}

/// Where the recording has what is no content of the image: the places worth damaging.
fn words(recording: &Recording) -> Vec<(usize, usize)> {
    let mut places = Vec::new();
    for (n, (_, said)) in recording.iter().enumerate() {
        // Content comes in pieces of some KiB; each begins or ends with what the server has to say.
        places.extend((0..said.len()).filter(|at| *at < 64 || said.len() - at <= 64).map(|at| (n, at)));
    }
    places
}

fn damage(recording: &mut Recording, (n, at): (usize, usize), damage: &Damage) {
    let said = &mut recording[n].1;
    match *damage {
        _ if at >= said.len() => {}
        Damage::Set(byte) => said[at] = byte,
        Damage::Flip(mask) => said[at] ^= mask,
        Damage::Insert(byte) => said.insert(at, byte),
        Damage::Remove => drop(said.remove(at)),
        Damage::CutOff => {
            said.truncate(at);
            recording.truncate(n + 1);
        }
    }
}

fn servers() -> [Server; 3] {
    let length = LEN.to_string();
    [
        Server::nbdkit(&["pattern", &length]),
        Server::nbdkit(&["--no-sr", "pattern", &length]),
        Server::nbdkit(&["data", "size=700001", "data=@1000 1*300000 @600000 2*100"]),
    ]
}

#[test]
fn nbdkit_a_recording_that_is_not_damaged_is_read_as_the_server_was() {
    for server in servers() {
        let (recording, reads) = record(&server);
        assert!(reads[..3].iter().all(|read| !read.is_empty()));
        assert_eq!(session(&replay(recording).address()), Ok(reads));
    }
}

#[test]
fn nbdkit_a_damaged_recording_falsifies_no_byte_that_was_not_damaged() {
    for server in servers() {
        let (recording, truth) = record(&server);
        let places = words(&recording);
        let mut runner =
            TestRunner::new(Config { cases: 150, failure_persistence: None, ..Config::default() });
        let one = any_damage().prop_filter("bytes stay where they are", |(_, damage)| {
            matches!(damage, Damage::Set(_) | Damage::Flip(_))
        });
        runner
            .run(&one, |(index, kind)| {
                let mut damaged = recording.clone();
                damage(&mut damaged, *index.get(&places), &kind);
                let Ok(reads) = session(&replay(damaged).address()) else { return Ok(()) };
                for (read, truth) in reads.iter().zip(&truth).filter(|(read, _)| !read.is_empty()) {
                    let wrong = read.iter().zip(truth).filter(|(a, b)| a != b).count();
                    prop_assert!(wrong <= 1, "{wrong} bytes are wrong");
                }
                Ok(())
            })
            .unwrap();
    }
}

/// Most of it is waiting for what never comes.
const AT_A_TIME: u32 = 4;

#[test]
fn nbdkit_a_recording_damaged_in_any_way_ends_in_time_and_without_a_panic() {
    for server in servers() {
        let (recording, _) = record(&server);
        std::thread::scope(|scope| {
            for _ in 0..AT_A_TIME {
                scope.spawn(|| damaged_in_any_way(&recording, 100 / AT_A_TIME));
            }
        });
    }
}

fn damaged_in_any_way(recording: &Recording, cases: u32) {
    let places = words(recording);
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    runner
        .run(&prop::collection::vec(any_damage(), 1..6), |damages| {
            let mut damaged = recording.clone();
            for (index, kind) in &damages {
                let (n, at) = *index.get(&places);
                if n < damaged.len() {
                    damage(&mut damaged, (n, at), kind);
                }
            }
            let start = Instant::now();
            // Whether it could be read is not claimed.
            let _ = session(&replay(damaged).address());
            prop_assert!(start.elapsed() < Duration::from_secs(8));
            Ok(())
        })
        .unwrap();
}
