//! `dns.update`: points a name somewhere else, and waits until every server of its zone says so.
//!
//! What was read is what is replaced: the primary refuses when somebody changed it in between.
//! Before it is asked, the journal has what was there and what is to be, so that after a kill the
//! primary's own answer tells which of the two it is.

use std::collections::BTreeSet;

use async_trait::async_trait;
use futures::future::join_all;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use super::resource;
use crate::failure::Failure;
use crate::record::event::{Progress, ProgressUnit};
use crate::service::dns::{Answer, Kind, Records, Server, Zone, canonical_name};
use crate::step::effect::{Access, Effect};
use crate::step::world::Fact;
use crate::step::{
    Action, AfterKill, Certainty, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind,
    output,
};
use crate::units::Duration;

/// How long a new record may be kept when nobody says it.
const USUAL_TTL: u32 = 300;

/// From here on it is worth saying that caches keep the old record.
const LONG_TTL: u32 = 300;

/// The most that a TTL can be (RFC 2181), in seconds.
const LONGEST_TTL: u64 = 0x7fff_ffff;

/// Points a name somewhere else, by its zone's primary server, and waits until every server of the
/// zone answers so.
///
/// The servers are those of the zone's NS records, or the target's `servers`; each is asked itself,
/// at its IPv4 addresses, at those of IPv6 if it has no others. Nothing is done when somebody
/// changes the record in the same moment. Resolvers keep the old one as long as its TTL says.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Update {
    /// The zone.
    #[schemars(extend("x-target" = "dns"))]
    pub target: String,
    /// The name, whole: `auth.example.com`.
    pub name: String,
    /// The type of record.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// All its values from now on; `[]` removes it.
    pub values: Vec<String>,
    /// How long resolvers may keep it. By default that stays as it is; `5m` for a record that is new.
    #[serde(default)]
    pub ttl: Option<Duration>,
    /// How long the servers have to answer it.
    #[serde(default = "two_minutes")]
    pub within: Duration,
}

const fn two_minutes() -> Duration {
    Duration::seconds(120)
}

/// What is noted before the primary is asked.
#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    previous: Records,
    wanted: Records,
}

impl StepType for Update {
    const NAME: &'static str = "dns.update";
    const SUMMARY: &'static str = "Points a name somewhere else, and waits until every server of its zone says so";
    const AFTER_KILL: &'static str = "the primary tells whether it has the new record, or still the one before";

    fn outputs() -> Vec<Output> {
        vec![
            output("previous", ValueKind::List, "The values before; empty when there was no such record"),
            output("previous_ttl", ValueKind::Duration, "How long resolvers were allowed to keep those"),
        ]
    }
}

#[async_trait]
impl Step for Update {
    fn effects(&self) -> Vec<Effect> {
        let access = if self.values.is_empty() { Access::Destroy } else { Access::Change };
        vec![Effect::new(access, resource(&self.name, self.kind))]
    }

    fn check(&self, found: &mut Findings) {
        // What only the run knows stands there as `‹…›`.
        let known = |text: &str| !text.contains('‹');
        if let Err(message) = canonical_name(&self.name)
            && known(&self.name)
        {
            found.add("/name", message, None);
        }
        for (index, value) in self.values.iter().enumerate().filter(|(_, value)| known(value)) {
            if let Err(message) = self.kind.canonical(value) {
                found.add(format!("/values/{index}"), message, None);
            }
        }
        if self.kind == Kind::Cname && self.values.len() > 1 {
            found.add("/values", "a name is an alias of one other name only", None);
        }
        if let Some(ttl) = self.ttl
            && (ttl.std().subsec_millis() != 0 || ttl.std().as_secs() > LONGEST_TTL)
        {
            found.add("/ttl", format!("{ttl} is no TTL"), "write whole seconds, 68 years at most".to_owned());
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let (kind, name) = (self.kind.as_str(), &self.name);
        let resource = resource(name, self.kind);
        let fact = if self.values.is_empty() { Fact::Absent } else { Fact::Changed };
        let blind = format!(
            "{kind} {name}: → {}",
            if self.values.is_empty() { "nothing".to_owned() } else { self.values.join(", ") }
        );
        let preview = Preview::from_effects(&self.effects(), blind).fact(resource.clone(), fact);
        let unknown = ["/name", "/type", "/values"].iter().any(|at| cx.is_unknown(at));
        let Some(services) = cx.services.filter(|_| !unknown) else { return preview };
        let zone = match services.dns(&self.target) {
            Ok(zone) => zone,
            Err(failure) => return preview.blocked(failure.message, failure.help),
        };
        // An earlier step changes it: what is there now is not what this one finds.
        if cx.world.touching(&resource).is_some() {
            return preview;
        }
        let (before, wanted) = match self.read(&zone).await {
            Ok((before, wanted)) => (before.records(), wanted),
            Err(failure) => return preview.blocked(failure.message, failure.help),
        };
        let certainty = Certainty::Observed;
        let previous: Vec<&String> = before.values.iter().collect();
        let outputs = |preview: Preview| {
            let ttl = Duration::seconds(before.ttl.into()).to_string();
            preview.output("previous", json!(previous)).output("previous_ttl", ttl)
        };
        if is(&before, &wanted) {
            let summary = format!("{kind} {name}: {} already", before.shown());
            return outputs(Preview { action: Action::None, certainty, summary, facts: vec![], ..preview });
        }
        let ttl = match (before.ttl, wanted.ttl) {
            (old, new) if old == new || wanted.values.is_empty() => String::new(),
            (0, new) => format!(", TTL {}", Duration::seconds(new.into())),
            (old, new) => {
                format!(", TTL {} → {}", Duration::seconds(old.into()), Duration::seconds(new.into()))
            }
        };
        let action = match (before.values.is_empty(), wanted.values.is_empty()) {
            (true, _) => Action::Create,
            (false, true) => Action::Destroy,
            (false, false) => Action::Change,
        };
        let summary = format!("{kind} {name}: {} → {}{ttl}", before.shown(), wanted.shown());
        let preview = outputs(Preview { action, certainty, summary, ..preview });
        if before.ttl > LONG_TTL && before.values != wanted.values {
            let ttl = Duration::seconds(before.ttl.into());
            return preview.warning(
                format!("resolvers may keep the old record for {ttl} after it is changed"),
                format!("lower its TTL {ttl} before, by `dns.update` with the same values and `ttl: 1m`"),
            );
        }
        preview
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let zone = cx.services.dns(&self.target)?;
        tokio::select! {
            done = self.update(cx, &zone) => done,
            () = cx.cancel.cancelled() => Err(Failure::transient(format!("updating {} was cancelled", self.name))),
        }
    }

    async fn after_kill(&self, cx: &RunCx) -> Result<AfterKill, Failure> {
        let Some(noted) = noted(cx) else {
            return Ok(AfterKill::DidNotHappen { why: "the primary was not asked yet".to_owned() });
        };
        let zone = cx.services.dns(&self.target)?;
        let now = zone.read(&self.name, self.kind).await?.records();
        if is(&now, &noted.wanted) {
            let servers = zone.all_servers().await?;
            let behind = self.behind(&servers, &noted.wanted).await;
            if behind.is_empty() {
                return Ok(AfterKill::Happened(self.done(&noted.previous, &noted.wanted, servers.len())));
            }
            return Ok(AfterKill::Partly { what: format!("the primary has it; {}", worded(&behind)) });
        }
        if is(&now, &noted.previous) {
            return Ok(AfterKill::DidNotHappen { why: format!("it is still {}", now.shown()) });
        }
        Ok(AfterKill::CannotTell {
            why: format!(
                "somebody else changed it: it was {}, was to be {}, and is {}",
                noted.previous.shown(),
                noted.wanted.shown(),
                now.shown()
            ),
        })
    }
}

/// A server that does not answer the new record, and what it says instead.
type Behind<'a> = (&'a Server, String);

impl Update {
    async fn update(&self, cx: &RunCx, zone: &Zone) -> Result<Done, Failure> {
        let (before, wanted) = self.read(zone).await?;
        let servers = zone.all_servers().await?;
        let mut previous = before.records();
        if is(&previous, &wanted) {
            // As an earlier attempt made it: what was there before that is in its note.
            if let Some(noted) = noted(cx).filter(|noted| is(&noted.wanted, &wanted)) {
                previous = noted.previous;
            }
        } else {
            cx.note(json!(Noted { previous: previous.clone(), wanted: wanted.clone() })).await?;
            zone.replace(&self.name, &before, &wanted).await?;
            cx.log(&format!("{} took it over; it was {}\n", zone.primary().shown(), previous.shown()));
        }
        self.read_back(cx, &servers, &wanted).await?;
        Ok(self.done(&previous, &wanted, servers.len()))
    }

    fn done(&self, previous: &Records, wanted: &Records, servers: usize) -> Done {
        let values: Vec<&String> = previous.values.iter().collect();
        let servers = if servers == 1 { "1 server".to_owned() } else { format!("{servers} servers") };
        let summary = format!("{} {}: {} on {servers}", self.kind.as_str(), self.name, wanted.shown());
        Done::new(summary)
            .output("previous", json!(values))
            .output("previous_ttl", Duration::seconds(previous.ttl.into()).to_string())
    }

    /// What the primary has, and what it shall have.
    async fn read(&self, zone: &Zone) -> Result<(Answer, Records), Failure> {
        let before = zone.read(&self.name, self.kind).await?;
        if let Some(alias) = before.alias.as_ref().filter(|_| self.kind != Kind::Cname) {
            return Err(Failure::permanent(format!(
                "{} is an alias of {alias}, and an alias stands alone",
                self.name
            ))
            .help(
                "change it where it leads, or remove it first, by `dns.update` with `type: CNAME` and `values: []`",
            ));
        }
        let values = self.values.iter().map(|value| self.kind.canonical(value)).collect::<Result<BTreeSet<_>, _>>();
        let values = values.map_err(Failure::permanent)?;
        let now = before.records();
        let ttl = match self.ttl {
            _ if values.is_empty() => 0,
            Some(ttl) => ttl.std().as_secs() as u32,
            None if now.values.is_empty() => USUAL_TTL,
            None => now.ttl,
        };
        Ok((before, Records { values, ttl }))
    }

    /// Asks all servers until each answers the new record.
    async fn read_back(&self, cx: &RunCx, servers: &[Server], wanted: &Records) -> Result<(), Failure> {
        let deadline = Instant::now() + self.within.std();
        let mut behind: Vec<Behind<'_>> = servers.iter().map(|server| (server, "no answer".to_owned())).collect();
        for pause in super::pauses() {
            let left: Vec<Server> = behind.iter().map(|(server, _)| (*server).clone()).collect();
            let asked = timeout(deadline - Instant::now(), self.behind(&left, wanted)).await;
            if let Ok(still) = asked {
                let still: Vec<(String, String)> =
                    still.into_iter().map(|(server, said)| (server.shown().to_owned(), said)).collect();
                behind.retain_mut(|(server, said)| {
                    let found = still.iter().find(|(shown, _)| shown == server.shown());
                    found.inspect(|(_, now)| said.clone_from(now)).is_some()
                });
            }
            if behind.is_empty() {
                return Ok(());
            }
            cx.progress(Progress {
                done: (servers.len() - behind.len()) as u64,
                total: Some(servers.len() as u64),
                unit: ProgressUnit::Items,
                message: Some(worded(&behind)),
            });
            if Instant::now() + pause >= deadline {
                break;
            }
            sleep(pause).await;
        }
        let message = format!(
            "{} {}: {} is not answered by every server within {}: {}",
            self.kind.as_str(),
            self.name,
            wanted.shown(),
            self.within,
            worded(&behind)
        );
        Err(Failure::transient(message)
            .help("the primary has it: see why these don't follow it; another attempt goes on waiting"))
    }

    /// The servers that don't answer the new record.
    async fn behind<'a>(&self, servers: &'a [Server], wanted: &Records) -> Vec<Behind<'a>> {
        let asked = servers.iter().map(async |server| match server.ask(&self.name, self.kind).await {
            Ok(answer) if !answer.authoritative => Some((server, "does not answer for the zone itself".to_owned())),
            Ok(answer) if is(&answer.records(), wanted) => None,
            Ok(answer) => {
                let records = answer.records();
                let ttl = Duration::seconds(records.ttl.into());
                let said = if records.values == wanted.values {
                    format!("answers a TTL of {ttl}")
                } else {
                    format!("answers {}", records.shown())
                };
                Some((server, said))
            }
            Err(failure) => Some((server, failure.message)),
        });
        join_all(asked).await.into_iter().flatten().collect()
    }
}

/// Whether two are the same to whoever asks.
fn is(records: &Records, wanted: &Records) -> bool {
    records.values == wanted.values && (wanted.values.is_empty() || records.ttl == wanted.ttl)
}

fn worded(behind: &[Behind<'_>]) -> String {
    behind.iter().map(|(server, said)| format!("{} {said}", server.shown())).collect::<Vec<_>>().join("; ")
}

/// What the last attempt that asked the primary noted.
fn noted(cx: &RunCx) -> Option<Noted> {
    cx.notes.last().and_then(|(_, note)| serde_json::from_value(note.clone()).ok())
}
