//! The command as a user has it: the binary, its exit codes, what it prints and what it writes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod checks;
mod desk;
mod letters;
mod runs;
mod signals;
mod specs;
mod state;
mod tests;
mod triggers;
