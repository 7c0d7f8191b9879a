//! What a step needs whose turn has come, from the plan and what is known so far.
//!
//! Conditions, parameters and questions are rendered here, and nowhere else while a run goes on.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::json;

use super::walk::Turn;
use crate::failure::Failure;
use crate::plan::{Known, Plan, PlannedStep};
use crate::record::event::{Question, QuestionKind, RunStatus};
use crate::record::state::{RunState, StepState};
use crate::step::Step;

/// The plan, and what is known so far.
pub(super) struct Turns {
    plan: Arc<Plan>,
    known: Known,
    /// Rendered when its turn came, until it starts.
    rendered: RefCell<HashMap<usize, Arc<dyn Step>>>,
}

impl Turns {
    /// With the outputs of the steps that are done.
    pub(super) fn new(plan: &Arc<Plan>, state: &RunState) -> Self {
        let mut turns = Self {
            plan: plan.clone(),
            known: Known { complete: true, ..Known::default() },
            rendered: RefCell::default(),
        };
        for at in 0..state.steps.len() {
            turns.learn(at, &state.steps[at]);
        }
        turns
    }

    /// Takes in a step's outputs, as the journal keeps them: a resumed run must see the same.
    pub(super) fn learn(&mut self, at: usize, state: &StepState) {
        if let Some(outputs) = state.outputs() {
            self.known.outputs.insert(self.plan.steps[at].id.clone(), outputs.clone());
        }
    }

    /// Takes in what a step gives that was not run.
    pub(super) fn know(&mut self, at: usize, outputs: crate::record::event::Outputs) {
        self.known.outputs.insert(self.plan.steps[at].id.clone(), outputs);
    }

    /// Takes in where the run stands, for `{{ run.… }}`.
    pub(super) fn at(&mut self, state: &RunState, status: RunStatus, now: Timestamp) {
        let elapsed = now.duration_since(state.started_at).as_secs().unsigned_abs();
        self.known.run = json!({
            "id": state.header.run,
            "started_at": state.started_at.to_string(),
            "status": status.as_str(),
            "elapsed": crate::units::Duration::seconds(elapsed).to_string(),
        });
    }

    /// All that is known.
    pub(super) fn into_known(self) -> Known {
        self.known
    }

    /// What the step needs.
    pub(super) fn turn(&self, at: usize, state: &StepState, now: Timestamp) -> Turn {
        self.judge(at, state, now).unwrap_or_else(|failure| Turn::Fail(self.redacted(failure).into()))
    }

    /// The step with its parameters.
    pub(super) fn step(&self, at: usize) -> Result<Arc<dyn Step>, Failure> {
        match self.rendered.borrow_mut().remove(&at) {
            Some(step) => Ok(step),
            None => self.render(at),
        }
    }

    /// What a person is asked before, or instead of, the step.
    pub(super) fn question(&self, at: usize, now: Timestamp) -> Result<Option<Question>, Failure> {
        let step = self.step(at)?;
        let question = match step.question(now) {
            Some(question) => Some(question),
            None => match &self.planned(at).confirm {
                Some(confirm) => {
                    let redactor = &self.plan.environment.redactor;
                    Some(confirmation(self.planned(at).text(confirm, &self.known, redactor)?))
                }
                None => None,
            },
        };
        self.rendered.borrow_mut().insert(at, step);
        Ok(question.map(|question| self.masked(question)))
    }

    fn judge(&self, at: usize, state: &StepState, now: Timestamp) -> Result<Turn, Failure> {
        let planned = self.planned(at);
        match planned.holds(&self.known)? {
            Some(true) => {}
            Some(false) => return Ok(Turn::Skip("its `when` is false".to_owned())),
            None => {
                return Err(Failure::permanent("its `when` reads an output that no step gave")
                    .help("a step that was skipped has no outputs: use the helper `default`"));
            }
        }
        let step = self.render(at)?;
        self.rendered.borrow_mut().insert(at, step);
        let asks = !state.confirmed && self.question(at, now)?.is_some();
        Ok(if asks { Turn::Ask } else { Turn::Start })
    }

    fn render(&self, at: usize) -> Result<Arc<dyn Step>, Failure> {
        let rendered = self.planned(at).render(&self.known)?;
        match rendered.unknown.first() {
            None => Ok(rendered.step),
            Some(pointer) => Err(Failure::permanent(format!(
                "its parameter `{}` reads an output that no step gave",
                pointer.trim_start_matches('/').replace('/', ".")
            ))
            .help("a step that was skipped has no outputs: use the helper `default`, or skip this step as well")),
        }
    }

    fn planned(&self, at: usize) -> &PlannedStep {
        &self.plan.steps[at]
    }

    fn redacted(&self, failure: Failure) -> Failure {
        let redact = |text: String| self.plan.environment.redactor.redact(&text).into_owned();
        Failure { message: redact(failure.message), transient: failure.transient, help: failure.help.map(redact) }
    }

    fn masked(&self, question: Question) -> Question {
        let redact = |text: String| self.plan.environment.redactor.redact(&text).into_owned();
        Question {
            message: redact(question.message),
            checklist: question.checklist.into_iter().map(redact).collect(),
            ..question
        }
    }
}

fn confirmation(message: String) -> Question {
    Question {
        kind: QuestionKind::Confirm,
        message,
        checklist: Vec::new(),
        fields: std::collections::BTreeMap::default(),
        by: Vec::new(),
        quorum: 1,
        not_by_requester: false,
        until: None,
    }
}
