//! Running plans: dry-run, run, resume.
//!
//! ```text
//! plan, state ─ walk ─▶ commands ─ dispatcher ─▶ records ─▶ journal, reporters
//!                 ▲                    │  ▲
//!                 └──── state ◀────────┘  └── worker (one step's attempts)
//! ```
//!
//! [`run`] and [`resume()`] end in the same function, [`drive`](dispatcher::drive): a run begins with an
//! empty state, a resume with a folded one. [`preview()`] is the dry-run, and each run's
//! preflight. Knows nothing of reports or the command line: they give [`Sink`]s, an
//! [`Asker`] and the copies to keep, and read the outcome.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::mpsc::UnboundedReceiver;

pub mod control;
mod dispatcher;
mod error;
mod guard;
mod limits;
mod notes;
pub mod objective;
pub mod preview;
mod resume;
mod steering;
mod target;
mod turn;
pub mod undo;
pub mod walk;
mod worker;

use crate::ids::RunId;
use crate::plan::{Known, Plan};
use crate::record::clock;
use crate::record::event::{
    Actor, Answer, EffectRecord, Event, FORMAT, Question, RunStarted, RunStatus, StepHeader,
};
use crate::record::sink::Sink;
use crate::record::state::RunState;
use crate::record::store::{Claim, Copies, RunFolder, Store};
use crate::service::Services;
use crate::step::effect::Effect;
use control::Control;
pub use error::{EngineError, ExitClass};
use guard::Guards;
pub use preview::preview;
use preview::{PreviewReport, SavedPreview};
pub use resume::{Foreseen, decide};
pub use steering::{Edit, Steering};
pub use undo::{foresee as foresee_undo, undo};

/// Tells the time; tests fix it.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// What every run of this process shares.
#[derive(Clone)]
pub struct Context {
    /// Where runs are kept.
    pub store: Store,
    /// The real systems.
    pub services: Services,
    /// The time.
    pub clock: Clock,
    /// Who runs it.
    pub by: Actor,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Context({})", self.store.root().display())
    }
}

impl Context {
    /// A context of this user, host and process, with the system's clock as it stands now: who sets that one meanwhile
    /// neither ends a question's time nor adds to a recovery's.
    pub fn new(store: Store, services: Services) -> Self {
        Self { store, services, clock: Arc::new(clock::steady()), by: Actor::current() }
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }
}

/// Who watches a run, and who may steer it.
#[derive(Default)]
pub struct Console {
    /// Readers of the run's events.
    pub sinks: Vec<Box<dyn Sink>>,
    /// Asks the person at the terminal; without one the process stops when only people can go on.
    pub asker: Option<Arc<dyn Asker>>,
    /// Pause, cancel: from [`control::signals`], or a test.
    pub controls: Option<UnboundedReceiver<Control>>,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Console({} sinks)", self.sinks.len())
    }
}

/// Asks the person at the terminal.
#[async_trait]
pub trait Asker: Send + Sync {
    /// An answer, or `None` when the person leaves it open: the run then stops as waiting.
    /// Dropped when somebody else answers first.
    async fn ask(&self, step: &str, question: &Question) -> Option<Answer>;
}

/// How to run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// How many steps at most run side by side.
    pub jobs: usize,
    /// Answer every `confirm` with yes.
    pub yes: bool,
    /// The environment's name, typed: required by a destructive plan on a protected one.
    pub confirm: Option<String>,
    /// Don't preview first.
    pub no_preflight: bool,
    /// The run's id, if not a fresh one.
    pub run_id: Option<RunId>,
    /// Run nothing but what was reviewed.
    pub approved: Option<SavedPreview>,
    /// What an operator orders, of a resume.
    pub steering: Option<Steering>,
    /// What the run's folder keeps of the plan, the environment and the inputs. Not needed by a resume.
    pub copies: Copies,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            jobs: 8,
            yes: false,
            confirm: None,
            no_preflight: false,
            run_id: None,
            approved: None,
            steering: None,
            copies: Copies::default(),
        }
    }
}

/// How this process's part of a run ended.
#[derive(Debug)]
pub struct Ended {
    /// The run's folder.
    pub folder: RunFolder,
    /// Its state: status, steps, what was waited for.
    pub state: RunState,
    /// SHA-256 of the journal's last line.
    pub head: String,
}

impl Ended {
    /// Its exit code's class.
    pub const fn class(&self) -> ExitClass {
        match self.state.status {
            RunStatus::Succeeded | RunStatus::Undone => ExitClass::Done,
            RunStatus::Paused | RunStatus::Waiting => ExitClass::Unfinished,
            RunStatus::Cancelled => ExitClass::Cancelled,
            RunStatus::Failed | RunStatus::Running => ExitClass::Failed,
        }
    }
}

/// Runs a plan: preflight, locks, then every step.
///
/// # Errors
/// When it can't begin (blocked, not approved, not confirmed, locked), or the journal can't be written.
pub async fn run(
    cx: &Context,
    plan: &Arc<Plan>,
    options: RunOptions,
    mut console: Console,
) -> Result<Ended, EngineError> {
    confirmed(plan, &options)?;
    let prepared = prepare(cx, plan, &options);
    let (foretold, claim, guards) = unless_stopped(&mut console.controls, prepared).await?;
    let headers = headers(plan, foretold.as_ref());
    let mut started = started(cx, plan, claim.id(), headers);
    let mut run = claim.begin(&options.copies)?;
    started.copies = options.copies.digests();
    let records = run.journal.append(vec![Event::RunStarted(Box::new(started))], cx.now())?;
    let state = RunState::fold(&records)?;
    for record in &records {
        console.sinks.iter_mut().for_each(|sink| sink.record(record));
    }
    dispatcher::drive(cx, plan, run, state, guards, options, console).await
}

/// Goes on with a run: asks the world what became of steps in flight, then runs the rest.
///
/// # Errors
/// When it can't go on (locked, done already, another plan, a system that can't be asked).
pub async fn resume(
    cx: &Context,
    plan: &Arc<Plan>,
    folder: &RunFolder,
    options: RunOptions,
    mut console: Console,
) -> Result<Ended, EngineError> {
    let (mut run, contents, mut state) = folder.open(cx.now())?;
    let steering = options.steering.as_ref();
    let prepared = async {
        if steering.is_none() {
            resume::same_plan(plan, &state)?;
        }
        target::unchanged(&cx.services, &state, resume::counts(steering)).await?;
        let guards = Guards::acquire(cx, plan, &folder.id).await?;
        Ok((guards, resume::course(cx, plan, folder, &state, &cx.services, steering).await?))
    };
    let (guards, course) = unless_stopped(&mut console.controls, prepared).await?;
    let resume::Course { steered, resolved, destroys } = course;
    confirmed_of(plan, &options, destroys)?;
    if let Some(change) = steered.as_ref().and_then(|steered| steered.plan.as_ref()) {
        let copies = steering.and_then(|steering| steering.edit.as_ref()).map(|edit| &edit.copies);
        folder.keep_edited(&change.copy, copies.unwrap_or(&Copies::default()))?;
    }
    let events = resume::events(cx, plan, &state, resolved, steered, contents.torn_notice());
    for record in &contents.records {
        console.sinks.iter_mut().for_each(|sink| sink.past(record));
    }
    for record in run.journal.append(events, cx.now())? {
        state.apply(&record)?;
        console.sinks.iter_mut().for_each(|sink| sink.record(&record));
    }
    dispatcher::drive(cx, plan, run, state, guards, options, console).await
}

/// What comes before the first record: the preflight, the run's id and the locks.
async fn prepare(
    cx: &Context,
    plan: &Plan,
    options: &RunOptions,
) -> Result<(Option<PreviewReport>, Claim, Guards), EngineError> {
    let foretold = preflight(cx, plan, options).await?;
    let claim = cx.store.claim(options.run_id.as_ref(), cx.now())?;
    let guards = Guards::acquire(cx, plan, claim.id()).await?;
    Ok((foretold, claim, guards))
}

/// What a preview foretells, unless none is wanted.
async fn preflight(cx: &Context, plan: &Plan, options: &RunOptions) -> Result<Option<PreviewReport>, EngineError> {
    if options.no_preflight && options.approved.is_none() {
        return Ok(None);
    }
    let report = preview::foresee(plan, Known::default(), Some(&cx.services)).await;
    if let Some(saved) = &options.approved {
        let objections = saved.objections(&SavedPreview::new(plan, report.clone()));
        if !objections.is_empty() {
            return Err(EngineError::NotApproved(objections));
        }
    }
    if report.is_blocked() {
        return Err(EngineError::Blocked(Box::new(report)));
    }
    Ok(Some(report))
}

/// Does something that touches nothing, unless an operator wants it stopped.
async fn unless_stopped<T>(
    controls: &mut Option<UnboundedReceiver<Control>>,
    work: impl Future<Output = Result<T, EngineError>>,
) -> Result<T, EngineError> {
    let Some(controls) = controls else { return work.await };
    tokio::select! {
        done = work => done,
        Some(_) = controls.recv() => Err(EngineError::Interrupted),
    }
}

/// A protected environment wants its name typed before anything in it is destroyed, or a
/// database that people use is taken from under them.
fn confirmed(plan: &Plan, options: &RunOptions) -> Result<(), EngineError> {
    let destroyed = guard::effects(plan).into_iter().filter(guard::destroys);
    confirmed_of(plan, options, destroyed.map(|effect| effect.resource.to_string()).collect())
}

fn confirmed_of(plan: &Plan, options: &RunOptions, destroyed: Vec<String>) -> Result<(), EngineError> {
    let environment = &plan.environment;
    let (true, Some(name)) = (environment.protected, &environment.name) else { return Ok(()) };
    if options.confirm.as_ref() == Some(name) {
        return Ok(());
    }
    if destroyed.is_empty() {
        return Ok(());
    }
    Err(EngineError::Unconfirmed { environment: name.clone(), destroyed })
}

/// Whether a run of this plan needs the environment's name typed ([`RunOptions::confirm`]).
pub fn needs_confirmation(plan: &Plan) -> bool {
    confirmed(plan, &RunOptions::default()).is_err()
}

/// The steps as the journal introduces them. What a preview learnt of their effects is
/// better than what the parameters alone say.
fn headers(plan: &Plan, foretold: Option<&PreviewReport>) -> Vec<StepHeader> {
    let foretold: BTreeMap<_, _> =
        foretold.into_iter().flat_map(|report| &report.steps).map(|step| (step.id.as_str(), step)).collect();
    let known = Known::default();
    plan.steps
        .iter()
        .map(|step| {
            let effects = match foretold.get(step.id.as_str()) {
                Some(step) => step.effects.clone(),
                None => step.render(&known).map_or_else(
                    |_| Vec::new(),
                    |rendered| rendered.step.effects().iter().map(|effect| masked(plan, effect)).collect(),
                ),
            };
            StepHeader {
                id: step.id.to_string(),
                step_type: step.info.name.to_owned(),
                title: step
                    .title
                    .as_ref()
                    .and_then(|title| step.text(title, &known, &plan.environment.redactor).ok()),
                needs: step.needs.iter().map(ToString::to_string).collect(),
                finally: step.finally,
                definition: step.definition.clone(),
                proves_health: step.info.proves_health,
                effects,
                undo: undo::header(plan, step),
                undoes: None,
            }
        })
        .collect()
}

fn masked(plan: &Plan, effect: &Effect) -> EffectRecord {
    let resource = plan.environment.redactor.redact(effect.resource.as_str()).into_owned();
    effect.record(resource)
}

fn started(cx: &Context, plan: &Plan, id: &RunId, steps: Vec<StepHeader>) -> RunStarted {
    let environment = &plan.environment;
    let seconds = |duration: Option<crate::units::Duration>| duration.map(|duration| duration.std().as_secs_f64());
    RunStarted {
        format: FORMAT,
        walker: walk::VERSION,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        run: id.to_string(),
        plan: plan.name.clone(),
        title: plan.title.clone(),
        plan_digest: plan.digest.clone(),
        environment: environment.name.clone(),
        environment_digest: environment.digest.clone(),
        plan_file: plan.file.display().to_string(),
        environment_file: environment.file.as_ref().map(|file| file.display().to_string()),
        inputs: preview::masked_inputs(plan),
        copies: BTreeMap::new(),
        rto: seconds(plan.objectives.rto),
        rpo: seconds(plan.objectives.rpo),
        by: cx.by.clone(),
        steps,
    }
}

#[cfg(test)]
mod tests;
