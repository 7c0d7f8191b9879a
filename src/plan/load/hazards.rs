//! From the steps' effects to hazards with places, those that steps allow left out.

use std::collections::BTreeMap;

use crate::environment::Environment;
use crate::plan::expand::Expanded;
use crate::plan::graph::Graph;
use crate::plan::hazard::{self, Order, Subject};
use crate::plan::problem::Problem;
use crate::service::Target;
use crate::step::effect::{Effect, Resource};

/// Hazards from the steps' effects, but those that a step allows.
pub(super) fn find(
    steps: &[Expanded],
    effects: Vec<Option<Vec<Effect>>>,
    graph: &Graph,
    environment: &Environment,
    problems: &mut Vec<Problem>,
) {
    let Some(effects) = effects.into_iter().collect::<Option<Vec<_>>>() else { return };
    let conditions: Vec<Option<String>> = steps
        .iter()
        .map(|expanded| {
            let all: Vec<&str> = expanded.step.when.iter().map(|guard| guard.condition.source()).collect();
            (!all.is_empty()).then(|| all.join(" and "))
        })
        .collect();
    let subjects: Vec<Subject<'_>> = steps
        .iter()
        .zip(effects)
        .zip(&conditions)
        .map(|((expanded, effects), when)| Subject {
            id: &expanded.step.id,
            effects,
            finally: expanded.step.finally,
            when: when.as_deref(),
        })
        .collect();
    let before = |first: usize, second: usize| graph.before(first, second);
    let order = Order { subjects: &subjects, topological: graph.topological(), before: &before };
    for hazard in hazard::find(&order, &clients(environment)) {
        let step = &steps[hazard.step];
        let other = hazard.other.map(|other| &steps[other]);
        let allows = |expanded: &Expanded| expanded.step.allowed.iter().any(|allowed| allowed.code == hazard.code);
        if allows(step) || other.is_some_and(allows) {
            continue;
        }
        let place = |expanded: &Expanded| expanded.file.source.key(&expanded.document().params_pointer());
        let mut problem = Problem::at(&place(step), hazard.code, hazard.message).help(hazard.help);
        if let Some(other) = other {
            problem = problem.place(&place(other), Some("and this"));
        }
        problems.push(if hazard.error { problem } else { problem.warning() });
    }
}

/// The containers that use each PostgreSQL server's databases.
fn clients(environment: &Environment) -> BTreeMap<Resource, Vec<Resource>> {
    let servers = environment.targets.iter().filter_map(|(name, target)| match target {
        Target::Postgres(settings) if !settings.clients.is_empty() => Some((name, &settings.clients)),
        _ => None,
    });
    servers
        .map(|(name, clients)| {
            let containers = clients.iter().filter_map(|client| client.split_once('/'));
            (
                Resource::server(name),
                containers.map(|(target, container)| Resource::container(target, container)).collect(),
            )
        })
        .collect()
}
