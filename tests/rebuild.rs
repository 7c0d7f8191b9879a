//! Scenario 3: everything is gone but the backups. Real PostgreSQL, Redis and the service, in containers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic; clippy knows only functions marked as tests"
)]

mod stage;

use lifeboat::sandbox::seed::fingerprints;
use lifeboat::secret::Redactor;
use lifeboat::service::dns::{Kind, Server};
use lifeboat::service::{Services, Target};
use serde_json::{Value, json};
use stage::{DATABASE, PASSWORD, Stage, read, said};

const REBUILD: [&str; 7] =
    ["run", "plans/complete-service-failure.yaml", "--env", "rebuilt", "--yes", "-i", "balancer=true"];

#[tokio::test(flavor = "multi_thread")]
async fn everything_comes_back_from_backups() {
    let stage = Stage::with_images(500, &json!({}), true);
    let whole = stage.fingerprints(DATABASE).await;
    let redis = stage.target("redis")["redis"]["url"].as_str().unwrap().to_owned();
    let client = redis::Client::open(redis).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let _: () = redis::cmd("SET").arg("limit:login").arg("7").query_async(&mut connection).await.unwrap();
    for plan in ["daily-backup", "redis-backup", "jwks-backup"] {
        stage.done(&["run", &format!("plans/{plan}.yaml"), "--env", "test", "--yes"]);
    }
    stage.lose_everything();

    // All of it is foreseen, though nothing of the new place is there yet.
    let dry = stage.run(&[&REBUILD[..], &["--dry-run"]].concat());
    assert_eq!(dry.status.code(), Some(0), "{}", said(&dry));

    stage.killed_at(&REBUILD, "provision-database");
    stage.killed_at(&["resume", "--yes"], "restore");
    stage.killed_at(&["resume", "--yes"], "restore-redis");
    stage.killed_at(&["resume", "--yes"], "provision-service");
    stage.killed_at(&["resume", "--yes"], "point");
    let output = stage.run(&["resume", "--yes"]);
    assert!(output.status.success(), "{}", said(&output));

    let url = stage.target_of("rebuilt", "db")["postgres"]["url"].as_str().unwrap().to_owned();
    let target: Target = serde_json::from_value(json!({ "postgres": { "url": url } })).unwrap();
    let services = Services::new([("db".to_owned(), target)].into(), Redactor::default());
    let session = services.postgres("db").unwrap().connect(Some(DATABASE)).await.unwrap();
    assert_eq!(fingerprints(&session).await.unwrap(), whole, "every row is back");
    let url = stage.target_of("rebuilt", "redis")["redis"]["url"].as_str().unwrap().to_owned();
    let client = redis::Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let limit: String = redis::cmd("GET").arg("limit:login").query_async(&mut connection).await.unwrap();
    assert_eq!(limit, "7");

    let report: Value = serde_json::from_str(&stage.done(&["report", "--format", "json"])).unwrap();
    assert_eq!(
        (&report["recovery"]["rto"]["met"], &report["recovery"]["rpo"]["met"]),
        (&json!(true), &json!(true))
    );
    let journal = read(&stage.journals().pop().unwrap());
    assert!(!journal.contains(PASSWORD), "no secret is in the journal");

    let server = stage.target("dns")["dns"]["server"].as_str().unwrap().to_owned();
    let led = Server::at(&server).unwrap().ask("auth.stage.test", Kind::A).await.unwrap().records();
    assert_eq!(led.shown(), "127.0.0.2", "clients are led here");
    assert!(stage.path("balanced").exists(), "the load balancer was told");
    let mails = std::fs::read_dir(stage.path(".lifeboat/sandboxes/test/mail/new")).unwrap();
    let mails: Vec<String> = mails.map(|mail| read(&mail.unwrap().path())).collect();
    assert!(mails.iter().any(|mail| mail.contains("rebuilt: succeeded")), "{mails:?}");

    // Once more: what is there is in the way, and nothing is touched.
    let again = stage.run(&REBUILD);
    assert_eq!(again.status.code(), Some(3), "{}", said(&again));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_services_secret_the_keys_are_worth_nothing() {
    let stage = Stage::with_images(100, &json!({}), true);
    stage.back_up();
    stage.lose_everything();
    let wrong = [&REBUILD[..], &["-i", "auth_secret=forgotten-and-guessed", "-i", "redis=false"]].concat();
    // A minute is given for a token: the test has seconds.
    let plan = stage.path("plans/complete-service-failure.yaml");
    std::fs::write(&plan, read(&plan).replace("within: 1m", "within: 2s")).unwrap();
    let output = stage.run(&wrong);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let words = said(&output).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("encrypted with another secret"), "{words}");
    assert!(!words.contains("forgotten-and-guessed"), "{words}");
    let server = stage.target("dns")["dns"]["server"].as_str().unwrap().to_owned();
    let led = Server::at(&server).unwrap().ask("auth.stage.test", Kind::A).await.unwrap().records();
    assert_eq!(led.shown(), "127.0.0.1", "nobody is led to a service that can't sign");
}
