//! `container.run`: makes a container of an image, starts it and waits until it runs, or is healthy.
//!
//! Labels with run and step tell this step's own container from any other of that name;
//! one with what it was made of tells whether it is still the one that is wanted.

use std::collections::BTreeMap;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ready::{WaitFor, check_within, one_minute};
use super::start::wait_until_ready;
use super::stop::{stop, ten_seconds};
use super::{Sought, check_name_at, seek};
use crate::failure::Failure;
use crate::record::event::{Progress, ProgressUnit};
use crate::service::docker::{self, Container, Engine, Image, Port, Volume, Wanted};
use crate::step::command::Arg;
use crate::step::effect::{Access, Effect, Resource, Role};
use crate::step::world::Fact;
use crate::step::{
    Action, AfterKill, Certainty, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind,
    output,
};
use crate::units::Duration;

pub(super) const RUN: &str = "lifeboat.run";
const STEP: &str = "lifeboat.step";
const MADE_OF: &str = "lifeboat.made-of";

/// Makes a container of an image, starts it and waits until it runs, or is healthy. For services: one that ends
/// by itself has failed; it is kept, stopped, for its logs.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The Docker engine.
    #[schemars(extend("x-target" = "docker"))]
    pub target: String,
    /// The image, as `postgres:17`.
    pub image: String,
    /// The container's name.
    pub name: String,
    /// Arguments for the image's entry point, or program and arguments if it has none; the image's own by default.
    #[schemars(extend("x-arguments" = true))]
    #[serde(default)]
    pub command: Vec<Arg>,
    /// Variables for it, and the place for secrets. Whoever may use the engine can read them.
    #[serde(default)]
    pub env: BTreeMap<String, Arg>,
    /// Ports that the engine's host publishes, as `127.0.0.1:8080:80`; without an address on all of the host's.
    #[serde(default)]
    pub ports: Vec<Arg>,
    /// What is mounted, as `/srv/keys:/keys:ro`, or a volume's name instead of the folder. A folder must be there; a
    /// volume is made if it isn't.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// Its network: a network's name, `host` or `none`; by default the engine's bridge.
    #[serde(default)]
    pub network: Option<String>,
    /// The user it runs as, as `1000` or `name:group`; the image's by default.
    #[serde(default)]
    pub user: Option<String>,
    /// When the engine starts it again by itself. Unlike `docker run` by default it does: a service that was brought
    /// back should be there after a reboot.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Whether the image is fetched from its registry. Without credentials: private images must be there.
    #[serde(default)]
    pub pull: Pull,
    /// Whether another container of that name is stopped and removed first; its volumes are kept. Otherwise it is in the way.
    #[serde(default)]
    pub replace: bool,
    /// How long a container that is replaced has to end by itself before it is killed.
    #[serde(default = "ten_seconds")]
    pub grace: Duration,
    /// What to wait for.
    #[serde(default)]
    pub wait: WaitFor,
    /// How long to wait for it.
    #[serde(default = "one_minute")]
    pub within: Duration,
}

/// When the engine starts a container again by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Never.
    No,
    /// Whenever it ended, and when the engine starts, even if it was stopped.
    Always,
    /// Whenever it ended, and when the engine starts, but not after it was stopped.
    #[default]
    UnlessStopped,
    /// When it ended with another exit code than 0.
    OnFailure,
}

/// Whether an image is fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pull {
    /// No: it must be there. A recovery doesn't depend on a registry then.
    #[default]
    Never,
    /// When it isn't there.
    Missing,
    /// Always: a tag may have moved.
    Always,
}

impl StepType for Run {
    const NAME: &'static str = "container.run";
    const SUMMARY: &'static str = "Makes a container of an image, starts it and waits until it runs, or is healthy";
    const AFTER_KILL: &'static str =
        "labels with run and step tell whether the container is this step's own; that one is gone on with";

    fn outputs() -> Vec<Output> {
        vec![
            output("id", ValueKind::String, "The container's id"),
            output(
                "address",
                ValueKind::String,
                "Where the engine's host reaches it: its first published port, as `127.0.0.1:8080`, else its own \
                 address; empty without a network",
            ),
            output("started_at", ValueKind::Timestamp, "When its process was started"),
        ]
    }
}

#[async_trait]
impl Step for Run {
    fn effects(&self) -> Vec<Effect> {
        let made = Effect::new(Access::Create, self.resource()).role(Role::Starts);
        if self.replace { vec![Effect::new(Access::Destroy, self.resource()), made] } else { vec![made] }
    }

    fn check(&self, found: &mut Findings) {
        check_name_at("/name", &self.name, found);
        check_within(self.within, found);
        if self.image.is_empty() || self.image.contains(char::is_whitespace) {
            found.add(
                "/image",
                format!("`{}` can't be an image", self.image),
                "write it as `postgres:17`".to_owned(),
            );
        }
        for name in self.env.keys().filter(|name| name.is_empty() || name.contains(['=', '\0'])) {
            found.add("/env", format!("`{name}` can't name a variable"), None);
        }
        // The stand-in of a value that only the run knows is no mistake.
        let known = |text: &str| !text.contains('‹');
        for (at, port) in self.ports.iter().enumerate().filter(|(_, port)| known(&port.0)) {
            if let Err(wrong) = Port::parse(&port.0) {
                found.add(format!("/ports/{at}"), wrong, "write it as `127.0.0.1:8080:80`".to_owned());
            }
        }
        for (at, volume) in self.volumes.iter().enumerate().filter(|(_, volume)| known(volume)) {
            if let Err(wrong) = Volume::parse(volume) {
                let help = "write it as `/srv/keys:/keys:ro`, or `name:/data`".to_owned();
                found.add(format!("/volumes/{at}"), wrong, help);
            }
        }
        if let Some(network @ ("host" | "none")) = self.network.as_deref()
            && !self.ports.is_empty()
        {
            let help =
                if network == "host" { "it has the host's own ports: leave `ports` out" } else { "name a network" };
            found.add("/ports", format!("with `network: {network}` no port is published"), help.to_owned());
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let preview = self.place(cx).await;
        if preview.action == Action::Blocked {
            return preview;
        }
        let preview = match self.foresee_image(cx).await {
            Ok(Some((message, help))) => preview.blocked(message, help),
            Ok(None) => preview,
            Err(failure) => preview.blocked(failure.message, failure.help),
        };
        preview.fact(self.resource(), Fact::Running)
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let engine = cx.services.docker(&self.target)?;
        let there = engine.find(&self.name).await?;
        if let Some(container) = &there {
            self.may_touch(cx, container)?;
        }
        // What can go wrong with the image does so while the old container still runs.
        let image = self.image(cx, &engine).await?;
        let wanted = self.wanted()?;
        let made_of = wanted.digest(&image.id);
        let container = match there {
            Some(own) if is_own(cx, &own) && own.labels.get(MADE_OF) == Some(&made_of) => own,
            other => self.make(cx, &engine, &wanted, made_of, other).await?,
        };
        self.start(cx, &engine, &container).await
    }

    async fn after_kill(&self, cx: &RunCx) -> Result<AfterKill, Failure> {
        let Some(note) = announced(cx) else {
            return Ok(AfterKill::DidNotHappen { why: "nothing was asked of the engine yet".to_owned() });
        };
        let name = &self.name;
        let found = cx.services.docker(&self.target)?.find(name).await?;
        Ok(match found {
            None if note["replaces"].is_string() => AfterKill::Partly {
                what: format!("the container that was {name} is removed, the new one not made yet"),
            },
            None => AfterKill::DidNotHappen { why: format!("there is no container {name}") },
            Some(own) if is_own(cx, &own) && own.running => AfterKill::Partly {
                what: format!("{name} was made and runs since {}; what is left is to wait for it", own.started_at),
            },
            Some(own) if is_own(cx, &own) => {
                AfterKill::Partly { what: format!("{name} was made and doesn't run ({})", own.status) }
            }
            Some(other) => {
                self.may_touch(cx, &other)?;
                if other.running {
                    AfterKill::DidNotHappen { why: format!("the old container {name} is there and runs") }
                } else {
                    AfterKill::Partly { what: format!("the old container {name} is stopped, and not removed yet") }
                }
            }
        })
    }
}

impl Run {
    fn resource(&self) -> Resource {
        Resource::container(&self.target, &self.name)
    }

    /// The preview of its place: the name, and who has it now.
    async fn place(&self, cx: &PreviewCx<'_>) -> Preview {
        let (name, image) = (&self.name, &self.image);
        let fresh = |certainty| Preview::new(Action::Create, certainty, format!("run {name} of {image}"));
        let replacing = |certainty, what: String| {
            Preview::new(Action::Destroy, certainty, format!("replace {name} ({what}) by one of {image}"))
        };
        match seek(cx, "/name", &self.target, name).await {
            Sought::Nothing if self.replace => replacing(Certainty::Assumed, "if it is there".to_owned()),
            Sought::Nothing => fresh(Certainty::Assumed),
            Sought::Failed(failure) => Preview::failed(failure),
            Sought::Foretold(foretold) if foretold.fact == Fact::Absent => fresh(Certainty::Assumed),
            Sought::Foretold(foretold) if self.replace => {
                replacing(Certainty::Assumed, format!("as step {} leaves it", foretold.because))
            }
            Sought::Foretold(foretold) => fresh(Certainty::Assumed).blocked(
                format!("there is a container {name} by then, because of step {}", foretold.because),
                way_out(None),
            ),
            Sought::Seen(None) => fresh(Certainty::Observed),
            Sought::Seen(Some(found)) if self.replace => {
                replacing(Certainty::Observed, format!("{}, {}", found.image, found.status))
            }
            Sought::Seen(Some(found)) => {
                fresh(Certainty::Observed).blocked(in_the_way(&found), way_out(Some(&found)))
            }
        }
    }

    /// What is wrong with the image, as far as it can be told now.
    async fn foresee_image(&self, cx: &PreviewCx<'_>) -> Result<Option<(String, Option<String>)>, Failure> {
        let resource = Resource::other("image", &format!("{}/{}", self.target, self.image));
        let Some(services) = cx.services.filter(|_| !cx.is_unknown("/image")) else { return Ok(None) };
        if cx.world.touching(&resource).is_some() {
            return Ok(None);
        }
        let wrong = match services.docker(&self.target)?.image(&self.image).await? {
            Some(image) => self.can_be_healthy(&image).err(),
            None if self.pull == Pull::Never => Some(self.no_image()),
            None => None,
        };
        Ok(wrong.map(|failure| (failure.message, failure.help)))
    }

    fn no_image(&self) -> Failure {
        let (image, target) = (&self.image, &self.target);
        Failure::permanent(format!("{target} has no image {image}")).help(format!(
            "`docker pull {image}` on its host, or write `pull: missing`; a step before that loads it says so with \
             the effect `create image:{target}/{image}`"
        ))
    }

    fn can_be_healthy(&self, image: &Image) -> Result<(), Failure> {
        if self.wait == WaitFor::Healthy && !image.has_check {
            let message =
                format!("image {} has no health check, so its container can't become healthy", self.image);
            let help = "write `wait: started` and check it with `http.check`, or give the image a HEALTHCHECK";
            return Err(Failure::permanent(message).help(help));
        }
        Ok(())
    }

    /// Refuses somebody else's container, unless it is to be replaced; then one that came only meanwhile.
    fn may_touch(&self, cx: &RunCx, container: &Container) -> Result<(), Failure> {
        if is_own(cx, container) {
            return Ok(());
        }
        if !self.replace {
            return Err(Failure::permanent(in_the_way(container)).help(way_out(Some(container))));
        }
        match announced(cx) {
            Some(note) if note["replaces"] != container.id.as_str() => Err(Failure::permanent(format!(
                "container {} was made by somebody else since this step began: {} of {}",
                self.name,
                container.short_id(),
                container.image
            ))
            .help("look at what made it; then remove it, start a new run, or mark this step done")),
            _ => Ok(()),
        }
    }

    async fn image(&self, cx: &RunCx, engine: &Engine) -> Result<Image, Failure> {
        let there = engine.image(&self.image).await?;
        let image = match (self.pull, there) {
            (Pull::Never | Pull::Missing, Some(image)) => image,
            (Pull::Never, None) => return Err(self.no_image()),
            _ => {
                pull(cx, engine, &self.image).await?;
                cx.log(&format!("pulled {}\n", self.image));
                engine.image(&self.image).await?.ok_or_else(|| self.no_image())?
            }
        };
        self.can_be_healthy(&image)?;
        Ok(image)
    }

    fn wanted(&self) -> Result<Wanted, Failure> {
        let wrong = Failure::permanent;
        Ok(Wanted {
            name: self.name.clone(),
            image: self.image.clone(),
            command: self.command.iter().map(|arg| arg.0.clone()).collect(),
            env: self.env.iter().map(|(name, value)| (name.clone(), value.0.clone())).collect(),
            ports: self.ports.iter().map(|port| Port::parse(&port.0)).collect::<Result<_, _>>().map_err(wrong)?,
            volumes: self
                .volumes
                .iter()
                .map(|text| Volume::parse(text))
                .collect::<Result<_, _>>()
                .map_err(wrong)?,
            network: self.network.clone(),
            user: self.user.clone(),
            restart: match self.restart {
                RestartPolicy::No => docker::Restart::No,
                RestartPolicy::Always => docker::Restart::Always,
                RestartPolicy::UnlessStopped => docker::Restart::UnlessStopped,
                RestartPolicy::OnFailure => docker::Restart::OnFailure,
            },
        })
    }

    /// Announces it, takes an old one out of the way, and makes the container.
    async fn make(
        &self,
        cx: &RunCx,
        engine: &Engine,
        wanted: &Wanted,
        made_of: String,
        old: Option<Container>,
    ) -> Result<Container, Failure> {
        // What an attempt before was to replace may be gone already.
        let before = announced(cx).map_or(Value::Null, |note| note["replaces"].clone());
        let replaces = old.as_ref().filter(|old| !is_own(cx, old)).map_or(before, |old| old.id.clone().into());
        cx.note(json!({ "makes": self.name, "image": self.image, "replaces": replaces })).await?;
        if let Some(old) = &old {
            stop(cx, engine, old, self.grace).await?;
            let removed = engine.remove(&old.id, false, false).await;
            removed.map_err(|failure| failure.context(format!("remove the old container {}", self.name)))?;
        }
        let labels = [(RUN, cx.run.to_string()), (STEP, cx.mark()), (MADE_OF, made_of)];
        let labels = labels.map(|(label, value)| (label.to_owned(), value)).into();
        let id = engine.create(wanted, labels).await?;
        engine.container(&id).await
    }

    async fn start(&self, cx: &RunCx, engine: &Engine, container: &Container) -> Result<Done, Failure> {
        let name = &self.name;
        if let Err(failure) = engine.start(&container.id).await {
            // It never ran: nobody can use it, and it has no logs.
            if matches!(engine.find(&container.id).await, Ok(Some(now)) if !now.running && now.never_ran()) {
                engine.remove(&container.id, false, true).await?;
            }
            return Err(failure.context(format!("start {name}")));
        }
        let ready = wait_until_ready(cx, engine, container, self.wait, self.within, "made and started").await;
        let now = engine.find(&container.id).await?;
        match (ready, now) {
            (Ok(done), Some(now)) => {
                Ok(done.output("id", now.id).output("address", now.address.unwrap_or_default()))
            }
            (Err(failure), Some(now)) if !cx.cancel.is_cancelled() && (now.restarting || now.restarts > 0) => {
                // It failed: the engine shall not start it again and again behind the operator's back.
                stop(cx, engine, &now, self.grace).await?;
                Err(failure)
            }
            (Err(failure), _) => Err(failure),
            (Ok(_), None) => Err(Failure::permanent(format!("{name} was removed right after it was started"))),
        }
    }
}

async fn pull(cx: &RunCx, engine: &Engine, image: &str) -> Result<(), Failure> {
    let told = |said: &str| {
        let message = Some(format!("pull {image}: {said}"));
        cx.progress(Progress { done: 0, total: None, unit: ProgressUnit::Items, message });
    };
    tokio::select! {
        pulled = engine.pull(image, &told) => pulled,
        () = cx.cancel.cancelled() => Err(Failure::transient(format!("pulling {image} was cancelled"))),
    }
}

fn is_own(cx: &RunCx, container: &Container) -> bool {
    container.labels.get(RUN).map(String::as_str) == Some(cx.run.as_str())
        && container.labels.get(STEP).map(String::as_str) == Some(cx.mark().as_str())
}

/// The last note about making it.
fn announced(cx: &RunCx) -> Option<&Value> {
    cx.notes.iter().rev().map(|(_, note)| note).find(|note| note["makes"].is_string())
}

fn in_the_way(container: &Container) -> String {
    let Container { name, image, status, .. } = container;
    let by = match (container.labels.get(RUN), container.labels.get(STEP)) {
        (Some(run), Some(step)) => format!(", made by step {step} of run {run}"),
        _ => String::new(),
    };
    format!("there is a container {name} already ({image}, {status}{by})")
}

fn way_out(container: Option<&Container>) -> String {
    let remove = match container {
        Some(container) => format!("`docker rm --force {}`", container.name),
        None => "`container.remove`".to_owned(),
    };
    format!("write `replace: true` to have it stopped and removed, give another name, or remove it with {remove}")
}
