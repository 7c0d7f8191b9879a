//! Why there is a plan: the runbook's scenario 1, typed as it stands, reports success on damaged
//! data; the plan, on the same damage and with the same client connected, does not.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic; clippy knows only functions marked as tests"
)]

mod stage;

use std::process::{Command, Output};

use serde_json::json;
use stage::{DATABASE, RECOVERY, Stage, docker, said};

/// No row goes: every count stays as it is.
const GARBLE: &str = "UPDATE auth.users SET email = 'x' || id, password_hash = ''; \
     UPDATE credits.balances SET amount = 1";

/// A command of the runbook, in a shell without any option, as `sh -c` and cron run it.
fn typed(stage: &Stage, command: &str) -> Output {
    let url = stage.url();
    let (admin, database) = (url.clone(), url.replace("/postgres?", &format!("/{DATABASE}?")));
    Command::new("sh")
        .args(["-c", command])
        .current_dir(stage.folder.path())
        .env("ADMIN", admin)
        .env("DATABASE_URL", database)
        .output()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_runbook_reports_success_on_damaged_data_and_the_plan_repairs_it() {
    let stage = Stage::set(500, &json!({}));
    stage.back_up();
    let dumped = typed(&stage, "pg_dump \"$DATABASE_URL\" | gzip > manacore_auth.sql.gz");
    assert!(dumped.status.success(), "{}", said(&dumped));
    let whole = stage.fingerprints(DATABASE).await;
    stage.session(DATABASE).await.batch("damage", GARBLE).await.unwrap();
    let damaged = stage.fingerprints(DATABASE).await;
    assert_ne!(damaged, whole);
    let idle = stage.session(DATABASE).await;

    docker(&["stop", &stage.container]);
    let dropped = typed(&stage, "psql \"$ADMIN\" -c 'DROP DATABASE manacore_auth;'");
    assert!(!dropped.status.success(), "an idle client is in its way: {}", said(&dropped));
    let created = typed(&stage, "psql \"$ADMIN\" -c 'CREATE DATABASE manacore_auth;'");
    assert!(!created.status.success(), "{}", said(&created));
    // Pasted one after the other, nobody looks at these two. The rest is all green:
    let restored = typed(&stage, "gunzip -c manacore_auth.sql.gz | psql \"$DATABASE_URL\"");
    assert!(restored.status.success(), "{}", said(&restored));
    let errors = String::from_utf8_lossy(&restored.stderr).matches("ERROR:").count();
    assert!(errors >= 10, "{}", said(&restored));
    for (table, rows) in [("auth.users", 500), ("auth.jwks", 4)] {
        let counted = typed(&stage, &format!("psql \"$DATABASE_URL\" -Atc 'SELECT COUNT(*) FROM {table};'"));
        assert_eq!(String::from_utf8_lossy(&counted.stdout).trim(), rows.to_string(), "{}", said(&counted));
    }
    docker(&["start", &stage.container]);
    stage.health(200).await;
    assert_eq!(stage.fingerprints(DATABASE).await, damaged, "healthy, counted, and every damaged row is there");

    let output = stage.run(&["run", RECOVERY, "--env", "test", "--yes"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(stage.fingerprints(DATABASE).await, whole);
    assert!(idle.row("count", "SELECT 1", &[]).await.is_err(), "the idle client was ended");
}
