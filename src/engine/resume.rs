//! What to do with each step of a run that goes on, and why.
//!
//! A step in flight is never silently repeated and never blindly trusted: its type
//! answers from the real systems what became of it.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::guard::Guards;
use super::limits::Limits;
use super::target::{self, Targets};
use super::turn::Turns;
use super::worker::{self, Desk, Job};
use super::{Context, EngineError, Steering, walk};
use crate::failure::Failure;
use crate::ids::StepId;
use crate::plan::{Plan, PlannedStep};
use crate::record::event::{
    Decision, DecisionAction, ErrorRecord, Event, Outcome, Question, QuestionKind, RunStatus,
};
use crate::record::state::{Phase, RunState, StepState, Verdict};
use crate::record::steering::{OrderKind, Steered};
use crate::record::store::RunFolder;
use crate::service::Services;
use crate::step::AfterKill;

/// A decision, and the change that carries it out where running the step doesn't.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) decision: Decision,
    pub(super) then: Option<Event>,
}

/// What a resume would do with each step, and why. Looks at the real systems, read-only;
/// changes nothing (`resume --dry-run`).
///
/// # Errors
/// When the run is done, the plan another one, or a system can't be asked.
pub async fn decide(
    cx: &Context,
    plan: &Arc<Plan>,
    folder: &RunFolder,
    steering: Option<&Steering>,
) -> Result<Foreseen, EngineError> {
    let state = folder.state()?;
    resumable(&state)?;
    target::unchanged(&cx.services.read_only(), &state, counts(steering)).await?;
    let course = course(cx, plan, folder, &state, &cx.services.read_only(), steering).await?;
    let Course { steered, resolved, .. } = course;
    Ok(Foreseen { steered, decisions: resolved.into_iter().map(|resolved| resolved.decision).collect() })
}

/// Whether what this step noted of who is where still counts: not when an operator gives an order for it.
pub(super) fn counts(steering: Option<&Steering>) -> impl Fn(&str, &str) -> bool {
    move |_, step| {
        let mut orders = steering.into_iter().flat_map(|steering| &steering.orders);
        orders.all(|(id, order)| id != step || *order == OrderKind::Accept)
    }
}

/// What a resume comes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Foreseen {
    /// What the operator's orders come to, if there are any.
    pub steered: Option<Steered>,
    /// What is done with each step.
    pub decisions: Vec<Decision>,
}

/// What a resume comes to, before it is on disk.
pub(super) struct Course {
    pub(super) steered: Option<Steered>,
    pub(super) resolved: Vec<Resolved>,
    /// What is destroyed by what the operator ordered.
    pub(super) destroys: Vec<String>,
}

/// What the operator's orders come to, and then what is done with each step.
pub(super) async fn course(
    cx: &Context,
    plan: &Arc<Plan>,
    folder: &RunFolder,
    state: &RunState,
    services: &Services,
    steering: Option<&Steering>,
) -> Result<Course, EngineError> {
    let Some(steering) = steering else {
        same_plan(plan, state)?;
        let resolved = resolve(cx, plan, folder, state, services).await?;
        return Ok(Course { steered: None, resolved, destroys: Vec::new() });
    };
    let course = super::steering::resolve(cx, plan, folder, state, services, steering).await?;
    let resolved = resolve(cx, plan, folder, &course.state, services).await?;
    Ok(Course { steered: Some(course.steered), resolved, destroys: course.destroys })
}

/// Whether the run can go on with this plan: what it did so far must be what the plan says now.
pub(super) fn same_plan(plan: &Plan, state: &RunState) -> Result<(), EngineError> {
    resumable(state)?;
    let now: HashMap<&str, &PlannedStep> = plan.steps.iter().map(|step| (step.id.as_str(), step)).collect();
    same_steps(plan, state, &now)
}

/// Whether there is something left to do, and this version can do it.
pub(super) fn resumable(state: &RunState) -> Result<(), EngineError> {
    if state.undo.is_some() {
        return Err(EngineError::BeingUndone(state.header.run.clone()));
    }
    if state.status == RunStatus::Succeeded {
        return Err(EngineError::Finished(state.header.run.clone()));
    }
    if state.header.walker > walk::VERSION {
        return Err(EngineError::NewerWalker { found: state.header.walker });
    }
    Ok(())
}

fn same_steps(plan: &Plan, state: &RunState, now: &HashMap<&str, &PlannedStep>) -> Result<(), EngineError> {
    let mut changed = Vec::new();
    for step in &state.steps {
        match now.get(step.header.id.as_str()) {
            None => changed.push(format!("`{}` (gone)", step.header.id)),
            Some(planned) if planned.definition != step.header.definition => {
                changed.push(format!("`{}`", step.header.id));
            }
            Some(_) => {}
        }
    }
    changed.extend(
        plan.steps
            .iter()
            .filter(|step| state.step(step.id.as_str()).is_none())
            .map(|step| format!("`{}` (new)", step.id)),
    );
    let same_order =
        plan.steps.iter().map(|step| step.id.as_str()).eq(state.steps.iter().map(|s| s.header.id.as_str()));
    if changed.is_empty() && same_order && plan.digest == state.header.plan_digest {
        return Ok(());
    }
    Err(EngineError::PlanChanged(changed))
}

/// Decides for each step, in the plan's order.
pub(super) async fn resolve(
    cx: &Context,
    plan: &Arc<Plan>,
    folder: &RunFolder,
    state: &RunState,
    services: &Services,
) -> Result<Vec<Resolved>, EngineError> {
    let now = cx.now();
    let mut turns = Turns::new(plan, state);
    turns.at(state, state.status, now);
    let desk = desk(plan, folder, services);
    let mut resolved = Vec::with_capacity(plan.steps.len());
    for (at, step) in state.steps.iter().enumerate().skip(state.live_from()) {
        let planned = &plan.steps[at];
        if !step.is_open_ended() {
            let (action, reason) = settled(planned, step, now);
            resolved.push(decided(step, action, reason, None));
            continue;
        }
        let undecided = |failure| EngineError::Undecided { step: planned.id.clone(), failure };
        let job = Job {
            at,
            id: planned.id.clone(),
            step: turns.step(at).map_err(undecided)?,
            attempt: step.attempt,
            since: step.since,
            notes: (&step.notes).into(),
            limits: Limits::fixed(None),
            cancel: CancellationToken::new(),
        };
        let answer =
            worker::ask(job.step.clone(), desk.probe(&job)).await.map_err(|f| undecided(masked(&desk, f)))?;
        resolved.push(in_flight(&desk, planned, step, answer));
    }
    Ok(resolved)
}

/// The records that a resume begins with.
pub(super) fn events(
    cx: &Context,
    plan: &Plan,
    state: &RunState,
    resolved: Vec<Resolved>,
    steered: Option<Steered>,
    torn: Option<Event>,
) -> Vec<Event> {
    let notice = |message: String| Event::Noticed { step: None, message };
    let mut events: Vec<_> = torn.into_iter().collect();
    if plan.environment.digest != state.header.environment_digest {
        events.push(notice("the environment is not as it was when the run began".to_owned()));
    }
    events.extend(steered.map(|steered| Event::Steered(Box::new(steered))));
    let (decisions, then): (Vec<_>, Vec<_>) =
        resolved.into_iter().map(|resolved| (resolved.decision, resolved.then)).unzip();
    let version = env!("CARGO_PKG_VERSION").to_owned();
    events.push(Event::RunResumed { by: cx.by.clone(), version, decisions });
    events.extend(then.into_iter().flatten());
    events
}

/// What a person is asked when nobody can tell whether a step happened.
pub(super) fn interrupted(step: &StepId, why: &str) -> Question {
    Question {
        kind: QuestionKind::Interrupted,
        message: format!(
            "step `{step}` was cut off, and nobody can tell whether it took effect: {why}. \
             `approve` runs it again; `reject` leaves it as it is and ends the run as failed"
        ),
        checklist: Vec::new(),
        fields: std::collections::BTreeMap::default(),
        by: Vec::new(),
        quorum: 1,
        not_by_requester: false,
        until: None,
    }
}

/// For a step whose last attempt is known to have ended.
fn settled(planned: &PlannedStep, step: &StepState, now: Timestamp) -> (DecisionAction, String) {
    use DecisionAction::{Ask, Keep, Run, Skip};
    match &step.phase {
        Phase::Finished(_) if planned.finally && !step.is_skipped_by_order() => {
            (Run, "`finally` runs at the end of every run and resume".to_owned())
        }
        Phase::Finished(Outcome::Succeeded { .. }) => match stale(planned, step, now) {
            Some(reason) => (Run, reason),
            None => (Keep, ordered(step).unwrap_or_else(|| "it succeeded".to_owned())),
        },
        Phase::Finished(Outcome::Skipped { reason }) => (Skip, reason.clone()),
        Phase::Finished(Outcome::Failed { error }) => (Run, format!("it failed: {}", error.message)),
        Phase::Finished(Outcome::Cancelled { reason }) => (Run, format!("it had not begun: {reason}")),
        Phase::Finished(Outcome::NotRun { reason }) => (Run, format!("it did not run: {reason}")),
        Phase::Retrying { .. } => (Run, format!("attempt {} failed, and the next had not begun", step.attempt)),
        Phase::Waiting(waiting) => {
            let by: Vec<_> = waiting.answers.iter().map(|answer| answer.by.as_str()).collect();
            match waiting.verdict() {
                Verdict::Approved => return (Ask, format!("it was answered yes by {}", by.join(", "))),
                Verdict::Rejected => {
                    let no = waiting.answers.iter().find(|answer| !answer.approved).map_or("", |answer| &answer.by);
                    return (Ask, format!("it was answered no by {no}, and ends as failed"));
                }
                Verdict::Open => {}
            }
            let (given, wanted) = (waiting.answers.len(), waiting.question.quorum.max(1));
            (
                Ask,
                format!(
                    "a person is asked since {}: {given} of {wanted} answers",
                    waiting.since.strftime("%Y-%m-%d %H:%M:%SZ")
                ),
            )
        }
        Phase::Pending if step.confirmed => (Run, "a person said yes, and it had not begun".to_owned()),
        Phase::Pending | Phase::Running => (Run, ordered(step).unwrap_or_else(|| "it has not run".to_owned())),
    }
}

/// What an operator ordered of a step that stands as it was left by that.
fn ordered(step: &StepState) -> Option<String> {
    let ordered = step.ordered.as_ref()?;
    let stands = match ordered.order {
        OrderKind::Skip | OrderKind::MarkDone | OrderKind::Accept => step.is_done(),
        OrderKind::Rerun => step.attempt < step.since && !step.is_done(),
    };
    stands.then(|| ordered.said())
}

fn stale(planned: &PlannedStep, step: &StepState, now: Timestamp) -> Option<String> {
    let valid_for = planned.valid_for?;
    let Ok(age) = std::time::Duration::try_from(now.duration_since(step.finished_at?)) else {
        // A clock that was set back says nothing of a proof's age.
        return Some("the clock was set back since it succeeded".to_owned());
    };
    let text = crate::units::Duration::seconds(age.as_secs());
    (age > valid_for.std()).then(|| format!("it succeeded {text} ago, and its proof is good for {valid_for}"))
}

/// For a step in flight, by what its type found in the world.
fn in_flight(desk: &Desk, planned: &PlannedStep, step: &StepState, answer: AfterKill) -> Resolved {
    use DecisionAction::{Ask, Continue, Keep, Run, Wait};
    let redact = |text: &str| desk.redactor.redact(text).into_owned();
    let cut = |why: &str| format!("attempt {} was cut off: {}", step.attempt, redact(why));
    let id = step.header.id.clone();
    match answer {
        AfterKill::Happened(done) => {
            let outcome = match desk.kept(done) {
                Ok(outcome) => outcome,
                Err(failure) => Outcome::Failed { error: ErrorRecord::from(masked(desk, failure)) },
            };
            let said = match &outcome {
                Outcome::Succeeded { summary: Some(summary), .. } => format!("it took effect: {summary}"),
                _ => "it took effect".to_owned(),
            };
            let then = Event::StepFinished { step: id, attempt: step.attempt, outcome, log: None };
            decided(step, Keep, cut(&said), Some(then))
        }
        AfterKill::DidNotHappen { why } => decided(step, Run, cut(&format!("it had no effect: {why}")), None),
        AfterKill::RunAgain { why } => decided(step, Run, cut(&why), None),
        AfterKill::Partly { what } => {
            decided(step, Continue, cut(&format!("it took effect in part: {what}")), None)
        }
        AfterKill::StillGoing { what } => decided(step, Wait, cut(&format!("it still goes on: {what}")), None),
        AfterKill::CannotTell { why } if planned.rerun_if_interrupted => {
            decided(step, Run, cut(&worker::rerun_anyway(&why)), None)
        }
        AfterKill::CannotTell { why } => {
            let question = interrupted(&planned.id, &redact(&why));
            let then = Event::StepWaiting { step: id, question };
            decided(step, Ask, cut(&format!("nobody can tell what became of it: {why}")), Some(then))
        }
    }
}

fn decided(step: &StepState, action: DecisionAction, reason: String, then: Option<Event>) -> Resolved {
    Resolved { decision: Decision { step: step.header.id.clone(), action, reason }, then }
}

pub(super) fn masked(desk: &Desk, failure: Failure) -> Failure {
    let error = desk.error(failure);
    Failure { message: error.message, transient: error.transient, help: error.help }
}

/// A desk for questions only: what a step says while it is asked goes to its log.
pub(super) fn desk(plan: &Plan, folder: &RunFolder, services: &Services) -> Desk {
    let (reports, _) = mpsc::channel(1);
    let (progress, _) = mpsc::channel(1);
    Desk {
        run: folder.id.clone(),
        folder: folder.clone(),
        services: services.clone(),
        redactor: plan.environment.redactor.clone(),
        guards: Arc::new(Guards::none()),
        targets: Arc::new(Targets::default()),
        reports,
        progress,
    }
}
