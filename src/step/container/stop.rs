//! `container.stop`: stops a container and waits until it is stopped.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Known, assumed, check_name, last_noted, look, noted, same_container};
use crate::failure::Failure;
use crate::service::docker::{Container, Engine};
use crate::step::effect::{Access, Effect, Resource, Role};
use crate::step::world::Fact;
use crate::step::{
    Action, AfterKill, Certainty, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind,
    output,
};
use crate::units::Duration;

/// 128 and SIGKILL.
const KILLED: i64 = 137;

/// Stops a container and waits until it is stopped.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// The Docker engine.
    #[schemars(extend("x-target" = "docker"))]
    pub target: String,
    /// The container's name.
    pub container: String,
    /// How long it has to end by itself before it is killed.
    #[serde(default = "ten_seconds")]
    pub grace: Duration,
}

pub(super) const fn ten_seconds() -> Duration {
    Duration::seconds(10)
}

impl StepType for Stop {
    const NAME: &'static str = "container.stop";
    const SUMMARY: &'static str = "Stops a container";
    const AFTER_KILL: &'static str =
        "its state tells; stopping one that still runs is asked again, which does no harm";

    fn outputs() -> Vec<Output> {
        vec![
            output("was_running", ValueKind::Boolean, "Whether it ran when the step began"),
            output("exit_code", ValueKind::Integer, "Its exit code; 137 means that it was killed"),
        ]
    }
}

#[async_trait]
impl Step for Stop {
    fn effects(&self) -> Vec<Effect> {
        vec![Effect::new(Access::Change, self.resource()).role(Role::Stops)]
    }

    fn check(&self, found: &mut Findings) {
        check_name(&self.container, found);
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let name = &self.container;
        let (preview, fact) = match look(cx, &self.target, name).await {
            Known::Blocked(failure) => return Preview::failed(failure),
            Known::Foretold(foretold) if foretold.fact == Fact::Stopped => {
                let summary = format!("{name} is stopped by then, because of step {}", foretold.because);
                let preview = Preview::new(Action::None, Certainty::Assumed, summary).output("was_running", false);
                (preview, Fact::Stopped)
            }
            Known::Foretold(_) | Known::Nothing => (assumed(format!("stop {name}")), Fact::Stopped),
            Known::Seen(container) => {
                let is_removed = container.running && container.removed_when_stopped;
                (self.seen(&container), if is_removed { Fact::Absent } else { Fact::Stopped })
            }
        };
        preview.fact(self.resource(), fact)
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let engine = cx.services.docker(&self.target)?;
        let container = same_container(cx, &engine, &self.container).await?;
        let was_running = last_noted(cx).map_or(container.running, |note| note["running"] == true);
        cx.note(noted(&container)).await?;
        stop(cx, &engine, &container, self.grace).await?;
        match engine.find(&container.id).await? {
            Some(now) if now.running => {
                Err(Failure::transient(format!("{} runs again right after it was stopped", self.container))
                    .help("something else starts it: look for a supervisor or another operator"))
            }
            Some(stopped) => Ok(self.stopped(was_running, &stopped)),
            // One that was started with `--rm`.
            None => Ok(Done::new("stopped, and removed as `--rm` told it").output("was_running", was_running)),
        }
    }

    async fn after_kill(&self, cx: &RunCx) -> Result<AfterKill, Failure> {
        let Some(note) = last_noted(cx) else {
            return Ok(AfterKill::DidNotHappen { why: "nothing was asked of the engine yet".to_owned() });
        };
        let engine = cx.services.docker(&self.target)?;
        let container = same_container(cx, &engine, &self.container).await?;
        Ok(if container.running {
            // The engine goes on with a stop whose client died; asking again joins it.
            AfterKill::RunAgain { why: format!("{} runs; stopping it twice does no harm", self.container) }
        } else {
            AfterKill::Happened(self.stopped(note["running"] == true, &container))
        })
    }
}

impl Stop {
    fn resource(&self) -> Resource {
        Resource::container(&self.target, &self.container)
    }

    fn seen(&self, container: &Container) -> Preview {
        let name = &self.container;
        if !container.running {
            let summary = format!("{name} is stopped already ({})", container.status);
            return Preview::new(Action::None, Certainty::Observed, summary)
                .output("was_running", false)
                .output("exit_code", container.exit_code);
        }
        let summary = format!("stop {name} ({}), which has {} to end", container.status, self.grace);
        let mut preview = Preview::new(Action::Change, Certainty::Observed, summary).output("was_running", true);
        if container.removed_when_stopped {
            preview = preview.warning(
                format!("{name} was started with --rm: stopping removes it, and nothing can start it again"),
                "recreate it without --rm".to_owned(),
            );
        }
        if container.restart_policy == Some("always") {
            preview = preview.warning(
                format!("{name} has the restart policy `always`: it comes back when the Docker daemon restarts"),
                format!("`docker update --restart unless-stopped {name}` keeps it stopped"),
            );
        }
        preview
    }

    fn stopped(&self, was_running: bool, container: &Container) -> Done {
        let code = container.exit_code;
        let summary = match (was_running, code) {
            (false, _) => "it was stopped already".to_owned(),
            (true, KILLED) => format!("killed: it did not end within {} (exit code {KILLED})", self.grace),
            (true, code) => format!("stopped (exit code {code})"),
        };
        Done::new(summary).output("was_running", was_running).output("exit_code", code)
    }
}

/// Asks the engine to stop it, and waits; one that doesn't run is left alone.
pub(super) async fn stop(
    cx: &RunCx,
    engine: &Engine,
    container: &Container,
    grace: Duration,
) -> Result<(), Failure> {
    if !container.running && !container.restarting {
        return Ok(());
    }
    let name = &container.name;
    tokio::select! {
        stopped = engine.stop(&container.id, grace.std()) => {
            stopped.map_err(|failure| failure.context(format!("stop {name}")))
        }
        () = cx.cancel.cancelled() => {
            Err(Failure::transient(format!("stopping {name} was cancelled; the engine goes on with it")))
        }
    }
}
