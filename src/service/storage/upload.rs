//! Writing an object so that it appears whole or not at all.

use std::path::{Path, PathBuf};
use std::time::Duration;

use opendal::ErrorKind;
use tokio::io::AsyncWriteExt;
use tokio_util::bytes::Bytes;

use super::Storage;
use crate::failure::Failure;
use crate::kill;

/// S3 takes parts from 5 MiB on, and 10,000 of them.
const SMALLEST_PART: u64 = 8 << 20;
const MOST_PARTS: u64 = 9_000;

/// How long the removal of an upload's parts may take.
const FAREWELL: Duration = Duration::from_secs(5);

/// What ends the hidden name of a file that is being written.
const PARTIAL: &str = ".partial";

/// How an object is written.
#[derive(Clone, Copy, Debug)]
pub struct UploadOptions<'a> {
    /// Who writes, unique among those that may write the same object at once and the
    /// same again after a kill: names the hidden file.
    pub writer: &'a str,
    /// A guess at the size, to choose the size of parts.
    pub expected_bytes: u64,
    /// Whether an object of that name is replaced. Otherwise it is refused.
    pub replace: bool,
}

/// An object that is being written.
#[derive(Debug)]
pub struct Upload {
    storage: Storage,
    path: String,
    replace: bool,
    bytes: u64,
    sink: Sink,
}

enum Sink {
    File { file: tokio::io::BufWriter<tokio::fs::File>, partial: PathBuf, whole: PathBuf },
    Parts(Box<opendal::Writer>),
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::File { .. } => "File",
            Self::Parts(_) => "Parts",
        })
    }
}

impl Upload {
    /// See [`Storage::upload`].
    pub(super) async fn start(storage: &Storage, path: &str, options: UploadOptions<'_>) -> Result<Self, Failure> {
        let sink = if let Some(folder) = &storage.folder {
            let whole = folder.join(path);
            let partial = partial_name(&whole, options.writer);
            let file =
                create_partial(&partial).await.map_err(|error| storage.file_failure(&error, "write", path))?;
            Sink::File { file: tokio::io::BufWriter::with_capacity(1 << 20, file), partial, whole }
        } else {
            let part = SMALLEST_PART.max(options.expected_bytes / MOST_PARTS);
            let writer = storage
                .operator
                .writer_with(path)
                .chunk(part as usize)
                .concurrent(2)
                .if_not_exists(!options.replace)
                .await
                .map_err(|error| storage.failure(&error, "write", path))?;
            Sink::Parts(Box::new(writer))
        };
        Ok(Self { storage: storage.clone(), path: path.to_owned(), replace: options.replace, bytes: 0, sink })
    }

    /// Appends.
    ///
    /// # Errors
    /// When the storage doesn't take it: call [`Upload::abort`].
    pub async fn write(&mut self, piece: Bytes) -> Result<(), Failure> {
        self.bytes += piece.len() as u64;
        kill::point("storage: a piece");
        match &mut self.sink {
            Sink::File { file, .. } => {
                file.write_all(&piece).await.map_err(|error| self.storage.file_failure(&error, "write", &self.path))
            }
            Sink::Parts(writer) => {
                writer.write(piece).await.map_err(|error| self.storage.failure(&error, "write", &self.path))
            }
        }
    }

    /// Bytes written so far.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes the object appear, whole and durable, and reads its size back. Gives the size.
    ///
    /// # Errors
    /// When it can't be completed; nothing appears then, unless the storage completed it
    /// and only its answer was lost.
    pub async fn publish(self) -> Result<u64, Failure> {
        let Self { storage, path, replace, bytes, sink } = self;
        match sink {
            Sink::File { file, partial, whole } => {
                let published =
                    kill::around("storage publish", publish_file(file, &partial, &whole, replace)).await;
                if published.is_err() {
                    drop(tokio::fs::remove_file(&partial).await);
                }
                published.map_err(|error| match error.kind() {
                    std::io::ErrorKind::AlreadyExists => storage.exists(&path),
                    _ => storage.file_failure(&error, "publish", &path),
                })?;
            }
            Sink::Parts(mut writer) => {
                // What is left of the last parts is sent here: a service that is silent would keep a cancelled run.
                let closed = tokio::select! {
                    closed = kill::around("storage publish", writer.close()) => Some(closed),
                    () = storage.cancel.cancelled() => None,
                };
                let failure = match closed {
                    Some(Ok(_)) => None,
                    Some(Err(error)) => Some(match error.kind() {
                        ErrorKind::ConditionNotMatch | ErrorKind::AlreadyExists => storage.exists(&path),
                        _ => storage.failure(&error, "publish", &path),
                    }),
                    None => {
                        let message = format!("publish `{path}` in the storage `{}`: cancelled", storage.target);
                        Some(Failure::transient(message))
                    }
                };
                if let Some(failure) = failure {
                    give_up(*writer).await;
                    return Err(failure);
                }
            }
        }
        let there = storage.object(&path).await?.bytes;
        if there != bytes {
            if !replace {
                // It appeared by this upload, and is not what was written.
                storage.delete(&path).await?;
            }
            let message =
                format!("`{path}` in the storage `{}` has {there} bytes, but {bytes} were written", storage.target);
            return Err(Failure::permanent(message).help("something else writes that object; choose another path"));
        }
        Ok(bytes)
    }

    /// Gives up: nothing appears. What can't be removed stays hidden.
    pub async fn abort(self) {
        match self.sink {
            Sink::File { file, partial, .. } => {
                drop(file);
                drop(tokio::fs::remove_file(&partial).await);
            }
            Sink::Parts(writer) => give_up(*writer).await,
        }
    }
}

/// Removes the parts that were sent, if the service does so at once: one that is silent would keep who gives up because
/// of that. What stays is invisible and expires by the bucket's own rules.
async fn give_up(mut writer: opendal::Writer) {
    let _ = tokio::time::timeout(FAREWELL, writer.abort()).await;
}

async fn create_partial(partial: &Path) -> std::io::Result<tokio::fs::File> {
    if let Some(parent) = partial.parent() {
        tokio::fs::create_dir_all(parent).await?;
    }
    // Backups hold personal data and password hashes: for the owner's eyes only.
    tokio::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(partial).await
}

async fn publish_file(
    mut file: tokio::io::BufWriter<tokio::fs::File>,
    partial: &Path,
    whole: &Path,
    replace: bool,
) -> std::io::Result<()> {
    file.flush().await?;
    file.get_ref().sync_all().await?;
    if replace {
        tokio::fs::rename(partial, whole).await?;
    } else {
        match claim(partial, whole).await {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Err(error),
            // A file system without links: look, then rename.
            Err(_) if tokio::fs::try_exists(whole).await? => return Err(std::io::ErrorKind::AlreadyExists.into()),
            Err(_) => tokio::fs::rename(partial, whole).await?,
        }
    }
    if let Some(parent) = whole.parent() {
        tokio::fs::File::open(parent).await?.sync_all().await?;
    }
    Ok(())
}

/// Gives a file its name, unless another writer has put something there: a plain rename would replace it.
async fn claim(partial: &Path, whole: &Path) -> std::io::Result<()> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
        // In one move: killed between a link and its removal, the partial name would stay.
        match renameat2(AT_FDCWD, partial, AT_FDCWD, whole, RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => return Ok(()),
            Err(nix::errno::Errno::EEXIST) => return Err(std::io::ErrorKind::AlreadyExists.into()),
            // Not every file system knows it.
            Err(_) => {}
        }
    }
    tokio::fs::hard_link(partial, whole).await?;
    kill::around("storage unlink partial", tokio::fs::remove_file(partial)).await
}

pub(super) fn partial_name(whole: &Path, writer: &str) -> PathBuf {
    let name = whole.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let writer: String = writer.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    whole.with_file_name(format!(".{name}.{writer}{PARTIAL}"))
}

pub(super) fn is_partial(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|name| name.starts_with('.') && name.ends_with(PARTIAL))
}
