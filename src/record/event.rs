//! What happened: the events of a run, as the journal keeps them and reports fold them.
//!
//! Every value here is redacted before it is made; an event never holds a secret.
//! The JSON form is a contract (`lifeboat schema event`): fields are added, never
//! renamed, and [`FORMAT`] grows when an older reader could misread a newer journal.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use super::undo::{UndoAction, UndoDecision, UndoHeader};

/// The journal format that this version writes. A journal of a newer one is refused.
pub const FORMAT: u32 = 1;

/// A step's outputs by name.
pub type Outputs = BTreeMap<String, Value>;

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Record {
    /// Position in the journal, from 0, without gaps.
    pub seq: u64,
    /// When it was written (UTC).
    #[schemars(with = "String")]
    pub at: jiff::Timestamp,
    /// SHA-256, in hex, of the line before this one without its line feed; 64 zeros for the first.
    pub prev: String,
    /// What happened.
    pub event: Event,
}

/// What can happen in a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// The first record: what is run, on what, asked by whom.
    RunStarted(Box<RunStarted>),
    /// Another process went on with the run.
    RunResumed {
        /// Who and where.
        by: Actor,
        /// The version that goes on.
        version: String,
        /// What was decided for each step, and why.
        decisions: Vec<Decision>,
    },
    /// The run is being taken back: from here on, only steps that undo run.
    UndoStarted {
        /// Who and where.
        by: Actor,
        /// The version that does it.
        version: String,
        /// Why, if that was said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        because: Option<String>,
        /// What is done about each step of the run, and why.
        decisions: Vec<UndoDecision>,
        /// The steps that take back, in the order people read.
        steps: Vec<StepHeader>,
    },
    /// A step's attempt is about to touch the world.
    StepStarted {
        /// The step.
        step: String,
        /// From 1.
        attempt: u32,
    },
    /// What a step noted before it acts (a transaction's id, a database's oid): read again after a kill.
    StepNoted {
        /// The step.
        step: String,
        /// The attempt that noted it.
        attempt: u32,
        /// Of the step type's own making. `leaves` in it says of resources how they stand should the attempt be cut
        /// off after it.
        note: Value,
    },
    /// Who was behind a name when a step came to touch it, or is there after the step replaced it. A resume
    /// that meets another one there refuses.
    TargetSeen {
        /// The step.
        step: String,
        /// The name: `postgres:db`, `postgres:db/app`, `container:docker/app`, `storage:backups`, `redis:cache`.
        target: String,
        /// What tells it from others: `system_identifier`, `oid`, `id`, `scheme`… Empty when the step is about to
        /// replace what is there, and when nothing is left there.
        identity: BTreeMap<String, String>,
    },
    /// An attempt failed and another follows.
    AttemptFailed {
        /// The step.
        step: String,
        /// The attempt.
        attempt: u32,
        /// Why.
        error: ErrorRecord,
        /// The wait before the next attempt, in seconds.
        retry_in: f64,
        /// SHA-256 of the attempt's log, in hex, if it has one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        log: Option<String>,
    },
    /// A step came to its end.
    StepFinished {
        /// The step.
        step: String,
        /// How many attempts it took (0 when it never started).
        attempt: u32,
        /// How it ended.
        outcome: Outcome,
        /// SHA-256 of the last attempt's log, in hex, if it has one and was closed by the process that wrote it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        log: Option<String>,
    },
    /// A step waits for a person.
    StepWaiting {
        /// The step.
        step: String,
        /// What is asked.
        question: Question,
    },
    /// A person answered.
    StepAnswered {
        /// The step.
        step: String,
        /// The answer.
        answer: Answer,
    },
    /// An operator ordered something of the run's steps before it goes on, or gave it an edited plan.
    Steered(Box<super::steering::Steered>),
    /// An operator gave a step other limits.
    StepAdjusted(Box<super::steering::Adjustment>),
    /// A message worth keeping: a redone check, a refused answer, an abandoned fence reopened.
    Noticed {
        /// The step it concerns, if one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        step: Option<String>,
        /// The message.
        message: String,
    },
    /// How far a long step is. Shown, never kept: progress may be lost, state may not.
    Progress {
        /// The step.
        step: String,
        /// Where it stands.
        progress: Progress,
    },
    /// This process stops here. The run may go on later, unless its status is final.
    RunStopped {
        /// Where the run stands.
        status: RunStatus,
        /// Why, for people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
}

impl Event {
    /// The step that it concerns, if one.
    pub fn step(&self) -> Option<&str> {
        match self {
            Self::StepStarted { step, .. }
            | Self::StepNoted { step, .. }
            | Self::TargetSeen { step, .. }
            | Self::AttemptFailed { step, .. }
            | Self::StepFinished { step, .. }
            | Self::StepWaiting { step, .. }
            | Self::StepAnswered { step, .. }
            | Self::Progress { step, .. } => Some(step),
            Self::StepAdjusted(adjustment) => Some(&adjustment.step),
            Self::Noticed { step, .. } => step.as_deref(),
            Self::RunStarted(_)
            | Self::RunResumed { .. }
            | Self::Steered(_)
            | Self::UndoStarted { .. }
            | Self::RunStopped { .. } => None,
        }
    }
}

/// What the first record says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunStarted {
    /// The journal's format, see [`FORMAT`].
    pub format: u32,
    /// The walker's version: a reordered walker must not replay another one's run.
    pub walker: u32,
    /// Lifeboat's version.
    pub version: String,
    /// The run's id.
    pub run: String,
    /// The plan's name.
    pub plan: String,
    /// Its title, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// SHA-256 of the plan with its sub-plans, in hex.
    pub plan_digest: String,
    /// The environment's name, if one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// SHA-256 of the environment's text and of the names (never values) it took from outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment_digest: Option<String>,
    /// Where the plan's file was, to resume from the same place.
    pub plan_file: String,
    /// Where the environment's file was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment_file: Option<String>,
    /// The inputs, secrets masked.
    pub inputs: BTreeMap<String, Value>,
    /// What the run's folder keeps of plan, environment and inputs: SHA-256 in hex by file.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub copies: BTreeMap<String, String>,
    /// The recovery time objective, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rto: Option<f64>,
    /// The recovery point objective, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo: Option<f64>,
    /// Who and where.
    pub by: Actor,
    /// Every step in the plan's order.
    pub steps: Vec<StepHeader>,
}

/// A step as the journal introduces it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StepHeader {
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
    #[serde(default)]
    pub finally: bool,
    /// SHA-256 of everything that defines it, in hex: resume compares it.
    pub definition: String,
    /// Whether its success proves health: recovery time ends with the last such step.
    #[serde(default)]
    pub proves_health: bool,
    /// What it does to what, as declared.
    pub effects: Vec<EffectRecord>,
    /// How `lifeboat undo` takes it back, if it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<UndoHeader>,
    /// The step that this one takes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undoes: Option<String>,
}

/// An effect, as text: `destroy postgres:db/manacore_auth`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EffectRecord {
    /// `read`, `create`, `change`, `destroy` or `undetermined`.
    pub access: String,
    /// The resource.
    pub resource: String,
    /// How it stands after it, in a word or two, where the access alone doesn't say: `stopped`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaves: Option<String>,
    /// Whether what was there is taken from under those who use it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub displaces: bool,
}

/// Who acts, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Actor {
    /// The user's name.
    pub user: String,
    /// The host's name.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// The kernel's boot id: a process of an earlier boot is gone, which `lifeboat status` says.
    pub boot: String,
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Outcome {
    /// It did what it is for.
    Succeeded {
        /// Its outputs, secrets masked.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        outputs: Outputs,
        /// One line for people: `3 tables, 1,204 rows`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        summary: Option<String>,
    },
    /// It did not.
    Failed {
        /// Why.
        error: ErrorRecord,
    },
    /// It was not run, and that counts as done: its `when` was false, or an operator said so.
    Skipped {
        /// Why.
        reason: String,
    },
    /// It was stopped while it ran.
    Cancelled {
        /// By what.
        reason: String,
    },
    /// It can't run because something it needs did not succeed.
    NotRun {
        /// Which step stands in the way, and how.
        reason: String,
    },
}

/// A failure, as people and machines read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorRecord {
    /// What was attempted on what, and what the other side said.
    pub message: String,
    /// Whether trying again can help by itself.
    pub transient: bool,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

/// What a person is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Question {
    /// Why it is asked.
    pub kind: QuestionKind,
    /// The text.
    pub message: String,
    /// Things to tick off, each before the answer counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checklist: Vec<String>,
    /// Values asked for, by name, with their types.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, String>,
    /// Who may answer; empty means anybody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by: Vec<String>,
    /// How many people must agree.
    pub quorum: u32,
    /// Whether the one who started the run may not answer.
    #[serde(default)]
    pub not_by_requester: bool,
    /// When silence becomes a no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub until: Option<jiff::Timestamp>,
}

/// Why a person is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QuestionKind {
    /// A `manual` step.
    Manual,
    /// An `approve` step.
    Approve,
    /// A step's `confirm`.
    Confirm,
    /// A kill left it open whether the step happened.
    Interrupted,
}

/// A person's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Answer {
    /// Yes or no.
    pub approved: bool,
    /// Who.
    pub by: String,
    /// When they said so; a run may learn of it later.
    #[schemars(with = "String")]
    pub at: jiff::Timestamp,
    /// Their words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The values asked for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, Value>,
}

/// What resume does with one step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Decision {
    /// The step.
    pub step: String,
    /// What will be done.
    pub action: DecisionAction,
    /// Why.
    pub reason: String,
}

/// What resume can do with a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DecisionAction {
    /// It is done; it stays done.
    Keep,
    /// It runs, from its start.
    Run,
    /// It happened in part and goes on from there.
    Continue,
    /// It is still going on in the world: wait for it.
    Wait,
    /// Nobody can tell: a person decides.
    Ask,
    /// Not run, by `when` or an operator's word.
    Skip,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// A process works on it, or died while it did.
    Running,
    /// Every step succeeded or was skipped.
    Succeeded,
    /// A step failed; resumable.
    Failed,
    /// Stopped by an operator; resumable.
    Paused,
    /// Waits for a person; resumable.
    Waiting,
    /// Running steps were cancelled; resumable.
    Cancelled,
    /// All that could be taken back was; final.
    Undone,
}

impl RunStatus {
    /// The word used in JSON and on screens.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Paused => "paused",
            Self::Waiting => "waiting",
            Self::Cancelled => "cancelled",
            Self::Undone => "undone",
        }
    }
}

/// How far a long step is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// How much is done, in `unit`.
    pub done: u64,
    /// How much there is, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// What is counted.
    pub unit: ProgressUnit,
    /// What it does now: `auth.users`, `attempt 3 of 30`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What progress counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProgressUnit {
    /// Bytes.
    #[default]
    Bytes,
    /// Rows.
    Rows,
    /// Anything else that is counted.
    Items,
    /// Seconds that passed.
    Seconds,
}
