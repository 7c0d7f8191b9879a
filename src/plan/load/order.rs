//! The order of the flat list of steps, or the circles in it.

use std::collections::HashMap;

use crate::ids::StepId;
use crate::plan::expand::Expanded;
use crate::plan::graph::Graph;
use crate::plan::problem::Problem;

/// The steps in an order in which each comes after all that it needs, `finally` last.
pub(super) fn ordered(steps: Vec<Expanded>, problems: &mut Vec<Problem>) -> (Vec<Expanded>, Option<Graph>) {
    let positions = |steps: &[Expanded]| -> HashMap<StepId, usize> {
        steps.iter().enumerate().map(|(at, expanded)| (expanded.step.id.clone(), at)).collect()
    };
    let needs = |steps: &[Expanded], index: &HashMap<StepId, usize>| -> Vec<Vec<usize>> {
        steps
            .iter()
            .map(|expanded| expanded.step.needs.iter().filter_map(|need| index.get(need).copied()).collect())
            .collect()
    };
    let graph = match Graph::new(&needs(&steps, &positions(&steps))) {
        Ok(graph) => graph,
        Err(cycles) => {
            for cycle in cycles {
                problems.push(cycle_problem(&steps, &cycle));
            }
            return (steps, None);
        }
    };
    let mut order: Vec<usize> = graph.topological().to_vec();
    // Stable: within each half the order stays.
    order.sort_by_key(|at| steps[*at].step.finally);
    if order.iter().enumerate().all(|(place, at)| place == *at) {
        return (steps, Some(graph));
    }
    let mut slots: Vec<Option<Expanded>> = steps.into_iter().map(Some).collect();
    let steps: Vec<Expanded> = order.into_iter().filter_map(|at| slots[at].take()).collect();
    let graph = Graph::new(&needs(&steps, &positions(&steps))).ok();
    (steps, graph)
}

fn cycle_problem(steps: &[Expanded], cycle: &[usize]) -> Problem {
    let mut ids: Vec<&str> = cycle.iter().map(|at| steps[*at].step.id.as_str()).collect();
    ids.extend(ids.first().copied());
    let place = |at: usize| {
        let expanded = &steps[at];
        let document = expanded.document();
        let key =
            if document.needs.is_some() { format!("{}/needs", document.pointer) } else { document.pointer.clone() };
        expanded.file.source.key(&key)
    };
    let mut problem = Problem::at(
        &place(cycle[0]),
        "lifeboat::cycle",
        format!("steps wait for each other in a circle: {}", ids.join(" → ")),
    )
    .label("waits for the next")
    .help("remove one of these needs; a step without `needs` waits for the one above it".to_owned());
    for at in cycle.iter().skip(1).take(8) {
        problem = problem.place(&place(*at), Some("so does this"));
    }
    problem
}
