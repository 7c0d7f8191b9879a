//! What tests on real systems share: a database of their own, and a context to run steps
//! in whose journal is kept in memory.
//!
//! `LIFEBOAT_TEST_POSTGRES` names a superuser's URL; `just services-up` gives one.

#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests say what went wrong by panicking"
)]

pub mod ports;
pub mod server;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lifeboat::failure::Failure;
use lifeboat::ids::{RunId, StepId};
use lifeboat::record::event::Progress;
use lifeboat::secret::Redactor;
use lifeboat::service::{PostgresSettings, Services, Target};
use lifeboat::step::world::World;
use lifeboat::step::{self, AfterKill, Done, Findings, Preview, PreviewCx, Reporter, RunCx, Step};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// The superuser's URL of the PostgreSQL that tests use.
pub fn postgres_url() -> String {
    std::env::var("LIFEBOAT_TEST_POSTGRES")
        .expect("LIFEBOAT_TEST_POSTGRES must name a superuser's URL: start the services with `just services-up`")
}

/// `url` with another database, or user and password.
pub fn url_with(url: &str, user: Option<(&str, &str)>, database: &str) -> String {
    let (scheme, rest) = url.split_once("://").expect("a URL");
    let (info, rest) = rest.rsplit_once('@').expect("user@host");
    let host = rest.split('/').next().expect("a host");
    match user {
        Some((name, password)) => format!("{scheme}://{name}:{password}@{host}/{database}"),
        None => format!("{scheme}://{info}@{host}/{database}"),
    }
}

/// A name that no other test has: `lb_swap_12345_0`.
pub fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("lb_{what}_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A plain connection to a database of the test server, as a client of Lifeboat's user would have it.
pub async fn connect(database: &str) -> tokio_postgres::Client {
    connect_to(&url_with(&postgres_url(), None, database)).await.expect("connect to the test server")
}

/// A plain connection to any URL.
pub async fn connect_to(url: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Runs statements on a database of the test server.
pub async fn sql(database: &str, statements: &str) {
    connect(database)
        .await
        .batch_execute(statements)
        .await
        .unwrap_or_else(|error| panic!("{statements}: {error:?}"));
}

/// The first value that a query gives, as text.
pub async fn value(database: &str, query: &str) -> Option<String> {
    let messages =
        connect(database).await.simple_query(query).await.unwrap_or_else(|error| panic!("{query}: {error:?}"));
    messages.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    })
}

/// Databases that go with the test, by a common prefix.
#[derive(Debug)]
pub struct Databases {
    prefix: String,
}

impl Databases {
    /// Names for a test's databases, none of them made yet.
    pub fn new(test: &str) -> Self {
        Self { prefix: unique(test) }
    }

    /// A name of this test.
    pub fn name(&self, part: &str) -> String {
        format!("{}_{part}", self.prefix)
    }

    /// Makes a database and runs statements in it.
    pub async fn create(&self, part: &str, statements: &str) -> String {
        let name = self.name(part);
        sql("postgres", &format!("CREATE DATABASE {name}")).await;
        sql(&name, statements).await;
        name
    }
}

impl Drop for Databases {
    fn drop(&mut self) {
        // To its end: another test's may go on with a digit.
        let prefix = self.name("");
        // A runtime of its own: the test's may be ending.
        let cleaning = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let client = connect("postgres").await;
                let left = "SELECT datname FROM pg_database WHERE starts_with(datname::text, $1)";
                for row in client.query(left, &[&prefix]).await.expect("list databases") {
                    let drop = format!("DROP DATABASE IF EXISTS \"{}\" WITH (FORCE)", row.get::<_, &str>(0));
                    // What a test left in the way (a prepared transaction) is for that test to remove.
                    let _ = client.batch_execute(&drop).await;
                }
            });
        });
        let _ = cleaning.join();
    }
}

/// Waits until something is so; fails the test after ten seconds.
pub async fn until<F: Future<Output = bool>>(what: &str, mut so: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !so().await {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A run's journal in memory.
#[derive(Debug, Default)]
pub struct Journal {
    notes: Mutex<Vec<(u32, Value)>>,
    log: Mutex<String>,
    progress: Mutex<Vec<Progress>>,
    /// After that many notes the next one is written and never acknowledged: the place to kill at.
    hang_at: Mutex<Option<usize>>,
    reached: tokio::sync::Notify,
}

impl Journal {
    /// What was noted.
    pub fn notes(&self) -> Vec<(u32, Value)> {
        self.notes.lock().unwrap().clone()
    }

    /// What was logged.
    pub fn log_text(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// How progress went.
    pub fn progress_seen(&self) -> Vec<Progress> {
        self.progress.lock().unwrap().clone()
    }
}

struct AttemptReporter {
    attempt: u32,
    journal: Arc<Journal>,
}

#[async_trait]
impl Reporter for AttemptReporter {
    async fn note(&self, note: Value) -> Result<(), Failure> {
        let hang = {
            let mut notes = self.journal.notes.lock().unwrap();
            notes.push((self.attempt, note));
            *self.journal.hang_at.lock().unwrap() == Some(notes.len())
        };
        if hang {
            self.journal.reached.notify_one();
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    fn progress(&self, progress: Progress) {
        self.journal.progress.lock().unwrap().push(progress);
    }

    fn log(&self, text: &str) {
        self.journal.log.lock().unwrap().push_str(text);
    }
}

/// One step of one run, attempted as often as a test likes; its journal lives as long.
#[derive(Debug)]
pub struct Harness {
    /// The targets.
    pub services: Services,
    /// The run.
    pub run: RunId,
    /// The step.
    pub id: StepId,
    /// What it noted, logged and told.
    pub journal: Arc<Journal>,
    /// Cancels the attempt that runs.
    pub cancel: CancellationToken,
    attempt: AtomicU32,
}

impl Harness {
    /// With the test server as target `db`.
    pub fn new() -> Self {
        Self::with([("db", postgres(&postgres_url()))])
    }

    /// With targets of the test's own.
    pub fn with<const N: usize>(targets: [(&str, Target); N]) -> Self {
        let targets: BTreeMap<_, _> = targets.into_iter().map(|(name, target)| (name.to_owned(), target)).collect();
        Self {
            services: Services::new(targets, Redactor::default()),
            run: RunId::parse(&format!("test-{}", unique("run"))).unwrap(),
            id: StepId::new("the-step"),
            journal: Arc::default(),
            cancel: CancellationToken::new(),
            attempt: AtomicU32::new(0),
        }
    }

    /// A step from its type's name and its parameters. Panics on parameters that its schema,
    /// its types or its check refuse.
    #[allow(clippy::unused_self, reason = "reads as the other methods do")]
    pub fn step(&self, name: &str, params: Value) -> Arc<dyn Step> {
        let info = step::find(name).unwrap_or_else(|| panic!("no step type {name}"));
        let mut generator = schemars::SchemaGenerator::default();
        let mut schema = (info.schema)(&mut generator).to_value();
        schema["$defs"] = generator.take_definitions(true).into();
        if let Err(error) = jsonschema::validate(&schema, &params) {
            panic!("the schema of {name} refuses {params}: {error}");
        }
        let step = (info.parse)(params).unwrap_or_else(|error| panic!("{}: {}", error.pointer, error.message));
        let mut found = Findings::default();
        step.check(&mut found);
        assert!(found.found.is_empty(), "{:?}", found.found);
        step
    }

    /// A context for the next attempt, with what the attempts before noted.
    pub fn next_attempt(&self) -> RunCx {
        let attempt = self.attempt.fetch_add(1, Ordering::Relaxed) + 1;
        let label = format!("lifeboat:{}:{}:{attempt}", self.run, self.id);
        RunCx {
            run: self.run.clone(),
            step: self.id.clone(),
            attempt,
            since: 1,
            services: self.services.for_attempt(&label, self.cancel.clone()),
            notes: self.journal.notes(),
            reporter: Arc::new(AttemptReporter { attempt, journal: self.journal.clone() }),
            cancel: self.cancel.clone(),
            redactor: self.services.redactor().clone(),
        }
    }

    /// Runs a step to its end.
    pub async fn run(&self, name: &str, params: Value) -> Result<Done, Failure> {
        self.step(name, params).run(&self.next_attempt()).await
    }

    /// Runs a step until its `notes`-th note is in the journal, and kills it there, before
    /// the note is acknowledged: what the process held is gone, what the server does goes on.
    pub async fn run_and_kill_at_note(&self, name: &str, params: Value, notes: usize) {
        *self.journal.hang_at.lock().unwrap() = Some(notes);
        let step = self.step(name, params);
        let cx = self.next_attempt();
        let running = tokio::spawn(async move { step.run(&cx).await.map(drop) });
        tokio::select! {
            () = self.journal.reached.notified() => running.abort(),
            () = tokio::time::sleep(Duration::from_secs(30)) => panic!("{name} did not come to note {notes}"),
        }
        let _ = running.await;
        *self.journal.hang_at.lock().unwrap() = None;
    }

    /// Asks a step what became of the attempt that was killed.
    pub async fn after_kill(&self, name: &str, params: Value) -> AfterKill {
        self.step(name, params).after_kill(&self.next_attempt()).await.unwrap()
    }

    /// Previews a step on the real systems.
    pub async fn preview(&self, name: &str, params: Value, world: &World) -> Preview {
        self.preview_as(name, params, world, Some(&self.services.read_only()), &[]).await
    }

    /// Previews a step without any contact.
    pub async fn preview_offline(&self, name: &str, params: Value, world: &World) -> Preview {
        self.preview_as(name, params, world, None, &[]).await
    }

    async fn preview_as(
        &self,
        name: &str,
        params: Value,
        world: &World,
        services: Option<&Services>,
        unknown: &[String],
    ) -> Preview {
        let cx = PreviewCx { step: &self.id, services, world, unknown };
        self.step(name, params).preview(&cx).await
    }
}

/// A PostgreSQL target.
pub fn postgres(url: &str) -> Target {
    let settings: PostgresSettings = serde_json::from_value(json!({ "url": url })).unwrap();
    Target::Postgres(settings)
}
