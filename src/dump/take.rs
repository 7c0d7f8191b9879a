//! Takes a dump: `pg_dump`'s output compressed, hashed and streamed to a storage, nothing
//! of it kept on the way; rows of large tables come from [`super::beside`].

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio_util::bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::beside::{Beside, ROWS, Reading};
use super::compression::{Compression, Compressor};
use super::proof::ended_well;
use super::source::PIECE;
use super::survey::{PlainReader, Survey};
use super::tap::Checksum;
use crate::failure::Failure;
use crate::secret::Redactor;
use crate::service::process::Command;
use crate::service::storage::Upload;

/// What comes out of a compressor is handed on in pieces of this size at least.
const HANDED_ON: usize = 64 << 10;

/// What came out of a dump that went well.
#[derive(Debug)]
pub struct Taken {
    /// SHA-256 of the object, in hex.
    pub sha256: String,
    /// What a plain dump was found to hold; of tables that were read beside `pg_dump`, their rows alone.
    pub survey: Option<Survey>,
}

/// How a dump is taken.
#[derive(Debug)]
pub struct Taker<'a> {
    /// The compression, done here.
    pub compression: Compression,
    /// Its level, if not the usual one ([`Compressor::new`]).
    pub level: Option<i32>,
    /// Whether the output is plain SQL: it is read along and proven whole.
    pub plain: bool,
    /// The rows that `pg_dump` leaves out of plain SQL.
    pub beside: Option<Reading<'a>>,
    /// Triggered when it must stop.
    pub cancel: &'a CancellationToken,
    /// Masks secrets in what the program says.
    pub redactor: &'a Redactor,
}

impl Taker<'_> {
    /// Runs `command` and writes its output to `upload`, which is left to be published or
    /// aborted. `watch` is told how many bytes were read, and of which table.
    ///
    /// # Errors
    /// What the program said when it failed, whatever was written until then.
    pub async fn take(
        &self,
        command: &Command,
        upload: &mut Upload,
        watch: impl Fn(u64, Option<&str>) + Send + Sync,
    ) -> Result<Taken, Failure> {
        let mut process = command.start(false, self.redactor)?;
        let stdout = process.stdout.take().ok_or_else(|| Failure::permanent("pg_dump has no output"))?;
        let mut out = Out {
            taker: self,
            reader: self.plain.then(PlainReader::hashing),
            compressor: None,
            checksum: Checksum::default(),
            came: 0,
            upload,
            watch,
        };
        let pump = async {
            let mut stdout = BufReader::with_capacity(PIECE, stdout);
            let beside = match &self.beside {
                Some(reading) => {
                    // First it must have its own connection, and its locks.
                    stdout.fill_buf().await.map_err(|error| unread(&error))?;
                    out.with_rows(&mut stdout, reading.begin()).await?
                }
                None => None,
            };
            loop {
                let piece = stdout.fill_buf().await.map_err(|error| unread(&error))?;
                let length = piece.len();
                if length == 0 {
                    break;
                }
                out.text(piece).await?;
                stdout.consume(length);
            }
            out.end_stream().await?;
            Ok::<_, Failure>(beside)
        };
        let beside = tokio::select! {
            pumped = pump => pumped?,
            () = self.cancel.cancelled() => {
                process.stop().await;
                return Err(Failure::transient("pg_dump was cancelled; it was stopped and nothing was published"));
            }
        };
        let finished = process.wait(self.cancel).await?;
        ended_well("pg_dump", &finished, self.redactor)?;
        let mut survey = out.reader.map(PlainReader::finish).transpose()?;
        match (&mut survey, self.beside.is_some(), beside) {
            (Some(survey), true, Some(beside)) => {
                for (table, rows, hash) in beside.sums() {
                    survey.rows.insert(table.clone(), rows);
                    survey.hashes.insert(table, hash);
                }
            }
            (_, false, _) => {}
            _ => {
                return Err(Failure::permanent("pg_dump ended before all rows had their place").help(
                    "see that pg_dump and the server fit each other; with `jobs: 1` it reads all rows itself",
                ));
            }
        }
        Ok(Taken { sha256: out.checksum.hex(), survey })
    }

    fn compressor(&self) -> Result<Compressor, Failure> {
        let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(4) as u32);
        Compressor::new(self.compression, self.level, threads).map_err(|error| not_compressed(&error))
    }
}

/// Where a dump goes.
struct Out<'a, W> {
    taker: &'a Taker<'a>,
    reader: Option<PlainReader>,
    /// The stream that is being written, if one is.
    compressor: Option<Compressor>,
    checksum: Checksum,
    came: u64,
    upload: &'a mut Upload,
    watch: W,
}

impl<W: Fn(u64, Option<&str>) + Send + Sync> Out<'_, W> {
    /// Takes what `pg_dump` wrote.
    async fn text(&mut self, piece: &[u8]) -> Result<(), Failure> {
        self.came += piece.len() as u64;
        if let Some(reader) = &mut self.reader {
            reader.push(piece, None)?;
        }
        (self.watch)(self.came, self.reader.as_ref().and_then(PlainReader::table));
        let compressor = match &mut self.compressor {
            Some(compressor) => compressor,
            none => none.insert(self.taker.compressor()?),
        };
        compressor.write(piece).map_err(|error| not_compressed(&error))?;
        match compressor.take(HANDED_ON) {
            Some(compressed) => self.compressed(compressed).await,
            None => Ok(()),
        }
    }

    async fn compressed(&mut self, piece: Bytes) -> Result<(), Failure> {
        self.checksum.update(&piece);
        self.upload.write(piece).await
    }

    /// Ends the compressed stream; another one begins with what comes next.
    async fn end_stream(&mut self) -> Result<(), Failure> {
        match self.compressor.take() {
            Some(ended) => self.compressed(ended.finish().map_err(|error| not_compressed(&error))?).await,
            None => Ok(()),
        }
    }

    /// Takes what `pg_dump` writes, with the rows that are read beside it where it would write them, until all of these
    /// are there. Gives them back, unless `pg_dump` ended before.
    async fn with_rows(
        &mut self,
        stdout: &mut (impl AsyncBufRead + Unpin),
        mut beside: Beside,
    ) -> Result<Option<Beside>, Failure> {
        let (mut line, mut text, mut begins, mut among_rows) = (vec![], vec![], true, false);
        while let Some(next) = beside.table() {
            line.clear();
            (&mut *stdout).take(PIECE as u64).read_until(b'\n', &mut line).await.map_err(|error| unread(&error))?;
            if line.is_empty() {
                self.text(&text).await?;
                return Ok(None);
            }
            let comment = begins && line.starts_with(b"-- ");
            if comment || text.len() >= HANDED_ON {
                self.text(&text).await?;
                text.clear();
            }
            if comment && self.reader.as_ref().is_some_and(PlainReader::is_between_statements) {
                among_rows |= line.starts_with(ROWS);
                if among_rows && next.goes_before(&line) {
                    self.end_stream().await?;
                    while let Some(table) = beside.table().filter(|table| table.goes_before(&line)) {
                        let table = table.key();
                        while let Some((piece, read)) = beside.next().await? {
                            self.came += read;
                            (self.watch)(self.came, Some(&table));
                            self.compressed(piece).await?;
                        }
                    }
                }
            }
            begins = line.ends_with(b"\n");
            text.extend_from_slice(&line);
        }
        self.text(&text).await?;
        Ok(Some(beside))
    }
}

fn unread(error: &std::io::Error) -> Failure {
    Failure::permanent(format!("read pg_dump's output: {error}"))
}

fn not_compressed(error: &std::io::Error) -> Failure {
    Failure::permanent(format!("compress the dump: {error}"))
}
