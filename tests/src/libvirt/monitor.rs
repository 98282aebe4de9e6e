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
    /// What QEMU told unasked.
    pub events: Vec<Event>,
}

#[derive(Clone, Debug)]
pub struct Event {
    pub name: String,
    /// Since 1970, by QEMU's own clock.
    pub at: Duration,
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
                Some(name) => {
                    let number = |unit: &str| message["timestamp"][unit].as_u64().unwrap();
                    let at = Duration::new(number("seconds"), number("microseconds") as u32 * 1000);
                    self.events.push(Event { name: name.to_owned(), at });
                }
                None => {
                    assert!(message["error"].is_null(), "{command}: {message}");
                    return message["return"].clone();
                }
            }
        }
    }

    /// Each time that the guest did not run since the last call: how long, to the microsecond. It runs now.
    pub fn stopped(&mut self) -> Vec<Duration> {
        assert_eq!(self.execute("query-status", json!({}))["status"], "running");
        let events = std::mem::take(&mut self.events).into_iter();
        let of_interest: Vec<_> = events.filter(|event| ["STOP", "RESUME"].contains(&&*event.name)).collect();
        let pair = |pair: &[Event]| {
            assert_eq!((&*pair[0].name, &*pair[1].name), ("STOP", "RESUME"));
            pair[1].at - pair[0].at
        };
        of_interest.chunks(2).map(pair).collect()
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
