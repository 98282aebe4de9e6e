//! An export of an NBD server behind a unix socket: a backup job of QEMU, `qemu-nbd`, or any other.
//! Nothing is ever written, and no connection is ever made again: a new one could be to other bytes.
//!
//! ```text
//! uri                    where it is
//! options, handshake     bytes of the handshake; the handshake
//! protocol, reply        bytes of requests and replies; what a reply has told of what was asked
//! connection, patience   one socket, and the thread that receives on it
//! slots, answer          who may send, who waits
//! landing, buffers       where bytes go
//! cache, readahead       blocks that were read or are on their way
//! status                 holes, and what a dirty bitmap says
//! ```
//!
//! The server is not trusted. Whatever it says that the protocol does not allow, an error, a hang-up, or silence
//! beyond the limit, ends the source for good: half of an answer must never pass for a point in time.

mod answer;
mod buffers;
mod cache;
mod connection;
mod error;
mod handshake;
mod landing;
mod options;
mod patience;
mod protocol;
mod readahead;
mod reply;
mod slots;
mod status;
mod uri;

pub use error::NbdError;
pub use protocol::{ServerError, Violation};
pub use status::DirtyRanges;
pub use uri::{NbdAddress, NbdAddressError};

use super::{Extent, ExtentKind, Lent, Source, SourceError};
use crate::core::geometry::{ByteRange, ImageLen};
use answer::{Answer, Promise, promise};
use buffers::{Buffers, Content};
use cache::{Cache, Fetch};
use connection::Connection;
use error::Health;
use handshake::{ALLOCATION, Agreed, Established};
use landing::Landing;
use options::BlockSizes;
use readahead::Confines;
use reply::Runs;
use slots::{Slot, Slots};
use status::Spans;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How an export is read.
#[derive(Clone, Debug)]
pub struct NbdOptions {
    /// Metadata contexts that must be there, as `qemu:dirty-bitmap:NAME`. `base:allocation` is used where it is there.
    pub contexts: Vec<String>,
    /// At most so many connections, where the server allows more than one.
    pub connections: NonZeroUsize,
    /// How much is kept of what was read, or read ahead.
    pub cache_bytes: u64,
    /// How long the server may leave every request of a connection without an answer.
    pub timeout: Duration,
}

impl NbdOptions {
    pub const CONNECTIONS: NonZeroUsize = NonZeroUsize::MIN;
    pub const CACHE_BYTES: u64 = 32 << 20;
    pub const TIMEOUT: Duration = Duration::from_secs(30);

    /// What suits most: the values above.
    pub fn usual(contexts: Vec<String>) -> NbdOptions {
        let (connections, cache_bytes, timeout) = (Self::CONNECTIONS, Self::CACHE_BYTES, Self::TIMEOUT);
        NbdOptions { contexts, connections, cache_bytes, timeout }
    }
}

/// What is read and cached at once, unless the server wants it larger or smaller.
const BLOCK_BYTES: u32 = 256 << 10;
const MAX_BLOCK_BYTES: u32 = 1 << 20;
/// Asked for at once when reading ahead: two readers get a tenth more than by 256 KiB (docs/performance.md).
const REQUEST_BYTES: u64 = 1 << 20;

/// So many blocks are read ahead for a reader, for each connection.
const WINDOW: u64 = 32;

/// How long a further connection may take: a server that says that it takes several and accepts one leaves it waiting.
const FURTHER_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a server may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// An export of an NBD server.
#[derive(Debug)]
pub struct NbdSource {
    address: NbdAddress,
    agreed: Arc<Agreed>,
    block_bytes: u64,
    connections: Vec<Arc<Connection>>,
    threads: Vec<JoinHandle<()>>,
    slots: Arc<Slots>,
    health: Arc<Health>,
    cache: Cache,
    spans: Spans,
}

impl NbdSource {
    /// Starts a thread for each connection, so not before a fork.
    pub fn connect(address: &NbdAddress, options: NbdOptions) -> Result<NbdSource, NbdError> {
        let first = handshake::establish(address, &options.contexts, options.timeout)?;
        let agreed = Arc::new(first.agreed.clone());
        let mut established = vec![first];
        if agreed.multi_conn {
            let more = options.connections.get() - 1;
            established.extend(further_connections(address, &options, &agreed).take(more));
        }
        let block_bytes = block_bytes(agreed.sizes);
        let slots = Slots::new(established.len());
        let buffers = Arc::new(Buffers::new(block_bytes as usize));
        let window = established.len() as u64 * WINDOW;
        let blocks = usize::try_from(options.cache_bytes / block_bytes).unwrap_or(usize::MAX).max(4);
        let blocks = NonZeroUsize::new(blocks).expect("at least four");
        let mut source = NbdSource {
            address: address.clone(),
            agreed: Arc::clone(&agreed),
            block_bytes,
            connections: Vec::new(),
            threads: Vec::new(),
            slots,
            health: Arc::default(),
            cache: Cache::new(blocks, window, Arc::clone(&buffers)),
            spans: Spans::new(),
        };
        for established in established {
            let (agreed, health) = (Arc::clone(&agreed), Arc::clone(&source.health));
            let started =
                Connection::start(established, agreed, health, Arc::clone(&buffers), options.timeout)?;
            source.connections.push(started.0);
            source.threads.push(started.1);
        }
        Ok(source)
    }

    /// Reads ahead only where something of a block lies in one of these ranges, such as the dirty ones: what else
    /// comes next in the image is not going to be asked for. What is asked for is read in any case.
    pub fn confine_read_ahead(&self, ranges: Vec<ByteRange>) {
        self.cache.confine(Confines::within(ranges));
    }

    pub fn address(&self) -> &NbdAddress {
        &self.address
    }

    fn read(&self, offset: u64, mut buffer: &mut [u8]) -> Result<(), SourceError> {
        let mut at = offset;
        while !buffer.is_empty() {
            let (block, within) = (at / self.block_bytes, (at % self.block_bytes) as usize);
            let length = buffer.len().min(self.block_bytes as usize - within);
            let certain = (at + buffer.len() as u64 - 1) / self.block_bytes - block;
            let answer = self.cache.get(self, block, certain.min(WINDOW));
            let (part, rest) = buffer.split_at_mut(length);
            match answer.wait() {
                Some(Content::Zeros) => part.fill(0),
                Some(Content::Bytes(bytes)) => part.copy_from_slice(&bytes[within..within + length]),
                None => return Err(self.lost()),
            }
            (at, buffer) = (at + length as u64, rest);
        }
        Ok(())
    }

    fn ask_status(&self, range: ByteRange) -> Result<Vec<Runs>, SourceError> {
        let slot = self.slots.take();
        let connection = &self.connections[slot.connection()];
        let (promise, answer) = promise();
        connection.block_status(slot, range, promise);
        answer.wait().cloned().ok_or_else(|| self.lost())
    }

    fn check_health(&self) -> Result<(), SourceError> {
        match self.health.why_not() {
            None => Ok(()),
            Some(why) => Err(SourceError::Invalid { what: self.describe(), why: why.to_owned() }),
        }
    }

    /// An answer will not come: the reason was noted before the promise was broken.
    fn lost(&self) -> SourceError {
        let why = self.health.why_not().unwrap_or("it was closed").to_owned();
        SourceError::Invalid { what: self.describe(), why }
    }

    fn fault(&self, offset: u64, length: u64, why: String) -> SourceError {
        let error = Arc::new(std::io::Error::other(why));
        SourceError::Read { what: self.describe(), offset, length, error }
    }
}

/// The largest power of two that the server takes, near what suits us, so that a block is always one request.
fn block_bytes(sizes: BlockSizes) -> u64 {
    let largest = 1 << sizes.maximum.ilog2();
    u64::from(sizes.preferred.clamp(BLOCK_BYTES, MAX_BLOCK_BYTES).min(largest))
}

/// As many as there are to the same export. What goes wrong with one only means that there is one fewer.
fn further_connections(
    address: &NbdAddress,
    options: &NbdOptions,
    agreed: &Agreed,
) -> impl Iterator<Item = Established> {
    std::iter::from_fn(move || {
        match handshake::establish(address, &options.contexts, options.timeout.min(FURTHER_TIMEOUT)) {
            Ok(established) if established.agreed == *agreed => Some(established),
            Ok(_) => None,
            Err(error) => {
                tracing::debug!("no further connection: {error}");
                None
            }
        }
    })
}

impl Source for NbdSource {
    fn len(&self) -> ImageLen {
        self.agreed.len
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        self.check_health()?;
        let length = buffer.len() as u64;
        if offset.checked_add(length).is_none_or(|end| end > self.agreed.len.bytes()) {
            return Err(self.fault(offset, length, "it is not that long".to_owned()));
        }
        self.read(offset, buffer)?;
        // Also after: what was read before the end of the source is not to be used after it.
        self.check_health()
    }

    /// Without sending for what comes next: that is done when the reader has got this.
    fn lend(&self, range: ByteRange) -> Result<Option<Lent>, SourceError> {
        self.check_health()?;
        let block = range.start / self.block_bytes;
        if range.is_empty() || range.end > self.range_of(block).end {
            return Ok(None);
        }
        let answer = self.cache.get_only(self, block);
        let lent = match answer.wait() {
            None => return Err(self.lost()),
            Some(Content::Zeros) => None,
            Some(Content::Bytes(_)) => {
                let start = (range.start - block * self.block_bytes) as usize;
                let within = start..start + range.len() as usize;
                Some(Box::new(LentBlock { answer, within }) as Lent)
            }
        };
        // Also after, as in `read_at`.
        self.check_health()?;
        Ok(lent)
    }

    fn read_ahead(&self, end: u64) {
        if let Some(last) = end.checked_sub(1) {
            self.cache.go_on(self, last / self.block_bytes, 0);
        }
    }

    fn extents(&self, range: ByteRange) -> Result<Vec<Extent>, SourceError> {
        self.check_health()?;
        if range.end > self.agreed.len.bytes() {
            return Err(self.fault(range.start, range.len(), "it is not that long".to_owned()));
        }
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let extents = match self.agreed.contexts.iter().position(|name| name == ALLOCATION) {
            Some(context) => self.allocation(range, context)?,
            None => vec![Extent { range, kind: ExtentKind::Data }],
        };
        self.check_health()?;
        Ok(extents)
    }

    fn check(&self) -> Result<(), SourceError> {
        self.check_health()
    }

    fn describe(&self) -> String {
        self.address.to_string()
    }
}

/// A part of a block that holds bytes. It stays in memory while this does, in the cache or not.
struct LentBlock {
    answer: Arc<Answer<Content>>,
    within: Range<usize>,
}

impl AsRef<[u8]> for LentBlock {
    fn as_ref(&self) -> &[u8] {
        match self.answer.wait() {
            Some(Content::Bytes(bytes)) => &bytes[self.within.clone()],
            _ => unreachable!("it was seen to hold bytes, and an answer is given once"),
        }
    }
}

impl Fetch for NbdSource {
    fn slot(&self) -> Slot {
        self.slots.take()
    }

    fn try_slot(&self) -> Option<Slot> {
        self.slots.try_take()
    }

    fn most_at_once(&self) -> u64 {
        (REQUEST_BYTES.min(self.agreed.sizes.maximum.into()) / self.block_bytes).max(1)
    }

    fn fetch(&self, slot: Slot, first: u64, promises: Vec<Promise<Content>>) {
        let connection = &self.connections[slot.connection()];
        let range =
            ByteRange::new(self.range_of(first).start, self.range_of(first + promises.len() as u64 - 1).end);
        let landing = Landing::new(self.block_bytes as usize, range.len() as usize, promises);
        connection.read(slot, range, landing);
    }

    fn worth_fetching(&self, confines: &Confines, block: u64) -> bool {
        block < self.agreed.len.bytes().div_ceil(self.block_bytes) && confines.allow(self.range_of(block))
    }
}

impl NbdSource {
    /// The bytes of a block, which is inside the image. The last one may be short.
    fn range_of(&self, block: u64) -> ByteRange {
        let start = block * self.block_bytes;
        ByteRange::new(start, (start + self.block_bytes).min(self.agreed.len.bytes()))
    }
}

impl Drop for NbdSource {
    fn drop(&mut self) {
        self.health.close();
        self.connections.iter().for_each(|connection| connection.say_goodbye());
        let deadline = Instant::now() + GOODBYE;
        while !self.threads.iter().all(JoinHandle::is_finished) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.connections.iter().for_each(|connection| connection.hang_up());
        for thread in self.threads.drain(..) {
            // A panic of the thread has ended the source before.
            let _ = thread.join();
        }
    }
}
