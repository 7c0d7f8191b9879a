//! Backups of parts of a database: those that can't be restored by themselves are told apart before they are taken.

use lifeboat::step::Action;
use lifeboat::step::world::World;
use serde_json::{Value, json};

use crate::fixture::{Place, backup, pg_dump};
use crate::support::value;

const BACKUP: &str = "postgres.backup";
const RESTORE: &str = "postgres.restore";

/// A part needs whatever a table may: types, functions, sequences, keys, parents, operators of an extension.
const CONTENT: &str = r#"
CREATE EXTENSION citext; CREATE EXTENSION pg_trgm;
CREATE SCHEMA app; CREATE SCHEMA "Other"; CREATE SCHEMA lone;
CREATE TYPE "Other".kind AS ENUM ('a', 'b'); CREATE DOMAIN app.short AS text CHECK (length(VALUE) < 10);
CREATE SEQUENCE "Other".counter;
CREATE FUNCTION "Other".touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE FUNCTION app.one() RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 1';
CREATE TABLE lone.plain (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n serial, at date DEFAULT now(), tags text[]);
INSERT INTO lone.plain (at) SELECT now() FROM generate_series(1, 5);
CREATE TABLE lone.refers (id int PRIMARY KEY, plain int REFERENCES lone.plain, parent int REFERENCES lone.refers);
CREATE TABLE lone.typed (kind "Other".kind); CREATE TABLE lone.typed_array (kinds "Other".kind[]);
CREATE TABLE lone.domained (a app.short); CREATE TABLE lone.row_typed (a lone.plain);
CREATE TABLE lone.numbered (n bigint DEFAULT nextval('"Other".counter'));
CREATE TABLE lone.triggered (n int); CREATE TRIGGER t BEFORE INSERT ON lone.triggered FOR EACH ROW EXECUTE FUNCTION "Other".touch();
CREATE TABLE lone.checked (n int CHECK (n > app.one())); CREATE TABLE lone.indexed (n int); CREATE INDEX ON lone.indexed ((n + app.one()));
CREATE TABLE lone.of_extension (a public.citext); CREATE TABLE lone.searched (a text);
CREATE INDEX ON lone.searched USING gin (a public.gin_trgm_ops);
CREATE TABLE lone.child () INHERITS (lone.plain);
CREATE TABLE lone.guarded (n int); ALTER TABLE lone.guarded ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON lone.guarded USING (n IN (SELECT id FROM lone.plain));
CREATE TABLE app.events (at date NOT NULL, n int) PARTITION BY RANGE (at);
CREATE TABLE app.events_1 PARTITION OF app.events FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE "Other".events_2 PARTITION OF app.events FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
INSERT INTO app.events SELECT date '2024-06-01' + g * 10, 1 FROM generate_series(1, 40) g;
CREATE TABLE app.seen (n int); CREATE VIEW app.of_seen AS SELECT * FROM app.seen;
CREATE TABLE app.used (n int); CREATE VIEW "Other".of_used AS SELECT * FROM app.used;
"#;

fn to(database: &str, path: &str, more: &Value) -> Value {
    let mut params = json!({ "target": "db", "database": database, "to": { "storage": "store", "path": path } });
    params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    params
}

fn from(database: &str, path: &str) -> Value {
    json!({ "target": "db", "database": database, "create": true, "from": { "storage": "store", "path": path } })
}

/// What is foretold must be so: a part is told to lack something if, and only if, it can't be restored.
#[tokio::test]
async fn a_part_that_needs_what_it_leaves_out_is_told_before_it_is_taken() {
    let place = Place::new("pa_parts");
    let database = place.names.create("live", CONTENT).await;
    let table = |name: &str| json!({ "tables": [name] });
    let (whole, lacking) = (|part| (part, None), |part, what| (part, Some(what)));
    let parts = [
        whole(table("lone.plain")),
        lacking(table("lone.refers"), "table lone.plain (for lone.refers)"),
        whole(json!({ "tables": ["lone.refers", "lone.plain"] })),
        lacking(table("lone.typed"), r#"type "Other".kind (for lone.typed)"#),
        lacking(table("lone.typed_array"), r#"type "Other".kind[] (for lone.typed_array)"#),
        lacking(table("lone.domained"), "type app.short (for lone.domained)"),
        lacking(table("lone.row_typed"), "type lone.plain (for lone.row_typed)"),
        lacking(table("lone.numbered"), r#"sequence "Other".counter (for lone.numbered)"#),
        lacking(table("lone.triggered"), r#"function "Other".touch() (for lone.triggered)"#),
        lacking(table("lone.checked"), "function app.one() (for lone.checked)"),
        lacking(table("lone.indexed"), "function app.one() (for lone.indexed)"),
        lacking(table("lone.of_extension"), "type public.citext (for lone.of_extension)"),
        lacking(table("lone.searched"), "operator class public.gin_trgm_ops USING gin (for lone.searched)"),
        lacking(table("lone.child"), "table lone.plain (for lone.child)"),
        lacking(table("lone.guarded"), "table lone.plain (for lone.guarded)"),
        whole(table("app.events")),
        whole(table("app.seen")),
        lacking(json!({ "schemas": ["lone"] }), "function app.one() (for lone.checked)"),
        whole(json!({ "schemas": ["app"] })),
        lacking(table("\"Other\".events_2"), "table app.events (for \"Other\".events_2)"),
        lacking(json!({ "schemas": ["Other"] }), "table app.used (for \"Other\".of_used)"),
        whole(json!({ "schemas": ["app", "Other"] })),
        whole(json!({ "exclude": ["lone.typed"] })),
        lacking(json!({ "exclude": ["lone.plain"] }), "table lone.plain (for lone.child)"),
        lacking(json!({ "exclude": ["app.used"] }), "table app.used (for \"Other\".of_used)"),
        whole(json!({ "exclude": ["app.events"] })),
    ];
    for (at, (part, lacks)) in parts.into_iter().enumerate() {
        for ending in ["sql.zst", "dump"] {
            let path = format!("{at}.{ending}");
            let params = to(&database, &path, &part);
            let preview = place.harness.preview(BACKUP, params.clone(), &World::default()).await;
            let told =
                preview.problems.iter().find(|problem| problem.message.contains("it leaves out what it needs"));
            match (lacks, told) {
                (None, None) => {}
                (Some(lacks), Some(told)) if told.message.contains(lacks) && !told.blocks => {}
                _ => panic!("{part} lacks {lacks:?}: {:?}", preview.problems),
            }
            place.harness.run(BACKUP, params).await.unwrap_or_else(|failure| panic!("{part}: {failure}"));
            let restored = place.names.name(&format!("r{at}{}", ending.len()));
            let done = place.harness.run(RESTORE, from(&restored, &path)).await;
            assert_eq!(done.is_ok(), lacks.is_none(), "{part} in {path}: {done:?}");
        }
        if lacks.is_some() {
            let mut params = to(&database, "never.sql", &part);
            params["verify"] = json!("restore");
            let preview = place.harness.preview(BACKUP, params, &World::default()).await;
            assert_eq!(preview.action, Action::Blocked, "{part}");
        }
    }
}

/// Also those that were taken without Lifeboat, into a new database or an empty one.
#[tokio::test]
async fn a_restore_makes_the_schemas_that_a_part_leaves_out() {
    let mut place = Place::new("pa_schemas");
    let database = place.names.create("live", CONTENT).await;
    let part = ["--table=lone.plain", "--table=\"Other\".counter", "--table=app.seen"];
    std::fs::write(place.path("a.sql"), pg_dump(&database, &part)).unwrap();
    std::fs::write(place.path("a.dump"), pg_dump(&database, &[&part[..], &["-Fc"]].concat())).unwrap();
    backup(&place, &database, "proven.sql.gz", json!({ "tables": ["lone.plain"], "verify": "restore" }))
        .await
        .unwrap();
    let said = "schemas that it doesn't make are made for it: Other, app, lone";
    for (at, path) in ["a.sql", "a.dump"].into_iter().enumerate() {
        for (way, more) in [json!({}), json!({ "jobs": 1 }), json!({ "create": false })].into_iter().enumerate() {
            place.another_run(None);
            let empty = more["create"] == false;
            let restored = place.names.name(&format!("r{at}{way}"));
            if empty {
                place.names.create(&format!("r{at}{way}"), "").await;
            }
            let mut params = from(&restored, path);
            params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let preview = place.harness.preview(RESTORE, params.clone(), &World::default()).await;
            assert!(preview.problems.iter().any(|problem| problem.message.contains(said)), "{preview:?}");
            let done = place.harness.run(RESTORE, params).await;
            assert_eq!(done.unwrap_or_else(|failure| panic!("{path} {more}: {failure}")).outputs["rows"], 5);
            assert_eq!(value(&restored, "SELECT max(n)::text FROM lone.plain").await.unwrap(), "5");
            assert!(place.harness.journal.log_text().contains(said));
        }
    }
}

/// `psql` would say so once all rows are loaded.
#[tokio::test]
async fn a_key_to_a_table_that_the_dump_lacks_is_told_before_anything_is_made() {
    let place = Place::new("pa_keys");
    let database = place.names.create("live", CONTENT).await;
    backup(&place, &database, "a.sql", json!({ "tables": ["lone.refers"] })).await.unwrap();
    let params = from(&place.names.name("r"), "a.sql");
    let preview = place.harness.preview(RESTORE, params.clone(), &World::default()).await;
    let said = "it has foreign keys to tables that it doesn't hold: refers_plain_fkey of lone.refers to lone.plain";
    assert!(preview.action == Action::Blocked && preview.problems[0].message.contains(said), "{preview:?}");
    let failure = place.harness.run(RESTORE, params.clone()).await.unwrap_err();
    assert!(failure.message.contains(said), "{failure}");
    // As its words say.
    let mut params = params;
    params["tables"] = json!(["lone.refers"]);
    place.harness.run(RESTORE, params).await.unwrap();
    let keys = "SELECT string_agg(conname, ' ' ORDER BY conname) FROM pg_constraint WHERE contype = 'f'";
    assert_eq!(value(&place.names.name("r"), keys).await.unwrap(), "refers_parent_fkey");
}
