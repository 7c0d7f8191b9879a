//! A stage for whole recoveries: the project's own plans, on a sandbox of its own.
#![allow(dead_code, reason = "each test uses its part of it")]

#[allow(clippy::duplicate_mod, reason = "a program of several modules may have it of its own")]
#[path = "../support/ports.rs"]
mod ports;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use lifeboat::sandbox::seed::{Fingerprint, fingerprints};
use lifeboat::secret::Redactor;
use lifeboat::service::postgres::{Server, Session};
use lifeboat::service::sandbox::Cluster;
use lifeboat::service::{Services, Target};
use ports::free_port;
use serde_json::{Value, json};

pub const DATABASE: &str = "manacore_auth";
pub const RECOVERY: &str = "plans/database-corruption.yaml";
pub const BACKUP: &str = "plans/daily-backup.yaml";

/// What every server and the service of a stage have for a secret.
pub const PASSWORD: &str = "for-the-stage-only";

/// How the demo damages the data, in short.
const DAMAGE: &str = "DELETE FROM auth.users WHERE id LIKE '%3'; DELETE FROM auth.jwks; \
     UPDATE credits.balances SET amount = -amount WHERE user_id LIKE '%7'";

pub struct Stage {
    pub folder: tempfile::TempDir,
    /// The auth service's container; empty without Docker.
    pub container: String,
    pub health: String,
}

/// The engine of the tests.
pub fn docker_host() -> String {
    std::env::var("LIFEBOAT_TEST_DOCKER").expect("`.ci/services run` sets it")
}

pub fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(["-H", &docker_host()]).args(args).output().unwrap();
    assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl Stage {
    /// A sandbox that is up, its service a container.
    pub fn set(users: u32, settings: &Value) -> Self {
        Self::with_images(users, settings, false)
    }

    /// As [`Stage::set`]; `images`: whether the engine gets images of PostgreSQL and Redis, for the
    /// environment `rebuilt`.
    pub fn with_images(users: u32, settings: &Value, images: bool) -> Self {
        let folder = tempfile::Builder::new().prefix("lifeboat-test-").tempdir().unwrap();
        let container = folder.path().file_name().unwrap().to_string_lossy().to_lowercase();
        let [auth, sink, side, redis, consumer, new_db, new_redis, names, mail, ssh] =
            std::array::from_fn(|_| free_port());
        let stage = Self { health: format!("http://127.0.0.1:{auth}/health/ready"), folder, container };
        let environments = stage.path("plans/environments");
        std::fs::create_dir_all(&environments).unwrap();
        for plan in std::fs::read_dir("plans").unwrap().map(|entry| entry.unwrap().path()) {
            if plan.is_file() {
                std::fs::copy(&plan, stage.path("plans").join(plan.file_name().unwrap())).unwrap();
            }
        }
        let client = format!("docker/{}", stage.container);
        let folder = |name: &str| {
            let root = stage.path(".lifeboat/sandboxes/test").join(name);
            json!({ "storage": { "scheme": "fs", "root": root } })
        };
        let images = images.then(|| json!({ "images": stage.container }));
        // JSON is YAML.
        let environment = json!({
            "lifeboat": 1,
            "environment": "test",
            "vars": {
                "service": stage.container,
                "wal_archive": stage.cluster_folder().join("archive"),
                "data_dir": stage.side(),
                // How full the disk of whoever tests is, is not what is tested.
                "min_free": "1MiB",
            },
            "targets": {
                "db": { "postgres": { "sandbox": { "settings": settings, "archive": true, "password": PASSWORD }, "clients": [client] } },
                "side": { "postgres": { "beside": { "like": "db", "port": side } } },
                "backups": folder("backups"),
                "base_backups": folder("base_backups"),
                "proofs": folder("proofs"),
                "offsite": folder("offsite"),
                "redis": { "redis": { "url": format!("redis://127.0.0.1:{redis}/0"), "sandbox": true } },
                "docker": { "docker": { "host": docker_host(), "sandbox": images } },
                "auth": { "http": {
                    "base_url": format!("http://127.0.0.1:{auth}"),
                    "sandbox": { "database": format!("db/{DATABASE}"), "container": client, "users": users,
                        "secret": PASSWORD },
                } },
                "issuer": { "oidc": {
                    "issuer": format!("http://127.0.0.1:{auth}"), "client_id": "lifeboat", "client_secret": "lifeboat-secret",
                } },
                "consumer": { "http": {
                    "base_url": format!("http://127.0.0.1:{consumer}"),
                    "consumer_sandbox": { "issuer": format!("http://127.0.0.1:{auth}") },
                } },
                "dns": { "dns": {
                    "server": format!("127.0.0.1:{names}"), "zone": "stage.test", "sandbox": true,
                    "tsig": { "name": "lifeboat", "secret": "Zm9yIHRoZSBzdGFnZSwgbm8gc2VjcmV0IGF0IGFsbCE=" },
                } },
                "mail": { "smtp": {
                    "url": format!("smtp://127.0.0.1:{mail}"), "from": "lifeboat@stage.test", "sandbox": true,
                } },
                "balancer": { "ssh": { "host": format!("127.0.0.1:{ssh}"), "sandbox": true } },
                "oncall": { "webhook": { "url": format!("http://127.0.0.1:{sink}/oncall"), "sandbox": true } },
            },
        });
        let write = |name: &str, environment: &Value| {
            std::fs::write(environments.join(name), serde_json::to_string_pretty(environment).unwrap()).unwrap();
        };
        write("test.yaml", &environment);
        // The same service at its new place, in containers.
        let mut rebuilt = environment;
        rebuilt["environment"] = "rebuilt".into();
        let issuer = format!("http://127.0.0.1:{auth}");
        let listen = format!("127.0.0.1:{auth}");
        rebuilt["vars"] = json!({
            "service": stage.container,
            "service_image": format!("{}:sandbox", stage.container),
            "service_command": ["sandbox", "serve-auth", "--listen", listen, "--issuer", issuer],
            "service_ports": [],
            "database_container": format!("{}-db", stage.container),
            "database_image": format!("{}-postgres", stage.container),
            "database_command": ["postgres", "-c", "listen_addresses=127.0.0.1", "-c", format!("port={new_db}")],
            "database_port": new_db,
            "database_ports": [],
            "database_volumes": [],
            "redis_container": format!("{}-redis", stage.container),
            "redis_image": format!("{}-redis", stage.container),
            "redis_command": ["redis-server", "--bind", "127.0.0.1", "--port", new_redis.to_string(), "--dir", "/data"],
            "redis_ports": [],
            "redis_data": stage.path("new-redis"),
            "network": "host",
            "dns_name": "auth.stage.test",
            "address": "127.0.0.2",
            "balancer_command": ["touch", stage.path("balanced")],
            "resolver": format!("127.0.0.1:{names}"),
        });
        rebuilt["inputs"] = json!({
            "database_password": PASSWORD,
            "service_database_url": format!("postgres://auth_service:{PASSWORD}@127.0.0.1:{new_db}/{DATABASE}"),
            "auth_secret": PASSWORD,
        });
        let targets = &mut rebuilt["targets"];
        let url = format!("postgres://postgres:{PASSWORD}@127.0.0.1:{new_db}/postgres");
        targets["db"] = json!({ "postgres": { "url": url } });
        targets["redis"] = json!({ "redis": { "url": format!("redis://127.0.0.1:{new_redis}/0") } });
        for (target, settings, own) in [
            ("auth", "http", "sandbox"),
            ("consumer", "http", "consumer_sandbox"),
            ("oncall", "webhook", "sandbox"),
            ("docker", "docker", "sandbox"),
            ("dns", "dns", "sandbox"),
            ("mail", "smtp", "sandbox"),
        ] {
            targets[target][settings].as_object_mut().unwrap().remove(own);
        }
        let keys = stage.path(".lifeboat/sandboxes/test/balancer");
        targets["balancer"] = json!({ "ssh": {
            "host": format!("127.0.0.1:{ssh}"), "key_file": keys.join("user"), "known_hosts": keys.join("known_hosts"),
        } });
        targets["dns"]["dns"]["servers"] = json!([format!("127.0.0.1:{names}")]);
        write("rebuilt.yaml", &rebuilt);
        stage.done(&["sandbox", "up", "--env", "test"]);
        stage
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    /// A target of the environment, as it is written there.
    pub fn target(&self, name: &str) -> Value {
        self.target_of("test", name)
    }

    pub fn target_of(&self, environment: &str, name: &str) -> Value {
        let file = self.path(&format!("plans/environments/{environment}.yaml"));
        let environment: Value = serde_json::from_str(&read(&file)).unwrap();
        environment["targets"][name].clone()
    }

    /// The auth service's URL.
    pub fn issuer(&self) -> String {
        self.health.trim_end_matches("/health/ready").to_owned()
    }

    /// Leaves the backups alone, and those who ask the service.
    pub fn lose_everything(&self) {
        docker(&["rm", "-f", &self.container]);
        for target in ["db", "redis"] {
            self.done(&["sandbox", "stop", target, "--env", "test"]);
        }
    }

    /// Where a recovered cluster lies: its server's user can't go where the rest is.
    pub fn side(&self) -> PathBuf {
        Path::new("/var/tmp").join(format!("{}-side", self.container))
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command.args(args).current_dir(self.folder.path()).stdin(Stdio::null()).env_remove("LIFEBOAT_STATE");
        command.env("NO_COLOR", "1");
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command that must succeed.
    pub fn done(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "lifeboat {args:?}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn back_up(&self) {
        self.done(&["run", BACKUP, "--env", "test", "--yes"]);
    }

    /// Starts a run, and kills it (SIGKILL) once that step is under way.
    pub fn killed_at(&self, args: &[&str], step: &str) {
        let started = format!(r#""type":"step_started","step":"{step}""#);
        let starts =
            || self.journals().iter().map(|journal| read(journal).matches(&started).count()).sum::<usize>();
        let before = starts();
        let told = self.path("told");
        let words = std::fs::File::create(&told).unwrap();
        let mut command = self.command(args);
        let mut child: Child = command.stdout(Stdio::null()).stderr(words).spawn().unwrap();
        let end = Instant::now() + Duration::from_mins(1);
        while starts() == before {
            assert!(Instant::now() < end, "`{step}` never started");
            assert!(child.try_wait().unwrap().is_none(), "the run ended before `{step}` started: {}", read(&told));
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The journals, oldest run first.
    pub fn journals(&self) -> Vec<PathBuf> {
        let mut runs: Vec<PathBuf> = std::fs::read_dir(self.path(".lifeboat/runs"))
            .into_iter()
            .flatten()
            .map(|run| run.unwrap().path().join("journal.jsonl"))
            .filter(|journal| journal.exists())
            .collect();
        // Not by name: two runs may begin in the same second. Each is read once: one that is just
        // beginning may have no line now and one later, and an order that changes is none.
        runs.sort_by_cached_key(|journal| {
            read(journal)
                .lines()
                .next()
                .and_then(|first| serde_json::from_str::<Value>(first).ok()?["at"].as_str().map(str::to_owned))
        });
        runs
    }

    /// The latest run's id.
    pub fn latest(&self) -> String {
        let journal = self.journals().pop().unwrap();
        journal.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned()
    }

    /// The events of the latest run.
    pub fn events(&self) -> Vec<Value> {
        let journal = self.journals().pop().unwrap();
        read(&journal).lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["event"].clone()).collect()
    }

    pub fn cluster_folder(&self) -> PathBuf {
        self.path(".lifeboat/sandboxes/test/db")
    }

    pub fn url(&self) -> String {
        Cluster::new(self.cluster_folder()).url().unwrap().expose().to_owned()
    }

    pub fn server(&self) -> Server {
        let target: Target = serde_json::from_value(json!({ "postgres": { "url": self.url() } })).unwrap();
        Services::new([("db".to_owned(), target)].into(), Redactor::default()).postgres("db").unwrap()
    }

    pub async fn session(&self, database: &str) -> Session {
        self.server().connect(Some(database)).await.unwrap()
    }

    pub async fn fingerprints(&self, database: &str) -> Vec<Fingerprint> {
        fingerprints(&self.session(database).await).await.unwrap()
    }

    /// The server's time, between what was committed before and what will be after.
    pub async fn moment(&self) -> String {
        let sql = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
        self.session("postgres").await.row("ask for the time", sql, &[]).await.unwrap().get(0)
    }

    pub async fn damage(&self) {
        self.session(DATABASE).await.batch("damage", DAMAGE).await.unwrap();
    }

    /// The databases that aren't the server's own.
    pub async fn databases(&self) -> Vec<String> {
        let session = self.session("postgres").await;
        let sql =
            "SELECT datname::text FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres' ORDER BY 1";
        session.rows("list databases", sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }

    /// What the service says, once it says it with that status.
    pub async fn health(&self, status: u16) -> Value {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let answer = reqwest::get(&self.health).await;
            if let Ok(answer) = answer {
                let (said, body) = (answer.status().as_u16(), answer.json::<Value>().await.unwrap());
                if said == status {
                    return body;
                }
                assert!(Instant::now() < end, "{said} {body}");
            }
            assert!(Instant::now() < end, "the service does not answer");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// When the service's container was last started: the same value means that it was left alone.
    pub fn service_started_at(&self) -> String {
        docker(&["inspect", "--format", "{{.State.Running}} {{.State.StartedAt}}", &self.container])
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let output = self.run(&["sandbox", "down", "--env", "test"]);
        assert!(output.status.success() || std::thread::panicking(), "sandbox down: {}", said(&output));
    }
}

pub fn read(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}

/// What a program said, both ways.
pub fn said(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
