//! A dump in a storage, opened: its format and compression told from its first bytes,
//! its checksum made while it is read.

use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, BufReader};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;
use tokio_util::sync::CancellationToken;

use super::archive::{HEADER, Header, MAGIC};
use super::compression::{Compression, Reader, decompress, peek};
use super::manifest::Format;
use super::tap::{Checksum, from_reader};
use crate::failure::Failure;
use crate::secret::{Redactor, Secret};
use crate::service::age;
use crate::service::storage::{Object, Storage};

/// How much is read at once.
pub const PIECE: usize = 256 << 10;

/// How many pieces are read ahead.
const AHEAD: usize = 4;

/// A dump, ready to be read from its start.
pub struct Source {
    storage: Storage,
    /// What the storage says of it. A folder's size is that of its files, and its time their latest.
    pub object: Object,
    /// Its format.
    pub format: Format,
    /// Its compression, apart from what an archive does inside.
    pub compression: Compression,
    /// An archive's header.
    pub header: Option<Header>,
    /// Whether plain text begins as pg_dump's does.
    pub looks_like_dump: bool,
    /// Where its files are: of a folder always, of an uncompressed object on a disk as well.
    pub local: Option<PathBuf>,
    /// The checksum of the object's bytes that were read so far.
    pub checksum: Checksum,
    reader: Option<Reader>,
    cancel: CancellationToken,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Source({}, {}, {})", self.object.path, self.format.as_str(), self.compression.as_str())
    }
}

impl Source {
    /// Opens the dump at `path`.
    ///
    /// # Errors
    /// When it can't be read, or is plainly no dump that can be restored.
    pub async fn open(storage: &Storage, path: &str, cancel: &CancellationToken) -> Result<Self, Failure> {
        let Some(mut object) = storage.stat(path).await? else {
            if storage.stat(&format!("{path}/toc.dat")).await?.is_some() {
                return Err(Failure::permanent(format!(
                    "`{path}` in the storage `{}` is a directory archive in a bucket",
                    storage.target()
                ))
                .help("copy its files to a folder and restore it from a storage of scheme `fs`"));
            }
            return Err(storage.missing(path));
        };
        let local = storage.local_path(path)?;
        if object.folder {
            let toc = storage.read_small(&format!("{path}/toc.dat"), 1 << 30).await?;
            let header = toc.as_deref().and_then(Header::parse).ok_or_else(|| {
                Failure::permanent(format!(
                    "the folder `{path}` in the storage `{}` is no archive of pg_dump's",
                    storage.target()
                ))
                .help("a directory archive holds `toc.dat`; name the archive's own folder")
            })?;
            let files = storage.list(&format!("{path}/")).await?;
            object.bytes = files.iter().map(|file| file.bytes).sum();
            object.modified = files.iter().filter_map(|file| file.modified).max();
            return Ok(Self {
                storage: storage.clone(),
                object,
                format: Format::Directory,
                compression: Compression::None,
                header: Some(header),
                looks_like_dump: true,
                local,
                checksum: Checksum::default(),
                reader: None,
                cancel: cancel.clone(),
            });
        }
        if object.bytes == 0 {
            return Err(Failure::permanent(format!("`{path}` in the storage `{}` is empty", storage.target()))
                .help("whatever wrote it failed; restore another backup"));
        }
        let checksum = Checksum::default();
        let raw = BufReader::with_capacity(PIECE, ahead(checksum.tap(storage.read(path).await?)));
        let opened = async {
            let (compression, reader) = decompress(raw).await?;
            let (beginning, reader) = peek(reader, HEADER).await?;
            std::io::Result::Ok((compression, beginning, reader))
        };
        let (compression, beginning, reader) = opened.await.map_err(|error| broken(storage, path, None, &error))?;
        if beginning.is_empty() {
            return Err(Failure::permanent(format!(
                "`{path}` in the storage `{}` holds nothing",
                storage.target()
            ))
            .help("it is what a failed pg_dump leaves behind a compressor; restore another backup"));
        }
        let header = Header::parse(&beginning);
        let format = if beginning.starts_with(MAGIC) { Format::Custom } else { Format::Plain };
        if format == Format::Plain && beginning.starts_with(b"toc.dat\0") {
            return Err(Failure::permanent(format!("`{path}` is a tar archive"))
                .help("unpack it into a folder of a storage of scheme `fs` and restore that folder"));
        }
        Ok(Self {
            storage: storage.clone(),
            object,
            format,
            compression,
            header,
            looks_like_dump: format == Format::Custom || contains(&beginning, b"-- PostgreSQL database dump"),
            local: local.filter(|_| compression == Compression::None),
            checksum,
            reader: Some(Box::new(ahead(reader))),
            cancel: cancel.clone(),
        })
    }

    /// Opens any object to be read as it lies there, nothing told from its content.
    ///
    /// # Errors
    /// When it can't be read.
    pub async fn raw(storage: &Storage, path: &str, cancel: &CancellationToken) -> Result<Self, Failure> {
        let object = storage.object(path).await?;
        let checksum = Checksum::default();
        let reader = checksum.tap(storage.read(path).await?);
        Ok(Self {
            storage: storage.clone(),
            object,
            format: Format::Plain,
            compression: Compression::None,
            header: None,
            looks_like_dump: false,
            local: None,
            checksum,
            reader: Some(Box::new(reader)),
            cancel: cancel.clone(),
        })
    }

    /// Reads on what [`age`] opens with this identity; the checksum stays that of the object's own bytes.
    ///
    /// # Errors
    /// When age can't be started.
    pub fn unseal(mut self, identity: &Secret, redactor: &Redactor) -> Result<Self, Failure> {
        if let Some(sealed) = self.reader.take() {
            self.reader = Some(Box::new(age::open(sealed, identity, redactor, &self.cancel)?));
        }
        Ok(self)
    }

    /// Reads on into `buffer`: how much there was, 0 at the end.
    ///
    /// # Errors
    /// When it can't be read, is damaged, or `cancel` was triggered.
    pub async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Failure> {
        let Some(reader) = &mut self.reader else { return Ok(0) };
        tokio::select! {
            read = reader.read(buffer) => read.map_err(|error| {
                broken(&self.storage, &self.object.path, Some(self.compression), &error)
            }),
            () = self.cancel.cancelled() => {
                Err(Failure::transient(format!("read `{}`: cancelled", self.object.path)))
            }
        }
    }

    /// Reads what is left, to the end, so that the checksum is the whole object's.
    ///
    /// # Errors
    /// As [`Source::read`], and when the object is shorter or longer than the storage says.
    pub async fn read_to_end(&mut self) -> Result<(), Failure> {
        let mut buffer = vec![0; PIECE];
        while self.read(&mut buffer).await? > 0 {}
        let read = self.checksum.bytes();
        if self.format != Format::Directory && read != self.object.bytes {
            let path = &self.object.path;
            return Err(Failure::transient(format!("read `{path}`: {read} bytes came, of {}", self.object.bytes)));
        }
        Ok(())
    }
}

/// Reads on a thread of its own, some pieces ahead: decompressing costs as much as what is done with what comes out,
/// and what is fetched from a bucket is waited for.
/// A task may not do: the runtime may run two that wake each other in turn on one thread.
fn ahead(mut reader: impl AsyncRead + Send + Unpin + 'static) -> impl AsyncRead + Send + Unpin {
    let (there, mut here) = mpsc::channel::<std::io::Result<Bytes>>(AHEAD);
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || {
        runtime.block_on(async {
            loop {
                let mut piece = BytesMut::with_capacity(PIECE);
                let read = tokio::select! {
                    read = reader.read_buf(&mut piece) => read,
                    // Whoever wanted it is gone.
                    () = there.closed() => return,
                };
                let piece = match read {
                    Ok(0) => return,
                    Ok(_) => Ok(piece.freeze()),
                    Err(error) => Err(error),
                };
                let failed = piece.is_err();
                if there.send(piece).await.is_err() || failed {
                    return;
                }
            }
        });
    });
    StreamReader::new(futures::stream::poll_fn(move |cx| here.poll_recv(cx)))
}

/// What an error from reading means.
pub fn broken(storage: &Storage, path: &str, compression: Option<Compression>, error: &std::io::Error) -> Failure {
    if let Some(failure) = from_reader(error) {
        return failure.clone();
    }
    let of_storage = error.get_ref().is_some_and(|inner| inner.downcast_ref::<opendal::Error>().is_some());
    if of_storage || compression == Some(Compression::None) {
        return storage.read_failure(error, path);
    }
    let stream = compression.map_or("compressed", Compression::as_str);
    let help = "it was damaged while it was written or copied; restore another backup";
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        return Failure::permanent(format!("`{path}` is not whole: its {stream} stream stops before its end"))
            .help(help);
    }
    Failure::permanent(format!("`{path}` is damaged: its {stream} stream: {error}")).help(help)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
