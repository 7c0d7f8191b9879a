use super::*;

#[tokio::test]
async fn a_stopped_one_is_removed_and_a_missing_one_is_fine() {
    let (docker, fixture) = (docker(), Fixture::new(POLITE, |_| ()).await);
    let remove = fixture.step("container.remove", json!({}));
    let before = preview(&*remove, Some(&docker), &World::default()).await;
    assert_eq!((before.action, before.certainty), (Action::Destroy, Certainty::Observed));
    assert_eq!(before.facts[0].1, Fact::Absent);
    let (cx, recorder) = cx(&docker);
    assert_eq!(remove.run(&cx).await.unwrap().outputs["removed"], true);
    assert!(recorder.notes()[0]["id"].is_string(), "noted before it acted");

    let after = preview(&*remove, Some(&docker), &World::default()).await;
    assert_eq!(after.action, Action::None);
    let again = remove.run(&crate::step::testing::cx(&docker).0).await.unwrap();
    assert_eq!((again.summary.as_deref(), &again.outputs["removed"]), (Some("there was none"), &json!(false)));
}

#[tokio::test]
async fn a_running_one_is_refused_without_force() {
    let (docker, fixture) = (docker(), Fixture::running().await);
    let remove = fixture.step("container.remove", json!({}));
    let blocked = preview(&*remove, Some(&docker), &World::default()).await;
    assert_eq!(blocked.action, Action::Blocked);
    assert!(blocked.problems[0].help.as_ref().unwrap().contains("`force: true`"));
    let failure = remove.run(&cx(&docker).0).await.unwrap_err();
    assert!(!failure.transient && failure.message.contains("it runs"), "{failure}");
    assert!(fixture.look().await.running, "it was left alone");

    let forced = fixture.step("container.remove", json!({ "force": true, "volumes": true }));
    assert_eq!(preview(&*forced, Some(&docker), &World::default()).await.action, Action::Destroy);
    forced.run(&cx(&docker).0).await.unwrap();
    let engine = docker.docker("docker").unwrap();
    assert_eq!(engine.find(&fixture.name).await.unwrap(), None);
}

#[tokio::test]
async fn after_a_kill_the_id_tells_and_a_namesake_is_left_alone() {
    let (docker, fixture) = (docker(), Fixture::new(POLITE, |_| ()).await);
    let remove = fixture.step("container.remove", json!({}));
    let nothing = remove.after_kill(&cx_after(&docker, vec![]).0).await.unwrap();
    assert!(matches!(nothing, AfterKill::DidNotHappen { .. }));
    let (after, _) = cx_after(&docker, vec![noted(&fixture.look().await)]);
    assert!(matches!(remove.after_kill(&after).await.unwrap(), AfterKill::DidNotHappen { .. }));
    fixture.remove().await;
    let AfterKill::Happened(done) = remove.after_kill(&after).await.unwrap() else { panic!("it is gone") };
    assert_eq!(done.outputs["removed"], true);
    assert_eq!(remove.run(&after).await.unwrap().outputs["removed"], true);

    fixture.create(POLITE, |_| ()).await;
    let failure = remove.run(&after).await.unwrap_err();
    assert!(failure.message.contains("was recreated"), "{failure}");
    fixture.look().await;
}

#[tokio::test]
async fn the_steps_before_count() {
    let (docker, fixture) = (docker(), Fixture::running().await);
    let resource = Resource::container("docker", &fixture.name);
    let foretold = async |fact: Fact, params: Value| {
        let mut world = World::default();
        world.foretell(resource.clone(), fact, &"before".into());
        preview(&*fixture.step("container.remove", params), Some(&docker), &world).await.action
    };
    assert_eq!(foretold(Fact::Stopped, json!({})).await, Action::Destroy);
    assert_eq!(foretold(Fact::Absent, json!({})).await, Action::None);
    assert_eq!(foretold(Fact::Running, json!({})).await, Action::Blocked);
    assert_eq!(foretold(Fact::Running, json!({ "force": true })).await, Action::Destroy);
}

#[tokio::test]
async fn another_runs_is_refused() {
    let (docker, fixture) = (docker(), Fixture::running().await);
    let of = |run: &str| fixture.step("container.remove", json!({ "force": true, "made_by_run": run }));
    let blocked = preview(&*of("20260101-000000-none"), Some(&docker), &World::default()).await;
    assert_eq!(blocked.action, Action::Blocked);
    let failure = of("20260101-000000-none").run(&cx(&docker).0).await.unwrap_err();
    assert!(failure.message.contains("no run made it"), "{failure}");
    assert!(fixture.look().await.running, "it was left alone");

    let (cx, _) = cx(&docker);
    let made = Fixture::unmade();
    let params = json!({
        "target": "docker", "image": "lifeboat-test/busybox:1", "name": made.name, "network": "host",
        "command": ["sh", "-c", POLITE],
    });
    step("container.run", params).run(&cx).await.unwrap();
    let of = |run: &str| made.step("container.remove", json!({ "force": true, "made_by_run": run }));
    let failure = of("20260101-000000-none").run(&cx).await.unwrap_err();
    assert!(failure.message.contains(&format!("run {} made it", cx.run)), "{failure}");
    assert_eq!(of(cx.run.as_str()).run(&cx).await.unwrap().outputs["removed"], true);
}
