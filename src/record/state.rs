//! A run's state: the fold of its events.
//!
//! The one place that knows which event may follow which; an illegal move is an error,
//! never a guess. Has no clock and does no I/O: times are those of the records.
//! Read next: [`RunState::apply`], then [`super::step_state`] for one step's moves and the rules of answers.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::Timestamp;

use super::event::{Answer, Decision, DecisionAction, Event, Outcome, Record, RunStarted, RunStatus};
pub use super::step_state::{Illegal, Phase, StepState, Verdict, Waiting};
use super::step_state::{illegal, span};
pub use super::undo::Undoing;

/// Where a run stands after the records applied so far.
#[derive(Clone, Debug)]
pub struct RunState {
    /// What the first record says.
    pub header: RunStarted,
    /// When the run began.
    pub started_at: Timestamp,
    /// The last record's time.
    pub last_at: Timestamp,
    /// The status by the journal alone. `Running` may mean that the process died: ask the store's lock.
    pub status: RunStatus,
    /// Why the run stopped, if it said so.
    pub reason: Option<String>,
    /// Every step in the plan's order.
    pub steps: Vec<StepState>,
    /// How often another process went on with the run.
    pub resumes: u32,
    /// What the last resume decided.
    pub decisions: Vec<Decision>,
    /// Messages kept: the step concerned, the message, and when.
    pub notices: Vec<(Timestamp, Option<String>, String)>,
    /// Time in which nothing but people was waited for, up to the last record.
    pub waited: Duration,
    /// When the last step that proves health succeeded, and how long people had been waited for by then.
    pub healthy: Option<(Timestamp, Duration)>,
    /// The undo, once it has begun.
    pub undo: Option<Undoing>,
    /// Who is behind the names that steps touched, by name.
    pub seen: BTreeMap<String, Seen>,
    /// How many records were applied: the next one's `seq`.
    pub records: u64,
    /// Steps of an earlier plan that the present one doesn't have.
    pub gone: Vec<StepState>,
    /// What steps did before they were sent back to run again, or under a definition of an earlier plan.
    pub past: Vec<StepState>,
    /// Where the present plan's copy lies below the run's folder, if it isn't the one that the run began with.
    pub plan_copy: Option<String>,
    index: HashMap<String, usize>,
    busy: usize,
    asking: usize,
}

/// Who was behind a name, and the step that said so last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The step.
    pub step: String,
    /// What tells it from others.
    pub identity: BTreeMap<String, String>,
}

impl RunState {
    /// The state after the first record.
    ///
    /// # Errors
    /// When it isn't [`Event::RunStarted`], or names a step twice.
    pub fn begin(record: &Record) -> Result<Self, Illegal> {
        let Event::RunStarted(header) = &record.event else {
            return illegal("a journal begins with `run_started`");
        };
        let steps: Vec<_> = header.steps.iter().cloned().map(StepState::new).collect();
        let index: HashMap<_, _> =
            steps.iter().enumerate().map(|(at, step)| (step.header.id.clone(), at)).collect();
        if index.len() != steps.len() {
            return illegal("a step is listed twice");
        }
        Ok(Self {
            header: (**header).clone(),
            started_at: record.at,
            last_at: record.at,
            status: RunStatus::Running,
            reason: None,
            steps,
            resumes: 0,
            decisions: Vec::new(),
            notices: Vec::new(),
            waited: Duration::ZERO,
            healthy: None,
            undo: None,
            seen: BTreeMap::new(),
            records: 1,
            gone: Vec::new(),
            past: Vec::new(),
            plan_copy: None,
            index,
            busy: 0,
            asking: 0,
        })
    }

    /// The state after all `records`.
    ///
    /// # Errors
    /// The first record that can't follow those before it.
    pub fn fold<'a>(records: impl IntoIterator<Item = &'a Record>) -> Result<Self, Illegal> {
        let mut records = records.into_iter();
        let Some(first) = records.next() else {
            return illegal("the journal has no record");
        };
        let mut state = Self::begin(first)?;
        for record in records {
            state.apply(record).map_err(|Illegal(why)| Illegal(format!("record {}: {why}", record.seq)))?;
        }
        Ok(state)
    }

    /// Applies the next record; on an error nothing changes.
    ///
    /// # Errors
    /// When the event can't follow what happened before it.
    pub fn apply(&mut self, record: &Record) -> Result<(), Illegal> {
        self.change(&record.event, record.at)?;
        // A clock that was set back gives no negative times.
        self.last_at = self.last_at.max(record.at);
        self.records += 1;
        Ok(())
    }

    /// The step of that id.
    pub fn step(&self, id: &str) -> Option<&StepState> {
        self.index.get(id).map(|at| &self.steps[*at])
    }

    /// The step of that id, also one that only an earlier plan had.
    pub fn step_ever(&self, id: &str) -> Option<&StepState> {
        self.step(id).or_else(|| self.gone.iter().find(|step| step.header.id == id))
    }

    /// The position of a step in [`RunState::steps`].
    pub fn position(&self, id: &str) -> Option<usize> {
        self.index.get(id).copied()
    }

    /// Whether an answer may be given to a step now; the reason if not.
    ///
    /// # Errors
    /// What is wrong with it, for the one who answers.
    pub fn check_answer(&self, step: &str, answer: &Answer) -> Result<(), String> {
        let Some(state) = self.step(step) else {
            return Err(format!("the run has no step `{step}`"));
        };
        match &state.phase {
            Phase::Waiting(waiting) => waiting.check(answer, &self.header.by.user),
            Phase::Finished(_) => Err(format!("step `{step}` has come to its end and waits for nobody")),
            _ => Err(format!("step `{step}` does not wait for an answer")),
        }
    }

    /// Steps that wait for a person, in the plan's order.
    pub fn waiting(&self) -> impl Iterator<Item = (&StepState, &Waiting)> {
        self.steps.iter().filter_map(|step| match &step.phase {
            Phase::Waiting(waiting) => Some((step, waiting)),
            _ => None,
        })
    }

    /// The first step that failed or was cancelled, in the plan's order.
    pub fn first_failure(&self) -> Option<&StepState> {
        self.steps.iter().find(|step| step.has_failed())
    }

    fn change(&mut self, event: &Event, at: Timestamp) -> Result<(), Illegal> {
        self.check_status(event)?;
        // Counted before the event takes effect: the time since the last record belongs to what was so then.
        let passed = span(self.last_at, at);
        let asked =
            self.asking > 0 && self.busy == 0 && matches!(self.status, RunStatus::Running | RunStatus::Waiting);
        match event {
            Event::RunStarted(_) => return illegal("a run starts once"),
            Event::RunResumed { decisions, .. } => self.resume(decisions)?,
            Event::UndoStarted { .. } => self.begin_undo(event, at)?,
            Event::RunStopped { status, reason } => {
                self.status = *status;
                self.reason.clone_from(reason);
            }
            Event::Noticed { step, message } => self.notices.push((at, step.clone(), message.clone())),
            Event::Steered(steered) => self.steer(steered, at)?,
            Event::StepAdjusted(adjustment) => self.adjust(adjustment, at)?,
            Event::Progress { .. } => return illegal("progress is not kept"),
            Event::StepStarted { step, attempt } => self.alter(step, |state| state.start(*attempt, at))?,
            Event::TargetSeen { step, target, identity } => {
                if self.position(step).is_none() {
                    return illegal(format!("the run has no step `{step}`"));
                }
                if identity.is_empty() {
                    self.seen.remove(target);
                } else {
                    self.seen.insert(target.clone(), Seen { step: step.clone(), identity: identity.clone() });
                }
            }
            Event::StepNoted { step, attempt, note } => self.alter(step, |state| state.note(*attempt, note))?,
            Event::AttemptFailed { step, attempt, error, retry_in, .. } => {
                self.alter(step, |state| state.attempt_failed(*attempt, error, *retry_in, at))?;
            }
            Event::StepFinished { step, attempt, outcome, .. } => {
                self.alter(step, |state| state.finish(*attempt, outcome, at))?;
            }
            Event::StepWaiting { step, question } => self.alter(step, |state| state.wait(question, at))?,
            Event::StepAnswered { step, answer } => {
                self.check_answer(step, answer).map_err(Illegal)?;
                self.alter(step, |state| state.answer(answer, at))?;
            }
        }
        if asked {
            self.waited += passed;
        }
        if let Event::StepFinished { step, outcome: Outcome::Succeeded { .. }, .. } = event
            && self.step(step).is_some_and(|state| state.header.proves_health)
        {
            self.healthy = Some((at, self.waited));
        }
        Ok(())
    }

    /// A stopped run hears answers and notices, and is resumed; nothing else happens in it.
    fn check_status(&self, event: &Event) -> Result<(), Illegal> {
        self.check_undo(event)?;
        let quiet = matches!(event, Event::StepAnswered { .. } | Event::StepAdjusted(_) | Event::Noticed { .. });
        let resumes = matches!(event, Event::RunResumed { .. } | Event::Steered(_));
        match (self.status, event) {
            (RunStatus::Succeeded, _) if resumes => illegal("the run has succeeded: nothing is left to do"),
            (RunStatus::Running, _) | (_, Event::UndoStarted { .. }) => Ok(()),
            _ if quiet || resumes => Ok(()),
            // A run that nobody works on is called off.
            (RunStatus::Waiting | RunStatus::Paused, Event::RunStopped { status: RunStatus::Cancelled, .. }) => {
                Ok(())
            }
            (status, _) => illegal(format!("the run is {} and was not resumed", status.as_str())),
        }
    }

    fn resume(&mut self, decisions: &[Decision]) -> Result<(), Illegal> {
        if let Some(unknown) = decisions.iter().find(|decision| !self.index.contains_key(&decision.step)) {
            return illegal(format!("the run has no step `{}`", unknown.step));
        }
        for decision in decisions {
            self.alter(&decision.step, |state| {
                match decision.action {
                    DecisionAction::Run | DecisionAction::Continue => state.again(),
                    DecisionAction::Keep | DecisionAction::Wait | DecisionAction::Ask => state.reopen(),
                    DecisionAction::Skip => {}
                }
                Ok(())
            })?;
        }
        self.status = RunStatus::Running;
        self.reason = None;
        self.resumes += 1;
        self.decisions = decisions.to_vec();
        Ok(())
    }

    /// Counts anew, after the steps became others.
    pub(super) fn reindex(&mut self) {
        self.index = self.steps.iter().enumerate().map(|(at, step)| (step.header.id.clone(), at)).collect();
        self.busy = self.steps.iter().filter(|step| step.is_busy()).count();
        self.asking = self.steps.iter().filter(|step| step.is_asking()).count();
    }

    /// Adds a step behind the others.
    pub(super) fn add(&mut self, step: StepState) {
        self.index.insert(step.header.id.clone(), self.steps.len());
        self.steps.push(step);
    }

    /// Changes one step and keeps count of those that are busy and those that ask.
    pub(super) fn alter(
        &mut self,
        step: &str,
        change: impl FnOnce(&mut StepState) -> Result<(), Illegal>,
    ) -> Result<(), Illegal> {
        let Some(position) = self.position(step) else {
            return illegal(format!("the run has no step `{step}`"));
        };
        let state = &mut self.steps[position];
        let (was_busy, was_asking) = (state.is_busy(), state.is_asking());
        change(state)?;
        self.busy = self.busy + usize::from(state.is_busy()) - usize::from(was_busy);
        self.asking = self.asking + usize::from(state.is_asking()) - usize::from(was_asking);
        Ok(())
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
