//! `exec`: runs a command on this host.
//!
//! Without a shell unless one is asked for. The child sees the variables listed in
//! `INHERITED`, those that the step declares, and `LIFEBOAT_RUN`, `LIFEBOAT_STEP` and
//! `LIFEBOAT_ATTEMPT`, by which a command can know a repetition and resume can find it.

mod params;

use std::collections::BTreeMap;
use std::path::Path;

use async_trait::async_trait;
use regex::Regex;
use serde_json::Value;

pub use params::{Arg, Exec, Extract};

use crate::failure::Failure;
use crate::ids::is_name;
use crate::record::event::Outputs;
use crate::service::process::{self, Captured, Command, Finished};
use crate::step::effect::{Access, Effect, Resource};
use crate::step::world::Fact;
use crate::step::{
    AfterKill, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind, output,
};
use crate::units::Size;

/// How much of each stream becomes an output: outputs are kept in the journal.
const OUTPUT_CAP: usize = 64 * 1024;

/// By convention (`sysexits.h`) a failure that may pass by itself.
const TRY_AGAIN: i32 = 75;

impl StepType for Exec {
    const NAME: &'static str = "exec";
    const SUMMARY: &'static str = "Runs a command on this host";
    const AFTER_KILL: &'static str =
        "waits for it while it still runs; then can't tell, or runs again if `idempotent`";

    fn outputs() -> Vec<Output> {
        vec![
            output("stdout", ValueKind::String, "What it wrote, up to 64 KiB, without the last line feed"),
            output("stderr", ValueKind::String, "What it complained, up to 64 KiB, without the last line feed"),
            output("exit_code", ValueKind::Integer, "Its exit code"),
        ]
    }

    fn declared_outputs(params: &Value) -> Vec<(String, ValueKind)> {
        let Some(outputs) = params.get("outputs").and_then(Value::as_object) else { return vec![] };
        let kind = |extract: &Value| if extract.get("json").is_some() { ValueKind::Any } else { ValueKind::String };
        outputs.iter().map(|(name, extract)| (name.clone(), kind(extract))).collect()
    }
}

#[async_trait]
impl Step for Exec {
    fn effects(&self) -> Vec<Effect> {
        match &self.effects {
            Some(declared) => declared.iter().filter_map(|text| Effect::parse(text).ok()).collect(),
            None => vec![Effect::new(Access::Undetermined, Resource::other("process", self.program()))],
        }
    }

    fn check(&self, found: &mut Findings) {
        match (&self.argv, &self.shell) {
            (None, None) => found.add("", "`exec` needs a command", "write `argv: [program, argument]`".to_owned()),
            (Some(_), Some(_)) => {
                found.add("/shell", "`argv` and `shell` can't both be given", "keep one of them".to_owned());
            }
            (Some(argv), None) if argv.first().is_none_or(|program| program.0.is_empty()) => {
                found.add("/argv", "there is no program in it", "write `argv: [program, argument]`".to_owned());
            }
            (None, Some(script)) if script.trim().is_empty() => found.add("/shell", "the script is empty", None),
            _ => {}
        }
        for (at, declared) in self.effects.iter().flatten().enumerate() {
            if let Err(wrong) = Effect::parse(declared) {
                let help = "write a verb and a resource, as `change postgres:db/manacore_auth`".to_owned();
                found.add(format!("/effects/{at}"), wrong, help);
            }
        }
        for name in self.env.keys() {
            if name.is_empty() || name.contains(['=', '\0']) {
                found.add("/env", format!("`{name}` can't name a variable"), None);
            } else if name.starts_with("LIFEBOAT_") {
                found.add(format!("/env/{name}"), "Lifeboat sets the variables that begin so", None);
            }
        }
        for (name, extract) in &self.outputs {
            let pointer = format!("/outputs/{name}");
            if !is_name(name) || Self::outputs().iter().any(|output| output.name == name) {
                found.add(&pointer, format!("`{name}` can't name an output"), "use another name".to_owned());
            }
            if let Err((wrong, help)) = extract.check() {
                found.add(pointer, wrong, help);
            }
        }
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
        let code = finished.exit.code();
        if !code.is_some_and(|code| self.expect_exit.accepts(&code.into())) {
            return Err(self.unexpected(&finished, cx));
        }
        let mut done = Done::new(finished.exit.to_string())
            .output("stdout", trimmed(&finished.stdout))
            .output("stderr", trimmed(&finished.stderr))
            .output("exit_code", code);
        extract(&self.outputs, &finished.stdout, &mut done.outputs)?;
        Ok(done)
    }

    async fn after_kill(&self, cx: &RunCx) -> Result<AfterKill, Failure> {
        let shown = self.shown();
        let shown = cx.redactor.redact(&shown);
        Ok(if let Some(pid) = still_running(cx) {
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
        match &self.argv {
            Some(argv) => argv.first().map_or("", |program| &program.0),
            None => "/bin/sh",
        }
    }

    /// The command for people, on one line, cut where it gets long.
    fn shown(&self) -> String {
        let line = match (&self.argv, &self.shell) {
            (Some(argv), _) => argv.iter().map(|arg| arg.0.as_str()).collect::<Vec<_>>().join(" "),
            (None, shell) => {
                shell.as_deref().unwrap_or_default().trim().lines().next().unwrap_or_default().to_owned()
            }
        };
        match line.char_indices().nth(80) {
            Some((end, _)) => format!("`{}…`", &line[..end]),
            None => format!("`{line}`"),
        }
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

    fn unexpected(&self, finished: &Finished, cx: &RunCx) -> Failure {
        let mut said = finished.stderr.last_lines(10, &cx.redactor);
        if said.is_empty() {
            said = finished.stdout.last_lines(10, &cx.redactor);
        }
        let shown = self.shown();
        let mut message = format!("{}: {}", cx.redactor.redact(&shown), finished.exit);
        if finished.exit.code().is_some() && self.expect_exit.describe() != "0" {
            message = format!("{message}, expected {}", self.expect_exit.describe());
        }
        if !said.is_empty() {
            message = format!("{message}: {said}");
        }
        if finished.exit.code() == Some(TRY_AGAIN) {
            Failure::transient(message)
        } else {
            Failure::permanent(message)
        }
    }
}

/// A stream as an output: small, and plain about it when it was cut.
fn trimmed(captured: &Captured) -> String {
    let text = captured.text();
    let text = text.strip_suffix('\n').unwrap_or(&text);
    if text.len() <= OUTPUT_CAP && !captured.is_cut() {
        return text.to_owned();
    }
    let mut end = OUTPUT_CAP.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}\n[cut: {} in all, see the step's log]", &text[..end], Size(captured.total()))
}

fn extract(wanted: &BTreeMap<String, Extract>, stdout: &Captured, outputs: &mut Outputs) -> Result<(), Failure> {
    if wanted.is_empty() {
        return Ok(());
    }
    if stdout.is_cut() {
        let (total, cap) = (Size(stdout.total()), Size(process::CAPTURE as u64));
        return Err(Failure::permanent(format!("it wrote {total}; outputs are read from {cap} at most")));
    }
    let text = stdout.text();
    let mut json = None;
    for (name, extract) in wanted {
        let value = match extract {
            Extract::Json(pointer) => {
                let parsed = match &json {
                    Some(parsed) => parsed,
                    None => json.insert(serde_json::from_str::<Value>(&text).map_err(|error| {
                        Failure::permanent(format!("output `{name}`: stdout is not JSON: {error}"))
                    })?),
                };
                parsed.pointer(pointer).cloned().ok_or_else(|| format!("stdout's JSON has no `{pointer}`"))
            }
            Extract::Regex(pattern) => Regex::new(pattern).map_err(|error| error.to_string()).and_then(|regex| {
                let found = regex.captures(&text).and_then(|captures| captures.get(1));
                found
                    .map(|found| Value::from(found.as_str()))
                    .ok_or_else(|| format!("nothing in stdout matches `{pattern}`"))
            }),
        };
        let value = value.map_err(|wrong| Failure::permanent(format!("output `{name}`: {wrong}")))?;
        outputs.insert(name.clone(), value);
    }
    Ok(())
}

/// The process of an earlier attempt, if it outlived the Lifeboat that started it: the
/// leader of a group, with this run's and step's names in its environment. Daemons that
/// it left behind on purpose made a session of their own and don't count.
fn still_running(cx: &RunCx) -> Option<u32> {
    let marks = [format!("LIFEBOAT_RUN={}", cx.run), format!("LIFEBOAT_STEP={}", cx.step)];
    let processes = std::fs::read_dir("/proc").ok()?;
    processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok()).find(|pid| {
        let marked = std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| {
            let variables: Vec<&[u8]> = environ.split(|byte| *byte == 0).collect();
            marks.iter().all(|mark| variables.contains(&mark.as_bytes()))
        });
        marked && leads_a_group(*pid)
    })
}

fn leads_a_group(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // After the name in parentheses: state, parent, group, session.
    let Some((_, rest)) = stat.rsplit_once(')') else { return false };
    let mut fields = rest.split_whitespace();
    let state = fields.next();
    let mut ids = fields.skip(1).map(|field| field.parse::<u32>().ok());
    let (group, session) = (ids.next().flatten(), ids.next().flatten());
    state != Some("Z") && group == Some(pid) && session != Some(pid)
}

#[cfg(test)]
mod tests;
