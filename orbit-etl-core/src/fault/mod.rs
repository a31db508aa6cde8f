//! What happens when something goes wrong: rows that can't go on, calls that fail, and crashes on purpose.

mod backoff;
mod breaker;
mod ceiling;
mod dead_letter;
mod failpoint;
mod guard;
mod letter_source;
mod options;
mod rate;

pub use ceiling::MaxRejects;
pub use dead_letter::dead_letter_schema;
pub use failpoint::failpoint;
pub use options::{Bulkhead, CircuitBreaker, RateLimit, Retry};

pub(crate) use backoff::pause;
pub(crate) use ceiling::Ceilings;
pub(crate) use dead_letter::{DeadLetters, RejectPort, Rejected};
pub(crate) use guard::{Guard, Guards, Load, Tries};
pub(crate) use letter_source::{LetterSource, Reading};
pub(crate) use options::GuardOptions;
