//! Loads a proven dump into a database: plain SQL through `psql`, archives through `pg_restore`.
//!
//! The object is read a second time here. Its checksum must come out the same before the
//! transaction may end: what is committed is what was proven.

use std::path::Path;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::manifest::Format;
use super::proof::{Proof, Watch, ended_well, feed};
use super::source::{PIECE, Source};
use super::survey::{PlainReader, Rules};
use crate::failure::Failure;
use crate::kill;
use crate::secret::Redactor;
use crate::service::postgres::tool::Version;
use crate::service::process::{Command, Process};
use crate::service::storage::Storage;

/// What a load is made with.
pub struct Loader<'a> {
    /// Where the dump is.
    pub storage: &'a Storage,
    /// What was proven of it.
    pub proof: &'a Proof,
    /// Triggered when it must stop.
    pub cancel: &'a CancellationToken,
    /// Masks secrets in what the programs say.
    pub redactor: &'a Redactor,
    /// Told how far it is.
    pub watch: Watch<'a>,
}

impl std::fmt::Debug for Loader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Loader({})", self.proof.object.path)
    }
}

impl Loader<'_> {
    /// Loads a plain dump in one transaction: all of it, or nothing. `restricted` where `psql` knows `\restrict`.
    /// `first` runs before it, on its first line.
    ///
    /// # Errors
    /// The server's own words with the dump's line, or that the dump changed meanwhile.
    pub async fn plain(&self, psql: Command, rules: Rules, restricted: bool, first: &str) -> Result<(), Failure> {
        let mut source = self.open().await?;
        // Settings that the dump makes on the server change how `psql` reads it. So it takes no command at all, whatever
        // it reads, except under a key that no dump can know.
        let begin = if restricted { restrict() + first } else { first.to_owned() };
        let mut process = in_one_transaction(psql).start(true, self.redactor)?;
        // From here on dropping the process kills it before its input is closed: `psql`
        // takes the end of its input for the end of the dump, and commits.
        let fed = self.feed_psql(&mut source, &mut process, rules, begin).await?;
        if fed == Fed::Whole {
            self.proof.unchanged(self.storage, &source)?;
        }
        let finished = process.wait(self.cancel).await?;
        ended_well("psql", &finished, self.redactor).map_err(by_line)?;
        if fed == Fed::Refused {
            return Err(ended_early());
        }
        Ok(())
    }

    async fn feed_psql(
        &self,
        source: &mut Source,
        process: &mut Process,
        rules: Rules,
        mut begin: String,
    ) -> Result<Fed, Failure> {
        let mut reader = PlainReader::new(rules);
        let mut buffer = vec![0; PIECE];
        let mut sql = Vec::with_capacity(2 * PIECE);
        loop {
            let read = source.read(&mut buffer).await?;
            if read == 0 {
                break;
            }
            sql.clear();
            sql.extend_from_slice(std::mem::take(&mut begin).as_bytes());
            reader.push(&buffer[..read], Some(&mut sql))?;
            let Some(stdin) = &mut process.stdin else { return Ok(Fed::Refused) };
            let written = tokio::select! {
                written = stdin.write_all(&sql) => written,
                () = self.cancel.cancelled() => return Err(self.cancelled()),
            };
            // It stopped at an error and says so itself.
            if written.is_err() {
                return Ok(Fed::Refused);
            }
            kill::point("restore: a piece is fed");
            (self.watch)(source.checksum.bytes(), reader.table());
        }
        source.read_to_end().await?;
        reader.finish()?;
        Ok(Fed::Whole)
    }

    /// Loads an archive in one transaction: all of it, or nothing. `pg_restore` turns it into SQL, which `psql` gets
    /// after `first`, and commits only when all of the archive was read and is what was proven. `restricted` as with
    /// plain SQL.
    ///
    /// # Errors
    /// The programs' own words, or that the dump changed meanwhile.
    pub async fn archive_in_one(
        &self,
        pg_restore: Command,
        psql: Command,
        rules: Rules,
        restricted: bool,
        first: &str,
    ) -> Result<(), Failure> {
        let mut source = self.open().await?;
        let first = if restricted { restrict() + first } else { first.to_owned() };
        let command = pg_restore.arg("--file=-");
        let command = match (&source.local, source.format) {
            (Some(folder), Format::Directory) => command.arg("--format=directory").arg(folder),
            _ => command,
        };
        let mut archive = command.start(source.format != Format::Directory, self.redactor)?;
        let mut process = in_one_transaction(psql).start(true, self.redactor)?;
        let sql = archive.stdout.take();
        // As with plain SQL: dropped before its input is closed, `psql` never commits.
        let (fed, passed) = tokio::join!(
            feed(&mut source, &mut archive, self.watch),
            self.pass_on(sql, process.stdin.as_mut(), rules, &first)
        );
        fed?;
        let whole = match passed? {
            Some(reader) => {
                ended_well("pg_restore", &archive.wait(self.cancel).await?, self.redactor)?;
                source.read_to_end().await?;
                reader.finish()?;
                self.unchanged(&mut source).await?;
                true
            }
            None => false,
        };
        let finished = process.wait(self.cancel).await?;
        ended_well("psql", &finished, self.redactor).map_err(by_line)?;
        if whole { Ok(()) } else { Err(ended_early()) }
    }

    /// Gives `psql` what `pg_restore` writes. Nothing when it stopped reading.
    async fn pass_on(
        &self,
        stdout: Option<impl AsyncRead + Unpin>,
        stdin: Option<&mut (impl AsyncWrite + Unpin)>,
        rules: Rules,
        first: &str,
    ) -> Result<Option<PlainReader>, Failure> {
        let mut reader = PlainReader::new(rules);
        let (Some(mut stdout), Some(stdin)) = (stdout, stdin) else { return Ok(None) };
        let mut sql = first.as_bytes().to_vec();
        let mut buffer = vec![0; PIECE];
        loop {
            let written = tokio::select! {
                written = stdin.write_all(&sql) => written,
                () = self.cancel.cancelled() => return Err(self.cancelled()),
            };
            if written.is_err() {
                return Ok(None);
            }
            kill::point("restore: a piece is fed");
            let read = tokio::select! {
                read = stdout.read(&mut buffer) => read,
                () = self.cancel.cancelled() => return Err(self.cancelled()),
            };
            let read = read.map_err(|error| Failure::permanent(format!("read pg_restore's output: {error}")))?;
            if read == 0 {
                return Ok(Some(reader));
            }
            sql.clear();
            reader.push(&buffer[..read], Some(&mut sql))?;
        }
    }

    /// Loads an archive on one connection, read from its start to its end.
    ///
    /// # Errors
    /// `pg_restore`'s own words, or that the dump changed meanwhile.
    pub async fn archive_in_order(&self, pg_restore: Command) -> Result<(), Failure> {
        let mut source = self.open().await?;
        let mut process = pg_restore.arg("--exit-on-error").start(true, self.redactor)?;
        let drained = drain(&mut process);
        let (fed, ()) = tokio::join!(feed(&mut source, &mut process, self.watch), drained);
        fed?;
        let finished = process.wait(self.cancel).await?;
        ended_well("pg_restore", &finished, self.redactor)?;
        source.read_to_end().await?;
        self.proof.unchanged(self.storage, &source)
    }

    /// Loads an archive over `jobs` connections. It is read from a file: its own, or a copy in the temporary
    /// folder.
    ///
    /// # Errors
    /// `pg_restore`'s own words, or that the dump changed meanwhile.
    pub async fn archive_side_by_side(&self, pg_restore: Command, jobs: u32) -> Result<(), Failure> {
        let mut source = self.open().await?;
        let copy = match &source.local {
            Some(_) => None,
            None => Some(self.copy(&mut source).await?),
        };
        let file = copy.as_ref().map(tempfile::NamedTempFile::path).or(source.local.as_deref());
        let file =
            file.ok_or_else(|| Failure::permanent("the archive is in no file that pg_restore could read"))?;
        let command = pg_restore.arg("--exit-on-error").arg(format!("--jobs={jobs}")).arg(file);
        let mut process = command.start(false, self.redactor)?;
        let drained = drain(&mut process);
        let (finished, ()) = tokio::join!(process.wait(self.cancel), drained);
        ended_well("pg_restore", &finished?, self.redactor).map_err(by_jobs)?;
        if copy.is_none() {
            // pg_restore read it itself: it must still be what was proven.
            let mut again = self.open().await?;
            again.read_to_end().await?;
            self.unchanged(&mut again).await?;
        }
        Ok(())
    }

    /// Whether an archive that was read is what was proven. A folder has no checksum: its files' size and time
    /// must be the same.
    async fn unchanged(&self, source: &mut Source) -> Result<(), Failure> {
        if source.format != Format::Directory {
            return self.proof.unchanged(self.storage, source);
        }
        let now = self.open().await?.object;
        if now == self.proof.object { Ok(()) } else { Err(self.proof.changed(self.storage)) }
    }

    /// Several jobs need to seek.
    async fn copy(&self, source: &mut Source) -> Result<tempfile::NamedTempFile, Failure> {
        let folder = std::env::temp_dir();
        let failed = |error: &std::io::Error| copy_failed(&folder, error);
        let copy = tempfile::Builder::new().prefix("lifeboat-").tempfile().map_err(|error| failed(&error))?;
        let mut file = tokio::fs::File::from_std(copy.reopen().map_err(|error| failed(&error))?);
        let mut buffer = vec![0; PIECE];
        loop {
            let read = source.read(&mut buffer).await?;
            if read == 0 {
                break;
            }
            file.write_all(&buffer[..read]).await.map_err(|error| failed(&error))?;
            (self.watch)(source.checksum.bytes(), Some("copied to the temporary folder"));
        }
        file.flush().await.map_err(|error| failed(&error))?;
        source.read_to_end().await?;
        self.proof.unchanged(self.storage, source)?;
        Ok(copy)
    }

    async fn open(&self) -> Result<Source, Failure> {
        Source::open(self.storage, &self.proof.object.path, self.cancel).await
    }

    fn cancelled(&self) -> Failure {
        Failure::transient(format!("restore `{}`: cancelled", self.proof.object.path))
    }
}

/// `psql` takes its input for one transaction, and stops at the first error.
fn in_one_transaction(psql: Command) -> Command {
    psql.args(["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--single-transaction"])
        .args(["--output=/dev/null", "--file=-"])
}

fn ended_early() -> Failure {
    Failure::permanent("psql ended before it had read the whole dump, without a word")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fed {
    /// All of it was taken.
    Whole,
    /// The program stopped reading.
    Refused,
}

/// A program that is talked to by its input may still write: nobody wants it, but it must not wait.
fn drain(process: &mut Process) -> impl Future<Output = ()> + Send + use<> {
    let stdout = process.stdout.take();
    async move {
        let Some(mut stdout) = stdout else { return };
        let mut buffer = [0; 4096];
        while let Ok(1..) = stdout.read(&mut buffer).await {}
    }
}

fn copy_failed(folder: &Path, error: &std::io::Error) -> Failure {
    Failure::permanent(format!("copy the archive to {}: {error}", folder.display()))
        .help("make room there, point TMPDIR elsewhere, or set `jobs: 1`, which needs no copy")
}

/// `psql:<stdin>:12: ERROR:  …` in words for people.
fn by_line(failure: Failure) -> Failure {
    let message = failure.message.replace("psql:<stdin>:", "line ").replace("psql ended with exit code 3: ", "");
    Failure { message, ..failure }
}

/// A `\restrict` before the dump's first line, which stays the first.
fn restrict() -> String {
    format!("\\restrict {:032x} \\\\", rand::random::<u128>())
}

/// `pg_restore`'s own jobs may lock each other out: a partition's key and its attachment, say.
fn by_jobs(failure: Failure) -> Failure {
    if !failure.message.contains("deadlock detected") {
        return failure;
    }
    let failure = Failure { transient: true, ..failure };
    failure.help("its connections waited for each other: try again, or leave `jobs` out")
}

/// Whether a `psql` knows `\restrict`, which newer dumps begin with.
pub fn knows_restrict(psql: Version) -> bool {
    let first_minor = match psql.major {
        ..13 => return false,
        13 => 22,
        14 => 19,
        15 => 14,
        16 => 10,
        17 => 6,
        18.. => return true,
    };
    psql.minor >= first_minor
}

/// A database as `--dbname` takes it: a plain name could be read as a connection string.
pub fn conninfo(database: &str) -> String {
    format!("dbname='{}'", database.replace('\\', "\\\\").replace('\'', "\\'"))
}
