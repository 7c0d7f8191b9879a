//! `recover_to` every kind of moment, killed on the way, and taken down again.

use lifeboat::service::postgres::side::Stage as Made;
use lifeboat::step::effect::Resource;
use lifeboat::step::world::{Fact, World};
use lifeboat::step::{Action, AfterKill, Certainty};
use serde_json::json;

use crate::fixture::{RECOVER, REMOVE, Stage};

#[tokio::test]
async fn a_time_between_two_commits_and_the_way_down() {
    let (stage, moments) = Stage::with_history().await;
    let params = stage.recover(&moments.time());
    let preview = stage.harness.preview(RECOVER, params.clone(), &World::default()).await;
    assert_eq!((preview.action, preview.certainty), (Action::Create, Certainty::Observed), "{preview:?}");
    for word in ["backups/base", "WAL 0000000100000000", "no gap", "ended"] {
        assert!(preview.summary.contains(word), "{word}: {}", preview.summary);
    }
    let done = stage.harness.run(RECOVER, params.clone()).await.unwrap();
    assert_eq!(stage.recovered().await, "1 2");
    let reached = done.outputs["reached_at"].as_str().unwrap();
    assert!(reached <= format!("{}Z", moments.time).as_str(), "{reached}");
    assert!(!done.outputs["url"].as_str().unwrap().contains(stage.url.split(['@', ':']).nth(2).unwrap()));
    // Done is done, and the folder is another run's now.
    assert!(matches!(stage.harness.after_kill(RECOVER, params.clone()).await, AfterKill::Happened(_)));
    assert_eq!(stage.harness.run(RECOVER, params.clone()).await.unwrap().outputs, done.outputs);

    let preview = stage.harness.preview(REMOVE, stage.remove(), &World::default()).await;
    assert_eq!(preview.action, Action::Destroy, "{preview:?}");
    stage.harness.run(REMOVE, stage.remove()).await.unwrap();
    assert!(!stage.side().is_up() && !stage.side().data().exists());
    stage.harness.run(REMOVE, stage.remove()).await.unwrap();
    assert!(matches!(stage.harness.after_kill(REMOVE, stage.remove()).await, AfterKill::Happened(_)));
    // The original went on all the time.
    assert_eq!(stage.value("SELECT count(*) FROM t").await, "4");
}

#[tokio::test]
async fn a_position_a_restore_point_and_the_end() {
    let (stage, moments) = Stage::with_history().await;
    let wanted = [
        (json!({ "lsn": moments.lsn }), "1 2"),
        (json!({ "name": "before_4" }), "1 2 3"),
        (json!("latest"), "1 2 3 4"),
    ];
    for (to, rows) in wanted {
        let done = stage.harness.run(RECOVER, stage.recover(&to)).await.unwrap();
        assert_eq!(stage.recovered().await, rows, "{to}");
        assert!(done.outputs["lsn"].as_str().unwrap().contains('/'), "{done:?}");
        stage.harness.run(REMOVE, stage.remove()).await.unwrap();
    }
}

#[tokio::test]
async fn killed_while_it_copies_and_while_it_recovers() {
    let (stage, moments) = Stage::with_history().await;
    let params = stage.recover(&moments.time());
    assert!(matches!(stage.harness.after_kill(RECOVER, params.clone()).await, AfterKill::DidNotHappen { .. }));
    // Notes are counted from the base backup's. Before anything was made.
    stage.harness.run_and_kill_at_note(RECOVER, params.clone(), 2).await;
    assert!(matches!(stage.harness.after_kill(RECOVER, params.clone()).await, AfterKill::DidNotHappen { .. }));
    // Before its server is started; then as if the copy had broken off.
    stage.harness.run_and_kill_at_note(RECOVER, params.clone(), 4).await;
    let mut mark = stage.side().mark().unwrap();
    assert_eq!(mark.stage, Made::Recovering);
    mark.stage = Made::Copying;
    stage.side().set_mark(&mark).unwrap();
    std::fs::remove_file(stage.side().data().join("recovery.signal")).unwrap();
    let AfterKill::Partly { what } = stage.harness.after_kill(RECOVER, params.clone()).await else { panic!() };
    assert!(what.contains("half a copy"), "{what}");
    // At its target, before it is opened: the server goes on without its maker.
    stage.harness.run_and_kill_at_note(RECOVER, params.clone(), 7).await;
    assert!(stage.side().is_up());
    let AfterKill::Partly { what } = stage.harness.after_kill(RECOVER, params.clone()).await else { panic!() };
    assert!(what.contains("its server runs"), "{what}");
    // And with its server gone as well.
    stage.side().stop(&stage.side().mark().unwrap().bin_dir).await.unwrap();
    stage.harness.run(RECOVER, params).await.unwrap();
    assert_eq!(stage.recovered().await, "1 2");
}

#[tokio::test]
async fn later_steps_on_a_cluster_that_is_not_there_yet_are_foreseen() {
    let (stage, _) = Stage::with_history().await;
    let query = json!({ "target": "side", "sql": "SELECT count(*) FROM public.t" });
    let blocked = stage.harness.preview("postgres.query", query.clone(), &World::default()).await;
    assert_eq!(blocked.action, Action::Blocked);
    let mut world = World::default();
    world.foretell(Resource::server("side"), Fact::Present { rows: None }, &"recover".into());
    let preview = stage.harness.preview("postgres.query", query, &world).await;
    assert_eq!((preview.action, preview.certainty), (Action::Read, Certainty::Assumed), "{preview:?}");
}
