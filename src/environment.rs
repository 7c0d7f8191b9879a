//! Environments: targets, vars, defaults of inputs, and secrets by reference.
//!
//! Read from `environments/<name>.yaml` beside the plan. Knows nothing of the engine,
//! and nothing of files: `plan::environ` reads them and renders `env.NAME` and `(file "path")`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::secret::Redactor;
use crate::service::Target;

/// An environment, its templates (`env.NAME`, `(file "path")`) rendered.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `environment:`; none without `--env`.
    pub name: Option<String>,
    /// The file it was read from.
    pub file: Option<PathBuf>,
    /// SHA-256 of its text and the names it took from outside, in hex.
    pub digest: Option<String>,
    /// Destructive plans need its name typed, or `--confirm`.
    pub protected: bool,
    /// `vars:`; they win over the plan's.
    pub vars: BTreeMap<String, Value>,
    /// `inputs:`: defaults that win over the plan's.
    pub inputs: BTreeMap<String, Value>,
    /// `targets:`, with the plan's defaults filled in.
    pub targets: BTreeMap<String, Target>,
    /// `state:` as written; `.lifeboat` by default. A folder is relative to the current directory.
    pub state: Option<String>,
    /// Knows every secret of this environment and of the run's inputs.
    pub redactor: Redactor,
}

/// An environment of Lifeboat: what plans run against.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Environment")]
pub struct EnvironmentDocument {
    /// The version of the plan language: 1.
    #[schemars(range(min = 1, max = 1))]
    pub lifeboat: u64,
    /// The environment's name.
    #[schemars(regex(pattern = "^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$"))]
    pub environment: String,
    /// Destructive plans need the environment's name typed, or `--confirm`.
    #[serde(default)]
    pub protected: bool,
    /// Values for templates; they win over a plan's `vars`.
    #[serde(default)]
    #[schemars(schema_with = "named::<Value>")]
    pub vars: Map<String, Value>,
    /// Values of inputs; they win over a plan's defaults.
    #[serde(default)]
    #[schemars(schema_with = "named::<Value>")]
    pub inputs: Map<String, Value>,
    /// The systems that plans act on: name, kind and settings.
    #[serde(default)]
    #[schemars(schema_with = "named::<Target>")]
    pub targets: BTreeMap<String, Target>,
    /// Where runs are kept: a folder, or `postgres://…`.
    pub state: Option<String>,
}

/// A map whose keys are names.
fn named<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": ["object", "null"],
        "propertyNames": { "pattern": "^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$" },
        "additionalProperties": generator.subschema_for::<T>()
    })
}
