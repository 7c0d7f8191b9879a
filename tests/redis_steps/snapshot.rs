//! `redis.snapshot`: saved, joined, refused, failed, killed.

use std::time::{Duration, SystemTime};

use lifeboat::step::world::World;
use lifeboat::step::{Action, AfterKill, Certainty};
use serde_json::{Value, json};

use crate::server::Redis;

fn params() -> Value {
    json!({ "target": "cache", "to": { "storage": "store", "path": "cache.rdb" } })
}

/// Each key takes that long to save.
const SLOW: [&str; 2] = ["--rdb-key-save-delay", "20000"];

fn saves(redis: &Redis) -> u64 {
    let info: String = redis.ask(&["INFO", "persistence"]);
    let line = info.lines().find_map(|line| line.strip_prefix("rdb_saves:")).unwrap();
    line.trim().parse().unwrap()
}

#[tokio::test]
async fn saved_whole_and_told_what_is_in_it() {
    let redis = Redis::start(&[]);
    redis.fill(500);
    let harness = redis.harness();
    let preview = harness.preview("redis.snapshot", params(), &World::default()).await;
    assert_eq!((preview.action, preview.certainty), (Action::Create, Certainty::Observed), "{preview:?}");
    assert_eq!((saves(&redis), redis.file("dump.rdb").exists()), (0, false), "a preview saves nothing");

    let done = harness.run("redis.snapshot", params()).await.unwrap();
    assert_eq!((&done.outputs["path"], &done.outputs["keys"]), (&json!("cache.rdb"), &json!(500)));
    let saved = std::fs::read(redis.file("store/cache.rdb")).unwrap();
    assert!(saved.starts_with(b"REDIS"));
    assert_eq!(done.outputs["bytes"], saved.len());
    assert_eq!(saves(&redis), 1);
    let manifest = std::fs::read(redis.file("store/cache.rdb.object.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&manifest).unwrap()["count"], 500);

    // What is there is kept.
    let preview = harness.preview("redis.snapshot", params(), &World::default()).await;
    assert_eq!(preview.action, Action::Blocked);
    let other = redis.harness();
    let failure = other.run("redis.snapshot", params()).await.unwrap_err();
    assert!(failure.message.contains("is there already") && !failure.transient, "{failure}");
    assert!(matches!(other.after_kill("redis.snapshot", params()).await, AfterKill::CannotTell { .. }));
    assert_eq!(std::fs::read(redis.file("store/cache.rdb")).unwrap(), saved);
}

#[tokio::test]
async fn a_save_that_runs_is_joined_or_waited_for() {
    for (join, saved) in [(true, 1), (false, 2)] {
        let redis = Redis::start(&SLOW);
        redis.fill(40);
        redis.ask::<String>(&["BGSAVE"]);
        let mut params = params();
        params["join"] = join.into();
        let harness = redis.harness();
        let done = harness.run("redis.snapshot", params).await.unwrap();
        assert_eq!(done.outputs["keys"], 40);
        assert_eq!(saves(&redis), saved);
        assert_eq!(harness.journal.log_text().contains("runs already"), join);
    }
}

#[tokio::test]
async fn a_save_waits_for_the_rewrite_of_the_append_only_file() {
    let redis = Redis::start(&SLOW);
    redis.fill(40);
    redis.ask::<String>(&["CONFIG", "SET", "appendonly", "yes"]);
    let harness = redis.harness();
    let done = harness.run("redis.snapshot", params()).await.unwrap();
    assert_eq!((&done.outputs["keys"], saves(&redis)), (&json!(40), 1));
    assert!(harness.journal.log_text().contains("waits for the rewrite"), "{}", harness.journal.log_text());
}

#[tokio::test]
async fn a_save_that_fails_is_no_snapshot() {
    let redis = Redis::start(&[]);
    redis.fill(5);
    // A folder stands where the file must go.
    std::fs::create_dir_all(redis.file("dump.rdb/full")).unwrap();
    let failure = redis.harness().run("redis.snapshot", params()).await.unwrap_err();
    assert!(failure.message.contains("failed to save: status err") && !failure.transient, "{failure}");
    assert!(!redis.file("store/cache.rdb").exists());
}

#[tokio::test]
async fn a_slow_save_is_not_waited_for_without_end() {
    let redis = Redis::start(&SLOW);
    redis.fill(200);
    let mut params = params();
    params["within"] = "300ms".into();
    let failure = redis.harness().run("redis.snapshot", params).await.unwrap_err();
    assert!(failure.message.contains("did not save within 300ms") && failure.transient, "{failure}");
}

#[tokio::test]
async fn a_folder_that_is_elsewhere_is_refused() {
    let redis = Redis::start(&[]);
    redis.fill(5);
    let harness = redis.harness();
    let mut params = params();
    params["data_dir"] = "/no/such/folder".into();
    let failure = harness.run("redis.snapshot", params.clone()).await.unwrap_err();
    assert!(failure.message.contains("no folder /no/such/folder") && !failure.transient, "{failure}");
    assert!(failure.help.unwrap().contains("data_dir"));
    assert_eq!(saves(&redis), 0, "it was seen before the save");
    assert_eq!(harness.preview("redis.snapshot", params.clone(), &World::default()).await.action, Action::Blocked);

    // A file of that name that the server didn't write.
    let other = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(other.path().join("dump.rdb")).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_mins(1)).unwrap();
    params["data_dir"] = other.path().to_str().into();
    let failure = harness.run("redis.snapshot", params).await.unwrap_err();
    assert!(failure.message.contains("is older than the save") && !failure.transient, "{failure}");
}

#[tokio::test]
async fn killed_before_and_after_it_was_published() {
    let redis = Redis::start(&[]);
    redis.fill(30);
    let harness = redis.harness();
    harness.run_and_kill_at_note("redis.snapshot", params(), 1).await;
    assert!(matches!(harness.after_kill("redis.snapshot", params()).await, AfterKill::RunAgain { .. }));
    harness.run("redis.snapshot", params()).await.unwrap();
    let AfterKill::Happened(done) = harness.after_kill("redis.snapshot", params()).await else {
        panic!("it is there")
    };
    assert_eq!(done.outputs["keys"], 30);

    std::fs::remove_file(redis.file("store/cache.rdb.object.json")).unwrap();
    assert!(matches!(harness.after_kill("redis.snapshot", params()).await, AfterKill::Partly { .. }));
    let before = saves(&redis);
    harness.run("redis.snapshot", params()).await.unwrap();
    assert_eq!(saves(&redis), before, "only the manifest was missing");
    assert!(redis.file("store/cache.rdb.object.json").exists());
    let files = std::fs::read_dir(redis.file("store")).unwrap().count();
    assert_eq!(files, 2, "no part of a killed attempt is left");
}
