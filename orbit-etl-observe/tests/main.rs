//! Observers over real runs, and servers on the loopback that they tell.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod alerts;
mod openlineage;
mod servers;
mod shapes;
mod specs;
