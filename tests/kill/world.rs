//! One world: databases by a prefix of their own, a folder, and whatever a plan needs besides.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::Way;
use crate::support::{Databases, connect, postgres_url, unique};

/// A plan with what it needs, and what is compared.
pub struct Case {
    pub name: &'static str,
    /// Makes a fresh world.
    pub set: fn(&World),
    /// The steps and `finally` of the plan.
    pub plan: fn(&World) -> Value,
    /// The targets besides `db` and `store`.
    pub targets: fn(&World) -> Value,
    /// What there is to see besides databases and files.
    pub look: fn(&World) -> Value,
    /// Outputs that are another in each run, as `step.output`; with `?` they may be lost, too.
    pub varying: &'static [&'static str],
    /// Steps of which nobody can tell: people are asked, and say that they are to run again.
    pub may_ask: &'static [&'static str],
    /// How many worlds a core has at once: more than one, where a plan waits for most of its time.
    pub waits: usize,
    /// How many steps run side by side (`--jobs`).
    pub jobs: &'static str,
    /// What its run comes to.
    pub way: Way,
}

impl Case {
    pub const PLAIN: Self = Self {
        name: "",
        set: |_| (),
        plan: |_| Value::Null,
        targets: |_| json!({}),
        look: |_| Value::Null,
        varying: &[],
        may_ask: &[],
        waits: 1,
        jobs: "1",
        way: Way::Resume,
    };

    /// Whether the run is at its end.
    pub fn is_through(&self, status: &str) -> bool {
        status == if self.way == Way::Resume { "succeeded" } else { "undone" }
    }
}

pub struct World {
    /// What all names of this world begin with, and those of no other.
    pub prefix: String,
    pub folder: tempfile::TempDir,
    /// Removes the databases.
    databases: Databases,
    runtime: tokio::runtime::Runtime,
    /// Ended with the world, the last first.
    pub ends: std::cell::RefCell<Vec<Box<dyn FnOnce() + Send>>>,
}

impl World {
    pub fn new(case: &Case) -> Self {
        let databases = Databases::new("kill");
        let world = Self {
            prefix: databases.name("").trim_end_matches('_').to_owned(),
            folder: tempfile::Builder::new().prefix("lifeboat-kill-").tempdir().unwrap(),
            databases,
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
            ends: std::cell::RefCell::default(),
        };
        std::fs::create_dir_all(world.path("store")).unwrap();
        std::fs::create_dir_all(world.path("files")).unwrap();
        (case.set)(&world);
        let mut targets = json!({
            "db": { "postgres": { "url": postgres_url() } },
            "store": { "storage": { "scheme": "fs", "root": world.path("store") } },
        });
        targets.as_object_mut().unwrap().extend((case.targets)(&world).as_object().unwrap().clone());
        let mut plan = json!({ "lifeboat": 1, "plan": "killed", "targets": {} });
        for (name, target) in targets.as_object().unwrap() {
            plan["targets"][name] = target.as_object().unwrap().keys().next().unwrap().as_str().into();
        }
        plan.as_object_mut().unwrap().extend((case.plan)(&world).as_object().unwrap().clone());
        let environment = json!({ "lifeboat": 1, "environment": "world", "targets": targets });
        // JSON is YAML.
        for (file, text) in [("plan.yaml", plan), ("world.yaml", environment)] {
            std::fs::write(world.path(file), serde_json::to_vec_pretty(&text).unwrap()).unwrap();
        }
        world
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    /// A name of this world.
    pub fn name(&self, part: &str) -> String {
        self.databases.name(part)
    }

    /// Makes a database and runs statements in it.
    pub fn create(&self, part: &str, statements: &str) {
        self.runtime.block_on(self.databases.create(part, statements));
    }

    /// Runs the program, to die at point `kill`; gives what it said, and the points that it passed.
    pub fn lifeboat(&self, args: &[&str], kill: Option<usize>) -> (Output, Vec<String>) {
        let trace = self.path("trace");
        let _ = std::fs::remove_file(&trace);
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command.args(args).current_dir(self.folder.path()).env_remove("LIFEBOAT_STATE").env("NO_COLOR", "1");
        command.env("LIFEBOAT_KILL_TRACE", &trace);
        if let Some(kill) = kill {
            command.env("LIFEBOAT_KILL_AT", kill.to_string());
        }
        // Into files: what outlives the program would hold a pipe open.
        let file = |name: &str| std::fs::File::create(self.path(name)).unwrap();
        command.stdin(Stdio::null()).stdout(file("out")).stderr(file("err"));
        let mut child = command.spawn().unwrap();
        let end = Instant::now() + Duration::from_secs(100);
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > end {
                child.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let read = |name: &str| std::fs::read(self.path(name)).unwrap();
        let passed = std::fs::read_to_string(&trace).unwrap_or_default().lines().map(str::to_owned).collect();
        (Output { status, stdout: read("out"), stderr: read("err") }, passed)
    }

    /// All that there is of this world, in words that are the same in each.
    pub fn look(&self, case: &Case) -> Value {
        json!({
            "databases": self.runtime.block_on(self.look_at_databases()),
            "sessions": self.sessions(),
            "store": files(&self.path("store")),
            "files": files(&self.path("files")),
            "besides": (case.look)(self),
        })
    }

    async fn look_at_databases(&self) -> BTreeMap<String, Value> {
        const TABLES: &str = "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
            WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_' ORDER BY 1";
        // Indexes, constraints and sequences, and whether they are valid.
        const OTHERS: &str = "SELECT format('%s %s', pg_get_indexdef(indexrelid), indisvalid) FROM pg_index \
              WHERE indrelid >= 16384 AND indrelid::regclass::text !~ '^pg_' \
            UNION ALL SELECT format('%s %s %s', conrelid::regclass, pg_get_constraintdef(oid), convalidated) \
              FROM pg_constraint WHERE conrelid >= 16384 \
            UNION ALL SELECT format('%s.%s %s', schemaname, sequencename, last_value) FROM pg_sequences ORDER BY 1";
        let client = connect("postgres").await;
        let sql = "SELECT datname::text, datallowconn, coalesce(shobj_description(oid, 'pg_database'), '') \
                   FROM pg_database WHERE starts_with(datname::text, $1)";
        let mut found = BTreeMap::new();
        for row in client.query(sql, &[&self.name("")]).await.unwrap() {
            let (name, open): (String, bool) = (row.get(0), row.get(1));
            let mut tables = BTreeMap::new();
            if open {
                let client = connect(&name).await;
                for table in client.query(TABLES, &[]).await.unwrap() {
                    let table: String = table.get(0);
                    // Many rows are told by their number and a digest.
                    let rows = format!(
                        "SELECT CASE WHEN count(*) <= 500 THEN coalesce(array_agg(t::text ORDER BY t::text), '{{}}') \
                         ELSE ARRAY[count(*)::text, md5(string_agg(t::text, E'\\n' ORDER BY t::text))] END FROM {table} t"
                    );
                    let rows: Vec<String> = client.query_one(&rows, &[]).await.unwrap().get(0);
                    tables.insert(table, rows);
                }
                let others = client.query(OTHERS, &[]).await.unwrap();
                tables.insert("besides tables".to_owned(), others.iter().map(|row| row.get(0)).collect());
            }
            found.insert(name, json!({ "open": open, "comment": row.get::<_, String>(2), "tables": tables }));
        }
        found
    }

    /// What still works on this world's databases; one that is just ending may do so.
    fn sessions(&self) -> Vec<String> {
        let sql = "SELECT application_name FROM pg_stat_activity WHERE starts_with(datname::text, $1) \
                   AND backend_type = 'client backend'";
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            let left: Vec<String> = self.runtime.block_on(async {
                let client = connect("postgres").await;
                client.query(sql, &[&self.name("")]).await.unwrap().iter().map(|row| row.get(0)).collect()
            });
            if left.is_empty() || Instant::now() > end {
                return left;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs SQL on one of the databases; `THIS` stands for its name.
    pub fn sql(&self, part: &str, statements: &str) {
        let name = self.name(part);
        self.block(crate::support::sql(&name, &statements.replace("THIS", &name)));
    }

    pub fn block<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for end in self.ends.take().into_iter().rev() {
            end();
        }
    }
}

/// The files below a folder, hidden ones too, and the beginning of the checksum of each.
pub fn files(folder: &Path) -> BTreeMap<String, String> {
    use sha2::{Digest, Sha256};
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).into_iter().flatten().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
                continue;
            }
            let name = entry.strip_prefix(folder).unwrap().to_string_lossy().into_owned();
            let content = std::fs::read(&entry).unwrap();
            // What holds a time or a random name in it is told by its name alone.
            let dump = [".json", ".dump", ".zst", ".gz", ".sql", ".rdb"].iter().any(|end| name.ends_with(end));
            let content = match String::from_utf8(content) {
                _ if dump => "a dump".to_owned(),
                Ok(text) if text.len() < 500 => text,
                Ok(text) => hex(&Sha256::digest(text)),
                Err(binary) => hex(&Sha256::digest(binary.into_bytes())),
            };
            found.insert(name, content);
        }
    }
    found
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().take(8).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A run's id that no other run has: sessions of the server are found by it.
pub fn run_id() -> String {
    unique("k").replace('_', "-")
}
