//! Standard output that may be closed: `takt inspect DIR | head` must not end in a panic.

use std::{fmt::Arguments, io::Write as _};

/// Like `print!`, but what cannot be written is dropped.
macro_rules! say {
    ($($arg:tt)*) => { $crate::cli::say::write(format_args!($($arg)*)) };
}

/// Like `println!`, but what cannot be written is dropped.
macro_rules! sayln {
    () => { $crate::cli::say::write(format_args!("\n")) };
    ($($arg:tt)*) => { $crate::cli::say::write(format_args!("{}\n", format_args!($($arg)*))) };
}

pub(super) fn write(text: Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    // A closed pipe is the reader's way to say that it has enough.
    let _ = out.write_fmt(text).and_then(|()| out.flush());
}
