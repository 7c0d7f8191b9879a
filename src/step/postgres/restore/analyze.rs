//! Statistics of a restored database, gathered over several connections.

use crate::failure::Failure;
use crate::service::postgres::session::ask_all;
use crate::service::postgres::{Session, ident};

/// How many tables one statement takes at most.
const TABLES: usize = 64;

/// Tables of so many bytes have a statement of their own.
const LARGE: i64 = 8 << 20;

/// What `ANALYZE` does, over several sessions: every table and materialised view of the database.
///
/// # Errors
/// What the server said.
pub(super) async fn analyze(sessions: &[Session]) -> Result<(), Failure> {
    let attempted = "gather statistics";
    let Some(first) = sessions.first() else { return Ok(()) };
    let sql = "SELECT n.nspname::text, c.relname::text, coalesce(pg_catalog.pg_relation_size(c.oid), 0) FROM pg_catalog.pg_class c \
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                WHERE c.relkind IN ('r', 'm', 'p') AND c.relpersistence <> 't' \
                ORDER BY 3 DESC, c.oid";
    let found = first.rows(attempted, sql, &[]).await?;
    let (large, small): (Vec<_>, Vec<_>) = found.iter().partition(|row| row.get::<_, i64>(2) >= LARGE);
    let statement = |rows: &[&tokio_postgres::Row]| {
        let names: Vec<_> = rows.iter().map(|row| format!("{}.{}", ident(row.get(0)), ident(row.get(1)))).collect();
        format!("ANALYZE {}", names.join(", "))
    };
    let statements: Vec<String> = large.chunks(1).chain(small.chunks(TABLES)).map(statement).collect();
    ask_all(sessions, attempted, &statements, &|_| ()).await.map(|_| ())
}
