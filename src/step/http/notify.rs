//! `notify`: tells people by a web hook or by mail.
//!
//! Told again after a kill, marked as possibly repeated: a missed alarm is worse than a
//! second one. The same `Idempotency-Key`, or `Message-ID`, goes with every attempt.

use std::collections::BTreeSet;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::service::http::{Message, Undelivered};
use crate::service::{Services, Target, mail};
use crate::step::effect::{Access, Effect, Resource};
use crate::step::{Action, AfterKill, Certainty, Done, Findings, Preview, PreviewCx, RunCx, Step, StepType};

/// Tells people by a web hook or by mail.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Notify {
    /// The web hook, or the mail server.
    #[schemars(extend("x-target" = ["webhook", "smtp"]))]
    pub target: String,
    /// The text.
    pub message: String,
    /// A headline. A mail without one takes the message's first line.
    #[serde(default)]
    pub subject: Option<String>,
    /// Whom a mail is for, as `sven@example.com` or `Sven <sven@example.com>`. Each gets one; that one
    /// is refused keeps nobody else from being told.
    #[serde(default)]
    pub to: Vec<String>,
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
    const SUMMARY: &'static str = "Tells people by a web hook or by mail";
    const AFTER_KILL: &'static str =
        "tells it again, marked as possibly repeated; whoever took a mail over is not told twice";
}

#[async_trait]
impl Step for Notify {
    fn effects(&self) -> Vec<Effect> {
        // Each message is something new: two of them don't get in each other's way.
        let kind = if self.to.is_empty() { "webhook" } else { "smtp" };
        vec![Effect::new(Access::Create, Resource::other(kind, &self.target))]
    }

    fn check(&self, found: &mut Findings) {
        if self.message.trim().is_empty() {
            found.add("/message", "there is nothing to tell", None);
        }
        // What only the run knows stands there as `‹…›`.
        let wrong = |to: &&String| !to.contains('‹') && !mail::is_address(to);
        for (index, to) in self.to.iter().enumerate().filter(|(_, to)| wrong(to)) {
            let help = "write `sven@example.com`, or `Sven <sven@example.com>`".to_owned();
            found.add(format!("/to/{index}"), format!("`{to}` is no address"), help);
        }
        if let Some(kind) = found.kind_of(&self.target).map(str::to_owned)
            && let Err(failure) = self.fits(&kind)
        {
            let pointer = if self.to.is_empty() { "" } else { "/to" };
            found.add(pointer, failure.message, failure.help);
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        // Whether it is taken can't be known without telling something.
        let whom = if self.to.is_empty() { self.target.clone() } else { self.to.join(", ") };
        let preview = Preview::new(Action::Create, Certainty::Assumed, format!("tell {whom}"));
        match cx.services.map(|services| self.ready(services)) {
            Some(Err(failure)) => preview.blocked(failure.message, failure.help),
            _ => preview,
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        self.ready(&cx.services)?;
        tokio::select! {
            told = async { if self.to.is_empty() { self.post(cx).await } else { self.mail(cx).await } } => told,
            () = cx.cancel.cancelled() => Err(Failure::transient(format!("telling {} was cancelled", self.target))),
        }
    }

    async fn after_kill(&self, cx: &RunCx) -> Result<AfterKill, Failure> {
        let note = cx.notes.last().map_or(&Value::Null, |(_, note)| note);
        let told = names(&note["told"]);
        Ok(if note["telling"] == true || !names(&note["telling"]).is_empty() {
            AfterKill::RunAgain {
                why: "it may have been told already; it is told again, marked as possibly repeated".to_owned(),
            }
        } else if told.is_empty() {
            AfterKill::DidNotHappen { why: "nothing was told".to_owned() }
        } else {
            AfterKill::Partly { what: format!("{} told already", listed(&told)) }
        })
    }
}

impl Notify {
    /// Whether the parameters are those of a target of that kind.
    fn fits(&self, kind: &str) -> Result<(), Failure> {
        match (kind, self.to.is_empty()) {
            ("smtp", true) => Err(Failure::permanent(format!("`{}` sends mail, and nobody is named", self.target))
                .help("add `to: [ sven@example.com ]`")),
            ("webhook", false) => {
                Err(Failure::permanent(format!("`{}` is a web hook, which knows whom it tells", self.target))
                    .help("remove `to`, or name a target of kind smtp"))
            }
            _ => Ok(()),
        }
    }

    /// Whether a message could be handed over, as far as that shows without contact.
    fn ready(&self, services: &Services) -> Result<(), Failure> {
        if matches!(services.target(&self.target)?, Target::Smtp(_)) {
            self.fits("smtp")?;
            services.mail(&self.target).map(drop)
        } else {
            services.webhook(&self.target)?;
            self.fits("webhook")
        }
    }

    fn message(&self, cx: &RunCx, repeated: bool) -> Message {
        Message {
            subject: self.subject.clone(),
            text: self.message.clone(),
            severity: self.severity.as_str(),
            run: cx.run.to_string(),
            step: cx.mark(),
            repeated,
        }
    }

    async fn post(&self, cx: &RunCx) -> Result<Done, Failure> {
        let webhook = cx.services.webhook(&self.target)?;
        let repeated = cx.notes.last().is_some_and(|(_, note)| note["telling"] == true);
        cx.note(json!({ "telling": true })).await?;
        match webhook.deliver(&self.message(cx, repeated)).await {
            Ok(()) => Ok(Done::new(format!("told {}", self.target))),
            Err(Undelivered { failure, perhaps_received }) => {
                if !perhaps_received && !repeated {
                    cx.note(json!({ "telling": false })).await?;
                }
                Err(failure)
            }
        }
    }

    async fn mail(&self, cx: &RunCx) -> Result<Done, Failure> {
        let server = cx.services.mail(&self.target)?;
        let noted = cx.notes.last().map_or(&Value::Null, |(_, note)| note);
        let (mut told, mut telling) = (names(&noted["told"]), names(&noted["telling"]));
        let mut failures: Vec<(&str, Failure)> = vec![];
        for to in self.to.iter().collect::<BTreeSet<_>>() {
            if told.contains(to) {
                continue;
            }
            let repeated = !telling.insert(to.clone());
            cx.note(json!({ "telling": telling, "told": told })).await?;
            match server.deliver(&self.message(cx, repeated), to, &self.to).await {
                Ok(()) => {
                    telling.remove(to);
                    told.insert(to.clone());
                    cx.log(&format!("{to}: taken over by the mail server\n"));
                }
                Err(Undelivered { failure, perhaps_received }) => {
                    if !perhaps_received && !repeated {
                        telling.remove(to);
                    }
                    failures.push((to, failure));
                }
            }
        }
        if failures.is_empty() {
            return Ok(Done::new(format!("told {}", listed(&told))));
        }
        cx.note(json!({ "telling": telling, "told": told })).await?;
        let told = if told.is_empty() { String::new() } else { format!("; {} told", listed(&told)) };
        let words: Vec<String> = failures.iter().map(|(to, failure)| format!("{to}: {failure}")).collect();
        let message = format!("tell {}: {}{told}", self.target, words.join("; "));
        // While one of them may still be told, it is worth another try; the others are not told twice.
        let all_final = failures.iter().all(|(_, failure)| !failure.transient);
        let failed = if all_final { Failure::permanent(message) } else { Failure::transient(message) };
        Err(match failures.into_iter().find_map(|(_, failure)| failure.help) {
            Some(help) => failed.help(help),
            None => failed,
        })
    }
}

fn names(noted: &Value) -> BTreeSet<String> {
    noted.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn listed(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
