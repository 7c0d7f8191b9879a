//! Every plan, one after the other, on one set of throwaway services: `just drill` prints the table.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic; clippy knows only functions marked as tests"
)]

mod stage;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use stage::{DATABASE, Stage, said};

/// A plan and what it needs to be told, in an order in which each finds what it looks for.
const DRILL: &[(&str, &[&str])] = &[
    ("verify-integrity", &[]),
    ("daily-backup", &[]),
    ("pre-migration-backup", &["-i", "change=drill"]),
    ("daily-operations", &["-i", "review=false"]),
    ("weekly-operations", &["-i", "review=false"]),
    ("daily-backup", &[]),
    ("alerts", &["-i", "samples=3"]),
    ("offsite-copy", &[]),
    ("warm-standby", &[]),
    ("redis-backup", &[]),
    ("jwks-backup", &[]),
    ("jwks-restore", &[]),
    ("emergency-cleanup", &[]),
    ("base-backup", &[]),
    ("accidental-deletion", &[]),
    ("remove-side-cluster", &[]),
    // The first takes the warm copy, the second has none left to take.
    ("database-corruption", &[]),
    ("database-corruption", &[]),
    ("monthly-operations", &["-i", "review=false", "-i", "throwaway=true"]),
    ("rotate-keys", &["-i", "grace=1s"]),
    ("jwks-loss", &[]),
    ("jwks-loss", &["-i", "mode=regenerate"]),
    ("renew-keys", &[]),
    ("emergency-key-rotation", &["-i", "second_person=false"]),
    ("daily-backup", &[]),
    // The last: what it rebuilds is gone.
    ("complete-service-failure", &[]),
    ("remove-rebuilt", &[]),
];

/// What runs where the service is rebuilt.
const REBUILT: [&str; 2] = ["complete-service-failure", "remove-rebuilt"];

#[test]
fn every_plan_is_drilled() {
    let drilled: BTreeSet<&str> = DRILL.iter().map(|(plan, _)| *plan).collect();
    let plans = std::fs::read_dir("plans").unwrap().map(|entry| entry.unwrap().path());
    let left_out: Vec<String> = plans
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .filter(|plan| !drilled.contains(plan.as_str()))
        .collect();
    assert!(left_out.is_empty(), "not in `just drill`: {left_out:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn drill() {
    let stage = Stage::with_images(20_000, &json!({}), true);
    let whole = stage.fingerprints(DATABASE).await;
    let mut rows = vec![];
    for (plan, inputs) in DRILL {
        let recovers = *plan == "database-corruption";
        if recovers {
            stage.damage().await;
        }
        if *plan == "complete-service-failure" {
            stage.lose_everything();
        }
        let env = if REBUILT.contains(plan) { "rebuilt" } else { "test" };
        let mut moment = String::new();
        if *plan == "accidental-deletion" {
            moment = format!("moment={}", stage.moment().await);
            stage
                .session(DATABASE)
                .await
                .batch("delete", "DELETE FROM auth.users WHERE id LIKE '%7'")
                .await
                .unwrap();
        }
        let recovers = recovers || !moment.is_empty();
        let file = format!("plans/{plan}.yaml");
        let given: &[&str] = if moment.is_empty() { inputs } else { &["-i", &moment, "-i", "most=5000"] };
        let rebuild = if *plan == "remove-rebuilt" { format!("run={}", stage.latest()) } else { String::new() };
        let given = if rebuild.is_empty() { given } else { &["-i", &rebuild] };
        let output = stage.run(&[&["run", &file, "--env", env, "--yes"], given].concat());
        assert!(output.status.success(), "{plan}: {}", said(&output));
        if recovers {
            assert_eq!(stage.fingerprints(DATABASE).await, whole, "{plan}: every row is back");
        }
        let report: Value = serde_json::from_str(&stage.done(&["report", "--format", "json"])).unwrap();
        rows.push(row(plan, &report));
    }
    println!("\n| plan | steps | run | recovery time | recovery point | objectives met |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for row in &rows {
        println!("{row}");
    }
    println!();
}

/// Plans that no test of their own kills, in an order in which each finds what it looks for.
const KILLED: &[(&str, &[&str])] = &[
    ("daily-backup", &[]),
    ("pre-migration-backup", &["-i", "change=killed"]),
    ("offsite-copy", &[]),
    ("redis-backup", &[]),
    ("jwks-backup", &[]),
    ("base-backup", &[]),
    ("verify-integrity", &[]),
    ("daily-operations", &["-i", "review=false"]),
    ("alerts", &["-i", "samples=3", "--no-preflight"]),
    ("renew-keys", &[]),
    ("jwks-restore", &[]),
];

#[tokio::test(flavor = "multi_thread")]
async fn drill_killed_in_the_longest_step() {
    let stage = Stage::set(2_000, &json!({}));
    stage.back_up();
    stage.done(&["run", "plans/weekly-operations.yaml", "--env", "test", "--yes", "-i", "review=false"]);
    for (plan, inputs) in KILLED {
        let file = format!("plans/{plan}.yaml");
        let run = [&["run", &file, "--env", "test", "--yes"], *inputs].concat();
        let fresh = stage.run(&run);
        assert!(fresh.status.success(), "{plan}: {}", said(&fresh));
        let report: Value = serde_json::from_str(&stage.done(&["report", "--format", "json"])).unwrap();
        let longest =
            report["steps"].as_array().unwrap().iter().max_by(|a, b| {
                a["seconds"].as_f64().unwrap_or(0.0).total_cmp(&b["seconds"].as_f64().unwrap_or(0.0))
            });
        let longest = longest.unwrap()["id"].as_str().unwrap();
        stage.killed_at(&run, longest);
        let resumed = stage.run(&["resume", "--yes"]);
        assert!(resumed.status.success(), "{plan}, killed in {longest}: {}", said(&resumed));
        stage.done(&["audit"]);
    }
}

fn row(plan: &str, report: &Value) -> String {
    let seconds = |value: &Value| value.as_f64().map_or_else(|| "–".to_owned(), |value| format!("{value:.2} s"));
    let recovery = &report["recovery"];
    let met = |objective: &str| match recovery[objective]["met"].as_bool() {
        Some(true) => format!("{objective} met"),
        Some(false) => format!("{objective} NOT met"),
        None => format!("no {objective}"),
    };
    let steps = report["steps"].as_array().unwrap();
    let warm = steps.iter().any(|step| step["id"] == "take-copy" && step["state"] == "succeeded");
    format!(
        "| {plan}{} | {} | {} | {} | {} | {}, {} |",
        if warm { " (warm copy)" } else { "" },
        steps.len(),
        seconds(&report["seconds"]),
        seconds(&recovery["time"]),
        seconds(&recovery["point"]),
        met("rto"),
        met("rpo"),
    )
}
