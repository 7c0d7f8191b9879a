//! `lifeboat resume`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use super::exit::{Error, Exit};
use super::load::{self, Inputs};
use super::out::{Format, Out};
use super::run::{How, conclude, console, context};
use super::{Common, run_folder, sandbox, steer};
use crate::engine::{self, Edit, Foreseen, RunOptions};
use crate::record::event::{DecisionAction, RunStatus};
use crate::record::store::RunFolder;
use crate::report::markdown::action;
use crate::report::text::{Paint, Table};

/// Go on with a run that stopped, failed or was killed
///
/// Nothing that succeeded is done again. A step that was in flight is looked up in the real systems: kept if it
/// happened, run if it did not, finished if it happened in part; where nobody can tell, a person is asked.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run: its id or the beginning of it; the latest without one
    run: Option<String>,
    /// Say what would be done with each step, and why; change nothing
    #[arg(long)]
    dry_run: bool,
    /// The environment's file, where it is no longer where it was
    #[arg(long, value_name = "ENV")]
    env: Option<String>,
    #[command(flatten)]
    inputs: Inputs,
    #[command(flatten)]
    steer: steer::Orders,
    #[command(flatten)]
    how: How,
    /// `json`: the decisions of a dry-run, or journal records, one a line
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

pub fn resume(args: &Args, common: &Common, out: &Out) -> Result<Exit, Error> {
    let mut steering = steer::steering(&args.steer)?;
    let store = run_folder::store(common)?;
    let folder = store.find(args.run.as_deref())?;
    let state = folder.state()?;
    if state.status == RunStatus::Succeeded {
        return Err(Error::usage(format!("run {} has succeeded: nothing is left to do", folder.id))
            .help(format!("look at it with `lifeboat report {}`", folder.id)));
    }
    let environment = args.env.clone().or_else(|| state.header.environment_file.clone());
    let copy: PathBuf = folder.plan_copy()?;
    let kept = folder.manifest()?.inputs;
    let plan = match (&args.steer.plan, &mut steering) {
        (Some(file), Some(steering)) => {
            let Some(edited) = load::edited(file, environment.as_deref(), &kept, &args.inputs, out)? else {
                return Ok(Exit::Usage);
            };
            // One that can't be read any more is told where it is needed.
            let before = load::reload(&copy, environment.as_deref(), &kept, &args.inputs);
            let before = before.ok().and_then(|loaded| loaded.plan).map(Arc::new);
            steering.edit = Some(Edit { before, copies: edited.copies });
            edited.plan
        }
        _ => match load::copy(&copy, environment.as_deref(), &kept, &args.inputs, out)? {
            Some(plan) => plan,
            None => return Ok(Exit::Usage),
        },
    };
    let plan = Arc::new(plan);
    let original = Path::new(&state.header.plan_file);
    if args.steer.plan.is_none() && is_edited(original, &copy) {
        out.say(&format!(
            "{} {} was edited since; this run goes on with its own copy; `--plan` lets the edited one take over",
            out.talk.warn("!"),
            original.display()
        ));
    }
    if !args.dry_run {
        sandbox::ensure(&plan.environment, common.state.as_deref(), out)?;
    }
    let mut cx = context(&plan, common)?;
    cx.store = store;
    super::block_on(async {
        let foreseen = match engine::decide(&cx, &plan, &folder, steering.as_ref()).await {
            Ok(foreseen) => foreseen,
            // What stands in the way is shown, as before a run.
            Err(error) => return conclude(Err(error), &cx.store, args.format, out),
        };
        if args.dry_run {
            match args.format {
                Format::Json => {
                    let mut said = json!({ "run": folder.id.as_str(), "decisions": foreseen.decisions });
                    if let Some(steered) = &foreseen.steered {
                        said["steered"] = json!(steered);
                    }
                    out.print_json(&said)?;
                }
                Format::Human => out.print(&page(&folder, &foreseen, out.paint))?,
            }
            return Ok(Exit::Done);
        }
        if args.format == Format::Human {
            out.say(&page(&folder, &foreseen, out.talk));
        }
        let options = RunOptions {
            jobs: usize::from(args.how.jobs),
            yes: args.how.yes,
            steering,
            confirm: args.steer.confirm.clone(),
            ..RunOptions::default()
        };
        let ended = engine::resume(&cx, &plan, &folder, options, console(args.format, out)?).await;
        conclude(ended, &cx.store, args.format, out)
    })
}

/// Whether the plan's file says something else now than the copy that the run kept.
fn is_edited(original: &Path, copy: &Path) -> bool {
    match (std::fs::read(original), std::fs::read(copy)) {
        (Ok(now), Ok(then)) => now != then,
        _ => false,
    }
}

/// What will be done with each step, and why.
fn page(folder: &RunFolder, foreseen: &Foreseen, paint: Paint) -> String {
    let mut table = Table::new(2);
    for decision in &foreseen.decisions {
        let word = action(decision.action);
        let word = match decision.action {
            DecisionAction::Keep => paint.good(word),
            DecisionAction::Run | DecisionAction::Continue => paint.name(word),
            DecisionAction::Ask | DecisionAction::Wait => paint.warn(word),
            DecisionAction::Skip => paint.dim(word),
        };
        table.row([word, decision.step.clone(), decision.reason.clone()]);
    }
    let steered = foreseen.steered.as_ref().map(|steered| steer::page(steered, paint)).unwrap_or_default();
    format!("{}\n{steered}{}", paint.strong(&format!("Going on with run {}", folder.id)), table.render(paint))
}
