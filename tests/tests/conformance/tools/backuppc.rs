//! BackupPC 4: its server as its own user, its own queue, its rsync_bpc, and the view by its own commands.

use super::Tool;
use crate::stage::{command, example, processes, sh, try_sh};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tests::process::{self, Outcome};

#[derive(Default)]
pub struct BackupPc {
    /// The server has nobody else to end it.
    server: Option<std::process::Child>,
}

const BIN: &str = "/usr/share/backuppc/bin";
const HOME: &str = "/var/lib/backuppc";
const LIMIT: Duration = Duration::from_secs(90);

/// What the package's installation would do, and the recipe. `ssh` to the machine itself is the recipe's `local-root`.
const INSTALL: &str = r#"
recipe=$1
echo 'backuppc:x:64034:' >>/etc/group
echo 'backuppc:x:64034:64034::/var/lib/backuppc:/bin/sh' >>/etc/passwd
echo 'backuppc:!:20000::::::' >>/etc/shadow
echo '127.0.0.1 virthost' >>/etc/hosts
cp /usr/share/backuppc/conf/config.pl /etc/backuppc/config.pl
cat >>/etc/backuppc/config.pl <<'CONFIG'
$Conf{SshPath} = '/etc/backuppc/local-root';
$Conf{PingPath} = '/bin/true';
$Conf{PingCmd} = '$pingPath';
$Conf{SendmailPath} = '/bin/true';
$Conf{SmbClientPath} = $Conf{NmbLookupPath} = '';
$Conf{BlackoutPeriods} = [];
CONFIG
printf 'host dhcp user moreUsers\nmail01 0 backuppc\n' >/etc/backuppc/hosts
cp "$recipe/mail01.pl" "$recipe/local-root" /etc/backuppc/
install -m 440 "$recipe/sudoers" /etc/sudoers.d/backuppc
mkdir -p /var/lib/backuppc/{pc,pool,cpool,log} /run/backuppc
chown -R backuppc:backuppc /var/lib/backuppc /run/backuppc /etc/backuppc
"#;

fn as_backuppc(words: &[&str]) -> std::process::Command {
    let mut command = command("setpriv");
    command.args(["--reuid=backuppc", "--regid=backuppc", "--clear-groups"]).args(words);
    command
}

fn message(words: &str) -> Outcome {
    process::run(&mut as_backuppc(&[&format!("{BIN}/BackupPC_serverMesg"), words]), process::LIMIT)
}

/// With one of these the log ends when a backup has ended.
const ENDS: [&str; 4] = [" complete", "exiting", "aborted", "failed"];

/// What BackupPC has written to the log of the host.
fn log() -> String {
    try_sh(&format!("cat {HOME}/pc/mail01/LOG.*")).stdout
}

/// In the words of the server's protocol.
#[derive(Clone, Copy)]
pub enum Kind {
    Incremental = 0,
    Full = 1,
}

/// Has the server make a backup, and waits for its end.
pub fn back_up(kind: Kind) -> Outcome {
    let before = log().len();
    let request = format!("backup mail01 mail01 backuppc {}", kind as u8);
    let mut outcome = message(&request);
    let done = || log()[before..].lines().any(|line| ENDS.iter().any(|end| line.contains(end)));
    process::until("the end of the backup", LIMIT, || done() && processes(&["BackupPC_dump"]).is_empty());
    let said = log()[before..].to_owned();
    let failed = !said.lines().any(|line| line.contains(" complete"));
    let last = sh(&format!("ls -t {HOME}/pc/mail01/XferLOG.* | head -n 1"));
    let zcat = format!("{BIN}/BackupPC_zcat");
    let transfer = process::run(&mut as_backuppc(&[&zcat, last.trim()]), process::LIMIT).ok();
    outcome.status = failed.into();
    outcome.stdout = said + &transfer;
    outcome
}

impl Tool for BackupPc {
    fn prepare(&mut self) {
        let mut install = command("bash");
        install.args(["-euc", INSTALL, "install"]).arg(example("backuppc"));
        process::run(&mut install, process::LIMIT).ok();
        let mut server = as_backuppc(&[&format!("{BIN}/BackupPC")]);
        let log = || std::fs::File::create("/srv/server.log").unwrap();
        self.server =
            Some(server.stdin(std::process::Stdio::null()).stdout(log()).stderr(log()).spawn().unwrap());
        process::until("the server", LIMIT, || message("status info").status == 0);
    }

    fn back_up(&mut self) -> Outcome {
        back_up(Kind::Incremental)
    }

    fn processes(&self) -> &'static [&'static str] {
        &["rsync"]
    }

    fn restore(&mut self, number: usize, count: usize, into: &Path) -> PathBuf {
        let all = sh(&format!("cut -f 1,2 {HOME}/pc/mail01/backups"));
        let all: Vec<&str> = all
            .lines()
            .filter_map(|line| line.split_once('\t'))
            .filter(|l| l.1 != "partial")
            .map(|l| l.0)
            .collect();
        assert_eq!(all.len(), count, "{all:?}");
        let into = into.display();
        sh(&format!(
            "mkdir {into}; setpriv --reuid=backuppc --regid=backuppc --clear-groups \
             {BIN}/BackupPC_tarCreate -h mail01 -n {} -s /var/lib/libvirt/backup/mail01 . | tar -xC {into}",
            all[number]
        ));
        into.to_string().into()
    }
}

impl Drop for BackupPc {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            // The namespace would end it anyway.
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}
