//! Alternatives: which one a value was meant to be, and what to say when it is none.

use serde_json::{Map, Value};

use super::{Found, Holes, Shape, choices, words};
use crate::plan::problem::{clip, nearest, quoted};
use crate::plan::source::escape;

impl Shape {
    /// One of the branches must fit; if none does, the problems of the one that was meant are told.
    pub(super) fn any_of(
        &self,
        branches: &[Value],
        value: &Value,
        holes: &Holes,
        pointer: &str,
        found: &mut Found,
    ) {
        let mut tried: Vec<(&Value, Found)> = Vec::with_capacity(branches.len());
        for branch in branches {
            let mut attempt = Found::default();
            self.walk(branch, value, holes, pointer, &mut attempt);
            if attempt.misfits.is_empty() {
                found.fills.extend(attempt.fills);
                return;
            }
            tried.push((branch, attempt));
        }
        // All alternatives of one word: say them together.
        let words: Vec<&Value> = branches.iter().filter_map(Value::as_object).flat_map(choices).collect();
        if value.is_string() && !words.is_empty() {
            return self.not_one_of(&words, value, pointer, found);
        }
        let fits = |attempt: &Found| {
            !attempt.misfits.iter().any(|misfit| misfit.pointer == pointer && misfit.code == "lifeboat::wrong_type")
        };
        let mut candidates: Vec<(&Value, Found)> = tried.into_iter().filter(|(_, attempt)| fits(attempt)).collect();
        if candidates.is_empty() {
            let types = self.types_below(branches);
            let types: Vec<&str> = types.iter().map(String::as_str).collect();
            found.add(
                pointer,
                "lifeboat::wrong_type",
                format!("{} is {}, not {}", self.name(pointer), words::either(&types), words::described(value)),
                words::how_to_write(&types, value),
            );
            return;
        }
        if let (true, Value::Object(map)) = (candidates.len() > 1, value) {
            if let Some(named) = candidates.iter().position(|(branch, _)| self.is_named_by(branch, map)) {
                candidates.swap(0, named);
            } else if let Some(tags) = self.tags(&candidates) {
                let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
                return self.wrong_tag(&tags, map, pointer, found);
            } else {
                candidates.sort_by_key(|(_, attempt)| attempt.misfits.len());
            }
        }
        found.misfits.extend(candidates.into_iter().next().into_iter().flat_map(|(_, attempt)| attempt.misfits));
    }

    /// The alternatives' single required keys, when each has just one: an enum written `{ kind: … }`.
    fn tags(&self, candidates: &[(&Value, Found)]) -> Option<Vec<String>> {
        candidates
            .iter()
            .map(|(branch, _)| {
                let required = self.resolved(branch).get("required")?.as_array()?;
                (required.len() == 1).then(|| required[0].as_str().map(str::to_owned)).flatten()
            })
            .collect()
    }

    fn is_named_by(&self, branch: &Value, map: &Map<String, Value>) -> bool {
        let required = self.resolved(branch).get("required").and_then(Value::as_array);
        required.is_some_and(|required| {
            !required.is_empty() && required.iter().filter_map(Value::as_str).all(|key| map.contains_key(key))
        })
    }

    fn wrong_tag(&self, tags: &[&str], map: &Map<String, Value>, pointer: &str, found: &mut Found) {
        let known = format!("write one of {}", quoted(tags.iter().copied()));
        match map.keys().next() {
            Some(key) => {
                let below = format!("{pointer}/{}", escape(key));
                let help = nearest(key, tags.iter().copied());
                let help = help.map_or(known, |nearest| format!("did you mean `{nearest}`?"));
                found.add_key(
                    &below,
                    "lifeboat::unknown_key",
                    format!("{} has no kind `{}`", self.name(pointer), clip(key)),
                    help,
                );
            }
            None => found.add(pointer, "lifeboat::missing_key", format!("{} is empty", self.name(pointer)), known),
        }
    }
}
