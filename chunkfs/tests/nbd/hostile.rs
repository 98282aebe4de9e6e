//! Servers that break the protocol, each in one way: no answer of theirs may pass for bytes, holes or clean ranges.

use super::fake::*;
use chunkfs::core::geometry::ByteRange;
use chunkfs::source::nbd::{NbdOptions, NbdSource};
use chunkfs::source::{ExtentKind, Source, SourceError};
use std::io::Write;
use std::sync::mpsc;
use std::time::{Duration, Instant};

const LEN: u32 = 8192;
const END: u64 = LEN as u64;

/// Answers the first request with these bytes. Afterwards it is silent, or hangs up.
fn answering(reply: impl Fn(Request) -> Vec<u8> + Send + 'static, then: Then) -> Fake {
    Fake::start(move |stream| {
        honest_handshake(stream, END)?;
        let request = next_request(stream)?;
        stream.write_all(&reply(request))?;
        match then {
            Then::HangUp => Ok(()),
            // Until the client has gone.
            Then::Silence => loop {
                next_request(stream)?;
            },
        }
    })
}

#[derive(Clone, Copy)]
enum Then {
    HangUp,
    Silence,
}

/// Whatever is asked from now on, it is refused, and for the right reason.
fn assert_ended(source: &NbdSource, what: &str, then: Then) {
    let why = match source.check() {
        Err(SourceError::Invalid { why, .. }) => why,
        other => panic!("{what}: {other:?}"),
    };
    let reason = match (what.starts_with("unfinished"), then) {
        (true, Then::Silence) => "has not answered",
        (true, Then::HangUp) => "hung up",
        (false, _) if what.contains("error of number 5") => "EIO",
        (false, _) => "broke the NBD protocol",
    };
    assert!(why.contains(reason), "{what}: {why}");
    assert!(matches!(source.read_at(0, &mut [0; 16]), Err(SourceError::Invalid { .. })), "{what}");
    assert!(matches!(source.extents(ByteRange::new(0, 16)), Err(SourceError::Invalid { .. })), "{what}");
}

type Answer = (&'static str, fn(Request) -> Vec<u8>);

const BYTES: [u8; LEN as usize] = [0xaa; LEN as usize];

const READ_LIES: &[Answer] = &[
    ("unfinished: nothing", |_| Vec::new()),
    ("unfinished: half a head", |r| data(DONE, r.cookie, 0, &BYTES)[..9].to_vec()),
    ("unfinished: half of the bytes", |r| data(DONE, r.cookie, 0, &BYTES)[..4000].to_vec()),
    ("unfinished: all bytes but not the end", |r| data(0, r.cookie, 0, &BYTES)),
    ("an end without bytes", |r| chunk(DONE, 0, r.cookie, &[])),
    ("an end that is not the end", |r| [data(0, r.cookie, 0, &BYTES), chunk(0, 0, r.cookie, &[])].concat()),
    ("an end with a payload", |r| [data(0, r.cookie, 0, &BYTES), chunk(DONE, 0, r.cookie, &[0])].concat()),
    ("wrong magic", |r| message!(0x668e_33eeu32, 1u16, 0u16, r.cookie, 0u32)),
    ("wrong cookie", |r| data(DONE, r.cookie ^ 1 << 40, 0, &BYTES)),
    ("too few bytes", |r| data(DONE, r.cookie, 0, &BYTES[1..])),
    ("too few bytes at the start", |r| data(DONE, r.cookie, 1, &BYTES[1..])),
    ("too many bytes", |r| data(DONE, r.cookie, 0, &[&BYTES[..], &[1]].concat())),
    ("no bytes", |r| data(DONE, r.cookie, 0, &[])),
    ("bytes before the start", |r| data(DONE, r.cookie, u64::MAX, &BYTES)),
    ("bytes past the end", |r| data(DONE, r.cookie, END, &BYTES)),
    ("a gap", |r| {
        [data(0, r.cookie, 0, &BYTES[..4096]), data(DONE, r.cookie, 4097, &BYTES[4097..])].concat()
    }),
    ("an overlap", |r| {
        [data(0, r.cookie, 0, &BYTES[..4097]), data(DONE, r.cookie, 4096, &BYTES[4096..])].concat()
    }),
    ("the same twice", |r| [data(0, r.cookie, 0, &BYTES), data(DONE, r.cookie, 0, &BYTES)].concat()),
    ("a hole over bytes", |r| [data(0, r.cookie, 0, &BYTES), hole(DONE, r.cookie, 0, LEN)].concat()),
    ("bytes over a hole", |r| [hole(0, r.cookie, 0, LEN), data(DONE, r.cookie, 0, &BYTES)].concat()),
    ("one byte over a hole", |r| [hole(0, r.cookie, 0, LEN), data(DONE, r.cookie, 9, &[1])].concat()),
    ("a hole that is too short", |r| hole(DONE, r.cookie, 0, LEN - 1)),
    ("a hole that is too long", |r| hole(DONE, r.cookie, 0, LEN + 1)),
    ("a hole without end", |r| hole(DONE, r.cookie, 0, u32::MAX)),
    ("a hole of nothing", |r| [hole(0, r.cookie, 0, 0), data(DONE, r.cookie, 0, &BYTES)].concat()),
    ("a hole in another form", |r| chunk(DONE, 2, r.cookie, &message!(0u64, LEN, 0u8))),
    ("a hole cut short", |r| chunk(DONE, 2, r.cookie, &message!(0u64))),
    ("a claim of 4 GiB", |r| message!(0x668e_33efu32, DONE, 1u16, r.cookie, u32::MAX, 0u64)),
    ("an error of 4 GiB", |r| message!(0x668e_33efu32, DONE, 0x8001u16, r.cookie, u32::MAX, 5u32)),
    ("an unknown kind", |r| chunk(DONE, 3, r.cookie, &[0; 8])),
    ("an unknown error, error of number 5", |r| chunk(DONE, 0x8123, r.cookie, &message!(5u32, 0u16))),
    ("an error, error of number 5", |r| chunk(DONE, 0x8001, r.cookie, &message!(5u32, 0u16))),
    ("an error after all bytes, error of number 5", |r| {
        [data(0, r.cookie, 0, &BYTES), chunk(DONE, 0x8002, r.cookie, &message!(5u32, 0u16, 100u64))].concat()
    }),
    ("an error of number 0", |r| chunk(DONE, 0x8001, r.cookie, &message!(0u32, 0u16))),
    ("an error that is too short", |r| chunk(DONE, 0x8001, r.cookie, &message!(5u32))),
    ("an error with a message beyond it", |r| chunk(DONE, 0x8001, r.cookie, &message!(5u32, 9u16, 1u64))),
    ("an error that is not UTF-8, error of number 5", |r| {
        chunk(DONE, 0x8001, r.cookie, &message!(5u32, 2u16, 0xff1bu16))
    }),
    ("a block status", |r| status(DONE, r.cookie, 70, &[(LEN, 0)])),
    ("a simple success", |r| [&simple(0, r.cookie)[..], &BYTES].concat()),
    ("a simple error, error of number 5", |r| simple(5, r.cookie)),
    ("a simple reply to nothing", |r| simple(0, r.cookie + 1)),
    ("two replies", |r| [data(DONE, r.cookie, 0, &BYTES), chunk(DONE, 0, r.cookie, &[])].concat()),
];

#[test]
fn a_read_that_is_answered_against_the_rules_gives_no_bytes_and_ends_the_source() {
    for (what, lie) in READ_LIES {
        for then in [Then::HangUp, Then::Silence] {
            let fake = answering(lie, then);
            let source = fake.connect(&[]).unwrap();
            let start = Instant::now();
            let result = source.read_at(100, &mut [0; 1000]);
            // What comes after a whole reply is only seen afterwards.
            if *what == "two replies" {
                while source.check().is_ok() {
                    assert!(start.elapsed() < Duration::from_secs(10));
                    std::thread::yield_now();
                }
            } else {
                assert!(matches!(result, Err(SourceError::Invalid { .. })), "{what}: {result:?}");
            }
            assert_ended(&source, what, then);
            assert!(start.elapsed() < Duration::from_secs(10), "{what}");
        }
    }
}

#[test]
fn a_read_in_any_pieces_in_any_order_is_put_together() {
    let truths: &[Answer] = &[
        ("one piece", |r| data(DONE, r.cookie, 0, &BYTES)),
        ("an end of its own", |r| [data(0, r.cookie, 0, &BYTES), chunk(DONE, 0, r.cookie, &[])].concat()),
        ("unknown flags", |r| data(DONE | 0x40, r.cookie, 0, &BYTES)),
        ("backwards", |r| {
            [data(0, r.cookie, 4096, &BYTES[4096..]), data(DONE, r.cookie, 0, &BYTES[..4096])].concat()
        }),
        ("byte by byte", |r| {
            let mut bytes: Vec<u8> =
                (0..END).flat_map(|at| data(0, r.cookie, at, &BYTES[at as usize..=at as usize])).collect();
            bytes.extend(chunk(DONE, 0, r.cookie, &[]));
            bytes
        }),
    ];
    for (what, truth) in truths {
        let fake = answering(truth, Then::Silence);
        let source = fake.connect(&[]).unwrap();
        let mut bytes = [0; 8000];
        source.read_at(100, &mut bytes).unwrap();
        assert_eq!(bytes, [0xaa; 8000], "{what}");
        assert!(source.check().is_ok(), "{what}");
    }
}

#[test]
fn holes_and_bytes_mix_and_old_buffers_never_shine_through() {
    // The second block gets a buffer in which there are other bytes, once the first is pushed out of a cache of four.
    let block = 256 << 10;
    let fake = Fake::start(move |stream| {
        honest_handshake(stream, 64 * block)?;
        loop {
            let r = next_request(stream)?;
            let bytes = if r.offset < 32 * block {
                data(DONE, r.cookie, r.offset, &vec![0xaa; r.length as usize])
            } else {
                let half = r.length / 2;
                let (middle, end) = (r.offset + u64::from(half), vec![0xbb; half as usize]);
                [hole(0, r.cookie, r.offset, half), data(DONE, r.cookie, middle, &end)].concat()
            };
            stream.write_all(&bytes)?;
        }
    });
    let options = NbdOptions { cache_bytes: 0, ..NbdOptions::usual(Vec::new()) };
    let source = NbdSource::connect(&fake.address(), options).unwrap();
    for n in (0..64).map(|n| n * 7 % 64) {
        let mut bytes = vec![0xee; block as usize];
        source.read_at(n * block, &mut bytes).unwrap();
        let (first, last) = bytes.split_at(block as usize / 2);
        let expected = if n < 32 { (0xaa, 0xaa) } else { (0, 0xbb) };
        assert!(first.iter().all(|b| *b == expected.0) && last.iter().all(|b| *b == expected.1), "{n}");
    }
}

const STATUS_LIES: &[Answer] = &[
    ("no context", |r| chunk(DONE, 0, r.cookie, &[])),
    ("one context of two", |r| status(DONE, r.cookie, 70, &[(LEN, 0)])),
    ("an unknown context", |r| [both(r, &[(LEN, 0)]), status(DONE, r.cookie, 99, &[(LEN, 0)])].concat()),
    ("a context twice", |r| [both(r, &[(LEN, 0)]), status(DONE, r.cookie, 71, &[(LEN, 0)])].concat()),
    ("no parts", |r| [both(r, &[]), chunk(DONE, 0, r.cookie, &[])].concat()),
    ("half a part", |r| chunk(DONE, 5, r.cookie, &message!(70u32, LEN))),
    ("a part of no length", |r| [both(r, &[(0, 0), (LEN, 0)]), chunk(DONE, 0, r.cookie, &[])].concat()),
    ("a part past the end", |r| [both(r, &[(LEN + 1, 0)]), chunk(DONE, 0, r.cookie, &[])].concat()),
    ("a part without end", |r| [both(r, &[(u32::MAX, 0)]), chunk(DONE, 0, r.cookie, &[])].concat()),
    ("parts after the last", |r| [both(r, &[(LEN, 0), (1, 0)]), chunk(DONE, 0, r.cookie, &[])].concat()),
    ("bytes", |r| data(DONE, r.cookie, 0, &BYTES)),
    ("a hole", |r| hole(DONE, r.cookie, 0, LEN)),
    ("a simple success", |r| simple(0, r.cookie)),
    ("a simple error, error of number 5", |r| simple(5, r.cookie)),
    ("an error, error of number 5", |r| {
        [both(r, &[(LEN, 0)]), chunk(DONE, 0x8001, r.cookie, &message!(5u32, 0u16))].concat()
    }),
    ("unfinished: parts without end", |r| {
        message!(0x668e_33efu32, DONE, 5u16, r.cookie, 0xffff_fffcu32, 70u32)
    }),
    ("unfinished: nothing", |_| Vec::new()),
];

fn both(r: Request, parts: &[(u32, u32)]) -> Vec<u8> {
    [status(0, r.cookie, 70, parts), status(0, r.cookie, 71, parts)].concat()
}

#[test]
fn a_block_status_against_the_rules_is_neither_hole_nor_clean_and_ends_the_source() {
    for (what, lie) in STATUS_LIES {
        for asks in [
            (|source| source.extents(ByteRange::new(0, END)).map(|_| ()))
                as fn(&NbdSource) -> Result<(), SourceError>,
            |source| source.dirty_ranges(DIRTY)?.collect::<Result<Vec<_>, _>>().map(|_| ()),
        ] {
            for then in [Then::HangUp, Then::Silence] {
                let fake = answering(lie, then);
                let source = fake.connect(&[DIRTY]).unwrap();
                let result = asks(&source);
                assert!(matches!(result, Err(SourceError::Invalid { .. })), "{what}: {result:?}");
                assert_ended(&source, what, then);
            }
        }
    }
}

/// Answers block status requests with what is true of an image of alternating parts, as much of it as `take` says.
fn alternating(length: u64, part: u32, take: fn(usize) -> usize) -> Fake {
    Fake::start(move |stream| {
        honest_handshake(stream, length)?;
        for n in 0.. {
            let r = next_request(stream)?;
            let (mut parts, mut at) = (Vec::new(), r.offset);
            while at < length && parts.len() < take(n) && at < r.offset + u64::from(r.length) {
                let end = ((at / u64::from(part) + 1) * u64::from(part)).min(length);
                parts.push(((end - at) as u32, (at / u64::from(part) % 2) as u32 * 3));
                at = end;
            }
            let bytes = [both(r, &parts), chunk(DONE, 0, r.cookie, &[])].concat();
            stream.write_all(&bytes)?;
        }
        Ok(())
    })
}

#[test]
fn dirty_ranges_tile_the_image_however_little_the_server_tells_at_once() {
    let (length, part) = (1_000_500, 1000u32);
    for take in [(|_| 1) as fn(usize) -> usize, |n| n % 3 + 1, |_| usize::MAX] {
        let fake = alternating(length, part, take);
        let source = fake.connect(&[DIRTY]).unwrap();
        let ranges: Vec<ByteRange> = source.dirty_ranges(DIRTY).unwrap().collect::<Result<_, _>>().unwrap();
        let expected: Vec<ByteRange> =
            (0..500).map(|n| ByteRange::new(n * 2000 + 1000, n * 2000 + 2000)).collect();
        assert_eq!(ranges, expected);
        let mut at = 0;
        while at < length {
            for extent in source.extents(ByteRange::new(at, length)).unwrap() {
                assert_eq!(extent.range.start, at);
                let zero = at / 1000 % 2 == 1;
                assert_eq!(extent.kind, if zero { ExtentKind::Zero } else { ExtentKind::Data });
                at = extent.range.end;
            }
        }
        assert_eq!(at, length);
    }
}

#[test]
fn more_parts_than_are_kept_are_asked_for_again_and_none_is_lost() {
    let fake = alternating(50_000, 1, |_| usize::MAX);
    let source = fake.connect(&[DIRTY]).unwrap();
    let ranges: Vec<ByteRange> = source.dirty_ranges(DIRTY).unwrap().collect::<Result<_, _>>().unwrap();
    assert!(ranges.iter().copied().eq((0..25_000).map(|n| ByteRange::new(2 * n + 1, 2 * n + 2))));
}

#[test]
fn dirty_ranges_of_a_server_that_goes_away_end_with_an_error() {
    let fake = Fake::start(|stream| {
        honest_handshake(stream, END)?;
        let r = next_request(stream)?;
        stream.write_all(&[both(r, &[(1000, 1), (1000, 0)]), chunk(DONE, 0, r.cookie, &[])].concat())
    });
    let source = fake.connect(&[DIRTY]).unwrap();
    let ranges: Vec<_> = source.dirty_ranges(DIRTY).unwrap().collect();
    assert!(matches!(ranges.last(), Some(Err(SourceError::Invalid { .. }))), "{ranges:?}");
}

#[test]
fn flags_that_are_not_known_are_dirty_and_a_hole_that_is_not_zero_is_data() {
    let fake = Fake::start(|stream| {
        honest_handshake(stream, END)?;
        loop {
            let r = next_request(stream)?;
            stream.write_all(
                &[both(r, &[(LEN / 2, 1), (LEN / 2, 4)]), chunk(DONE, 0, r.cookie, &[])].concat(),
            )?;
        }
    });
    let source = fake.connect(&[DIRTY]).unwrap();
    let ranges: Vec<_> = source.dirty_ranges(DIRTY).unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(ranges, [ByteRange::new(0, END)]);
    let extents = source.extents(ByteRange::new(0, END)).unwrap();
    assert!(extents.iter().all(|extent| extent.kind == ExtentKind::Data), "{extents:?}");
}

#[test]
fn crumbs_do_not_count_as_an_answer() {
    let fake = Fake::start(|stream| {
        honest_handshake(stream, END)?;
        let r = next_request(stream)?;
        for byte in data(DONE, r.cookie, 0, &BYTES) {
            stream.write_all(&[byte])?;
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    });
    let source = fake.connect(&[]).unwrap();
    let start = Instant::now();
    assert!(matches!(source.read_at(0, &mut [0; 16]), Err(SourceError::Invalid { .. })));
    assert!(start.elapsed() < Duration::from_secs(4));
}

#[test]
fn a_slow_server_has_as_long_for_each_block_of_an_answer() {
    const BLOCK: u64 = 256 << 10;
    let fake = Fake::start(|stream| {
        honest_handshake(stream, 8 * BLOCK)?;
        loop {
            let r = next_request(stream)?;
            let mut answer = data(DONE, r.cookie, r.offset, &vec![7; r.length as usize]);
            let first = answer.drain(..answer.len() - r.length as usize).collect::<Vec<_>>();
            stream.write_all(&first)?;
            for block in answer.chunks(BLOCK as usize) {
                std::thread::sleep(LIMIT / 2);
                stream.write_all(block)?;
            }
        }
    });
    let source = fake.connect(&[]).unwrap();
    // The last four with one request: three of them take longer than the limit.
    for n in 0..8 {
        let mut bytes = [0; 4096];
        source.read_at(n * BLOCK, &mut bytes).unwrap();
        assert_eq!(bytes, [7; 4096]);
    }
}

#[test]
fn bytes_that_nobody_asked_for_end_the_source() {
    let fake = Fake::start(|stream| {
        honest_handshake(stream, END)?;
        stream.write_all(&data(DONE, 1, 0, &BYTES))?;
        next_request(stream).map(|_| ())
    });
    let source = fake.connect(&[]).unwrap();
    let start = Instant::now();
    while source.check().is_ok() {
        assert!(start.elapsed() < Duration::from_secs(10));
        std::thread::yield_now();
    }
    assert_ended(&source, "bytes", Then::Silence);
}

#[test]
fn a_source_that_is_dropped_says_goodbye_and_leaves_no_thread() {
    let (sender, receiver) = mpsc::channel();
    let fake = Fake::start(move |stream| {
        honest_handshake(stream, END)?;
        sender.send(next_request(stream)?.kind).unwrap();
        Ok(())
    });
    let start = Instant::now();
    drop(fake.connect(&[]).unwrap());
    assert_eq!(receiver.recv().unwrap(), 2);
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_source_is_dropped_in_time_while_the_server_owes_answers_to_read_ahead() {
    let block = 256u64 << 10;
    let fake = Fake::start(move |stream| {
        honest_handshake(stream, 64 * block)?;
        loop {
            let r = next_request(stream)?;
            if r.offset < 2 * block {
                stream.write_all(&hole(DONE, r.cookie, r.offset, r.length))?;
            }
            if r.kind == 2 {
                // Not even at the end does it hang up.
                std::thread::sleep(Duration::from_secs(3));
                return Ok(());
            }
        }
    });
    let source = NbdSource::connect(&fake.address(), NbdOptions::usual(Vec::new())).unwrap();
    source.read_at(0, &mut [0; 16]).unwrap();
    source.read_at(block, &mut [0; 16]).unwrap();
    let start = Instant::now();
    drop(source);
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn read_ahead_stays_where_it_was_told_to() {
    let block = 256u64 << 10;
    let (sender, receiver) = mpsc::channel();
    let fake = Fake::start(move |stream| {
        honest_handshake(stream, 64 * block)?;
        loop {
            let r = next_request(stream)?;
            let blocks = r.offset / block..(r.offset + u64::from(r.length)) / block;
            blocks.for_each(|asked| sender.send(asked).unwrap());
            stream.write_all(&hole(DONE, r.cookie, r.offset, r.length))?;
        }
    });
    let source = fake.connect(&[]).unwrap();
    source.confine_read_ahead(vec![
        ByteRange::new(3 * block, 9 * block),
        ByteRange::new(11 * block + 5, 11 * block + 6),
    ]);
    for n in [3, 4, 5, 6, 7, 8, 11, 20, 21] {
        source.read_at(n * block, &mut [0; 4096]).unwrap();
    }
    drop(source);
    let mut asked: Vec<u64> = receiver.iter().filter(|n| *n > 0).collect();
    asked.sort_unstable();
    assert_eq!(asked, [3, 4, 5, 6, 7, 8, 11, 20, 21]);
}
