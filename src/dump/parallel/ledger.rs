//! What of a dump is loaded, kept in the database that is filled: each part's line is
//! written in the part's own transaction, so it is there exactly when the part is.
//!
//! A transaction's id alone would not do: after a crash of the server it may be given once
//! more to another one. The run's journal notes each part before it is committed; a line
//! that the journal doesn't know is not this run's.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};

use super::Journal;
use crate::dump::choice::Choice;
use crate::dump::survey::Rules;
use crate::failure::Failure;
use crate::kill;
use crate::service::postgres::{Session, literal};

/// Where the ledger is.
pub const SCHEMA: &str = "\"lifeboat:restore\"";

/// Statements, up to a number.
pub const STATEMENTS: &str = "statements";

/// Tables that are made beside others, by their first statement.
pub const TABLES: &str = "tables";

/// A chunk of rows.
pub const CHUNK: &str = "chunk";

/// A table that autovacuum is kept from, by its oid.
pub const AUTOVACUUM: &str = "autovacuum";

/// What an earlier attempt did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// All of it.
    pub complete: bool,
    /// How many of the statements that run in order.
    pub statements: u64,
    /// Tables made beside others, by the number of the first statement of each batch.
    pub tables: BTreeSet<u64>,
    /// Chunks of rows.
    pub chunks: BTreeSet<u64>,
    /// How large a chunk is: what was cut one way goes on that way.
    pub chunk_bytes: u64,
}

impl Done {
    /// Nothing, yet.
    pub const fn nothing(chunk_bytes: u64) -> Self {
        Self { complete: false, statements: 0, tables: BTreeSet::new(), chunks: BTreeSet::new(), chunk_bytes }
    }

    /// Whether nothing was done.
    pub fn is_nothing(&self) -> bool {
        !self.complete && self.statements == 0
    }
}

/// What the parts of a dump depend on, besides how they are cut. Begins with the form of the parts.
pub fn identity(sha256: Option<&str>, rules: Rules, choice: Option<&Choice>) -> String {
    let part = choice.map_or_else(String::new, |Choice { schemas, tables, .. }| format!(" {schemas:?} {tables:?}"));
    format!("3 {} {} {}{part}", sha256.unwrap_or_default(), rules.owners, rules.transaction_timeout)
}

/// The ledger of a restore.
pub struct Ledger {
    pub journal: Arc<dyn Journal>,
    identity: String,
    chunk_bytes: u64,
}

impl Ledger {
    pub fn new(journal: Arc<dyn Journal>, identity: String, chunk_bytes: u64) -> Self {
        Self { journal, identity, chunk_bytes }
    }

    /// Begins the ledger within the first transaction.
    pub async fn open(&self, session: &Session) -> Result<(), Failure> {
        let sql = format!(
            "CREATE SCHEMA {SCHEMA}; \
             CREATE TABLE {SCHEMA}.done (what text NOT NULL, number bigint NOT NULL, note text NOT NULL); \
             INSERT INTO {SCHEMA}.done VALUES ('dump', {}, {})",
            self.chunk_bytes,
            literal(&self.identity)
        );
        session.batch("begin the restore's ledger", &sql).await
    }

    /// Ends the ledger within the last transaction.
    pub async fn close(&self, session: &Session) -> Result<(), Failure> {
        let sql = format!("DROP TABLE {SCHEMA}.done; DROP SCHEMA {SCHEMA}");
        session.batch("end the restore's ledger", &sql).await
    }

    /// Writes that a part is loaded, within its transaction, and notes it.
    pub async fn write(&self, session: &Session, what: &str, number: u64, more: Value) -> Result<(), Failure> {
        write(session, &*self.journal, what, number, more).await
    }
}

/// See [`Ledger::write`].
pub async fn write(
    session: &Session,
    journal: &dyn Journal,
    what: &str,
    number: u64,
    more: Value,
) -> Result<(), Failure> {
    let sql = format!(
        "INSERT INTO {SCHEMA}.done VALUES ({}, {number}, pg_catalog.pg_current_xact_id()::text) RETURNING note",
        literal(what)
    );
    let transaction = first(session, &sql).await?;
    let mut note = json!({ what: number, "transaction": transaction });
    if let (Value::Object(note), Value::Object(more)) = (&mut note, more) {
        note.extend(more);
    }
    journal.note(note).await
}

/// The id of the session's transaction.
pub async fn transaction(session: &Session) -> Result<String, Failure> {
    first(session, "SELECT pg_catalog.pg_current_xact_id()::text").await
}

async fn first(session: &Session, sql: &str) -> Result<String, Failure> {
    let attempted = "write the restore's ledger";
    let answers = kill::around("ledger", session.simple_query(sql)).await;
    let answers = answers.map_err(|error| session.failure(attempted, &error))?;
    answers
        .iter()
        .find_map(|answer| match answer {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
        .ok_or_else(|| Failure::permanent(format!("{attempted}: no answer")))
}

/// What became of an earlier attempt: nothing when what is there can't be gone on with.
pub async fn recall(session: &Session, notes: &[&Value], identity: &str) -> Result<Option<Done>, Failure> {
    let attempted = "read the restore's ledger";
    let there = format!("SELECT pg_catalog.to_regclass('{SCHEMA}.done') IS NOT NULL");
    if !session.row(attempted, &there, &[]).await?.get::<_, bool>(0) {
        // It was there when the last transaction was noted: that one ended it.
        let ended = notes.iter().any(|note| note.get("last").is_some());
        return Ok(ended.then(|| Done { complete: true, ..Done::nothing(0) }));
    }
    // Rows of unlogged tables don't outlive a crash of the server, their lines here do.
    let unlogged = "SELECT EXISTS (SELECT FROM pg_catalog.pg_class WHERE relpersistence = 'u')";
    if session.row(attempted, unlogged, &[]).await?.get::<_, bool>(0) {
        return Ok(None);
    }
    let lines = session.rows(attempted, &format!("SELECT what, number, note FROM {SCHEMA}.done"), &[]).await?;
    let mut done = Done::nothing(0);
    for line in lines {
        let (what, number, note): (&str, i64, &str) = (line.get(0), line.get(1), line.get(2));
        let number = number.unsigned_abs();
        match what {
            "dump" if note == identity => done.chunk_bytes = number,
            STATEMENTS if noted(notes, what, number, note) => done.statements = done.statements.max(number),
            TABLES if noted(notes, what, number, note) => drop(done.tables.insert(number)),
            CHUNK if noted(notes, what, number, note) => drop(done.chunks.insert(number)),
            AUTOVACUUM => {}
            _ => return Ok(None),
        }
    }
    Ok((done.chunk_bytes > 0).then_some(done))
}

fn noted(notes: &[&Value], what: &str, number: u64, transaction: &str) -> bool {
    notes.iter().any(|note| note[what].as_u64() == Some(number) && note["transaction"] == transaction)
}
