//! `assert`: stops the run unless values are as they should be.

use std::borrow::Cow;

use async_trait::async_trait;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, de};
use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::matcher::{KEYS, Matcher};
use crate::step::effect::Effect;
use crate::step::{Action, Certainty, Done, Findings, Preview, PreviewCx, RunCx, Step, StepType};

/// Stops the run unless values are as they should be.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Assert {
    /// The conditions; all must hold.
    #[schemars(length(min = 1))]
    pub that: Vec<Condition>,
    /// What it means when one doesn't hold, and what to do then.
    #[serde(default)]
    pub message: Option<String>,
}

/// A value and the matcher it must satisfy: `{ value: "{{ steps.find.age }}", max: 24h }`.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    value: Value,
    matcher: Matcher,
}

impl<'de> Deserialize<'de> for Condition {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut map = Map::deserialize(deserializer)?;
        let value = map.shift_remove("value").ok_or_else(|| de::Error::missing_field("value"))?;
        if map.is_empty() {
            return Err(de::Error::custom(format!("say what `value` must be: {}", KEYS.join(", "))));
        }
        if let Some(key) = map.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(de::Error::custom(format!("a matcher has no `{key}`; it knows {}", KEYS.join(", "))));
        }
        let matcher = Matcher::new(Value::Object(map)).map_err(de::Error::custom)?;
        Ok(Self { value, matcher })
    }
}

impl JsonSchema for Condition {
    fn schema_name() -> Cow<'static, str> {
        "Condition".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        // A matcher that is written out, with the value it is for beside it.
        let matcher = Matcher::json_schema(generator);
        let mut written_out = matcher.pointer("/anyOf/1").and_then(Value::as_object).cloned().unwrap_or_default();
        if let Some(Value::Object(properties)) = written_out.get_mut("properties") {
            properties
                .insert("value".to_owned(), serde_json::json!({ "description": "The value that is looked at." }));
        }
        written_out.insert("required".to_owned(), serde_json::json!(["value"]));
        written_out.insert("minProperties".to_owned(), 2.into());
        written_out.into()
    }
}

impl Condition {
    fn broken(&self) -> Option<String> {
        (!self.matcher.accepts(&self.value)).then(|| match &self.value {
            Value::String(text) => format!("`{text}` is not {}", self.matcher.describe()),
            other => format!("{other} is not {}", self.matcher.describe()),
        })
    }
}

impl Assert {
    /// The conditions that don't hold, of those that `known` lets through, in one text.
    fn broken(&self, known: impl Fn(usize) -> bool) -> Option<String> {
        let broken: Vec<String> =
            (0..self.that.len()).filter(|at| known(*at)).filter_map(|at| self.that[at].broken()).collect();
        let message = self.message.iter().cloned();
        (!broken.is_empty()).then(|| message.chain([broken.join("; ")]).collect::<Vec<_>>().join(": "))
    }

    fn count(&self) -> String {
        match self.that.len() {
            1 => "1 condition".to_owned(),
            count => format!("{count} conditions"),
        }
    }
}

impl StepType for Assert {
    const NAME: &'static str = "assert";
    const SUMMARY: &'static str = "Stops the run unless values are as they should be";
}

#[async_trait]
impl Step for Assert {
    fn effects(&self) -> Vec<Effect> {
        vec![]
    }

    fn check(&self, found: &mut Findings) {
        if self.that.is_empty() {
            found.add("/that", "there is nothing to check", "write `- { value: …, min: 1 }`".to_owned());
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let known = |at: usize| !cx.is_unknown(&format!("/that/{at}"));
        let certainty = if (0..self.that.len()).all(known) { Certainty::Observed } else { Certainty::Assumed };
        let preview = Preview::new(Action::Read, certainty, format!("check {}", self.count()));
        match self.broken(known) {
            Some(broken) => preview.blocked(broken, None),
            None => preview,
        }
    }

    async fn run(&self, _cx: &RunCx) -> Result<Done, Failure> {
        match self.broken(|_| true) {
            Some(broken) => Err(Failure::permanent(broken)),
            None => Ok(Done::new(match self.that.len() {
                1 => "it holds".to_owned(),
                count => format!("all {count} conditions hold"),
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ids::StepId;
    use crate::step::testing::{cx, preview, refused, services, step};
    use crate::step::world::World;

    #[tokio::test]
    async fn all_conditions_must_hold_and_every_broken_one_is_named() {
        let services = services(json!({}));
        let (cx, _) = cx(&services);
        let good = step(
            "assert",
            json!({ "that": [{ "value": 5, "min": 1, "max": 9 }, { "value": "3h", "max": "24h" }] }),
        );
        assert_eq!(good.run(&cx).await.unwrap().summary.as_deref(), Some("all 2 conditions hold"));

        let bad = step(
            "assert",
            json!({
                "message": "the backup is not fit",
                "that": [{ "value": "30h", "max": "24h" }, { "value": 1, "equals": 1 }, { "value": 0, "min": 1 }],
            }),
        );
        let failure = bad.run(&cx).await.unwrap_err();
        assert_eq!(failure.message, "the backup is not fit: `30h` is not at most 24h; 0 is not at least 1");
        assert!(!failure.transient);
        assert_eq!(preview(&*bad, None, &World::default()).await.action, Action::Blocked);
        assert_eq!(preview(&*good, None, &World::default()).await.certainty, Certainty::Observed);
    }

    #[tokio::test]
    async fn a_value_that_only_the_run_knows_is_not_judged_before() {
        let waiting = step("assert", json!({ "that": [{ "value": "‹find.age›", "max": "24h" }] }));
        let unknown = ["/that/0/value".to_owned()];
        let world = World::default();
        let cx = PreviewCx { step: &StepId::from("a"), services: None, world: &world, unknown: &unknown };
        let preview = waiting.preview(&cx).await;
        assert_eq!((preview.action, preview.certainty), (Action::Read, Certainty::Assumed));
    }

    #[test]
    fn mistakes_are_refused_where_they_are() {
        assert!(refused("assert", json!({ "that": [{ "value": 1 }] })).starts_with("/that/0 say what"));
        assert!(refused("assert", json!({ "that": [{ "min": 1 }] })).contains("`value`"));
        assert!(
            refused("assert", json!({ "that": [{ "value": 1, "minimum": 1, "min": 1 }] })).contains("`minimum`")
        );
        assert!(refused("assert", json!({ "that": [{ "value": 1, "matches": "(" }] })).contains("`matches`"));
    }
}
