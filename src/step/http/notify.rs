//! `notify`: tells people by a web hook.
//!
//! Told again after a kill, marked as possibly repeated: a missed alarm is worse than a
//! second one. The same `Idempotency-Key` goes with every attempt.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::failure::Failure;
use crate::service::http::{Message, Undelivered};
use crate::step::effect::{Access, Effect, Resource};
use crate::step::{Action, AfterKill, Certainty, Done, Findings, Preview, PreviewCx, RunCx, Step, StepType};

/// Tells people by a web hook.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Notify {
    /// The web hook.
    #[schemars(extend("x-target" = "webhook"))]
    pub target: String,
    /// The text.
    pub message: String,
    /// A headline.
    #[serde(default)]
    pub subject: Option<String>,
    /// How bad it is.
    #[serde(default)]
    pub severity: Severity,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know.
    #[default]
    Info,
    /// Somebody should look.
    Warning,
    /// Somebody must act.
    Critical,
}

impl Severity {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

impl StepType for Notify {
    const NAME: &'static str = "notify";
    const SUMMARY: &'static str = "Tells people by a web hook";
    const AFTER_KILL: &'static str = "tells it again, marked as possibly repeated";
}

#[async_trait]
impl Step for Notify {
    fn effects(&self) -> Vec<Effect> {
        // Each message is something new: two of them don't get in each other's way.
        vec![Effect::new(Access::Create, Resource::other("webhook", &self.target))]
    }

    fn check(&self, found: &mut Findings) {
        if self.message.trim().is_empty() {
            found.add("/message", "there is nothing to tell", None);
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        // Whether the hook answers can't be known without telling it something.
        let preview = Preview::new(Action::Create, Certainty::Assumed, format!("tell {}", self.target));
        match cx.services.map(|services| services.webhook(&self.target)) {
            Some(Err(failure)) => preview.blocked(failure.message, failure.help),
            _ => preview,
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let webhook = cx.services.webhook(&self.target)?;
        let repeated = cx.notes.last().is_some_and(|(_, note)| note["telling"] == true);
        cx.note(json!({ "telling": true })).await?;
        let message = Message {
            subject: self.subject.clone(),
            text: self.message.clone(),
            severity: self.severity.as_str(),
            run: cx.run.to_string(),
            step: cx.step.to_string(),
            repeated,
        };
        let delivered = tokio::select! {
            delivered = webhook.deliver(&message) => delivered,
            () = cx.cancel.cancelled() => {
                return Err(Failure::transient(format!("telling {} was cancelled", self.target)));
            }
        };
        match delivered {
            Ok(()) => Ok(Done::new(format!("told {}", self.target))),
            Err(Undelivered { failure, perhaps_received }) => {
                if !perhaps_received && !repeated {
                    cx.note(json!({ "telling": false })).await?;
                }
                Err(failure)
            }
        }
    }

    async fn after_kill(&self, cx: &RunCx) -> Result<AfterKill, Failure> {
        Ok(match cx.notes.last() {
            Some((_, note)) if note["telling"] == true => AfterKill::RunAgain {
                why: "it may have been told already; it is told again, marked as possibly repeated".to_owned(),
            },
            _ => AfterKill::DidNotHappen { why: "nothing was told".to_owned() },
        })
    }
}

#[cfg(test)]
mod tests;
