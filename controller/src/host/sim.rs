//! A machine in memory that can fail, or crash, or lose power at its n-th effect.
//! What is in `World` survives a crash of the process; `SimHost` is one process on it.

mod files;
mod guests;
mod processes;
mod volumes;
pub mod world;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use anyhow::{Result, anyhow, bail};

pub use world::{Guest, Image, Node, Power, World};

/// One run of `virt-backup` on the simulated machine.
#[derive(Debug)]
pub struct SimHost {
    world: Rc<RefCell<World>>,
    pid: u32,
    fault: Option<Fault>,
    effects: Cell<usize>,
    /// The names of the effects so far, in order.
    log: RefCell<Vec<String>>,
}

/// What goes wrong, and at which effect of this process (the first is 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub at: usize,
    pub kind: FaultKind,
}

/// "Before" leaves the effect undone, for an `append` half done; "after" lets it happen without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    FailBefore,
    FailAfter,
    /// `kill -9`: the process is gone, the machine stays.
    CrashBefore,
    CrashAfter,
    /// A power cut: processes, mounts, jobs and running guests are gone, files and checkpoints stay.
    PowerCutBefore,
    PowerCutAfter,
}

impl FaultKind {
    pub const ALL: [FaultKind; 6] = [
        FaultKind::FailBefore,
        FaultKind::FailAfter,
        FaultKind::CrashBefore,
        FaultKind::CrashAfter,
        FaultKind::PowerCutBefore,
        FaultKind::PowerCutAfter,
    ];

    fn happens(self) -> bool {
        match self {
            FaultKind::FailAfter | FaultKind::CrashAfter | FaultKind::PowerCutAfter => true,
            FaultKind::FailBefore | FaultKind::CrashBefore | FaultKind::PowerCutBefore => false,
        }
    }

    pub fn cuts_power(self) -> bool {
        matches!(self, FaultKind::PowerCutBefore | FaultKind::PowerCutAfter)
    }

    pub fn kills(self) -> bool {
        !matches!(self, FaultKind::FailBefore | FaultKind::FailAfter)
    }
}

impl SimHost {
    /// A new process on the machine.
    pub fn new(world: &Rc<RefCell<World>>, fault: Option<Fault>) -> SimHost {
        let pid = world.borrow_mut().start_process(world::Program::VirtBackup);
        SimHost { world: world.clone(), pid, fault, effects: Cell::new(0), log: RefCell::default() }
    }

    pub fn effects(&self) -> usize {
        self.effects.get()
    }

    pub fn log(&self) -> Vec<String> {
        self.log.borrow().clone()
    }

    /// The process ends, by itself or because it crashed; its guards are given back.
    pub fn exit(self) {
        self.world.borrow_mut().end_process(self.pid);
    }

    /// Asks. A dead process gets no answer.
    fn ask<T>(&self, question: impl FnOnce(&World) -> Result<T>) -> Result<T> {
        let world = self.world.borrow();
        if !world.processes.contains_key(&self.pid) {
            bail!("this process has crashed");
        }
        question(&world)
    }

    /// Does, or fails or crashes if this is the moment. Guests go on writing meanwhile.
    fn effect<T>(&self, name: &str, act: impl FnOnce(&mut World) -> Result<T>) -> Result<T> {
        self.effect_or_part(name, act, |_| ())
    }

    /// `part` is what is left of an effect that was cut off.
    fn effect_or_part<T>(
        &self,
        name: &str,
        act: impl FnOnce(&mut World) -> Result<T>,
        part: impl FnOnce(&mut World),
    ) -> Result<T> {
        self.ask(|_| Ok(()))?;
        self.effects.set(self.effects.get() + 1);
        self.log.borrow_mut().push(name.to_owned());
        let world = &mut *self.world.borrow_mut();
        let Some(fault) = self.fault.filter(|fault| fault.at == self.effects.get()) else {
            let result = act(world);
            world.guests_write();
            return result;
        };
        if fault.kind.happens() {
            act(world)?;
        } else {
            part(world);
        }
        world.guests_write();
        if fault.kind.kills() {
            world.end_process(self.pid);
        }
        if fault.kind.cuts_power() {
            world.cut_power();
        }
        Err(anyhow!("injected at effect {}: {:?}", fault.at, fault.kind))
    }
}
