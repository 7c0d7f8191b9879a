//! Locks on what a run changes: files, and databases on a real server.

use super::*;

#[tokio::test]
async fn two_runs_do_not_change_the_same_thing() {
    let bench = Bench::new();
    let hanging = plan(vec![step("a", json!({ "hang": true, "destroys": "x" }))]);
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let console = Console { controls: Some(receiver), ..bench.console() };
    let cx = bench.cx.clone();
    let task = tokio::spawn(async move { run(&cx, &hanging, RunOptions::default(), console).await });
    until(|| !bench.seen.0.lock().unwrap().is_empty()).await;
    let other = plan(vec![step("b", json!({ "destroys": "x" }))]);
    let error = run(&bench.cx, &other, RunOptions::default(), Console::default()).await.unwrap_err();
    assert_eq!(error.class().code(), 5);
    let first = bench.cx.store.find(None).unwrap().id;
    assert!(error.to_string().contains(&format!("for run {first}, since")), "{error}");
    assert_eq!(bench.cx.store.runs().unwrap().len(), 1, "a refused run leaves nothing");
    let beside = plan(vec![step("c", json!({ "destroys": "y" }))]);
    run(&bench.cx, &beside, RunOptions::default(), Console::default()).await.unwrap();
    sender.send(Control::Cancel).unwrap();
    task.await.unwrap().unwrap();
    run(&bench.cx, &other, RunOptions::default(), Console::default()).await.unwrap();
}

#[tokio::test]
async fn a_run_that_waits_for_a_person_holds_its_claim_until_a_no() {
    let bench = Bench::new();
    let ask = json!({ "asks": { "quorum": 1, "by": [], "not_by_requester": false, "until": null } });
    let plan = |id: &str| plan(vec![step("ask", ask.clone()), needing(id, json!({ "destroys": "x" }), &["ask"])]);
    let waiting = bench.run(&plan("a")).await.folder;
    let error = run(&bench.cx, &plan("b"), RunOptions::default(), bench.console()).await.unwrap_err();
    assert_eq!(error.class().code(), 5);
    assert!(error.to_string().contains(&format!("run {}, whose step `ask` waits", waiting.id)), "{error}");
    let no = Answer { approved: false, ..yes("maria") };
    waiting.answer("ask", no, Timestamp::now()).unwrap();
    assert_eq!(bench.run(&plan("b")).await.state.status, RunStatus::Waiting);
}

/// A database's name that no other test uses. Locks need no database to be there.
fn database() -> String {
    format!("lock_{:016x}", rand::random::<u64>())
}

async fn end_sessions(bench: &Bench, run: &RunId) -> i64 {
    let session = bench.cx.services.postgres("db").unwrap().connect(None).await.unwrap();
    let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE $1";
    session.row("end", sql, &[&format!("lifeboat-lock:{run}:%")]).await.unwrap().get(0)
}

/// A run that holds its lock until the file `gate` is there.
async fn holding(bench: &Bench, database: &str) -> (tokio::task::JoinHandle<Result<Ended, EngineError>>, RunId) {
    let plan = plan(vec![
        step("a", json!({ "changes": database, "gate": bench.path("gate") })),
        needing("b", json!({ "changes": database, "touch": bench.path("acts") }), &["a"]),
    ]);
    let (cx, console) = (bench.cx.clone(), bench.console());
    let task = tokio::spawn(async move { run(&cx, &plan, RunOptions::default(), console).await });
    until(|| bench.seen.0.lock().unwrap().len() >= 2).await;
    (task, bench.cx.store.find(None).unwrap().id)
}

#[tokio::test]
async fn a_second_laptop_is_refused_and_told_who_holds_the_database() {
    let (first, second) = (Bench::with_postgres(), Bench::with_postgres());
    let name = database();
    let (task, run_id) = holding(&first, &name).await;
    let same = plan(vec![step("x", json!({ "changes": name }))]);
    let error = run(&second.cx, &same, RunOptions::default(), second.console()).await.unwrap_err();
    assert_eq!(error.class().code(), 5);
    let text = error.to_string();
    let who = format!("postgres:db/{name} is being changed by run {run_id} of {}@", second.cx.by.user);
    assert!(text.starts_with(&who) && text.contains("since 20"), "{text}");
    assert!(error.help().unwrap().contains("pg_stat_activity"), "{:?}", error.help());
    assert!(second.cx.store.runs().unwrap().is_empty());
    let other = plan(vec![step("x", json!({ "changes": database() }))]);
    run(&second.cx, &other, RunOptions::default(), second.console()).await.unwrap();
    std::fs::write(first.path("gate"), "").unwrap();
    task.await.unwrap().unwrap();
    run(&second.cx, &same, RunOptions::default(), second.console()).await.unwrap();
}

#[tokio::test]
async fn a_lost_lock_is_taken_again_before_the_next_effect_and_said() {
    let bench = Bench::with_postgres();
    let (task, run_id) = holding(&bench, &database()).await;
    assert_eq!(end_sessions(&bench, &run_id).await, 1);
    std::fs::write(bench.path("gate"), "").unwrap();
    let ended = task.await.unwrap().unwrap();
    assert_eq!(ended.state.status, RunStatus::Succeeded);
    assert!(ended.state.notices.iter().any(|(_, _, text)| text.contains("was lost; it is locked again")));
}

#[tokio::test]
async fn a_lock_lost_to_somebody_else_stops_the_run_before_the_next_effect() {
    let bench = Bench::with_postgres();
    let name = database();
    let (task, run_id) = holding(&bench, &name).await;
    end_sessions(&bench, &run_id).await;
    let thief = Bench::with_postgres();
    let (stolen, _) = holding(&thief, &name).await;
    std::fs::write(bench.path("gate"), "").unwrap();
    let ended = task.await.unwrap().unwrap();
    assert!(failure(&ended, "b").contains("the lock's connection was lost"), "{}", failure(&ended, "b"));
    assert!(lines(&bench.path("acts")).is_empty());
    std::fs::write(thief.path("gate"), "").unwrap();
    stolen.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_resume_takes_the_lock_over_from_its_own_dead_session() {
    let bench = Bench::with_postgres();
    let name = database();
    let plan = plan(vec![step("a", json!({ "changes": name, "fail": "x" }))]);
    let folder = bench.run(&plan).await.folder;
    // What a laptop leaves that lost its network: a session of the same name that still holds the lock.
    let label = format!("lifeboat-lock:{}:ghost@nowhere", folder.id);
    let services = bench.cx.services.for_attempt(&label, tokio_util::sync::CancellationToken::new());
    let ghost = services.postgres("db").unwrap().connect(None).await.unwrap();
    let key = guard::key(&format!("database {name}"));
    ghost.row("hold", "SELECT true FROM (SELECT pg_advisory_lock($1)) held", &[&key]).await.unwrap();
    assert_eq!(bench.resume(&plan, &folder).await.state.status, RunStatus::Failed);
    until(|| ghost.is_closed()).await;
}
