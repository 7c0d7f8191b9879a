//! What operators order of a run that goes on.

use super::*;
use crate::record::event::DecisionAction;
use crate::record::steering::OrderKind::{self, MarkDone, Rerun, Skip};
use crate::record::steering::{Adjustment, Limits};

fn orders(orders: &[(&str, OrderKind)]) -> Steering {
    let orders = orders.iter().map(|(step, order)| ((*step).to_owned(), *order)).collect();
    Steering { because: "the disk was swapped".to_owned(), orders, ..Steering::default() }
}

/// `a`, then `b` that fails, then `c`; the acts of each in a file. Resumed, `b` does as `second` says.
async fn failed(bench: &Bench, second: Value) -> (Arc<Plan>, RunFolder, PathBuf) {
    let touch = bench.path("acts");
    let plan = |b: Value| {
        plan(vec![
            step("a", json!({ "touch": touch, "outputs": { "value": 1 }, "note": "n" })),
            PlannedStep { definition: "b".to_owned(), ..needing("b", b, &["a"]) },
            needing("c", json!({ "touch": touch }), &["b"]),
            finally("tell", json!({}), &[]),
        ])
    };
    let folder = bench.run(&plan(json!({ "fail": "broken", "destroys": "x" }))).await.folder;
    (plan(second), folder, touch)
}

fn message(result: Result<Ended, EngineError>) -> (u8, String) {
    let error = result.unwrap_err();
    (error.class().code(), error.to_string())
}

#[tokio::test]
async fn a_skipped_step_counts_as_done_and_stays_skipped_with_who_and_why() {
    let bench = Bench::new();
    let (plan, folder, touch) = failed(&bench, json!({ "fail": "broken" })).await;
    let ended = bench.steer(&plan, &folder, orders(&[("b", Skip)])).await.unwrap();
    assert_eq!(
        (ended.state.status, lines(&touch)),
        (RunStatus::Succeeded, vec!["a 1".to_owned(), "c 1".to_owned()])
    );
    let who = bench.cx.by.who();
    let Outcome::Skipped { reason } = outcome(&ended, "b") else { panic!() };
    assert_eq!(reason, &format!("skipped by {who}: the disk was swapped"));
    assert_eq!(ended.state.step("b").unwrap().ordered.as_ref().unwrap().order, Skip);
}

#[tokio::test]
async fn a_skip_is_kept_over_later_resumes() {
    let bench = Bench::new();
    let plan = plan(vec![step("a", json!({ "fail": "x" })), needing("b", json!({ "fail": "y" }), &["a"])]);
    let folder = bench.run(&plan).await.folder;
    bench.steer(&plan, &folder, orders(&[("a", Skip)])).await.unwrap();
    let foreseen = decide(&bench.cx, &plan, &folder, None).await.unwrap();
    assert_eq!(foreseen.decisions[0].action, DecisionAction::Skip);
    assert!(foreseen.decisions[0].reason.contains("the disk was swapped"), "{:?}", foreseen.decisions[0]);
    let ended = bench.resume(&plan, &folder).await;
    assert!(matches!(outcome(&ended, "a"), Outcome::Skipped { .. }));
}

#[tokio::test]
async fn a_skipped_step_that_may_have_happened_says_so() {
    let bench = Bench::new();
    let plan =
        plan(vec![step("a", json!({ "hang": true, "after": "cannot tell" })), needing("b", json!({}), &["a"])]);
    let folder = bench.killed_when(&plan, |event| matches!(event, Event::StepStarted { .. })).await;
    let ended = bench.steer(&plan, &folder, orders(&[("a", Skip)])).await.unwrap();
    assert_eq!(ended.state.status, RunStatus::Succeeded);
    let Outcome::Skipped { reason } = outcome(&ended, "a") else { panic!() };
    assert!(reason.contains("it may have happened: nobody can tell"), "{reason}");
}

const READS: &str = r#"
lifeboat: 1
plan: test
steps:
  find:
    exec: { argv: [sh, -c, "test -f @/there && cat @/there"], outputs: { path: { json: /path } }, effects: [] }
  lenient:
    exec: { argv: [echo, '{{ default steps.find.path "none" }}'], effects: [] }
  use:
    exec: { argv: [touch, "@/{{ steps.find.path }}"], effects: [] }
"#;

#[tokio::test]
async fn who_reads_a_skipped_steps_output_is_named_before_anything_is_touched() {
    let bench = Bench::new();
    let plan = super::plans::loaded(&bench, READS);
    let folder = bench.run(&plan).await.folder;
    let before = folder.read().unwrap().head;
    let (code, said) = message(bench.steer(&plan, &folder, orders(&[("find", Skip)])).await);
    assert_eq!((code, folder.read().unwrap().head), (2, before));
    assert_eq!(said, "step `use` reads `steps.find.path`, and of `find`, it is skipped, and gives nothing");
    // Skipped as well, nothing is in the way: `default` stands in for what the other one reads.
    let ended = bench.steer(&plan, &folder, orders(&[("find", Skip), ("use", Skip)])).await.unwrap();
    assert_eq!(ended.state.status, RunStatus::Succeeded, "{:?}", ended.state.first_failure());
}

#[tokio::test]
async fn marked_done_needs_the_steps_own_word() {
    let bench = Bench::new();
    let (plan, folder, _) = failed(&bench, json!({ "destroys": "x", "after": "run again" })).await;
    let before = folder.read().unwrap().head;
    let (code, said) = message(bench.steer(&plan, &folder, orders(&[("b", MarkDone)])).await);
    assert_eq!((code, folder.read().unwrap().head), (3, before));
    assert!(said.contains("its dry-run would still change: do it"), "{said}");
    let sure = Steering { unverified: true, ..orders(&[("b", MarkDone)]) };
    let ended = bench.steer(&plan, &folder, sure).await.unwrap();
    assert_eq!(ended.state.status, RunStatus::Succeeded);
    let Outcome::Succeeded { summary: Some(summary), .. } = outcome(&ended, "b") else { panic!() };
    assert!(summary.starts_with("marked done, unverified, by "), "{summary}");
}

#[tokio::test]
async fn marked_done_keeps_the_outputs_that_the_world_gives() {
    let bench = Bench::new();
    let (plan, folder, touch) = failed(&bench, json!({ "destroys": "x", "after": "happened" })).await;
    let ended = bench.steer(&plan, &folder, orders(&[("b", MarkDone)])).await.unwrap();
    assert_eq!(lines(&touch), ["a 1", "c 1"]);
    assert_eq!(ended.state.step("b").unwrap().outputs().unwrap()["from"], "the world");
}

#[tokio::test]
async fn a_check_is_marked_done_by_running_it() {
    let bench = Bench::new();
    let (plan, folder, _) = failed(&bench, json!({ "outputs": { "value": 7 } })).await;
    let ended = bench.steer(&plan, &folder, orders(&[("b", MarkDone)])).await.unwrap();
    assert_eq!(ended.state.step("b").unwrap().outputs().unwrap()["value"], 7);
    let bench = Bench::new();
    let (plan, folder, _) = failed(&bench, json!({ "fail": "still" })).await;
    let (code, said) = message(bench.steer(&plan, &folder, orders(&[("b", MarkDone)])).await);
    assert!(code == 3 && said.contains("it was run, and failed: still"), "{said}");
}

#[tokio::test]
async fn a_question_is_answered_not_marked() {
    let bench = Bench::new();
    let ask = json!({ "asks": { "quorum": 1, "by": [], "not_by_requester": false, "until": null } });
    let plan = plan(vec![step("a", ask)]);
    let folder = bench.run(&plan).await.folder;
    let (code, said) = message(bench.steer(&plan, &folder, orders(&[("a", MarkDone)])).await);
    assert!(code == 2 && said.contains("it asks people"), "{said}");
    bench.steer(&plan, &folder, orders(&[("a", Skip)])).await.unwrap();
}

#[tokio::test]
async fn a_step_runs_again_with_all_that_needs_it_and_forgets_its_notes() {
    let bench = Bench::new();
    let touch = bench.path("acts");
    let plan = |fail: bool| {
        let last = if fail { json!({ "fail": "x" }) } else { json!({ "touch": touch }) };
        plan(vec![
            step("a", json!({ "touch": touch, "note": "n", "after": "noted" })),
            step("other", json!({ "touch": touch })),
            needing("b", json!({ "touch": touch }), &["a"]),
            PlannedStep { definition: "c".to_owned(), ..needing("c", last, &["b", "other"]) },
        ])
    };
    let folder = bench.run(&plan(true)).await.folder;
    std::fs::remove_file(&touch).unwrap();
    let ended = bench.steer(&plan(false), &folder, orders(&[("a", Rerun)])).await.unwrap();
    assert_eq!(lines(&touch), ["a 2", "b 2", "c 2"], "attempts go on counting; `other` is kept");
    assert_eq!(ended.state.step("a").unwrap().notes, [(2, json!("n"))]);
    let along = ended.state.step("b").unwrap().ordered.clone().unwrap();
    assert_eq!(along.along_with.as_deref(), Some("a"));
}

/// The log cut right behind the order: what was noted before it is not asked about any more.
#[tokio::test]
async fn a_rerun_holds_over_a_kill_before_the_run_goes_on() {
    let bench = Bench::new();
    let touch = bench.path("acts");
    let plan = plan(vec![
        step("a", json!({ "touch": touch, "note": "n", "after": "noted" })),
        needing("b", json!({ "fail": "x" }), &["a"]),
    ]);
    let folder = bench.run(&plan).await.folder;
    bench.steer(&plan, &folder, orders(&[("a", Rerun)])).await.unwrap();
    let path = folder.path().join("journal.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let kept: Vec<_> = text.split_inclusive('\n').collect();
    let order = kept.iter().position(|line| line.contains(r#""type":"steered""#)).unwrap();
    let started = order + 1 + kept[order + 1..].iter().position(|line| line.contains("step_started")).unwrap();
    for (cut, action) in
        [(order, DecisionAction::Run), (order + 1, DecisionAction::Run), (started, DecisionAction::Run)]
    {
        std::fs::write(&path, kept[..=cut].concat()).unwrap();
        let foreseen = decide(&bench.cx, &plan, &folder, None).await.unwrap();
        assert_eq!(foreseen.decisions[0].action, action, "cut at {cut}: {:?}", foreseen.decisions[0]);
    }
    let ended = bench.resume(&plan, &folder).await;
    assert_eq!(lines(&touch), ["a 1", "a 2", "a 3"], "{:?}", ended.state.first_failure());
}

#[tokio::test]
async fn what_is_blocked_is_told_before_a_rerun_touches_anything() {
    let bench = Bench::new();
    let (mut plan, folder, touch) = failed(&bench, json!({})).await;
    Arc::get_mut(&mut plan).unwrap().steps[0].params =
        Templated::parse(json!({ "blocked": "the database exists", "touch": touch })).unwrap();
    let before = folder.read().unwrap().head;
    let (code, said) = message(bench.steer(&plan, &folder, orders(&[("a", Rerun)])).await);
    assert_eq!((code, folder.read().unwrap().head), (3, before), "{said}");
    assert_eq!(lines(&touch), ["a 1"]);
}

#[tokio::test]
async fn names_are_known_and_orders_do_not_contradict() {
    let bench = Bench::new();
    let (plan, folder, _) = failed(&bench, json!({})).await;
    for (given, wanted) in [
        (orders(&[("bb", Skip)]), "--skip bb: the run has no step `bb`"),
        (orders(&[("b", Skip), ("b", Rerun)]), "step `b` is named with --skip and with --rerun"),
        (orders(&[("a", Skip)]), "--skip a: it has succeeded"),
        (orders(&[("a", MarkDone)]), "--mark-done a: it has succeeded"),
        (orders(&[("tell", Rerun)]), "--rerun tell: `finally` runs at the end of every resume"),
        (orders(&[("a", OrderKind::Accept)]), "--accept a: its definition is the same"),
    ] {
        let error = bench.steer(&plan, &folder, given).await.unwrap_err();
        assert_eq!((error.class().code(), error.to_string()), (2, wanted.to_owned()));
        assert!(error.help().is_some());
    }
    let ended = bench.resume(&plan, &folder).await;
    let (code, said) = message(bench.steer(&plan, &ended.folder, orders(&[("a", Rerun)])).await);
    assert!(code == 2 && said.contains("has succeeded"), "{said}");
}

#[tokio::test]
async fn a_dry_run_shows_the_orders_and_changes_nothing() {
    let bench = Bench::new();
    let (plan, folder, _) = failed(&bench, json!({})).await;
    let before = folder.read().unwrap().head;
    let foreseen = decide(&bench.cx, &plan, &folder, Some(&orders(&[("a", Rerun)]))).await.unwrap();
    assert_eq!(folder.read().unwrap().head, before);
    let actions: Vec<_> = foreseen.decisions.iter().map(|decision| decision.action).collect();
    assert_eq!(actions, [DecisionAction::Run; 4]);
    assert!(foreseen.decisions[0].reason.starts_with("run again by "), "{:?}", foreseen.decisions[0]);
    assert_eq!(foreseen.steered.unwrap().orders.len(), 2);
}

fn edited(before: &Arc<Plan>, given: &[(&str, OrderKind)]) -> Steering {
    let copies = Copies {
        plan: PathBuf::from("test.yaml"),
        plans: vec![(PathBuf::from("test.yaml"), "edited".to_owned())],
        ..Copies::default()
    };
    Steering { edit: Some(Edit { before: Some(before.clone()), copies }), ..orders(given) }
}

/// The same plan under another digest.
fn anew(steps: Vec<PlannedStep>) -> Arc<Plan> {
    let mut plan = plan(steps);
    Arc::get_mut(&mut plan).unwrap().digest = "1".repeat(64);
    plan
}

#[tokio::test]
async fn an_edited_plan_takes_over_and_later_resumes_go_on_with_it() {
    let bench = Bench::new();
    let touch = bench.path("acts");
    let acts = json!({ "touch": touch });
    let before = plan(vec![
        step("a", acts.clone()),
        needing("old", acts.clone(), &["a"]),
        needing("b", json!({ "fail": "broken" }), &["old"]),
    ]);
    let folder = bench.run(&before).await.folder;
    let after = anew(vec![
        step("a", acts.clone()),
        needing("b", json!({ "fail": "still broken" }), &["a"]),
        needing("new", acts.clone(), &["b"]),
    ]);
    let foreseen = decide(&bench.cx, &after, &folder, Some(&edited(&before, &[]))).await.unwrap();
    let changes = foreseen.steered.unwrap().plan.unwrap().changes;
    let changes: Vec<_> = changes.iter().map(|change| (change.step.as_str(), change.change.as_str())).collect();
    assert_eq!(changes, [("b", "changed"), ("new", "new"), ("old", "gone")]);
    assert!(!folder.path().join("plan.2").exists(), "a dry-run keeps nothing");
    let ended = bench.steer(&after, &folder, edited(&before, &[])).await.unwrap();
    assert_eq!((ended.state.status, lines(&touch).len()), (RunStatus::Failed, 2));
    assert_eq!(ended.state.gone[0].header.id, "old");
    assert_eq!(folder.plan_copy().unwrap(), folder.path().join("plan.2/test.yaml"));
    assert!(folder.path().join("run.json").exists(), "the plan before stays");
    let (code, said) = message(resume(&bench.cx, &before, &folder, RunOptions::default(), bench.console()).await);
    assert!(code == 2 && said.contains("another version of the plan"), "{said}");
    bench.resume(&after, &folder).await;
}

#[tokio::test]
async fn a_result_under_another_definition_is_accepted_or_made_again() {
    let bench = Bench::new();
    let touch = bench.path("acts");
    let before = plan(vec![step("a", json!({ "touch": touch })), needing("b", json!({ "fail": "x" }), &["a"])]);
    let folder = bench.run(&before).await.folder;
    let after = || {
        anew(vec![
            step("a", json!({ "touch": touch, "text": "edited" })),
            needing("b", json!({ "fail": "x" }), &["a"]),
        ])
    };
    let (code, said) = message(bench.steer(&after(), &folder, edited(&before, &[])).await);
    assert_eq!((code, said.as_str()), (2, "`a` has happened, and is defined otherwise in the edited plan"));
    let copy = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal.jsonl");
    let kept = copy.path().join("journal.jsonl");
    std::fs::copy(&journal, &kept).unwrap();
    bench.steer(&after(), &folder, edited(&before, &[("a", OrderKind::Accept)])).await.unwrap();
    assert_eq!(lines(&touch), ["a 1"]);
    std::fs::copy(&kept, &journal).unwrap();
    bench.steer(&after(), &folder, edited(&before, &[("a", Rerun)])).await.unwrap();
    assert_eq!(lines(&touch), ["a 1", "a 2"]);
}

#[tokio::test]
async fn a_cut_off_step_that_was_edited_is_asked_with_its_old_definition() {
    for (says, code, wanted) in [
        ("happened", 2, "`a` has happened, and is defined otherwise"),
        ("cannot tell", 3, "nobody can tell what became of it"),
    ] {
        let bench = Bench::new();
        let hanging = plan(vec![step("a", json!({ "hang": true, "after": says }))]);
        let folder = bench.killed_when(&hanging, |event| matches!(event, Event::StepStarted { .. })).await;
        let after = anew(vec![step("a", json!({ "after": "run again" }))]);
        let (exit, said) = message(bench.steer(&after, &folder, edited(&hanging, &[])).await);
        assert!(exit == code && said.contains(wanted), "{says}: {said}");
        let unread = Steering { edit: Some(Edit { before: None, copies: Copies::default() }), ..orders(&[]) };
        let (exit, said) = message(bench.steer(&after, &folder, unread).await);
        assert!(exit == 3 && said.contains("can only be asked with the plan they ran with"), "{said}");
        let ended = bench.steer(&after, &folder, edited(&hanging, &[("a", Rerun)])).await.unwrap();
        assert_eq!(ended.state.step("a").unwrap().attempt, 2);
    }
}

#[tokio::test]
async fn what_an_edit_newly_destroys_in_a_protected_environment_wants_its_name() {
    let bench = Bench::new();
    let protected = |mut plan: Arc<Plan>| {
        let environment = &mut Arc::get_mut(&mut plan).unwrap().environment;
        (environment.name, environment.protected) = (Some("production".to_owned()), true);
        plan
    };
    let before = protected(plan(vec![step("a", json!({ "fail": "x" }))]));
    let folder = bench.run(&before).await.folder;
    let after = protected(anew(vec![step("a", json!({ "destroys": "everything" }))]));
    let (code, said) = message(bench.steer(&after, &folder, edited(&before, &[])).await);
    assert!(code == 2 && said.contains("file:everything"), "{said}");
    let options = RunOptions {
        steering: Some(edited(&before, &[])),
        confirm: Some("production".to_owned()),
        ..RunOptions::default()
    };
    let ended = resume(&bench.cx, &after, &folder, options, bench.console()).await.unwrap();
    assert_eq!(ended.state.status, RunStatus::Succeeded);
}

fn limits(step: &str, limits: Limits) -> Adjustment {
    Adjustment { step: step.to_owned(), by: Actor::current(), because: "it is slow today".to_owned(), limits }
}

#[tokio::test]
async fn a_running_steps_timeout_changes_without_restarting_it() {
    let bench = Bench::new();
    let timeout = Some(crate::units::Duration::seconds(600));
    let plan = plan(vec![PlannedStep { timeout, ..step("a", json!({ "hang": true })) }]);
    let (cx, of_task, console) = (bench.cx.clone(), plan.clone(), bench.console());
    let task = tokio::spawn(async move { run(&cx, &of_task, RunOptions::default(), console).await });
    until(|| bench.seen.0.lock().unwrap().iter().any(|record| matches!(record.event, Event::StepStarted { .. })))
        .await;
    let folder = bench.cx.store.find(None).unwrap();
    let shorter = limits("a", Limits { timeout: Some(0.05), ..Limits::default() });
    let delivered = folder.adjust(&shorter, Timestamp::now()).unwrap();
    assert!(matches!(delivered, crate::record::store::Delivered::Sent(_)));
    let ended = task.await.unwrap().unwrap();
    assert!(failure(&ended, "a").contains("within its timeout of 50ms"), "{}", failure(&ended, "a"));
    assert_eq!(ended.state.step("a").unwrap().attempt, 1);
}

#[tokio::test]
async fn limits_given_to_a_stopped_run_hold_for_its_resumes() {
    let bench = Bench::new();
    let plan = plan(vec![step("a", json!({ "flaky": 3, "outputs": {} }))]);
    let folder = bench.run(&plan).await.folder;
    folder.adjust(&limits("a", Limits { attempts: Some(5), ..Limits::default() }), Timestamp::now()).unwrap();
    folder.adjust(&limits("a", Limits { delay: Some(0.001), ..Limits::default() }), Timestamp::now()).unwrap();
    assert_eq!(folder.last_status(), Some(RunStatus::Failed));
    let ended = bench.resume(&plan, &folder).await;
    let step = ended.state.step("a").unwrap();
    assert_eq!((ended.state.status, step.attempt), (RunStatus::Succeeded, 4));
    assert_eq!(step.adjusted.as_ref().unwrap().limits.said(), "5 attempts, 1ms before the second attempt");
    let refused = folder.adjust(&limits("b", Limits::default()), Timestamp::now()).unwrap_err();
    assert_eq!(refused.to_string(), "the run has succeeded: nothing is left to do");
}
