//! `postgres.replication`: whether enough standbys follow a primary closely enough.
//!
//! The server's own `replay_lag` says nothing of a standby that stands still: it shows the
//! last lag that was measured, or none. So a lag in time is measured here: everything that
//! is written when the step looks must have arrived when the time is over.

use std::fmt;

use async_trait::async_trait;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};
use tokio::time::Instant;

use super::{POLL, counted, server};
use crate::failure::Failure;
use crate::service::postgres::{Server, Session};
use crate::step::effect::{Effect, Resource, Role};
use crate::step::{
    Action, Certainty, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind, output,
};
use crate::units::{DURATION_PATTERN, Duration, SIZE_PATTERN, Size};

/// Compares a primary's standbys with what there must be.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Replication {
    /// The primary.
    #[schemars(extend("x-target" = "postgres"))]
    target: String,
    /// How many standbys must stream from it.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1000))]
    min_standbys: u32,
    /// How far the slowest standby may be behind: bytes of WAL that it has not replayed
    /// (`16MiB`), or the time within which it must have replayed all that there is (`10s`).
    max_lag: Option<Lag>,
}

const fn one() -> u32 {
    1
}

/// A lag, in bytes or in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lag {
    Bytes(Size),
    Time(Duration),
}

impl fmt::Display for Lag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(size) => size.fmt(f),
            Self::Time(duration) => duration.fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for Lag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(bytes) => Ok(Self::Bytes(Size(bytes))),
            Written::Text(text) => match (text.parse(), text.parse()) {
                (Ok(size), _) => Ok(Self::Bytes(size)),
                (_, Ok(duration)) => Ok(Self::Time(duration)),
                _ => Err(de::Error::custom(format!(
                    "`{text}` is neither a size nor a duration: write it as `16MiB` or `10s`"
                ))),
            },
        }
    }
}

impl JsonSchema for Lag {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Lag".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["integer", "string"],
            "minimum": 0,
            "pattern": format!("{SIZE_PATTERN}|{DURATION_PATTERN}"),
        })
    }
}

impl StepType for Replication {
    const NAME: &'static str = "postgres.replication";
    const SUMMARY: &'static str = "Checks that enough standbys follow a primary, and closely enough.";

    fn outputs() -> Vec<Output> {
        vec![
            output("lag", ValueKind::Integer, "How many bytes of WAL the slowest standby had yet to replay."),
            output("standbys", ValueKind::Integer, "How many standbys stream."),
        ]
    }
}

#[async_trait]
impl Step for Replication {
    fn effects(&self) -> Vec<Effect> {
        vec![Effect::read(Resource::server(&self.target)).role(Role::Verifies)]
    }

    fn check(&self, found: &mut Findings) {
        if self.max_lag == Some(Lag::Time(Duration::default())) {
            found.add("/max_lag", "no standby follows in no time", Some("allow some, as `10s`".to_owned()));
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let wanted = match self.max_lag {
            Some(lag) => format!(" within {lag}"),
            None => String::new(),
        };
        let summary = format!("check that {}{wanted}", self.wanted());
        let (Some(services), false) = (cx.services, cx.is_unknown("/target")) else {
            return Preview::from_effects(&self.effects(), summary);
        };
        if cx.world.touching(&Resource::server(&self.target)).is_some() {
            return Preview::from_effects(&self.effects(), summary);
        }
        let look = async {
            let session = services.postgres(&self.target)?.connect(None).await?;
            self.ready(&session).await?;
            let standbys = standbys(&session, None).await?;
            Ok::<_, Failure>(match self.enough(&standbys) {
                Err(failure) => Preview::failed(failure),
                Ok(()) => Preview::new(
                    Action::Read,
                    Certainty::Observed,
                    format!("{summary}: now {} behind", Size(slowest(&standbys))),
                ),
            })
        };
        look.await.unwrap_or_else(Preview::failed)
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let server: Server = server(cx, &self.target)?;
        let session = server.connect(None).await?;
        self.ready(&session).await?;
        let all = standbys(&session, None).await?;
        self.enough(&all)?;
        let lag = slowest(&all);
        match self.max_lag {
            None => {}
            Some(Lag::Bytes(most)) if lag <= most.0 => {}
            Some(Lag::Bytes(most)) => return Err(self.behind(&all, &most.to_string())),
            Some(Lag::Time(most)) => self.catch_up(cx, &session, most).await?,
        }
        let count = all.iter().filter(|standby| standby.streams).count();
        Ok(Done::new(format!("{}, the slowest {} behind", counted(count as u64, "standby"), Size(lag)))
            .output("lag", lag)
            .output("standbys", count))
    }
}

impl Replication {
    fn wanted(&self) -> String {
        match self.min_standbys {
            1 => format!("a standby follows {}", self.target),
            more => format!("{more} standbys follow {}", self.target),
        }
    }

    /// Whether the server can tell.
    async fn ready(&self, session: &Session) -> Result<(), Failure> {
        let attempted = format!("check the replication of {}", self.target);
        if session.server_facts().await?.in_recovery {
            return Err(Failure::permanent(format!("{attempted}: it is a standby itself"))
                .help("name the primary: it knows all of its standbys"));
        }
        let sql = "SELECT pg_has_role('pg_read_all_stats', 'USAGE')";
        if !session.row(&attempted, sql, &[]).await?.get::<_, bool>(0) {
            return Err(Failure::permanent(format!("{attempted}: the role may not see how far standbys are"))
                .help("grant it pg_monitor"));
        }
        Ok(())
    }

    fn enough(&self, standbys: &[Standby]) -> Result<(), Failure> {
        let streaming = standbys.iter().filter(|standby| standby.streams).count();
        if streaming >= self.min_standbys as usize {
            return Ok(());
        }
        let there = match standbys {
            [] => "there is none".to_owned(),
            _ => format!("of {} {streaming} stream", names(standbys)),
        };
        Err(Failure::transient(format!("check that {}: {there}", self.wanted()))
            .help("see that the standby runs and what its log says of its connection to the primary"))
    }

    fn behind(&self, standbys: &[Standby], allowed: &str) -> Failure {
        let slow = standbys.iter().max_by_key(|standby| standby.lag);
        let who = slow.map_or_else(String::new, |slow| format!("{} is {} behind", slow.name, Size(slow.lag)));
        Failure::transient(format!("check the replication of {}: {who}, allowed is {allowed}", self.target))
            .help("see whether the standby is held up: its disk, its network, a query that replay waits for")
    }

    /// Waits until every standby has replayed what is written now.
    async fn catch_up(&self, cx: &RunCx, session: &Session, within: Duration) -> Result<(), Failure> {
        let sql = "SELECT pg_current_wal_lsn()::text";
        let now: String = session.row("ask how far the primary has written", sql, &[]).await?.get(0);
        let deadline = Instant::now() + within.std();
        loop {
            let left = standbys(session, Some(&now)).await?;
            // One that goes away meanwhile has not caught up.
            self.enough(&left)?;
            if slowest(&left) == 0 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(self.behind(&left, &within.to_string()));
            }
            let pause = tokio::time::timeout(POLL.min(within.std()), cx.cancel.cancelled());
            if pause.await.is_ok() {
                return Err(Failure::transient(format!("check the replication of {}: cancelled", self.target)));
            }
        }
    }
}

/// A standby, as its primary sees it.
struct Standby {
    name: String,
    /// Whether it has caught up once, and receives what is written.
    streams: bool,
    /// Bytes that it has not replayed.
    lag: u64,
}

/// The standbys that are connected, and how far they are behind `until`, or behind now. A
/// base backup that is taken has a connection of the same kind; it follows nothing.
async fn standbys(session: &Session, until: Option<&str>) -> Result<Vec<Standby>, Failure> {
    let sql = "SELECT coalesce(nullif(application_name, ''), 'unnamed') || ' at ' || coalesce(host(client_addr), 'local'), \
                      state = 'streaming', \
                      greatest(pg_wal_lsn_diff(coalesce($1::text::pg_lsn, pg_current_wal_lsn()), \
                                               coalesce(replay_lsn, '0/0')), 0)::int8 \
               FROM pg_catalog.pg_stat_replication \
               WHERE state IN ('startup', 'catchup', 'streaming') \
                 AND pid NOT IN (SELECT active_pid FROM pg_catalog.pg_replication_slots \
                                 WHERE slot_type = 'logical' AND active_pid IS NOT NULL) \
               ORDER BY 1";
    let rows = session.rows("list the standbys", sql, &[&until]).await?;
    Ok(rows
        .iter()
        .map(|row| Standby { name: row.get(0), streams: row.get(1), lag: row.get::<_, i64>(2).unsigned_abs() })
        .collect())
}

fn slowest(standbys: &[Standby]) -> u64 {
    standbys.iter().map(|standby| standby.lag).max().unwrap_or(0)
}

fn names(standbys: &[Standby]) -> String {
    standbys.iter().map(|standby| standby.name.as_str()).collect::<Vec<_>>().join(", ")
}
