//! The suite on the memory connector, and on broken wrappers around it, which it must find out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod broken;
mod memory;
