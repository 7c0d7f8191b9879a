//! Tests of the engine as a whole, with a step type that does what each test wants.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::*;
use crate::environment::Environment;
use crate::failure::Failure;
use crate::ids::StepId;
use crate::plan::{Objectives, PlannedStep, Scope};
use crate::record::event::{Outcome, Outputs, QuestionKind, Record};
use crate::record::state::Phase;
use crate::retry::RetryPolicy;
use crate::secret::Redactor;
use crate::step::effect::{Access, Resource};
use crate::step::{
    Action, AfterKill, Certainty, Done, Output, Preview, PreviewCx, RunCx, Step, StepType, TypeInfo, ValueKind,
};
use crate::template::Templated;

mod ends;
mod locks;
mod people;
mod plans;
mod resumes;
mod steers;
mod undo;

/// Does what its parameters say, and leaves a line in a file for each time that it acts.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct Fake {
    /// A file that gets a line when it acts.
    touch: Option<PathBuf>,
    /// Fails for good with this message.
    fail: Option<String>,
    /// Fails in passing, this many times.
    flaky: u32,
    /// Runs until it is cancelled.
    hang: bool,
    /// Doesn't stop when it is cancelled.
    deaf: bool,
    panic: bool,
    /// Waits before it is through, in milliseconds.
    takes: u64,
    /// Waits for this file to be there.
    gate: Option<PathBuf>,
    note: Option<Value>,
    outputs: Outputs,
    /// What it answers after a kill.
    after: Option<String>,
    asks: Option<Ask>,
    blocked: Option<String>,
    destroys: Option<String>,
    /// Changes a database of target `db`.
    changes: Option<String>,
    text: Option<String>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
struct Ask {
    quorum: u32,
    by: Vec<String>,
    not_by_requester: bool,
    #[schemars(with = "Option<String>")]
    until: Option<Timestamp>,
}

impl Fake {
    fn act(&self, cx: &RunCx) {
        if let Some(path) = &self.touch {
            use std::io::Write;
            let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
            writeln!(file, "{} {}", cx.step, cx.attempt).unwrap();
        }
    }
}

#[async_trait]
impl Step for Fake {
    fn effects(&self) -> Vec<Effect> {
        let destroys = self.destroys.iter();
        let destroys = destroys.map(|name| Effect::new(Access::Destroy, Resource::other("file", name)));
        let changes = self.changes.iter().map(|name| Effect::new(Access::Change, Resource::database("db", name)));
        destroys.chain(changes).collect()
    }

    async fn preview(&self, _cx: &PreviewCx<'_>) -> Preview {
        let preview = Preview::new(Action::Change, Certainty::Assumed, "do it");
        match &self.blocked {
            Some(why) => preview.blocked(why, None),
            None => preview,
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        if let Some(note) = &self.note {
            cx.note(note.clone()).await?;
        }
        if cx.attempt <= self.flaky {
            return Err(Failure::transient(format!("not yet, at attempt {}", cx.attempt)));
        }
        if let Some(text) = &self.text {
            cx.log(text);
        }
        if self.hang {
            cx.cancel.cancelled().await;
            return Err(Failure::transient("stopped in the middle"));
        }
        if self.deaf {
            std::future::pending::<()>().await;
        }
        if let Some(gate) = &self.gate {
            until(|| gate.exists()).await;
        }
        assert!(!self.panic, "as the test wants it");
        tokio::time::sleep(Duration::from_millis(self.takes)).await;
        if let Some(message) = &self.fail {
            return Err(Failure::permanent(message));
        }
        self.act(cx);
        Ok(Done { outputs: self.outputs.clone(), summary: Some("did it".to_owned()) })
    }

    async fn after_kill(&self, cx: &RunCx) -> Result<AfterKill, Failure> {
        let why = "the test says so".to_owned();
        Ok(match self.after.as_deref().unwrap_or("run again") {
            "happened" => AfterKill::Happened(Done::new("it was there").output("from", "the world")),
            "partly" => AfterKill::Partly { what: why },
            // Until somebody else takes the file away.
            "going" | "lost" if self.touch.as_ref().is_some_and(|path| path.exists()) => {
                AfterKill::StillGoing { what: why }
            }
            "going" => AfterKill::Happened(Done::new("it ended by itself")),
            "cannot tell" | "lost" => AfterKill::CannotTell { why },
            "unreachable" => return Err(Failure::transient("connection refused")),
            "noted" => match cx.notes.last() {
                Some((attempt, note)) => {
                    AfterKill::Happened(Done::new("by its note").output(&attempt.to_string(), note.clone()))
                }
                None => AfterKill::DidNotHappen { why: "nothing was noted".to_owned() },
            },
            _ => AfterKill::RunAgain { why },
        })
    }

    fn question(&self, _now: Timestamp) -> Option<Question> {
        let ask = self.asks.clone()?;
        Some(Question {
            kind: QuestionKind::Approve,
            message: "may it go on?".to_owned(),
            checklist: Vec::new(),
            fields: BTreeMap::default(),
            by: ask.by,
            quorum: ask.quorum,
            not_by_requester: ask.not_by_requester,
            until: ask.until,
        })
    }

    fn answered(&self, answers: &[Answer]) -> Outputs {
        answers.iter().map(|answer| (answer.by.clone(), json!(answer.approved))).collect()
    }
}

impl StepType for Fake {
    const NAME: &'static str = "test.fake";
    const SUMMARY: &'static str = "Does what a test wants";
    const PROVES_HEALTH: bool = true;

    fn outputs() -> Vec<Output> {
        vec![crate::step::output("value", ValueKind::Any, "whatever")]
    }
}

static FAKE: TypeInfo = crate::step::info::<Fake>();

/// A step of the plan under test; each waits for the one before it unless `needs` says otherwise.
pub(super) fn step(id: &str, params: Value) -> PlannedStep {
    PlannedStep {
        id: StepId::from(id),
        info: &FAKE,
        title: None,
        summary: None,
        needs: Vec::new(),
        finally: false,
        when: Vec::new(),
        retry: RetryPolicy { delay: crate::units::Duration::millis(1), ..RetryPolicy::default() },
        timeout: None,
        continue_on_failure: false,
        confirm: None,
        rerun_if_interrupted: false,
        valid_for: None,
        undo: None,
        definition: definition(id, &params),
        allowed: Vec::new(),
        params: Templated::parse(params).unwrap(),
        scope: scope(),
        item: None,
        called: None,
    }
}

fn definition(id: &str, params: &Value) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (id, params.to_string()).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// The state of a run that began at `at`, whose steps `started` run.
pub(super) fn records(plan: &Arc<Plan>, at: Timestamp, started: &[(&str, Timestamp)]) -> (RunState, Vec<Record>) {
    let bench = Bench::new();
    let id = RunId::parse("test").unwrap();
    let header = super::started(&bench.cx, plan, &id, headers(plan, None));
    let events =
        started.iter().map(|(step, at)| (*at, Event::StepStarted { step: (*step).to_owned(), attempt: 1 }));
    let events = std::iter::once((at, Event::RunStarted(Box::new(header)))).chain(events);
    let record = |(seq, (at, event))| Record { seq: seq as u64, at, prev: String::new(), event };
    let records: Vec<_> = events.enumerate().map(record).collect();
    (RunState::fold(&records).unwrap(), records)
}

fn scope() -> Arc<Scope> {
    Arc::new(Scope {
        prefix: String::new(),
        values: json!({}),
        late: BTreeMap::default(),
        unknown: BTreeMap::default(),
        secrets: BTreeSet::default(),
        steps: BTreeMap::default(),
    })
}

pub(super) fn needing(id: &str, params: Value, needs: &[&str]) -> PlannedStep {
    PlannedStep { needs: needs.iter().map(|need| StepId::from(*need)).collect(), ..step(id, params) }
}

pub(super) fn finally(id: &str, params: Value, needs: &[&str]) -> PlannedStep {
    PlannedStep { finally: true, ..needing(id, params, needs) }
}

pub(super) fn plan(steps: Vec<PlannedStep>) -> Arc<Plan> {
    Arc::new(Plan {
        name: "test".to_owned(),
        title: None,
        summary: None,
        objectives: Objectives::default(),
        owners: Vec::new(),
        file: PathBuf::from("test.yaml"),
        digest: "0".repeat(64),
        sources: Vec::new(),
        inputs: BTreeMap::default(),
        secret_inputs: Vec::new(),
        environment: Environment::default(),
        steps,
        outputs: BTreeMap::default(),
        scope: scope(),
    })
}

/// A state folder, and what a run in it needs.
struct Bench {
    folder: tempfile::TempDir,
    cx: Context,
    seen: Seen,
}

#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<Record>>>);

impl Sink for Seen {
    fn past(&mut self, _record: &Record) {}

    fn record(&mut self, record: &Record) {
        self.0.lock().unwrap().push(record.clone());
    }
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("state").to_str().unwrap()).unwrap();
        let services = Services::new(BTreeMap::default(), Redactor::default());
        Self { cx: Context::new(store, services), folder, seen: Seen::default() }
    }

    /// With the tests' real PostgreSQL server as target `db`.
    fn with_postgres() -> Self {
        let url =
            std::env::var("LIFEBOAT_TEST_POSTGRES").expect("a superuser's URL, as `just services-up` gives one");
        let settings = serde_json::from_value(json!({ "postgres": { "url": url } })).unwrap();
        let mut bench = Self::new();
        bench.cx.services = Services::new([("db".to_owned(), settings)].into(), Redactor::default());
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn console(&self) -> Console {
        Console { sinks: vec![Box::new(self.seen.clone())], ..Console::default() }
    }

    async fn run(&self, plan: &Arc<Plan>) -> Ended {
        run(&self.cx, plan, RunOptions::default(), self.console()).await.unwrap()
    }

    async fn resume(&self, plan: &Arc<Plan>, folder: &RunFolder) -> Ended {
        resume(&self.cx, plan, folder, RunOptions::default(), self.console()).await.unwrap()
    }

    async fn steer(&self, plan: &Arc<Plan>, folder: &RunFolder, steering: Steering) -> Result<Ended, EngineError> {
        let options = RunOptions { steering: Some(steering), ..RunOptions::default() };
        resume(&self.cx, plan, folder, options, self.console()).await
    }

    /// Runs until `met`, then as if the process were killed: the journal ends there.
    async fn killed_when(&self, plan: &Arc<Plan>, met: impl Fn(&Event) -> bool) -> RunFolder {
        let (cx, plan, console) = (self.cx.clone(), plan.clone(), self.console());
        let task = tokio::spawn(async move { run(&cx, &plan, RunOptions::default(), console).await });
        until(|| self.seen.0.lock().unwrap().iter().any(|record| met(&record.event))).await;
        task.abort();
        let _ = task.await;
        self.cx.store.find(None).unwrap()
    }
}

async fn until(mut met: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !met() {
        assert!(std::time::Instant::now() < deadline, "it never came to be");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(ToOwned::to_owned).collect()
}

fn outcome<'a>(ended: &'a Ended, step: &str) -> &'a Outcome {
    ended.state.step(step).unwrap().outcome().unwrap_or_else(|| panic!("{step} has not ended"))
}

fn failure<'a>(ended: &'a Ended, step: &str) -> &'a str {
    match outcome(ended, step) {
        Outcome::Failed { error } => &error.message,
        other => panic!("{step}: {other:?}"),
    }
}

fn yes(by: &str) -> Answer {
    Answer { approved: true, by: by.to_owned(), at: Timestamp::now(), note: None, fields: BTreeMap::default() }
}
