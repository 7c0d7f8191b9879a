//! `lifeboat status`.

use std::fmt::Write as _;
use std::thread::sleep;
use std::time::Duration;

use jiff::Timestamp;

use super::Common;
use super::exit::{Error, Exit};
use super::out::{Format, Out};
use super::run_folder::{self, Found};
use crate::ids::StepId;
use crate::record::event::RunStatus;
use crate::record::sink::Sink;
use crate::record::store::{RunFolder, Store};
use crate::report::evidence::StepEvidence;
use crate::report::live::{Json, Live};
use crate::report::text::wrap;
use crate::report::{next, page};

/// Show where a run stands, and what to do next
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run: its id or the beginning of it; the latest without one
    run: Option<String>,
    /// Stay, show what happens, and end as the run does
    #[arg(short, long)]
    follow: bool,
    /// `json` prints the report's format; with `--follow` one journal record a line
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

pub fn status(args: &Args, common: &Common, out: &Out) -> Result<Exit, Error> {
    let store = run_folder::store(common)?;
    if args.follow {
        return follow(args, &store, out);
    }
    let found = Found::read(store.find(args.run.as_deref())?)?;
    match args.format {
        Format::Json => out.print_json(&found.evidence)?,
        Format::Human => out.print(&whole_page(&found, &store, out))?,
    }
    Ok(Exit::Done)
}

/// The page of a run with its next actions.
pub fn whole_page(found: &Found, store: &Store, out: &Out) -> String {
    let flags = run_folder::flags(store);
    let actions =
        next::actions(&found.evidence, found.held_by.is_some(), &flags, |step| printed(&found.folder, step));
    let mut text = page::page(&found.evidence, Timestamp::now(), found.held_by.as_deref(), &actions, out.paint);
    for said in [found.rebooted_said(), found.torn_said()].into_iter().flatten() {
        let _ = writeln!(text, "\n  {} {}", out.paint.warn("!"), wrap(&said, out.paint.width, 4));
    }
    text
}

/// Whether any attempt of a step left something to read.
fn printed(folder: &RunFolder, step: &StepEvidence) -> bool {
    let id = StepId::from(step.id.as_str());
    (1..=step.attempts).any(|attempt| folder.log_path(&id, attempt).metadata().is_ok_and(|log| log.len() > 0))
}

/// How often the journal is looked at.
const EVERY: Duration = Duration::from_millis(300);

fn follow(args: &Args, store: &Store, out: &Out) -> Result<Exit, Error> {
    let folder = store.find(args.run.as_deref())?;
    let mut sink: Box<dyn Sink> = match args.format {
        Format::Json => Box::new(Json),
        Format::Human => Box::new(Live::new(None, out.talk)),
    };
    let mut shown = 0;
    loop {
        let alive = folder.holder()?.is_some();
        let contents = folder.read()?;
        for record in contents.records.iter().skip(shown) {
            sink.record(record);
        }
        shown = contents.records.len();
        if !alive {
            break;
        }
        sleep(EVERY);
    }
    let found = Found::read(folder)?;
    if matches!(args.format, Format::Human) {
        out.print(&format!("\n{}", whole_page(&found, store, out)))?;
    }
    Ok(of(found.evidence.status))
}

/// How a command ends that went along with a run.
pub const fn of(status: RunStatus) -> Exit {
    match status {
        RunStatus::Succeeded | RunStatus::Undone => Exit::Done,
        RunStatus::Paused | RunStatus::Waiting => Exit::Waiting,
        RunStatus::Cancelled => Exit::Cancelled,
        RunStatus::Failed | RunStatus::Running => Exit::Failed,
    }
}
