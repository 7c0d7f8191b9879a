//! `lifeboat approve` and `lifeboat reject`: a person's answer to a waiting step.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::exit::{Error, Exit};
use super::out::{Format, Out};
use super::{Common, run_folder};
use crate::record::event::{Actor, Answer, Question};
use crate::record::state::{Phase, Verdict};
use crate::record::store::Delivered;
use crate::report::next;

/// What `approve` and `reject` take.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run: its id or the beginning of it
    run: String,
    /// The step that waits
    step: String,
    /// Who answers; you, by default
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Words that are kept with the answer
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// A value that the step asks for
    #[arg(short, long = "field", value_name = "FIELD=VALUE", value_parser = pair)]
    field: Vec<(String, String)>,
    /// How to print what came of it
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

/// `NAME=VALUE` taken apart.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not NAME=VALUE")),
    }
}

pub fn answer(args: &Args, approved: bool, common: &Common, out: &Out) -> Result<Exit, Error> {
    let store = run_folder::store(common)?;
    let folder = store.find(Some(&args.run))?;
    let question = match folder.state()?.step(&args.step).map(|step| step.phase.clone()) {
        Some(Phase::Waiting(waiting)) => Some(waiting.question),
        _ => None,
    };
    let now = Timestamp::now();
    let answer = Answer {
        approved,
        by: args.by.clone().unwrap_or_else(|| Actor::current().user),
        at: now,
        note: args.note.clone(),
        fields: typed(&args.field, question.as_ref())?,
    };
    let delivered = folder.answer(&args.step, answer, now)?;
    let verdict = match folder.state()?.step(&args.step).map(|step| step.phase.clone()) {
        Some(Phase::Waiting(waiting)) => waiting.verdict(),
        _ => Verdict::Approved,
    };
    let sent = matches!(delivered, Delivered::Sent(_));
    match args.format {
        Format::Json => {
            let delivered = if sent { "sent" } else { "journaled" };
            out.print_json(&json!({ "run": folder.id.as_str(), "step": args.step, "approved": approved, "delivered": delivered }))?;
        }
        Format::Human => {
            let word = if approved { "yes" } else { "no" };
            let mut text = format!("{} {word} to {} of run {}\n", out.paint.good("✓"), args.step, folder.id);
            let flags = run_folder::flags(&store);
            let (on, why) = match folder.state()?.undo {
                Some(_) => ("undo", "go on taking it back"),
                None => ("resume", "go on with the run"),
            };
            let then = match (delivered, verdict) {
                (Delivered::Sent(holder), _) => {
                    let holder = holder
                        .map_or_else(|| "the process that works on it".to_owned(), |holder| holder.by.describe());
                    format!("  kept for {holder}, which takes it in now\n")
                }
                (_, Verdict::Open) => "  kept; more people must agree before the run goes on\n".to_owned(),
                _ => next::render(
                    &[next::Action {
                        command: format!("lifeboat {on} {} {flags}", folder.id).trim_end().to_owned(),
                        why: why.to_owned(),
                    }],
                    out.paint,
                ),
            };
            text.push_str(&then);
            out.print(&text)?;
        }
    }
    Ok(Exit::Done)
}

/// The fields as the types that the question names.
fn typed(given: &[(String, String)], question: Option<&Question>) -> Result<BTreeMap<String, Value>, Error> {
    let mut fields = BTreeMap::new();
    for (name, text) in given {
        let kind = question.and_then(|question| question.fields.get(name)).map(String::as_str);
        let value = value_of(kind, text)
            .map_err(|wanted| Error::usage(format!("`{name}` takes {wanted}, and `{text}` is none")))?;
        if fields.insert(name.clone(), value).is_some() {
            return Err(Error::usage(format!("`{name}` is given twice")));
        }
    }
    Ok(fields)
}

/// `text` as a value of that type; what is wanted, if it isn't one.
pub fn value_of(kind: Option<&str>, text: &str) -> Result<Value, &'static str> {
    match kind {
        Some("integer") => text.parse::<i64>().map(Value::from).map_err(|_| "a whole number"),
        Some("number") => text.parse::<f64>().map(Value::from).map_err(|_| "a number"),
        Some("boolean") => match text.to_lowercase().as_str() {
            "true" | "yes" | "y" => Ok(Value::from(true)),
            "false" | "no" | "n" => Ok(Value::from(false)),
            _ => Err("`true` or `false`"),
        },
        Some("list") => match serde_json::from_str(text) {
            Ok(list @ Value::Array(_)) => Ok(list),
            _ => Ok(text.split(',').map(|item| Value::from(item.trim())).collect()),
        },
        Some("duration") => {
            text.parse::<crate::units::Duration>().map(|_| Value::from(text)).map_err(|_| "a duration (`5m`)")
        }
        Some("timestamp") => {
            text.parse::<crate::units::Timestamp>().map(|_| Value::from(text)).map_err(|_| "an RFC 3339 timestamp")
        }
        _ => Ok(Value::from(text)),
    }
}
