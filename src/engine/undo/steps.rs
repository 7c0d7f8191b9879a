//! The steps that take a run back, made of those that are taken back.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::ids::StepId;
use crate::plan::{Plan, PlannedStep};
use crate::record::undo::{UndoAction, UndoDecision};
use crate::template::Templated;

/// What stands before the id of the step that is taken back; no step of a plan is named so.
pub(super) const PREFIX: &str = "undo:";

/// The steps that take back, the last of the plan first: each needs those that take back what came after it.
pub(super) fn steps(run: &str, plan: &Plan, decisions: &[UndoDecision]) -> Vec<PlannedStep> {
    let decisions: BTreeMap<&str, &UndoDecision> =
        decisions.iter().map(|decision| (decision.step.as_str(), decision)).collect();
    let index: BTreeMap<&StepId, usize> = plan.steps.iter().enumerate().map(|(at, step)| (&step.id, at)).collect();
    let mut dependants: Vec<Vec<usize>> = vec![Vec::new(); plan.steps.len()];
    let last: Vec<usize> = (0..plan.steps.len()).filter(|at| plan.steps[*at].finally).collect();
    for (at, step) in plan.steps.iter().enumerate() {
        for need in step.needs.iter().filter_map(|need| index.get(need)) {
            dependants[*need].push(at);
        }
        if !step.finally {
            dependants[at].extend(&last);
        }
    }
    let acts = |at: usize| decisions.get(plan.steps[at].id.as_str()).is_some_and(|decision| decision.action.acts());
    // The nearest steps after this one that are taken back, past those that aren't.
    let next = |at: usize| {
        let (mut found, mut seen, mut open) = (BTreeSet::new(), BTreeSet::new(), dependants[at].clone());
        while let Some(at) = open.pop() {
            if !seen.insert(at) {
                continue;
            }
            if acts(at) {
                found.insert(at);
            } else {
                open.extend(&dependants[at]);
            }
        }
        found
    };
    let mut steps = Vec::new();
    for (at, step) in plan.steps.iter().enumerate().rev().filter(|(at, _)| acts(*at)) {
        let Some((info, params)) = &step.undo else { continue };
        let needs = next(at).into_iter().map(|later| undo_id(&plan.steps[later])).collect();
        let asked = decisions.get(step.id.as_str()).filter(|decision| decision.action == UndoAction::Ask);
        steps.push(PlannedStep {
            id: undo_id(step),
            info,
            title: None,
            summary: None,
            needs,
            finally: false,
            when: Vec::new(),
            // One that can't be taken back stops what waits for it, nothing else.
            continue_on_failure: true,
            confirm: asked.and_then(|decision| question(run, step, &decision.reason)),
            valid_for: None,
            undo: None,
            definition: definition(&step.definition),
            allowed: Vec::new(),
            params: params.clone(),
            called: None,
            ..step.clone()
        });
    }
    steps
}

fn undo_id(step: &PlannedStep) -> StepId {
    StepId::new(format!("{PREFIX}{}", step.id))
}

fn definition(of: &str) -> String {
    use std::fmt::Write;
    Sha256::digest(format!("undo {of}")).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What a person is asked before a step is taken back that may not have happened.
fn question(run: &str, step: &PlannedStep, reason: &str) -> Option<Templated> {
    // The words come from outside and are no template.
    let reason = reason.replace("{{", "{ {");
    let text = format!(
        "step `{}`: {reason}. `approve` takes it back; after `reject`, `lifeboat undo {run} --leave {} --because '…'` leaves it as \
         it is",
        step.id, step.id
    );
    Templated::parse(Value::from(text)).ok()
}
