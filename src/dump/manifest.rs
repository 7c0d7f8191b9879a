//! The manifest beside a backup: what it holds, and how to know that it is the same.
//!
//! It is written last: no manifest, no finished backup by Lifeboat. Dumps by other tools
//! have none and are proven by reading them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::rows::Hashes;
use crate::failure::Failure;
use crate::service::storage::{Storage, UploadOptions};

/// The manifest format that this version writes. A newer one is refused.
pub const FORMAT: u32 = 1;

const SUFFIX: &str = ".manifest.json";
const GLOBALS_SUFFIX: &str = ".globals.sql";
const OBJECT_SUFFIX: &str = ".object.json";

/// A manifest is small: one line for each table.
const LIMIT: u64 = 64 << 20;

/// The format of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// SQL, for `psql`.
    Plain,
    /// One archive, for `pg_restore`.
    Custom,
    /// A folder with one file for each table, for `pg_restore`.
    Directory,
}

impl Format {
    /// The word used in plans.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Custom => "custom",
            Self::Directory => "directory",
        }
    }
}

/// What is known of a backup.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The manifest's format, see [`FORMAT`].
    pub lifeboat_manifest: u32,
    /// The backup's path in the storage that it was written to.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its bytes, in hex.
    pub sha256: String,
    /// The dump's format.
    pub format: Format,
    /// `gzip`, `zstd` or `none`.
    pub compression: String,
    /// The database it was taken from.
    pub database: String,
    /// The cluster it was taken from, as `pg_control_system()` names it.
    pub system_identifier: String,
    /// The server's version.
    pub server_version: String,
    /// The version of `pg_dump`.
    pub tool_version: String,
    /// The WAL position when the snapshot was taken.
    pub wal_lsn: String,
    /// When the snapshot was taken: everything committed before is in, nothing after.
    pub taken_at: jiff::Timestamp,
    /// The database's encoding.
    pub encoding: String,
    /// Its collation.
    pub collate: String,
    /// Its character classes.
    pub ctype: String,
    /// Rows in the dump's own snapshot, by `schema.table`, of the tables that are in it.
    pub tables: BTreeMap<String, u64>,
    /// How many of them the partitions of each partitioned table have, which has none of its own. None in manifests of
    /// versions that did not say so.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub partitioned: BTreeMap<String, u64>,
    /// What those rows come to, of the tables whose rows COPY writes. None in manifests of
    /// versions that did not add rows up.
    #[serde(default, skip_serializing_if = "Hashes::is_empty")]
    pub hashes: Hashes,
    /// All of them together.
    pub rows: u64,
    /// Whether parts of the database were left out on purpose.
    pub partial: bool,
    /// The roles beside it, if they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub globals: Option<Companion>,
    /// The run that wrote it.
    pub run: String,
    /// The step that wrote it.
    pub step: String,
}

/// Another object that belongs to a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Companion {
    /// Its path.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its bytes, in hex.
    pub sha256: String,
}

impl Manifest {
    /// Reads the manifest of the object at `path`; `None` when it has none.
    ///
    /// # Errors
    /// When the storage can't be asked, or what lies there is no manifest of this version.
    pub async fn load(storage: &Storage, path: &str) -> Result<Option<Self>, Failure> {
        let name = path_of(path);
        let Some(content) = storage.read_small(&name, LIMIT).await? else { return Ok(None) };
        let wrong = |why: String| {
            Err(Failure::permanent(format!("the manifest `{name}` in the storage `{}`: {why}", storage.target()))
                .help("don't trust that backup before you know what happened to its manifest"))
        };
        let value: serde_json::Value = match serde_json::from_slice(&content) {
            Ok(value) => value,
            Err(error) => return wrong(format!("not JSON: {error}")),
        };
        match value.get("lifeboat_manifest").and_then(serde_json::Value::as_u64) {
            Some(1) => {}
            Some(newer) => return wrong(format!("its format is {newer}; this version reads {FORMAT}")),
            None => return wrong("it is not one of Lifeboat's".to_owned()),
        }
        match serde_json::from_value::<Self>(value) {
            Ok(manifest) => Ok(Some(manifest)),
            Err(error) => wrong(error.to_string()),
        }
    }

    /// Writes the manifest beside its backup, in place of one that an interrupted attempt left.
    ///
    /// # Errors
    /// When the storage refuses.
    pub async fn store(&self, storage: &Storage, writer: &str) -> Result<(), Failure> {
        let mut content = serde_json::to_vec_pretty(self)
            .map_err(|error| Failure::permanent(format!("write the manifest of `{}`: {error}", self.path)))?;
        content.push(b'\n');
        let expected_bytes = content.len() as u64;
        storage.put(&path_of(&self.path), content, UploadOptions { writer, expected_bytes, replace: true }).await
    }

    /// How many rows a query finds in each table once the backup is restored, partitioned ones among them.
    pub fn found(&self) -> BTreeMap<String, u64> {
        self.tables.iter().chain(&self.partitioned).map(|(table, rows)| (table.clone(), *rows)).collect()
    }

    /// Whether an object with this size and checksum is the one that the manifest describes.
    ///
    /// # Errors
    /// When it is another.
    pub fn check(&self, path: &str, bytes: u64, sha256: &str) -> Result<(), Failure> {
        let help = "it was changed or damaged after it was written; use another backup";
        if bytes != self.bytes {
            let message = format!("`{path}` has {bytes} bytes, but its manifest says {}", self.bytes);
            return Err(Failure::permanent(message).help(help));
        }
        if sha256 != self.sha256 {
            let message = format!("`{path}` has the checksum {sha256}, but its manifest says {}", self.sha256);
            return Err(Failure::permanent(message).help(help));
        }
        Ok(())
    }
}

/// `schema.table`, as manifests and plans name a table: a part is quoted only where a dot
/// or a quote in it would mislead.
pub fn table_name(schema: &str, table: &str) -> String {
    let part = |name: &str| {
        if name.contains(['.', '"']) { format!("\"{}\"", name.replace('"', "\"\"")) } else { name.to_owned() }
    };
    format!("{}.{}", part(schema), part(table))
}

/// Where the manifest of the object at `path` is.
pub fn path_of(path: &str) -> String {
    format!("{path}{SUFFIX}")
}

/// Where the roles beside the backup at `path` are.
pub fn globals_path(path: &str) -> String {
    format!("{path}{GLOBALS_SUFFIX}")
}

/// Where the manifest of the object at `path` is, if that is no dump.
pub fn object_manifest_path(path: &str) -> String {
    format!("{path}{OBJECT_SUFFIX}")
}

/// Whether an object is a backup's companion (manifest or roles), not a backup itself.
pub fn is_companion(path: &str) -> bool {
    owner_of(path).is_some()
}

/// The object that a manifest or the roles belong to.
pub fn owner_of(companion: &str) -> Option<&str> {
    [SUFFIX, GLOBALS_SUFFIX, OBJECT_SUFFIX].iter().find_map(|suffix| companion.strip_suffix(suffix))
}
