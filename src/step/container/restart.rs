//! `container.restart`: stops a container and starts it again.
//!
//! Two phases, since the engine's own restart can't be told apart from none: the moment
//! of the last start, noted before, says afterwards how far it came.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::ready::{WaitFor, check_within, needs_check, one_minute};
use super::start::{never_healthy, start_and_wait};
use super::stop::{stop, ten_seconds};
use super::{Known, assumed, check_name, look, noted, same_container};
use crate::failure::Failure;
use crate::service::docker::{Container, Engine};
use crate::step::effect::{Access, Effect, Resource, Role};
use crate::step::world::Fact;
use crate::step::{
    Action, AfterKill, Certainty, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind,
    output,
};
use crate::units::Duration;

/// Stops a container and starts it again.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Restart {
    /// The Docker engine.
    #[schemars(extend("x-target" = "docker"))]
    pub target: String,
    /// The container's name.
    pub container: String,
    /// How long it has to end by itself before it is killed.
    #[serde(default = "ten_seconds")]
    pub grace: Duration,
    /// What to wait for.
    #[serde(default)]
    pub wait: WaitFor,
    /// How long to wait for it.
    #[serde(default = "one_minute")]
    pub within: Duration,
}

impl StepType for Restart {
    const NAME: &'static str = "container.restart";
    const SUMMARY: &'static str = "Stops a container and starts it again";
    const AFTER_KILL: &'static str = "the moment of its last start tells how far it came";

    fn outputs() -> Vec<Output> {
        vec![output("started_at", ValueKind::Timestamp, "When its process was started")]
    }
}

#[async_trait]
impl Step for Restart {
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
            Known::Foretold(_) => match never_healthy(cx, &self.target, name, self.wait).await {
                Some(failure) => return Preview::failed(failure),
                None => assumed(format!("restart {name}")),
            },
            Known::Nothing => assumed(format!("restart {name}")),
            Known::Seen(container) => self.seen(&container),
        };
        preview.fact(self.resource(), Fact::Running)
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let engine = cx.services.docker(&self.target)?;
        let container = same_container(cx, &engine, &self.container).await?;
        needs_check(&container, self.wait)?;
        let result = self.go_on(cx, &engine, &container).await;
        if result.is_err() {
            // The next attempt restarts anew; only one that a kill cut short is gone on with.
            cx.note(json!({ "over": true })).await?;
        }
        result
    }

    async fn after_kill(&self, cx: &RunCx) -> Result<AfterKill, Failure> {
        let Some(before) = unfinished(cx) else {
            return Ok(AfterKill::DidNotHappen { why: "nothing was asked of the engine yet".to_owned() });
        };
        let engine = cx.services.docker(&self.target)?;
        let container = same_container(cx, &engine, &self.container).await?;
        let (name, at) = (&self.container, &container.started_at);
        Ok(match (container.running, *at == before) {
            (true, true) => AfterKill::DidNotHappen { why: format!("{name} runs since {at}, as before") },
            (false, true) => AfterKill::Partly { what: format!("{name} is stopped and not started again yet") },
            (true, false) => {
                AfterKill::Partly { what: format!("{name} was started at {at}; what is left is to wait for it") }
            }
            (false, false) => AfterKill::Partly { what: format!("{name} was started at {at} and ended since") },
        })
    }
}

impl Restart {
    fn resource(&self) -> Resource {
        Resource::container(&self.target, &self.container)
    }

    fn seen(&self, container: &Container) -> Preview {
        let name = &self.container;
        let summary = format!("restart {name} ({}), which has {} to end", container.status, self.grace);
        let mut preview = Preview::new(Action::Change, Certainty::Observed, summary);
        if let Err(failure) = needs_check(container, self.wait) {
            preview = preview.blocked(failure.message, failure.help);
        }
        if container.removed_when_stopped {
            preview = preview.blocked(
                format!("{name} was started with --rm: stopping removes it, and nothing can start it again"),
                "recreate it without --rm".to_owned(),
            );
        }
        preview
    }

    /// From wherever an attempt that was cut short came to.
    async fn go_on(&self, cx: &RunCx, engine: &Engine, container: &Container) -> Result<Done, Failure> {
        let before = unfinished(cx);
        if before.is_none() {
            cx.note(noted(container)).await?;
        }
        if before.is_none_or(|before| before == container.started_at) {
            stop(cx, engine, container, self.grace).await?;
        }
        start_and_wait(cx, engine, container, self.wait, self.within, "restarted").await
    }
}

/// When the container had been started last, as an attempt that was cut short noted it.
fn unfinished(cx: &RunCx) -> Option<String> {
    let (_, note) = cx.notes.last()?;
    note["started_at"].as_str().map(str::to_owned)
}
