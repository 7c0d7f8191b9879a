//! `lifeboat pause` and `lifeboat cancel`: stop a run from another terminal.

use std::fmt::Write as _;
use std::thread::sleep;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::json;

use super::exit::{Error, Exit};
use super::out::{Format, Out};
use super::{Common, run_folder, status};
use crate::record::event::{Actor, RunStatus};
use crate::record::inbox::Message;
use crate::record::lock::Holder;
use crate::record::state::RunState;
use crate::record::store::{RunFolder, Store, StoreError};
use crate::report::next::{self, Action};

/// Let the running steps of a run finish, and start no new ones
///
/// From another terminal. The process that works on the run takes it in within a second; the run is then `paused`,
/// and `lifeboat resume` goes on with it. A run that no process works on stands still already.
#[derive(Debug, clap::Args)]
pub struct PauseArgs {
    #[command(flatten)]
    pub asked: Args,
}

/// Stop the running steps of a run, and call it off
///
/// From another terminal. Running steps are cancelled for real, then `finally` runs; `lifeboat resume` can still go on,
/// and `lifeboat undo` takes back. A run that waits for a person, or whose process died, is called off at once: what it
/// would have changed is then free for others, and `finally` runs when it is resumed.
#[derive(Debug, clap::Args)]
pub struct CancelArgs {
    #[command(flatten)]
    pub asked: Args,
}

/// What `pause` and `cancel` take.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run: its id or the beginning of it
    run: String,
    /// Words that are kept with it, as they are: no place for a secret
    #[arg(long, value_name = "TEXT")]
    because: Option<String>,
    /// Wait until the run has stopped, and end as it does
    #[arg(long)]
    wait: bool,
    /// How to print what came of it
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

/// What came of it.
enum Came {
    /// A process works on the run, and was told.
    Sent(Option<Holder>),
    /// No process works on it: it was called off by this one.
    CalledOff,
    /// It stands still already.
    Still(RunStatus),
}

pub fn pause(args: &Args, common: &Common, out: &Out) -> Result<Exit, Error> {
    let store = run_folder::store(common)?;
    let folder = store.find(Some(&args.run))?;
    let came = match folder.holder()? {
        Some(holder) => {
            let message = Message::Pause { by: Actor::current().user, because: args.because.clone() };
            folder.send(&message, Timestamp::now())?;
            Came::Sent(holder)
        }
        None => Came::Still(folder.state()?.status),
    };
    conclude(args, "pause", &came, &store, &folder, out)
}

pub fn cancel(args: &Args, common: &Common, out: &Out) -> Result<Exit, Error> {
    let store = run_folder::store(common)?;
    let folder = store.find(Some(&args.run))?;
    let by = Actor::current().user;
    let because = args.because.as_ref().map(|because| format!(": {because}")).unwrap_or_default();
    let came = match folder.call_off(format!("{by} called it off{because}"), Timestamp::now()) {
        Ok((_, true)) => Came::CalledOff,
        Ok((status, false)) => Came::Still(status),
        Err(StoreError::Locked { holder, .. }) => {
            folder.send(&Message::Cancel { by, because: args.because.clone() }, Timestamp::now())?;
            Came::Sent(holder.map(|holder| *holder))
        }
        Err(error) => return Err(error.into()),
    };
    conclude(args, "cancel", &came, &store, &folder, out)
}

fn conclude(
    args: &Args,
    what: &str,
    came: &Came,
    store: &Store,
    folder: &RunFolder,
    out: &Out,
) -> Result<Exit, Error> {
    let taken = match came {
        Came::Sent(_) if args.wait => {
            wait(folder)?;
            true
        }
        Came::Sent(_) => is_taken(folder)?,
        _ => true,
    };
    let state = folder.state()?;
    let status = state.status;
    match args.format {
        Format::Json => {
            let delivered = match came {
                Came::Sent(_) if taken => "taken",
                Came::Sent(_) => "sent",
                Came::CalledOff => "journaled",
                Came::Still(_) => "nothing",
            };
            out.print_json(&json!({
                "run": folder.id.as_str(), "command": what, "delivered": delivered, "status": status,
            }))?;
        }
        Format::Human => out.print(&told(what, came, taken, &state, store, folder, out))?,
    }
    Ok(if args.wait { status::of(status) } else { Exit::Done })
}

fn told(
    what: &str,
    came: &Came,
    taken: bool,
    state: &RunState,
    store: &Store,
    folder: &RunFolder,
    out: &Out,
) -> String {
    let id = &folder.id;
    let flags = run_folder::flags(store);
    let command = |words: &str, why: &str| {
        let command = format!("lifeboat {words} {id} {flags}").trim_end().to_owned();
        Action { command, why: why.to_owned() }
    };
    let (first, actions) = match came {
        Came::Sent(holder) => {
            let holder = holder
                .as_ref()
                .map_or_else(|| "the process that works on it".to_owned(), |holder| holder.by.describe());
            let status = state.status;
            let stopped = status != RunStatus::Running;
            let first = if stopped {
                format!("{} run {id} is {}\n", out.paint.good("✓"), status.as_str())
            } else if taken {
                format!("{} {what} run {id}: taken in by {holder}, which stops now\n", out.paint.good("✓"))
            } else {
                format!("{} {what} run {id}: kept; {holder} takes it in within a second\n", out.paint.good("✓"))
            };
            let follow = command("status --follow", "watch it come to a stop");
            (
                first,
                if stopped {
                    vec![command("status", "where it stands, and what to do next")]
                } else {
                    vec![follow]
                },
            )
        }
        Came::CalledOff => {
            let mut first = format!("{} run {id} is called off; no process works on it\n", out.paint.good("✓"));
            let finally: Vec<_> = state
                .steps
                .iter()
                .filter(|step| step.header.finally && step.attempt == 0)
                .map(|step| step.header.id.as_str())
                .collect();
            if !finally.is_empty() {
                let _ = writeln!(
                    first,
                    "  {} `finally` has not run ({}): `lifeboat resume {id}` goes on, and runs it in the end",
                    out.paint.warn("!"),
                    finally.join(", ")
                );
            }
            (first, vec![command("status", "what it left, and what to do next")])
        }
        Came::Still(status) => {
            let word =
                if *status == RunStatus::Running { "interrupted: its process died" } else { status.as_str() };
            let first = format!(
                "{} nothing to {what}: no process works on run {id}, which is {word}\n",
                out.paint.dim("–")
            );
            (first, vec![command("status", "where it stands, and what to do next")])
        }
    };
    format!("{first}{}", next::render(&actions, out.paint))
}

/// How often is looked.
const EVERY: Duration = Duration::from_millis(50);

/// Whether the process takes it in within two seconds.
fn is_taken(folder: &RunFolder) -> Result<bool, Error> {
    let deadline = Instant::now() + Duration::from_secs(2);
    while Instant::now() < deadline {
        if folder.receive()?.is_empty() {
            return Ok(true);
        }
        sleep(EVERY);
    }
    Ok(false)
}

/// Waits until no process works on the run.
fn wait(folder: &RunFolder) -> Result<(), Error> {
    while folder.holder()?.is_some() {
        sleep(EVERY);
    }
    Ok(())
}
