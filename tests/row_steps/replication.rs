//! `replication`: a primary of the test's own, and a real standby of it.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use lifeboat::step::Action;
use lifeboat::step::world::World;
use serde_json::{Value, json};

use crate::support::{Harness, connect_to, postgres, postgres_url, until};

const REPLICATION: &str = "postgres.replication";

/// A server in a folder, gone with the test.
struct Cluster {
    data: PathBuf,
    port: u16,
}

/// A client or server program, as the user that PostgreSQL runs as.
fn program(name: &str) -> Command {
    let bin = std::env::var("LIFEBOAT_TEST_POSTGRES_BIN").expect("LIFEBOAT_TEST_POSTGRES_BIN");
    let mut command = Command::new(Path::new(&bin).join(name));
    command.current_dir("/");
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("postgres").unwrap().expect("a user postgres");
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
}

fn succeeds(mut command: Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Cluster {
    fn start(data: PathBuf, settings: &str) -> Self {
        let port = crate::support::ports::free_port();
        let mut start = program("pg_ctl");
        let options = format!(
            "-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off {settings}"
        );
        start
            .arg("-D")
            .arg(&data)
            .args(["-w", "-t", "60", "-l"])
            .arg(data.join("log"))
            .args(["-o", &options, "start"]);
        // The server keeps what it inherits open: nothing of the test's.
        start.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let started = start.status().unwrap();
        assert!(started.success(), "{}", std::fs::read_to_string(data.join("log")).unwrap_or_default());
        Self { data, port }
    }

    fn primary(folder: &Path) -> Self {
        let data = folder.join("primary");
        let mut initdb = program("initdb");
        initdb.arg("-D").arg(&data).args(["-U", "postgres", "--auth=trust", "--no-sync", "-E", "UTF8"]);
        succeeds(initdb);
        Self::start(data, "-c wal_sender_timeout=5s")
    }

    fn standby(&self, folder: &Path) -> Self {
        let data = folder.join("standby");
        let mut copy = program("pg_basebackup");
        let from = format!("host=127.0.0.1 port={} user=postgres application_name=second", self.port);
        copy.arg("-D").arg(&data).args(["-R", "-X", "stream", "-c", "fast", "--no-sync", "-d", &from]);
        succeeds(copy);
        Self::start(data, "-c wal_receiver_status_interval=1s")
    }

    fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable", self.port)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut stop = program("pg_ctl");
        let _ = stop.arg("-D").arg(&self.data).args(["-m", "immediate", "stop"]).output();
    }
}

/// A folder that PostgreSQL's user may write to.
fn cluster_folder() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("lifeboat-cluster-").tempdir_in("/var/tmp").unwrap();
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("postgres").unwrap().expect("a user postgres");
        nix::unistd::chown(folder.path(), Some(user.uid), Some(user.gid)).unwrap();
    }
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_follows_falls_behind_and_goes() {
    let folder = cluster_folder();
    let primary = Cluster::primary(folder.path());
    let harness = Harness::with([("db", postgres(&primary.url()))]);
    let params = |max_lag: Value| json!({ "target": "db", "max_lag": max_lag });
    let failure = harness.run(REPLICATION, json!({ "target": "db" })).await.unwrap_err();
    assert!(failure.transient && failure.message.contains("there is none"), "{failure}");
    let preview = harness.preview(REPLICATION, json!({ "target": "db" }), &World::default()).await;
    assert_eq!(preview.action, Action::Blocked, "{preview:?}");

    let standby = primary.standby(folder.path());
    until("the standby streams", || async { harness.run(REPLICATION, json!({ "target": "db" })).await.is_ok() })
        .await;
    for lag in [json!("10s"), json!("16MiB")] {
        let done = harness.run(REPLICATION, params(lag)).await.unwrap();
        assert_eq!(done.outputs["standbys"], json!(1));
        assert!(done.outputs["lag"].is_u64());
    }
    let preview = harness.preview(REPLICATION, params(json!("10s")), &World::default()).await;
    assert!(preview.action == Action::Read && preview.summary.contains("behind"), "{preview:?}");
    let failure = harness.run(REPLICATION, json!({ "target": "db", "min_standbys": 2 })).await.unwrap_err();
    assert!(failure.message.contains("2 standbys") && failure.message.contains("second at 127.0.0.1"), "{failure}");

    // Replay stands still: the server's own lag in time would show nothing of it.
    let (writer, second) = (connect_to(&primary.url()).await.unwrap(), connect_to(&standby.url()).await.unwrap());
    second.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
    until("replay stands still", || async {
        let row = second.query_one("SELECT pg_get_wal_replay_pause_state()", &[]).await.unwrap();
        row.get::<_, &str>(0) == "paused"
    })
    .await;
    writer
        .batch_execute("CREATE TABLE t AS SELECT g, repeat('x', 100) FROM generate_series(1, 10000) g")
        .await
        .unwrap();
    for (lag, said) in [(json!("300ms"), "allowed is 300ms"), (json!(1000), "allowed is 1000 B")] {
        let failure = harness.run(REPLICATION, params(lag)).await.unwrap_err();
        assert!(failure.transient && failure.message.contains(said), "{failure}");
    }
    second.batch_execute("SELECT pg_wal_replay_resume()").await.unwrap();
    harness.run(REPLICATION, params(json!("10s"))).await.unwrap();

    // Rows come from a standby as well: nothing is written there.
    let names = crate::support::Databases::new("standby_rows");
    let database = names.create("to", "CREATE TABLE t (g int PRIMARY KEY, repeat text)").await;
    let both = Harness::with([("standby", postgres(&standby.url())), ("db", postgres(&postgres_url()))]);
    let copy = json!({
        "from": { "target": "standby", "database": "postgres", "table": "t" },
        "to": { "target": "db", "database": database }, "where": "g > $1", "params": [9000], "follow": true,
    });
    let preview = both.preview("postgres.copy_rows", copy.clone(), &World::default()).await;
    assert!(preview.problems.is_empty() && preview.summary.contains("1000 rows"), "{preview:?}");
    assert_eq!(both.run("postgres.copy_rows", copy).await.unwrap().outputs["total"], 1000);

    let from_standby = Harness::with([("db", postgres(&standby.url()))]);
    let failure = from_standby.run(REPLICATION, params(json!("10s"))).await.unwrap_err();
    assert!(!failure.transient && failure.help.unwrap().contains("primary"));
    drop(second);
    drop(standby);
    until("the standby is gone", || async { harness.run(REPLICATION, json!({ "target": "db" })).await.is_err() })
        .await;
}

#[tokio::test]
async fn a_role_that_may_not_see_standbys_is_told_so() {
    let role = crate::support::unique("watcher");
    crate::support::sql("postgres", &format!("CREATE ROLE {role} LOGIN PASSWORD 'w'")).await;
    let url = crate::support::url_with(&postgres_url(), Some((&role, "w")), "postgres");
    let failure =
        Harness::with([("db", postgres(&url))]).run(REPLICATION, json!({ "target": "db" })).await.unwrap_err();
    assert!(failure.help.unwrap().contains("pg_monitor"));
    crate::support::sql("postgres", &format!("DROP ROLE {role}")).await;
}

#[test]
fn a_lag_is_a_size_or_a_time() {
    let info = lifeboat::step::find(REPLICATION).unwrap();
    for good in [json!(512), json!("16MiB"), json!("10s"), json!("1h30m")] {
        assert!((info.parse)(json!({ "target": "db", "max_lag": good })).is_ok(), "{good}");
    }
    for bad in [json!("soon"), json!(-1), json!("5 elephants")] {
        assert!((info.parse)(json!({ "target": "db", "max_lag": bad })).is_err(), "{bad}");
    }
}
