//! What an operator orders of a run before it goes on: skip, mark done, run again, accept.
//!
//! Everything is checked before anything is touched: the names, what the real systems say of a step that
//! is said to be done, and that whatever still runs gets the outputs that it reads.
//! Read next: [`probe`] for how a step shows that it is done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::limits::Limits;
use super::preview::{self, Ahead};
use super::turn::Turns;
use super::worker::{Desk, Job};
use super::{Context, EngineError, resume};
use crate::ids::StepId;
use crate::plan::problem::suggest;
use crate::plan::{Plan, PlannedStep};
use crate::record::event::{Outcome, Outputs};
use crate::record::state::{Phase, RunState, StepState};
use crate::record::steering::{ChangeKind, Order, OrderKind, Ordered, Steered};
use crate::record::store::RunFolder;
use crate::secret::Redactor;
use crate::service::Services;
use crate::step::AfterKill;

mod edit;
mod probe;
mod reads;

pub use edit::Edit;
use edit::{Earlier, Edited};

use probe::Probed;

/// What an operator orders, and why.
#[derive(Clone, Debug, Default)]
pub struct Steering {
    /// Why: it is kept for good, with who says so.
    pub because: String,
    /// Steps and what is ordered of each.
    pub orders: Vec<(String, OrderKind)>,
    /// Whether a step is marked done on the operator's word alone.
    pub unverified: bool,
    /// An edited plan that takes over.
    pub edit: Option<Edit>,
}

/// A step with its parameters, or why it can't be told.
type Rendered = Result<Arc<dyn crate::step::Step>, crate::failure::Failure>;

/// What steering comes to: the record of it, and the state with it applied.
pub(super) struct Course {
    pub steered: Steered,
    pub state: RunState,
    /// What is destroyed by what was ordered.
    pub destroys: Vec<String>,
}

/// Finds out what the orders come to.
pub(super) async fn resolve(
    cx: &Context,
    plan: &Arc<Plan>,
    folder: &RunFolder,
    state: &RunState,
    services: &Services,
    steering: &Steering,
) -> Result<Course, EngineError> {
    resume::resumable(state)?;
    let named = named(plan, steering)?;
    let edited = if let Some(edit) = &steering.edit {
        Some(edit::compare(cx, plan, edit, folder, state, services).await?)
    } else {
        resume::same_plan(plan, state)?;
        None
    };
    let mut steered = Steered {
        by: cx.by.clone(),
        because: plan.environment.redactor.redact(&steering.because).into_owned(),
        plan: edited.as_ref().map(|edited| edited.change.clone()),
        orders: Vec::new(),
    };
    if let Some(edited) = &edited {
        edit::insist(edited, state, &named)?;
    }
    let mut base = state.clone();
    base.steer(&steered, cx.now())?;
    let desk = resume::desk(plan, folder, services);
    steered.orders = Orders { cx, plan, before: state, state: &base, steering, edited, desk }.take(&named).await?;
    let mut after = state.clone();
    after.steer(&steered, cx.now())?;
    reads::check(plan, &after)?;
    let again: BTreeSet<&str> = steered
        .orders
        .iter()
        .filter(|order| order.order == OrderKind::Rerun)
        .map(|order| order.step.as_str())
        .collect();
    if !again.is_empty() || steering.edit.is_some() {
        preflight(plan, &after, services).await?;
    }
    let ahead = |id: &str| after.step(id).is_some_and(|step| !step.is_done());
    let destroys = edit::destroys(plan, steering.edit.as_ref(), &again, ahead);
    Ok(Course { steered, state: after, destroys })
}

/// The orders by step, each step known and named once.
fn named(plan: &Plan, steering: &Steering) -> Result<BTreeMap<StepId, OrderKind>, EngineError> {
    let mut named: BTreeMap<StepId, OrderKind> = BTreeMap::new();
    for (name, order) in &steering.orders {
        let Some(planned) = plan.steps.iter().find(|step| step.id.as_str() == name) else {
            return Err(EngineError::Order {
                message: format!("{} {name}: the run has no step `{name}`", order.flag()),
                help: suggest(name, plan.steps.iter().map(|step| step.id.as_str())),
            });
        };
        if let Some(other) = named.insert(planned.id.clone(), *order)
            && other != *order
        {
            return Err(EngineError::Order {
                message: format!("step `{name}` is named with {} and with {}", other.flag(), order.flag()),
                help: Some("choose one of them".to_owned()),
            });
        }
    }
    Ok(named)
}

struct Orders<'a> {
    cx: &'a Context,
    plan: &'a Arc<Plan>,
    /// As the run stood.
    before: &'a RunState,
    /// The same, with the edited plan's steps where there is one.
    state: &'a RunState,
    edited: Option<Edited>,
    steering: &'a Steering,
    desk: Desk,
}

impl Orders<'_> {
    /// Each order with what was found out about it, in the plan's order.
    async fn take(&self, named: &BTreeMap<StepId, OrderKind>) -> Result<Vec<Order>, EngineError> {
        let along = self.along(named);
        let mut turns = Turns::new(self.plan, self.state);
        turns.at(self.state, self.state.status, self.cx.now());
        let mut orders = Vec::new();
        for (at, planned) in self.plan.steps.iter().enumerate() {
            let (order, along) = (named.get(&planned.id).copied(), along.get(&planned.id));
            if order.or(along.map(|_| OrderKind::Rerun)).is_none() {
                continue;
            }
            let rendered = turns.step(at);
            let order = match (order, along) {
                (Some(OrderKind::Skip), _) => self.skip(at, rendered).await?,
                (Some(OrderKind::MarkDone), _) => {
                    let order = self.mark_done(at, rendered).await?;
                    if let Some(Outcome::Succeeded { outputs, .. }) = &order.outcome {
                        turns.know(at, outputs.clone());
                    }
                    order
                }
                (Some(OrderKind::Rerun), _) => self.rerun(at, rendered, None).await?,
                (Some(OrderKind::Accept), _) => self.accept(at)?,
                (None, because_of) => self.rerun(at, rendered, because_of).await?,
            };
            orders.push(order);
        }
        Ok(orders)
    }

    /// The steps that go along with those to be run again: all that needs them and has begun.
    fn along(&self, named: &BTreeMap<StepId, OrderKind>) -> BTreeMap<StepId, StepId> {
        let mut because_of: BTreeMap<&StepId, &StepId> = BTreeMap::new();
        for step in &self.plan.steps {
            let again = |need: &&StepId| {
                named.get(*need) == Some(&OrderKind::Rerun)
                    || (because_of.contains_key(need) && !named.contains_key(*need))
            };
            if let Some(need) = step.needs.iter().find(again) {
                let root = because_of.get(need).copied().unwrap_or(need);
                because_of.insert(&step.id, root);
            }
        }
        let begun = |id: &StepId| {
            self.state.step(id.as_str()).is_some_and(|step| {
                let begun = step.attempt > 0
                    || !matches!(step.phase, Phase::Pending | Phase::Finished(Outcome::NotRun { .. }));
                begun && !step.header.finally && !step.is_skipped_by_order()
            })
        };
        because_of
            .into_iter()
            .filter(|(id, _)| !named.contains_key(*id) && begun(id))
            .map(|(id, root)| (id.clone(), root.clone()))
            .collect()
    }

    async fn skip(&self, at: usize, rendered: Rendered) -> Result<Order, EngineError> {
        let step = self.stood(at);
        if step.outputs().is_some() {
            return Err(refused(
                step,
                OrderKind::Skip,
                "it has succeeded",
                "what succeeded is kept anyway; `--rerun` runs it again",
            ));
        }
        let found = if step.may_have_happened() {
            let answer = match self.earlier(at) {
                Some(Earlier::Happened(_, said) | Earlier::Unclear(said) | Earlier::StillGoing(said)) => {
                    Ok(said.clone())
                }
                Some(Earlier::Over(said)) => Ok(said.clone().unwrap_or_default()),
                None => match self.ask(at, rendered).await {
                    // What needs it would run beside it.
                    Ok(answer @ AfterKill::StillGoing { .. }) if !self.desk.services.is_read_only() => {
                        return Err(EngineError::Refused {
                            step: self.plan.steps[at].id.clone(),
                            why: self.redacted(&became(&answer)),
                            help: "wait until it is through, or end it".to_owned(),
                        });
                    }
                    answer => answer.map(|answer| became(&answer)),
                },
            };
            Some(match answer {
                Ok(said) => format!("it may have happened: {said}"),
                Err(why) => format!("it may have happened; its systems could not be asked: {why}"),
            })
        } else {
            None
        };
        let outcome = Outcome::Skipped { reason: self.said(OrderKind::Skip, found.as_deref(), false) };
        Ok(order(step, OrderKind::Skip, found, Some(outcome)))
    }

    async fn mark_done(&self, at: usize, rendered: Rendered) -> Result<Order, EngineError> {
        let (planned, step) = (&self.plan.steps[at], &self.state.steps[at]);
        if step.outputs().is_some() {
            return Err(refused(step, OrderKind::MarkDone, "it has succeeded", "what succeeded is kept anyway"));
        }
        if planned.finally {
            return Err(refused(
                step,
                OrderKind::MarkDone,
                "`finally` runs at the end of every resume",
                "`--skip` leaves it out",
            ));
        }
        let probed = match rendered {
            Ok(rendered) if rendered.question(self.cx.now()).is_some() => {
                return Err(refused(
                    step,
                    OrderKind::MarkDone,
                    "it asks people, and their answer is what it is for",
                    "`lifeboat approve` answers it; `--skip` goes on without an answer",
                ));
            }
            Ok(rendered) => probe::probe(&self.desk, planned, job(at, planned, step, rendered)).await,
            Err(failure) => Probed::Disagrees(format!("its parameters can't be told: {}", failure.message)),
        };
        let (done, found, unverified) = match probed {
            Probed::Agrees(done, found) => (done, found, false),
            Probed::StillGoing(what) => {
                return Err(EngineError::Refused {
                    step: planned.id.clone(),
                    why: self.redacted(&format!("it still goes on: {what}")),
                    help: "wait until it is through, or end it".to_owned(),
                });
            }
            Probed::Disagrees(why) if self.steering.unverified => (crate::step::Done::default(), why, true),
            Probed::Disagrees(why) => {
                return Err(EngineError::Refused {
                    step: planned.id.clone(),
                    why: self.redacted(&why),
                    help: "bring it about, and try again; if you know better, add `--unverified`, which every report shows"
                        .to_owned(),
                });
            }
        };
        let found = self.redacted(&found);
        let kept = self.desk.kept(done).map_err(|failure| EngineError::Refused {
            step: planned.id.clone(),
            why: failure.message,
            help: failure.help.unwrap_or_default(),
        })?;
        let outputs = match kept {
            Outcome::Succeeded { outputs, .. } => outputs,
            _ => Outputs::new(),
        };
        let summary = Some(self.said(OrderKind::MarkDone, Some(&found), unverified));
        let mut order =
            order(step, OrderKind::MarkDone, Some(found), Some(Outcome::Succeeded { outputs, summary }));
        order.unverified = unverified;
        Ok(order)
    }

    async fn rerun(&self, at: usize, rendered: Rendered, along: Option<&StepId>) -> Result<Order, EngineError> {
        let (planned, step) = (&self.plan.steps[at], &self.state.steps[at]);
        if planned.finally {
            return Err(refused(
                step,
                OrderKind::Rerun,
                "`finally` runs at the end of every resume",
                "leave it out",
            ));
        }
        let mut found = None;
        if self.earlier(at).is_none() && self.stood(at).may_have_happened() {
            let answer = self.ask(at, rendered).await.map_err(|why| EngineError::Refused {
                step: planned.id.clone(),
                why: format!("it was cut off, and it could not be found out whether it still goes on: {why}"),
                help: "make the system reachable, then try again".to_owned(),
            })?;
            // Two at once is never right. A dry-run ends nothing, so what it sees may be ended by a resume.
            if matches!(answer, AfterKill::StillGoing { .. }) && !self.desk.services.is_read_only() {
                return Err(EngineError::Refused {
                    step: planned.id.clone(),
                    why: became(&answer),
                    help: "wait until it is through, or end it".to_owned(),
                });
            }
            found = Some(self.redacted(&became(&answer)));
        }
        let mut order = order(step, OrderKind::Rerun, found, None);
        order.along_with = along.map(ToString::to_string);
        Ok(order)
    }

    fn accept(&self, at: usize) -> Result<Order, EngineError> {
        let step = self.stood(at);
        let is_changed = self.edited.as_ref().is_some_and(|edited| edited.is(&step.header.id, ChangeKind::Changed));
        if !is_changed {
            return Err(refused(
                step,
                OrderKind::Accept,
                "its definition is the same",
                "what succeeded is kept anyway",
            ));
        }
        match self.earlier(at) {
            Some(Earlier::Happened(done, said)) => {
                let kept = self.desk.kept(done.clone()).map_err(|failure| EngineError::Refused {
                    step: self.plan.steps[at].id.clone(),
                    why: failure.message,
                    help: failure.help.unwrap_or_default(),
                })?;
                Ok(order(step, OrderKind::Accept, Some(self.redacted(said)), Some(kept)))
            }
            _ if step.outputs().is_some() => Ok(order(step, OrderKind::Accept, None, None)),
            _ => Err(refused(
                step,
                OrderKind::Accept,
                "it has no result to keep",
                "leave it out: it runs as it is defined now",
            )),
        }
    }

    /// The step as it stood before an edited plan took over.
    fn stood(&self, at: usize) -> &StepState {
        let now = &self.state.steps[at];
        self.before.step_ever(&now.header.id).unwrap_or(now)
    }

    /// What attempts under an older definition came to, where the definition changed.
    fn earlier(&self, at: usize) -> Option<&Earlier> {
        self.edited.as_ref()?.earlier.get(self.plan.steps[at].id.as_str())
    }

    /// What became of the last attempt, by the real systems.
    async fn ask(&self, at: usize, rendered: Rendered) -> Result<AfterKill, String> {
        let rendered = rendered.map_err(|failure| self.redacted(&failure.message))?;
        ask(&self.desk, at, &self.plan.steps[at], &self.state.steps[at], rendered).await
    }

    /// `skipped by ana@host: because …`.
    fn said(&self, order: OrderKind, found: Option<&str>, unverified: bool) -> String {
        Ordered {
            order,
            by: self.cx.by.who(),
            because: self.redacted(&self.steering.because),
            at: self.cx.now(),
            found: found.map(|found| self.redacted(found)),
            unverified,
            along_with: None,
        }
        .said()
    }

    fn redacted(&self, text: &str) -> String {
        redact(&self.plan.environment.redactor, text)
    }
}

fn redact(redactor: &Redactor, text: &str) -> String {
    redactor.redact(text).into_owned()
}

/// A question about a step's last attempt.
fn job(at: usize, planned: &PlannedStep, step: &StepState, rendered: Arc<dyn crate::step::Step>) -> Job {
    Job {
        at,
        id: planned.id.clone(),
        step: rendered,
        attempt: step.attempt,
        since: step.since,
        notes: (&step.notes).into(),
        limits: Limits::fixed(planned.timeout.map(crate::units::Duration::std)),
        cancel: tokio_util::sync::CancellationToken::new(),
    }
}

/// What became of a step's last attempt, by the real systems; secrets masked in what can't be asked.
async fn ask(
    desk: &Desk,
    at: usize,
    planned: &PlannedStep,
    step: &StepState,
    rendered: Arc<dyn crate::step::Step>,
) -> Result<AfterKill, String> {
    let job = job(at, planned, step, rendered);
    let answer = super::worker::ask(job.step.clone(), desk.probe(&job)).await;
    answer.map_err(|failure| redact(&desk.redactor, &failure.message))
}

fn order(step: &StepState, order: OrderKind, found: Option<String>, outcome: Option<Outcome>) -> Order {
    Order { step: step.header.id.clone(), order, found, unverified: false, along_with: None, outcome }
}

fn refused(step: &StepState, order: OrderKind, why: &str, help: &str) -> EngineError {
    EngineError::Order {
        message: format!("{} {}: {why}", order.flag(), step.header.id),
        help: Some(help.to_owned()),
    }
}

/// An answer in words.
fn became(answer: &AfterKill) -> String {
    match answer {
        AfterKill::Happened(done) => match &done.summary {
            Some(summary) => format!("it took effect: {summary}"),
            None => "it took effect".to_owned(),
        },
        AfterKill::DidNotHappen { why } => format!("it had no effect: {why}"),
        AfterKill::Partly { what } => format!("it took effect in part: {what}"),
        AfterKill::StillGoing { what } => format!("it still goes on: {what}"),
        AfterKill::RunAgain { why } | AfterKill::CannotTell { why } => {
            format!("nobody can tell what became of it: {why}")
        }
    }
}

/// What runs from its start is looked at first, as before a run: a database that is to be created and
/// exists stops the resume before anything is touched.
async fn preflight(plan: &Plan, after: &RunState, services: &Services) -> Result<(), EngineError> {
    let given = after
        .steps
        .iter()
        .filter_map(|step| Some((StepId::from(step.header.id.as_str()), step.outputs()?.clone())));
    let ahead = |at: usize| {
        let step = &after.steps[at];
        match &step.phase {
            _ if step.header.finally => Ahead::GoesOn,
            _ if step.is_done() => Ahead::Done,
            Phase::Finished(Outcome::NotRun { .. }) => Ahead::Starts,
            Phase::Pending if step.notes.is_empty() => Ahead::Starts,
            _ => Ahead::GoesOn,
        }
    };
    let report = preview::foresee_rest(plan, services, given.collect(), ahead).await;
    if report.is_blocked() { Err(EngineError::Blocked(Box::new(report))) } else { Ok(()) }
}
