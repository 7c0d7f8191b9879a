//! Whether the steps that are left get the outputs that they read from steps that were not run.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::super::EngineError;
use crate::ids::StepId;
use crate::plan::{Known, Plan, PlannedStep, Scope};
use crate::record::event::{Outcome, Outputs};
use crate::record::state::{Phase, RunState};
use crate::record::steering::OrderKind;
use crate::template::Reference;

/// Refuses when a step that will run reads an output that nobody gives because of an order.
pub(super) fn check(plan: &Plan, state: &RunState) -> Result<(), EngineError> {
    let by_order = |id: &StepId| {
        let ordered = state.step(id.as_str()).filter(|step| step.is_done()).and_then(|step| step.ordered.as_ref());
        ordered
            .map(|ordered| ordered.order)
            .filter(|order| matches!(order, OrderKind::Skip | OrderKind::MarkDone | OrderKind::Accept))
    };
    let gives = |id: &StepId, output: &String| {
        state.step(id.as_str()).and_then(|step| step.outputs()).is_some_and(|outputs| outputs.contains_key(output))
    };
    for planned in &plan.steps {
        let Some(step) = state.step(planned.id.as_str()) else { continue };
        let done = matches!(step.phase, Phase::Finished(Outcome::Succeeded { .. } | Outcome::Skipped { .. }));
        if done && !planned.finally {
            continue;
        }
        let reads = reads(planned);
        let missing = reads.iter().find(|(id, output)| by_order(id).is_some() && !gives(id, output));
        let Some((id, output)) = missing else { continue };
        if !breaks(planned, &reads, state, |id, output| by_order(id).is_some() && !gives(id, output)) {
            continue;
        }
        let (why, help) = match by_order(id) {
            Some(OrderKind::MarkDone) => (
                "it is marked done, and what it gave is not known",
                format!("run `{id}`, or mark done or skip `{}` as well", planned.id),
            ),
            Some(OrderKind::Accept) => {
                ("its accepted result lacks that", format!("run `{id}` again with `--rerun {id}`"))
            }
            _ => {
                ("it is skipped, and gives nothing", format!("skip `{}` as well, or mark `{id}` done", planned.id))
            }
        };
        return Err(EngineError::Order {
            message: format!("step `{}` reads `steps.{id}.{output}`, and of `{id}`, {why}", planned.id),
            help: Some(format!("{help}; in the plan, the helper `default` gives something instead")),
        });
    }
    Ok(())
}

/// Every output that a step's templates read, through vars and inputs as well.
pub(super) fn reads(planned: &PlannedStep) -> BTreeSet<(StepId, String)> {
    let mut found = BTreeSet::new();
    let own = planned.called.as_deref().unwrap_or(&planned.scope);
    walk(planned.params.references(), own, 0, &mut found);
    for guard in &planned.when {
        walk(guard.condition.references(), &guard.scope, 0, &mut found);
    }
    if let Some(confirm) = &planned.confirm {
        walk(confirm.references(), &planned.scope, 0, &mut found);
    }
    found
}

/// How deep vars may read each other: plans that go round in circles are refused when they are loaded.
const DEEP: usize = 32;

fn walk(references: &[Reference], scope: &Scope, depth: usize, found: &mut BTreeSet<(StepId, String)>) {
    if depth > DEEP {
        return;
    }
    for reference in references {
        match reference.path.as_slice() {
            [root, id, output, ..] if root == "steps" => {
                let instances = scope.steps.get(id).and_then(|readable| readable.instances);
                match instances {
                    None => {
                        found.insert((StepId::new(format!("{}{id}", scope.prefix)), output.clone()));
                    }
                    Some(count) => found.extend(
                        (0..count).map(|at| (StepId::new(format!("{}{id}[{at}]", scope.prefix)), output.clone())),
                    ),
                }
            }
            [root, rest @ ..] if root == "inputs" || root == "vars" => {
                let wanted = rest.first().map(|name| format!("{root}.{name}"));
                for (name, late) in &scope.late {
                    let read = match &wanted {
                        Some(wanted) => name == wanted,
                        None => name.starts_with(&format!("{root}.")),
                    };
                    if read {
                        walk(late.template.references(), late.scope.as_deref().unwrap_or(scope), depth + 1, found);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Whether the step fails for want of what is `missing`: `default` may stand in for it.
fn breaks(
    planned: &PlannedStep,
    reads: &BTreeSet<(StepId, String)>,
    state: &RunState,
    missing: impl Fn(&StepId, &String) -> bool,
) -> bool {
    let known = |whole: bool| {
        let mut outputs: BTreeMap<StepId, Outputs> = state
            .steps
            .iter()
            .filter_map(|step| Some((StepId::from(step.header.id.as_str()), step.outputs()?.clone())))
            .collect();
        for (id, output) in reads.iter().filter(|(id, output)| whole || !missing(id, output)) {
            let of = outputs.entry(id.clone()).or_default();
            of.entry(output.clone()).or_insert_with(|| Value::from(format!("‹{id}.{output}›")));
        }
        let run = json!({ "id": state.header.run, "started_at": "", "status": "running", "elapsed": "0s" });
        Known { outputs, run, complete: true }
    };
    let tried = |known: &Known| -> Result<(), String> {
        if planned.holds(known).map_err(|failure| failure.message)? == Some(false) {
            return Ok(());
        }
        planned.render(known).map(drop).map_err(|failure| failure.message)
    };
    match tried(&known(false)) {
        Ok(()) => false,
        // A stand-in of another type fails in both: that tells nothing of what is missing.
        Err(without) => tried(&known(true)).err() != Some(without),
    }
}
