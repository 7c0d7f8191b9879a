//! `wait_ready`, `create_database`, `drop_database`.

use std::time::Duration;

use lifeboat::step::effect::Resource;
use lifeboat::step::world::{Fact, World};
use lifeboat::step::{Action, AfterKill, Certainty};
use serde_json::json;

use crate::support::{Databases, Harness, connect, postgres, postgres_url, sql, unique, until, url_with, value};

const CREATE: &str = "postgres.create_database";
const DROP: &str = "postgres.drop_database";

async fn exists(name: &str) -> bool {
    value("postgres", &format!("SELECT 1 FROM pg_database WHERE datname = '{name}'")).await.is_some()
}

#[tokio::test]
async fn wait_ready_waits_for_a_server_and_says_its_version() {
    let harness = Harness::new();
    let params = json!({ "target": "db" });
    let preview = harness.preview("postgres.wait_ready", params.clone(), &World::default()).await;
    assert_eq!((preview.action, preview.certainty), (Action::Read, Certainty::Observed), "{preview:?}");
    let done = harness.run("postgres.wait_ready", params).await.unwrap();
    assert_eq!(done.outputs["version"], preview.outputs["version"]);
}

#[tokio::test]
async fn wait_ready_gives_up_in_time_on_nobody_and_at_once_on_a_wrong_password() {
    let nobody = Harness::with([("db", postgres("postgres://x:y@127.0.0.1:1/postgres"))]);
    let params = json!({ "target": "db", "within": "600ms" });
    let failure = nobody.run("postgres.wait_ready", params.clone()).await.unwrap_err();
    assert!(failure.transient && failure.message.contains("not ready within 600ms"), "{failure}");
    let preview = nobody.preview("postgres.wait_ready", params, &World::default()).await;
    assert!(
        preview.action == Action::Read && preview.problems.iter().all(|problem| !problem.blocks),
        "{preview:?}"
    );

    let url = url_with(&postgres_url(), Some(("postgres", "not-the-password")), "postgres");
    let wrong = Harness::with([("db", postgres(&url))]);
    let started = std::time::Instant::now();
    let failure = wrong.run("postgres.wait_ready", json!({ "target": "db" })).await.unwrap_err();
    assert!(!failure.transient && !failure.message.contains("not-the-password"), "{failure}");
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn create_makes_a_database_once() {
    let (harness, names) = (Harness::new(), Databases::new("create"));
    let name = names.name("new");
    let params = json!({ "target": "db", "database": name, "encoding": "UTF8", "locale": "C" });
    let preview = harness.preview(CREATE, params.clone(), &World::default()).await;
    assert_eq!((preview.action, preview.certainty), (Action::Create, Certainty::Observed), "{preview:?}");
    let done = harness.run(CREATE, params.clone()).await.unwrap();
    let oid = value("postgres", &format!("SELECT oid FROM pg_database WHERE datname = '{name}'")).await.unwrap();
    assert_eq!(done.outputs["oid"].to_string(), oid);

    // An attempt whose answer was lost is recognised; another step's isn't taken for its own.
    assert_eq!(harness.run(CREATE, params.clone()).await.unwrap().outputs["oid"].to_string(), oid);
    let another = Harness::new();
    let failure = another.run(CREATE, params.clone()).await.unwrap_err();
    assert!(!failure.transient && failure.message.contains("it exists"), "{failure}");
    assert_eq!(another.preview(CREATE, params, &World::default()).await.action, Action::Blocked);
    let keep = json!({ "target": "db", "database": name, "if_exists": "keep" });
    assert_eq!(another.preview(CREATE, keep.clone(), &World::default()).await.action, Action::None);
    another.run(CREATE, keep).await.unwrap();
}

#[tokio::test]
async fn create_is_foreseen_after_a_drop_and_blocked_for_a_role_that_may_not() {
    let (harness, names) = (Harness::new(), Databases::new("foresee"));
    let name = names.create("db", "").await;
    let mut world = World::default();
    world.foretell(Resource::database("db", &name), Fact::Absent, &"drop".into());
    let params = json!({ "target": "db", "database": name });
    let preview = harness.preview(CREATE, params.clone(), &world).await;
    assert_eq!((preview.action, preview.certainty), (Action::Create, Certainty::Assumed), "{preview:?}");
    let offline = harness.preview_offline(CREATE, params, &world).await;
    assert_eq!((offline.action, offline.certainty), (Action::Create, Certainty::Assumed));

    let role = unique("role");
    sql("postgres", &format!("CREATE ROLE {role} LOGIN PASSWORD 'pw'")).await;
    let limited = Harness::with([("db", postgres(&url_with(&postgres_url(), Some((&role, "pw")), "postgres")))]);
    let params =
        json!({ "target": "db", "database": names.name("x"), "owner": "nobody_there", "template": "none_such" });
    let preview = limited.preview(CREATE, params, &World::default()).await;
    let said: Vec<_> = preview.problems.iter().map(|problem| problem.message.as_str()).collect();
    assert_eq!(said.len(), 3, "{said:?}");
    let drop = limited.preview(DROP, json!({ "target": "db", "database": name }), &World::default()).await;
    assert!(drop.action == Action::Blocked && drop.problems[0].message.contains("does not own"), "{drop:?}");
    let failure = limited.run(DROP, json!({ "target": "db", "database": name })).await.unwrap_err();
    assert!(!failure.transient && failure.message.contains("42501"), "{failure}");
    sql("postgres", &format!("DROP ROLE {role}")).await;
}

#[tokio::test]
async fn a_killed_create_is_asked_of_the_server() {
    let (harness, names) = (Harness::new(), Databases::new("killcreate"));
    let params = json!({ "target": "db", "database": names.name("new") });
    assert!(matches!(harness.after_kill(CREATE, params.clone()).await, AfterKill::DidNotHappen { .. }));
    harness.run_and_kill_at_note(CREATE, params.clone(), 1).await;
    assert!(matches!(harness.after_kill(CREATE, params.clone()).await, AfterKill::DidNotHappen { .. }));
    harness.run(CREATE, params.clone()).await.unwrap();
    let AfterKill::Happened(done) = harness.after_kill(CREATE, params).await else { panic!("it exists") };
    assert!(done.outputs.contains_key("oid"));
}

#[tokio::test]
async fn drop_removes_a_database_and_takes_a_missing_one_as_done() {
    let (harness, names) = (Harness::new(), Databases::new("drop"));
    let name = names.create("db", "CREATE TABLE t (a int)").await;
    let params = json!({ "target": "db", "database": name });
    let preview = harness.preview(DROP, params.clone(), &World::default()).await;
    assert_eq!((preview.action, preview.certainty), (Action::Destroy, Certainty::Observed), "{preview:?}");
    assert!(preview.summary.contains("MiB, 0 sessions"), "{}", preview.summary);
    harness.run(DROP, params.clone()).await.unwrap();
    assert!(!exists(&name).await);
    let fresh = Harness::new();
    assert_eq!(fresh.preview(DROP, params.clone(), &World::default()).await.action, Action::None);
    fresh.run(DROP, params).await.unwrap();
    let strict = json!({ "target": "db", "database": name, "if_missing": "fail" });
    assert_eq!(fresh.preview(DROP, strict.clone(), &World::default()).await.action, Action::Blocked);
    assert!(!fresh.run(DROP, strict).await.unwrap_err().transient);
}

#[tokio::test]
async fn drop_names_who_is_in_the_way_and_force_ends_them() {
    let (harness, names) = (Harness::new(), Databases::new("force"));
    let name = names.create("db", "").await;
    let _idle = connect(&name).await;
    let params = json!({ "target": "db", "database": name });
    let preview = harness.preview(DROP, params.clone(), &World::default()).await;
    assert!(preview.action == Action::Blocked && preview.summary.contains("1 session"), "{preview:?}");
    let failure = harness.run(DROP, params).await.unwrap_err();
    assert!(failure.transient && failure.message.contains("in use by"), "{failure}");
    assert!(exists(&name).await);
    let force = json!({ "target": "db", "database": name, "force": true });
    assert_eq!(harness.preview(DROP, force.clone(), &World::default()).await.action, Action::Destroy);
    harness.run(DROP, force).await.unwrap();
    assert!(!exists(&name).await);
}

#[tokio::test]
async fn a_killed_drop_is_told_by_the_oid() {
    let (harness, names) = (Harness::new(), Databases::new("killdrop"));
    let name = names.create("db", "").await;
    let params = json!({ "target": "db", "database": name });
    harness.run_and_kill_at_note(DROP, params.clone(), 1).await;
    assert!(matches!(harness.after_kill(DROP, params.clone()).await, AfterKill::DidNotHappen { .. }));

    // Half dropped, as a server that stopped in the middle leaves it.
    sql("postgres", &format!("UPDATE pg_database SET datconnlimit = -2 WHERE datname = '{name}'")).await;
    assert!(matches!(harness.after_kill(DROP, params.clone()).await, AfterKill::Partly { .. }));
    harness.run(DROP, params.clone()).await.unwrap();
    assert!(matches!(harness.after_kill(DROP, params.clone()).await, AfterKill::Happened(_)));

    // Another database of that name, made since, isn't this step's to drop.
    sql("postgres", &format!("CREATE DATABASE {name}")).await;
    assert!(matches!(harness.after_kill(DROP, params.clone()).await, AfterKill::Happened(_)));
    harness.run(DROP, params).await.unwrap();
    assert!(exists(&name).await);
}

#[tokio::test]
async fn the_servers_own_databases_are_never_dropped() {
    let harness = Harness::new();
    for name in ["postgres", "template1"] {
        let info = lifeboat::step::find(DROP).unwrap();
        let step = (info.parse)(json!({ "target": "db", "database": name })).unwrap();
        let mut found = lifeboat::step::Findings::default();
        step.check(&mut found);
        assert_eq!(found.found.len(), 1, "{name}");
        assert!(step.run(&harness.next_attempt()).await.is_err(), "{name}");
    }
    assert!(exists("postgres").await);
}

#[tokio::test]
async fn cancelling_ends_what_the_server_does() {
    let harness = Harness::new();
    let server = harness.next_attempt().services.postgres("db").unwrap();
    let session = server.connect(None).await.unwrap();
    let pid: i32 = session.row("ask", "SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let sleeping = tokio::spawn(async move { session.batch("sleep", "SELECT pg_sleep(60)").await });
    let active = format!("SELECT 1 FROM pg_stat_activity WHERE pid = {pid} AND state = 'active'");
    until("the statement runs", || async { value("postgres", &active).await.is_some() }).await;
    harness.cancel.cancel();
    let failure = tokio::time::timeout(Duration::from_secs(8), sleeping).await.unwrap().unwrap().unwrap_err();
    assert!(failure.message.contains("cancelled"), "{failure}");
    let there = format!("SELECT 1 FROM pg_stat_activity WHERE pid = {pid}");
    until("the session is gone", || async { value("postgres", &there).await.is_none() }).await;
}
