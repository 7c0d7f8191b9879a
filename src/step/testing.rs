//! What the tests of step types share: an attempt's context that records what a step says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::world::World;
use super::{Findings, Preview, PreviewCx, Reporter, RunCx, Step, find};
use crate::failure::Failure;
use crate::ids::{RunId, StepId};
use crate::record::event::Progress;
use crate::secret::Redactor;
use crate::service::{Services, Target};

/// Keeps what a step says.
#[derive(Default)]
pub struct Recorder {
    notes: Mutex<Vec<Value>>,
    log: Mutex<String>,
}

impl Recorder {
    pub fn notes(&self) -> Vec<Value> {
        self.notes.lock().unwrap().clone()
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }
}

#[async_trait]
impl Reporter for Recorder {
    async fn note(&self, note: Value) -> Result<(), Failure> {
        self.notes.lock().unwrap().push(note);
        Ok(())
    }

    fn progress(&self, _: Progress) {}

    fn log(&self, text: &str) {
        self.log.lock().unwrap().push_str(text);
    }
}

/// Targets from their JSON form: `{ "api": { "http": { … } } }`.
pub fn services(targets: Value) -> Services {
    let targets: BTreeMap<String, Target> = serde_json::from_value(targets).unwrap();
    Services::new(targets, Redactor::default())
}

/// A first attempt's context.
pub fn cx(services: &Services) -> (RunCx, Arc<Recorder>) {
    let recorder = Arc::new(Recorder::default());
    let cx = RunCx {
        run: RunId::parse("20261124-062329-bako").unwrap(),
        step: StepId::from("step"),
        attempt: 1,
        since: 1,
        services: services.clone(),
        notes: vec![],
        reporter: recorder.clone(),
        cancel: CancellationToken::new(),
        redactor: services.redactor().clone(),
    };
    (cx, recorder)
}

/// The context of the attempt after one that noted `notes` and was never heard of again.
pub fn cx_after(services: &Services, notes: Vec<Value>) -> (RunCx, Arc<Recorder>) {
    let (cx, recorder) = cx(services);
    (RunCx { attempt: 2, notes: notes.into_iter().map(|note| (1, note)).collect(), ..cx }, recorder)
}

/// A step from its parameters, which its schema must accept as well.
pub fn step(name: &str, params: Value) -> Arc<dyn Step> {
    let info = find(name).unwrap();
    let mut generator = schemars::SchemaGenerator::default();
    let mut schema = (info.schema)(&mut generator).to_value();
    schema["$defs"] = generator.take_definitions(true).into();
    if let Err(error) = jsonschema::validate(&schema, &params) {
        panic!("the schema of {name} refuses {params}: {error}");
    }
    (info.parse)(params).unwrap()
}

/// Why parameters are refused, as `pointer message`.
pub fn refused(name: &str, params: Value) -> String {
    let error = (find(name).unwrap().parse)(params).unwrap_err();
    format!("{} {}", error.pointer, error.message)
}

/// What the static check finds, as `pointer message`.
pub fn findings(name: &str, params: Value) -> Vec<String> {
    let mut found = Findings::default();
    (find(name).unwrap().parse)(params).unwrap().check(&mut found);
    found.found.into_iter().map(|finding| format!("{} {}", finding.pointer, finding.message)).collect()
}

/// A preview against real systems, or none.
pub async fn preview(step: &dyn Step, services: Option<&Services>, world: &World) -> Preview {
    step.preview(&PreviewCx { step: &StepId::from("step"), services, world, unknown: &[] }).await
}

/// Waits until something holds.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}
