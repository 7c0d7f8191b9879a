//! How runs end: success, failure, retries, timeouts, pause, cancel, `finally`, a full disk.

use super::*;
use crate::retry::RetryOn;

#[tokio::test]
async fn steps_run_in_order_and_each_is_announced_before_it_acts() {
    let bench = Bench::new();
    let touch = bench.path("acts");
    let plan = plan(vec![step("a", json!({ "touch": touch })), needing("b", json!({ "touch": touch }), &["a"])]);
    let ended = bench.run(&plan).await;
    assert_eq!(ended.state.status, RunStatus::Succeeded);
    assert_eq!(lines(&touch), ["a 1", "b 1"]);
    let contents = ended.folder.read().unwrap();
    assert_eq!(contents.head, ended.head);
    assert_eq!(*bench.seen.0.lock().unwrap(), contents.records, "reporters hear what is on disk");
}

#[tokio::test]
async fn a_failure_stops_the_rest_and_runs_finally() {
    let bench = Bench::new();
    let touch = bench.path("acts");
    let plan = plan(vec![
        step("a", json!({ "fail": "no such table" })),
        needing("b", json!({ "touch": touch }), &["a"]),
        step("c", json!({ "takes": 30, "touch": touch })),
        needing("d", json!({ "touch": touch }), &["c"]),
        finally("tidy", json!({ "fail": "no webhook" }), &[]),
        finally("tell", json!({ "touch": touch }), &["tidy"]),
    ]);
    let ended = bench.run(&plan).await;
    assert_eq!((ended.state.status, ended.class().code()), (RunStatus::Failed, 1));
    assert_eq!(
        lines(&touch),
        ["c 1", "tell 1"],
        "what runs is let finish; finally goes on past a failure of its own"
    );
    assert_eq!(outcome(&ended, "b"), &Outcome::NotRun { reason: "it needs `a`, which failed".to_owned() });
    let Outcome::NotRun { reason } = outcome(&ended, "d") else { panic!() };
    assert!(reason.contains("step `a` failed"), "{reason}");
}

#[tokio::test]
async fn on_failure_continue_keeps_the_rest_going() {
    let bench = Bench::new();
    let touch = bench.path("acts");
    let plan = plan(vec![
        PlannedStep { continue_on_failure: true, ..step("a", json!({ "fail": "x" })) },
        needing("b", json!({ "touch": touch }), &["a"]),
        step("c", json!({ "touch": touch })),
    ]);
    let options = RunOptions { jobs: 1, ..RunOptions::default() };
    let ended = run(&bench.cx, &plan, options, bench.console()).await.unwrap();
    assert_eq!((ended.state.status, lines(&touch)), (RunStatus::Failed, vec!["c 1".to_owned()]));
}

#[tokio::test]
async fn a_passing_failure_is_retried_and_a_lasting_one_is_not() {
    let bench = Bench::new();
    let mut flaky = step("a", json!({ "flaky": 2 }));
    flaky.retry.attempts = 3;
    let mut lasting = step("b", json!({ "fail": "syntax error" }));
    lasting.retry.attempts = 3;
    let mut any = step("c", json!({ "fail": "syntax error" }));
    any.retry = RetryPolicy { attempts: 2, on: RetryOn::Any, ..any.retry };
    let [a, b, c] = [flaky, lasting, any].map(|step| PlannedStep { continue_on_failure: true, ..step });
    let ended = bench.run(&plan(vec![a, b, c])).await;
    let attempts = ["a", "b", "c"].map(|id| ended.state.step(id).unwrap().attempt);
    assert_eq!(attempts, [3, 1, 2]);
    let errors = &ended.state.step("a").unwrap().errors;
    assert_eq!(
        errors.iter().map(|(attempt, error)| (*attempt, error.transient)).collect::<Vec<_>>(),
        [(1, true), (2, true)]
    );
}

#[tokio::test]
async fn a_timeout_cancels_for_real() {
    let bench = Bench::new();
    let timeout = Some(crate::units::Duration::millis(50));
    let plan = plan(vec![PlannedStep { timeout, ..step("a", json!({ "hang": true })) }]);
    let ended = bench.run(&plan).await;
    let message = failure(&ended, "a");
    assert!(
        message.contains("within its timeout of 50ms") && message.contains("stopped in the middle"),
        "{message}"
    );
}

#[tokio::test]
async fn an_attempt_that_does_not_stop_is_dropped() {
    let bench = Bench::new();
    let timeout = Some(crate::units::Duration::millis(50));
    let plan = plan(vec![PlannedStep { timeout, ..step("a", json!({ "deaf": true })) }]);
    let ended = bench.run(&plan).await;
    assert!(failure(&ended, "a").contains("was dropped"), "{}", failure(&ended, "a"));
}

#[tokio::test]
async fn a_panic_is_a_failure_that_says_it_is_a_defect() {
    let bench = Bench::new();
    let plan = plan(vec![step("a", json!({ "panic": true })), finally("tell", json!({}), &[])]);
    let ended = bench.run(&plan).await;
    assert!(failure(&ended, "a").contains("a defect of Lifeboat"), "{}", failure(&ended, "a"));
    assert!(matches!(outcome(&ended, "tell"), Outcome::Succeeded { .. }));
}

#[tokio::test]
async fn outputs_too_big_to_keep_fail_the_step() {
    let bench = Bench::new();
    let ended = bench.run(&plan(vec![step("a", json!({ "outputs": { "value": "x".repeat(300_000) } }))])).await;
    assert!(failure(&ended, "a").contains("its outputs take"), "{}", failure(&ended, "a"));
}

#[tokio::test]
async fn no_more_than_jobs_run_side_by_side() {
    let bench = Bench::new();
    let steps = (0..6).map(|at| step(&format!("s{at}"), json!({ "takes": 20 }))).collect();
    let options = RunOptions { jobs: 2, ..RunOptions::default() };
    run(&bench.cx, &plan(steps), options, bench.console()).await.unwrap();
    let (mut running, mut most) = (0_i32, 0);
    for record in bench.seen.0.lock().unwrap().iter() {
        match record.event {
            Event::StepStarted { .. } => running += 1,
            Event::StepFinished { .. } => running -= 1,
            _ => {}
        }
        most = most.max(running);
    }
    assert_eq!(most, 2);
}

/// Runs a plan, asking for `controls` once step `a` runs.
async fn steered(bench: &Bench, plan: &Arc<Plan>, controls: &[Control]) -> Ended {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let console = Console { controls: Some(receiver), ..bench.console() };
    let (cx, plan) = (bench.cx.clone(), plan.clone());
    let task = tokio::spawn(async move { run(&cx, &plan, RunOptions::default(), console).await });
    let started = |record: &Record| matches!(record.event, Event::StepStarted { .. });
    until(|| bench.seen.0.lock().unwrap().iter().any(started)).await;
    for control in controls {
        sender.send(*control).unwrap();
    }
    task.await.unwrap().unwrap()
}

#[tokio::test]
async fn once_pauses_and_resume_goes_on() {
    let bench = Bench::new();
    let touch = bench.path("acts");
    let plan = plan(vec![
        step("a", json!({ "takes": 100, "touch": touch })),
        needing("b", json!({ "touch": touch }), &["a"]),
        finally("tell", json!({ "touch": touch }), &[]),
    ]);
    let ended = steered(&bench, &plan, &[Control::Pause]).await;
    assert_eq!((ended.state.status, ended.class().code()), (RunStatus::Paused, 4));
    assert_eq!(lines(&touch), ["a 1"]);
    let ended = bench.resume(&plan, &ended.folder).await;
    assert_eq!(ended.state.status, RunStatus::Succeeded);
    assert_eq!(lines(&touch), ["a 1", "b 1", "tell 1"]);
}

#[tokio::test]
async fn twice_cancels_what_runs_and_finally_still_runs() {
    let bench = Bench::new();
    let touch = bench.path("acts");
    let plan = plan(vec![
        step("a", json!({ "hang": true })),
        needing("b", json!({ "touch": touch }), &["a"]),
        finally("tell", json!({ "touch": touch }), &[]),
    ]);
    let ended = steered(&bench, &plan, &[Control::Pause, Control::Cancel]).await;
    assert_eq!((ended.state.status, ended.class().code()), (RunStatus::Cancelled, 130));
    assert!(matches!(outcome(&ended, "a"), Outcome::Cancelled { .. }));
    assert_eq!(lines(&touch), ["tell 1"]);
}

#[tokio::test]
async fn three_times_gives_up_finally_as_well() {
    let bench = Bench::new();
    let touch = bench.path("acts");
    let plan = plan(vec![
        step("a", json!({ "hang": true })),
        finally("slow", json!({ "hang": true }), &[]),
        finally("tell", json!({ "touch": touch }), &["slow"]),
    ]);
    let ended = steered(&bench, &plan, &[Control::Pause, Control::Cancel, Control::Abort]).await;
    assert_eq!(ended.state.status, RunStatus::Cancelled);
    assert!(lines(&touch).is_empty());
}

#[tokio::test]
async fn a_blocked_step_stops_the_run_before_it_begins() {
    let bench = Bench::new();
    let touch = bench.path("acts");
    let plan =
        plan(vec![step("a", json!({ "touch": touch })), step("b", json!({ "blocked": "no such database" }))]);
    let error = run(&bench.cx, &plan, RunOptions::default(), bench.console()).await.unwrap_err();
    assert_eq!(error.class().code(), 3);
    assert!(lines(&touch).is_empty() && bench.cx.store.runs().unwrap().is_empty(), "{error}");
}

#[tokio::test]
async fn what_was_approved_is_what_runs() {
    let bench = Bench::new();
    let before = plan(vec![step("a", json!({}))]);
    let approved = SavedPreview::new(&before, preview(&bench.cx, &before, None).await);
    let options =
        |approved: &SavedPreview| RunOptions { approved: Some(approved.clone()), ..RunOptions::default() };
    run(&bench.cx, &before, options(&approved), bench.console()).await.unwrap();
    let after = plan(vec![step("a", json!({ "destroys": "x" }))]);
    let error = run(&bench.cx, &after, options(&approved), bench.console()).await.unwrap_err();
    assert!(error.to_string().contains("would now destroy file:x"), "{error}");
}

#[tokio::test]
async fn a_protected_environment_wants_its_name_before_anything_is_destroyed() {
    let bench = Bench::new();
    let mut plan = plan(vec![step("a", json!({ "destroys": "x" }))]);
    let environment = &mut Arc::get_mut(&mut plan).unwrap().environment;
    (environment.name, environment.protected) = (Some("production".to_owned()), true);
    let error = run(&bench.cx, &plan, RunOptions::default(), bench.console()).await.unwrap_err();
    assert_eq!(error.class().code(), 2);
    assert!(error.help().unwrap().contains("--confirm production"));
    let options = RunOptions { confirm: Some("production".to_owned()), ..RunOptions::default() };
    assert_eq!(run(&bench.cx, &plan, options, bench.console()).await.unwrap().class().code(), 0);
}

#[tokio::test]
async fn secrets_reach_neither_journal_nor_log() {
    let bench = Bench::new();
    let mut plan = plan(vec![
        step(
            "a",
            json!({ "text": "password hunter2secret\n", "note": { "x": "hunter2secret" }, "outputs": { "value": "hunter2secret" } }),
        ),
        step("b", json!({ "fail": "bad url postgres://x:hunter2secret@db" })),
    ]);
    Arc::get_mut(&mut plan).unwrap().environment.redactor.add("hunter2secret");
    let ended = bench.run(&plan).await;
    let mut texts = String::new();
    for entry in [ended.folder.path().to_owned(), ended.folder.path().join("logs")] {
        for file in std::fs::read_dir(entry).unwrap() {
            texts += &std::fs::read_to_string(file.unwrap().path()).unwrap_or_default();
        }
    }
    assert!(texts.contains(crate::secret::MASK) && !texts.contains("hunter2secret"));
}

#[tokio::test]
async fn folders_and_files_are_the_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new();
    let ended = bench.run(&plan(vec![step("a", json!({ "text": "hello" }))])).await;
    let mut left = vec![bench.cx.store.root().to_owned()];
    let mut seen = 0;
    while let Some(path) = left.pop() {
        let mode = path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, if path.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
        seen += 1;
        if path.is_dir() {
            left.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    assert!(seen >= 7, "{seen}");
    assert!(ended.folder.log_path(&StepId::from("a"), 1).exists());
}
