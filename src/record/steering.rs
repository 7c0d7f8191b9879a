//! What operators order of a run's steps: skip, mark done, run again, another plan, other limits.
//!
//! One record holds all that one command ordered, so that a power cut leaves all of it or nothing.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::event::{Actor, Outcome, QuestionKind, RunStatus, StepHeader};
use super::state::{Illegal, Phase, RunState, StepState};
use super::step_state::illegal;
use crate::units::Duration;

/// All that one command ordered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Steered {
    /// Who ordered it, and where.
    pub by: Actor,
    /// Why, in their words.
    pub because: String,
    /// The plan that takes the place of the one before, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanChange>,
    /// What was ordered of which step, in the plan's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub orders: Vec<Order>,
}

/// What was ordered of one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Order {
    /// The step.
    pub step: String,
    /// What.
    pub order: OrderKind,
    /// What was found out about it before the order was taken: what the real systems say, that it may have happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
    /// Whether the operator's word was taken where the real systems did not confirm it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unverified: bool,
    /// The step that was named, where this one only goes along with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub along_with: Option<String>,
    /// What it counts as from now on, if it came to its end by this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

/// What may be ordered of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OrderKind {
    /// It counts as done, without having been run.
    Skip,
    /// It is done, in another way than by this run.
    MarkDone,
    /// It goes back to be run; earlier attempts stay in the journal.
    Rerun,
    /// Its result counts, though its definition was edited since.
    Accept,
}

impl OrderKind {
    /// The flag that orders it.
    pub const fn flag(self) -> &'static str {
        match self {
            Self::Skip => "--skip",
            Self::MarkDone => "--mark-done",
            Self::Rerun => "--rerun",
            Self::Accept => "--accept",
        }
    }

    /// What was done, for people: `skipped by …`.
    pub const fn done(self) -> &'static str {
        match self {
            Self::Skip => "skipped",
            Self::MarkDone => "marked done",
            Self::Rerun => "run again",
            Self::Accept => "accepted as it is",
        }
    }
}

/// An edited plan takes over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlanChange {
    /// SHA-256 of the plan with its sub-plans, in hex.
    pub plan_digest: String,
    /// The digest of the plan before.
    pub previous_digest: String,
    /// Where the plan's file was.
    pub plan_file: String,
    /// The folder of its copy, below the run's; that of the plan before stays beside it.
    pub copy: String,
    /// SHA-256 in hex of the files of that copy, by path below the run's folder.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub copies: BTreeMap<String, String>,
    /// Its title, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// SHA-256 of the environment's text and of the names that it took from outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment_digest: Option<String>,
    /// The inputs, secrets masked.
    pub inputs: BTreeMap<String, Value>,
    /// The recovery time objective, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rto: Option<f64>,
    /// The recovery point objective, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo: Option<f64>,
    /// Every step in its order.
    pub steps: Vec<StepHeader>,
    /// What differs, step by step: those that stay as they are aren't listed.
    pub changes: Vec<StepChange>,
}

/// How one step differs between two plans.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StepChange {
    /// The step.
    pub step: String,
    /// How.
    pub change: ChangeKind,
    /// What is to be known of it: that it had happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// How a step differs between two plans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// It was not there before.
    New,
    /// It is not there any more.
    Gone,
    /// Its definition is another one.
    Changed,
    /// It waits for other steps, or stands elsewhere.
    Moved,
}

impl ChangeKind {
    /// The word used on screens.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Gone => "gone",
            Self::Changed => "changed",
            Self::Moved => "moved",
        }
    }
}

/// Other limits for a step of this run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Adjustment {
    /// The step.
    pub step: String,
    /// Who ordered it, and where.
    pub by: Actor,
    /// Why, in their words.
    pub because: String,
    /// What is other than the plan says.
    pub limits: Limits,
}

/// Limits of a step's attempts; what isn't given stays as it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Limits {
    /// The bound on one attempt, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<f64>,
    /// Attempts in all, those since the last resume counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// The wait before the second attempt, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<f64>,
}

impl Limits {
    /// These, and of the earlier ones what they leave open.
    #[must_use]
    pub fn over(self, earlier: Self) -> Self {
        Self {
            timeout: self.timeout.or(earlier.timeout),
            attempts: self.attempts.or(earlier.attempts),
            delay: self.delay.or(earlier.delay),
        }
    }

    /// `timeout 30m, 10 attempts`.
    pub fn said(&self) -> String {
        let text = |seconds: f64| {
            Duration(std::time::Duration::try_from_secs_f64(seconds).unwrap_or_default()).to_string()
        };
        let timeout = self.timeout.map(|timeout| format!("timeout {}", text(timeout)));
        let attempts = self.attempts.map(|attempts| format!("{attempts} attempts"));
        let delay = self.delay.map(|delay| format!("{} before the second attempt", text(delay)));
        [timeout, attempts, delay].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

/// The limits that hold for a step, and who gave the last of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Adjusted {
    /// What is other than the plan says.
    pub limits: Limits,
    /// Who, as `user@host`.
    pub by: String,
    /// Why, in their words.
    pub because: String,
    /// When.
    #[schemars(with = "String")]
    pub at: jiff::Timestamp,
}

/// The last order that a step got.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ordered {
    /// What.
    pub order: OrderKind,
    /// Who, as `user@host`.
    pub by: String,
    /// Why, in their words.
    pub because: String,
    /// When.
    #[schemars(with = "String")]
    pub at: jiff::Timestamp,
    /// What was found out before the order was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
    /// Whether the operator's word was taken where the real systems did not confirm it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unverified: bool,
    /// The step that was named, where this one only went along with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub along_with: Option<String>,
}

impl Ordered {
    /// `skipped by ana@host: because …`.
    pub fn said(&self) -> String {
        let Self { order, by, because, found, unverified, along_with, .. } = self;
        let unverified = if *unverified { ", unverified," } else { "" };
        let along = along_with.as_ref().map(|step| format!(", as it needs `{step}`")).unwrap_or_default();
        let found = found.as_ref().map(|found| format!(" ({found})")).unwrap_or_default();
        format!("{}{unverified} by {by}: {because}{along}{found}", order.done())
    }
}

impl Actor {
    /// `user@host`.
    pub fn who(&self) -> String {
        format!("{}@{}", self.user, self.host)
    }
}

impl RunState {
    /// Applies what an operator ordered.
    ///
    /// # Errors
    /// When it names a step that the run doesn't have; nothing changes then.
    pub fn steer(&mut self, steered: &Steered, at: jiff::Timestamp) -> Result<(), Illegal> {
        let headers = steered.plan.as_ref().map(|plan| plan.steps.as_slice());
        let known = |id: &str| match headers {
            Some(headers) => headers.iter().any(|header| header.id == id),
            None => self.position(id).is_some(),
        };
        if let Some(unknown) = steered.orders.iter().find(|order| !known(&order.step)) {
            return illegal(format!("the run has no step `{}`", unknown.step));
        }
        if let Some(plan) = &steered.plan {
            self.change_plan(plan)?;
        }
        for order in &steered.orders {
            // What it touched may be another one by now: it notes anew what it finds.
            if order.order != OrderKind::Accept {
                self.seen.retain(|_, seen| seen.step != order.step);
            }
            if order.order == OrderKind::Rerun
                && let Some(step) = self.step(&order.step).filter(|step| step.acted().is_some())
            {
                self.past.push(step.clone());
            }
            let ordered = Ordered {
                order: order.order,
                by: steered.by.who(),
                because: steered.because.clone(),
                at,
                found: order.found.clone(),
                unverified: order.unverified,
                along_with: order.along_with.clone(),
            };
            self.alter(&order.step, |step| {
                step.order(order, ordered, at);
                Ok(())
            })?;
            let proves = self.step(&order.step).is_some_and(|step| step.header.proves_health);
            match order.order {
                // Asked of the real systems now: that is a proof as good as a run's.
                OrderKind::MarkDone if proves && !order.unverified => self.healthy = Some((at, self.waited)),
                OrderKind::Rerun if proves => self.healthy = None,
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether a step's limits may be changed; the reason if not.
    ///
    /// # Errors
    /// What is wrong, for the one who asks.
    pub fn check_adjustment(&self, step: &str) -> Result<(), String> {
        match self.status {
            RunStatus::Succeeded => return Err("the run has succeeded: nothing is left to do".to_owned()),
            RunStatus::Undone => return Err("the run was taken back: nothing is left to do".to_owned()),
            _ => {}
        }
        if self.undo.as_ref().is_some_and(|undo| self.position(step).is_some_and(|at| at < undo.from)) {
            return Err(format!("the run is being taken back, and step `{step}` doesn't run any more"));
        }
        let Some(state) = self.step(step) else { return Err(format!("the run has no step `{step}`")) };
        if state.is_done() && !state.header.finally { Err(format!("step `{step}` is done")) } else { Ok(()) }
    }

    pub(super) fn adjust(&mut self, adjustment: &Adjustment, at: jiff::Timestamp) -> Result<(), Illegal> {
        self.alter(&adjustment.step, |step| {
            let earlier = step.adjusted.as_ref().map(|adjusted| adjusted.limits).unwrap_or_default();
            step.adjusted = Some(Adjusted {
                limits: adjustment.limits.over(earlier),
                by: adjustment.by.who(),
                because: adjustment.because.clone(),
                at,
            });
            Ok(())
        })
    }

    fn change_plan(&mut self, plan: &PlanChange) -> Result<(), Illegal> {
        let ids: BTreeSet<&str> = plan.steps.iter().map(|header| header.id.as_str()).collect();
        if ids.len() != plan.steps.len() {
            return illegal("a step is listed twice");
        }
        let mut earlier: BTreeMap<String, StepState> =
            std::mem::take(&mut self.steps).into_iter().map(|step| (step.header.id.clone(), step)).collect();
        let mut past = Vec::new();
        self.steps = plan
            .steps
            .iter()
            .map(|header| {
                // One that had been in an earlier plan and comes back has its history still.
                let back = self.gone.iter().position(|step| step.header.id == header.id);
                let step = earlier.remove(&header.id).or_else(|| back.map(|at| self.gone.remove(at)));
                match step {
                    Some(step) => step.redefined(header.clone(), &mut past),
                    None => StepState::new(header.clone()),
                }
            })
            .collect();
        self.gone.extend(earlier.into_values());
        self.past.append(&mut past);
        self.reindex();
        let header = &mut self.header;
        header.plan_digest.clone_from(&plan.plan_digest);
        header.plan_file.clone_from(&plan.plan_file);
        header.title.clone_from(&plan.title);
        header.environment_digest.clone_from(&plan.environment_digest);
        header.inputs.clone_from(&plan.inputs);
        (header.rto, header.rpo) = (plan.rto, plan.rpo);
        header.steps.clone_from(&plan.steps);
        self.plan_copy = Some(plan.copy.clone());
        Ok(())
    }
}

impl StepState {
    /// With another definition. What attempts of the one before noted would lead the next one
    /// astray; a step that is done keeps its result.
    fn redefined(mut self, header: StepHeader, past: &mut Vec<Self>) -> Self {
        let stays = self.outputs().is_some() || self.is_skipped_by_order();
        if self.header.definition != header.definition {
            if self.acted().is_some() {
                past.push(self.clone());
                self.taken_over = stays;
            }
            if !stays {
                self.forget();
                self.phase = Phase::Pending;
                (self.started_at, self.finished_at) = (None, None);
                (self.confirmed, self.unresolved) = (false, false);
            }
        }
        self.header = header;
        self
    }

    /// Whether it has touched the world under its present definition, for sure (true) or perhaps; nothing when it can't have.
    pub fn acted(&self) -> Option<bool> {
        let begun = self.attempt > 0 && self.attempt >= self.since;
        match &self.phase {
            _ if self.taken_over => None,
            Phase::Finished(Outcome::Succeeded { .. }) => Some(true),
            _ => begun.then_some(false),
        }
    }

    /// Whether an operator skipped it.
    pub fn is_skipped_by_order(&self) -> bool {
        matches!(self.phase, Phase::Finished(Outcome::Skipped { .. }))
            && self.ordered.as_ref().is_some_and(|ordered| ordered.order == OrderKind::Skip)
    }

    /// Whether its last attempt may have taken effect without anybody knowing, also where a person is asked about it.
    pub fn may_have_happened(&self) -> bool {
        match &self.phase {
            Phase::Waiting(waiting) => waiting.question.kind == QuestionKind::Interrupted,
            _ => self.is_open_ended(),
        }
    }

    /// What earlier attempts noted is not handed to the next one any more.
    pub(super) fn forget(&mut self) {
        self.notes.clear();
        self.since = self.attempt + 1;
    }

    fn order(&mut self, order: &Order, ordered: Ordered, at: jiff::Timestamp) {
        if order.order != OrderKind::Accept {
            self.end_wait(at);
            (self.confirmed, self.unresolved) = (false, false);
            // Nothing ran in this time: it is no duration to learn from.
            self.started_at = None;
        }
        // What was accepted is the result of the definition before, which stands in the past.
        self.taken_over |= order.order == OrderKind::Accept;
        match (order.order, &order.outcome) {
            (OrderKind::Skip | OrderKind::MarkDone | OrderKind::Accept, Some(outcome)) => {
                self.phase = Phase::Finished(outcome.clone());
                self.finished_at = Some(at);
            }
            (OrderKind::Rerun, _) => {
                self.forget();
                self.phase = Phase::Pending;
                self.finished_at = None;
            }
            _ => {}
        }
        self.ordered = Some(ordered);
    }
}
