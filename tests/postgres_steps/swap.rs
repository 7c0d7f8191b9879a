//! `swap_databases`, with the clients that a real database has.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lifeboat::step::effect::Resource;
use lifeboat::step::world::{Fact, World};
use lifeboat::step::{Action, AfterKill, Certainty};
use serde_json::{Value, json};

use crate::support::{
    Databases, Harness, connect, connect_to, postgres, postgres_url, sql, unique, until, url_with, value,
};

const SWAP: &str = "postgres.swap_databases";

struct Pair {
    names: Databases,
    live: String,
    replacement: String,
    kept: String,
}

impl Pair {
    async fn new(test: &str) -> Self {
        let names = Databases::new(test);
        let live = names.create("live", "CREATE TABLE who (name text); INSERT INTO who VALUES ('damaged')").await;
        let replacement =
            names.create("new", "CREATE TABLE who (name text); INSERT INTO who VALUES ('restored')").await;
        let kept = names.name("old");
        Self { names, live, replacement, kept }
    }

    fn params(&self) -> Value {
        json!({ "target": "db", "live": self.live, "replacement": self.replacement, "keep": self.kept })
    }

    async fn who(database: &str) -> String {
        value(database, "SELECT name FROM public.who").await.unwrap_or_default()
    }

    async fn open(database: &str) -> bool {
        let query = format!("SELECT datallowconn FROM pg_database WHERE datname = '{database}'");
        value("postgres", &query).await.as_deref() == Some("t")
    }

    async fn assert_swapped(&self) {
        assert_eq!(Self::who(&self.live).await, "restored");
        assert_eq!(Self::who(&self.kept).await, "damaged");
        let gone = format!("SELECT 1 FROM pg_database WHERE datname = '{}'", self.replacement);
        assert_eq!(value("postgres", &gone).await, None);
    }

    async fn assert_untouched(&self) {
        assert!(Self::open(&self.live).await && Self::open(&self.replacement).await, "the fence is open");
        assert_eq!(Self::who(&self.live).await, "damaged");
        assert_eq!(Self::who(&self.replacement).await, "restored");
    }
}

/// Databases go before the roles that own them.
async fn drop_all(databases: &[&str], roles: &[&str]) {
    for database in databases {
        sql("postgres", &format!("DROP DATABASE {database} WITH (FORCE)")).await;
    }
    for role in roles {
        sql("postgres", &format!("DROP ROLE {role}")).await;
    }
}

#[tokio::test]
async fn a_swap_wins_against_idle_reconnecting_and_superuser_clients() {
    let (harness, pair) = (Harness::new(), Pair::new("swap").await);
    let role = unique("app");
    sql("postgres", &format!("CREATE ROLE {role} LOGIN PASSWORD 'pw'")).await;
    let idle = connect_to(&url_with(&postgres_url(), Some((&role, "pw")), &pair.live)).await.unwrap();
    let superuser = connect(&pair.live).await;
    superuser.batch_execute("BEGIN; SELECT 1").await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    // A pool that is back at once whenever it is thrown out.
    let pool = {
        let (stop, url) = (stop.clone(), url_with(&postgres_url(), Some((&role, "pw")), &pair.live));
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                if let Ok(client) = connect_to(&url).await {
                    while !stop.load(Ordering::Relaxed) && client.simple_query("SELECT 1").await.is_ok() {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
            }
        })
    };
    let busy = format!("SELECT 1 FROM pg_stat_activity WHERE datname = '{}' HAVING count(*) > 2", pair.live);
    until("all clients are connected", || async { value("postgres", &busy).await.is_some() }).await;

    let preview = harness.preview(SWAP, pair.params(), &World::default()).await;
    assert_eq!((preview.action, preview.certainty), (Action::Change, Certainty::Observed), "{preview:?}");
    assert!(preview.summary.contains("3 sessions"), "{}", preview.summary);
    let done = harness.run(SWAP, pair.params()).await.unwrap();
    assert_eq!(done.outputs["kept"], pair.kept);
    stop.store(true, Ordering::Relaxed);
    pool.await.unwrap();
    assert!(idle.is_closed() && superuser.is_closed());
    pair.assert_swapped().await;
    // Again is nothing more.
    harness.run(SWAP, pair.params()).await.unwrap();
    pair.assert_swapped().await;
    sql("postgres", &format!("DROP ROLE {role}")).await;
}

#[tokio::test]
async fn what_the_old_database_was_to_its_clients_is_carried_over() {
    let (harness, pair) = (Harness::new(), Pair::new("carry").await);
    let (owner, app) = (unique("owner"), unique("app"));
    let (live, kept) = (&pair.live, &pair.kept);
    sql(
        "postgres",
        &format!(
            "CREATE ROLE {owner}; CREATE ROLE {app};
             ALTER DATABASE {live} OWNER TO {owner};
             REVOKE ALL ON DATABASE {live} FROM PUBLIC;
             GRANT CONNECT ON DATABASE {live} TO {app} WITH GRANT OPTION;
             GRANT TEMPORARY ON DATABASE {live} TO {app};
             ALTER DATABASE {live} SET search_path TO \"$user\", auth, \"We,ird\";
             ALTER DATABASE {live} SET statement_timeout TO '7s';
             ALTER DATABASE {live} SET app.tenant TO 'it''s';
             ALTER ROLE {app} IN DATABASE {live} SET work_mem TO '8MB';
             ALTER DATABASE {live} CONNECTION LIMIT 17;
             COMMENT ON DATABASE {live} IS 'the auth database';
             ALTER DATABASE {0} SET work_mem TO '64MB'",
            pair.replacement
        ),
    )
    .await;
    let facts = async |name: &str| {
        value(
            "postgres",
            &format!(
                "SELECT json_build_object('owner', datdba::regrole, 'limit', datconnlimit, 'open', datallowconn,
                   'acl', (SELECT json_agg(a ORDER BY a::text) FROM unnest(datacl) a),
                   'settings', (SELECT json_agg(json_build_array(setrole::regrole, setconfig) ORDER BY setrole)
                                FROM pg_db_role_setting s WHERE s.setdatabase = d.oid))
                 FROM pg_database d WHERE datname = '{name}'"
            ),
        )
        .await
        .unwrap()
    };
    let comment = async |name: &str| {
        let query =
            format!("SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = '{name}'");
        value("postgres", &query).await.unwrap()
    };
    let before = facts(live).await;
    harness.run(SWAP, pair.params()).await.unwrap();
    assert_eq!(facts(live).await, before);
    assert_eq!(facts(kept).await, before, "the kept one is as it was");
    assert_eq!(comment(live).await, "the auth database");
    let marker = comment(kept).await;
    assert!(marker.contains(harness.run.as_str()) && marker.ends_with("the auth database"), "{marker}");
    assert_eq!(value(live, "SHOW search_path").await.unwrap(), "\"$user\", auth, \"We,ird\"");

    // Back again: the old one takes its place as before.
    let back = json!({ "target": "db", "live": live, "replacement": kept, "keep": pair.replacement });
    Harness::new().run(SWAP, back).await.unwrap();
    assert_eq!(facts(live).await, before);
    assert_eq!(Pair::who(live).await, "damaged");
    drop_all(&[live, &pair.replacement], &[&owner, &app]).await;
}

#[tokio::test]
async fn what_even_force_cannot_end_is_named_and_nothing_is_touched() {
    let (harness, pair) = (Harness::new(), Pair::new("culprit").await);
    let gid = unique("gid");
    sql(&pair.live, &format!("BEGIN; INSERT INTO who VALUES ('x'); PREPARE TRANSACTION '{gid}'")).await;
    let preview = harness.preview(SWAP, pair.params(), &World::default()).await;
    let failure = harness.run(SWAP, pair.params()).await.unwrap_err();
    sql(&pair.live, &format!("ROLLBACK PREPARED '{gid}'")).await;
    assert!(preview.action == Action::Blocked && preview.problems[0].message.contains(&gid), "{preview:?}");
    assert!(failure.message.contains(&gid) && failure.help.unwrap().contains("ROLLBACK PREPARED"));
    pair.assert_untouched().await;
}

#[tokio::test]
async fn a_logical_slot_is_named() {
    let (harness, pair) = (Harness::new(), Pair::new("slot").await);
    if value("postgres", "SHOW wal_level").await.as_deref() != Some("logical") {
        return;
    }
    let slot = unique("slot");
    sql(&pair.live, &format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await;
    let failure = harness.run(SWAP, pair.params()).await.unwrap_err();
    sql(&pair.live, &format!("SELECT pg_drop_replication_slot('{slot}')")).await;
    assert!(failure.message.contains(&slot), "{failure}");
    pair.assert_untouched().await;
}

#[tokio::test]
async fn missing_and_taken_names_are_refused() {
    let (harness, pair) = (Harness::new(), Pair::new("names").await);
    let missing =
        json!({ "target": "db", "live": pair.live, "replacement": pair.names.name("none"), "keep": pair.kept });
    assert_eq!(harness.preview(SWAP, missing.clone(), &World::default()).await.action, Action::Blocked);
    assert!(!harness.run(SWAP, missing).await.unwrap_err().transient);
    let taken = pair.names.create("old", "").await;
    assert_eq!(taken, pair.kept);
    assert_eq!(harness.preview(SWAP, pair.params(), &World::default()).await.action, Action::Blocked);
    assert!(harness.run(SWAP, pair.params()).await.unwrap_err().message.contains("already"));
    pair.assert_untouched().await;
}

#[tokio::test]
async fn a_failing_swap_reopens_its_fence() {
    let pair = Pair::new("reopen").await;
    // A role that owns both databases, and may not end the superuser's session on one.
    let role = unique("dba");
    sql("postgres", &format!("CREATE ROLE {role} LOGIN CREATEDB PASSWORD 'pw'")).await;
    for database in [&pair.live, &pair.replacement] {
        sql("postgres", &format!("ALTER DATABASE {database} OWNER TO {role}")).await;
    }
    let harness = Harness::with([("db", postgres(&url_with(&postgres_url(), Some((&role, "pw")), "postgres")))]);
    let superuser = connect(&pair.live).await;
    let preview = harness.preview(SWAP, pair.params(), &World::default()).await;
    assert!(preview.action == Action::Blocked && preview.problems[0].message.contains("superuser"), "{preview:?}");
    let failure = harness.run(SWAP, pair.params()).await.unwrap_err();
    assert!(failure.message.contains("end session"), "{failure}");
    assert!(!superuser.is_closed());
    pair.assert_untouched().await;
    drop(superuser);
    let there = format!("SELECT 1 FROM pg_stat_activity WHERE datname = '{}'", pair.live);
    until("the superuser is gone", || async { value("postgres", &there).await.is_none() }).await;
    harness.run(SWAP, pair.params()).await.unwrap();
    pair.assert_swapped().await;
    drop_all(&[&pair.live, &pair.kept], &[&role]).await;
}

#[tokio::test]
async fn a_kill_before_the_fence_leaves_nothing_to_undo() {
    let (harness, pair) = (Harness::new(), Pair::new("kill1").await);
    assert!(matches!(harness.after_kill(SWAP, pair.params()).await, AfterKill::DidNotHappen { .. }));
    harness.run_and_kill_at_note(SWAP, pair.params(), 1).await;
    assert!(matches!(harness.after_kill(SWAP, pair.params()).await, AfterKill::DidNotHappen { .. }));
    pair.assert_untouched().await;
    harness.run(SWAP, pair.params()).await.unwrap();
    pair.assert_swapped().await;
}

#[tokio::test]
async fn a_kill_before_the_commit_is_rolled_back_and_the_fence_reopened() {
    let (harness, pair) = (Harness::new(), Pair::new("kill2").await);
    harness.run_and_kill_at_note(SWAP, pair.params(), 2).await;
    assert!(!Pair::open(&pair.live).await, "the fence was closed when it died");
    let AfterKill::DidNotHappen { why } = harness.after_kill(SWAP, pair.params()).await else {
        panic!("it was not committed")
    };
    assert!(why.contains("reopened"), "{why}");
    pair.assert_untouched().await;
    harness.run(SWAP, pair.params()).await.unwrap();
    pair.assert_swapped().await;
    assert!(Pair::open(&pair.live).await && Pair::open(&pair.kept).await);
}

#[tokio::test]
async fn a_run_that_goes_on_without_asking_finds_the_fence_and_opens_it_in_the_end() {
    let (harness, pair) = (Harness::new(), Pair::new("kill3").await);
    harness.run_and_kill_at_note(SWAP, pair.params(), 2).await;
    harness.run(SWAP, pair.params()).await.unwrap();
    pair.assert_swapped().await;
}

#[tokio::test]
async fn a_kill_after_the_commit_has_happened() {
    let (harness, pair) = (Harness::new(), Pair::new("kill4").await);
    harness.run(SWAP, pair.params()).await.unwrap();
    let AfterKill::Happened(done) = harness.after_kill(SWAP, pair.params()).await else { panic!("it happened") };
    assert_eq!(done.outputs["kept"], pair.kept);
    // Somebody moved things about since: nobody can tell.
    sql("postgres", &format!("ALTER DATABASE {} RENAME TO {}", pair.kept, pair.names.name("moved"))).await;
    assert!(matches!(harness.after_kill(SWAP, pair.params()).await, AfterKill::CannotTell { .. }));
}

#[tokio::test]
async fn a_cancelled_swap_reopens_its_fence() {
    let (harness, pair) = (Harness::new(), Pair::new("cancel").await);
    // The rename waits for this lock on the database.
    let holder = connect("postgres").await;
    holder.batch_execute(&format!("BEGIN; COMMENT ON DATABASE {} IS 'held'", pair.live)).await.unwrap();
    let step = harness.step(SWAP, pair.params());
    let cx = harness.next_attempt();
    let running = tokio::spawn(async move { step.run(&cx).await });
    until("it has noted", || async { !harness.journal.notes().is_empty() }).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    harness.cancel.cancel();
    let result = tokio::time::timeout(Duration::from_secs(20), running).await.unwrap().unwrap();
    assert!(result.unwrap_err().message.contains("cancelled"));
    holder.batch_execute("ROLLBACK").await.unwrap();
    pair.assert_untouched().await;
}

#[tokio::test]
async fn later_steps_foresee_the_swap() {
    let (harness, pair) = (Harness::new(), Pair::new("world").await);
    let mut world = World::default();
    let preview = harness.preview(SWAP, pair.params(), &world).await;
    for (resource, fact) in preview.facts {
        world.foretell(resource, fact, &"swap".into());
    }
    let ask = async |database: &str| {
        let params = json!({ "target": "db", "database": database, "sql": "SELECT name FROM public.who", "expect": "restored" });
        harness.preview("postgres.query", params, &world).await
    };
    let live = ask(&pair.live).await;
    assert_eq!((live.action, live.certainty), (Action::Read, Certainty::Assumed), "{live:?}");
    assert_eq!(ask(&pair.kept).await.action, Action::Blocked, "it holds what was live");
    assert_eq!(ask(&pair.replacement).await.action, Action::Blocked, "it is gone by then");

    // A replacement that a step before restores.
    let mut world = World::default();
    let rows = Some([("public.who".to_owned(), 7)].into());
    world.foretell(Resource::database("db", &pair.names.name("side")), Fact::Present { rows }, &"restore".into());
    let params =
        json!({ "target": "db", "live": pair.live, "replacement": pair.names.name("side"), "keep": pair.kept });
    let preview = harness.preview(SWAP, params.clone(), &world).await;
    assert_eq!((preview.action, preview.certainty), (Action::Change, Certainty::Assumed), "{preview:?}");
    assert!(preview.facts.iter().any(|(resource, fact)| *resource == Resource::database("db", &pair.live)
        && matches!(fact, Fact::Present { rows: Some(rows) } if rows["public.who"] == 7)));
    let offline = harness.preview_offline(SWAP, params, &World::default()).await;
    assert_eq!((offline.action, offline.certainty), (Action::Change, Certainty::Assumed));
}
