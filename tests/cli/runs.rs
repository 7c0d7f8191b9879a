//! A run from its beginning to its report: waiting, answered, failed, resumed; killed; watched.

use crate::bench::{Bench, PLAN, masked};

#[test]
fn a_run_that_waits_fails_and_goes_on() {
    let bench = Bench::new(&[("rehearsal.yaml", PLAN)]);
    let ran = bench.ends(4, &["run", "rehearsal.yaml"]);
    insta::assert_snapshot!("run-waits", ran.page());
    assert!(masked(&ran.stderr()).contains("[clock] ✓ look"), "{}", ran.stderr());
    insta::assert_snapshot!("status-waiting", bench.ends(0, &["status"]).page());

    let run = bench.latest();
    let refused = bench.ends(2, &["approve", &run, "agree", "--by", "zoe"]);
    assert!(refused.stderr().contains("`zoe` may not answer it: asked are ines, omar"), "{}", refused.stderr());
    insta::assert_snapshot!(
        "approve",
        bench.ends(0, &["approve", &run, "agree", "--by", "ines", "--note", "looks right"]).page()
    );
    // What is answered isn't asked any more.
    let answered = bench.ends(0, &["status"]).stdout();
    assert!(answered.contains("answered yes by ines"), "{answered}");
    assert!(!answered.contains("lifeboat approve") && answered.contains("# go on: it is answered"), "{answered}");
    insta::assert_snapshot!("resume-dry-run", bench.ends(0, &["resume", "--dry-run"]).page());

    insta::assert_snapshot!("resume-fails", bench.ends(1, &["resume"]).page());
    std::fs::write(bench.path().join("mended"), "").unwrap();
    bench.ends(0, &["resume", &run[..17]]);
    insta::assert_snapshot!("status-succeeded", bench.ends(0, &["status"]).page());
    insta::assert_snapshot!("report", bench.ends(0, &["report"]).page());
    insta::assert_snapshot!("runs", bench.ends(0, &["runs"]).page());
    insta::assert_snapshot!("logs", bench.ends(0, &["logs"]).page());
    assert_eq!(bench.ends(0, &["logs", "look"]).stdout(), "look, attempt 1\nlooked\n");
    let done = bench.ends(2, &["resume"]);
    assert!(done.stderr().contains("nothing is left to do"), "{}", done.stderr());
}

#[test]
fn the_report_for_machines_follows_its_schema() {
    let bench = Bench::new(&[("rehearsal.yaml", PLAN)]);
    bench.ends(4, &["run", "rehearsal.yaml"]);
    for (of, arguments) in [
        ("report", vec!["report", "--format", "json"]),
        ("preview", vec!["run", "rehearsal.yaml", "--dry-run", "--format", "json"]),
    ] {
        let schema = serde_json::from_str(&bench.ends(0, &["schema", of]).stdout()).unwrap();
        let value = serde_json::from_str(&bench.ends(0, &arguments).stdout()).unwrap();
        let errors: Vec<_> = jsonschema::validator_for(&schema)
            .unwrap()
            .iter_errors(&value)
            .map(|error| error.to_string())
            .collect();
        assert!(errors.is_empty(), "{of}: {errors:?}");
    }
}

#[test]
fn events_for_machines_are_the_journals_own_lines() {
    let bench = Bench::new(&[("rehearsal.yaml", PLAN)]);
    let lines = bench.ends(4, &["run", "rehearsal.yaml", "--format", "json"]).stdout();
    let journal = bench.path().join(".lifeboat/runs").join(bench.latest()).join("journal.jsonl");
    assert_eq!(lines, std::fs::read_to_string(&journal).unwrap());
    assert_eq!(bench.ends(4, &["status", "--follow", "--format", "json"]).stdout(), lines, "a replay is the same");
    let schema = serde_json::from_str(&bench.ends(0, &["schema", "event"]).stdout()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    for line in lines.lines() {
        assert!(validator.is_valid(&serde_json::from_str(line).unwrap()), "{line}");
    }
}

#[test]
fn an_edited_plan_is_not_taken_in_and_that_is_said() {
    let bench = Bench::new(&[("rehearsal.yaml", PLAN)]);
    bench.ends(4, &["run", "rehearsal.yaml"]);
    assert!(!bench.ends(4, &["resume"]).stderr().contains("edited"));
    std::fs::write(bench.path().join("rehearsal.yaml"), PLAN.replace("mended", "other")).unwrap();
    let ran = bench.ends(4, &["resume"]);
    assert!(ran.stderr().contains("rehearsal.yaml was edited since"), "{}", ran.stderr());
}

#[test]
fn an_edited_journal_is_found_out() {
    let bench = Bench::new(&[("rehearsal.yaml", PLAN)]);
    bench.ends(4, &["run", "rehearsal.yaml"]);
    insta::assert_snapshot!("audit", masked(&bench.ends(0, &["audit"]).page()));
    let journal = bench.path().join(".lifeboat/runs").join(bench.latest()).join("journal.jsonl");
    let text = std::fs::read_to_string(&journal).unwrap();
    std::fs::write(&journal, text.replacen("\"attempt\":1", "\"attempt\":2", 1)).unwrap();
    let ran = bench.ends(1, &["audit"]);
    assert!(ran.stderr().contains("is damaged"), "{}", ran.stderr());
    // The others are still listed.
    assert!(bench.ends(0, &["runs"]).stdout().contains("is damaged"));
}

const LONG: &str = "
lifeboat: 1
plan: long
steps:
  first:
    exec: { argv: [echo, once], effects: [] }
  sleep:
    exec: { argv: [sleep, '60'], effects: [\"change file:scratch\"] }
";

#[test]
fn a_killed_run_says_so_and_asks_what_nobody_can_tell() {
    let bench = Bench::new(&[("long.yaml", LONG)]);
    let mut child = bench.start(&["run", "long.yaml"]);
    bench.wait_for("sleep", "running");
    let orphans = children(child.id());
    child.kill().unwrap();
    child.wait().unwrap();
    insta::assert_snapshot!("status-killed", bench.ends(0, &["status"]).page());
    assert!(!orphans.is_empty(), "the step had a process");
    for orphan in orphans {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(orphan), nix::sys::signal::Signal::SIGKILL);
    }
    // Nobody can tell whether a command that was cut off took effect: a person is asked, and it isn't repeated.
    insta::assert_snapshot!("resume-killed", bench.ends(4, &["resume"]).page());
    bench.ends(0, &["reject", &bench.latest(), "sleep", "--note", "it did not"]);
    let ended = bench.ends(1, &["resume"]).stdout();
    assert!(ended.contains("✗ sleep failed"), "{ended}");
    assert_eq!(bench.ends(0, &["logs", "first"]).stdout(), "first, attempt 1\nonce\n", "it ran once");
}

/// The processes that a process started, from the kernel's own list.
fn children(pid: u32) -> Vec<i32> {
    let mut found = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let list = std::fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default();
        found.extend(list.split_whitespace().map(|pid| pid.parse::<i32>().unwrap()));
    }
    found
}

#[test]
fn a_run_is_watched_from_another_terminal() {
    let bench = Bench::new(&[("long.yaml", LONG)]);
    let mut child = bench.start(&["run", "long.yaml"]);
    bench.wait_for("sleep", "running");
    let watcher = bench.start(&["status", "--follow"]);
    let locked = bench.ends(5, &["resume"]);
    assert!(locked.stderr().contains("is held by maria@"), "{}", locked.stderr());
    let pid = i32::try_from(child.id()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let watched = watcher.wait_with_output().unwrap();
    assert_eq!(watched.status.code(), Some(130), "it ends as the run does");
    let said = String::from_utf8(watched.stderr).unwrap();
    assert!(said.contains("▸ first") && said.contains("■ sleep"), "{said}");
}
