//! Plans: from a YAML file to a checked, expanded graph of steps.
//!
//! ```text
//! text ─ source ─▶ tree with places ─ shape ─▶ document ─ expand ─▶ steps ─ check, hazard ─▶ Plan
//! ```
//!
//! Every problem of a plan is found in one go and carries its place. Knows nothing of
//! the engine or of reports. Read next: `load` for the way through.

pub mod hazard;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use crate::environment::Environment;
use crate::failure::Failure;
use crate::ids::StepId;
use crate::record::event::Outputs;
use crate::retry::RetryPolicy;
use crate::step::{Step, TypeInfo};
use crate::template::{Condition, Templated};
use crate::units::Duration;

/// A plan that has been checked against its environment and inputs: `for_each` and
/// sub-plans are expanded, references resolve, the graph has no cycle.
#[derive(Debug)]
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
#[derive(Debug)]
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
    /// `when:`. False means the step is skipped and counts as done.
    pub when: Option<Condition>,
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
    /// An input of a sub-plan may itself be a template over the caller's steps: see `late`.
    pub values: Value,
    /// Inputs of a sub-plan that only the run knows, as templates in the caller's scope.
    pub late: BTreeMap<String, (Templated, Arc<Scope>)>,
}

/// What is known at some moment of a run: the outputs so far, and the run itself.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Outputs of the steps that are done (or, in a dry-run, foretold).
    pub outputs: BTreeMap<StepId, Outputs>,
    /// `run.*`, as one JSON object: `id`, `started_at`, `status`, `elapsed`; null when there is no run.
    pub run: Value,
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

impl PlannedStep {
    /// Renders the parameters with what is known; what isn't becomes a stand-in and is listed.
    ///
    /// # Errors
    /// When a value does not fit its parameter, or a template fails on the values.
    pub fn render(&self, known: &Known) -> Result<Rendered, Failure> {
        let _ = known;
        Err(Failure::permanent("not built yet"))
    }

    /// Whether `when` holds; `None` while it depends on outputs not known yet. True without `when`.
    ///
    /// # Errors
    /// When the condition fails on the values.
    pub fn holds(&self, known: &Known) -> Result<Option<bool>, Failure> {
        let _ = known;
        Err(Failure::permanent("not built yet"))
    }

    /// A text of the step (`title`, `confirm`) with what is known.
    ///
    /// # Errors
    /// When a template fails on the values.
    pub fn text(&self, template: &Templated, known: &Known) -> Result<String, Failure> {
        let _ = (template, known);
        Err(Failure::permanent("not built yet"))
    }
}
