use super::*;
use crate::step::{RunCx, StepType};

fn exec(fixture: &Fixture, params: Value) -> std::sync::Arc<dyn Step> {
    fixture.step("container.exec", params)
}

fn again(services: &Services, notes: Vec<Value>) -> RunCx {
    cx_after(services, notes).0
}

#[tokio::test]
async fn it_runs_with_what_was_declared() {
    let (docker, fixture) = (docker(), Fixture::running().await);
    docker.redactor().add("correct-horse");
    let script = "echo $LIFEBOAT_STEP $LEVEL; pwd; id -u; echo with $PASSWORD >&2; exit 3";
    let step = exec(
        &fixture,
        json!({
            "argv": ["sh", "-c", script], "env": { "LEVEL": 5, "PASSWORD": "correct-horse" }, "user": "1234",
            "cwd": "/tmp", "expect_exit": 3, "outputs": { "level": { "regex": "step ([0-9]+)" } },
        }),
    );
    let before = preview(&*step, Some(&docker), &World::default()).await;
    assert_eq!((before.action, before.certainty), (Action::Change, Certainty::Undetermined));
    let (cx, recorder) = cx(&docker);
    let done = step.run(&cx).await.unwrap();
    assert_eq!(done.outputs["stdout"], "step 5\n/tmp\n1234");
    assert_eq!((&done.outputs["exit_code"], &done.outputs["level"]), (&json!(3), &json!("5")));
    assert!(recorder.log().contains("with ●●●●") && !recorder.log().contains("horse"), "{}", recorder.log());
    let notes = recorder.notes();
    assert!(notes[0]["command"].is_string() && !notes[0].to_string().contains("horse"));
    let declared = super::super::exec::Exec::declared_outputs(&json!({ "outputs": { "a": { "json": "" } } }));
    assert_eq!(declared.len(), 1);
}

#[tokio::test]
async fn an_unexpected_end_fails_with_the_last_words() {
    let (docker, fixture) = (docker(), Fixture::running().await);
    let attempt =
        async |argv: Value| exec(&fixture, json!({ "argv": argv })).run(&cx(&docker).0).await.unwrap_err();
    let failure = attempt(json!(["sh", "-c", "echo disk full >&2; exit 3"])).await;
    assert!(failure.message.ends_with("exit code 3: disk full") && !failure.transient, "{failure}");
    assert!(attempt(json!(["sh", "-c", "exit 75"])).await.transient, "EX_TEMPFAIL");
    let failure = attempt(json!(["no-such-program"])).await;
    assert!(!failure.transient && failure.message.contains("no-such-program"), "{failure}");
}

#[tokio::test]
async fn a_background_process_is_not_waited_for_and_a_flood_is_cut() {
    let (docker, fixture) = (docker(), Fixture::running().await);
    let (cx, recorder) = cx(&docker);
    let argv = json!(["sh", "-c", "sleep 30 & echo started"]);
    let done = exec(&fixture, json!({ "argv": argv })).run(&cx).await.unwrap();
    assert_eq!(done.outputs["stdout"], "started");
    assert!(recorder.log().contains("not waiting for it"));
    let done = exec(&fixture, json!({ "argv": ["seq", 1, 30_000] })).run(&cx).await.unwrap();
    assert!(done.outputs["stdout"].as_str().unwrap().ends_with("see the step's log]"));
    let silent = exec(&fixture, json!({ "argv": ["sh", "-c", "exec >&- 2>&-; sleep 0.3; exit 0"] }));
    assert_eq!(silent.run(&cx).await.unwrap().outputs["exit_code"], 0);
}

#[tokio::test]
async fn one_that_does_not_run_is_blocked() {
    let (docker, fixture) = (docker(), Fixture::new(POLITE, |_| ()).await);
    let step = exec(&fixture, json!({ "argv": ["true"], "effects": [] }));
    let blocked = preview(&*step, Some(&docker), &World::default()).await;
    assert_eq!(blocked.action, Action::Blocked);
    assert!(blocked.problems[0].help.as_ref().unwrap().contains("container.start"));
    assert!(step.run(&cx(&docker).0).await.is_err());
    let mut world = World::default();
    world.foretell(Resource::container("docker", &fixture.name), Fact::Running, &"start".into());
    let assumed = preview(&*step, Some(&docker), &world).await;
    assert_eq!((assumed.action, assumed.certainty), (Action::Read, Certainty::Assumed));
    world.foretell(Resource::container("docker", &fixture.name), Fact::Stopped, &"stop".into());
    assert_eq!(preview(&*step, Some(&docker), &world).await.action, Action::Blocked);
    fixture.start().await;
    fixture.docker.pause_container(&fixture.name).await.unwrap();
    let paused = preview(&*step, Some(&docker), &World::default()).await;
    fixture.docker.unpause_container(&fixture.name).await.unwrap();
    assert!(paused.problems[0].message.contains("is paused"), "{paused:?}");
}

#[tokio::test]
async fn one_that_was_cut_off_goes_on_is_never_doubled_and_the_engine_tells_its_end() {
    let (docker, fixture) = (docker(), Fixture::running().await);
    let script = "touch /tmp/begun; while [ ! -e /tmp/stop ]; do sleep 0.05; done";
    let slow = exec(&fixture, json!({ "argv": ["sh", "-c", script] }));
    let (cx, recorder) = cx(&docker);
    let sh = async |script: &str| {
        let step = exec(&fixture, json!({ "argv": ["sh", "-c", script] }));
        step.run(&crate::step::testing::cx(&docker).0).await
    };
    let cancel = async {
        until("it runs", async || sh("test -e /tmp/begun").await.is_ok()).await;
        cx.cancel.cancel();
    };
    let (result, ()) = tokio::join!(slow.run(&cx), cancel);
    assert!(result.unwrap_err().message.contains("may go on"));

    let after = again(&docker, recorder.notes());
    assert!(matches!(slow.after_kill(&after).await.unwrap(), AfterKill::StillGoing { .. }));
    let failure = slow.run(&after).await.unwrap_err();
    assert!(failure.transient && failure.message.contains("still runs"), "{failure}");

    sh("touch /tmp/stop").await.unwrap();
    until("it ended", async || !matches!(slow.after_kill(&after).await, Ok(AfterKill::StillGoing { .. }))).await;
    let AfterKill::Happened(done) = slow.after_kill(&after).await.unwrap() else { panic!("it ended well") };
    assert_eq!(done.outputs["exit_code"], 0);
    assert!(!done.outputs.contains_key("stdout"), "lost, not empty");
    let answer = async |more: Value| {
        let mut params = json!({ "argv": ["sh", "-c", script] });
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        exec(&fixture, params).after_kill(&after).await.unwrap()
    };
    assert!(matches!(answer(json!({ "expect_exit": 4 })).await, AfterKill::CannotTell { .. }));
    assert!(matches!(answer(json!({ "outputs": { "all": { "json": "" } } })).await, AfterKill::CannotTell { .. }));
    assert!(matches!(answer(json!({ "idempotent": true })).await, AfterKill::RunAgain { .. }));
}

#[tokio::test]
async fn what_was_announced_and_never_started_did_not_happen() {
    let (docker, fixture) = (docker(), Fixture::running().await);
    let step = exec(&fixture, json!({ "argv": ["touch", "/tmp/x"] }));
    assert!(matches!(step.after_kill(&again(&docker, vec![])).await.unwrap(), AfterKill::DidNotHappen { .. }));
    let engine = docker.docker("docker").unwrap();
    let id = fixture.look().await.id;
    let inside = crate::service::docker::Inside { argv: vec!["true".into()], env: vec![], user: None, cwd: None };
    let command = engine.prepare(&id, inside).await.unwrap();
    let after = again(&docker, vec![json!({ "id": id, "command": command })]);
    assert!(matches!(step.after_kill(&after).await.unwrap(), AfterKill::DidNotHappen { .. }));
    let forgotten = again(&docker, vec![json!({ "id": id, "command": "0".repeat(64) })]);
    assert!(matches!(step.after_kill(&forgotten).await.unwrap(), AfterKill::CannotTell { .. }));
}

#[test]
fn mistakes() {
    let found = findings(
        "container.exec",
        json!({
            "target": "docker", "container": "a/b", "argv": [""], "env": { "LIFEBOAT_X": "1" },
            "outputs": { "stdout": { "json": "" } }, "effects": ["alter x:y"],
        }),
    );
    assert_eq!(found.len(), 5, "{found:?}");
}
