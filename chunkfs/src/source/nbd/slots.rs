//! How many requests may be in flight on each connection, and on which the next one goes.
//! Nothing is sent here.

use std::sync::{Arc, Condvar, Mutex};

/// Twice as many as QEMU works on at once for a client, so that it finds the next ones there when it is done with some.
const SLOTS_PER_CONNECTION: usize = 32;

/// Of these, what reading ahead may take: such requests are of 1 MiB, and wait in memory until somebody asks for them.
const SLOTS_AHEAD: usize = 16;

#[derive(Debug)]
pub(super) struct Slots {
    /// By connection.
    taken: Mutex<Vec<usize>>,
    freed: Condvar,
}

/// The right to have one request in flight on a connection.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    connection: usize,
}

impl Slots {
    pub(super) fn new(connections: usize) -> Arc<Slots> {
        Arc::new(Slots { taken: Mutex::new(vec![0; connections]), freed: Condvar::new() })
    }

    /// Waits for a free slot.
    pub(super) fn take(self: &Arc<Slots>) -> Slot {
        let mut taken = self.taken.lock().expect("no panic while the lock is held");
        loop {
            if let Some(slot) = self.take_of(&mut taken, SLOTS_PER_CONNECTION) {
                return slot;
            }
            taken = self.freed.wait(taken).expect("no panic while the lock is held");
        }
    }

    /// For reading ahead. `None`: as many requests are in flight as may be for that.
    pub(super) fn try_take(self: &Arc<Slots>) -> Option<Slot> {
        self.take_of(&mut self.taken.lock().expect("no panic while the lock is held"), SLOTS_AHEAD)
    }

    fn take_of(self: &Arc<Slots>, taken: &mut [usize], most: usize) -> Option<Slot> {
        let (connection, least) = taken.iter_mut().enumerate().min_by_key(|(_, taken)| **taken)?;
        if *least >= most {
            return None;
        }
        *least += 1;
        Some(Slot { slots: Arc::clone(self), connection })
    }
}

impl Slot {
    pub(super) fn connection(&self) -> usize {
        self.connection
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.taken.lock().expect("no panic while the lock is held")[self.connection] -= 1;
        self.slots.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_spread_over_the_connections_and_end_at_32_each_and_ahead_at_16() {
        let slots = Slots::new(2);
        let mut taken: Vec<Slot> = std::iter::from_fn(|| slots.try_take()).collect();
        assert_eq!(taken.len(), 32);
        assert_eq!(taken.iter().filter(|slot| slot.connection() == 1).count(), 16);
        taken.extend((0..32).map(|_| slots.take()));
        assert_eq!(taken.iter().filter(|slot| slot.connection() == 1).count(), 32);
        let waiter = std::thread::spawn({
            let slots = Arc::clone(&slots);
            move || slots.take().connection()
        });
        drop(taken);
        assert!(waiter.join().unwrap() < 2);
        assert_eq!(slots.try_take().map(|slot| slot.connection()), Some(0));
    }
}
