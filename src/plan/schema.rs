//! JSON Schemas from the Rust types: those the checker uses, and those that editors get.
//!
//! Both come from one source. The checker takes plans apart (document, a step's common
//! keys, each type's parameters); editors get all of it in one schema, with templates
//! allowed wherever a value may come from one.

use std::collections::BTreeSet;
use std::sync::{LazyLock, OnceLock};

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::document::{CommonDocument, PlanDocument};
use super::shape::Shape;
use crate::environment::EnvironmentDocument;
use crate::step::{TYPES, TypeInfo};

fn generator() -> SchemaGenerator {
    SchemaSettings::draft2020_12().for_deserialize().into_generator()
}

/// A root schema with its definitions.
fn root(make: impl FnOnce(&mut SchemaGenerator) -> Schema) -> Value {
    let mut generator = generator();
    let mut schema = make(&mut generator).to_value();
    let definitions = generator.take_definitions(true);
    if let (Value::Object(map), false) = (&mut schema, definitions.is_empty()) {
        map.insert("$defs".to_owned(), Value::Object(definitions));
    }
    schema
}

/// The shape of a plan, its steps apart.
pub fn plan_shape() -> &'static Shape {
    static SHAPE: LazyLock<Shape> = LazyLock::new(|| Shape::new(root(PlanDocument::json_schema), "the plan"));
    &SHAPE
}

/// The keys of a plan.
pub fn plan_keys() -> &'static BTreeSet<String> {
    static KEYS: LazyLock<BTreeSet<String>> = LazyLock::new(|| keys(plan_shape()));
    &KEYS
}

/// The shape of a step's common keys.
pub fn common_shape() -> &'static Shape {
    static SHAPE: LazyLock<Shape> = LazyLock::new(|| Shape::new(root(CommonDocument::json_schema), "the step"));
    &SHAPE
}

/// The keys that every step may have.
pub fn common_keys() -> &'static BTreeSet<String> {
    static KEYS: LazyLock<BTreeSet<String>> = LazyLock::new(|| keys(common_shape()));
    &KEYS
}

fn keys(shape: &Shape) -> BTreeSet<String> {
    let properties = shape.schema().get("properties").and_then(Value::as_object);
    properties.into_iter().flat_map(|properties| properties.keys().cloned()).collect()
}

/// The shape of an environment, its templates rendered.
pub fn environment_shape() -> &'static Shape {
    static SHAPE: LazyLock<Shape> =
        LazyLock::new(|| Shape::new(root(EnvironmentDocument::json_schema), "the environment"));
    &SHAPE
}

/// The shape of a step type's parameters, its templates rendered.
pub fn params_shape(info: &TypeInfo) -> &'static Shape {
    static SHAPES: LazyLock<Vec<OnceLock<Shape>>> =
        LazyLock::new(|| TYPES.iter().map(|_| OnceLock::new()).collect());
    static NOTHING: LazyLock<Shape> = LazyLock::new(|| Shape::new(Value::Bool(true), "the parameters"));
    // Every `TypeInfo` in use comes from `TYPES`.
    let Some(at) = TYPES.iter().position(|known| known == info) else { return &NOTHING };
    SHAPES[at].get_or_init(|| Shape::new(root(info.schema), format!("`{}`", info.name)))
}

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// The schema of plans, for editors.
pub fn plan() -> Value {
    let mut schema = root(PlanDocument::json_schema);
    let mut definitions = take_definitions(&mut schema);
    let mut generator = generator();
    let mut types = Map::new();
    for info in TYPES {
        let mut params = (info.schema)(&mut generator).to_value();
        open_children(&mut params);
        if let Value::Object(keywords) = &mut params {
            keywords.insert("description".to_owned(), info.summary.into());
        }
        let empty_will_do = params.get("required").and_then(Value::as_array).is_none_or(Vec::is_empty);
        let name = format!("step {}", info.name);
        let mut reference = json!({ "$ref": format!("#/$defs/{}", name.replace(' ', "%20")) });
        if empty_will_do {
            reference = json!({ "anyOf": [reference, { "type": "null" }] });
        }
        reference["description"] = info.summary.into();
        types.insert(info.name.to_owned(), reference);
        definitions.insert(name, params);
    }
    for (name, mut definition) in generator.take_definitions(true) {
        open_children(&mut definition);
        definitions.entry(name).or_insert(definition);
    }
    let mut step = root(CommonDocument::json_schema);
    definitions.extend(take_definitions(&mut step));
    step["description"] = "One step type as a key, its parameters below it, and any common keys.".into();
    step["properties"]["undo"] = json!({
        "description": "One step type with its parameters: how `lifeboat undo` takes this step back.",
        "type": "object", "additionalProperties": false, "minProperties": 1, "maxProperties": 1,
        "properties": types
    });
    step["oneOf"] = types.keys().map(|name| json!({ "required": [name] })).collect();
    if let Some(Value::Object(properties)) = step.get_mut("properties") {
        properties.extend(types);
    }
    definitions.insert("AnyStep".to_owned(), step);
    published(schema, definitions, "A recovery plan of Lifeboat")
}

/// The schema of environments, for editors.
pub fn environment() -> Value {
    let mut schema = root(EnvironmentDocument::json_schema);
    let mut definitions = take_definitions(&mut schema);
    for definition in definitions.values_mut() {
        open_children(definition);
    }
    if let Some(state) = schema.pointer_mut("/properties/state") {
        open(state);
    }
    published(schema, definitions, "An environment of Lifeboat")
}

fn published(schema: Value, definitions: Map<String, Value>, title: &str) -> Value {
    let mut whole = json!({ "$schema": DIALECT, "title": title });
    if let (Value::Object(whole), Value::Object(schema)) = (&mut whole, schema) {
        whole.extend(schema.into_iter().filter(|(key, _)| key != "title"));
        whole.insert("$defs".to_owned(), Value::Object(definitions));
    }
    whole
}

fn take_definitions(schema: &mut Value) -> Map<String, Value> {
    match schema.as_object_mut().and_then(|schema| schema.shift_remove("$defs")) {
        Some(Value::Object(definitions)) => definitions,
        _ => Map::new(),
    }
}

/// Lets a template stand wherever a value stands below `schema`, not in its own place.
fn open_children(schema: &mut Value) {
    let Value::Object(keywords) = schema else { return };
    for property in
        keywords.get_mut("properties").and_then(Value::as_object_mut).into_iter().flat_map(|map| map.values_mut())
    {
        open(property);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(child) = keywords.get_mut(key) {
            open(child);
        }
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        for branch in keywords.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten() {
            open_children(branch);
        }
    }
}

/// Lets a template stand in the place of `schema`, unless any text will do anyway.
fn open(schema: &mut Value) {
    open_children(schema);
    let Value::Object(keywords) = schema else { return };
    let limits = ["type", "$ref", "anyOf", "oneOf", "allOf", "enum", "const"];
    if !limits.iter().any(|limit| keywords.contains_key(*limit)) {
        return;
    }
    let is_text = match keywords.get("type") {
        Some(Value::String(kind)) => kind == "string",
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == "string"),
        _ => false,
    };
    let limited =
        ["pattern", "format", "enum", "const", "maxLength"].iter().any(|limit| keywords.contains_key(*limit));
    if is_text && !limited {
        return;
    }
    let mut outer = Map::new();
    for key in ["title", "description", "default", "examples"] {
        if let Some(value) = keywords.shift_remove(key) {
            outer.insert(key.to_owned(), value);
        }
    }
    let template = json!({ "type": "string", "pattern": r"\{\{" });
    outer.insert("anyOf".to_owned(), json!([std::mem::take(keywords), template]));
    *keywords = outer;
}
