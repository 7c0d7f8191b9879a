use bollard::models::NetworkCreateRequest;
use bollard::query_parameters::RemoveVolumeOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::step::RunCx;

const IMAGE: &str = "lifeboat-test/busybox:1";

/// Parameters of a container that goes on running, and more of them.
fn params(fixture: &Fixture, more: &Value) -> Value {
    let mut params = json!({
        "target": "docker", "image": IMAGE, "name": fixture.name, "network": "host", "within": "20s",
        "command": ["sh", "-c", POLITE],
    });
    params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    params
}

#[allow(clippy::needless_pass_by_value, reason = "it is called with what `json!` makes")]
fn run(fixture: &Fixture, more: Value) -> std::sync::Arc<dyn Step> {
    step("container.run", params(fixture, &more))
}

async fn output_of(fixture: &Fixture) -> String {
    docker().docker("docker").unwrap().last_lines(&fixture.name, 50).await
}

/// A later attempt of the same step, after the notes of those before.
fn again(services: &Services, notes: Vec<Value>) -> RunCx {
    cx_after(services, notes).0
}

#[tokio::test]
async fn it_is_made_as_declared_and_secrets_stay_out_of_sight() {
    let (docker, fixture) = (docker(), Fixture::unmade());
    docker.redactor().add("correct-horse");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("key"), "mounted").unwrap();
    // It belongs to whoever runs the test: another user may not look into it.
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let script = format!("echo $PASSWORD $LEVEL; cat /in/key; echo x > /in/key; id -u; {POLITE}");
    let run = run(
        &fixture,
        json!({
            "command": ["sh", "-c", script], "env": { "PASSWORD": "correct-horse", "LEVEL": 5 }, "user": "1234",
            "volumes": [format!("{}:/in:ro", folder.path().display())], "restart": "no",
        }),
    );
    let before = preview(&*run, Some(&docker), &World::default()).await;
    assert_eq!((before.action, before.certainty), (Action::Create, Certainty::Observed), "{before:?}");
    assert_eq!(before.facts[0].1, Fact::Running);

    let (cx, recorder) = cx(&docker);
    let done = run.run(&cx).await.unwrap();
    let made = fixture.look().await;
    assert_eq!((&done.outputs["id"], &done.outputs["address"]), (&json!(made.id), &json!("127.0.0.1")));
    assert_eq!(done.outputs["started_at"], made.started_at.as_str());
    assert_eq!(made.restart_policy, None);
    assert_eq!(made.labels["lifeboat.step"], "step");
    let said = output_of(&fixture).await;
    assert!(["correct-horse 5", "mounted", "1234"].iter().all(|word| said.contains(word)), "{said}");
    assert_eq!(std::fs::read_to_string(folder.path().join("key")).unwrap(), "mounted", "read-only");
    assert!(!recorder.notes()[0].to_string().contains("horse") && !recorder.log().contains("horse"));
    assert_eq!(recorder.notes()[0]["makes"], fixture.name.as_str(), "announced before it acted");
}

#[tokio::test]
async fn a_published_port_and_a_volume_are_really_there() {
    let (docker, fixture) = (docker(), Fixture::unmade());
    let name = fixture.name.clone();
    let network = NetworkCreateRequest { name: name.clone(), ..NetworkCreateRequest::default() };
    fixture.docker.create_network(network).await.unwrap();
    let run = run(
        &fixture,
        json!({
            "command": ["sh", "-c", "echo published >/srv/index.html; exec httpd -f -p 80 -h /srv"],
            "network": name, "ports": ["127.0.0.1::80"], "volumes": [format!("{name}:/srv")],
        }),
    );
    let done = run.run(&cx(&docker).0).await;
    let answer = async {
        let mut stream = TcpStream::connect(done.as_ref().ok()?.outputs["address"].as_str()?).await.ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        Some(text)
    };
    let answer = answer.await;
    let volume = fixture.docker.inspect_volume(&name).await;
    fixture.remove().await;
    let unmade = fixture.docker.remove_network(&name).await;
    let emptied = fixture.docker.remove_volume(&name, None::<RemoveVolumeOptions>).await;
    assert!(answer.as_ref().is_some_and(|answer| answer.contains("published")), "{answer:?} of {done:?}");
    volume.and(unmade).and(emptied).unwrap();
}

#[tokio::test]
async fn it_comes_back_after_a_reboot_unless_told_otherwise() {
    let (docker, fixture) = (docker(), Fixture::unmade());
    run(&fixture, json!({})).run(&cx(&docker).0).await.unwrap();
    assert_eq!(fixture.look().await.restart_policy, Some("unless-stopped"));
}

#[tokio::test]
async fn somebody_elses_container_is_refused_and_replaced_only_when_told() {
    let (docker, fixture) = (docker(), Fixture::running().await);
    let old = fixture.look().await;
    let refused = run(&fixture, json!({}));
    let blocked = preview(&*refused, Some(&docker), &World::default()).await;
    assert_eq!(blocked.action, Action::Blocked);
    assert!(blocked.problems[0].help.as_ref().unwrap().contains("`replace: true`"), "{blocked:?}");
    let failure = refused.run(&cx(&docker).0).await.unwrap_err();
    assert!(!failure.transient && failure.message.contains("there is a container"), "{failure}");
    assert_eq!(fixture.look().await, old, "it was left alone");

    let replace = run(&fixture, json!({ "replace": true }));
    assert!(replace.effects().iter().any(|effect| effect.access == crate::step::effect::Access::Destroy));
    let foreseen = preview(&*replace, Some(&docker), &World::default()).await;
    assert_eq!((foreseen.action, foreseen.certainty), (Action::Destroy, Certainty::Observed));
    let (cx, recorder) = cx(&docker);
    let done = replace.run(&cx).await.unwrap();
    assert_eq!(recorder.notes()[0]["replaces"], old.id.as_str());
    assert_ne!(done.outputs["id"], old.id.as_str());
    assert!(fixture.look().await.running);
}

#[tokio::test]
async fn what_goes_wrong_before_the_swap_leaves_the_old_one_running() {
    let (docker, fixture) = (docker(), Fixture::running().await);
    let old = fixture.look().await;
    let missing = run(&fixture, json!({ "image": "lifeboat-test/absent:1", "replace": true }));
    let blocked = preview(&*missing, Some(&docker), &World::default()).await;
    assert_eq!(blocked.action, Action::Blocked);
    assert!(blocked.problems[0].help.as_ref().unwrap().contains("pull: missing"), "{blocked:?}");
    assert!(missing.run(&cx(&docker).0).await.unwrap_err().message.contains("has no image"));
    // Nothing listens there.
    let unreachable = json!({ "image": "127.0.0.1:1/absent:1", "pull": "missing", "replace": true });
    let unreachable = run(&fixture, unreachable);
    assert_eq!(preview(&*unreachable, Some(&docker), &World::default()).await.action, Action::Destroy);
    let failure = unreachable.run(&cx(&docker).0).await.unwrap_err();
    assert!(failure.message.starts_with("pull 127.0.0.1:1/absent:1: "), "{failure}");
    let ill = run(&fixture, json!({ "wait": "healthy", "replace": true }));
    assert_eq!(preview(&*ill, Some(&docker), &World::default()).await.action, Action::Blocked);
    assert!(ill.run(&cx(&docker).0).await.unwrap_err().message.contains("no health check"));
    assert_eq!(fixture.look().await, old);
    // An earlier step may load the image.
    let mut world = World::default();
    let image = Resource::other("image", "docker/lifeboat-test/absent:1");
    world.foretell(image, Fact::Present { rows: None }, &"load".into());
    assert_eq!(preview(&*missing, Some(&docker), &world).await.action, Action::Destroy);
}

#[tokio::test]
async fn what_cannot_start_leaves_nothing() {
    let (docker, fixture) = (docker(), Fixture::unmade());
    let engine = docker.docker("docker").unwrap();
    let attempt = async |more: Value| run(&fixture, more).run(&cx(&docker).0).await.unwrap_err();
    let failure = attempt(json!({ "command": ["/bin/no-such-program"] })).await;
    assert!(!failure.transient && failure.message.contains("no-such-program"), "{failure}");
    assert_eq!(engine.find(&fixture.name).await.unwrap(), None);
    let failure = attempt(json!({ "volumes": ["/no/such/folder:/in"] })).await;
    assert!(!failure.transient && failure.message.contains("/no/such/folder"), "{failure}");
    assert!(!std::path::Path::new("/no/such/folder").exists(), "a mistyped path is not made");
    let failure = attempt(json!({ "network": "no-such-network" })).await;
    assert!(failure.message.contains("no-such-network"), "{failure}");
    assert_eq!(engine.find(&fixture.name).await.unwrap(), None);
}

#[tokio::test]
async fn one_that_dies_is_quoted_and_kept_without_being_started_again_and_again() {
    let (docker, fixture) = (docker(), Fixture::unmade());
    docker.redactor().add("correct-horse");
    let script = "echo cannot reach db with correct-horse >&2; sleep 0.3; exit 3";
    let dies = run(&fixture, json!({ "command": ["sh", "-c", script] }));
    let (cx, recorder) = cx(&docker);
    let failure = dies.run(&cx).await.unwrap_err();
    assert!(failure.message.contains("cannot reach db with ●●●●"), "{failure}");
    until("it is stopped", async || {
        let now = fixture.look().await;
        !now.running && !now.restarting
    })
    .await;

    // The next attempt starts it again; one with other parameters makes it anew.
    let first = fixture.look().await;
    dies.run(&again(&docker, recorder.notes())).await.unwrap_err();
    let second = fixture.look().await;
    assert!(second.id == first.id && second.started_at != first.started_at);
    let edited = run(&fixture, json!({}));
    let done = edited.run(&again(&docker, recorder.notes())).await.unwrap();
    assert_ne!(done.outputs["id"], first.id.as_str());
}

#[tokio::test]
async fn after_a_kill_the_labels_tell() {
    let (docker, fixture) = (docker(), Fixture::unmade());
    let step = run(&fixture, json!({}));
    let nothing = step.after_kill(&again(&docker, vec![])).await.unwrap();
    assert!(matches!(nothing, AfterKill::DidNotHappen { .. }));
    let (first, recorder) = cx(&docker);
    let id = step.run(&first).await.unwrap().outputs["id"].clone();

    // Killed after the start.
    let after = again(&docker, recorder.notes());
    let AfterKill::Partly { what } = step.after_kill(&after).await.unwrap() else { panic!("it runs") };
    assert!(what.contains("left is to wait"), "{what}");
    let started = fixture.look().await.started_at;
    assert_eq!(step.run(&after).await.unwrap().outputs["id"], id);
    assert_eq!(fixture.look().await.started_at, started, "not started a second time");

    // Killed between making and starting.
    fixture.docker.stop_container(&fixture.name, None).await.unwrap();
    let AfterKill::Partly { what } = step.after_kill(&after).await.unwrap() else { panic!("it is there") };
    assert!(what.contains("doesn't run"), "{what}");
    assert_eq!(step.run(&after).await.unwrap().outputs["id"], id);

    // Killed before anything was made.
    fixture.remove().await;
    assert!(matches!(step.after_kill(&after).await.unwrap(), AfterKill::DidNotHappen { .. }));

    // Somebody else took the name.
    fixture.create(POLITE, |_| ()).await;
    assert!(step.after_kill(&after).await.is_err() && step.run(&after).await.is_err());
    let replace = run(&fixture, json!({ "replace": true }));
    let failure = replace.run(&after).await.unwrap_err();
    assert!(failure.message.contains("by somebody else since"), "{failure}");
    assert!(!fixture.look().await.running, "it was left alone");
}

#[tokio::test]
async fn a_replacement_goes_on_from_wherever_a_kill_left_it() {
    let (docker, fixture) = (docker(), Fixture::running().await);
    let old = fixture.look().await;
    let replace = run(&fixture, json!({ "replace": true }));
    let note = json!({ "makes": fixture.name, "image": IMAGE, "replaces": old.id });
    let after = again(&docker, vec![note]);
    assert!(matches!(replace.after_kill(&after).await.unwrap(), AfterKill::DidNotHappen { .. }));
    fixture.docker.stop_container(&fixture.name, None).await.unwrap();
    assert!(matches!(replace.after_kill(&after).await.unwrap(), AfterKill::Partly { .. }));
    fixture.remove().await;
    let AfterKill::Partly { what } = replace.after_kill(&after).await.unwrap() else { panic!("half done") };
    assert!(what.contains("not made yet"), "{what}");
    replace.run(&after).await.unwrap();
    assert!(fixture.look().await.running);
}

#[tokio::test]
async fn the_steps_before_count() {
    let (docker, fixture) = (docker(), Fixture::running().await);
    let foretold = async |fact: Fact, more: Value| {
        let mut world = World::default();
        world.foretell(Resource::container("docker", &fixture.name), fact, &"before".into());
        preview(&*run(&fixture, more), Some(&docker), &world).await.action
    };
    assert_eq!(foretold(Fact::Absent, json!({})).await, Action::Create);
    assert_eq!(foretold(Fact::Stopped, json!({})).await, Action::Blocked);
    assert_eq!(foretold(Fact::Stopped, json!({ "replace": true })).await, Action::Destroy);
    let offline = preview(&*run(&fixture, json!({})), None, &World::default()).await;
    assert_eq!((offline.action, offline.certainty), (Action::Create, Certainty::Assumed));
}

#[test]
fn mistakes() {
    let found = findings(
        "container.run",
        json!({
            "target": "docker", "image": "a b", "name": "a/b", "within": "1s", "env": { "A=": "x" },
            "ports": ["localhost:80:80"], "volumes": ["keys:keys"], "network": "host",
        }),
    );
    assert_eq!(found.len(), 7, "{found:?}");
    let published = json!({ "target": "docker", "image": "a", "name": "a", "ports": [80, "127.0.0.1:8080:80"] });
    assert!(findings("container.run", published).is_empty());
}
