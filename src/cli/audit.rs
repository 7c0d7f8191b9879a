//! `lifeboat audit`.

use serde_json::json;

use super::Common;
use super::exit::{Error, Exit};
use super::out::{Format, Out};
use super::run_folder::{self, Found};
use crate::report::text::{Table, count, moment};

/// Check that a run's journal is whole and unchanged
///
/// Each record holds the hash of the one before it: a record that was changed, removed or put in breaks the chain.
/// Compare the head with the one in a report to see that nothing was added or cut off since.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run: its id or the beginning of it; the latest without one
    run: Option<String>,
    /// How to print what was found
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

pub fn audit(args: &Args, common: &Common, out: &Out) -> Result<Exit, Error> {
    let store = run_folder::store(common)?;
    let folder = store.find(args.run.as_deref())?;
    let run = folder.id.clone();
    let found = match Found::read(folder) {
        Ok(found) => found,
        Err(Error::Message { exit, message, .. }) if matches!(args.format, Format::Json) => {
            out.print_json(&json!({ "run": run.as_str(), "intact": false, "error": message }))?;
            return Ok(exit);
        }
        Err(error) => return Err(error),
    };
    let journal = &found.evidence.journal;
    match args.format {
        Format::Json => out.print_json(&json!({
            "run": run.as_str(), "intact": true, "records": journal.records, "head": journal.head, "torn_bytes": found.torn,
        }))?,
        Format::Human => {
            let mut table = Table::new(0);
            table.row([out.paint.good("✓"), format!("the journal of run {run} is whole")]);
            table.row(["", &format!("{} records, {} to {}", count(journal.records), moment(found.evidence.started_at), moment(found.evidence.last_at))]);
            table.row(["", &format!("head {}", journal.head)]);
            if let Some(bytes) = found.torn {
                let torn = format!("a last line of {bytes} bytes was cut off while it was written, and is ignored");
                table.row([out.paint.warn("!"), torn]);
            }
            out.print(&table.render(out.paint))?;
        }
    }
    Ok(Exit::Done)
}
