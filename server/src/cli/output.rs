//! Results on standard output. Who reads them may stop reading, as `head` does; that is no fault.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};

/// `println!` that does not panic.
macro_rules! outln {
    ($($part:tt)*) => { $crate::cli::output::write(format_args!("{}\n", format_args!($($part)*))) };
}

/// `print!` that does not panic.
macro_rules! out {
    ($($part:tt)*) => { $crate::cli::output::write(format_args!($($part)*)) };
}

pub(super) use {out, outln};

/// The exit code of a file that cannot be written; see [`crate::exit::TABLE`].
const STORAGE: i32 = 9;

/// Writes to standard output. Ends the program where that fails, unless nobody reads any more.
pub(super) fn write(text: Arguments<'_>) {
    let mut out = std::io::stdout();
    match out.write_fmt(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            eprintln!("error: cannot write to standard output: {error}; check what it is redirected to");
            std::process::exit(STORAGE);
        }
        _ => {}
    }
}
