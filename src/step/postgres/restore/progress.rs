//! How far `pg_restore` is when it loads over several connections, of which it says nothing itself: the server is
//! asked.

use std::time::Duration;

use super::Restore;
use crate::dump::proof::Proof;
use crate::failure::Failure;
use crate::record::event::{Progress, ProgressUnit};
use crate::service::postgres::{Server, Session};
use crate::step::RunCx;

/// How often the server is asked.
const EVERY: Duration = Duration::from_secs(1);

/// Rows in finished tables and in those that are being filled, tables with rows, indexes, and what is being built.
const SQL: &str = "SELECT coalesce((SELECT sum(tuples_processed) FROM pg_catalog.pg_stat_progress_copy \
                                     WHERE datid = d.oid), 0)::bigint \
                          + coalesce((SELECT sum(n_tup_ins) FROM pg_catalog.pg_stat_user_tables), 0)::bigint, \
                          (SELECT count(*) FROM pg_catalog.pg_stat_user_tables WHERE n_tup_ins > 0), \
                          (SELECT count(*) FROM pg_catalog.pg_stat_user_indexes), \
                          (SELECT min(relid::regclass::text) FROM pg_catalog.pg_stat_progress_create_index \
                            WHERE datid = d.oid) \
                   FROM pg_catalog.pg_database d WHERE d.datname = current_database()";

impl Restore {
    /// Tells how far the load into `database` is, until it is dropped.
    pub(super) async fn watch_archive(
        &self,
        server: &Server,
        proof: &Proof,
        database: &str,
        cx: &RunCx,
    ) -> Failure {
        let Ok(rows) = self.chosen_rows(proof) else { return std::future::pending().await };
        let (total, tables) = (rows.values().sum(), rows.values().filter(|rows| **rows > 0).count());
        let mut most = 0;
        let mut session: Option<Session> = None;
        loop {
            tokio::time::sleep(EVERY).await;
            // The load says itself what is wrong; older servers have no such figures.
            let asked = match session.take() {
                Some(session) => Ok(session),
                None => server.connect(Some(database)).await,
            };
            let Ok(asked) = asked else { continue };
            let Ok(row) = asked.row("ask how far the load is", SQL, &[]).await else { continue };
            session = Some(asked);
            most = row.get::<_, i64>(0).unsigned_abs().min(total).max(most);
            let (filled, indexes) = (row.get::<_, i64>(1), row.get::<_, i64>(2));
            let building = row.get::<_, Option<String>>(3);
            let building = building.map_or_else(String::new, |table| format!(": an index of {table}"));
            cx.progress(Progress {
                done: most,
                total: Some(total),
                unit: ProgressUnit::Rows,
                message: Some(format!("loading: {filled} of {tables} tables, {indexes} indexes{building}")),
            });
        }
    }
}
