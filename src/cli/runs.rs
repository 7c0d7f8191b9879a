//! `lifeboat runs`.

use jiff::Timestamp;
use serde_json::json;

use super::exit::{Error, Exit};
use super::out::{Format, Out};
use super::{Common, run_folder};
use crate::record::state::RunState;
use crate::report::evidence::seconds;
use crate::report::page;
use crate::report::text::{Table, moment, span};

/// List the runs, the newest first
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How to print them
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

pub fn runs(args: &Args, common: &Common, out: &Out) -> Result<Exit, Error> {
    let store = run_folder::store(common)?;
    let mut table = Table::new(0);
    let mut list = Vec::new();
    for folder in store.runs()? {
        let alive = folder.holder()?.is_some();
        match folder.state() {
            Ok(state) => {
                table.row(row(&state, alive, out));
                list.push(to_json(&state, alive));
            }
            // One damaged journal doesn't hide the others.
            Err(error) => {
                let why = out.paint.bad(&format!("✗ {error}"));
                table.row([folder.id.to_string(), String::new(), String::new(), String::new(), why]);
                list.push(json!({ "run": folder.id.as_str(), "error": error.to_string() }));
            }
        }
    }
    match args.format {
        Format::Json => out.print_json(&list)?,
        Format::Human if list.is_empty() => {
            out.say(&format!("there is no run in {}", store.root().display()));
        }
        Format::Human => out.print(&table.render(out.paint))?,
    }
    Ok(Exit::Done)
}

fn row(state: &RunState, alive: bool, out: &Out) -> [String; 5] {
    let end = if alive { Timestamp::now() } else { state.last_at };
    let on = state.header.environment.as_ref().map(|name| format!(" on {name}")).unwrap_or_default();
    [
        state.header.run.clone(),
        page::status(state.status, alive, out.paint),
        out.paint.dim(&moment(state.started_at)),
        out.paint.dim(&span(seconds(state.started_at, end))),
        format!("{}{on}", state.header.plan),
    ]
}

fn to_json(state: &RunState, alive: bool) -> serde_json::Value {
    json!({
        "run": state.header.run,
        "plan": state.header.plan,
        "environment": state.header.environment,
        "status": state.status,
        "alive": alive,
        "started_at": state.started_at,
        "last_at": state.last_at,
    })
}
