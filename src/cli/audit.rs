//! `lifeboat audit`.

use serde_json::json;

use super::Common;
use super::exit::{Error, Exit};
use super::out::{Format, Out};
use super::run_folder::{self, Found, Opened};
use crate::record::proof::{self, Flaw, Proof};
use crate::report::text::{Table, count, moment, plural};

/// Check that a run's evidence is whole and unchanged
///
/// Each record of the journal holds the hash of the one before it: a record that was changed, removed or put in breaks
/// the chain. The journal holds the hashes of the plan, the environment and the inputs as they were, and of each step's
/// log. Records that were cut off its end are found when its head is known, from a report or from another place.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run: its id or the beginning of it, or a bundle's file; the latest without one
    run: Option<String>,
    /// The journal's last hash as a report told it: nothing may have been added or cut off since
    #[arg(long, value_name = "SHA", value_parser = head)]
    head: Option<String>,
    /// How to print what was found
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

fn head(text: &str) -> Result<String, String> {
    let sound = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if sound { Ok(text.to_ascii_lowercase()) } else { Err("a head is a SHA-256: 64 hexadecimal digits".to_owned()) }
}

pub fn audit(args: &Args, common: &Common, out: &Out) -> Result<Exit, Error> {
    let opened = run_folder::open(args.run.as_deref(), common)?;
    let run = opened.folder().id.clone();
    let mut flaws = opened.flaws().to_vec();
    let found = match Found::read(opened.folder().clone()) {
        Ok(found) => found,
        Err(Error::Message { message, help, .. }) => {
            flaws.push(Flaw { what: "journal.jsonl".to_owned(), why: message.clone() });
            if matches!(args.format, Format::Json) {
                out.print_json(
                    &json!({ "run": run.as_str(), "intact": false, "error": message, "flaws": listed(&flaws) }),
                )?;
                return Ok(Exit::Failed);
            }
            return Err(Error::Message { exit: Exit::Failed, message: broken(&flaws), help });
        }
        Err(error) => return Err(error),
    };
    let contents = opened.folder().read()?;
    let files = proof::prove(opened.folder(), &contents)?;
    flaws.extend(files.flaws.iter().cloned());
    if let Opened::Bundle(bundle) = &opened {
        flaws.extend(bundle.disagreements(&contents, &found.evidence.run));
    }
    flaws.extend(args.head.as_deref().and_then(|head| proof::ends_at(&contents, head)));
    match args.format {
        Format::Json => {
            let journal = &found.evidence.journal;
            out.print_json(&json!({
                "run": run.as_str(), "intact": flaws.is_empty(), "records": journal.records, "head": journal.head,
                "torn_bytes": found.torn, "files": files.proven, "unvouched": files.unvouched, "flaws": listed(&flaws),
            }))?;
        }
        Format::Human => out.print(&page(&found, &files, &flaws, args.head.is_some(), out))?,
    }
    Ok(if flaws.is_empty() { Exit::Done } else { Exit::Failed })
}

fn page(found: &Found, files: &Proof, flaws: &[Flaw], head_known: bool, out: &Out) -> String {
    let (run, journal) = (&found.folder.id, &found.evidence.journal);
    let mut table = Table::new(0);
    let mut good = |text: String| table.row([out.paint.good("✓"), text]);
    good(format!("the journal of run {run} is whole"));
    table.row([
        "",
        &format!(
            "{} records, {} to {}",
            count(journal.records),
            moment(found.evidence.started_at),
            moment(found.evidence.last_at)
        ),
    ]);
    table.row([
        "",
        &format!("head {}{}", journal.head, if head_known && flaws.is_empty() { ", as it was said" } else { "" }),
    ]);
    if files.proven > 0 {
        let kept = plural(usize::try_from(files.proven).unwrap_or(usize::MAX), "file");
        table.row([
            out.paint.good("✓"),
            format!("{kept} of plan, environment, inputs and logs as the journal says"),
        ]);
    }
    for name in &files.unvouched {
        table.row([
            out.paint.warn("!"),
            format!("{name}: nothing vouches for it (cut off by a kill, or kept by an older version)"),
        ]);
    }
    if let Some(bytes) = found.torn {
        let torn = format!("a last line of {bytes} bytes was cut off while it was written, and is ignored");
        table.row([out.paint.warn("!"), torn]);
    }
    for flaw in flaws {
        table.row([out.paint.bad("✗"), format!("{}: {}", flaw.what, flaw.why)]);
    }
    table.render(out.paint)
}

fn listed(flaws: &[Flaw]) -> Vec<serde_json::Value> {
    flaws.iter().map(|flaw| json!({ "what": flaw.what, "why": flaw.why })).collect()
}

fn broken(flaws: &[Flaw]) -> String {
    flaws.iter().map(|flaw| format!("{}: {}", flaw.what, flaw.why)).collect::<Vec<_>>().join("; ")
}
