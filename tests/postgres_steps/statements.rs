//! `query` and `execute`.

use lifeboat::step::effect::Resource;
use lifeboat::step::world::{Fact, World};
use lifeboat::step::{Action, AfterKill, Certainty};
use serde_json::{Value, json};

use crate::support::{Databases, Harness, connect, sql, value};

const QUERY: &str = "postgres.query";
const EXECUTE: &str = "postgres.execute";

#[tokio::test]
async fn values_come_as_json() {
    let harness = Harness::new();
    let query = "SELECT 7::int2 AS small, 9007199254740993::int8 AS big, 1.5::numeric AS exact, 12::numeric(10,2) AS whole,
        0.1234567890123456789::numeric AS long, -0.00001::numeric AS tiny, 123456789.5::numeric AS groups, true AS yes,
        'téxt' AS text, NULL::int AS nothing, '{\"a\": [1]}'::jsonb AS doc, ARRAY[[1,2],[3,NULL]] AS list,
        '2024-02-01 10:00:00+09'::timestamptz AS at, '2024-02-01 10:00:00.5'::timestamp AS local, '2024-02-01'::date AS day,
        '10:20:30'::time AS time, '1 year 2 days 03:04:05.5'::interval AS span, '\\x00ff'::bytea AS raw,
        '00000000-0000-0000-0000-00000000000a'::uuid AS id, '10.0.0.0/8'::cidr AS net, '::1'::inet AS host,
        'NaN'::float8 AS nan, 'infinity'::timestamptz AS never, '{}'::text[] AS empty";
    let done = harness.run(QUERY, json!({ "target": "db", "sql": query })).await.unwrap();
    let expected = json!({
        "small": 7, "big": 9_007_199_254_740_993_i64, "exact": 1.5, "whole": 12.0, "long": "0.1234567890123456789",
        "tiny": -0.00001, "groups": 123_456_789.5, "yes": true, "text": "téxt", "nothing": null, "doc": { "a": [1] },
        "list": [[1, 2], [3, null]], "at": "2024-02-01T01:00:00Z", "local": "2024-02-01T10:00:00.5", "day": "2024-02-01",
        "time": "10:20:30", "span": "P1Y2DT3H4M5.5S", "raw": "\\x00ff", "id": "00000000-0000-0000-0000-00000000000a",
        "net": "10.0.0.0/8", "host": "::1", "nan": "NaN", "never": "infinity", "empty": [],
    });
    let columns = &done.outputs["columns"];
    for (name, wanted) in expected.as_object().unwrap() {
        let equal = match (wanted.as_f64(), columns[name].as_f64()) {
            (Some(wanted), Some(value)) => (wanted - value).abs() < 1e-9,
            _ => columns[name] == *wanted,
        };
        assert!(equal, "{name}: {} instead of {wanted}", columns[name]);
    }
    let failure = harness.run(QUERY, json!({ "target": "db", "sql": "SELECT point(1,2) AS p" })).await.unwrap_err();
    assert!(failure.help.unwrap().contains("p::text"));
}

#[tokio::test]
async fn the_server_converts_parameters_to_the_types_it_infers() {
    let harness = Harness::new();
    let params = json!({
        "target": "db",
        "sql": "SELECT count(*) FROM generate_series(1, $1) g WHERE g = ANY($2) AND now() > $3 AND $4::jsonb ? 'k' AND $5 = 'it''s; --'",
        "params": [10, [1, 2, 99], "2024-02-01T10:00:00Z", { "k": 1 }, "it's; --"],
        "expect": 2,
    });
    harness.run(QUERY, params).await.unwrap();
    let few = json!({ "target": "db", "sql": "SELECT $1::int + $2", "params": [1] });
    assert!(harness.run(QUERY, few).await.unwrap_err().message.contains("takes 2 parameters, `params` gives 1"));
}

#[tokio::test]
async fn a_query_compares_and_can_not_write() {
    let (harness, names) = (Harness::new(), Databases::new("query"));
    let name = names
        .create("db", "CREATE TABLE t (a int); INSERT INTO t SELECT generate_series(1, 3); CREATE SEQUENCE s")
        .await;
    let ask = |more: Value| {
        let mut params = json!({ "target": "db", "database": name, "sql": "SELECT a FROM public.t ORDER BY a" });
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        params
    };
    let done = harness.run(QUERY, ask(json!({ "rows": { "min": 2 } }))).await.unwrap();
    assert_eq!((done.outputs["rows"].clone(), done.outputs["value"].clone()), (json!(3), json!(1)));
    let failure = harness.run(QUERY, ask(json!({ "rows": 2 }))).await.unwrap_err();
    assert!(!failure.transient && failure.message.contains("expected 2 rows, got 3"), "{failure}");
    assert!(harness.run(QUERY, ask(json!({ "expect": 1 }))).await.unwrap_err().message.contains("single value"));
    for write in ["INSERT INTO public.t VALUES (4)", "SELECT nextval('public.s')", "DROP TABLE public.t"] {
        let failure = harness.run(QUERY, ask(json!({ "sql": write }))).await.unwrap_err();
        assert!(failure.message.contains("25006"), "{failure}");
    }
    let several = harness.run(QUERY, ask(json!({ "sql": "SELECT 1; SELECT 2" }))).await.unwrap_err();
    assert!(several.help.unwrap().contains("one statement"));

    let preview = harness.preview(QUERY, ask(json!({ "rows": 3 })), &World::default()).await;
    assert_eq!((preview.action, preview.certainty), (Action::Read, Certainty::Observed), "{preview:?}");
    assert_eq!(harness.preview(QUERY, ask(json!({ "rows": 2 })), &World::default()).await.action, Action::Blocked);
    let mut world = World::default();
    world.foretell(Resource::database("db", &name), Fact::Changed, &"execute".into());
    let preview = harness.preview(QUERY, ask(json!({ "rows": 2 })), &world).await;
    assert_eq!((preview.action, preview.certainty), (Action::Read, Certainty::Assumed), "{preview:?}");
    let preview = harness.preview(QUERY, ask(json!({ "sql": "SELECT nothing FROM public.t" })), &world).await;
    assert!(preview.action == Action::Read && preview.problems.len() == 1, "{preview:?}");
}

async fn table(names: &Databases) -> String {
    names
        .create(
            "db",
            "CREATE TABLE t (a int PRIMARY KEY, b int); INSERT INTO t SELECT g, 0 FROM generate_series(1, 3) g",
        )
        .await
}

async fn sum(name: &str) -> String {
    value(name, "SELECT sum(b) FROM t").await.unwrap_or_default()
}

#[tokio::test]
async fn execute_applies_what_affects_as_many_rows_as_wanted() {
    let (harness, names) = (Harness::new(), Databases::new("execute"));
    let name = table(&names).await;
    let params = |affected: Value| json!({ "target": "db", "database": name, "sql": "UPDATE public.t SET b = b + $1 WHERE a > $2", "params": [1, "1"], "affected": affected });
    let preview = harness.preview(EXECUTE, params(json!(2)), &World::default()).await;
    assert_eq!((preview.action, preview.certainty), (Action::Change, Certainty::Observed), "{preview:?}");
    assert!(preview.summary.contains("UPDATE") && preview.summary.contains("about"), "{}", preview.summary);
    let failure = harness.run(EXECUTE, params(json!({ "max": 1 }))).await.unwrap_err();
    assert!(!failure.transient && failure.message.contains("rolled back"), "{failure}");
    assert_eq!(sum(&name).await, "0");
    let done = harness.run(EXECUTE, params(json!(2))).await.unwrap();
    assert_eq!(done.outputs["affected"], json!(2));
    assert_eq!(sum(&name).await, "2");
    // The same step once more: it knows that it has been.
    harness.run(EXECUTE, params(json!(2))).await.unwrap();
    assert_eq!(sum(&name).await, "2");

    let wrong = json!({ "target": "db", "database": name, "sql": "UPDATE public.nothing SET b = 1" });
    assert_eq!(harness.preview(EXECUTE, wrong.clone(), &World::default()).await.action, Action::Blocked);
    let failure = Harness::new().run(EXECUTE, wrong).await.unwrap_err();
    assert!(!failure.transient && failure.message.contains("42P01"), "{failure}");
}

#[tokio::test]
async fn a_killed_execute_is_asked_of_its_transaction() {
    let (harness, names) = (Harness::new(), Databases::new("killexec"));
    let name = table(&names).await;
    let params = json!({ "target": "db", "database": name, "sql": "UPDATE public.t SET b = b + 1" });
    assert!(matches!(harness.after_kill(EXECUTE, params.clone()).await, AfterKill::DidNotHappen { .. }));
    harness.run_and_kill_at_note(EXECUTE, params.clone(), 1).await;
    assert!(matches!(harness.after_kill(EXECUTE, params.clone()).await, AfterKill::DidNotHappen { .. }));
    assert_eq!(sum(&name).await, "0");
    harness.run(EXECUTE, params.clone()).await.unwrap();
    let AfterKill::Happened(done) = harness.after_kill(EXECUTE, params.clone()).await else { panic!("committed") };
    assert_eq!(done.outputs["affected"], json!(3));
    harness.run(EXECUTE, params).await.unwrap();
    assert_eq!(sum(&name).await, "3");
}

#[tokio::test]
async fn a_leftover_session_is_ended_before_the_answer() {
    let (harness, names) = (Harness::new(), Databases::new("leftover"));
    let name = table(&names).await;
    // What a killed process leaves: a transaction whose statement goes on at the server.
    let leftover = connect(&name).await;
    let label = format!("lifeboat:{}:{}:1", harness.run, harness.id);
    leftover
        .batch_execute(&format!("SET application_name = '{label}'; BEGIN; UPDATE t SET b = b + 1"))
        .await
        .unwrap();
    let params = json!({ "target": "db", "database": name, "sql": "UPDATE public.t SET b = b + 1" });
    assert!(matches!(harness.after_kill(EXECUTE, params).await, AfterKill::DidNotHappen { .. }));
    assert!(leftover.is_closed() || leftover.simple_query("SELECT 1").await.is_err());
    assert_eq!(sum(&name).await, "0");
}

#[tokio::test]
async fn nobody_can_tell_on_another_server_or_a_younger_one_or_after_very_long() {
    let (harness, names) = (Harness::new(), Databases::new("other"));
    let name = table(&names).await;
    let params = json!({ "target": "db", "database": name, "sql": "UPDATE public.t SET b = b + 1" });
    harness.run_and_kill_at_note(EXECUTE, params.clone(), 1).await;
    let noted = harness.journal.notes()[0].1.clone();
    for (key, other) in [("system", "42"), ("transaction", "9000000000"), ("transaction", "3")] {
        let mut note = noted.clone();
        note[key] = json!(other);
        let mut cx = harness.next_attempt();
        cx.notes = vec![(1, note)];
        let step = harness.step(EXECUTE, params.clone());
        assert!(matches!(step.after_kill(&cx).await.unwrap(), AfterKill::CannotTell { .. }), "{key} {other}");
        assert!(!step.run(&cx).await.unwrap_err().transient, "it must not run on top of that");
    }
    assert_eq!(sum(&name).await, "0");
}

#[tokio::test]
async fn execute_waits_for_locks_no_longer_than_it_is_told() {
    let (harness, names) = (Harness::new(), Databases::new("lock"));
    let name = table(&names).await;
    let holder = connect(&name).await;
    holder.batch_execute("BEGIN; LOCK TABLE t").await.unwrap();
    let params =
        json!({ "target": "db", "database": name, "sql": "UPDATE public.t SET b = 1", "lock_timeout": "200ms" });
    let failure = harness.run(EXECUTE, params).await.unwrap_err();
    assert!(failure.transient && failure.message.contains("55P03"), "{failure}");
}

#[tokio::test]
async fn a_statement_can_not_end_its_transaction() {
    let (harness, names) = (Harness::new(), Databases::new("control"));
    let name = table(&names).await;
    let info = lifeboat::step::find(EXECUTE).unwrap();
    let step = (info.parse)(json!({ "target": "db", "database": name, "sql": "/* sly */ COMMIT" })).unwrap();
    let mut found = lifeboat::step::Findings::default();
    step.check(&mut found);
    assert_eq!(found.found.len(), 1);
    assert!(step.run(&harness.next_attempt()).await.unwrap_err().message.contains("ended the transaction"));
    sql(&name, "SELECT 1").await;
}
