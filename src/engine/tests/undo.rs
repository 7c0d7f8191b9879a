//! Undo: what is taken back, in which order, over failures and kills.

use super::*;
use crate::engine::undo::{Foreseen, UndoOptions, foresee, undo};
use crate::record::event::{UndoAction, UndoDecision};
use crate::record::journal;
use crate::record::state::StepState;

/// A step that is taken back by one with these parameters.
fn undoable(id: &str, params: Value, needs: &[&str], back: Value) -> PlannedStep {
    PlannedStep { undo: Some((&FAKE, Templated::parse(back).unwrap())), ..needing(id, params, needs) }
}

fn options() -> UndoOptions {
    UndoOptions { jobs: 8, ..UndoOptions::default() }
}

impl Bench {
    async fn undo(&self, plan: &Arc<Plan>, folder: &RunFolder) -> Ended {
        undo(&self.cx, plan, folder, options(), self.console()).await.unwrap()
    }

    async fn undo_fails(&self, plan: &Arc<Plan>, folder: &RunFolder, options: UndoOptions) -> EngineError {
        undo(&self.cx, plan, folder, options, self.console()).await.unwrap_err()
    }
}

fn action(foreseen: &[UndoDecision], step: &str) -> UndoAction {
    foreseen.iter().find(|decision| decision.step == step).unwrap().action
}

/// Whether `first` acted before `then`.
fn before(acts: &[String], first: &str, then: &str) -> bool {
    let at = |id: &str| acts.iter().position(|line| line.starts_with(&format!("{id} "))).unwrap();
    at(first) < at(then)
}

#[tokio::test]
async fn what_happened_is_taken_back_in_reverse() {
    let bench = Bench::new();
    let touch = bench.path("acts");
    let back = json!({ "touch": touch });
    // a ← (b, c) ← d, where b has no undo: a's waits for c's and, past b, for d's.
    let plan = plan(vec![
        undoable("a", json!({ "changes": "x" }), &[], back.clone()),
        needing("b", json!({ "destroys": "y" }), &["a"]),
        undoable("c", json!({}), &["a"], back.clone()),
        undoable("d", json!({}), &["b"], back.clone()),
        undoable("e", json!({ "fail": "no" }), &["d"], back.clone()),
        undoable("f", json!({}), &["e"], back.clone()),
        PlannedStep { finally: true, ..undoable("last", json!({}), &[], back) },
    ]);
    let ended = bench.run(&plan).await;
    assert_eq!(ended.state.status, RunStatus::Failed);
    let folder = ended.folder;
    let Foreseen { decisions, preview, .. } = foresee(&bench.cx, &plan, &folder, &options()).await.unwrap();
    assert_eq!(lines(&touch).len(), 0, "a dry-run touches nothing");
    assert_eq!(action(&decisions, "b"), UndoAction::Stays);
    assert_eq!(action(&decisions, "f"), UndoAction::Nothing);
    let order: Vec<_> = preview.steps.iter().map(|step| step.id.as_str()).collect();
    assert_eq!(order, ["undo:last", "undo:e", "undo:d", "undo:c", "undo:a"]);

    let ended = bench.undo(&plan, &folder).await;
    assert_eq!((ended.state.status, ended.class().code()), (RunStatus::Undone, 0));
    let acts = lines(&touch);
    assert_eq!(acts.len(), 5, "each once: {acts:?}");
    for (first, then) in [("undo:last", "undo:d"), ("undo:e", "undo:d"), ("undo:d", "undo:a"), ("undo:c", "undo:a")]
    {
        assert!(before(&acts, first, then), "{first} before {then}: {acts:?}");
    }
    assert!(matches!(bench.undo_fails(&plan, &folder, options()).await, EngineError::Undone(_)));
    let error = resume(&bench.cx, &plan, &folder, RunOptions::default(), bench.console()).await.unwrap_err();
    assert!(matches!(error, EngineError::BeingUndone(_)), "{error}");
    assert_eq!(error.class().code(), 2);
}

#[tokio::test]
async fn an_undo_reads_its_own_steps_outputs_and_others() {
    let bench = Bench::new();
    let folder = bench.folder.path().display().to_string();
    let text = format!(
        r#"
lifeboat: 1
plan: test
steps:
  first:
    exec: {{ argv: [echo, '{{"kept": "old.txt"}}'], outputs: {{ kept: {{ json: /kept }} }}, effects: [] }}
  second:
    exec:
      argv: [echo, '{{"name": "new.txt"}}']
      outputs: {{ name: {{ json: /name }} }}
      effects: ["create file:{folder}"]
    undo:
      exec: {{ argv: [touch, "{folder}/{{{{ steps.second.name }}}}", "{folder}/{{{{ steps.first.kept }}}}"], effects: [] }}
"#
    );
    let plan = plans::loaded(&bench, &text);
    let ended = bench.run(&plan).await;
    assert_eq!(ended.state.status, RunStatus::Succeeded, "a run that succeeded may be taken back as well");
    let ended = bench.undo(&plan, &ended.folder).await;
    assert_eq!(ended.state.status, RunStatus::Undone, "{:?}", ended.state.first_failure());
    assert!(bench.path("new.txt").exists() && bench.path("old.txt").exists());
}

#[tokio::test]
async fn a_failed_undo_stops_what_waits_for_it_and_goes_on_when_it_can() {
    let bench = Bench::new();
    let touch = bench.path("acts");
    let back = json!({ "touch": touch });
    let build = |fail: Option<&str>| {
        plan(vec![
            undoable("a", json!({}), &[], back.clone()),
            undoable("b", json!({}), &["a"], json!({ "touch": touch, "fail": fail })),
            undoable("beside", json!({}), &[], back.clone()),
        ])
    };
    let folder = bench.run(&build(None)).await.folder;
    let ended = bench.undo(&build(Some("stuck")), &folder).await;
    assert_eq!((ended.state.status, ended.class().code()), (RunStatus::Failed, 1));
    assert_eq!(lines(&touch), ["undo:beside 1"], "all else is taken back");
    assert_eq!(failure(&ended, "undo:b"), "stuck");
    assert!(matches!(outcome(&ended, "undo:a"), Outcome::NotRun { .. }));
    let error = resume(&bench.cx, &build(None), &folder, RunOptions::default(), bench.console()).await.unwrap_err();
    assert!(error.help().unwrap().contains("lifeboat undo"), "{error}");

    let ended = bench.undo(&build(None), &folder).await;
    assert_eq!(ended.state.status, RunStatus::Undone);
    assert_eq!(lines(&touch), ["undo:beside 1", "undo:b 2", "undo:a 1"]);
}

#[tokio::test]
async fn what_cant_be_taken_back_can_be_left_with_a_word_why() {
    let bench = Bench::new();
    let touch = bench.path("acts");
    let plan = plan(vec![
        undoable("a", json!({}), &[], json!({ "touch": touch })),
        undoable("b", json!({}), &["a"], json!({ "fail": "stuck" })),
    ]);
    let folder = bench.run(&plan).await.folder;
    let wrong = UndoOptions { leave: vec!["zebra".to_owned()], ..options() };
    assert!(bench.undo_fails(&plan, &folder, wrong).await.to_string().contains("`zebra`"));
    bench.undo(&plan, &folder).await;
    let because = Some("it is gone".to_owned());
    let leave = UndoOptions { leave: vec!["b".to_owned()], because, ..options() };
    let ended = undo(&bench.cx, &plan, &folder, leave, bench.console()).await.unwrap();
    assert_eq!((ended.state.status, lines(&touch).len()), (RunStatus::Undone, 1));
    let Outcome::Skipped { reason } = outcome(&ended, "undo:b") else { panic!() };
    assert!(reason.ends_with(": it is gone"), "{reason}");
}

#[tokio::test]
async fn a_blocked_undo_touches_nothing() {
    let bench = Bench::new();
    let plan = plan(vec![undoable("a", json!({}), &[], json!({ "blocked": "no space" }))]);
    let folder = bench.run(&plan).await.folder;
    let head = folder.read().unwrap().head;
    let error = bench.undo_fails(&plan, &folder, options()).await;
    assert_eq!((error.class().code(), folder.read().unwrap().head), (3, head));
}

#[tokio::test]
async fn a_run_without_undo_has_nothing_to_take_back() {
    let bench = Bench::new();
    let plan = plan(vec![step("a", json!({}))]);
    let folder = bench.run(&plan).await.folder;
    assert!(matches!(bench.undo_fails(&plan, &folder, options()).await, EngineError::NothingToUndo(_)));
}

/// A run killed while `a` hangs, whose type answers `after` then, and whether an undo of `a` runs.
async fn cut_off(after: &str, yes: bool) -> (Bench, Result<Ended, EngineError>, Vec<String>) {
    let bench = Bench::new();
    let touch = bench.path("acts");
    let back = json!({ "touch": touch });
    let hanging = plan(vec![undoable("a", json!({ "hang": true, "changes": "x" }), &[], back.clone())]);
    let folder =
        bench.killed_when(&hanging, |event| matches!(event, Event::StepStarted { step, .. } if step == "a")).await;
    let going = bench.path("going");
    std::fs::write(&going, "").unwrap();
    let touched = json!({ "after": after, "changes": "x", "touch": going });
    let mut answering = plan(vec![undoable("a", touched, &[], back)]);
    let of_plan = Arc::get_mut(&mut answering).unwrap();
    of_plan.steps[0].definition.clone_from(&hanging.steps[0].definition);
    let options = UndoOptions { yes, ..options() };
    let ended = undo(&bench.cx, &answering, &folder, options, bench.console()).await;
    let acts = lines(&touch);
    (bench, ended, acts)
}

#[tokio::test]
async fn the_world_is_asked_of_a_step_in_flight() {
    for (after, acts) in [("happened", 1), ("partly", 1), ("run again", 1)] {
        let (_bench, ended, acted) = Box::pin(cut_off(after, false)).await;
        let ended = ended.unwrap();
        assert_eq!((ended.state.status, acted.len()), (RunStatus::Undone, acts), "{after}");
        let happened = matches!(outcome(&ended, "a"), Outcome::Succeeded { .. });
        assert_eq!(happened, after == "happened", "{after}: {:?}", outcome(&ended, "a"));
    }
    let (_bench, ended, acted) = Box::pin(cut_off("noted", false)).await;
    assert!(matches!(ended, Err(EngineError::NothingToUndo(_))) && acted.is_empty(), "it had not happened");
    let (_bench, ended, _) = Box::pin(cut_off("unreachable", false)).await;
    assert!(matches!(ended, Err(EngineError::Undecided { .. })));
    let (_bench, ended, _) = Box::pin(cut_off("going", false)).await;
    assert!(matches!(ended, Err(EngineError::StillGoing { .. })));
}

#[tokio::test]
async fn what_nobody_can_tell_is_taken_back_on_a_yes() {
    let (_bench, ended, acted) = Box::pin(cut_off("cannot tell", false)).await;
    assert_eq!((ended.unwrap().state.status, acted.len()), (RunStatus::Waiting, 0));
    let (_bench, ended, acted) = Box::pin(cut_off("cannot tell", true)).await;
    assert_eq!((ended.unwrap().state.status, acted.len()), (RunStatus::Undone, 1));
}

/// The log cut after each record of an undo, and in the middle of one: gone on with, each comes to
/// the unbroken undo's end, and nothing is taken back twice.
#[tokio::test]
async fn cut_after_any_record_an_undo_ends_as_an_unbroken_one() {
    let bench = Bench::new();
    let touch = bench.path("acts");
    let mut steps = vec![
        undoable("a", json!({}), &[], json!({ "touch": touch, "note": 1, "after": "noted" })),
        undoable("b", json!({}), &["a"], json!({ "touch": touch, "flaky": 1, "after": "run again" })),
        undoable("c", json!({}), &["b"], json!({ "touch": touch, "note": 3, "after": "happened" })),
    ];
    steps[1].retry.attempts = 3;
    let plan = plan(steps);
    let folder = bench.run(&plan).await.folder;
    let path = folder.path().join("journal.jsonl");
    let begun = std::fs::read(&path).unwrap().len();
    bench.undo(&plan, &folder).await;
    let whole = std::fs::read(&path).unwrap();
    let acted = lines(&touch).len();
    assert_eq!(acted, 3);
    let ends: Vec<_> = whole.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
    for end in ends[..ends.len() - 1].iter().filter(|end| **end >= begun) {
        for cut in [*end, end + 7] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            std::fs::remove_file(&touch).unwrap_or_default();
            let kept = journal::read(&path).unwrap().records;
            let through = kept.iter().filter(
                |record| matches!(&record.event, Event::StepFinished { step, .. } if step.starts_with("undo:")),
            );
            let in_world = through.count();
            let ended = bench.undo(&plan, &folder).await;
            assert_eq!(ended.state.status, RunStatus::Undone, "cut at {cut}");
            assert!(ended.state.steps.iter().all(StepState::is_done), "cut at {cut}");
            assert!(lines(&touch).len() <= acted - in_world, "cut at {cut}: {:?}", lines(&touch));
        }
    }
}
