//! A backup of which a part fails: nothing stands under its final name, nor beside it.

use lifeboat::failure::Failure;
use serde_json::{Value, json};

use crate::fixture::{CONTENT, Place, fake_tool, files, tool};
use crate::support::{postgres_url, url_with, value};

const BACKUP: &str = "postgres.backup";

/// Enough that it doesn't fit into a pipe.
const LARGE: &str =
    "CREATE TABLE large AS SELECT g AS id, md5(g::text) AS noise FROM generate_series(1, 100000) g;";

/// Takes a backup of `database`, which fails.
async fn fails(place: &Place, database: &str, more: Value) -> Failure {
    let mut params =
        json!({ "target": "db", "database": database, "to": { "storage": "store", "path": "a.sql.zst" } });
    params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    place.harness.run(BACKUP, params).await.unwrap_err()
}

#[tokio::test]
async fn roles_that_cant_be_read_are_found_before_the_dump_and_leave_nothing() {
    for (script, said) in [
        ("echo 'no roles today' >&2; exit 1", "exit code 1: no roles today"),
        ("$REAL \"$@\" | head -c 100; exit 0", "pg_dumpall's output is not whole"),
    ] {
        let tools = fake_tool("pg_dumpall", script);
        let place = Place::with_bin_dir("up_globals", Some(tools.path()));
        let database = place.names.create("live", CONTENT).await;
        let failure = fails(&place, &database, json!({ "globals": true })).await;
        assert!(failure.message.contains(said), "{failure}");
        assert_eq!(place.files(), [""; 0], "{script}");
    }
}

#[tokio::test]
async fn roles_that_cant_be_written_take_the_dump_with_them() {
    let place = Place::new("up_beside");
    let database = place.names.create("live", CONTENT).await;
    // Something lies where they go.
    std::fs::create_dir_all(place.path("a.sql.zst.globals.sql/x")).unwrap();
    let failure = fails(&place, &database, json!({ "globals": true })).await;
    assert!(failure.message.contains("a.sql.zst.globals.sql"), "{failure}");
    assert_eq!(place.files(), ["a.sql.zst.globals.sql"]);
}

#[tokio::test]
async fn a_manifest_that_cant_be_written_takes_the_dump_with_it() {
    let place = Place::new("up_manifest");
    let database = place.names.create("live", CONTENT).await;
    // Its name is a link into nowhere, which nothing follows.
    std::os::unix::fs::symlink("/nowhere/at/all", place.path("a.sql.zst.manifest.json")).unwrap();
    let failure = fails(&place, &database, json!({ "globals": true })).await;
    assert!(!failure.transient && failure.message.contains("not all of it could be removed"), "{failure}");
    assert_eq!(place.files(), ["a.sql.zst.manifest.json"]);
}

/// Ends every session in the database, by another connection.
fn terminate(database: &str) -> String {
    let psql = tool("psql");
    let url = url_with(&postgres_url(), None, "postgres");
    format!(
        "{} '{url}' -qAtc \"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'\" >&2",
        psql.display()
    )
}

#[tokio::test]
async fn a_snapshot_that_is_lost_fails_the_attempt_and_may_pass() {
    let name = Place::new("up_snapshot");
    let database = name.names.create("live", &format!("{CONTENT} {LARGE}")).await;
    let terminate = terminate(&database);
    // Before pg_dump takes it up.
    let tools = fake_tool("pg_dump", &format!("{terminate}; exec $REAL \"$@\""));
    let place = Place::with_bin_dir("up_snapshot", Some(tools.path()));
    let failure = fails(&place, &database, json!({})).await;
    assert!(failure.transient, "{failure}");
    assert_eq!(place.files(), [""; 0]);
    // After the first bytes, in the middle of the rows.
    let script = format!(
        "mkfifo $0.pipe; $REAL \"$@\" > $0.pipe & dump=$!; exec 3< $0.pipe; head -c 20000 <&3; {terminate}; cat <&3; wait $dump"
    );
    let tools = fake_tool("pg_dump", &script);
    let place = Place::with_bin_dir("up_snapshot", Some(tools.path()));
    let failure = fails(&place, &database, json!({})).await;
    assert!(failure.transient, "{failure}");
    assert_eq!(place.files(), [""; 0]);
}

#[tokio::test]
async fn a_restore_that_comes_to_other_rows_leaves_nothing() {
    // One row becomes another on its way, and counts the same.
    let tools = fake_tool("psql", "sed 's/u1500@example.org/u1500@example.com/' | $REAL \"$@\"");
    let place = Place::with_bin_dir("up_other", Some(tools.path()));
    let database = place.names.create("live", CONTENT).await;
    let failure = fails(&place, &database, json!({ "verify": "restore" })).await;
    assert!(failure.message.contains("it is not what was backed up") && !failure.transient, "{failure}");
    assert!(failure.message.contains("auth.users"), "{failure}");
    assert_eq!(files(place.folder.path()), [""; 0]);
    let made =
        format!("SELECT count(*) FROM pg_database WHERE starts_with(datname, 'lifeboat_{}')", place.harness.run);
    assert_eq!(value("postgres", &made).await.unwrap(), "0");
}

#[tokio::test]
async fn what_the_path_says_is_what_is_written() {
    let place = Place::new("up_default");
    let database = place.names.create("live", CONTENT).await;
    let zstd: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
    for (path, more, magic, format, compression) in [
        ("a", json!({}), zstd, "plain", "zstd"),
        ("a_20240201", json!({}), zstd, "plain", "zstd"),
        ("a.bak", json!({}), zstd, "plain", "zstd"),
        ("a.zst", json!({}), zstd, "plain", "zstd"),
        ("a.sql.zst", json!({}), zstd, "plain", "zstd"),
        ("a.gz", json!({}), &[0x1f, 0x8b], "plain", "gzip"),
        ("b", json!({ "compression": "gzip" }), &[0x1f, 0x8b], "plain", "gzip"),
        ("c", json!({ "compression": "none" }), b"--\n", "plain", "none"),
        ("a.sql", json!({}), b"--\n", "plain", "none"),
        ("a.dump", json!({}), b"PGDMP", "custom", "gzip"),
        ("d", json!({ "format": "custom" }), b"PGDMP", "custom", "gzip"),
        ("a.dump.zst", json!({}), zstd, "custom", "zstd"),
    ] {
        let mut params =
            json!({ "target": "db", "database": database, "to": { "storage": "store", "path": path } });
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        place.harness.run(BACKUP, params).await.unwrap();
        assert!(std::fs::read(place.path(path)).unwrap().starts_with(magic), "{path}");
        let manifest = std::fs::read(place.path(&format!("{path}.manifest.json"))).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(
            (&manifest["format"], &manifest["compression"]),
            (&json!(format), &json!(compression)),
            "{path}"
        );
    }
    let found = crate::storages::findings(
        BACKUP,
        json!({ "target": "db", "database": "x", "to": { "storage": "store", "path": "a" }, "level": 3 }),
    );
    assert_eq!(found, [""; 0], "zstd has levels");
}
