//! One connection: requests go out from any thread, a thread of its own receives the replies.
//! No reply is kept here, and none is asked for again: the first thing that goes wrong ends the whole source.

use super::answer::Promise;
use super::buffers::Buffers;
use super::error::{Health, NbdError};
use super::handshake::{Agreed, Established};
use super::landing::{Filled, Landing};
use super::patience::Patient;
use super::protocol::{self, ChunkKind, Command, ContextId, Cookie, Last, ReplyHead, ServerError, Violation};
use super::reply::{Coverage, Runs, StatusReply};
use super::slots::Slot;
use crate::core::geometry::ByteRange;
use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// A reply's head, and a bit of what follows, come with one system call; the rest goes to where it belongs.
const HEAD_BUFFER: usize = 4096;

#[derive(Debug)]
pub(super) struct Connection {
    socket: Arc<UnixStream>,
    agreed: Arc<Agreed>,
    ids: Vec<ContextId>,
    health: Arc<Health>,
    buffers: Arc<Buffers>,
    /// Held while a request is written, so that requests do not mix.
    sending: Mutex<()>,
    in_flight: Mutex<InFlight>,
    /// How many requests are not answered in full yet.
    waited_for: Arc<AtomicUsize>,
    limit: Duration,
}

#[derive(Debug)]
struct InFlight {
    requests: Vec<Request>,
    next: u64,
    /// Nobody receives any more.
    closed: bool,
}

/// A request that was sent, and what came of its reply so far.
#[derive(Debug)]
struct Request {
    cookie: Cookie,
    reply: Reply,
    /// Free again once the request is dropped.
    _slot: Slot,
}

#[derive(Debug)]
enum Reply {
    Read { coverage: Coverage, landing: Landing },
    Status { status: StatusReply, promise: Promise<Vec<Runs>> },
}

impl Connection {
    /// Errors: a thread cannot be started, or the socket's time limits not be set.
    pub(super) fn start(
        established: Established,
        agreed: Arc<Agreed>,
        health: Arc<Health>,
        buffers: Arc<Buffers>,
        limit: Duration,
    ) -> Result<(Arc<Connection>, JoinHandle<()>), NbdError> {
        let socket = Arc::new(established.stream);
        socket.set_write_timeout(Some(limit)).map_err(NbdError::Io)?;
        health.guard(&socket);
        let connection = Arc::new(Connection {
            socket: Arc::clone(&socket),
            agreed,
            ids: established.ids,
            health,
            buffers,
            sending: Mutex::new(()),
            in_flight: Mutex::new(InFlight { requests: Vec::new(), next: 1, closed: false }),
            waited_for: Arc::default(),
            limit,
        });
        let input = Patient::new(socket, Arc::clone(&connection.waited_for), limit).map_err(NbdError::Io)?;
        let receiver = Receiver(Arc::clone(&connection));
        let thread = std::thread::Builder::new()
            .name("nbd".to_owned())
            .spawn(move || receiver.run(BufReader::with_capacity(HEAD_BUFFER, input)))
            .map_err(NbdError::Thread)?;
        Ok((connection, thread))
    }

    /// The range lies inside the export and is no longer than the server takes. `landing` is as long.
    pub(super) fn read(&self, slot: Slot, range: ByteRange, landing: Landing) {
        let reply = Reply::Read { coverage: Coverage::new(range), landing };
        self.send(Command::Read, range, reply, slot);
    }

    /// The range lies inside the export. The answers are in the order of the agreed contexts.
    pub(super) fn block_status(&self, slot: Slot, range: ByteRange, promise: Promise<Vec<Runs>>) {
        let status = StatusReply::new(range, self.agreed.len.bytes(), self.ids.len());
        self.send(Command::BlockStatus, range, Reply::Status { status, promise }, slot);
    }

    fn send(&self, command: Command, range: ByteRange, reply: Reply, slot: Slot) {
        let length = u32::try_from(range.len()).expect("requests are cut to what the server takes");
        let mut in_flight = self.in_flight.lock().expect("no panic while the lock is held");
        if in_flight.closed {
            drop(in_flight);
            // Breaks its promise, which is what the caller learns it by.
            return drop((reply, slot));
        }
        let cookie = Cookie(in_flight.next);
        in_flight.next += 1;
        // Before it is sent: the reply may come at once.
        self.waited_for.fetch_add(1, Ordering::SeqCst);
        in_flight.requests.push(Request { cookie, reply, _slot: slot });
        drop(in_flight);
        let message = protocol::request(command, cookie, range.start, length);
        let sending = self.sending.lock().expect("no panic while the lock is held");
        let sent = (&*self.socket).write_all(&message);
        drop(sending);
        if let Err(error) = sent {
            self.health.end(&NbdError::of_socket(error, self.limit));
        }
    }

    /// Says goodbye. The server answers what is in flight and hangs up, which ends the receiving thread.
    pub(super) fn say_goodbye(&self) {
        let message = protocol::request(Command::Disconnect, Cookie(0), 0, 0);
        let sending = self.sending.lock().expect("no panic while the lock is held");
        // Who cannot be told has gone already.
        let _ = (&*self.socket).write_all(&message);
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
        drop(sending);
    }

    /// Ends the receiving thread, whatever the server does.
    pub(super) fn hang_up(&self) {
        // An error says that the other side has gone already.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    fn take(&self, cookie: Cookie) -> Result<Request, Violation> {
        let mut in_flight = self.in_flight.lock().expect("no panic while the lock is held");
        let place = in_flight.requests.iter().position(|request| request.cookie == cookie);
        place
            .map(|place| in_flight.requests.swap_remove(place))
            .ok_or_else(|| Violation::new("it replied to a request that was not made, or twice"))
    }

    fn put_back(&self, request: Request) {
        self.in_flight.lock().expect("no panic while the lock is held").requests.push(request);
    }
}

/// The thread that receives. However it ends, nothing stays in flight.
struct Receiver(Arc<Connection>);

impl Drop for Receiver {
    fn drop(&mut self) {
        // The first reason stays, so this one is seen after a panic only.
        self.0.health.end(&NbdError::HungUp);
        let mut in_flight = self.0.in_flight.lock().expect("no panic while the lock is held");
        in_flight.closed = true;
        let requests = std::mem::take(&mut in_flight.requests);
        // Without the lock: broken promises wake others, who may come here.
        drop(in_flight);
        drop(requests);
    }
}

impl Receiver {
    fn run(self, mut input: BufReader<Patient>) {
        // Out here, because its promise must not be broken before the reason is known.
        let mut current = None;
        loop {
            if let Err(error) = self.reply(&mut input, &mut current) {
                let error = match error {
                    NbdError::Io(error) => NbdError::of_socket(error, self.0.limit),
                    error => error,
                };
                return self.0.health.end(&error);
            }
        }
    }

    /// Receives one reply, or one chunk of a reply. `current`: the request that it belongs to, left there on errors.
    fn reply(&self, input: &mut BufReader<Patient>, current: &mut Option<Request>) -> Result<(), NbdError> {
        let mut head = [0; protocol::REPLY_HEAD_BYTES];
        read(input, &mut head)?;
        let last = match protocol::reply_head(&head)? {
            ReplyHead::Simple { cookie, error } => {
                let request = current.insert(self.0.take(cookie)?);
                self.simple(input, &mut request.reply, error)?;
                Last::Yes
            }
            ReplyHead::Chunk { .. } if !self.0.agreed.structured => {
                return Err(Violation::new("it sent a structured reply, which was not agreed upon").into());
            }
            ReplyHead::Chunk { cookie, kind, last } => {
                let mut length = [0; 4];
                read(input, &mut length)?;
                let request = current.insert(self.0.take(cookie)?);
                self.chunk(input, &mut request.reply, kind, last, u32::from_be_bytes(length))?;
                last
            }
        };
        if last == Last::Yes {
            current.as_ref().expect("set above").reply.complete()?;
        }
        let request = current.take().expect("set above");
        match last {
            Last::No => self.0.put_back(request),
            Last::Yes => {
                self.0.waited_for.fetch_sub(1, Ordering::SeqCst);
                input.get_mut().progressed();
                request.reply.finish();
            }
        }
        Ok(())
    }

    fn simple(&self, input: &mut BufReader<Patient>, reply: &mut Reply, error: u32) -> Result<(), NbdError> {
        if error != 0 {
            return Err(NbdError::Server(ServerError::of_code(error)));
        }
        match reply {
            Reply::Read { coverage, landing } if !self.0.agreed.structured => {
                let asked = coverage.asked();
                let place = coverage.add(asked.start, asked.len())?;
                landing.write(place, &self.0.buffers, |part, filled| read_part(input, part, filled))
            }
            _ => Err(Violation::new("it sent a simple reply where a structured one must be").into()),
        }
    }

    fn chunk(
        &self,
        input: &mut BufReader<Patient>,
        reply: &mut Reply,
        kind: ChunkKind,
        last: Last,
        length: u32,
    ) -> Result<(), NbdError> {
        match (kind, reply) {
            (ChunkKind::None, _) if length == 0 && last == Last::Yes => Ok(()),
            (ChunkKind::OffsetData, Reply::Read { coverage, landing }) if length > 8 => {
                let mut offset = [0; 8];
                read(input, &mut offset)?;
                let place = coverage.add(u64::from_be_bytes(offset), u64::from(length - 8))?;
                landing.write(place, &self.0.buffers, |part, filled| read_part(input, part, filled))
            }
            (ChunkKind::OffsetHole, Reply::Read { coverage, landing }) if length == 12 => {
                let mut payload = [0; 12];
                read(input, &mut payload)?;
                let (offset, length) = protocol::hole(&payload)?;
                let place = coverage.add(offset, u64::from(length))?;
                landing.zero(place, &self.0.buffers);
                Ok(())
            }
            (ChunkKind::BlockStatus, Reply::Status { status, .. }) if length > 4 && length % 8 == 4 => {
                self.block_status_chunk(input, status, (length - 4) / 8)
            }
            (ChunkKind::Error, _) if (6..=protocol::MAX_ERROR_BYTES).contains(&length) => {
                let mut payload = vec![0; length as usize];
                read(input, &mut payload)?;
                Err(NbdError::Server(ServerError::parse(&payload)?))
            }
            (kind, _) => {
                Err(Violation::new(format!("a reply has {kind:?} of {length} bytes where it cannot be"))
                    .into())
            }
        }
    }

    fn block_status_chunk(
        &self,
        input: &mut BufReader<Patient>,
        status: &mut StatusReply,
        descriptors: u32,
    ) -> Result<(), NbdError> {
        let mut id = [0; 4];
        read(input, &mut id)?;
        let (place, mut builder) = status.begin(&self.0.ids, ContextId(u32::from_be_bytes(id)))?;
        for _ in 0..descriptors {
            let mut bytes = [0; 8];
            read(input, &mut bytes)?;
            builder.push(protocol::descriptor(&bytes))?;
        }
        status.end(place, builder);
        Ok(())
    }
}

impl Reply {
    /// The last chunk has come: was it all?
    fn complete(&self) -> Result<(), Violation> {
        match self {
            Reply::Read { coverage, .. } => coverage.complete(),
            Reply::Status { status, .. } => status.complete(),
        }
    }

    /// Only of what is complete.
    fn finish(self) {
        match self {
            Reply::Read { landing, .. } => landing.finish(),
            Reply::Status { status, promise } => promise.keep(status.into_runs()),
        }
    }
}

fn read(input: &mut BufReader<Patient>, bytes: &mut [u8]) -> Result<(), NbdError> {
    input.read_exact(bytes).map_err(NbdError::Io)
}

/// A whole block is as good as an answer: a slow server has the same time for each, however many are asked for at once.
fn read_part(input: &mut BufReader<Patient>, part: &mut [u8], filled: Filled) -> Result<(), NbdError> {
    read(input, part)?;
    if filled == Filled::Whole {
        input.get_mut().progressed();
    }
    Ok(())
}
