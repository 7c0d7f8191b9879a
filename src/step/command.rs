//! What the step types that run commands share: `exec`, `container.exec`, `ssh.exec`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use regex::Regex;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

use super::effect::Effect;
use super::{Done, Findings, Output, RunCx, ValueKind, output};
use crate::failure::Failure;
use crate::ids::is_name;
use crate::matcher::Matcher;
use crate::record::event;
use crate::service::process::{self, Captured, Finished};
use crate::units::Size;

/// How much of each stream becomes an output: outputs are kept in the journal.
pub(super) const OUTPUT_CAP: usize = 64 * 1024;

/// By convention (`sysexits.h`) a failure that may pass by itself.
const TRY_AGAIN: i32 = 75;

/// The exit code that is no failure if a plan doesn't say.
pub(super) fn zero() -> Matcher {
    Matcher::equals(0)
}

/// What every command gives.
pub(super) fn outputs() -> Vec<Output> {
    vec![
        output("stdout", ValueKind::String, "What it wrote, up to 64 KiB, without the last line feed"),
        output("stderr", ValueKind::String, "What it complained, up to 64 KiB, without the last line feed"),
        output("exit_code", ValueKind::Integer, "Its exit code"),
    ]
}

/// The further outputs that a command's parameters name.
pub(super) fn declared_outputs(params: &Value) -> Vec<(String, ValueKind)> {
    let Some(outputs) = params.get("outputs").and_then(Value::as_object) else { return vec![] };
    let kind = |extract: &Value| if extract.get("json").is_some() { ValueKind::Any } else { ValueKind::String };
    outputs.iter().map(|(name, extract)| (name.clone(), kind(extract))).collect()
}

/// The effects that a command's parameters name.
pub(super) fn declared_effects(declared: &[String]) -> Vec<Effect> {
    declared.iter().filter_map(|text| Effect::parse(text).ok()).collect()
}

/// The program of `argv`, or else the shell.
pub(super) fn program(argv: Option<&[Arg]>) -> &str {
    argv.map_or("/bin/sh", |argv| argv.first().map_or("", |program| &program.0))
}

/// `argv` or the first line of `shell` for people.
pub(super) fn shown(argv: Option<&[Arg]>, shell: Option<&str>) -> String {
    match argv {
        Some(argv) => short(&argv.iter().map(|arg| arg.0.as_str()).collect::<Vec<_>>().join(" ")),
        None => short(shell.unwrap_or_default().trim().lines().next().unwrap_or_default()),
    }
}

pub(super) fn check_command(name: &str, argv: Option<&[Arg]>, shell: Option<&str>, found: &mut Findings) {
    let argv_help = || "write `argv: [program, argument]`".to_owned();
    match (argv, shell) {
        (None, None) => found.add("", format!("`{name}` needs a command"), argv_help()),
        (Some(_), Some(_)) => {
            found.add("/shell", "`argv` and `shell` can't both be given", "keep one of them".to_owned());
        }
        (Some(argv), None) if argv.first().is_none_or(|program| program.0.is_empty()) => {
            found.add("/argv", "there is no program in it", argv_help());
        }
        (None, Some(script)) if script.trim().is_empty() => found.add("/shell", "the script is empty", None),
        _ => {}
    }
}

pub(super) fn check_effects(effects: Option<&[String]>, found: &mut Findings) {
    for (at, declared) in effects.into_iter().flatten().enumerate() {
        if let Err(wrong) = Effect::parse(declared) {
            let help = "write a verb and a resource, as `change postgres:db/manacore_auth`".to_owned();
            found.add(format!("/effects/{at}"), wrong, help);
        }
    }
}

pub(super) fn check_env<'a>(names: impl Iterator<Item = &'a String>, found: &mut Findings) {
    for name in names {
        if name.is_empty() || name.contains(['=', '\0']) {
            found.add("/env", format!("`{name}` can't name a variable"), None);
        } else if name.starts_with("LIFEBOAT_") {
            found.add(format!("/env/{name}"), "Lifeboat sets the variables that begin so", None);
        }
    }
}

pub(super) fn check_outputs(declared: &BTreeMap<String, Extract>, found: &mut Findings) {
    for (name, extract) in declared {
        let pointer = format!("/outputs/{name}");
        if !is_name(name) || outputs().iter().any(|output| output.name == name) {
            found.add(&pointer, format!("`{name}` can't name an output"), "use another name".to_owned());
        }
        if let Err((wrong, help)) = extract.check() {
            found.add(pointer, wrong, help);
        }
    }
}

/// A command for people, on one line, cut where it gets long.
pub(super) fn short(line: &str) -> String {
    match line.char_indices().nth(80) {
        Some((end, _)) => format!("`{}…`", &line[..end]),
        None => format!("`{line}`"),
    }
}

/// What the end of a command comes to: its outputs, or why it failed. `shown` may hold secrets.
pub(super) fn finish(
    shown: &str,
    expect_exit: &Matcher,
    outputs: &BTreeMap<String, Extract>,
    finished: &Finished,
    cx: &RunCx,
) -> Result<Done, Failure> {
    let code = finished.exit.code();
    if !code.is_some_and(|code| expect_exit.accepts(&code.into())) {
        return Err(unexpected(shown, expect_exit, finished, cx));
    }
    let mut done = Done::new(finished.exit.to_string())
        .output("stdout", trimmed(&finished.stdout))
        .output("stderr", trimmed(&finished.stderr))
        .output("exit_code", code);
    extract(outputs, &finished.stdout, &mut done.outputs)?;
    Ok(done)
}

/// The failure of an exit that was not expected, in the command's own words.
pub(super) fn unexpected(shown: &str, expect_exit: &Matcher, finished: &Finished, cx: &RunCx) -> Failure {
    let mut said = finished.stderr.last_lines(10, &cx.redactor);
    if said.is_empty() {
        said = finished.stdout.last_lines(10, &cx.redactor);
    }
    let mut message = format!("{}: {}", cx.redactor.redact(shown), finished.exit);
    if finished.exit.code().is_some() && expect_exit.describe() != "0" {
        message = format!("{message}, expected {}", expect_exit.describe());
    }
    if !said.is_empty() {
        message = format!("{message}: {said}");
    }
    if finished.exit.code() == Some(TRY_AGAIN) { Failure::transient(message) } else { Failure::permanent(message) }
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

fn extract(
    wanted: &BTreeMap<String, Extract>,
    stdout: &Captured,
    outputs: &mut event::Outputs,
) -> Result<(), Failure> {
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
pub(super) fn still_running(cx: &RunCx) -> Option<u32> {
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

/// Text; YAML's `true` and `5` are taken as they are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arg(pub String);

impl<'de> Deserialize<'de> for Arg {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Arg;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text")
            }
            fn visit_str<E>(self, text: &str) -> Result<Arg, E> {
                Ok(Arg(text.to_owned()))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Arg, E> {
                Ok(Arg(value.to_string()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Arg, E> {
                Ok(Arg(value.to_string()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Arg, E> {
                Ok(Arg(value.to_string()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Arg, E> {
                Ok(Arg(value.to_string()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Arg {
    fn schema_name() -> Cow<'static, str> {
        "Arg".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "number", "boolean"] })
    }
}

/// How an output is read from stdout.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Extract {
    /// Stdout is JSON: the value at this JSON pointer (`/items/0/name`; empty for all of it).
    Json(#[schemars(regex(pattern = "^(/.*)?$"))] String),
    /// What the first group of this regular expression matches.
    Regex(#[schemars(extend("format" = "regex"))] String),
}

impl Extract {
    /// What is wrong with it, and what to write instead.
    fn check(&self) -> Result<(), (String, String)> {
        match self {
            Self::Json(pointer) if pointer.is_empty() || pointer.starts_with('/') => Ok(()),
            Self::Json(pointer) => Err((
                format!("`{pointer}` is not a JSON pointer"),
                format!("write `/{}`", pointer.replace('.', "/")),
            )),
            Self::Regex(pattern) => match regex::Regex::new(pattern) {
                Ok(regex) if regex.captures_len() > 1 => Ok(()),
                Ok(_) => Err((
                    format!("`{pattern}` has no group"),
                    "put the part that is wanted in parentheses".to_owned(),
                )),
                Err(error) => Err((error.to_string(), "correct the regular expression".to_owned())),
            },
        }
    }
}
