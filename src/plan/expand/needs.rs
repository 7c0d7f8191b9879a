//! What each step waits for: what it names, or the step above it.

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;

use super::{Settled, instances};
use crate::ids::StepId;
use crate::plan::parse::{Collector, PlanFile, StepDocument};
use crate::plan::problem::{clip, suggest};
use crate::plan::render::full_id;

/// The names of one section of a file, for `needs`.
pub(super) struct Names<'a> {
    pub file: &'a PlanFile,
    pub settled: &'a Settled,
    pub in_finally: bool,
    /// What a step waits for that has nothing above it.
    pub first: &'a [StepId],
    pub index: HashMap<&'a str, usize>,
}

impl Names<'_> {
    fn list(&self) -> &[StepDocument] {
        if self.in_finally { &self.file.finally } else { &self.file.steps }
    }

    /// The ids that a step waits for.
    pub fn needs(&self, at: usize, found: &mut Collector<'_>) -> Vec<StepId> {
        let step = &self.list()[at];
        for (index, name) in step.needs.iter().flatten().enumerate() {
            self.check(step, index, name, found);
        }
        let mut needs = BTreeSet::new();
        let mut open = vec![at];
        let mut seen = BTreeSet::from([at]);
        while let Some(at) = open.pop() {
            let above = self.above(at);
            if above.is_empty() {
                needs.extend(self.first.iter().cloned());
            }
            for need in above {
                let mut ids = instances(&self.list()[need], self.settled).peekable();
                // A step without instances passes on what it would have waited for.
                if ids.peek().is_none() && seen.insert(need) {
                    open.push(need);
                }
                needs.extend(ids.map(|(id, _)| full_id(&self.settled.scope, &id)));
            }
        }
        needs.into_iter().collect()
    }

    /// The steps that one says it waits for: those it names, or the one above.
    fn above(&self, at: usize) -> Vec<usize> {
        match &self.list()[at].needs {
            Some(names) => names.iter().filter_map(|name| self.index.get(name.as_str()).copied()).collect(),
            None => at.checked_sub(1).into_iter().collect(),
        }
    }

    fn check(&self, step: &StepDocument, index: usize, name: &str, found: &mut Collector<'_>) {
        if self.index.contains_key(name) || self.file.broken.contains(name) {
            return;
        }
        let single = matches!(step.common.needs, Some(Value::String(_)));
        let pointer =
            if single { format!("{}/needs", step.pointer) } else { format!("{}/needs/{index}", step.pointer) };
        let elsewhere = self.file.step(name).is_some();
        let (message, help) = match (elsewhere, self.in_finally) {
            (true, true) => (
                format!("a step of `finally` can't need `{}`, one of `steps`", clip(name)),
                Some("it runs after all of them, whatever became of them; remove the need".to_owned()),
            ),
            (true, false) => (
                format!("`{}` belongs to `finally`, which runs after all other steps", clip(name)),
                Some("remove the need, or move one of the two".to_owned()),
            ),
            (false, _) => (
                format!("there is no step `{}`", clip(name)),
                // One in a plan that is all wrong needs no suggestion, and comparing takes its time.
                (found.problems.len() < 1000)
                    .then(|| suggest(name, self.list().iter().map(|step| step.id.as_str())))
                    .flatten(),
            ),
        };
        found.value(&pointer, "lifeboat::unknown_need", message, help);
    }
}
