//! A QMP monitor of one's own to a guest's QEMU, past libvirt: nobody else's jobs make it wait.
//! What QEMU tells unasked - that it stopped, above all - is kept.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up its world has to stop")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// For an answer. A guest's writes may wait for a disk that others use, but not for ever.
const LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Monitor {
    stream: BufReader<UnixStream>,
    /// The names of what QEMU told unasked.
    pub events: Vec<String>,
}

impl Monitor {
    pub(super) fn connect(socket: &Path) -> Monitor {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut monitor = Monitor { stream: BufReader::new(stream), events: Vec::new() };
        assert!(monitor.receive()["QMP"].is_object());
        monitor.execute("qmp_capabilities", json!({}));
        monitor
    }

    pub fn execute(&mut self, command: &str, arguments: Value) -> Value {
        let line = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        self.stream.get_mut().write_all(line.as_bytes()).unwrap();
        loop {
            let message = self.receive();
            match message["event"].as_str() {
                Some(event) => self.events.push(event.to_owned()),
                None => {
                    assert!(message["error"].is_null(), "{command}: {message}");
                    return message["return"].clone();
                }
            }
        }
    }

    /// Writes as the guest would; returns when it is done.
    pub fn write(&mut self, disk: usize, byte: u8, offset: u64, length: u64) {
        let device = format!("/machine/peripheral/virtio-disk{disk}/virtio-backend");
        let line = format!("qemu-io -d {device} \"write -q -P {byte} {offset} {length}\"");
        let said = self.execute("human-monitor-command", json!({ "command-line": line }));
        assert_eq!(said, "", "{line}");
    }

    fn receive(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}
