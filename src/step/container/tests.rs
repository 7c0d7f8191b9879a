//! On the real Docker engine of `LIFEBOAT_TEST_DOCKER`.

mod exec;
mod remove;
mod run;

use std::collections::HashMap;

use bollard::Docker;
use bollard::models::{ContainerCreateBody, HealthConfig, HostConfig, RestartPolicy, RestartPolicyNameEnum};
use bollard::query_parameters::{CreateContainerOptions, RemoveContainerOptions};
use serde_json::json;

use super::*;
use crate::service::Services;
use crate::step::testing::{cx, cx_after, findings, preview, services, step, until};
use crate::step::world::World;
use crate::step::{AfterKill, Step};

fn host() -> String {
    std::env::var("LIFEBOAT_TEST_DOCKER").expect("LIFEBOAT_TEST_DOCKER, as `just services-up` prints it")
}

fn docker() -> Services {
    services(json!({ "docker": { "docker": { "host": host() } } }))
}

/// A container of one test, removed at its end.
struct Fixture {
    docker: Docker,
    name: String,
}

impl Fixture {
    /// A name that nothing has yet; what gets it is removed all the same.
    fn unmade() -> Self {
        let docker = Docker::connect_with_unix(&host(), 60, bollard::API_DEFAULT_VERSION).unwrap();
        Self { docker, name: format!("lifeboat-test-{:08x}", rand::random::<u32>()) }
    }

    async fn new(script: &str, more: impl FnOnce(&mut ContainerCreateBody)) -> Self {
        let fixture = Self::unmade();
        fixture.create(script, more).await;
        fixture
    }

    async fn create(&self, script: &str, more: impl FnOnce(&mut ContainerCreateBody)) {
        let mut body = ContainerCreateBody {
            image: Some("lifeboat-test/busybox:1".to_owned()),
            cmd: Some(["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec()),
            network_disabled: Some(true),
            host_config: Some(HostConfig { network_mode: Some("none".to_owned()), ..HostConfig::default() }),
            labels: Some(HashMap::from([("lifeboat-test".to_owned(), "1".to_owned())])),
            ..ContainerCreateBody::default()
        };
        more(&mut body);
        let options = CreateContainerOptions { name: Some(self.name.clone()), ..CreateContainerOptions::default() };
        self.docker.create_container(Some(options), body).await.unwrap();
    }

    /// One that runs and ends at once when it is told to.
    async fn running() -> Self {
        let fixture = Self::new(POLITE, |_| ()).await;
        fixture.start().await;
        fixture
    }

    async fn start(&self) {
        self.docker.start_container(&self.name, None).await.unwrap();
    }

    async fn look(&self) -> Container {
        docker().docker("docker").unwrap().container(&self.name).await.unwrap()
    }

    async fn remove(&self) {
        let options = RemoveContainerOptions { force: true, ..RemoveContainerOptions::default() };
        self.docker.remove_container(&self.name, Some(options)).await.unwrap();
    }

    fn step(&self, name: &str, mut params: Value) -> std::sync::Arc<dyn Step> {
        params["target"] = json!("docker");
        params["container"] = json!(self.name);
        step(name, params)
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let (docker, name) = (self.docker.clone(), self.name.clone());
        let remove = async move {
            let options = RemoveContainerOptions { force: true, ..RemoveContainerOptions::default() };
            let _ = docker.remove_container(&name, Some(options)).await;
        };
        // The test's own runtime may be ending: removal must not depend on it.
        let removed = std::thread::spawn(|| {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(remove);
        });
        let _ = removed.join();
    }
}

const POLITE: &str = "trap 'exit 0' TERM; while :; do /bin/busybox sleep 0.05; done";
const STUBBORN: &str = "trap '' TERM; while :; do /bin/busybox sleep 0.05; done";

fn checked_by(test: &str) -> impl FnOnce(&mut ContainerCreateBody) {
    let check = HealthConfig {
        test: Some(vec!["CMD".into(), "/bin/busybox".into(), "sh".into(), "-c".into(), test.into()]),
        interval: Some(200_000_000),
        timeout: Some(5_000_000_000),
        retries: Some(2),
        ..HealthConfig::default()
    };
    |body| body.healthcheck = Some(check)
}

fn restarting(policy: RestartPolicyNameEnum) -> impl FnOnce(&mut ContainerCreateBody) {
    move |body| {
        let policy = RestartPolicy { name: Some(policy), maximum_retry_count: None };
        body.host_config.as_mut().unwrap().restart_policy = Some(policy);
    }
}

#[tokio::test]
async fn stop_stops_and_stopping_again_is_nothing() {
    let (docker, fixture) = (docker(), Fixture::running().await);
    let stop = fixture.step("container.stop", json!({}));
    let before = preview(&*stop, Some(&docker), &World::default()).await;
    assert_eq!((before.action, before.certainty), (Action::Change, Certainty::Observed));
    assert_eq!(before.facts[0].1, Fact::Stopped);

    let (cx, recorder) = cx(&docker);
    let done = stop.run(&cx).await.unwrap();
    assert_eq!((&done.outputs["was_running"], &done.outputs["exit_code"]), (&json!(true), &json!(0)));
    assert_eq!(recorder.notes()[0]["running"], true, "noted before it acted");
    assert!(!fixture.look().await.running);

    let after = preview(&*stop, Some(&docker), &World::default()).await;
    assert_eq!(after.action, Action::None);
    let again = stop.run(&crate::step::testing::cx(&docker).0).await.unwrap();
    assert_eq!(again.outputs["was_running"], false);
}

#[tokio::test]
async fn one_that_does_not_end_is_killed_and_that_is_told() {
    let docker = docker();
    let fixture = Fixture::new(STUBBORN, restarting(RestartPolicyNameEnum::ALWAYS)).await;
    fixture.start().await;
    let stop = fixture.step("container.stop", json!({ "grace": "1s" }));
    let preview = preview(&*stop, Some(&docker), &World::default()).await;
    assert!(preview.problems.iter().any(|problem| problem.message.contains("`always`") && !problem.blocks));
    let done = stop.run(&cx(&docker).0).await.unwrap();
    assert_eq!(done.outputs["exit_code"], 137);
    assert!(done.summary.unwrap().starts_with("killed"));
}

#[tokio::test]
async fn a_cancelled_stop_goes_on_in_the_engine_and_after_kill_sees_it() {
    let docker = docker();
    let fixture = Fixture::new(STUBBORN, |_| ()).await;
    fixture.start().await;
    let stop = fixture.step("container.stop", json!({ "grace": "1s" }));
    let (cx, recorder) = cx(&docker);
    let cancel = async {
        until("the stop is announced", async || !recorder.notes().is_empty()).await;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        cx.cancel.cancel();
    };
    let (result, ()) = tokio::join!(stop.run(&cx), cancel);
    assert!(result.unwrap_err().message.contains("goes on"));

    let (after, _) = cx_after(&docker, recorder.notes());
    assert!(matches!(stop.after_kill(&after).await.unwrap(), AfterKill::RunAgain { .. }));
    until("the engine stopped it", async || !fixture.look().await.running).await;
    let AfterKill::Happened(done) = stop.after_kill(&after).await.unwrap() else { panic!("it is stopped") };
    assert_eq!((&done.outputs["was_running"], &done.outputs["exit_code"]), (&json!(true), &json!(137)));
}

#[tokio::test]
async fn nothing_noted_means_nothing_happened() {
    let (docker, fixture) = (docker(), Fixture::running().await);
    let (cx, _) = cx_after(&docker, vec![]);
    for name in ["container.stop", "container.start", "container.restart"] {
        let answer = fixture.step(name, json!({})).after_kill(&cx).await.unwrap();
        assert!(matches!(answer, AfterKill::DidNotHappen { .. }), "{name}: {answer:?}");
    }
}

#[tokio::test]
async fn a_recreated_container_is_refused() {
    let (docker, fixture) = (docker(), Fixture::running().await);
    let note = noted(&fixture.look().await);
    fixture.remove().await;
    fixture.create(POLITE, |_| ()).await;
    fixture.start().await;
    let (cx, _) = cx_after(&docker, vec![note]);
    for name in ["container.stop", "container.start", "container.restart"] {
        let step = fixture.step(name, json!({}));
        for failure in [step.run(&cx).await.unwrap_err(), step.after_kill(&cx).await.unwrap_err()] {
            assert!(failure.message.contains("was recreated") && !failure.transient, "{name}: {failure}");
        }
    }
    assert!(fixture.look().await.running, "it was left alone");
}

#[tokio::test]
async fn a_missing_container_is_blocked_and_near_names_are_told() {
    let (docker, fixture) = (docker(), Fixture::running().await);
    let nearly = format!("{}x", fixture.name);
    let stop = step("container.stop", json!({ "target": "docker", "container": nearly }));
    let preview = preview(&*stop, Some(&docker), &World::default()).await;
    assert_eq!(preview.action, Action::Blocked);
    assert!(preview.problems[0].help.as_ref().unwrap().contains(&format!("`{}`", fixture.name)), "{preview:?}");
    let failure = stop.run(&cx(&docker).0).await.unwrap_err();
    assert!(!failure.transient && failure.message.contains("has no container"), "{failure}");
}

#[tokio::test]
async fn start_starts_waits_and_is_nothing_when_it_runs() {
    let (docker, fixture) = (docker(), Fixture::new(POLITE, |_| ()).await);
    let start = fixture.step("container.start", json!({}));
    assert_eq!(preview(&*start, Some(&docker), &World::default()).await.action, Action::Change);
    let (cx, recorder) = cx(&docker);
    let done = start.run(&cx).await.unwrap();
    let now = fixture.look().await;
    assert!(now.running);
    assert_eq!(done.outputs["started_at"], now.started_at.as_str());
    assert_eq!(recorder.notes()[0]["running"], false);
    assert_eq!(preview(&*start, Some(&docker), &World::default()).await.action, Action::None);

    // Killed between the start and its journal record: what is left is to wait.
    let (after, _) = cx_after(&docker, recorder.notes());
    assert!(matches!(start.after_kill(&after).await.unwrap(), AfterKill::Partly { .. }));
    assert_eq!(start.run(&after).await.unwrap().outputs["started_at"], now.started_at.as_str());
}

#[tokio::test]
async fn start_fails_with_the_containers_own_words_when_it_dies() {
    let docker = docker();
    let fixture = Fixture::new("echo 'no such database' >&2; exit 3", |_| ()).await;
    let failure = fixture.step("container.start", json!({})).run(&cx(&docker).0).await.unwrap_err();
    assert!(failure.message.contains("exit code 3") && failure.message.contains("no such database"), "{failure}");
}

#[tokio::test]
async fn a_crash_loop_is_not_running() {
    let docker = docker();
    let fixture = Fixture::new("/bin/busybox sleep 0.3; exit 1", restarting(RestartPolicyNameEnum::ALWAYS)).await;
    let failure = fixture.step("container.start", json!({})).run(&cx(&docker).0).await.unwrap_err();
    assert!(failure.message.contains("ended with exit code"), "{failure}");
}

#[tokio::test]
async fn healthy_means_what_the_health_check_says() {
    let docker = docker();
    let well = Fixture::new(POLITE, checked_by("exit 0")).await;
    let start = well.step("container.start", json!({ "wait": "healthy", "within": "20s" }));
    assert_eq!(start.run(&cx(&docker).0).await.unwrap().summary.as_deref(), Some("started, healthy"));

    let ill = Fixture::new(POLITE, checked_by("echo database unreachable; exit 1")).await;
    let start = ill.step("container.start", json!({ "wait": "healthy", "within": "3s" }));
    let failure = start.run(&cx(&docker).0).await.unwrap_err();
    assert!(failure.transient && failure.message.contains("unhealthy"), "{failure}");
    assert!(failure.message.contains("database unreachable"), "{failure}");
}

#[tokio::test]
async fn without_a_health_check_nothing_is_ever_healthy() {
    let (docker, fixture) = (docker(), Fixture::new(POLITE, |_| ()).await);
    let start = fixture.step("container.start", json!({ "wait": "healthy" }));
    assert_eq!(preview(&*start, Some(&docker), &World::default()).await.action, Action::Blocked);
    // Also when an earlier step of the plan stops it first.
    let mut world = World::default();
    world.foretell(Resource::container("docker", &fixture.name), Fact::Stopped, &"stop".into());
    assert_eq!(preview(&*start, Some(&docker), &world).await.action, Action::Blocked);
    assert!(start.run(&cx(&docker).0).await.unwrap_err().message.contains("no health check"));
    assert!(!fixture.look().await.running, "it was not even started");
}

#[tokio::test]
async fn restart_goes_on_from_wherever_a_kill_left_it() {
    let (docker, fixture) = (docker(), Fixture::running().await);
    let restart = fixture.step("container.restart", json!({ "grace": "2s" }));
    let before = fixture.look().await;
    let (cx, recorder) = cx(&docker);
    restart.run(&cx).await.unwrap();
    let restarted = fixture.look().await;
    assert_ne!(before.started_at, restarted.started_at);

    // Killed after the start: it is not restarted a second time.
    let (after, _) = cx_after(&docker, recorder.notes());
    assert!(matches!(restart.after_kill(&after).await.unwrap(), AfterKill::Partly { .. }));
    restart.run(&after).await.unwrap();
    assert_eq!(fixture.look().await.started_at, restarted.started_at);

    // Killed between stop and start.
    let (between, _) = cx_after(&docker, vec![noted(&restarted)]);
    fixture.docker.stop_container(&fixture.name, None).await.unwrap();
    let AfterKill::Partly { what } = restart.after_kill(&between).await.unwrap() else { panic!("half done") };
    assert!(what.contains("stopped"), "{what}");
    restart.run(&between).await.unwrap();
    let again = fixture.look().await;
    assert!(again.running && again.started_at != restarted.started_at);

    // Killed before the stop took effect.
    let (early, _) = cx_after(&docker, vec![noted(&again)]);
    assert!(matches!(restart.after_kill(&early).await.unwrap(), AfterKill::DidNotHappen { .. }));
}

#[tokio::test]
async fn what_earlier_steps_do_counts_not_how_it_is_now() {
    let (docker, fixture) = (docker(), Fixture::running().await);
    let resource = Resource::container("docker", &fixture.name);
    let mut world = World::default();
    world.foretell(resource.clone(), Fact::Stopped, &"halt".into());
    let start = preview(&*fixture.step("container.start", json!({})), Some(&docker), &world).await;
    assert_eq!((start.action, start.certainty), (Action::Change, Certainty::Assumed));
    let stop = preview(&*fixture.step("container.stop", json!({})), Some(&docker), &world).await;
    assert_eq!(stop.action, Action::None);
    world.foretell(resource, Fact::Absent, &"remove".into());
    let start = preview(&*fixture.step("container.start", json!({})), Some(&docker), &world).await;
    assert_eq!(start.action, Action::Blocked);
    let offline = preview(&*fixture.step("container.stop", json!({})), None, &World::default()).await;
    assert_eq!((offline.action, offline.certainty), (Action::Change, Certainty::Assumed));
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_said_so() {
    let stop = step("container.stop", json!({ "target": "docker", "container": "x" }));
    for (host, expected) in [
        ("unix:///nowhere/docker.sock", "there is no socket /nowhere/docker.sock"),
        ("tcp://127.0.0.1:1", "docker: "),
    ] {
        let gone = services(json!({ "docker": { "docker": { "host": host } } }));
        let failure = stop.run(&cx(&gone).0).await.unwrap_err();
        assert!(failure.transient && failure.message.contains(expected), "{host}: {failure:?}");
        assert!(failure.help.unwrap().contains("Docker daemon"));
    }
    let wrong = services(json!({ "docker": { "docker": { "host": "docker.sock" } } }));
    assert!(!stop.run(&cx(&wrong).0).await.unwrap_err().transient);
    let other = services(json!({ "docker": { "http": { "base_url": "http://localhost" } } }));
    let failure = stop.run(&cx(&other).0).await.unwrap_err();
    assert_eq!(failure.message, "target `docker` is of kind http; this step takes one of kind docker");
}

#[tokio::test]
async fn an_engine_behind_tls_wants_certificates() {
    let fixture = Fixture::running().await;
    let tls = crate::service::tls_testing::Tls::new();
    let socket = host().replace("unix://", "");
    let port = tls.serve(true, move || tokio::net::UnixStream::connect(socket.clone())).await;
    let target = |tls: Value| {
        services(json!({ "docker": { "docker": { "host": format!("https://localhost:{port}"), "tls": tls } } }))
    };
    let own = |ca: &str| json!({ "ca": tls.file(ca), "cert": tls.file("cert.pem"), "key": tls.file("key.pem") });
    let stop = fixture.step("container.stop", json!({}));
    assert_eq!(stop.run(&cx(&target(own("ca.pem"))).0).await.unwrap().outputs["was_running"], true);

    // Another authority's client is turned away, and another authority's engine not trusted.
    let stranger = crate::service::tls_testing::Tls::new();
    let theirs =
        json!({ "ca": tls.file("ca.pem"), "cert": stranger.file("cert.pem"), "key": stranger.file("key.pem") });
    assert!(stop.run(&cx(&target(theirs)).0).await.is_err());
    let theirs = json!({ "ca": stranger.file("ca.pem"), "cert": tls.file("cert.pem"), "key": tls.file("key.pem") });
    let failure = stop.run(&cx(&target(theirs)).0).await.unwrap_err();
    assert!(!failure.transient && failure.help.as_ref().unwrap().contains("`tls` files"), "{failure:?}");
    assert!(!stop.run(&cx(&target(own("absent.pem"))).0).await.unwrap_err().transient);
}

#[test]
fn mistakes() {
    let found = findings("container.start", json!({ "target": "docker", "container": "a/b", "within": "1s" }));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(findings("container.stop", json!({ "target": "docker", "container": "‹find.name›" })).is_empty());
}
