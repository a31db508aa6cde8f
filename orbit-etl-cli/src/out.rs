//! Standard output.

use std::io::{ErrorKind, Write};

use crate::failure::Failure;

/// Prints what a command was asked for. A reader that has read enough (`| head`) is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("standard output can't be written: {error}")))
        }
        _ => Ok(()),
    }
}
