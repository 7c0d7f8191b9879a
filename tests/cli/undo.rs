//! A run taken back by the program: seen before, done, cut off, gone on with.

use serde_json::Value;

use crate::bench::{Bench, masked};

/// Two changes with a way back, one without, and a step that fails.
const PLAN: &str = r#"
lifeboat: 1
plan: move
steps:
  first:
    exec: { argv: [touch, first], effects: ["create file:first"] }
    undo:
      exec: { argv: [rm, first], effects: ["destroy file:first"] }
  second:
    exec:
      argv: [sh, -c, "echo '{\"name\": \"second\"}'; touch second"]
      outputs: { name: { json: /name } }
      effects: ["create file:second"]
    undo:
      exec: { argv: [sh, -c, "until [ -f go ]; do sleep 0.05; done; rm {{ steps.second.name }}"], effects: ["destroy file:second"] }
  log:
    exec: { argv: [sh, -c, "echo line >> log"], effects: ["change file:log"] }
  check:
    exec: { argv: [test, -f, mended], effects: ["read file:mended"] }
"#;

fn there(bench: &Bench, name: &str) -> bool {
    bench.path().join(name).exists()
}

#[test]
fn a_run_is_taken_back_across_a_kill() {
    let bench = Bench::new(&[("move.yaml", PLAN)]);
    bench.ends(1, &["run", "move.yaml"]);
    let run = bench.latest();
    insta::assert_snapshot!("undo-status-before", bench.ends(0, &["status"]).page());
    insta::assert_snapshot!("undo-dry-run", bench.ends(0, &["undo", "--dry-run"]).page());
    let seen: Value =
        serde_json::from_str(&bench.ends(0, &["undo", "--dry-run", "--format", "json"]).stdout()).unwrap();
    assert_eq!(seen["stays"][0]["step"], "log", "{seen:#}");
    assert_eq!(seen["steps"][0]["id"], "undo:second", "{seen:#}");
    assert!(there(&bench, "first") && there(&bench, "second"));

    let mut child = bench.start(&["undo", &run, "--because", "the wrong folder"]);
    bench.wait_for("undo:second", "running");
    child.kill().unwrap();
    child.wait().unwrap();
    std::fs::write(bench.path().join("go"), "").unwrap();
    let refused = bench.ends(2, &["resume"]);
    assert!(refused.stderr().contains(&format!("lifeboat undo {run}")), "{}", refused.stderr());
    // A command that was cut off: nobody can tell, and a person is asked.
    bench.ends(4, &["undo"]);
    let gone = |name: &str| {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while there(&bench, name) {
            assert!(std::time::Instant::now() < deadline, "{name} is still there");
            std::thread::sleep(std::time::Duration::from_millis(30));
        }
    };
    // The command that lost its engine comes to its end by itself; asked again, it would fail.
    gone("second");
    bench.ends(0, &["reject", &run, "undo:second", "--note", "it did its work"]);
    bench.ends(1, &["undo"]);
    bench.ends(2, &["undo", "--leave", "second"]);
    let done = bench.ends(0, &["undo", "--leave", "second", "--because", "it did its work"]);
    insta::assert_snapshot!("undo-done", done.page());
    assert!(!there(&bench, "first") && there(&bench, "log"));
    insta::assert_snapshot!("undo-report", masked(&bench.ends(0, &["report"]).page()));
    let again = bench.ends(2, &["undo"]);
    assert!(again.stderr().contains("nothing is left to take back"), "{}", again.stderr());
    bench.ends(0, &["audit"]);
    assert!(bench.ends(0, &["runs"]).stdout().contains("undone"));

    let schema = serde_json::from_str(&bench.ends(0, &["schema", "event"]).stdout()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let journal = bench.path().join(".lifeboat/runs").join(&run).join("journal.jsonl");
    for line in std::fs::read_to_string(journal).unwrap().lines() {
        assert!(validator.is_valid(&serde_json::from_str(line).unwrap()), "{line}");
    }
}

#[test]
fn a_run_that_goes_on_is_not_taken_back() {
    let plan = PLAN.replace("[touch, first]", "[sh, -c, 'until [ -f go ]; do sleep 0.05; done']");
    let bench = Bench::new(&[("move.yaml", &plan)]);
    let mut child = bench.start(&["run", "move.yaml"]);
    bench.wait_for("first", "running");
    bench.ends(5, &["undo"]);
    bench.ends(5, &["undo", "--dry-run"]);
    std::fs::write(bench.path().join("go"), "").unwrap();
    child.wait().unwrap();
}

/// A step with a way back, after one that can be closed, before one that fails.
const EDITED: &str = r#"
lifeboat: 1
plan: edited
steps:
  gate:
    exec: { argv: [test, "!", -f, closed], effects: ["read file:closed"] }
  make:
    exec: { argv: [touch, made], effects: ["create file:made"] }
    undo:
      exec: { argv: [rm, made], effects: ["destroy file:made"] }
  check:
    exec: { argv: [test, -f, mended], effects: ["read file:mended"] }
"#;

fn foreseen(bench: &Bench) -> Value {
    serde_json::from_str(&bench.ends(0, &["undo", "--dry-run", "--format", "json"]).stdout()).unwrap()
}

fn ids(list: &Value, key: &str) -> Vec<String> {
    list.as_array().unwrap().iter().map(|it| it[key].as_str().unwrap().to_owned()).collect()
}

#[test]
fn what_was_sent_back_and_has_not_run_again_is_still_taken_back() {
    let bench = Bench::new(&[("edited.yaml", EDITED)]);
    bench.ends(1, &["run", "edited.yaml"]);
    std::fs::write(bench.path().join("closed"), "").unwrap();
    bench.ends(1, &["resume", "--rerun", "gate", "--because", "to look again"]);
    assert!(there(&bench, "made"));
    let seen = foreseen(&bench);
    assert_eq!(ids(&seen["steps"], "id"), ["undo:make"], "{seen:#}");
    bench.ends(0, &["undo"]);
    assert!(!there(&bench, "made"));
}

#[test]
fn what_an_earlier_plan_did_is_named_and_not_taken_back_by_the_words_of_another() {
    let bench = Bench::new(&[
        ("edited.yaml", EDITED),
        ("other.yaml", &EDITED.replace("made", "other")),
        ("without.yaml", &EDITED.replace("  make:", "  else:").replace("made", "else")),
    ]);
    bench.ends(1, &["run", "edited.yaml"]);
    let order = |exit, words: &[&str]| {
        bench.ends(exit, &[&["resume"], words, &["--because", "the plan was wrong"]].concat())
    };
    order(2, &["--plan", "other.yaml"]);
    order(1, &["--plan", "other.yaml", "--accept", "make"]);
    // `rm other` would be of a file that nobody made.
    let none = bench.ends(2, &["undo", "--dry-run"]);
    assert!(none.stderr().contains("did nothing that"), "{}", none.all());
    // Gone with one edit and back with the next: what it did is not forgotten.
    order(1, &["--plan", "without.yaml"]);
    let refused = order(2, &["--plan", "edited.yaml"]);
    assert!(refused.stderr().contains("`make`"), "{}", refused.all());
    order(1, &["--plan", "edited.yaml", "--rerun", "make"]);
    let seen = foreseen(&bench);
    assert_eq!(ids(&seen["steps"], "id"), ["undo:make"], "{seen:#}");
    assert_eq!(ids(&seen["stays"], "step"), ["else"], "{seen:#}");
    insta::assert_snapshot!("undo-edited-status", bench.ends(0, &["status"]).page());
    bench.ends(0, &["undo"]);
    assert!(there(&bench, "else") && !there(&bench, "made"));
    let report = bench.ends(0, &["report"]).stdout();
    assert!(report.contains("the plan was edited since"), "{report}");
}

#[test]
fn what_was_marked_done_unverified_is_asked_about_and_what_was_skipped_after_a_start_of_the_world() {
    let plan = EDITED.replace("[touch, made]", "[sh, -c, 'touch made; exit 1']");
    let bench = Bench::new(&[("edited.yaml", &plan)]);
    bench.ends(1, &["run", "edited.yaml"]);
    bench.ends(1, &["resume", "--mark-done", "make", "--unverified", "--because", "it is there"]);
    let seen = foreseen(&bench);
    assert_eq!(seen["decisions"][1]["action"], "ask", "{seen:#}");
    bench.ends(4, &["undo"]);
    bench.ends(0, &["approve", &bench.latest(), "undo:make"]);
    bench.ends(0, &["undo"]);
    assert!(!there(&bench, "made"));

    bench.ends(1, &["run", "edited.yaml"]);
    bench.ends(1, &["resume", "--skip", "make", "--because", "not needed"]);
    let seen = foreseen(&bench);
    assert!(matches!(seen["decisions"][1]["action"].as_str(), Some("ask" | "undo")), "{seen:#}");
}
