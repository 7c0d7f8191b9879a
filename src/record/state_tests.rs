//! Which event may follow which, and what the times come to.

use super::*;
use crate::record::event::{Actor, EffectRecord, ErrorRecord, FORMAT, Question, QuestionKind, StepHeader};
use serde_json::Value;
use std::collections::BTreeMap;

struct Story {
    state: RunState,
    second: i64,
}

impl Story {
    fn begin() -> Self {
        let step = |id: &str, proves_health| StepHeader {
            id: id.to_owned(),
            step_type: "exec".to_owned(),
            title: None,
            needs: Vec::new(),
            finally: false,
            definition: id.to_owned(),
            proves_health,
            effects: Vec::new(),
            undo: None,
            undoes: None,
        };
        let header = RunStarted {
            format: FORMAT,
            walker: 1,
            version: "0".to_owned(),
            run: "r".to_owned(),
            plan: "p".to_owned(),
            title: None,
            plan_digest: String::new(),
            environment: None,
            environment_digest: None,
            plan_file: "p.yaml".to_owned(),
            environment_file: None,
            inputs: BTreeMap::new(),
            copies: BTreeMap::new(),
            rto: Some(60.0),
            rpo: None,
            by: Actor::current(),
            steps: vec![step("a", false), step("b", true)],
        };
        let first = Record {
            seq: 0,
            at: Timestamp::UNIX_EPOCH,
            prev: String::new(),
            event: Event::RunStarted(Box::new(header)),
        };
        Self { state: RunState::begin(&first).unwrap(), second: 0 }
    }

    fn after(&mut self, seconds: i64, event: Event) -> Result<(), Illegal> {
        self.second += seconds;
        let at = Timestamp::from_second(self.second).unwrap();
        self.state.apply(&Record { seq: self.state.records, at, prev: String::new(), event })
    }

    fn tell(&mut self, seconds: i64, event: Event) -> &mut Self {
        self.after(seconds, event).unwrap();
        self
    }
}

fn start(step: &str, attempt: u32) -> Event {
    Event::StepStarted { step: step.to_owned(), attempt }
}

fn finish(step: &str, attempt: u32) -> Event {
    let outcome = Outcome::Succeeded { outputs: BTreeMap::new(), summary: None };
    Event::StepFinished { step: step.to_owned(), attempt, outcome, log: None }
}

fn ask(step: &str, kind: QuestionKind) -> Event {
    let question = Question {
        kind,
        message: "?".to_owned(),
        checklist: Vec::new(),
        fields: BTreeMap::new(),
        by: Vec::new(),
        quorum: 1,
        not_by_requester: false,
        until: None,
    };
    Event::StepWaiting { step: step.to_owned(), question }
}

fn yes(step: &str) -> Event {
    let answer = Answer {
        approved: true,
        by: "maria".to_owned(),
        at: Timestamp::UNIX_EPOCH,
        note: None,
        fields: BTreeMap::new(),
    };
    Event::StepAnswered { step: step.to_owned(), answer }
}

fn stop(status: RunStatus) -> Event {
    Event::RunStopped { status, reason: None }
}

fn resume(decisions: Vec<Decision>) -> Event {
    Event::RunResumed { by: Actor::current(), version: "0".to_owned(), decisions }
}

fn decision(step: &str, action: DecisionAction) -> Decision {
    Decision { step: step.to_owned(), action, reason: String::new() }
}

#[test]
fn illegal_moves_are_errors_and_change_nothing() {
    let mut story = Story::begin();
    for illegal in [
        finish("a", 1),
        start("a", 2),
        start("nobody", 1),
        yes("a"),
        Event::StepNoted { step: "a".to_owned(), attempt: 1, note: 1.into() },
        Event::AttemptFailed {
            step: "a".to_owned(),
            attempt: 1,
            error: ErrorRecord { message: String::new(), transient: true, help: None },
            retry_in: 1.0,
            log: None,
        },
    ] {
        assert!(story.after(0, illegal.clone()).is_err(), "{illegal:?}");
    }
    story.tell(0, start("a", 1));
    assert!(story.after(0, start("a", 2)).is_err(), "it runs");
    story.tell(0, finish("a", 1));
    assert!(story.after(0, finish("a", 1)).is_err(), "it has ended");
    story.tell(0, stop(RunStatus::Failed));
    assert!(story.after(0, start("b", 1)).is_err(), "a stopped run is resumed first");
    assert_eq!(story.state.records, 4);
    story.tell(0, resume(vec![decision("b", DecisionAction::Run)])).tell(0, start("b", 1));
}

#[test]
fn people_are_waited_for_apart() {
    let mut story = Story::begin();
    story
        .tell(0, start("a", 1))
        .tell(10, ask("b", QuestionKind::Confirm))
        .tell(5, finish("a", 1))
        // From here on nothing but a person is waited for, also while no process runs.
        .tell(100, stop(RunStatus::Waiting))
        .tell(1000, yes("b"))
        .tell(0, resume(vec![decision("b", DecisionAction::Run)]))
        .tell(0, start("b", 1))
        .tell(7, finish("b", 1));
    assert_eq!(story.state.waited, Duration::from_secs(1100));
    let measured = crate::record::measure::measure(&story.state);
    assert_eq!(measured.recovery_time, Some(Duration::from_secs(22)));
    assert_eq!(measured.rto, Some((Duration::from_mins(1), true)));
}

#[test]
fn an_answered_confirm_survives_the_process() {
    let mut story = Story::begin();
    story.tell(0, ask("a", QuestionKind::Confirm)).tell(1, yes("a")).tell(0, stop(RunStatus::Paused));
    let step = story.state.step("a").unwrap();
    assert!(step.confirmed && step.phase == Phase::Pending);
    assert!(story.after(0, yes("a")).is_err(), "nobody asks any more");
}

#[test]
fn what_is_done_anew_begins_without_notes_and_what_was_made_is_known_by_them() {
    for (access, kept) in [("change", 0), ("create", 1)] {
        let mut story = Story::begin();
        let position = story.state.position("b").unwrap();
        let effect = serde_json::json!({ "access": access, "resource": "file:x" });
        let effect: EffectRecord = serde_json::from_value(effect).unwrap();
        story.state.steps[position].header.effects = vec![effect];
        story
            .tell(0, start("b", 1))
            .tell(0, Event::StepNoted { step: "b".to_owned(), attempt: 1, note: Value::from("told") })
            .tell(0, finish("b", 1))
            .tell(0, stop(RunStatus::Failed))
            .tell(0, resume(vec![decision("b", DecisionAction::Run)]));
        assert_eq!(story.state.step("b").unwrap().notes.len(), kept, "{access}");
        story.tell(0, start("b", 2));
    }
}

#[test]
fn a_step_in_flight_is_open_until_it_is_decided() {
    let mut story = Story::begin();
    story.tell(0, start("a", 1)).tell(0, resume(vec![decision("a", DecisionAction::Ask)]));
    assert!(story.state.step("a").unwrap().is_open_ended());
    story.tell(0, ask("a", QuestionKind::Interrupted)).tell(0, yes("a")).tell(0, start("a", 2));
    // Cancelled while it acted: open again, and kept once it is known to have happened.
    let outcome = Outcome::Cancelled { reason: String::new() };
    story.tell(0, Event::StepFinished { step: "a".to_owned(), attempt: 2, outcome, log: None });
    assert!(story.state.step("a").unwrap().is_open_ended());
    story.tell(0, stop(RunStatus::Cancelled)).tell(0, resume(vec![decision("a", DecisionAction::Keep)]));
    story.tell(0, finish("a", 2));
    assert!(story.state.step("a").unwrap().is_done());
}

#[test]
fn a_clock_set_back_gives_no_negative_times() {
    let mut story = Story::begin();
    story.tell(100, start("a", 1)).tell(-50, finish("a", 1));
    assert_eq!(story.state.step("a").unwrap().took(), Some(Duration::ZERO));
    assert_eq!(story.state.last_at, Timestamp::from_second(100).unwrap());
}
