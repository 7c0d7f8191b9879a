//! A run steered from another terminal while it really goes on: paused, called off, answered.

use std::process::Child;

use serde_json::Value;

use crate::bench::Bench;

/// A step that goes on until the file `go` is there (or the folder is gone: nothing outlives the test), one after it, and a question beside them.
const GATED: &str = r#"
lifeboat: 1
plan: gated
steps:
  gate:
    exec: { argv: [sh, -c, "until [ -f go ] || [ ! -e $PWD ]; do sleep 0.05; done"], effects: ["change file:scratch"] }
  after:
    exec: { argv: [echo, after], effects: [] }
finally:
  tell:
    exec: { argv: [echo, told], effects: [] }
"#;

const ASKING: &str = r#"
lifeboat: 1
plan: asking
steps:
  gate:
    exec: { argv: [sh, -c, "until [ -f go ] || [ ! -e $PWD ]; do sleep 0.05; done"], effects: [] }
  agree:
    needs: []
    approve: { message: "May it go on?", by: [ines, omar, lee], quorum: 2 }
  after:
    exec: { argv: [echo, after], effects: [] }
"#;

fn go(bench: &Bench) {
    std::fs::write(bench.path().join("go"), "").unwrap();
}

fn begun(bench: &Bench, plan: &str) -> Child {
    let child = bench.start(&["run", plan]);
    bench.wait_for("gate", "running");
    child
}

fn status(bench: &Bench) -> Value {
    serde_json::from_str(&bench.ends(0, &["status", "--format", "json"]).stdout()).unwrap()
}

/// Waits until the run's evidence is so.
fn until(bench: &Bench, met: impl Fn(&Value) -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !met(&status(bench)) {
        assert!(std::time::Instant::now() < deadline, "{}", status(bench));
        std::thread::sleep(std::time::Duration::from_millis(30));
    }
}

#[test]
fn a_run_is_paused_from_another_terminal() {
    let bench = Bench::new(&[("gated.yaml", GATED)]);
    let mut child = begun(&bench, "gated.yaml");
    let run = bench.latest();
    let waiter = bench.start(&["pause", &run, "--because", "lunch", "--wait", "--format", "json"]);
    until(&bench, |evidence| evidence["notices"].to_string().contains("maria (lunch) asked for a pause"));
    let told = bench.ends(0, &["pause", &run]).stdout();
    assert!(told.contains("taken in") || told.contains("within a second"), "{told}");
    assert!(told.contains(&format!("lifeboat status --follow {run}")), "{told}");
    go(&bench);
    assert_eq!(child.wait().unwrap().code(), Some(4));
    let waiter = waiter.wait_with_output().unwrap();
    assert_eq!(waiter.status.code(), Some(4), "it ends as the run does");
    let said: Value = serde_json::from_slice(&waiter.stdout).unwrap();
    assert_eq!(said["status"], "paused", "{said}");
    let evidence = status(&bench);
    assert_eq!((&evidence["status"], &evidence["steps"][1]["state"]), (&"paused".into(), &"pending".into()));
    let still = bench.ends(0, &["pause", &run]).stdout();
    assert!(still.contains("nothing to pause") && still.contains("paused"), "{still}");
    bench.ends(0, &["resume"]);
}

#[test]
fn a_run_is_cancelled_from_another_terminal() {
    let bench = Bench::new(&[("gated.yaml", GATED)]);
    let mut child = begun(&bench, "gated.yaml");
    let run = bench.latest();
    bench.ends(130, &["cancel", &run, "--wait", "--because", "the wrong run"]);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let evidence = status(&bench);
    let state = |at: usize| evidence["steps"][at]["state"].as_str().unwrap().to_owned();
    assert_eq!([state(0), state(1), state(2)], ["cancelled", "not_run", "succeeded"], "`finally` ran");
    assert!(evidence["notices"].to_string().contains("maria (the wrong run) cancelled the run"), "{evidence}");
    let still = bench.ends(0, &["cancel", &run]).stdout();
    assert!(still.contains("nothing to cancel") && still.contains("cancelled"), "{still}");
}

#[test]
fn a_run_that_waits_or_was_killed_is_called_off() {
    let bench = Bench::new(&[("asking.yaml", ASKING), ("gated.yaml", GATED)]);
    go(&bench);
    bench.ends(4, &["run", "asking.yaml"]);
    let run = bench.latest();
    let told = bench.ends(0, &["cancel", &run, "--format", "json"]).stdout();
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["delivered"], &told["status"]), (&"journaled".into(), &"cancelled".into()));
    assert_eq!(status(&bench)["reason"], "maria called it off");
    // It can still go on, and asks again.
    bench.ends(4, &["resume", &run]);

    std::fs::remove_file(bench.path().join("go")).unwrap();
    let mut child = begun(&bench, "gated.yaml");
    child.kill().unwrap();
    child.wait().unwrap();
    let run = bench.latest();
    let still = bench.ends(0, &["pause", &run]).stdout();
    assert!(still.contains("its process died"), "{still}");
    let told = bench.ends(130, &["cancel", &run, "--wait"]).stdout();
    assert!(told.contains("`finally` has not run (tell)"), "{told}");
    assert_eq!(status(&bench)["status"], "cancelled");
    go(&bench);
}

#[test]
fn a_run_that_goes_on_is_answered_from_another_terminal() {
    let bench = Bench::new(&[("asking.yaml", ASKING)]);
    let mut child = begun(&bench, "asking.yaml");
    bench.wait_for("agree", "waiting");
    let run = bench.latest();
    let stranger = bench.ends(2, &["approve", &run, "agree", "--by", "zoe"]);
    assert!(stranger.stderr().contains("`zoe` may not answer it"), "{}", stranger.stderr());
    let first = bench.ends(0, &["approve", &run, "agree", "--by", "ines"]).stdout();
    assert!(first.contains("takes it in now"), "{first}");
    until(&bench, |evidence| evidence["steps"][1]["agreed"] == 1);
    let again = bench.ends(2, &["approve", &run, "agree", "--by", "ines"]);
    assert!(again.stderr().contains("`ines` has answered it already"), "{}", again.stderr());
    bench.ends(0, &["approve", &run, "agree", "--by", "omar", "--note", "fine"]);
    bench.wait_for("agree", "succeeded");
    let late = bench.ends(2, &["approve", &run, "agree", "--by", "lee"]);
    assert!(late.stderr().contains("has come to its end"), "{}", late.stderr());
    go(&bench);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let evidence = status(&bench);
    assert_eq!(evidence["steps"][1]["answers"].as_array().unwrap().len(), 2);
}

#[test]
fn a_run_that_goes_on_is_refused_from_another_terminal() {
    let bench = Bench::new(&[("asking.yaml", ASKING)]);
    let mut child = begun(&bench, "asking.yaml");
    bench.wait_for("agree", "waiting");
    let run = bench.latest();
    let stranger = bench.ends(2, &["reject", &run, "agree", "--by", "zoe"]);
    assert!(stranger.stderr().contains("`zoe` may not answer it"), "{}", stranger.stderr());
    let told = bench.ends(0, &["reject", &run, "agree", "--by", "lee", "--note", "the wrong backup"]).stdout();
    assert!(told.contains("takes it in now"), "{told}");
    bench.wait_for("agree", "failed");
    let late = bench.ends(2, &["approve", &run, "agree", "--by", "ines"]);
    assert!(late.stderr().contains("has come to its end"), "{}", late.stderr());
    go(&bench);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let evidence = status(&bench);
    assert_eq!(evidence["steps"][2]["state"], "not_run", "{evidence}");
    assert!(evidence["steps"][1].to_string().contains("the wrong backup"), "{evidence}");
}

/// Fails in a way that may pass until `mended` is there, and has not long to try; then goes on until `go` is there.
const TRYING: &str = r#"
lifeboat: 1
plan: trying
steps:
  try:
    retry: { attempts: 2, delay: 10m, max_delay: 10m, on: any }
    exec: { argv: [test, -f, mended], effects: [] }
  gate:
    timeout: 3s
    exec: { argv: [sh, -c, "until [ -f go ] || [ ! -e $PWD ]; do sleep 0.05; done"], effects: [] }
"#;

#[test]
fn a_step_that_waits_to_try_again_takes_other_limits_at_once() {
    let bench = Bench::new(&[("trying.yaml", TRYING)]);
    let began = std::time::Instant::now();
    let mut child = bench.start(&["run", "trying.yaml"]);
    bench.wait_for("try", "retrying");
    let run = bench.latest();
    std::fs::write(bench.path().join("mended"), "").unwrap();
    let because = ["--because", "it is mended"];
    bench.ends(0, &[&["adjust", &run, "try", "--delay", "10ms", "--attempts", "5"], &because[..]].concat());
    bench.wait_for("gate", "running");
    // A longer bound keeps alive what runs, past the one that it began with.
    bench.ends(0, &[&["adjust", &run, "gate", "--timeout", "10m"], &because[..]].concat());
    std::thread::sleep(std::time::Duration::from_secs(4));
    bench.wait_for("gate", "running");
    go(&bench);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(began.elapsed().as_secs() < 120);
    let evidence = status(&bench);
    assert_eq!((&evidence["steps"][0]["attempts"], &evidence["steps"][1]["attempts"]), (&2.into(), &1.into()));
}

#[test]
fn a_step_that_waits_to_try_again_ends_when_it_has_no_attempt_left() {
    let bench = Bench::new(&[("trying.yaml", TRYING)]);
    let mut child = bench.start(&["run", "trying.yaml"]);
    bench.wait_for("try", "retrying");
    let run = bench.latest();
    bench.ends(0, &["adjust", &run, "try", "--attempts", "1", "--because", "no use"]);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(status(&bench)["steps"][0]["attempts"], 1);
}
