//! `base_backup`, and the sandbox's archive and standby.

use lifeboat::service::PostgresSandbox;
use lifeboat::step::world::World;
use lifeboat::step::{Action, AfterKill, Certainty};
use serde_json::json;

use crate::fixture::{BACKUP, Stage, names, value};
use crate::support::until;

#[tokio::test]
async fn a_base_backup_is_verified_and_appears_whole() {
    let stage = Stage::new(PostgresSandbox { archive: true, ..PostgresSandbox::default() }).await;
    let params = Stage::backup("daily/base");
    let preview = stage.harness.preview(BACKUP, params.clone(), &World::default()).await;
    assert_eq!((preview.action, preview.certainty), (Action::Create, Certainty::Observed), "{preview:?}");
    assert!(preview.problems.is_empty(), "{preview:?}");
    let done = stage.harness.run(BACKUP, params.clone()).await.unwrap();
    assert_eq!(done.outputs["path"], "daily/base");
    assert!(done.outputs["taken_at"].as_str() < done.outputs["stopped_at"].as_str(), "{done:?}");
    let folder = stage.folder.path().join("backups/daily");
    assert_eq!(names(&folder), ["base", "base.lifeboat.json"]);
    assert!(folder.join("base/backup_manifest").is_file());

    // An attempt whose answer was lost is recognised; nothing is overwritten.
    let AfterKill::Happened(again) = stage.harness.after_kill(BACKUP, params.clone()).await else { panic!() };
    assert_eq!(again.outputs, done.outputs);
    let preview = stage.harness.preview(BACKUP, params.clone(), &World::default()).await;
    assert!(preview.action == Action::Blocked && preview.problems[0].message.contains("is there already"));
    let failure = stage.harness.run(BACKUP, params.clone()).await.unwrap_err();
    assert!(!failure.transient && failure.message.contains("is there already"), "{failure}");
    // A damaged one isn't taken for a backup.
    std::fs::write(folder.join("base/PG_VERSION"), "14\n").unwrap();
    assert!(stage.harness.step(BACKUP, params).after_kill(&stage.harness.next_attempt()).await.is_err());
}

#[tokio::test]
async fn a_killed_base_backup_leaves_what_the_next_one_removes() {
    let stage = Stage::new(PostgresSandbox { archive: true, ..PostgresSandbox::default() }).await;
    let params = Stage::backup("base");
    assert!(matches!(stage.harness.after_kill(BACKUP, params.clone()).await, AfterKill::DidNotHappen { .. }));
    stage.harness.run_and_kill_at_note(BACKUP, params.clone(), 1).await;
    let draft = stage.harness.journal.notes()[0].1["draft"].as_str().unwrap().to_owned();
    std::fs::create_dir_all(format!("{draft}/base")).unwrap();
    assert!(matches!(stage.harness.after_kill(BACKUP, params.clone()).await, AfterKill::Partly { .. }));
    stage.harness.run(BACKUP, params).await.unwrap();
    assert_eq!(names(&stage.folder.path().join("backups")), ["base", "base.lifeboat.json"]);
}

#[tokio::test]
async fn a_server_that_can_not_be_copied_is_said_before() {
    let stage = Stage::new(PostgresSandbox::default()).await;
    let preview = stage.harness.preview(BACKUP, Stage::backup("base"), &World::default()).await;
    assert_eq!(preview.action, Action::Blocked);
    assert!(preview.problems.iter().any(|it| it.message.contains("not set up to be copied")), "{preview:?}");
    let failure = stage.harness.run(BACKUP, Stage::backup("base")).await.unwrap_err();
    assert!(failure.message.contains("copy the cluster db"), "{failure}");
    assert!(names(&stage.folder.path().join("backups")).is_empty());
}

#[tokio::test]
async fn a_sandboxs_standby_follows_and_goes_with_it() {
    let port = crate::support::ports::free_port();
    let settings = PostgresSandbox { standby: Some(port), ..PostgresSandbox::default() };
    let stage = Stage::new(settings.clone()).await;
    assert!(stage.cluster.is_up() && stage.cluster.address().unwrap().contains(&port.to_string()));
    let primary = stage.url.split_once("@127.0.0.1:").unwrap().1.split_once('/').unwrap().0.to_owned();
    let standby = stage.url.replace(&format!(":{primary}/"), &format!(":{port}/"));
    assert_eq!(value(&standby, "SELECT pg_is_in_recovery()").await, "t");
    stage.sql("CREATE TABLE followed AS SELECT 7 AS n").await;
    until("the standby follows", || async {
        value(&standby, "SELECT to_regclass('public.followed') IS NOT NULL").await == "t"
    })
    .await;
    stage.cluster.stop().await.unwrap();
    assert!(!stage.cluster.is_up());
    stage.cluster.up(&settings).await.unwrap();
    assert_eq!(value(&standby, "SELECT n FROM followed").await, "7");
    stage.cluster.down().await.unwrap();
    assert!(!stage.folder.path().join("db").exists());
    assert_eq!(json!(stage.cluster.is_up()), json!(false));
}

#[tokio::test]
async fn a_lost_connection_may_be_tried_again() {
    let stage = Stage::new(PostgresSandbox { archive: true, ..PostgresSandbox::default() }).await;
    // A checkpoint that takes its time has something to write.
    stage.sql("CREATE TABLE wide AS SELECT g, repeat('x', 500) AS x FROM generate_series(1, 50000) g").await;
    let mut params = Stage::backup("base");
    params["checkpoint"] = json!("spread");
    let (step, cx) = (stage.harness.step(BACKUP, params), stage.harness.next_attempt());
    let copying = tokio::spawn(async move { step.run(&cx).await });
    until("the copy waits for its checkpoint and is ended", || async {
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_type = 'walsender'";
        value(&stage.url, end).await != "0"
    })
    .await;
    let failure = copying.await.unwrap().unwrap_err();
    assert!(failure.transient, "{failure}");
    assert!(names(&stage.folder.path().join("backups")).is_empty(), "nothing is left of it");
}
