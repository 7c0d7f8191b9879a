//! The snapshot that a dump and its row counts share.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::Backup;
use crate::dump::count::Table;
use crate::failure::Failure;
use crate::service::postgres::{Server, Session, literal};

/// What the dump and the counts see.
pub(super) struct Snapshot {
    pub name: String,
    pub taken_at: jiff::Timestamp,
    pub wal_lsn: String,
    pub server_version: String,
    pub server_major: u32,
    pub system_identifier: String,
    pub encoding: String,
    pub collate: String,
    pub ctype: String,
}

impl Snapshot {
    /// Takes one, which lives as long as the session's transaction.
    pub async fn take(session: &Session) -> Result<Self, Failure> {
        let facts = session.server_facts().await?;
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL row_security = off";
        session.batch("take a snapshot", begin).await?;
        let sql = "SELECT pg_export_snapshot(), \
                          to_char(transaction_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), \
                          CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text, \
                          current_setting('server_version'), \
                          pg_encoding_to_char(encoding), datcollate::text, datctype::text \
                   FROM pg_catalog.pg_database WHERE datname = current_database()";
        let row = session.row("take a snapshot", sql, &[]).await?;
        let taken_at: String = row.get(1);
        Ok(Self {
            name: row.get(0),
            taken_at: taken_at
                .parse()
                .map_err(|error| Failure::permanent(format!("the server's time {taken_at}: {error}")))?,
            wal_lsn: row.get::<_, Option<String>>(2).unwrap_or_default(),
            server_version: row.get(3),
            server_major: facts.version.major,
            system_identifier: facts.system_identifier.unwrap_or_default(),
            encoding: row.get(4),
            collate: row.get(5),
            ctype: row.get(6),
        })
    }
}

impl Backup {
    /// Counts rows in the dump's snapshot, on as many connections as `jobs` says.
    pub(super) async fn count(
        &self,
        server: &Server,
        session: &Session,
        snapshot: &Snapshot,
        chosen: &[Table],
    ) -> Result<BTreeMap<String, u64>, Failure> {
        let mut others = vec![];
        for _ in 1..self.jobs.min(chosen.len() as u32) {
            let other = server.connect(Some(&self.database)).await?;
            let share = format!(
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL row_security = off; SET TRANSACTION SNAPSHOT {}",
                literal(&snapshot.name)
            );
            other.batch("share the dump's snapshot", &share).await?;
            others.push(other);
        }
        // The largest first, so that no connection ends with it alone.
        let mut queue: Vec<&Table> = chosen.iter().collect();
        queue.sort_by_key(|table| table.bytes);
        let (queue, counts) = (Mutex::new(queue), Mutex::new(BTreeMap::new()));
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let work = std::iter::once(session).chain(&others).map(|session| {
            let (next, counts) = (&next, &counts);
            async move {
                while let Some(table) = next() {
                    let rows = table.count(session).await?;
                    counts.lock().unwrap_or_else(PoisonError::into_inner).insert(table.key(), rows);
                }
                Ok::<_, Failure>(())
            }
        });
        futures::future::try_join_all(work).await?;
        Ok(counts.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}
