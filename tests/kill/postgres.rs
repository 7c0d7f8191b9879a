//! Plans of PostgreSQL: rows exactly once, swaps, backups, restores.

use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::harness::{every_point, every_point_of_the_resume, twice};
use crate::support::server::tool;
use crate::support::{Databases, postgres_url, url_with};
use crate::world::{Case, World};

const TABLES: &str = "CREATE TABLE counters (name text PRIMARY KEY, n int NOT NULL); \
    INSERT INTO counters VALUES ('a', 0), ('b', 0), ('c', 0); \
    CREATE TABLE log (item int); \
    CREATE TABLE rows (id int, word text); INSERT INTO rows SELECT g, 'word ' || g FROM generate_series(1, 200) g; \
    CREATE TABLE imported (id int, word text)";

/// Changes that count: applied twice, or not at all, they show.
const ROWS: Case = Case {
    name: "rows",
    set: |world| {
        world.create("from", TABLES);
        world.create("to", "CREATE TABLE rows (id int, word text)");
    },
    plan: rows,
    ..Case::PLAIN
};

fn rows(world: &World) -> Value {
    let (from, to) = (world.name("from"), world.name("to"));
    let bump = |name: &str| {
        json!({ "postgres.execute": {
            "target": "db", "database": from, "sql": "UPDATE public.counters SET n = n + 1 WHERE name = $1", "params": [name],
        } })
    };
    json!({
        "steps": {
            "first": bump("a"),
            "second": bump("a"),
            "each": {
                "for_each": [1, 2],
                "postgres.execute": {
                    "target": "db", "database": from, "sql": "INSERT INTO public.log VALUES ($1)", "params": ["{{ item }}"],
                },
                "allow": ["unordered_access"], "because": "rows of their own",
            },
            "export": { "postgres.export": {
                "target": "db", "database": from, "table": "public.rows", "to": { "storage": "store", "path": "out/rows.csv" },
            } },
            "import": { "postgres.import": {
                "target": "db", "database": from, "table": "public.imported",
                "from": { "storage": "store", "path": "{{ steps.export.path }}" },
            } },
            "copy": { "postgres.copy_rows": {
                "from": { "target": "db", "database": from, "table": "public.rows" },
                "to": { "target": "db", "database": to }, "where": "id <= 50", "on_conflict": "fail",
            } },
            "last": bump("b"),
        },
        "finally": {
            "always": { "postgres.execute": {
                "target": "db", "database": from, "sql": "UPDATE public.counters SET n = 7 WHERE name = 'c'",
            } },
        },
    })
}

#[test]
fn rows_are_changed_exactly_once() {
    every_point(&ROWS, 24);
}

#[test]
fn rows_are_changed_exactly_once_killed_twice() {
    twice(&ROWS, 45);
}

#[test]
fn rows_are_changed_exactly_once_killed_in_the_resume() {
    every_point_of_the_resume(&ROWS, "sql COMMIT: after", 23);
}

/// A database made, filled, put in another's place; the old one is kept, and a third is dropped.
const SWAP: Case = Case {
    name: "swap",
    set: |world| {
        world.create("live", TABLES);
        world.create("spare", TABLES);
        world.sql("live", "COMMENT ON DATABASE THIS IS 'the one'");
    },
    plan: |world| {
        let (live, new) = (world.name("live"), world.name("new"));
        let because = "made up for the test";
        json!({ "steps": {
            "create": { "postgres.create_database": { "target": "db", "database": new } },
            "table": { "postgres.execute": {
                "target": "db", "database": new, "sql": "CREATE TABLE public.counters AS SELECT 1 AS n",
            } },
            "swap": {
                // Named, so that the whole server isn't locked: worlds are side by side.
                "postgres.swap_databases": { "target": "db", "live": live, "replacement": new, "keep": world.name("old") },
                "allow": ["unproven_backup", "unverified_destruction"], "because": because,
            },
            "count": { "postgres.execute": {
                "target": "db", "database": live, "sql": "UPDATE public.counters SET n = n + 1",
            } },
            "drop": {
                "postgres.drop_database": { "target": "db", "database": world.name("spare"), "force": true },
                "allow": ["unproven_backup", "unverified_destruction"], "because": because,
            },
        } })
    },
    varying: &["create.oid"],
    ..Case::PLAIN
};

#[test]
fn a_swap_happens_once_and_leaves_all_doors_open() {
    every_point(&SWAP, 12);
}

#[test]
fn a_swap_happens_once_killed_twice() {
    twice(&SWAP, 25);
}

#[test]
fn a_swap_happens_once_killed_in_the_resume() {
    every_point_of_the_resume(&SWAP, "sql ALTER: after", 12);
}

/// Counters in databases of their own, all raised at once, and one that waits for all.
const WIDE: Case = Case {
    name: "side by side",
    set: |world| WIDTH.iter().for_each(|part| world.create(part, TABLES)),
    plan: |world| {
        let raise = |part: &str, needs: Value| {
            json!({
                "needs": needs,
                "postgres.execute": {
                    "target": "db", "database": world.name(part), "sql": "UPDATE public.counters SET n = n + 1",
                },
            })
        };
        let mut steps: serde_json::Map<_, _> =
            WIDTH.iter().map(|part| ((*part).to_owned(), raise(part, json!([])))).collect();
        steps.insert("then".to_owned(), raise(WIDTH[0], json!(WIDTH)));
        json!({ "steps": steps })
    },
    jobs: "4",
    ..Case::PLAIN
};

const WIDTH: [&str; 4] = ["east", "north", "south", "west"];

#[test]
fn steps_side_by_side_happen_once_each() {
    every_point(&WIDE, 12);
}

#[test]
fn steps_side_by_side_happen_once_each_killed_twice() {
    twice(&WIDE, 24);
}

/// Backups to a folder and a bucket, read back, copied, pruned, restored.
const BACKUPS: Case = Case {
    name: "backups",
    set: |world| {
        world.create("live", TABLES);
        let bucket = format!("{}/{}", endpoint(), bucket(world));
        world.block(async {
            assert!(reqwest::Client::new().put(bucket).send().await.unwrap().status().is_success());
        });
    },
    targets: |world| {
        json!({ "bucket": { "storage": {
            "scheme": "s3", "bucket": bucket(world), "root": "/backups", "endpoint": endpoint(), "region": "us-east-1",
            "access_key_id": "testing", "secret_access_key": "testing", "disable_config_load": "true",
        } } })
    },
    plan: |world| {
        let (live, restored) = (world.name("live"), world.name("restored"));
        let backup = |storage: &str, path: &str| json!({ "postgres.backup": { "target": "db", "database": live, "to": { "storage": storage, "path": path } } });
        json!({ "steps": {
            "first": backup("store", "live_1.sql.zst"),
            "second": backup("store", "live_2.dump"),
            "off-site": backup("bucket", "live_3.sql.gz"),
            "copy": { "storage.copy": {
                "from": { "storage": "store", "path": "{{ steps.second.path }}" },
                "to": { "storage": "bucket", "path": "copied.dump" },
            } },
            "restore": { "postgres.restore": {
                "target": "db", "database": restored, "create": true,
                "from": { "storage": "store", "path": "{{ steps.first.path }}" },
            } },
            "verify": { "postgres.verify_counts": {
                "target": "db", "database": restored, "against": { "storage": "store", "path": "{{ steps.first.path }}" },
            } },
            "archive": { "postgres.restore": {
                "target": "db", "database": world.name("archive"), "create": true,
                "from": { "storage": "store", "path": "{{ steps.second.path }}" },
            } },
            "part": { "postgres.restore": {
                "target": "db", "database": world.name("part"), "create": true, "tables": ["public.counters"],
                "from": { "storage": "store", "path": "{{ steps.first.path }}" },
            } },
            "prune": { "storage.prune": { "target": "store", "prefix": "live_", "keep": { "last": 1 } } },
        } })
    },
    look: |world| {
        let list = format!("{}/{}?list-type=2", endpoint(), bucket(world));
        let listed = world.block(async { reqwest::get(list).await.unwrap().text().await.unwrap() });
        let keys = listed.split("<Key>").skip(1).map(|rest| rest.split('<').next().unwrap());
        keys.collect::<Vec<_>>().into()
    },
    varying: &[
        "first.sha256",
        "first.bytes",
        "first.taken_at",
        "second.sha256",
        "second.bytes",
        "second.taken_at",
        "off-site.sha256",
        "off-site.bytes",
        "off-site.taken_at",
        "copy.sha256",
        "copy.bytes",
        "restore.bytes",
        "restore.taken_at",
        "archive.bytes",
        "archive.taken_at",
        "part.bytes",
        "part.taken_at",
        "verify.taken_at",
    ],
    ..Case::PLAIN
};

fn endpoint() -> String {
    std::env::var("LIFEBOAT_TEST_S3").expect("LIFEBOAT_TEST_S3: start the services with `just services-up`")
}

fn bucket(world: &World) -> String {
    world.prefix.replace('_', "-")
}

#[test]
fn backups_are_whole_or_not_there() {
    every_point(&BACKUPS, 50);
}

#[test]
fn backups_are_whole_or_not_there_killed_twice() {
    twice(&BACKUPS, 90);
}

#[test]
fn backups_are_whole_or_not_there_killed_in_the_resume() {
    every_point_of_the_resume(&BACKUPS, "storage: a piece", 60);
}

/// A dump of a table that is loaded in several chunks, so many small ones that they are made over several connections,
/// keys, indexes, a sequence and a foreign key.
fn dump() -> &'static [u8] {
    const CONTENT: &str = "CREATE TABLE big (id bigint PRIMARY KEY, pad text, n numeric); \
        INSERT INTO big SELECT g, repeat(md5(g::text), 12), g / 3.0 FROM generate_series(1, 12000) g; \
        CREATE INDEX ON big (n); \
        DO $$ BEGIN FOR n IN 1..70 LOOP EXECUTE format('CREATE TABLE many_%s (n int)', n); END LOOP; END $$; \
        CREATE TABLE small (id serial PRIMARY KEY, big bigint REFERENCES big, word text UNIQUE); \
        INSERT INTO small (big, word) SELECT g, 'word ' || g FROM generate_series(1, 300) g; \
        CREATE TABLE other AS SELECT g AS n FROM generate_series(1, 300) g; \
        CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; \
        CREATE TRIGGER t BEFORE INSERT ON small FOR EACH ROW EXECUTE FUNCTION f(); \
        CREATE MATERIALIZED VIEW seen AS SELECT count(*) FROM big";
    static DUMP: OnceLock<Vec<u8>> = OnceLock::new();
    DUMP.get_or_init(|| {
        let databases = Databases::new("kill_dumped");
        let name = tokio::runtime::Runtime::new().unwrap().block_on(databases.create("from", CONTENT));
        let output = Command::new(tool("pg_dump")).arg(url_with(&postgres_url(), None, &name)).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    })
}

/// A restore over two connections, in chunks: of each that was committed, the rows are kept, and none comes twice.
const RESTORE: Case = Case {
    name: "restore",
    set: |world| std::fs::write(world.path("store/live.sql"), dump()).unwrap(),
    plan: |world| {
        json!({ "steps": { "restore": { "postgres.restore": {
            "target": "db", "database": world.name("new"), "create": true, "jobs": 2,
            "from": { "storage": "store", "path": "live.sql" },
        } } } })
    },
    ..Case::PLAIN
};

#[test]
fn a_restore_in_chunks_loads_each_row_once() {
    every_point(&RESTORE, 25);
}

#[test]
fn a_restore_in_chunks_loads_each_row_once_killed_twice() {
    twice(&RESTORE, 40);
}

#[test]
fn a_restore_in_chunks_loads_each_row_once_killed_in_the_resume() {
    every_point_of_the_resume(&RESTORE, "sql COMMIT: after", 30);
}
