//! `approve`: somebody else says whether the run may go on.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{never_run, words_of};
use crate::failure::Failure;
use crate::record::event::{Answer, Outputs, Question, QuestionKind};
use crate::step::effect::Effect;
use crate::step::{
    Action, Certainty, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind, output,
};
use crate::units::Duration;

/// The run waits until enough people agree that it may go on.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Approve {
    /// What they agree to.
    pub message: String,
    /// Who may answer; by default anybody.
    #[serde(default)]
    pub by: Vec<String>,
    /// How many must agree. One no is a no.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub quorum: u32,
    /// Whether the one who started the run may not answer.
    #[serde(default = "yes")]
    pub not_by_requester: bool,
    /// How long to wait; silence then is a no.
    #[serde(default)]
    pub timeout: Option<Duration>,
}

const fn one() -> u32 {
    1
}

const fn yes() -> bool {
    true
}

impl StepType for Approve {
    const NAME: &'static str = "approve";
    const SUMMARY: &'static str = "Asks people whether the run may go on";
    const AFTER_KILL: &'static str = "still waiting";

    fn outputs() -> Vec<Output> {
        vec![
            output("by", ValueKind::String, "Who agreed"),
            output("at", ValueKind::Timestamp, "When the last of them did"),
            output("note", ValueKind::String, "Their words"),
        ]
    }
}

#[async_trait]
impl Step for Approve {
    fn effects(&self) -> Vec<Effect> {
        vec![]
    }

    fn check(&self, found: &mut Findings) {
        if self.message.trim().is_empty() {
            found.add("/message", "nobody is told what to agree to", None);
        }
        if self.quorum == 0 {
            found.add("/quorum", "a quorum of 0 approves by itself", "write 1 or more".to_owned());
        }
        let mut people = self.by.clone();
        people.sort();
        people.dedup();
        if people.len() < self.by.len() {
            found.add("/by", "somebody is named twice and still has one voice", None);
        }
        if !people.is_empty() && self.quorum as usize > people.len() {
            let message = format!("{} must agree, but only {} may answer", self.quorum, people.len());
            found.add("/quorum", message, "name more people, or lower the quorum".to_owned());
        }
        if self.timeout.is_some_and(|timeout| timeout.std().is_zero()) {
            found.add("/timeout", "nobody can answer in no time", None);
        }
    }

    async fn preview(&self, _cx: &PreviewCx<'_>) -> Preview {
        let who = match (self.quorum, self.by.as_slice()) {
            (1, []) => "somebody".to_owned(),
            (quorum, []) => format!("{quorum} people"),
            (1, people) => people.join(" or "),
            (quorum, people) => format!("{quorum} of {}", people.join(", ")),
        };
        let first_line = self.message.trim().lines().next().unwrap_or_default();
        Preview::new(Action::Ask, Certainty::Observed, format!("ask {who}: {first_line}"))
    }

    async fn run(&self, _cx: &RunCx) -> Result<Done, Failure> {
        never_run()
    }

    fn question(&self, now: jiff::Timestamp) -> Option<Question> {
        Some(Question {
            kind: QuestionKind::Approve,
            message: self.message.clone(),
            checklist: vec![],
            fields: [].into(),
            by: self.by.clone(),
            quorum: self.quorum,
            not_by_requester: self.not_by_requester,
            until: self.timeout.and_then(|timeout| now.checked_add(timeout.std()).ok()),
        })
    }

    fn answered(&self, answers: &[Answer]) -> Outputs {
        words_of(answers)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::step::testing::{findings, preview, step};
    use crate::step::world::World;

    #[tokio::test]
    async fn the_question_carries_its_rules() {
        let approve =
            step("approve", json!({ "message": "Swap?", "by": ["ada", "ben"], "quorum": 2, "timeout": "1h" }));
        let now: jiff::Timestamp = "2024-02-01T10:00:00Z".parse().unwrap();
        let question = approve.question(now).unwrap();
        assert_eq!((question.kind, question.quorum), (QuestionKind::Approve, 2));
        assert!(question.not_by_requester, "by default somebody else must agree");
        assert_eq!(question.until.unwrap().to_string(), "2024-02-01T11:00:00Z");
        assert_eq!(preview(&*approve, None, &World::default()).await.summary, "ask 2 of ada, ben: Swap?");
    }

    #[test]
    fn who_agreed_becomes_outputs() {
        let answer = |by: &str, at: &str, note: Option<&str>| Answer {
            approved: true,
            by: by.to_owned(),
            at: at.parse().unwrap(),
            note: note.map(str::to_owned),
            fields: [].into(),
        };
        let answers =
            [answer("ada", "2024-02-01T10:05:00Z", Some("go")), answer("ben", "2024-02-01T10:01:00Z", None)];
        let outputs = step("approve", json!({ "message": "Swap?" })).answered(&answers);
        assert_eq!((&outputs["by"], &outputs["note"]), (&json!("ada, ben"), &json!("go")));
        assert_eq!(outputs["at"], "2024-02-01T10:05:00Z");
    }

    #[test]
    fn a_quorum_that_cannot_be_met_is_found() {
        assert_eq!(findings("approve", json!({ "message": "x", "by": ["ada"], "quorum": 2 })).len(), 1);
        assert_eq!(findings("approve", json!({ "message": "x", "by": ["ada", "ada"] })).len(), 1);
        assert_eq!(findings("approve", json!({ "message": " ", "quorum": 0, "timeout": "0s" })).len(), 3);
    }
}
