//! `lifeboat undo`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;

use super::exit::{Error, Exit};
use super::load::{self, Inputs};
use super::out::{Format, Out};
use super::run::{How, conclude, console, context};
use super::{Common, ask, preview, run_folder, sandbox};
use crate::engine::undo::{Foreseen, UndoOptions};
use crate::engine::{self, EngineError};
use crate::plan::Plan;
use crate::record::event::{DecisionAction, UndoAction};
use crate::record::state::RunState;
use crate::record::store::RunFolder;
use crate::report::markdown::action;
use crate::report::text::{Paint, Table};
use crate::report::world;

/// Take back what a run did, in reverse
///
/// Runs the `undo` of every step that happened, or may have: the last first, each when all that came after it is taken
/// back. The real systems are asked first, read-only, and nothing begins when a step is blocked. What has no `undo` stays
/// as it is, and is named. It is journaled in the same run, which ends as `undone`; after a kill or a failure,
/// `lifeboat undo` goes on.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run: its id or the beginning of it; the latest without one
    run: Option<String>,
    /// Say what would be taken back, and how; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Leave this step of the run as it is (may be given several times)
    #[arg(long, value_name = "STEP", requires = "because")]
    leave: Vec<String>,
    /// Why: kept with the run
    #[arg(long, value_name = "TEXT")]
    because: Option<String>,
    /// The environment's file, where it is no longer where it was
    #[arg(long, value_name = "ENV")]
    env: Option<String>,
    #[command(flatten)]
    inputs: Inputs,
    #[command(flatten)]
    how: How,
    /// The environment's name, as an undo that destroys something on a protected one wants it typed
    #[arg(long, value_name = "ENV", conflicts_with = "dry_run")]
    confirm: Option<String>,
    /// `json`: the one object of a dry-run, or journal records, one a line
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

pub fn undo(args: &Args, common: &Common, out: &Out) -> Result<Exit, Error> {
    let store = run_folder::store(common)?;
    let folder = store.find(args.run.as_deref())?;
    let state = folder.state()?;
    let environment = args.env.clone().or_else(|| state.header.environment_file.clone());
    let copy: PathBuf = folder.plan_copy()?;
    let Some(plan) = load::copy(&copy, environment.as_deref(), &folder.manifest()?.inputs, &args.inputs, out)?
    else {
        return Ok(Exit::Usage);
    };
    let plan = Arc::new(plan);
    if !args.dry_run {
        sandbox::ensure(&plan.environment, common.state.as_deref(), out)?;
    }
    let mut cx = context(&plan, common)?;
    cx.store = store;
    let mut options = UndoOptions {
        jobs: usize::from(args.how.jobs),
        yes: args.how.yes,
        confirm: args.confirm.clone(),
        because: args.because.clone(),
        leave: args.leave.clone(),
    };
    super::block_on(async {
        let foreseen = engine::foresee_undo(&cx, &plan, &folder, &options).await?;
        let blocked = foreseen.preview.is_blocked();
        if args.dry_run {
            match args.format {
                Format::Json => out.print_json(&machine(&folder, &state, &foreseen))?,
                Format::Human => out.print(&page(&folder, &state, &foreseen, out.paint))?,
            }
            return Ok(if blocked { Exit::Blocked } else { Exit::Done });
        }
        if blocked {
            return conclude(Err(EngineError::Blocked(Box::new(foreseen.preview))), &cx.store, args.format, out);
        }
        if args.format == Format::Human {
            out.say(&page(&folder, &state, &foreseen, out.talk));
        }
        confirm(&plan, &foreseen, &mut options, out)?;
        let ended = engine::undo(&cx, &plan, &folder, options, console(args.format, out)?).await;
        conclude(ended, &cx.store, args.format, out)
    })
}

/// Asks for a protected environment's name where somebody can type it.
fn confirm(plan: &Plan, foreseen: &Foreseen, options: &mut UndoOptions, out: &Out) -> Result<(), Error> {
    let (true, Some(name)) = (plan.environment.protected, &plan.environment.name) else { return Ok(()) };
    let effects = foreseen.preview.steps.iter().flat_map(|step| &step.effects);
    let destroyed: Vec<&str> = effects
        .filter(|effect| effect.access == "destroy" || effect.displaces)
        .map(|effect| effect.resource.as_str())
        .collect();
    if destroyed.is_empty() || options.confirm.is_some() || !ask::possible() {
        return Ok(());
    }
    if ask::type_name(name, &destroyed.join(", "), out.talk) {
        options.confirm = Some(name.clone());
        return Ok(());
    }
    Err(Error::usage("nothing was touched: what was typed is not the environment's name"))
}

/// What a dry-run says for programs.
fn machine(folder: &RunFolder, state: &RunState, foreseen: &Foreseen) -> serde_json::Value {
    let stays: Vec<_> = foreseen
        .decisions
        .iter()
        .filter(|decision| decision.action == UndoAction::Stays)
        .map(|decision| {
            let effects = state.step(&decision.step).map(|step| step.header.effects.clone()).unwrap_or_default();
            json!({ "step": decision.step, "effects": effects, "reason": decision.reason })
        })
        .collect();
    json!({
        "run": folder.id.as_str(),
        "begun": state.undo.is_some(),
        "verdict": foreseen.preview.verdict,
        "decisions": foreseen.decisions,
        "going_on": foreseen.going_on,
        "stays": stays,
        "impact": foreseen.preview.impact,
        "steps": foreseen.preview.steps,
    })
}

/// What will be taken back and what stays, and how.
fn page(folder: &RunFolder, state: &RunState, foreseen: &Foreseen, paint: Paint) -> String {
    let verb = if state.undo.is_some() { "Going on with the undo of" } else { "Taking back" };
    let mut text = paint.strong(&format!("{verb} run {}", folder.id));
    text.push('\n');
    let mut table = Table::new(2);
    for decision in foreseen.going_on.iter().filter(|decision| decision.action != DecisionAction::Keep) {
        table.row([paint.name(action(decision.action)), decision.step.clone(), decision.reason.clone()]);
    }
    if state.undo.is_none() {
        for decision in foreseen.decisions.iter().rev() {
            let word = decision.action.as_str();
            let word = match decision.action {
                UndoAction::Undo => paint.name(word),
                UndoAction::Ask | UndoAction::Stays => paint.warn(word),
                UndoAction::Nothing => continue,
            };
            let effects: Vec<String> = match (decision.action, state.step(&decision.step)) {
                (UndoAction::Stays, Some(step)) => {
                    let written = step.header.effects.iter().filter(|effect| effect.access != "read");
                    written.map(|effect| format!("{} {}", effect.access, world::name(&effect.resource))).collect()
                }
                _ => Vec::new(),
            };
            let effects = if effects.is_empty() { String::new() } else { format!(" ({})", effects.join(", ")) };
            table.row([word, decision.step.clone(), format!("{}{}", decision.reason, paint.dim(&effects))]);
        }
    }
    text.push_str(&table.render(paint));
    if !foreseen.preview.steps.is_empty() {
        let _ = write!(
            text,
            "\n{}\n{}\n{}",
            paint.strong("How"),
            preview::steps(&foreseen.preview, paint),
            preview::facts(&foreseen.preview, paint)
        );
    }
    text
}
