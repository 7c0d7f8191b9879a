//! `redis.check`.

use lifeboat::step::world::World;
use lifeboat::step::{Action, Certainty};
use serde_json::json;

use crate::server::{Redis, target};
use crate::support::Harness;
use crate::support::ports::free_port;

#[tokio::test]
async fn a_server_that_is_well() {
    let redis = Redis::start(&[]);
    redis.fill(7);
    let harness = redis.harness();
    let params = json!({ "target": "cache", "keys": { "min": 7 }, "role": "master", "memory_below": "1GiB" });
    let done = harness.run("redis.check", params.clone()).await.unwrap();
    assert_eq!(done.outputs["keys"], 7);
    assert!(done.summary.unwrap().starts_with("7 keys, master, "));
    let preview = harness.preview("redis.check", params.clone(), &World::default()).await;
    assert_eq!((preview.action, preview.certainty), (Action::Read, Certainty::Observed));
    let preview = harness.preview_offline("redis.check", params, &World::default()).await;
    assert_eq!((preview.action, preview.certainty), (Action::Read, Certainty::Assumed));
}

#[tokio::test]
async fn all_that_is_wrong_is_told() {
    let redis = Redis::start(&[]);
    redis.fill(2);
    let harness = redis.harness();
    let params = json!({ "target": "cache", "keys": { "min": 3 }, "role": "replica", "memory_below": "1KiB" });
    let failure = harness.run("redis.check", params).await.unwrap_err();
    assert!(!failure.transient);
    for wrong in
        ["it has 2 keys, which is not at least 3", "it is a master, not a replica", "not less than 1.0 KiB"]
    {
        assert!(failure.message.contains(wrong), "{failure}");
    }
}

#[tokio::test]
async fn a_replica_is_one() {
    let master = Redis::start(&[]);
    let replica = Redis::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]);
    replica.harness().run("redis.check", json!({ "target": "cache", "role": "replica" })).await.unwrap();
}

#[tokio::test]
async fn nobody_answers() {
    let harness = Harness::with([("cache", target(&format!("redis://:hush-hush@127.0.0.1:{}/0", free_port())))]);
    let failure = harness.run("redis.check", json!({ "target": "cache" })).await.unwrap_err();
    assert!(failure.transient, "{failure}");
    assert!(
        failure.message.contains("connect to cache (127.0.0.1:") && !failure.message.contains("hush"),
        "{failure}"
    );
}

#[tokio::test]
async fn the_password_is_asked_for_and_never_shown() {
    let redis = Redis::start(&["--requirepass", "open-sesame"]);
    let url = |password: &str| format!("redis://:{password}@127.0.0.1:{}/0", redis.port);
    let check = async |url: String| {
        Harness::with([("cache", target(&url))]).run("redis.check", json!({ "target": "cache" })).await
    };
    assert!(check(url("open-sesame")).await.is_ok());
    for wrong in [url("not-so-secret"), redis.url()] {
        let failure = check(wrong).await.unwrap_err();
        assert!(!failure.transient, "{failure}");
        assert!(failure.help.as_deref().unwrap().contains("password"), "{failure}");
        assert!(!failure.message.contains("not-so-secret"), "{failure}");
    }
    let failure = check("redis://:not-so-secret@[127.0.0.1/0".to_owned()).await.unwrap_err();
    assert!(!format!("{failure:?}").contains("secret"), "{failure}");
}
