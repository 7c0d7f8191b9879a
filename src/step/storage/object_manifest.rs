//! The manifest beside an object that is no dump: what it was when it was published.
//!
//! It is written last: without it an object may be half of what it should be, and still read well.
//! Dumps have a fuller one, in [`crate::dump::manifest`].

use serde::{Deserialize, Serialize};

use crate::dump::manifest::object_manifest_path;
use crate::failure::Failure;
use crate::service::storage::{Storage, UploadOptions};

/// The format that this version writes and reads.
const FORMAT: u32 = 1;

/// More than that is no manifest.
const LIMIT: u64 = 1 << 20;

/// What is known of an object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::step) struct ObjectManifest {
    lifeboat_object: u32,
    pub path: String,
    pub bytes: u64,
    pub sha256: String,
    /// How many rows or keys it holds.
    pub count: u64,
    /// When what it holds was so.
    pub taken_at: jiff::Timestamp,
    pub server_version: String,
    pub run: String,
    pub step: String,
}

impl ObjectManifest {
    /// Of an object that a step is about to publish.
    pub fn new(
        cx: &crate::step::RunCx,
        path: &str,
        (bytes, sha256): (u64, String),
        count: u64,
        taken_at: jiff::Timestamp,
        server_version: String,
    ) -> Self {
        Self {
            lifeboat_object: FORMAT,
            path: path.to_owned(),
            bytes,
            sha256,
            count,
            taken_at,
            server_version,
            run: cx.run.to_string(),
            step: cx.mark(),
        }
    }

    /// Reads the manifest of the object at `path`; `None` when it has none.
    ///
    /// # Errors
    /// When the storage can't be asked, or what lies there is no manifest of this version.
    pub async fn load(storage: &Storage, path: &str) -> Result<Option<Self>, Failure> {
        let name = object_manifest_path(path);
        let Some(content) = storage.read_small(&name, LIMIT).await? else { return Ok(None) };
        let wrong = |why: String| {
            Failure::permanent(format!("the manifest `{name}` in the storage `{}`: {why}", storage.target()))
                .help("don't trust that object before you know what happened to its manifest")
        };
        let manifest: Self = serde_json::from_slice(&content).map_err(|error| wrong(error.to_string()))?;
        if manifest.lifeboat_object != FORMAT {
            return Err(wrong(format!("its format is {}; this version reads {FORMAT}", manifest.lifeboat_object)));
        }
        Ok(Some(manifest))
    }

    /// Writes it beside its object, in place of one that an interrupted attempt left.
    ///
    /// # Errors
    /// When the storage refuses.
    pub async fn store(&self, storage: &Storage, writer: &str) -> Result<(), Failure> {
        let mut content = serde_json::to_vec_pretty(self)
            .map_err(|error| Failure::permanent(format!("write the manifest of `{}`: {error}", self.path)))?;
        content.push(b'\n');
        let expected_bytes = content.len() as u64;
        let options = UploadOptions { writer, expected_bytes, replace: true };
        storage.put(&object_manifest_path(&self.path), content, options).await
    }

    /// Whether an object of that size and checksum is the one that it describes.
    ///
    /// # Errors
    /// When it is another.
    pub fn check(&self, path: &str, bytes: u64, sha256: &str) -> Result<(), Failure> {
        if (bytes, sha256) == (self.bytes, self.sha256.as_str()) {
            return Ok(());
        }
        let message = format!(
            "`{path}` has {bytes} bytes and the checksum {sha256}; its manifest says {} and {}",
            self.bytes, self.sha256
        );
        Err(Failure::permanent(message).help("it was changed or damaged after it was written; use another one"))
    }

    /// Whether it is of this run's step.
    pub fn is_of(&self, cx: &crate::step::RunCx) -> bool {
        self.run == cx.run.as_str() && self.step == cx.mark()
    }
}
