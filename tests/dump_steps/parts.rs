//! Schemas and tables out of plain dumps: what comes along, what is left out, and what is refused.

use lifeboat::step::Action;
use lifeboat::step::world::{Fact, World};
use serde_json::{Value, json};

use crate::fixture::{Place, gzip, pg_dump};
use crate::support::value;

const RESTORE: &str = "postgres.restore";

/// Three schemas that need each other, and an event trigger that would keep tables from being dropped.
const CONTENT: &str = r"
CREATE EXTENSION citext;
CREATE SCHEMA app; CREATE SCHEMA other; CREATE SCHEMA lone;
CREATE TYPE other.kind AS ENUM ('a', 'b');
CREATE DOMAIN lone.short AS text CHECK (length(VALUE) < 10);
CREATE FUNCTION lone.f() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE TABLE lone.t (a lone.short); INSERT INTO lone.t VALUES ('x');
CREATE FUNCTION other.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE SEQUENCE other.counter; CREATE SEQUENCE other.unused;
CREATE TABLE other.users (id int PRIMARY KEY, name citext); INSERT INTO other.users VALUES (1, 'Ann'), (2, 'Bob');
CREATE TABLE app.orders (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, kind other.kind NOT NULL,
  user_id int REFERENCES other.users, number bigint DEFAULT nextval('other.counter'), CHECK (number > 0));
COMMENT ON CONSTRAINT orders_user_id_fkey ON app.orders IS 'who';
CREATE TRIGGER touch BEFORE INSERT ON app.orders FOR EACH ROW EXECUTE FUNCTION other.touch();
INSERT INTO app.orders (kind, user_id) SELECT 'a', 1 + g % 2 FROM generate_series(1, 100) g;
CREATE TABLE app.lines (order_id int REFERENCES app.orders, what text);
CREATE INDEX lines_what ON app.lines (what); INSERT INTO app.lines SELECT g, 'l' FROM generate_series(1, 50) g;
CREATE TABLE app.events (at date NOT NULL, order_id int REFERENCES app.orders) PARTITION BY RANGE (at);
CREATE TABLE app.events_1 PARTITION OF app.events FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE other.events_2 PARTITION OF app.events FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
INSERT INTO app.events SELECT date '2024-06-01' + g * 10, 1 FROM generate_series(1, 40) g;
CREATE TABLE other.log (order_id int REFERENCES app.orders); INSERT INTO other.log VALUES (1), (2), (3);
CREATE VIEW app.mine AS SELECT id, number FROM app.orders;
CREATE VIEW app.by_user AS SELECT u.name, count(*) FROM app.orders o JOIN other.users u ON u.id = o.user_id GROUP BY 1;
CREATE VIEW other.all_of_it AS SELECT * FROM app.by_user;
CREATE MATERIALIZED VIEW other.sums AS SELECT sum(number) FROM app.orders;
CREATE FUNCTION other.never() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'nothing is dropped here'; END$$;
CREATE EVENT TRIGGER never ON sql_drop EXECUTE FUNCTION other.never();
CREATE PUBLICATION everyone FOR TABLE other.users, app.orders;
";

/// What a database holds, an object a line.
async fn content(database: &str) -> Vec<String> {
    let sql = "SELECT string_agg(o.what, E'\n' ORDER BY o.what COLLATE \"C\") FROM ( \
        SELECT i.type || ' ' || i.identity AS what FROM pg_depend d, pg_identify_object(d.classid, d.objid, 0) i \
         WHERE d.refclassid = 'pg_namespace'::regclass AND d.deptype = 'n' AND d.objid >= 16384 \
           AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = d.classid AND e.objid = d.objid AND e.deptype = 'e') \
        UNION SELECT i.type || ' ' || i.identity FROM pg_constraint c, pg_identify_object('pg_constraint'::regclass, c.oid, 0) i \
         WHERE c.conrelid >= 16384 AND c.conparentid = 0 \
        UNION SELECT 'trigger ' || tgname FROM pg_trigger WHERE NOT tgisinternal \
        UNION SELECT 'event trigger ' || evtname FROM pg_event_trigger \
        UNION SELECT 'publication ' || pubname FROM pg_publication \
        UNION SELECT 'schema ' || nspname FROM pg_namespace WHERE oid >= 16384 AND nspname !~ '^pg_') o";
    value(database, sql).await.unwrap().lines().map(str::to_owned).collect()
}

fn params(database: &str, path: &str, more: Value) -> Value {
    let mut params = json!({
        "target": "db", "database": database, "from": { "storage": "store", "path": path }, "create": true,
    });
    params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    params
}

async fn counted(database: &str, table: &str) -> String {
    value(database, &format!("SELECT count(*)::text FROM {table}")).await.unwrap()
}

#[tokio::test]
async fn a_schema_comes_with_what_it_needs_and_without_what_needs_others() {
    let place = Place::new("rs_schema");
    let database = place.names.create("live", CONTENT).await;
    std::fs::write(place.path("a.sql.gz"), gzip(&pg_dump(&database, &[]))).unwrap();
    for (at, jobs) in [json!({}), json!({ "jobs": 1 })].into_iter().enumerate() {
        let restored = place.names.name(&format!("restored{at}"));
        let mut params = params(&restored, "a.sql.gz", json!({ "schemas": ["app"] }));
        params.as_object_mut().unwrap().extend(jobs.as_object().unwrap().clone());
        let preview = place.harness.preview(RESTORE, params.clone(), &World::default()).await;
        let foretold: Vec<_> = preview.problems.iter().map(|problem| problem.message.as_str()).collect();
        assert!(
            foretold
                .contains(&"left out: the foreign key orders_user_id_fkey of app.orders: it refers to other.users"),
            "{foretold:?}"
        );
        let done = place.harness.run(RESTORE, params).await.unwrap();
        assert_eq!((&done.outputs["rows"], &done.outputs["tables"]), (&json!(190), &json!(4)));
        insta::assert_snapshot!("a_schema", content(&restored).await.join("\n"));
        for (table, rows) in
            [("app.orders", "100"), ("app.lines", "50"), ("app.events", "40"), ("other.events_2", "19")]
        {
            assert_eq!(counted(&restored, table).await, rows, "{table}");
        }
        assert_eq!(value(&restored, "SELECT last_value::text FROM other.counter").await.unwrap(), "100");
        let log = place.harness.journal.log_text();
        for left in ["foreign key orders_user_id_fkey", "the view app.by_user"] {
            assert!(log.contains(&format!("left out: the {}", left.trim_start_matches("the "))), "{left}: {log}");
        }
    }
}

#[tokio::test]
async fn keys_of_a_parent_that_stays_behind_are_the_partitions_own() {
    let place = Place::new("rs_above");
    let database = place.names.create("live", CONTENT).await;
    std::fs::write(place.path("a.sql"), pg_dump(&database, &[])).unwrap();
    for (at, chosen) in
        [json!({ "schemas": ["other"] }), json!({ "tables": ["other.events_2"] })].iter().enumerate()
    {
        let restored = place.names.name(&format!("restored{at}"));
        let params = params(&restored, "a.sql", chosen.clone());
        let said = "left out: the foreign key events_order_id_fkey of app.events: it refers to app.orders";
        let preview = place.harness.preview(RESTORE, params.clone(), &World::default()).await;
        assert!(preview.problems.iter().any(|problem| problem.message == said), "{preview:?}");
        place.harness.run(RESTORE, params).await.unwrap_or_else(|failure| panic!("{chosen}: {failure}"));
        assert_eq!(counted(&restored, "other.events_2").await, "19");
        assert!(place.harness.journal.log_text().contains(said));
    }
}

/// A partition whose parent is elsewhere, functions whose text names what no catalog knows of, materialised views.
const TANGLED: &str = r"
CREATE SCHEMA app; CREATE SCHEMA lib; CREATE SCHEMA named; CREATE SCHEMA far; CREATE SCHEMA gone;
CREATE FUNCTION lib.norm(t text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT pg_catalog.lower(t)';
CREATE FUNCTION named.helper() RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE FUNCTION gone.other() RETURNS int LANGUAGE sql AS 'SELECT 2';
CREATE SEQUENCE far.numbers; CREATE SEQUENCE far.others;
CREATE TABLE far.parent (at date, what text) PARTITION BY RANGE (at);
CREATE TABLE app.part PARTITION OF far.parent FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE app.own (a int DEFAULT 1, b text); INSERT INTO app.own VALUES (1, 'x'), (2, 'y');
INSERT INTO far.parent SELECT date '2024-01-01' + g, 'w' || g FROM generate_series(1, 50) g;
CREATE FUNCTION app.stamp() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM named.helper(), nextval('far.numbers'); RETURN NEW; END$$;
CREATE TRIGGER on_parent BEFORE INSERT ON far.parent FOR EACH ROW EXECUTE FUNCTION app.stamp();
CREATE TRIGGER on_own BEFORE INSERT ON app.own FOR EACH ROW EXECUTE FUNCTION app.stamp();
CREATE INDEX part_norm ON app.part (lib.norm(what)); CREATE STATISTICS app.part_norms ON (lib.norm(what)), at FROM app.part;
CREATE TABLE far.rates (r int); INSERT INTO far.rates VALUES (1);
CREATE MATERIALIZED VIEW far.share AS SELECT 100 / count(*) AS n FROM far.rates;
CREATE MATERIALIZED VIEW app.of_far AS SELECT 100 / count(*) AS n FROM far.rates;
CREATE MATERIALIZED VIEW app.sums AS SELECT 100 / count(*) AS n FROM app.own; CREATE UNIQUE INDEX ON app.sums (n);
CREATE MATERIALIZED VIEW app.more AS SELECT n + 1 AS n FROM app.sums;
CREATE MATERIALIZED VIEW app.hollow AS SELECT 1 AS a WITH NO DATA;
CREATE PUBLICATION everyone FOR TABLE app.own;
";

#[tokio::test]
async fn what_goes_is_told_and_what_texts_name_stays() {
    let place = Place::new("rs_tangled");
    let database = place.names.create("live", TANGLED).await;
    std::fs::write(place.path("a.sql"), pg_dump(&database, &[])).unwrap();
    let restored = place.names.name("restored");
    place.harness.run(RESTORE, params(&restored, "a.sql", json!({ "schemas": ["app"] }))).await.unwrap();
    insta::assert_snapshot!("tangled", content(&restored).await.join("\n"));
    let log = place.harness.journal.log_text();
    let left: std::collections::BTreeSet<_> =
        log.lines().filter_map(|line| line.strip_prefix("left out: ")).collect();
    let left: Vec<_> = left.into_iter().collect();
    assert_eq!(
        left,
        [
            "the materialized view app.of_far: it needs what is not chosen",
            "the publication everyone: it is the whole database's",
            "the trigger on_parent on app.part: it needs what is not chosen",
        ]
    );
    assert_eq!(counted(&restored, "app.part").await, "50");
    assert_eq!(
        value(&restored, "SELECT (SELECT n FROM app.sums) || ' ' || (SELECT n FROM app.more)").await.unwrap(),
        "50 51"
    );
    let found = "SELECT to_regclass('app.part_norm')::text || ' ' || (SELECT stxname FROM pg_statistic_ext) || ' ' || \
                        (SELECT relispopulated FROM pg_class WHERE relname = 'hollow')";
    assert_eq!(value(&restored, found).await.unwrap(), "app.part_norm part_norms false");
    // What a trigger's text calls is there.
    crate::support::sql(&restored, "INSERT INTO app.own VALUES (3, 'z')").await;
}

#[tokio::test]
async fn what_goes_is_told_before_it_goes() {
    let place = Place::new("rs_told");
    // Its text needs what isn't chosen, as nobody can know before it runs.
    let broken = "CREATE FUNCTION app.rates() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM far.rates'; \
                  CREATE MATERIALIZED VIEW app.broken AS SELECT app.rates() AS n;";
    let database = place.names.create("live", &format!("{TANGLED} {broken}")).await;
    std::fs::write(place.path("a.sql"), pg_dump(&database, &[])).unwrap();
    let restored = place.names.name("restored");
    let params = params(&restored, "a.sql", json!({ "schemas": ["app"] }));
    let failure = place.harness.run(RESTORE, params).await.unwrap_err();
    assert!(failure.message.contains("fill app.broken") && failure.message.contains("far.rates"), "{failure}");
    let said = "left out: the trigger on_parent on app.part: it needs what is not chosen";
    assert!(place.harness.journal.log_text().contains(said), "{}", place.harness.journal.log_text());
}

#[tokio::test]
async fn tables_come_with_all_that_is_theirs() {
    let place = Place::new("rs_tables");
    let database = place.names.create("live", CONTENT).await;
    std::fs::write(place.path("a.sql"), pg_dump(&database, &[])).unwrap();
    let restored = place.names.name("restored");
    let chosen = json!({ "tables": ["app.orders", "other.events_2", "lone.t"] });
    let params = params(&restored, "a.sql", chosen);
    let preview = place.harness.preview(RESTORE, params.clone(), &World::default()).await;
    assert_eq!(preview.action, Action::Create, "{preview:?}");
    let foretold = preview.facts.iter().find_map(|fact| match fact {
        (_, Fact::Present { rows: Some(rows) }) => Some(rows.values().sum::<u64>()),
        _ => None,
    });
    assert_eq!(foretold, Some(120));
    let done = place.harness.run(RESTORE, params).await.unwrap();
    assert_eq!((&done.outputs["rows"], &done.outputs["tables"]), (&json!(120), &json!(3)));
    insta::assert_snapshot!("tables", content(&restored).await.join("\n"));
    assert_eq!(counted(&restored, "other.events_2").await, "19");
}

#[tokio::test]
async fn what_is_not_there_or_cannot_be_taken_apart_is_refused_before_anything_is_made() {
    let place = Place::new("rs_no_part");
    let database = place.names.create("live", CONTENT).await;
    std::fs::write(place.path("a.sql"), pg_dump(&database, &[])).unwrap();
    std::fs::write(place.path("i.sql"), pg_dump(&database, &["--inserts"])).unwrap();
    let restored = place.names.name("restored");
    for (path, more, said) in [
        ("a.sql", json!({ "schemas": ["app", "elsewhere"] }), "no rows of elsewhere"),
        ("a.sql", json!({ "tables": ["app.orders", "app.nothing"] }), "no rows of app.nothing"),
        ("a.sql", json!({ "tables": ["app.orders"], "create": false }), "goes into a new database only"),
        ("i.sql", json!({ "tables": ["app.orders"] }), "its rows come by INSERT"),
    ] {
        let params = params(&restored, path, more);
        let preview = place.harness.preview(RESTORE, params.clone(), &World::default()).await;
        assert_eq!(preview.action, Action::Blocked, "{said}");
        if params["create"] == true {
            let failure = place.harness.run(RESTORE, params).await.unwrap_err();
            assert!(failure.message.contains(said), "{failure}");
        }
    }
    // A table whose column is of another table's row type.
    let needs = "CREATE TABLE app_needs (u other.users); INSERT INTO app_needs VALUES (ROW(1, 'x'))";
    crate::support::sql(&database, needs).await;
    std::fs::write(place.path("b.sql"), pg_dump(&database, &[])).unwrap();
    let failure =
        place.harness.run(RESTORE, params(&restored, "b.sql", json!({ "tables": ["public.app_needs"] }))).await;
    let failure = failure.unwrap_err();
    assert!(failure.message.contains("public.app_needs.u can't be without what is not chosen"), "{failure}");
    let left = format!(
        "SELECT 1 FROM pg_database WHERE datname IN ('{restored}') OR starts_with(datname::text, 'lifeboat_{}')",
        place.harness.run
    );
    assert_eq!(value("postgres", &left).await, None);
}
