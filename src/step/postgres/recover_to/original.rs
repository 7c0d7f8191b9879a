//! The original that still runs: what it wrote last is archived before it is recovered elsewhere.

use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::failure::Failure;
use crate::step::RunCx;

/// How long the server's `archive_command` may take.
const ARCHIVED_WITHIN: Duration = Duration::from_mins(5);
const POLL: Duration = Duration::from_millis(200);

/// Lets the server archive its WAL up to now, with a commit in it: recovery to a time stops at the first
/// transaction after it, so there must be one.
///
/// # Errors
/// When the server can't be asked, or its archive doesn't get the segment in time.
pub(super) async fn archive(cx: &RunCx, target: &str, wal: &Path) -> Result<(), Failure> {
    let attempted = format!("let {target} archive its WAL");
    let session = cx.services.postgres(target)?.connect(None).await?;
    session.row(&attempted, "SELECT pg_catalog.pg_current_xact_id()::text", &[]).await?;
    let sql = "SELECT pg_catalog.pg_walfile_name(pg_catalog.pg_switch_wal())";
    let segment: String = session.row(&attempted, sql, &[]).await?.get(0);
    cx.log(&format!("waiting until {segment} is archived\n"));
    let deadline = Instant::now() + ARCHIVED_WITHIN;
    while !wal.join(&segment).is_file() {
        if cx.cancel.is_cancelled() {
            return Err(Failure::transient(format!("{attempted}: cancelled")));
        }
        if Instant::now() > deadline {
            let sql = "SELECT coalesce(last_failed_wal, 'none') FROM pg_catalog.pg_stat_archiver";
            let failed: String = session.row(&attempted, sql, &[]).await?.get(0);
            return Err(Failure::transient(format!(
                "{attempted}: {segment} is not in {} yet; the last segment that failed: {failed}",
                wal.display()
            ))
            .help("see the server's log for what its archive_command says"));
        }
        sleep(POLL).await;
    }
    Ok(())
}
