//! From an address to a connection on which requests can be sent: fixed newstyle, structured replies, contexts.
//! No request is sent here, and nothing is read past the server's last answer.

use super::error::NbdError;
use super::options::{self, BlockSizes, Export, Greeting, HandshakeFlags, OptionKind, OptionReply};
use super::protocol::{ContextId, Violation};
use super::uri::NbdAddress;
use crate::core::geometry::ImageLen;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// The context that tells holes from data.
pub(super) const ALLOCATION: &str = "base:allocation";

/// More contexts than any disk has bitmaps. Bounds the time that a server can take.
const MAX_ANSWERS: usize = 4096;

/// What client and server agreed upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    pub(super) len: ImageLen,
    pub(super) sizes: BlockSizes,
    pub(super) structured: bool,
    pub(super) multi_conn: bool,
    /// By name, in the order in which they were asked for. `base:allocation` comes first, where it is there.
    pub(super) contexts: Vec<String>,
}

/// A socket in the transmission phase, and what the server calls the contexts on it.
#[derive(Debug)]
pub(super) struct Established {
    pub(super) stream: UnixStream,
    pub(super) agreed: Agreed,
    pub(super) ids: Vec<ContextId>,
}

/// `wanted`: contexts without which the connection is of no use. `limit`: for all of it together.
pub(super) fn establish(
    address: &NbdAddress,
    wanted: &[String],
    limit: Duration,
) -> Result<Established, NbdError> {
    let stream = connect(address, limit)?;
    let talk = Talk { stream: &stream, deadline: Instant::now() + limit, limit };
    let flags = talk.greet()?;
    let (agreed, ids) = match talk.haggle(flags, address.export(), wanted) {
        Ok(agreed) => agreed,
        Err(error) => {
            // Only politeness: the connection is closed next.
            let _ = talk.ask(OptionKind::Abort, &[]);
            return Err(error);
        }
    };
    Ok(Established { stream, agreed, ids })
}

fn connect(address: &NbdAddress, limit: Duration) -> Result<UnixStream, NbdError> {
    let socket = address.socket();
    let connected = || -> rustix::io::Result<UnixStream> {
        let name = SocketAddrUnix::new(socket)?;
        let stream =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // Also a limit for connecting: a server that accepts nobody fills its queue, and one would wait for ever.
        sockopt::set_socket_timeout(&stream, sockopt::Timeout::Send, Some(limit))?;
        rustix::net::connect(&stream, &name)?;
        Ok(UnixStream::from(stream))
    };
    connected().map_err(|error| NbdError::Connect { socket: socket.to_owned(), error: error.into() })
}

struct Talk<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
    limit: Duration,
}

impl Talk<'_> {
    fn greet(&self) -> Result<HandshakeFlags, NbdError> {
        match options::greeting(&self.receive()?)? {
            Greeting::Newstyle(flags) if flags.fixed_newstyle() => {
                self.send(&flags.answer())?;
                Ok(flags)
            }
            Greeting::Newstyle(_) | Greeting::Oldstyle => Err(NbdError::OldServer),
        }
    }

    fn haggle(
        &self,
        flags: HandshakeFlags,
        export: &str,
        wanted: &[String],
    ) -> Result<(Agreed, Vec<ContextId>), NbdError> {
        let structured = self.structured_replies()?;
        if !structured && !wanted.is_empty() {
            return Err(NbdError::NoStructuredReplies(wanted.to_vec()));
        }
        let selected = if structured { self.select_contexts(export, wanted)? } else { Vec::new() };
        let (found, sizes) = match self.go(export)? {
            Some(found) => found,
            None => (self.export_name(flags, export)?, BlockSizes::UNSAID),
        };
        let len = ImageLen::new(found.bytes).ok_or(NbdError::TooLong(found.bytes))?;
        if !found.bytes.is_multiple_of(u64::from(sizes.minimum)) {
            return Err(NbdError::OddLength { bytes: found.bytes, minimum: sizes.minimum });
        }
        let (ids, contexts) = selected.into_iter().unzip();
        let multi_conn = found.multi_conn();
        Ok((Agreed { len, sizes, structured, multi_conn, contexts }, ids))
    }

    fn structured_replies(&self) -> Result<bool, NbdError> {
        const KIND: OptionKind = OptionKind::StructuredReply;
        self.ask(KIND, &[])?;
        match self.answer(KIND)? {
            OptionReply::Ack => Ok(true),
            // Any refusal leaves simple replies, which every server knows.
            OptionReply::Refused(refusal) => {
                tracing::debug!("no structured replies: {refusal}");
                Ok(false)
            }
            other => Err(unexpected(KIND, &other)),
        }
    }

    fn select_contexts(&self, export: &str, wanted: &[String]) -> Result<Vec<(ContextId, String)>, NbdError> {
        const KIND: OptionKind = OptionKind::SetMetaContext;
        let mut asked = vec![ALLOCATION.to_owned()];
        asked.extend(wanted.iter().filter(|name| *name != ALLOCATION).cloned());
        let given = self.contexts(KIND, export, &asked)?;
        let mut selected: Vec<(ContextId, String)> = Vec::new();
        for (id, name) in given {
            let known =
                asked.contains(&name) && !selected.iter().any(|(other, n)| *other == id || *n == name);
            if !known {
                return Err(Violation::new(format!(
                    "it selected a context that was not asked for: {name:?}"
                ))
                .into());
            }
            selected.push((id, name));
        }
        selected.sort_by_key(|(_, name)| asked.iter().position(|asked| asked == name));
        let missing: Vec<String> = wanted
            .iter()
            .filter(|name| !selected.iter().any(|(_, selected)| selected == *name))
            .cloned()
            .collect();
        if !missing.is_empty() {
            let listed = self.contexts(OptionKind::ListMetaContext, export, &[])?;
            let available = listed.into_iter().map(|(_, name)| name).collect();
            return Err(NbdError::NoContext { missing, available });
        }
        Ok(selected)
    }

    /// Lists contexts or selects them. A server that knows of none gives none.
    fn contexts(
        &self,
        kind: OptionKind,
        export: &str,
        queries: &[String],
    ) -> Result<Vec<(ContextId, String)>, NbdError> {
        self.ask(kind, &options::meta_context_data(export, queries))?;
        let mut contexts = Vec::new();
        for _ in 0..MAX_ANSWERS {
            match self.answer(kind)? {
                OptionReply::MetaContext(id, name) => contexts.push((id, name)),
                OptionReply::Ack => return Ok(contexts),
                OptionReply::Refused(refusal) if refusal.is_unsupported() => return Ok(Vec::new()),
                OptionReply::Refused(refusal) => return Err(NbdError::refused(kind.name(), &refusal)),
                other => return Err(unexpected(kind, &other)),
            }
        }
        Err(Violation::new("it lists contexts without end").into())
    }

    /// `None`: the server does not know the option, so it is in the same state as before.
    fn go(&self, export: &str) -> Result<Option<(Export, BlockSizes)>, NbdError> {
        const KIND: OptionKind = OptionKind::Go;
        self.ask(KIND, &options::go_data(export))?;
        let (mut found, mut sizes) = (None, BlockSizes::UNSAID);
        for _ in 0..MAX_ANSWERS {
            match self.answer(KIND)? {
                OptionReply::Export(export) => found = Some(export),
                OptionReply::BlockSizes(given) => sizes = given,
                OptionReply::OtherInfo => {}
                OptionReply::Ack => {
                    let found =
                        found.ok_or_else(|| Violation::new("it did not say how long the export is"))?;
                    return Ok(Some((found, sizes)));
                }
                OptionReply::Refused(refusal) if refusal.is_unsupported() => return Ok(None),
                OptionReply::Refused(refusal) => return Err(NbdError::refused(KIND.name(), &refusal)),
                other => return Err(unexpected(KIND, &other)),
            }
        }
        Err(Violation::new("it gives information without end").into())
    }

    /// The old way into the transmission phase, where the server can only hang up to refuse.
    fn export_name(&self, flags: HandshakeFlags, export: &str) -> Result<Export, NbdError> {
        self.ask(OptionKind::ExportName, export.as_bytes())?;
        let answer = match self.receive() {
            Err(NbdError::HungUp) => return Err(NbdError::ExportRefused { export: export.to_owned() }),
            answer => Export::parse(&answer?)?,
        };
        if !flags.no_zeroes() {
            self.receive::<{ options::EXPORT_ZEROES }>()?;
        }
        Ok(answer)
    }

    fn ask(&self, kind: OptionKind, data: &[u8]) -> Result<(), NbdError> {
        self.send(&options::option(kind, data))
    }

    fn answer(&self, kind: OptionKind) -> Result<OptionReply, NbdError> {
        let head = options::option_reply_head(kind, &self.receive()?)?;
        let mut payload = vec![0; head.length as usize];
        self.fill(&mut payload)?;
        Ok(options::option_reply(head, &payload)?)
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NbdError> {
        let mut stream = self.stream;
        stream.write_all(bytes).map_err(|error| NbdError::of_socket(error, self.limit))
    }

    fn receive<const N: usize>(&self) -> Result<[u8; N], NbdError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&self, mut bytes: &mut [u8]) -> Result<(), NbdError> {
        let mut stream = self.stream;
        while !bytes.is_empty() {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NbdError::Timeout(self.limit));
            }
            self.stream.set_read_timeout(Some(left)).map_err(NbdError::Io)?;
            match stream.read(bytes) {
                Ok(0) => return Err(NbdError::HungUp),
                Ok(n) => bytes = &mut bytes[n..],
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(NbdError::of_socket(error, self.limit)),
            }
        }
        Ok(())
    }
}

fn unexpected(kind: OptionKind, reply: &OptionReply) -> NbdError {
    Violation::new(format!("it answered {} with {reply:?}", kind.name())).into()
}
