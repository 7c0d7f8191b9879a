//! `postgres.verify_rows`, and a disk that is full under a backup.

use std::process::Command;

use lifeboat::step::effect::Resource;
use lifeboat::step::world::{Fact, World};
use lifeboat::step::{Action, Certainty};
use serde_json::{Value, json};

use crate::fixture::{CONTENT, Place, ROWS};
use crate::support::{sql, value};

const VERIFY: &str = "postgres.verify_rows";

fn params(database: &str, path: &str) -> Value {
    json!({ "target": "db", "database": database, "against": { "storage": "store", "path": path } })
}

#[tokio::test]
async fn every_row_is_compared_in_every_format() {
    let place = Place::new("vr_same");
    // Settings that change how values are written, and columns that aren't as they were made.
    let more = "ALTER TABLE auth.users ADD gone int, ADD double bigint GENERATED ALWAYS AS (id * 2) STORED, ADD last bytea; \
         ALTER TABLE auth.users DROP gone; UPDATE auth.users SET last = '\\x00ff5c', at = '2024-02-03 04:05:06.789+09'; \
         CREATE TABLE forms (i interval, f float8, n numeric, t timestamp, d date, x xml, no_columns text); \
         INSERT INTO forms VALUES ('1 year -2 days', 1e-300, 'NaN', 'infinity', '0044-03-15 BC', '<a/>', E'a\\\\b\\r\\v\\u00e4'); \
         CREATE TABLE bare (); INSERT INTO bare DEFAULT VALUES; INSERT INTO bare DEFAULT VALUES";
    let database = place.names.create("live", CONTENT).await;
    sql(&database, more).await;
    let settings =
        ["timezone TO 'Asia/Tokyo'", "bytea_output TO escape", "intervalstyle TO iso_8601", "datestyle TO German"];
    for setting in settings {
        sql("postgres", &format!("ALTER DATABASE {database} SET {setting}")).await;
    }
    for (at, path) in ["a.sql.zst", "b.dump", "c.dump.zst"].into_iter().enumerate() {
        let to = json!({ "target": "db", "database": database, "to": { "storage": "store", "path": path } });
        place.harness.run("postgres.backup", to).await.unwrap();
        let restored = place.names.name(&format!("r{at}"));
        let from = json!({ "target": "db", "database": restored, "create": true, "from": { "storage": "store", "path": path } });
        place.harness.run("postgres.restore", from).await.unwrap();
        let done = place.harness.run(VERIFY, params(&restored, path)).await.unwrap();
        assert_eq!(done.outputs["rows"], ROWS + 3, "{path}");
        assert_eq!(done.outputs["tables"]["auth.users"], 3000);
        place.harness.run(VERIFY, params(&database, path)).await.unwrap();
        let whole = json!({ "target": "store", "path": path });
        place.harness.run("storage.verify", whole).await.unwrap();
    }
    // A backup that a step before makes isn't there to be looked at yet.
    let mut world = World::default();
    let object = Resource::object("store", "to-come.sql.zst");
    world.foretell(object, Fact::Present { rows: None }, &"backup".into());
    for step in [VERIFY, "postgres.verify_counts"] {
        let preview = place.harness.preview(step, params(&database, "to-come.sql.zst"), &world).await;
        assert_ne!(preview.action, Action::Blocked, "{step}: {preview:?}");
    }
    let preview = place.harness.preview(VERIFY, params(&database, "b.dump"), &World::default()).await;
    assert_eq!((preview.action, preview.certainty), (Action::Read, Certainty::Observed), "{preview:?}");
}

#[tokio::test]
async fn what_a_count_does_not_see_is_found() {
    let place = Place::new("vr_off");
    let database = place.names.create("live", CONTENT).await;
    let to = json!({ "target": "db", "database": database, "to": { "storage": "store", "path": "a.sql.zst" } });
    place.harness.run("postgres.backup", to).await.unwrap();
    let same = params(&database, "a.sql.zst");
    for (damage, told) in [
        (
            "UPDATE auth.users SET note = note || ' ' WHERE id = 17",
            "auth.users has 3000 rows as the backup, but not the same ones",
        ),
        (
            "UPDATE auth.users SET email = 'x' WHERE id = 3; DELETE FROM auth.users WHERE id = 2999; INSERT INTO auth.users SELECT 5000",
            "not the same ones",
        ),
        ("DELETE FROM auth.\"we\"\"ird.t\" WHERE a = 1", "auth.\"we\"\"ird.t\" has 1 rows, the backup has 2"),
        ("DROP TABLE empty_one", "there is no table public.empty_one"),
        ("CREATE TABLE more (a int)", "public.more is not in the backup"),
    ] {
        let damaged = place.names.name("damaged");
        sql("postgres", &format!("DROP DATABASE IF EXISTS {damaged}")).await;
        sql("postgres", &format!("CREATE DATABASE {damaged} TEMPLATE {database}")).await;
        sql(&damaged, damage).await;
        let failure = place.harness.run(VERIFY, params(&damaged, "a.sql.zst")).await.unwrap_err();
        assert!(failure.message.contains(told) && !failure.transient, "{damage}: {failure}");
    }
    // Part of it may be what is asked for.
    sql(&database, "DELETE FROM auth.orders; CREATE TABLE more (a int)").await;
    let mut part = same.clone();
    part["tables"] = json!(["auth.users", "public.empty_one"]);
    assert_eq!(place.harness.run(VERIFY, part.clone()).await.unwrap().outputs["rows"], 3000);
    part["tables"] = json!(["auth.userz"]);
    let failure = place.harness.run(VERIFY, part).await.unwrap_err();
    assert!(failure.message.contains("has no table auth.userz"), "{failure}");
    let mut rest = same;
    rest["except"] = json!(["auth.orders_2024"]);
    let failure = place.harness.run(VERIFY, rest).await.unwrap_err();
    assert_eq!(failure.message.matches(';').count(), 0, "only the new table: {failure}");
    // A manifest that lies about rows is not believed, even where the object's own checksum fits.
    let path = place.path("a.sql.zst.manifest.json");
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    manifest["hashes"]["auth.users"]["sum"] = "0".repeat(64).into();
    std::fs::write(&path, manifest.to_string()).unwrap();
    let failure =
        place.harness.run("storage.verify", json!({ "target": "store", "path": "a.sql.zst" })).await.unwrap_err();
    assert!(failure.message.contains("holds other rows of auth.users than its manifest says"), "{failure}");
    manifest.as_object_mut().unwrap().remove("hashes");
    std::fs::write(&path, manifest.to_string()).unwrap();
    let failure = place.harness.run(VERIFY, params(&database, "a.sql.zst")).await.unwrap_err();
    assert!(failure.help.unwrap().contains("postgres.verify_counts"));
    assert_eq!(value(&database, "SELECT count(*) FROM auth.users").await.unwrap(), "3000", "nothing was changed");
}

/// The databases that this test's run has made for itself.
async fn throwaways(place: &Place) -> String {
    let run = place.harness.next_attempt().run;
    value("postgres", &format!("SELECT count(*) FROM pg_database WHERE starts_with(datname, 'lifeboat_{run}')"))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_backup_is_restored_before_it_counts_as_one() {
    let place = Place::new("bk_proof");
    let database = place.names.create("live", CONTENT).await;
    let backup = |path: &str| {
        let to = json!({ "storage": "store", "path": path });
        json!({ "target": "db", "database": database, "to": to, "verify": "restore" })
    };
    for path in ["a.sql.zst", "b.dump"] {
        place.harness.run("postgres.backup", backup(path)).await.unwrap();
        place.harness.run(VERIFY, params(&database, path)).await.unwrap();
    }
    assert_eq!(throwaways(&place).await, "0");
    // A subscription comes with the dump, and would keep its database from being dropped.
    let subscribe = "CREATE SUBSCRIPTION orders CONNECTION 'host=127.0.0.1 port=1 dbname=x' PUBLICATION p WITH (connect = false)";
    sql(&database, subscribe).await;
    let subscribed = place.harness.run("postgres.backup", backup("s.sql.zst")).await;
    sql(&database, "ALTER SUBSCRIPTION orders SET (slot_name = NONE)").await;
    sql(&database, "DROP SUBSCRIPTION orders").await;
    subscribed.unwrap();
    assert_eq!(throwaways(&place).await, "0");
    let before = place.files();
    // A perfect dump that no server takes: its check reads a table that is filled after it.
    let circle = "CREATE TABLE z (id int); INSERT INTO z VALUES (1); \
         CREATE FUNCTION known(x int) RETURNS boolean LANGUAGE sql AS 'SELECT EXISTS (SELECT FROM public.z WHERE id = x)'; \
         CREATE TABLE a (x int CHECK (public.known(x))); INSERT INTO a VALUES (1)";
    sql(&database, circle).await;
    let failure = place.harness.run("postgres.backup", backup("c.sql.zst")).await.unwrap_err();
    assert!(failure.message.contains("violates check constraint") && !failure.transient, "{failure}");
    assert_eq!((place.files(), throwaways(&place).await.as_str()), (before, "0"), "nothing is left of it");
    let mut read = backup("c.sql.zst");
    read["verify"] = "read".into();
    place.harness.run("postgres.backup", read).await.unwrap();
    // A role that may not make databases is told before.
    let role = place.names.name("reader");
    sql(
        "postgres",
        &format!(
            "DROP ROLE IF EXISTS {role}; CREATE ROLE {role} LOGIN PASSWORD 'x' BYPASSRLS IN ROLE pg_read_all_data"
        ),
    )
    .await;
    let url = crate::support::url_with(&crate::support::postgres_url(), Some((&role, "x")), "postgres");
    let store = crate::fixture::storage("fs", &[("root", place.folder.path().to_str().unwrap())]);
    let other = crate::support::Harness::with([("db", crate::support::postgres(&url)), ("store", store)]);
    let preview = other.preview("postgres.backup", backup("d.sql.zst"), &World::default()).await;
    sql("postgres", &format!("DROP ROLE {role}")).await;
    assert_eq!(preview.action, Action::Blocked);
    assert!(format!("{preview:?}").contains("may not create the database"), "{preview:?}");
}

/// In a mount namespace of its own: a disk of a megabyte for the storage, then room.
#[tokio::test]
async fn a_full_disk_under_a_backup_publishes_nothing_and_the_run_goes_on_when_there_is_room() {
    let place = Place::new("bk_full");
    let noise =
        "CREATE TABLE noise AS SELECT g, md5(g::text) || md5((g + 1)::text) AS t FROM generate_series(1, 100000) g";
    let database = place.names.create("live", noise).await;
    let (disk, here) = (place.path("disk"), place.folder.path());
    std::fs::create_dir(&disk).unwrap();
    let url = crate::support::postgres_url();
    let plan = json!({
        "lifeboat": 1,
        "plan": "fill",
        "targets": {
            "db": { "postgres": { "url": url } },
            "store": { "storage": { "scheme": "fs", "root": disk } },
        },
        "steps": {
            "backup": { "postgres.backup": { "target": "db", "database": database, "to": { "storage": "store", "path": "a.sql.gz" } } },
            "prove": { "storage.verify": { "target": "store", "path": "{{ steps.backup.path }}" } },
        },
    });
    std::fs::write(place.path("fill.yaml"), plan.to_string()).unwrap();
    let script = r#"
        mount -t tmpfs -o size=1m none disk || exit 90
        "$LIFEBOAT" run fill.yaml --no-preflight; echo "exit $?"
        ls -A disk | sed 's/^/left: /'
        mount -o remount,size=64m disk || exit 91
        "$LIFEBOAT" resume; echo "exit $?"
        ls -A disk | sed 's/^/there: /'
    "#;
    let mut command = Command::new("unshare");
    // Who isn't root is it there.
    command.args(["--map-root-user", "--mount", "sh", "-c", script]);
    let output = command
        .current_dir(here)
        .env("LIFEBOAT", env!("CARGO_BIN_EXE_lifeboat"))
        .env("NO_COLOR", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let exits: Vec<_> = said.lines().filter(|line| line.starts_with("exit ")).collect();
    assert_eq!(exits, ["exit 1", "exit 0"], "{said}");
    assert!(said.contains("No space left on device") && !said.contains("left: "), "{said}");
    for name in ["a.sql.gz", "a.sql.gz.manifest.json"] {
        assert!(said.contains(&format!("there: {name}\n")), "{said}");
    }
}
