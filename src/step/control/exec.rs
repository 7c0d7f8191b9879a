//! `exec`: runs a command on this host.
//!
//! Without a shell unless one is asked for. The child sees the variables listed in
//! `INHERITED`, those that the step declares, and `LIFEBOAT_RUN`, `LIFEBOAT_STEP` and
//! `LIFEBOAT_ATTEMPT`, by which a command can know a repetition and resume can find it.

mod params;

use std::path::Path;

use async_trait::async_trait;
use serde_json::Value;

pub use params::Exec;

use crate::failure::Failure;
use crate::service::process::{self, Command};
use crate::step::command;
use crate::step::effect::{Access, Effect, Resource};
use crate::step::world::Fact;
use crate::step::{AfterKill, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind};

impl StepType for Exec {
    const NAME: &'static str = "exec";
    const SUMMARY: &'static str = "Runs a command on this host";
    const AFTER_KILL: &'static str =
        "waits for it while it still runs; then can't tell, or runs again if `idempotent`";

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
        match self.effects.as_deref() {
            Some(declared) => command::declared_effects(declared),
            None => vec![Effect::new(Access::Undetermined, Resource::other("process", self.program()))],
        }
    }

    fn check(&self, found: &mut Findings) {
        command::check_command(Self::NAME, self.argv.as_deref(), self.shell.as_deref(), found);
        command::check_effects(self.effects.as_deref(), found);
        command::check_env(self.env.keys(), found);
        command::check_outputs(&self.outputs, found);
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let mut preview = Preview::from_effects(&self.effects(), format!("run {}", self.shown()));
        let foretold = |effect: Effect| Fact::after(&effect).map(|fact| (effect.resource, fact));
        preview.facts = self.effects().into_iter().filter_map(foretold).collect();
        let Some(services) = cx.services else { return preview };
        preview.summary = services.redactor().redact(&preview.summary).into_owned();
        // The first element of `argv`, in either form.
        if ["/argv/0", "/0", "/cwd", "/env/PATH"].iter().any(|at| cx.is_unknown(at)) {
            return preview;
        }
        let (program, folder) = (self.program(), self.cwd.as_deref().map(Path::new));
        if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
            let missing = format!("there is no folder {} now", folder.display());
            preview.warning(missing, "an earlier step must make it".to_owned())
        } else if process::find_program(program, folder).is_some() || self.env.contains_key("PATH") {
            preview
        } else if program.contains('/') {
            preview.warning(format!("there is no program {program} now"), "an earlier step must make it".to_owned())
        } else {
            let missing = format!("there is no program `{program}` on the PATH");
            preview.blocked(missing, "install it, or give its whole path".to_owned())
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let command = self.command(cx);
        let log = |text: &str| cx.log(text);
        let stdin = self.stdin.as_ref().map(String::as_bytes);
        let finished = command.run(stdin, &cx.redactor, &log, &cx.cancel).await?;
        command::finish(&self.shown(), &self.expect_exit, &self.outputs, &finished, cx)
    }

    async fn after_kill(&self, cx: &RunCx) -> Result<AfterKill, Failure> {
        let shown = self.shown();
        let shown = cx.redactor.redact(&shown);
        Ok(if let Some(pid) = command::still_running(cx) {
            AfterKill::StillGoing { what: format!("{shown} still runs as process {pid}") }
        } else if self.idempotent {
            AfterKill::RunAgain { why: "the plan says that it may run again (`idempotent`)".to_owned() }
        } else {
            let why = format!("{shown} no longer runs; only what it works on can show whether it got to its end");
            AfterKill::CannotTell { why }
        })
    }
}

impl Exec {
    fn program(&self) -> &str {
        command::program(self.argv.as_deref())
    }

    fn shown(&self) -> String {
        command::shown(self.argv.as_deref(), self.shell.as_deref())
    }

    fn command(&self, cx: &RunCx) -> Command {
        let command = match (&self.argv, &self.shell) {
            (None, Some(script)) => Command::shell(script),
            _ => Command::new(self.program()).args(self.argv.iter().flatten().skip(1).map(|arg| &arg.0)),
        };
        let command = self.env.iter().fold(command, |command, (name, value)| command.env(name, &value.0));
        let command = match &self.cwd {
            Some(folder) => command.cwd(folder),
            None => command,
        };
        command
            .env("LIFEBOAT_RUN", cx.run.as_str())
            .env("LIFEBOAT_STEP", cx.step.as_str())
            .env("LIFEBOAT_ATTEMPT", cx.attempt.to_string())
    }
}

#[cfg(test)]
mod tests;
