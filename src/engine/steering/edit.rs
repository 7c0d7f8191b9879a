//! An edited plan that takes over: what differs, and what has to be said about it.
//!
//! Steps are matched by id and definition. What an attempt under the old definition came to is
//! asked with the old definition, from the copy that the run kept; nothing is taken on trust.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::resume::desk;
use super::super::turn::Turns;
use super::super::{Context, EngineError, guard};
use super::{ask, became};
use crate::ids::StepId;
use crate::plan::{Known, Plan, PlannedStep};
use crate::record::event::{Outcome, RunStatus};
use crate::record::state::{RunState, StepState};
use crate::record::steering::{ChangeKind, OrderKind, PlanChange, StepChange};
use crate::record::store::{Copies, RunFolder};
use crate::service::Services;
use crate::step::AfterKill;

/// An edited plan.
#[derive(Clone, Debug)]
pub struct Edit {
    /// The plan that the run went on with so far, from its own copy; none when that can't be read any more.
    pub before: Option<Arc<Plan>>,
    /// What the run keeps of the edited one.
    pub copies: Copies,
}

/// What the systems say of an attempt under a definition that is no more.
#[derive(Debug)]
pub(super) enum Earlier {
    /// Nothing of it is in the world, or nothing that the next attempt could stumble over without saying so.
    Over(Option<String>),
    /// It took effect: a result to keep or to give up.
    Happened(crate::step::Done, String),
    /// An attempt that was cut off, and nobody can tell.
    Unclear(String),
    /// It still goes on.
    StillGoing(String),
}

/// The difference between the run's plan and the edited one.
pub(super) struct Edited {
    pub change: PlanChange,
    /// Of steps whose definition changed, or that are gone: what earlier attempts came to.
    pub earlier: BTreeMap<String, Earlier>,
}

impl Edited {
    pub fn is(&self, id: &str, kind: ChangeKind) -> bool {
        self.change.changes.iter().any(|change| change.step == id && change.change == kind)
    }
}

/// Finds out how the edited plan differs, and what became of what it changes.
pub(super) async fn compare(
    cx: &Context,
    plan: &Plan,
    edit: &Edit,
    folder: &RunFolder,
    state: &RunState,
    services: &Services,
) -> Result<Edited, EngineError> {
    if plan.name != state.header.plan {
        return Err(EngineError::Order {
            message: format!(
                "--plan: this is plan `{}`, and the run is one of plan `{}`",
                plan.name, state.header.plan
            ),
            help: Some("start a run of its own with `lifeboat run`".to_owned()),
        });
    }
    let mut changes = changes(plan, state);
    let mut earlier = BTreeMap::new();
    let mut turns = edit.before.as_ref().map(|before| Turns::new(before, state));
    if let Some(turns) = &mut turns {
        turns.at(state, RunStatus::Running, cx.now());
    }
    for change in &mut changes {
        let Some(step) = state.step_ever(&change.step) else { continue };
        if !matches!(change.change, ChangeKind::Gone | ChangeKind::Changed) {
            continue;
        }
        let became = match (step.outcome(), open(step)) {
            (Some(Outcome::Succeeded { .. }), _) => {
                change.note = Some("it had succeeded".to_owned());
                continue;
            }
            (_, false) => Earlier::Over(None),
            (_, true) => {
                let before = edit.before.as_ref().zip(turns.as_ref()).and_then(|(before, turns)| {
                    let at = before.steps.iter().position(|planned| planned.id.as_str() == change.step)?;
                    Some((before, at, turns.step(at)))
                });
                let Some((before, at, rendered)) = before else {
                    return Err(unreadable(step, "the run's own copy of the plan can't be read"));
                };
                let rendered = rendered.map_err(|failure| unreadable(step, &failure.message))?;
                let desk = desk(before, folder, services);
                let answer = ask(&desk, at, &before.steps[at], step, rendered).await;
                let answer = answer.map_err(|why| unreadable(step, &why))?;
                judge(step, answer)
            }
        };
        change.note = match &became {
            Earlier::Over(said) => said.clone(),
            Earlier::Happened(_, said) | Earlier::Unclear(said) | Earlier::StillGoing(said) => Some(said.clone()),
        };
        if let (Earlier::StillGoing(what), false) = (&became, services.is_read_only()) {
            return Err(EngineError::Refused {
                step: StepId::from(change.step.as_str()),
                why: what.clone(),
                help: "wait until it is through, or end it; then try again".to_owned(),
            });
        }
        earlier.insert(change.step.clone(), became);
    }
    let seconds = |duration: Option<crate::units::Duration>| duration.map(|duration| duration.std().as_secs_f64());
    let redactor = &plan.environment.redactor;
    for change in &mut changes {
        change.note = change.note.as_ref().map(|note| redactor.redact(note).into_owned());
    }
    let copy = folder.next_copy();
    let change = PlanChange {
        plan_digest: plan.digest.clone(),
        previous_digest: state.header.plan_digest.clone(),
        plan_file: plan.file.display().to_string(),
        copies: edit.copies.edited_digests(&copy),
        copy,
        title: plan.title.clone(),
        environment_digest: plan.environment.digest.clone(),
        inputs: super::super::preview::masked_inputs(plan),
        rto: seconds(plan.objectives.rto),
        rpo: seconds(plan.objectives.rpo),
        steps: super::super::headers(plan, None),
        changes,
    };
    Ok(Edited { change, earlier })
}

/// Steps whose definition changed must be told what to do with what they did.
pub(super) fn insist(
    edited: &Edited,
    state: &RunState,
    named: &BTreeMap<StepId, OrderKind>,
) -> Result<(), EngineError> {
    let mut done = Vec::new();
    let mut unclear = Vec::new();
    for change in edited.change.changes.iter().filter(|change| change.change == ChangeKind::Changed) {
        let order = named.get(change.step.as_str()).copied();
        let happened = matches!(edited.earlier.get(&change.step), Some(Earlier::Happened(..)))
            || state.step_ever(&change.step).is_some_and(|step| step.outputs().is_some());
        if happened && !matches!(order, Some(OrderKind::Accept | OrderKind::Rerun)) {
            done.push(change.step.clone());
        }
        if matches!(edited.earlier.get(&change.step), Some(Earlier::Unclear(_))) && order.is_none() {
            unclear.push(change);
        }
    }
    if let Some(first) = done.first() {
        let steps: Vec<_> = done.iter().map(|step| format!("`{step}`")).collect();
        let were = if done.len() == 1 { "has happened, and is" } else { "have happened, and are" };
        return Err(EngineError::Order {
            message: format!("{} {were} defined otherwise in the edited plan", steps.join(", ")),
            help: Some(format!(
                "say for each what is to be: `--accept {first}` keeps its result, `--rerun {first}` runs it again with all \
                 that depends on it"
            )),
        });
    }
    match unclear.first() {
        None => Ok(()),
        Some(change) => Err(EngineError::Refused {
            step: StepId::from(change.step.as_str()),
            why: format!(
                "it is defined otherwise in the edited plan, and {}",
                change.note.clone().unwrap_or_default()
            ),
            help: format!(
                "find out, then say what is to be: `--rerun {0}`, `--mark-done {0}` or `--skip {0}`",
                change.step
            ),
        }),
    }
}

/// What an edited plan, or a step that runs again, destroys or displaces that nobody confirmed for this.
pub(super) fn destroys(
    plan: &Plan,
    edit: Option<&Edit>,
    again: &BTreeSet<&str>,
    ahead: impl Fn(&str) -> bool,
) -> Vec<String> {
    let of = |step: &PlannedStep| -> BTreeSet<String> {
        let rendered = step.render(&Known::default());
        let effects = rendered.map_or_else(|_| Vec::new(), |rendered| rendered.step.effects());
        effects.into_iter().filter(guard::destroys).map(|effect| effect.resource.to_string()).collect()
    };
    let mut found = BTreeSet::new();
    for step in plan.steps.iter().filter(|step| ahead(step.id.as_str())) {
        let now = of(step);
        if again.contains(step.id.as_str()) {
            found.extend(now);
        } else if let Some(edit) = edit {
            let before = edit.before.as_ref().and_then(|before| before.step(&step.id)).map(of).unwrap_or_default();
            found.extend(now.difference(&before).cloned());
        }
    }
    found.into_iter().map(|resource| plan.environment.redactor.redact(&resource).into_owned()).collect()
}

/// What differs, in the order of the edited plan; what is gone comes last.
fn changes(plan: &Plan, state: &RunState) -> Vec<StepChange> {
    let change = |step: &str, change| StepChange { step: step.to_owned(), change, note: None };
    let common = |ids: Vec<String>, other: &dyn Fn(&str) -> bool| -> Vec<String> {
        ids.into_iter().filter(|id| other(id)).collect()
    };
    let now: Vec<String> = plan.steps.iter().map(|step| step.id.to_string()).collect();
    let then: Vec<String> = state.steps.iter().map(|step| step.header.id.clone()).collect();
    let in_plan: BTreeSet<&str> = now.iter().map(String::as_str).collect();
    let now_common = common(now.clone(), &|id| state.step(id).is_some());
    let then_common = common(then, &|id| in_plan.contains(id));
    let elsewhere: BTreeSet<&String> =
        now_common.iter().zip(&then_common).filter(|(now, then)| now != then).map(|(now, _)| now).collect();
    let mut found = Vec::new();
    for step in &plan.steps {
        let id = step.id.as_str();
        // One that an earlier plan had comes back with what it did.
        let Some(was) = state.step_ever(id) else {
            found.push(change(id, ChangeKind::New));
            continue;
        };
        let needs: Vec<&str> = step.needs.iter().map(StepId::as_str).collect();
        let was_needs: Vec<&str> = was.header.needs.iter().map(String::as_str).collect();
        if step.definition != was.header.definition {
            found.push(change(id, ChangeKind::Changed));
        } else if needs != was_needs
            || step.finally != was.header.finally
            || elsewhere.contains(&step.id.to_string())
            || state.step(id).is_none()
        {
            found.push(change(id, ChangeKind::Moved));
        }
    }
    let gone = state.steps.iter().filter(|step| !in_plan.contains(step.header.id.as_str()));
    found.extend(gone.map(|step| change(&step.header.id, ChangeKind::Gone)));
    found
}

/// Whether an attempt may have left something that only its own definition can tell of.
fn open(step: &StepState) -> bool {
    step.may_have_happened() || (!step.notes.is_empty() && !step.is_done())
}

fn judge(step: &StepState, answer: AfterKill) -> Earlier {
    let said = became(&answer);
    match answer {
        AfterKill::Happened(done) => Earlier::Happened(done, said),
        AfterKill::StillGoing { .. } => Earlier::StillGoing(said),
        AfterKill::CannotTell { .. } if step.may_have_happened() => Earlier::Unclear(said),
        // The attempt is known to have failed.
        _ => Earlier::Over(Some(said)),
    }
}

fn unreadable(step: &StepState, why: &str) -> EngineError {
    EngineError::Refused {
        step: StepId::from(step.header.id.as_str()),
        why: format!("what its attempts came to can only be asked with the plan they ran with: {why}"),
        help: "resume without `--plan` first, or make its system reachable".to_owned(),
    }
}
