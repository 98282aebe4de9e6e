//! A server whose every byte the test decides: a thread at a unix socket, and words to say.

use chunkfs::source::nbd::{NbdAddress, NbdError, NbdOptions, NbdSource};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;
use std::time::Duration;

pub(crate) const ALLOCATION: &str = "base:allocation";
pub(crate) const DIRTY: &str = "qemu:dirty-bitmap:b";

/// Long enough for a busy machine, short enough for a test that waits for it.
pub(crate) const LIMIT: Duration = Duration::from_millis(1200);

pub(crate) struct Fake {
    dir: tempfile::TempDir,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    /// Serves one client. What the closure gives up on (a client that has gone) ends it.
    pub(crate) fn start(serve: impl FnOnce(&mut UnixStream) -> std::io::Result<()> + Send + 'static) -> Fake {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let thread = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            // A client that has seen enough hangs up: no failure of the server.
            let _ = serve(&mut stream);
        });
        Fake { dir, thread: Some(thread) }
    }

    pub(crate) fn address(&self) -> NbdAddress {
        NbdAddress::new(&self.dir.path().join("s"), "e").unwrap()
    }

    pub(crate) fn connect(&self, contexts: &[&str]) -> Result<NbdSource, NbdError> {
        let contexts = contexts.iter().map(|name| (*name).to_owned()).collect();
        NbdSource::connect(&self.address(), NbdOptions { timeout: LIMIT, ..NbdOptions::usual(contexts) })
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let thread = self.thread.take().unwrap();
        // Also ends a server that still waits for its client.
        let _ = UnixStream::connect(self.dir.path().join("s"));
        // A test that fails already need not fail twice.
        let ended = thread.join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

pub(crate) fn take<const N: usize>(stream: &mut UnixStream) -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn u32_of(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

fn u64_of(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().unwrap())
}

/// Fields one after the other, big-endian.
macro_rules! message {
    ($($field:expr),* $(,)?) => {{
        let mut bytes: Vec<u8> = Vec::new();
        $(bytes.extend($field.to_be_bytes());)*
        bytes
    }};
}
pub(crate) use message;

pub(crate) fn greeting(flags: u16) -> Vec<u8> {
    message!(0x4e42_444d_4147_4943u64, 0x4948_4156_454f_5054u64, flags)
}

pub(crate) fn option_reply(option: u32, kind: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = message!(0x0003_e889_0455_65a9u64, option, kind, payload.len() as u32);
    bytes.extend(payload);
    bytes
}

pub(crate) fn info_export(length: u64, flags: u16) -> Vec<u8> {
    message!(0u16, length, flags)
}

pub(crate) struct Asked {
    pub(crate) option: u32,
    pub(crate) data: Vec<u8>,
}

pub(crate) fn next_option(stream: &mut UnixStream) -> std::io::Result<Asked> {
    let head: [u8; 16] = take(stream)?;
    assert_eq!(&head[..8], b"IHAVEOPT");
    let mut data = vec![0; u32_of(&head[12..]) as usize];
    stream.read_exact(&mut data)?;
    Ok(Asked { option: u32_of(&head[8..]), data })
}

/// The queries of an option that lists or selects contexts.
pub(crate) fn queries(data: &[u8]) -> Vec<String> {
    let mut rest = &data[4 + u32_of(data) as usize..];
    let count = u32_of(rest);
    rest = &rest[4..];
    (0..count)
        .map(|_| {
            let length = u32_of(rest) as usize;
            let query = String::from_utf8(rest[4..4 + length].to_vec()).unwrap();
            rest = &rest[4 + length..];
            query
        })
        .collect()
}

/// What an honest server says to an option. Contexts get the numbers 70, 71 and so on.
pub(crate) fn honest_option(asked: &Asked, length: u64) -> Vec<u8> {
    match asked.option {
        8 => option_reply(8, 1, &[]),
        10 => {
            let mut bytes = Vec::new();
            for (n, name) in queries(&asked.data).iter().enumerate() {
                let mut payload = message!(70 + n as u32);
                payload.extend(name.as_bytes());
                bytes.extend(option_reply(10, 4, &payload));
            }
            bytes.extend(option_reply(10, 1, &[]));
            bytes
        }
        7 => [option_reply(7, 3, &info_export(length, 1)), option_reply(7, 1, &[])].concat(),
        option => option_reply(option, 1 << 31 | 1, &[]),
    }
}

pub(crate) fn honest_handshake(stream: &mut UnixStream, length: u64) -> std::io::Result<()> {
    stream.write_all(&greeting(3))?;
    take::<4>(stream)?;
    loop {
        let asked = next_option(stream)?;
        stream.write_all(&honest_option(&asked, length))?;
        if asked.option == 7 {
            return Ok(());
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) kind: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) length: u32,
}

pub(crate) fn next_request(stream: &mut UnixStream) -> std::io::Result<Request> {
    let bytes: [u8; 28] = take(stream)?;
    assert_eq!(u32_of(&bytes), 0x2560_9513);
    assert_eq!(bytes[4..6], [0, 0], "no flags are ever needed");
    let kind = u16::from_be_bytes([bytes[6], bytes[7]]);
    assert!([0, 2, 7].contains(&kind), "nothing is ever written");
    let (cookie, offset, length) = (u64_of(&bytes[8..]), u64_of(&bytes[16..]), u32_of(&bytes[24..]));
    Ok(Request { kind, cookie, offset, length })
}

pub(crate) const DONE: u16 = 1;

pub(crate) fn chunk(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = message!(0x668e_33efu32, flags, kind, cookie, payload.len() as u32);
    bytes.extend(payload);
    bytes
}

pub(crate) fn data(flags: u16, cookie: u64, offset: u64, bytes: &[u8]) -> Vec<u8> {
    chunk(flags, 1, cookie, &[&message!(offset), bytes].concat())
}

pub(crate) fn hole(flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    chunk(flags, 2, cookie, &message!(offset, length))
}

pub(crate) fn status(flags: u16, cookie: u64, context: u32, parts: &[(u32, u32)]) -> Vec<u8> {
    let mut payload = message!(context);
    parts.iter().for_each(|(length, state)| payload.extend(message!(*length, *state)));
    chunk(flags, 5, cookie, &payload)
}

pub(crate) fn simple(error: u32, cookie: u64) -> Vec<u8> {
    message!(0x6744_6698u32, error, cookie)
}
