//! Checks every step of the flat list: names, order, parameters, targets, secrets.
//!
//! Parameters are rendered with what is known and typed stand-ins for the rest, and then
//! read by their step type as in a run. Read next: `names`, `targets`, `hazard`.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use super::expand::Expanded;
use super::graph::Graph;
use super::hazard;
use super::names::{self, Unknown};
use super::parse::{PlanFile, StepDocument, text_at};
use super::problem::{Place, Problem};
use super::render::Viewer;
use super::targets::Targets;
use super::{Known, Scope, schema};
use crate::ids::StepId;
use crate::step::effect::Effect;
use crate::step::{Findings, TypeInfo};
use crate::template::{Condition, Reference, Templated};

pub use super::names::has_unknown_name;

/// With more problems than this the rest of a plan is not looked at.
const ENOUGH: usize = 1000;

/// The steps with their order, to check references against.
pub struct Steps<'a> {
    /// The steps.
    pub all: &'a [Expanded],
    /// Each id's position.
    pub index: &'a HashMap<StepId, usize>,
    /// Their order; none when there is a cycle.
    pub graph: Option<&'a Graph>,
}

/// What a template is checked in.
#[derive(Clone, Copy)]
struct Spot<'a> {
    file: &'a PlanFile,
    scope: &'a Scope,
    /// Where the template stands.
    base: &'a str,
    /// The reading step's position; none for a plan's own `outputs`.
    reader: Option<usize>,
    has_item: bool,
    /// Whether it may read the step's own outputs: `undo` runs after it.
    own: bool,
}

/// Checks all steps. Gives their effects, where the parameters could be read.
pub fn steps(
    steps: &Steps<'_>,
    targets: &mut Targets<'_>,
    problems: &mut Vec<Problem>,
) -> Vec<Option<Vec<Effect>>> {
    let mut effects = Vec::with_capacity(steps.all.len());
    for (at, expanded) in steps.all.iter().enumerate() {
        let before = problems.len();
        // Nobody reads further, and looking for what each name was meant to be takes its time.
        if before > ENOUGH {
            effects.push(None);
            continue;
        }
        let document = expanded.document();
        let found = step(at, expanded, document, steps, targets, problems);
        effects.push(found);
        let inside = problems.len() - before;
        // An instance of a `for_each` repeats what the first one said.
        if inside > 0 && at > 0 && std::ptr::eq(steps.all[at - 1].document(), document) {
            dedup(problems);
        }
    }
    effects
}

/// Takes out problems that are told already.
pub fn dedup(problems: &mut Vec<Problem>) {
    let mut seen = std::collections::HashSet::new();
    problems.retain(|problem| {
        let file = problem.file.as_ref().map_or(0, |file| Arc::as_ptr(file).addr());
        let span = problem.labels.first().map(|(span, _)| (span.start, span.end));
        seen.insert((file, span, problem.code, problem.message.clone()))
    });
}

fn step(
    at: usize,
    expanded: &Expanded,
    document: &StepDocument,
    steps: &Steps<'_>,
    targets: &mut Targets<'_>,
    problems: &mut Vec<Problem>,
) -> Option<Vec<Effect>> {
    let planned = &expanded.step;
    let params = document.params_pointer();
    let spot = Spot {
        file: &expanded.file,
        scope: &planned.scope,
        base: &params,
        reader: Some(at),
        has_item: document.for_each.is_some(),
        own: false,
    };
    spot.references(document.params.references(), steps, problems);
    for (key, template) in
        [("title", &document.title), ("confirm", &document.confirm), ("for_each", &document.for_each)]
    {
        if let Some(template) = template {
            let base = format!("{}/{key}", document.pointer);
            Spot { base: &base, has_item: spot.has_item && key != "for_each", ..spot }.references(
                template.references(),
                steps,
                problems,
            );
        }
    }
    if let Some(when) = &document.when {
        let base = format!("{}/when", document.pointer);
        Spot { base: &base, ..spot }.condition(when.references(), steps, problems);
    }
    if let Some((info, undo)) = &planned.undo {
        let base = format!("{}/undo/{}", document.pointer, info.name);
        let spot = Spot { base: &base, own: true, ..spot };
        spot.references(undo.references(), steps, problems);
        spot.parameters(info, undo, planned.item.as_ref(), expanded, targets, problems);
    }
    let undo = planned.undo.as_ref().map(|(_, undo)| undo);
    let all = [
        Some(&document.params),
        document.title.as_ref(),
        document.confirm.as_ref(),
        document.for_each.as_ref(),
        undo,
    ];
    let conditions = document.when.iter().flat_map(Condition::references);
    for reference in all.into_iter().flatten().flat_map(Templated::references).chain(conditions) {
        if let ["targets", name, ..] = reference.path.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            targets.read_by_template(&expanded.file, name);
        }
    }
    if planned.info.name == "plan.run" {
        spot.shape(planned.info, &document.params, planned.item.as_ref(), problems)?;
        return Some(Vec::new());
    }
    spot.parameters(planned.info, &planned.params, planned.item.as_ref(), expanded, targets, problems)
}

/// Checks the `outputs` (and late `vars`) of a plan file.
pub fn outputs(file: &PlanFile, scope: &Scope, steps: &Steps<'_>, problems: &mut Vec<Problem>) {
    for (base, template) in [("/outputs", &file.outputs), ("/vars", &file.vars)] {
        let spot = Spot { file, scope, base, reader: None, has_item: false, own: false };
        spot.references(template.references(), steps, problems);
    }
}

impl Spot<'_> {
    fn place(&self, reference: &Reference) -> Place {
        let pointer = format!("{}{}", self.base, reference.pointer);
        let text = text_at(&self.file.source, &pointer);
        self.file.source.value(&pointer).part(&text, reference.at.clone())
    }

    /// Checks names and order.
    fn references(&self, references: &[Reference], steps: &Steps<'_>, problems: &mut Vec<Problem>) {
        for reference in references {
            match names::check(reference, self.scope, self.file, self.has_item) {
                Ok(()) => self.order(reference, &|| self.place(reference), steps, problems),
                Err(Unknown { code, message, help }) => {
                    problems.push(Problem::at(&self.place(reference), code, message).help(help));
                }
            }
        }
    }

    /// The same for a condition, whose places are those of the whole text.
    fn condition(&self, references: &[Reference], steps: &Steps<'_>, problems: &mut Vec<Problem>) {
        for reference in references {
            let place = || {
                let text = text_at(&self.file.source, self.base);
                let name = reference.path.join(".");
                let place = self.file.source.value(self.base);
                text.find(&name).map_or_else(|| place.clone(), |at| place.clone().part(&text, at..at + name.len()))
            };
            match names::check(reference, self.scope, self.file, self.has_item) {
                Ok(()) => self.order(reference, &place, steps, problems),
                Err(Unknown { code, message, help }) => {
                    problems.push(Problem::at(&place(), code, message).help(help));
                }
            }
        }
    }

    /// Whether the step that is read is waited for.
    fn order(
        &self,
        reference: &Reference,
        place: &dyn Fn() -> Place,
        steps: &Steps<'_>,
        problems: &mut Vec<Problem>,
    ) {
        for (id, through) in steps_read(reference, self.scope) {
            self.waits_for(&id, through.as_deref(), place, steps, problems);
        }
    }

    fn waits_for(
        &self,
        id: &str,
        through: Option<&str>,
        place: &dyn Fn() -> Place,
        steps: &Steps<'_>,
        problems: &mut Vec<Problem>,
    ) {
        let (Some(reader), Some(graph)) = (self.reader, steps.graph) else { return };
        let instances = self.scope.steps.get(id).and_then(|readable| readable.instances);
        let full = |suffix: String| steps.index.get(format!("{}{id}{suffix}", self.scope.prefix).as_str()).copied();
        let sources: Vec<usize> = match instances {
            None => full(String::new()).into_iter().collect(),
            Some(count) => (0..count).filter_map(|instance| full(format!("[{instance}]"))).collect(),
        };
        let reads = &steps.all[reader].step;
        for source in sources {
            let read = &steps.all[source].step;
            if source == reader {
                if !self.own {
                    problems.push(Problem::at(
                        &place(),
                        "lifeboat::not_waited_for",
                        format!("`{id}` reads its own output, which is there only after it"),
                    ));
                }
                return;
            }
            if reads.finally && !read.finally || graph.before(source, reader) {
                continue;
            }
            let through = through.map_or_else(String::new, |var| format!(" (through `{var}`)"));
            let (message, help) = if read.finally && !reads.finally {
                (
                    format!("`{id}` belongs to `finally` and runs after `{}`, which reads it{through}", reads.id),
                    None,
                )
            } else if graph.before(reader, source) {
                (
                    format!("`{id}` runs after `{}`, which reads it{through}", reads.id),
                    Some("change the order of the two".to_owned()),
                )
            } else {
                (
                    format!("`{}` reads `{id}`{through} and does not wait for it", reads.id),
                    Some(format!("add `{id}` to its `needs`")),
                )
            };
            problems.push(Problem::at(&place(), "lifeboat::not_waited_for", message).help(help));
            return;
        }
    }

    /// Renders and checks against the schema. The value, when it fits.
    fn shape(
        &self,
        info: &'static TypeInfo,
        params: &Templated,
        item: Option<&Value>,
        problems: &mut Vec<Problem>,
    ) -> Option<Value> {
        let known = Known::default();
        let seen = Viewer { scope: self.scope, item, known: &known }.see(params);
        let mut value = match seen.value(params) {
            Ok(value) => value,
            Err(error) => {
                let place = self.file.source.value(&format!("{}{}", self.base, error.pointer));
                problems.push(Problem::at(&place, "lifeboat::template", error.message));
                return None;
            }
        };
        let misfits = schema::params_shape(info).fill(&mut value, &seen.holes(params));
        let fits = misfits.is_empty();
        for misfit in misfits {
            let pointer = format!("{}{}", self.base, misfit.pointer);
            let place =
                if misfit.on_key { self.file.source.key(&pointer) } else { self.file.source.value(&pointer) };
            problems.push(Problem::at(&place, misfit.code, misfit.message).help(misfit.help));
        }
        fits.then_some(value)
    }

    /// Everything about parameters: shape, targets, SQL, secrets, and what the type itself finds.
    fn parameters(
        &self,
        info: &'static TypeInfo,
        params: &Templated,
        item: Option<&Value>,
        expanded: &Expanded,
        targets: &mut Targets<'_>,
        problems: &mut Vec<Problem>,
    ) -> Option<Vec<Effect>> {
        let shape = schema::params_shape(info);
        for (pointer, _) in params.templates() {
            self.template_rules(shape, pointer, params, expanded, problems);
        }
        let value = self.shape(info, params, item, problems)?;
        targets.used_by(shape, &value, self.file, self.base, problems);
        let step = match (info.parse)(value) {
            Ok(step) => step,
            Err(error) => {
                let place = self.file.source.value(&format!("{}{}", self.base, error.pointer));
                problems.push(Problem::at(&place, "lifeboat::wrong_form", error.message));
                return None;
            }
        };
        let mut findings = Findings::with_kinds(targets.kinds(self.file));
        step.check(&mut findings);
        for finding in findings.found {
            let place = self.file.source.value(&format!("{}{}", self.base, finding.pointer));
            problems.push(Problem::at(&place, "lifeboat::parameter", finding.message).help(finding.help));
        }
        Some(step.effects())
    }

    /// No bare template in SQL, no secret in a process's arguments.
    fn template_rules(
        &self,
        shape: &super::shape::Shape,
        pointer: &str,
        params: &Templated,
        expanded: &Expanded,
        problems: &mut Vec<Problem>,
    ) {
        let marked = |mark: &str| {
            prefixes(pointer)
                .any(|prefix| shape.at(prefix).iter().any(|schema| schema.get(mark) == Some(&Value::Bool(true))))
        };
        let full = format!("{}{pointer}", self.base);
        if marked("x-sql") {
            for (_, at) in params.unquoted(pointer) {
                let place = self.file.source.value(&full).part(&text_at(&self.file.source, &full), at);
                let help = "bind it: write `$1` here and the template under `params`; or quote it: `{{ sql_literal … }}`, `{{ sql_ident … }}`";
                problems.push(
                    Problem::at(
                        &place,
                        "lifeboat::bare_template_in_sql",
                        "a bare template in SQL becomes part of the statement",
                    )
                    .help(help.to_owned()),
                );
            }
        }
        if marked("x-arguments")
            && !expanded.step.allowed.iter().any(|allowed| allowed.code == hazard::SECRET_IN_ARGUMENTS)
        {
            for reference in params.references().iter().filter(|reference| reference.pointer == pointer) {
                // Secret settings of targets are refused anyway.
                if reference.path[0] != "targets" && self.scope.is_secret(&reference.path) {
                    let message = format!(
                        "`{}` is a secret, and a process's arguments can be read by every user of the machine",
                        reference.path.join(".")
                    );
                    let help = "hand it over in `env` or `stdin`".to_owned();
                    problems
                        .push(Problem::at(&self.place(reference), hazard::SECRET_IN_ARGUMENTS, message).help(help));
                }
            }
        }
    }
}

/// `/a/b` → `/a`, `/a/b`.
fn prefixes(pointer: &str) -> impl Iterator<Item = &str> {
    pointer.match_indices('/').skip(1).map(|(at, _)| &pointer[..at]).chain([pointer])
}

/// The steps that a reference reads, also through vars: each with the var it is read through.
fn steps_read(reference: &Reference, scope: &Scope) -> Vec<(String, Option<String>)> {
    match reference.path.as_slice() {
        [root, id, ..] if root == "steps" => vec![(id.clone(), None)],
        [root, name, ..] if root == "vars" => {
            let mut found = Vec::new();
            let mut open = vec![format!("vars.{name}")];
            let mut seen = std::collections::BTreeSet::new();
            while let Some(path) = open.pop() {
                // Only vars of this plan: what a caller passes in was waited for by the caller.
                let Some(late) = scope.late.get(&path).filter(|late| late.scope.is_none()) else { continue };
                if !seen.insert(path) {
                    continue;
                }
                for read in late.template.references() {
                    match read.path.as_slice() {
                        [root, id, ..] if root == "steps" => found.push((id.clone(), Some(format!("vars.{name}")))),
                        [root, name, ..] if root == "vars" => open.push(format!("vars.{name}")),
                        _ => {}
                    }
                }
            }
            found
        }
        _ => Vec::new(),
    }
}
