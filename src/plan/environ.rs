//! Reads an environment's file: `env.NAME` and `(file "path")` are rendered here, and only here.
//!
//! Every value that comes from outside is a secret: it is registered before anything else
//! sees it, and its place is remembered.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::document::LANGUAGE;
use super::expand::digest;
use super::parse::{Collector, is_readable, text_at};
use super::problem::{Problem, Severity, clip};
use super::schema;
use super::shape::{Hole, Holes};
use super::source::{Source, escape, segments};
use crate::environment::{Environment, EnvironmentDocument};
use crate::secret::Redactor;
use crate::service::{PostgresSettings, Target, Unsound};
use crate::step::ValueKind;
use crate::template::Templated;

/// Where an environment's secrets come from.
pub trait Outside {
    /// The value of an environment variable; none when it isn't set.
    fn variable(&self, name: &str) -> Option<String>;
    /// The text of a file, its path as written.
    ///
    /// # Errors
    /// Why it can't be read.
    fn file(&self, path: &str) -> Result<String, String>;
}

/// An environment that was read, and which of its values are secret.
#[derive(Debug, Default)]
pub struct Read {
    /// The environment.
    pub environment: Environment,
    /// `vars.name`, `inputs.name` and `targets.name.setting` that hold a secret.
    pub secret: BTreeSet<String>,
}

/// Reads an environment's tree. `complete`: whether what is missing outside is an error.
pub fn read(
    source: &Source,
    path: &Path,
    outside: &dyn Outside,
    complete: bool,
    problems: &mut Vec<Problem>,
) -> Option<Read> {
    let value = source.root.to_value();
    let mut found = Collector { source, problems };
    if !is_readable(&value, &mut found, "an environment", "environment") {
        return None;
    }
    let templated = found.templated("", value)?;
    let taken = Taken::from_outside(&templated, outside, complete, &mut found);
    let environment = Environment::default();
    for secret in taken.secrets() {
        environment.redactor.add(secret);
    }
    let rendered = templated.render_or(&taken.context(), |error| Ok(Value::from(format!("‹{}›", error.message))));
    let mut value = rendered.unwrap_or_default();
    let holes = taken.holes(&templated);
    let given = value.clone();
    let misfits = schema::environment_shape().fill(&mut value, &holes);
    let errors = !misfits.is_empty();
    // What comes from outside must not be repeated in a message, nor the beginning of it.
    let misfits = misfits.into_iter().map(|mut misfit| {
        let text = given.pointer(&misfit.pointer).and_then(Value::as_str).filter(|text| !text.is_empty());
        for said in std::iter::once(&mut misfit.message).chain(&mut misfit.help) {
            if let Some(text) = text {
                *said = said.replace(&clip(text), &clip(&environment.redactor.redact(text)));
            }
            *said = environment.redactor.redact(said).into_owned();
        }
        misfit
    });
    found.misfits("", misfits.collect());
    let secret = secret_paths(&templated);
    for (pointer, _) in templated.templates() {
        if let Some(Value::String(text)) = value.pointer(pointer)
            && holes.get(pointer).is_none_or(|hole| *hole == Hole::Known)
        {
            environment.redactor.add(text);
        }
    }
    if let Value::Object(map) = &mut value {
        map.retain(|_, value| !value.is_null());
    }
    let document: EnvironmentDocument = match serde_json::from_value(value) {
        Ok(document) => document,
        Err(error) => {
            if !errors {
                found.value(
                    "",
                    "lifeboat::wrong_form",
                    environment.redactor.redact(&error.to_string()).into_owned(),
                    None,
                );
            }
            return None;
        }
    };
    unreachable_targets(&document, &mut found);
    unsound_targets(&document, &environment.redactor, &mut found);
    let names = taken.names();
    let digest = digest(json!([source.file.inner(), names]).to_string().as_bytes());
    let environment = Environment {
        name: Some(document.environment),
        file: Some(path.to_owned()),
        digest: Some(digest),
        protected: document.protected,
        vars: document.vars.into_iter().collect(),
        inputs: document.inputs.into_iter().collect(),
        targets: document.targets,
        state: document.state,
        redactor: environment.redactor,
    };
    debug_assert!(document.lifeboat <= LANGUAGE);
    Some(Read { environment, secret })
}

/// A target beside another one is reached in no other way, and that other one is a server of its own.
fn is_beside(document: &EnvironmentDocument, name: &str, settings: &PostgresSettings, found: &mut Collector<'_>) {
    let pointer = format!("/targets/{}/postgres/beside", escape(name));
    let Some(beside) = &settings.beside else { return };
    if settings.url.is_some() || settings.sandbox.is_some() {
        let other = if settings.url.is_some() { "url" } else { "sandbox" };
        let message = format!("target `{name}` has both `{other}` and `beside`");
        found.key(&pointer, "lifeboat::unknown_key", message, "remove one of them".to_owned());
    }
    let original = document.targets.get(&beside.like);
    if !matches!(original, Some(Target::Postgres(original)) if original.beside.is_none()) {
        let message = format!("`{}` is no `postgres` target with a server of its own", clip(&beside.like));
        found.value(&format!("{pointer}/like"), "lifeboat::unknown_target", message, None);
    }
}

/// Targets with settings that can't be right.
fn unsound_targets(document: &EnvironmentDocument, redactor: &Redactor, found: &mut Collector<'_>) {
    for (name, target) in &document.targets {
        // A value that is missing outside is told already.
        if found.problems.iter().any(|problem| problem.target.as_ref() == Some(name)) {
            continue;
        }
        for Unsound { setting, failure } in target.unsound() {
            let pointer = format!("/targets/{}/{}/{setting}", escape(name), target.kind());
            let message = redactor.redact(&failure.message).into_owned();
            found.value(&pointer, "lifeboat::wrong_form", message, failure.help);
        }
    }
}

/// Targets that no setting says how to reach.
fn unreachable_targets(document: &EnvironmentDocument, found: &mut Collector<'_>) {
    for (name, target) in &document.targets {
        let Target::Postgres(settings) = target else { continue };
        let pointer = format!("/targets/{}/postgres", escape(name));
        match (&settings.url, settings.sandbox.is_some() || settings.beside.is_some()) {
            (None, false) => found.key(
                &pointer,
                "lifeboat::missing_key",
                format!("target `{name}` needs `url`"),
                "add `url: postgres://…`, or `sandbox: {}` for a throwaway cluster".to_owned(),
            ),
            (_, true) if settings.beside.is_some() => is_beside(document, name, settings, found),
            (Some(_), true) => found.key(
                &format!("{pointer}/sandbox"),
                "lifeboat::unknown_key",
                format!("target `{name}` has both `url` and `sandbox`"),
                "remove one of them".to_owned(),
            ),
            _ => {}
        }
        for (index, client) in settings.clients.iter().enumerate() {
            let known = client.split_once('/').is_some_and(|(docker, container)| {
                !container.is_empty() && matches!(document.targets.get(docker), Some(Target::Docker(_)))
            });
            if !known {
                let dockers = document.targets.iter().filter(|(_, target)| target.kind() == "docker");
                let message = format!("`{}` names no container of a `docker` target here", clip(client));
                let help = dockers.map(|(name, _)| format!("write it as `{name}/CONTAINER`")).next();
                found.value(&format!("{pointer}/clients/{index}"), "lifeboat::unknown_target", message, help);
            }
        }
    }
}

/// What templates took from outside.
#[derive(Default)]
struct Taken {
    variables: BTreeMap<String, Option<String>>,
    files: BTreeMap<String, Option<String>>,
}

impl Taken {
    fn from_outside(
        templated: &Templated,
        outside: &dyn Outside,
        complete: bool,
        found: &mut Collector<'_>,
    ) -> Self {
        let mut taken = Self::default();
        let severity = if complete { Severity::Error } else { Severity::Warning };
        let missing = |found: &mut Collector<'_>, pointer: &str, message: String, help: String| {
            let mut problem =
                Problem::at(&found.source.value(pointer), "lifeboat::missing_secret", message).help(help);
            problem.severity = severity;
            let mut segments = segments(pointer);
            problem.target = segments.next().filter(|root| root == "targets").and_then(|_| segments.next());
            found.problems.push(problem);
        };
        for reference in templated.references() {
            match reference.path.as_slice() {
                [root, name] if root == "env" => {
                    let value = taken.variables.entry(name.clone()).or_insert_with(|| outside.variable(name));
                    if value.is_none() {
                        let message = format!("the environment variable `{name}` is not set");
                        missing(found, &reference.pointer, message, format!("set it: export {name}=…"));
                    }
                }
                path => {
                    let text = text_at(found.source, &reference.pointer);
                    let place = found.source.value(&reference.pointer).part(&text, reference.at.clone());
                    let message = format!("an environment file can't read `{}`", clip(&path.join(".")));
                    let help = "it reads `env.NAME` and `(file \"path\")` only".to_owned();
                    found.problems.push(Problem::at(&place, "lifeboat::unknown_name", message).help(help));
                }
            }
        }
        for (pointer, path) in templated.files() {
            if !taken.files.contains_key(path) {
                let text = outside.file(path);
                if let Err(why) = &text {
                    let message = format!("can't read the file `{}`: {why}", clip(path));
                    missing(found, pointer, message, "its path is relative to the environment file".to_owned());
                }
                // Files that hold a secret end with a line break that isn't part of it.
                taken
                    .files
                    .insert(path.to_owned(), text.ok().map(|text| text.trim_end_matches(['\n', '\r']).to_owned()));
            }
        }
        taken
    }

    fn secrets(&self) -> impl Iterator<Item = &str> {
        self.variables.values().chain(self.files.values()).flatten().map(String::as_str)
    }

    /// What was taken, by name only.
    fn names(&self) -> Vec<&String> {
        self.variables.keys().chain(self.files.keys()).collect()
    }

    fn context(&self) -> Value {
        let with_labels = |values: &BTreeMap<String, Option<String>>| -> Map<String, Value> {
            values
                .iter()
                .map(|(name, value)| (name.clone(), value.clone().unwrap_or_else(|| format!("‹{name}›")).into()))
                .collect()
        };
        json!({ "env": with_labels(&self.variables), "__files": with_labels(&self.files) })
    }

    fn holes(&self, templated: &Templated) -> Holes {
        let mut holes = Holes::new();
        let is_missing = |pointer: &str| {
            let variable = templated.references().iter().any(|read| {
                read.pointer == pointer
                    && read.path.get(1).is_none_or(|name| self.variables.get(name).is_none_or(Option::is_none))
            });
            variable
                || templated
                    .files()
                    .any(|(at, path)| at == pointer && self.files.get(path).is_none_or(Option::is_none))
        };
        for (pointer, whole) in templated.templates() {
            let hole = match (whole, is_missing(pointer)) {
                (true, true) => Hole::Unknown(ValueKind::Any, "a value from outside".to_owned()),
                (false, true) => Hole::Text,
                (_, false) => Hole::Known,
            };
            holes.insert(pointer.to_owned(), hole);
        }
        holes
    }
}

/// The paths of all values that hold something from outside.
fn secret_paths(templated: &Templated) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for (pointer, _) in templated.templates() {
        let segments: Vec<String> = segments(pointer).collect();
        match segments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            [root @ ("vars" | "inputs"), name, ..] => paths.insert(format!("{root}.{name}")),
            ["targets", name, _, setting, ..] => paths.insert(format!("targets.{name}.{setting}")),
            _ => false,
        };
    }
    paths
}
