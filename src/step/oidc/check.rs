//! `oidc.check`: tokens of an issuer can be had, verify, and are taken by those who validate them.
//!
//! A token is never an output: outputs are kept in the journal. One that a later step needs is kept as
//! an object in a storage, where only those can read it who may read that storage.

use std::collections::BTreeMap;
use std::time::Duration as StdDuration;

use async_trait::async_trait;
use jsonwebtoken::jwk::JwkSet;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::failure::Failure;
use crate::matcher::Matcher;
use crate::record::event::{Progress, ProgressUnit};
use crate::secret::Secret;
use crate::service::http::{Ask, Body, quoted};
use crate::service::oidc::{Issuer, algorithm_of, claimed};
use crate::service::storage::UploadOptions;
use crate::step::effect::{Access, Effect, Resource, Role};
use crate::step::storage::{Place, check_object_path};
use crate::step::{
    Certainty, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind, output,
};
use crate::units::Duration;

/// No token is larger.
const TOKEN_CAP: u64 = 64 * 1024;

/// Checks an OpenID Connect issuer: its discovery document, its keys, and a token by client
/// credentials whose signature, issuer and expiry verify against them.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// The issuer.
    #[schemars(extend("x-target" = "oidc"))]
    pub target: String,
    /// How many keys it must publish; at least one if not said.
    #[serde(default)]
    pub keys: Option<Matcher>,
    /// Whether a token is asked for and verified. By default it is when the target names a client.
    #[serde(default)]
    pub token: Option<bool>,
    /// Services that must take the token.
    #[serde(default)]
    pub consumers: Vec<Consumer>,
    /// Where the token is kept, for a later step to prove that it is refused. Whoever reads it can use it
    /// until it expires.
    #[serde(default)]
    pub keep_token: Option<Place>,
    /// What must not be good any more.
    #[serde(default)]
    pub old_key_rejected: Option<OldKey>,
    /// Asks again and again until all of it holds, no longer than this. Without it, what holds now counts.
    #[serde(default)]
    pub within: Option<Duration>,
    /// The time between two looks.
    #[serde(default = "one_second")]
    pub every: Duration,
}

const fn one_second() -> Duration {
    Duration::seconds(1)
}

/// A service that validates tokens.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Consumer {
    /// The service.
    #[schemars(extend("x-target" = "http"))]
    pub target: String,
    /// What wants a token there: it must answer a GET with 2xx if the token is good, with 401 or 403 if it is not.
    pub path: String,
}

/// Keys that were revoked, and a token that one of them signed.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OldKey {
    /// The ids of keys that must not be published any more.
    #[serde(default)]
    pub keys: Vec<String>,
    /// A token that an earlier step kept: its key must not be published, and each of `consumers` must refuse
    /// it. It must still be unexpired, else its refusal proves nothing.
    #[serde(default)]
    pub token: Option<Place>,
}

impl StepType for Check {
    const NAME: &'static str = "oidc.check";
    const SUMMARY: &'static str = "Checks that an issuer's tokens can be had, verify and are taken";
    const PROVES_HEALTH: bool = true;

    fn outputs() -> Vec<Output> {
        vec![
            output("keys", ValueKind::List, "The ids of the keys that it publishes"),
            output("algorithms", ValueKind::List, "The algorithms of these keys"),
            output("signed_by", ValueKind::String, "The id of the key that signed the token; empty without one"),
        ]
    }
}

#[async_trait]
impl Step for Check {
    fn effects(&self) -> Vec<Effect> {
        let mut effects = vec![Effect::read(self.resource()).role(Role::Verifies)];
        effects.extend(
            self.consumers
                .iter()
                .map(|consumer| Effect::read(Resource::other("http", &consumer.target)).role(Role::Verifies)),
        );
        effects.extend(self.keep_token.iter().map(|place| Effect::new(Access::Create, object(place))));
        let kept = self.old_key_rejected.iter().filter_map(|old| old.token.as_ref());
        effects.extend(kept.map(|place| Effect::read(object(place))));
        effects
    }

    fn check(&self, found: &mut Findings) {
        if self.token == Some(false) {
            for (given, at) in
                [(!self.consumers.is_empty(), "/consumers"), (self.keep_token.is_some(), "/keep_token")]
            {
                if given {
                    let help = "leave out `token: false`".to_owned();
                    found.add(at, "this needs a token, and none is asked for", help);
                }
            }
        }
        if let Some(old) = &self.old_key_rejected {
            if old.keys.is_empty() && old.token.is_none() {
                let help = "name `keys`, or a `token` that an earlier step kept".to_owned();
                found.add("/old_key_rejected", "nothing is named that must be refused", help);
            }
            if old.token.is_some() && self.consumers.is_empty() {
                let help = "add `consumers`: services cache keys, and may go on trusting a revoked one".to_owned();
                found.add("/old_key_rejected/token", "nobody is named who must refuse it", help);
            }
            if let Some(place) = &old.token {
                check_object_path(found, "/old_key_rejected/token/path", &place.path);
            }
        }
        if let Some(place) = &self.keep_token {
            check_object_path(found, "/keep_token/path", &place.path);
        }
        for (at, consumer) in self.consumers.iter().enumerate() {
            if consumer.path.contains("://") {
                let help = "write the path below the target's `base_url`".to_owned();
                found.add(format!("/consumers/{at}/path"), "this is a whole URL", help);
            }
        }
        if self.every.std() < StdDuration::from_millis(10) {
            found.add("/every", "the issuer needs at least 10ms between two looks", None);
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let preview = Preview::from_effects(&self.effects(), self.summary());
        let Some(services) = cx.services else { return preview };
        let issuer = match self.reach(services) {
            Ok(issuer) => issuer,
            Err(failure) => return preview.blocked(failure.message, failure.help),
        };
        let stands_on = ["container:", "postgres:", "dns:"];
        let touched = cx.world.touching(&self.resource()).is_some()
            || cx
                .world
                .iter()
                .any(|(resource, _)| stands_on.iter().any(|kind| resource.as_str().starts_with(kind)));
        if touched {
            return preview;
        }
        if let Some(place) = self.keep_token.as_ref().filter(|_| !cx.is_unknown("/keep_token")) {
            let there = async { services.storage(&place.storage)?.stat(&place.path).await };
            match there.await {
                Ok(None) => {}
                Ok(Some(_)) => {
                    let failure = taken(place);
                    return preview.blocked(failure.message, failure.help);
                }
                Err(failure) => return preview.blocked(failure.message, failure.help),
            }
        }
        // The document alone: an issuer may make a key when it is asked for keys or tokens.
        match issuer.discovery().await {
            Ok(_) => Preview { certainty: Certainty::Observed, ..preview },
            Err(bad) if self.within.is_some() => preview.warning(format!("not well now: {bad}"), bad.help),
            Err(bad) => preview.blocked(bad.message, bad.help),
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let watch = async {
            let deadline = Instant::now() + self.within.map_or(StdDuration::ZERO, Duration::std);
            loop {
                let failure = match self.look(cx).await {
                    Ok((done, token)) => {
                        if let (Some(place), Some(token)) = (&self.keep_token, token) {
                            keep(cx, place, &token).await?;
                        }
                        return Ok(done);
                    }
                    Err(failure) => failure,
                };
                if Instant::now() + self.every.std() >= deadline {
                    return Err(match self.within {
                        Some(within) => failure.context(format!("{} was not well within {within}", self.target)),
                        None => failure.context(&self.target),
                    });
                }
                let message = Some(failure.message);
                cx.progress(Progress { done: 0, total: None, unit: ProgressUnit::Items, message });
                sleep(self.every.std()).await;
            }
        };
        tokio::select! {
            result = watch => result,
            () = cx.cancel.cancelled() => Err(Failure::transient(format!("checking {} was cancelled", self.target))),
        }
    }
}

impl Check {
    /// All of it, once. Gives the token, too.
    async fn look(&self, cx: &RunCx) -> Result<(Done, Option<Secret>), Failure> {
        let issuer = self.reach(&cx.services)?;
        let discovery = issuer.discovery().await?;
        // First: signing with a new key may publish it.
        let token = if self.wants_token(&issuer) { Some(issuer.token(&discovery).await?) } else { None };
        let keys = issuer.keys(&discovery).await?;
        self.count(&keys)?;
        let verified = token.as_ref().map(|token| issuer.verify(token, &keys)).transpose()?;
        if let Some(token) = &token {
            for consumer in &self.consumers {
                consumer.judge(cx, token, true).await?;
            }
        }
        if let Some(old) = &self.old_key_rejected {
            self.refused(cx, old, &keys).await?;
        }
        let ids: Vec<String> = keys.keys.iter().filter_map(|jwk| jwk.common.key_id.clone()).collect();
        let mut algorithms: Vec<String> = keys.keys.iter().filter_map(algorithm_of).collect();
        algorithms.sort_unstable();
        algorithms.dedup();
        let mut summary = format!("{} {}", ids.len(), if ids.len() == 1 { "key" } else { "keys" });
        if let Some(verified) = &verified {
            summary = format!("{summary}, a token of {} by {} verified", verified.algorithm, verified.key);
        }
        if !self.consumers.is_empty() {
            summary = format!("{summary}, taken by {}", self.consumers_named());
        }
        if let Some(old) = &self.old_key_rejected {
            summary = match old.token {
                Some(_) => format!("{summary}; the old token is refused"),
                None => format!("{summary}; the old keys are gone"),
            };
        }
        let signed_by = verified.map(|verified| verified.key).unwrap_or_default();
        let done = Done::new(summary).output("keys", ids).output("algorithms", algorithms);
        Ok((done.output("signed_by", signed_by), token))
    }

    fn count(&self, keys: &JwkSet) -> Result<(), Failure> {
        let found = keys.keys.len();
        match &self.keys {
            Some(wanted) if !wanted.accepts(&found.into()) => {
                Err(Failure::transient(format!("{found} keys are published, not {}", wanted.describe())))
            }
            None if found == 0 => Err(Failure::transient("no key is published: every token is refused")),
            _ => Ok(()),
        }
    }

    async fn refused(&self, cx: &RunCx, old: &OldKey, keys: &JwkSet) -> Result<(), Failure> {
        if let Some(key) = old.keys.iter().find(|key| keys.find(key).is_some()) {
            return Err(Failure::transient(format!("key {key} is still published")));
        }
        let Some(place) = &old.token else { return Ok(()) };
        let token = kept(cx, place).await?;
        let (key, expires_at) = claimed(&token)?;
        cx.redactor.add(token.expose());
        if keys.find(&key).is_some() {
            return Err(Failure::transient(format!("key {key}, which signed the kept token, is still published")));
        }
        if expires_at <= jiff::Timestamp::now() {
            return Err(Failure::permanent(format!(
                "the kept token expired at {expires_at}: that it is refused now proves nothing"
            ))
            .help("nothing that it could be used for is left; start a new run if a proof is needed"));
        }
        for consumer in &self.consumers {
            consumer.judge(cx, &token, false).await?;
        }
        Ok(())
    }

    fn wants_token(&self, issuer: &Issuer) -> bool {
        self.token.unwrap_or_else(|| issuer.has_client() || !self.consumers.is_empty() || self.keep_token.is_some())
    }

    /// The issuer, once it is sure that all others can be reached as well.
    fn reach(&self, services: &crate::service::Services) -> Result<Issuer, Failure> {
        for consumer in &self.consumers {
            services.http(&consumer.target)?;
        }
        let kept = self.old_key_rejected.iter().filter_map(|old| old.token.as_ref());
        for place in self.keep_token.iter().chain(kept) {
            services.storage(&place.storage)?;
        }
        let issuer = services.oidc(&self.target)?;
        if self.wants_token(&issuer) && !issuer.has_client() {
            return Err(Failure::permanent(format!(
                "target {} names no client that could ask for a token",
                self.target
            ))
            .help("add `client_id` and `client_secret` to it"));
        }
        Ok(issuer)
    }

    fn resource(&self) -> Resource {
        Resource::other("oidc", &self.target)
    }

    fn consumers_named(&self) -> String {
        self.consumers.iter().map(|consumer| consumer.target.as_str()).collect::<Vec<_>>().join(", ")
    }

    fn summary(&self) -> String {
        let mut parts = vec![format!("check the keys of {}", self.target)];
        if self.token != Some(false) {
            parts.push("verify a token".to_owned());
        }
        if !self.consumers.is_empty() {
            parts.push(format!("show it to {}", self.consumers_named()));
        }
        if self.old_key_rejected.is_some() {
            parts.push("see old keys refused".to_owned());
        }
        parts.join(", ")
    }
}

impl Consumer {
    /// Shows a token, which must be taken or refused.
    async fn judge(&self, cx: &RunCx, token: &Secret, is_good: bool) -> Result<(), Failure> {
        let http = cx.services.http(&self.target)?;
        let url = http.url(&self.path)?;
        let headers = BTreeMap::from([("Authorization".to_owned(), format!("Bearer {}", token.expose()))]);
        let ask = Ask { method: "GET", url: &url, headers: &headers, body: Body::None };
        let answer = http.ask(&ask).await.map_err(|unanswered| unanswered.failure)?;
        let said = || format!("{}{}", answer.status, quoted(&answer.body, http.redactor()));
        match (answer.status, is_good) {
            (200..=299, true) | (401 | 403, false) => Ok(()),
            (401 | 403, true) => {
                Err(Failure::transient(format!("{} refuses the token: it answered {}", self.target, said())))
            }
            (200..=299, false) => Err(Failure::transient(format!(
                "{} still takes a token of a revoked key: it answered {}",
                self.target, answer.status
            ))
            .help("it caches keys: wait until it asks again, or make it forget them")),
            _ => Err(Failure::transient(format!(
                "{} neither takes nor refuses the token: it answered {}",
                self.target,
                said()
            ))),
        }
    }
}

fn object(place: &Place) -> Resource {
    Resource::object(&place.storage, &place.path)
}

/// Keeps it in place of one that this step kept before; what somebody else put there stays.
async fn keep(cx: &RunCx, place: &Place, token: &Secret) -> Result<(), Failure> {
    let storage = cx.services.storage(&place.storage)?;
    if !cx.notes.iter().any(|(_, note)| note["keeps"] == place.path.as_str()) {
        if storage.stat(&place.path).await?.is_some() {
            return Err(taken(place));
        }
        cx.note(json!({ "keeps": place.path })).await?;
    }
    let writer = format!("{}-{}", cx.run, cx.step);
    let options = UploadOptions { writer: &writer, expected_bytes: token.expose().len() as u64, replace: true };
    storage.put(&place.path, token.expose().as_bytes().to_vec(), options).await
}

fn taken(place: &Place) -> Failure {
    Failure::permanent(format!("the storage `{}` already has an object `{}`", place.storage, place.path))
        .help("objects are never overwritten: choose another path, one with the run's id in it")
}

async fn kept(cx: &RunCx, place: &Place) -> Result<Secret, Failure> {
    let storage = cx.services.storage(&place.storage)?;
    let bytes = storage.read_small(&place.path, TOKEN_CAP).await?.ok_or_else(|| storage.missing(&place.path))?;
    let text = String::from_utf8(bytes).map_err(|_| Failure::permanent(format!("{} is no token", place.path)))?;
    Ok(Secret::new(text))
}
