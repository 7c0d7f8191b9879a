//! `postgres.backup`.

use std::time::{Duration, Instant};

use lifeboat::step::world::World;
use lifeboat::step::{Action, AfterKill, Certainty};
use serde_json::{Value, json};

use crate::fixture::{CONTENT, Place, ROWS, TABLES, fake_tool, likeness};
use crate::support::{connect, sql, value};

const BACKUP: &str = "postgres.backup";
const RESTORE: &str = "postgres.restore";

fn manifest(place: &Place, path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(place.path(&format!("{path}.manifest.json"))).unwrap()).unwrap()
}

#[tokio::test]
async fn a_backup_says_exactly_what_is_in_it_while_others_write() {
    let place = Place::new("bk_busy");
    let database = place.names.create("live", CONTENT).await;
    let writer = {
        let database = database.clone();
        tokio::spawn(async move {
            let client = connect(&database).await;
            for id in 10_000.. {
                client.execute("INSERT INTO auth.users (id) VALUES ($1)", &[&i64::from(id)]).await.unwrap();
            }
        })
    };
    let params = json!({ "target": "db", "database": database, "jobs": 2, "to": { "storage": "store", "path": "daily/a_20240201T100000Z.sql.gz" } });
    let preview = place.harness.preview(BACKUP, params.clone(), &World::default()).await;
    assert_eq!((preview.action, preview.certainty), (Action::Create, Certainty::Observed), "{preview:?}");
    let done = place.harness.run(BACKUP, params.clone()).await.unwrap();
    writer.abort();
    let manifest = manifest(&place, "daily/a_20240201T100000Z.sql.gz");
    let users = manifest["tables"]["auth.users"].as_u64().unwrap();
    assert!(users >= 3000);
    assert_eq!(manifest["tables"][r#"auth."we""ird.t""#], 2);
    assert_eq!(manifest["database"], database);
    assert_eq!(done.outputs["rows"], manifest["rows"]);
    assert_eq!(done.outputs["tables"], TABLES);
    assert!(manifest["wal_lsn"].as_str().unwrap().contains('/'));

    // It restores to exactly the manifest's rows, though the live table has more by now.
    let restored = place.names.name("restored");
    let from = json!({ "storage": "store", "path": done.outputs["path"], "database": database });
    let again = json!({ "target": "db", "database": restored, "create": true, "from": from });
    let back = place.harness.run(RESTORE, again).await.unwrap();
    assert_eq!(back.outputs["rows"], manifest["rows"]);
    assert_eq!(back.outputs["taken_at"], manifest["taken_at"]);
    assert_eq!(value(&restored, "SELECT count(*) FROM auth.users").await.unwrap(), users.to_string());

    let preview = place.harness.preview(BACKUP, params.clone(), &World::default()).await;
    assert_eq!(preview.action, Action::Blocked, "nothing is overwritten: {preview:?}");
    let other = Place::new("bk_other");
    std::fs::create_dir(other.path("daily")).unwrap();
    std::fs::write(other.path("daily/a_20240201T100000Z.sql.gz"), "precious").unwrap();
    let failure = other.harness.run(BACKUP, params).await.unwrap_err();
    assert!(failure.message.contains("already has an object"), "{failure}");
    assert_eq!(std::fs::read(other.path("daily/a_20240201T100000Z.sql.gz")).unwrap(), b"precious");
}

#[tokio::test]
async fn every_format_comes_back_the_same() {
    let place = Place::new("bk_formats");
    let database = place.names.create("live", CONTENT).await;
    let before = likeness(&database);
    for (at, path) in ["a.sql", "a.sql.zst", "a.dump", "a.dump.zst", "a.dump.gz"].into_iter().enumerate() {
        let params = json!({ "target": "db", "database": database, "to": { "storage": "store", "path": path }, "globals": at == 0 });
        let done = place.harness.run(BACKUP, params).await.unwrap();
        assert_eq!(done.outputs["rows"], ROWS, "{path}");
        let restored = place.names.name(&format!("r{at}"));
        let params = json!({ "target": "db", "database": restored, "create": true, "from": { "storage": "store", "path": path } });
        let back = place.harness.run(RESTORE, params).await.unwrap_or_else(|failure| panic!("{path}: {failure}"));
        assert_eq!((&back.outputs["rows"], &back.outputs["tables"]), (&json!(ROWS), &json!(TABLES)), "{path}");
        assert_eq!(likeness(&restored), before, "{path}");
    }
    let globals = std::fs::read_to_string(place.path("a.sql.globals.sql")).unwrap();
    assert!(globals.contains("CREATE ROLE") && globals.contains("cluster dump complete"));
    assert_eq!(manifest(&place, "a.sql")["globals"]["path"], "a.sql.globals.sql");
}

#[tokio::test]
async fn a_failing_pg_dump_publishes_nothing_and_spares_old_backups() {
    let faults = [
        ("$REAL \"$@\" | head -c 100000; echo 'disk on fire' >&2; exit 1", "exit code 1: disk on fire"),
        ("$REAL \"$@\" | head -c 100000; kill -9 $$", "SIGKILL"),
        ("$REAL \"$@\" | head -c 100000; exit 0", "not whole"),
        ("exit 0", "empty"),
    ];
    for (script, said) in faults {
        let tools = fake_tool("pg_dump", script);
        let place = Place::with_bin_dir("bk_fault", Some(tools.path()));
        let database = place.names.create("live", CONTENT).await;
        std::fs::write(place.path("old.sql.gz"), "an old backup").unwrap();
        let params =
            json!({ "target": "db", "database": database, "to": { "storage": "store", "path": "new.sql.gz" } });
        let failure = place.harness.run(BACKUP, params).await.unwrap_err();
        assert!(failure.message.contains(said), "{script}: {failure}");
        assert_eq!(place.files(), ["old.sql.gz"], "{script}");
    }
    // An archive that is cut looks well from outside: it is read back.
    let tools = fake_tool("pg_dump", "$REAL \"$@\" | head -c 10000; exit 0");
    let place = Place::with_bin_dir("bk_cut", Some(tools.path()));
    let database = place.names.create("live", CONTENT).await;
    let params = json!({ "target": "db", "database": database, "to": { "storage": "store", "path": "new.dump" } });
    let failure = place.harness.run(BACKUP, params).await.unwrap_err();
    assert!(failure.message.contains("read the backup back"), "{failure}");
    assert_eq!(place.files(), [""; 0]);
}

#[tokio::test]
async fn what_a_killed_attempt_left_is_known_and_cleared() {
    let place = Place::new("bk_kill");
    let database = place.names.create("live", CONTENT).await;
    let params = json!({ "target": "db", "database": database, "to": { "storage": "store", "path": "a.dump" } });
    place.harness.run_and_kill_at_note(BACKUP, params.clone(), 1).await;
    assert!(place.files().iter().all(|file| file.starts_with('.')), "{:?}", place.files());
    let after = place.harness.after_kill(BACKUP, params.clone()).await;
    assert!(matches!(after, AfterKill::DidNotHappen { .. }), "{after:?}");
    let done = place.harness.run(BACKUP, params.clone()).await.unwrap();
    assert_eq!(place.files(), ["a.dump", "a.dump.manifest.json"]);
    assert_eq!(place.harness.after_kill(BACKUP, params.clone()).await, AfterKill::Happened(done));

    // Killed between the object and its manifest: what it published is its own to remove.
    std::fs::remove_file(place.path("a.dump.manifest.json")).unwrap();
    let after = place.harness.after_kill(BACKUP, params.clone()).await;
    assert!(matches!(after, AfterKill::Partly { .. }), "{after:?}");
    place.harness.run(BACKUP, params.clone()).await.unwrap();

    // Somebody else's object of that name is not.
    std::fs::remove_file(place.path("a.dump.manifest.json")).unwrap();
    std::fs::write(place.path("a.dump"), "precious").unwrap();
    let failure = place.harness.run(BACKUP, params).await.unwrap_err();
    assert!(failure.message.contains("already has"), "{failure}");
    assert_eq!(std::fs::read(place.path("a.dump")).unwrap(), b"precious");
}

#[tokio::test]
async fn cancelling_stops_everything() {
    let tools = fake_tool("pg_dump", "$REAL \"$@\" | head -c 100000; sleep 120");
    let place = Place::with_bin_dir("bk_cancel", Some(tools.path()));
    let database = place.names.create("live", CONTENT).await;
    let step = place.harness.step(
        BACKUP,
        json!({ "target": "db", "database": database, "to": { "storage": "store", "path": "a.sql" } }),
    );
    let cx = place.harness.next_attempt();
    let running = tokio::spawn(async move { step.run(&cx).await });
    crate::support::until("it writes", || async { place.files().iter().any(|file| file.ends_with(".partial")) })
        .await;
    let started = Instant::now();
    place.harness.cancel.cancel();
    let failure = running.await.unwrap().unwrap_err();
    assert!(failure.transient && started.elapsed() < Duration::from_secs(10), "{failure}");
    assert_eq!(place.files(), [""; 0]);
}

#[tokio::test]
async fn parts_of_a_database_and_mistakes() {
    let place = Place::new("bk_parts");
    let database = place.names.create("live", CONTENT).await;
    let backup = |path: &str, more: Value| {
        let mut params =
            json!({ "target": "db", "database": database, "to": { "storage": "store", "path": path } });
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        params
    };
    let done =
        place.harness.run(BACKUP, backup("t.dump", json!({ "tables": [r#"auth."we""ird.t""#] }))).await.unwrap();
    assert_eq!((&done.outputs["rows"], &done.outputs["tables"]), (&json!(2), &json!(1)));
    let done = place.harness.run(BACKUP, backup("s.sql", json!({ "schemas": ["public"] }))).await.unwrap();
    assert_eq!((&done.outputs["rows"], &done.outputs["tables"]), (&json!(0), &json!(1)));
    let done =
        place.harness.run(BACKUP, backup("e.dump.zst", json!({ "exclude": ["auth.orders_2024"] }))).await.unwrap();
    assert_eq!(done.outputs["rows"], ROWS - 50);
    assert_eq!(manifest(&place, "e.dump.zst")["partial"], true);
    let failure =
        place.harness.run(BACKUP, backup("x.dump", json!({ "tables": ["auth.nobody"] }))).await.unwrap_err();
    assert!(failure.message.contains("no table auth.nobody"), "{failure}");

    let findings = |params: Value| crate::storages::findings(BACKUP, params);
    assert!(findings(backup("x", json!({ "format": "directory" })))[0].contains("directory"));
    assert!(findings(backup("x.gz", json!({ "compression": "zstd" })))[0].contains("ends as gzip"));
    assert!(findings(backup("x.dump", json!({ "jobs": 2 })))[0].contains("over one connection"));
    assert!(findings(backup("../x", json!({})))[0].contains("`..`"));
    assert!(findings(backup("/x", json!({})))[0].contains("absolute"));
}

#[tokio::test]
async fn rows_that_the_role_cant_see_block_the_preview() {
    let place = Place::new("bk_rls");
    let database = place.names.create("live", CONTENT).await;
    let role = crate::fixture::role("rls").await;
    sql(
        &database,
        &format!(
            "ALTER ROLE {role} LOGIN PASSWORD 'pw'; GRANT USAGE ON SCHEMA auth TO {role}; \
             GRANT SELECT ON ALL TABLES IN SCHEMA auth, public TO {role}; GRANT SELECT ON ALL SEQUENCES IN SCHEMA auth TO {role}; \
             ALTER TABLE auth.users ENABLE ROW LEVEL SECURITY"
        ),
    )
    .await;
    let harness = place.harness_of(&role, "pw");
    let params = json!({ "target": "db", "database": database, "to": { "storage": "store", "path": "a.dump" } });
    let preview = harness.preview(BACKUP, params.clone(), &World::default()).await;
    assert!(
        preview.problems.iter().any(|problem| problem.blocks && problem.message.contains("auth.users")),
        "{preview:?}"
    );
    let failure = harness.run(BACKUP, params).await.unwrap_err();
    assert!(
        failure.message.contains("row-level security") || failure.message.contains("row security"),
        "{failure}"
    );
    assert_eq!(place.files(), [""; 0]);
    sql(&database, &format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}
