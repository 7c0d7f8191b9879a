//! What the templates of one plan file see, settled at load: inputs, vars, targets, names.
//!
//! A sub-plan has a scope of its own; what its caller gives it may be known only in the
//! run (see [`Late`]). Knows values and names, not steps' parameters. Read next: `render`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::input;
use super::parse::{Collector, PlanFile};
use super::problem::{clip, suggest};
use super::render::Viewer;
use super::{Known, Late, Readable, Scope};
use crate::environment::Environment;
use crate::secret::Redactor;
use crate::step::ValueKind;
use crate::template::Templated;

/// What a plan's inputs are given.
#[derive(Debug, Default)]
pub struct Given {
    /// Values from the command line, as text.
    pub texts: Vec<(String, String)>,
    /// What a calling plan gives.
    pub called: BTreeMap<String, Passed>,
    /// Whether an input without any value is an error.
    pub complete: bool,
    /// Whether the plan is called by another one.
    pub is_called: bool,
}

/// A value that a calling plan gives.
#[derive(Clone, Debug)]
pub enum Passed {
    /// Known before the run.
    Value {
        /// The value.
        value: Value,
        /// Whether it holds a secret.
        secret: bool,
    },
    /// Known in the run only.
    Late(Late, Option<ValueKind>),
}

/// The settings of targets that templates may read, and those that they may not.
#[derive(Debug, Default)]
pub struct Settings {
    /// `{ name: { setting: value } }`.
    pub readable: Map<String, Value>,
    /// `targets.name.setting`.
    pub secret: BTreeSet<String>,
}

/// Makes the scope of a file. `steps` says what may be read of its steps; `around` is the
/// environment, its targets' settings and its secret vars and inputs.
pub fn make(
    file: &PlanFile,
    prefix: &str,
    steps: BTreeMap<String, Readable>,
    given: &Given,
    around: (&Environment, &Settings, &BTreeSet<String>),
    found: &mut Collector<'_>,
) -> Scope {
    let (environment, settings, secret_env) = around;
    let document = &file.document;
    let mut scope = Scope {
        prefix: prefix.to_owned(),
        values: json!({
            "inputs": {},
            "vars": {},
            "targets": settings.readable,
            "plan": { "name": document.plan },
            "environment": { "name": environment.name.as_deref().unwrap_or_default() },
        }),
        late: BTreeMap::new(),
        unknown: BTreeMap::new(),
        secrets: settings.secret.clone(),
        steps,
    };
    for name in &file.broken_inputs {
        scope.unknown.insert(format!("inputs.{name}"), ValueKind::Any);
    }
    unknown_inputs(file, given, found);
    for (name, declared) in &document.inputs {
        for (key, wrong) in input::check_declaration(name, declared) {
            found.value(&format!("/inputs/{name}/{key}"), wrong.code, wrong.message, wrong.help);
        }
        one_input(name, file, given, environment, secret_env, &mut scope, found);
    }
    vars(file, environment, secret_env, &mut scope, found);
    scope
}

fn unknown_inputs(file: &PlanFile, given: &Given, found: &mut Collector<'_>) {
    let document = &file.document;
    let known = |name: &String| document.inputs.contains_key(name) || file.broken_inputs.contains(name);
    for (name, _) in given.texts.iter().filter(|(name, _)| !known(name)) {
        let help = suggest(name, document.inputs.keys().map(String::as_str));
        let help = help.or_else(|| Some("this plan has no inputs".to_owned()));
        let message = format!("plan `{}` has no input `{}`", document.plan, clip(name));
        found.problems.push(super::problem::Problem::new("lifeboat::unknown_input", message).help(help));
    }
}

fn one_input(
    name: &str,
    file: &PlanFile,
    given: &Given,
    environment: &Environment,
    secret_env: &BTreeSet<String>,
    scope: &mut Scope,
    found: &mut Collector<'_>,
) {
    let Some(declared) = file.document.inputs.get(name) else { return };
    let pointer = format!("/inputs/{name}");
    let path = format!("inputs.{name}");
    if declared.secret {
        scope.secrets.insert(path.clone());
    }
    let default = declared.default.as_ref();
    if let Some(default) = default
        && let Err(wrong) = input::check(name, declared, default)
    {
        found.value(&format!("{pointer}/default"), wrong.code, wrong.message, wrong.help);
        scope.unknown.insert(path, declared.kind.kind());
        return;
    }
    let text = given.texts.iter().rev().find(|(given, _)| given == name);
    let value = match (text, given.called.get(name), environment.inputs.get(name)) {
        (Some((_, text)), ..) => match input::from_text(name, declared, text) {
            Ok(value) => Some(value),
            Err(wrong) => {
                found.problems.push(super::problem::Problem::new(wrong.code, wrong.message).help(wrong.help));
                None
            }
        },
        (_, Some(Passed::Late(late, kind)), _) => {
            let mut late = late.clone();
            if scope.secrets.contains(&path) {
                late.redactor = Some(environment.redactor.clone());
            }
            late.kind = kind.unwrap_or_else(|| declared.kind.kind());
            scope.late.insert(path, late);
            return;
        }
        // The caller's mistakes are told where the caller writes them.
        (_, Some(Passed::Value { value, secret }), _) => {
            if *secret {
                scope.secrets.insert(path.clone());
            }
            input::check(name, declared, value).is_ok().then(|| value.clone())
        }
        (_, _, Some(value)) => {
            if secret_env.contains(&path) {
                scope.secrets.insert(path.clone());
            }
            match input::check(name, declared, value) {
                Ok(()) => Some(value.clone()),
                Err(wrong) => {
                    let message = format!("the environment's default does not fit: {}", wrong.message);
                    found.key(&pointer, wrong.code, message, wrong.help);
                    None
                }
            }
        }
        (None, None, None) => {
            if default.is_none() && given.complete && !given.is_called {
                let help = if declared.secret {
                    format!("put it into a file that only you can read, and give `-i {name}=@FILE`")
                } else {
                    format!("give it with `-i {name}=VALUE`, or a `default`")
                };
                found.key(&pointer, "lifeboat::missing_input", format!("input `{name}` has no value"), help);
            }
            default.cloned()
        }
    };
    match value {
        Some(value) => {
            if scope.secrets.contains(&path) {
                add_secret(&value, &environment.redactor);
            }
            scope.values["inputs"][name] = value;
        }
        None => drop(scope.unknown.insert(path, declared.kind.kind())),
    }
}

/// Registers every text of a secret value.
pub fn add_secret(value: &Value, redactor: &Redactor) {
    match value {
        Value::String(text) => redactor.add(text),
        Value::Array(items) => items.iter().for_each(|item| add_secret(item, redactor)),
        Value::Object(map) => map.values().for_each(|item| add_secret(item, redactor)),
        Value::Number(number) => redactor.add(&number.to_string()),
        Value::Null | Value::Bool(_) => {}
    }
}

/// Settles `vars` in the order in which they read each other; those that read steps are late.
fn vars(
    file: &PlanFile,
    environment: &Environment,
    secret_env: &BTreeSet<String>,
    scope: &mut Scope,
    found: &mut Collector<'_>,
) {
    for (name, value) in &environment.vars {
        let path = format!("vars.{name}");
        if secret_env.contains(&path) {
            scope.secrets.insert(path);
        }
        scope.values["vars"][name] = value.clone();
    }
    let own = file.document.vars.iter().filter(|(name, _)| !environment.vars.contains_key(*name));
    let mut open: Vec<(&String, Templated)> =
        own.filter_map(|(name, value)| Some((name, Templated::parse(value.clone()).ok()?))).collect();
    loop {
        let waiting: BTreeSet<String> = open.iter().map(|(name, _)| (*name).clone()).collect();
        let (ready, rest): (Vec<_>, Vec<_>) =
            open.into_iter().partition(|(_, template)| reads_vars(template).all(|read| !waiting.contains(read)));
        if ready.is_empty() {
            if !rest.is_empty() {
                circle_of_vars(&rest, found);
            }
            for (name, _) in rest {
                scope.unknown.insert(format!("vars.{name}"), ValueKind::Any);
            }
            return;
        }
        for (name, template) in ready {
            one_var(name, template, file, scope, found);
        }
        open = rest;
    }
}

/// Follows the first var that waits to where it comes round again.
fn circle_of_vars(waiting: &[(&String, Templated)], found: &mut Collector<'_>) {
    let next = |name: &str| {
        let (_, template) = waiting.iter().find(|(waiting, _)| *waiting == name)?;
        reads_vars(template).find(|read| waiting.iter().any(|(name, _)| name == read))
    };
    let mut path: Vec<&str> = vec![waiting[0].0];
    while let Some(name) = path.last().and_then(|last| next(last)) {
        let from = path.iter().position(|passed| *passed == name);
        path.push(name);
        if let Some(from) = from {
            let message = format!("vars read each other in a circle: {}", path[from..].join(" → "));
            let help = "give one of them a value of its own".to_owned();
            found.key(&format!("/vars/{name}"), "lifeboat::cycle", message, help);
            return;
        }
    }
}

fn reads_vars(template: &Templated) -> impl Iterator<Item = &str> {
    template
        .references()
        .iter()
        .filter(|read| read.path.len() > 1 && read.path[0] == "vars")
        .map(|read| read.path[1].as_str())
}

fn one_var(name: &str, template: Templated, file: &PlanFile, scope: &mut Scope, found: &mut Collector<'_>) {
    let path = format!("vars.{name}");
    if template.references().iter().any(|read| scope.is_secret(&read.path)) {
        scope.secrets.insert(path.clone());
    }
    let known = Known::default();
    let seen = Viewer { scope, item: None, known: &known }.see(&template);
    match seen.value(&template) {
        Ok(value) if seen.is_known() => scope.values["vars"][name] = value,
        Ok(_) => {
            let kind = seen.whole_kind(&template);
            let runs = template.references().iter().any(|read| {
                ["steps", "run"].contains(&read.path[0].as_str()) || scope.late.contains_key(&read.path.join("."))
            });
            if runs {
                scope.late.insert(
                    path,
                    Late { template: Arc::new(template), scope: None, item: None, redactor: None, kind },
                );
            } else {
                scope.unknown.insert(path, kind);
            }
        }
        Err(error) => {
            // An unknown name is told where references are checked.
            if !super::check::has_unknown_name(&template, scope, file) {
                found.value(&format!("/vars/{name}{}", error.pointer), "lifeboat::template", error.message, None);
            }
            scope.unknown.insert(path, ValueKind::Any);
        }
    }
}

impl Scope {
    /// Whether what a path reads is, or holds, a secret.
    pub fn is_secret(&self, path: &[String]) -> bool {
        (1..=path.len()).any(|length| self.secrets.contains(&path[..length].join(".")))
            || (path.len() == 1 && self.secrets.iter().any(|secret| secret.starts_with(&format!("{}.", path[0]))))
    }

    /// What may be read of a step, by its id in this plan file.
    pub fn readable(&self, id: &str) -> Option<&Readable> {
        self.steps.get(id)
    }
}
