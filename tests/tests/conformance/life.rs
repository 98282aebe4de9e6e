//! The life of a guest, generation after generation, each backed up by one tool: what it should read, and what it reads.

use crate::stage::{path, sh};
use crate::tools::Tool;
use crate::vm::{Killer, State, Vm, assert_is, look_at_all, read_in};
use std::fmt;

/// The columns of the table: what has happened before a backup. `restored`: backups that were had back, of those taken.
pub const CASES: &[&str] = &[
    "first",
    "unchanged",
    "1 changed",
    "rewritten",
    "1 zeroed",
    "3 grown",
    "killed",
    "next",
    "2 missed",
    "restored",
];

/// A figure of the table.
#[derive(Debug, PartialEq, Eq)]
pub struct Cell {
    pub case: String,
    pub expected: String,
    pub seen: String,
}

const MARK: &str = "CELL";

impl Cell {
    /// As a line that the other side of the namespace finds again.
    fn print(case: &str, expected: impl fmt::Display, seen: impl fmt::Display) {
        println!("{MARK}\t{case}\t{expected}\t{seen}");
    }

    pub fn parse(line: &str) -> Option<Cell> {
        // The name of the test stands before the first line that it prints.
        let (_, line) = line.split_once(&format!("{MARK}\t"))?;
        let mut words = line.split('\t').map(str::to_owned);
        Some(Cell { case: words.next()?, expected: words.next()?, seen: words.next()? })
    }

    pub fn is_right(&self) -> bool {
        self.expected == self.seen
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.is_right() { "" } else { " WRONG" };
        write!(f, "{}/{}{mark}", self.seen, self.expected)
    }
}

struct Life {
    vm: Vm,
    tool: Box<dyn Tool>,
    /// What each successful backup has taken.
    taken: Vec<State>,
    restored: usize,
}

pub fn live(tool: Box<dyn Tool>) {
    let mut life = Life { vm: Vm::new(), tool, taken: Vec::new(), restored: 0 };
    life.tool.prepare();
    life.back_up("first", 96);
    life.back_up("unchanged", 0);
    life.vm.change(0, [5]);
    life.back_up("1 changed", 1);
    life.vm.rewrite(0, 9);
    life.back_up("rewritten", 0);
    life.vm.zero(1, 3);
    life.back_up("1 zeroed", 1);
    life.vm.grow(1, 3);
    life.vm.change(1, [32]);
    life.back_up("3 grown", if life.tool.reads_holes() { 3 } else { 1 });
    life.be_killed();
    let kept = life.tool.kept_of_killed(&life.vm.state(life.taken.last()));
    life.back_up("next", 64 - kept);
    life.vm.change(0, [7]);
    look_at_all();
    life.vm.change(0, [9]);
    life.back_up("2 missed", 2);
    life.have_back();
}

impl Life {
    fn back_up(&mut self, case: &str, expected: u64) {
        let outcome = self.tool.back_up();
        let text = format!("{}{}", outcome.stdout, outcome.stderr);
        assert_eq!(outcome.status, 0, "{case}: {text}");
        let read = read_in(&text);
        if read != expected {
            println!("{case}: {text}");
        }
        Cell::print(case, expected, read);
        self.take();
    }

    /// Remembers what was taken. Where only the last backup is kept, it is had back now.
    fn take(&mut self) {
        self.taken.push(self.vm.state(self.taken.last()));
        if !self.tool.keeps_all() {
            self.have_one_back(self.taken.len() - 1);
        }
    }

    /// The tool ends in the middle, with every chunk of a disk new. It may be too fast for that: then once more.
    fn be_killed(&mut self) {
        for _ in 0..5 {
            self.vm.change(0, 0..64);
            let killer = Killer::start(self.tool.processes(), 20);
            let outcome = self.tool.back_up();
            let killed = killer.end();
            let text = format!("{}{}", outcome.stdout, outcome.stderr);
            if outcome.status == 0 {
                self.take();
                continue;
            }
            assert!(killed, "it has failed by itself: {text}");
            let read = read_in(&text);
            assert!((20..64).contains(&read), "killed after {read} chunks");
            return Cell::print("killed", "fails", "fails");
        }
        panic!("it was never killed in time");
    }

    fn have_back(&mut self) {
        let count = self.taken.len();
        if self.tool.keeps_all() {
            (0..count).for_each(|number| self.have_one_back(number));
        }
        Cell::print("restored", count, self.restored);
    }

    /// Bit for bit; and the last one with `chunkfs restore`, too.
    fn have_one_back(&mut self, number: usize) {
        let (count, into) = (self.taken.len(), path("restored"));
        let found = self.tool.restore(number, count, &into);
        assert_is(&found, &self.taken[number], &format!("backup {number}"));
        self.restored += 1;
        if number + 1 == count {
            for (disk, name) in ["mail01_vda", "mail01_vdb"].into_iter().enumerate() {
                let (tree, image) = (found.join(name), path("disk.raw"));
                sh(&format!("chunkfs restore {} {}", tree.display(), image.display()));
                sh(&format!("cmp {0} {1} && rm {0}", image.display(), self.vm.image(disk).display()));
            }
        }
        sh(&format!("rm -rf {}", into.display()));
    }
}
