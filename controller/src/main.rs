//! The program `virt-backup`.

use clap::Parser;

/// Back up running libvirt guests with the backup tools you already trust
#[derive(Debug, Parser)]
#[command(name = "virt-backup", version, arg_required_else_help = true)]
struct Cli {}

fn main() {
    Cli::parse();
}
