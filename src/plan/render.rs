//! Rendering a step's templates with what is known, and typed stand-ins for what isn't.
//!
//! A template sees only what it reads: contexts stay small however large the plan is.

mod planned;

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::scope::add_secret;
use super::shape::{Hole, Holes};
use super::{Known, Scope};
use crate::ids::StepId;
use crate::step::ValueKind;
use crate::template::{Condition, Reference, TemplateError, Templated};

/// Who looks: a scope at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Viewer<'a> {
    /// The names.
    pub scope: &'a Scope,
    /// `item`.
    pub item: Option<&'a Value>,
    /// What the run knows.
    pub known: &'a Known,
}

/// What a template sees.
#[derive(Debug)]
pub struct Seen {
    /// The context, with a text like `‹find.path›` for what isn't known.
    context: Value,
    /// For each reference: its kind and label, when it isn't known.
    unknown: Vec<Option<(ValueKind, String)>>,
}

/// One path looked up.
enum Look {
    Known(Value),
    Unknown(ValueKind, String),
    Missing,
}

impl Viewer<'_> {
    /// Collects what the template's references read.
    pub fn see(&self, template: &Templated) -> Seen {
        self.see_references(template.references())
    }

    fn see_references(&self, references: &[Reference]) -> Seen {
        let mut context = Map::new();
        let mut unknown = Vec::with_capacity(references.len());
        for reference in references {
            unknown.push(self.add(&reference.path, &mut context));
        }
        Seen { context: Value::Object(context), unknown }
    }

    fn add(&self, path: &[String], context: &mut Map<String, Value>) -> Option<(ValueKind, String)> {
        let root = path.first()?.as_str();
        // As much of the path as names one thing: a step's output, else an input, a var, a target.
        let depth = match root {
            "item" => 1,
            "steps" | "targets" => 3,
            _ => 2,
        };
        let name = &path[..path.len().min(depth)];
        let look = match self.look(name) {
            // A name that doesn't exist is told where names are checked; the rest is checked all the same.
            Look::Missing if !self.known.complete => Look::Unknown(ValueKind::Any, label_of(name)),
            look => look,
        };
        match look {
            Look::Known(value) => {
                put(context, name, value);
                None
            }
            Look::Unknown(kind, label) => {
                put(context, name, Value::from(label.clone()));
                // A member of something unknown can be of any kind.
                let kind = if path.len() > name.len() { ValueKind::Any } else { kind };
                let label = if path.len() > name.len() { label_of(path) } else { label };
                if path.len() > name.len() {
                    put(context, path, Value::from(label.clone()));
                }
                Some((kind, label))
            }
            Look::Missing => None,
        }
    }

    fn look(&self, name: &[String]) -> Look {
        match name.first().map(String::as_str) {
            Some("steps") => self.step_output(name),
            Some("run") => match name {
                [_] if self.known.run.is_object() => Look::Known(self.known.run.clone()),
                [_, key] => match self.known.run.get(key) {
                    Some(value) => Look::Known(value.clone()),
                    None if ["id", "started_at", "status", "elapsed"].contains(&key.as_str()) => {
                        Look::Unknown(run_kind(key), label_of(name))
                    }
                    None => Look::Missing,
                },
                _ => Look::Unknown(ValueKind::Object, label_of(name)),
            },
            Some("item") => self.item.map_or(Look::Missing, |item| Look::Known(item.clone())),
            _ => self.value(name),
        }
    }

    fn value(&self, name: &[String]) -> Look {
        if let [root] = name {
            return self.all_of(root);
        }
        let path = name.join(".");
        if let Some(late) = self.scope.late.get(&path) {
            return self.late(late, &path);
        }
        if let Some(kind) = self.scope.unknown.get(&path) {
            return Look::Unknown(*kind, format!("‹{path}›"));
        }
        // Without an environment nobody knows a target's settings.
        if name[0] == "targets" && self.scope.values["targets"].get(&name[1]).is_none() {
            return Look::Unknown(ValueKind::Any, label_of(name));
        }
        let mut value = Some(&self.scope.values);
        for segment in name {
            value = value.and_then(|value| value.get(segment));
        }
        value.map_or(Look::Missing, |value| Look::Known(value.clone()))
    }

    /// A whole root, as in `json inputs`.
    fn all_of(&self, root: &str) -> Look {
        let Some(Value::Object(mut all)) = self.scope.values.get(root).cloned() else { return Look::Missing };
        let prefix = format!("{root}.");
        let names = self.scope.late.keys().chain(self.scope.unknown.keys());
        for name in names.filter_map(|path| path.strip_prefix(&prefix)) {
            let value = match self.value(&[root.to_owned(), name.to_owned()]) {
                Look::Known(value) => value,
                Look::Unknown(_, label) => Value::from(label),
                Look::Missing => continue,
            };
            all.insert(name.to_owned(), value);
        }
        Look::Known(Value::Object(all))
    }

    fn late(&self, late: &super::Late, path: &str) -> Look {
        let scope = late.scope.as_deref().unwrap_or(self.scope);
        let viewer = Viewer { scope, item: late.item.as_ref(), known: self.known };
        let seen = viewer.see(&late.template);
        if !seen.is_known() {
            return Look::Unknown(late.kind, format!("‹{path}›"));
        }
        match seen.value(&late.template) {
            Ok(value) => {
                if let Some(redactor) = &late.redactor {
                    add_secret(&value, redactor);
                }
                Look::Known(value)
            }
            Err(_) => Look::Missing,
        }
    }

    fn step_output(&self, name: &[String]) -> Look {
        let [_, id, rest @ ..] = name else { return Look::Unknown(ValueKind::Object, label_of(name)) };
        let Some(readable) = self.scope.steps.get(id) else { return Look::Missing };
        let kind = match rest {
            [_] if readable.broken => Some(ValueKind::Any),
            [output] => readable.outputs.iter().find(|(name, _)| name == output).map(|(_, kind)| *kind),
            _ => Some(ValueKind::Object),
        };
        let Some(kind) = kind else { return Look::Missing };
        let unknown = |kind| Look::Unknown(kind, label_of(&name[1..]));
        let Some(instances) = readable.instances else {
            let outputs = self.known.outputs.get(format!("{}{id}", self.scope.prefix).as_str());
            return match (outputs, rest) {
                (Some(outputs), [output]) => match outputs.get(output) {
                    Some(value) => Look::Known(value.clone()),
                    None if self.known.complete => Look::Missing,
                    None => unknown(kind),
                },
                (Some(outputs), _) => Look::Known(Value::Object(outputs.clone().into_iter().collect())),
                (None, _) if self.known.complete => Look::Missing,
                (None, _) => unknown(kind),
            };
        };
        let [output] = rest else { return unknown(kind) };
        let mut values = Vec::with_capacity(instances);
        for instance in 0..instances {
            let outputs = self.known.outputs.get(format!("{}{id}[{instance}]", self.scope.prefix).as_str());
            match outputs.and_then(|outputs| outputs.get(output)) {
                Some(value) => values.push(value.clone()),
                None if self.known.complete => values.push(Value::Null),
                None => return unknown(ValueKind::List),
            }
        }
        Look::Known(Value::Array(values))
    }
}

fn run_kind(key: &str) -> ValueKind {
    match key {
        "started_at" => ValueKind::Timestamp,
        "elapsed" => ValueKind::Duration,
        _ => ValueKind::String,
    }
}

/// How a value that only the run knows is written: `‹find-backup.path›`.
fn label_of(path: &[String]) -> String {
    let path = if path.first().is_some_and(|root| root == "steps") { &path[1..] } else { path };
    format!("‹{}›", path.join("."))
}

fn put(context: &mut Map<String, Value>, path: &[String], value: Value) {
    let [first, rest @ ..] = path else { return };
    if rest.is_empty() {
        // What was put for a longer path stays: it is the same thing.
        if !context.get(first).is_some_and(Value::is_object) || value.is_object() {
            context.insert(first.clone(), value);
        }
        return;
    }
    let inner = context.entry(first.clone()).or_insert_with(|| Value::Object(Map::new()));
    if !inner.is_object() {
        *inner = Value::Object(Map::new());
    }
    if let Value::Object(inner) = inner {
        put(inner, rest, value);
    }
}

impl Seen {
    /// Whether everything that is read is known.
    pub fn is_known(&self) -> bool {
        self.unknown.iter().all(Option::is_none)
    }

    /// The value with stand-in texts for what isn't known.
    ///
    /// # Errors
    /// When a template whose values are all known fails.
    pub fn value(&self, template: &Templated) -> Result<Value, TemplateError> {
        let unknown: HashSet<&str> = self.unknown_pointers(template);
        template.render_or(&self.context, |error| {
            if unknown.contains(error.pointer.as_str()) {
                let label = self.label_at(template, &error.pointer);
                return Ok(Value::from(label));
            }
            Err(error)
        })
    }

    /// The kind of a value that is one whole expression.
    pub fn whole_kind(&self, template: &Templated) -> ValueKind {
        match (template.references(), self.unknown.as_slice()) {
            ([only], [Some((kind, _))]) if only.whole && only.pointer.is_empty() => *kind,
            _ if template.templates().any(|(pointer, whole)| pointer.is_empty() && !whole) => ValueKind::String,
            _ => ValueKind::Any,
        }
    }

    fn unknown_pointers<'t>(&self, template: &'t Templated) -> HashSet<&'t str> {
        let with = template.references().iter().zip(&self.unknown);
        with.filter(|(_, unknown)| unknown.is_some()).map(|(reference, _)| reference.pointer.as_str()).collect()
    }

    fn label_at(&self, template: &Templated, pointer: &str) -> String {
        let mut with = template.references().iter().zip(&self.unknown);
        with.find_map(|(reference, unknown)| {
            let (_, label) = unknown.as_ref()?;
            (reference.pointer == pointer).then(|| label.clone())
        })
        .unwrap_or_default()
    }

    /// What each templated place is, for the schema to check and fill.
    pub fn holes(&self, template: &Templated) -> Holes {
        let unknown = self.unknown_pointers(template);
        let mut holes = Holes::new();
        for (pointer, whole) in template.templates() {
            let hole = match (whole, unknown.contains(pointer)) {
                (true, false) => Hole::Known,
                (false, false) => continue,
                (true, true) => {
                    let plain = template
                        .references()
                        .iter()
                        .zip(&self.unknown)
                        .find(|(reference, _)| reference.pointer == pointer && reference.whole);
                    match plain {
                        Some((_, Some((kind, label)))) => Hole::Unknown(*kind, label.clone()),
                        _ => Hole::Unknown(ValueKind::Any, self.label_at(template, pointer)),
                    }
                }
                (false, true) => Hole::Text,
            };
            holes.insert(pointer.to_owned(), hole);
        }
        holes
    }

    /// The pointers of what isn't known, in the order of the text.
    pub fn unknown(&self, template: &Templated) -> Vec<String> {
        let unknown = self.unknown_pointers(template);
        template
            .templates()
            .map(|(pointer, _)| pointer)
            .filter(|pointer| unknown.contains(pointer))
            .map(str::to_owned)
            .collect()
    }
}

/// Whether a condition holds; none while something it reads isn't known.
///
/// # Errors
/// When it fails on the values.
pub fn holds(condition: &Condition, viewer: Viewer<'_>) -> Result<Option<bool>, TemplateError> {
    let seen = viewer.see_references(condition.references());
    if seen.is_known() { condition.holds(&seen.context).map(Some) } else { Ok(None) }
}

/// A step's id within a scope.
pub fn full_id(scope: &Scope, id: &str) -> StepId {
    StepId::new(format!("{}{id}", scope.prefix))
}
