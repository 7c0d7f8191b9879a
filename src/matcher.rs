//! Matchers: the one small vocabulary in which checks compare values.
//!
//! A bare value means *equal*; `{ min: 1, max: 5 }`, `{ matches: "^ok" }`,
//! `{ near: { value: 100, within: 1% } }` and so on; several keys must all hold.

use std::borrow::Cow;
use std::cmp::Ordering;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;

use crate::units::{Duration, Size, Timestamp};

/// A condition on one value.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Matcher(Value);

/// The keys of a matcher that is written out; an object without any is compared as it is.
pub const KEYS: [&str; 7] = ["equals", "not", "min", "max", "one_of", "matches", "near"];

impl Matcher {
    /// A matcher from its JSON form.
    ///
    /// # Errors
    /// When a key is unknown, or its value is not of the key's type (a regular
    /// expression that doesn't compile, a `within` that is neither number nor percent).
    pub fn new(value: Value) -> Result<Self, String> {
        if let Value::Object(map) = &value {
            let known = map.keys().any(|key| KEYS.contains(&key.as_str()));
            for (key, wanted) in map {
                match key.as_str() {
                    "equals" | "not" => {}
                    "min" | "max" if wanted.is_number() || wanted.is_string() => {}
                    "min" | "max" => return Err(format!("`{key}` compares with a number or a text")),
                    "one_of" if wanted.is_array() => {}
                    "one_of" => return Err("`one_of` takes a list".to_owned()),
                    "matches" => {
                        let pattern = wanted.as_str().ok_or("`matches` takes a regular expression")?;
                        regex::Regex::new(pattern).map_err(|error| format!("`matches`: {error}"))?;
                    }
                    "near" => drop(near(wanted)?),
                    _ if known || map.len() == 1 => {
                        return Err(format!("a matcher has no `{key}`; it knows {}", KEYS.join(", ")));
                    }
                    _ => {}
                }
            }
        }
        Ok(Self(value))
    }

    /// Accepts this value alone.
    pub fn equals(value: impl Into<Value>) -> Self {
        Self(serde_json::json!({ "equals": value.into() }))
    }

    /// Whether `value` satisfies every condition.
    pub fn accepts(&self, value: &Value) -> bool {
        let Value::Object(map) = &self.0 else { return equal(&self.0, value) };
        if !map.keys().any(|key| KEYS.contains(&key.as_str())) {
            return equal(&self.0, value);
        }
        map.iter().all(|(key, wanted)| match key.as_str() {
            "equals" => equal(wanted, value),
            "not" => !Self(wanted.clone()).accepts(value),
            "min" => compare(value, wanted).is_some_and(Ordering::is_ge),
            "max" => compare(value, wanted).is_some_and(Ordering::is_le),
            "one_of" => wanted.as_array().is_some_and(|list| list.iter().any(|one| equal(one, value))),
            "matches" => wanted
                .as_str()
                .and_then(|pattern| regex::Regex::new(pattern).ok())
                .is_some_and(|pattern| pattern.is_match(&text(value))),
            "near" => near(wanted).is_ok_and(|(centre, within)| {
                number(value).is_some_and(|number| (number - centre).abs() <= within)
            }),
            _ => false,
        })
    }

    /// The condition in words: `at least 1 and at most 5`.
    pub fn describe(&self) -> String {
        let Value::Object(map) = &self.0 else { return text(&self.0).into_owned() };
        if !map.keys().any(|key| KEYS.contains(&key.as_str())) {
            return self.0.to_string();
        }
        let parts = map.iter().map(|(key, wanted)| match key.as_str() {
            "equals" => text(wanted).into_owned(),
            "not" => format!("not {}", Self(wanted.clone()).describe()),
            "min" => format!("at least {}", text(wanted)),
            "max" => format!("at most {}", text(wanted)),
            "one_of" => format!("one of {wanted}"),
            "matches" => format!("matching /{}/", text(wanted)),
            _ => format!("near {} within {}", text(&wanted["value"]), text(&wanted["within"])),
        });
        parts.collect::<Vec<_>>().join(" and ")
    }
}

impl<'de> Deserialize<'de> for Matcher {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(Value::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl JsonSchema for Matcher {
    fn schema_name() -> Cow<'static, str> {
        "Matcher".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A bare value (equal), or conditions that must all hold.",
            "anyOf": [
                { "type": ["string", "number", "integer", "boolean", "null", "array"] },
                {
                    "type": "object",
                    "additionalProperties": false,
                    "minProperties": 1,
                    "properties": {
                        "equals": { "description": "Equal to this value." },
                        "not": { "description": "Anything but this value or matcher." },
                        "min": { "description": "At least this.", "type": ["number", "string"] },
                        "max": { "description": "At most this.", "type": ["number", "string"] },
                        "one_of": { "description": "One of these values.", "type": "array", "minItems": 1 },
                        "matches": { "description": "Text that this regular expression matches.", "type": "string", "format": "regex" },
                        "near": {
                            "description": "A number no further from `value` than `within` (a number, or `1%`).",
                            "type": "object",
                            "additionalProperties": false,
                            "required": ["value", "within"],
                            "properties": {
                                "value": { "type": ["number", "string"] },
                                "within": { "type": ["number", "string"], "pattern": "^[0-9.]+%?$" }
                            }
                        }
                    }
                }
            ]
        })
    }
}

/// A margin around `centre`: a number, or a percentage of it as `1%`.
///
/// # Errors
/// When it is neither.
pub fn margin(within: &Value, centre: f64) -> Result<f64, String> {
    let wrong = || format!("`within` is a number or a percentage as `1%`, not {within}");
    match within {
        Value::String(percent) if percent.ends_with('%') => {
            let share: f64 = percent[..percent.len() - 1].trim().parse().map_err(|_| wrong())?;
            Ok(centre.abs() * share / 100.0)
        }
        other => number(other).ok_or_else(wrong),
    }
}

fn near(wanted: &Value) -> Result<(f64, f64), String> {
    let centre = number(&wanted["value"]).ok_or("`near` needs a `value` that is a number")?;
    Ok((centre, margin(&wanted["within"], centre)?))
}

fn equal(wanted: &Value, value: &Value) -> bool {
    match (number_only(wanted), number_only(value)) {
        (Some(wanted), Some(value)) => (wanted - value).abs() < f64::EPSILON,
        _ => wanted == value || (wanted.is_string() != value.is_string() && text(wanted) == text(value)),
    }
}

/// Numbers by size (also when one came as text, as `numeric` columns do), durations by
/// length (`5h` is less than `24h`), instants by time, sizes by bytes; else text by order.
fn compare(value: &Value, wanted: &Value) -> Option<Ordering> {
    match (number(value), number(wanted)) {
        (Some(value), Some(wanted)) => value.partial_cmp(&wanted),
        _ => compare_as::<Duration>(value, wanted)
            .or_else(|| compare_as::<Timestamp>(value, wanted))
            .or_else(|| compare_as::<Size>(value, wanted))
            .or_else(|| Some(value.as_str()?.cmp(wanted.as_str()?))),
    }
}

fn compare_as<T: std::str::FromStr + Ord>(value: &Value, wanted: &Value) -> Option<Ordering> {
    let parsed = |value: &Value| text(value).parse::<T>().ok();
    Some(parsed(value)?.cmp(&parsed(wanted)?))
}

fn number_only(value: &Value) -> Option<f64> {
    // Integers that f64 can't hold are compared as JSON values.
    if value.as_i64().is_some_and(|number| number.unsigned_abs() > 1 << 53) { None } else { value.as_f64() }
}

fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok())
}

fn text(value: &Value) -> Cow<'_, str> {
    match value {
        Value::String(text) => Cow::Borrowed(text),
        other => Cow::Owned(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_condition() {
        let cases = [
            (json!(5), json!(5), true),
            (json!(5), json!("5"), true),
            (json!("ok"), json!("ko"), false),
            (json!({"min": 1}), json!(0), false),
            (json!({"min": 1, "max": 3}), json!(2), true),
            (json!({"not": {"one_of": [1, 2]}}), json!(2), false),
            (json!({"matches": "^ok$"}), json!("ok"), true),
            (json!({"near": {"value": 200, "within": "1%"}}), json!(198), true),
            (json!({"near": {"value": 200, "within": 1}}), json!(198), false),
            (json!({"min": "2024-02-01"}), json!("2024-03-01"), true),
            (json!({"max": "24h"}), json!("5h"), true),
            (json!({"max": "24h"}), json!("1d1s"), false),
            (json!({"min": "10KiB"}), json!(20_000), true),
            (json!({"max": "2024-02-01T10:00:00Z"}), json!("2024-02-01T10:30:00+01:00"), true),
        ];
        for (matcher, value, expected) in cases {
            let matcher = Matcher::new(matcher).unwrap();
            assert_eq!(matcher.accepts(&value), expected, "{} on {value}", matcher.describe());
        }
    }

    #[test]
    fn mistakes_are_refused() {
        for bad in
            [json!({"minimum": 1}), json!({"min": [1]}), json!({"matches": "("}), json!({"near": {"value": 1}})]
        {
            assert!(Matcher::new(bad.clone()).is_err(), "{bad}");
        }
    }
}
