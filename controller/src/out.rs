//! What the program prints. That it cannot be printed is told by the exit status, and by no panic: what is owed is undone all the same.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};

/// Something that was asked for is lost: the disk is full, for one.
static LOST: AtomicBool = AtomicBool::new(false);

/// To standard output. Whoever reads no more has read enough.
pub(crate) fn show(text: Arguments<'_>) {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_fmt(text).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => LOST.store(true, Ordering::Relaxed),
        _ => {}
    }
}

/// To standard error; there is nobody to tell that it failed.
pub(crate) fn to_stderr(text: Arguments<'_>) {
    drop(std::io::stderr().lock().write_fmt(text));
}

/// The exit status, if it was this one but for what was lost.
pub(crate) fn status(status: u8) -> u8 {
    if status == 0 && LOST.load(Ordering::Relaxed) {
        to_stderr(format_args!("virt-backup: writing to standard output failed\n"));
        return 1;
    }
    status
}

/// A line on standard output.
macro_rules! say {
    ($($text:tt)*) => { $crate::out::show(format_args!("{}\n", format_args!($($text)*))) };
}

/// A line on standard error.
macro_rules! tell {
    ($($text:tt)*) => { $crate::out::to_stderr(format_args!("{}\n", format_args!($($text)*))) };
}

pub(crate) use {say, tell};
