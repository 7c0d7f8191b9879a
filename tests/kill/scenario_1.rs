//! Scenario 1 of the runbook, database corruption, by the project's own plan. What one recovery
//! leaves is damaged again for the next: that is cheaper than a new stage.

use std::process::{Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use lifeboat::sandbox::seed::Fingerprint;
use serde_json::{Value, json};

use crate::harness::{all, chosen, turn};
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

/// How many stages there are at once. A recovery waits for most of its time (a container must stay
/// up, the service must be well for a while), so a core bears several; to set one takes a while, too.
fn stages() -> usize {
    if all() { 6 } else { 2 }
}

/// Damages the stage's database, recovers it, killed at `kill`; what is not as it should be then.
async fn fault(stage: &Stage, kill: usize, unbroken: &Unbroken) -> Option<String> {
    for kept in stage.databases().await.into_iter().filter(|name| name != DATABASE) {
        let drop = format!("DROP DATABASE \"{kept}\" WITH (FORCE)");
        stage.session("postgres").await.batch("tidy up", &drop).await.unwrap();
    }
    stage.damage().await;
    match recover(stage, kill, Some(kill)) {
        Ok((_, steps)) if steps != unbroken.steps => Some(format!("killed at {kill}: {steps}")),
        Ok(_) => {
            let databases = stage.databases().await;
            let restored = stage.fingerprints(DATABASE).await == unbroken.rows;
            let sound = restored && databases.len() == 2 && stage.health(200).await["ready"] == true;
            (!sound).then(|| format!("killed at {kill}: restored: {restored}, {databases:?}"))
        }
        Err(fault) => Some(format!("killed at {kill} ({}): {fault}", unbroken.points[kill - 1])),
    }
}

/// What a run comes to that nobody kills.
struct Unbroken {
    points: Vec<String>,
    steps: Value,
    rows: Vec<Fingerprint>,
}

async fn unbroken(stage: &Stage) -> Unbroken {
    let rows = stage.fingerprints(DATABASE).await;
    stage.damage().await;
    let (points, steps) = recover(stage, 0, None).unwrap();
    Unbroken { points, steps, rows }
}

#[test]
fn the_database_is_recovered_wherever_it_is_killed() {
    let began = Instant::now();
    let (next, tried, points) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let (faults, setting) = (Mutex::new(Vec::new()), Mutex::new(()));
    std::thread::scope(|scope| {
        for _ in 0..stages() {
            scope.spawn(|| {
                // One after the other: each makes an image, for which the engine takes its time.
                let set = setting.lock().unwrap();
                let stage = Stage::set(300, &json!({}));
                drop(set);
                stage.back_up();
                tokio::runtime::Runtime::new().unwrap().block_on(async {
                    let unbroken = unbroken(&stage).await;
                    points.store(unbroken.points.len(), Ordering::Relaxed);
                    let kills = chosen(unbroken.points.len(), 77);
                    while let Some(kill) = kills.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if tried.fetch_add(1, Ordering::Relaxed) % 20 == 19 {
                            eprintln!("scenario 1: point {kill} of {}", unbroken.points.len());
                        }
                        if let Some(fault) = fault(&stage, *kill, &unbroken).await {
                            eprintln!("scenario 1: {fault}");
                            faults.lock().unwrap().push(fault);
                            // What it left is no ground for the next.
                            break;
                        }
                    }
                });
            });
        }
    });
    let faults = faults.into_inner().unwrap();
    println!(
        "scenario 1, killed once (turn {}): {} of {} points, {} faults, {:.1} s",
        turn(),
        tried.into_inner(),
        points.into_inner(),
        faults.len(),
        began.elapsed().as_secs_f64()
    );
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
