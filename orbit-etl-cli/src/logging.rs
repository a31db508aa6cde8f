//! Log lines on standard error.

use std::io::IsTerminal;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

use crate::args::{LogArgs, LogFormat};

/// Our own crates log at the level that was asked for, all others warnings and errors.
pub(crate) fn start(args: &LogArgs) {
    let level = LevelFilter::from_level(args.log_level);
    let filter = Targets::new().with_default(level.min(LevelFilter::WARN)).with_target("orbit_etl", level);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry();
    match args.log_format {
        LogFormat::Text => {
            let layer = layer.with_ansi(std::io::stderr().is_terminal()).with_target(false);
            registry.with(layer.with_filter(filter)).init();
        }
        LogFormat::Json => {
            // `spans` holds the run, the node, the split and the epoch that a line is about.
            let layer = layer.json().flatten_event(true).with_current_span(false);
            registry.with(layer.with_filter(filter)).init();
        }
    }
}
