//! `redis.restore`: servers with and without an append-only file, up and down, and what is refused.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use lifeboat::step::world::World;
use lifeboat::step::{Action, AfterKill, Certainty};
use serde_json::{Value, json};

use crate::server::{Redis, run};
use crate::support::Harness;

/// A snapshot of 300 keys as `good.rdb`, then other keys than those.
async fn damaged(options: &[&str]) -> (Redis, Harness) {
    let mut redis = Redis::start(options);
    redis.fill(300);
    let harness = redis.harness();
    let params = json!({ "target": "cache", "to": { "storage": "store", "path": "good.rdb" } });
    harness.run("redis.snapshot", params).await.unwrap();
    // From here on it is a daemon, as a service manager has it.
    redis.hand_over();
    redis.ask::<()>(&["FLUSHALL"]);
    redis.ask::<()>(&["SET", "wrong", "1"]);
    (redis, harness)
}

fn params(redis: &Redis) -> Value {
    json!({
        "target": "cache",
        "from": { "storage": "store", "path": "good.rdb" },
        "data_dir": redis.folder.path(),
        "service": { "stop": redis.stop_argv(), "start": redis.daemon_argv() },
        "within": "20s",
    })
}

fn keys(redis: &Redis) -> u64 {
    redis.ask(&["DBSIZE"])
}

/// The server comes back with the same after it was stopped and started by hand, too.
fn survives_a_restart(redis: &Redis) {
    run(&redis.stop_argv());
    redis.wait_down();
    run(&redis.daemon_argv());
    redis.wait_up();
    assert_eq!(keys(redis), 300);
}

#[tokio::test]
async fn what_was_saved_is_there_again() {
    let (redis, harness) = damaged(&[]).await;
    std::fs::write(redis.file("dump.rdb"), b"old").unwrap();
    std::fs::set_permissions(redis.file("dump.rdb"), std::fs::Permissions::from_mode(0o604)).unwrap();
    let preview = harness.preview("redis.restore", params(&redis), &World::default()).await;
    assert_eq!((preview.action, preview.certainty), (Action::Destroy, Certainty::Observed), "{preview:?}");
    assert!(preview.summary.contains("300 keys"), "{preview:?}");
    assert_eq!(keys(&redis), 1, "a preview changes nothing");

    let done = harness.run("redis.restore", params(&redis)).await.unwrap();
    assert_eq!((done.outputs["keys"].as_u64(), keys(&redis)), (Some(300), 300));
    assert_eq!(std::fs::metadata(redis.file("dump.rdb")).unwrap().mode() & 0o777, 0o604);
    let names: Vec<_> = redis.files();
    assert!(names.iter().any(|name| name.starts_with("dump.rdb.before-")), "{names:?}");
    assert!(!names.iter().any(|name| name.starts_with(".lifeboat")), "{names:?}");
    survives_a_restart(&redis);
}

#[tokio::test]
async fn an_append_only_file_does_not_hide_it() {
    let (redis, harness) = damaged(&["--appendonly", "yes"]).await;
    assert_eq!(keys(&redis), 1);
    let done = harness.run("redis.restore", params(&redis)).await.unwrap();
    assert_eq!((done.outputs["keys"].as_u64(), keys(&redis)), (Some(300), 300));
    assert!(redis.files().iter().any(|name| name.starts_with("appendonlydir.before-")));
    survives_a_restart(&redis);
    // What comes after is appended.
    redis.ask::<()>(&["DEL", "key:1"]);
    redis.ask::<()>(&["SET", "key:1", "new"]);
    survives_a_restart(&redis);
    assert_eq!(redis.ask::<String>(&["GET", "key:1"]), "new");
}

#[tokio::test]
async fn a_server_that_is_down_and_lost_all_its_files() {
    // With save points the server that starts empty overwrites the file when it is stopped again.
    let save_points = ["--appendonly", "yes", "--save", "3600 1"];
    for options in [&[][..], &save_points[..2], &save_points[..], &save_points[2..]] {
        let (redis, harness) = damaged(options).await;
        run(&redis.stop_argv());
        redis.wait_down();
        drop(std::fs::remove_dir_all(redis.file("appendonlydir")));
        drop(std::fs::remove_file(redis.file("dump.rdb")));
        harness.run("redis.restore", params(&redis)).await.unwrap();
        assert_eq!(keys(&redis), 300);
        survives_a_restart(&redis);
    }
}

#[tokio::test]
async fn a_bad_file_is_refused_before_anything_is_stopped() {
    let (redis, harness) = damaged(&[]).await;
    let good = std::fs::read(redis.file("store/good.rdb")).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let bad = [
        ("empty", vec![], "is no RDB file"),
        ("text", b"this is not a snapshot of any server".to_vec(), "is no RDB file"),
        ("cut", good[..good.len() - 20].to_vec(), "is cut off"),
        ("flipped", flipped, "is damaged"),
    ];
    for (name, content, said) in bad {
        std::fs::write(redis.file(&format!("store/{name}.rdb")), content).unwrap();
        let mut params = params(&redis);
        params["from"]["path"] = format!("{name}.rdb").into();
        let failure = harness.run("redis.restore", params).await.unwrap_err();
        assert!(failure.message.contains(said) && !failure.transient, "{name}: {failure}");
    }
    // One that no longer is what its manifest says.
    std::fs::copy(redis.file("store/cut.rdb"), redis.file("store/good.rdb")).unwrap();
    let failure = harness.run("redis.restore", params(&redis)).await.unwrap_err();
    assert!(failure.message.contains("its manifest says"), "{failure}");
    assert_eq!(keys(&redis), 1, "the server was left alone");
    assert!(!redis.files().iter().any(|name| name.starts_with(".lifeboat")));
}

#[tokio::test]
async fn blocked_where_it_cannot_work() {
    let (redis, harness) = damaged(&[]).await;
    let elsewhere = tempfile::tempdir().unwrap();
    for (pointer, value, said) in [
        ("/data_dir", json!("/no/such/folder"), "no folder /no/such/folder"),
        ("/data_dir", json!(elsewhere.path()), "keeps its data in"),
        ("/from/path", json!("none.rdb"), "no object `none.rdb`"),
    ] {
        let mut params = params(&redis);
        *params.pointer_mut(pointer).unwrap() = value;
        let preview = harness.preview("redis.restore", params.clone(), &World::default()).await;
        assert_eq!(preview.action, Action::Blocked);
        assert!(preview.problems[0].message.contains(said), "{preview:?}");
        assert!(harness.run("redis.restore", params).await.unwrap_err().message.contains(said));
    }
    assert_eq!(keys(&redis), 1);

    let replica = Redis::start(&["--replicaof", "127.0.0.1", &redis.port.to_string()]);
    std::fs::create_dir_all(replica.file("store")).unwrap();
    std::fs::copy(redis.file("store/good.rdb"), replica.file("store/good.rdb")).unwrap();
    let failure = replica.harness().run("redis.restore", params(&replica)).await.unwrap_err();
    assert!(failure.message.contains("is a replica"), "{failure}");
}

#[tokio::test]
async fn a_stop_that_does_not_stop_changes_nothing() {
    let (redis, harness) = damaged(&[]).await;
    let mut params = params(&redis);
    params["within"] = "300ms".into();
    params["service"]["stop"] = json!(["true"]);
    let failure = harness.run("redis.restore", params.clone()).await.unwrap_err();
    assert!(failure.message.contains("still answers") && !failure.transient, "{failure}");
    params["service"]["stop"] = json!(["false"]);
    assert!(harness.run("redis.restore", params).await.unwrap_err().message.starts_with("`false`"));
    assert_eq!(keys(&redis), 1);
    assert!(!redis.files().iter().any(|name| name.contains("before-")));
}

#[tokio::test]
async fn killed_and_run_again() {
    let (redis, harness) = damaged(&["--appendonly", "yes"]).await;
    // The snapshot's note is the first. The file is fetched by then; the server goes down after it.
    harness.run_and_kill_at_note("redis.restore", params(&redis), 2).await;
    assert!(matches!(harness.after_kill("redis.restore", params(&redis)).await, AfterKill::RunAgain { .. }));
    run(&redis.stop_argv());
    redis.wait_down();
    harness.run("redis.restore", params(&redis)).await.unwrap();
    assert_eq!(keys(&redis), 300);
    // Killed at the very end: all of it once more, and the first old data is what is kept.
    harness.run("redis.restore", params(&redis)).await.unwrap();
    assert_eq!(keys(&redis), 300);
    let kept = redis.files().iter().filter(|name| name.contains("before-")).count();
    assert_eq!(kept, 2, "{:?}", redis.files());
    survives_a_restart(&redis);
}
