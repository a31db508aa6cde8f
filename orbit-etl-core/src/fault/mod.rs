//! What happens when something goes wrong: rows that can't go on, and crashes on purpose.

mod dead_letter;
mod failpoint;
mod letter_source;

pub use dead_letter::dead_letter_schema;
pub(crate) use dead_letter::{DeadLetters, RejectPort, Rejected};
pub use failpoint::failpoint;
pub(crate) use letter_source::{LetterSource, Reading};
