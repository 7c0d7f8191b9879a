//! Undo: what a run did is taken back, in reverse, in the same run and by the same engine.
//!
//! Each step that happened, or may have, and has an `undo:` gets a step of its own behind
//! the plan's steps, which needs those that take back what came after it. From there on it
//! is a run like any other: announced before it acts, killed and gone on with.

mod steps;

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use steps::{PREFIX, steps};

use super::guard::Guards;
use super::limits::Limits;
use super::preview::{self, PreviewReport};
use super::resume::{self, Resolved};
use super::turn::Turns;
use super::worker::{self, Job};
use super::{Console, Context, Ended, EngineError, RunOptions, confirmed, dispatcher, headers, masked, walk};
use crate::failure::Failure;
use crate::ids::StepId;
use crate::plan::{Known, Plan, PlannedStep};
use crate::record::event::{
    Decision, DecisionAction, Event, Outcome, RunStatus, StepHeader, UndoAction, UndoDecision, UndoHeader,
};
use crate::record::state::{Phase, RunState, StepState};
use crate::record::store::{RunFolder, StoreError};
use crate::service::{Services, identity};
use crate::step::AfterKill;

/// How to undo.
#[derive(Clone, Debug, Default)]
pub struct UndoOptions {
    /// How many steps at most run side by side.
    pub jobs: usize,
    /// Answer every question of the kind `confirm` with yes.
    pub yes: bool,
    /// The environment's name, typed: required where a protected one's things are destroyed.
    pub confirm: Option<String>,
    /// Why.
    pub because: Option<String>,
    /// Steps of the run to leave as they are.
    pub leave: Vec<String>,
}

/// What an undo would do.
#[derive(Clone, Debug)]
pub struct Foreseen {
    /// What is done about each step of the run, and why.
    pub decisions: Vec<UndoDecision>,
    /// Of an undo that has begun: what is done about each step that takes back.
    pub going_on: Vec<Decision>,
    /// The steps that are left to run, previewed.
    pub preview: PreviewReport,
}

/// All that is needed to begin an undo, or to go on with one.
struct Prepared {
    /// The plan's steps with those that take back behind them.
    whole: Arc<Plan>,
    /// Only those that take back and are left to run.
    rest: Plan,
    decisions: Vec<UndoDecision>,
    /// Of an undo that has begun.
    resolved: Option<Vec<Resolved>>,
    preview: PreviewReport,
}

/// How `lifeboat undo` would take the step back.
pub(super) fn header(plan: &Plan, step: &PlannedStep) -> Option<UndoHeader> {
    let (info, _) = step.undo.as_ref()?;
    let rendered = step.render_undo(&Known::default()).ok().flatten();
    let effects = rendered.map(|rendered| rendered.step.effects()).unwrap_or_default();
    let effects = effects.iter().map(|effect| masked(plan, effect)).collect();
    Some(UndoHeader { step_type: info.name.to_owned(), effects })
}

/// What an undo would do; looks at the real systems, read-only, and changes nothing.
///
/// # Errors
/// When there is nothing to undo, the plan is another one, or a system can't be asked.
pub async fn foresee(
    cx: &Context,
    plan: &Arc<Plan>,
    folder: &RunFolder,
    options: &UndoOptions,
) -> Result<Foreseen, EngineError> {
    if let Some(holder) = folder.holder()? {
        return Err(StoreError::Locked { run: folder.id.clone(), holder: holder.map(Box::new) }.into());
    }
    let state = folder.state()?;
    let options = &masked_options(plan, options.clone());
    let prepared = prepare(cx, plan, folder, &state, options, &cx.services.read_only()).await?;
    let going_on = prepared.resolved.into_iter().flatten().map(|resolved| resolved.decision).collect();
    let decisions = prepared.decisions.into_iter().chain(state.left_behind()).collect();
    Ok(Foreseen { decisions, going_on, preview: prepared.preview })
}

/// Takes a run back, or goes on with that.
///
/// # Errors
/// When it can't begin (nothing to undo, blocked, not confirmed, locked), or the journal can't be written.
pub async fn undo(
    cx: &Context,
    plan: &Arc<Plan>,
    folder: &RunFolder,
    options: UndoOptions,
    mut console: Console,
) -> Result<Ended, EngineError> {
    let options = masked_options(plan, options);
    let (mut run, contents, mut state) = folder.open(cx.now())?;
    let prepared = async {
        let prepared = prepare(cx, plan, folder, &state, &options, &cx.services).await?;
        let confirm = RunOptions { confirm: options.confirm.clone(), ..RunOptions::default() };
        confirmed(&prepared.rest, &confirm)?;
        if prepared.preview.is_blocked() {
            return Err(EngineError::Blocked(Box::new(prepared.preview)));
        }
        let guards = Guards::acquire(cx, &prepared.rest, &folder.id).await?;
        Ok((prepared, guards))
    };
    let (prepared, guards) = super::unless_stopped(&mut console.controls, prepared).await?;
    let events = match prepared.resolved {
        Some(resolved) => resume::events(cx, &prepared.whole, &state, resolved, None, contents.torn_notice()),
        None => contents
            .torn_notice()
            .into_iter()
            .chain([Event::UndoStarted {
                by: cx.by.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                because: options.because.clone(),
                decisions: prepared.decisions,
                steps: introduced(&prepared.rest, &prepared.preview),
            }])
            .collect(),
    };
    for record in &contents.records {
        console.sinks.iter_mut().for_each(|sink| sink.past(record));
    }
    for record in run.journal.append(events, cx.now())? {
        state.apply(&record)?;
        console.sinks.iter_mut().for_each(|sink| sink.record(&record));
    }
    let options = RunOptions { jobs: options.jobs.max(1), yes: options.yes, ..RunOptions::default() };
    dispatcher::drive(cx, &prepared.whole, run, state, guards, options, console).await
}

/// An operator's words, with secrets masked: they are kept.
fn masked_options(plan: &Plan, options: UndoOptions) -> UndoOptions {
    let redact = |because: String| plan.environment.redactor.redact(&because).into_owned();
    UndoOptions { because: options.because.map(redact), ..options }
}

/// What is touched while the run is taken back: not what is left as it is, or taken back already.
fn touched(state: &RunState, options: &UndoOptions) -> BTreeSet<String> {
    let left = |id: &str| options.leave.iter().any(|left| left == id);
    let effects = state.steps.iter().flat_map(|step| match (&step.header.undoes, &step.header.undo) {
        (Some(undone), _) if !step.is_done() && !left(undone) => step.header.effects.as_slice(),
        (None, Some(undo)) if state.undo.is_none() && !left(&step.header.id) => undo.effects.as_slice(),
        _ => &[],
    });
    effects.flat_map(|effect| identity::names(&effect.resource)).collect()
}

/// Looks at what became of each step, and at what taking it back would do.
async fn prepare(
    cx: &Context,
    plan: &Arc<Plan>,
    folder: &RunFolder,
    state: &RunState,
    options: &UndoOptions,
    services: &Services,
) -> Result<Prepared, EngineError> {
    same_plan(plan, state)?;
    let ahead = touched(state, options);
    super::target::unchanged(services, state, |name, _| ahead.contains(name)).await?;
    let decisions = match &state.undo {
        Some(undo) => undo.decisions.clone(),
        None => decide(cx, plan, folder, state, options, services).await?,
    };
    let undoing = steps(&state.header.run, plan, &decisions);
    let mut whole = Plan::clone(plan);
    whole.steps.extend(undoing);
    let whole = Arc::new(whole);
    let resolved = match &state.undo {
        Some(_) => Some(go_on(cx, &whole, folder, state, options, services).await?),
        None => None,
    };
    let mut rest = Plan::clone(plan);
    rest.steps =
        whole.steps[plan.steps.len()..].iter().filter(|step| is_left(state, step, options)).cloned().collect();
    // What a kill cut off took effect, or goes on from where it is: there is nothing to foresee.
    let decided = |step: &PlannedStep| {
        let mut resolved = resolved.iter().flatten().map(|resolved| &resolved.decision);
        resolved.find(|decision| decision.step == step.id.as_str()).map(|decision| decision.action)
    };
    rest.steps.retain(|step| decided(step) != Some(DecisionAction::Keep));
    let mut foreseeable = rest.clone();
    foreseeable.steps.retain(|step| matches!(decided(step), None | Some(DecisionAction::Run)));
    if rest.steps.is_empty() && resolved.is_none() {
        return Err(EngineError::NothingToUndo(state.header.run.clone()));
    }
    let known = known(cx, &whole, state, &decisions);
    let mut preview = preview::foresee(&foreseeable, known, Some(services)).await;
    // A database whose door an attempt closed can't be looked into until that is cleaned up, which a dry-run doesn't.
    let goes_on = |step: &StepState| {
        let action = whole.steps.iter().find(|planned| planned.id.as_str() == step.header.id).and_then(decided);
        services.is_read_only() || matches!(action, Some(DecisionAction::Continue | DecisionAction::Wait))
    };
    for cut in state.steps.iter().filter(|step| step.is_open_ended() && goes_on(step)) {
        preview.behind(&cut.header);
    }
    Ok(Prepared { whole, rest, decisions, resolved, preview })
}

/// Whether the step that takes back has not done so yet, and shall.
fn is_left(state: &RunState, step: &PlannedStep, options: &UndoOptions) -> bool {
    let leave =
        step.id.as_str().strip_prefix(PREFIX).is_some_and(|id| options.leave.iter().any(|leave| leave == id));
    !leave && state.step(step.id.as_str()).is_none_or(|step| !step.is_done())
}

/// The run was made of this very plan, and can be taken back.
fn same_plan(plan: &Plan, state: &RunState) -> Result<(), EngineError> {
    if state.status == RunStatus::Undone {
        return Err(EngineError::Undone(state.header.run.clone()));
    }
    if state.header.walker > walk::VERSION {
        return Err(EngineError::NewerWalker { found: state.header.walker });
    }
    let own = state.undo.as_ref().map_or(state.steps.len(), |undo| undo.from);
    let then = state.steps[..own].iter().map(|step| (step.header.id.as_str(), step.header.definition.as_str()));
    let now = plan.steps.iter().map(|step| (step.id.as_str(), step.definition.as_str()));
    if now.eq(then) { Ok(()) } else { Err(EngineError::PlanChanged(Vec::new())) }
}

/// Decides for each step of the run, in the plan's order.
async fn decide(
    cx: &Context,
    plan: &Arc<Plan>,
    folder: &RunFolder,
    state: &RunState,
    options: &UndoOptions,
    services: &Services,
) -> Result<Vec<UndoDecision>, EngineError> {
    let mut turns = Turns::new(plan, state);
    turns.at(state, state.status, cx.now());
    let desk = resume::desk(plan, folder, services);
    let mut decisions = Vec::with_capacity(plan.steps.len());
    for (at, step) in state.steps.iter().enumerate() {
        let planned = &plan.steps[at];
        let writes = step.header.effects.iter().any(|effect| effect.access != "read");
        let decided = |action, reason: String, outcome| {
            // What changed nothing and has no `undo` is no matter, whatever became of it.
            let action = match action {
                UndoAction::Undo | UndoAction::Ask if planned.undo.is_none() && writes => UndoAction::Stays,
                UndoAction::Undo | UndoAction::Ask if planned.undo.is_none() => UndoAction::Nothing,
                action => action,
            };
            let reason = match action {
                UndoAction::Stays => format!("{reason}; it has no `undo`"),
                _ => reason,
            };
            UndoDecision { step: step.header.id.clone(), action, reason, outcome }
        };
        let left = options.leave.contains(&step.header.id);
        let mut decision = match &step.phase {
            _ if step.taken_over => {
                decided(UndoAction::Nothing, "its result is that of an earlier definition".to_owned(), None)
            }
            Phase::Finished(Outcome::Succeeded { .. })
                if step.ordered.as_ref().is_some_and(|ordered| ordered.unverified) =>
            {
                decided(UndoAction::Ask, "it was marked done, and nothing could confirm it".to_owned(), None)
            }
            Phase::Finished(Outcome::Succeeded { summary, .. }) => {
                let said = summary.clone().unwrap_or_else(|| "it succeeded".to_owned());
                decided(UndoAction::Undo, said, None)
            }
            Phase::Finished(Outcome::Skipped { reason }) if step.acted().is_none() => {
                decided(UndoAction::Nothing, format!("skipped: {reason}"), None)
            }
            _ if step.acted().is_none() => decided(UndoAction::Nothing, "it did not run".to_owned(), None),
            _ if planned.undo.is_none() && !writes => {
                decided(UndoAction::Nothing, "it changes nothing".to_owned(), None)
            }
            _ => {
                let job = Job {
                    at,
                    id: planned.id.clone(),
                    step: turns.step(at).map_err(|failure| undecided(planned, failure))?,
                    attempt: step.attempt,
                    notes: (&step.notes).into(),
                    since: step.since,
                    limits: Limits::fixed(None),
                    cancel: CancellationToken::new(),
                };
                let answer = worker::ask(job.step.clone(), desk.probe(&job)).await;
                let answer = answer.map_err(|failure| resume::masked(&desk, failure));
                if let Ok(AfterKill::StillGoing { what }) = &answer {
                    let what = desk.redactor.redact(what).into_owned();
                    return Err(EngineError::StillGoing { step: planned.id.clone(), what });
                }
                let (action, reason, outcome) = became(planned, step, answer, |done| desk.kept(done))?;
                decided(action, desk.redactor.redact(&reason).into_owned(), outcome)
            }
        };
        // What it did before it was sent back stands, as long as it did nothing anew.
        let same = |past: &&StepState| {
            past.header.id == step.header.id && past.header.definition == step.header.definition
        };
        if let (UndoAction::Nothing, Some(past)) = (decision.action, state.past.iter().rev().find(same)) {
            decision = if past.acted() == Some(true) {
                let outcome = past.outcome().cloned();
                decided(UndoAction::Undo, "it succeeded before it was sent back".to_owned(), outcome)
            } else {
                let reason = "before it was sent back it was cut off, or failed".to_owned();
                decided(UndoAction::Ask, reason, None)
            };
        }
        if left {
            leave(&mut decision, cx, options)?;
        }
        decisions.push(decision);
    }
    let known = |id: &String| decisions.iter().any(|decision| &decision.step == id);
    if let Some(unknown) = options.leave.iter().find(|id| !known(id)) {
        return Err(EngineError::Leave(format!("the run has no step `{unknown}`")));
    }
    Ok(decisions)
}

/// What the world says of a step that did not come to a good end.
fn became(
    planned: &PlannedStep,
    step: &StepState,
    answer: Result<AfterKill, Failure>,
    kept: impl FnOnce(crate::step::Done) -> Result<Outcome, Failure>,
) -> Result<(UndoAction, String, Option<Outcome>), EngineError> {
    let failed = matches!(step.phase, Phase::Finished(Outcome::Failed { .. })) && !step.is_open_ended();
    let how = if failed { "it failed" } else { "it was cut off" };
    Ok(match answer {
        Ok(AfterKill::Happened(done)) => {
            let outcome = kept(done).map_err(|failure| undecided(planned, failure))?;
            (UndoAction::Undo, format!("{how}, and took effect"), Some(outcome))
        }
        Ok(AfterKill::DidNotHappen { why }) => {
            (UndoAction::Nothing, format!("{how}, and had no effect: {why}"), None)
        }
        Ok(AfterKill::RunAgain { why }) => {
            (UndoAction::Undo, format!("{how}, and may have taken effect: {why}"), None)
        }
        Ok(AfterKill::Partly { what }) => {
            (UndoAction::Undo, format!("{how}, and took effect in part: {what}"), None)
        }
        Ok(AfterKill::CannotTell { why } | AfterKill::StillGoing { what: why }) => {
            (UndoAction::Ask, format!("{how}, and nobody can tell if it took effect: {why}"), None)
        }
        // What failed may have failed because its system can't be reached.
        Err(failure) if failed => {
            (UndoAction::Ask, format!("{how}, and its system can't be asked: {}", failure.message), None)
        }
        Err(failure) => return Err(undecided(planned, failure)),
    })
}

fn undecided(planned: &PlannedStep, failure: Failure) -> EngineError {
    EngineError::Undecided { step: planned.id.clone(), failure }
}

/// An operator wants the step left as it is.
fn leave(decision: &mut UndoDecision, cx: &Context, options: &UndoOptions) -> Result<(), EngineError> {
    if !decision.action.acts() {
        return Err(EngineError::Leave(format!("step `{}` is not taken back", decision.step)));
    }
    decision.action = UndoAction::Stays;
    decision.reason = format!("{}; {}", decision.reason, left_by(cx, options));
    Ok(())
}

fn left_by(cx: &Context, options: &UndoOptions) -> String {
    let because = options.because.as_ref().map(|because| format!(": {because}")).unwrap_or_default();
    format!("left as it is by {}{because}", cx.by.user)
}

/// What is done about each step that takes back, of an undo that has begun.
async fn go_on(
    cx: &Context,
    whole: &Arc<Plan>,
    folder: &RunFolder,
    state: &RunState,
    options: &UndoOptions,
    services: &Services,
) -> Result<Vec<Resolved>, EngineError> {
    let mut resolved = resume::resolve(cx, whole, folder, state, services).await?;
    for id in &options.leave {
        let id = format!("{PREFIX}{id}");
        let found = resolved.iter_mut().find(|resolved| resolved.decision.step == id);
        // What took effect, or still goes on, can't be left out.
        let open = [DecisionAction::Run, DecisionAction::Continue, DecisionAction::Ask];
        let left = found.zip(state.step(&id)).filter(|(found, _)| open.contains(&found.decision.action));
        let Some((resolved, step)) = left else {
            return Err(EngineError::Leave(format!("`{id}` is done, goes on, or is none of this undo's steps")));
        };
        let reason = left_by(cx, options);
        resolved.decision.reason.clone_from(&reason);
        let outcome = Outcome::Skipped { reason };
        resolved.then = Some(Event::StepFinished { step: id, attempt: step.attempt, outcome, log: None });
    }
    Ok(resolved)
}

/// What the run knows, for the parameters of what takes back.
fn known(cx: &Context, whole: &Arc<Plan>, state: &RunState, decisions: &[UndoDecision]) -> Known {
    let mut turns = Turns::new(whole, state);
    turns.at(state, state.status, cx.now());
    let mut known = turns.into_known();
    for decision in decisions {
        if let Some(Outcome::Succeeded { outputs, .. }) = &decision.outcome {
            known.outputs.insert(StepId::from(decision.step.as_str()), outputs.clone());
        }
    }
    known
}

/// The steps that take back as the journal introduces them.
fn introduced(rest: &Plan, preview: &PreviewReport) -> Vec<StepHeader> {
    let mut headers = headers(rest, Some(preview));
    for header in &mut headers {
        header.undoes = header.id.strip_prefix(PREFIX).map(ToOwned::to_owned);
        header.proves_health = false;
    }
    headers
}
