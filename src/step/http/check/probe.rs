//! One answer of `http.check`, judged.

use std::borrow::Cow;
use std::time::Duration as StdDuration;

use reqwest::Url;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

use super::Check;
use crate::failure::Failure;
use crate::matcher::Matcher;
use crate::service::http::{Answer, BODY_CAP, Http, quoted};
use crate::units::{Duration, Size};

/// How much of a body becomes an output: outputs are kept in the journal.
const OUTPUT_CAP: usize = 64 * 1024;

/// A good answer.
#[derive(Clone, Debug)]
pub(super) struct Good {
    pub status: u16,
    pub latency: StdDuration,
    pub body: Value,
}

/// A body as an output: small, and plain about it when it was cut.
pub(in crate::step::http) fn output_of(answer: &Answer) -> Value {
    if answer.body.len() <= OUTPUT_CAP && !answer.cut {
        return serde_json::from_str(&answer.body).unwrap_or_else(|_| Value::from(answer.body.as_str()));
    }
    let mut end = OUTPUT_CAP.min(answer.body.len());
    while !answer.body.is_char_boundary(end) {
        end -= 1;
    }
    Value::from(format!("{}\n[cut]", &answer.body[..end]))
}

impl Check {
    /// Asks once.
    pub(super) async fn probe(&self, http: &Http, url: &Url, at_most: StdDuration) -> Result<Good, Failure> {
        let answer = http.get(url, at_most).await?;
        self.judge(&answer, http)?;
        Ok(Good { status: answer.status, latency: answer.latency, body: output_of(&answer) })
    }

    fn judge(&self, answer: &Answer, http: &Http) -> Result<(), Failure> {
        if !self.status.accepts(answer.status) {
            return Err(self.wrong_status(answer, http));
        }
        // A service that is not ready says so in its body, and may be ready later.
        if let Some(text) = &self.contains
            && !answer.body.contains(text)
        {
            let said = quoted(&answer.body, http.redactor());
            return Err(Failure::transient(format!("the body does not contain `{text}`{said}")));
        }
        if !self.body.is_empty() {
            self.judge_json(answer, http)?;
        }
        match self.max_latency {
            Some(bound) if answer.latency > bound.std() => {
                let took = Duration::millis(answer.latency.as_millis() as u64);
                Err(Failure::transient(format!("it took {took}, longer than {bound}")))
            }
            _ => Ok(()),
        }
    }

    fn judge_json(&self, answer: &Answer, http: &Http) -> Result<(), Failure> {
        if answer.cut {
            return Err(Failure::permanent(format!("the body is larger than {}", Size(BODY_CAP as u64))));
        }
        let said = || quoted(&answer.body, http.redactor());
        let json: Value = serde_json::from_str(&answer.body)
            .map_err(|_| Failure::transient(format!("the body is not JSON{}", said())))?;
        for (pointer, matcher) in &self.body {
            let Some(value) = json.pointer(pointer) else {
                return Err(Failure::transient(format!("the body has no `{pointer}`{}", said())));
            };
            if !matcher.accepts(value) {
                let value = value.to_string();
                let value = http.redactor().redact(&value);
                let message = format!("the body's `{pointer}` is {value}, not {}", matcher.describe());
                return Err(Failure::transient(message));
            }
        }
        Ok(())
    }

    fn wrong_status(&self, answer: &Answer, http: &Http) -> Failure {
        let status = answer.status;
        let to = match &answer.location {
            Some(location) => format!(" to {}", http.redactor().redact(location)),
            None => quoted(&answer.body, http.redactor()),
        };
        let message = format!("it answered {status}{to}, not {}", self.status.describe());
        match status {
            408 | 425 | 429 | 500.. => Failure::transient(message),
            300..=399 => Failure::permanent(message)
                .help("redirects are not followed: ask the final address, or say that this status is right"),
            401 | 403 => Failure::permanent(message).help("check the target's `auth` and `headers`"),
            404 => Failure::permanent(message).help("check the path and the target's `base_url`"),
            _ => Failure::permanent(message),
        }
    }
}

/// The status that is wanted: a number, a list of numbers, or a matcher.
#[derive(Clone, Debug, PartialEq)]
pub struct Status(Matcher);

impl Default for Status {
    fn default() -> Self {
        Self(Matcher::equals(200))
    }
}

impl Status {
    /// Any of success: 200 to 299.
    pub(in crate::step::http) fn success() -> Self {
        Self(Matcher::new(serde_json::json!({ "min": 200, "max": 299 })).unwrap_or_else(|_| Matcher::equals(200)))
    }

    pub(in crate::step::http) fn accepts(&self, status: u16) -> bool {
        self.0.accepts(&status.into())
    }

    pub(in crate::step::http) fn describe(&self) -> String {
        self.0.describe()
    }
}

impl<'de> Deserialize<'de> for Status {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let value = match value {
            Value::Array(list) if list.iter().all(Value::is_number) && !list.is_empty() => {
                serde_json::json!({ "one_of": list })
            }
            Value::Number(number) => serde_json::json!({ "equals": number }),
            Value::Object(_) => value,
            other => {
                return Err(de::Error::custom(format!("{other} is no status: write 200, [200, 204] or a matcher")));
            }
        };
        Matcher::new(value).map(Self).map_err(de::Error::custom)
    }
}

impl JsonSchema for Status {
    fn schema_name() -> Cow<'static, str> {
        "Status".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let matcher = Matcher::json_schema(generator);
        let written_out = matcher.pointer("/anyOf/1").cloned().unwrap_or_default();
        json_schema!({
            "anyOf": [
                { "type": "integer", "minimum": 100, "maximum": 599 },
                { "type": "array", "minItems": 1, "items": { "type": "integer", "minimum": 100, "maximum": 599 } },
                written_out,
            ],
            "default": 200,
        })
    }
}

/// How many of the samples may be bad: a number or a share.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MaxFailures(Bound);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    Count(u32),
    Percent(f64),
}

impl Default for Bound {
    fn default() -> Self {
        Self::Count(0)
    }
}

impl MaxFailures {
    pub(super) fn of(self, samples: u32) -> u32 {
        match self.0 {
            Bound::Count(count) => count,
            Bound::Percent(percent) => (f64::from(samples) * percent / 100.0).floor() as u32,
        }
    }
}

impl<'de> Deserialize<'de> for MaxFailures {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let percent =
            value.as_str().and_then(|text| text.strip_suffix('%')).and_then(|text| text.trim().parse().ok());
        let count = value.as_u64().and_then(|count| u32::try_from(count).ok());
        match (count, percent) {
            (Some(count), _) => Ok(Self(Bound::Count(count))),
            (_, Some(percent)) if (0.0..=100.0).contains(&percent) => Ok(Self(Bound::Percent(percent))),
            _ => Err(de::Error::custom(format!("{value} is neither a number of answers nor a share as `1%`"))),
        }
    }
}

impl JsonSchema for MaxFailures {
    fn schema_name() -> Cow<'static, str> {
        "MaxFailures".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["integer", "string"], "minimum": 0, "pattern": "^[0-9.]+ ?%$", "default": 0 })
    }
}
