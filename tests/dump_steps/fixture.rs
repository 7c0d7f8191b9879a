//! A folder as storage, a database with awkward content, dumps by PostgreSQL's own tools.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lifeboat::failure::Failure;
use lifeboat::service::{PostgresSettings, StorageSettings, Target};
use serde_json::{Value, json};

pub use crate::support::server::tool;
use crate::support::{Databases, Harness, postgres_url, unique, url_with};

/// Tables with keys, quotes, escapes, a partition, a function with semicolons, a large object.
pub const CONTENT: &str = r#"
CREATE SCHEMA auth;
CREATE TABLE auth.users (id bigint PRIMARY KEY, email text UNIQUE, note text, data jsonb, at timestamptz DEFAULT now());
INSERT INTO auth.users SELECT g, 'u' || g || '@example.org', E'tab\there\nline \\. back\\slash', '{"a": 1}'
  FROM generate_series(1, 3000) g;
CREATE TABLE auth."we""ird.t" (a int, "select" text);
INSERT INTO auth."we""ird.t" VALUES (1, '\.'), (2, NULL);
CREATE TABLE auth.orders (id int GENERATED ALWAYS AS IDENTITY, user_id bigint REFERENCES auth.users, at date) PARTITION BY RANGE (at);
CREATE TABLE auth.orders_2024 PARTITION OF auth.orders FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
INSERT INTO auth.orders (user_id, at) SELECT g, '2024-02-01' FROM generate_series(1, 50) g;
CREATE TABLE empty_one (a int);
CREATE FUNCTION auth.f(n int) RETURNS text LANGUAGE sql BEGIN ATOMIC SELECT CASE WHEN n > 1 THEN ';' ELSE 'x' END; SELECT 'y'::text AS y; END;
CREATE VIEW auth.v AS SELECT count(*) AS n FROM auth.users;
SELECT lo_from_bytea(0, 'large object'::bytea);
"#;

/// The rows that [`CONTENT`] makes, and its tables.
pub const ROWS: u64 = 3000 + 2 + 50;
pub const TABLES: u64 = 4;

/// A harness with the server as `db` and a folder as `store`.
pub struct Place {
    pub harness: Harness,
    pub names: Databases,
    pub folder: tempfile::TempDir,
}

impl Place {
    pub fn new(test: &str) -> Self {
        Self::with_bin_dir(test, None)
    }

    /// With client programs from a folder of the test's own.
    pub fn with_bin_dir(test: &str, bin_dir: Option<&Path>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let harness = harness(folder.path(), bin_dir);
        Self { harness, names: Databases::new(test), folder }
    }

    /// From here on it is another run, which knows nothing of the one before.
    pub fn another_run(&mut self, bin_dir: Option<&Path>) {
        self.harness = harness(self.folder.path(), bin_dir);
    }

    /// The same services, the server's by this role.
    pub fn harness_of(&self, role: &str, password: &str) -> Harness {
        let url = url_with(&postgres_url(), Some((role, password)), "postgres");
        let store = storage("fs", &[("root", self.folder.path().to_str().unwrap())]);
        Harness::with([("db", crate::support::postgres(&url)), ("store", store)])
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    /// The files of the storage, hidden ones too.
    pub fn files(&self) -> Vec<String> {
        files(self.folder.path())
    }
}

fn harness(folder: &Path, bin_dir: Option<&Path>) -> Harness {
    let store = storage("fs", &[("root", folder.to_str().unwrap())]);
    let mut settings = json!({ "url": postgres_url() });
    if let Some(bin_dir) = bin_dir {
        settings["bin_dir"] = bin_dir.to_str().into();
    }
    let settings: PostgresSettings = serde_json::from_value(settings).unwrap();
    Harness::with([("db", Target::Postgres(settings)), ("store", store)])
}

pub fn files(folder: &Path) -> Vec<String> {
    let mut found: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    found.sort();
    found
}

/// A storage target.
pub fn storage(scheme: &str, settings: &[(&str, &str)]) -> Target {
    let settings: BTreeMap<String, String> =
        settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Target::Storage(StorageSettings { scheme: scheme.to_owned(), settings })
}

/// Backs a database up, with more parameters than must be. Gives the manifest.
pub async fn backup(place: &Place, database: &str, path: &str, more: Value) -> Result<Value, Failure> {
    let mut params = json!({ "target": "db", "database": database, "to": { "storage": "store", "path": path } });
    params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    place.harness.run("postgres.backup", params).await?;
    let manifest = std::fs::read(place.path(&format!("{path}.manifest.json"))).unwrap();
    Ok(serde_json::from_slice(&manifest).unwrap())
}

/// What `pg_dump` writes with these arguments.
pub fn pg_dump(database: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(tool("pg_dump"))
        .args(arguments)
        .arg(url_with(&postgres_url(), None, database))
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success());
    output.stdout
}

/// What makes two databases the same: schema and data, as `pg_dump` writes them.
pub fn likeness(database: &str) -> String {
    without_key(pg_dump(database, &["--no-comments"]))
}

/// A dump without the key of `\restrict`, which is another one each time.
pub fn without_key(dump: Vec<u8>) -> String {
    let dump = String::from_utf8(dump).unwrap();
    dump.lines().filter(|line| !line.contains("restrict ")).fold(String::new(), |all, line| all + line + "\n")
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 3).unwrap()
}

/// A folder of client programs in which `name` is a script; `$REAL` in it is the real one.
pub fn fake_tool(name: &str, script: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for other in ["pg_dump", "pg_restore", "psql", "pg_dumpall"] {
        if other != name {
            std::os::unix::fs::symlink(tool(other), folder.path().join(other)).unwrap();
        }
    }
    let real = tool(name);
    let whole =
        format!("#!/bin/sh\nREAL={}\n[ \"$1\" = --version ] && exec $REAL --version\n{script}\n", real.display());
    let path = folder.path().join(name);
    std::fs::write(&path, whole).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// A role that lives as long as the test.
pub async fn role(what: &str) -> String {
    let name = unique(what);
    crate::support::sql("postgres", &format!("CREATE ROLE {name}")).await;
    name
}
