//! From the arguments that name a plan to a checked plan, its problems shown.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::answer::pair;
use super::exit::Error;
use super::out::{Out, shout};
use super::problem;
use crate::plan::load::{Loaded, Options};
use crate::plan::problem::Problem;
use crate::plan::{Plan, load};
use crate::record::store::Copies;
use crate::report::finding::CheckedFile;
use crate::report::text::plural;
use crate::secret::MASK;

/// A plan, its environment and its inputs.
#[derive(Debug, clap::Args)]
pub struct PlanArgs {
    /// The plan's file
    #[arg(value_name = "PLAN")]
    pub plan: PathBuf,
    /// The environment: a name (`environments/NAME.yaml` beside the plan) or a file
    #[arg(short, long, value_name = "ENV")]
    pub env: Option<String>,
    #[command(flatten)]
    pub inputs: Inputs,
}

/// `-i NAME=VALUE`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Inputs {
    /// An input; may be repeated. A secret one is better given as `NAME=@FILE`, which no list of processes shows
    #[arg(short, long = "input", value_name = "NAME=VALUE", value_parser = pair)]
    pub input: Vec<(String, String)>,
}

/// A plan that may be run, and what its run keeps of it.
#[derive(Debug)]
pub struct Ready {
    pub plan: Plan,
    pub copies: Copies,
}

/// Loads a plan to look at: inputs and secrets may be missing. `None` when it has an
/// error; all problems are shown then.
pub fn look(args: &PlanArgs, out: &Out) -> Result<Option<Plan>, Error> {
    plan(args, false, out)
}

/// Loads a plan to run it.
pub fn ready(args: &PlanArgs, out: &Out) -> Result<Option<Ready>, Error> {
    let Some(plan) = plan(args, true, out)? else { return Ok(None) };
    let mut copies = copies(&plan)?;
    // What isn't kept is asked for again by a resume; what nobody gave comes from its default again.
    let given = |name: &str| args.inputs.input.iter().any(|(given, _)| given == name);
    copies.inputs.retain(|name, value| given(name) || !is_masked(value));
    Ok(Some(Ready { plan, copies }))
}

/// Loads the copy that a run kept of its plan, to go on with it.
pub fn copy(
    copy: &Path,
    environment: Option<&str>,
    kept: &BTreeMap<String, Value>,
    given: &Inputs,
    out: &Out,
) -> Result<Option<Plan>, Error> {
    Ok(shown(reload(copy, environment, kept, given)?, copy, out))
}

/// The same without showing its problems.
pub fn reload(
    copy: &Path,
    environment: Option<&str>,
    kept: &BTreeMap<String, Value>,
    given: &Inputs,
) -> Result<Loaded, Error> {
    let again: Vec<_> =
        kept.iter().filter(|(name, _)| !given.input.iter().any(|(given, _)| given == *name)).collect();
    if let Some((name, _)) = again.iter().find(|(_, value)| is_masked(value)) {
        // Its default, were there one, is not what the run began with.
        return Err(Error::usage(format!(
            "the run was given the input `{name}`, and no secret is kept with a run"
        ))
        .help(format!("give it again: `-i {name}=@FILE`")));
    }
    let mut inputs: Vec<(String, String)> = again
        .into_iter()
        .map(|(name, value)| (name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
        .collect();
    inputs.extend(from_files(&given.input)?);
    let environment = environment.map(absolute);
    Ok(load::load(copy, &Options { environment, inputs, complete: true }))
}

/// Loads an edited plan that takes over: what the run was given counts on, as far as the plan asks for it.
pub fn edited(
    path: &Path,
    environment: Option<&str>,
    kept: &BTreeMap<String, Value>,
    given: &Inputs,
    out: &Out,
) -> Result<Option<Ready>, Error> {
    let names = kept.keys().map(|name| (name.clone(), String::new())).collect();
    let asked = load::load(path, &Options { inputs: names, ..Options::default() });
    let unknown = |name: &str| {
        let said = format!("has no input `{name}`");
        asked
            .problems
            .iter()
            .any(|problem| problem.code == "lifeboat::unknown_input" && problem.message.ends_with(&said))
    };
    let kept: BTreeMap<String, Value> =
        kept.iter().filter(|(name, _)| !unknown(name)).map(|(name, value)| (name.clone(), value.clone())).collect();
    let Some(plan) = copy(path, environment, &kept, given, out)? else { return Ok(None) };
    let mut copies = copies(&plan)?;
    let was_given = |name: &str| kept.contains_key(name) || given.input.iter().any(|(given, _)| given == name);
    copies.inputs.retain(|name, value| was_given(name) || !is_masked(value));
    Ok(Some(Ready { plan, copies }))
}

/// Whether a kept input lacks a secret that was in it.
fn is_masked(value: &Value) -> bool {
    value.to_string().contains(MASK)
}

/// Checks one file without its inputs.
pub fn check(path: &Path, environment: Option<&str>) -> (CheckedFile, Vec<Problem>) {
    checked(path, load::load(path, &Options { environment: environment.map(str::to_owned), ..Options::default() }))
}

/// What a check comes to, for other tools.
pub fn checked(path: &Path, loaded: Loaded) -> (CheckedFile, Vec<Problem>) {
    let file = path.display().to_string();
    let problems = loaded.problems.iter().map(|problem| problem::finding(problem, &file)).collect();
    let plan = loaded.plan.as_ref().map(|plan| plan.name.clone());
    let steps = loaded.plan.as_ref().map(|plan| plan.steps.len());
    (CheckedFile { file, plan, steps, problems }, loaded.problems)
}

fn plan(args: &PlanArgs, complete: bool, out: &Out) -> Result<Option<Plan>, Error> {
    let options = Options { environment: args.env.clone(), inputs: from_files(&args.inputs.input)?, complete };
    Ok(shown(load::load(&args.plan, &options), &args.plan, out))
}

/// Shows a plan's problems on standard error; warnings only when nothing worse is there.
fn shown(loaded: Loaded, path: &Path, out: &Out) -> Option<Plan> {
    let errors = loaded.problems.iter().filter(|problem| problem.is_error()).count();
    if errors == 0 {
        if !loaded.problems.is_empty() {
            let warnings = plural(loaded.problems.len(), "warning");
            out.say(&format!("{} {}: {warnings}; `lifeboat check` shows them", out.talk.warn("!"), path.display()));
        }
        return loaded.plan;
    }
    for problem in &loaded.problems {
        shout(&problem::page(problem, out.talk));
    }
    shout(&format!("{} {}: {}; nothing was touched", out.talk.bad("✗"), path.display(), plural(errors, "error")));
    None
}

/// `NAME=@FILE` read; a value that begins with `@` is written `@@`.
fn from_files(given: &[(String, String)]) -> Result<Vec<(String, String)>, Error> {
    given
        .iter()
        .map(|(name, value)| match value.strip_prefix('@') {
            None => Ok((name.clone(), value.clone())),
            Some(rest) if rest.starts_with('@') => Ok((name.clone(), rest.to_owned())),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| {
                    Error::file(&format!("read the input `{name}` from"), Path::new(path), &error)
                })?;
                Ok((name.clone(), text.trim_end_matches(['\r', '\n']).to_owned()))
            }
        })
        .collect()
}

/// The text of the plan, its sub-plans and its environment, as a run keeps them.
fn copies(plan: &Plan) -> Result<Copies, Error> {
    let environment = &plan.environment;
    let text = match &environment.file {
        None => None,
        Some(file) => {
            let text = std::fs::read_to_string(file).map_err(|error| Error::file("read", file, &error))?;
            Some(environment.redactor.redact(&text).into_owned())
        }
    };
    Ok(Copies {
        plan: plan.file.clone(),
        plans: plan.sources.clone(),
        environment: text,
        inputs: crate::engine::preview::masked_inputs(plan),
    })
}

/// An environment's path as it was given for the original plan: names and paths are then
/// the same for the copy, which lies elsewhere.
fn absolute(named: &str) -> String {
    std::path::absolute(named).map_or_else(|_| named.to_owned(), |path| path.display().to_string())
}
