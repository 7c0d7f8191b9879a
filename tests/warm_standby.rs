//! A warm copy: kept beside the live database, taken when it is of the chosen backup, never twice.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic; clippy knows only functions marked as tests"
)]

mod stage;

use serde_json::{Value, json};
use stage::{DATABASE, RECOVERY, Stage, said};

const WARM: [&str; 5] = ["run", "plans/warm-standby.yaml", "--env", "test", "--yes"];
const RECOVER: [&str; 5] = ["run", RECOVERY, "--env", "test", "--yes"];

/// The latest run's report.
fn report(stage: &Stage) -> Value {
    serde_json::from_str(&stage.done(&["report", "--format", "json"])).unwrap()
}

/// A step of a report.
fn step<'a>(report: &'a Value, id: &str) -> &'a Value {
    let steps = report["steps"].as_array().unwrap();
    steps.iter().find(|step| step["id"] == id).unwrap_or_else(|| panic!("{id} in {report:#}"))
}

async fn copies(stage: &Stage) -> Vec<String> {
    let databases = stage.databases().await;
    databases.into_iter().filter(|name| name.starts_with("manacore_auth_warm_")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_copy_is_taken_instead_of_a_restore() {
    let stage = Stage::set(2_000, &json!({}));
    stage.back_up();
    let whole = stage.fingerprints(DATABASE).await;

    // Killed in its longest step: no copy is marked, and the run goes on with its own.
    stage.killed_at(&WARM, "restore");
    stage.done(&["resume", "--yes"]);
    let first = copies(&stage).await;
    assert_eq!(first.len(), 1, "{first:?}");
    assert!(stage.server().connect(Some(&first[0])).await.is_err(), "it is sealed");

    // The same backup again: there is nothing to do.
    stage.done(&WARM);
    assert_eq!(copies(&stage).await, first);
    assert_eq!(step(&report(&stage), "restore")["state"], "skipped");

    // A newer backup: its copy takes the older one's place.
    stage.back_up();
    stage.done(&WARM);
    let second = copies(&stage).await;
    assert_eq!(second.len(), 1, "{second:?}");
    assert_ne!(second, first);

    stage.damage().await;
    let output = stage.run(&RECOVER);
    assert!(output.status.success(), "{}", said(&output));
    let warm = report(&stage);
    assert_eq!(step(&warm, "restore")["state"], "skipped", "the copy was taken");
    assert_eq!(step(&warm, "verify-rows")["state"], "skipped", "it was proven, and sealed");
    assert_eq!(stage.fingerprints(DATABASE).await, whole);
    assert_eq!(stage.health(200).await["ready"], true);
    assert!(copies(&stage).await.is_empty());

    // It is spent: what is live now isn't taken for a copy, and the backup is restored.
    stage.damage().await;
    let output = stage.run(&RECOVER);
    assert!(output.status.success(), "{}", said(&output));
    let restored = report(&stage);
    assert_eq!(step(&restored, "restore")["state"], "succeeded");
    assert_eq!(stage.fingerprints(DATABASE).await, whole);
    let time = |report: &Value| report["recovery"]["time"].as_f64().unwrap();
    println!("recovery time: {:.3} s by the warm copy, {:.3} s by a restore", time(&warm), time(&restored));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_written_to_is_not_taken() {
    let stage = Stage::set(200, &json!({}));
    stage.back_up();
    stage.done(&WARM);
    let whole = stage.fingerprints(DATABASE).await;
    let copy = copies(&stage).await.remove(0);
    let server = stage.session("postgres").await;
    let allow = |allowed: bool| format!("ALTER DATABASE {copy} WITH ALLOW_CONNECTIONS {allowed}");
    server.batch("open the copy", &allow(true)).await.unwrap();
    stage.session(&copy).await.batch("write", "DELETE FROM auth.jwks").await.unwrap();
    stage.damage().await;
    let damaged = stage.fingerprints(DATABASE).await;

    // Whoever opens it, writes to it and seals it again means to: that is found by whom asks for it.
    server.batch("seal the copy", &allow(false)).await.unwrap();
    let output = stage.run(&[&RECOVER[..], &["-i", "recheck=true"]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("auth.jwks has 0 rows"), "{}", said(&output));
    assert_eq!(stage.fingerprints(DATABASE).await, damaged, "nothing was put in its place");

    // Opened, it proves nothing any more: the backup is restored.
    server.batch("open the copy", &allow(true)).await.unwrap();
    let output = stage.run(&RECOVER);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(step(&report(&stage), "restore")["state"], "succeeded");
    assert_eq!(stage.fingerprints(DATABASE).await, whole);
}
