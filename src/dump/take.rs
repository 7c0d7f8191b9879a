//! Takes a dump: `pg_dump`'s output compressed, hashed and streamed to a storage, nothing
//! of it kept on the way.

use std::sync::{Arc, Mutex, PoisonError};

use async_compression::tokio::bufread::{GzipEncoder, ZstdEncoder};
use async_compression::{Level, zstd::CParameter};
use tokio::io::{AsyncReadExt, BufReader};
use tokio_util::bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::compression::{Compression, Reader};
use super::proof::ended_well;
use super::source::PIECE;
use super::survey::{PlainReader, Survey};
use super::tap::{Checksum, Tap, from_reader, through_reader};
use crate::failure::Failure;
use crate::secret::Redactor;
use crate::service::process::Command;
use crate::service::storage::Upload;

/// What came out of a dump that went well.
#[derive(Debug)]
pub struct Taken {
    /// SHA-256 of the object, in hex.
    pub sha256: String,
    /// What a plain dump was found to hold.
    pub survey: Option<Survey>,
}

/// How a dump is taken.
#[derive(Debug)]
pub struct Taker<'a> {
    /// The compression, done here.
    pub compression: Compression,
    /// Its level; otherwise gzip's own, and zstd's first: of SQL the next ones make little less, in twice the time.
    pub level: Option<i32>,
    /// Whether the output is plain SQL: it is read along and proven whole.
    pub plain: bool,
    /// Triggered when it must stop.
    pub cancel: &'a CancellationToken,
    /// Masks secrets in what the program says.
    pub redactor: &'a Redactor,
}

impl Taker<'_> {
    /// Runs `command` and writes its output to `upload`, which is left to be published or
    /// aborted. `watch` is told how many bytes came out of the program, and of which table.
    ///
    /// # Errors
    /// What the program said when it failed, whatever was written until then.
    pub async fn take(
        &self,
        command: &Command,
        upload: &mut Upload,
        watch: impl Fn(u64, Option<&str>) + Send + Sync + Clone + Unpin + 'static,
    ) -> Result<Taken, Failure> {
        let mut process = command.start(false, self.redactor)?;
        let stdout = process.stdout.take().ok_or_else(|| Failure::permanent("pg_dump has no output"))?;
        let survey = self.plain.then(|| Arc::new(Mutex::new(PlainReader::hashing())));
        let (read_along, mut came) = (survey.clone(), 0);
        let tapped = Tap::new(stdout, move |piece: &[u8]| {
            came += piece.len() as u64;
            let Some(reader) = &read_along else {
                watch(came, None);
                return Ok(());
            };
            let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
            reader.push(piece, None).map_err(through_reader)?;
            watch(came, reader.table());
            Ok(())
        });
        let mut compressed = self.compress(BufReader::with_capacity(PIECE, tapped));
        let checksum = Checksum::default();
        let pump = async {
            loop {
                let mut piece = vec![0; PIECE];
                let read = compressed.read(&mut piece).await.map_err(|error| match from_reader(&error) {
                    Some(failure) => failure.clone(),
                    None => Failure::permanent(format!("read pg_dump's output: {error}")),
                })?;
                if read == 0 {
                    return Ok(());
                }
                piece.truncate(read);
                checksum.update(&piece);
                upload.write(Bytes::from(piece)).await?;
            }
        };
        tokio::select! {
            pumped = pump => pumped?,
            () = self.cancel.cancelled() => {
                process.stop().await;
                return Err(Failure::transient("pg_dump was cancelled; it was stopped and nothing was published"));
            }
        }
        drop(compressed);
        let finished = process.wait(self.cancel).await?;
        ended_well("pg_dump", &finished, self.redactor)?;
        let survey = match survey.and_then(Arc::into_inner) {
            Some(reader) => Some(reader.into_inner().unwrap_or_else(PoisonError::into_inner).finish()?),
            None => None,
        };
        Ok(Taken { sha256: checksum.hex(), survey })
    }

    fn compress(&self, reader: impl tokio::io::AsyncBufRead + Send + Unpin + 'static) -> Reader {
        let level = match (self.level, self.compression) {
            (Some(level), _) => Level::Precise(level),
            (None, Compression::Zstd) => Level::Precise(1),
            (None, _) => Level::Default,
        };
        match self.compression {
            Compression::None => Box::new(reader),
            Compression::Gzip => Box::new(GzipEncoder::with_quality(reader, level)),
            Compression::Zstd => {
                let workers = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(4) as u32);
                let params = [CParameter::checksum_flag(true), CParameter::nb_workers(workers)];
                Box::new(ZstdEncoder::with_quality_and_params(reader, level, &params))
            }
        }
    }
}
