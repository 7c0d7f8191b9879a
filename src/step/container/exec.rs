//! `container.exec`: runs a command inside a container.
//!
//! Its id is noted before it is started: after a kill the engine tells what became of it.
//! No engine can end a command, so one that was cut off is waited for, never doubled.

use std::collections::BTreeMap;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Known, check_name, last_noted, look, same_container};
use crate::failure::Failure;
use crate::matcher::Matcher;
use crate::service::docker::{Became, Engine, Inside};
use crate::step::command::{self, Arg, Extract, zero};
use crate::step::effect::{Access, Effect, Resource};
use crate::step::world::Fact;
use crate::step::{
    AfterKill, Certainty, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind,
};

/// Runs a command inside a container that runs. When it is cut off, by a timeout or a cancelled run, it may go on
/// inside: Docker can't end it. The next attempt waits for its end.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// The Docker engine.
    #[schemars(extend("x-target" = "docker"))]
    pub target: String,
    /// The container's name.
    pub container: String,
    /// Program and arguments, run without a shell; for one write `[sh, -c, script]`.
    #[schemars(extend("x-arguments" = true), length(min = 1))]
    pub argv: Vec<Arg>,
    /// Variables for it, and the place for secrets. LIFEBOAT_RUN, LIFEBOAT_STEP and LIFEBOAT_ATTEMPT are added.
    #[serde(default)]
    pub env: BTreeMap<String, Arg>,
    /// The user it runs as, as `1000` or `name:group`; the container's by default.
    #[serde(default)]
    pub user: Option<String>,
    /// The folder it runs in; the container's by default.
    #[serde(default)]
    pub cwd: Option<String>,
    /// The exit codes that are no failure: a number or a matcher. Code 75 is taken for a failure that may pass by itself.
    #[serde(default = "zero")]
    pub expect_exit: Matcher,
    /// Further outputs, by name, read from its stdout.
    #[serde(default)]
    pub outputs: BTreeMap<String, Extract>,
    /// What it does to what, as `change postgres:db/manacore_auth`; verbs: read, create, change, destroy, stop, start,
    /// verify. `[]` means that it touches nothing. Without this nobody knows, and reviews say so.
    #[serde(default)]
    pub effects: Option<Vec<String>>,
    /// Whether it may run again when a kill leaves it open whether it happened, or what it wrote is lost.
    #[serde(default)]
    pub idempotent: bool,
}

impl StepType for Exec {
    const NAME: &'static str = "container.exec";
    const SUMMARY: &'static str = "Runs a command inside a container";
    const AFTER_KILL: &'static str = "the engine tells whether it was started, still runs (then it is waited for), or \
         with which code it ended; what it wrote is lost: `stdout` is unset, and with `outputs` nobody can tell unless \
         `idempotent`";

    fn outputs() -> Vec<Output> {
        command::outputs()
    }

    fn declared_outputs(params: &Value) -> Vec<(String, ValueKind)> {
        command::declared_outputs(params)
    }
}

#[async_trait]
impl Step for Exec {
    fn effects(&self) -> Vec<Effect> {
        let mut effects = vec![Effect::read(Resource::container(&self.target, &self.container))];
        if let Some(declared) = self.effects.as_deref() {
            effects.extend(command::declared_effects(declared));
        } else {
            let program = self.argv.first().map_or("", |program| &program.0);
            let process = Resource::other("process", &format!("{}/{program}", self.container));
            effects.push(Effect::new(Access::Undetermined, process));
        }
        effects
    }

    fn check(&self, found: &mut Findings) {
        check_name(&self.container, found);
        if self.argv.first().is_none_or(|program| program.0.is_empty()) {
            found.add("/argv", "there is no program in it", "write `argv: [program, argument]`".to_owned());
        }
        command::check_effects(self.effects.as_deref(), found);
        command::check_env(self.env.keys(), found);
        command::check_outputs(&self.outputs, found);
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let name = &self.container;
        let shown = self.shown();
        let shown = cx.services.map_or_else(|| shown.clone(), |cx| cx.redactor().redact(&shown).into_owned());
        let mut preview = Preview::from_effects(&self.effects(), format!("run {shown} in {name}"));
        let foretold = |effect: Effect| Fact::after(&effect).map(|fact| (effect.resource, fact));
        preview.facts = self.effects().into_iter().filter_map(foretold).collect();
        let start = || "start it before, with `container.start`".to_owned();
        match look(cx, &self.target, name).await {
            Known::Blocked(failure) => Preview::failed(failure),
            Known::Foretold(foretold) if foretold.fact == Fact::Stopped => {
                preview.blocked(format!("{name} is stopped by then, because of step {}", foretold.because), start())
            }
            Known::Nothing | Known::Foretold(_) => preview,
            Known::Seen(container) if container.status == "paused" => {
                preview.blocked(format!("{name} is paused"), format!("`docker unpause {name}`"))
            }
            Known::Seen(container) if !container.running => {
                preview.blocked(format!("{name} doesn't run ({})", container.status), start())
            }
            Known::Seen(_) => {
                if preview.certainty == Certainty::Assumed {
                    preview.certainty = Certainty::Observed;
                }
                preview
            }
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let name = &self.container;
        let engine = cx.services.docker(&self.target)?;
        let container = same_container(cx, &engine, name).await?;
        let shown = self.shown();
        let attempted = format!("run {} in {name}", cx.redactor.redact(&shown));
        if let Some(before) = noted_command(cx)
            && engine.became(before).await? == Became::Running
        {
            let still = "the command of the attempt before still runs; Docker can't end it";
            return Err(Failure::transient(still)
                .context(attempted)
                .help("wait for its end, or end it inside the container; then `lifeboat resume`"));
        }
        let id = engine.prepare(&container.id, self.inside(cx)).await;
        let id = id.map_err(|failure| failure.context(&attempted))?;
        cx.note(json!({ "id": container.id, "command": id })).await?;
        let log = |text: &str| cx.log(text);
        match engine.execute(&id, &log, &cx.cancel).await {
            Ok(Some(finished)) => command::finish(&shown, &self.expect_exit, &self.outputs, &finished, cx),
            Ok(None) => {
                Err(Failure::transient("it was cancelled; it may go on in the container: Docker can't end it")
                    .context(attempted))
            }
            Err(failure) => Err(failure.context(attempted)),
        }
    }

    async fn after_kill(&self, cx: &RunCx) -> Result<AfterKill, Failure> {
        let shown = self.shown();
        let what = format!("{} in {}", cx.redactor.redact(&shown), self.container);
        let Some(id) = noted_command(cx) else {
            return Ok(AfterKill::DidNotHappen { why: format!("{what} was not even announced to the engine") });
        };
        let became = self.engine(cx)?.became(id).await?;
        let again = || AfterKill::RunAgain { why: "the plan says that it may run again (`idempotent`)".to_owned() };
        Ok(match became {
            Became::NotStarted => {
                AfterKill::DidNotHappen { why: format!("{what} was announced and never started") }
            }
            Became::Running => AfterKill::StillGoing { what: format!("{what} still runs") },
            Became::Unknown | Became::Ended(_) if self.idempotent => again(),
            Became::Unknown => AfterKill::CannotTell {
                why: format!(
                    "the engine, or the container, was started anew and knows nothing of {what}; only what it works \
                     on can show whether it got to its end"
                ),
            },
            Became::Ended(code) if !self.expect_exit.accepts(&code.into()) => {
                AfterKill::CannotTell { why: format!("{what} ended with exit code {code}; what it wrote is lost") }
            }
            Became::Ended(code) if self.outputs.is_empty() => AfterKill::Happened(
                Done::new(format!("exit code {code}; what it wrote is lost")).output("exit_code", code),
            ),
            Became::Ended(code) => AfterKill::CannotTell {
                why: format!(
                    "{what} ended with exit code {code}, but what it wrote is lost, and with it its outputs"
                ),
            },
        })
    }
}

impl Exec {
    fn engine(&self, cx: &RunCx) -> Result<Engine, Failure> {
        cx.services.docker(&self.target)
    }

    fn shown(&self) -> String {
        let words: Vec<&str> = self.argv.iter().map(|arg| arg.0.as_str()).collect();
        command::short(&words.join(" "))
    }

    fn inside(&self, cx: &RunCx) -> Inside {
        let own = [
            format!("LIFEBOAT_RUN={}", cx.run),
            format!("LIFEBOAT_STEP={}", cx.step),
            format!("LIFEBOAT_ATTEMPT={}", cx.attempt),
        ];
        Inside {
            argv: self.argv.iter().map(|arg| arg.0.clone()).collect(),
            env: self.env.iter().map(|(name, value)| format!("{name}={}", value.0)).chain(own).collect(),
            user: self.user.clone(),
            cwd: self.cwd.clone(),
        }
    }
}

/// The command that an earlier attempt noted last.
fn noted_command(cx: &RunCx) -> Option<&str> {
    last_noted(cx).and_then(|note| note["command"].as_str())
}
