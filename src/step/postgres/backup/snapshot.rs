//! The snapshot that a dump and its row counts share.

use crate::dump::count::Table;
use crate::failure::Failure;
use crate::service::postgres::Session;

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

/// Counts rows in the snapshot that the session took, table by table.
pub async fn count(session: &Session, chosen: &[Table]) -> Result<Vec<u64>, Failure> {
    let mut counts = vec![];
    for table in chosen {
        counts.push(table.count(session).await?);
    }
    Ok(counts)
}
