//! Whole pages of one run, from its records: a fixed history, a fixed clock, 80 columns, no colour.

use serde_json::json;

use super::evidence::Evidence;
use super::lines::Lines;
use super::text::Paint;
use super::{markdown, next, page};
use crate::record::event::{Event, Record};
use crate::record::state::RunState;

/// Records of a run that failed once, was answered and resumed, up to `until` events.
fn history(until: usize) -> Vec<Record> {
    let actor = json!({ "user": "maria", "host": "db1", "pid": 4711, "boot": "b" });
    let step = |id: &str, kind: &str, title: &str, needs: &[&str], proves: bool, finally: bool| {
        json!({ "id": id, "type": kind, "title": title, "needs": needs, "finally": finally, "definition": "d",
            "proves_health": proves, "effects": [{ "access": "read", "resource": "object:backups/x" }] })
    };
    let events = [
        (
            0,
            json!({ "type": "run_started", "format": 1, "walker": 1, "version": "0.1.0", "run": "20260201-100000-bako",
            "plan": "database-corruption", "title": "Restore the auth database after corruption",
            "plan_digest": "0123456789abcdef", "environment": "production", "environment_digest": "fedcba9876543210",
            "plan_file": "plans/database-corruption.yaml", "environment_file": "plans/environments/production.yaml",
            "inputs": { "backup": "latest" }, "rto": 1800.0, "rpo": 3600.0, "by": actor,
            "steps": [
                step("find-backup", "storage.find", "Find the newest backup", &[], false, false),
                step("agree", "approve", "Ask the owner", &["find-backup"], false, false),
                step("restore", "postgres.restore", "Restore beside the damaged database", &["agree"], false, false),
                step("healthy", "http.check", "The service answers", &["restore"], true, false),
                step("tell", "notify", "Tell the on-call engineer", &[], false, true),
            ] }),
        ),
        (0, json!({ "type": "step_started", "step": "find-backup", "attempt": 1 })),
        (
            1,
            json!({ "type": "step_finished", "step": "find-backup", "attempt": 1, "outcome": { "result": "succeeded",
            "outputs": { "path": "manacore_auth_1.sql.zst", "taken_at": "2026-02-01T07:00:00Z" },
            "summary": "manacore_auth_1.sql.zst, 12.1 MiB, 3h old" } }),
        ),
        (
            1,
            json!({ "type": "step_waiting", "step": "agree", "question": { "kind": "approve", "quorum": 2,
            "message": "Swap the restored database in?", "by": ["ines", "omar", "lee"], "not_by_requester": true,
            "checklist": ["The counts look right"], "fields": { "ticket": "string" }, "until": "2026-02-01T12:00:00Z" } }),
        ),
        (2, json!({ "type": "run_stopped", "status": "waiting", "reason": "a person is asked" })),
        (
            60,
            json!({ "type": "step_answered", "step": "agree",
            "answer": { "approved": true, "by": "ines", "at": "2026-02-01T10:01:00Z", "note": "counts checked", "fields": { "ticket": "OPS-7" } } }),
        ),
        (
            61,
            json!({ "type": "step_answered", "step": "agree",
            "answer": { "approved": true, "by": "omar", "at": "2026-02-01T10:01:01Z", "fields": { "ticket": "OPS-7" } } }),
        ),
        (
            62,
            json!({ "type": "run_resumed", "by": actor, "version": "0.1.0", "decisions": [
            { "step": "find-backup", "action": "keep", "reason": "it succeeded, and its definition is the same" },
            { "step": "agree", "action": "wait", "reason": "answered meanwhile" },
            { "step": "restore", "action": "run", "reason": "it has not run" }] }),
        ),
        (
            62,
            json!({ "type": "step_finished", "step": "agree", "attempt": 0,
            "outcome": { "result": "succeeded", "outputs": { "by": "ines, omar" }, "summary": "agreed by ines, omar" } }),
        ),
        (62, json!({ "type": "step_started", "step": "restore", "attempt": 1 })),
        (
            70,
            json!({ "type": "attempt_failed", "step": "restore", "attempt": 1, "retry_in": 2.0, "error": {
            "message": "connect to db at 127.0.0.1:5432: connection refused", "transient": true } }),
        ),
        (72, json!({ "type": "step_started", "step": "restore", "attempt": 2 })),
        (
            90,
            json!({ "type": "step_finished", "step": "restore", "attempt": 2, "outcome": { "result": "failed", "error": {
            "message": "restore manacore_auth_1.sql.zst into manacore_auth_restored: ERROR:  could not extend file \"base/1\": No space left on device",
            "transient": false, "help": "free 40.0 MiB on the server's data disk; df -h names it" } } }),
        ),
        (
            90,
            json!({ "type": "step_finished", "step": "healthy", "attempt": 0,
            "outcome": { "result": "not_run", "reason": "restore failed" } }),
        ),
        (90, json!({ "type": "step_started", "step": "tell", "attempt": 1 })),
        (
            91,
            json!({ "type": "step_finished", "step": "tell", "attempt": 1, "outcome": { "result": "succeeded" } }),
        ),
        (91, json!({ "type": "run_stopped", "status": "failed", "reason": "restore failed" })),
        (
            300,
            json!({ "type": "run_resumed", "by": actor, "version": "0.1.0", "decisions": [
            { "step": "restore", "action": "continue", "reason": "2 of 3 tables are there" },
            { "step": "healthy", "action": "run", "reason": "it has not run" },
            { "step": "tell", "action": "run", "reason": "`finally` runs at the end of every resume" }] }),
        ),
        (
            300,
            json!({ "type": "noticed", "step": "restore", "message": "a leftover session of attempt 2 was ended" }),
        ),
        (300, json!({ "type": "step_started", "step": "restore", "attempt": 3 })),
        (
            320,
            json!({ "type": "step_finished", "step": "restore", "attempt": 3, "outcome": { "result": "succeeded",
            "outputs": { "rows": 1204, "taken_at": "2026-02-01T07:00:00Z" }, "summary": "3 tables, 1,204 rows" } }),
        ),
        (320, json!({ "type": "step_started", "step": "healthy", "attempt": 1 })),
        (
            321,
            json!({ "type": "step_finished", "step": "healthy", "attempt": 1,
            "outcome": { "result": "succeeded", "summary": "200 in 12 ms" } }),
        ),
        (321, json!({ "type": "step_started", "step": "tell", "attempt": 2 })),
        (
            322,
            json!({ "type": "step_finished", "step": "tell", "attempt": 2, "outcome": { "result": "skipped", "reason": "`when` is false" } }),
        ),
        (322, json!({ "type": "run_stopped", "status": "succeeded" })),
    ];
    let start: jiff::Timestamp = "2026-02-01T10:00:00Z".parse().unwrap();
    events
        .into_iter()
        .take(until)
        .enumerate()
        .map(|(seq, (second, event))| Record {
            seq: seq as u64,
            at: start + std::time::Duration::from_secs(second),
            prev: "0".repeat(64),
            event: serde_json::from_value::<Event>(event).unwrap(),
        })
        .collect()
}

const WAITING: usize = 6;
const FAILED: usize = 17;
const WHOLE: usize = usize::MAX;

fn evidence(until: usize) -> Evidence {
    Evidence::of(&history(until), "5eed5eed").unwrap()
}

fn shown(until: usize, holder: Option<&str>) -> String {
    let evidence = evidence(until);
    let now = evidence.last_at + std::time::Duration::from_secs(30);
    let actions = next::actions(&evidence, holder.is_some(), "", |step| step.attempts > 0);
    page::page(&evidence, now, holder, &actions, Paint::plain(80))
}

#[test]
fn a_waiting_run() {
    insta::assert_snapshot!(shown(WAITING, None));
}

#[test]
fn a_failed_run() {
    insta::assert_snapshot!(shown(FAILED, None));
}

#[test]
fn a_running_run_and_a_killed_one() {
    insta::assert_snapshot!("running", shown(FAILED - 5, Some("maria@db1 (process 4711)")));
    insta::assert_snapshot!("killed", shown(FAILED - 5, None));
}

#[test]
fn a_run_that_succeeded() {
    insta::assert_snapshot!(shown(WHOLE, None));
}

#[test]
fn the_report_for_people() {
    insta::assert_snapshot!(markdown::markdown(&evidence(WHOLE)));
}

#[test]
fn the_report_for_machines() {
    insta::assert_snapshot!(format!("{:#}", serde_json::to_value(evidence(FAILED)).unwrap()));
}

#[test]
fn lines_as_it_happens() {
    let records = history(WHOLE);
    let mut state = RunState::begin(&records[0]).unwrap();
    let lines = Lines::new(&state, Paint::plain(80));
    let mut text = String::new();
    for record in &records {
        if record.seq > 0 {
            state.apply(record).unwrap();
        }
        if let Some(line) = lines.line(record, &state) {
            text.push_str(&line);
            text.push('\n');
        }
    }
    insta::assert_snapshot!(text);
}

#[test]
fn no_page_is_wider_than_asked_but_for_commands() {
    for until in [WAITING, FAILED, WHOLE] {
        let text = shown(until, None);
        let text = text.split("\nNext\n").next().unwrap();
        for line in text.lines() {
            assert!(super::text::width(line) <= 80, "{} columns: {line}", super::text::width(line));
        }
    }
}
