//! A plan as written: the Rust types that mirror the YAML, and a step's common keys.
//!
//! The published schema and the checker's are made from these types. Nothing here is
//! resolved: names are texts, templates aren't parsed. Read next: `parse`.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::retry::RetryPolicy;
use crate::service::{KINDS, Target};
use crate::step::ValueKind;
use crate::units::Duration;

/// The version of the plan language that this program reads.
pub const LANGUAGE: u64 = 1;
/// What names of steps, inputs, vars, targets and outputs look like; see [`crate::ids::is_name`].
pub const NAME_PATTERN: &str = "^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$";
/// What names of plans look like; see [`crate::ids::is_plan_name`].
pub const PLAN_NAME_PATTERN: &str = "^[a-z0-9][a-z0-9-]{0,127}$";

/// A recovery plan of Lifeboat.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Plan")]
pub struct PlanDocument {
    /// The version of the plan language: 1.
    #[schemars(range(min = 1, max = 1))]
    pub lifeboat: u64,
    /// The plan's name: lower-case letters, digits and `-`; unique in its folder.
    #[schemars(regex(pattern = PLAN_NAME_PATTERN))]
    pub plan: String,
    /// One line for people.
    pub title: Option<String>,
    /// What the plan does, for people.
    pub summary: Option<String>,
    /// Durations that a run is measured against.
    #[serde(default)]
    pub objectives: ObjectivesDocument,
    /// Who to ask.
    #[serde(default)]
    pub owners: Vec<OwnerDocument>,
    /// What the plan asks of the one who runs it.
    #[serde(default)]
    #[schemars(schema_with = "named::<InputDocument>")]
    pub inputs: BTreeMap<String, InputDocument>,
    /// Values that steps share; an environment's `vars` win.
    #[serde(default)]
    #[schemars(schema_with = "named::<Value>")]
    pub vars: Map<String, Value>,
    /// What an environment must provide: name and kind, or a default that the environment may replace.
    #[serde(default)]
    #[schemars(schema_with = "named::<TargetDocument>")]
    pub targets: Map<String, Value>,
    /// `retry` and `timeout` for every step that doesn't say.
    #[serde(default)]
    pub defaults: DefaultsDocument,
    /// The steps, in the order people read and, unless `needs` says otherwise, run.
    #[schemars(schema_with = "steps")]
    pub steps: Map<String, Value>,
    /// Steps that run after the others, whatever the outcome, also on resume.
    #[serde(default)]
    #[schemars(schema_with = "named::<AnyStep>")]
    pub finally: Map<String, Value>,
    /// What the plan hands to a plan that calls it.
    #[serde(default)]
    #[schemars(schema_with = "named::<Value>")]
    pub outputs: Map<String, Value>,
}

/// Durations that a run is measured against.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Objectives")]
pub struct ObjectivesDocument {
    /// Recovery time objective: how long the recovery may take.
    pub rto: Option<Duration>,
    /// Recovery point objective: how old the restored data may be.
    pub rpo: Option<Duration>,
}

/// Who to ask.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Owner")]
pub struct OwnerDocument {
    /// The person or role.
    pub name: String,
    /// How to reach them.
    pub contact: String,
}

/// An input of a plan.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Input")]
pub struct InputDocument {
    /// What its values are.
    #[serde(rename = "type", default)]
    pub kind: InputType,
    /// The value when none is given; without one the input is required.
    pub default: Option<Value>,
    /// One sentence for the one who runs the plan.
    pub help: Option<String>,
    /// The only values there are.
    #[schemars(length(min = 1))]
    pub choices: Option<Vec<Value>>,
    /// A regular expression that the value must match.
    #[schemars(extend("format" = "regex"))]
    pub pattern: Option<String>,
    /// The smallest value: a number, a duration or a timestamp, as `type` says; of a list, the fewest entries.
    #[serde(default)]
    #[schemars(schema_with = "bound")]
    pub min: Option<Value>,
    /// The largest value; of a list, the most entries.
    #[serde(default)]
    #[schemars(schema_with = "bound")]
    pub max: Option<Value>,
    /// Its value is masked everywhere.
    #[serde(default)]
    pub secret: bool,
}

/// The types of inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InputType {
    /// Text.
    #[default]
    String,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// A duration, as `30s`.
    Duration,
    /// An instant, as RFC 3339 text.
    Timestamp,
    /// A list.
    List,
}

impl InputType {
    /// The kind of its values.
    pub const fn kind(self) -> ValueKind {
        match self {
            Self::String => ValueKind::String,
            Self::Integer => ValueKind::Integer,
            Self::Number => ValueKind::Number,
            Self::Boolean => ValueKind::Boolean,
            Self::Duration => ValueKind::Duration,
            Self::Timestamp => ValueKind::Timestamp,
            Self::List => ValueKind::List,
        }
    }
}

/// `retry` and `timeout` for every step that doesn't say.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Defaults")]
pub struct DefaultsDocument {
    /// When to try again.
    pub retry: Option<RetryPolicy>,
    /// The bound on one attempt.
    pub timeout: Option<Duration>,
}

/// The keys that every step may have besides its type.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Step")]
pub struct CommonDocument {
    /// One line for people; templates may stand in it.
    pub title: Option<String>,
    /// What the step is for, for people.
    pub summary: Option<String>,
    /// Steps that must have succeeded. Without it a step waits for the one above; `[]` starts at once.
    #[schemars(schema_with = "one_or_more")]
    pub needs: Option<Value>,
    /// A condition, an expression without braces: `eq inputs.mode "restore"`. False: the step is skipped and counts as done.
    #[schemars(schema_with = "condition")]
    pub when: Option<Value>,
    /// A list known before the run: the step becomes one instance for each `{{ item }}`, side by side.
    #[schemars(schema_with = "list_or_template")]
    pub for_each: Option<Value>,
    /// When to try again.
    pub retry: Option<RetryPolicy>,
    /// The bound on one attempt; past it the attempt is cancelled.
    pub timeout: Option<Duration>,
    /// Whether the rest goes on when the step fails; what needs it never runs then.
    pub on_failure: OnFailure,
    /// A question put to the operator before the step acts; templates may stand in it.
    pub confirm: Option<String>,
    /// What resume does when nobody can tell whether the step happened.
    pub interrupted: Interrupted,
    /// On checks: how long the proof stays good; a resume later than that runs it again.
    pub valid_for: Option<Duration>,
    /// One step type with its parameters: how `lifeboat undo` takes this step back.
    #[schemars(schema_with = "undo")]
    pub undo: Option<Map<String, Value>>,
    /// Codes of hazards that are none here; `because` says why.
    pub allow: Option<Vec<String>>,
    /// Why what `allow` silences is no hazard here.
    pub because: Option<String>,
}

/// Whether the rest goes on when a step fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// No further step starts.
    #[default]
    Stop,
    /// Steps that don't need it go on.
    Continue,
}

/// What resume does when nobody can tell whether a step happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Interrupted {
    /// Asks a person.
    #[default]
    Ask,
    /// Runs it again.
    Rerun,
}

/// Stands for a step in a plan's schema; the published schema puts all types in its place.
struct AnyStep;

impl JsonSchema for AnyStep {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "AnyStep".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object" })
    }
}

/// A target as a plan declares it: a kind, or a kind with settings.
struct TargetDocument;

impl JsonSchema for TargetDocument {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "PlanTarget".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A kind of target, or a kind with settings as a default.",
            "anyOf": [{ "type": "string", "enum": KINDS }, generator.subschema_for::<Target>()]
        })
    }
}

/// A map whose keys are names.
fn named<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": ["object", "null"],
        "propertyNames": { "pattern": NAME_PATTERN },
        "additionalProperties": generator.subschema_for::<T>()
    })
}

fn steps(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = named::<AnyStep>(generator);
    schema.insert("type".to_owned(), "object".into());
    schema.insert("minProperties".to_owned(), 1.into());
    schema
}

fn bound(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["number", "string"] })
}

fn one_or_more(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "anyOf": [{ "type": "array", "items": { "type": "string" } }, { "type": "string" }] })
}

fn condition(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["string", "boolean"] })
}

fn list_or_template(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "anyOf": [{ "type": "array" }, { "type": "string", "pattern": r"\{\{" }] })
}

fn undo(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "minProperties": 1, "maxProperties": 1 })
}
