//! `orbit-etl`: runs, checks and explains pipelines that are written down.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod args;
mod calls;
mod check;
mod connectors;
mod explain;
mod failure;
mod generate;
mod graph;
mod init;
mod letters;
mod load;
mod logging;
mod manual;
mod metrics;
mod out;
mod preview;
mod progress;
mod recorder;
mod reference;
mod report;
mod run;
mod schedule;
mod signals;
mod state;
mod validate;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Command};
use crate::failure::Failure;

fn main() -> ExitCode {
    let args = Args::parse();
    logging::start(&args.log);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::failed(format!("no threads can be started: {error}")).tell(),
    };
    match runtime.block_on(dispatch(args.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.tell(),
    }
}

async fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run(args) => run::run(args).await,
        Command::Validate(args) => validate::validate(args).await,
        Command::Explain(args) => explain::explain(args).await,
        Command::Graph(args) => graph::graph(args),
        Command::Preview(args) => preview::preview(args).await,
        Command::Discover(args) => connectors::discover(args).await,
        Command::Connectors(args) => connectors::connectors(&args),
        Command::Schema { format } => connectors::schema(format),
        Command::Init(args) => init::init(&args),
        Command::Test(args) => check::test(args).await,
        Command::Generate(args) => generate::generate(args).await,
        Command::DeadLetters(command) => letters::letters(command).await,
        Command::State(command) => state::state(command).await,
        Command::Completions { shell } => manual::completions(shell),
        Command::Man { command } => manual::page(command.as_deref()),
    }
}
