//! `container.remove`: removes a container.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Sought, assumed, check_name, is_same, last_noted, noted, seek};
use crate::failure::Failure;
use crate::service::docker::Container;
use crate::step::effect::{Access, Effect, Resource};
use crate::step::world::Fact;
use crate::step::{
    Action, AfterKill, Certainty, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind,
    output,
};

const WAY_OUT: &str = "put `container.stop` before it, or write `force: true` to have it killed";

/// Removes a container. One that is not there is fine.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Remove {
    /// The Docker engine.
    #[schemars(extend("x-target" = "docker"))]
    pub target: String,
    /// The container's name.
    pub container: String,
    /// Whether one that runs is killed and removed; otherwise it is refused. `container.stop` before lets it end by itself.
    #[serde(default)]
    pub force: bool,
    /// Only if `container.run` made it in that run; any other is refused, whoever made it.
    #[serde(default)]
    pub made_by_run: Option<String>,
    /// Whether its unnamed volumes go too. Named ones never do.
    #[serde(default)]
    pub volumes: bool,
}

impl StepType for Remove {
    const NAME: &'static str = "container.remove";
    const SUMMARY: &'static str = "Removes a container";
    const AFTER_KILL: &'static str = "whether the container of the noted id is still there";

    fn outputs() -> Vec<Output> {
        vec![output("removed", ValueKind::Boolean, "Whether there was one to remove")]
    }
}

#[async_trait]
impl Step for Remove {
    fn effects(&self) -> Vec<Effect> {
        vec![Effect::new(Access::Destroy, self.resource())]
    }

    fn check(&self, found: &mut Findings) {
        check_name(&self.container, found);
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let name = &self.container;
        let remove = || Preview { action: Action::Destroy, ..assumed(format!("remove {name}")) };
        let preview = match seek(cx, "/container", &self.target, name).await {
            Sought::Failed(failure) => return Preview::failed(failure),
            Sought::Nothing => remove(),
            Sought::Foretold(foretold) => match foretold.fact {
                Fact::Absent => {
                    let summary = format!("{name} is gone by then, because of step {}", foretold.because);
                    Preview::new(Action::None, Certainty::Assumed, summary).output("removed", false)
                }
                Fact::Running if !self.force => {
                    let running = format!("{name} runs by then, because of step {}", foretold.because);
                    remove().blocked(running, WAY_OUT.to_owned())
                }
                _ => remove(),
            },
            Sought::Seen(None) => Preview::new(Action::None, Certainty::Observed, format!("there is no {name}"))
                .output("removed", false),
            Sought::Seen(Some(container)) => {
                let Container { image, status, .. } = &*container;
                let kill = if container.running { "kill and remove" } else { "remove" };
                let summary = format!("{kill} {name} ({image}, {status})");
                let preview = Preview::new(Action::Destroy, Certainty::Observed, summary).output("removed", true);
                if let Err(failure) = self.is_meant(&container) {
                    preview.blocked(failure.message, failure.help)
                } else if is_refused(&container, self.force) {
                    preview.blocked(format!("{name} runs ({status})"), WAY_OUT.to_owned())
                } else {
                    preview
                }
            }
        };
        preview.fact(self.resource(), Fact::Absent)
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let name = &self.container;
        let engine = cx.services.docker(&self.target)?;
        let Some(container) = engine.find(name).await? else {
            return Ok(match last_noted(cx) {
                Some(_) => removed(),
                None => Done::new("there was none").output("removed", false),
            });
        };
        is_same(cx, &container)?;
        self.is_meant(&container)?;
        if is_refused(&container, self.force) {
            return Err(Failure::permanent(format!("remove {name}: it runs ({})", container.status)).help(WAY_OUT));
        }
        cx.note(noted(&container)).await?;
        let gone = engine.remove(&container.id, self.force, self.volumes).await;
        gone.map_err(|failure| failure.context(format!("remove {name}")))?;
        Ok(removed())
    }

    async fn after_kill(&self, cx: &RunCx) -> Result<AfterKill, Failure> {
        let Some(noted) = last_noted(cx).and_then(|note| note["id"].as_str()) else {
            return Ok(AfterKill::DidNotHappen { why: "nothing was asked of the engine yet".to_owned() });
        };
        Ok(match cx.services.docker(&self.target)?.find(noted).await? {
            None => AfterKill::Happened(removed()),
            Some(container) => {
                AfterKill::DidNotHappen { why: format!("{} is still there ({})", self.container, container.status) }
            }
        })
    }
}

impl Remove {
    fn resource(&self) -> Resource {
        Resource::container(&self.target, &self.container)
    }

    fn is_meant(&self, container: &Container) -> Result<(), Failure> {
        let Some(run) = &self.made_by_run else { return Ok(()) };
        match container.labels.get(super::run::RUN) {
            Some(made_by) if made_by == run => Ok(()),
            Some(made_by) => Err(format!("run {made_by} made it")),
            None => Err("no run made it".to_owned()),
        }
        .map_err(|who| {
            Failure::permanent(format!("remove {}: {who}, not {run}", self.container))
                .help("see whom it serves before you remove it")
        })
    }
}

const fn is_refused(container: &Container, force: bool) -> bool {
    (container.running || container.restarting) && !force
}

fn removed() -> Done {
    Done::new("removed").output("removed", true)
}
