//! A transaction that is applied exactly once, over kills and lost answers.
//!
//! Its id is in the journal before the commit; afterwards the server says what became of it. Two things would have it
//! answer for another transaction: a crash that loses the id before the server has it on disk, so that it gives it out
//! again, and a way back in time (a base backup, a snapshot). So the id is made durable first, and where the server's
//! history stood is noted with it.

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{POLL, SESSIONS_GONE, end_leftovers, same_server, transaction_note};
use crate::failure::Failure;
use crate::service::postgres::facts::{Moment, TransactionStatus};
use crate::service::postgres::{Server, Session};
use crate::step::{AfterKill, Done, RunCx};
use crate::units::Duration;

/// How long a step waits for a lock by default.
pub(super) fn lock_timeout() -> Duration {
    Duration::seconds(30)
}

/// A transaction of this attempt, or the one of an attempt before that was committed.
pub(super) enum Begun {
    /// It is open.
    Open(Box<Transaction>),
    /// It has happened; with what was noted of it.
    Happened(Value),
}

/// An open transaction.
pub(super) struct Transaction {
    pub session: Session,
    server: Server,
    database: String,
    system: Option<String>,
    id: String,
    attempted: String,
}

impl Transaction {
    /// Connects, makes sure that no attempt before was committed, and begins.
    pub async fn begin(
        cx: &RunCx,
        server: &Server,
        database: &str,
        attempted: &str,
        lock_timeout: Duration,
    ) -> Result<Begun, Failure> {
        let session = server.connect(Some(database)).await?;
        let system = session.server_facts().await?.system_identifier;
        match earlier(cx, &session, system.as_deref()).await? {
            Earlier::Happened(note) => return Ok(Begun::Happened(note)),
            Earlier::Unknown(why) => {
                return Err(Failure::permanent(format!("an earlier attempt may have been committed: {why}"))
                    .help("look whether the change is there, then go on with `--mark-done` or `--rerun`"));
            }
            Earlier::DidNot => {}
        }
        let begin = format!("BEGIN; SET LOCAL lock_timeout = {}", lock_timeout.std().as_millis());
        session.batch(attempted, &begin).await?;
        let id: String = session.row(attempted, "SELECT pg_current_xact_id()::text", &[]).await?.get(0);
        Ok(Begun::Open(Box::new(Self {
            session,
            server: server.clone(),
            database: database.to_owned(),
            system,
            id,
            attempted: attempted.to_owned(),
        })))
    }

    /// Commits what was applied, with `applied` in the note of it, or rolls back. Gives
    /// `applied` when it is committed.
    pub async fn end(self, cx: &RunCx, applied: Result<Value, Failure>) -> Result<Value, Failure> {
        for notice in self.session.take_notices() {
            cx.log(&format!("{notice}\n"));
        }
        let applied = match applied {
            Ok(applied) => match self.is_still_open().await {
                Ok(()) => applied,
                Err(failure) => return self.roll_back(failure).await,
            },
            Err(failure) => return self.roll_back(failure).await,
        };
        let mut note = transaction_note(self.system.as_deref(), &self.id, applied.clone());
        match self.keep_id(cx).await {
            Ok(Some(Moment { timeline, lsn })) => {
                note["timeline"] = json!(timeline);
                note["lsn"] = json!(lsn.to_string());
            }
            Ok(None) => {}
            Err(failure) => return self.roll_back(failure).await,
        }
        cx.note(note.clone()).await?;
        let Err(failure) = self.session.batch(format!("commit: {}", self.attempted), "COMMIT").await else {
            return Ok(applied);
        };
        // The answer is lost, not the outcome: ask for it.
        let Self { session, server, database, system, .. } = self;
        drop(session);
        let session = server.detached().connect(Some(&database)).await.map_err(|_| failure.clone())?;
        match fate(&session, &note, system.as_deref()).await? {
            Fate::Committed => Ok(applied),
            Fate::Aborted => Err(failure),
            Fate::Unknown(why) => Err(failure.help(why)),
        }
    }

    /// Has the server put the id on its disk: a later one is committed there. Says where its history stands then;
    /// nothing where the role may not ask.
    async fn keep_id(&self, cx: &RunCx) -> Result<Option<Moment>, Failure> {
        let attempted = format!("have the server keep the transaction's id: {}", self.attempted);
        let beside = self.server.connect(Some(&self.database)).await?;
        let kept = async {
            beside.batch(&attempted, "SET synchronous_commit = local").await?;
            beside.row(&attempted, "SELECT pg_logical_emit_message(true, 'lifeboat', '')::text", &[]).await?;
            beside.moment().await
        };
        match kept.await {
            Err(failure) if !failure.transient => {
                cx.log(&format!("{}\n", failure.message));
                Ok(None)
            }
            kept => kept,
        }
    }

    async fn is_still_open(&self) -> Result<(), Failure> {
        let sql = "SELECT pg_current_xact_id_if_assigned()::text";
        let now = self.session.row(&self.attempted, sql, &[]).await?;
        if now.get::<_, Option<&str>>(0) == Some(&self.id) {
            return Ok(());
        }
        Err(Failure::permanent(format!("{}: the statement ended the transaction that it runs in", self.attempted))
            .help("look what it did; write it without COMMIT or ROLLBACK"))
    }

    async fn roll_back(self, failure: Failure) -> Result<Value, Failure> {
        // The server rolls back by itself when the session ends; this is just sooner.
        let _ = self.session.batch("roll back", "ROLLBACK").await;
        Err(failure)
    }
}

/// What became of an attempt that was killed; `done` makes the outputs from what was noted.
pub(super) async fn after_kill(
    cx: &RunCx,
    server: &Server,
    done: fn(&Value) -> Done,
) -> Result<AfterKill, Failure> {
    let session = server.connect(None).await?;
    let system = session.server_facts().await?.system_identifier;
    if let Some(what) = end_leftovers(&session, cx).await? {
        return Ok(AfterKill::StillGoing { what });
    }
    Ok(match earlier(cx, &session, system.as_deref()).await? {
        Earlier::Happened(note) => AfterKill::Happened(done(&note)),
        Earlier::Unknown(why) => AfterKill::CannotTell { why },
        Earlier::DidNot if cx.notes.is_empty() => {
            AfterKill::DidNotHappen { why: "the attempt ended before its commit".to_owned() }
        }
        Earlier::DidNot => AfterKill::DidNotHappen { why: "its transaction was rolled back".to_owned() },
    })
}

/// What earlier attempts came to.
enum Earlier {
    Happened(Value),
    DidNot,
    Unknown(String),
}

/// What became of every attempt that noted a transaction.
async fn earlier(cx: &RunCx, session: &Session, system: Option<&str>) -> Result<Earlier, Failure> {
    for (_, note) in &cx.notes {
        match fate(session, note, system).await? {
            Fate::Committed => return Ok(Earlier::Happened(note.clone())),
            Fate::Aborted => {}
            Fate::Unknown(why) => return Ok(Earlier::Unknown(why)),
        }
    }
    Ok(Earlier::DidNot)
}

/// What became of a noted transaction (`{ "system": …, "transaction": "1234", "timeline": …, "lsn": … }`).
enum Fate {
    Committed,
    Aborted,
    Unknown(String),
}

async fn fate(session: &Session, note: &Value, system: Option<&str>) -> Result<Fate, Failure> {
    if let Err(why) = same_server(note, system) {
        return Ok(Fate::Unknown(why));
    }
    let Some(id) = note["transaction"].as_str() else { return Ok(Fate::Aborted) };
    if let Some(why) = same_history(session, note).await? {
        return Ok(Fate::Unknown(why));
    }
    let deadline = Instant::now() + SESSIONS_GONE;
    loop {
        match session.transaction_status(id).await {
            Ok(TransactionStatus::Committed) => return Ok(Fate::Committed),
            Ok(TransactionStatus::Aborted) => return Ok(Fate::Aborted),
            Ok(TransactionStatus::Forgotten) => {
                return Ok(Fate::Unknown(format!(
                    "transaction {id} is so old that the server keeps no record of it"
                )));
            }
            Ok(TransactionStatus::InProgress) if Instant::now() > deadline => {
                return Err(Failure::transient(format!(
                    "transaction {id} of an earlier attempt is still in progress"
                )));
            }
            Ok(TransactionStatus::InProgress) => tokio::time::sleep(POLL).await,
            Err(failure) if failure.transient => return Err(failure),
            // "transaction ID is in the future": a cluster that was recovered to an earlier point.
            Err(failure) => return Ok(Fate::Unknown(failure.message)),
        }
    }
}

/// Why the server's history may not be the one that the note belongs to. Ids are given out anew after a way back.
async fn same_history(session: &Session, note: &Value) -> Result<Option<String>, Failure> {
    let timeline = note["timeline"].as_u64().and_then(|timeline| u32::try_from(timeline).ok());
    let lsn = note["lsn"].as_str().and_then(|lsn| lsn.parse().ok());
    // Journals of before have none.
    let (Some(timeline), Some(lsn)) = (timeline, lsn) else { return Ok(None) };
    let then = Moment { timeline, lsn };
    let now = match session.moment().await {
        Ok(Some(now)) => now,
        Ok(None) => return Ok(Some("the server is a standby or recovers now".to_owned())),
        Err(failure) if failure.transient => return Err(failure),
        Err(failure) => return Ok(Some(failure.message)),
    };
    Ok(if now.timeline != then.timeline {
        Some(format!(
            "the server's history took another turn since: its timeline was {}, and is {} now; it was promoted, or \
             recovered to an earlier point",
            then.timeline, now.timeline
        ))
    } else if now.lsn < then.lsn {
        Some(format!(
            "the server was put back to before the attempt: its WAL was at {}, and is at {} now",
            then.lsn, now.lsn
        ))
    } else {
        None
    })
}

/// Rows and other numbers in a note.
pub(super) fn number(note: &Value, key: &str) -> u64 {
    note[key].as_u64().unwrap_or(0)
}

/// A note of how many rows there were.
pub(super) fn rows_note(rows: u64) -> Value {
    json!({ "rows": rows })
}
