//! The messages of the handshake as bytes: what a client asks for, and what a server may answer.
//! Pure: no I/O. What is received is hostile: every length and number is checked before it is believed.

use super::protocol::{ContextId, Fields, Violation, printable};

pub(super) const GREETING_BYTES: usize = 18;
pub(super) const OPTION_REPLY_HEAD_BYTES: usize = 20;
/// Strings have at most 4096 bytes, and there is one in each reply, after at most 14 bytes.
pub(super) const MAX_OPTION_REPLY_BYTES: u32 = 4096 + 64;

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// The server's first words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Greeting {
    Newstyle(HandshakeFlags),
    /// A protocol that was given up in 2010, in which no export can be named.
    Oldstyle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HandshakeFlags(u16);

impl HandshakeFlags {
    pub(super) fn fixed_newstyle(self) -> bool {
        self.0 & 1 != 0
    }

    /// What the client answers: what both know, of the two flags that there are.
    pub(super) fn answer(self) -> [u8; 4] {
        u32::from(self.0 & 0b11).to_be_bytes()
    }

    pub(super) fn no_zeroes(self) -> bool {
        self.0 & 0b10 != 0
    }
}

pub(super) fn greeting(bytes: &[u8; GREETING_BYTES]) -> Result<Greeting, Violation> {
    let mut fields = Fields(bytes);
    if fields.u64()? != MAGIC {
        return Err(Violation::new("its greeting is not that of an NBD server"));
    }
    match fields.u64()? {
        OPTION_MAGIC => Ok(Greeting::Newstyle(HandshakeFlags(fields.u16()?))),
        OLDSTYLE_MAGIC => Ok(Greeting::Oldstyle),
        _ => Err(Violation::new("its greeting is of no style that there is")),
    }
}

/// What a client can ask for before the requests begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OptionKind {
    ExportName = 1,
    Abort = 2,
    Go = 7,
    StructuredReply = 8,
    ListMetaContext = 9,
    SetMetaContext = 10,
}

impl OptionKind {
    pub(super) fn name(self) -> &'static str {
        match self {
            OptionKind::ExportName => "NBD_OPT_EXPORT_NAME",
            OptionKind::Abort => "NBD_OPT_ABORT",
            OptionKind::Go => "NBD_OPT_GO",
            OptionKind::StructuredReply => "NBD_OPT_STRUCTURED_REPLY",
            OptionKind::ListMetaContext => "NBD_OPT_LIST_META_CONTEXT",
            OptionKind::SetMetaContext => "NBD_OPT_SET_META_CONTEXT",
        }
    }
}

pub(super) fn option(kind: OptionKind, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend((kind as u32).to_be_bytes());
    bytes.extend(length_of(data));
    bytes.extend(data);
    bytes
}

/// Asks for the export, and for its block sizes, which binds us to them.
pub(super) fn go_data(export: &str) -> Vec<u8> {
    let mut data = string(export);
    data.extend(1u16.to_be_bytes());
    data.extend(INFO_BLOCK_SIZE.to_be_bytes());
    data
}

pub(super) fn meta_context_data(export: &str, queries: &[String]) -> Vec<u8> {
    let mut data = string(export);
    data.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| data.extend(string(query)));
    data
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = length_of(text.as_bytes()).to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

fn length_of(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).expect("names have at most 4096 bytes, and there are few").to_be_bytes()
}

/// The head of an answer to an option, for so many bytes to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OptionReplyHead {
    kind: u32,
    pub(super) length: u32,
}

pub(super) fn option_reply_head(
    asked: OptionKind,
    bytes: &[u8; OPTION_REPLY_HEAD_BYTES],
) -> Result<OptionReplyHead, Violation> {
    let mut fields = Fields(bytes);
    if fields.u64()? != OPTION_REPLY_MAGIC {
        return Err(Violation::new("an answer to an option has the wrong magic number"));
    }
    if fields.u32()? != asked as u32 {
        return Err(Violation::new("it answered an option that was not asked for"));
    }
    let head = OptionReplyHead { kind: fields.u32()?, length: fields.u32()? };
    match head.length <= MAX_OPTION_REPLY_BYTES {
        true => Ok(head),
        false => Err(Violation::new(format!("an answer to an option claims {} bytes", head.length))),
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum OptionReply {
    /// Yes, and nothing more follows.
    Ack,
    Export(Export),
    BlockSizes(BlockSizes),
    /// Something that was not asked for and may be ignored.
    OtherInfo,
    MetaContext(ContextId, String),
    Refused(Refusal),
}

pub(super) fn option_reply(head: OptionReplyHead, payload: &[u8]) -> Result<OptionReply, Violation> {
    let mut fields = Fields(payload);
    let reply = match head.kind {
        1 => OptionReply::Ack,
        3 => match fields.u16()? {
            0 => OptionReply::Export(Export::read(&mut fields)?),
            INFO_BLOCK_SIZE => OptionReply::BlockSizes(BlockSizes::read(&mut fields)?),
            _ => return Ok(OptionReply::OtherInfo),
        },
        4 => OptionReply::MetaContext(ContextId(fields.u32()?), fields.text()?),
        code if code & 1 << 31 != 0 => {
            let message = printable(payload);
            return Ok(OptionReply::Refused(Refusal { code, message }));
        }
        kind => return Err(Violation::new(format!("an answer to an option has the unknown kind {kind}"))),
    };
    fields.end()?;
    Ok(reply)
}

/// What the server says of an option that it will not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    code: u32,
    message: String,
}

impl Refusal {
    /// Does the server not know the option at all?
    pub(super) fn is_unsupported(&self) -> bool {
        self.code == 1 << 31 | 1
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self.code & !(1 << 31) {
            1 => "it does not know the option",
            2 => "it is configured not to",
            3 => "it takes the option for invalid",
            4 => "its platform cannot",
            5 => "it wants TLS, which is not supported here",
            6 => "it has no such export",
            7 => "it is shutting down",
            8 => "it wants its block sizes to be asked for",
            9 => "the request is too big for it",
            _ => "it gives no known reason",
        };
        match self.message.as_str() {
            "" => write!(f, "{name} (error {:#x})", self.code),
            message => write!(f, "{name} (error {:#x}: {message:?})", self.code),
        }
    }
}

const INFO_BLOCK_SIZE: u16 = 3;

/// The export's length in bytes and what can be done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Export {
    pub(super) bytes: u64,
    flags: u16,
}

pub(super) const EXPORT_BYTES: usize = 10;
/// What follows an `Export` in the answer to NBD_OPT_EXPORT_NAME, unless it was agreed to leave it out.
pub(super) const EXPORT_ZEROES: usize = 124;

impl Export {
    /// The answer to NBD_OPT_EXPORT_NAME.
    pub(super) fn parse(bytes: &[u8; EXPORT_BYTES]) -> Result<Export, Violation> {
        Export::read(&mut Fields(bytes))
    }

    fn read(fields: &mut Fields<'_>) -> Result<Export, Violation> {
        let export = Export { bytes: fields.u64()?, flags: fields.u16()? };
        match export.flags & 1 != 0 {
            true => Ok(export),
            false => Err(Violation::new("the export's flags lack the one that says that there are flags")),
        }
    }

    /// May a client spread its requests over several connections?
    pub(super) fn multi_conn(&self) -> bool {
        self.flags & 1 << 8 != 0
    }
}

/// Which requests the server takes: lengths in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockSizes {
    /// Offsets and lengths are multiples of this power of two.
    pub(super) minimum: u32,
    pub(super) preferred: u32,
    pub(super) maximum: u32,
}

impl BlockSizes {
    /// What the protocol assumes of a server that says nothing, with the longest read that any server takes.
    pub(super) const UNSAID: BlockSizes = BlockSizes { minimum: 1, preferred: 4096, maximum: 32 << 20 };

    fn read(fields: &mut Fields<'_>) -> Result<BlockSizes, Violation> {
        let sizes = BlockSizes { minimum: fields.u32()?, preferred: fields.u32()?, maximum: fields.u32()? };
        let sane = sizes.minimum.is_power_of_two()
            && sizes.minimum <= 1 << 16
            && sizes.preferred.is_power_of_two()
            && sizes.preferred >= sizes.minimum
            && sizes.maximum >= sizes.minimum
            && (sizes.maximum.is_multiple_of(sizes.minimum) || sizes.maximum == u32::MAX);
        match sane {
            true => Ok(sizes),
            false => Err(Violation::new(format!(
                "its block sizes cannot be: minimum {}, preferred {}, maximum {}",
                sizes.minimum, sizes.preferred, sizes.maximum
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn options_are_written_as_the_protocol_has_them() {
        let go = option(OptionKind::Go, &go_data("vda"));
        assert_eq!(go, *b"IHAVEOPT\0\0\0\x07\0\0\0\x0b\0\0\0\x03vda\0\x01\0\x03");
        let contexts = meta_context_data("", &["a:b".to_owned(), "c".to_owned()]);
        assert_eq!(contexts, *b"\0\0\0\0\0\0\0\x02\0\0\0\x03a:b\0\0\0\x01c");
        assert_eq!(option(OptionKind::SetMetaContext, &[])[8..12], [0, 0, 0, 10]);
    }

    #[test]
    fn only_flags_that_both_know_are_answered() {
        let greeting = |flags| match greeting(flags).unwrap() {
            Greeting::Newstyle(flags) => flags,
            Greeting::Oldstyle => panic!("newstyle"),
        };
        for (bytes, answer) in
            [(b"NBDMAGICIHAVEOPT\0\x01", 1), (b"NBDMAGICIHAVEOPT\0\x03", 3), (b"NBDMAGICIHAVEOPT\xff\xff", 3)]
        {
            assert_eq!(greeting(bytes).answer(), [0, 0, 0, answer]);
        }
    }

    #[test]
    fn a_refusal_shows_the_servers_words_and_no_control_characters() {
        let head = option_reply_head(
            OptionKind::Go,
            b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\x80\0\0\x06\0\0\0\x05",
        );
        let reply = option_reply(head.unwrap(), b"no\x1b[m").unwrap();
        let OptionReply::Refused(refusal) = reply else { panic!("{reply:?}") };
        assert!(!refusal.is_unsupported());
        assert_eq!(refusal.to_string(), r#"it has no such export (error 0x80000006: "no\u{1b}[m")"#);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoders_panic(
            greet in any::<[u8; GREETING_BYTES]>(),
            head in any::<[u8; OPTION_REPLY_HEAD_BYTES]>(),
            kind in prop_oneof![0u32..6, Just(1 << 31 | 1), any::<u32>()],
            payload in prop::collection::vec(prop_oneof![3 => 0u8..4, 1 => any::<u8>()], 0..40),
        ) {
            let _ = greeting(&greet);
            let _ = option_reply_head(OptionKind::Go, &head);
            let head = OptionReplyHead { kind, length: payload.len() as u32 };
            if let Ok(OptionReply::BlockSizes(sizes)) = option_reply(head, &payload) {
                prop_assert!(sizes.minimum >= 1 && sizes.maximum >= sizes.minimum);
            }
        }
    }
}
