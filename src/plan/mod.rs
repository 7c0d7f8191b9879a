//! Plans: from a YAML file to a checked, expanded graph of steps.
//!
//! ```text
//! text ─ source ─▶ tree with places ─ shape ─▶ document ─ expand ─▶ steps ─ check, hazard ─▶ Plan
//! ```
//!
//! Every problem of a plan is found in one go and carries its place. Knows nothing of
//! the engine or of reports. Read next: `load` for the way through.

pub mod document;
pub mod graph;
pub mod hazard;
pub mod load;
pub mod problem;
pub mod schema;
pub mod shape;
pub mod source;

mod check;
mod environ;
mod expand;
mod input;
mod names;
mod parse;
mod render;
mod scalar;
mod scope;
mod targets;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use crate::environment::Environment;
use crate::ids::StepId;
use crate::record::event::Outputs;
use crate::retry::RetryPolicy;
use crate::secret::Redactor;
use crate::step::{Step, TypeInfo, ValueKind};
use crate::template::{Condition, Templated};
use crate::units::Duration;

/// A plan that has been checked against its environment and inputs: `for_each` and
/// sub-plans are expanded, references resolve, the graph has no cycle.
#[derive(Clone, Debug)]
pub struct Plan {
    /// `plan:`.
    pub name: String,
    /// `title:`.
    pub title: Option<String>,
    /// `summary:`.
    pub summary: Option<String>,
    /// `objectives:`.
    pub objectives: Objectives,
    /// `owners:`, as name and contact.
    pub owners: Vec<(String, String)>,
    /// The file it was read from.
    pub file: PathBuf,
    /// SHA-256 over the plan's text and its sub-plans', in hex.
    pub digest: String,
    /// The text of its file and of every sub-plan's, by path: what a run keeps to be resumed with.
    pub sources: Vec<(PathBuf, String)>,
    /// The inputs' values, defaults filled in.
    pub inputs: BTreeMap<String, Value>,
    /// Names of the inputs that are secret.
    pub secret_inputs: Vec<String>,
    /// The environment; an empty one without `--env`.
    pub environment: Environment,
    /// Every step in the order people read, those of `finally` last. A step comes after
    /// all that it needs wherever the plan's text allows.
    pub steps: Vec<PlannedStep>,
    /// What the plan hands to a plan that calls it.
    pub outputs: BTreeMap<String, Templated>,
    /// What its own templates see.
    pub scope: Arc<Scope>,
}

/// Durations that the run is measured against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Objectives {
    /// Recovery time objective.
    pub rto: Option<Duration>,
    /// Recovery point objective.
    pub rpo: Option<Duration>,
}

/// One step of the expanded plan.
#[derive(Clone, Debug)]
pub struct PlannedStep {
    /// Its id: `restore`, `restart[0]`, `restore/find-backup`.
    pub id: StepId,
    /// Its type.
    pub info: &'static TypeInfo,
    /// `title:`, as a template.
    pub title: Option<Templated>,
    /// `summary:`.
    pub summary: Option<String>,
    /// The steps that it waits for directly.
    pub needs: Vec<StepId>,
    /// Whether it runs after the others, whatever the outcome.
    pub finally: bool,
    /// `when:`, all of which must hold: a sub-plan's step carries those of the `plan.run`
    /// steps that call it. Otherwise the step is skipped and counts as done.
    pub when: Vec<Guard>,
    /// `retry:`, the plan's defaults filled in.
    pub retry: RetryPolicy,
    /// `timeout:`: the bound on one attempt.
    pub timeout: Option<Duration>,
    /// `on_failure: continue`.
    pub continue_on_failure: bool,
    /// `confirm:`.
    pub confirm: Option<Templated>,
    /// `interrupted: rerun`.
    pub rerun_if_interrupted: bool,
    /// `valid_for:`.
    pub valid_for: Option<Duration>,
    /// `undo:`: a step type and its parameters.
    pub undo: Option<(&'static TypeInfo, Templated)>,
    /// SHA-256 of everything that defines the step (type, parameters as written, common
    /// keys that change what it does, inputs and vars that it reads), in hex.
    pub definition: String,
    /// Hazards that `allow` silences, and why.
    pub allowed: Vec<Allowed>,
    /// Its parameters as written.
    pub params: Templated,
    /// What its templates see besides steps and the run.
    pub scope: Arc<Scope>,
    /// `item`, in an instance of a `for_each`.
    pub item: Option<Value>,
    /// Of a `plan.run`: the called plan's scope. The step waits for all of that plan's
    /// steps, and its parameters hold that plan's `outputs`, which see this scope.
    pub called: Option<Arc<Scope>>,
}

/// A silenced hazard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// The hazard's code.
    pub code: String,
    /// Why it is no hazard here.
    pub because: String,
}

/// What the templates of one plan file see: a sub-plan has its own.
#[derive(Debug)]
pub struct Scope {
    /// What stands before the ids of this plan's steps: empty, or `restore/`.
    pub prefix: String,
    /// `inputs`, `vars`, `targets` (settings that aren't secret), `plan`, `environment`, as one JSON object.
    pub values: Value,
    /// Inputs of a sub-plan and vars that only the run knows, as `inputs.name`, `vars.name`.
    pub late: BTreeMap<String, Late>,
    /// Inputs (and vars that read them) that have no value: only a plan that is checked, not run, has such.
    pub unknown: BTreeMap<String, ValueKind>,
    /// Paths whose values are secret: `inputs.token`, `targets.db.url`.
    pub secrets: BTreeSet<String>,
    /// What may be read of this plan's steps, by their ids in it.
    pub steps: BTreeMap<String, Readable>,
}

/// A value that only the run knows.
#[derive(Clone, Debug)]
pub struct Late {
    /// How it is made.
    pub template: Arc<Templated>,
    /// What its template sees: the calling plan's scope. `None` is the scope it stands in.
    pub scope: Option<Arc<Scope>>,
    /// `item` of the `plan.run` step that gives it.
    pub item: Option<Value>,
    /// Where to register the value, when it is secret.
    pub redactor: Option<Redactor>,
    /// Its kind.
    pub kind: ValueKind,
}

/// What may be read of a step.
#[derive(Clone, Debug)]
pub struct Readable {
    /// Its outputs.
    pub outputs: Vec<(String, ValueKind)>,
    /// How many instances its `for_each` made: its outputs are lists then.
    pub instances: Option<usize>,
    /// Whether the step couldn't be read: it may have any outputs then.
    pub broken: bool,
}

/// A condition that must hold, and what it sees.
#[derive(Clone, Debug)]
pub struct Guard {
    /// The condition.
    pub condition: Condition,
    /// What it sees.
    pub scope: Arc<Scope>,
    /// `item`, in an instance of a `for_each`.
    pub item: Option<Value>,
}

/// What is known at some moment of a run: the outputs so far, and the run itself.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Outputs of the steps that are done (or, in a dry-run, foretold).
    pub outputs: BTreeMap<StepId, Outputs>,
    /// `run.*`, as one JSON object: `id`, `started_at`, `status`, `elapsed`; null when there is no run.
    pub run: Value,
    /// Whether nothing more will come: an output that isn't there (its step was skipped or
    /// failed) is then missing, which `default` fills and all else refuses. Otherwise it is
    /// unknown, and a stand-in takes its place. True when a step is rendered to be run.
    pub complete: bool,
}

/// A step with its parameters rendered.
#[derive(Clone, Debug)]
pub struct Rendered {
    /// Ready to preview or run.
    pub step: Arc<dyn Step>,
    /// JSON pointers of parameters that only the run knows: a stand-in of the right type is there.
    pub unknown: Vec<String>,
}

impl Plan {
    /// The step of that id.
    pub fn step(&self, id: &StepId) -> Option<&PlannedStep> {
        self.steps.iter().find(|step| &step.id == id)
    }
}
