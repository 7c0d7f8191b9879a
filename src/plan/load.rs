//! The way from a file to a checked plan, all problems collected.
//!
//! ```text
//! environment file ─ environ ─┐
//! plan file ─ source, parse ──┴─ expand ─ graph ─ check, hazard ─▶ Plan
//! ```

mod hazards;
mod order;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::check::{self, Steps};
use super::environ::{self, Outside, Read};
use super::expand::{self, Expanded, Expander, Files};
use super::parse::{self, PlanFile};
use super::problem::{Place, Problem};
use super::scope::Given;
use super::source;
use super::targets::{self, Targets};
use super::{Objectives, Plan, Scope};
use crate::environment::Environment;
use crate::ids::StepId;
use crate::service::Target;
use crate::template::Templated;

/// More problems than this are counted, not told.
const MAX_PROBLEMS: usize = 500;

/// What a plan is loaded with.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `--env`: a name (`environments/NAME.yaml` beside the plan) or a path.
    pub environment: Option<String>,
    /// `-i`: names and values.
    pub inputs: Vec<(String, String)>,
    /// Whether the plan is to be run: inputs without a value and secrets that aren't
    /// there are errors then.
    pub complete: bool,
}

/// A plan, if it has no error, and all problems in the order of the text.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The plan; none when there is an error.
    pub plan: Option<Plan>,
    /// Errors and warnings.
    pub problems: Vec<Problem>,
}

impl Loaded {
    /// Whether any problem is an error.
    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(Problem::is_error)
    }
}

/// Loads the plan at `path`.
pub fn load(path: &Path, options: &Options) -> Loaded {
    let folder = path.parent().map_or_else(PathBuf::new, Path::to_owned);
    let files = Disk { folder: folder.clone() };
    let mut problems = Vec::new();
    let environment = match &options.environment {
        Some(named) => load_environment(&folder, named, options.complete, &mut problems),
        None => Some(Read::default()),
    };
    match std::fs::read(path) {
        Ok(bytes) => finish(path, &bytes, environment, options, &files, problems),
        Err(error) => {
            problems.push(unreadable("the plan", path, &error));
            Loaded { plan: None, problems }
        }
    }
}

/// Loads a plan from memory. It can call no other plans and has no environment.
pub fn load_text(name: &str, bytes: &[u8], options: &Options) -> Loaded {
    finish(Path::new(name), bytes, Some(Read::default()), options, &Nothing, Vec::new())
}

/// Loads an environment on its own: `named` is a name or a path, as for `--env`.
///
/// # Errors
/// Its problems, when it has an error.
pub fn environment(
    folder: &Path,
    named: &str,
    complete: bool,
) -> Result<(Environment, Vec<Problem>), Vec<Problem>> {
    let mut problems = Vec::new();
    match load_environment(folder, named, complete, &mut problems) {
        Some(read) if !problems.iter().any(Problem::is_error) => Ok((read.environment, problems)),
        _ => Err(problems),
    }
}

/// Loads every plan of a folder (`*.yaml`, `*.yml`, not below it), in the order of their
/// names; two plans of one name are a problem of the second.
///
/// # Errors
/// When the folder can't be read.
pub fn load_folder(folder: &Path, options: &Options) -> std::io::Result<Vec<(PathBuf, Loaded)>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    let mut names: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut all = Vec::with_capacity(paths.len());
    for path in paths {
        let mut loaded = load(&path, options);
        if let Some((name, place)) = name_of(&path) {
            if let Some(first) = names.get(&name) {
                let message = format!("{} is a plan named `{name}` too", first.display());
                let problem = Problem::at(&place, "lifeboat::duplicate_plan", message);
                loaded.problems.push(problem.help("plans of one folder have different names".to_owned()));
                loaded.plan = None;
            } else {
                names.insert(name, path.clone());
            }
        }
        all.push((path, loaded));
    }
    Ok(all)
}

fn name_of(path: &Path) -> Option<(String, Place)> {
    let (source, _) = source::read(&path.display().to_string(), &std::fs::read(path).ok()?);
    let source = source?;
    let name = source.root.child("plan")?.to_value().as_str()?.to_owned();
    let place = source.value("/plan");
    Some((name, place))
}

fn unreadable(what: &str, path: &Path, error: &std::io::Error) -> Problem {
    Problem::new("lifeboat::unreadable", format!("can't read {what} {}: {error}", path.display()))
}

/// Sub-plans on disk.
struct Disk {
    folder: PathBuf,
}

impl Files for Disk {
    fn read(&self, path: &Path) -> Result<Vec<u8>, String> {
        let real = |path: &Path| path.canonicalize().map_err(|error| error.to_string());
        let folder = if self.folder.as_os_str().is_empty() { Path::new(".") } else { &self.folder };
        let file = real(&folder.join(path))?;
        if !file.starts_with(real(folder)?) {
            return Err("a link leads out of the plan's folder".to_owned());
        }
        std::fs::read(file).map_err(|error| error.to_string())
    }

    fn shown(&self, path: &Path) -> String {
        self.folder.join(path).display().to_string()
    }
}

/// No files at all.
struct Nothing;

impl Files for Nothing {
    fn read(&self, _: &Path) -> Result<Vec<u8>, String> {
        Err("a plan in memory can't call others".to_owned())
    }
}

/// The process's own variables, and files beside the environment's.
struct Process {
    folder: PathBuf,
}

impl Outside for Process {
    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn file(&self, path: &str) -> Result<String, String> {
        std::fs::read_to_string(self.folder.join(path)).map_err(|error| error.to_string())
    }
}

fn load_environment(folder: &Path, named: &str, complete: bool, problems: &mut Vec<Problem>) -> Option<Read> {
    let is_path = named.contains('/') || [".yaml", ".yml"].iter().any(|end| named.ends_with(end));
    let path =
        if is_path { PathBuf::from(named) } else { folder.join("environments").join(format!("{named}.yaml")) };
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) => {
            let mut problem = unreadable("the environment", &path, &error);
            if !is_path {
                let known = environments(folder);
                problem = problem.help(super::problem::suggest(named, known.iter().map(String::as_str)));
            }
            problems.push(problem);
            return None;
        }
    };
    let (source, found) = source::read(&path.display().to_string(), &bytes);
    problems.extend(found);
    let outside = Process { folder: path.parent().map_or_else(PathBuf::new, Path::to_owned) };
    environ::read(&source?, &path, &outside, complete, problems)
}

/// The names of the environments beside a plan.
pub fn environments(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder.join("environments")).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "yaml"))
        .filter_map(|entry| entry.path().file_stem().map(|stem| stem.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    names
}

/// Everything after the files are in memory.
fn finish(
    path: &Path,
    bytes: &[u8],
    environment: Option<Read>,
    options: &Options,
    files: &dyn Files,
    mut problems: Vec<Problem>,
) -> Loaded {
    let environment_fits = environment.is_some();
    let Read { mut environment, secret } = environment.unwrap_or_default();
    let (source, found) = source::read(&path.display().to_string(), bytes);
    problems.extend(found);
    let file = source.and_then(|source| parse::plan(source, &mut problems)).map(Arc::new);
    let Some(file) = file else { return told(None, problems) };
    default_targets(&file, &mut environment);
    let settings = targets::settings(&environment, &secret);
    let given = Given { texts: options.inputs.clone(), complete: options.complete, ..Given::default() };
    let mut expander = Expander::new(&environment, &settings, &secret, files);
    let name = path.file_name().map_or_else(|| PathBuf::from("plan.yaml"), PathBuf::from);
    let scope = expander.top(&file, &name, &given);
    let Expander { problems: found, mut steps, finally, read, digests, .. } = expander;
    problems.extend(found);
    let text = |file: &PlanFile| file.source.file.inner().to_string();
    let mut sources = vec![(path.to_owned(), text(&file))];
    sources
        .extend(read.iter().filter_map(|(below, read)| Some((folder_of(path).join(below), text(read.as_ref()?)))));
    let called: Vec<Arc<PlanFile>> = read.into_values().flatten().collect();
    for file in &called {
        default_targets(file, &mut environment);
    }
    steps.extend(finally);
    let (steps, graph) = order::ordered(steps, &mut problems);
    let index: HashMap<StepId, usize> =
        steps.iter().enumerate().map(|(at, expanded)| (expanded.step.id.clone(), at)).collect();
    let all = Steps { all: &steps, index: &index, graph: graph.as_ref() };
    let mut used = Targets::new(&environment);
    let effects = check::steps(&all, &mut used, &mut problems);
    check::outputs(&file, &scope, &all, &mut problems);
    for expanded in &steps {
        if let (Some(scope), Some(called)) = (&expanded.step.called, &expanded.calls) {
            check::outputs(called, scope, &all, &mut problems);
        }
    }
    // A plan needs the secrets of the targets that it uses, no others.
    problems.retain(|problem| problem.target.as_ref().is_none_or(|target| used.is_used(target)));
    if environment_fits {
        for file in called.iter().chain([&file]) {
            used.declared_by(file, &mut problems);
        }
    }
    let broken = called.iter().chain([&file]).any(|file| !file.broken.is_empty());
    if let (Some(graph), false) = (&graph, broken) {
        hazards::find(&steps, effects, graph, &environment, &mut problems);
    }
    for problem in &mut problems {
        // A value that doesn't fit is repeated in the message; a secret one must not be.
        problem.message = environment.redactor.redact(&problem.message).into_owned();
    }
    if problems.iter().any(Problem::is_error) {
        return told(None, problems);
    }
    let digest = expand::digest(
        std::iter::once(expand::digest(bytes)).chain(digests).collect::<Vec<_>>().join("\n").as_bytes(),
    );
    let plan = Plan { sources, ..assemble(path, &file, scope, environment, steps, digest) };
    told(Some(plan), problems)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

fn told(plan: Option<Plan>, mut problems: Vec<Problem>) -> Loaded {
    check::dedup(&mut problems);
    // Files in the order in which they were read; within a file, in the order of the text.
    let mut files: Vec<*const ()> = Vec::new();
    for problem in &problems {
        let file = file_of(problem);
        if !files.contains(&file) {
            files.push(file);
        }
    }
    problems.sort_by_key(|problem| {
        let file = files.iter().position(|file| *file == file_of(problem));
        (file, problem.labels.first().map(|(span, _)| span.start))
    });
    if problems.len() > MAX_PROBLEMS {
        let more = problems.len() - MAX_PROBLEMS;
        let errors = problems[MAX_PROBLEMS..].iter().any(Problem::is_error);
        problems.truncate(MAX_PROBLEMS);
        let last = Problem::new("lifeboat::more", format!("{more} more problems are not shown"));
        problems.push(if errors { last } else { last.warning() });
    }
    Loaded { plan, problems }
}

fn file_of(problem: &Problem) -> *const () {
    problem.file.as_ref().map_or(std::ptr::null(), |file| Arc::as_ptr(file).cast())
}

/// A plan's default targets, where the environment has none.
fn default_targets(file: &PlanFile, environment: &mut Environment) {
    for (name, declared) in &file.document.targets {
        if let (true, false) = (declared.is_object(), environment.targets.contains_key(name))
            && let Ok(target) = serde_json::from_value::<Target>(declared.clone())
        {
            environment.targets.insert(name.clone(), target);
        }
    }
}

fn assemble(
    path: &Path,
    file: &PlanFile,
    scope: Arc<Scope>,
    environment: Environment,
    steps: Vec<Expanded>,
    digest: String,
) -> Plan {
    let document = &file.document;
    let inputs = scope.values.get("inputs").and_then(serde_json::Value::as_object).cloned().unwrap_or_default();
    let secret = |name: &&String| scope.secrets.contains(&format!("inputs.{name}"));
    let outputs = document
        .outputs
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), Templated::parse(value.clone()).ok()?)));
    Plan {
        name: document.plan.clone(),
        title: document.title.clone(),
        summary: document.summary.clone(),
        objectives: Objectives { rto: document.objectives.rto, rpo: document.objectives.rpo },
        owners: document.owners.iter().map(|owner| (owner.name.clone(), owner.contact.clone())).collect(),
        file: path.to_owned(),
        digest,
        sources: Vec::new(),
        inputs: inputs.into_iter().collect(),
        secret_inputs: document.inputs.keys().filter(secret).cloned().collect(),
        environment,
        outputs: outputs.collect(),
        scope,
        steps: steps.into_iter().map(|expanded| expanded.step).collect(),
    }
}

#[cfg(test)]
mod tests;
