//! What stands under a backup's final name: a proven backup, or nothing.
//!
//! An object can be read back, and restored, only once it is there: a bucket knows no other name for it.
//! Until then it has no manifest, and what fails to be proven is removed.

use tokio::io::AsyncReadExt;

use super::{Backup, hash, writer};
use crate::dump::manifest::{self, Companion, Manifest};
use crate::dump::proof::ended_well;
use crate::dump::tap::Checksum;
use crate::failure::Failure;
use crate::service::postgres::Server;
use crate::service::storage::{Storage, Upload, UploadOptions};
use crate::step::RunCx;

impl Backup {
    /// Makes the object appear. A bucket may do so and its answer be lost: then the object is asked for,
    /// and its checksum proves that it is this one.
    pub(super) async fn publish(
        &self,
        upload: Upload,
        storage: &Storage,
        sha256: &str,
        cx: &RunCx,
    ) -> Result<u64, Failure> {
        let (path, bytes) = (&self.to.path, upload.bytes());
        let Err(failure) = upload.publish().await else { return Ok(bytes) };
        if cx.cancel.is_cancelled() {
            // A service that is silent isn't asked now: a resume looks what is there.
            return Err(failure);
        }
        let there = async {
            let same_size = storage.stat(path).await?.is_some_and(|object| object.bytes == bytes);
            Ok::<_, Failure>(same_size && hash(storage, path, cx).await? == sha256)
        };
        match there.await {
            Ok(true) if storage.local_path(path)?.is_none() => {
                cx.log(&format!("{path} was published all the same ({failure})\n"));
                Ok(bytes)
            }
            // A file whose name is not known to outlive a power cut.
            Ok(true) => Err(self.withdraw(storage, failure).await),
            _ => Err(failure),
        }
    }

    /// Removes what this attempt published, because of a failure: it is not yet a backup for anybody.
    pub(super) async fn withdraw(&self, storage: &Storage, failure: Failure) -> Failure {
        let path = &self.to.path;
        let globals = self.globals.then(|| manifest::globals_path(path));
        let mut left = vec![];
        for object in [manifest::path_of(path), path.clone()].into_iter().chain(globals) {
            left.extend(storage.delete(&object).await.err().map(|left| left.message));
        }
        if !left.is_empty() {
            let message = format!("{}; and not all of it could be removed: {}", failure.message, left.join("; "));
            let help = format!("`{path}` is no backup: a resume removes it, or remove it by hand");
            return Failure { message, help: Some(help), ..failure };
        }
        failure
    }

    /// Removes what an attempt of this step left: a hidden file, or an object that it
    /// published and could not finish. Its checksum proves that it is this step's.
    pub(super) async fn clear_leftovers(&self, storage: &Storage, cx: &RunCx) -> Result<(), Failure> {
        storage.remove_leftover(&self.to.path, &writer(cx)).await?;
        let Some((_, note)) = cx.notes.last() else { return Ok(()) };
        if storage.stat(&self.to.path).await?.is_some()
            && Manifest::load(storage, &self.to.path).await?.is_none()
            && note["path"] == self.to.path
            && note["sha256"] == hash(storage, &self.to.path, cx).await?
        {
            cx.log(&format!("{} of an earlier attempt has no manifest: removed\n", self.to.path));
            storage.delete(&self.to.path).await?;
        }
        Ok(())
    }

    /// The server's roles, as `pg_dumpall` writes them.
    pub(super) async fn read_globals(&self, server: &Server, major: u32, cx: &RunCx) -> Result<Vec<u8>, Failure> {
        let attempted = format!("read the roles of {}", self.target);
        let tool = server.tool("pg_dumpall", major).await?;
        let command = server.command(&tool, None).args(["--globals-only", "--no-password", "--database"]);
        let command = command.arg(&server.settings().maintenance_database);
        let mut process = command.start(false, &cx.redactor)?;
        let mut content = vec![];
        if let Some(mut stdout) = process.stdout.take() {
            let read = tokio::select! {
                read = stdout.read_to_end(&mut content) => read,
                () = cx.cancel.cancelled() => return Err(Failure::transient(format!("{attempted}: cancelled"))),
            };
            read.map_err(|error| Failure::permanent(format!("{attempted}: {error}")))?;
        }
        let finished = process.wait(&cx.cancel).await?;
        ended_well("pg_dumpall", &finished, &cx.redactor).map_err(|failure| failure.context(&attempted))?;
        if !String::from_utf8_lossy(&content).contains("PostgreSQL database cluster dump complete") {
            return Err(Failure::permanent(format!("{attempted}: pg_dumpall's output is not whole")));
        }
        Ok(content)
    }

    /// Writes the server's roles beside the backup, and reads them back.
    pub(super) async fn store_globals(
        &self,
        storage: &Storage,
        content: Vec<u8>,
        cx: &RunCx,
    ) -> Result<Companion, Failure> {
        let checksum = Checksum::default();
        checksum.update(&content);
        let (path, bytes) = (manifest::globals_path(&self.to.path), content.len() as u64);
        let options = UploadOptions { writer: &writer(cx), expected_bytes: bytes, replace: true };
        storage.put(&path, content, options).await?;
        let (there, sha256) = (hash(storage, &path, cx).await?, checksum.hex());
        if there != sha256 {
            let message = format!("`{path}` came out with the checksum {there}, not {sha256}");
            return Err(Failure::permanent(message).help("the storage damaged it, or something else writes there"));
        }
        Ok(Companion { path, bytes, sha256 })
    }
}
