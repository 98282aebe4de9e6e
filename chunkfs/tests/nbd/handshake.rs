//! Servers that break the rules of the handshake, and old ones that keep to the rules of their time.

use super::fake::*;
use chunkfs::source::Source;
use chunkfs::source::nbd::NbdError;
use std::io::Write;
use std::time::{Duration, Instant};

const END: u64 = 8192;

const BYTES: [u8; END as usize] = [0xaa; END as usize];

/// A server that answers options as `lie` says, where it says something.
fn haggling(lie: impl Fn(&Asked) -> Option<Vec<u8>> + Send + 'static) -> Fake {
    Fake::start(move |stream| {
        stream.write_all(&greeting(3))?;
        take::<4>(stream)?;
        loop {
            let asked = next_option(stream)?;
            let honest = honest_option(&asked, END);
            stream.write_all(&lie(&asked).unwrap_or(honest))?;
        }
    })
}

type Haggle = (&'static str, u32, fn() -> Vec<u8>);

const HAGGLES: &[Haggle] = &[
    ("wrong magic", 8, || message!(1u64, 8u32, 1u32, 0u32)),
    ("another option", 8, || option_reply(7, 1, &[])),
    ("unknown kind", 8, || option_reply(8, 77, &[])),
    ("an answer to another question", 8, || option_reply(8, 3, &info_export(END, 1))),
    ("a yes with a payload", 8, || option_reply(8, 1, &[0])),
    ("a claim of 4 GiB", 8, || message!(0x0003_e889_0455_65a9u64, 8u32, 1u32, u32::MAX)),
    ("a context that was not asked for", 10, || option_reply(10, 4, b"\0\0\0\x01base:other")),
    ("a context that is not UTF-8", 10, || option_reply(10, 4, b"\0\0\0\x01\xff\xff")),
    ("a context without a name", 10, || [option_reply(10, 4, &[0; 3]), option_reply(10, 1, &[])].concat()),
    ("a context twice", 10, || option_reply(10, 4, b"\0\0\0\x01base:allocation").repeat(2)),
    ("two contexts with one number", 10, || {
        let dirty = option_reply(10, 4, &[&[0, 0, 0, 1], DIRTY.as_bytes()].concat());
        [option_reply(10, 4, &[&[0, 0, 0, 1], ALLOCATION.as_bytes()].concat()), dirty].concat()
    }),
    ("no length", 7, || option_reply(7, 1, &[])),
    ("half a length", 7, || [option_reply(7, 3, &message!(0u16, 5u32)), option_reply(7, 1, &[])].concat()),
    ("no flags", 7, || [option_reply(7, 3, &info_export(END, 0)), option_reply(7, 1, &[])].concat()),
    ("longer than all disks", 7, || {
        [option_reply(7, 3, &info_export(u64::MAX, 1)), option_reply(7, 1, &[])].concat()
    }),
    ("a minimum of 0", 7, || option_reply(7, 3, &message!(3u16, 0u32, 4096u32, 65536u32))),
    ("a minimum of 3", 7, || option_reply(7, 3, &message!(3u16, 3u32, 4096u32, 65536u32))),
    ("a minimum of 128 KiB", 7, || option_reply(7, 3, &message!(3u16, 131072u32, 131072u32, 131072u32))),
    ("a maximum of 0", 7, || option_reply(7, 3, &message!(3u16, 1u32, 4096u32, 0u32))),
    ("a maximum below the minimum", 7, || option_reply(7, 3, &message!(3u16, 512u32, 512u32, 256u32))),
    ("block sizes cut short", 7, || option_reply(7, 3, &message!(3u16, 1u32))),
    ("no such export", 7, || option_reply(7, 1 << 31 | 6, b"\x1b[2J")),
    ("silence", 7, Vec::new),
];

#[test]
fn a_handshake_against_the_rules_is_an_error_in_time() {
    for (what, option, lie) in HAGGLES {
        let fake = haggling(move |asked| (asked.option == *option).then(lie));
        let start = Instant::now();
        let error = fake.connect(&[DIRTY]).unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(5), "{what}");
        assert!(!error.to_string().contains('\x1b'), "{what}: {error:?}");
    }
}

#[test]
fn answers_without_end_are_an_error() {
    for (option, answer) in [
        (7, option_reply(7, 3, &message!(9u16))),
        (10, option_reply(10, 4, b"\0\0\0\x01base:allocation")),
        (9, option_reply(9, 4, b"\0\0\0\x01base:allocation")),
    ] {
        let fake = haggling(move |asked| match asked.option {
            o if o == option => Some(answer.repeat(10_000)),
            // Makes the client ask for what there is.
            10 => Some(option_reply(10, 1, &[])),
            _ => None,
        });
        let contexts: &[&str] = if option == 7 { &[] } else { &[DIRTY] };
        let start = Instant::now();
        let error = fake.connect(contexts).unwrap_err();
        assert!(matches!(error, NbdError::Violation(_) | NbdError::NoContext { .. }), "{option}: {error}");
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn greetings_that_are_none_are_an_error() {
    let greetings: &[&[u8]] =
        &[b"", b"NBDMAGIC", b"SSH-2.0-OpenSSH_9.2\r\n", b"NBDMAGICIHAVEOPS\0\x03", &[0xff; 4096]];
    for greeting in greetings {
        let fake = Fake::start(|stream| stream.write_all(greeting));
        assert!(fake.connect(&[]).is_err(), "{greeting:?}");
    }
}

#[test]
fn a_server_without_go_is_asked_in_the_old_way_and_its_zeroes_are_skipped() {
    for flags in [1, 3] {
        let fake = Fake::start(move |stream| {
            stream.write_all(&greeting(flags))?;
            assert_eq!(take::<4>(stream)?, u32::from(flags).to_be_bytes());
            loop {
                let asked = next_option(stream)?;
                if asked.option == 1 {
                    assert_eq!(asked.data, b"e");
                    stream.write_all(&message!(END, 1u16))?;
                    stream.write_all(&vec![0; if flags == 1 { 124 } else { 0 }])?;
                    break;
                }
                stream.write_all(&option_reply(asked.option, 1 << 31 | 1, &[]))?;
            }
            let r = next_request(stream)?;
            stream.write_all(&[&simple(0, r.cookie)[..], &BYTES].concat())?;
            let r = next_request(stream)?;
            assert_eq!(r.kind, 2);
            Ok(())
        });
        let source = fake.connect(&[]).unwrap();
        let mut bytes = [0; 100];
        source.read_at(8092, &mut bytes).unwrap();
        assert_eq!(bytes, [0xaa; 100]);
    }
}

#[test]
fn a_maximum_that_is_small_and_odd_is_kept() {
    let fake = Fake::start(|stream| {
        stream.write_all(&greeting(3))?;
        take::<4>(stream)?;
        loop {
            let asked = next_option(stream)?;
            if asked.option == 7 {
                let sizes = message!(3u16, 1u32, 512u32, 1000u32);
                stream.write_all(&option_reply(7, 3, &sizes))?;
                stream.write_all(&honest_option(&asked, END))?;
                break;
            }
            stream.write_all(&honest_option(&asked, END))?;
        }
        loop {
            let r = next_request(stream)?;
            assert!(r.length <= 1000);
            let bytes: Vec<u8> =
                (r.offset..r.offset + u64::from(r.length)).map(|at| (at % 251) as u8).collect();
            stream.write_all(&data(DONE, r.cookie, r.offset, &bytes))?;
        }
    });
    let source = fake.connect(&[]).unwrap();
    let mut bytes = vec![0; 8000];
    source.read_at(99, &mut bytes).unwrap();
    assert!(bytes.iter().enumerate().all(|(n, byte)| *byte == ((n + 99) % 251) as u8));
}
