//! A connection that loads rows: each job is one transaction, noted before it is committed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::SinkExt;
use serde_json::json;
use tokio::sync::{Mutex, mpsc};

use super::cut::{Job, Rows};
use super::ledger::{CHUNK, write};
use super::split::Settings;
use super::{Shared, connect};
use crate::dump::binary::{Column, HEADER, TRAILER, turn};
use crate::dump::manifest::table_name;
use crate::dump::outline::copy_without_end;
use crate::dump::statement::copy_columns;
use crate::failure::Failure;
use crate::kill;
use crate::service::postgres::{Session, ident};

/// How much is sent at once. Each connection holds a few of these.
const PIECE: usize = 64 << 10;

/// A longer row goes over as it is: it isn't held a second time.
const LONG: usize = 4 << 20;

/// Fewer bytes of rows are not worth a look at their types.
const WORTH_TURNING: usize = 64 << 10;

/// Takes jobs until there are no more.
pub async fn work(shared: Arc<Shared>, jobs: Arc<Mutex<mpsc::Receiver<Job>>>) -> Result<(), Failure> {
    let session = connect(&shared.server, &shared.database).await?;
    // The ledger's line says whether a part is there, and the last transaction waits for the disk and all before it.
    session.batch("set up the session", "SET synchronous_commit = off").await?;
    let mut worker = Worker { session, applied: None, seen: None, shared };
    loop {
        let job = jobs.lock().await.recv().await;
        match job {
            Some(job) => worker.load(job).await?,
            None => return Ok(()),
        }
    }
}

struct Worker {
    session: Session,
    applied: Option<Settings>,
    seen: Option<Seen>,
    shared: Arc<Shared>,
}

/// The last COPY's statement, and its columns' types if all can go over in binary.
type Seen = (Arc<str>, Option<Arc<[Column]>>);

/// Why rows were not taken in.
enum Refused {
    /// A value of them is not written as PostgreSQL writes it.
    Unfit,
    Failed(Failure),
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Worker {
    async fn load(&mut self, job: Job) -> Result<(), Failure> {
        if self.applied.as_ref() != Some(&job.settings) {
            job.settings.apply(&self.session).await?;
            self.applied = Some(job.settings.clone());
            self.seen = None;
        }
        let mut as_text = BTreeSet::new();
        loop {
            match self.transaction(&job, &as_text).await {
                Ok(loaded) => {
                    self.shared.rows.fetch_add(loaded, Ordering::Relaxed);
                    return Ok(());
                }
                Err((_, Refused::Failed(failure))) => return Err(failure),
                // Once more from the transaction's start: the server reads them itself.
                Err((at, Refused::Unfit)) => {
                    as_text.insert(at);
                    self.session.batch("give up the transaction", "ROLLBACK").await?;
                }
            }
        }
    }

    async fn transaction(&mut self, job: &Job, as_text: &BTreeSet<usize>) -> Result<u64, (usize, Refused)> {
        let failed = |failure: Failure| (0, Refused::Failed(failure));
        self.session.batch("begin a transaction", "BEGIN").await.map_err(failed)?;
        let (mut loaded, mut bytes) = (0, 0);
        for (at, rows) in job.rows.iter().enumerate() {
            bytes += rows.data.len();
            let kinds = self.kinds(rows).await.map_err(failed)?;
            let kinds = kinds.filter(|_| !as_text.contains(&at));
            loaded += self.copy(rows, kinds.as_deref()).await.map_err(|why| (at, why))?;
        }
        let noted = json!({ "bytes": bytes, "of": self.shared.bytes });
        write(&self.session, &*self.shared.journal, CHUNK, job.number, noted).await.map_err(failed)?;
        self.session.batch("commit a transaction", "COMMIT").await.map_err(failed)?;
        Ok(loaded)
    }

    async fn copy(&self, rows: &Rows, kinds: Option<&[Column]>) -> Result<u64, Refused> {
        let Rows { text, table, line, data, .. } = rows;
        let failed = |error: tokio_postgres::Error| {
            let name = table_name(table.0.as_deref().unwrap_or("public"), &table.1);
            let at = row_of(&error)
                .map_or_else(|| format!("from line {line} on"), |row| format!("line {}", line + row - 1));
            self.session.failure(format_args!("{at}: rows of {name}"), &error)
        };
        // Not frozen: the server freezes rows only in a transaction that made or emptied their table. To empty one makes
        // its files anew, which took 1 ms a table: more than a later count and VACUUM gain below 4 MiB of rows, and as
        // much there. Larger tables come in several transactions, so that a restore goes on in the middle of one.
        let sql = match (copy_without_end(text.as_bytes()), kinds) {
            (Some(begin), Some(_)) => format!("{begin} FROM STDIN WITH (FORMAT binary)"),
            _ => text.to_string(),
        };
        let sink = self.session.copy_in::<_, Bytes>(&*sql).await.map_err(failed)?;
        futures::pin_mut!(sink);
        let mut rest = data.as_ref();
        let mut first = kinds.is_some();
        while !rest.is_empty() {
            // The server puts text together itself, wherever it is cut.
            let end = if kinds.is_some() { end_of_rows(rest) } else { rest.len().min(PIECE) };
            let (piece, more) = rest.split_at(end);
            rest = more;
            let piece = match kinds {
                None => data.slice_ref(piece),
                Some(_) if piece.len() > LONG => return Err(Refused::Unfit),
                Some(kinds) => {
                    let mut out = Vec::with_capacity(2 * piece.len());
                    if std::mem::take(&mut first) {
                        out.extend_from_slice(HEADER);
                    }
                    turn(kinds, piece, &mut out).map_err(|_| Refused::Unfit)?;
                    if rest.is_empty() {
                        out.extend_from_slice(TRAILER);
                    }
                    out.into()
                }
            };
            // The server says why in its answer to the end.
            if sink.feed(piece).await.is_err() {
                break;
            }
        }
        Ok(kill::around("copy", sink.finish()).await.map_err(failed)?)
    }

    /// The types of the rows' columns, if all can be turned.
    async fn kinds(&mut self, rows: &Rows) -> Result<Option<Arc<[Column]>>, Failure> {
        if rows.data.len() < WORTH_TURNING {
            return Ok(None);
        }
        if let Some((_, kinds)) = self.seen.as_ref().filter(|(text, _)| *text == rows.text) {
            return Ok(kinds.clone());
        }
        let name = match &rows.table {
            (Some(schema), table) => format!("{}.{}", ident(schema), ident(table)),
            (None, table) => ident(table),
        };
        let found = self.session.rows("look at a table's types", Column::TYPES, &[&name]).await?;
        let columns = copy_columns(rows.text.as_bytes()).unwrap_or_default();
        let kind = |column: &String| {
            let row = found.iter().find(|row| row.get::<_, &str>(0) == column)?;
            Column::of(row.get(1), row.get(2), row.get(3), row.get(4))
        };
        let kinds = columns.iter().map(kind).collect::<Option<Arc<[Column]>>>().filter(|kinds| !kinds.is_empty());
        self.seen = Some((rows.text.clone(), kinds.clone()));
        Ok(kinds)
    }
}

/// Behind the last row that ends within a piece, or the first if it is longer.
fn end_of_rows(rows: &[u8]) -> usize {
    if rows.len() <= PIECE {
        return rows.len();
    }
    let end = memchr::memrchr(b'\n', &rows[..PIECE])
        .or_else(|| memchr::memchr(b'\n', &rows[PIECE..]).map(|at| PIECE + at));
    end.map_or(rows.len(), |at| at + 1)
}

/// The row, from 1, that the server could not take in.
fn row_of(error: &tokio_postgres::Error) -> Option<u64> {
    let (_, after) = error.as_db_error()?.where_()?.split_once(", line ")?;
    after.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Whether rows must be loaded one table after the other: a check, a generated column or a
/// partition's bound runs code that might look at rows of other tables.
pub async fn must_keep_order(session: &Session) -> Result<bool, Failure> {
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_depend d \
                 LEFT JOIN pg_catalog.pg_operator o ON d.refclassid = 'pg_catalog.pg_operator'::regclass AND o.oid = d.refobjid \
                 JOIN pg_catalog.pg_proc p ON p.oid = CASE d.refclassid WHEN 'pg_catalog.pg_proc'::regclass THEN d.refobjid ELSE o.oprcode END \
                 JOIN pg_catalog.pg_language l ON l.oid = p.prolang \
                WHERE p.oid >= 16384 AND l.lanname NOT IN ('c', 'internal') \
                  AND (d.classid <> 'pg_catalog.pg_attrdef'::regclass OR EXISTS (SELECT FROM pg_catalog.pg_attrdef f \
                       JOIN pg_catalog.pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum \
                       WHERE f.oid = d.objid AND a.attgenerated <> '')) \
                  AND d.classid IN ('pg_catalog.pg_constraint'::regclass, 'pg_catalog.pg_attrdef'::regclass, \
                                    'pg_catalog.pg_class'::regclass, 'pg_catalog.pg_cast'::regclass, 'pg_catalog.pg_type'::regclass))";
    Ok(session.row("look what runs while rows are loaded", sql, &[]).await?.get(0))
}
