//! `container.start`: starts a container and waits until it runs, or is healthy.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;

use super::ready::{self, WaitFor, check_within, needs_check, one_minute};
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

/// Starts a container and waits until it runs, or is healthy.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// The Docker engine.
    #[schemars(extend("x-target" = "docker"))]
    pub target: String,
    /// The container's name.
    pub container: String,
    /// What to wait for.
    #[serde(default)]
    pub wait: WaitFor,
    /// How long to wait for it.
    #[serde(default = "one_minute")]
    pub within: Duration,
}

impl StepType for Start {
    const NAME: &'static str = "container.start";
    const SUMMARY: &'static str = "Starts a container and waits until it runs, or is healthy";
    const AFTER_KILL: &'static str = "its state tells; one that was started is waited for";

    fn outputs() -> Vec<Output> {
        vec![output("started_at", ValueKind::Timestamp, "When its process was started")]
    }
}

#[async_trait]
impl Step for Start {
    fn effects(&self) -> Vec<Effect> {
        vec![Effect::new(Access::Change, self.resource()).role(Role::Starts)]
    }

    fn check(&self, found: &mut Findings) {
        check_name(&self.container, found);
        check_within(self.within, found);
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let name = &self.container;
        let preview = match look(cx, &self.target, name).await {
            Known::Blocked(failure) => return Preview::failed(failure),
            Known::Foretold(foretold) if foretold.fact == Fact::Running => {
                let summary = format!("{name} runs by then, because of step {}", foretold.because);
                Preview::new(Action::None, Certainty::Assumed, summary)
            }
            Known::Foretold(_) => match never_healthy(cx, &self.target, name, self.wait).await {
                Some(failure) => return Preview::failed(failure),
                None => assumed(format!("start {name}")),
            },
            Known::Nothing => assumed(format!("start {name}")),
            Known::Seen(container) => self.seen(&container),
        };
        preview.fact(self.resource(), Fact::Running)
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let engine = cx.services.docker(&self.target)?;
        let container = same_container(cx, &engine, &self.container).await?;
        needs_check(&container, self.wait)?;
        cx.note(noted(&container)).await?;
        let what = if container.running { "it ran already" } else { "started" };
        start_and_wait(cx, &engine, &container, self.wait, self.within, what).await
    }

    async fn after_kill(&self, cx: &RunCx) -> Result<AfterKill, Failure> {
        let Some(note) = last_noted(cx) else {
            return Ok(AfterKill::DidNotHappen { why: "nothing was asked of the engine yet".to_owned() });
        };
        let engine = cx.services.docker(&self.target)?;
        let container = same_container(cx, &engine, &self.container).await?;
        let (name, at) = (&self.container, &container.started_at);
        Ok(if container.running {
            AfterKill::Partly { what: format!("{name} runs since {at}; what is left is to wait for it") }
        } else if note["started_at"] == at.as_str() {
            AfterKill::DidNotHappen { why: format!("{name} was not started since") }
        } else {
            AfterKill::Partly { what: format!("{name} was started at {at} and ended since") }
        })
    }
}

impl Start {
    fn resource(&self) -> Resource {
        Resource::container(&self.target, &self.container)
    }

    fn seen(&self, container: &Container) -> Preview {
        let name = &self.container;
        let preview = if container.running && !container.restarting {
            Preview::new(Action::None, Certainty::Observed, format!("{name} runs already"))
                .output("started_at", container.started_at.clone())
        } else {
            Preview::new(Action::Change, Certainty::Observed, format!("start {name} ({})", container.status))
        };
        match needs_check(container, self.wait) {
            Err(failure) => preview.blocked(failure.message, failure.help),
            Ok(()) => preview,
        }
    }
}

/// Starts it, if it doesn't run, and waits until it is as wanted.
pub(super) async fn start_and_wait(
    cx: &RunCx,
    engine: &Engine,
    container: &Container,
    wait: WaitFor,
    within: Duration,
    what: &str,
) -> Result<Done, Failure> {
    engine.start(&container.id).await.map_err(|failure| failure.context(format!("start {}", container.name)))?;
    wait_until_ready(cx, engine, container, wait, within, what).await
}

/// Waits until a container that was just started is as wanted.
pub(super) async fn wait_until_ready(
    cx: &RunCx,
    engine: &Engine,
    container: &Container,
    wait: WaitFor,
    within: Duration,
    what: &str,
) -> Result<Done, Failure> {
    let started = engine.container(&container.id).await?;
    let ready = ready::wait(cx, engine, &started, wait, within.std()).await?;
    let summary = match wait {
        WaitFor::Started => what.to_owned(),
        WaitFor::Healthy => format!("{what}, healthy"),
    };
    Ok(Done::new(summary).output("started_at", ready.started_at))
}

/// Whether a container whose state an earlier step changes lacks the health check that is
/// waited for: the engine can tell that now.
pub(super) async fn never_healthy(cx: &PreviewCx<'_>, target: &str, name: &str, wait: WaitFor) -> Option<Failure> {
    let container = cx.services?.docker(target).ok()?.container(name).await.ok()?;
    needs_check(&container, wait).err()
}
