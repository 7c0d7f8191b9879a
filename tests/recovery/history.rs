//! What a server answers for a noted transaction, when its history isn't the one that the note belongs to.

use std::path::Path;

use lifeboat::service::PostgresSandbox;
use lifeboat::step::AfterKill;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::fixture::{BACKUP, RECOVER, Stage};
use crate::support::{connect_to, until};

const EXECUTE: &str = "postgres.execute";

fn insert(target: &str) -> Value {
    json!({ "target": target, "sql": "INSERT INTO public.t VALUES (100)" })
}

/// Gives out ids, and commits them, until `until` is passed.
async fn burn(url: &str, until: u64) {
    let client = connect_to(url).await.unwrap();
    loop {
        client.batch_execute("INSERT INTO public.t VALUES (-1)").await.unwrap();
        let now: String = client.query_one("SELECT pg_current_xact_id()::text", &[]).await.unwrap().get(0);
        if now.parse::<u64>().unwrap() > until {
            return;
        }
    }
}

fn transaction(note: &Value) -> u64 {
    note["transaction"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_cluster_that_was_recovered_to_an_earlier_moment_cannot_tell() {
    let stage = Stage::new(PostgresSandbox { archive: true, ..PostgresSandbox::default() }).await;
    stage.sql("CREATE TABLE t (n int)").await;
    stage.harness.run(BACKUP, Stage::backup("base")).await.unwrap();
    stage.value("SELECT pg_create_restore_point('before')").await;
    let execute = stage.other_step();
    execute.run_and_kill_at_note(EXECUTE, insert("db"), 1).await;
    let id = transaction(&execute.journal.notes()[0].1);
    // Here it is known.
    let AfterKill::DidNotHappen { why } = execute.after_kill(EXECUTE, insert("db")).await else { panic!() };
    assert!(why.contains("rolled back"), "{why}");
    stage.archive_all().await;

    stage.harness.run(RECOVER, stage.recover(&json!({ "name": "before" }))).await.unwrap();
    let side = execute.services.postgres("side").unwrap();
    let session = side.connect(None).await.unwrap();
    let now = || async {
        let row = session.row("look", "SELECT pg_current_xact_id()::text", &[]).await.unwrap();
        row.get::<_, &str>(0).parse::<u64>().unwrap()
    };
    while now().await <= id {}
    let said = session.transaction_status(&id.to_string()).await.unwrap();
    assert_eq!(format!("{said:?}"), "Committed", "the id was given out again");
    let AfterKill::CannotTell { why } = execute.after_kill(EXECUTE, insert("side")).await else { panic!() };
    assert!(why.contains("its timeline was 1, and is 2 now"), "{why}");
    let failure = execute.run(EXECUTE, insert("side")).await.unwrap_err();
    assert!(failure.message.contains("may have been committed") && !failure.transient, "{failure:?}");
}

#[tokio::test]
async fn a_cluster_that_was_put_back_to_a_snapshot_of_its_files_cannot_tell() {
    let stage = Stage::new(PostgresSandbox::default()).await;
    stage.sql("CREATE TABLE t (n int)").await;
    let data = stage.value("SHOW data_directory").await;
    let data = Path::new(&data);
    let kept = stage.folder.path().join("kept");
    stage.cluster.stop().await.unwrap();
    copy(data, &kept);
    stage.cluster.up(&PostgresSandbox::default()).await.unwrap();
    stage.sql("INSERT INTO t SELECT generate_series(1, 100000)").await;
    let execute = stage.other_step();
    execute.run_and_kill_at_note(EXECUTE, insert("db"), 1).await;
    let id = transaction(&execute.journal.notes()[0].1);

    stage.cluster.stop().await.unwrap();
    std::fs::remove_dir_all(data).unwrap();
    copy(&kept, data);
    stage.cluster.up(&PostgresSandbox::default()).await.unwrap();
    burn(&stage.url, id).await;
    let AfterKill::CannotTell { why } = execute.after_kill(EXECUTE, insert("db")).await else { panic!() };
    assert!(why.contains("put back to before the attempt"), "{why}");
}

fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(copied.success());
}

#[tokio::test]
async fn a_crash_does_not_give_the_noted_id_to_another() {
    let stage = Stage::new(PostgresSandbox::default()).await;
    stage.sql("CREATE TABLE t (n int)").await;
    // Nothing but a commit brings WAL to the disk now.
    let writer = stage.value("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'").await;
    let process = |pid: &str| Pid::from_raw(pid.trim().parse().unwrap());
    kill(process(&writer), Signal::SIGSTOP).unwrap();
    let execute = stage.other_step();
    execute.run_and_kill_at_note(EXECUTE, insert("db"), 1).await;
    let id = transaction(&execute.journal.notes()[0].1);
    let file = Path::new(&stage.value("SHOW data_directory").await).join("postmaster.pid");
    let server = std::fs::read_to_string(file).unwrap().lines().next().unwrap().to_owned();
    kill(process(&server), Signal::SIGQUIT).unwrap();
    until("the server is gone", || async { !Path::new(&format!("/proc/{server}")).exists() }).await;

    stage.cluster.up(&PostgresSandbox::default()).await.unwrap();
    burn(&stage.url, id).await;
    let AfterKill::DidNotHappen { .. } = execute.after_kill(EXECUTE, insert("db")).await else {
        panic!("transaction {id} is another's")
    };
    assert_eq!(stage.value("SELECT count(*) FROM t WHERE n = 100").await, "0");
    execute.run(EXECUTE, insert("db")).await.unwrap();
    assert_eq!(stage.value("SELECT count(*) FROM t WHERE n = 100").await, "1");
}
