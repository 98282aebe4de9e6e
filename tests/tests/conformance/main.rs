//! Other people's backup tools are the test: what they read of a guest's disks from one backup to the next, and
//! whether all that they took can be had back. Real tools with the recipes of docs/examples, real `virt-backup`.

mod backuppc;
mod closed;
mod life;
mod run;
mod schedules;
mod stage;
mod systemd;
mod tools;
mod vm;

use life::{CASES, Cell};
use stage::on_stage;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Mutex;
use tests::libvirt::workspace;
use tools::{Entry, TOOLS};

/// Most of the time is waiting for whole seconds to pass.
const AT_ONCE: usize = 3;

#[test]
fn libvirt_every_tool_reads_what_has_changed_and_nothing_else() {
    if let Some(play) = stage::play() {
        let entry = TOOLS.iter().find(|entry| entry.name == play).unwrap();
        return life::live(entry.tool.unwrap()());
    }
    let only = std::env::var("CONFORMANCE_TOOL").ok();
    let rows: Vec<&Entry> =
        TOOLS.iter().filter(|entry| only.as_ref().is_none_or(|name| name == entry.name)).collect();
    let waiting = Mutex::new(rows.iter().filter(|entry| entry.tool.is_ok()));
    let played = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(entry) = { waiting.lock().unwrap().next() } {
                    let test = "libvirt_every_tool_reads_what_has_changed_and_nothing_else";
                    let outcome = std::panic::catch_unwind(|| on_stage(test, entry.name));
                    played.lock().unwrap().insert(entry.name, outcome);
                }
            });
        }
    });
    let documentation = std::fs::read_to_string(workspace().join("docs/operations.md")).unwrap();
    let mut wrong = Vec::new();
    let mut table = heading();
    for entry in rows {
        let Err(why) = entry.tool else {
            match played.lock().unwrap().remove(entry.name).expect("all were played") {
                Ok(outcome) => {
                    let cells: Vec<Cell> = outcome.stdout.lines().filter_map(Cell::parse).collect();
                    table += &row(entry.name, &cells);
                    let right = cells.len() == CASES.len() && cells.iter().all(Cell::is_right);
                    let documented = documentation.contains(&line_of_docs(entry.name, &cells));
                    if outcome.status == 0 && right && !documented {
                        wrong.push(format!("{}: docs/operations.md has other figures", entry.name));
                    }
                    if outcome.status != 0 || !right {
                        wrong.push(format!("{}: {}{}", entry.name, outcome.stdout, outcome.stderr));
                    }
                }
                Err(_) => wrong.push(format!("{}: not done in time", entry.name)),
            }
            continue;
        };
        table += &format!("{:WIDTH$} {why}\n", entry.name);
    }
    // Not by `print!`, which the test harness keeps to itself when all is well.
    std::io::stdout().lock().write_all(table.as_bytes()).unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

const WIDTH: usize = 27;

fn heading() -> String {
    let cases: String = CASES.iter().map(|case| format!(" {case:>11}")).collect();
    format!(
        "\nchunks that were read / that should have been; at the end, backups that were had back / taken\n{:WIDTH$}{cases}\n",
        ""
    )
}

fn row(name: &str, cells: &[Cell]) -> String {
    let text = |case: &&str| {
        let cell = cells.iter().find(|cell| cell.case == *case);
        format!(" {:>11}", cell.map_or("-".to_owned(), Cell::to_string))
    };
    format!("{name:WIDTH$}{}\n", CASES.iter().map(text).collect::<String>())
}

/// The same in docs/operations.md. Where the part that a killed run has left is used, the figure is another each time.
fn line_of_docs(name: &str, cells: &[Cell]) -> String {
    let figure = |cell: &Cell| match (cell.case.as_str(), cell.expected.as_str()) {
        ("killed" | "restored", _) => None,
        ("next", count) if count != "64" => Some(" the rest |".to_owned()),
        (_, count) => Some(format!(" {count} |")),
    };
    format!("| {name} |{}\n", cells.iter().filter_map(figure).collect::<String>())
}
