//! The address of an export: `nbd+unix:///EXPORT?socket=PATH`, percent-encoded.
//! Nothing here connects. The format is doc/uri.md of the NBD project; only unix sockets are taken.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The protocol's limit for any string, in bytes.
const MAX_EXPORT_BYTES: usize = 4096;

/// A unix socket, and the name of an export behind it. The empty name is the server's default export.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NbdAddress {
    socket: PathBuf,
    export: String,
}

/// Why a text is not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no address of an NBD export: {why}: give nbd+unix:///EXPORT?socket=/path/to/socket")]
pub struct NbdAddressError {
    text: String,
    why: String,
}

impl NbdAddress {
    /// `None`: the socket's path is empty or holds a NUL, or the name holds a NUL or is longer than 4096 bytes.
    pub fn new(socket: &Path, export: &str) -> Option<NbdAddress> {
        let path = socket.as_os_str().as_bytes();
        let fits = !path.is_empty() && !path.contains(&0);
        let named = export.len() <= MAX_EXPORT_BYTES && !export.contains('\0');
        (fits && named).then(|| NbdAddress { socket: socket.to_owned(), export: export.to_owned() })
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn export(&self) -> &str {
        &self.export
    }
}

impl std::str::FromStr for NbdAddress {
    type Err = NbdAddressError;

    fn from_str(text: &str) -> Result<NbdAddress, NbdAddressError> {
        parse(text).map_err(|why| NbdAddressError { text: text.to_owned(), why: why.to_owned() })
    }
}

fn parse(text: &str) -> Result<NbdAddress, &'static str> {
    let (scheme, rest) = text.split_once("://").ok_or("there is no scheme")?;
    match scheme.to_ascii_lowercase().as_str() {
        "nbd+unix" => {}
        "nbd" => return Err("only unix sockets are supported, not TCP"),
        "nbds" | "nbds+unix" => return Err("TLS is not supported"),
        _ => return Err("the scheme is not nbd+unix"),
    }
    if rest.contains('#') {
        return Err("it has a fragment");
    }
    let (path, query) = rest.split_once('?').ok_or("the socket is missing")?;
    let export = match path.split_once('/') {
        None if path.is_empty() => "",
        Some(("", export)) => export,
        _ => return Err("a host makes no sense with a unix socket"),
    };
    let export = String::from_utf8(decode(export)?).map_err(|_| "the export's name is not UTF-8")?;
    let socket = PathBuf::from(OsString::from_vec(socket_of(query)?));
    NbdAddress::new(&socket, &export).ok_or("the socket or the name is empty, too long or holds a NUL")
}

fn socket_of(query: &str) -> Result<Vec<u8>, &'static str> {
    let mut socket = None;
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        match key {
            "socket" if socket.is_some() => return Err("there are two sockets"),
            "socket" => socket = Some(decode(value)?),
            // A parameter that is not understood could be one that asks for protection, as those of TLS do.
            _ => return Err("it has a parameter that is not `socket`"),
        }
    }
    socket.ok_or("the socket is missing")
}

fn decode(text: &str) -> Result<Vec<u8>, &'static str> {
    const BAD: &str = "a percent sign is not followed by two hex digits";
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|c| char::from(c).to_digit(16)).ok_or(BAD);
        bytes.push((digit()? * 16 + digit()?) as u8);
    }
    Ok(bytes)
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nbd+unix:///")?;
        encode(f, self.export.as_bytes())?;
        f.write_str("?socket=")?;
        encode(f, self.socket.as_os_str().as_bytes())
    }
}

fn encode(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    for byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' | b',' => {
                write!(f, "{}", char::from(*byte))?;
            }
            _ => write!(f, "%{byte:02X}")?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_are_read_as_the_standard_has_them() {
        for (text, export, socket) in [
            ("nbd+unix:///disk?socket=sock", "disk", "sock"),
            ("nbd+unix:///?socket=/run/a.sock", "", "/run/a.sock"),
            ("nbd+unix://?socket=/run/a.sock", "", "/run/a.sock"),
            ("NBD+UNIX:////disk?socket=s", "/disk", "s"),
            ("nbd+unix:///hello%20world%3f?socket=%2frun%2Fa%26b", "hello world?", "/run/a&b"),
        ] {
            let address: NbdAddress = text.parse().unwrap();
            assert_eq!((address.export(), address.socket()), (export, Path::new(socket)), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_of_a_unix_socket_is_refused() {
        for text in [
            "",
            "/run/a.sock",
            "nbd://host/disk",
            "nbds+unix:///disk?socket=s",
            "nbd+unix:///disk",
            "nbd+unix:///disk?socket=",
            "nbd+unix:///disk?socket=a&socket=b",
            "nbd+unix:///disk?socket=a&tls-type=x509",
            "nbd+unix://host/disk?socket=a",
            "nbd+unix:///disk?socket=a#b",
            "nbd+unix:///disk?socket=%00abstract",
            "nbd+unix:///a%00b?socket=s",
            "nbd+unix:///%ff?socket=s",
            "nbd+unix:///%4?socket=s",
            "nbd+unix:///%+4?socket=s",
        ] {
            assert!(text.parse::<NbdAddress>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn an_address_survives_its_text(export in "[^\0]{0,40}", socket in prop::collection::vec(1u8.., 1..60)) {
            let address = NbdAddress::new(Path::new(&OsString::from_vec(socket)), &export).unwrap();
            prop_assert_eq!(address.to_string().parse::<NbdAddress>(), Ok(address));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "(nbd\\+unix://)?\\PC*") {
            // Only that it returns is claimed here.
            let _ = text.parse::<NbdAddress>();
        }
    }
}
