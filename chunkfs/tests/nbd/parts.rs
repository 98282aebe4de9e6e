//! Real NBD servers that end with the test that started them.

use chunkfs::source::nbd::{NbdAddress, NbdOptions, NbdSource};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) struct Server {
    child: Child,
    pub(crate) dir: tempfile::TempDir,
}

impl Server {
    /// `nbdkit ARGUMENTS...`
    pub(crate) fn nbdkit(arguments: &[&str]) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("nbdkit");
        command
            .args(["--exit-with-parent", "--foreground", "--unix"])
            .arg(dir.path().join("s"))
            .args(arguments);
        Server::start(command, dir)
    }

    /// `qemu-nbd ARGUMENTS... IMAGE`, read-only, in the directory of the image.
    pub(crate) fn qemu(arguments: &[&str], image: &Path) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-nbd", "--read-only", "--persistent", "--socket"]);
        command.arg(dir.path().join("s")).args(arguments).arg(image);
        Server::start(command, dir)
    }

    fn start(mut command: Command, dir: tempfile::TempDir) -> Server {
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        let server = Server { child, dir };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !server.listens() {
            assert!(Instant::now() < deadline, "{command:?} does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }

    /// Without connecting, which some servers would count or complain of.
    fn listens(&self) -> bool {
        let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
        let path = self.socket();
        // The fourth column has the flag of a socket that accepts connections.
        sockets.lines().any(|line| {
            line.ends_with(path.to_str().unwrap()) && line.split_whitespace().nth(3) == Some("00010000")
        })
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    pub(crate) fn address(&self, export: &str) -> NbdAddress {
        NbdAddress::new(&self.socket(), export).unwrap()
    }

    pub(crate) fn connect(&self) -> NbdSource {
        NbdSource::connect(&self.address(""), options(1)).unwrap()
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn options(connections: usize) -> NbdOptions {
    NbdOptions { connections: NonZeroUsize::new(connections).unwrap(), ..NbdOptions::usual(Vec::new()) }
}

pub(crate) fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
