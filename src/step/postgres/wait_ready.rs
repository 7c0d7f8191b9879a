//! `postgres.wait_ready`: waits until a server takes connections.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::Instant;

use super::server;
use crate::failure::Failure;
use crate::record::event::{Progress, ProgressUnit};
use crate::service::postgres::Server;
use crate::service::postgres::tool::Version;
use crate::step::effect::{Effect, Resource};
use crate::step::world::Fact;
use crate::step::{Action, Certainty, Done, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind, output};
use crate::units::Duration;

/// Waits until a server takes connections.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WaitReady {
    /// The server.
    #[schemars(extend("x-target" = "postgres"))]
    target: String,
    /// How long to wait at most.
    #[serde(default = "within")]
    within: Duration,
}

fn within() -> Duration {
    Duration::seconds(60)
}

impl StepType for WaitReady {
    const NAME: &'static str = "postgres.wait_ready";
    const SUMMARY: &'static str = "Waits until a server takes connections.";

    fn outputs() -> Vec<Output> {
        vec![output("version", ValueKind::String, "The server's version, as `15.18`.")]
    }
}

#[async_trait]
impl Step for WaitReady {
    fn effects(&self) -> Vec<Effect> {
        vec![Effect::read(Resource::server(&self.target))]
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let summary = format!("wait up to {} for {}", self.within, self.target);
        let Some(services) = cx.services else { return Preview::from_effects(&self.effects(), summary) };
        let server = match services.postgres(&self.target) {
            Ok(server) => server,
            Err(failure) => return Preview::failed(failure),
        };
        match version(&server).await {
            Ok(version) => Preview::new(
                Action::Read,
                Certainty::Observed,
                format!("{} is ready (PostgreSQL {version})", self.target),
            )
            .output("version", version.to_string()),
            // It isn't up, and a step before makes or starts what it may run in.
            Err(failure) if failure.transient && starts_something(cx) => {
                Preview::new(Action::Read, Certainty::Assumed, summary)
                    .fact(Resource::server(&self.target), Fact::Present { rows: None })
            }
            Err(failure) if failure.transient => Preview::new(Action::Read, Certainty::Undetermined, summary)
                .warning(format!("not ready now: {failure}"), failure.help.clone()),
            Err(failure) => Preview::failed(failure),
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let server = server(cx, &self.target)?;
        let started = Instant::now();
        loop {
            let failure = match version(&server).await {
                Ok(version) => {
                    let done = Done::new(format!("PostgreSQL {version} is ready"));
                    return Ok(done.output("version", version.to_string()));
                }
                Err(failure) => failure,
            };
            if !failure.transient || cx.cancel.is_cancelled() {
                return Err(failure);
            }
            if started.elapsed() > self.within.std() {
                return Err(failure.context(format_args!("not ready within {}", self.within)));
            }
            cx.log(&format!("not ready: {failure}\n"));
            cx.progress(Progress {
                done: started.elapsed().as_secs(),
                total: Some(self.within.std().as_secs()),
                unit: ProgressUnit::Seconds,
                message: Some(failure.message),
            });
            tokio::select! {
                () = cx.cancel.cancelled() => {}
                () = tokio::time::sleep(std::time::Duration::from_millis(500)) => {}
            }
        }
    }
}

fn starts_something(cx: &PreviewCx<'_>) -> bool {
    cx.world.iter().any(|(resource, foretold)| {
        resource.as_str().starts_with("container:") && matches!(foretold.fact, Fact::Running | Fact::Present { .. })
    })
}

async fn version(server: &Server) -> Result<Version, Failure> {
    Ok(server.connect(None).await?.server_facts().await?.version)
}
