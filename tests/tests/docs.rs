//! The examples in the documentation do what stands there.
//! Each page is one shell session in a directory of its own; what follows a command is what it must print.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A command of a page, and what it prints.
struct Example {
    line: usize,
    command: String,
    expected: String,
}

/// The blocks that begin with three backquotes and `console`.
fn examples(page: &str) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut inside = false;
    for (number, line) in page.lines().enumerate() {
        match (inside, line) {
            (false, "```console") => inside = true,
            (true, "```") => inside = false,
            (true, line) => match line.strip_prefix("$ ") {
                Some(command) => examples.push(Example {
                    line: number + 1,
                    command: command.to_owned(),
                    expected: String::new(),
                }),
                None => {
                    let example = examples.last_mut().expect("a block begins with a command");
                    example.expected += line;
                    example.expected.push('\n');
                }
            },
            _ => {}
        }
    }
    examples
}

/// One script: every command, and behind it a line that no command prints, with its exit status.
fn script(examples: &[Example], mark: &str) -> String {
    let body = examples.iter().map(|example| format!("{}\necho \"{mark} $?\"\n", example.command));
    format!("trap 'umount -l mnt 2>/dev/null' EXIT\nexec 2>&1\n{}", body.collect::<String>())
}

fn chunkfs() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/chunkfs");
    let path = std::env::var_os("CHUNKFS").map_or(built, PathBuf::from);
    path.canonicalize().unwrap_or_else(|_| panic!("{}: missing; run cargo build --release", path.display()))
}

fn check_page(name: &str) {
    let page =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name)).unwrap();
    let examples = examples(&page);
    assert!(!examples.is_empty(), "{name} has examples");
    let mark = "--- status:";
    let home = tempfile::Builder::new().prefix("chunkfs-docs-").tempdir().unwrap();
    let path = format!("{}:{}", chunkfs().parent().unwrap().display(), std::env::var("PATH").unwrap());
    let output = Command::new("timeout")
        .args(["120", "bash", "-c", &script(&examples, mark)])
        .env("PATH", path)
        .env("LC_ALL", "C")
        .current_dir(home.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut printed = text.as_str();
    for Example { line, command, expected } in examples {
        let at =
            printed.find(mark).unwrap_or_else(|| panic!("{name}:{line}: `{command}` did not end: {printed}"));
        assert_eq!(&printed[..at], expected, "{name}:{line}: {command}");
        printed = printed[at..].split_once('\n').map_or("", |(_, rest)| rest);
    }
}

#[test]
fn fuse_examples_of_semantics_do_what_they_say() {
    check_page("semantics.md");
}

/// The files of a directory, with all below it.
fn files_below(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

#[test]
fn pages_of_backup_tools_show_the_files_that_the_tests_run() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let (mut linked, mut shown) = (String::new(), 0);
    for page in files_below(&docs.join("operations")) {
        let text = std::fs::read_to_string(&page).unwrap();
        for part in text.split("<!-- examples/").skip(1) {
            let (name, rest) = part.split_once(" -->\n```").unwrap();
            let body = rest.split_once('\n').unwrap().1.split_once("```\n").unwrap().0;
            let file = std::fs::read_to_string(docs.join("examples").join(name)).unwrap();
            assert_eq!(body, file, "{}: {name}", page.display());
            shown += 1;
        }
        linked += &text;
    }
    assert!(shown >= 10, "{shown} files are shown");
    let overview = std::fs::read_to_string(docs.join("operations.md")).unwrap();
    for file in files_below(&docs.join("examples")) {
        let name = file.strip_prefix(&docs).unwrap().to_str().unwrap();
        let links = linked.contains(&format!("](../{name})")) || overview.contains(&format!("]({name})"));
        assert!(links, "no page links to {name}");
    }
}
