//! Taking a run back: what is decided for each of its steps, and what that makes of its state.
//!
//! A run whose undo has begun has a second list of steps behind its own, one for each
//! step that is taken back; its own steps stand still from then on.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::event::{Actor, EffectRecord, Event, Outcome, RunStatus};
use super::state::{Illegal, Phase, RunState, StepState};
use super::step_state::illegal;

/// How a step is taken back, as the journal introduces it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UndoHeader {
    /// The step type that does it.
    #[serde(rename = "type")]
    pub step_type: String,
    /// What that does to what, as declared.
    pub effects: Vec<EffectRecord>,
}

/// What an undo does about one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UndoDecision {
    /// The step.
    pub step: String,
    /// What will be done.
    pub action: UndoAction,
    /// Why.
    pub reason: String,
    /// What was found to have become of a step that was in flight, had been cancelled, or had failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

/// What an undo can do about a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UndoAction {
    /// It happened, or may have, and is taken back.
    Undo,
    /// Nobody can tell whether it happened: it is taken back if a person says so.
    Ask,
    /// It changed something, or may have, and that stays as it is.
    Stays,
    /// There is nothing to take back.
    Nothing,
}

impl UndoAction {
    /// The word used on screens.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Undo => "undo",
            Self::Ask => "ask",
            Self::Stays => "stays",
            Self::Nothing => "nothing",
        }
    }

    /// Whether a step of its own takes it back.
    pub const fn acts(self) -> bool {
        matches!(self, Self::Undo | Self::Ask)
    }
}

/// An undo that has begun.
#[derive(Clone, Debug, PartialEq)]
pub struct Undoing {
    /// When.
    pub since: Timestamp,
    /// By whom.
    pub by: Actor,
    /// Why, if that was said.
    pub because: Option<String>,
    /// What is done about each step of the run.
    pub decisions: Vec<UndoDecision>,
    /// Where the steps that take back begin in the run's list.
    pub from: usize,
}

impl RunState {
    /// Where the steps begin that may still act: those that take back, once an undo has begun.
    pub fn live_from(&self) -> usize {
        self.undo.as_ref().map_or(0, |undo| undo.from)
    }

    /// Whether an undo may begin, or go on, after what happened so far.
    pub(super) fn check_undo(&self, event: &Event) -> Result<(), Illegal> {
        match event {
            Event::UndoStarted { .. } if self.undo.is_some() => illegal("the run's undo has begun already"),
            Event::Steered(_) if self.undo.is_some() => illegal("the run is being taken back"),
            Event::RunResumed { .. } | Event::UndoStarted { .. } if self.status == RunStatus::Undone => {
                illegal("the run has been undone: nothing is left to do")
            }
            _ => Ok(()),
        }
    }

    /// Whether the present plan defines a step of the past as it was defined then.
    pub fn defines(&self, past: &StepState) -> bool {
        self.step(&past.header.id).is_some_and(|step| step.header.definition == past.header.definition)
    }

    /// What steps did under plans that were edited since: no undo takes that back.
    pub fn left_behind(&self) -> Vec<UndoDecision> {
        let past = self.past.iter().chain(&self.gone).filter(|step| step.acted().is_some() && !self.defines(step));
        let wrote = |step: &&StepState| step.header.effects.iter().any(|effect| effect.access != "read");
        past.filter(wrote)
            .map(|step| {
                let said = match step.outcome() {
                    Some(Outcome::Succeeded { summary: Some(summary), .. }) => format!("{summary}; "),
                    Some(Outcome::Succeeded { .. }) => String::new(),
                    _ => "it was cut off, or failed; ".to_owned(),
                };
                UndoDecision {
                    step: step.header.id.clone(),
                    action: UndoAction::Stays,
                    reason: format!("{said}the plan was edited since, and doesn't say how that is taken back"),
                    outcome: None,
                }
            })
            .collect()
    }

    pub(super) fn begin_undo(&mut self, event: &Event, at: Timestamp) -> Result<(), Illegal> {
        let Event::UndoStarted { by, because, decisions, steps, .. } = event else { return Ok(()) };
        let known = |id: &str| self.position(id).is_some();
        if let Some(unknown) = decisions.iter().find(|decision| !known(&decision.step)) {
            return illegal(format!("the run has no step `{}`", unknown.step));
        }
        let mut seen = std::collections::BTreeSet::new();
        if let Some(twice) = steps.iter().find(|header| known(&header.id) || !seen.insert(header.id.as_str())) {
            return illegal(format!("step `{}` is listed twice", twice.id));
        }
        for decision in decisions {
            self.alter(&decision.step, |state| {
                settle(state, decision, at);
                Ok(())
            })?;
        }
        let from = self.steps.len();
        for header in steps {
            self.add(StepState::new(header.clone()));
        }
        let (by, because) = (by.clone(), because.clone());
        self.undo = Some(Undoing { since: at, by, because, decisions: decisions.clone(), from });
        self.status = RunStatus::Running;
        self.reason = None;
        self.decisions = Vec::new();
        Ok(())
    }
}

/// A step of a run that is taken back comes to its end, whatever it was about to do.
fn settle(state: &mut StepState, decision: &UndoDecision, at: Timestamp) {
    let outcome = match (&decision.outcome, &state.phase) {
        (Some(outcome), _) => outcome.clone(),
        (None, Phase::Finished(_)) => return,
        (None, Phase::Running | Phase::Retrying { .. }) => Outcome::Cancelled { reason: decision.reason.clone() },
        (None, Phase::Pending | Phase::Waiting(_)) => {
            Outcome::NotRun { reason: "the run is taken back".to_owned() }
        }
    };
    state.end_wait(at);
    state.confirmed = false;
    state.finished_at.get_or_insert(at);
    state.phase = Phase::Finished(outcome);
}
