//! Whether what a template reads exists: each unknown name with a suggestion.

use serde_json::Value;

use super::parse::PlanFile;
use super::problem::{clip, suggest};
use super::{Readable, Scope};
use crate::template::{Reference, Templated};

/// A name that doesn't exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// The problem's code.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
}

fn unknown(message: String, help: impl Into<Option<String>>) -> Unknown {
    Unknown { code: "lifeboat::unknown_name", message, help: help.into() }
}

/// Whether any name that the template reads is unknown.
pub fn has_unknown_name(template: &Templated, scope: &Scope, file: &PlanFile) -> bool {
    template.references().iter().any(|read| check(read, scope, file, true).is_err())
}

/// Checks one reference. `has_item`: whether the step has a `for_each`.
///
/// # Errors
/// What doesn't exist.
pub fn check(reference: &Reference, scope: &Scope, file: &PlanFile, has_item: bool) -> Result<(), Unknown> {
    let path: Vec<&str> = reference.path.iter().map(String::as_str).collect();
    match path.as_slice() {
        ["inputs" | "vars" | "run" | "plan" | "environment" | "targets"]
        | ["plan" | "environment", "name"]
        | ["run", "id" | "started_at" | "status" | "elapsed"] => Ok(()),
        ["inputs", name, ..] => {
            value("inputs", "input", name, scope, |name| file.document.inputs.contains_key(name))
        }
        ["vars", name, ..] => value("vars", "var", name, scope, |name| file.document.vars.contains_key(name)),
        ["steps"] => Err(unknown("`steps` alone is no value".to_owned(), "write `steps.ID.OUTPUT`".to_owned())),
        ["steps", id, rest @ ..] => step(id, rest.first().copied(), scope, file),
        ["targets", name, rest @ ..] => target(name, rest.first().copied(), scope, file),
        ["plan", other, ..] => Err(member("plan", other, &["name"])),
        ["environment", other, ..] => Err(member("environment", other, &["name"])),
        ["run", other, ..] => Err(member("run", other, &["id", "started_at", "status", "elapsed"])),
        ["item", ..] if has_item => Ok(()),
        ["item", ..] => Err(unknown("`item` exists only in a step with `for_each`".to_owned(), None)),
        ["env", ..] => Err(unknown(
            format!("`{}` can be read in environment files only", path.join(".")),
            "set a var or a target's setting from it in the environment file, and read that here".to_owned(),
        )),
        ["this", ..] | [] => Err(unknown("`this` exists only inside `{{#each}}` or `{{#with}}`".to_owned(), None)),
        [root, ..] => Err(root_of(root, scope)),
    }
}

fn member(root: &str, name: &str, known: &[&str]) -> Unknown {
    unknown(format!("`{root}` has no `{}`", clip(name)), suggest(name, known.iter().copied()))
}

/// A name that begins with none of the roots.
fn root_of(root: &str, scope: &Scope) -> Unknown {
    for place in ["inputs", "vars"] {
        if names(place, scope).any(|name| name == root) {
            return unknown(format!("there is no `{}`", clip(root)), format!("did you mean `{place}.{root}`?"));
        }
    }
    if scope.steps.contains_key(root) {
        return unknown(format!("there is no `{}`", clip(root)), format!("did you mean `steps.{root}.OUTPUT`?"));
    }
    let roots = ["inputs", "vars", "steps", "targets", "plan", "run", "environment", "item"];
    unknown(format!("there is no `{}`", clip(root)), suggest(root, roots))
}

fn names<'s>(root: &'s str, scope: &'s Scope) -> impl Iterator<Item = &'s str> {
    let prefix = format!("{root}.");
    let settled = scope
        .values
        .get(root)
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(|map| map.keys())
        .map(String::as_str);
    let later = scope.late.keys().chain(scope.unknown.keys());
    let later = later.filter(move |path| path.starts_with(&prefix)).map(move |path| &path[root.len() + 1..]);
    settled.chain(later)
}

fn value(
    root: &str,
    what: &str,
    name: &str,
    scope: &Scope,
    declared: impl Fn(&str) -> bool,
) -> Result<(), Unknown> {
    let settled = scope.values.get(root).is_some_and(|values| values.get(name).is_some());
    if settled || declared(name) || scope.unknown.contains_key(&format!("{root}.{name}")) {
        return Ok(());
    }
    let help = suggest(name, names(root, scope)).or_else(|| Some(format!("declare it under `{root}`")));
    Err(unknown(format!("there is no {what} `{}`", clip(name)), help))
}

fn step(id: &str, output: Option<&str>, scope: &Scope, file: &PlanFile) -> Result<(), Unknown> {
    let Some(readable) = scope.steps.get(id) else {
        return Err(unknown(
            format!("there is no step `{}`", clip(id)),
            suggest(id, scope.steps.keys().map(String::as_str)),
        ));
    };
    match output {
        Some(output) => output_of(id, output, readable, file),
        None => Ok(()),
    }
}

fn output_of(id: &str, output: &str, readable: &Readable, file: &PlanFile) -> Result<(), Unknown> {
    if readable.broken || readable.outputs.iter().any(|(name, _)| name == output) {
        return Ok(());
    }
    let step = file.step(id);
    if readable.outputs.is_empty() && step.is_some_and(|step| step.info.name == "plan.run") {
        let message = format!("step `{id}` has no output `{}`", clip(output));
        return Err(unknown(message, "declare it under `outputs` of that plan".to_owned()));
    }
    let kind = step.map_or_else(String::new, |step| format!(" (`{}`)", step.info.name));
    let help = suggest(output, readable.outputs.iter().map(|(name, _)| name.as_str()))
        .or_else(|| Some("it has no outputs".to_owned()));
    Err(unknown(format!("step `{id}`{kind} has no output `{}`", clip(output)), help))
}

fn target(name: &str, setting: Option<&str>, scope: &Scope, file: &PlanFile) -> Result<(), Unknown> {
    let settings = scope.values.get("targets").and_then(|targets| targets.get(name));
    if let Some(setting) = setting
        && scope.secrets.contains(&format!("targets.{name}.{setting}"))
    {
        let help = "steps reach a target by its name; its secrets stay with it".to_owned();
        return Err(Unknown {
            code: "lifeboat::secret_setting",
            message: format!("`targets.{name}.{setting}` is a secret and can't be read by templates"),
            help: Some(help),
        });
    }
    match (settings, setting) {
        (Some(Value::Object(settings)), Some(setting)) if !settings.contains_key(setting) => {
            let help = suggest(setting, settings.keys().map(String::as_str));
            Err(unknown(format!("target `{name}` has no setting `{}`", clip(setting)), help))
        }
        (Some(_), _) => Ok(()),
        (None, _) if file.document.targets.contains_key(name) => Ok(()),
        (None, _) => {
            let known = file.document.targets.keys().map(String::as_str);
            Err(unknown(format!("there is no target `{}`", clip(name)), suggest(name, known)))
        }
    }
}
