//! `postgres.copy_rows`.

use lifeboat::step::world::World;
use lifeboat::step::{Action, AfterKill, Certainty};
use serde_json::{Value, json};

use crate::fixture::Place;
use crate::support::{sql, value};

const COPY: &str = "postgres.copy_rows";

const SCHEMA: &str = r#"
CREATE SCHEMA auth;
CREATE TYPE auth.mood AS ENUM ('ok', 'sad');
CREATE TABLE auth.orgs (id int PRIMARY KEY, name text);
CREATE TABLE auth.users (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, org int REFERENCES auth.orgs, boss bigint REFERENCES auth.users,
  email text NOT NULL UNIQUE, note text, data jsonb, moods auth.mood[], raw bytea, at timestamptz, exact numeric, shout text GENERATED ALWAYS AS (upper(email)) STORED);
CREATE TABLE auth."se.ss""ions" (id serial PRIMARY KEY, "user" text REFERENCES auth.users (email), other bigint REFERENCES auth.users);
"#;

const ROWS: &str = r#"
INSERT INTO auth.orgs SELECT g, 'org ' || g FROM generate_series(1, 3) g;
INSERT INTO auth.users (id, org, boss, email, note, data, moods, raw, at, exact) OVERRIDING SYSTEM VALUE VALUES
  (1, 1, NULL, 'one', E'tab\there\nline \\. \\N back\\slash\r', E'{"a": "\\"q\\""}', '{ok,NULL,sad}', '\x00ff', '2024-02-01T10:00:00.123456+09', 0.10000000000000000001),
  (2, 2, 1, 'two', '', NULL, '{}', '', 'infinity', 'NaN'),
  (3, NULL, 2, 'three', NULL, 'null', NULL, NULL, NULL, NULL),
  (4, 3, NULL, 'four', NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO auth."se.ss""ions" ("user", other) SELECT 'three', 1 FROM generate_series(1, 50);
"#;

/// A database with rows, and an empty one like it.
async fn two(place: &Place) -> (String, String) {
    let from = place.names.create("backup", &format!("{SCHEMA}{ROWS}")).await;
    (from, place.names.create("live", SCHEMA).await)
}

fn params(from: &str, to: &str, table: &str, more: Value) -> Value {
    let mut params = json!({
        "from": { "target": "db", "database": from, "table": table },
        "to": { "target": "db", "database": to },
        "where": "true",
    });
    params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    params
}

async fn users(database: &str) -> String {
    value(database, "SELECT coalesce(string_agg(u::text, E'\\n' ORDER BY id), '') FROM auth.users u").await.unwrap()
}

#[tokio::test]
async fn chosen_rows_come_over_with_what_they_refer_to() {
    let place = Place::new("copy_follow");
    let (from, to) = two(&place).await;
    // How either side writes values down must not matter.
    sql("postgres", &format!("ALTER DATABASE {from} SET DateStyle = 'SQL, DMY'; ALTER DATABASE {to} SET DateStyle = 'Postgres, MDY'; ALTER DATABASE {from} SET bytea_output = 'escape'")).await;
    let sessions = "auth.\"se.ss\"\"ions\"";
    let chosen = params(
        &from,
        &to,
        sessions,
        json!({ "where": "id <= $1", "params": [20], "follow": true, "max_rows": 25 }),
    );
    let preview = place.harness.preview(COPY, chosen.clone(), &World::default()).await;
    assert_eq!((preview.action, preview.certainty), (Action::Change, Certainty::Observed), "{preview:?}");
    assert!(preview.summary.contains("copy 20 rows"), "{}", preview.summary);
    let done = place.harness.run(COPY, chosen.clone()).await.unwrap();
    // three's boss is two, whose boss is one; nobody refers to four.
    assert_eq!(done.outputs["rows"], json!({ "auth.orgs": 2, "auth.users": 3, sessions: 20 }));
    assert_eq!((&done.outputs["total"], &done.outputs["skipped"]), (&json!(25), &json!(0)));
    sql("postgres", &format!("ALTER DATABASE {from} RESET ALL; ALTER DATABASE {to} RESET ALL")).await;
    let wanted = users(&from).await;
    assert_eq!(
        users(&to).await,
        wanted.lines().filter(|line| !line.starts_with("(4,")).collect::<Vec<_>>().join("\n")
    );
    // New rows don't meet the copied ones.
    assert_eq!(
        value(&to, "INSERT INTO auth.\"se.ss\"\"ions\" (other) VALUES (1) RETURNING id").await.unwrap(),
        "21"
    );
    assert_eq!(value(&to, "INSERT INTO auth.users (email) VALUES ('new') RETURNING id").await.unwrap(), "4");
    // Once more, the same step knows that it has been.
    assert_eq!(place.harness.run(COPY, chosen.clone()).await.unwrap(), done);

    let one_less = params(
        &from,
        &to,
        sessions,
        json!({ "where": "id > 20", "follow": true, "max_rows": 34, "on_conflict": "skip" }),
    );
    let failure = place.again().run(COPY, one_less).await.unwrap_err();
    assert!(failure.message.contains("at most 34"), "what is referred to counts as well: {failure}");
    let preview = place
        .harness
        .preview(COPY, params(&from, &to, sessions, json!({ "max_rows": 9 })), &World::default())
        .await;
    assert!(
        preview.action == Action::Blocked && preview.problems[0].message.contains("50 rows, and at most 9"),
        "{preview:?}"
    );
}

#[tokio::test]
async fn rows_that_are_there_already() {
    let place = Place::new("copy_conflict");
    let (from, to) = two(&place).await;
    sql(&to, "INSERT INTO auth.orgs VALUES (1, 'mine'); INSERT INTO auth.users (id, org, email) OVERRIDING SYSTEM VALUE VALUES (1, 1, 'one')").await;
    let copy = |on: &str| {
        params(&from, &to, "auth.users", json!({ "where": "id < 3", "follow": true, "on_conflict": on }))
    };
    let failure = place.again().run(COPY, copy("fail")).await.unwrap_err();
    assert!(!failure.transient && failure.message.contains("23505"), "{failure}");
    assert_eq!(value(&to, "SELECT count(*) FROM auth.orgs").await.unwrap(), "1", "nothing of it is there");
    let done = place.again().run(COPY, copy("skip")).await.unwrap();
    assert_eq!(done.outputs["rows"], json!({ "auth.orgs": 1, "auth.users": 1 }));
    assert_eq!(
        (&done.outputs["total"], &done.outputs["skipped"], &done.outputs["updated"]),
        (&json!(2), &json!(2), &json!(0))
    );
    assert_eq!(value(&to, "SELECT name FROM auth.orgs WHERE id = 1").await.unwrap(), "mine");
    let done = place.again().run(COPY, copy("update")).await.unwrap();
    assert_eq!(
        (&done.outputs["total"], &done.outputs["skipped"], &done.outputs["updated"]),
        (&json!(0), &json!(0), &json!(4))
    );
    assert_eq!(value(&to, "SELECT name FROM auth.orgs WHERE id = 1").await.unwrap(), "org 1");
    // Another row that has the email is no row with the same key: told, not passed over.
    sql(&to, "UPDATE auth.users SET email = 'three' WHERE id = 2").await;
    let other =
        params(&from, &to, "auth.users", json!({ "where": "id = 3", "follow": true, "on_conflict": "skip" }));
    let failure = place.again().run(COPY, other).await.unwrap_err();
    assert!(failure.message.contains("users_email_key"), "{failure}");
    // Without its parents a row can't come; with `fail`, parents that are there are enough.
    sql(&to, "DELETE FROM auth.users; DELETE FROM auth.orgs").await;
    let alone = json!({ "where": "id = 4" });
    let failure = place.again().run(COPY, params(&from, &to, "auth.users", alone.clone())).await.unwrap_err();
    assert!(failure.message.contains("23503"), "{failure}");
    sql(&to, "INSERT INTO auth.orgs VALUES (3, 'mine')").await;
    let followed = json!({ "where": "id = 4", "follow": true });
    let done = place.again().run(COPY, params(&from, &to, "auth.users", followed)).await.unwrap();
    assert_eq!((&done.outputs["total"], &done.outputs["skipped"]), (&json!(1), &json!(1)));
    let none =
        place.again().run(COPY, params(&from, &to, "auth.users", json!({ "where": "false" }))).await.unwrap();
    assert_eq!(none.outputs["total"], 0);
}

#[tokio::test]
async fn circles_are_told() {
    let place = Place::new("copy_circle");
    let schema =
        "CREATE TABLE a (id int PRIMARY KEY, b int); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a);
        ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b; CREATE TABLE c (id int PRIMARY KEY, b int REFERENCES b)";
    let rows = "; INSERT INTO a VALUES (1, NULL), (2, NULL); INSERT INTO b VALUES (1, 1), (2, NULL); UPDATE a SET b = 1 WHERE id = 1; INSERT INTO c VALUES (1, 1), (2, 2)";
    let from = place.names.create("from", &format!("{schema}{rows}")).await;
    let to = place.names.create("to", schema).await;
    let copy =
        |id: u8| params(&from, &to, "public.c", json!({ "where": "id = $1", "params": [id], "follow": true }));
    let failure = place.again().run(COPY, copy(1)).await.unwrap_err();
    assert!(
        failure.message.contains("in a circle: ") && failure.message.contains("public.a → public.b"),
        "{failure}"
    );
    assert!(!failure.message.contains("public.c →"), "{failure}");
    // Tables may, as long as the rows don't.
    assert_eq!(place.again().run(COPY, copy(2)).await.unwrap().outputs["total"], 2);
}

#[tokio::test]
async fn tables_that_differ_are_refused() {
    let place = Place::new("copy_differ");
    let from = place.names.create("from", "CREATE TABLE t (a int PRIMARY KEY, b int); CREATE VIEW v AS SELECT 1 AS a; INSERT INTO t VALUES (1, 1)").await;
    let to = place.names.create("to", "CREATE TABLE t (a int PRIMARY KEY, c int); CREATE TABLE n (a int, b int); CREATE TABLE s (a int PRIMARY KEY, b boolean); CREATE VIEW v AS SELECT 1 AS a").await;
    let into = |from_table: &str, to_table: &str, more: Value| {
        let mut params = params(&from, &to, from_table, more);
        params["to"]["table"] = json!(to_table);
        params
    };
    for (from_table, to_table, said) in [
        ("t", "t", "the destination has no column b; the source has no column c"),
        ("t", "nothing", "no table nothing"),
        ("nothing", "t", "no table nothing"),
        ("v", "v", "is not a table"),
    ] {
        let params = into(from_table, to_table, json!({}));
        let preview = place.harness.preview(COPY, params.clone(), &World::default()).await;
        assert!(preview.action == Action::Blocked && preview.problems[0].message.contains(said), "{preview:?}");
        let failure = place.again().run(COPY, params).await.unwrap_err();
        assert!(failure.message.contains(said), "{failure}");
    }
    let failure = place.again().run(COPY, into("t", "n", json!({ "on_conflict": "update" }))).await.unwrap_err();
    assert!(failure.message.contains("no primary key"), "{failure}");
    for (wrong, said) in [
        (json!({ "where": "a = " }), "42601"),
        (json!({ "where": "$1" }), "takes 1 parameter"),
        (json!({ "where": "nothing" }), "42703"),
    ] {
        let params = into("t", "n", wrong.clone());
        assert_eq!(place.harness.preview(COPY, params.clone(), &World::default()).await.action, Action::Blocked);
        let failure = place.again().run(COPY, params).await.unwrap_err();
        assert!(failure.message.contains(said), "{wrong}: {failure}");
    }
    sql(&from, "UPDATE t SET b = 7").await;
    let failure = place.again().run(COPY, into("t", "s", json!({}))).await.unwrap_err();
    assert!(
        failure.message.contains("22P02") && !failure.message.contains(": \"7"),
        "no values in messages: {failure}"
    );
    let info = lifeboat::step::find(COPY).unwrap();
    for wrong in [json!({ "where": " " }), json!({ "to": { "target": "db", "database": from } })] {
        let mut found = lifeboat::step::Findings::default();
        (info.parse)(params(&from, &to, "t", wrong.clone())).unwrap().check(&mut found);
        assert_eq!(found.found.len(), 1, "{wrong}");
    }
}

#[tokio::test]
async fn a_killed_copy_is_asked_of_its_transaction() {
    let place = Place::new("copy_kill");
    let (from, to) = two(&place).await;
    let params = params(&from, &to, "auth.users", json!({ "follow": true }));
    place.harness.run_and_kill_at_note(COPY, params.clone(), 1).await;
    assert!(matches!(place.harness.after_kill(COPY, params.clone()).await, AfterKill::DidNotHappen { .. }));
    assert_eq!(users(&to).await, "");
    let done = place.harness.run(COPY, params.clone()).await.unwrap();
    assert_eq!(place.harness.after_kill(COPY, params.clone()).await, AfterKill::Happened(done.clone()));
    assert_eq!(users(&to).await, users(&from).await);
    assert_eq!(place.harness.run(COPY, params).await.unwrap(), done);
}

#[tokio::test]
async fn many_rows_and_keys() {
    let place = Place::new("copy_many");
    let schema = "CREATE TABLE p (a int, b text, PRIMARY KEY (a, b)); CREATE TABLE c (id int PRIMARY KEY, a int, b text, FOREIGN KEY (b, a) REFERENCES p (b, a))";
    let schema = schema.replace("PRIMARY KEY (a, b))", "PRIMARY KEY (a, b), UNIQUE (b, a))");
    let from = place.names.create("from", &format!("{schema}; INSERT INTO p SELECT g, 'key \"' || g || ', {{}}\\' FROM generate_series(1, 12000) g; INSERT INTO c SELECT a, a, b FROM p; INSERT INTO c VALUES (0, NULL, 'half')")).await;
    let to = place.names.create("to", &schema).await;
    let done = place.again().run(COPY, params(&from, &to, "c", json!({ "follow": true }))).await.unwrap();
    assert_eq!(done.outputs["rows"], json!({ "public.p": 12000, "public.c": 12001 }));
    let all = "SELECT md5(string_agg(c::text || p::text, '' ORDER BY id)) FROM c LEFT JOIN p USING (a, b)";
    assert_eq!(value(&from, all).await, value(&to, all).await);
}
