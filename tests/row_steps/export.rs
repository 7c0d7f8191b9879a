//! `postgres.export`.

use std::os::unix::fs::PermissionsExt;

use lifeboat::step::world::World;
use lifeboat::step::{Action, AfterKill, Certainty};
use serde_json::{Value, json};

use crate::fixture::{KEYS, Place};
use crate::support::{Harness, connect, connect_to, postgres_url, sql, unique, url_with};

const EXPORT: &str = "postgres.export";

fn params(database: &str, more: Value) -> Value {
    let mut params =
        json!({ "target": "db", "database": database, "to": { "storage": "store", "path": "keys.csv" } });
    params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    params
}

#[tokio::test]
async fn a_table_comes_out_in_order_whole_and_for_its_owner_alone() {
    let place = Place::new("exp_table");
    let database = place.names.create("live", KEYS).await;
    // How the database writes times down must not show.
    sql("postgres", &format!("ALTER DATABASE {database} SET DateStyle = 'SQL, DMY'; ALTER DATABASE {database} SET TimeZone = 'Asia/Tokyo'")).await;
    let params = params(&database, json!({ "table": "auth.jwks" }));
    let preview = place.harness.preview(EXPORT, params.clone(), &World::default()).await;
    assert_eq!((preview.action, preview.certainty), (Action::Create, Certainty::Observed), "{preview:?}");
    assert!(place.files().is_empty(), "a preview writes nothing");
    let done = place.harness.run(EXPORT, params.clone()).await.unwrap();
    let expected = "id,public_key,private_key,alg,created_at\n\
        00000000-0000-0000-0000-000000000001,\"{\"\"kty\"\": \"\"EC\"\"}\",secret-1,ES256,2024-02-01 01:00:00+00\n\
        00000000-0000-0000-0000-000000000002,x\\.,secret-2,\"\",infinity\n\
        00000000-0000-0000-0000-000000000003,\"{\"\"kty\"\": \"\"OKP\"\",\n \"\"x\"\": \"\"a\"\"}\",secret-3,,\n";
    assert_eq!(place.read("keys.csv"), expected);
    assert_eq!(done.outputs["rows"], 3);
    assert_eq!(done.outputs["path"], "keys.csv");
    let checksum = lifeboat::dump::tap::Checksum::default();
    checksum.update(expected.as_bytes());
    assert_eq!(done.outputs["sha256"], checksum.hex());
    let mode = std::fs::metadata(place.path("keys.csv")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it may hold keys");
    assert_eq!(place.files(), ["keys.csv", "keys.csv.object.json"], "its manifest is beside it");
    let told = format!("{:?} {}", place.harness.journal.notes(), place.harness.journal.log_text());
    assert!(!told.contains("secret-"), "{told}");

    // The same step once more knows that it has been; another one doesn't overwrite.
    assert_eq!(place.harness.run(EXPORT, params.clone()).await.unwrap(), done);
    let preview = place.harness.preview(EXPORT, params.clone(), &World::default()).await;
    assert_eq!(preview.action, Action::Blocked, "{preview:?}");
    let failure = place.again().run(EXPORT, params).await.unwrap_err();
    assert!(failure.message.contains("already has an object"), "{failure}");
}

#[tokio::test]
async fn a_query_and_both_formats() {
    let place = Place::new("exp_query");
    let database = place.names.create("live", KEYS).await;
    let query = "SELECT id, alg FROM auth.jwks WHERE alg <> '' -- all, but ) TO PROGRAM 'true'";
    let done =
        place.again().run(EXPORT, params(&database, json!({ "sql": query, "header": false }))).await.unwrap();
    assert_eq!(
        (&done.outputs["rows"], place.read("keys.csv").as_str()),
        (&json!(1), "00000000-0000-0000-0000-000000000001,ES256\n")
    );
    let many =
        "SELECT g, CASE WHEN g % 3 = 0 THEN NULL ELSE repeat('x', g % 500) END FROM generate_series(1, 20000) g;";
    for format in ["csv", "binary"] {
        let to = json!({ "storage": "store", "path": format!("many.{format}") });
        let done = place
            .again()
            .run(EXPORT, params(&database, json!({ "sql": many, "format": format, "to": to })))
            .await
            .unwrap();
        assert_eq!(done.outputs["rows"], 20_000, "{format}");
    }
    // Without a primary key, another one that is never null gives the order.
    sql(&database, "CREATE TABLE public.\"odd;\"\"one\" (a int UNIQUE, b int NOT NULL UNIQUE, \"c,d\" text); INSERT INTO public.\"odd;\"\"one\" VALUES (1, 3), (2, 2), (3, 1)").await;
    let to = json!({ "storage": "store", "path": "odd.csv" });
    place
        .again()
        .run(EXPORT, params(&database, json!({ "table": "public.\"odd;\"\"one\"", "to": to })))
        .await
        .unwrap();
    assert_eq!(place.read("odd.csv"), "a,b,\"c,d\"\n3,1,\n2,2,\n1,3,\n");
    let to = json!({ "storage": "store", "path": "none.csv" });
    let none = json!({ "sql": "SELECT 1 AS one WHERE false", "to": to });
    assert_eq!(place.again().run(EXPORT, params(&database, none)).await.unwrap().outputs["rows"], 0);
    assert_eq!(place.read("none.csv"), "one\n");

    for (wrong, said) in [
        ("SELECT 1; SELECT 2", "multiple commands"),
        ("SELECT 1) TO PROGRAM 'touch /tmp/x' -- ", "syntax error"),
        ("CREATE TABLE public.t ()", "gives no rows"),
        ("DELETE FROM auth.jwks RETURNING id", "25006"),
        ("SELECT $1::text", "takes 1 parameter"),
    ] {
        let to = json!({ "storage": "store", "path": "wrong.csv" });
        let failure =
            place.again().run(EXPORT, params(&database, json!({ "sql": wrong, "to": to }))).await.unwrap_err();
        assert!(failure.message.contains(said), "{wrong}: {failure}");
        assert!(!place.files().iter().any(|file| file.contains("wrong")), "{wrong}");
    }
}

#[tokio::test]
async fn what_can_not_be_exported_is_foreseen() {
    let place = Place::new("exp_wrong");
    let database = place.names.create("live", KEYS).await;
    for (wrong, said) in [
        (json!({ "table": "auth.nothing" }), "no table auth.nothing"),
        (json!({ "sql": "SELECT nothing FROM auth.jwks" }), "42703"),
    ] {
        let preview = place.harness.preview(EXPORT, params(&database, wrong.clone()), &World::default()).await;
        assert!(preview.action == Action::Blocked && preview.problems[0].message.contains(said), "{preview:?}");
        let failure = place.again().run(EXPORT, params(&database, wrong)).await.unwrap_err();
        assert!(failure.message.contains(said), "{failure}");
    }
    let info = lifeboat::step::find(EXPORT).unwrap();
    for wrong in [
        json!({}),
        json!({ "table": "a.b", "sql": "SELECT 1" }),
        json!({ "table": "a.b.c" }),
        json!({ "table": "a.b", "format": "binary", "header": true }),
    ] {
        let mut found = lifeboat::step::Findings::default();
        (info.parse)(params(&database, wrong.clone())).unwrap().check(&mut found);
        assert_eq!(found.found.len(), 1, "{wrong}");
    }
    // Rows that row security hides are an error, not a shorter file.
    let role = unique("exp_rls");
    sql(&database, &format!("CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT USAGE ON SCHEMA auth TO {role}; GRANT SELECT ON auth.jwks TO {role}; ALTER TABLE auth.jwks ENABLE ROW LEVEL SECURITY")).await;
    let url = url_with(&postgres_url(), Some((&role, "x")), "postgres");
    assert!(connect_to(&url).await.is_ok());
    let harness = Harness::with([
        ("db", crate::support::postgres(&url)),
        ("store", place.harness.services.target("store").unwrap().clone()),
    ]);
    let failure = harness.run(EXPORT, params(&database, json!({ "table": "auth.jwks" }))).await.unwrap_err();
    assert!(failure.message.contains("row-level security") || failure.message.contains("42501"), "{failure}");
    assert!(place.files().is_empty());
    sql(&database, &format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test]
async fn what_a_killed_export_left_is_known() {
    let place = Place::new("exp_kill");
    let database = place.names.create("live", KEYS).await;
    let params = params(&database, json!({ "table": "auth.jwks" }));
    assert!(matches!(place.harness.after_kill(EXPORT, params.clone()).await, AfterKill::DidNotHappen { .. }));
    place.harness.run_and_kill_at_note(EXPORT, params.clone(), 1).await;
    assert!(place.files().iter().all(|file| file.starts_with('.')), "{:?}", place.files());
    assert!(matches!(place.harness.after_kill(EXPORT, params.clone()).await, AfterKill::DidNotHappen { .. }));
    let done = place.harness.run(EXPORT, params.clone()).await.unwrap();
    assert_eq!(place.files(), ["keys.csv", "keys.csv.object.json"], "the leftover is gone");
    assert_eq!(place.harness.after_kill(EXPORT, params.clone()).await, AfterKill::Happened(done.clone()));
    // Killed between the two: the object stays, and gets its manifest.
    std::fs::remove_file(place.path("keys.csv.object.json")).unwrap();
    assert!(matches!(place.harness.after_kill(EXPORT, params.clone()).await, AfterKill::Partly { .. }));
    assert_eq!(place.harness.run(EXPORT, params.clone()).await.unwrap(), done);
    assert_eq!(place.files(), ["keys.csv", "keys.csv.object.json"]);
    // What somebody else puts there is not this step's.
    place.write("keys.csv", "precious");
    assert!(matches!(place.harness.after_kill(EXPORT, params.clone()).await, AfterKill::DidNotHappen { .. }));
    assert!(place.harness.run(EXPORT, params).await.is_err());
    assert_eq!(place.read("keys.csv"), "precious");
}

#[tokio::test]
async fn a_cancelled_export_leaves_nothing() {
    let place = Place::new("exp_cancel");
    let database = place.names.create("live", KEYS).await;
    let holder = connect(&database).await;
    holder.batch_execute("BEGIN; LOCK TABLE auth.jwks").await.unwrap();
    let params = params(&database, json!({ "table": "auth.jwks" }));
    let (step, cx) = (place.harness.step(EXPORT, params), place.harness.next_attempt());
    let running = tokio::spawn(async move { step.run(&cx).await });
    crate::support::until("the export waits for the lock", || async {
        crate::support::value(
            "postgres",
            &format!("SELECT 1 FROM pg_stat_activity WHERE datname = '{database}' AND wait_event_type = 'Lock'"),
        )
        .await
        .is_some()
    })
    .await;
    place.harness.cancel.cancel();
    assert!(running.await.unwrap().unwrap_err().message.contains("cancelled"));
    assert!(place.files().is_empty());
}

#[tokio::test]
async fn a_bucket_takes_it_as_well() {
    let place = Place::new("exp_bucket");
    let database = place.names.create("live", KEYS).await;
    let endpoint = std::env::var("LIFEBOAT_TEST_S3").expect("LIFEBOAT_TEST_S3 names an S3 endpoint");
    let bucket = unique("exp_bucket").replace('_', "-");
    assert!(reqwest::Client::new().put(format!("{endpoint}/{bucket}")).send().await.unwrap().status().is_success());
    let settings = [
        ("bucket", bucket.as_str()),
        ("endpoint", &endpoint),
        ("access_key_id", "testing"),
        ("secret_access_key", "testing"),
        ("disable_config_load", "true"),
    ];
    let settings = settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let store = lifeboat::service::Target::Storage(lifeboat::service::StorageSettings {
        scheme: "s3".to_owned(),
        settings,
    });
    let targets = || [("db", crate::support::postgres(&postgres_url())), ("store", store.clone())];
    let to = json!({ "storage": "store", "path": "keys/a.bin" });
    let many = json!({ "sql": "SELECT g, repeat('x', 1000) FROM generate_series(1, 20000) g", "format": "binary", "to": to });
    let done = Harness::with(targets()).run(EXPORT, params(&database, many)).await.unwrap();
    sql(&database, "CREATE TABLE public.many (g int PRIMARY KEY, x text)").await;
    let import = json!({ "target": "db", "database": database, "table": "public.many", "format": "binary", "from": to, "sha256": done.outputs["sha256"] });
    assert_eq!(Harness::with(targets()).run("postgres.import", import).await.unwrap().outputs["rows"], 20_000);
    let failure = Harness::with(targets())
        .run(EXPORT, params(&database, json!({ "table": "auth.jwks", "to": to })))
        .await
        .unwrap_err();
    assert!(failure.message.contains("already has an object"), "{failure}");
}
