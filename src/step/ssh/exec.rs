//! `ssh.exec`: runs a command on another host.
//!
//! A closed connection doesn't end what runs there, and nobody there knows of this run: after
//! a kill only the client that outlived it can still be waited for.

use std::collections::BTreeMap;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::matcher::Matcher;
use crate::service::ssh::{Host, Remote, Went};
use crate::step::command::{self, Arg, Extract, zero};
use crate::step::effect::{Access, Effect, Resource};
use crate::step::world::Fact;
use crate::step::{AfterKill, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind};

/// Runs a command on a host that is reached by SSH, with OpenSSH's client. When it is cut off, by a timeout or a
/// cancelled run, it may go on there: closing the connection doesn't end it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// The host.
    #[schemars(extend("x-target" = "ssh"))]
    pub target: String,
    /// Program and arguments, run without a shell.
    #[schemars(extend("x-arguments" = true), length(min = 1))]
    #[serde(default)]
    pub argv: Option<Vec<Arg>>,
    /// A script for the host's `/bin/sh`, instead of `argv`. Never build it from values of others: hand them over by `env`.
    #[schemars(extend("x-arguments" = true))]
    #[serde(default)]
    pub shell: Option<String>,
    /// Variables for it, and the place for secrets: they travel through its input, and are in nobody's arguments.
    /// LIFEBOAT_RUN, LIFEBOAT_STEP and LIFEBOAT_ATTEMPT are added.
    #[serde(default)]
    pub env: BTreeMap<String, Arg>,
    /// The folder it runs in; by default the user's home.
    #[serde(default)]
    pub cwd: Option<String>,
    /// Text given to it as input.
    #[serde(default)]
    pub stdin: Option<String>,
    /// The exit codes that are no failure: a number or a matcher. Code 75 is taken for a failure that may pass by itself;
    /// 255 is also SSH's own, for a connection that broke.
    #[serde(default = "zero")]
    pub expect_exit: Matcher,
    /// Further outputs, by name, read from its stdout.
    #[serde(default)]
    pub outputs: BTreeMap<String, Extract>,
    /// What it does to what, as `change postgres:db/manacore_auth`; verbs: read, create, change, destroy, stop, start,
    /// verify. `[]` means that it touches nothing. Without this nobody knows, and reviews say so.
    #[serde(default)]
    pub effects: Option<Vec<String>>,
    /// Whether it may run again when a kill or a broken connection leaves it open whether it happened.
    #[serde(default)]
    pub idempotent: bool,
}

impl StepType for Exec {
    const NAME: &'static str = "ssh.exec";
    const SUMMARY: &'static str = "Runs a command on another host";
    const AFTER_KILL: &'static str =
        "waits for it while its client still runs; then can't tell, or runs again if `idempotent`";

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
        if let Some(declared) = self.effects.as_deref() {
            return command::declared_effects(declared);
        }
        let process = format!("{}/{}", self.target, command::program(self.argv.as_deref()));
        vec![Effect::new(Access::Undetermined, Resource::other("process", &process))]
    }

    fn check(&self, found: &mut Findings) {
        command::check_command(Self::NAME, self.argv.as_deref(), self.shell.as_deref(), found);
        command::check_effects(self.effects.as_deref(), found);
        command::check_env(self.env.keys(), found);
        command::check_outputs(&self.outputs, found);
        let is_a_shells = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        for name in self.env.keys().filter(|name| !name.is_empty() && !name.contains('=') && !is_a_shells(name)) {
            found.add(format!("/env/{name}"), format!("`{name}` can't name a shell's variable"), None);
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let shown = self.shown();
        let mut preview = Preview::from_effects(&self.effects(), format!("run {shown} on {}", self.target));
        let foretold = |effect: Effect| Fact::after(&effect).map(|fact| (effect.resource, fact));
        preview.facts = self.effects().into_iter().filter_map(foretold).collect();
        let Some(services) = cx.services else { return preview };
        preview.summary = services.redactor().redact(&preview.summary).into_owned();
        let host = match services.ssh(&self.target) {
            Ok(host) => host,
            Err(failure) => return Preview::failed(failure),
        };
        let program = command::program(self.argv.as_deref());
        let is_known =
            !["/argv/0", "/env/PATH"].iter().any(|at| cx.is_unknown(at)) && !self.env.contains_key("PATH");
        // A folder may be made by an earlier step, and a relative path leads from there.
        let is_known = is_known && (self.cwd.is_none() || !program.contains('/') || program.starts_with('/'));
        match host.probe(is_known.then_some(program), None, services.cancel()).await {
            Err(failure) => Preview::failed(failure),
            Ok(true) => preview,
            Ok(false) => preview.warning(
                format!("{} has no program {program} now", host.place()),
                "an earlier step must install it".to_owned(),
            ),
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let host = cx.services.ssh(&self.target)?;
        let shown = self.shown();
        let attempted = format!("{} on {}", cx.redactor.redact(&shown), host.place());
        if !self.idempotent && cx.notes.last().is_some_and(|(_, note)| note["cut_off"] == true) {
            cx.note(json!({ "told": true })).await?;
            let message = format!("{attempted}: the attempt before was cut off, and may go on there");
            return Err(Failure::permanent(message).help(format!(
                "look at {} whether it got to its end; `lifeboat resume` runs it again, `--mark-done` takes it for done",
                host.place()
            )));
        }
        let log = |text: &str| cx.log(text);
        let marks = [
            ("LIFEBOAT_RUN", cx.run.to_string()),
            ("LIFEBOAT_STEP", cx.step.to_string()),
            ("LIFEBOAT_ATTEMPT", cx.attempt.to_string()),
        ];
        match host.run(&self.remote(), &marks, &log, &cx.cancel).await? {
            Went::NotStarted(failure) => Err(failure),
            Went::Ended(finished) => command::finish(&shown, &self.expect_exit, &self.outputs, &finished, cx),
            Went::Broken(finished) if self.accepts(finished.exit.code()) => {
                command::finish(&shown, &self.expect_exit, &self.outputs, &finished, cx)
            }
            Went::Broken(finished) => {
                let said = finished.stderr.last_lines(10, &cx.redactor);
                let said = if said.is_empty() { said } else { format!(": {said}") };
                let message = format!(
                    "{attempted}: {}: the connection broke and it may go on there, or it was killed, or it ended so \
                     itself{said}",
                    finished.exit
                );
                Err(self.open(message, &host))
            }
            Went::Cancelled => {
                cx.note(json!({ "cut_off": true })).await?;
                let message =
                    format!("{attempted} was cancelled: the connection is closed, and it may go on there");
                Err(self.open(message, &host))
            }
        }
    }

    async fn after_kill(&self, cx: &RunCx) -> Result<AfterKill, Failure> {
        let shown = self.shown();
        let what = format!("{} on {}", cx.redactor.redact(&shown), self.target);
        Ok(if let Some(pid) = command::still_running(cx) {
            AfterKill::StillGoing { what: format!("the client of {what} still runs as process {pid}") }
        } else if self.idempotent {
            AfterKill::RunAgain { why: "the plan says that it may run again (`idempotent`)".to_owned() }
        } else {
            let why = format!(
                "nobody stayed with {what}: it may go on there, be through, or never have begun; look there"
            );
            AfterKill::CannotTell { why }
        })
    }
}

impl Exec {
    fn shown(&self) -> String {
        command::shown(self.argv.as_deref(), self.shell.as_deref())
    }

    fn accepts(&self, code: Option<i32>) -> bool {
        code.is_some_and(|code| self.expect_exit.accepts(&code.into()))
    }

    /// The failure of one of which nobody knows whether it got to its end.
    fn open(&self, message: String, host: &Host) -> Failure {
        if self.idempotent {
            return Failure::transient(message);
        }
        let help = "look there before it is run again; `idempotent: true` says that running it twice does no harm";
        Failure::permanent(message).help(format!("on {}: {help}", host.place()))
    }

    fn remote(&self) -> Remote {
        Remote {
            argv: self.argv.iter().flatten().map(|arg| arg.0.clone()).collect(),
            shell: self.shell.clone(),
            env: self.env.iter().map(|(name, value)| (name.clone(), value.0.clone())).collect(),
            cwd: self.cwd.clone(),
            stdin: self.stdin.clone(),
        }
    }
}
