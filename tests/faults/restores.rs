//! A database server that dies under a restore: the same process goes on with it.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bench::Bench;
use crate::support::connect_to;
use crate::support::server::Server;

/// Two tables of several chunks each, without keys: a row that is loaded twice would show.
const LIVE: &str = "
CREATE TABLE one (id bigint, pad text);
INSERT INTO one SELECT g, repeat(md5(g::text), 8) FROM generate_series(1, 60000) g;
CREATE TABLE two AS SELECT id, reverse(pad) AS pad FROM one;
CREATE INDEX ON one (id);
";

const RESTORE: &str = "
lifeboat: 1
plan: restore
targets: { db: postgres, store: storage }
steps:
  restore:
    retry: { attempts: 60, delay: 250ms, factor: 1 }
    postgres.restore: { target: db, database: new, create: true, jobs: 2, from: { storage: store, path: a.sql.zst } }
  rows:
    postgres.verify_rows: { target: db, database: new, against: { storage: store, path: a.sql.zst } }
";

const BACKUP: &str = "
lifeboat: 1
plan: backup
targets: { db: postgres, store: storage }
steps:
  back-up:
    postgres.backup: { target: db, database: live, to: { storage: store, path: a.sql.zst } }
";

const ENVIRONMENT: [&str; 2] = ["--env", "./here.yaml"];

/// What a restore noted of each chunk: the attempt, and which part of the dump it was.
fn chunks(journal: &Path) -> Vec<(u64, (u64, u64))> {
    let text = std::fs::read_to_string(journal).unwrap_or_default();
    let records = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    records
        .filter_map(|record| {
            let (event, note) = (&record["event"], &record["event"]["note"]);
            Some((event["attempt"].as_u64()?, (note["chunk"].as_u64()?, note["bytes"].as_u64()?)))
        })
        .collect()
}

/// How many chunks an attempt found to be there, by its log.
fn kept(log: &Path) -> usize {
    let text = std::fs::read_to_string(log).unwrap();
    let counted = text.split(" statements and ").nth(1).and_then(|rest| rest.split(' ').next());
    counted.unwrap_or_else(|| panic!("it was not gone on with: {text}")).parse().unwrap()
}

/// Waits until so many chunks are noted, while the run still goes on.
fn wait_for_chunks(child: &mut Child, journal: &Path, count: usize) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while chunks(journal).len() < count {
        assert!(child.try_wait().unwrap().is_none(), "it was through after {} chunks", chunks(journal).len());
        assert!(Instant::now() < deadline, "it never loaded {count} chunks");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_twice_under_a_restore_is_gone_on_with_by_the_same_run() {
    let server = Server::new();
    let maintenance = connect_to(&server.url("postgres")).await.unwrap();
    maintenance.batch_execute("CREATE DATABASE live").await.unwrap();
    connect_to(&server.url("live")).await.unwrap().batch_execute(LIVE).await.unwrap();
    let bench = Bench::new(&[("restore.yaml", RESTORE), ("backup.yaml", BACKUP)]);
    let environment = json!({
        "lifeboat": 1, "environment": "here",
        "targets": {
            "db": { "postgres": { "url": server.url("postgres") } },
            "store": { "storage": { "scheme": "fs", "root": bench.path().join("backups") } },
        },
    });
    std::fs::write(bench.path().join("here.yaml"), environment.to_string()).unwrap();
    bench.ends(0, &[&["run", "backup.yaml"], &ENVIRONMENT[..]].concat());

    let run = ["run", "restore.yaml", "--run-id", "restore-1"];
    let mut child = bench.start(&[&run[..], &ENVIRONMENT[..]].concat());
    let folder = bench.path().join(".lifeboat/runs/restore-1");
    let journal = folder.join("journal.jsonl");
    // In the middle of the load, and again in the middle of what is left.
    for _ in 0..2 {
        // Two connections load: of three chunks one at least is committed. It is on the disk when a later transaction is
        // that waits for it.
        let seen = chunks(&journal).len();
        wait_for_chunks(&mut child, &journal, seen + 3);
        let maintenance = connect_to(&server.url("postgres")).await.unwrap();
        maintenance.batch_execute("SELECT pg_logical_emit_message(true, 'test', '')").await.unwrap();
        server.die();
        assert!(child.try_wait().unwrap().is_none(), "it waits for the server");
        server.start();
    }
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");

    // Each later attempt found what was committed before, and the last loaded just the rest.
    let noted = chunks(&journal);
    let mut attempts: Vec<_> = noted.iter().map(|(attempt, _)| *attempt).collect();
    attempts.dedup();
    assert!(attempts.len() >= 3, "three attempts loaded: {noted:?}");
    let kept: Vec<_> =
        attempts[1..].iter().map(|attempt| kept(&folder.join(format!("logs/restore.{attempt}.log")))).collect();
    assert!(kept[0] >= 1 && kept.is_sorted_by(|one, next| one < next), "{kept:?}: {noted:?}");
    let last = noted.iter().filter(|(attempt, _)| Some(attempt) == attempts.last()).count();
    let all: BTreeSet<_> = noted.iter().map(|(_, chunk)| chunk).collect();
    assert_eq!(kept.last().unwrap() + last, all.len(), "{kept:?}: {noted:?}");

    let new = connect_to(&server.url("new")).await.unwrap();
    let rows =
        "SELECT (SELECT count(*) FROM one), (SELECT count(*) FROM two), (SELECT count(DISTINCT id) FROM one)";
    let row = new.query_one(rows, &[]).await.unwrap();
    assert_eq!([0, 1, 2].map(|at| row.get::<_, i64>(at)), [60_000; 3]);
    let maintenance = connect_to(&server.url("postgres")).await.unwrap();
    let left = "SELECT count(*) FROM pg_database WHERE starts_with(datname::text, 'lifeboat_')";
    assert_eq!(maintenance.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 0);
    bench.ends(0, &["audit", "restore-1"]);
}
