//! `manual`: something that a person does, with the evidence of it.

use std::collections::BTreeMap;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{never_run, words_of};
use crate::failure::Failure;
use crate::ids::is_name;
use crate::record::event::{Answer, Outputs, Question, QuestionKind};
use crate::step::effect::Effect;
use crate::step::{
    Action, Certainty, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind, output,
};

/// Something that a person does: the run waits until somebody says that it is done.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Manual {
    /// What to do.
    pub instructions: String,
    /// Things to tick off, each before the answer counts.
    #[serde(default)]
    pub checklist: Vec<String>,
    /// Values to fill in, by name; they become outputs.
    #[serde(default)]
    pub fields: BTreeMap<String, FieldType>,
}

/// The type of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FieldType {
    /// Text.
    String,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// Yes or no.
    Boolean,
    /// A duration, as `5m`.
    Duration,
    /// An instant, as RFC 3339.
    Timestamp,
}

impl FieldType {
    const fn as_str(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
            Self::Duration => "duration",
            Self::Timestamp => "timestamp",
        }
    }

    const fn kind(self) -> ValueKind {
        match self {
            Self::String => ValueKind::String,
            Self::Integer => ValueKind::Integer,
            Self::Number => ValueKind::Number,
            Self::Boolean => ValueKind::Boolean,
            Self::Duration => ValueKind::Duration,
            Self::Timestamp => ValueKind::Timestamp,
        }
    }
}

impl StepType for Manual {
    const NAME: &'static str = "manual";
    const SUMMARY: &'static str = "Asks a person to do something and waits until it is said to be done";
    const AFTER_KILL: &'static str = "still waiting";

    fn outputs() -> Vec<Output> {
        vec![
            output("by", ValueKind::String, "Who did it"),
            output("at", ValueKind::Timestamp, "When they said so"),
            output("note", ValueKind::String, "Their words"),
        ]
    }

    fn declared_outputs(params: &Value) -> Vec<(String, ValueKind)> {
        let Some(fields) = params.get("fields").and_then(Value::as_object) else { return vec![] };
        let kind = |kind: &Value| FieldType::deserialize(kind).map_or(ValueKind::Any, FieldType::kind);
        fields.iter().map(|(name, field)| (name.clone(), kind(field))).collect()
    }
}

#[async_trait]
impl Step for Manual {
    fn effects(&self) -> Vec<Effect> {
        vec![]
    }

    fn check(&self, found: &mut Findings) {
        if self.instructions.trim().is_empty() {
            found.add("/instructions", "nobody is told what to do", None);
        }
        for name in self.fields.keys() {
            if !is_name(name) || Self::outputs().iter().any(|output| output.name == name) {
                found.add(
                    format!("/fields/{name}"),
                    format!("`{name}` can't name a field"),
                    "use letters, digits, `-` and `_`, and none of `by`, `at`, `note`".to_owned(),
                );
            }
        }
    }

    async fn preview(&self, _cx: &PreviewCx<'_>) -> Preview {
        let first_line = self.instructions.trim().lines().next().unwrap_or_default();
        Preview::new(Action::Ask, Certainty::Observed, format!("ask a person: {first_line}"))
    }

    async fn run(&self, _cx: &RunCx) -> Result<Done, Failure> {
        never_run()
    }

    fn question(&self, _now: jiff::Timestamp) -> Option<Question> {
        Some(Question {
            kind: QuestionKind::Manual,
            message: self.instructions.clone(),
            checklist: self.checklist.clone(),
            fields: self.fields.iter().map(|(name, kind)| (name.clone(), kind.as_str().to_owned())).collect(),
            by: vec![],
            quorum: 1,
            not_by_requester: false,
            until: None,
        })
    }

    fn answered(&self, answers: &[Answer]) -> Outputs {
        let mut outputs = words_of(answers);
        for answer in answers {
            outputs.extend(answer.fields.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
        outputs
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::step::testing::{cx, findings, preview, refused, services, step};
    use crate::step::world::World;

    fn provision() -> Value {
        json!({
            "instructions": "Provision a database host.\nTag it `recovery`.",
            "checklist": ["firewall open"],
            "fields": { "host": "string", "port": "integer" },
        })
    }

    #[tokio::test]
    async fn it_is_asked_and_never_run() {
        let manual = step("manual", provision());
        let question = manual.question(jiff::Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!((question.kind, question.quorum), (QuestionKind::Manual, 1));
        assert_eq!((question.checklist.len(), question.fields["port"].as_str()), (1, "integer"));
        let preview = preview(&*manual, None, &World::default()).await;
        assert_eq!(
            (preview.action, preview.summary.as_str()),
            (Action::Ask, "ask a person: Provision a database host.")
        );
        let services = services(json!({}));
        assert!(manual.run(&cx(&services).0).await.is_err());
    }

    #[test]
    fn what_was_filled_in_becomes_outputs() {
        let answer = Answer {
            approved: true,
            by: "ada".to_owned(),
            at: "2024-02-01T10:00:00Z".parse().unwrap(),
            note: None,
            fields: [("host".to_owned(), json!("db2")), ("port".to_owned(), json!(5433))].into(),
        };
        let outputs = step("manual", provision()).answered(&[answer]);
        assert_eq!((&outputs["host"], &outputs["port"]), (&json!("db2"), &json!(5433)));
        assert_eq!((&outputs["by"], &outputs["at"]), (&json!("ada"), &json!("2024-02-01T10:00:00Z")));
        let declared = Manual::declared_outputs(&provision());
        assert!(declared.contains(&("port".to_owned(), ValueKind::Integer)));
    }

    #[test]
    fn mistakes() {
        assert!(
            refused("manual", json!({ "instructions": "x", "fields": { "a": "text" } })).starts_with("/fields/a")
        );
        assert_eq!(findings("manual", json!({ "instructions": " ", "fields": { "by": "string" } })).len(), 2);
        assert!(findings("manual", provision()).is_empty());
    }
}
