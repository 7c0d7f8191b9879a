//! Scenario 1 of the runbook, database corruption, by the project's own plan. What one recovery
//! leaves is damaged again for the next: that is cheaper than a new stage.

use std::process::{Output, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::harness::{chosen, turn};
use crate::stage::{DATABASE, RECOVERY, Stage, said};

/// A run of the plan to its end, the first process killed at `kill`: the points that it passed, and
/// the state of each step.
fn recover(stage: &Stage, number: usize, kill: Option<usize>) -> Result<(Vec<String>, Value), String> {
    let run = format!("kill-{number}");
    let journal = stage.path(".lifeboat/runs").join(&run).join("journal.jsonl");
    let begin = ["run", RECOVERY, "--env", "test", "--yes", "--jobs", "1", "--run-id", &run];
    let (mut output, passed) = process(stage, &begin, kill);
    for _ in 0..6 {
        let has_begun = std::fs::read(&journal).is_ok_and(|journal| journal.contains(&b'\n'));
        if !has_begun {
            // Nothing was kept: it never began.
            let _ = std::fs::remove_dir_all(stage.path(".lifeboat/runs").join(&run));
            output = process(stage, &begin, None).0;
            continue;
        }
        let report: Value = serde_json::from_str(&stage.done(&["report", &run, "--format", "json"])).unwrap();
        if report["status"] == "succeeded" {
            stage.done(&["audit", &run]);
            let steps = report["steps"].as_array().unwrap();
            return Ok((passed, steps.iter().map(|step| json!([step["id"], step["state"]])).collect()));
        }
        if report["status"] == "waiting" {
            return Err(format!("a person is asked: {report:#}"));
        }
        output = process(stage, &["resume", &run, "--yes", "--jobs", "1"], None).0;
    }
    Err(said(&output))
}

fn process(stage: &Stage, args: &[&str], kill: Option<usize>) -> (Output, Vec<String>) {
    let trace = stage.path("trace");
    let _ = std::fs::remove_file(&trace);
    let mut command = stage.command(args);
    command.env("LIFEBOAT_KILL_TRACE", &trace);
    if let Some(kill) = kill {
        command.env("LIFEBOAT_KILL_AT", kill.to_string());
    }
    // What outlives the program would hold a pipe open.
    let file = |name: &str| std::fs::File::create(stage.path(name)).unwrap();
    let status = command.stdin(Stdio::null()).stdout(file("out")).stderr(file("err")).status().unwrap();
    let read = |name: &str| std::fs::read(stage.path(name)).unwrap();
    let passed = std::fs::read_to_string(&trace).unwrap_or_default().lines().map(str::to_owned).collect();
    (Output { status, stdout: read("out"), stderr: read("err") }, passed)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_is_recovered_wherever_it_is_killed() {
    let stage = Stage::set(300, &json!({}));
    stage.back_up();
    let whole = stage.fingerprints(DATABASE).await;
    let began = Instant::now();
    stage.damage().await;
    let (points, wanted) = recover(&stage, 0, None).unwrap();
    let kills = chosen(points.len(), 77);
    let mut faults = Vec::new();
    for kill in &kills {
        for kept in stage.databases().await.into_iter().filter(|name| name != DATABASE) {
            let drop = format!("DROP DATABASE \"{kept}\" WITH (FORCE)");
            stage.session("postgres").await.batch("tidy up", &drop).await.unwrap();
        }
        stage.damage().await;
        match recover(&stage, *kill, Some(*kill)) {
            Ok((_, steps)) if steps != wanted => faults.push(format!("killed at {kill}: {steps}")),
            Ok(_) => {
                let databases = stage.databases().await;
                let restored = stage.fingerprints(DATABASE).await == whole;
                if !restored || databases.len() != 2 || stage.health(200).await["ready"] != true {
                    faults.push(format!("killed at {kill}: restored: {restored}, {databases:?}"));
                }
            }
            Err(fault) => {
                faults.push(format!("killed at {kill} ({}): {fault}", points[kill - 1]));
                break;
            }
        }
    }
    println!(
        "scenario 1, killed once (turn {}): {} of {} points, {} faults, {:.1} s",
        turn(),
        kills.len(),
        points.len(),
        faults.len(),
        began.elapsed().as_secs_f64()
    );
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
