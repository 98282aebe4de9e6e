//! Directions that no compiler checks: `core` decides, and so touches nothing.
//! Reads the sources as text.

use std::fs;
use std::path::{Path, PathBuf};

const FORBIDDEN: [&str; 12] = [
    "std::fs",
    "std::process",
    "std::thread",
    "std::env",
    "std::net",
    "std::io",
    "std::os",
    "time::SystemTime",
    "time::Instant",
    "rustix",
    "fuser",
    "virt::",
];

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("the sources are there") {
        let path = entry.expect("the sources can be listed").path();
        match path.is_dir() {
            true => found.extend(sources(&path)),
            false => found.push(path),
        }
    }
    found
}

#[test]
fn core_mentions_no_file_system_process_clock_fuse_or_hypervisor() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files: Vec<_> = sources(&src.join("core")).into_iter().chain([src.join("core.rs")]).collect();
    assert!(files.len() > 12, "only {} files: has core moved?", files.len());
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for word in FORBIDDEN {
            assert!(!text.contains(word), "{} mentions {word}", file.display());
        }
        // Grouped imports would hide a module from the words above.
        assert!(!text.contains("use std::{"), "{}: import from std one module a line", file.display());
        for upward in ["crate::host", "crate::session", "crate::survey", "crate::command"] {
            assert!(!text.contains(upward), "{} depends on {upward}", file.display());
        }
    }
}
