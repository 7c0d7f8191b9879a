//! A folder as storage, and keys to carry.

use std::path::PathBuf;

use crate::support::{Databases, Harness, postgres, postgres_url};
use lifeboat::service::{StorageSettings, Target};

/// Keys as the auth service has them, with what CSV gets wrong: quotes, line ends, null and empty.
pub const KEYS: &str = r#"
CREATE SCHEMA auth;
CREATE TABLE auth.jwks (id uuid PRIMARY KEY, public_key text NOT NULL, private_key text NOT NULL,
  alg text, created_at timestamptz, kid text GENERATED ALWAYS AS (left(public_key, 4)) STORED);
INSERT INTO auth.jwks (id, public_key, private_key, alg, created_at) VALUES
  ('00000000-0000-0000-0000-000000000003', '{"kty": "OKP",' || E'\n' || ' "x": "a"}', 'secret-3', NULL, NULL),
  ('00000000-0000-0000-0000-000000000001', '{"kty": "EC"}', 'secret-1', 'ES256', '2024-02-01T10:00:00+09'),
  ('00000000-0000-0000-0000-000000000002', 'x\.', 'secret-2', '', 'infinity');
"#;

/// A harness with the server as `db` and a folder as `store`.
pub struct Place {
    pub harness: Harness,
    pub names: Databases,
    pub folder: tempfile::TempDir,
}

impl Place {
    pub fn new(test: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = [("root".to_owned(), folder.path().to_str().unwrap().to_owned())].into();
        let store = Target::Storage(StorageSettings { scheme: "fs".to_owned(), settings });
        let harness = Harness::with([("db", postgres(&postgres_url())), ("store", store)]);
        Self { harness, names: Databases::new(test), folder }
    }

    /// Another step of the same run.
    pub fn again(&self) -> Harness {
        let mut harness = Harness::new();
        harness.services = self.harness.services.clone();
        harness
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    pub fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).unwrap()
    }

    pub fn write(&self, path: &str, content: &str) {
        std::fs::write(self.path(path), content).unwrap();
    }

    /// The files of the storage, hidden ones too.
    pub fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        let mut found: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        found.sort();
        found
    }
}
