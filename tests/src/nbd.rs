//! NBD servers on unix sockets: qemu-nbd and nbdkit, as a test needs them.

use crate::home::Home;
use crate::process::{self, LIMIT};
use std::os::unix::net::UnixStream;
use std::process::Child;

/// A server that runs until it is dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// For the command line of `chunkfs mount`.
    pub uri: String,
}

impl Server {
    /// nbdkit with a plugin, its filters and their parameters.
    pub fn nbdkit(home: &Home, words: &str) -> Server {
        let socket = home.path("nbdkit.sock");
        let _ = std::fs::remove_file(&socket);
        let line = format!("nbdkit -f -r -U {} {words}", socket.display());
        Server::wait_for(home.start(&line), &socket, "")
    }

    /// qemu-nbd with a raw image, as the export `disk`.
    pub fn qemu(home: &Home, image: &str) -> Server {
        let socket = home.path("qemu.sock");
        let _ = std::fs::remove_file(&socket);
        let line = format!(
            "qemu-nbd --read-only --persistent --shared=8 -f raw -x disk -k {} {image}",
            socket.display()
        );
        Server::wait_for(home.start(&line), &socket, "disk")
    }

    fn wait_for(mut child: Child, socket: &std::path::Path, export: &str) -> Server {
        process::until("the NBD server", LIMIT, || {
            assert!(child.try_wait().unwrap().is_none(), "the NBD server ended");
            UnixStream::connect(socket).is_ok()
        });
        Server { child, uri: format!("nbd+unix:///{export}?socket={}", socket.display()) }
    }

    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
