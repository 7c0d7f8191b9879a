//! Scenario 4 of the runbook by the project's own plan: what was deleted comes back from a cluster that
//! was recovered to the moment before, and nothing else changes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic; clippy knows only functions marked as tests"
)]

mod stage;

use serde_json::{Value, json};
use stage::{DATABASE, Stage, said};

#[tokio::test(flavor = "multi_thread")]
async fn deleted_users_come_back_and_nothing_else_changes() {
    let stage = Stage::set(1_000, &json!({}));
    stage.done(&["run", "plans/base-backup.yaml", "--env", "test", "--yes"]);
    let session = stage.session(DATABASE).await;
    // After the base backup, and before the moment: only the WAL has it.
    session.batch("write", "UPDATE credits.balances SET amount = 7 WHERE user_id LIKE '%3'").await.unwrap();
    let whole = stage.fingerprints(DATABASE).await;
    let moment = stage.moment().await;
    session.batch("delete", "DELETE FROM auth.users WHERE id LIKE '%3'").await.unwrap();
    // Life goes on: this must stay as it is.
    session.batch("go on", "UPDATE auth.users SET name = 'renamed since' WHERE id LIKE '%4'").await.unwrap();
    let renamed = "SELECT count(*) FROM auth.users WHERE name = 'renamed since'";
    let count = async |sql: &str| -> i64 { session.row("count", sql, &[]).await.unwrap().get(0) };
    let renamed_before = count(renamed).await;

    let given = format!("moment={moment}");
    let run = ["run", "plans/accidental-deletion.yaml", "--env", "test", "--yes", "-i", &given];
    // More than expected: told, and nothing is copied.
    let output = stage.run(&[&run[..], &["-i", "most=5"]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("More users are missing"), "{}", said(&output));
    assert!(stage.side().exists(), "there is something to look into");
    stage.done(&["run", "plans/remove-side-cluster.yaml", "--env", "test", "--yes"]);
    assert!(!stage.side().exists());

    stage.killed_at(&run, "recover");
    stage.killed_at(&["resume", "--yes"], "users");
    let output = stage.run(&["resume", "--yes"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(!stage.side().exists());
    assert_eq!(count(renamed).await, renamed_before, "what was changed since stays so");
    session.batch("compare", "UPDATE auth.users SET name = NULL WHERE id LIKE '%4'").await.unwrap();
    let report: Value = serde_json::from_str(&stage.done(&["report", "--format", "json"])).unwrap();
    assert_eq!(report["status"], "succeeded");
    let rows = |of: &[lifeboat::sandbox::seed::Fingerprint]| -> Vec<(String, i64)> {
        of.iter().map(|table| (table.table.to_string(), table.rows)).collect()
    };
    assert_eq!(rows(&stage.fingerprints(DATABASE).await), rows(&whole));
    assert_eq!(count("SELECT count(*) FROM credits.balances WHERE amount = 7").await, 100, "as of the moment");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moment_before_any_base_backup_is_refused() {
    let stage = Stage::set(100, &json!({}));
    let given = format!("moment={}", stage.moment().await);
    stage.done(&["run", "plans/base-backup.yaml", "--env", "test", "--yes"]);
    let run = ["run", "plans/accidental-deletion.yaml", "--env", "test", "--yes", "-i", &given];
    let output = stage.run(&run);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(said(&output).contains("find-base"), "{}", said(&output));
    let run = [&run[..6], &["moment=2999-01-01T00:00:00Z"]].concat();
    let output = stage.run(&run);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(said(&output).contains("is yet to come"), "{}", said(&output));
}
