//! What a step type is: parameters, static check, effects, preview, run, after-kill.
//!
//! One file below this folder holds one type whole. A new type is one new file, one
//! line in `step_types!` below, and its test: schema, reference, completion,
//! dry-run and docs follow from it. Knows nothing of plans, the engine or reports.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

pub mod command;
pub mod container;
pub mod control;
pub mod dns;
pub mod effect;
pub mod host;
pub mod http;
pub mod oidc;
pub mod people;
pub mod postgres;
mod preview;
pub mod redis;
pub mod ssh;
pub mod storage;
#[cfg(test)]
mod testing;
pub mod world;

use crate::failure::Failure;
use crate::ids::{RunId, StepId};
use crate::record::event::{Answer, Outputs, Progress, Question};
use crate::secret::Redactor;
use crate::service::Services;
use effect::Effect;
pub use preview::{Action, Certainty, Preview, Trouble};
use world::World;

/// A step with its parameters rendered: what the engine previews and runs.
#[async_trait]
pub trait Step: fmt::Debug + Send + Sync {
    /// What this step touches, from its parameters alone. Values that only the run
    /// knows stand in them as `‹find-backup.path›`.
    fn effects(&self) -> Vec<Effect>;

    /// What can be found wrong in the parameters without contact, beyond their types.
    fn check(&self, _found: &mut Findings) {}

    /// What this step would do, read-only. The one code path of dry-run and preflight.
    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview;

    /// Does it. Must stop soon after `cx.cancel` is triggered, leaving nothing running.
    ///
    /// # Errors
    /// A [`Failure`] that says what was attempted, what the other side said, and if a retry can help.
    async fn run(&self, cx: &RunCx) -> Result<Done, Failure>;

    /// What became of an attempt that was started and never heard of again, answered
    /// from the real systems with what it noted (`cx.notes`).
    ///
    /// # Errors
    /// When the systems can't be asked now.
    async fn after_kill(&self, _cx: &RunCx) -> Result<AfterKill, Failure> {
        Ok(AfterKill::RunAgain { why: "it only reads".to_owned() })
    }

    /// A step for people: what to ask. It is then never run, only asked.
    fn question(&self, _now: jiff::Timestamp) -> Option<Question> {
        None
    }

    /// The outputs that the agreeing answers of a step for people make.
    fn answered(&self, _answers: &[Answer]) -> Outputs {
        Outputs::new()
    }
}

/// The static side of a step type; its parameters are the type itself.
pub trait StepType: Step + DeserializeOwned + JsonSchema + 'static {
    /// The key in a plan: `postgres.restore`.
    const NAME: &'static str;
    /// One sentence for the reference and completion.
    const SUMMARY: &'static str;
    /// How it answers after a kill, for the reference.
    const AFTER_KILL: &'static str = "run again";
    /// Whether its success proves that things are well: recovery time ends with the last such step.
    const PROVES_HEALTH: bool = false;

    /// What later steps may read of it.
    fn outputs() -> Vec<Output> {
        Vec::new()
    }

    /// What later steps may read besides, as this one's own parameters declare it (the
    /// `fields` of a `manual` step). Gets them as the plan writes them, templates unrendered.
    fn declared_outputs(_params: &Value) -> Vec<(String, ValueKind)> {
        Vec::new()
    }
}

/// A declared output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: ValueKind,
    /// One sentence.
    pub help: &'static str,
}

/// The types of inputs and outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueKind {
    /// Text.
    String,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// A duration, as text.
    Duration,
    /// An instant, as RFC 3339 text.
    Timestamp,
    /// A list.
    List,
    /// A map.
    Object,
    /// Whatever the other side gives.
    Any,
}

/// Shorthand for [`StepType::outputs`].
pub const fn output(name: &'static str, kind: ValueKind, help: &'static str) -> Output {
    Output { name, kind, help }
}

/// A step type as the rest of the program sees it.
#[derive(Clone, Copy)]
pub struct TypeInfo {
    /// See [`StepType::NAME`].
    pub name: &'static str,
    /// See [`StepType::SUMMARY`].
    pub summary: &'static str,
    /// See [`StepType::AFTER_KILL`].
    pub after_kill: &'static str,
    /// See [`StepType::PROVES_HEALTH`].
    pub proves_health: bool,
    /// See [`StepType::outputs`].
    pub outputs: fn() -> Vec<Output>,
    /// See [`StepType::declared_outputs`].
    pub declared_outputs: fn(&Value) -> Vec<(String, ValueKind)>,
    /// The parameters' JSON Schema. Extensions in it: `x-target` (the property names a
    /// target of that kind, or of one of those kinds), `x-sql` (a bare template is an error), `x-arguments` (ends
    /// up in a process's arguments: no secrets).
    pub schema: fn(&mut SchemaGenerator) -> Schema,
    /// Parameters from JSON, all templates rendered.
    pub parse: fn(Value) -> Result<Arc<dyn Step>, ParamError>,
}

impl fmt::Debug for TypeInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for TypeInfo {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// A parameter that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamError {
    /// Where, as a JSON pointer below the parameters.
    pub pointer: String,
    /// What is wrong.
    pub message: String,
}

pub(crate) const fn info<T: StepType>() -> TypeInfo {
    TypeInfo {
        name: T::NAME,
        summary: T::SUMMARY,
        after_kill: T::AFTER_KILL,
        proves_health: T::PROVES_HEALTH,
        outputs: T::outputs,
        declared_outputs: T::declared_outputs,
        schema: T::json_schema,
        parse: parse::<T>,
    }
}

fn parse<T: StepType>(params: Value) -> Result<Arc<dyn Step>, ParamError> {
    match serde_path_to_error::deserialize::<_, T>(params) {
        Ok(step) => Ok(Arc::new(step)),
        Err(error) => {
            let pointer = error.path().iter().fold(String::new(), |pointer, segment| match segment {
                serde_path_to_error::Segment::Seq { index } => format!("{pointer}/{index}"),
                serde_path_to_error::Segment::Map { key } => {
                    format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1"))
                }
                _ => pointer,
            });
            Err(ParamError { pointer, message: error.into_inner().to_string() })
        }
    }
}

/// Lists the step types, in the order of the reference.
macro_rules! step_types {
    ($($type:path,)*) => {
        /// Every step type, in the order of the reference.
        pub static TYPES: &[TypeInfo] = &[$(info::<$type>(),)*];
    };
}

step_types! {
    postgres::wait_ready::WaitReady,
    postgres::create_database::CreateDatabase,
    postgres::drop_database::DropDatabase,
    postgres::swap_databases::SwapDatabases,
    postgres::backup::Backup,
    postgres::restore::Restore,
    postgres::restore_globals::RestoreGlobals,
    postgres::base_backup::BaseBackupStep,
    postgres::recover_to::RecoverTo,
    postgres::remove_cluster::RemoveCluster,
    postgres::query::Query,
    postgres::execute::Execute,
    postgres::verify_counts::VerifyCounts,
    postgres::verify_rows::VerifyRows,
    postgres::verify::Verify,
    postgres::export::Export,
    postgres::import::Import,
    postgres::copy_rows::CopyRows,
    postgres::replication::Replication,
    container::stop::Stop,
    container::start::Start,
    container::restart::Restart,
    container::run::Run,
    container::remove::Remove,
    container::exec::Exec,
    storage::find::Find,
    storage::verify::Verify,
    storage::copy::Copy,
    storage::prune::Prune,
    redis::snapshot::Snapshot,
    redis::restore::Restore,
    redis::check::Check,
    http::check::Check,
    http::request::Request,
    dns::check::Check,
    dns::update::Update,
    http::notify::Notify,
    oidc::check::Check,
    people::manual::Manual,
    people::approve::Approve,
    control::assert::Assert,
    control::wait::Wait,
    control::exec::Exec,
    ssh::exec::Exec,
    host::disk::Disk,
    control::plan_run::PlanRun,
}

/// The step type of that name.
pub fn find(name: &str) -> Option<&'static TypeInfo> {
    TYPES.iter().find(|info| info.name == name)
}

/// Collects what a static check finds.
#[derive(Debug, Default)]
pub struct Findings {
    /// What was found so far.
    pub found: Vec<Finding>,
    /// The kinds of targets, where they are known.
    kinds: BTreeMap<String, String>,
}

/// A mistake in a step's parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where, as a JSON pointer below the parameters.
    pub pointer: String,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
}

impl Findings {
    /// For a check that knows of these targets' kinds.
    pub fn with_kinds(kinds: BTreeMap<String, String>) -> Self {
        Self { found: vec![], kinds }
    }

    /// The kind of a target, if it is known already.
    pub fn kind_of(&self, target: &str) -> Option<&str> {
        self.kinds.get(target).map(String::as_str)
    }

    /// Adds a mistake.
    pub fn add(&mut self, pointer: impl Into<String>, message: impl Into<String>, help: impl Into<Option<String>>) {
        self.found.push(Finding { pointer: pointer.into(), message: message.into(), help: help.into() });
    }
}

/// What a preview may use.
#[derive(Debug)]
pub struct PreviewCx<'a> {
    /// The step's id.
    pub step: &'a StepId,
    /// The real systems, read-only; `None` with `--offline`.
    pub services: Option<&'a Services>,
    /// What the steps before foretell.
    pub world: &'a World,
    /// JSON pointers (below the parameters) of values that only the run knows; the
    /// parameters hold a stand-in of the right type there.
    pub unknown: &'a [String],
}

impl PreviewCx<'_> {
    /// Whether the parameter at `pointer` (`/from/path`), or something in it, is known only in the run.
    pub fn is_unknown(&self, pointer: &str) -> bool {
        self.unknown.iter().any(|unknown| {
            unknown == pointer
                || unknown.starts_with(&format!("{pointer}/"))
                || pointer.starts_with(&format!("{unknown}/"))
        })
    }
}

/// A run's answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Done {
    /// The declared outputs.
    pub outputs: Outputs,
    /// One line for people: `3 tables, 1,204 rows`.
    pub summary: Option<String>,
}

impl Done {
    /// Done, with one line to say so.
    pub fn new(summary: impl Into<String>) -> Self {
        Self { outputs: Outputs::new(), summary: Some(summary.into()) }
    }

    /// Adds an output.
    #[must_use]
    pub fn output(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.outputs.insert(name.to_owned(), value.into());
        self
    }
}

/// What became of an attempt that nobody heard of again.
#[derive(Clone, Debug, PartialEq)]
pub enum AfterKill {
    /// It took effect, whole: kept.
    Happened(Done),
    /// It had no effect: run.
    DidNotHappen {
        /// How that is known.
        why: String,
    },
    /// It took effect in part: run, which goes on from there or cleans up first.
    Partly {
        /// What is there.
        what: String,
    },
    /// It is still going on in the world: wait and ask again.
    StillGoing {
        /// What is.
        what: String,
    },
    /// Running it again is always right.
    RunAgain {
        /// Why.
        why: String,
    },
    /// Nobody can tell: a person decides, unless the plan says `interrupted: rerun`.
    CannotTell {
        /// Why not, and how to look.
        why: String,
    },
}

/// What an attempt may use.
#[derive(Clone)]
pub struct RunCx {
    /// The run.
    pub run: RunId,
    /// The step.
    pub step: StepId,
    /// The attempt, from 1.
    pub attempt: u32,
    /// The real systems. Connections carry `lifeboat:<run>:<step>:<attempt>` as their name
    /// and end when `cancel` is triggered.
    pub services: Services,
    /// What earlier attempts of this step noted, oldest first: attempt and note.
    pub notes: Vec<(u32, Value)>,
    /// Where notes, progress and log lines go.
    pub reporter: Arc<dyn Reporter>,
    /// Triggered by a timeout, a second Ctrl-C or SIGTERM.
    pub cancel: CancellationToken,
    /// Masks secrets in texts from outside.
    pub redactor: Redactor,
}

impl fmt::Debug for RunCx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RunCx({} {} attempt {})", self.run, self.step, self.attempt)
    }
}

impl RunCx {
    /// Writes a note to the journal and waits until it is on disk. Call it before the
    /// effect that the note helps to find again.
    ///
    /// # Errors
    /// When the journal can't be written: don't act then.
    pub async fn note(&self, note: Value) -> Result<(), Failure> {
        self.reporter.note(note).await
    }

    /// Tells how far the step is. Cheap; may be dropped.
    pub fn progress(&self, progress: Progress) {
        self.reporter.progress(progress);
    }

    /// Adds text to the attempt's log file (secrets are masked on the way).
    pub fn log(&self, text: &str) {
        self.reporter.log(text);
    }
}

/// Where a running step's words go.
#[async_trait]
pub trait Reporter: Send + Sync {
    /// See [`RunCx::note`].
    async fn note(&self, note: Value) -> Result<(), Failure>;
    /// See [`RunCx::progress`].
    fn progress(&self, progress: Progress);
    /// See [`RunCx::log`].
    fn log(&self, text: &str);
}
