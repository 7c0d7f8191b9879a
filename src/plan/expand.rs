//! From plans as written to one flat list of steps: `for_each` and sub-plans are opened.
//!
//! Afterwards the graph is known: nothing adds steps in the run. A sub-plan's steps get
//! the calling step's id before theirs; the calling step stays, waits for them all and
//! hands over the sub-plan's outputs. Read next: `check`.

mod call;
mod needs;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::document::{Interrupted, OnFailure};
use super::parse::{Collector, PlanFile, StepDocument};
use super::problem::{Problem, clip, quoted, suggest};
use super::render::{Viewer, full_id};
use super::scope::{self, Given, Passed, Settings};
use super::{Allowed, Guard, Known, Late, PlannedStep, Readable, Scope, parse, source};
use crate::environment::Environment;
use crate::ids::StepId;
use crate::retry::RetryPolicy;
use crate::step::ValueKind;
use crate::template::Templated;

use needs::Names;

/// A plan of more steps, everything opened, is refused.
pub const MAX_STEPS: usize = 50_000;
/// More dependencies between steps are refused.
const MAX_NEEDS: usize = 2_000_000;
/// Plans that call each other deeper than this are refused.
const MAX_CALLS: usize = 16;

/// Where sub-plans are read from.
pub trait Files {
    /// The bytes of a file, its path relative to the top plan's folder.
    ///
    /// # Errors
    /// Why it can't be read.
    fn read(&self, path: &Path) -> Result<Vec<u8>, String>;

    /// The path as people would write it.
    fn shown(&self, path: &Path) -> String {
        path.display().to_string()
    }
}

/// A step of the flat list, and where it comes from.
#[derive(Debug)]
pub struct Expanded {
    /// The step.
    pub step: PlannedStep,
    /// The file it stands in.
    pub file: Arc<PlanFile>,
    /// Its place in that file's `steps` (or `finally`, see `in_finally`).
    at: usize,
    /// Whether it stands in its file's `finally`.
    in_finally: bool,
    /// Of a `plan.run`: the file that it calls.
    pub calls: Option<Arc<PlanFile>>,
}

impl Expanded {
    /// The step as written.
    pub fn document(&self) -> &StepDocument {
        // `at` was made by walking the same list.
        let list = if self.in_finally { &self.file.finally } else { &self.file.steps };
        &list[self.at]
    }
}

/// The surroundings in which a plan file is opened.
struct Call {
    /// The file's path, relative to the top plan's folder.
    path: PathBuf,
    /// The files that call each other down to here, this one last.
    stack: Vec<PathBuf>,
    /// Whether the calling step is one of `finally`.
    finally: bool,
    /// What the calling step waits for: so do this plan's first steps.
    needs: Vec<StepId>,
    /// The calling steps' `when`s.
    guards: Vec<Guard>,
    /// Whether a calling step says `on_failure: continue`.
    continues: bool,
    /// What the calling steps allow.
    allowed: Vec<Allowed>,
}

/// Opens plans.
pub struct Expander<'a> {
    /// The environment.
    pub environment: &'a Environment,
    /// The targets' settings.
    pub settings: &'a Settings,
    /// The environment's vars and inputs that are secret, as `vars.name`.
    pub secret_env: &'a BTreeSet<String>,
    /// Where sub-plans are read from.
    pub files: &'a dyn Files,
    /// What was found.
    pub problems: Vec<Problem>,
    /// The steps, those of `finally` apart.
    pub steps: Vec<Expanded>,
    /// The steps of `finally`.
    pub finally: Vec<Expanded>,
    /// The files that were read, by path; none where one couldn't be.
    pub read: BTreeMap<PathBuf, Option<Arc<PlanFile>>>,
    /// Their texts' digests, in the order of the first call.
    pub digests: Vec<String>,
    needs: usize,
    full: bool,
}

/// What is settled of a file before its steps are opened.
struct Settled {
    scope: Arc<Scope>,
    /// The lists of its `for_each` steps.
    lists: HashMap<String, Vec<Value>>,
}

impl<'a> Expander<'a> {
    /// An expander that has opened nothing yet.
    pub fn new(
        environment: &'a Environment,
        settings: &'a Settings,
        secret_env: &'a BTreeSet<String>,
        files: &'a dyn Files,
    ) -> Self {
        Self {
            environment,
            settings,
            secret_env,
            files,
            problems: Vec::new(),
            steps: Vec::new(),
            finally: Vec::new(),
            read: BTreeMap::new(),
            digests: Vec::new(),
            needs: 0,
            full: false,
        }
    }

    /// Opens the top plan, whose file is called `path` in its folder.
    pub fn top(&mut self, file: &Arc<PlanFile>, path: &Path, given: &Given) -> Arc<Scope> {
        let call = Call {
            path: path.to_owned(),
            stack: vec![path.to_owned()],
            finally: false,
            needs: Vec::new(),
            guards: Vec::new(),
            continues: false,
            allowed: Vec::new(),
        };
        let settled = self.settle(file, "", given, &call);
        self.open(file, &settled, &call);
        settled.scope
    }

    /// Settles a file's scope: what may be read of its steps, its inputs and vars, its lists.
    fn settle(&mut self, file: &Arc<PlanFile>, prefix: &str, given: &Given, call: &Call) -> Settled {
        let mut readable = BTreeMap::new();
        for step in file.steps.iter().chain(&file.finally) {
            let outputs = self.outputs_of(step, file, call);
            let instances = step.for_each.as_ref().map(|_| 0);
            readable.insert(step.id.clone(), Readable { outputs, instances, broken: false });
        }
        for id in &file.broken {
            readable.insert(id.clone(), Readable { outputs: Vec::new(), instances: None, broken: true });
        }
        let mut found = Collector { source: &file.source, problems: &mut self.problems };
        let mut scope = scope::make(
            file,
            prefix,
            readable,
            given,
            (self.environment, self.settings, self.secret_env),
            &mut found,
        );
        let mut lists = HashMap::new();
        for step in file.steps.iter().chain(&file.finally) {
            if let Some(template) = &step.for_each {
                let list = list_of(step, template, &scope, file, &mut found);
                if let Some(readable) = scope.steps.get_mut(&step.id) {
                    readable.instances = Some(list.len());
                }
                lists.insert(step.id.clone(), list);
            }
        }
        Settled { scope: Arc::new(scope), lists }
    }

    /// What may be read of a step: its type's outputs, and those that it declares itself.
    fn outputs_of(&mut self, step: &StepDocument, file: &Arc<PlanFile>, call: &Call) -> Vec<(String, ValueKind)> {
        if step.info.name == "plan.run" {
            let called = self.called_file(step, file, call);
            let names = called.iter().flat_map(|called| called.document.outputs.keys());
            return names.map(|name| (name.clone(), ValueKind::Any)).collect();
        }
        let fixed = (step.info.outputs)().into_iter().map(|output| (output.name.to_owned(), output.kind));
        fixed.chain((step.info.declared_outputs)(step.params.source())).collect()
    }

    /// Opens a file's steps. Gives the ids that nothing else in it waits for.
    fn open(&mut self, file: &Arc<PlanFile>, settled: &Settled, call: &Call) -> Vec<StepId> {
        let last = self.section(file, settled, call, false);
        self.section(file, settled, call, true);
        last
    }

    fn section(&mut self, file: &Arc<PlanFile>, settled: &Settled, call: &Call, in_finally: bool) -> Vec<StepId> {
        let list = if in_finally { &file.finally } else { &file.steps };
        // A called plan's `finally` needs nothing of the caller: it runs after all else anyway.
        let first = if in_finally && !call.finally { &[][..] } else { call.needs.as_slice() };
        let names = Names {
            file,
            settled,
            in_finally,
            first,
            index: list.iter().enumerate().map(|(at, step)| (step.id.as_str(), at)).collect(),
        };
        let mut awaited: BTreeSet<StepId> = BTreeSet::new();
        let mut all: Vec<StepId> = Vec::new();
        for (at, document) in list.iter().enumerate() {
            let needs = names.needs(at, &mut Collector { source: &file.source, problems: &mut self.problems });
            awaited.extend(needs.iter().cloned());
            for (id, item) in instances(document, settled) {
                if self.full {
                    return Vec::new();
                }
                all.push(full_id(&settled.scope, &id));
                let mut planned =
                    planned(document, full_id(&settled.scope, &id), item, needs.clone(), &settled.scope);
                call.surround(&mut planned, in_finally);
                let defaults = &file.document.defaults;
                planned.retry =
                    document.common.retry.as_ref().or(defaults.retry.as_ref()).cloned().unwrap_or_default();
                planned.timeout = document.common.timeout.or(defaults.timeout);
                planned.definition = definition(&planned);
                self.add(planned, file, at, in_finally, call);
            }
        }
        all.retain(|id| !awaited.contains(id));
        all
    }

    /// Adds a step; a `plan.run` is opened first.
    fn add(&mut self, mut step: PlannedStep, file: &Arc<PlanFile>, at: usize, in_finally: bool, call: &Call) {
        let is_call = step.info.name == "plan.run";
        let calls = if is_call { self.open_call(&mut step, file, at, in_finally, call) } else { None };
        self.needs += step.needs.len();
        let place = if step.finally { &self.finally } else { &self.steps };
        if place.len() >= MAX_STEPS || self.needs > MAX_NEEDS {
            self.full = true;
            let expanded = Expanded { step, file: Arc::clone(file), at, in_finally, calls };
            let (message, help) = if self.needs > MAX_NEEDS {
                (
                    format!("the plan has more than {MAX_NEEDS} dependencies between steps"),
                    "put a step between the many and the many",
                )
            } else {
                (format!("the plan opens to more than {MAX_STEPS} steps"), "split it, or let one step do more")
            };
            let at = file.source.key(&expanded.document().pointer);
            self.problems.push(Problem::at(&at, "lifeboat::too_large", message).help(help.to_owned()));
            return;
        }
        let finally = step.finally;
        let expanded = Expanded { step, file: Arc::clone(file), at, in_finally, calls };
        if finally { self.finally.push(expanded) } else { self.steps.push(expanded) }
    }
}

impl Call {
    /// What the calling steps say holds for the called plan's steps too.
    fn surround(&self, step: &mut PlannedStep, in_finally: bool) {
        step.finally = self.finally || in_finally;
        step.continue_on_failure |= self.continues;
        step.when.splice(0..0, self.guards.iter().cloned());
        step.allowed.splice(0..0, self.allowed.iter().cloned());
    }
}

/// A step as its document says, without what its surroundings add.
fn planned(
    document: &StepDocument,
    id: StepId,
    item: Option<Value>,
    needs: Vec<StepId>,
    scope: &Arc<Scope>,
) -> PlannedStep {
    let common = &document.common;
    let condition = document.when.clone();
    let allowed = common.allow.iter().flatten().filter_map(|code| parse::hazard_code(code));
    let because = common.because.clone().unwrap_or_default();
    PlannedStep {
        id,
        info: document.info,
        title: document.title.clone(),
        summary: common.summary.clone(),
        needs,
        finally: false,
        when: condition
            .map(|condition| Guard { condition, scope: Arc::clone(scope), item: item.clone() })
            .into_iter()
            .collect(),
        retry: RetryPolicy::default(),
        timeout: None,
        continue_on_failure: common.on_failure == OnFailure::Continue,
        confirm: document.confirm.clone(),
        rerun_if_interrupted: common.interrupted == Interrupted::Rerun,
        valid_for: common.valid_for,
        undo: document.undo.clone(),
        definition: String::new(),
        allowed: allowed.map(|code| Allowed { code: code.to_owned(), because: because.clone() }).collect(),
        params: document.params.clone(),
        scope: Arc::clone(scope),
        item,
        called: None,
    }
}

/// The instances of a step: its id, or `id[0]` and so on, each with its item.
fn instances<'s>(
    document: &'s StepDocument,
    settled: &'s Settled,
) -> impl Iterator<Item = (String, Option<Value>)> + 's {
    let list = document.for_each.is_some().then(|| settled.lists.get(&document.id).map_or(&[][..], Vec::as_slice));
    let single = list.is_none().then(|| (document.id.clone(), None));
    let many = list.unwrap_or_default().iter().enumerate();
    single.into_iter().chain(many.map(|(index, item)| (format!("{}[{index}]", document.id), Some(item.clone()))))
}

/// The list of a `for_each`, which must be known before the run.
fn list_of(
    step: &StepDocument,
    template: &Templated,
    scope: &Scope,
    file: &PlanFile,
    found: &mut Collector<'_>,
) -> Vec<Value> {
    let pointer = format!("{}/for_each", step.pointer);
    let help = || "give a list, or an input or var of type `list`".to_owned();
    if super::check::has_unknown_name(template, scope, file) {
        // Told where references are checked.
        return Vec::new();
    }
    let late = template.references().iter().find(|read| {
        ["steps", "run", "item"].contains(&read.path[0].as_str())
            || read.path.len() > 1 && scope.late.contains_key(&read.path[..2].join("."))
    });
    if let Some(late) = late {
        let message = format!("`for_each` needs a list known before the run; `{}` is not", late.path.join("."));
        found.value(&pointer, "lifeboat::not_known_before_run", message, help());
        return Vec::new();
    }
    let known = Known::default();
    let seen = Viewer { scope, item: None, known: &known }.see(template);
    match seen.value(template) {
        // An input without a value: one instance stands for them all.
        Ok(value) if !seen.is_known() && value.is_string() => match seen.whole_kind(template) {
            ValueKind::List | ValueKind::Any => vec![value],
            _ => {
                found.value(&pointer, "lifeboat::wrong_type", "`for_each` is a list", help());
                Vec::new()
            }
        },
        Ok(Value::Array(items)) => items,
        Ok(other) => {
            let message = format!("`for_each` is a list, not `{}`", clip(&other.to_string()));
            found.value(&pointer, "lifeboat::wrong_type", message, help());
            Vec::new()
        }
        Err(error) => {
            found.value(&format!("{pointer}{}", error.pointer), "lifeboat::template", error.message, help());
            Vec::new()
        }
    }
}

/// What of a step's surroundings defines it, secrets left out.
fn definition(step: &PlannedStep) -> String {
    let mut reads: BTreeMap<String, Value> = BTreeMap::new();
    let own = step.params.references().iter().map(|reference| (reference, &step.scope));
    let conditions = step
        .when
        .iter()
        .flat_map(|guard| guard.condition.references().iter().map(move |reference| (reference, &guard.scope)));
    for (reference, scope) in own.chain(conditions) {
        let path = reference.path.iter().take(2).cloned().collect::<Vec<_>>();
        if !["inputs", "vars"].contains(&path[0].as_str()) || scope.is_secret(&path) {
            continue;
        }
        let name = path.join(".");
        let value = match scope.late.get(&name) {
            Some(late) => late.template.source().clone(),
            None => path.iter().fold(&scope.values, |value, segment| &value[segment.as_str()]).clone(),
        };
        reads.insert(format!("{}{name}", scope.prefix), value);
    }
    let whole = json!({
        "type": step.info.name,
        "params": step.params.source(),
        "when": step.when.iter().map(|guard| guard.condition.source()).collect::<Vec<_>>(),
        "item": step.item,
        "reads": reads,
    });
    digest(whole.to_string().as_bytes())
}

/// SHA-256 in hex.
pub fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a String can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
