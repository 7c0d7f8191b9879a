//! `postgres.backup` of large tables, whose rows are read beside `pg_dump`.

use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use lifeboat::failure::Failure;
use lifeboat::step::Done;
use serde_json::json;

use crate::fixture::{Place, backup, fake_tool, likeness, pg_dump, without_key};
use crate::support::{connect, sql, until, value};

const BACKUP: &str = "postgres.backup";
const RESTORE: &str = "postgres.restore";

/// Tables of more than 8 MiB, and small ones before, between and behind them in a dump.
const CONTENT: &str = r#"
CREATE SCHEMA auth; CREATE SCHEMA "Zoo; Type: TABLE DATA";
CREATE TYPE auth.role AS ENUM ('user', 'it''s', E'back\\slash');
CREATE TABLE auth.events (gone int, id bigint PRIMARY KEY, "user" auth.role, twice bigint GENERATED ALWAYS AS (id * 2) STORED,
  data jsonb, at timestamptz, raw bytea, money numeric(12, 2), tags text[]);
INSERT INTO auth.events (id, "user", data, at, raw, money, tags)
  SELECT g, (enum_range(NULL::auth.role))[1 + g % 3], jsonb_build_object('n', g, 'text', E'tab\there\nline \\. back\\slash'),
    timestamptz '2024-01-01' + g * interval '1.000001 second', decode(md5(g::text), 'hex'), g / 7.0, ARRAY[md5(g::text), NULL, '\.']
  FROM generate_series(1, 60000) g;
ALTER TABLE auth.events DROP COLUMN gone;
DELETE FROM auth.events WHERE id % 3 = 0;
UPDATE auth.events SET money = NULL WHERE id % 5 = 0;
CREATE TABLE auth.files (id int, content text);
ALTER TABLE auth.files ALTER content SET STORAGE EXTERNAL;
INSERT INTO auth.files SELECT g, repeat(md5(g::text), 400) FROM generate_series(1, 900) g;
INSERT INTO auth.files SELECT g, repeat(md5(g::text), 40000) FROM generate_series(1, 4) g;
CREATE TABLE "Zoo; Type: TABLE DATA"."l""ar
ge" (a int, "select" text);
INSERT INTO "Zoo; Type: TABLE DATA"."l""ar
ge" SELECT g, repeat('x', g % 400) FROM generate_series(1, 50000) g;
CREATE TABLE auth.attempts (id int); INSERT INTO auth.attempts VALUES (1);
CREATE TABLE auth.few (id int, line text); INSERT INTO auth.few VALUES (1, '-- Data for Name: x; Type: TABLE DATA; Schema: y; Owner: z');
CREATE TABLE "Zoo; Type: TABLE DATA".none (id int);
CREATE FUNCTION auth.f() RETURNS text LANGUAGE sql AS $$
-- Data for Name: attempts; Type: TABLE DATA; Schema: auth; Owner: postgres
SELECT 'x' $$;
CREATE SEQUENCE auth.s; SELECT nextval('auth.s');
CREATE INDEX ON auth.events (at);
COMMENT ON TABLE auth.files IS '
-- Name: x; Type: SEQUENCE SET';
"#;

/// A backup's text.
fn text(place: &Place, path: &str) -> String {
    let bytes = std::fs::read(place.path(path)).unwrap();
    let mut text = vec![];
    match path.rsplit_once('.').unwrap().1 {
        "gz" => drop(flate2::read::MultiGzDecoder::new(&*bytes).read_to_end(&mut text).unwrap()),
        "zst" => text = zstd::decode_all(&*bytes).unwrap(),
        _ => text = bytes,
    }
    without_key(text)
}

#[tokio::test]
async fn a_backup_of_large_tables_is_what_pg_dump_writes() {
    let place = Place::new("bk_large");
    let database = place.names.create("live", CONTENT).await;
    let by_pg_dump = without_key(pg_dump(&database, &[]));
    let alone = backup(&place, &database, "alone.sql", json!({ "jobs": 1 })).await.unwrap();
    assert_eq!(alone["tables"]["auth.events"], 40000);
    assert!(text(&place, "alone.sql") == by_pg_dump);
    for (path, jobs) in [("a.sql", 16), ("a.sql.gz", 3), ("a.sql.zst", 2)] {
        let manifest = backup(&place, &database, path, json!({ "jobs": jobs })).await.unwrap();
        assert!(text(&place, path) == by_pg_dump, "{path}");
        assert_eq!((&manifest["tables"], &manifest["hashes"]), (&alone["tables"], &alone["hashes"]), "{path}");
    }
    // Several streams, one after the other: it was read beside pg_dump.
    let zstd = std::fs::read(place.path("a.sql.zst")).unwrap();
    assert!(memchr::memmem::find_iter(&zstd, &[0x28, 0xb5, 0x2f, 0xfd]).count() > 5);

    let restored = place.names.name("restored");
    let from = json!({ "storage": "store", "path": "a.sql.zst" });
    let params = json!({ "target": "db", "database": restored, "create": true, "from": from });
    place.harness.run(RESTORE, params).await.unwrap();
    // Rows lie in another order.
    let sorted = |database: &str| {
        let mut lines: Vec<_> = likeness(database).lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert!(sorted(&restored) == sorted(&database));
}

#[tokio::test]
async fn parts_of_large_tables_too() {
    let place = Place::new("bk_lparts");
    let database = place.names.create("live", CONTENT).await;
    for (path, more, arguments) in [
        ("schema.sql", json!({ "schemas": ["auth"] }), &["--schema=auth"][..]),
        ("one.sql", json!({ "tables": ["auth.files"] }), &["--table=auth.files"]),
        (
            "two.sql",
            json!({ "tables": ["auth.files", "auth.events"] }),
            &["--table=auth.files", "--table=auth.events"],
        ),
        (
            "less.sql",
            json!({ "exclude": ["auth.few", "auth.events"] }),
            &["--exclude-table=auth.few", "--exclude-table=auth.events"],
        ),
    ] {
        backup(&place, &database, path, more).await.unwrap();
        assert!(text(&place, path) == without_key(pg_dump(&database, arguments)), "{path}");
    }
    let restored = json!({ "verify": "restore" });
    backup(&place, &database, "proven.sql.zst", restored).await.unwrap();
}

#[tokio::test]
async fn others_go_on_writing_meanwhile() {
    let place = Place::new("bk_lbusy");
    let database = place.names.create("live", CONTENT).await;
    let writer = {
        let database = database.clone();
        tokio::spawn(async move {
            let client = connect(&database).await;
            for id in 100_000_i64.. {
                client.execute("INSERT INTO auth.events (id) VALUES ($1)", &[&id]).await.unwrap();
                client.execute("UPDATE auth.events SET money = 1 WHERE id = $1", &[&(id - 99_999)]).await.unwrap();
                client.execute("DELETE FROM auth.files WHERE id = $1", &[&((id - 99_999) as i32)]).await.unwrap();
            }
        })
    };
    let manifest = backup(&place, &database, "a.sql.zst", json!({ "verify": "restore" })).await.unwrap();
    writer.abort();
    assert!(manifest["tables"]["auth.events"].as_u64().unwrap() >= 40000, "{manifest}");
}

#[tokio::test]
async fn tables_without_keys_partitions_and_heirs() {
    let place = Place::new("bk_lkeys");
    let rows =
        |of: &str| format!("INSERT INTO {of} SELECT g, repeat(md5(g::text), 6) FROM generate_series(1, 45000) g;");
    for (name, content, beside) in [
        // Nothing follows the rows.
        ("bare", format!("CREATE TABLE a (id int); CREATE TABLE logs (id int, line text); {}", rows("logs")), true),
        (
            "heirs",
            format!(
                "CREATE TABLE root (id int, line text) PARTITION BY RANGE (id); \
                 CREATE TABLE p1 PARTITION OF root FOR VALUES FROM (0) TO (100000); CREATE TABLE p2 PARTITION OF root DEFAULT; \
                 CREATE TABLE parent (id int, line text); CREATE TABLE heir (more int) INHERITS (parent); {} {} {}",
                rows("root"),
                rows("parent"),
                rows("heir (id, line)")
            ),
            true,
        ),
        // pg_dump knows when these must be loaded through their root.
        (
            "hashed",
            format!(
                "CREATE TABLE root (id int, line text) PARTITION BY HASH (id); CREATE TABLE a (id int); \
                 CREATE TABLE p1 PARTITION OF root FOR VALUES WITH (MODULUS 1, REMAINDER 0); {}",
                rows("root")
            ),
            false,
        ),
    ] {
        let database = place.names.create(name, &content).await;
        let path = format!("{name}.sql.zst");
        backup(&place, &database, &path, json!({ "verify": "restore" })).await.unwrap();
        assert!(text(&place, &path) == without_key(pg_dump(&database, &[])), "{name}");
        let zstd = std::fs::read(place.path(&path)).unwrap();
        let streams = memchr::memmem::find_iter(&zstd, &[0x28, 0xb5, 0x2f, 0xfd]).count();
        assert_eq!(streams > 1, beside, "{name}: {streams}");
    }
}

/// Who may read everything, and not have the connections that would be taken.
#[tokio::test]
async fn a_role_that_may_only_read_with_few_connections() {
    let place = Place::new("bk_lrole");
    let database = place.names.create("live", CONTENT).await;
    let role = crate::fixture::role("reader").await;
    sql("postgres", &format!("ALTER ROLE {role} LOGIN PASSWORD 'pw' CONNECTION LIMIT 4 NOSUPERUSER")).await;
    sql("postgres", &format!("GRANT pg_read_all_data TO {role}")).await;
    let harness = place.harness_of(&role, "pw");
    let to = json!({ "storage": "store", "path": "a.sql.zst" });
    harness.run(BACKUP, json!({ "target": "db", "database": database, "to": to, "jobs": 8 })).await.unwrap();
    assert!(text(&place, "a.sql.zst") == without_key(pg_dump(&database, &[])));
    sql("postgres", &format!("DROP ROLE {role}")).await;
}

#[tokio::test]
async fn a_pg_dump_that_ends_early_leaves_nothing() {
    for (script, said) in [
        ("$REAL \"$@\" | head -c 3000; exit 0", "not whole"),
        ("$REAL \"$@\" --section=pre-data", "before all rows had their place"),
        ("$REAL \"$@\" | head -c 3000; echo 'disk on fire' >&2; exit 1", "disk on fire"),
    ] {
        let tools = fake_tool("pg_dump", script);
        let place = Place::with_bin_dir("bk_lfault", Some(tools.path()));
        let database = place.names.create("live", CONTENT).await;
        let failure = backup(&place, &database, "a.sql.zst", json!({})).await.unwrap_err();
        assert!(failure.message.contains(said), "{script}: {failure}");
        assert_eq!(place.files(), [""; 0], "{script}");
    }
}

/// Sessions that read ahead of a `pg_dump` that has come to a stop.
const READ_AHEAD: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
     AND wait_event = 'ClientWrite' AND query LIKE 'COPY (SELECT%events%'";

/// A backup under way whose `pg_dump` has come to a stop ([`stops_until`]).
async fn stopped(place: &Place, database: &str) -> tokio::task::JoinHandle<Result<Done, Failure>> {
    let to = json!({ "storage": "store", "path": "a.sql" });
    // More than sockets and channels hold.
    let more = "INSERT INTO auth.events (id, data) \
        SELECT g, jsonb_build_object('text', repeat(md5(g::text), 40)) FROM generate_series(100000, 140000) g";
    sql(database, more).await;
    // With so many connections each reads little ahead.
    let step = place.harness.step(BACKUP, json!({ "target": "db", "database": database, "to": to, "jobs": 16 }));
    let cx = place.harness.next_attempt();
    let running = tokio::spawn(async move { step.run(&cx).await });
    until("a connection waits for its turn", || async { value(database, READ_AHEAD).await.unwrap() != "0" }).await;
    running
}

/// A `pg_dump` that stops after its first line until `flag` is there.
fn stops_until(flag: &Path) -> tempfile::TempDir {
    let flag = flag.display();
    let script =
        format!("$REAL \"$@\" | (read -r line; echo \"$line\"; while [ ! -e '{flag}' ]; do sleep 0.05; done; cat)");
    fake_tool("pg_dump", &script)
}

#[tokio::test]
async fn a_connection_that_is_lost_fails_the_backup() {
    let folder = tempfile::tempdir().unwrap();
    let flag = folder.path().join("go on");
    let tools = stops_until(&flag);
    let place = Place::with_bin_dir("bk_llost", Some(tools.path()));
    let database = place.names.create("live", CONTENT).await;
    let running = stopped(&place, &database).await;
    // Some wait for a moment only, and are done with their rows when they are to be ended.
    until("none waits any more", || async {
        sql(&database, &READ_AHEAD.replace("count(*)", "pg_terminate_backend(pid)")).await;
        let reading = READ_AHEAD.replace("AND wait_event = 'ClientWrite'", "AND state = 'active'");
        value(&database, &reading).await.unwrap() == "0"
    })
    .await;
    std::fs::write(flag, "").unwrap();
    let failure = running.await.unwrap().unwrap_err();
    assert!(failure.transient && failure.message.contains("read the rows of auth.events"), "{failure}");
    assert_eq!(place.files(), [""; 0]);
}

#[tokio::test]
async fn cancelling_ends_those_that_read_ahead() {
    let folder = tempfile::tempdir().unwrap();
    let tools = stops_until(&folder.path().join("never"));
    let place = Place::with_bin_dir("bk_lcancel", Some(tools.path()));
    let database = place.names.create("live", CONTENT).await;
    let running = stopped(&place, &database).await;
    let started = Instant::now();
    place.harness.cancel.cancel();
    let failure = running.await.unwrap().unwrap_err();
    assert!(failure.transient && started.elapsed() < Duration::from_secs(10), "{failure}");
    until("they are gone", || async { value(&database, READ_AHEAD).await.unwrap() == "0" }).await;
    assert_eq!(place.files(), [""; 0]);
}
