use serde_json::json;

use super::*;
use crate::ids::StepId;
use crate::step::testing::{cx, cx_after, findings, preview, refused, services, step, until};
use crate::step::world::World;
use crate::step::{Action, Certainty};

async fn run(params: Value) -> Result<Done, Failure> {
    step("exec", params).run(&cx(&services(json!({}))).0).await
}

#[tokio::test]
async fn the_short_form_is_argv_and_its_values_are_text() {
    run(json!(["true"])).await.unwrap();
    run(json!([true])).await.unwrap();
    let done = run(json!({ "argv": ["echo", true, 5, 1.5] })).await.unwrap();
    assert_eq!(done.outputs["stdout"], "true 5 1.5");
}

#[tokio::test]
async fn it_runs_with_what_was_declared() {
    let folder = tempfile::tempdir().unwrap();
    let done = run(json!({
        "shell": "cat; echo $COLOUR $LIFEBOAT_RUN $LIFEBOAT_STEP $LIFEBOAT_ATTEMPT; pwd; echo oh >&2",
        "stdin": "in\n", "env": { "COLOUR": "red" }, "cwd": folder.path(),
    }))
    .await
    .unwrap();
    let folder = folder.path().canonicalize().unwrap();
    let expected = format!("in\nred 20261124-062329-bako step 1\n{}", folder.display());
    assert_eq!(done.outputs["stdout"], expected);
    assert_eq!((&done.outputs["stderr"], &done.outputs["exit_code"]), (&json!("oh"), &json!(0)));
}

#[tokio::test]
async fn output_is_logged_and_none_logs_nothing() {
    let services = services(json!({}));
    let (loud, recorder) = cx(&services);
    step("exec", json!(["echo", "hello"])).run(&loud).await.unwrap();
    assert_eq!(recorder.log(), "hello\n");
    let (quiet, recorder) = cx(&services);
    step("exec", json!(["true"])).run(&quiet).await.unwrap();
    assert_eq!((recorder.log().as_str(), recorder.notes().len()), ("", 0));
}

#[tokio::test]
async fn an_unexpected_exit_fails_with_the_last_words() {
    let failure = run(json!({ "shell": "echo disk full >&2; exit 3" })).await.unwrap_err();
    assert!(failure.message.ends_with("exit code 3: disk full") && !failure.transient, "{failure}");
    assert!(run(json!({ "shell": "exit 75" })).await.unwrap_err().transient, "EX_TEMPFAIL");
    assert!(run(json!({ "shell": "kill -TERM $$" })).await.unwrap_err().message.contains("killed by SIGTERM"));
    run(json!({ "shell": "exit 3", "expect_exit": 3 })).await.unwrap();
    let failure = run(json!({ "argv": ["false"], "expect_exit": { "one_of": [0, 2] } })).await.unwrap_err();
    assert!(failure.message.contains("exit code 1, expected one of [0,2]"), "{failure}");
}

#[tokio::test]
async fn outputs_are_read_from_stdout() {
    let outputs = json!({ "name": { "json": "/items/0/name" }, "all": { "json": "" } });
    let done = run(json!({ "argv": ["echo", r#"{"items":[{"name":"db2"}]}"#], "outputs": outputs })).await.unwrap();
    assert_eq!((&done.outputs["name"], &done.outputs["all"]["items"][0]["name"]), (&json!("db2"), &json!("db2")));
    let done = run(json!({ "argv": ["echo", "lag: 12 ms"], "outputs": { "lag": { "regex": "lag: ([0-9]+)" } } }));
    assert_eq!(done.await.unwrap().outputs["lag"], "12");
    for (wanted, expected) in [
        (json!({ "json": "/x" }), "output `x`: stdout is not JSON"),
        (json!({ "regex": "(z)" }), "output `x`: nothing in stdout matches `(z)`"),
    ] {
        let failure = run(json!({ "argv": ["echo", "text"], "outputs": { "x": wanted } })).await.unwrap_err();
        assert!(failure.message.starts_with(expected), "{failure}");
    }
    let declared = Exec::declared_outputs(&json!({ "outputs": { "a": { "json": "" }, "b": { "regex": "(.)" } } }));
    assert_eq!(declared, [("a".to_owned(), ValueKind::Any), ("b".to_owned(), ValueKind::String)]);
}

#[tokio::test]
async fn a_large_output_is_cut_and_says_so() {
    let done = run(json!({ "shell": "seq 1 30000" })).await.unwrap();
    let stdout = done.outputs["stdout"].as_str().unwrap();
    assert!(
        stdout.len() < command::OUTPUT_CAP + 100 && stdout.ends_with("see the step's log]"),
        "{}",
        stdout.len()
    );
}

#[tokio::test]
async fn a_secret_in_its_words_is_masked() {
    let services = services(json!({}));
    services.redactor().add("correct-horse");
    let leak = step("exec", json!({ "shell": "echo $PASSWORD; exit 1", "env": { "PASSWORD": "correct-horse" } }));
    let (cx, recorder) = cx(&services);
    let failure = leak.run(&cx).await.unwrap_err();
    assert!(!failure.message.contains("horse") && !recorder.log().contains("horse"), "{failure}");
}

#[tokio::test]
async fn one_that_outlived_its_lifeboat_is_still_going() {
    let services = services(json!({}));
    let folder = tempfile::tempdir().unwrap();
    let slow = step("exec", json!({ "shell": "while [ ! -e stop ]; do sleep 0.02; done", "cwd": folder.path() }));
    let (mut first, _) = cx(&services);
    first.step = StepId::from(format!("step-{}", rand::random::<u32>()).as_str());
    let (mut after, _) = cx_after(&services, vec![]);
    after.step = first.step.clone();

    let running = tokio::spawn({
        let slow = slow.clone();
        async move { slow.run(&first).await }
    });
    until("it is found", async || matches!(slow.after_kill(&after).await, Ok(AfterKill::StillGoing { .. }))).await;
    std::fs::write(folder.path().join("stop"), "").unwrap();
    running.await.unwrap().unwrap();
    assert!(matches!(slow.after_kill(&after).await.unwrap(), AfterKill::CannotTell { .. }));
    let idempotent = step("exec", json!({ "argv": ["true"], "idempotent": true }));
    assert!(matches!(idempotent.after_kill(&after).await.unwrap(), AfterKill::RunAgain { .. }));
}

#[tokio::test]
async fn a_preview_runs_nothing() {
    let services = services(json!({}));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("made");
    let touch = step("exec", json!({ "argv": ["touch", file] }));
    for (services, world) in [(Some(&services), World::default()), (None, World::default())] {
        let preview = preview(&*touch, services, &world).await;
        assert_eq!((preview.action, preview.certainty), (Action::Change, Certainty::Undetermined));
    }
    assert!(!file.exists());
    let declared = step("exec", json!({ "argv": ["true"], "effects": ["destroy file:x"] }));
    let seen = preview(&*declared, Some(&services), &World::default()).await;
    assert_eq!((seen.action, seen.certainty), (Action::Destroy, Certainty::Assumed));
    assert_eq!(seen.facts, [(Resource::other("file", "x"), Fact::Absent)]);
    let missing = step("exec", json!(["no-such-program-here"]));
    assert_eq!(preview(&*missing, Some(&services), &World::default()).await.action, Action::Blocked);
    assert_ne!(
        preview(&*missing, None, &World::default()).await.action,
        Action::Blocked,
        "offline nothing is known"
    );
}

#[test]
fn mistakes() {
    for (params, expected) in [
        (json!({}), " `exec` needs a command"),
        (json!([]), "/argv "),
        (json!({ "argv": ["a"], "shell": "b" }), "/shell "),
        (json!({ "shell": " " }), "/shell "),
        (json!({ "argv": ["a"], "effects": ["alter file:x"] }), "/effects/0 "),
        (json!({ "argv": ["a"], "env": { "A=B": "c" } }), "/env "),
        (json!({ "argv": ["a"], "env": { "LIFEBOAT_RUN": "c" } }), "/env/LIFEBOAT_RUN "),
        (json!({ "argv": ["a"], "outputs": { "stdout": { "json": "" } } }), "/outputs/stdout "),
        (json!({ "argv": ["a"], "outputs": { "x": { "json": "a.b" } } }), "/outputs/x "),
        (json!({ "argv": ["a"], "outputs": { "x": { "regex": "a" } } }), "/outputs/x "),
    ] {
        let found = findings("exec", params.clone());
        assert!(found.len() == 1 && found[0].starts_with(expected), "{params}: {found:?}");
    }
    assert!(refused("exec", json!({ "argv": ["a", ["b"]] })).starts_with("/argv/1 "));
    assert!(refused("exec", json!([{}])).starts_with("/0 "), "{}", refused("exec", json!([{}])));
    assert!(refused("exec", json!({ "argv": ["a"], "timeout": 5 })).contains("timeout"));
    assert!(refused("exec", json!("true")).contains("a list"));
}

#[test]
fn the_schema_knows_both_forms_and_marks_arguments() {
    let schema = <Exec as schemars::JsonSchema>::json_schema(&mut schemars::SchemaGenerator::default()).to_value();
    assert_eq!(schema["type"], json!(["object", "array"]));
    assert_eq!(schema["items"]["x-arguments"], true);
    assert_eq!(schema["properties"]["argv"]["x-arguments"], true);
    assert_eq!(schema["properties"]["shell"]["x-arguments"], true);
    assert_eq!(schema["additionalProperties"], false);
}
