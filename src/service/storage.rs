//! Storages: objects under a root, on a disk or in a bucket, through opendal.
//!
//! What is published appears under its name whole or not at all: a file is written
//! under a hidden name, synced and linked into place; an upload in parts is completed
//! only at its end. Knows nothing of dumps, plans or steps.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use opendal::layers::{RetryLayer, TimeoutLayer};
use opendal::{ErrorKind, HttpTransporter, Operator};
use opendal_http_transport_reqwest::ReqwestTransport;
use tokio::io::{AsyncBufRead, AsyncReadExt};
use tokio_util::io::StreamReader;
use tokio_util::sync::CancellationToken;

mod inside;
mod settings;
mod upload;

pub use inside::check_path;
use settings::{CA_FILE, SANDBOX, TIMEOUT};
pub use upload::{Upload, UploadOptions};

use super::{Services, StorageSettings, Target, Unsound, trust};
use crate::failure::Failure;
use crate::kill;
use crate::secret::Redactor;
use crate::units;

/// How long a look at an object may take at most, in which no body travels.
const LOOK: Duration = Duration::from_mins(1);

/// S3's codes for what no repetition mends.
const REFUSALS: [&str; 13] = [
    "NoSuchBucket",
    "InvalidBucketName",
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "ExpiredToken",
    "AuthorizationHeaderMalformed",
    "PermanentRedirect",
    "InvalidRequest",
    "InvalidArgument",
    "EntityTooLarge",
    "NotImplemented",
];

/// An object, as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Below the storage's root.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// When it was last written, as the storage says.
    pub modified: Option<jiff::Timestamp>,
    /// Whether it is a folder (of a directory-format archive).
    pub folder: bool,
}

/// A target of kind `storage`, ready to be used. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Storage {
    operator: Operator,
    target: String,
    /// Where the objects are files, if they are.
    folder: Option<PathBuf>,
    /// Where the service answers, if the settings say it.
    endpoint: Option<String>,
    /// How long the service may be silent.
    timeout: Duration,
    /// Triggered when the attempt that uses it must end.
    cancel: CancellationToken,
    redactor: Redactor,
}

impl Services {
    /// The storage of that target. Makes no contact yet.
    ///
    /// # Errors
    /// When the target is missing, of another kind, or its settings don't fit.
    pub fn storage(&self, target: &str) -> Result<Storage, Failure> {
        match self.target(target)? {
            Target::Storage(settings) => {
                let storage = Storage::new(target, settings, self.redactor().clone())?;
                Ok(Storage { cancel: self.cancel().clone(), ..storage })
            }
            other => Err(Failure::permanent(format!("the target `{target}` is a {}, not a storage", other.kind()))),
        }
    }
}

impl Storage {
    /// A storage of these settings.
    ///
    /// # Errors
    /// When the settings don't fit.
    pub fn new(target: &str, settings: &StorageSettings, redactor: Redactor) -> Result<Self, Failure> {
        if let Some(Unsound { failure, .. }) = settings.unsound().into_iter().next() {
            return Err(failure.context(format_args!("the storage `{target}`")));
        }
        let mut options = settings.settings.clone();
        options.remove(SANDBOX);
        options.remove(TIMEOUT);
        let ca_file = options.remove(CA_FILE);
        let folder = if settings.scheme == "fs" {
            let root = std::path::absolute(&options["root"])
                .map_err(|error| Failure::permanent(format!("the storage `{target}`: its root: {error}")))?;
            options.insert("root".to_owned(), root.to_string_lossy().into_owned());
            Some(root)
        } else {
            let elsewhere =
                ["AWS_REGION", "AWS_DEFAULT_REGION"].iter().any(|name| std::env::var_os(name).is_some());
            if !elsewhere && !options.contains_key("profile") {
                // S3 servers other than Amazon's sign for this one unless told otherwise.
                options.entry("region".to_owned()).or_insert_with(|| "us-east-1".to_owned());
            }
            None
        };
        let operator = Operator::via_iter(&settings.scheme, options).map_err(|error| {
            Failure::permanent(format!("the storage `{target}`: {}", redactor.redact(&error.to_string())))
        })?;
        let operator = match ca_file {
            None => operator,
            Some(path) => {
                let in_storage = |failure: Failure| failure.context(format!("the storage `{target}`"));
                let context = operator.context().with_http_transport(trusting(&path).map_err(in_storage)?);
                operator.with_context(context)
            }
        };
        let timeout = settings.timeout().map_err(Failure::permanent)?;
        let operator =
            operator.layer(TimeoutLayer::new().with_timeout(timeout.min(LOOK)).with_io_timeout(timeout)).layer(
                RetryLayer::new()
                    .with_max_times(4)
                    .with_min_delay(Duration::from_millis(200))
                    .with_max_delay(Duration::from_secs(5))
                    .with_jitter(),
            );
        let endpoint = settings.settings.get("endpoint").map(|endpoint| redactor.redact(endpoint).into_owned());
        Ok(Self {
            operator,
            target: target.to_owned(),
            folder,
            endpoint,
            timeout,
            cancel: CancellationToken::new(),
            redactor,
        })
    }

    /// The target's name.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Where an object lies on this machine's disk, if it does.
    ///
    /// # Errors
    /// When the path is not one that stays below the root.
    pub fn local_path(&self, path: &str) -> Result<Option<PathBuf>, Failure> {
        self.check(path)?;
        Ok(self.folder.as_ref().map(|folder| folder.join(path)))
    }

    /// How many bytes may still be written, where that can be asked.
    pub fn free_space(&self) -> Option<u64> {
        let mut folder: &Path = self.folder.as_deref()?;
        while !folder.exists() {
            folder = folder.parent()?;
        }
        free_space(folder)
    }

    /// The object of that path, if there is one.
    ///
    /// # Errors
    /// When the storage can't be asked.
    pub async fn stat(&self, path: &str) -> Result<Option<Object>, Failure> {
        self.check(path)?;
        tracing::debug!(storage = self.target, path, "look at an object");
        match self.operator.stat(path).await {
            Ok(metadata) => Ok(Some(object(path, &metadata))),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // A bucket knows no folders but those whose name ends with a slash.
                let folder = format!("{path}/");
                match self.operator.stat(&folder).await {
                    Ok(metadata) if metadata.is_dir() && self.folder.is_some() => Ok(Some(object(path, &metadata))),
                    _ => Ok(None),
                }
            }
            Err(error) => Err(self.failure(&error, "look at", path)),
        }
    }

    /// The object of that path.
    ///
    /// # Errors
    /// When the storage can't be asked, or has no such object.
    pub async fn object(&self, path: &str) -> Result<Object, Failure> {
        self.stat(path).await?.ok_or_else(|| self.missing(path))
    }

    /// What to say of an object that is not there.
    pub fn missing(&self, path: &str) -> Failure {
        Failure::permanent(format!("the storage `{}` has no object `{path}`", self.target))
            .help("list what is there and name one of those, or take a backup first")
    }

    /// Every object whose path begins with `prefix`, by path. Files that are being
    /// written are not objects yet.
    ///
    /// # Errors
    /// When the storage can't be asked.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Object>, Failure> {
        if !prefix.is_empty() {
            self.check(prefix.strip_suffix('/').unwrap_or(prefix))?;
        }
        tracing::debug!(storage = self.target, prefix, "list objects");
        let failed = |error: &opendal::Error| self.failure(error, "list", &format!("{prefix}*"));
        // Asked by folder and filtered here, so that disks and buckets mean the same by a prefix.
        let folder = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]);
        let lister = self.operator.lister_with(folder).recursive(true).await;
        let mut entries = match lister {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(vec![]),
            Err(error) => return Err(failed(&error)),
        };
        let mut objects = vec![];
        while let Some(entry) = entries.try_next().await.map_err(|error| failed(&error))? {
            let path = entry.path();
            if !path.starts_with(prefix)
                || entry.metadata().is_dir()
                || upload::is_partial(path)
                || self.check(path).is_err()
            {
                continue;
            }
            if entry.metadata().last_modified().is_some() {
                objects.push(object(path, entry.metadata()));
            } else if let Some(object) = self.stat(path).await? {
                // Gone since the listing otherwise.
                objects.push(object);
            }
        }
        objects.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(objects)
    }

    /// Reads an object from its start.
    ///
    /// # Errors
    /// When it can't be opened.
    pub async fn read(&self, path: &str) -> Result<impl AsyncBufRead + Send + Unpin + use<>, Failure> {
        self.check(path)?;
        tracing::debug!(storage = self.target, path, "read an object");
        let failed = |error: &opendal::Error| self.failure(error, "read", path);
        let reader = self.operator.reader_with(path).await.map_err(|error| failed(&error))?;
        let stream = reader.into_bytes_stream(..).await.map_err(|error| failed(&error))?;
        Ok(StreamReader::new(stream.boxed()))
    }

    /// Reads a small object whole; `None` when there is none.
    ///
    /// # Errors
    /// When it can't be read or is larger than `limit`.
    pub async fn read_small(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, Failure> {
        let Some(object) = self.stat(path).await? else { return Ok(None) };
        if object.bytes > limit {
            let message =
                format!("`{path}` in the storage `{}` has {} bytes, more than {limit}", self.target, object.bytes);
            return Err(Failure::permanent(message));
        }
        let mut content = vec![];
        let mut reader = self.read(path).await?.take(limit);
        reader.read_to_end(&mut content).await.map_err(|error| self.read_failure(&error, path))?;
        Ok(Some(content))
    }

    /// Starts to write an object. Nothing appears under its name before [`Upload::publish`].
    ///
    /// # Errors
    /// When the object is there already (unless `options.replace`), or nothing can be written.
    pub async fn upload(&self, path: &str, options: UploadOptions<'_>) -> Result<Upload, Failure> {
        self.check(path)?;
        tracing::debug!(storage = self.target, path, "write an object");
        if !options.replace && self.stat(path).await?.is_some() {
            return Err(self.exists(path));
        }
        Upload::start(self, path, options).await
    }

    /// Writes a small object whole.
    ///
    /// # Errors
    /// As [`Storage::upload`] and [`Upload::publish`].
    pub async fn put(&self, path: &str, content: Vec<u8>, options: UploadOptions<'_>) -> Result<(), Failure> {
        let mut upload = self.upload(path, options).await?;
        match upload.write(content.into()).await {
            Ok(()) => upload.publish().await.map(|_| ()),
            Err(failure) => {
                upload.abort().await;
                Err(failure)
            }
        }
    }

    /// Removes an object; one that is not there is removed already.
    ///
    /// # Errors
    /// When the storage refuses.
    pub async fn delete(&self, path: &str) -> Result<(), Failure> {
        self.check(path)?;
        tracing::debug!(storage = self.target, path, "delete an object");
        kill::around("storage delete", self.operator.delete(path))
            .await
            .map_err(|error| self.failure(&error, "delete", path))
    }

    /// Removes what an interrupted [`Storage::upload`] by the same `writer` left on a disk.
    /// A bucket's unfinished uploads are invisible and expire by the bucket's own rules.
    ///
    /// # Errors
    /// When it is there and can't be removed.
    pub async fn remove_leftover(&self, path: &str, writer: &str) -> Result<(), Failure> {
        self.check(path)?;
        let Some(folder) = &self.folder else { return Ok(()) };
        match tokio::fs::remove_file(upload::partial_name(&folder.join(path), writer)).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(self.file_failure(&error, "remove the leftover of", path))
            }
            _ => Ok(()),
        }
    }

    /// What a failed read from [`Storage::read`] comes to.
    pub fn read_failure(&self, error: &std::io::Error, path: &str) -> Failure {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<opendal::Error>());
        match inner {
            Some(inner) => self.failure(inner, "read", path),
            None => self.file_failure(error, "read", path),
        }
    }

    fn exists(&self, path: &str) -> Failure {
        Failure::permanent(format!("the storage `{}` already has an object `{path}`", self.target))
            .help("objects are never overwritten: choose another path, one with the time in it")
    }

    fn failure(&self, error: &opendal::Error, verb: &str, path: &str) -> Failure {
        let words = self.words(error);
        let message = format!("{verb} `{path}` in the storage `{}`: {words}", self.target);
        if let Some(help) = trust::way_out(&words, CA_FILE).filter(|_| words.contains("invalid peer")) {
            return Failure::permanent(message).help(help);
        }
        let transient = match error.kind() {
            ErrorKind::RateLimited | ErrorKind::Conflict => true,
            // What opendal has no kind for: the connection broke, the server failed, or refused for good.
            ErrorKind::Unexpected => !REFUSALS.iter().any(|code| message.contains(code)),
            _ => false,
        };
        let failure = Failure { message, transient, help: None };
        match error.kind() {
            ErrorKind::PermissionDenied => failure.help("check the storage's credentials and what they may do"),
            ErrorKind::NotFound => failure.help("check the object's path, and the storage's `root` or `bucket`"),
            ErrorKind::ConfigInvalid => failure.help("check the storage's settings in the environment"),
            _ if transient => failure.help(match &self.endpoint {
                Some(endpoint) => format!("see that the service at {endpoint} runs and can be reached"),
                None => "see that the service can be reached, and what it says of itself".to_owned(),
            }),
            _ => failure,
        }
    }

    /// The error's own words in one line, without opendal's context dump.
    fn words(&self, error: &opendal::Error) -> String {
        // opendal's words for a service that is silent: of any operation, and of a part that is written beside others.
        if error.message().ends_with("timeout reached") || error.message() == "write part timeout" {
            let timeout = units::Duration(self.timeout);
            return format!("the service did nothing for {timeout} (`timeout`), and was asked several times");
        }
        let mut words = said(error.message().trim());
        let mut source = std::error::Error::source(error);
        while let Some(inner) = source {
            let text = inner.to_string();
            if !words.contains(&text) {
                words = format!("{words}: {text}");
            }
            source = inner.source();
        }
        if words.is_empty() {
            words = error.kind().to_string();
        }
        self.redactor.redact(&words.replace('\n', " ")).into_owned()
    }

    fn file_failure(&self, error: &std::io::Error, verb: &str, path: &str) -> Failure {
        let message = format!("{verb} `{path}` in the storage `{}`: {error}", self.target);
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Failure::permanent(message).help("make room there, then resume")
            }
            std::io::ErrorKind::Interrupted | std::io::ErrorKind::TimedOut => Failure::transient(message),
            _ => Failure::permanent(message),
        }
    }
}

/// An S3 server's code and message, out of the structure that opendal prints.
fn said(message: &str) -> String {
    let field = |name: &str| {
        let start = message.find(&format!("{name}: \""))? + name.len() + 3;
        let end = message[start..].find("\", ").map_or(message.len(), |end| start + end);
        Some(message[start..end].to_owned())
    };
    match (field("code"), field("message")) {
        (Some(code), Some(words)) if message.starts_with("S3Error") => format!("{code}: {words}"),
        _ => message.to_owned(),
    }
}

/// What speaks to a service that an authority of this file vouches for.
fn trusting(ca_file: &str) -> Result<HttpTransporter, Failure> {
    let client = reqwest::Client::builder()
        .tls_certs_merge(trust::authorities(ca_file)?)
        .build()
        .map_err(|error| Failure::permanent(format!("set up HTTP: {error}")))?;
    Ok(HttpTransporter::new(ReqwestTransport::new(client)))
}

/// The bytes that may still be written to the file system of `path`.
pub fn free_space(path: &Path) -> Option<u64> {
    super::disk::of(path).ok().map(|space| space.free)
}

fn object(path: &str, metadata: &opendal::Metadata) -> Object {
    Object {
        path: path.to_owned(),
        bytes: metadata.content_length(),
        modified: metadata.last_modified().map(Into::into),
        folder: metadata.is_dir(),
    }
}
