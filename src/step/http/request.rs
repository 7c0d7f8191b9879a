//! `http.request`: asks a service to do something, once.
//!
//! Every attempt carries the same `Idempotency-Key`, but not every service minds it: without
//! `idempotent`, a request that may have arrived is never sent a second time.

use std::collections::BTreeMap;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::check::{Status, output_of};
use crate::failure::Failure;
use crate::service::Services;
use crate::service::http::{Ask, Body, Http, Unanswered, quoted};
use crate::step::effect::{Access, Effect, Resource};
use crate::step::world::Fact;
use crate::step::{
    AfterKill, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind, output,
};

/// Too early, too many, unavailable: by their meaning (RFC 9110, 6585, 8470) nothing was done.
const DID_NOTHING: [u16; 3] = [425, 429, 503];

/// Asks a service to do something. Redirects are not followed.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The service. Its headers and credentials go with the request.
    #[schemars(extend("x-target" = "http"))]
    pub target: String,
    /// The HTTP method.
    pub method: Method,
    /// The path below the target's `base_url`.
    pub path: String,
    /// Further headers. An `Idempotency-Key` of the run and the step is always sent, the same for each attempt.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The body, sent as JSON.
    #[serde(default)]
    pub json: Option<Value>,
    /// The status it must answer with: a number, a list of them, or a matcher. By default any from 200 to 299.
    #[serde(default = "Status::success")]
    #[schemars(extend("default" = { "min": 200, "max": 299 }))]
    pub status: Status,
    /// What it does to what, as `change postgres:db/manacore_auth`; verbs: read, create, change, destroy, stop, start,
    /// verify. `[]` means that it touches nothing. Without this nobody knows, and reviews say so.
    #[serde(default)]
    pub effects: Option<Vec<String>>,
    /// Whether it may be sent again when nobody knows if it arrived: after a kill, or without an answer.
    #[serde(default)]
    pub idempotent: bool,
}

/// An HTTP method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "their names say it")]
pub enum Method {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

impl Method {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

impl StepType for Request {
    const NAME: &'static str = "http.request";
    const SUMMARY: &'static str = "Asks a service to do something";
    const AFTER_KILL: &'static str = "can't tell, or runs again if `idempotent`";

    fn outputs() -> Vec<Output> {
        vec![
            output("status", ValueKind::Integer, "The answer's HTTP status"),
            output("body", ValueKind::Any, "The answer's body: JSON as values, else text, up to 64 KiB"),
        ]
    }
}

#[async_trait]
impl Step for Request {
    fn effects(&self) -> Vec<Effect> {
        match &self.effects {
            Some(declared) => declared.iter().filter_map(|text| Effect::parse(text).ok()).collect(),
            None => vec![Effect::new(Access::Undetermined, Resource::other("http", &self.target))],
        }
    }

    fn check(&self, found: &mut Findings) {
        if self.path.contains("://") {
            found.add("/path", "this is a whole URL", "write the path below the target's `base_url`".to_owned());
        }
        if self.method == Method::Get && self.json.is_some() {
            found.add("/json", "a GET has no body", "use another method, or leave out `json`".to_owned());
        }
        for name in self.headers.keys().filter(|name| name.eq_ignore_ascii_case("idempotency-key")) {
            let help = "leave it out: it is sent, of the run and the step".to_owned();
            found.add(format!("/headers/{name}"), "Lifeboat sets this header", help);
        }
        for (at, declared) in self.effects.iter().flatten().enumerate() {
            if let Err(wrong) = Effect::parse(declared) {
                let help = "write a verb and a resource, as `change postgres:db/manacore_auth`".to_owned();
                found.add(format!("/effects/{at}"), wrong, help);
            }
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        // What it would answer can't be known without asking.
        let effects = self.effects();
        let mut preview = Preview::from_effects(&effects, self.shown());
        let foretold = |effect: Effect| Fact::after(&effect).map(|fact| (effect.resource, fact));
        preview.facts = effects.into_iter().filter_map(foretold).collect();
        let Some(services) = cx.services else { return preview };
        preview.summary = services.redactor().redact(&preview.summary).into_owned();
        match self.reach(services) {
            Err(failure) if !cx.is_unknown("/path") && !cx.is_unknown("/headers") => {
                preview.blocked(failure.message, failure.help)
            }
            _ => preview,
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let (http, url) = self.reach(&cx.services)?;
        let mut headers = self.headers.clone();
        headers.insert("Idempotency-Key".to_owned(), format!("{}:{}", cx.run, cx.mark()));
        let body = self.json.as_ref().map_or(Body::None, Body::Json);
        let ask = Ask { method: self.method.as_str(), url: &url, headers: &headers, body };
        let perhaps_before = cx.notes.last().is_some_and(|(_, note)| note["sending"] == true);
        cx.note(json!({ "sending": true })).await?;
        let answer = tokio::select! {
            answer = http.ask(&ask) => answer,
            () = cx.cancel.cancelled() => {
                return Err(self.unanswered(Failure::transient(format!("{} was cancelled", self.shown()))));
            }
        };
        match answer {
            Ok(answer) if self.status.accepts(answer.status) => {
                let body = output_of(&answer);
                Ok(Done::new(answer.status.to_string()).output("status", answer.status).output("body", body))
            }
            Ok(answer) => {
                let said = quoted(&answer.body, http.redactor());
                let to = answer.location.as_deref().map_or(String::new(), |to| format!(" to {to}"));
                let message = format!(
                    "{}: it answered {}{}{said}, not {}",
                    self.shown(),
                    answer.status,
                    http.redactor().redact(&to),
                    self.status.describe()
                );
                if DID_NOTHING.contains(&answer.status) && !perhaps_before {
                    cx.note(json!({ "sending": false })).await?;
                }
                Err(self.refused(answer.status, http.redactor().redact(&message).into_owned()))
            }
            Err(Unanswered { failure, perhaps_received: false }) => {
                if !perhaps_before {
                    cx.note(json!({ "sending": false })).await?;
                }
                Err(failure)
            }
            Err(Unanswered { failure, .. }) => Err(self.unanswered(failure)),
        }
    }

    async fn after_kill(&self, cx: &RunCx) -> Result<AfterKill, Failure> {
        let sent = cx.notes.last().is_some_and(|(_, note)| note["sending"] == true);
        let shown = self.shown();
        let shown = cx.redactor.redact(&shown);
        Ok(if !sent {
            AfterKill::DidNotHappen { why: "nothing was sent".to_owned() }
        } else if self.idempotent {
            AfterKill::RunAgain { why: "the plan says that it may be sent again (`idempotent`)".to_owned() }
        } else {
            let key = format!("{}:{}", cx.run, cx.mark());
            let why = format!("{shown} may have arrived; look at the service for the Idempotency-Key {key}");
            AfterKill::CannotTell { why }
        })
    }
}

impl Request {
    fn reach(&self, services: &Services) -> Result<(Http, reqwest::Url), Failure> {
        let http = services.http(&self.target)?;
        let url = http.url(&self.path)?;
        Ok((http, url))
    }

    /// What is asked, for people: without a query, which may hold secrets.
    fn shown(&self) -> String {
        let path = self.path.split(['?', '#']).next().unwrap_or_default();
        format!("{} {}/{}", self.method.as_str(), self.target, path.trim_start_matches('/'))
    }

    /// Without an answer it may have taken effect: a retry could do it twice.
    fn unanswered(&self, failure: Failure) -> Failure {
        if self.idempotent {
            return failure;
        }
        Failure::permanent(format!("{}; it may have taken effect all the same", failure.message))
            .help("look at the service; where sending it again does no harm, write `idempotent: true`")
    }

    fn refused(&self, status: u16, message: String) -> Failure {
        match status {
            did_nothing if DID_NOTHING.contains(&did_nothing) => Failure::transient(message),
            408 | 500.. => self.unanswered(Failure::transient(message)),
            300..=399 => Failure::permanent(message)
                .help("redirects are not followed: ask the final address, or say that this status is right"),
            401 | 403 => Failure::permanent(message).help("check the target's `auth` and `headers`"),
            404 => Failure::permanent(message).help("check the path and the target's `base_url`"),
            _ => Failure::permanent(message),
        }
    }
}

#[cfg(test)]
mod tests;
