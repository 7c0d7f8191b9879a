//! The dry-run: the plan walked in order against the real systems, read-only.
//!
//! The same walk is each run's preflight. Each step is previewed in the world as the
//! steps before it will have left it. Writes nothing anywhere.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Context;
use super::objective::Durations;
use crate::failure::Failure;
use crate::plan::{Known, Plan, PlannedStep};
use crate::record::event::{EffectRecord, StepHeader};
use crate::secret::{MASK, Redactor};
use crate::service::Services;
use crate::step::effect::{Access, Effect, Resource};
use crate::step::world::World;
use crate::step::{Action, Certainty, Preview, PreviewCx, Trouble};

/// What a dry-run says. The same input and the same world give the same bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PreviewReport {
    /// The plan's name.
    pub plan: String,
    /// SHA-256 of the plan with its sub-plans, in hex.
    pub plan_digest: String,
    /// The environment's name, if one was given.
    pub environment: Option<String>,
    /// Whether the real systems were looked at.
    pub mode: PreviewMode,
    /// Whether something is in the way.
    pub verdict: PreviewVerdict,
    /// How many things are touched, by how.
    pub impact: Impact,
    /// How long a run should take, in seconds, told from earlier runs; null when they don't tell.
    pub estimate: Option<f64>,
    /// The recovery time objective, in seconds.
    pub rto: Option<f64>,
    /// The recovery point objective, in seconds.
    pub rpo: Option<f64>,
    /// Every step in the plan's order.
    pub steps: Vec<StepPreview>,
}

/// Whether the real systems were looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PreviewMode {
    /// They were, read-only.
    Live,
    /// Nothing was contacted.
    Offline,
}

/// Whether something is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PreviewVerdict {
    /// Nothing is.
    Clear,
    /// At least one step can't do its work.
    Blocked,
}

/// How many things are touched, by how. A step that finds nothing to do counts its reads only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Impact {
    /// Looked at.
    pub read: usize,
    /// Brought into being.
    pub create: usize,
    /// Changed.
    pub change: usize,
    /// Destroyed.
    pub destroy: usize,
    /// Nobody can tell.
    pub undetermined: usize,
}

/// What one step would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StepPreview {
    /// Its id.
    pub id: String,
    /// Its type.
    #[serde(rename = "type")]
    pub step_type: String,
    /// `create`, `change`, `destroy`, `read`, `none`, `ask`, `skip` or `blocked`.
    pub action: String,
    /// `observed`, `assumed` or `undetermined`.
    pub certainty: String,
    /// One line for people.
    pub summary: String,
    /// What it touches, and how.
    pub effects: Vec<EffectRecord>,
    /// What is in the way, or to be known before it runs.
    pub problems: Vec<PreviewProblem>,
}

/// What is in a step's way, or to be known before it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PreviewProblem {
    /// The problem.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// Whether the step can't run because of it.
    pub blocks: bool,
}

/// A preview as it is kept for review (`--save`), and held against a run (`--approved`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SavedPreview {
    /// SHA-256 of the environment's text and of the names it took from outside.
    pub environment_digest: Option<String>,
    /// The inputs, secrets masked.
    pub inputs: BTreeMap<String, Value>,
    /// What was foretold.
    pub preview: PreviewReport,
}

/// Walks the plan, and tells how long a run should take; without services nothing is contacted.
pub async fn preview(cx: &Context, plan: &Plan, services: Option<&Services>) -> PreviewReport {
    let mut report = foresee(plan, Known::default(), services).await;
    let durations = Durations::of(&cx.store, &plan.name, None);
    report.estimate = durations.estimate(plan, &report.steps);
    report
}

/// Walks the plan with what is known of its outputs.
pub(super) async fn foresee(plan: &Plan, known: Known, services: Option<&Services>) -> PreviewReport {
    let services = services.map(Services::read_only);
    let redactor = &plan.environment.redactor;
    let mut walk = Walk { world: World::default(), known };
    let mut steps = Vec::with_capacity(plan.steps.len());
    for step in &plan.steps {
        let notes = notes(step, &walk.known, redactor);
        let (preview, effects) = walk.step(step, services.as_ref()).await;
        let mut step = written(step, &preview, &effects, redactor);
        step.problems.extend(notes);
        steps.push(step);
    }
    report(plan, steps, services.is_some())
}

/// How a step stands before a resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ahead {
    /// It is done, and gave these outputs (none, when it was not run).
    Done,
    /// It goes on from what an attempt left: only the run knows its own work again.
    GoesOn,
    /// It runs from its start.
    Starts,
}

/// Walks what is left of a plan.
pub(super) async fn foresee_rest(
    plan: &Plan,
    services: &Services,
    outputs: BTreeMap<crate::ids::StepId, crate::record::event::Outputs>,
    ahead: impl Fn(usize) -> Ahead,
) -> PreviewReport {
    let services = services.read_only();
    let redactor = &plan.environment.redactor;
    let mut walk = Walk { world: World::default(), known: Known { outputs, ..Known::default() } };
    let mut steps = Vec::new();
    for (at, step) in plan.steps.iter().enumerate() {
        let ahead = ahead(at);
        if ahead == Ahead::Done {
            continue;
        }
        let notes = notes(step, &walk.known, redactor);
        let (mut preview, effects) = walk.step(step, Some(&services)).await;
        if ahead == Ahead::GoesOn && preview.action == Action::Blocked {
            preview = Preview::from_effects(&effects, format!("go on: {}", preview.summary));
        }
        let mut step = written(step, &preview, &effects, redactor);
        step.problems.extend(notes);
        steps.push(step);
    }
    report(plan, steps, true)
}

fn report(plan: &Plan, steps: Vec<StepPreview>, live: bool) -> PreviewReport {
    let blocked = steps.iter().any(|step| step.action == Action::Blocked.as_str());
    let seconds = |duration: Option<crate::units::Duration>| duration.map(|duration| duration.std().as_secs_f64());
    PreviewReport {
        plan: plan.name.clone(),
        plan_digest: plan.digest.clone(),
        environment: plan.environment.name.clone(),
        mode: if live { PreviewMode::Live } else { PreviewMode::Offline },
        verdict: if blocked { PreviewVerdict::Blocked } else { PreviewVerdict::Clear },
        impact: Impact::of(&steps),
        estimate: None,
        rto: seconds(plan.objectives.rto),
        rpo: seconds(plan.objectives.rpo),
        steps,
    }
}

/// The plan's inputs as they may be shown and kept.
pub fn masked_inputs(plan: &Plan) -> BTreeMap<String, Value> {
    let mask = |(name, value): (&String, &Value)| {
        let secret = plan.secret_inputs.contains(name);
        let value = if secret { Value::from(MASK) } else { plan.environment.redactor.redact_json(value.clone()) };
        (name.clone(), value)
    };
    plan.inputs.iter().map(mask).collect()
}

impl PreviewReport {
    /// What stands in the way of the steps that touch what `cut` touched may be what it left half done.
    pub(super) fn behind(&mut self, cut: &StepHeader) {
        let touches = |effect: &EffectRecord| {
            let resource = Resource::from(effect.resource.as_str());
            cut.effects.iter().any(|other| Resource::from(other.resource.as_str()).overlaps(&resource))
        };
        let blocked = Action::Blocked.as_str();
        let steps = self.steps.iter_mut().filter(|step| step.id != cut.id && step.action == blocked);
        for step in steps.filter(|step| step.effects.iter().any(touches)) {
            Action::Change.as_str().clone_into(&mut step.action);
            Certainty::Undetermined.as_str().clone_into(&mut step.certainty);
            step.summary = format!("can't be foreseen, because `{}` was cut off: {}", cut.id, step.summary);
            step.problems.iter_mut().for_each(|problem| problem.blocks = false);
        }
        if self.blocked().next().is_none() {
            self.verdict = PreviewVerdict::Clear;
        }
        self.impact = Impact::of(&self.steps);
    }

    /// Whether something is in the way.
    pub fn is_blocked(&self) -> bool {
        self.verdict == PreviewVerdict::Blocked
    }

    /// The steps that can't do their work.
    pub fn blocked(&self) -> impl Iterator<Item = &StepPreview> {
        self.steps.iter().filter(|step| step.action == Action::Blocked.as_str())
    }
}

impl SavedPreview {
    /// A preview with what it was made of.
    pub fn new(plan: &Plan, preview: PreviewReport) -> Self {
        Self { environment_digest: plan.environment.digest.clone(), inputs: masked_inputs(plan), preview }
    }

    /// Why `now` is not what this one, reviewed earlier, foretold; empty when it is.
    pub fn objections(&self, now: &Self) -> Vec<String> {
        let mut found = Vec::new();
        if self.preview.plan_digest != now.preview.plan_digest {
            found.push("the plan is another one".to_owned());
        }
        if (&self.preview.environment, &self.environment_digest)
            != (&now.preview.environment, &now.environment_digest)
        {
            found.push("the environment is another one".to_owned());
        }
        for name in self.inputs.keys().chain(now.inputs.keys().filter(|name| !self.inputs.contains_key(*name))) {
            if self.inputs.get(name) != now.inputs.get(name) {
                found.push(format!("input `{name}` is another one"));
            }
        }
        for step in &now.preview.steps {
            let reviewed = self.preview.steps.iter().find(|reviewed| reviewed.id == step.id);
            for target in step.destroys() {
                if !reviewed.is_some_and(|reviewed| reviewed.destroys().any(|other| other == target)) {
                    found.push(format!("step `{}` would now destroy {target}", step.id));
                }
            }
        }
        found
    }
}

impl StepPreview {
    fn acts(&self) -> bool {
        self.action != Action::Skip.as_str() && self.action != Action::None.as_str()
    }

    /// What it would destroy.
    fn destroys(&self) -> impl Iterator<Item = &str> {
        let destroys = |effect: &&EffectRecord| effect.access == Access::Destroy.as_str();
        self.effects.iter().filter(|_| self.acts()).filter(destroys).map(|effect| effect.resource.as_str())
    }
}

impl Impact {
    fn of(steps: &[StepPreview]) -> Self {
        let mut impact = Self::default();
        for step in steps.iter().filter(|step| step.action != Action::Skip.as_str()) {
            for effect in &step.effects {
                match effect.access.as_str() {
                    "read" => impact.read += 1,
                    _ if !step.acts() => {}
                    "create" => impact.create += 1,
                    "change" => impact.change += 1,
                    "destroy" => impact.destroy += 1,
                    _ => impact.undetermined += 1,
                }
            }
        }
        impact
    }
}

/// The world and the outputs as the steps walked so far will leave them.
struct Walk {
    world: World,
    known: Known,
}

impl Walk {
    async fn step(&mut self, step: &PlannedStep, services: Option<&Services>) -> (Preview, Vec<Effect>) {
        let holds = match step.holds(&self.known) {
            Ok(Some(false)) => {
                return (Preview::new(Action::Skip, Certainty::Observed, "its `when` is false"), Vec::new());
            }
            Ok(holds) => holds,
            Err(failure) => return (Preview::failed(failure), Vec::new()),
        };
        let rendered = match step.render(&self.known) {
            Ok(rendered) => rendered,
            Err(failure) => return (Preview::failed(failure), Vec::new()),
        };
        let effects = rendered.step.effects();
        let cx = PreviewCx { step: &step.id, services, world: &self.world, unknown: &rendered.unknown };
        let mut preview = AssertUnwindSafe(rendered.step.preview(&cx))
            .catch_unwind()
            .await
            .unwrap_or_else(|_| Preview::failed(Failure::permanent("a defect of Lifeboat: its preview panicked")));
        if preview.problems.iter().any(|problem| problem.blocks) {
            preview.action = Action::Blocked;
        }
        if holds.is_none() {
            preview.certainty = Certainty::Undetermined;
            preview.problems.push(Trouble {
                message: "whether it runs is known only in the run: its `when` reads an output".to_owned(),
                help: None,
                blocks: false,
            });
        }
        for (resource, fact) in preview.facts.drain(..) {
            self.world.foretell(resource, fact, &step.id);
        }
        self.known.outputs.insert(step.id.clone(), std::mem::take(&mut preview.outputs));
        tracing::info!(step = %step.id, action = preview.action.as_str(), "looked at");
        (preview, effects)
    }
}

/// What a review should know of a step beside what it does: that somebody is asked before,
/// and which hazards its author silenced.
fn notes(step: &PlannedStep, known: &Known, redactor: &Redactor) -> Vec<PreviewProblem> {
    let note = |message: String| PreviewProblem { message, help: None, blocks: false };
    let question = step.confirm.as_ref().and_then(|confirm| step.text(confirm, known, redactor).ok());
    let asked = question.map(|question| note(format!("asks first: {question}")));
    let allowed = step.allowed.iter().map(|allowed| {
        let because = redactor.redact(&allowed.because);
        note(format!("allows {}, because {because}", allowed.code.trim_start_matches("lifeboat::")))
    });
    asked.into_iter().chain(allowed).collect()
}

fn written(step: &PlannedStep, preview: &Preview, effects: &[Effect], redactor: &Redactor) -> StepPreview {
    let redact = |text: &str| redactor.redact(text).into_owned();
    StepPreview {
        id: step.id.to_string(),
        step_type: step.info.name.to_owned(),
        action: preview.action.as_str().to_owned(),
        certainty: preview.certainty.as_str().to_owned(),
        summary: redact(&preview.summary),
        effects: effects.iter().map(|effect| effect.record(redact(effect.resource.as_str()))).collect(),
        problems: preview
            .problems
            .iter()
            .map(|problem| PreviewProblem {
                message: redact(&problem.message),
                help: problem.help.as_deref().map(redact),
                blocks: problem.blocks,
            })
            .collect(),
    }
}
