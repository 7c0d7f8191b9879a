//! `lifeboat adjust`: other limits for a step, while it runs or before it goes on.

use jiff::Timestamp;
use serde_json::json;

use super::exit::{Error, Exit};
use super::out::{Format, Out};
use super::{Common, run_folder};
use crate::record::event::Actor;
use crate::record::steering::{Adjustment, Limits};
use crate::record::store::Delivered;
use crate::units::Duration;

/// Give a step another timeout or more attempts, without restarting it
///
/// A running attempt is bound anew at once, counted from when it began. The new limits hold for this run, over its
/// resumes; the plan stays as it is.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("limits").required(true).multiple(true)))]
pub struct Args {
    /// The run: its id or the beginning of it
    run: String,
    /// The step
    step: String,
    /// The bound on one attempt (`30m`)
    #[arg(long, value_name = "DURATION", group = "limits")]
    timeout: Option<Duration>,
    /// Attempts in all, those since the last resume counted
    #[arg(long, value_name = "N", group = "limits", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    attempts: Option<u32>,
    /// The wait before the second attempt; further ones grow from it as the plan says
    #[arg(long, value_name = "DURATION", group = "limits")]
    delay: Option<Duration>,
    /// Why: kept with the run for good as it is (no place for a secret), and who said it
    #[arg(long, value_name = "TEXT")]
    because: String,
    /// How to print what came of it
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

pub fn adjust(args: &Args, common: &Common, out: &Out) -> Result<Exit, Error> {
    if args.because.trim().is_empty() {
        return Err(Error::usage("`--because` is empty").help("say what you know, and who agreed"));
    }
    let store = run_folder::store(common)?;
    let folder = store.find(Some(&args.run))?;
    let limits = Limits {
        timeout: args.timeout.map(|timeout| timeout.std().as_secs_f64()),
        attempts: args.attempts,
        delay: args.delay.map(|delay| delay.std().as_secs_f64()),
    };
    let said = limits.said();
    let adjustment = Adjustment {
        step: args.step.clone(),
        by: Actor::current(),
        because: args.because.trim().to_owned(),
        limits,
    };
    let delivered = folder.adjust(&adjustment, Timestamp::now())?;
    let sent = matches!(delivered, Delivered::Sent(_));
    match args.format {
        Format::Json => {
            let delivered = if sent { "sent" } else { "journaled" };
            out.print_json(&json!({ "run": folder.id.as_str(), "step": args.step, "limits": adjustment.limits, "delivered": delivered }))?;
        }
        Format::Human => {
            let then = match delivered {
                Delivered::Sent(holder) => {
                    let holder = holder
                        .map_or_else(|| "the process that works on it".to_owned(), |holder| holder.by.describe());
                    format!("kept for {holder}, which takes it in now")
                }
                Delivered::Journaled => "it holds from the next resume on".to_owned(),
            };
            out.print(&format!("{} {} of run {}: {said}\n  {then}\n", out.paint.good("✓"), args.step, folder.id))?;
        }
    }
    Ok(Exit::Done)
}
