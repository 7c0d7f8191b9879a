//! What a run left, over its whole life: stopped in the middle, cut off, taken back.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::record::event::{Event, Record};
use crate::report::evidence::Evidence;
use crate::report::markdown::markdown;
use crate::report::{next, page};

fn step(id: &str, kind: &str, effects: &[(&str, &str, &str)], undo: Option<&str>) -> Value {
    let effects: Vec<_> = effects
        .iter()
        .map(|(access, resource, leaves)| {
            let mut effect = json!({ "access": access, "resource": resource, "displaces": *leaves == "dropped" });
            if !leaves.is_empty() {
                effect["leaves"] = json!(leaves);
            }
            effect
        })
        .collect();
    let mut header = json!({ "id": id, "type": kind, "needs": [], "definition": "d", "effects": effects });
    if let Some(undo) = undo {
        header["undo"] = json!({ "type": undo, "effects": [] });
    }
    header
}

fn begin() -> Value {
    json!({ "type": "run_started", "format": 1, "walker": 1, "version": "0.1.0", "run": "20260201-100000-bako",
        "plan": "move", "plan_digest": "0123456789abcdef", "plan_file": "plans/move.yaml", "inputs": {},
        "by": actor(), "steps": [
            step("look", "postgres.query", &[("read", "postgres:db/auth", "")], None),
            step("stop", "container.stop", &[("change", "container:docker/auth", "stopped")], Some("container.start")),
            step("restore", "postgres.restore", &[("create", "postgres:db/copy", "restored")], None),
            step("fill", "postgres.execute", &[("change", "postgres:db/auth/auth.users", "")], None),
            step("drop", "postgres.drop_database", &[("destroy", "postgres:db/auth", "dropped")], None),
            step("tidy", "postgres.drop_database", &[("destroy", "postgres:db/copy", "dropped")], None),
            step("start", "container.start", &[("change", "container:docker/auth", "running")], Some("container.stop")),
        ] })
}

fn actor() -> Value {
    json!({ "user": "maria", "host": "db1", "pid": 4711, "boot": "b" })
}

fn started(step: &str) -> Value {
    json!({ "type": "step_started", "step": step, "attempt": 1 })
}

fn done(step: &str, summary: &str) -> Value {
    json!({ "type": "step_finished", "step": step, "attempt": 1,
        "outcome": { "result": "succeeded", "summary": summary } })
}

fn evidence(events: Vec<Value>) -> Evidence {
    let at = |second: usize| Timestamp::from_second(1_769_940_000 + i64::try_from(second).unwrap()).unwrap();
    let records: Vec<Record> = events
        .into_iter()
        .enumerate()
        .map(|(seq, event)| {
            let event: Event = serde_json::from_value(event).unwrap();
            Record { seq: seq as u64, at: at(seq), prev: String::new(), event }
        })
        .collect();
    Evidence::of(&records, "0123").unwrap()
}

/// Until the first step that takes the service away: stopped, restored, filled.
fn first_half() -> Vec<Value> {
    let mut events = vec![begin()];
    for (step, summary) in [
        ("look", "1 row"),
        ("stop", "stopped (exit code 0)"),
        ("restore", "3 tables, 1,204 rows"),
        ("fill", "2 rows changed"),
    ] {
        events.extend([started(step), done(step, summary)]);
    }
    events
}

fn shown(evidence: &Evidence) -> String {
    let now = Timestamp::from_second(1_769_940_100).unwrap();
    let actions = next::actions(evidence, false, "", |_| false);
    page::page(evidence, now, None, &actions, Paint::plain(100))
}

#[test]
fn a_stopped_run_says_what_it_left_and_what_each_way_on_does() {
    let mut events = first_half();
    events.push(json!({ "type": "run_stopped", "status": "paused", "reason": "an operator paused it" }));
    let evidence = evidence(events);
    assert_eq!(evidence.world.no_return, None, "all can be had back so far");
    insta::assert_snapshot!("stopped", shown(&evidence));
    insta::assert_snapshot!("stopped.md", markdown(&evidence));
}

#[test]
fn what_was_cut_off_may_have_passed_the_point_of_no_return() {
    let mut events = first_half();
    events.push(started("drop"));
    let evidence = evidence(events);
    let point = evidence.world.no_return.as_ref().unwrap();
    assert_eq!((point.step.as_str(), point.certain), ("drop", false));
    // The database's table went with it, if it went.
    insta::assert_snapshot!("cut-off", shown(&evidence));
}

#[test]
fn what_the_run_made_itself_is_no_loss_and_a_later_step_wins() {
    let mut events = first_half();
    events.extend([started("tidy"), done("tidy", "dropped"), started("start"), done("start", "runs")]);
    events.push(json!({ "type": "run_stopped", "status": "failed", "reason": "a step failed" }));
    let evidence = evidence(events);
    assert_eq!(evidence.world.no_return, None, "the copy was this run's own");
    let of =
        |resource: &str| evidence.world.things.iter().find(|thing| thing.resource == resource).unwrap().clone();
    assert_eq!(of("container:docker/auth").state, "running");
    assert_eq!(of("postgres:db/copy").state, "dropped");
}

#[test]
fn a_run_that_was_taken_back_says_what_stays() {
    let mut events = first_half();
    let decide =
        |step: &str, action: &str, reason: &str| json!({ "step": step, "action": action, "reason": reason });
    let mut back = step("undo:stop", "container.start", &[("change", "container:docker/auth", "running")], None);
    back["undoes"] = json!("stop");
    events.push(json!({ "type": "run_stopped", "status": "failed", "reason": "step `fill` failed" }));
    events.push(json!({ "type": "undo_started", "by": actor(), "version": "0.1.0", "because": "the wrong backup",
        "decisions": [
            decide("look", "nothing", "1 row"),
            decide("stop", "undo", "stopped (exit code 0)"),
            decide("restore", "stays", "3 tables, 1,204 rows; it has no `undo`"),
            decide("fill", "stays", "2 rows changed; it has no `undo`"),
            decide("drop", "nothing", "it did not run"),
            decide("tidy", "nothing", "it did not run"),
            decide("start", "nothing", "it did not run"),
        ],
        "steps": [back] }));
    let begun = events.clone();
    events.extend([started("undo:stop"), done("undo:stop", "started, and ready")]);
    events.push(json!({ "type": "run_stopped", "status": "undone" }));
    let evidence_of_end = evidence(events);
    insta::assert_snapshot!("undone", shown(&evidence_of_end));
    insta::assert_snapshot!("undone.md", markdown(&evidence_of_end));

    let mut events = begun;
    events.push(started("undo:stop"));
    events.push(json!({ "type": "step_finished", "step": "undo:stop", "attempt": 1,
        "outcome": { "result": "failed", "error": { "message": "no such image", "transient": false } } }));
    events.push(json!({ "type": "run_stopped", "status": "failed", "reason": "step `undo:stop` failed" }));
    insta::assert_snapshot!("undo-failed", shown(&evidence(events)));
}
