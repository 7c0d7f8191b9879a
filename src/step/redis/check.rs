//! `redis.check`: a Redis server answers and is as it should be.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::failure::Failure;
use crate::matcher::Matcher;
use crate::step::effect::{Effect, Resource, Role};
use crate::step::{
    Action, Certainty, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind, output,
};
use crate::units::Size;

/// Checks that a Redis server answers, and is as it should be.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// The server.
    #[schemars(extend("x-target" = "redis"))]
    target: String,
    /// Whether it must answer to PING, which one that still loads its data does not.
    #[serde(default = "yes")]
    ping: bool,
    /// How many keys the target's database must have: a number or a matcher.
    #[serde(default)]
    keys: Option<Matcher>,
    /// Whether it must be a master or a replica.
    #[serde(default)]
    role: Option<ServerRole>,
    /// What its data must stay below in memory.
    #[serde(default)]
    memory_below: Option<Size>,
}

const fn yes() -> bool {
    true
}

/// What a server is to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum ServerRole {
    /// Takes writes.
    Master,
    /// Follows a master.
    Replica,
}

impl ServerRole {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Replica => "replica",
        }
    }
}

impl StepType for Check {
    const NAME: &'static str = "redis.check";
    const SUMMARY: &'static str = "Checks that a Redis server answers, and is as it should be";
    const PROVES_HEALTH: bool = true;

    fn outputs() -> Vec<Output> {
        vec![output("keys", ValueKind::Integer, "How many keys the target's database has")]
    }
}

#[async_trait]
impl Step for Check {
    fn effects(&self) -> Vec<Effect> {
        vec![Effect::read(self.resource()).role(Role::Verifies)]
    }

    fn check(&self, found: &mut Findings) {
        if !self.ping && self.keys.is_none() && self.role.is_none() && self.memory_below.is_none() {
            found.add(
                "",
                "there is nothing to check",
                "leave out `ping: false`, or write `keys: { min: 1 }`".to_owned(),
            );
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let summary = format!("check the server {}", self.target);
        let assumed = Preview::from_effects(&self.effects(), summary);
        let Some(services) = cx.services else { return assumed };
        let changed = cx.world.touching(&self.resource());
        let looked = async {
            let session = services.redis(&self.target)?.connect().await?;
            session.ping().await?;
            Ok::<_, Failure>(session.place().to_owned())
        };
        match (looked.await, changed) {
            (Ok(place), _) => {
                Preview::new(Action::Read, Certainty::Observed, format!("check {place}, which answers"))
            }
            // It may be this very server that the plan brings back.
            (Err(failure), _) if failure.transient => {
                assumed.warning(format!("now: {}", failure.message), failure.help)
            }
            (Err(_), Some(_)) => assumed,
            (Err(failure), None) => Preview::failed(failure),
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        tokio::select! {
            done = self.look(cx) => done,
            () = cx.cancel.cancelled() => Err(Failure::transient(format!("checking {} was cancelled", self.target))),
        }
    }
}

impl Check {
    fn resource(&self) -> Resource {
        Resource::other("redis", &self.target)
    }

    async fn look(&self, cx: &RunCx) -> Result<Done, Failure> {
        let session = cx.services.redis(&self.target)?.connect().await?;
        if self.ping {
            session.ping().await?;
        }
        let mut wrong = Vec::new();
        let keys = session.keys().await?;
        if let Some(wanted) = &self.keys
            && !wanted.accepts(&keys.into())
        {
            wrong.push(format!("it has {keys} keys, which is not {}", wanted.describe()));
        }
        let mut said = vec![format!("{keys} keys")];
        if let Some(wanted) = self.role {
            let info = session.info("replication").await?;
            let is = info.text("role")?;
            // The server's own word for a replica is older.
            let is = if is == "slave" { "replica" } else { is };
            if is == wanted.as_str() {
                said.push(is.to_owned());
            } else {
                wrong.push(format!("it is a {is}, not a {}", wanted.as_str()));
            }
        }
        if let Some(limit) = self.memory_below {
            let used = session.info("memory").await?.number("used_memory")?;
            if used < limit.0 {
                said.push(format!("{} in memory", Size(used)));
            } else {
                wrong.push(format!("it uses {} of memory, not less than {limit}", Size(used)));
            }
        }
        if wrong.is_empty() {
            return Ok(Done::new(said.join(", ")).output("keys", keys));
        }
        Err(Failure::permanent(format!("{}: {}", session.place(), wrong.join("; "))))
    }
}
