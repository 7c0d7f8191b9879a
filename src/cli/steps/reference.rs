//! A step type's parameters, read from their JSON Schema: the reference can't drift from what is parsed.

use std::fmt::Write as _;

use schemars::SchemaGenerator;
use serde_json::{Map, Value};

use crate::step::{Output, TypeInfo, ValueKind};

/// What the reference says of one step type.
#[derive(Debug)]
pub struct Reference {
    pub name: &'static str,
    pub summary: &'static str,
    pub after_kill: &'static str,
    pub parameters: Vec<Parameter>,
    pub outputs: Vec<Output>,
}

/// One parameter; those of a map in it follow it as `from.storage`.
#[derive(Debug)]
pub struct Parameter {
    pub name: String,
    pub kind: String,
    pub required: bool,
    pub default: Option<String>,
    pub help: String,
}

/// A step type's parameters as one JSON Schema, definitions included.
pub fn schema_of(info: &TypeInfo) -> Value {
    let mut generator = SchemaGenerator::default();
    let schema = (info.schema)(&mut generator);
    let mut schema = schema.to_value();
    let definitions = generator.take_definitions(true);
    if let (Some(object), false) = (schema.as_object_mut(), definitions.is_empty()) {
        object.insert("$defs".to_owned(), Value::Object(definitions));
    }
    schema
}

impl Reference {
    pub fn of(info: &TypeInfo) -> Self {
        let schema = schema_of(info);
        let definitions = schema["$defs"].as_object().cloned().unwrap_or_default();
        let mut parameters = Vec::new();
        collect(&schema, &definitions, "", &mut parameters);
        Self {
            name: info.name,
            summary: info.summary,
            after_kill: info.after_kill,
            parameters,
            outputs: (info.outputs)(),
        }
    }

    /// The smallest step of this type, as a plan writes it.
    pub fn example(&self, indent: usize) -> String {
        let margin = " ".repeat(indent);
        let required: Vec<&Parameter> = self.parameters.iter().filter(|parameter| parameter.required).collect();
        let mut text = format!("{margin}{}:", self.name);
        if required.is_empty() {
            text.push_str(" {}");
        }
        text.push('\n');
        for parameter in &required {
            let depth = parameter.name.matches('.').count();
            let key = parameter.name.rsplit('.').next().unwrap_or_default();
            let outer = parameter.name.rsplit_once('.').map(|(outer, _)| outer);
            // A key below an optional one isn't required where the optional one is left out.
            if outer.is_some_and(|outer| !required.iter().any(|parameter| parameter.name == outer))
                || key.contains('<')
            {
                continue;
            }
            let inner = required.iter().any(|other| other.name.starts_with(&format!("{}.", parameter.name)));
            let value = if inner { String::new() } else { format!(" {}", placeholder(&parameter.kind)) };
            let _ = writeln!(text, "{margin}{}{key}:{value}", "  ".repeat(depth + 1));
        }
        text
    }
}

fn placeholder(kind: &str) -> &str {
    match kind {
        "duration" => "30s",
        "size" => "1KiB",
        "integer" | "number" => "1",
        "boolean" => "true",
        "map" => "{ … }",
        kind if kind.starts_with("list") => "[ … ]",
        kind => kind.split(' ').next().filter(|_| kind.ends_with(" target")).map_or("…", target_name),
    }
}

/// What examples call a target of each kind.
fn target_name(kind: &str) -> &str {
    match kind {
        "postgres" => "db",
        "storage" => "backups",
        "http" => "auth",
        "webhook" => "oncall",
        kind => kind,
    }
}

fn collect(schema: &Value, definitions: &Map<String, Value>, prefix: &str, into: &mut Vec<Parameter>) {
    // A type that has a short form besides: the parameters are those of the long one.
    let alternatives = schema["anyOf"].as_array().into_iter().flatten();
    let long = alternatives.map(|one| follow(one, definitions, 0)).find(|one| one["properties"].is_object());
    let schema = if schema["properties"].is_object() { schema } else { long.unwrap_or(schema) };
    let Some(properties) = schema["properties"].as_object() else { return };
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    // Those that must be given first, each group in the order of the type.
    let (first, rest): (Vec<_>, Vec<_>) =
        properties.iter().partition(|(name, _)| required.contains(&name.as_str()));
    for (name, property) in first.into_iter().chain(rest) {
        let full = format!("{prefix}{name}");
        let (inner, own) = resolve(property, definitions);
        into.push(Parameter {
            name: full.clone(),
            kind: describe(property, definitions),
            required: required.contains(&name.as_str()),
            default: own.get("default").filter(|value| !is_nothing(value)).map(plain),
            help: own
                .get("description")
                .or_else(|| inner.get("description"))
                .and_then(Value::as_str)
                .unwrap_or_default()
                .replace('\n', " "),
        });
        // Deeper than a map of a map, the sentences say it better.
        if prefix.matches('.').count() < 1 && !inner["properties"].is_null() && inner["x-whole"].is_null() {
            collect(inner, definitions, &format!("{full}."), into);
        }
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The schema that really describes a property (through `$ref` and "or null"), and the property itself.
fn resolve<'a>(property: &'a Value, definitions: &'a Map<String, Value>) -> (&'a Value, &'a Value) {
    (follow(property, definitions, 0), property)
}

fn follow<'a>(schema: &'a Value, definitions: &'a Map<String, Value>, depth: usize) -> &'a Value {
    if depth > 8 {
        return schema;
    }
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/")) {
        return definitions.get(name).map_or(schema, |schema| follow(schema, definitions, depth + 1));
    }
    let real: Vec<&Value> =
        schema["anyOf"].as_array().into_iter().flatten().filter(|one| one["type"] != "null").collect();
    match real[..] {
        [one] => follow(one, definitions, depth + 1),
        _ => schema,
    }
}

/// A type in words: `duration`, `list of string`, `plain | custom`, `postgres target`.
fn describe(property: &Value, definitions: &Map<String, Value>) -> String {
    if let Some(kinds) = kinds_of_target(property) {
        return kinds;
    }
    if property["$ref"].as_str() == Some("#/$defs/Matcher") {
        return "matcher".to_owned();
    }
    let schema = follow(property, definitions, 0);
    if let Some(kinds) = kinds_of_target(schema) {
        return kinds;
    }
    match schema["format"].as_str() {
        Some("duration-text") => return "duration".to_owned(),
        Some("date-time") => return "timestamp".to_owned(),
        Some("size") => return "size".to_owned(),
        _ => {}
    }
    if let Some(words) = choices(schema) {
        return words.join(" | ");
    }
    let alternatives: Vec<String> = schema["anyOf"]
        .as_array()
        .or_else(|| schema["oneOf"].as_array())
        .into_iter()
        .flatten()
        .map(|one| describe(one, definitions))
        .collect();
    if !alternatives.is_empty() {
        let mut distinct: Vec<String> = Vec::new();
        for alternative in alternatives {
            if !distinct.contains(&alternative) && alternative != "null" {
                distinct.push(alternative);
            }
        }
        return distinct.join(" | ");
    }
    let types = match &schema["type"] {
        Value::String(one) => vec![one.as_str()],
        Value::Array(many) => many.iter().filter_map(Value::as_str).filter(|one| *one != "null").collect(),
        _ => Vec::new(),
    };
    match types[..] {
        [] => "any".to_owned(),
        ["array"] => match describe(&schema["items"], definitions).as_str() {
            "any" => "list".to_owned(),
            items => format!("list of {items}"),
        },
        ["object"] => match &schema["additionalProperties"] {
            values @ Value::Object(_) => match describe(values, definitions).as_str() {
                "any" => "map".to_owned(),
                values => format!("map of {values}"),
            },
            _ => "map".to_owned(),
        },
        _ => types.join(" | "),
    }
}

/// The target that a property names: `postgres target`, `webhook or smtp target`.
fn kinds_of_target(schema: &Value) -> Option<String> {
    let kinds: Vec<&str> = match &schema["x-target"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        kind => kind.as_str().into_iter().collect(),
    };
    (!kinds.is_empty()).then(|| format!("{} target", kinds.join(" or ")))
}

/// The words of an enumeration.
fn choices(schema: &Value) -> Option<Vec<String>> {
    if let Some(words) = schema["enum"].as_array() {
        return Some(words.iter().map(plain).collect());
    }
    let variants = schema["oneOf"].as_array()?;
    variants.iter().map(|one| one.get("const").map(plain)).collect()
}

/// A kind of value in words.
pub const fn kind(kind: ValueKind) -> &'static str {
    match kind {
        ValueKind::String => "string",
        ValueKind::Integer => "integer",
        ValueKind::Number => "number",
        ValueKind::Boolean => "boolean",
        ValueKind::Duration => "duration",
        ValueKind::Timestamp => "timestamp",
        ValueKind::List => "list",
        ValueKind::Object => "map",
        ValueKind::Any => "any",
    }
}
