//! From a tree with places to a plan as written, each step with its type and its templates parsed.
//!
//! What can be told from one file alone is told here: shape, names, types of steps,
//! syntax of templates. Names are resolved later. Read next: `expand`.

mod step;

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::document::{CommonDocument, LANGUAGE, PlanDocument};
use super::hazard;
use super::problem::{Place, Problem};
use super::schema;
use super::shape::Misfit;
use super::source::{Source, escape, segments};
use crate::step::TypeInfo;
use crate::template::{Condition, TemplateError, Templated};

/// A plan's file, parsed.
#[derive(Debug)]
pub struct PlanFile {
    /// Its text and places.
    pub source: Source,
    /// As written.
    pub document: PlanDocument,
    /// `steps`, those that could be read.
    pub steps: Vec<StepDocument>,
    /// `finally`, those that could be read.
    pub finally: Vec<StepDocument>,
    /// `vars`, parsed.
    pub vars: Templated,
    /// `outputs`, parsed.
    pub outputs: Templated,
    /// Ids of steps that couldn't be read: nothing more is said of them.
    pub broken: HashSet<String>,
    /// Inputs that couldn't be read: neither of them.
    pub broken_inputs: HashSet<String>,
}

/// A step as written.
#[derive(Debug)]
pub struct StepDocument {
    /// Its id.
    pub id: String,
    /// Where it stands: `/steps/restore`.
    pub pointer: String,
    /// Its type.
    pub info: &'static TypeInfo,
    /// Its parameters.
    pub params: Templated,
    /// The other keys.
    pub common: CommonDocument,
    /// `needs`, as a list.
    pub needs: Option<Vec<String>>,
    /// `when`, parsed.
    pub when: Option<Condition>,
    /// `for_each`, parsed.
    pub for_each: Option<Templated>,
    /// `title`, parsed.
    pub title: Option<Templated>,
    /// `confirm`, parsed.
    pub confirm: Option<Templated>,
    /// `undo`, parsed.
    pub undo: Option<(&'static TypeInfo, Templated)>,
}

impl StepDocument {
    /// Where the parameters stand: `/steps/restore/postgres.restore`.
    pub fn params_pointer(&self) -> String {
        format!("{}/{}", self.pointer, self.info.name)
    }
}

impl PlanFile {
    /// The step of that id, in `steps` or `finally`.
    pub fn step(&self, id: &str) -> Option<&StepDocument> {
        self.steps.iter().chain(&self.finally).find(|step| step.id == id)
    }
}

/// Collects the problems of one file.
#[derive(Debug)]
pub struct Collector<'a> {
    /// The file.
    pub source: &'a Source,
    /// What was found.
    pub problems: &'a mut Vec<Problem>,
}

impl Collector<'_> {
    /// A problem at the value at `pointer`.
    pub fn value(
        &mut self,
        pointer: &str,
        code: &'static str,
        message: impl Into<String>,
        help: impl Into<Option<String>>,
    ) {
        self.problems.push(Problem::at(&self.source.value(pointer), code, message).help(help));
    }

    /// A problem at the key at `pointer`.
    pub fn key(
        &mut self,
        pointer: &str,
        code: &'static str,
        message: impl Into<String>,
        help: impl Into<Option<String>>,
    ) {
        self.problems.push(Problem::at(&self.source.key(pointer), code, message).help(help));
    }

    /// Misfits of the value at `base`.
    pub fn misfits(&mut self, base: &str, misfits: Vec<Misfit>) {
        for misfit in misfits {
            let pointer = format!("{base}{}", misfit.pointer);
            let place = if misfit.on_key { self.source.key(&pointer) } else { self.source.value(&pointer) };
            self.problems.push(Problem::at(&place, misfit.code, misfit.message).help(misfit.help));
        }
    }

    /// Templates below `base` that don't parse.
    pub fn template_errors(&mut self, base: &str, errors: Vec<TemplateError>) {
        for error in errors {
            let place = self.template_place(base, &error);
            let advice = [": did you mean", ": known are"].iter().find_map(|start| error.message.find(start));
            let (message, help) = match advice {
                Some(at) => (error.message[..at].to_owned(), Some(error.message[at + 2..].to_owned())),
                None => (error.message, None),
            };
            self.problems.push(Problem::at(&place, "lifeboat::template", message).help(help));
        }
    }

    fn template_place(&self, base: &str, error: &TemplateError) -> Place {
        let pointer = format!("{base}{}", error.pointer);
        let key = segments(&pointer).last().unwrap_or_default();
        if key.contains("{{") {
            return self.source.key(&pointer);
        }
        let text = text_at(self.source, &pointer);
        self.source.value(&pointer).part(&text, error.at.clone())
    }

    /// Parses the templates of `value`, which stands at `base`.
    pub fn templated(&mut self, base: &str, value: Value) -> Option<Templated> {
        match Templated::parse(value) {
            Ok(templated) => Some(templated),
            Err(errors) => {
                self.template_errors(base, errors);
                None
            }
        }
    }
}

/// The text at `pointer`; empty when there is none.
pub fn text_at(source: &Source, pointer: &str) -> String {
    let mut node = Some(&source.root);
    for segment in segments(pointer) {
        node = node.and_then(|node| node.child(&segment));
    }
    node.and_then(|node| node.to_value().as_str().map(str::to_owned)).unwrap_or_default()
}

/// Parses a plan's tree. None when it can't be told what the plan is.
pub fn plan(source: Source, problems: &mut Vec<Problem>) -> Option<PlanFile> {
    let value = source.root.to_value();
    let mut found = Collector { source: &source, problems };
    if !is_readable(&value, &mut found, "a plan", "plan") {
        return None;
    }
    let misfits = schema::plan_shape().check(&value);
    let wrong: Vec<String> = misfits.iter().map(|misfit| misfit.pointer.clone()).collect();
    // A step that isn't a map is told of here; one that is, below.
    found.misfits("", misfits);
    let broken_inputs =
        wrong.iter().filter_map(|pointer| segments(pointer.strip_prefix("/inputs")?).next()).collect();
    let document = document(&value, &wrong)?;
    let mut broken = HashSet::new();
    let steps = steps("steps", &document.steps, &mut found, &mut broken);
    let finally = self::steps("finally", &document.finally, &mut found, &mut broken);
    duplicate_ids(&document, &mut found);
    for (name, target) in &document.targets {
        // Settings come from outside in environments only.
        if target.to_string().contains("{{") {
            found.value(
                &format!("/targets/{}", escape(name)),
                "lifeboat::template",
                format!("a template can't stand in a plan's target `{name}`"),
                "say the kind here, and give its settings in the environment".to_owned(),
            );
        }
    }
    let vars = found.templated("/vars", Value::Object(document.vars.clone())).unwrap_or_default();
    let outputs = found.templated("/outputs", Value::Object(document.outputs.clone())).unwrap_or_default();
    Some(PlanFile { source, document, steps, finally, vars, outputs, broken, broken_inputs })
}

/// Whether the language version is ours; says so if not.
pub fn is_readable(value: &Value, found: &mut Collector<'_>, what: &str, name: &str) -> bool {
    let Value::Object(map) = value else {
        found.value(
            "",
            "lifeboat::wrong_type",
            format!("{what} is a map of keys"),
            format!("begin with `lifeboat: {LANGUAGE}` and `{name}: NAME`"),
        );
        return false;
    };
    match map.get("lifeboat").and_then(Value::as_u64) {
        Some(version) if version > LANGUAGE => {
            found.value(
                "/lifeboat",
                "lifeboat::newer_language",
                format!(
                    "{what} of language version {version}; this is lifeboat {}, which reads version {LANGUAGE}",
                    env!("CARGO_PKG_VERSION")
                ),
                format!("language version {version} is read by lifeboat {version}.0 and later"),
            );
            false
        }
        _ => true,
    }
}

/// The typed document, without what is `wrong` in it.
fn document(value: &Value, wrong: &[String]) -> Option<PlanDocument> {
    let mut value = value.clone();
    for pointer in wrong {
        // Of a wrong input nothing is kept; steps, vars and targets are kept as they are.
        let path: Vec<String> = segments(pointer).collect();
        match path.first().map(String::as_str) {
            Some("steps" | "finally" | "vars" | "targets" | "outputs") if path.len() > 1 => {}
            Some("inputs") => remove(&mut value, &path[..path.len().min(2)]),
            Some(_) => remove(&mut value, &path),
            None => {}
        }
    }
    let Value::Object(mut map) = value else { return None };
    map.retain(|_, value| !value.is_null());
    if !map.get("plan").is_some_and(Value::is_string) {
        map.insert("plan".to_owned(), "unnamed".into());
    }
    map.entry("lifeboat").or_insert(LANGUAGE.into());
    map.entry("steps").or_insert(Map::new().into());
    map.retain(|key, _| schema::plan_keys().contains(key));
    let whole = serde_json::from_value(Value::Object(map.clone()));
    whole
        .or_else(|_| {
            // Parts that can't be mended by leaving out a value: only the steps are looked at then.
            map.retain(|key, _| ["lifeboat", "plan", "steps"].contains(&key.as_str()));
            serde_json::from_value(Value::Object(map))
        })
        .ok()
}

fn remove(value: &mut Value, path: &[String]) {
    let [first, rest @ ..] = path else { return };
    match value {
        Value::Object(map) if rest.is_empty() => drop(map.shift_remove(first)),
        Value::Object(map) => {
            if let Some(inner) = map.get_mut(first) {
                remove(inner, rest);
            }
        }
        // Taking out one entry would move the others away from their pointers.
        Value::Array(items) => {
            if let Some(item) = first.parse::<usize>().ok().and_then(|index| items.get_mut(index)) {
                if rest.is_empty() { *item = Value::Null } else { remove(item, rest) }
            }
        }
        _ => {}
    }
}

fn duplicate_ids(document: &PlanDocument, found: &mut Collector<'_>) {
    for id in document.finally.keys().filter(|id| document.steps.contains_key(*id)) {
        let first = found.source.key(&format!("/steps/{}", escape(id)));
        let place = found.source.key(&format!("/finally/{}", escape(id)));
        let problem =
            Problem::at(&place, "lifeboat::duplicate_key", format!("there is a step `{id}` in `steps` already"))
                .label("again here")
                .place(&first, Some("first here"))
                .help("step ids are unique in a plan; rename one of them".to_owned());
        found.problems.push(problem);
    }
}

fn steps(
    list: &str,
    steps: &Map<String, Value>,
    found: &mut Collector<'_>,
    broken: &mut HashSet<String>,
) -> Vec<StepDocument> {
    let mut parsed = Vec::with_capacity(steps.len());
    for (id, value) in steps {
        let pointer = format!("/{list}/{}", escape(id));
        match value {
            Value::Object(keys) => match step::parse(id, &pointer, keys, found) {
                Some(step) => parsed.push(step),
                None => drop(broken.insert(id.clone())),
            },
            _ => drop(broken.insert(id.clone())),
        }
    }
    parsed
}

/// The hazard of that code, with or without `lifeboat::`.
pub fn hazard_code(code: &str) -> Option<&'static str> {
    hazard::CODES.into_iter().find(|known| *known == code || known.strip_prefix("lifeboat::") == Some(code))
}
