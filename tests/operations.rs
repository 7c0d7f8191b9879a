//! The runbook's regular operations, by the project's own plans.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic; clippy knows only functions marked as tests"
)]

mod stage;

use serde_json::{Value, json};
use stage::{DATABASE, Stage, read, said};

const WEEKLY: [&str; 7] = ["run", "plans/weekly-operations.yaml", "--env", "test", "--yes", "-i", "review=false"];
const DAILY: [&str; 4] = ["run", "plans/daily-operations.yaml", "--env", "test"];

fn records(stage: &Stage) -> Vec<String> {
    let folder = stage.path(".lifeboat/sandboxes/test/proofs/verified_restores");
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_weekly_restore_is_proven_recorded_and_removed() {
    let stage = Stage::set(2_000, &json!({}));
    stage.back_up();
    stage.killed_at(&WEEKLY, "restore");
    stage.done(&["resume", "--yes"]);
    assert_eq!(records(&stage).len(), 1);
    assert_eq!(stage.databases().await, [DATABASE], "what was restored is gone");
    let report: Value = serde_json::from_str(&stage.done(&["report", "--format", "json"])).unwrap();
    assert_eq!(report["recovery"]["rto"]["met"], true, "{report:#}");

    // A manifest that says more than the dump holds: told, recorded as nothing, and removed as well.
    let backups = stage.path(".lifeboat/sandboxes/test/backups");
    let manifest = std::fs::read_dir(&backups)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_string_lossy().ends_with(".manifest.json"))
        .unwrap();
    let mut value: Value = serde_json::from_str(&read(&manifest)).unwrap();
    value["tables"]["auth.users"] = json!(value["tables"]["auth.users"].as_u64().unwrap() + 1);
    std::fs::write(&manifest, serde_json::to_vec(&value).unwrap()).unwrap();
    for (flags, code) in [(&[][..], 3), (&["--no-preflight"][..], 1)] {
        let output = stage.run(&[&WEEKLY[..], flags].concat());
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        assert!(said(&output).contains("auth.users"), "{}", said(&output));
    }
    assert_eq!(records(&stage).len(), 1);
    assert_eq!(stage.databases().await, [DATABASE]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daily_look_waits_for_a_person_and_tells_what_is_wrong() {
    let stage = Stage::set(500, &json!({}));
    let output = stage.run(&DAILY);
    assert_eq!(output.status.code(), Some(3), "there is no backup: {}", said(&output));
    stage.back_up();
    let output = stage.run(&DAILY);
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    let latest = stage.journals().pop().unwrap();
    let run = latest.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
    stage.done(&["approve", &run, "review", "--by", "maria", "-f", "errors=none"]);
    stage.done(&["resume", "--yes"]);

    stage.damage().await;
    let output = stage.run(&DAILY);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(said(&output).contains("signing_keys"), "{}", said(&output));
}

/// The steps of the latest run that failed.
fn failed(stage: &Stage) -> Vec<String> {
    let report: Value = serde_json::from_str(&stage.done(&["report", "--format", "json"])).unwrap();
    let steps = report["steps"].as_array().unwrap().iter();
    steps.filter(|step| step["state"] == "failed").map(|step| step["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_tell_each_thing_that_is_wrong() {
    const ALERTS: [&str; 8] =
        ["run", "plans/alerts.yaml", "--env", "test", "--yes", "--no-preflight", "-i", "samples=3"];
    let stage = Stage::set(500, &json!({}));
    // Nothing is there yet: no backup, no proven restore, and so no history.
    assert_eq!(stage.run(&ALERTS).status.code(), Some(1));
    assert_eq!(failed(&stage), ["backup", "restored"]);
    let told = read(&stage.path(".lifeboat/sandboxes/test/oncall.jsonl"));
    assert!(told.contains("alerts on test: failed"), "{told}");

    stage.back_up();
    stage.done(&WEEKLY);
    stage.back_up();
    stage.done(&ALERTS);
    // Where a standby belongs and none follows.
    assert_eq!(stage.run(&[&ALERTS[..], &["-i", "standby=true"]].concat()).status.code(), Some(1));
    assert_eq!(failed(&stage), ["replication"]);

    // What counts is not what a dashboard shows: the service answers, and its data is wrong.
    stage.damage().await;
    assert_eq!(stage.run(&ALERTS).status.code(), Some(1));
    assert_eq!(failed(&stage), ["ready", "error-rate"]);

    // A backup of a database that lost nearly all shrinks, and no exit code tells.
    stage
        .session(DATABASE)
        .await
        .batch("lose", "DELETE FROM auth.users; DELETE FROM auth.organizations")
        .await
        .unwrap();
    stage.back_up();
    assert_eq!(stage.run(&ALERTS).status.code(), Some(1));
    assert_eq!(failed(&stage), ["shrunk", "ready", "error-rate"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_monthly_drill_recovers_and_runs_on_throwaway_services_only() {
    const MONTHLY: [&str; 7] =
        ["run", "plans/monthly-operations.yaml", "--env", "test", "--yes", "-i", "review=false"];
    let stage = Stage::set(500, &json!({}));
    let whole = stage.fingerprints(DATABASE).await;
    let output = stage.run(&MONTHLY);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(said(&output).contains("A drill destroys data"), "{}", said(&output));
    assert_eq!(stage.fingerprints(DATABASE).await, whole);

    let drill = [&MONTHLY[..], &["-i", "throwaway=true"]].concat();
    stage.killed_at(&drill, "recover/restore");
    stage.done(&["resume", "--yes"]);
    assert_eq!(stage.fingerprints(DATABASE).await, whole);
    let report: Value = serde_json::from_str(&stage.done(&["report", "--format", "json"])).unwrap();
    assert_eq!(report["recovery"]["rto"]["met"], true, "{report:#}");
    assert_eq!(report["recovery"]["rpo"]["met"], true, "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_signing_keys_come_back_and_a_swapped_file_does_not() {
    const RESTORE: [&str; 5] = ["run", "plans/jwks-restore.yaml", "--env", "test", "--yes"];
    let stage = Stage::set(300, &json!({}));
    stage.done(&["run", "plans/jwks-backup.yaml", "--env", "test", "--yes"]);
    let whole = stage.fingerprints(DATABASE).await;
    stage.session(DATABASE).await.batch("lose", "DELETE FROM auth.jwks").await.unwrap();
    stage.health(503).await;
    stage.killed_at(&RESTORE, "import");
    let output = stage.run(&["resume", "--yes"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(stage.fingerprints(DATABASE).await, whole);
    stage.health(200).await;
    let told = read(&stage.path(".lifeboat/sandboxes/test/oncall.jsonl"));
    assert!(told.contains("jwks-restore on test: succeeded"), "{told}");

    let backups = stage.path(".lifeboat/sandboxes/test/backups");
    let file = std::fs::read_dir(&backups)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|extension| extension == "csv"))
        .unwrap();
    let copy = read(&file);
    let refused = async |changed: &str, more: &[&str], word: &str| {
        std::fs::write(&file, changed).unwrap();
        let output = stage.run(&[&RESTORE[..], more].concat());
        assert_eq!(output.status.code(), Some(3), "{word}: {}", said(&output));
        let text = said(&output).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains(word), "{}", said(&output));
        assert_eq!(stage.fingerprints(DATABASE).await, whole, "{word}");
    };
    // Cut between two rows: what is left of it is valid, and some keys short.
    let rows: Vec<&str> = copy.split_inclusive('\n').collect();
    refused(&rows[..rows.len() - 1].concat(), &[], "its manifest says").await;
    // The header names the columns the other way round: what it says is believed, not its place.
    let swapped = copy.replacen("public_key,private_key", "private_key,public_key", 1);
    refused(&swapped, &[], "private_key").await;
    let manifest = file.with_extension("csv.object.json");
    std::fs::remove_file(manifest).unwrap();
    refused(&copy, &[], "has no manifest").await;
    stage.done(&[&RESTORE[..], &["-i", "manifest=false"]].concat());
    assert_eq!(stage.fingerprints(DATABASE).await, whole);
}
