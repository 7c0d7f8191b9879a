//! Checks a value against a JSON Schema, all problems at once, in words for people.
//!
//! Reads the part of JSON Schema that schemars writes. A value may have *holes*: places
//! whose value only the run knows. They are checked by kind and filled with a stand-in
//! that the schema accepts. Knows nothing of files or plans.

mod choice;
mod fill;
mod words;

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::problem::{clip, quoted, suggest};
use super::source::escape;
use crate::step::ValueKind;

pub use words::matches;
use words::{described, type_name};

/// A schema to check values against.
#[derive(Clone, Debug)]
pub struct Shape {
    schema: Value,
    /// What a value of this shape is called: "a plan", "`postgres.restore`".
    what: String,
}

/// A place in a value that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// Where, as a JSON pointer.
    pub pointer: String,
    /// Whether the key is wrong, not the value.
    pub on_key: bool,
    /// The problem's code.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
}

/// A place whose value comes from a template.
#[derive(Clone, Debug, PartialEq)]
pub enum Hole {
    /// One expression whose value is known: it stands in the value. A number may become text.
    Known,
    /// One expression of this kind; the text stands for it in messages and previews.
    Unknown(ValueKind, String),
    /// Text around expressions that aren't all known; it stands in the value.
    Text,
}

/// The holes of a value by JSON pointer.
pub type Holes = HashMap<String, Hole>;

/// What a walk found.
#[derive(Debug, Default)]
struct Found {
    misfits: Vec<Misfit>,
    /// Values to put into the holes.
    fills: Vec<(String, Value)>,
}

impl Found {
    fn add(&mut self, pointer: &str, code: &'static str, message: String, help: impl Into<Option<String>>) {
        self.misfits.push(Misfit { pointer: pointer.to_owned(), on_key: false, code, message, help: help.into() });
    }

    fn add_key(&mut self, pointer: &str, code: &'static str, message: String, help: impl Into<Option<String>>) {
        self.add(pointer, code, message, help);
        if let Some(last) = self.misfits.last_mut() {
            last.on_key = true;
        }
    }
}

impl Shape {
    /// A shape from a root schema (with its `$defs`).
    pub fn new(schema: Value, what: impl Into<String>) -> Self {
        Self { schema, what: what.into() }
    }

    /// The schema.
    pub const fn schema(&self) -> &Value {
        &self.schema
    }

    /// Everything in `value` that does not fit.
    pub fn check(&self, value: &Value) -> Vec<Misfit> {
        let mut found = Found::default();
        self.walk(&self.schema, value, &Holes::new(), "", &mut found);
        found.misfits
    }

    /// The same for a value with holes, which are filled where they fit.
    pub fn fill(&self, value: &mut Value, holes: &Holes) -> Vec<Misfit> {
        let mut found = Found::default();
        self.walk(&self.schema, value, holes, "", &mut found);
        for (pointer, stand_in) in found.fills {
            if let Some(place) = value.pointer_mut(&pointer) {
                *place = stand_in;
            }
        }
        found.misfits
    }

    /// The schemas that may stand at `pointer`, whatever the value.
    pub fn at(&self, pointer: &str) -> Vec<&Value> {
        let mut schemas = vec![&self.schema];
        for segment in super::source::segments(pointer) {
            schemas = self.branches(schemas).into_iter().filter_map(|schema| below(schema, &segment)).collect();
        }
        self.branches(schemas)
    }

    /// `schemas` with references, `anyOf` and the like opened, themselves included.
    fn branches<'s>(&'s self, schemas: Vec<&'s Value>) -> Vec<&'s Value> {
        let mut all = schemas;
        let mut at = 0;
        while let Some(schema) = all.get(at).copied() {
            at += 1;
            let alternatives =
                ["anyOf", "oneOf", "allOf"].into_iter().filter_map(|key| schema.get(key)?.as_array()).flatten();
            for next in self.target(schema).into_iter().chain(alternatives) {
                // A reference back to a schema that was opened already adds nothing.
                if !all.iter().any(|known| std::ptr::eq(*known, next)) {
                    all.push(next);
                }
            }
        }
        all
    }

    fn target(&self, schema: &Value) -> Option<&Value> {
        let reference = schema.get("$ref")?.as_str()?;
        self.schema.pointer(reference.strip_prefix('#')?)
    }

    fn walk(&self, schema: &Value, value: &Value, holes: &Holes, pointer: &str, found: &mut Found) {
        let Value::Object(keywords) = schema else {
            if schema == &Value::Bool(false) {
                found.add(
                    pointer,
                    "lifeboat::wrong_type",
                    format!("nothing may stand here, not {}", described(value)),
                    None,
                );
            }
            return;
        };
        if let Some(hole) = holes.get(pointer)
            && let Some(done) = self.hole(schema, value, hole, pointer, found)
        {
            return done;
        }
        if let Some(target) = self.target(schema) {
            self.walk(target, value, holes, pointer, found);
        }
        for part in keywords.get("allOf").and_then(Value::as_array).into_iter().flatten() {
            self.walk(part, value, holes, pointer, found);
        }
        for key in ["anyOf", "oneOf"] {
            if let Some(Value::Array(branches)) = keywords.get(key) {
                self.any_of(branches, value, holes, pointer, found);
            }
        }
        if !self.scalar(keywords, value, pointer, found) {
            return;
        }
        match value {
            Value::Object(map) => self.object(keywords, map, holes, pointer, found),
            Value::Array(items) => self.array(keywords, items, holes, pointer, found),
            _ => {}
        }
    }

    /// Type, enumeration, range and form. False when the type is wrong: nothing else is worth saying.
    fn scalar(&self, keywords: &Map<String, Value>, value: &Value, pointer: &str, found: &mut Found) -> bool {
        let types = types(keywords);
        if !types.is_empty() && !types.iter().any(|kind| is_of_type(value, kind)) {
            let name = self.name(pointer);
            if let Some((what, help)) = words::unit(keywords, value) {
                found.add(
                    pointer,
                    "lifeboat::wrong_type",
                    format!("{name} is {what}, not {}", described(value)),
                    help,
                );
                return false;
            }
            found.add(
                pointer,
                "lifeboat::wrong_type",
                format!("{name} is {}, not {}", words::either(&types), described(value)),
                words::how_to_write(&types, value),
            );
            return false;
        }
        let allowed = choices(keywords);
        if !allowed.is_empty() && !allowed.contains(&value) {
            self.not_one_of(&allowed, value, pointer, found);
            return false;
        }
        if let Some(number) = value.as_f64().filter(|_| value.is_number()) {
            words::range(keywords, number, &self.name(pointer), pointer, found);
        }
        if let Value::String(text) = value {
            words::form(keywords, text, &self.name(pointer), pointer, found);
        }
        true
    }

    fn not_one_of(&self, allowed: &[&Value], value: &Value, pointer: &str, found: &mut Found) {
        let names: Vec<&str> = allowed.iter().filter_map(|one| one.as_str()).collect();
        let all: Vec<String> = allowed.iter().map(|one| words::bare(one)).collect();
        let help = value.as_str().and_then(|text| super::problem::nearest(text, names.iter().copied()));
        found.add(
            pointer,
            "lifeboat::not_one_of",
            format!(
                "{} is one of {}, not {}",
                self.name(pointer),
                quoted(all.iter().map(String::as_str)),
                described(value)
            ),
            help.map(|nearest| format!("did you mean `{nearest}`?")),
        );
    }

    fn object(
        &self,
        keywords: &Map<String, Value>,
        map: &Map<String, Value>,
        holes: &Holes,
        pointer: &str,
        found: &mut Found,
    ) {
        let properties = keywords.get("properties").and_then(Value::as_object);
        let names = keywords.get("propertyNames").and_then(|names| names.get("pattern")).and_then(Value::as_str);
        for (key, value) in map {
            let below = format!("{pointer}/{}", escape(key));
            if let Some(pattern) = names
                && !words::matches(pattern, key)
            {
                found.add_key(
                    &below,
                    "lifeboat::bad_name",
                    format!("`{}` is no name", clip(key)),
                    words::name_rule(pattern),
                );
            }
            match (properties.and_then(|properties| properties.get(key)), keywords.get("additionalProperties")) {
                (None, Some(Value::Bool(false))) => {
                    let known = properties.into_iter().flat_map(|properties| properties.keys()).map(String::as_str);
                    found.add_key(
                        &below,
                        "lifeboat::unknown_key",
                        format!("{} has no key `{}`", self.name(pointer), clip(key)),
                        suggest(key, known.filter(|known| !map.contains_key(*known))),
                    );
                }
                (Some(schema), _) | (None, Some(schema)) => self.walk(schema, value, holes, &below, found),
                (None, None) => {}
            }
        }
        for key in
            keywords.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
        {
            if !map.contains_key(key) {
                let schema = properties.and_then(|properties| properties.get(key));
                found.add_key(
                    pointer,
                    "lifeboat::missing_key",
                    format!("{} needs `{key}`", self.name(pointer)),
                    self.how_to_add(key, schema),
                );
            }
        }
        let count = |key: &str| keywords.get(key).and_then(Value::as_u64);
        if count("minProperties").is_some_and(|min| (map.len() as u64) < min) {
            found.add_key(pointer, "lifeboat::missing_key", format!("{} is empty", self.name(pointer)), None);
        }
        if let Some(max) = count("maxProperties").filter(|max| (map.len() as u64) > *max) {
            found.add_key(
                pointer,
                "lifeboat::unknown_key",
                if max == 1 {
                    format!("{} takes one key only", self.name(pointer))
                } else {
                    format!("{} takes {max} keys at most", self.name(pointer))
                },
                None,
            );
        }
    }

    fn array(
        &self,
        keywords: &Map<String, Value>,
        items: &[Value],
        holes: &Holes,
        pointer: &str,
        found: &mut Found,
    ) {
        if let Some(schema) = keywords.get("items") {
            for (index, item) in items.iter().enumerate() {
                self.walk(schema, item, holes, &format!("{pointer}/{index}"), found);
            }
        }
        let count = |key: &str| keywords.get(key).and_then(Value::as_u64);
        if let Some(min) = count("minItems").filter(|min| (items.len() as u64) < *min) {
            let entries = if min == 1 { "one entry" } else { &format!("{min} entries") };
            found.add(
                pointer,
                "lifeboat::out_of_range",
                format!("{} needs at least {entries}", self.name(pointer)),
                None,
            );
        }
        if let Some(max) = count("maxItems").filter(|max| (items.len() as u64) > *max) {
            found.add(
                pointer,
                "lifeboat::out_of_range",
                format!("{} takes at most {max} entries", self.name(pointer)),
                None,
            );
        }
        if keywords.get("uniqueItems") == Some(&Value::Bool(true))
            && let Some(index) = (1..items.len()).find(|index| items[..*index].contains(&items[*index]))
        {
            found.add(
                &format!("{pointer}/{index}"),
                "lifeboat::duplicate_key",
                format!("{} is listed twice", described(&items[index])),
                None,
            );
        }
    }

    fn resolved<'s>(&'s self, schema: &'s Value) -> &'s Value {
        self.target(schema).unwrap_or(schema)
    }

    fn types_below(&self, branches: &[Value]) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        for schema in self.branches(branches.iter().collect()) {
            for kind in schema.as_object().map(types).unwrap_or_default() {
                if !all.iter().any(|known| known == kind) {
                    all.push(kind.to_owned());
                }
            }
        }
        all.sort_by_key(|kind| type_name(kind).1);
        all
    }

    fn how_to_add(&self, key: &str, schema: Option<&Value>) -> Option<String> {
        let schema = schema?;
        let says = |schema: &Value| schema.get("description").and_then(Value::as_str).map(str::to_owned);
        let description = says(schema).or_else(|| says(self.resolved(schema)))?;
        let sentence = description.split("\n\n").next().unwrap_or_default().replace('\n', " ");
        Some(format!("add `{key}:` — {sentence}"))
    }

    /// What the value at `pointer` is called.
    fn name(&self, pointer: &str) -> String {
        match super::source::segments(pointer).last() {
            None => self.what.clone(),
            Some(index) if index.parse::<usize>().is_ok() => {
                let list = pointer.rsplit_once('/').map_or("", |(list, _)| list);
                format!("an entry of {}", self.name(list))
            }
            Some(key) => format!("`{}`", clip(&key)),
        }
    }
}

/// The schemas of `schema`'s child of that key or index.
fn below<'s>(schema: &'s Value, segment: &str) -> Option<&'s Value> {
    if let Some(property) = schema.get("properties").and_then(|properties| properties.get(segment)) {
        return Some(property);
    }
    if segment.parse::<usize>().is_ok()
        && let Some(items) = schema.get("items")
    {
        return Some(items);
    }
    schema.get("additionalProperties").filter(|schema| schema.is_object())
}

fn types(keywords: &Map<String, Value>) -> Vec<&str> {
    match keywords.get("type") {
        Some(Value::String(kind)) => vec![kind],
        Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn choices(keywords: &Map<String, Value>) -> Vec<&Value> {
    match (keywords.get("enum"), keywords.get("const")) {
        (Some(Value::Array(choices)), _) => choices.iter().collect(),
        (_, Some(only)) => vec![only],
        _ => Vec::new(),
    }
}

fn is_of_type(value: &Value, kind: &str) -> bool {
    match kind {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "null" => value.is_null(),
        _ => true,
    }
}

#[cfg(test)]
mod tests;
