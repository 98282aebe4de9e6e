//! How fast an NBD export is read from start to end: `nbd_speed URI [READ_KIB [CONNECTIONS]]`.
//! Prints GB/s and the most memory that the process had. Compare with `nbdcopy --connections=1 URI null:`.

use chunkfs::source::Source;
use chunkfs::source::nbd::{NbdOptions, NbdSource};
use std::error::Error;
use std::num::NonZeroUsize;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().ok_or("give the URI of an export")?.parse()?;
    let read_kib: usize = arguments.next().map_or(Ok(256), |text| text.parse())?;
    let connections =
        arguments.next().map_or(Ok(NbdOptions::CONNECTIONS), |text| text.parse::<NonZeroUsize>())?;
    let source = NbdSource::connect(&address, NbdOptions { connections, ..NbdOptions::usual(Vec::new()) })?;
    let mut buffer = vec![0; read_kib << 10];
    let length = source.len().bytes();
    let start = Instant::now();
    let mut at = 0;
    while at < length {
        let part = buffer.len().min((length - at) as usize);
        source.read_at(at, &mut buffer[..part])?;
        at += part as u64;
    }
    let secs = start.elapsed().as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("VmHWM: unknown");
    println!(
        "{:.2} GB/s ({length} bytes in {secs:.2} s, {read_kib} KiB a read, at most {connections} connections), {peak}",
        length as f64 / secs / 1e9
    );
    Ok(())
}
