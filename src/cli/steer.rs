//! The flags with which an operator steers a resume.

use std::path::PathBuf;

use super::exit::Error;
use crate::engine::Steering;
use crate::record::steering::{ChangeKind, OrderKind, Steered};
use crate::report::steered;
use crate::report::text::{Paint, Table};

/// What an operator orders of a run that goes on.
#[derive(Debug, clap::Args)]
pub struct Orders {
    /// Count a step as done without running it; may be repeated
    #[arg(long, value_name = "STEP")]
    pub skip: Vec<String>,
    /// Count a step as done that was done in another way; the real systems must agree. May be repeated
    #[arg(long, value_name = "STEP")]
    pub mark_done: Vec<String>,
    /// Run a step again, with all that depends on it; may be repeated
    #[arg(long, value_name = "STEP")]
    pub rerun: Vec<String>,
    /// Go on with this edited plan; the run keeps a copy, beside the one before
    #[arg(long, value_name = "FILE")]
    pub plan: Option<PathBuf>,
    /// With `--plan`: keep the result of a step that the edited plan defines otherwise; may be repeated
    #[arg(long, value_name = "STEP", requires = "plan")]
    pub accept: Vec<String>,
    /// The environment's name, where something is destroyed in a protected one by what is ordered
    #[arg(long, value_name = "ENV", conflicts_with = "dry_run")]
    pub confirm: Option<String>,
    /// With `--mark-done`: on your word, where the real systems can't confirm it; every report shows it
    #[arg(long, requires = "mark_done")]
    pub unverified: bool,
    /// Why: kept with the run for good, and who said it
    #[arg(long, value_name = "TEXT")]
    pub because: Option<String>,
}

/// The orders; none when nothing is ordered.
pub fn steering(args: &Orders) -> Result<Option<Steering>, Error> {
    let of =
        |steps: &[String], order: OrderKind| steps.iter().map(|step| (step.clone(), order)).collect::<Vec<_>>();
    let orders = [
        of(&args.skip, OrderKind::Skip),
        of(&args.mark_done, OrderKind::MarkDone),
        of(&args.rerun, OrderKind::Rerun),
        of(&args.accept, OrderKind::Accept),
    ]
    .concat();
    let first = orders.first().map(|(_, order)| order.flag()).or(args.plan.as_ref().map(|_| "--plan"));
    let because = args.because.as_deref().map(str::trim).filter(|because| !because.is_empty());
    match (first, because) {
        (None, None) if args.confirm.is_some() => {
            Err(Error::usage("`--confirm` goes with what is ordered, and nothing is")
                .help("leave it out: what was confirmed for the run stays confirmed"))
        }
        (None, None) => Ok(None),
        (None, Some(_)) => Err(Error::usage("`--because` gives a reason, and nothing is ordered")
            .help("name a step with `--skip`, `--mark-done`, `--rerun` or `--plan`, or leave it out")),
        (Some(flag), None) => Err(Error::usage(format!("`{flag}` wants a reason, which is kept with the run"))
            .help("add `--because 'what you know, and who agreed'`")),
        (Some(_), Some(because)) => {
            Ok(Some(Steering { because: because.to_owned(), orders, unverified: args.unverified, edit: None }))
        }
    }
}

/// What the orders come to, before the decisions.
pub fn page(steered: &Steered, paint: Paint) -> String {
    let mut text = format!("{}\n", steered::line(steered, paint));
    if let Some(plan) = &steered.plan {
        let mut table = Table::new(2);
        for change in &plan.changes {
            let word = change.change.as_str();
            let word = if change.change == ChangeKind::Gone { paint.warn(word) } else { paint.name(word) };
            table.row([word, change.step.clone(), change.note.clone().unwrap_or_default()]);
        }
        text.push_str(&table.render(paint));
    }
    text + "\n"
}
