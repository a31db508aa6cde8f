//! Completions for shells, and the manual.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Args;
use crate::failure::Failure;
use crate::out;

/// Prints what a shell needs to complete the command line.
pub(crate) fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "orbit-etl", &mut script);
    out::print(&String::from_utf8_lossy(&script))
}

/// Prints a page in the language of man.
pub(crate) fn page(of: Option<&str>) -> Result<(), Failure> {
    let mut command = Args::command();
    command.build();
    let command = match of {
        None => command,
        Some(name) => match command.find_subcommand(name) {
            Some(found) => found.clone(),
            None => return Err(Failure::mistake(format!("there is no command {name}"))),
        },
    };
    let mut page = Vec::new();
    clap_mangen::Man::new(command)
        .render(&mut page)
        .map_err(|error| Failure::failed(format!("the manual can't be written: {error}")))?;
    out::print(&String::from_utf8_lossy(&page))
}
