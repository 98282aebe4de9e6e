//! The messages of the NBD protocol as bytes, once the handshake is over: requests and replies.
//! Pure: no I/O. What is received is hostile: every length and number is checked before it is believed.
//!
//! The source of every number is doc/proto.md of the NBD project. All integers are big-endian.

/// The server said what the protocol does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server broke the NBD protocol: {0}")]
pub struct Violation(pub(super) String);

impl Violation {
    pub(super) fn new(what: impl Into<String>) -> Violation {
        Violation(what.into())
    }
}

/// Every reply begins with so many bytes; a chunk's length follows.
pub(super) const REPLY_HEAD_BYTES: usize = 16;
/// An error's number, length and offset, and a string.
pub(super) const MAX_ERROR_BYTES: u32 = 4096 + 64;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// What the server calls a metadata context in its answers, on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ContextId(pub(super) u32);

/// What tells a request from the others of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cookie(pub(super) u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Read = 0,
    Disconnect = 2,
    BlockStatus = 7,
}

pub(super) fn request(command: Command, cookie: Cookie, offset: u64, length: u32) -> [u8; 28] {
    let mut bytes = [0; 28];
    bytes[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    // No command that is sent here has flags.
    bytes[6..8].copy_from_slice(&(command as u16).to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.0.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..28].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// The head of a reply. A chunk's length is in the four bytes that follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReplyHead {
    /// An error of 0 is success.
    Simple {
        cookie: Cookie,
        error: u32,
    },
    Chunk {
        cookie: Cookie,
        kind: ChunkKind,
        last: Last,
    },
}

/// Is it the last chunk of its reply?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Last {
    Yes,
    No,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChunkKind {
    None,
    OffsetData,
    OffsetHole,
    BlockStatus,
    Error,
}

pub(super) fn reply_head(bytes: &[u8; REPLY_HEAD_BYTES]) -> Result<ReplyHead, Violation> {
    let mut fields = Fields(bytes);
    match fields.u32()? {
        SIMPLE_REPLY_MAGIC => {
            let error = fields.u32()?;
            Ok(ReplyHead::Simple { cookie: Cookie(fields.u64()?), error })
        }
        CHUNK_MAGIC => {
            let last = if fields.u16()? & 1 != 0 { Last::Yes } else { Last::No };
            let kind = match fields.u16()? {
                0 => ChunkKind::None,
                1 => ChunkKind::OffsetData,
                2 => ChunkKind::OffsetHole,
                5 => ChunkKind::BlockStatus,
                // Errors that are not known begin like those that are.
                kind if kind & 1 << 15 != 0 => ChunkKind::Error,
                kind => return Err(Violation::new(format!("a reply has the unknown kind {kind}"))),
            };
            Ok(ReplyHead::Chunk { cookie: Cookie(fields.u64()?), kind, last })
        }
        _ => Err(Violation::new("a reply has the wrong magic number")),
    }
}

/// A hole: where, and of how many bytes.
pub(super) fn hole(payload: &[u8; 12]) -> Result<(u64, u32), Violation> {
    let mut fields = Fields(payload);
    Ok((fields.u64()?, fields.u32()?))
}

/// One step of a block status: a length in bytes, and flags.
pub(super) fn descriptor(bytes: &[u8; 8]) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = *bytes;
    (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))
}

/// In `base:allocation`: reads as zeros. (A hole without it may read as anything.)
pub(super) const STATE_ZERO: u32 = 0b10;

/// Why the server could not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerError {
    code: u32,
    message: String,
}

impl ServerError {
    pub(super) fn of_code(code: u32) -> ServerError {
        ServerError { code, message: String::new() }
    }

    /// The payload of an error chunk of any kind. What follows the message, as the offset does, is not needed.
    pub(super) fn parse(payload: &[u8]) -> Result<ServerError, Violation> {
        let mut fields = Fields(payload);
        let code = fields.u32()?;
        if code == 0 {
            return Err(Violation::new("an error has the number 0"));
        }
        let length = usize::from(fields.u16()?);
        match fields.0.get(..length) {
            Some(message) => Ok(ServerError { code, message: printable(message) }),
            None => Err(Violation::new("an error's message is longer than the error")),
        }
    }
}

impl std::fmt::Display for ServerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The numbers are the protocol's own, whatever they may mean to this machine.
        match self.code {
            1 => f.write_str("EPERM, operation not permitted"),
            5 => f.write_str("EIO, input/output error"),
            12 => f.write_str("ENOMEM, cannot allocate memory"),
            22 => f.write_str("EINVAL, invalid argument"),
            28 => f.write_str("ENOSPC, no space left"),
            75 => f.write_str("EOVERFLOW, value too large"),
            95 => f.write_str("ENOTSUP, operation not supported"),
            108 => f.write_str("ESHUTDOWN, the server is shutting down"),
            code => write!(f, "error {code}"),
        }?;
        match self.message.as_str() {
            "" => Ok(()),
            message => write!(f, ": {message:?}"),
        }
    }
}

/// The start of a text that a stranger wrote.
pub(super) fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned()
}

/// Reads fields one after the other.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Violation> {
        let (field, rest) =
            self.0.split_first_chunk().ok_or_else(|| Violation::new("a message is too short"))?;
        self.0 = rest;
        Ok(*field)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Violation> {
        self.take().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Violation> {
        self.take().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Violation> {
        self.take().map(u64::from_be_bytes)
    }

    /// All that is left.
    pub(super) fn text(&mut self) -> Result<String, Violation> {
        let bytes = std::mem::take(&mut self.0);
        String::from_utf8(bytes.to_vec()).map_err(|_| Violation::new("a name is not UTF-8"))
    }

    pub(super) fn end(&self) -> Result<(), Violation> {
        match self.0.is_empty() {
            true => Ok(()),
            false => Err(Violation::new("a message is too long")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_written_as_the_protocol_has_them() {
        let expected = b"\x25\x60\x95\x13\0\0\0\x07\0\0\0\0\0\0\0\x05\0\0\0\x01\0\0\0\x02\xff\xff\0\0";
        assert_eq!(request(Command::BlockStatus, Cookie(5), (1 << 32) + 2, 0xffff_0000), *expected);
        assert_eq!(request(Command::Disconnect, Cookie(0), 0, 0)[4..8], [0, 0, 0, 2]);
    }

    #[test]
    fn replies_are_read_as_the_protocol_has_them() {
        let cookie = Cookie(258);
        let simple = reply_head(b"\x67\x44\x66\x98\0\0\0\x05\0\0\0\0\0\0\x01\x02");
        assert_eq!(simple, Ok(ReplyHead::Simple { cookie, error: 5 }));
        for (bytes, kind, last) in [
            (*b"\0\x01\0\0", ChunkKind::None, Last::Yes),
            (*b"\0\0\0\x01", ChunkKind::OffsetData, Last::No),
            (*b"\xff\xfe\0\x02", ChunkKind::OffsetHole, Last::No),
            (*b"\0\x03\0\x05", ChunkKind::BlockStatus, Last::Yes),
            (*b"\0\x01\x80\x02", ChunkKind::Error, Last::Yes),
            (*b"\0\x01\xff\xff", ChunkKind::Error, Last::Yes),
        ] {
            let mut head = *b"\x66\x8e\x33\xef----\0\0\0\0\0\0\x01\x02";
            head[4..8].copy_from_slice(&bytes);
            assert_eq!(reply_head(&head), Ok(ReplyHead::Chunk { cookie, kind, last }));
        }
        assert_eq!(hole(&[0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 1, 0]), Ok((9, 256)));
        assert_eq!(descriptor(&[0, 0, 1, 0, 0, 0, 0, 3]), (256, 3));
    }

    #[test]
    fn an_error_of_the_server_is_shown_with_its_words() {
        let error = ServerError::parse(b"\0\0\0\x05\0\x04oops\0\0\0\0\0\0\0\x09").unwrap();
        assert_eq!(error.to_string(), r#"EIO, input/output error: "oops""#);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoders_panic(
            mut head in any::<[u8; REPLY_HEAD_BYTES]>(),
            magic in prop::sample::select(vec![SIMPLE_REPLY_MAGIC, CHUNK_MAGIC, 0]),
            error in prop::collection::vec(prop_oneof![0u8..9, any::<u8>()], 0..40),
        ) {
            head[..4].copy_from_slice(&magic.to_be_bytes());
            let _ = reply_head(&head);
            let _ = ServerError::parse(&error).map(|error| error.to_string());
        }
    }
}
