//! The targets that steps name: whether they exist, and are of the right kind.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::parse::PlanFile;
use super::problem::{Problem, clip, quoted, suggest};
use super::scope::Settings;
use super::shape::Shape;
use super::source::escape;
use crate::environment::Environment;
use crate::service::{KINDS, Target};

/// What is known of targets, and which were used.
pub struct Targets<'a> {
    environment: &'a Environment,
    /// Names that were used, by the file of the plan that uses them.
    used: BTreeMap<usize, BTreeSet<String>>,
}

impl<'a> Targets<'a> {
    /// Targets of an environment.
    pub fn new(environment: &'a Environment) -> Self {
        Self { environment, used: BTreeMap::new() }
    }

    /// Checks every target that the parameters name.
    pub fn used_by(
        &mut self,
        shape: &Shape,
        value: &Value,
        file: &PlanFile,
        base: &str,
        problems: &mut Vec<Problem>,
    ) {
        let mut named = Vec::new();
        collect(shape, value, &mut String::new(), &mut named);
        for (pointer, name, kinds) in named {
            self.used.entry(key(file)).or_default().insert(name.clone());
            // A name that only the run knows.
            if name.contains('‹') {
                continue;
            }
            let place = file.source.value(&format!("{base}{pointer}"));
            if let Some((code, message, help, severe)) = self.wrong(&name, &kinds, file) {
                let problem = Problem::at(&place, code, message).help(help);
                problems.push(if severe { problem } else { problem.warning() });
            }
        }
    }

    /// The kinds of all targets that a file can name.
    pub fn kinds(&self, file: &PlanFile) -> BTreeMap<String, String> {
        let given = self.environment.targets.iter().map(|(name, target)| (name, target.kind()));
        let declared = file.document.targets.iter().filter_map(|(name, target)| Some((name, kind_of(target)?)));
        given.chain(declared).map(|(name, kind)| (name.clone(), kind.to_owned())).collect()
    }

    /// Marks a target as used by a template.
    pub fn read_by_template(&mut self, file: &PlanFile, name: &str) {
        self.used.entry(key(file)).or_default().insert(name.to_owned());
    }

    /// Whether any plan uses a target of the environment, by itself or as what another one is beside.
    pub fn is_used(&self, target: &str) -> bool {
        let mut used = self.used.values().flatten();
        used.any(|name| {
            // A name that only the run knows may be any.
            name == target
                || name.contains('‹')
                || self.environment.targets.get(name).is_some_and(|used| match used {
                    Target::Postgres(settings) => {
                        settings.beside.as_ref().is_some_and(|beside| beside.like == target)
                    }
                    _ => false,
                })
        })
    }

    fn wrong(
        &self,
        name: &str,
        kinds: &[String],
        file: &PlanFile,
    ) -> Option<(&'static str, String, Option<String>, bool)> {
        let declared = file.document.targets.get(name).map(kind_of);
        // A kind that doesn't exist is told where it is declared.
        if declared == Some(None) {
            return None;
        }
        let declared = declared.flatten();
        let given = self.environment.targets.get(name).map(Target::kind);
        let is = declared.or(given);
        if let Some(is) = is {
            if kinds.iter().any(|kind| kind == is) {
                return None;
            }
            let known = self.of_kinds(kinds, file);
            let help =
                (!known.is_empty()).then(|| format!("of that kind: {}", quoted(known.iter().map(String::as_str))));
            let message = format!("target `{name}` is a `{is}`; this takes a {}", either(kinds));
            return Some(("lifeboat::wrong_target_kind", message, help, true));
        }
        let known: Vec<String> =
            self.environment.targets.keys().chain(file.document.targets.keys()).cloned().collect();
        let near = super::problem::nearest(name, known.iter().map(String::as_str))
            .map(|near| format!("did you mean `{near}`?"));
        match (&self.environment.name, near) {
            (None, None) => Some((
                "lifeboat::undeclared_target",
                format!("target `{}` is not declared: an environment must provide it", clip(name)),
                Some(format!("add `{name}: {}` under `targets`", kinds.first().map_or("KIND", String::as_str))),
                false,
            )),
            (None, near) => {
                Some(("lifeboat::unknown_target", format!("there is no target `{}`", clip(name)), near, true))
            }
            (Some(environment), near) => {
                let help = near.or_else(|| suggest(name, known.iter().map(String::as_str)));
                Some((
                    "lifeboat::unknown_target",
                    format!("neither the plan nor environment `{environment}` has a target `{}`", clip(name)),
                    help,
                    true,
                ))
            }
        }
    }

    fn of_kinds(&self, kinds: &[String], file: &PlanFile) -> BTreeSet<String> {
        let declared = file.document.targets.iter().filter_map(|(name, target)| Some((name, kind_of(target)?)));
        let given = self.environment.targets.iter().map(|(name, target)| (name, target.kind()));
        declared
            .chain(given)
            .filter(|(_, kind)| kinds.iter().any(|wanted| wanted == kind))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Checks a file's `targets` against the environment, and that each is used.
    pub fn declared_by(&self, file: &PlanFile, problems: &mut Vec<Problem>) {
        let all_read = !problems.iter().any(Problem::is_error);
        let used = self.used.get(&key(file));
        for (name, declared) in &file.document.targets {
            let place = file.source.key(&format!("/targets/{}", escape(name)));
            let Some(kind) = kind_of(declared) else { continue };
            if let Some(environment) = &self.environment.name {
                match self.environment.targets.get(name) {
                    Some(given) if given.kind() != kind => {
                        let message = format!(
                            "target `{name}` is a `{}` in environment `{environment}`, and a `{kind}` here",
                            given.kind()
                        );
                        problems.push(Problem::at(&place, "lifeboat::wrong_target_kind", message));
                    }
                    Some(_) => {}
                    None => {
                        let message = format!("environment `{environment}` has no target `{name}`");
                        let help = suggest(name, self.environment.targets.keys().map(String::as_str))
                            .filter(|help| help.starts_with("did"));
                        let help = help.unwrap_or_else(|| {
                            format!("add `{name}: {{ {kind}: {{ … }} }}` under `targets` of the environment file")
                        });
                        problems.push(Problem::at(&place, "lifeboat::missing_target", message).help(help));
                    }
                }
            }
            if all_read && !used.is_some_and(|used| used.contains(name)) {
                let message = format!("no step uses target `{name}`");
                problems.push(
                    Problem::at(&place, "lifeboat::unused_target", message).warning().help("remove it".to_owned()),
                );
            }
        }
    }
}

/// A file's identity within one load.
fn key(file: &PlanFile) -> usize {
    std::sync::Arc::as_ptr(&file.source.file).addr()
}

fn either(kinds: &[String]) -> String {
    kinds.iter().map(|kind| format!("`{kind}`")).collect::<Vec<_>>().join(" or ")
}

/// The kind of a target as a plan declares it.
fn kind_of(declared: &Value) -> Option<&str> {
    match declared {
        Value::String(kind) => Some(kind.as_str()),
        Value::Object(map) => map.keys().next().map(String::as_str),
        _ => None,
    }
    .filter(|kind| KINDS.contains(kind))
}

/// Every text in `value` that the schema marks with `x-target`: where, the name, the kinds.
fn collect(shape: &Shape, value: &Value, pointer: &mut String, named: &mut Vec<(String, String, Vec<String>)>) {
    let mut below = |segment: &str, value: &Value| {
        let length = pointer.len();
        pointer.push('/');
        pointer.push_str(segment);
        collect(shape, value, pointer, named);
        pointer.truncate(length);
    };
    match value {
        Value::Array(items) => items.iter().enumerate().for_each(|(index, item)| below(&index.to_string(), item)),
        Value::Object(map) => map.iter().for_each(|(key, item)| below(&escape(key), item)),
        Value::String(name) => {
            let marks = shape.at(pointer).into_iter().filter_map(|schema| schema.get("x-target"));
            let kinds: Vec<String> = marks
                .flat_map(|mark| match mark {
                    Value::Array(kinds) => kinds.clone(),
                    one => vec![one.clone()],
                })
                .filter_map(|kind| kind.as_str().map(str::to_owned))
                .collect();
            if !kinds.is_empty() {
                named.push((pointer.clone(), name.clone(), kinds));
            }
        }
        _ => {}
    }
}

/// The settings of an environment's targets, the secret ones apart.
pub fn settings(environment: &Environment, secret: &BTreeSet<String>) -> Settings {
    let mut settings = Settings { readable: Map::new(), secret: secret.clone() };
    for (name, target) in &environment.targets {
        let Ok(Value::Object(tagged)) = serde_json::to_value(target) else { continue };
        let Some(Value::Object(mut own)) = tagged.into_iter().next().map(|(_, own)| own) else { continue };
        own.retain(|setting, _| !secret.contains(&format!("targets.{name}.{setting}")));
        settings.readable.insert(name.clone(), Value::Object(own));
    }
    settings
}
