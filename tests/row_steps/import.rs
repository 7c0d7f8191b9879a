//! `postgres.import`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lifeboat::step::world::World;
use lifeboat::step::{Action, AfterKill, Certainty};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::{KEYS, Place};
use crate::support::{Harness, postgres, sql, value};

const EXPORT: &str = "postgres.export";
const IMPORT: &str = "postgres.import";

fn params(database: &str, more: Value) -> Value {
    let mut params = json!({ "target": "db", "database": database, "table": "auth.jwks", "from": { "storage": "store", "path": "keys.csv" } });
    params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    params
}

/// All that the table holds, as one text.
async fn content(database: &str) -> String {
    value(database, "SELECT coalesce(string_agg(j::text, E'\\n' ORDER BY id), '') FROM auth.jwks j").await.unwrap()
}

async fn exported(place: &Place, database: &str, format: &str) -> Value {
    let params = json!({ "target": "db", "database": database, "table": "auth.jwks", "format": format, "to": { "storage": "store", "path": format!("keys.{format}") } });
    place.again().run(EXPORT, params).await.unwrap().outputs["sha256"].clone()
}

#[tokio::test]
async fn what_was_exported_comes_back_the_same() {
    let place = Place::new("imp_back");
    let database = place.names.create("live", KEYS).await;
    let before = content(&database).await;
    for format in ["csv", "binary"] {
        let sha256 = exported(&place, &database, format).await;
        sql(&database, "DELETE FROM auth.jwks").await;
        let from = json!({ "storage": "store", "path": format!("keys.{format}") });
        let params = params(&database, json!({ "format": format, "from": from, "sha256": sha256 }));
        let preview = place.harness.preview(IMPORT, params.clone(), &World::default()).await;
        assert_eq!((preview.action, preview.certainty), (Action::Change, Certainty::Observed), "{preview:?}");
        let done = place.again().run(IMPORT, params.clone()).await.unwrap();
        assert_eq!(done.outputs["rows"], 3);
        assert_eq!(content(&database).await, before, "{format}");
        // A second one meets its own rows.
        let failure = place.again().run(IMPORT, params).await.unwrap_err();
        assert!(failure.message.contains("23505"), "{failure}");
        assert_eq!(content(&database).await, before, "{format}");
    }
}

#[tokio::test]
async fn a_swapped_header_and_doubled_ids_are_refused() {
    let place = Place::new("imp_wrong");
    let database = place.names.create("live", KEYS).await;
    exported(&place, &database, "csv").await;
    let good = place.read("keys.csv");
    let before = content(&database).await;
    // Cut between two rows it is a valid file: only the manifest tells.
    let cut: Vec<&str> = good.split_inclusive("\n00000000").collect();
    place.write("keys.csv", cut[0].trim_end_matches("00000000"));
    let failure = place.again().run(IMPORT, params(&database, json!({ "mode": "merge" }))).await.unwrap_err();
    assert!(failure.message.contains("its manifest says"), "{failure}");
    let preview =
        place.again().preview(IMPORT, params(&database, json!({ "mode": "merge" })), &World::default()).await;
    assert_eq!(preview.action, Action::Blocked, "{preview:?}");
    std::fs::remove_file(place.path("keys.csv.object.json")).unwrap();
    let needs = json!({ "mode": "merge", "require_manifest": true });
    let failure = place.again().run(IMPORT, params(&database, needs)).await.unwrap_err();
    assert!(failure.message.contains("has no manifest"), "{failure}");
    assert_eq!(content(&database).await, before);
    let first = good.lines().nth(1).unwrap().to_owned();
    for (mode, text, said) in [
        (
            "merge",
            good.replace("public_key,private_key", "private_key,public_key"),
            "names the columns id, private_key, public_key",
        ),
        ("merge", good.replacen(",alg", "", 1), "names the columns id, public_key, private_key, created_at"),
        ("merge", format!("{good}{first}\n"), "the same id: 00000000-0000-0000-0000-000000000001 (2 times)"),
        ("insert", format!("{good}{first}\n"), "the same id"),
        ("merge", good.lines().skip(1).collect::<Vec<_>>().join("\n"), "names the columns (no column of it), (no"),
        ("merge", String::new(), "is empty"),
        ("merge", "id,public_key".to_owned(), "has no header"),
        ("replace", good.lines().next().unwrap().to_owned() + "\n", "there are no rows"),
        ("merge", good.replace("secret-1,ES256,2024-02-01 01:00:00+00", "ES256,secret-1,secret-9"), "22007"),
        ("merge", good.replace("secret-1,", ","), "23502"),
        ("merge", good.replace("secret-1,", ""), "22P04"),
        ("merge", good[..good.len() - 20].to_owned(), "22P04"),
    ] {
        place.write("keys.csv", &text);
        let failure = place.again().run(IMPORT, params(&database, json!({ "mode": mode }))).await.unwrap_err();
        assert!(failure.message.contains(said), "{said}: {failure}");
        assert!(!failure.transient && !failure.message.contains("secret-"), "no key material is shown: {failure}");
        assert_eq!(content(&database).await, before, "{said}");
    }
    place.write("keys.csv", &good.replace("public_key,private_key", "private_key,public_key"));
    let preview =
        place.harness.preview(IMPORT, params(&database, json!({ "mode": "merge" })), &World::default()).await;
    assert!(
        preview.action == Action::Blocked && preview.problems[0].message.contains("expected id, public_key"),
        "{preview:?}"
    );
    // The rows may really have that order: then the plan says so.
    place.write("keys.csv", "private_key,id,public_key\nsecret-9,00000000-0000-0000-0000-000000000009,public-9\n");
    let columns = json!({ "mode": "merge", "columns": ["private_key", "id", "public_key"] });
    assert_eq!(place.again().run(IMPORT, params(&database, columns)).await.unwrap().outputs["rows"], 1);
    assert_eq!(value(&database, "SELECT public_key || private_key FROM auth.jwks WHERE alg IS NULL AND created_at IS NULL AND id::text LIKE '%9'").await.unwrap(), "public-9secret-9");

    place.write("keys.csv", &good);
    let failure = place
        .again()
        .run(IMPORT, params(&database, json!({ "mode": "merge", "sha256": "0".repeat(64) })))
        .await
        .unwrap_err();
    assert!(failure.message.contains("has the checksum"), "{failure}");
}

#[tokio::test]
async fn merge_and_replace() {
    let place = Place::new("imp_modes");
    let database = place.names.create("live", KEYS).await;
    exported(&place, &database, "csv").await;
    let before = content(&database).await;
    let damage =
        "UPDATE auth.jwks SET private_key = 'wrong' WHERE alg = 'ES256'; DELETE FROM auth.jwks WHERE alg = '';
        INSERT INTO auth.jwks VALUES ('00000000-0000-0000-0000-00000000000a', 'new', 'new')";
    sql(&database, damage).await;
    let done = place.again().run(IMPORT, params(&database, json!({ "mode": "merge" }))).await.unwrap();
    assert_eq!(done.outputs["rows"], 3);
    let merged = content(&database).await;
    assert!(merged.starts_with(&before) && merged.contains("00000000000a"), "{merged}");
    let preview =
        place.harness.preview(IMPORT, params(&database, json!({ "mode": "replace" })), &World::default()).await;
    assert_eq!(preview.action, Action::Destroy, "{preview:?}");
    place.again().run(IMPORT, params(&database, json!({ "mode": "replace" }))).await.unwrap();
    assert_eq!(content(&database).await, before);

    // Deleting rows that others go with is refused; so is a table without a key to merge by.
    sql(&database, "CREATE TABLE auth.uses (key uuid REFERENCES auth.jwks ON DELETE CASCADE); CREATE TABLE auth.plain AS SELECT * FROM auth.jwks").await;
    let failure = place.again().run(IMPORT, params(&database, json!({ "mode": "replace" }))).await.unwrap_err();
    assert!(failure.message.contains("rows of auth.uses are deleted with it"), "{failure}");
    let failure = place
        .again()
        .run(IMPORT, params(&database, json!({ "mode": "merge", "table": "auth.plain" })))
        .await
        .unwrap_err();
    assert!(failure.message.contains("no primary key"), "{failure}");
}

#[tokio::test]
async fn sequences_are_ahead_and_triggers_keep_nothing_out_unseen() {
    let place = Place::new("imp_seq");
    let database = place
        .names
        .create("live", "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a text)")
        .await;
    place.write("keys.csv", "id,a\n7,x\n41,y\n");
    let into = params(&database, json!({ "table": "public.t" }));
    place.again().run(IMPORT, into.clone()).await.unwrap();
    assert_eq!(value(&database, "INSERT INTO t (a) VALUES ('z') RETURNING id").await.unwrap(), "42");
    sql(&database, "DELETE FROM t; CREATE FUNCTION keep_out() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; CREATE TRIGGER k BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION keep_out()").await;
    let failure = place.again().run(IMPORT, into).await.unwrap_err();
    assert!(failure.message.contains("took 0 of 2 rows"), "{failure}");
}

#[tokio::test]
async fn a_killed_import_is_asked_of_its_transaction() {
    let place = Place::new("imp_kill");
    let database = place.names.create("live", KEYS).await;
    exported(&place, &database, "csv").await;
    sql(&database, "DELETE FROM auth.jwks").await;
    let params = params(&database, json!({}));
    place.harness.run_and_kill_at_note(IMPORT, params.clone(), 1).await;
    assert!(matches!(place.harness.after_kill(IMPORT, params.clone()).await, AfterKill::DidNotHappen { .. }));
    assert_eq!(content(&database).await, "");
    let done = place.harness.run(IMPORT, params.clone()).await.unwrap();
    assert_eq!(place.harness.after_kill(IMPORT, params.clone()).await, AfterKill::Happened(done.clone()));
    // Once more, it would meet its own rows; it knows that they are its own.
    assert_eq!(place.harness.run(IMPORT, params).await.unwrap(), done);
}

/// Stands before the server, and breaks the first connection that commits: before the server
/// hears of it, or before its answer comes back. Gives the URL to go through.
async fn breaking(heard: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = crate::support::postgres_url();
    let host = url.rsplit_once('@').unwrap().1.split('/').next().unwrap().to_owned();
    let through = url.replace(&host, &listener.local_addr().unwrap().to_string());
    let broken = Arc::new(AtomicBool::new(false));
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let (server, broken) = (TcpStream::connect(&host).await.unwrap(), broken.clone());
            tokio::spawn(async move {
                let ((mut asks, mut told), (mut answers, mut to_server)) =
                    (client.into_split(), server.into_split());
                let telling = tokio::spawn(async move { tokio::io::copy(&mut answers, &mut told).await.map(drop) });
                let mut buffer = vec![0; 1 << 16];
                while let Ok(read @ 1..) = asks.read(&mut buffer).await {
                    let commits = buffer[..read].windows(7).any(|bytes| bytes == b"COMMIT\0");
                    if commits && !broken.swap(true, Ordering::SeqCst) {
                        telling.abort();
                        if heard {
                            to_server.write_all(&buffer[..read]).await.unwrap();
                        }
                        break;
                    }
                    to_server.write_all(&buffer[..read]).await.unwrap();
                }
            });
        }
    });
    through
}

#[tokio::test]
async fn a_connection_that_breaks_at_the_commit_leaves_no_doubt() {
    for heard in [true, false] {
        let place = Place::new("imp_break");
        let database = place.names.create("live", KEYS).await;
        exported(&place, &database, "csv").await;
        let before = content(&database).await;
        sql(&database, "DELETE FROM auth.jwks").await;
        let store = place.harness.services.target("store").unwrap().clone();
        let harness = Harness::with([("db", postgres(&breaking(heard).await)), ("store", store)]);
        let first = harness.run(IMPORT, params(&database, json!({}))).await;
        if heard {
            assert_eq!(first.unwrap().outputs["rows"], 3, "the server says that it was committed");
        } else {
            assert!(first.unwrap_err().transient);
            assert_eq!(content(&database).await, "");
            assert_eq!(harness.run(IMPORT, params(&database, json!({}))).await.unwrap().outputs["rows"], 3);
        }
        assert_eq!(content(&database).await, before);
    }
}
