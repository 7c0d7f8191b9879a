//! `dns.check`: a name leads where it should.

use std::collections::BTreeSet;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout};

use super::resource;
use crate::failure::Failure;
use crate::record::event::{Progress, ProgressUnit};
use crate::service::Services;
use crate::service::dns::{Answer, Kind, Server, canonical_name};
use crate::step::effect::{Effect, Role};
use crate::step::{
    Certainty, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind, output,
};
use crate::units::Duration;

/// Checks that a name leads where it should.
///
/// This machine's resolvers are asked, which see what clients see, and keep answers as long as
/// these allow it. With `target` the zone's primary is asked instead, with `server` another one.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// The name, whole: `auth.example.com`.
    pub name: String,
    /// The type of record.
    #[serde(default, rename = "type")]
    pub kind: Kind,
    /// What it must be: a value, or a list of all its values in any order; `[]` when there must be
    /// none. Without it, any value will do.
    #[serde(default)]
    pub expect: Option<Expected>,
    /// A zone, whose primary server is asked: what it says is the newest.
    #[schemars(extend("x-target" = "dns"))]
    #[serde(default)]
    pub target: Option<String>,
    /// A server that is asked, as `9.9.9.9` or `ns1.example.com:53`.
    #[serde(default)]
    pub server: Option<String>,
    /// Asks again and again until it is so, no longer than this. Without it, what is answered now counts.
    #[serde(default)]
    pub within: Option<Duration>,
}

/// One value, or all of them.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Expected {
    /// The only value.
    One(String),
    /// All values.
    All(Vec<String>),
}

impl Expected {
    fn values(&self) -> &[String] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::All(values) => values,
        }
    }
}

impl StepType for Check {
    const NAME: &'static str = "dns.check";
    const SUMMARY: &'static str = "Checks that a name leads where it should";
    const PROVES_HEALTH: bool = true;

    fn outputs() -> Vec<Output> {
        vec![
            output("addresses", ValueKind::List, "The values that were answered"),
            output("ttl", ValueKind::Integer, "How long they may be kept, in seconds"),
        ]
    }
}

#[async_trait]
impl Step for Check {
    fn effects(&self) -> Vec<Effect> {
        vec![Effect::read(resource(&self.name, self.kind)).role(Role::Verifies)]
    }

    fn check(&self, found: &mut Findings) {
        // What only the run knows stands there as `‹…›`.
        let known = |text: &str| !text.contains('‹');
        if let Err(message) = canonical_name(&self.name)
            && known(&self.name)
        {
            found.add("/name", message, None);
        }
        for (index, value) in self.expect.iter().flat_map(Expected::values).enumerate() {
            if let Err(message) = self.kind.canonical(value)
                && known(value)
            {
                let pointer = match self.expect {
                    Some(Expected::All(_)) => format!("/expect/{index}"),
                    _ => "/expect".to_owned(),
                };
                found.add(pointer, message, None);
            }
        }
        if let (Some(_), Some(_)) = (&self.target, &self.server) {
            found.add("/server", "`target` and `server` can't both be given", "keep one of them".to_owned());
        }
        if let Some(Err(failure)) = self.server.as_deref().filter(|server| known(server)).map(Server::at) {
            found.add("/server", failure.message, failure.help);
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let wanted = match self.wanted() {
            Ok(Some(wanted)) => format!(" is {}", shown(&wanted)),
            _ => " is there".to_owned(),
        };
        let summary = format!("check that {} {}{wanted}", self.kind.as_str(), self.name);
        let preview = Preview::from_effects(&self.effects(), summary);
        let unknown = ["/name", "/type", "/expect", "/server"].iter().any(|at| cx.is_unknown(at));
        let Some(services) = cx.services.filter(|_| !unknown) else { return preview };
        let servers = match self.servers(services) {
            Ok(servers) => servers,
            Err(failure) => return preview.blocked(failure.message, failure.help),
        };
        if cx.world.touching(&resource(&self.name, self.kind)).is_some() {
            return preview;
        }
        let preview = Preview { certainty: Certainty::Observed, ..preview };
        match self.look(&servers).await {
            Ok(answer) => {
                let records = answer.records();
                let values: Vec<String> = records.values.into_iter().collect();
                preview.output("addresses", values).output("ttl", records.ttl)
            }
            // It may still become so in the time that it has.
            Err(bad) if self.within.is_some() => preview.warning(format!("not so now: {bad}"), bad.help),
            Err(bad) => preview.blocked(bad.message, bad.help),
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let servers = self.servers(&cx.services)?;
        tokio::select! {
            done = self.watch(cx, &servers) => done,
            () = cx.cancel.cancelled() => Err(Failure::transient(format!("checking {} was cancelled", self.name))),
        }
    }
}

impl Check {
    async fn watch(&self, cx: &RunCx, servers: &[Server]) -> Result<Done, Failure> {
        let deadline = self.within.map(|within| Instant::now() + within.std());
        let mut bad: Option<Failure> = None;
        for pause in super::pauses() {
            let looked = match deadline {
                None => self.look(servers).await,
                Some(deadline) => match timeout(deadline - Instant::now(), self.look(servers)).await {
                    Ok(looked) => looked,
                    Err(_) => Err(bad.take().unwrap_or_else(|| Failure::transient("no answer"))),
                },
            };
            let failure = match looked {
                Ok(answer) => {
                    let records = answer.records();
                    let summary = format!("{} for {}", records.shown(), Duration::seconds(records.ttl.into()));
                    let values: Vec<String> = records.values.into_iter().collect();
                    return Ok(Done::new(summary).output("addresses", values).output("ttl", records.ttl));
                }
                Err(failure) => failure,
            };
            cx.progress(Progress {
                done: 0,
                total: Some(1),
                unit: ProgressUnit::Items,
                message: Some(failure.message.clone()),
            });
            match (deadline, self.within) {
                (Some(deadline), Some(within)) if Instant::now() + pause >= deadline => {
                    return Err(failure.context(format!("{} was not so within {within}", self.name)));
                }
                (Some(_), _) => sleep(pause).await,
                (None, _) => return Err(failure),
            }
            bad = Some(failure);
        }
        // The pauses have no end.
        Err(bad.unwrap_or_else(|| Failure::transient("no answer")))
    }

    /// Asks once; the next server only if one does not answer.
    async fn look(&self, servers: &[Server]) -> Result<Answer, Failure> {
        let mut failed = Failure::transient("there is no server to ask");
        for server in servers {
            match server.ask(&self.name, self.kind).await {
                Ok(answer) => return self.judge(server, answer),
                Err(failure) => failed = failure,
            }
        }
        Err(failed)
    }

    fn judge(&self, server: &Server, answer: Answer) -> Result<Answer, Failure> {
        let found = answer.records();
        let alias = answer.alias.as_ref().filter(|_| self.kind != Kind::Cname && found.values.is_empty());
        let said = match alias {
            Some(alias) => format!("an alias of {alias}, for which it has no {}", self.kind.as_str()),
            None => found.shown(),
        };
        let said = format!("{} answers {} {}: {said}", server.shown(), self.kind.as_str(), self.name);
        match self.wanted().map_err(Failure::permanent)? {
            None if found.values.is_empty() => Err(Failure::transient(said)),
            Some(wanted) if wanted != found.values => {
                Err(Failure::transient(format!("{said}; it should be {}", shown(&wanted))))
            }
            _ => Ok(answer),
        }
    }

    fn wanted(&self) -> Result<Option<BTreeSet<String>>, String> {
        let Some(expected) = &self.expect else { return Ok(None) };
        expected.values().iter().map(|value| self.kind.canonical(value)).collect::<Result<_, _>>().map(Some)
    }

    fn servers(&self, services: &Services) -> Result<Vec<Server>, Failure> {
        match (&self.target, &self.server) {
            (Some(target), _) => Ok(vec![services.dns(target)?.primary().clone()]),
            (None, Some(server)) => Ok(vec![Server::at(server)?]),
            (None, None) => Ok(Server::of_this_machine()),
        }
    }
}

fn shown(values: &BTreeSet<String>) -> String {
    if values.is_empty() {
        return "nothing".to_owned();
    }
    values.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}
