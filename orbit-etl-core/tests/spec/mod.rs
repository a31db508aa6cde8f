//! Specs: what is read, what is refused and in which words, and what is never printed.

mod mistakes;
mod secrets;
mod shapes;
mod types;
