//! A server that dies under a restore, and connections that are lost in the middle of a COPY.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lifeboat::service::{PostgresSettings, Target};
use serde_json::{Value, json};

use crate::equal::{RESTORE, assert_alike, params};
use crate::fixture::{Place, gzip, pg_dump, storage, tool};
use crate::support::server::Server;
use crate::support::{Harness, connect_to, postgres_url, sql, url_with, value};

/// Big tables that several connections load in chunks.
fn content(kind: &str) -> String {
    let table = |name: &str, kind: &str| {
        format!(
            "CREATE {kind} TABLE {name} (id bigint, pad text, n numeric); \
             INSERT INTO {name} SELECT g, repeat(md5(g::text), 6), g / 3.0 FROM generate_series(1, 40000) g; \
             CREATE INDEX ON {name} (id);"
        )
    };
    format!("{} {} CREATE VIEW v AS SELECT id FROM big;", table("big", ""), table("other", kind))
}

/// The schema as `pg_dump` writes it.
fn schema(url: &str) -> Vec<String> {
    let output = Command::new(tool("pg_dump")).args(["-s", "--no-owner"]).arg(url).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter(|line| !line.contains("restrict ")).map(str::to_owned).collect()
}

/// One answer of that server.
async fn ask(server: &Server, database: &str, query: &str) -> String {
    let client = connect_to(&server.url(database)).await.unwrap();
    client.query_one(query, &[]).await.unwrap().get(0)
}

fn harness_on(url: &str, folder: &Path) -> Harness {
    let settings: PostgresSettings = serde_json::from_value(json!({ "url": url })).unwrap();
    let store = storage("fs", &[("root", folder.to_str().unwrap())]);
    Harness::with([("db", Target::Postgres(settings)), ("store", store)])
}

fn chunks(harness: &Harness) -> usize {
    harness.journal.notes().iter().filter(|(_, note)| note.get("chunk").is_some()).count()
}

/// Restores with the server killed after so many chunks, then goes on. Gives the log.
async fn killed_after(server: &Server, place: &Place, name: &str, path: &str, at: usize) -> String {
    let harness = harness_on(&server.url("postgres"), place.folder.path());
    let params = params(name, path, json!({ "jobs": 3 }));
    let (step, cx) = (harness.step(RESTORE, params.clone()), harness.next_attempt());
    let running = tokio::spawn(async move { step.run(&cx).await });
    while chunks(&harness) < at {
        assert!(!running.is_finished(), "it was through after {} chunks", chunks(&harness));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    server.die();
    let failure = running.await.unwrap().unwrap_err();
    assert!(failure.transient, "{failure}");
    server.start();
    harness.run(RESTORE, params).await.unwrap();
    let against = json!({ "target": "db", "database": name, "against": { "storage": "store", "path": path } });
    harness.run("postgres.verify_rows", against).await.unwrap();
    let left = "SELECT count(*)::text FROM pg_database WHERE starts_with(datname::text, 'lifeboat_')";
    assert_eq!(ask(server, "postgres", left).await, "0");
    harness.journal.log_text()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_under_the_load_is_gone_on_with() {
    let place = Place::new("rc_crash");
    let server = Server::new();
    for (kind, kept) in [("", true), ("UNLOGGED", false)] {
        let live = place.names.create(&format!("live{}", kind.len()), &content(kind)).await;
        let path = format!("a{}.sql.zst", kind.len());
        let to = json!({ "target": "db", "database": live, "to": { "storage": "store", "path": path } });
        place.harness.run("postgres.backup", to).await.unwrap();
        for at in [1, 4, 7] {
            let name = format!("new_{}_{at}", kind.len());
            let log = killed_after(&server, &place, &name, &path, at).await;
            // What a crash empties is made anew; what it spares is kept.
            assert!(kept || !log.contains("is gone on with") || log.contains("can't be gone on with"), "{log}");
            let live_url = url_with(&postgres_url(), None, &live);
            assert_eq!(schema(&server.url(&name)), schema(&live_url), "{kind} {at}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_ended_while_it_copies_costs_its_chunk() {
    let place = Place::new("rc_copy");
    let live = place.names.create("live", &content("")).await;
    std::fs::write(place.path("a.sql.gz"), gzip(&pg_dump(&live, &[]))).unwrap();
    let new = place.names.name("new");
    let params: Value = params(&new, "a.sql.gz", json!({ "jobs": 3 }));
    let (step, cx) = (place.harness.step(RESTORE, params.clone()), place.harness.next_attempt());
    let running = tokio::spawn(async move { step.run(&cx).await });
    let end = format!(
        "SELECT count(pg_terminate_backend(pid))::text FROM (SELECT pid FROM pg_stat_activity \
          WHERE datname = 'lifeboat_{}_the-step' AND query LIKE 'COPY %' AND state = 'active' LIMIT 1) x",
        place.harness.run
    );
    while value("postgres", &end).await.unwrap() == "0" {
        assert!(!running.is_finished(), "it was through before it was seen to copy");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let failure = running.await.unwrap().unwrap_err();
    assert!(failure.transient, "{failure}");
    place.harness.run(RESTORE, params).await.unwrap();
    assert!(place.harness.journal.log_text().contains("is gone on with"));
    assert_alike(&new, &live, "resumed").await;
    sql("postgres", &format!("DROP DATABASE {new}")).await;
}
