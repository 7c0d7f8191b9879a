//! The evidence of a run: one value with everything that reports say, from the journal alone.
//!
//! `lifeboat report --format json` prints it (a contract: `lifeboat schema report`), and the
//! Markdown report and the status page are other views of it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::world::{UndoEvidence, World};
use crate::record::event::{
    Actor, Answer, Decision, EffectRecord, ErrorRecord, Event, Outcome, Outputs, Question, Record, RunStatus,
    UndoHeader,
};
use crate::record::measure::measure;
use crate::record::state::{Illegal, Phase, RunState, StepState, Verdict, Waiting};
use crate::record::steering::{Adjusted, Ordered};

/// The format that this version writes; fields are added without a new one.
pub const FORMAT: u32 = 1;

/// All that is known of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Evidence {
    /// This report's format, see [`FORMAT`].
    pub format: u32,
    /// The run's id.
    pub run: String,
    /// The plan's name.
    pub plan: String,
    /// The plan's title, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// SHA-256 of the plan with its sub-plans, in hex.
    pub plan_digest: String,
    /// Where the plan's file was.
    pub plan_file: String,
    /// The environment's name, if one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// SHA-256 of the environment's text, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment_digest: Option<String>,
    /// The inputs, secrets masked.
    pub inputs: BTreeMap<String, Value>,
    /// Where the run stands.
    pub status: RunStatus,
    /// Why it stopped, if it said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Lifeboat's version that started it.
    pub version: String,
    /// Who started it.
    pub by: Actor,
    /// When it began.
    #[schemars(with = "String")]
    pub started_at: Timestamp,
    /// When the last thing happened.
    #[schemars(with = "String")]
    pub last_at: Timestamp,
    /// From the one to the other, in seconds.
    pub seconds: f64,
    /// How much of that nothing but people was waited for, in seconds.
    pub waited: f64,
    /// Recovery time and recovery point against the objectives.
    pub recovery: Recovery,
    /// Every step in the plan's order.
    pub steps: Vec<StepEvidence>,
    /// Steps of an earlier version of the plan that the present one doesn't have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<StepEvidence>,
    /// What operators ordered, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steered: Vec<super::steered::Given>,
    /// Each time that another process went on.
    pub resumes: Vec<Resume>,
    /// Messages kept on the way.
    pub notices: Vec<Notice>,
    /// What the run has made of the world so far.
    #[serde(default)]
    pub world: World,
    /// The undo, once it has begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<UndoEvidence>,
    /// The journal that all this comes from.
    pub journal: JournalEvidence,
}

/// Recovery time and recovery point.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Recovery {
    /// Start to the success of the last step that proves health, in seconds, without `waited`.
    pub time: Option<f64>,
    /// How long people were waited for in that time, in seconds.
    pub waited: f64,
    /// How old the restored data was when the run began, in seconds.
    pub point: Option<f64>,
    /// The instant that the restored data is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub data_of: Option<Timestamp>,
    /// The objective for the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rto: Option<Objective>,
    /// The objective for the point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo: Option<Objective>,
}

/// An objective, and whether it was met.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Objective {
    /// In seconds.
    pub seconds: f64,
    /// Whether it was met; false while nothing is measured.
    pub met: bool,
}

/// All that is known of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StepEvidence {
    /// Its id.
    pub id: String,
    /// Its type.
    #[serde(rename = "type")]
    pub step_type: String,
    /// Its title, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The ids it waits for.
    pub needs: Vec<String>,
    /// Whether it belongs to `finally`.
    pub finally: bool,
    /// Where it stands.
    pub state: StepStatus,
    /// When it first started, or began to wait for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub started_at: Option<Timestamp>,
    /// When it came to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub finished_at: Option<Timestamp>,
    /// From the one to the other, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Attempts that were started.
    pub attempts: u32,
    /// How long it waited for people, in seconds.
    pub waited: f64,
    /// One line for people: what it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// Why it was skipped, cancelled or not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What it handed on, secrets masked.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub outputs: Outputs,
    /// What it does to what, as declared.
    pub effects: Vec<EffectRecord>,
    /// How `lifeboat undo` takes it back, if it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<UndoHeader>,
    /// The step that this one takes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undoes: Option<String>,
    /// The attempts that failed, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<AttemptError>,
    /// What a person is asked now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub question: Option<Question>,
    /// How many people said yes to that so far.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub agreed: usize,
    /// What the answers come to: `true` for yes, `false` for no; absent while more are needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered: Option<bool>,
    /// Every answer it got, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<Answer>,
    /// The last order that an operator gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordered: Option<Ordered>,
    /// Limits that an operator gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adjusted: Option<Adjusted>,
}

/// Where a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepStatus {
    /// It has not started.
    Pending,
    /// An attempt started and has not ended.
    Running,
    /// An attempt failed and another follows.
    Retrying,
    /// It waits for a person.
    Waiting,
    /// It did what it is for.
    Succeeded,
    /// It did not.
    Failed,
    /// It was not run, and that counts as done.
    Skipped,
    /// It was stopped while it ran.
    Cancelled,
    /// Something it needs did not succeed.
    NotRun,
}

/// A failed attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AttemptError {
    /// Which, from 1.
    pub attempt: u32,
    /// Why.
    #[serde(flatten)]
    pub error: ErrorRecord,
}

/// Another process went on with the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Resume {
    /// When.
    #[schemars(with = "String")]
    pub at: Timestamp,
    /// Who.
    pub by: Actor,
    /// With which version.
    pub version: String,
    /// What was decided for each step, and why.
    pub decisions: Vec<Decision>,
}

/// A message kept on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Notice {
    /// When.
    #[schemars(with = "String")]
    pub at: Timestamp,
    /// The step it concerns, if one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// The message.
    pub message: String,
}

/// The journal behind a report: the same head means the same history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JournalEvidence {
    /// How many records it has.
    pub records: u64,
    /// SHA-256 of the last one, in hex.
    pub head: String,
}

impl Evidence {
    /// The evidence in these records, whose chain ends in `head`.
    ///
    /// # Errors
    /// When the records can't follow each other.
    pub fn of(records: &[Record], head: &str) -> Result<Self, Illegal> {
        let state = RunState::fold(records)?;
        let mut evidence = Self::from_state(&state, head);
        for record in records {
            evidence.steered.extend(super::steered::Given::of(record));
            if let Event::RunResumed { by, version, decisions } = &record.event {
                evidence.resumes.push(Resume {
                    at: record.at,
                    by: by.clone(),
                    version: version.clone(),
                    decisions: decisions.clone(),
                });
            }
        }
        Ok(evidence)
    }

    fn from_state(state: &RunState, head: &str) -> Self {
        let header = &state.header;
        let notice = |(at, step, message): &(Timestamp, Option<String>, String)| Notice {
            at: *at,
            step: step.clone(),
            message: message.clone(),
        };
        Self {
            format: FORMAT,
            run: header.run.clone(),
            plan: header.plan.clone(),
            title: header.title.clone(),
            plan_digest: header.plan_digest.clone(),
            plan_file: header.plan_file.clone(),
            environment: header.environment.clone(),
            environment_digest: header.environment_digest.clone(),
            inputs: header.inputs.clone(),
            status: state.status,
            reason: state.reason.clone(),
            version: header.version.clone(),
            by: header.by.clone(),
            started_at: state.started_at,
            last_at: state.last_at,
            seconds: seconds(state.started_at, state.last_at),
            waited: state.waited.as_secs_f64(),
            recovery: Recovery::of(state),
            steps: state.steps.iter().map(StepEvidence::of).collect(),
            gone: state.gone.iter().map(StepEvidence::of).collect(),
            steered: Vec::new(),
            resumes: Vec::new(),
            notices: state.notices.iter().map(notice).collect(),
            world: World::of(state),
            undo: UndoEvidence::of(state),
            journal: JournalEvidence { records: state.records, head: head.to_owned() },
        }
    }
}

impl Recovery {
    /// What a run comes to so far.
    pub fn of(state: &RunState) -> Self {
        let measured = measure(state);
        let objective =
            |(seconds, met): (std::time::Duration, bool)| Objective { seconds: seconds.as_secs_f64(), met };
        Self {
            time: measured.recovery_time.map(|time| time.as_secs_f64()),
            waited: measured.waited.as_secs_f64(),
            point: measured.recovery_point.map(|point| point.as_secs_f64()),
            data_of: measured.taken_at,
            rto: measured.rto.map(objective),
            rpo: measured.rpo.map(objective),
        }
    }
}

impl StepEvidence {
    fn of(step: &StepState) -> Self {
        let (summary, reason) = match step.outcome() {
            Some(Outcome::Succeeded { summary, .. }) => (summary.clone(), None),
            Some(Outcome::Skipped { reason } | Outcome::Cancelled { reason } | Outcome::NotRun { reason }) => {
                (None, Some(reason.clone()))
            }
            _ => (None, None),
        };
        let mut errors: Vec<AttemptError> = step
            .errors
            .iter()
            .map(|(attempt, error)| AttemptError { attempt: *attempt, error: error.clone() })
            .collect();
        // A step may fail without an attempt that did: a parameter that doesn't render, a person's no.
        if let Some(Outcome::Failed { error }) = step.outcome()
            && errors.last().is_none_or(|last| &last.error != error)
        {
            errors.push(AttemptError { attempt: step.attempt, error: error.clone() });
        }
        let waiting = match &step.phase {
            Phase::Waiting(waiting) => Some(waiting),
            _ => None,
        };
        let said_yes = |waiting: &Waiting| waiting.answers.iter().filter(|answer| answer.approved).count();
        Self {
            id: step.header.id.clone(),
            step_type: step.header.step_type.clone(),
            title: step.header.title.clone(),
            needs: step.header.needs.clone(),
            finally: step.header.finally,
            state: StepStatus::of(step),
            started_at: step.started_at,
            finished_at: step.finished_at,
            seconds: step.took().map(|took| took.as_secs_f64()),
            attempts: step.attempt,
            waited: step.waited.as_secs_f64(),
            summary,
            reason,
            outputs: step.outputs().cloned().unwrap_or_default(),
            effects: step.header.effects.clone(),
            undo: step.header.undo.clone(),
            undoes: step.header.undoes.clone(),
            errors,
            question: waiting.map(|waiting| waiting.question.clone()),
            agreed: waiting.map_or(0, said_yes),
            answered: waiting.and_then(|waiting| match waiting.verdict() {
                Verdict::Approved => Some(true),
                Verdict::Rejected => Some(false),
                Verdict::Open => None,
            }),
            answers: step.answers.clone(),
            ordered: step.ordered.clone(),
            adjusted: step.adjusted.clone(),
        }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands over references")]
const fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl StepStatus {
    /// Of a step's state.
    pub fn of(step: &StepState) -> Self {
        match &step.phase {
            Phase::Pending => Self::Pending,
            Phase::Running => Self::Running,
            Phase::Retrying { .. } => Self::Retrying,
            Phase::Waiting(_) => Self::Waiting,
            Phase::Finished(Outcome::Succeeded { .. }) => Self::Succeeded,
            Phase::Finished(Outcome::Failed { .. }) => Self::Failed,
            Phase::Finished(Outcome::Skipped { .. }) => Self::Skipped,
            Phase::Finished(Outcome::Cancelled { .. }) => Self::Cancelled,
            Phase::Finished(Outcome::NotRun { .. }) => Self::NotRun,
        }
    }

    /// The word used on screens.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "not started",
            Self::Running => "running",
            Self::Retrying => "tries again",
            Self::Waiting => "waits for a person",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Cancelled => "cancelled",
            Self::NotRun => "not run",
        }
    }

    /// One column that says the same.
    pub const fn symbol(self) -> &'static str {
        match self {
            Self::Pending | Self::NotRun => "·",
            Self::Running => "▸",
            Self::Retrying => "↻",
            Self::Waiting => "?",
            Self::Succeeded => "✓",
            Self::Failed => "✗",
            Self::Skipped => "–",
            Self::Cancelled => "■",
        }
    }
}

/// Seconds from one instant to a later one; none when the clock was set back.
pub fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64().max(0.0)
}
