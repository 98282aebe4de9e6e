//! An answer that is waited for by any number of threads and given by one.
//! An answer that will never come says so: no way out of the giver leaves a waiter behind.

use std::sync::{Arc, OnceLock};

/// What is waited for.
#[derive(Debug)]
pub(super) struct Answer<T>(OnceLock<Option<T>>);

/// The duty to give the answer. To drop it is to say that there will be none.
#[derive(Debug)]
pub(super) struct Promise<T>(Arc<Answer<T>>);

pub(super) fn promise<T>() -> (Promise<T>, Arc<Answer<T>>) {
    let answer = Arc::new(Answer(OnceLock::new()));
    (Promise(Arc::clone(&answer)), answer)
}

impl<T> Answer<T> {
    /// `None`: there will be no answer.
    pub(super) fn wait(&self) -> Option<&T> {
        self.0.wait().as_ref()
    }

    /// `None`: there is none, or it has not come yet.
    pub(super) fn into_inner(self) -> Option<T> {
        self.0.into_inner().flatten()
    }
}

impl<T> Promise<T> {
    pub(super) fn keep(self, value: T) {
        // Never already set: only this call and the drop that follows it set it.
        let _ = self.0.0.set(Some(value));
    }
}

impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
        // An error says that the promise was kept.
        let _ = self.0.0.set(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_that_is_dropped_wakes_whoever_waits() {
        let (promise, answer) = promise::<u8>();
        let waiter = std::thread::spawn(move || answer.wait().copied());
        drop(promise);
        assert_eq!(waiter.join().unwrap(), None);
    }

    #[test]
    fn a_promise_that_is_kept_gives_its_value_to_all() {
        let (promise, answer) = promise();
        let waiters: Vec<_> = (0..3)
            .map(|_| {
                let answer = Arc::clone(&answer);
                std::thread::spawn(move || answer.wait().copied())
            })
            .collect();
        promise.keep(7);
        waiters.into_iter().for_each(|waiter| assert_eq!(waiter.join().unwrap(), Some(7)));
        assert_eq!(Arc::into_inner(answer).unwrap().into_inner(), Some(7));
    }
}
