//! The words of [`super::Shape`]: what was found, what is wanted, how to write it.

use std::cell::RefCell;
use std::collections::HashMap;

use regex::Regex;
use serde_json::{Map, Value};

use super::Found;
use crate::plan::problem::clip;
use crate::units::{Duration, Size, Timestamp};

/// A JSON type for people, and its rank in a list of several.
pub fn type_name(kind: &str) -> (&str, u8) {
    match kind {
        "string" => ("a text", 0),
        "integer" => ("a whole number", 1),
        "number" => ("a number", 2),
        "boolean" => ("`true` or `false`", 3),
        "array" => ("a list", 4),
        "object" => ("a map", 5),
        _ => ("nothing", 6),
    }
}

/// Several types: `a text or a list`. That it may also be left empty is not worth saying.
pub fn either(types: &[&str]) -> String {
    let named: Vec<&str> = types
        .iter()
        .filter(|kind| types.len() == 1 || **kind != "null")
        .filter(|kind| **kind != "integer" || !types.contains(&"number"))
        .map(|kind| type_name(kind).0)
        .collect();
    match named.as_slice() {
        [] => "something else".to_owned(),
        [rest @ .., last] if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        [only, ..] => (*only).to_owned(),
    }
}

/// What was found, with its value when that is short.
pub fn described(value: &Value) -> String {
    match value {
        Value::Null => "empty".to_owned(),
        Value::Bool(value) => format!("`{value}`"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("`{}`", clip(text)),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a map".to_owned(),
    }
}

/// A value as it would be written.
pub fn bare(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Advice for the usual mix-ups of types.
pub fn how_to_write(types: &[&str], value: &Value) -> Option<String> {
    let wants = |kind: &str| types.contains(&kind);
    match value {
        Value::Number(_) | Value::Bool(_) if wants("string") => Some(format!("put it in quotes: \"{value}\"")),
        Value::String(text) if wants("boolean") => match text.to_lowercase().as_str() {
            "yes" | "on" | "y" | "true" => Some("write `true`, without quotes".to_owned()),
            "no" | "off" | "n" | "false" => Some("write `false`, without quotes".to_owned()),
            _ => None,
        },
        Value::String(text) if text.contains("{{") => {
            Some("this is read before anything is known: a template can't stand here".to_owned())
        }
        Value::String(text) if (wants("integer") || wants("number")) && text.parse::<f64>().is_ok() => {
            Some(format!("leave the quotes out: {text}"))
        }
        Value::Number(_) if wants("integer") => Some("leave the fraction out".to_owned()),
        Value::Null if wants("object") => Some("write its keys below it, indented".to_owned()),
        Value::Array(_) | Value::Object(_) | Value::Null => None,
        scalar if wants("array") => Some(format!("write a list: [{}]", clip(&bare(scalar)))),
        scalar if wants("object") => {
            Some(format!("write keys below it, indented; `{}` alone says too little", clip(&bare(scalar))))
        }
        _ => None,
    }
}

/// What a text of a known format is called, and how to write it, when something else was found.
pub fn unit(keywords: &Map<String, Value>, value: &Value) -> Option<(&'static str, Option<String>)> {
    match keywords.get("format").and_then(Value::as_str)? {
        "duration-text" => {
            let help = value.as_u64().map_or_else(
                || "write it as `30s`, `5m` or `1h30m`".to_owned(),
                |number| format!("say the unit: `{number}s`, `{number}m`"),
            );
            Some(("a duration", Some(help)))
        }
        "date-time" => {
            Some(("a timestamp", Some("write RFC 3339 with an offset, as 2024-02-01T10:00:00Z".to_owned())))
        }
        "size" => Some(("a size", Some("write it as `512`, `10KiB`, `10MiB` or `1GB`".to_owned()))),
        _ => None,
    }
}

/// Numbers outside of their bounds.
pub fn range(keywords: &Map<String, Value>, number: f64, name: &str, pointer: &str, found: &mut Found) {
    let bound = |key: &str| {
        keywords.get(key).filter(|bound| bound.is_number()).and_then(|bound| Some((bound.as_f64()?, bound)))
    };
    let mut out = |message: String| found.add(pointer, "lifeboat::out_of_range", message, None);
    if let Some((min, written)) = bound("minimum")
        && number < min
    {
        out(format!("{name} is at least {written}, not {number}"));
    }
    if let Some((max, written)) = bound("maximum")
        && number > max
    {
        out(format!("{name} is at most {written}, not {number}"));
    }
    if let Some((min, written)) = bound("exclusiveMinimum")
        && number <= min
    {
        out(format!("{name} is more than {written}, not {number}"));
    }
    if let Some((max, written)) = bound("exclusiveMaximum")
        && number >= max
    {
        out(format!("{name} is less than {written}, not {number}"));
    }
}

/// Texts of the wrong length, pattern or format.
pub fn form(keywords: &Map<String, Value>, text: &str, name: &str, pointer: &str, found: &mut Found) {
    let count = |key: &str| keywords.get(key).and_then(Value::as_u64);
    let length = text.chars().count() as u64;
    if let Some(min) = count("minLength").filter(|min| length < *min) {
        let message =
            if min == 1 { format!("{name} is empty") } else { format!("{name} has at least {min} characters") };
        found.add(pointer, "lifeboat::wrong_form", message, None);
        return;
    }
    if let Some(max) = count("maxLength").filter(|max| length > *max) {
        found.add(pointer, "lifeboat::wrong_form", format!("{name} has at most {max} characters"), None);
        return;
    }
    let known = match keywords.get("format").and_then(Value::as_str) {
        Some("duration-text") => Some(text.parse::<Duration>().err()),
        Some("size") => Some(text.parse::<Size>().err()),
        Some("date-time") => Some(text.parse::<Timestamp>().err()),
        Some("regex") => Some(Regex::new(text).err().map(|error| {
            format!("`{}` is not a regular expression: {}", clip(text), last_line(&error.to_string()))
        })),
        _ => None,
    };
    if let Some(wrong) = known {
        if let Some(wrong) = wrong {
            // The units' errors say what to write after a colon.
            let (message, help) = wrong
                .split_once(": ")
                .map_or((wrong.as_str(), None), |(message, help)| (message, Some(help.to_owned())));
            let help = if text.contains("{{") {
                Some("this is read before anything is known: a template can't stand here".to_owned())
            } else {
                help
            };
            found.add(pointer, "lifeboat::wrong_form", format!("{name}: {message}"), help);
        }
        return;
    }
    if let Some(pattern) = keywords.get("pattern").and_then(Value::as_str)
        && !matches(pattern, text)
    {
        let help = name_rule(pattern).or_else(|| Some(format!("it must match /{pattern}/")));
        found.add(pointer, "lifeboat::wrong_form", format!("{name} can't be `{}`", clip(text)), help);
    }
}

fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or(text).trim_start_matches("error: ")
}

/// The patterns of names, in words.
pub fn name_rule(pattern: &str) -> Option<String> {
    match pattern {
        crate::plan::document::NAME_PATTERN => {
            Some("a name is letters, digits, `-` and `_`, beginning with a letter or digit".to_owned())
        }
        crate::plan::document::PLAN_NAME_PATTERN => {
            Some("a plan's name is lower-case letters, digits and `-`".to_owned())
        }
        _ => None,
    }
}

/// Whether the pattern, which comes from a schema of this program, matches.
pub fn matches(pattern: &str, text: &str) -> bool {
    thread_local! {
        static COMPILED: RefCell<HashMap<String, Option<Regex>>> = RefCell::default();
    }
    COMPILED.with_borrow_mut(|compiled| {
        if !compiled.contains_key(pattern) {
            compiled.insert(pattern.to_owned(), Regex::new(pattern).ok());
        }
        compiled.get(pattern).and_then(Option::as_ref).is_none_or(|regex| regex.is_match(text))
    })
}
