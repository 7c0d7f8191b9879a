//! Resume: what the journal says, what the world answers, and what is decided.

use super::*;
use crate::record::event::DecisionAction;
use crate::record::journal;
use crate::record::state::StepState;

fn started(step: &'static str) -> impl Fn(&Event) -> bool {
    move |event| matches!(event, Event::StepStarted { step: id, .. } if id == step)
}

async fn decisions(bench: &Bench, plan: &Arc<Plan>, folder: &RunFolder) -> Vec<(String, DecisionAction)> {
    let foreseen = decide(&bench.cx, plan, folder, None).await.unwrap();
    foreseen.decisions.into_iter().map(|decision| (decision.step, decision.action)).collect()
}

/// A run killed while step `a` hangs; what its type answers afterwards.
async fn cut_off(bench: &Bench, after: &str) -> (Arc<Plan>, RunFolder, PathBuf) {
    let touch = bench.path("acts");
    let hanging = plan(vec![step("a", json!({ "hang": true })), needing("b", json!({ "touch": touch }), &["a"])]);
    let folder = bench.killed_when(&hanging, started("a")).await;
    // The same definition, as far as the journal can tell, that doesn't hang and answers as wanted.
    let mut answering = plan(vec![
        step("a", json!({ "after": after, "touch": touch })),
        needing("b", json!({ "touch": touch }), &["a"]),
    ]);
    for (now, then) in Arc::get_mut(&mut answering).unwrap().steps.iter_mut().zip(&hanging.steps) {
        now.definition.clone_from(&then.definition);
    }
    (answering, folder, touch)
}

#[tokio::test]
async fn what_happened_is_kept_with_its_outputs() {
    let bench = Bench::new();
    let (plan, folder, touch) = cut_off(&bench, "happened").await;
    assert_eq!(folder.state().unwrap().status, RunStatus::Running);
    assert_eq!(folder.holder().unwrap(), None, "nobody works on it");
    assert_eq!(decisions(&bench, &plan, &folder).await[0], ("a".to_owned(), DecisionAction::Keep));
    let ended = bench.resume(&plan, &folder).await;
    assert_eq!((ended.state.status, lines(&touch)), (RunStatus::Succeeded, vec!["b 1".to_owned()]));
    assert_eq!(ended.state.step("a").unwrap().outputs().unwrap()["from"], "the world");
}

#[tokio::test]
async fn what_did_not_happen_or_only_in_part_runs_with_a_new_attempt() {
    for (after, action) in
        [("run again", DecisionAction::Run), ("noted", DecisionAction::Run), ("partly", DecisionAction::Continue)]
    {
        let bench = Bench::new();
        let (plan, folder, touch) = cut_off(&bench, after).await;
        assert_eq!(decisions(&bench, &plan, &folder).await[0].1, action);
        bench.resume(&plan, &folder).await;
        assert_eq!(lines(&touch), ["a 2", "b 1"], "{after}");
    }
}

#[tokio::test]
async fn what_nobody_can_tell_is_asked_and_rerun_only_on_a_yes() {
    let bench = Bench::new();
    let (plan, folder, touch) = cut_off(&bench, "cannot tell").await;
    let ended = bench.resume(&plan, &folder).await;
    assert_eq!((ended.state.status, lines(&touch).len()), (RunStatus::Waiting, 0));
    let no = Answer { approved: false, ..yes("maria") };
    folder.answer("a", no, Timestamp::now()).unwrap();
    assert_eq!(bench.resume(&plan, &folder).await.state.status, RunStatus::Failed);
    let ended = bench.resume(&plan, &folder).await;
    assert_eq!((ended.state.status, lines(&touch).len()), (RunStatus::Waiting, 0), "a no is not forgotten");
    folder.answer("a", yes("maria"), Timestamp::now()).unwrap();
    let ended = bench.resume(&plan, &folder).await;
    assert_eq!(
        (ended.state.status, lines(&touch)),
        (RunStatus::Succeeded, vec!["a 2".to_owned(), "b 1".to_owned()])
    );
}

#[tokio::test]
async fn the_plan_may_say_rerun() {
    let bench = Bench::new();
    let (mut plan, folder, touch) = cut_off(&bench, "cannot tell").await;
    Arc::get_mut(&mut plan).unwrap().steps[0].rerun_if_interrupted = true;
    bench.resume(&plan, &folder).await;
    assert_eq!(lines(&touch), ["a 2", "b 1"]);
}

/// Resumes while step `a` still goes on in the world, which ends then.
async fn waited_for(after: &str, rerun: bool) -> (Ended, Vec<String>) {
    let bench = Bench::new();
    let (mut plan, folder, touch) = cut_off(&bench, after).await;
    Arc::get_mut(&mut plan).unwrap().steps[0].rerun_if_interrupted = rerun;
    std::fs::write(&touch, "").unwrap();
    assert_eq!(decisions(&bench, &plan, &folder).await[0].1, DecisionAction::Wait);
    let (cx, of_task, console) = (bench.cx.clone(), plan.clone(), bench.console());
    let of_folder = folder.clone();
    let task = tokio::spawn(async move { resume(&cx, &of_task, &of_folder, RunOptions::default(), console).await });
    until(|| bench.seen.0.lock().unwrap().iter().any(|record| matches!(record.event, Event::RunResumed { .. })))
        .await;
    std::fs::remove_file(&touch).unwrap();
    let ended = task.await.unwrap().unwrap();
    let acts = if touch.exists() { lines(&touch) } else { Vec::new() };
    (ended, acts)
}

#[tokio::test]
async fn what_still_goes_on_is_waited_for() {
    let (ended, acts) = waited_for("going", false).await;
    assert_eq!((ended.state.status, acts), (RunStatus::Succeeded, vec!["b 1".to_owned()]));
    // Nobody can tell how it ended: a person is asked, or the plan says it already.
    let (ended, acts) = waited_for("lost", false).await;
    assert_eq!((ended.state.status, acts), (RunStatus::Waiting, Vec::new()));
    let (ended, acts) = waited_for("lost", true).await;
    assert_eq!((ended.state.status, acts), (RunStatus::Succeeded, vec!["a 2".to_owned(), "b 1".to_owned()]));
}

#[tokio::test]
async fn a_world_that_does_not_answer_decides_nothing() {
    let bench = Bench::new();
    let (plan, folder, _) = cut_off(&bench, "unreachable").await;
    let before = folder.read().unwrap().head;
    let error = resume(&bench.cx, &plan, &folder, RunOptions::default(), bench.console()).await.unwrap_err();
    assert!(matches!(error, EngineError::Undecided { .. }), "{error}");
    assert_eq!(folder.read().unwrap().head, before);
}

#[tokio::test]
async fn a_failed_step_runs_again_what_succeeded_is_kept_and_finally_runs_anew() {
    let bench = Bench::new();
    let touch = bench.path("acts");
    let plan = |fail: Option<&str>| {
        let mut plan = plan(vec![
            step("a", json!({ "touch": touch })),
            needing("b", json!({ "touch": touch, "fail": fail }), &["a"]),
            needing("c", json!({ "touch": touch }), &["b"]),
            finally("tell", json!({ "touch": touch }), &[]),
        ]);
        Arc::get_mut(&mut plan).unwrap().steps[1].definition = "b".to_owned();
        plan
    };
    let folder = bench.run(&plan(Some("x"))).await.folder;
    let ended = bench.resume(&plan(None), &folder).await;
    assert_eq!(ended.state.status, RunStatus::Succeeded);
    assert_eq!(lines(&touch), ["a 1", "tell 1", "b 2", "c 1", "tell 2"]);
    let error = resume(&bench.cx, &plan(None), &folder, RunOptions::default(), bench.console()).await.unwrap_err();
    assert!(matches!(error, EngineError::Finished(_)), "{error}");
}

#[tokio::test]
async fn a_stale_proof_is_given_again() {
    let mut bench = Bench::new();
    let touch = bench.path("acts");
    let valid_for = Some(crate::units::Duration::seconds(60));
    let plan = plan(vec![
        PlannedStep { valid_for, ..step("check", json!({ "touch": touch })) },
        needing("b", json!({ "fail": "x" }), &["check"]),
    ]);
    let folder = bench.run(&plan).await.folder;
    bench.resume(&plan, &folder).await;
    assert_eq!(lines(&touch).len(), 1);
    bench.cx.clock = Arc::new(|| Timestamp::now() + jiff::SignedDuration::from_secs(61));
    bench.resume(&plan, &folder).await;
    assert_eq!(lines(&touch).len(), 2);
    // A clock that was set back a year says nothing of a proof's age; one that jumps ahead makes it stale.
    for hours in [-24 * 365, 24 * 365] {
        let before = lines(&touch).len();
        bench.cx.clock = Arc::new(move || Timestamp::now() + jiff::SignedDuration::from_hours(hours));
        let ended = bench.resume(&plan, &folder).await;
        assert_eq!(lines(&touch).len(), before + 1, "{hours}");
        assert!(ended.state.last_at >= ended.state.started_at && ended.state.waited.is_zero());
    }
}

#[tokio::test]
async fn a_stale_proof_that_fails_now_stops_what_needs_it_and_reruns_nothing_else() {
    let mut bench = Bench::new();
    let touch = bench.path("acts");
    let valid_for = Some(crate::units::Duration::seconds(60));
    let plan = |check: Value| {
        let check = PlannedStep { valid_for, definition: "check".to_owned(), ..step("check", check) };
        let needs = needing("done", json!({ "touch": touch }), &["check"]);
        plan(vec![check, needs, needing("b", json!({ "fail": "x" }), &["done", "check"])])
    };
    let folder = bench.run(&plan(json!({ "touch": touch }))).await.folder;
    bench.cx.clock = Arc::new(|| Timestamp::now() + jiff::SignedDuration::from_secs(61));
    let ended = bench.resume(&plan(json!({ "fail": "stale" })), &folder).await;
    assert_eq!((ended.state.status, failure(&ended, "check")), (RunStatus::Failed, "stale"));
    assert!(matches!(outcome(&ended, "b"), Outcome::NotRun { .. }), "{:?}", outcome(&ended, "b"));
    assert_eq!(lines(&touch), ["check 1", "done 1"], "what succeeded behind it is kept");
}

#[tokio::test]
async fn another_plan_is_refused_and_the_steps_named() {
    let bench = Bench::new();
    let folder = bench.run(&plan(vec![step("a", json!({})), step("b", json!({ "fail": "x" }))])).await.folder;
    let other = plan(vec![step("a", json!({ "touch": "/x" })), step("c", json!({}))]);
    let error = resume(&bench.cx, &other, &folder, RunOptions::default(), bench.console()).await.unwrap_err();
    assert_eq!(error.class().code(), 2);
    assert_eq!(
        error.to_string(),
        "the run began with another version of the plan: changed are `a`, `b` (gone), `c` (new)"
    );
}

#[tokio::test]
async fn one_process_works_on_a_run() {
    let bench = Bench::new();
    let plan = plan(vec![step("a", json!({ "fail": "x" }))]);
    let folder = bench.run(&plan).await.folder;
    let (held, ..) = folder.open(Timestamp::now()).unwrap();
    let error = resume(&bench.cx, &plan, &folder, RunOptions::default(), bench.console()).await.unwrap_err();
    assert_eq!(error.class().code(), 5);
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    drop(held);
    bench.resume(&plan, &folder).await;
}

/// The log cut after each record, and in the middle of one: resumed, each gives the unbroken
/// run's end, and nothing acts that had been through.
#[tokio::test]
async fn cut_after_any_record_a_resume_ends_as_an_unbroken_run() {
    let bench = Bench::new();
    let touch = bench.path("acts");
    let mut steps = vec![
        step("a", json!({ "touch": touch, "note": 1, "after": "noted", "outputs": { "value": 1 } })),
        needing("b", json!({ "touch": touch, "flaky": 1, "after": "run again" }), &["a"]),
        needing("c", json!({ "touch": touch, "note": 3, "after": "happened" }), &["b"]),
        finally("tell", json!({}), &[]),
    ];
    steps[1].retry.attempts = 3;
    let plan = plan(steps);
    let ended = bench.run(&plan).await;
    let path = ended.folder.path().join("journal.jsonl");
    let whole = std::fs::read(&path).unwrap();
    let acted = lines(&touch).len();
    let ends: Vec<_> = whole.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
    for end in &ends[..ends.len() - 1] {
        for cut in [*end, end + 7] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            std::fs::remove_file(&touch).unwrap_or_default();
            let kept = journal::read(&path).unwrap().records;
            let through = kept
                .iter()
                .filter(|record| matches!(&record.event, Event::StepFinished { step, .. } if step != "tell"));
            let in_world = through.count();
            let ended = bench.resume(&plan, &ended.folder).await;
            assert_eq!(ended.state.status, RunStatus::Succeeded, "cut at {cut}");
            assert!(ended.state.steps.iter().all(StepState::is_done), "cut at {cut}");
            assert!(lines(&touch).len() <= acted - in_world, "cut at {cut}: {:?}", lines(&touch));
        }
    }
}
