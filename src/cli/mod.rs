//! The command line: one file a command, holding its arguments and its function.
//!
//! Results go to standard output, talk to standard error; how the program ends is
//! decided in [`exit`] alone. Read next: [`Command`].

mod adjust;
mod answer;
mod ask;
mod audit;
mod check;
mod completions;
mod defect;
mod demo;
mod doctor;
pub mod exit;
mod graph;
mod load;
mod logs;
mod man;
mod out;
mod preview;
mod problem;
mod report;
mod resume;
mod run;
mod run_folder;
mod runs;
mod sandbox;
mod schema;
mod show;
mod status;
mod steer;
mod steps;
mod stop;
mod trace;
mod undo;

use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use exit::{Error, Exit};
use out::{Color, Out};

/// Disaster recovery by plans that are checked, rehearsed, run and resumed.
#[derive(Debug, Parser)]
#[command(name = "lifeboat", version, max_term_width = 100, propagate_version = false)]
struct Lifeboat {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Common options")]
struct Common {
    /// Colours: only on a terminal (and not with `NO_COLOR`), always, or never
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    color: Color,
    /// Say nothing on standard error but errors
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Say on standard error what happens inside; twice says more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Where runs are kept: a folder, or `postgres://…`; the environment's `state` (or `.lifeboat`) by default
    #[arg(long, global = true, value_name = "PLACE", env = "LIFEBOAT_STATE", hide_env_values = true)]
    state: Option<String>,
    /// Columns to write for; the terminal's by default, 80 without one
    #[arg(long, global = true, value_name = "COLUMNS", value_parser = clap::value_parser!(u16).range(40..=400))]
    width: Option<u16>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(check::Args),
    Show(show::Args),
    Graph(graph::Args),
    Run(run::Args),
    Resume(resume::Args),
    Undo(undo::Args),
    Runs(runs::Args),
    Status(status::Args),
    Logs(logs::Args),
    /// Answer a waiting step with yes
    Approve(answer::Args),
    /// Answer a waiting step with no
    Reject(answer::Args),
    Adjust(adjust::Args),
    Pause(stop::PauseArgs),
    Cancel(stop::CancelArgs),
    Report(report::Args),
    Audit(audit::Args),
    Sandbox(sandbox::Args),
    Demo(demo::Args),
    Doctor(doctor::Args),
    Steps(steps::Args),
    Schema(schema::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// Runs the command of this process's arguments.
pub fn main() -> ExitCode {
    defect::install();
    let matches = match command().try_get_matches() {
        Ok(matches) => matches,
        Err(asked) => asked.exit(),
    };
    let cli = match Lifeboat::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(wrong) => wrong.exit(),
    };
    let common = cli.common;
    let out = Out::new(common.color, common.width.map(usize::from), common.quiet);
    trace::install(common.verbose, out.talk.color);
    defect::guard(|| match run(cli.command, &common, &out) {
        Ok(exit) => exit,
        Err(error) => {
            out.error(&error);
            match error {
                Error::Message { exit, .. } => exit,
                Error::BrokenPipe => Exit::Done,
            }
        }
    })
    .into()
}

fn run(command: Command, common: &Common, out: &Out) -> Result<Exit, Error> {
    match command {
        Command::Check(args) => check::check(&args, out),
        Command::Show(args) => show::show(&args, out),
        Command::Graph(args) => graph::graph(&args, out),
        Command::Run(args) => run::run(&args, common, out),
        Command::Resume(args) => resume::resume(&args, common, out),
        Command::Undo(args) => undo::undo(&args, common, out),
        Command::Runs(args) => runs::runs(&args, common, out),
        Command::Status(args) => status::status(&args, common, out),
        Command::Logs(args) => logs::logs(&args, common, out),
        Command::Approve(args) => answer::answer(&args, true, common, out),
        Command::Reject(args) => answer::answer(&args, false, common, out),
        Command::Adjust(args) => adjust::adjust(&args, common, out),
        Command::Pause(args) => stop::pause(&args.asked, common, out),
        Command::Cancel(args) => stop::cancel(&args.asked, common, out),
        Command::Report(args) => report::report(&args, common, out),
        Command::Audit(args) => audit::audit(&args, common, out),
        Command::Sandbox(args) => block_on(sandbox::sandbox(args, common.state.as_deref(), out)),
        Command::Demo(args) => block_on(demo::demo(&args, out)),
        Command::Doctor(args) => doctor::doctor(&args, common, out),
        Command::Steps(args) => steps::steps(&args, out),
        Command::Schema(args) => schema::schema(&args, out),
        Command::Completions(args) => completions::completions(&args, out),
        Command::Man(args) => man::man(&args, out),
    }
}

/// The whole command line, for parsing, completions, manual and reference.
fn command() -> clap::Command {
    let codes = exit::TABLE.map(|(exit, meaning)| format!("  {:>3}  {meaning}", exit.code()));
    Lifeboat::command().after_long_help(format!("Exit codes:\n{}", codes.join("\n")))
}

/// Runs what has to wait for the outside world.
fn block_on<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::new(Exit::Failed, format!("failed to start the worker threads: {error}")))?;
    runtime.block_on(work)
}
