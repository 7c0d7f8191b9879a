//! `verify_counts` and `verify`.

use lifeboat::step::effect::Resource;
use lifeboat::step::world::{Fact, World};
use lifeboat::step::{Action, Certainty};
use serde_json::{Value, json};

use crate::support::{Databases, Harness, postgres, postgres_url, sql, unique, url_with};

const COUNTS: &str = "postgres.verify_counts";
const VERIFY: &str = "postgres.verify";

const SHOP: &str = "
    CREATE TABLE customer (id serial PRIMARY KEY, name text);
    CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer int REFERENCES customer);
    INSERT INTO customer (name) SELECT 'c' || g FROM generate_series(1, 10) g;
    INSERT INTO orders (customer) SELECT g FROM generate_series(1, 10) g;";

#[tokio::test]
async fn counts_are_compared_and_everything_that_is_off_is_named() {
    let (harness, names) = (Harness::new(), Databases::new("counts"));
    let name = names.create("db", SHOP).await;
    let params = |tables: Value| json!({ "target": "db", "database": name, "tables": tables });
    let good = params(json!({ "public.customer": 10, "public.orders": { "min": 1 } }));
    let preview = harness.preview(COUNTS, good.clone(), &World::default()).await;
    assert_eq!((preview.action, preview.certainty), (Action::Read, Certainty::Observed), "{preview:?}");
    let done = harness.run(COUNTS, good).await.unwrap();
    assert_eq!(done.outputs["tables"], json!({ "public.customer": 10, "public.orders": 10 }));
    let bad = params(json!({ "public.customer": 11, "public.orders": { "max": 9 }, "public.none": 1 }));
    let failure = harness.run(COUNTS, bad.clone()).await.unwrap_err();
    for said in [
        "customer has 10 rows: wanted 11",
        "orders has 10 rows: wanted at most 9",
        "public.none: there is no such table",
    ] {
        assert!(failure.message.contains(said), "{failure}");
    }
    assert!(!failure.transient);
    assert_eq!(harness.preview(COUNTS, bad, &World::default()).await.action, Action::Blocked);
}

#[tokio::test]
async fn counts_of_a_database_to_be_restored_are_foretold() {
    let (harness, names) = (Harness::new(), Databases::new("foretold"));
    let name = names.name("side");
    let mut world = World::default();
    let rows = Some([("auth.users".to_owned(), 42)].into());
    world.foretell(Resource::database("db", &name), Fact::Present { rows }, &"restore".into());
    let ask = async |tables: Value| {
        harness.preview(COUNTS, json!({ "target": "db", "database": name, "tables": tables }), &world).await
    };
    let good = ask(json!({ "auth.users": { "min": 1 } })).await;
    assert_eq!((good.action, good.certainty), (Action::Read, Certainty::Assumed), "{good:?}");
    assert_eq!(ask(json!({ "auth.users": 41 })).await.action, Action::Blocked);
    assert_eq!(ask(json!({ "auth.jwks": 1 })).await.action, Action::Blocked);
    let params = json!({ "target": "db", "database": name, "tables": { "a.b": 1 } });
    assert_eq!(harness.preview(COUNTS, params, &World::default()).await.action, Action::Blocked);
}

#[tokio::test]
async fn counts_are_compared_with_a_backups_manifest() {
    let names = Databases::new("manifest");
    let name = names.create("db", SHOP).await;
    let folder = tempfile::tempdir().unwrap();
    let storage = serde_json::from_value(json!({ "storage": { "scheme": "fs", "root": folder.path() } })).unwrap();
    let harness = Harness::with([("db", postgres(&postgres_url())), ("backups", storage)]);
    let manifest = json!({
        "lifeboat_manifest": 1, "path": "b.sql.gz", "bytes": 1, "sha256": "00", "format": "plain", "compression": "gzip",
        "database": name, "system_identifier": "1", "server_version": "15.1", "tool_version": "15.1", "wal_lsn": "0/0",
        "taken_at": "2024-02-01T10:00:00Z", "encoding": "UTF8", "collate": "C", "ctype": "C",
        "tables": { "public.customer": 10, "public.orders": 11 }, "rows": 21, "partial": false, "run": "r", "step": "s",
    });
    std::fs::write(folder.path().join("b.sql.gz.manifest.json"), manifest.to_string()).unwrap();
    let against = json!({ "storage": "backups", "path": "b.sql.gz" });
    let all = json!({ "target": "db", "database": name, "against": against });
    let failure = harness.run(COUNTS, all.clone()).await.unwrap_err();
    assert!(failure.message.contains("public.orders has 10 rows: the backup has 11"), "{failure}");
    assert!(!failure.message.contains("customer"), "{failure}");
    assert_eq!(harness.preview(COUNTS, all, &World::default()).await.action, Action::Blocked);
    let near = json!({ "target": "db", "database": name, "against": against,
        "tables": { "public.orders": { "matches_backup": true, "within": "10%" } } });
    harness.run(COUNTS, near.clone()).await.unwrap();
    assert_eq!(harness.preview(COUNTS, near, &World::default()).await.certainty, Certainty::Observed);
    let none = json!({ "target": "db", "database": name, "against": { "storage": "backups", "path": "other.gz" } });
    assert!(harness.run(COUNTS, none).await.unwrap_err().message.contains("no manifest"));
}

#[tokio::test]
async fn heirs_rows_are_not_their_parents_in_a_backup() {
    let names = Databases::new("heirs");
    let heirs = "CREATE TABLE parent (a int); CREATE TABLE child () INHERITS (parent); \
         INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2), (3)";
    let name = names.create("db", heirs).await;
    let folder = tempfile::tempdir().unwrap();
    let storage = serde_json::from_value(json!({ "storage": { "scheme": "fs", "root": folder.path() } })).unwrap();
    let harness = Harness::with([("db", postgres(&postgres_url())), ("backups", storage)]);
    let place = json!({ "storage": "backups", "path": "b.sql.zst" });
    harness.run("postgres.backup", json!({ "target": "db", "database": name, "to": place })).await.unwrap();
    let all = json!({ "target": "db", "database": name, "against": place });
    let done = harness.run(COUNTS, all.clone()).await.unwrap();
    assert_eq!(done.outputs["tables"], json!({ "public.child": 2, "public.parent": 1 }));
    // A matcher sees what a query of the table sees.
    let by_matcher = json!({ "target": "db", "database": name, "tables": { "public.parent": 3 } });
    harness.run(COUNTS, by_matcher).await.unwrap();
    sql(&name, "DELETE FROM ONLY parent; INSERT INTO child VALUES (1)").await;
    let failure = harness.run(COUNTS, all).await.unwrap_err();
    assert!(failure.message.contains("public.parent has 0 rows: the backup has 1"), "{failure}");
}

#[tokio::test]
async fn rows_hidden_by_row_security_are_a_failure_not_a_count() {
    let names = Databases::new("rls");
    let name = names
        .create("db", "CREATE TABLE t (a int); INSERT INTO t VALUES (1); ALTER TABLE t ENABLE ROW LEVEL SECURITY")
        .await;
    let role = unique("role");
    sql(&name, &format!("CREATE ROLE {role} LOGIN PASSWORD 'pw'; GRANT SELECT ON t TO {role}")).await;
    let harness = Harness::with([("db", postgres(&url_with(&postgres_url(), Some((&role, "pw")), "postgres")))]);
    let params = json!({ "target": "db", "database": name, "tables": { "public.t": 0 } });
    let failure = harness.run(COUNTS, params).await.unwrap_err();
    assert!(failure.message.contains("row-level security"), "{failure}");
    sql(&name, &format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test]
async fn checks_and_constraints_pass_on_a_sound_database() {
    let (harness, names) = (Harness::new(), Databases::new("sound"));
    let name = names.create("db", SHOP).await;
    let params = json!({
        "target": "db", "database": name, "constraints": true,
        "checks": { "orders": { "sql": "SELECT count(*) FROM public.orders", "expect": { "min": 10 } } },
    });
    let preview = harness.preview(VERIFY, params.clone(), &World::default()).await;
    assert_eq!((preview.action, preview.certainty), (Action::Read, Certainty::Observed), "{preview:?}");
    let done = harness.run(VERIFY, params).await.unwrap();
    assert_eq!(done.outputs["checks"], json!({ "orders": 10 }));
    assert!(done.summary.as_ref().unwrap().contains("1 foreign key and 2 sequences"), "{done:?}");
}

#[tokio::test]
async fn broken_promises_are_all_named() {
    let (harness, names) = (Harness::new(), Databases::new("broken"));
    let name = names.create("db", SHOP).await;
    sql(
        &name,
        "SET session_replication_role = replica; DELETE FROM customer WHERE id IN (3, 4); RESET session_replication_role;
         ALTER SEQUENCE customer_id_seq RESTART WITH 5;
         CREATE INDEX broken ON orders (customer);
         UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'broken'::regclass;
         ALTER TABLE orders ADD CONSTRAINT later CHECK (id < 0) NOT VALID",
    )
    .await;
    let params = json!({
        "target": "db", "database": name, "constraints": true,
        "checks": {
            "wrong": { "sql": "SELECT count(*) FROM public.orders", "expect": 11 },
            "impossible": { "sql": "SELECT count(*) FROM public.nowhere", "expect": 11 },
        },
    });
    let failure = harness.run(VERIFY, params.clone()).await.unwrap_err();
    for said in [
        "wrong: expected 11, got 10",
        "impossible: ",
        "orders_customer_fkey on public.orders: 2 rows without",
        "sequence public.customer_id_seq",
        "index public.broken is not valid",
        "constraint later on public.orders is not validated",
    ] {
        assert!(failure.message.contains(said), "{said} in {failure}");
    }
    assert_eq!(harness.preview(VERIFY, params, &World::default()).await.action, Action::Blocked);
}
