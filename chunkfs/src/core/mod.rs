//! What is true of chunks whatever the machine does: arithmetic, formats and rules.
//! Pure: no I/O, no clock, no process, no threads. A test checks this.

pub mod changes;
pub mod digest;
pub mod geometry;
pub mod layout;
pub mod stamp;

#[cfg(test)]
mod tests {
    #[test]
    fn core_mentions_no_file_system_process_clock_or_fuse() {
        let banned = [
            "std::fs",
            "std::process",
            "std::env",
            "std::net",
            "std::thread",
            "SystemTime",
            "Instant::",
            "rustix",
            "fuser::",
            "rusqlite",
        ];
        for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/core")).unwrap() {
            let path = file.unwrap().path();
            if path.ends_with("mod.rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for word in banned {
                assert!(!text.contains(word), "{}: {word}", path.display());
            }
        }
    }
}
