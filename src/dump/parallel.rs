//! Restores a plain dump over several connections, a part at a time, so that an
//! interrupted restore goes on where it was.
//!
//! What comes before rows runs in the dump's order; rows go to several connections in
//! chunks, each a transaction ([`worker`]); indexes and keys are built side by side, then
//! foreign keys ([`build`]); the rest follows in order. What is done is written down in
//! the database itself, in the transaction that does it ([`ledger`]), after it was noted in
//! the run's journal. Only dumps whose [`super::outline`] allows it come here.

mod build;
mod cut;
mod ledger;
mod mention;
mod narrow;
mod order;
mod split;
mod tables;
mod vacuum;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::choice::Choice;
use super::proof::Proof;
use super::source::{PIECE, Source};
use super::survey::{Rules, create_schemas};
use crate::failure::Failure;
use crate::kill;
use crate::service::postgres::{Server, Session};
use crate::service::storage::Storage;
use cut::{Cutter, Job};
pub use ledger::Done;
use ledger::Ledger;
use order::{Task, arrange};
use split::{Event, Settings, Splitter, Statement};

/// How many statements run in one transaction: each may lock several relations.
const STATEMENTS: usize = 400;

/// How much of rows wait or are loaded at once, at most. Memory takes up to three times as much: in COPY's binary form,
/// and where pieces are copied.
/// With many connections, each of which holds something, it is more than that.
const HELD: u64 = 44 << 20;

/// How far a restore is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Tables are made: statements of theirs that were run.
    Tables {
        /// How many were.
        done: u64,
        /// How many there are.
        total: u64,
    },
    /// Statements and rows: bytes of the dump that were read.
    Rows {
        /// The bytes.
        read: u64,
        /// What goes by.
        what: String,
    },
    /// What is built of the rows.
    Built {
        /// How many are there.
        done: u64,
        /// How many there will be.
        total: u64,
        /// The one that was begun last.
        what: String,
    },
}

/// Where a restore's notes and progress go.
#[async_trait]
pub trait Journal: Send + Sync {
    /// Writes a note and waits until it is on disk.
    async fn note(&self, note: Value) -> Result<(), Failure>;
    /// Tells how far it is.
    fn progress(&self, stage: Stage);
    /// Tells what of the chosen part is left out.
    fn left_out(&self, what: &str);
}

/// A restore to be made.
pub struct Parallel<'a> {
    /// Where the dump is.
    pub storage: &'a Storage,
    /// What was proven of it.
    pub proof: &'a Proof,
    /// The server.
    pub server: &'a Server,
    /// The database to fill: new, or one that an earlier attempt began to fill.
    pub database: &'a str,
    /// What is left out.
    pub rules: Rules,
    /// What is restored, if not all of it.
    pub choice: Option<Arc<Choice>>,
    /// How many connections at once take rows, and build what keeps a processor busy.
    pub jobs: usize,
    /// How many at once make tables and build indexes and keys of small ones. Each waits for the disk: PostgreSQL writes
    /// an index to it before it goes on.
    pub small_jobs: usize,
    /// What an earlier attempt did.
    pub done: Done,
    /// Triggered when it must stop.
    pub cancel: &'a CancellationToken,
    /// Where notes go.
    pub journal: Arc<dyn Journal>,
}

impl std::fmt::Debug for Parallel<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Parallel({} into {})", self.proof.object.path, self.database)
    }
}

/// How many bytes of rows a transaction takes: few enough that connections share the work
/// and little is lost with one, many enough that each is worth waiting for the disk.
pub fn chunk_bytes(jobs: usize, proof: &Proof) -> u64 {
    let all: u64 = proof.survey.outline.copies.iter().sum();
    let most = HELD / (jobs as u64 + 3);
    (all / 64).clamp(most.min(1 << 20), most)
}

/// What became of an earlier attempt in `database`. Nothing when it must be made anew.
///
/// `notes` are those that the attempt made after it created the database.
///
/// # Errors
/// When the database can't be asked.
pub async fn recall(
    server: &Server,
    database: &str,
    notes: &[&Value],
    sha256: Option<&str>,
    rules: Rules,
    choice: Option<&Choice>,
) -> Result<Option<Done>, Failure> {
    let session = server.connect(Some(database)).await?;
    ledger::recall(&session, notes, &ledger::identity(sha256, rules, choice)).await
}

/// What workers share.
struct Shared {
    server: Server,
    database: String,
    journal: Arc<dyn Journal>,
    /// How many bytes of rows the dump holds.
    bytes: u64,
    rows: AtomicU64,
}

impl Parallel<'_> {
    /// Restores the dump, or what is missing of it.
    ///
    /// # Errors
    /// The server's own words with the dump's line, or that the dump changed meanwhile.
    pub async fn run(&self) -> Result<(), Failure> {
        if self.done.complete {
            return Ok(());
        }
        for left in self.choice.iter().flat_map(|choice| &choice.left_out) {
            self.journal.left_out(left);
        }
        let main = self.connect().await?;
        let identity = ledger::identity(self.proof.sha256.as_deref(), self.rules, self.choice.as_deref());
        let ledger = Ledger::new(self.journal.clone(), identity, self.done.chunk_bytes);
        let mut ordered = Ordered {
            main: &main,
            ledger: &ledger,
            run: 0,
            skip: self.done.statements,
            applied: Settings::default(),
        };
        let after = self.rows(&mut ordered).await?;
        self.rest(&mut ordered, after).await
    }

    /// Drops what isn't chosen of what was restored, and fills the chosen materialised views. What of the chosen part
    /// has to go with it is told before it goes.
    ///
    /// # Errors
    /// When a chosen table can't be without something that isn't chosen, or a view can't be filled.
    pub async fn narrow(&self) -> Result<(), Failure> {
        let Some(choice) = &self.choice else { return Ok(()) };
        let session = self.connect().await?;
        let narrow = narrow::Narrow::new(&session, choice, &*self.journal);
        narrow.run().await?;
        narrow.refresh(&self.proof.survey.outline.refreshed).await
    }

    async fn connect(&self) -> Result<Session, Failure> {
        connect(self.server, self.database).await
    }

    /// Reads the dump: runs what comes before rows, and loads the rows. Gives what follows.
    async fn rows(&self, ordered: &mut Ordered<'_>) -> Result<Vec<Statement>, Failure> {
        let mut source = Source::open(self.storage, &self.proof.object.path, self.cancel).await?;
        let mut splitter = Splitter::new(self.rules, self.choice.clone());
        let copies = &self.proof.survey.outline.copies;
        let mut cutter = Cutter::new(copies, self.done.chunk_bytes);
        let mut before: Vec<_> = create_schemas(&self.proof.survey).map(Statement::first).collect();
        let mut after = vec![];
        let mut pool = None;
        let mut buffer = vec![0; PIECE];
        loop {
            let read = source.read(&mut buffer).await?;
            let events = if read == 0 { vec![] } else { splitter.push(&buffer[..read])? };
            for event in events {
                match event {
                    Event::Statement(statement) if pool.is_none() => before.push(statement),
                    Event::Statement(statement) => after.push(statement),
                    Event::Copy(copy) => {
                        if pool.is_none() {
                            self.before_rows(ordered, &std::mem::take(&mut before)).await?;
                            vacuum::off(ordered.main, &self.proof.survey.rows).await?;
                            pool = Some(self.pool(ordered.main).await?);
                        }
                        cutter.begin(copy)?;
                    }
                    Event::Rows(rows) => cutter.rows(rows, true),
                }
            }
            cutter.rows(splitter.rows(), false);
            if read == 0 {
                cutter.end();
            }
            while let Some(job) = cutter.ready.pop_front() {
                let Some(pool) = &mut pool else { break };
                if !self.done.chunks.contains(&job.number) {
                    pool.take(job).await?;
                }
            }
            let rows = pool.as_ref().map_or(0, |pool: &Pool| pool.shared.rows.load(Ordering::Relaxed));
            let builds = self.proof.survey.outline.builds;
            let what = format!(
                "{} of {} tables, {rows} rows, {builds} indexes and keys to come{}",
                cutter.done(),
                copies.len(),
                splitter.table().map_or_else(String::new, |table| format!(": {table}"))
            );
            self.journal.progress(Stage::Rows { read: source.checksum.bytes(), what });
            if read == 0 {
                break;
            }
        }
        source.read_to_end().await?;
        splitter.finish()?;
        if let Some(pool) = pool {
            pool.end().await?;
        }
        self.proof.unchanged(self.storage, &source)?;
        // A dump without rows.
        self.before_rows(ordered, &before).await?;
        Ok(after)
    }

    /// Runs what comes before rows: in order, but for tables.
    async fn before_rows(&self, ordered: &mut Ordered<'_>, statements: &[Statement]) -> Result<(), Failure> {
        let mut at = 0;
        for stretch in tables::stretches(statements) {
            let (Some(first), Some(last)) = (stretch.first(), stretch.last()) else { continue };
            ordered.all(&statements[at..first.start], false).await?;
            at = last.end;
            tables::make(self, ordered, statements, &stretch).await?;
        }
        ordered.all(&statements[at..], false).await
    }

    async fn pool(&self, main: &Session) -> Result<Pool, Failure> {
        // Code of the dump's own may look at rows that must be there before.
        let jobs = if worker::must_keep_order(main).await? { 1 } else { self.jobs };
        let shared = Arc::new(Shared {
            server: self.server.clone(),
            database: self.database.to_owned(),
            journal: self.journal.clone(),
            bytes: self.proof.survey.outline.copies.iter().sum(),
            rows: AtomicU64::new(0),
        });
        let (jobs_in, jobs_out) = mpsc::channel(1);
        let jobs_out = Arc::new(Mutex::new(jobs_out));
        let mut workers = JoinSet::new();
        for _ in 0..jobs {
            workers.spawn(worker::work(shared.clone(), jobs_out.clone()));
        }
        Ok(Pool { jobs_in, workers, shared })
    }

    /// Builds indexes and keys, and runs what is left.
    async fn rest(&self, ordered: &mut Ordered<'_>, after: Vec<Statement>) -> Result<(), Failure> {
        let tasks = arrange(after, &self.proof.survey.rows);
        let total = tasks.iter().map(Task::builds).sum();
        let mut builder = build::Builder::new(self, total).await?;
        for task in tasks {
            match task {
                Task::Indexes(builds) => builder.indexes(builds).await?,
                Task::ForeignKeys(builds) => builder.foreign_keys(builds).await?,
                Task::Ordered(statements) => ordered.all(&statements, false).await?,
                Task::Last(statements) => ordered.all(&statements, true).await?,
            }
        }
        Ok(())
    }
}

/// A session that is set up as a client's own would be: the dump says the rest.
async fn connect(server: &Server, database: &str) -> Result<Session, Failure> {
    let session = server.connect(Some(database)).await?;
    let plain = "RESET search_path; RESET TimeZone; RESET lock_timeout; RESET statement_timeout; \
                 RESET idle_in_transaction_session_timeout; SET client_min_messages = warning";
    session.batch("set up the session", plain).await?;
    Ok(session)
}

/// The connections that load rows.
struct Pool {
    jobs_in: mpsc::Sender<Job>,
    workers: JoinSet<Result<(), Failure>>,
    shared: Arc<Shared>,
}

impl Pool {
    /// Waits until a worker takes the job, or one fails.
    async fn take(&mut self, job: Job) -> Result<(), Failure> {
        tokio::select! {
            biased;
            Some(ended) = self.workers.join_next() => Err(early(ended)),
            sent = self.jobs_in.send(job) => {
                sent.map_err(|_| Failure::transient("the connections that load rows are gone"))
            }
        }
    }

    /// Waits until all is loaded.
    async fn end(mut self) -> Result<(), Failure> {
        drop(self.jobs_in);
        while let Some(ended) = self.workers.join_next().await {
            match ended {
                Ok(Ok(())) => {}
                ended => return Err(early(ended)),
            }
        }
        Ok(())
    }
}

fn early(ended: Result<Result<(), Failure>, tokio::task::JoinError>) -> Failure {
    match ended {
        Ok(Err(failure)) => failure,
        Ok(Ok(())) => Failure::transient("a connection that loads rows ended early"),
        Err(error) => Failure::permanent(format!("a connection that loads rows ended: {error}")),
    }
}

/// Statements that run one after the other.
struct Ordered<'a> {
    main: &'a Session,
    ledger: &'a Ledger,
    /// How many were run so far, in this attempt or before.
    run: u64,
    /// How many an earlier attempt ran.
    skip: u64,
    /// What the session was told with SET.
    applied: Settings,
}

impl Ordered<'_> {
    /// Runs statements in transactions of their own; `last` when nothing is to follow.
    async fn all(&mut self, statements: &[Statement], last: bool) -> Result<(), Failure> {
        let known = self.skip.saturating_sub(self.run).min(statements.len() as u64);
        self.run += known;
        let mut rest = &statements[known as usize..];
        let fires = rest.iter().position(Statement::is_event_trigger).unwrap_or(rest.len());
        let mut to_trigger = fires;
        while !rest.is_empty() || last {
            let mut take = rest.len().min(STATEMENTS);
            // From an event trigger on all is one transaction: it would fire on the ledger's end, too.
            if to_trigger < rest.len() && take > to_trigger {
                take = if to_trigger == 0 { rest.len() } else { to_trigger };
            }
            let (batch, more) = rest.split_at(take);
            to_trigger = to_trigger.saturating_sub(take);
            rest = more;
            let ends = last && rest.is_empty();
            self.batch(batch, ends).await?;
            if ends {
                break;
            }
        }
        Ok(())
    }

    async fn batch(&mut self, batch: &[Statement], ends: bool) -> Result<(), Failure> {
        let main = self.main;
        main.batch("begin a transaction", "BEGIN").await?;
        if ends {
            vacuum::on(main).await?;
            self.ledger.close(main).await?;
        } else if self.run == 0 {
            self.ledger.open(main).await?;
        }
        self.send(batch).await?;
        self.run += batch.len() as u64;
        if ends {
            let transaction = ledger::transaction(main).await?;
            self.ledger.journal.note(json!({ "last": transaction })).await?;
        } else {
            self.ledger.write(main, ledger::STATEMENTS, self.run, json!({})).await?;
        }
        main.batch("commit a transaction", "COMMIT").await
    }

    /// Runs statements in one transaction, and writes them down as that part.
    async fn part(&mut self, statements: &[Statement], what: &str, number: u64) -> Result<(), Failure> {
        let main = self.main;
        main.batch("begin a transaction", "BEGIN").await?;
        self.send(statements).await?;
        self.ledger.write(main, what, number, json!({})).await?;
        main.batch("commit a transaction", "COMMIT").await
    }

    /// Sends statements one after the other without waiting for the answers, then does.
    async fn send(&mut self, statements: &[Statement]) -> Result<(), Failure> {
        let main = self.main;
        let mut sent = Vec::with_capacity(statements.len());
        for statement in statements {
            if self.applied != statement.settings {
                // What failed before is said first: the server takes no setting then, and would hide why.
                answers(main, std::mem::take(&mut sent)).await?;
                statement.settings.apply(main).await?;
            }
            self.applied = statement.settings_after();
            let mut answer = Box::pin(kill::statement(&statement.text, main.batch_execute(&statement.text)));
            let ready = match futures::poll!(answer.as_mut()) {
                Poll::Ready(answered) => Some(answered),
                Poll::Pending => None,
            };
            sent.push((statement, answer, ready));
        }
        answers(main, sent).await
    }
}

type Answer = Result<(), tokio_postgres::Error>;

/// Waits for what the server says of statements that were sent.
async fn answers(
    main: &Session,
    sent: Vec<(&Statement, impl Future<Output = Answer>, Option<Answer>)>,
) -> Result<(), Failure> {
    for (statement, answer, ready) in sent {
        let answered = match ready {
            Some(answered) => answered,
            None => answer.await,
        };
        answered.map_err(|error| {
            main.failure(format_args!("line {}: {}", statement.line, statement.beginning()), &error)
        })?;
    }
    Ok(())
}
