//! Files behind plain web servers, and what servers do to those who read.

mod changes;
mod failures;
mod formats;
#[cfg(feature = "s3")]
mod s3;
mod server;
