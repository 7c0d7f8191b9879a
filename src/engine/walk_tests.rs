//! Every run ends, and what is counted along the way is what the state says.

use super::*;
use crate::engine::tests::{finally, needing, plan, records, step};
use crate::plan::Plan;
use crate::record::event::{Event, Record};
use proptest::prelude::*;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A plan of `n` steps whose needs the bits of `shape` choose among those before.
fn shaped(n: usize, shape: &[u32]) -> Arc<Plan> {
    let name = |at: usize| format!("s{at}");
    let steps = (0..n).map(|at| {
        let needs: Vec<String> = (0..at).filter(|need| shape[at] >> need & 1 == 1).map(name).collect();
        let needs: Vec<&str> = needs.iter().map(String::as_str).collect();
        let mut step = if at + 2 >= n {
            // The last ones clean up; they wait for each other only.
            let needs: Vec<&str> = needs.into_iter().filter(|need| *need == format!("s{}", n - 2)).collect();
            finally(&name(at), json!({}), &needs)
        } else {
            needing(&name(at), json!({}), &needs)
        };
        step.continue_on_failure = shape[at] >> 30 & 1 == 1;
        step
    });
    plan(steps.collect())
}

/// Drives a run to its end with outcomes that `fate` chooses; checks each state on the way.
fn driven(plan: &Plan, state: &mut RunState, fates: &[u8], modes: &[Mode], jobs: usize) -> RunStatus {
    let mut walker = Walker::new(&plan.steps, state);
    let mut running: Vec<usize> = Vec::new();
    let mut mode = Mode::Go;
    for round in 0..1000 {
        mode = mode.max(modes.get(round).copied().unwrap_or_default());
        let free = jobs - walker.busy();
        let commands = walker.next(mode, free, |_| Turn::Start);
        let anew = Walker::new(&plan.steps, state).next(mode, free, |_| Turn::Start);
        assert_eq!(commands, anew, "what is counted along the way is what the state says");
        for command in &commands {
            let (at, event) = match command {
                Command::Start(at) => {
                    running.push(*at);
                    (*at, Event::StepStarted { step: format!("s{at}"), attempt: 1 })
                }
                Command::NotRun(at, reason) => (*at, ended(*at, 0, Outcome::NotRun { reason: reason.clone() })),
                Command::Stop(status, _) => {
                    assert!(running.is_empty(), "a run stops when nothing runs");
                    return *status;
                }
                other => panic!("{other:?}"),
            };
            apply(&mut walker, state, at, event);
        }
        assert!(running.len() <= jobs);
        if commands.is_empty() {
            assert!(!running.is_empty(), "stuck: {state:?}");
            let at = running.remove(fates[round % fates.len()] as usize % running.len());
            let failed =
                Outcome::Failed { error: ErrorRecord { message: "x".into(), transient: false, help: None } };
            let fine = Outcome::Succeeded { outputs: BTreeMap::default(), summary: None };
            let outcome = if fates[at % fates.len()].is_multiple_of(4) { failed } else { fine };
            apply(&mut walker, state, at, ended(at, 1, outcome));
        }
    }
    panic!("it never ends")
}

fn ended(at: usize, attempt: u32, outcome: Outcome) -> Event {
    Event::StepFinished { step: format!("s{at}"), attempt, outcome, log: None }
}

fn apply(walker: &mut Walker, state: &mut RunState, at: usize, event: Event) {
    let record = Record { seq: state.records, at: state.last_at, prev: String::new(), event };
    state.apply(&record).unwrap();
    walker.observe(at, &state.steps[at]);
}

proptest! {
    #[test]
    fn every_run_ends_and_no_step_runs_on_a_failure(
        n in 3usize..14,
        shape in proptest::collection::vec(any::<u32>(), 14),
        fates in proptest::collection::vec(any::<u8>(), 1..14),
        jobs in 1usize..4,
        stop in proptest::option::of((0usize..30, 0usize..3)),
    ) {
        let plan = shaped(n, &shape);
        let (mut state, _) = records(&plan, jiff::Timestamp::UNIX_EPOCH, &[]);
        let mut modes = vec![Mode::Go; 30];
        if let Some((round, how)) = stop {
            modes[round] = [Mode::Pause, Mode::Cancel, Mode::Abort][how];
        }
        let status = driven(&plan, &mut state, &fates, &modes, jobs);
        let ran = |id: &StepId| state.step(id.as_str()).is_some_and(|step| step.attempt > 0);
        for step in plan.steps.iter().filter(|step| ran(&step.id) && !step.finally) {
            for need in &step.needs {
                prop_assert!(state.step(need.as_str()).unwrap().is_done(), "{} ran before {need} was done", step.id);
            }
        }
        let failed = state.steps.iter().any(StepState::has_failed);
        if status == RunStatus::Succeeded {
            prop_assert!(state.steps.iter().all(|step| step.is_done() || step.header.finally));
        }
        if stop.is_none() {
            prop_assert!(status == RunStatus::Succeeded || status == RunStatus::Failed);
            prop_assert!(plan.steps.iter().filter(|step| step.finally).all(|step| ran(&step.id)), "finally runs");
            prop_assert!(failed || status == RunStatus::Succeeded);
        }
    }
}

#[test]
fn a_chain_of_ten_thousand_steps_is_walked_to_its_end() {
    let chain = (0..10_000).map(|at| {
        let before = format!("s{}", at.max(1) - 1);
        if at == 0 { step("s0", json!({})) } else { needing(&format!("s{at}"), json!({}), &[&before]) }
    });
    let plan = plan(chain.collect());
    let (mut state, _) = records(&plan, jiff::Timestamp::UNIX_EPOCH, &[]);
    let mut walker = Walker::new(&plan.steps, &state);
    for at in 0..10_000 {
        assert_eq!(walker.next(Mode::Go, 8, |_| Turn::Start), [Command::Start(at)]);
        apply(&mut walker, &mut state, at, Event::StepStarted { step: format!("s{at}"), attempt: 1 });
        let fine = Outcome::Succeeded { outputs: BTreeMap::default(), summary: None };
        apply(&mut walker, &mut state, at, ended(at, 1, fine));
    }
    assert_eq!(walker.next(Mode::Go, 8, |_| Turn::Start), [Command::Stop(RunStatus::Succeeded, None)]);
}
