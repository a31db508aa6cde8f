//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// Runs, checks and explains data pipelines that are written in YAML, JSON or TOML.
#[derive(Debug, Parser)]
#[command(name = "orbit-etl", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) log: LogArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(RunArgs),
    Validate(ValidateArgs),
    /// Prints what a run would do, and what each sink is promised
    Explain(FileArgs),
    Graph(GraphArgs),
    Preview(PreviewArgs),
    Discover(DiscoverArgs),
    /// Lists the types of sources, transforms and sinks
    Connectors(ConnectorsArgs),
    /// Prints the JSON Schema of specs, for editors, or their reference, for people
    Schema {
        /// How it looks
        #[arg(long, value_enum, default_value_t = SchemaFormat::Json, value_name = "FORMAT")]
        format: SchemaFormat,
    },
    Init(InitArgs),
    Test(TestArgs),
    Generate(GenerateArgs),
    /// Shows and changes what a pipeline remembers between runs
    #[command(subcommand)]
    State(StateCommand),
    /// Shows the rows that could not go on, and sends them again
    #[command(subcommand)]
    DeadLetters(LettersCommand),
    /// Prints the completions of a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Prints the manual page of the command, or of one of its commands
    Man {
        /// The command
        command: Option<String>,
    },
}

/// What is logged, on standard error.
#[derive(Debug, clap::Args)]
pub(crate) struct LogArgs {
    /// How log lines look
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT")]
    pub(crate) log_format: LogFormat,
    /// What is logged: error, warn, info, debug or trace
    #[arg(long, global = true, default_value_t = tracing::Level::INFO, value_name = "LEVEL")]
    pub(crate) log_level: tracing::Level,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportFormat {
    /// A table for people
    Text,
    /// One JSON object for each pipeline
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SchemaFormat {
    /// JSON Schema
    Json,
    /// A page of tables
    Markdown,
}

/// What the values of a spec are taken from besides its files.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct SpecArgs {
    /// Puts a value in the place of the spec's own: sinks.lake.path=out
    #[arg(long, value_name = "PATH=VALUE", value_parser = pair)]
    pub(crate) set: Vec<(String, String)>,
    /// A file with a NAME=VALUE on each line, for what the environment lacks
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Option<PathBuf>,
}

/// Runs pipelines until their inputs end, or by their schedules
///
/// Standard output has the reports, standard error the progress. With the first SIGINT or SIGTERM, what
/// was read is committed and the run stops; with a second one it stops at once. A further run goes on
/// where the last one stopped.
///
/// Of several pipelines, each begins when those of its `after` have succeeded; the others run side by
/// side.
///
/// Exit codes: 0 done, 1 failed, 2 a mistake in a spec or on the command line, 3 a newer run has taken
/// over, 4 more rows were rejected than `on_error` allows.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// Specs, or folders of specs
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) spec: SpecArgs,
    /// Runs each pipeline once, whatever its schedule; so it is done unless --schedule is given
    #[arg(long, conflicts_with = "schedule")]
    pub(crate) once: bool,
    /// Runs by the specs' schedules and triggers, until a signal comes, instead of once
    #[arg(long)]
    pub(crate) schedule: bool,
    /// Takes calls for the specs' `triggers.http` at this address: 127.0.0.1:9185
    #[arg(long, value_name = "ADDRESS", requires = "schedule")]
    pub(crate) listen: Option<SocketAddr>,
    /// Serves /metrics for Prometheus, /healthz and /readyz at this address: 127.0.0.1:9184
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics: Option<SocketAddr>,
    /// How the report looks
    #[arg(long, value_enum, default_value_t = ReportFormat::Text, value_name = "FORMAT")]
    pub(crate) report: ReportFormat,
}

/// One spec.
#[derive(Debug, clap::Args)]
pub(crate) struct FileArgs {
    /// The spec
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) spec: SpecArgs,
}

/// Finds mistakes without a run
///
/// Local files are sampled, so that columns and types are checked too. Nothing goes over the network
/// unless --connect is given; sources that would need it are named as unchecked.
#[derive(Debug, clap::Args)]
pub(crate) struct ValidateArgs {
    /// Specs, or folders of specs
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) spec: SpecArgs,
    /// Asks every source and sink whether it can be reached
    #[arg(long)]
    pub(crate) connect: bool,
}

/// Prints a pipeline as a picture
#[derive(Debug, clap::Args)]
pub(crate) struct GraphArgs {
    #[command(flatten)]
    pub(crate) file: FileArgs,
    /// The picture's language
    #[arg(long, value_enum, default_value_t = GraphFormat::Mermaid, value_name = "FORMAT")]
    pub(crate) format: GraphFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum GraphFormat {
    /// Mermaid, as Markdown shows it
    Mermaid,
    /// Graphviz
    Dot,
    /// A picture for browsers
    Svg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TableFormat {
    /// For people
    Table,
    /// For programs
    Json,
}

/// Prints the first rows that come out of a node
///
/// Only what leads to the node runs. Nothing is written, and the pipeline's state is neither used nor
/// changed.
#[derive(Debug, clap::Args)]
pub(crate) struct PreviewArgs {
    #[command(flatten)]
    pub(crate) file: FileArgs,
    /// The node; of a sink, the rows that it would get
    #[arg(long, value_name = "NAME")]
    pub(crate) node: String,
    /// How many rows
    #[arg(long, default_value_t = 20, value_name = "ROWS")]
    pub(crate) limit: usize,
    /// How rows look; JSON has one object a line
    #[arg(long, value_enum, default_value_t = TableFormat::Table, value_name = "FORMAT")]
    pub(crate) format: TableFormat,
}

/// Prints the streams of a source with their columns
#[derive(Debug, clap::Args)]
pub(crate) struct DiscoverArgs {
    /// The type of the source
    #[arg(value_name = "TYPE")]
    pub(crate) type_tag: String,
    /// Its configuration: path=data/*.csv storage.region=eu-west-1
    #[arg(value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) config: Vec<(String, String)>,
    /// How streams look
    #[arg(long, value_enum, default_value_t = TableFormat::Table, value_name = "FORMAT")]
    pub(crate) format: TableFormat,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ConnectorsArgs {
    /// How the list looks
    #[arg(long, value_enum, default_value_t = TableFormat::Table, value_name = "FORMAT")]
    pub(crate) format: TableFormat,
}

/// Writes a commented spec to start from
#[derive(Debug, clap::Args)]
pub(crate) struct InitArgs {
    /// The file to write; standard output unless given
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// The type of the source
    #[arg(long, default_value = "files", value_name = "TYPE")]
    pub(crate) source: String,
    /// The type of the sink
    #[arg(long, default_value = "files", value_name = "TYPE")]
    pub(crate) sink: String,
    /// The pipeline's name
    #[arg(long, default_value = "my-pipeline", value_name = "NAME")]
    pub(crate) name: String,
}

/// Runs the tests of pipelines
///
/// A test names a spec, the rows of its sources and the rows that are expected at its nodes. Sources are
/// replaced by the rows that are given, and sinks write nothing.
#[derive(Debug, clap::Args)]
pub(crate) struct TestArgs {
    /// Files of tests
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
}

/// Writes made-up rows into files
///
/// The same seed gives the same rows. Specs have such rows from a source of the type `generate`.
#[derive(Debug, clap::Args)]
pub(crate) struct GenerateArgs {
    /// A folder that isn't there yet
    #[arg(value_name = "FOLDER")]
    pub(crate) path: PathBuf,
    /// A column: id=sequence, or city='{type: choice, values: [Bonn, Ulm]}'
    #[arg(long, required = true, value_name = "NAME=TYPE", value_parser = pair)]
    pub(crate) column: Vec<(String, String)>,
    /// How many rows
    #[arg(long, default_value_t = 1000)]
    pub(crate) rows: u64,
    /// Another number gives other rows
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// csv, json, parquet, avro or arrow
    #[arg(long, default_value = "csv", value_name = "FORMAT")]
    pub(crate) format: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LettersCommand {
    /// Lists them, the oldest first
    List {
        #[command(flatten)]
        file: FileArgs,
        /// How many
        #[arg(long, default_value_t = 100, value_name = "ROWS")]
        limit: usize,
        /// How the list looks; JSON has one object a line
        #[arg(long, value_enum, default_value_t = TableFormat::Table, value_name = "FORMAT")]
        format: TableFormat,
    },
    /// Prints one of them whole, its record too
    Show {
        #[command(flatten)]
        file: FileArgs,
        /// Its place in the list, from 1
        #[arg(long, value_name = "NUMBER")]
        number: usize,
    },
    Replay(ReplayArgs),
}

/// Sends them through the rest of the pipeline again
///
/// Records that a source could not read are read anew, by the spec as it is now; rows that a transform or
/// a sink refused go to that node again. Each letter is sent once: a further replay takes only those that
/// have come since. What is rejected again becomes a new letter with a higher number of attempts. The
/// letters themselves stay where they are.
#[derive(Debug, clap::Args)]
pub(crate) struct ReplayArgs {
    #[command(flatten)]
    pub(crate) file: FileArgs,
    /// Only those of this node
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// Only those that were tried fewer times than this
    #[arg(long, value_name = "NUMBER")]
    pub(crate) max_attempts: Option<i32>,
    /// How the reports look, one for each node and number of attempts
    #[arg(long, value_enum, default_value_t = ReportFormat::Text, value_name = "FORMAT")]
    pub(crate) report: ReportFormat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StateCommand {
    /// Prints how far each source has come
    Show {
        #[command(flatten)]
        file: FileArgs,
        /// How the state looks
        #[arg(long, value_enum, default_value_t = TableFormat::Table, value_name = "FORMAT")]
        format: TableFormat,
    },
    Set(StateSetArgs),
    /// Lets the next run read everything once more
    ///
    /// What is staged is published first. Tables that are appended to get all rows again; one that is
    /// overwritten stays as it is until the next run is through. A run that goes on is stopped.
    Reset {
        #[command(flatten)]
        file: FileArgs,
    },
    Export(StateCopyArgs),
    Import(StateCopyArgs),
}

/// Lets the next run read on from another position
///
/// The source is asked whether it can go on there before anything is changed. A run that goes on is
/// stopped.
#[derive(Debug, clap::Args)]
pub(crate) struct StateSetArgs {
    #[command(flatten)]
    pub(crate) file: FileArgs,
    /// The source
    #[arg(long, value_name = "NAME")]
    pub(crate) source: String,
    /// One of its open splits; without it, where the source looks for splits is set
    #[arg(long, value_name = "SPLIT")]
    pub(crate) split: Option<String>,
    /// The position, as `state show` prints it
    #[arg(long, value_name = "JSON", value_parser = json)]
    pub(crate) position: serde_json::Value,
}

/// Copies the state to or from another place, which serves as its backup
///
/// The place that is written to must be empty. A target that was written to since refuses a pipeline
/// that would go on from an older state.
#[derive(Debug, clap::Args)]
pub(crate) struct StateCopyArgs {
    #[command(flatten)]
    pub(crate) file: FileArgs,
    /// A folder, or the URL of one in an object store
    #[arg(value_name = "PLACE")]
    pub(crate) place: String,
    /// An option of that object store: region=eu-west-1
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) option: Vec<(String, String)>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as path=value".into()),
    }
}

fn json(text: &str) -> Result<serde_json::Value, String> {
    serde_json::from_str(text).map_err(|error| format!("this is no JSON: {error}"))
}
