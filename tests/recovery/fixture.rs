//! A cluster that archives its WAL, a folder for what is made of it, and its later moments.

use std::path::{Path, PathBuf};

use lifeboat::service::postgres::side::Side;
use lifeboat::service::sandbox::Cluster;
use lifeboat::service::{PostgresSandbox, Target};
use serde_json::{Value, json};

use crate::support::{Harness, connect_to, postgres, until};

pub const BACKUP: &str = "postgres.base_backup";
pub const RECOVER: &str = "postgres.recover_to";
pub const REMOVE: &str = "postgres.remove_cluster";

/// Everything goes with it, servers too.
pub struct Stage {
    pub harness: Harness,
    pub cluster: Cluster,
    pub url: String,
    pub folder: tempfile::TempDir,
}

impl Stage {
    pub async fn new(settings: PostgresSandbox) -> Self {
        // Where the server's user can go, and short enough for a socket.
        let folder = tempfile::Builder::new().prefix("lb-rec").tempdir_in("/var/tmp").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder.path(), mode).unwrap();
        let cluster = Cluster::new(folder.path().join("db"));
        cluster.up(&settings).await.unwrap();
        let url = cluster.url().unwrap().expose().to_owned();
        let beside =
            json!({ "postgres": { "beside": { "like": "db", "port": crate::support::ports::free_port() } } });
        let backups = json!({ "storage": { "scheme": "fs", "root": folder.path().join("backups") } });
        let of = |target: Value| serde_json::from_value::<Target>(target).unwrap();
        let harness = Harness::with([("db", postgres(&url)), ("side", of(beside)), ("backups", of(backups))]);
        Self { harness, cluster, url, folder }
    }

    /// With a table, a base backup of it, and what came after:
    /// rows 1 | backup | 2, the time, 3, the restore point `before_4`, 4 | archived.
    pub async fn with_history() -> (Self, Moments) {
        let stage = Self::new(PostgresSandbox { archive: true, ..PostgresSandbox::default() }).await;
        stage.sql("CREATE TABLE t (n int); INSERT INTO t VALUES (1)").await;
        stage.harness.run(BACKUP, Self::backup("base")).await.unwrap();
        stage.sql("INSERT INTO t VALUES (2)").await;
        let time = stage
            .value("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US')")
            .await;
        let lsn = stage.value("SELECT pg_current_wal_flush_lsn()").await;
        stage.sql("INSERT INTO t VALUES (3)").await;
        stage.value("SELECT pg_create_restore_point('before_4')").await;
        stage.sql("INSERT INTO t VALUES (4)").await;
        stage.archive_all().await;
        (stage, Moments { time, lsn })
    }

    /// Waits until what the server wrote is in the archive.
    pub async fn archive_all(&self) {
        let name = self.value("SELECT pg_walfile_name(pg_switch_wal())").await;
        let file = self.archive().join(name);
        until("the WAL is archived", || async { file.exists() }).await;
    }

    /// Another step's harness, on the same cluster and the one beside it.
    pub fn other_step(&self) -> Harness {
        let side = self.harness.services.target("side").unwrap().clone();
        Harness::with([("db", postgres(&self.url)), ("side", side)])
    }

    pub fn archive(&self) -> PathBuf {
        self.cluster.archive()
    }

    pub fn backup(name: &str) -> Value {
        json!({ "target": "db", "to": { "storage": "backups", "path": name } })
    }

    pub fn side(&self) -> Side {
        Side::new(self.folder.path().join("side"))
    }

    pub fn recover(&self, to: &Value) -> Value {
        json!({
            "target": "side", "from": { "storage": "backups", "path": "base" }, "to": to,
            "wal": self.archive(), "data_dir": self.folder.path().join("side"),
        })
    }

    pub fn remove(&self) -> Value {
        json!({ "target": "side", "data_dir": self.folder.path().join("side") })
    }

    pub async fn sql(&self, statements: &str) {
        connect_to(&self.url).await.unwrap().batch_execute(statements).await.unwrap();
    }

    pub async fn value(&self, sql: &str) -> String {
        value(&self.url, sql).await
    }

    /// The rows of the recovered cluster, which can be written to.
    pub async fn recovered(&self) -> String {
        let cx = self.harness.next_attempt();
        let session = cx.services.postgres("side").unwrap().connect(None).await.unwrap();
        session.batch("write", "CREATE TABLE public.written ()").await.unwrap();
        let sql = "SELECT string_agg(n::text, ' ' ORDER BY n), current_setting('archive_mode') FROM public.t";
        let row = session.row("read", sql, &[]).await.unwrap();
        assert_eq!(row.get::<_, &str>(1), "off");
        row.get(0)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let (cluster, side): (Cluster, Side) = (self.cluster.clone(), self.side());
        let ending = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                if side.mark().is_some() {
                    let _ = side.remove().await;
                }
                let _ = cluster.down().await;
            });
        });
        let _ = ending.join();
    }
}

/// Between the rows 2 and 3.
pub struct Moments {
    pub time: String,
    pub lsn: String,
}

impl Moments {
    pub fn time(&self) -> Value {
        json!({ "time": format!("{}Z", self.time) })
    }
}

pub async fn value(url: &str, sql: &str) -> String {
    let client = connect_to(url).await.unwrap();
    for message in client.simple_query(sql).await.unwrap() {
        if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
            return row.get(0).unwrap().to_owned();
        }
    }
    panic!("{sql} gives no row")
}

/// The names in a folder.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
