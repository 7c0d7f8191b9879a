//! Archives, which `pg_restore` loads: side by side, in one transaction, in parts, and failing.

use std::process::Command;

use lifeboat::record::event::ProgressUnit;
use lifeboat::step::AfterKill;
use serde_json::json;

use crate::fixture::{CONTENT, Place, ROWS, fake_tool, likeness, pg_dump, tool};
use crate::restore::{RESTORE, params};
use crate::support::{postgres_url, sql, until, url_with, value};

/// The database as `a.dump`, one file, and as `a.dir`, a folder.
fn archive(place: &Place, database: &str) {
    std::fs::write(place.path("a.dump"), pg_dump(database, &["-Fc"])).unwrap();
    let mut folder = Command::new(tool("pg_dump"));
    folder.args(["-Fd", "-f"]).arg(place.path("a.dir")).arg(url_with(&postgres_url(), None, database));
    assert!(folder.status().unwrap().success());
}

/// Nothing of this run is on the server: no database under a working name, none under its own.
async fn nothing_left(place: &Place, database: &str) {
    let sql = format!(
        "SELECT string_agg(datname, ' ') FROM pg_database WHERE starts_with(datname, 'lifeboat_{}') OR datname = '{database}'",
        place.harness.run
    );
    assert_eq!(value("postgres", &sql).await, None);
}

/// What a database holds of its own.
async fn relations(database: &str) -> String {
    let sql = "SELECT (SELECT count(*) FROM pg_class WHERE relnamespace >= 16384 OR relnamespace = 'public'::regnamespace) \
                 || ' ' || (SELECT count(*) FROM pg_namespace WHERE oid >= 16384)";
    value(database, sql).await.unwrap()
}

#[tokio::test]
async fn archives_come_back_the_same_however_they_are_loaded() {
    let tools = fake_tool("pg_restore", "echo \"$@\" >> $0.calls; exec $REAL \"$@\"");
    let mut place = Place::with_bin_dir("ar_same", Some(tools.path()));
    let database = place.names.create("live", CONTENT).await;
    archive(&place, &database);
    let before = likeness(&database);
    for (at, (path, more, side_by_side)) in [
        ("a.dump", json!({ "create": true }), true),
        ("a.dump", json!({ "create": true, "jobs": 1 }), false),
        ("a.dir", json!({ "create": true }), true),
        ("a.dump", json!({}), false),
        ("a.dir", json!({}), false),
    ]
    .into_iter()
    .enumerate()
    {
        let restored = match more.get("create") {
            Some(_) => place.names.name(&format!("r{at}")),
            None => place.names.create(&format!("r{at}"), "").await,
        };
        place.another_run(Some(tools.path()));
        let done = place.harness.run(RESTORE, params(&restored, path, more.clone())).await.unwrap();
        assert_eq!(done.outputs["rows"], ROWS, "{path} {more}");
        assert_eq!(likeness(&restored), before, "{path} {more}");
        let calls = std::fs::read_to_string(tools.path().join("pg_restore.calls")).unwrap();
        let load = calls.lines().last().unwrap();
        assert_eq!(load.contains("--jobs="), side_by_side, "{path} {more}: {load}");
    }
}

#[tokio::test]
async fn schemas_of_archives() {
    let mut place = Place::new("ar_schemas");
    let more = "CREATE SCHEMA other; CREATE TABLE other.t (a int); INSERT INTO other.t VALUES (1);";
    let database = place.names.create("live", &format!("{CONTENT} {more}")).await;
    archive(&place, &database);
    let mut at = 0;
    for path in ["a.dump", "a.dir"] {
        for more in [json!({ "create": true }), json!({ "create": true, "jobs": 2 }), json!({})] {
            at += 1;
            let restored = match more.get("create") {
                Some(_) => place.names.name(&format!("r{at}")),
                None => place.names.create(&format!("r{at}"), "").await,
            };
            let mut params = params(&restored, path, more.clone());
            params["schemas"] = json!(["auth"]);
            place.another_run(None);
            let done = place.harness.run(RESTORE, params).await.unwrap();
            assert_eq!(
                (&done.outputs["rows"], &done.outputs["tables"]),
                (&json!(ROWS), &json!(3)),
                "{path} {more}"
            );
            let sql = "SELECT string_agg(nspname, ' ' ORDER BY 1) FROM pg_namespace WHERE oid >= 16384";
            assert_eq!(value(&restored, sql).await.unwrap(), "auth", "{path} {more}");
            let keys = "SELECT count(*) FROM pg_constraint WHERE contype IN ('p', 'f', 'u')";
            assert_eq!(value(&restored, keys).await, value(&database, keys).await, "{path} {more}");
        }
    }
}

#[tokio::test]
async fn an_archive_that_the_server_refuses_leaves_nothing() {
    let mut place = Place::new("ar_refused");
    // A perfect dump, whose check holds in its own database only.
    let live = place.names.name("live");
    let check = format!(
        "CREATE TABLE z (id int); INSERT INTO z VALUES (1); \
         CREATE TABLE a (x int CHECK (current_database() = '{live}')); INSERT INTO a VALUES (1)"
    );
    let database = place.names.create("live", &check).await;
    archive(&place, &database);
    let restored = place.names.name("new");
    for (path, jobs) in [("a.dump", 1), ("a.dump", 2), ("a.dir", 1)] {
        let more = json!({ "create": true, "jobs": jobs });
        let failure = place.harness.run(RESTORE, params(&restored, path, more)).await.unwrap_err();
        assert!(
            failure.message.contains("violates check constraint") && !failure.transient,
            "{path} {jobs}: {failure}"
        );
        nothing_left(&place, &restored).await;
    }
    let empty = place.names.create("empty", "").await;
    let before = relations(&empty).await;
    for path in ["a.dump", "a.dir"] {
        place.another_run(None);
        let failure = place.harness.run(RESTORE, params(&empty, path, json!({}))).await.unwrap_err();
        assert!(failure.message.contains("violates check constraint") && !failure.transient, "{path}: {failure}");
        assert_eq!(relations(&empty).await, before, "{path}");
    }
}

#[tokio::test]
async fn a_part_goes_into_an_empty_database_whole_or_not_at_all() {
    // The first call proves the archive; the second one is the load, which breaks off.
    let broken = "echo >> $0.calls; [ $(wc -l < $0.calls) = 2 ] && { $REAL \"$@\" | head -c 60000; exit 1; }; exec $REAL \"$@\"";
    for (part, value_of) in [("schemas", json!(["auth"])), ("tables", json!(["auth.users"]))] {
        let tools = fake_tool("pg_restore", broken);
        let place = Place::with_bin_dir("ar_part", Some(tools.path()));
        let database = place.names.create("live", CONTENT).await;
        archive(&place, &database);
        let empty = place.names.create("empty", "").await;
        let before = relations(&empty).await;
        let params = params(&empty, "a.dump", json!({ part: value_of }));
        let failure = place.harness.run(RESTORE, params.clone()).await.unwrap_err();
        assert!(failure.message.contains("pg_restore ended with exit code 1"), "{failure}");
        assert_eq!(relations(&empty).await, before, "{part}: not even the schema");
        let after = place.harness.after_kill(RESTORE, params.clone()).await;
        assert!(matches!(after, AfterKill::Partly { .. }), "{after:?}");
        let done = place.harness.run(RESTORE, params).await.unwrap();
        assert_eq!(value(&empty, "SELECT count(*) FROM auth.users").await.unwrap(), "3000");
        assert!(done.outputs["rows"].as_u64().unwrap() >= 3000);
    }
}

#[tokio::test]
async fn an_archive_that_changes_while_it_is_loaded_is_refused() {
    let place = Place::new("ar_changed");
    let database = place.names.create("live", CONTENT).await;
    archive(&place, &database);
    for (path, file, more) in [
        ("a.dump", "a.dump", json!({ "create": true, "jobs": 2 })),
        ("a.dir", "a.dir/toc.dat", json!({ "create": true, "jobs": 2 })),
        ("a.dir", "a.dir/toc.dat", json!({})),
    ] {
        // The last call is the load's.
        let script = format!(
            "echo >> $0.calls; $REAL \"$@\"; rc=$?; [ $(wc -l < $0.calls) = 2 ] && echo x >> {}; exit $rc",
            place.path(file).display()
        );
        let tools = fake_tool("pg_restore", &script);
        let other = Place::with_bin_dir("ar_changed", Some(tools.path()));
        let copied = Command::new("cp").arg("-r").arg(place.path(path)).arg(other.path(path)).status();
        assert!(copied.unwrap().success());
        let script = script.replace(place.folder.path().to_str().unwrap(), other.folder.path().to_str().unwrap());
        let tool = tools.path().join("pg_restore");
        let whole = std::fs::read_to_string(&tool).unwrap();
        let head: Vec<_> = whole.lines().take(3).collect();
        std::fs::write(&tool, format!("{}\n{script}\n", head.join("\n"))).unwrap();
        let restored = match more.get("create") {
            Some(_) => other.names.name("new"),
            None => other.names.create("empty", "").await,
        };
        let failure = other.harness.run(RESTORE, params(&restored, path, more.clone())).await.unwrap_err();
        assert!(failure.message.contains("changed while it was restored"), "{path} {more}: {failure}");
        if more.get("create").is_some() {
            nothing_left(&other, &restored).await;
        } else {
            let tables = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
            assert_eq!(value(&restored, tables).await.unwrap(), "0", "nothing was committed");
        }
    }
}

#[tokio::test]
async fn a_load_side_by_side_says_how_far_it_is() {
    let slow = "$REAL \"$@\"; rc=$?; case \"$*\" in *--jobs*) sleep 3;; esac; exit $rc";
    let tools = fake_tool("pg_restore", slow);
    let place = Place::with_bin_dir("ar_progress", Some(tools.path()));
    let database = place.names.create("live", CONTENT).await;
    archive(&place, &database);
    let restored = place.names.name("new");
    place.harness.run(RESTORE, params(&restored, "a.dump", json!({ "create": true }))).await.unwrap();
    let seen = place.harness.journal.progress_seen();
    let told = seen.iter().rev().find(|progress| progress.unit == ProgressUnit::Rows).unwrap();
    assert_eq!((told.done, told.total), (ROWS, Some(ROWS)), "{told:?}");
    let message = told.message.as_deref().unwrap();
    assert!(message.starts_with("loading: 3 of 3 tables, ") && message.ends_with(" indexes"), "{message}");
}

#[tokio::test]
async fn a_kill_in_the_load_in_order_that_follows_a_failed_one_ends_in_one_whole_database() {
    let script = "case \"$*\" in \
        *--jobs*) $REAL \"$@\"; echo 'deadlock detected' >&2; exit 1;; \
        *--exit-on-error*) $REAL \"$@\"; rc=$?; [ -e $0.hung ] || { touch $0.hung; sleep 60; }; exit $rc;; \
        *) exec $REAL \"$@\";; esac";
    let tools = fake_tool("pg_restore", script);
    let place = Place::with_bin_dir("ar_killed", Some(tools.path()));
    let database = place.names.create("live", CONTENT).await;
    archive(&place, &database);
    let restored = place.names.name("new");
    let params = params(&restored, "a.dump", json!({ "create": true }));
    let (step, cx) = (place.harness.step(RESTORE, params.clone()), place.harness.next_attempt());
    let running = tokio::spawn(async move { step.run(&cx).await.map(drop) });
    let hung = tools.path().join("pg_restore.hung");
    until("it is loaded in order", || async { hung.exists() || running.is_finished() }).await;
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    let after = place.harness.after_kill(RESTORE, params.clone()).await;
    assert!(matches!(after, AfterKill::Partly { .. }), "{after:?}");
    place.harness.run(RESTORE, params).await.unwrap();
    assert_eq!(likeness(&restored), likeness(&database));
    assert!(place.harness.journal.log_text().matches("once more over one connection").count() == 2);
    sql("postgres", &format!("DROP DATABASE {restored}")).await;
    nothing_left(&place, &restored).await;
}
