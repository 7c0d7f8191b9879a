//! Scenario 1 of the runbook, database corruption, by the project's own plan: on a real server, a
//! real container and real clients, killed in the middle, and with backups that can't be trusted.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic; clippy knows only functions marked as tests"
)]

mod stage;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use stage::{DATABASE, RECOVERY, Stage, docker, read, said};

const RECOVER: [&str; 5] = ["run", RECOVERY, "--env", "test", "--yes"];

/// What must be so after a recovery, however it went.
async fn is_recovered(stage: &Stage, whole: &[lifeboat::sandbox::seed::Fingerprint]) {
    assert_eq!(stage.fingerprints(DATABASE).await, whole, "every row is back");
    let body = stage.health(200).await;
    assert_eq!(body["ready"], true);

    let databases = stage.databases().await;
    let [live, kept] = databases.as_slice() else { panic!("{databases:?}") };
    assert_eq!(live, DATABASE);
    assert!(kept.starts_with("manacore_auth_before_"), "the damaged database is kept: {kept}");
    let damaged = stage.fingerprints(kept).await;
    assert_eq!(damaged.iter().find(|table| table.table == "auth.jwks").unwrap().rows, 0);

    // What lies on the database and not in it: a dump doesn't hold it, and the service can't do without.
    let session = stage.session("postgres").await;
    let sql = "SELECT d.datallowconn, r.rolname::text, d.datacl::text, s.setconfig::text FROM pg_database d \
         JOIN pg_roles r ON r.oid = d.datdba LEFT JOIN pg_db_role_setting s ON s.setdatabase = d.oid \
         WHERE d.datname = $1";
    let row = session.row("look at the database", sql, &[&DATABASE]).await.unwrap();
    assert!(row.get::<_, bool>(0), "it is open again");
    assert_eq!(row.get::<_, &str>(1), "auth_owner");
    let privileges: &str = row.get(2);
    assert!(
        privileges.contains("auth_service=c/") && !privileges.contains("{=") && !privileges.contains(",="),
        "{privileges}"
    );
    assert_eq!(row.get::<_, Option<&str>>(3), Some("{statement_timeout=30s}"));

    stage.done(&["audit"]);
    let report: Value = serde_json::from_str(&stage.done(&["report", "--format", "json"])).unwrap();
    assert_eq!(report["status"], "succeeded", "{report:#}");
    let told = read(&stage.path(".lifeboat/sandboxes/test/oncall.jsonl"));
    assert!(told.contains("database-corruption on test: succeeded"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn recovers_under_idle_reconnecting_and_superuser_clients() {
    let stage = Stage::set(2_000, &json!({}));
    stage.back_up();
    let whole = stage.fingerprints(DATABASE).await;
    stage.damage().await;
    stage.health(503).await;

    // One that never lets go, and one that comes back whenever it is thrown out; both are superusers.
    // The service's own pool is the third.
    let idle = stage.session(DATABASE).await;
    let over = Arc::new(AtomicBool::new(false));
    let server = stage.server();
    let reconnecting = tokio::spawn({
        let over = Arc::clone(&over);
        async move {
            let (mut thrown_out, mut last) = (0, 0_i64);
            while !over.load(Ordering::Relaxed) {
                let Ok(session) = server.connect(Some(DATABASE)).await else {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    continue;
                };
                while !over.load(Ordering::Relaxed) {
                    let Ok(row) = session.row("count", "SELECT count(*) FROM auth.jwks", &[]).await else {
                        thrown_out += 1;
                        break;
                    };
                    last = row.get(0);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            (thrown_out, last)
        }
    });

    let output = stage.run(&RECOVER);
    assert!(output.status.success(), "{}", said(&output));
    assert!(idle.row("count", "SELECT 1", &[]).await.is_err(), "the idle client was ended");
    is_recovered(&stage, &whole).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    over.store(true, Ordering::Relaxed);
    let (thrown_out, last) = reconnecting.await.unwrap();
    assert!(thrown_out >= 1, "the reconnecting client was ended");
    assert_eq!(last, 4, "it came back to the restored database");
}

#[tokio::test(flavor = "multi_thread")]
async fn goes_on_after_kills_in_the_middle() {
    let stage = Stage::set(20_000, &json!({}));
    stage.back_up();
    let whole = stage.fingerprints(DATABASE).await;
    stage.damage().await;

    stage.killed_at(&RECOVER, "restore");
    assert_eq!(stage.health_body_while_stopped().await, None, "the service is stopped");
    let resume = ["resume", "--yes"];
    stage.killed_at(&resume, "verify-rows");
    stage.killed_at(&resume, "swap");
    let output = stage.run(&resume);
    assert!(output.status.success(), "{}", said(&output));
    is_recovered(&stage, &whole).await;

    let events = stage.events();
    let succeeded: Vec<&str> = events
        .iter()
        .filter(|event| event["type"] == "step_finished" && event["outcome"]["result"] == "succeeded")
        .map(|event| event["step"].as_str().unwrap())
        .collect();
    let once: BTreeSet<&str> = succeeded.iter().copied().collect();
    for step in ["stop-service", "restore", "swap"] {
        assert_eq!(succeeded.iter().filter(|id| **id == step).count(), 1, "{step} is done once: {succeeded:?}");
    }
    assert!(once.contains("healthy") && once.contains("tell"), "{succeeded:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn is_taken_back_across_a_kill() {
    let stage = Stage::set(500, &json!({}));
    stage.back_up();
    stage.damage().await;
    let damaged = stage.fingerprints(DATABASE).await;
    let output = stage.run(&RECOVER);
    assert!(output.status.success(), "{}", said(&output));

    let seen: Value = serde_json::from_str(&stage.done(&["undo", "--dry-run", "--format", "json"])).unwrap();
    let steps: Vec<&str> =
        seen["steps"].as_array().unwrap().iter().map(|step| step["id"].as_str().unwrap()).collect();
    assert_eq!(steps, ["undo:start-service", "undo:swap", "undo:stop-service"], "{seen:#}");
    let stays: Vec<&str> =
        seen["stays"].as_array().unwrap().iter().map(|step| step["step"].as_str().unwrap()).collect();
    assert!(stays.contains(&"restore"), "{seen:#}");

    stage.killed_at(&["undo", "--because", "the backup is too old"], "undo:swap");
    let output = stage.run(&["resume"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    let output = stage.run(&["undo"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(stage.fingerprints(DATABASE).await, damaged, "the damaged database is live again");
    assert_eq!(stage.databases().await, [DATABASE, "manacore_auth_restored"], "what was restored is kept");
    stage.health(503).await;

    let report: Value = serde_json::from_str(&stage.done(&["report", "--format", "json"])).unwrap();
    assert_eq!(
        (&report["status"], &report["undo"]["because"]),
        (&"undone".into(), &"the backup is too old".into())
    );
    let swaps = stage
        .events()
        .iter()
        .filter(|event| event["step"] == "undo:swap" && event["type"] == "step_finished")
        .count();
    assert_eq!(swaps, 1, "it is taken back once");
    stage.done(&["audit"]);
}

/// What is done to a backup, and what the plan must say of it.
struct Fault {
    name: &'static str,
    damage: fn(&[u8]) -> Vec<u8>,
    /// Whether the manifest is made to fit: then only a full read can tell.
    fitting_manifest: bool,
    /// How it is told.
    says: &'static str,
}

const FAULTS: [Fault; 5] = [
    Fault {
        name: "cut at the end of a row",
        damage: cut_at_a_row,
        fitting_manifest: true,
        says: "not whole: it ends at line",
    },
    Fault {
        name: "cut by one byte",
        damage: |dump| dump[..dump.len() - 1].to_vec(),
        fitting_manifest: true,
        says: "its zstd stream stops before its end",
    },
    Fault { name: "one bit flipped", damage: flip_a_bit, fitting_manifest: false, says: "doesn't match checksum" },
    Fault { name: "empty", damage: |_| Vec::new(), fitting_manifest: true, says: "it is empty" },
    Fault { name: "its end replaced", damage: replace_the_end, fitting_manifest: true, says: "without pg_dump's" },
];

fn cut_at_a_row(dump: &[u8]) -> Vec<u8> {
    let sql = String::from_utf8(zstd::decode_all(dump).unwrap()).unwrap();
    let copy = sql.find("COPY auth.users ").unwrap();
    let (row, _) = sql[copy..].match_indices('\n').nth(100).unwrap();
    zstd::encode_all(&sql.as_bytes()[..=copy + row], 3).unwrap()
}

fn replace_the_end(dump: &[u8]) -> Vec<u8> {
    let mut sql = zstd::decode_all(dump).unwrap();
    let half = sql.len() / 2;
    sql.truncate(half);
    sql.extend_from_slice(b"\n\\.\n");
    zstd::encode_all(sql.as_slice(), 3).unwrap()
}

fn flip_a_bit(dump: &[u8]) -> Vec<u8> {
    let mut dump = dump.to_vec();
    let half = dump.len() / 2;
    dump[half] ^= 0x10;
    dump
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_cannot_be_trusted_is_refused_before_anything_is_touched() {
    let stage = Stage::set(1_000, &json!({}));
    stage.back_up();
    let backups = stage.path(".lifeboat/sandboxes/test/backups");
    let names: Vec<String> = std::fs::read_dir(&backups)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let dump = backups.join(names.iter().find(|name| name.ends_with(".sql.zst")).unwrap());
    let manifest = backups.join(format!("{}.manifest.json", dump.file_name().unwrap().to_string_lossy()));
    let (good, good_manifest) = (std::fs::read(&dump).unwrap(), std::fs::read(&manifest).unwrap());

    stage.damage().await;
    let before = (stage.fingerprints(DATABASE).await, stage.databases().await, stage.service_started_at());
    let refused = async |what: &str, says: &str| {
        // With the preflight, and without it: the run itself must refuse as well.
        for extra in [&[][..], &["--no-preflight"]] {
            let output = stage.run(&[&RECOVER, extra].concat());
            let said = said(&output);
            assert!(matches!(output.status.code(), Some(1 | 3)), "{what} {extra:?}: {said}");
            // The page is wrapped to its width.
            let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(words.contains(says), "{what} {extra:?}: {said}");
            let after = (stage.fingerprints(DATABASE).await, stage.databases().await, stage.service_started_at());
            assert_eq!(before, after, "{what} {extra:?}: nothing was touched. {said}");
        }
    };
    for fault in FAULTS {
        let bad = (fault.damage)(&good);
        if fault.fitting_manifest {
            let mut fitting: Value = serde_json::from_slice(&good_manifest).unwrap();
            fitting["bytes"] = bad.len().into();
            fitting["sha256"] = stage::hex(&Sha256::digest(&bad)).into();
            std::fs::write(&manifest, serde_json::to_vec(&fitting).unwrap()).unwrap();
        }
        std::fs::write(&dump, bad).unwrap();
        refused(fault.name, fault.says).await;
        std::fs::write(&manifest, &good_manifest).unwrap();
        std::fs::write(&dump, &good).unwrap();
    }

    std::fs::remove_file(&manifest).unwrap();
    refused("without a manifest", "it has no manifest").await;

    let mut another: Value = serde_json::from_slice(&good_manifest).unwrap();
    another["database"] = "another_database".into();
    std::fs::write(&manifest, serde_json::to_vec(&another).unwrap()).unwrap();
    refused("another database's", "backup of the database another_database").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_writes_nothing_anywhere() {
    let stage = Stage::set(500, &json!({ "log_statement": "all", "log_line_prefix": "" }));
    stage.back_up();
    let files = |stage: &Stage| {
        let mut found = BTreeSet::new();
        let mut folders = vec![stage.folder.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
                    found.insert((path, modified));
                }
            }
        }
        found
    };
    let state: Value = serde_json::from_str(&read(&stage.cluster_folder().join("cluster.json"))).unwrap();
    let log = std::path::Path::new(state["home"].as_str().unwrap()).join("log");
    let (files_before, logged_before) = (files(&stage), read(&log).len());
    let started_at = stage.service_started_at();

    let text = stage.done(&["run", RECOVERY, "--env", "test", "--dry-run", "--format", "json"]);
    let dry: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&dry["verdict"], &dry["mode"]), (&json!("clear"), &json!("live")), "{dry:#}");
    let of = |id: &str| {
        let steps = dry["steps"].as_array().unwrap();
        steps.iter().find(|step| step["id"] == id).unwrap_or_else(|| panic!("{id} in {dry:#}")).clone()
    };
    assert_eq!(of("find-backup")["certainty"], "observed");
    assert_eq!(of("stop-service")["action"], "change");
    assert_eq!(of("restore")["action"], "create");
    assert_eq!(of("verify-rows")["certainty"], "assumed", "the database is still to be made");

    assert_eq!(files(&stage), files_before, "no file was made or changed");
    assert_eq!(stage.service_started_at(), started_at);
    let logged = read(&log);
    let statements: Vec<&str> = logged[logged_before..]
        .lines()
        .filter_map(|line| {
            line.split_once("statement: ").or_else(|| line.split_once("execute ")).map(|(_, sql)| sql)
        })
        .collect();
    assert!(statements.len() > 3, "the statements are logged: {statements:?}");
    let writes = regex::Regex::new(
        r"(?i)\b(insert|update|delete|create|alter|drop|truncate|grant|revoke|comment|copy|vacuum|analyze|reindex|pg_terminate_backend|lo_import|nextval|setval)\b",
    )
    .unwrap();
    let written: Vec<&&str> = statements.iter().filter(|sql| writes.is_match(sql)).collect();
    assert!(written.is_empty(), "{written:#?}");
    assert!(
        statements.iter().any(|sql| sql.contains("default_transaction_read_only")),
        "its sessions can't write: {statements:#?}"
    );
}

impl Stage {
    /// What the service says when it should say nothing.
    async fn health_body_while_stopped(&self) -> Option<String> {
        assert!(docker(&["inspect", "--format", "{{.State.Running}}", &self.container]) == "false");
        match reqwest::get(&self.health).await {
            Ok(answer) => answer.text().await.ok(),
            Err(_) => None,
        }
    }
}
