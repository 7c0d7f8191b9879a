//! Reads a dump to its end, once, before anything is touched: it is whole, it is what its
//! manifest says, and this is what it holds.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::compression::Compression;
use super::manifest::{Format, Manifest};
use super::proven;
use super::source::{PIECE, Source};
use super::survey::{PlainReader, Survey};
use crate::failure::Failure;
use crate::secret::Redactor;
use crate::service::process::{Command, Finished, Process};
use crate::service::storage::{Object, Storage};

/// Told how many bytes of the object were read, and what goes by.
pub type Watch<'a> = &'a (dyn Fn(u64, Option<&str>) + Send + Sync);

/// What was proven of a dump.
#[derive(Clone, Debug, PartialEq)]
pub struct Proof {
    /// What the storage says of it.
    pub object: Object,
    /// SHA-256 of the object; none for a folder.
    pub sha256: Option<String>,
    /// Its format.
    pub format: Format,
    /// Its compression.
    pub compression: Compression,
    /// What it holds.
    pub survey: Survey,
    /// Its manifest, if it has one; it fits.
    pub manifest: Option<Manifest>,
}

/// Proves the dump at `path`.
///
/// `pg_restore` reads archives; its arguments may narrow down what is surveyed (not what
/// is read: the checksum is the whole object's). `hashing`: whether rows are added up, and
/// compared with a manifest that says what they came to.
///
/// # Errors
/// What is wrong with the dump, or that it can't be read.
pub async fn prove(
    storage: &Storage,
    path: &str,
    pg_restore: Option<&Command>,
    hashing: bool,
    redactor: &Redactor,
    cancel: &CancellationToken,
    watch: Watch<'_>,
) -> Result<Proof, Failure> {
    let manifest = Manifest::load(storage, path).await?;
    let mut source = Source::open(storage, path, cancel).await?;
    let reader = if hashing { PlainReader::hashing() } else { PlainReader::default() };
    let survey = match (source.format, pg_restore) {
        (Format::Plain, _) => survey_plain(&mut source, reader, watch).await,
        (Format::Custom | Format::Directory, Some(pg_restore)) => {
            survey_archive(&mut source, reader, pg_restore, redactor, cancel, watch).await
        }
        (Format::Custom | Format::Directory, None) => {
            Err(Failure::permanent("an archive can't be read without pg_restore")
                .help("install PostgreSQL's client programs (Debian: `apt-get install postgresql-client`)"))
        }
    }
    .map_err(|failure| failure.context(format_args!("`{path}` in the storage `{}`", storage.target())))?;
    source.read_to_end().await?;
    let sha256 = (source.format != Format::Directory).then(|| source.checksum.hex());
    let proof = Proof {
        object: source.object,
        sha256,
        format: source.format,
        compression: source.compression,
        survey,
        manifest,
    };
    proof.fits_manifest()?;
    proven::keep(storage, &proof);
    Ok(proof)
}

async fn survey_plain(source: &mut Source, mut reader: PlainReader, watch: Watch<'_>) -> Result<Survey, Failure> {
    let mut buffer = vec![0; PIECE];
    loop {
        let read = source.read(&mut buffer).await?;
        if read == 0 {
            return reader.finish();
        }
        reader.push(&buffer[..read], None)?;
        watch(source.checksum.bytes(), reader.table());
    }
}

/// `pg_restore` turns the archive into SQL, all of it: its table of contents alone would
/// come out of an archive that was cut as well.
async fn survey_archive(
    source: &mut Source,
    mut reader: PlainReader,
    pg_restore: &Command,
    redactor: &Redactor,
    cancel: &CancellationToken,
    watch: Watch<'_>,
) -> Result<Survey, Failure> {
    let command = pg_restore.clone().arg("--file=-");
    let command = match (&source.local, source.format) {
        (Some(folder), Format::Directory) => command.arg("--format=directory").arg(folder),
        _ => command,
    };
    let mut process = command.start(source.format != Format::Directory, redactor)?;
    let header = source.header.clone().unwrap_or_default();
    let stdout = process.stdout.take();
    let read_sql = async move {
        let mut buffer = vec![0; PIECE];
        let Some(mut stdout) = stdout else { return Ok(reader) };
        loop {
            let read = stdout
                .read(&mut buffer)
                .await
                .map_err(|error| Failure::permanent(format!("read pg_restore's output: {error}")))?;
            if read == 0 {
                return Ok::<_, Failure>(reader);
            }
            reader.push(&buffer[..read], None)?;
        }
    };
    let (fed, read) = tokio::join!(feed(source, &mut process, watch), read_sql);
    fed?;
    let reader = read?;
    let finished = process.wait(cancel).await?;
    // Its own words come before the reader's: what it wrote is cut when it failed.
    ended_well("pg_restore", &finished, redactor)?;
    let mut survey = reader.finish()?;
    survey.database = header.database.or(survey.database);
    survey.server_version = header.server_version.or(survey.server_version);
    survey.tool_version = header.tool_version.or(survey.tool_version);
    Ok(survey)
}

/// Gives the source to a process's input until either ends. What ended the process, it says itself.
///
/// # Errors
/// When the source can't be read.
pub async fn feed(source: &mut Source, process: &mut Process, watch: Watch<'_>) -> Result<(), Failure> {
    let Some(mut stdin) = process.stdin.take() else { return Ok(()) };
    let mut buffer = vec![0; PIECE];
    loop {
        let read = source.read(&mut buffer).await?;
        if read == 0 || stdin.write_all(&buffer[..read]).await.is_err() {
            return Ok(());
        }
        watch(source.checksum.bytes(), None);
    }
}

/// Whether a client program of PostgreSQL's ended well.
///
/// # Errors
/// Its own last words otherwise.
pub fn ended_well(program: &str, finished: &Finished, redactor: &Redactor) -> Result<(), Failure> {
    if finished.exit.success() {
        return Ok(());
    }
    let words = finished.stderr.last_lines(12, redactor);
    let message = if words.trim().is_empty() {
        format!("{program} ended with {} and said nothing", finished.exit)
    } else {
        format!("{program} ended with {}: {}", finished.exit, words.trim())
    };
    let passing = [
        "Connection refused",
        "could not connect",
        "connection to server",
        "server closed the connection",
        "terminating connection",
        "the database system is starting up",
        "the database system is shutting down",
        "remaining connection slots",
        "too many clients",
        "could not translate host name",
    ];
    // A wrong password is said after "connection to server", too, and doesn't pass.
    let lasting = ["authentication failed", "does not exist", "no pg_hba.conf entry", "permission denied"];
    let any = |known: &[&str]| known.iter().any(|known| words.contains(known));
    // The session that held the dump's snapshot is gone; the next attempt takes another one.
    let snapshot_lost = any(&["invalid snapshot identifier", "ERROR:  snapshot \""]);
    Err(Failure { message, transient: snapshot_lost || any(&passing) && !any(&lasting), help: None })
}

impl Proof {
    /// Whether what was read a second time is what was proven.
    ///
    /// # Errors
    /// When the object changed meanwhile.
    pub fn unchanged(&self, storage: &Storage, source: &Source) -> Result<(), Failure> {
        match &self.sha256 {
            Some(proven) if *proven != source.checksum.hex() => Err(self.changed(storage)),
            _ => Ok(()),
        }
    }

    /// What to say of a dump that is no longer what was proven.
    pub fn changed(&self, storage: &Storage) -> Failure {
        let message =
            format!("`{}` in the storage `{}` changed while it was restored", self.object.path, storage.target());
        Failure::permanent(message).help("something writes that object; restore one that stays as it is")
    }

    /// Rows that a restore must come to, by table: those that can be counted.
    pub fn expected_rows(&self) -> std::collections::BTreeMap<String, u64> {
        let counted = |table: &String| !self.survey.inserted.contains(table);
        self.survey
            .rows
            .iter()
            .filter(|(table, _)| counted(table))
            .map(|(table, rows)| (table.clone(), *rows))
            .collect()
    }

    /// The database that the dump was taken from, where it or its manifest says so.
    pub fn database(&self) -> Option<&str> {
        self.manifest.as_ref().map(|manifest| manifest.database.as_str()).or(self.survey.database.as_deref())
    }

    /// Refuses a dump of another database than `wanted`.
    ///
    /// # Errors
    /// When the dump says that it is another one's.
    pub fn is_of(&self, wanted: &str) -> Result<(), Failure> {
        match self.database() {
            Some(database) if database != wanted => Err(Failure::permanent(format!(
                "`{}` is a backup of the database `{database}`, not of `{wanted}`",
                self.object.path
            ))
            .help("name a backup of the right database")),
            _ => Ok(()),
        }
    }

    pub(super) fn fits_manifest(&self) -> Result<(), Failure> {
        let Some(manifest) = &self.manifest else { return Ok(()) };
        let path = &self.object.path;
        if let Some(sha256) = &self.sha256 {
            manifest.check(path, self.object.bytes, sha256)?;
        }
        for (table, rows) in self.expected_rows() {
            if let Some(said) = manifest.tables.get(&table)
                && *said != rows
            {
                return Err(Failure::permanent(format!(
                    "`{path}` holds {rows} rows of {table}, but its manifest says {said}"
                ))
                .help("don't trust this backup; use another one"));
            }
        }
        let changed = self
            .survey
            .hashes
            .iter()
            .find(|(table, hash)| manifest.hashes.get(*table).is_some_and(|said| said.sum != hash.sum));
        match changed {
            Some((table, _)) => {
                Err(Failure::permanent(format!("`{path}` holds other rows of {table} than its manifest says"))
                    .help("don't trust this backup; use another one"))
            }
            None => Ok(()),
        }
    }
}
