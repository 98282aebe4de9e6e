//! Two tools that do not know of each other look at the same guest, one three times as often as the other.

use crate::stage::{path, scene, sh};
use crate::tools::Tool;
use crate::tools::restic::Restic;
use crate::tools::rsync::Snapshots;
use crate::vm::{State, Vm, assert_is, read_in};

/// A tool, what it has taken, and the last state of the disks that it has seen.
struct Consumer {
    tool: Box<dyn Tool>,
    taken: Vec<State>,
}

impl Consumer {
    fn new(mut tool: Box<dyn Tool>) -> Consumer {
        tool.prepare();
        Consumer { tool, taken: Vec::new() }
    }

    /// Gives how many chunks it has read.
    fn back_up(&mut self, vm: &Vm) -> u64 {
        let outcome = self.tool.back_up();
        assert_eq!(outcome.status, 0, "{}", outcome.stderr);
        self.taken.push(vm.state(self.taken.last()));
        read_in(&outcome.stderr)
    }

    fn have_all_back(&mut self, name: &str) {
        let count = self.taken.len();
        for (number, state) in self.taken.iter().enumerate() {
            let found = self.tool.restore(number, count, &path("restored"));
            assert_is(&found, state, &format!("{name}, backup {number}"));
            sh(&format!("rm -rf {}", path("restored").display()));
        }
    }
}

#[test]
fn libvirt_two_tools_on_different_schedules_have_back_all_that_each_took() {
    scene("schedules::libvirt_two_tools_on_different_schedules_have_back_all_that_each_took", || {
        let mut vm = Vm::new();
        let mut often = Consumer::new(Box::new(Snapshots));
        let mut seldom = Consumer::new(Box::new(Restic));
        let (mut read_often, mut read_seldom) = (Vec::new(), Vec::new());
        let original = std::fs::read(vm.image(0)).unwrap();
        for generation in 0..10 {
            match generation {
                // Both take everything.
                0 => {}
                // Chunk 5 changes, and is what it was again before the slower one has seen it.
                1 => vm.change(0, [5, 6]),
                2 => vm.put(0, 5, &original),
                3 => vm.change(0, [7]),
                4 => vm.zero(1, 1),
                5 => vm.grow(1, 2),
                6 => vm.change(1, [1, 33]),
                // Only the slower one has nothing to do with these.
                7 => vm.change(0, [40]),
                8 => vm.change(0, [40]),
                _ => {}
            }
            read_often.push(often.back_up(&vm));
            if generation % 3 == 0 {
                read_seldom.push(seldom.back_up(&vm));
            }
        }
        assert_eq!(read_often, [96, 2, 1, 1, 1, 2, 2, 1, 1, 0]);
        // 5, 6 and 7, for 5 has a new time although it has its old content; 1, 32 and 33 of the other disk; 40.
        assert_eq!(read_seldom, [96, 3, 3, 1]);
        often.have_all_back("rsync");
        seldom.have_all_back("restic");
    });
}
