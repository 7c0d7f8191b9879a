//! The holes of a value: whether what a template gives can fit, and what stands there until it does.

use serde_json::{Map, Value, json};

use super::{Found, Hole, Shape, choices, types, words};
use crate::plan::problem::clip;
use crate::step::ValueKind;

impl Shape {
    /// Checks a hole. `None` means: go on with the value that stands there.
    pub(super) fn hole(
        &self,
        schema: &Value,
        value: &Value,
        hole: &Hole,
        pointer: &str,
        found: &mut Found,
    ) -> Option<()> {
        let all = self.branches(vec![schema]);
        match hole {
            Hole::Known => {
                let text_only = accepts(&all, "string")
                    && !accepts(&all, "number")
                    && !accepts(&all, "integer")
                    && !accepts(&all, "boolean");
                if (value.is_number() || value.is_boolean()) && text_only && typed(&all) {
                    let text = Value::from(words::bare(value));
                    self.walk(schema, &text, &super::Holes::new(), pointer, found);
                    found.fills.push((pointer.to_owned(), text));
                    return Some(());
                }
                None
            }
            Hole::Unknown(kind, label) => {
                if let Some(fill) = all.iter().find_map(|schema| stand_in(schema, *kind, label)) {
                    found.fills.push((pointer.to_owned(), fill));
                } else {
                    let (name, wanted) = (self.name(pointer), self.wanted(&all));
                    let message = format!("{name} is {wanted}, but {label} is {}", kind_name(*kind));
                    found.add(pointer, "lifeboat::wrong_type", message, None);
                }
                Some(())
            }
            Hole::Text => {
                let text = value.as_str().unwrap_or_default();
                if !accepts(&all, "string") {
                    found.add(
                        pointer,
                        "lifeboat::wrong_type",
                        format!("{} is {}, not the text `{}`", self.name(pointer), self.wanted(&all), clip(text)),
                        "let the template stand alone: it then keeps its value's own type".to_owned(),
                    );
                } else if let Some(fill) = all.iter().find_map(|schema| shaped_text(schema)) {
                    found.fills.push((pointer.to_owned(), fill));
                }
                Some(())
            }
        }
    }

    fn wanted(&self, schemas: &[&Value]) -> String {
        let format = schemas.iter().find_map(|schema| schema.get("format").and_then(Value::as_str));
        match format {
            Some("duration-text") => "a duration".to_owned(),
            Some("size") => "a size".to_owned(),
            Some("date-time") => "a timestamp".to_owned(),
            _ => {
                let schemas: Vec<Value> = schemas.iter().map(|schema| (*schema).clone()).collect();
                let types = self.types_below(&schemas);
                words::either(&types.iter().map(String::as_str).collect::<Vec<_>>())
            }
        }
    }
}

/// Whether any of the schemas says a type at all.
fn typed(schemas: &[&Value]) -> bool {
    schemas
        .iter()
        .filter_map(|schema| schema.as_object())
        .any(|keywords| !types(keywords).is_empty() || !choices(keywords).is_empty())
}

/// Whether one of the alternatives accepts that type.
fn accepts(schemas: &[&Value], kind: &str) -> bool {
    !typed(schemas)
        || schemas.iter().filter_map(|schema| schema.as_object()).any(|keywords| {
            types(keywords).contains(&kind)
                || choices(keywords).iter().any(|choice| super::is_of_type(choice, kind))
        })
}

const fn kind_name(kind: ValueKind) -> &'static str {
    match kind {
        ValueKind::String => "a text",
        ValueKind::Integer => "a whole number",
        ValueKind::Number => "a number",
        ValueKind::Boolean => "`true` or `false`",
        ValueKind::Duration => "a duration",
        ValueKind::Timestamp => "a timestamp",
        ValueKind::List => "a list",
        ValueKind::Object => "a map",
        ValueKind::Any => "anything",
    }
}

/// A value that `schema` accepts in place of one of that kind; none when no such value fits.
fn stand_in(schema: &Value, kind: ValueKind, label: &str) -> Option<Value> {
    let Value::Object(keywords) = schema else { return Some(Value::from(label)) };
    let format = keywords.get("format").and_then(Value::as_str);
    let wanted: &[&str] = match kind {
        ValueKind::Integer => &["integer", "number", "string"],
        ValueKind::Number => &["number", "string"],
        ValueKind::Boolean => &["boolean", "string"],
        ValueKind::Duration if matches!(format, Some("date-time" | "size")) => return None,
        ValueKind::Timestamp if matches!(format, Some("duration-text" | "size")) => return None,
        ValueKind::String | ValueKind::Duration | ValueKind::Timestamp => &["string"],
        ValueKind::List => &["array"],
        ValueKind::Object => &["object"],
        ValueKind::Any => &["string", "integer", "number", "boolean", "array", "object"],
    };
    if let Some(choice) =
        choices(keywords).into_iter().find(|choice| wanted.iter().any(|kind| super::is_of_type(choice, kind)))
    {
        return Some(choice.clone());
    }
    let types = types(keywords);
    let opened = ["$ref", "anyOf", "oneOf", "allOf", "enum", "const"].iter().any(|key| keywords.contains_key(*key));
    if types.is_empty() {
        // What its alternatives say counts; they are asked on their own.
        return (!opened).then(|| example("string", keywords, label));
    }
    let chosen = wanted.iter().find(|kind| types.contains(kind))?;
    // A number or a boolean becomes text only where any text will do.
    let converted =
        *chosen == "string" && matches!(kind, ValueKind::Integer | ValueKind::Number | ValueKind::Boolean);
    if converted && format.is_some_and(|format| format != "size") {
        return None;
    }
    Some(example(chosen, keywords, label))
}

fn example(kind: &str, keywords: &Map<String, Value>, label: &str) -> Value {
    match kind {
        "integer" | "number" => {
            let at_least = keywords.get("minimum").and_then(Value::as_u64).unwrap_or(0);
            let at_most = keywords.get("maximum").and_then(Value::as_u64).unwrap_or(u64::MAX);
            Value::from(at_least.max(1).min(at_most))
        }
        "boolean" => Value::Bool(true),
        "array" => {
            let item = keywords.get("items").and_then(|schema| stand_in(schema, ValueKind::Any, label));
            json!([item.unwrap_or_else(|| Value::from(label))])
        }
        "object" => {
            let required = keywords.get("required").and_then(Value::as_array).into_iter().flatten();
            let fields = required.filter_map(Value::as_str).map(|key| {
                let schema = keywords.get("properties").and_then(|properties| properties.get(key));
                let value = schema.and_then(|schema| stand_in(schema, ValueKind::Any, label));
                (key.to_owned(), value.unwrap_or_else(|| Value::from(label)))
            });
            Value::Object(fields.collect())
        }
        _ => formatted(keywords).unwrap_or_else(|| Value::from(label)),
    }
}

/// A text of the schema's format.
fn formatted(keywords: &Map<String, Value>) -> Option<Value> {
    match keywords.get("format").and_then(Value::as_str)? {
        "duration-text" => Some(Value::from("1s")),
        "size" => Some(Value::from("1")),
        "date-time" => Some(Value::from("2000-01-01T00:00:00Z")),
        _ => None,
    }
}

/// What replaces a text that isn't all known, where not every text will do.
fn shaped_text(schema: &Value) -> Option<Value> {
    let keywords = schema.as_object()?;
    let choice = choices(keywords).into_iter().find(|choice| choice.is_string()).cloned();
    choice.or_else(|| formatted(keywords))
}
