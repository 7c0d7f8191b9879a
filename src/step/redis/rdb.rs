//! An RDB file: whether it is one and whole, and what is known of one in a storage.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, SeekFrom};

use crate::dump::manifest::redis_path;
use crate::failure::Failure;
use crate::service::process::{Command, find_program};
use crate::service::storage::{Storage, UploadOptions};
use crate::step::RunCx;

const MAGIC: &[u8] = b"REDIS";

/// The last byte before the checksum of 8 bytes.
const END: u8 = 0xFF;

const TOOL: &str = "redis-check-rdb";

/// What is known of a snapshot; lies beside it and is written last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// The format, 1.
    pub lifeboat_redis: u32,
    pub path: String,
    pub bytes: u64,
    pub sha256: String,
    pub keys: u64,
    /// When the server began to save.
    pub taken_at: jiff::Timestamp,
    pub server_version: String,
    pub run: String,
    pub step: String,
}

impl Manifest {
    pub async fn load(storage: &Storage, path: &str) -> Result<Option<Self>, Failure> {
        let name = redis_path(path);
        let Some(content) = storage.read_small(&name, 1 << 20).await? else { return Ok(None) };
        let wrong = |why: String| {
            Failure::permanent(format!("the manifest `{name}` in the storage `{}`: {why}", storage.target()))
                .help("don't trust that snapshot before you know what happened to its manifest")
        };
        let manifest: Self = serde_json::from_slice(&content).map_err(|error| wrong(error.to_string()))?;
        if manifest.lifeboat_redis != 1 {
            return Err(wrong(format!("its format is {}; this version reads 1", manifest.lifeboat_redis)));
        }
        Ok(Some(manifest))
    }

    pub async fn store(&self, storage: &Storage, writer: &str) -> Result<(), Failure> {
        let mut content = serde_json::to_vec_pretty(self)
            .map_err(|error| Failure::permanent(format!("write the manifest of `{}`: {error}", self.path)))?;
        content.push(b'\n');
        let expected_bytes = content.len() as u64;
        storage.put(&redis_path(&self.path), content, UploadOptions { writer, expected_bytes, replace: true }).await
    }

    /// Whether an object of that size and checksum is the one that it describes.
    pub fn check(&self, bytes: u64, sha256: &str) -> Result<(), Failure> {
        if (bytes, sha256) == (self.bytes, self.sha256.as_str()) {
            return Ok(());
        }
        let message = format!(
            "`{}` has {bytes} bytes and the checksum {sha256}; its manifest says {} and {}",
            self.path, self.bytes, self.sha256
        );
        Err(Failure::permanent(message)
            .help("it was changed or damaged after it was written; use another snapshot"))
    }
}

/// Whether a file is a whole RDB file; how many keys are in it, if the tool that counts them is here.
/// `shown` names the file for people, `opened` is the path that the tool opens.
pub(super) async fn check(file: &mut File, opened: &Path, shown: &str, cx: &RunCx) -> Result<Option<u64>, Failure> {
    let unread = |error: std::io::Error| Failure::permanent(format!("read {shown}: {error}"));
    let length = file.metadata().await.map_err(unread)?.len();
    let mut begin = [0; MAGIC.len()];
    let mut end = [0; 1];
    if length >= 18 {
        file.rewind().await.map_err(unread)?;
        file.read_exact(&mut begin).await.map_err(unread)?;
        file.seek(SeekFrom::End(-9)).await.map_err(unread)?;
        file.read_exact(&mut end).await.map_err(unread)?;
        file.rewind().await.map_err(unread)?;
    }
    let help = "use another snapshot";
    if begin != MAGIC {
        return Err(Failure::permanent(format!("{shown} is no RDB file ({length} bytes)")).help(help));
    }
    if end != [END] {
        return Err(Failure::permanent(format!("{shown} is cut off: it has no end ({length} bytes)")).help(help));
    }
    if find_program(TOOL, None).is_none() {
        cx.log(&format!("{TOOL} is not installed: only the beginning and the end of {shown} were looked at\n"));
        return Ok(None);
    }
    let finished = Command::new(TOOL).arg(opened).run(None, &cx.redactor, &|_| (), &cx.cancel).await?;
    let said = finished.stdout.text();
    if finished.exit.success() {
        let count = |line: &str| line.split_once("[info] ")?.1.strip_suffix(" keys read")?.parse().ok();
        return Ok(said.lines().find_map(count));
    }
    if said.contains("handle RDB format version") {
        cx.log(&format!("{TOOL} is older than {shown}: only its beginning and end were looked at\n"));
        return Ok(None);
    }
    let words = finished.stdout.last_lines(4, &cx.redactor);
    Err(Failure::permanent(format!("{shown} is damaged: {TOOL}: {words}")).help(help))
}
