//! `postgres.backup`: a dump of one database, streamed to a storage, with its manifest.
//!
//! One snapshot serves `pg_dump`, the connections that read large tables beside it and the row counts, so that the
//! manifest says exactly what the dump holds while others go on writing. The object appears whole, the manifest last:
//! what can't be proven until then is removed again.

use std::collections::BTreeMap;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

mod foresee;
mod needs;
mod publish;
mod read_back;
mod restored;
mod snapshot;

use restored::Proving;
use snapshot::{Snapshot, count};

use super::{ReadAt, check_database_name, cores, counted, end_leftovers, server};
use crate::dump::beside::{Large, Reading};
use crate::dump::compression::Compression;
use crate::dump::count::{Table, tables};
use crate::dump::manifest::{self, Format, Manifest};
use crate::dump::rows::DUMP_OPTIONS;
use crate::dump::source::{PIECE, Source};
use crate::dump::take::Taker;
use crate::failure::Failure;
use crate::record::event::{Progress, ProgressUnit};
use crate::service::postgres::{Session, ident, name_parts};
use crate::service::storage::{Storage, UploadOptions};
use crate::step::effect::{Access, Effect, Resource, Role};
use crate::step::storage::{Place, check_object_path};
use crate::step::world::Fact;
use crate::step::{
    AfterKill, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind, output,
};
use crate::units::Size;

/// Takes a backup of a database: streamed, checked, published whole, with a manifest beside it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(clippy::unsafe_derive_deserialize, reason = "the unsafe code is inside `tokio::try_join!`")]
pub struct Backup {
    /// The server.
    #[schemars(extend("x-target" = "postgres"))]
    target: String,
    /// The database.
    #[schemars(length(min = 1, max = 63))]
    database: String,
    /// Where the backup goes. Nothing may be there: put the time into the path.
    to: Place,
    /// `plain` SQL or a `custom` archive. By default what the path says: `.dump`, `.dump.gz` and `.dump.zst` are
    /// custom, anything else is plain.
    format: Option<FormatChoice>,
    /// By default what the path says: `.gz`, `.zst`, or `.sql` for `none`; else `zstd` for plain SQL, on several
    /// processors, and for an archive `gzip`, done by `pg_dump` itself.
    compression: Option<Compression>,
    /// The compression's level; by default 6 for gzip and 1 for zstd.
    #[schemars(range(min = 1, max = 19))]
    level: Option<i32>,
    /// Only these schemas. What they need of others, or of extensions, isn't in the backup: it can't be restored by
    /// itself then, and the dry-run says why.
    #[serde(default)]
    schemas: Vec<String>,
    /// Only these tables, as `schema.table`, with their partitions. What they need besides their schemas (types,
    /// functions, other tables) isn't in the backup, as with `schemas`.
    #[serde(default)]
    tables: Vec<String>,
    /// Without these tables, as `schema.table`, and their partitions.
    #[serde(default)]
    exclude: Vec<String>,
    /// Whether the server's roles are written beside it (`<path>.globals.sql`).
    #[serde(default)]
    globals: bool,
    /// How many connections read the rows of large tables beside `pg_dump`, into plain SQL of a database in UTF-8, on
    /// servers from 14 on; by default one for each processor, two to eight, and fewer where the server takes no more.
    /// With 1, `pg_dump` reads all rows.
    #[schemars(range(min = 1, max = 16))]
    jobs: Option<u32>,
    /// How it is proven before it counts as a backup: `read` from the storage to its last byte, or
    /// `restore`d into a database of its own on the same server, every row compared, and dropped again.
    #[serde(default)]
    verify: Proving,
}

/// The format of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum FormatChoice {
    /// SQL, for `psql`.
    Plain,
    /// One archive, for `pg_restore`.
    Custom,
    /// A folder: can't be published whole, and is refused.
    Directory,
}

impl StepType for Backup {
    const NAME: &'static str = "postgres.backup";
    const SUMMARY: &'static str = "Takes a backup of a database, with a manifest that says exactly what is in it.";
    const AFTER_KILL: &'static str =
        "happened if backup and manifest are there and fit; otherwise nothing was published: run again";

    fn outputs() -> Vec<Output> {
        vec![
            output("path", ValueKind::String, "The backup's path in the storage."),
            output("bytes", ValueKind::Integer, "Its size."),
            output("sha256", ValueKind::String, "Its checksum."),
            output("taken_at", ValueKind::Timestamp, "When its snapshot was taken."),
            output("tables", ValueKind::Integer, "How many tables are in it."),
            output("rows", ValueKind::Integer, "How many rows are in it."),
        ]
    }
}

#[async_trait]
impl Step for Backup {
    fn effects(&self) -> Vec<Effect> {
        vec![
            Effect::read(Resource::database(&self.target, &self.database)),
            Effect::new(Access::Create, self.object()).role(Role::ProvesBackup),
        ]
    }

    fn check(&self, found: &mut Findings) {
        if self.database.is_empty() || self.database.len() > 63 {
            check_database_name(found, "/database", &self.database);
        }
        check_object_path(found, "/to/path", &self.to.path);
        if self.format == Some(FormatChoice::Directory) {
            found.add(
                "/format",
                "a directory archive is many files and can't be published whole",
                Some("use `custom`: it restores with `pg_restore` as well".to_owned()),
            );
        }
        let named = ending(&self.to.path);
        if let (Some(said), Some(named)) = (self.compression, named)
            && said != named
        {
            found.add(
                "/compression",
                format!("the path ends as {} but the compression is {}", named.as_str(), said.as_str()),
                Some("let the path say what the object is".to_owned()),
            );
        }
        if !self.schemas.is_empty() && !self.tables.is_empty() {
            found.add("/tables", "`schemas` and `tables` exclude each other", None);
        }
        for (pointer, names) in [("tables", &self.tables), ("exclude", &self.exclude)] {
            for (at, name) in names.iter().enumerate() {
                if name_parts(name).is_none() {
                    found.add(
                        format!("/{pointer}/{at}"),
                        format!("`{name}` is not a table's name"),
                        Some("write it as schema.table".to_owned()),
                    );
                }
            }
        }
        if self.jobs.is_some_and(|jobs| jobs > 1) && self.chosen().0 != Format::Plain {
            found.add(
                "/jobs",
                "an archive is written over one connection",
                Some("leave it out, or write plain SQL".to_owned()),
            );
        }
        if self.level.is_some() && self.chosen().1 == Compression::None {
            found.add("/level", "without compression there is no level", None);
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let summary = format!("back up database {} to {} in {}", self.database, self.to.path, self.to.storage);
        let assumed = Preview::from_effects(&self.effects(), summary.clone())
            .fact(self.object(), Fact::Present { rows: None })
            .output("path", self.to.path.clone());
        if cx.is_unknown("/to/path") {
            return Preview { outputs: BTreeMap::default(), ..assumed };
        }
        let (session, certainty) = match ReadAt::find(cx, &self.target, Some(&self.database)).await {
            Ok(ReadAt::Now(session, certainty)) => (session, certainty),
            Ok(ReadAt::Later { .. } | ReadAt::Unseen) => return assumed,
            Err(preview) => return *preview,
        };
        let Some(services) = cx.services else { return assumed };
        let proven = async {
            let (server, storage) = (services.postgres(&self.target)?, services.storage(&self.to.storage)?);
            self.prove(&server, &session, &storage, Preview { certainty, ..assumed.clone() }).await
        };
        proven.await.unwrap_or_else(|failure| Preview::failed(failure.context(&summary)))
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let storage = cx.services.storage(&self.to.storage)?;
        let server = server(cx, &self.target)?;
        let session = server.connect(Some(&self.database)).await?;
        if let Some(left) = end_leftovers(&session, cx).await? {
            return Err(Failure::transient(left));
        }
        if cx.attempt > 1
            && let AfterKill::Happened(done) = self.after_kill(cx).await?
        {
            // All that the attempt before missed was the answer to its last request.
            return Ok(done);
        }
        self.clear_leftovers(&storage, cx).await?;
        if self.verify == Proving::Restore && cx.attempt > 1 {
            self.clear_restored(&server, cx).await?;
        }
        let version = session.server_facts().await?.version;
        let snapshot = Snapshot::take(&session).await?;
        let all = tables(&session).await?;
        let chosen = self.chosen_tables(&all)?;
        let size: u64 = chosen.iter().map(|table| table.bytes).sum();
        let tool = server.tool("pg_dump", snapshot.server_major).await?;
        let large = self.large(&chosen, &session, &snapshot).await?;
        let globals =
            if self.globals { Some(self.read_globals(&server, snapshot.server_major, cx).await?) } else { None };
        let options = UploadOptions { writer: &writer(cx), expected_bytes: size, replace: false };
        let mut upload = storage.upload(&self.to.path, options).await?;
        let (format, compression) = self.chosen();
        let taker = Taker {
            compression: if self.by_pg_dump() { Compression::None } else { compression },
            level: self.level,
            plain: format == Format::Plain,
            beside: (!large.is_empty()).then(|| Reading {
                server: &server,
                database: &self.database,
                snapshot: &snapshot.name,
                tables: &large,
                jobs: self.connections(),
                compression,
                level: self.level,
            }),
            cancel: &cx.cancel,
            redactor: &cx.redactor,
        };
        let reporter = cx.reporter.clone();
        let watch = move |came: u64, table: Option<&str>| {
            let progress = Progress {
                done: came.min(size),
                total: Some(size),
                unit: ProgressUnit::Bytes,
                message: table.map(str::to_owned),
            };
            reporter.progress(progress);
        };
        let command = server.command(&tool, Some(&self.database)).env("PGOPTIONS", DUMP_OPTIONS);
        let command = command.args(self.arguments(&snapshot, &all, &large));
        let dumped = tokio::try_join!(taker.take(&command, &mut upload, watch), count(&session, &chosen));
        let (taken, counted) = match dumped.and_then(|(taken, counted)| {
            taken.survey.as_ref().map(|survey| self.same_rows(survey, &chosen, &counted)).transpose()?;
            Ok((taken, counted))
        }) {
            Ok(dumped) => dumped,
            Err(failure) => {
                upload.abort().await;
                return Err(failure.context(format!("back up database {} on {}", self.database, self.target)));
            }
        };
        drop(session);
        let note = json!({ "path": self.to.path, "bytes": upload.bytes(), "sha256": taken.sha256 });
        if let Err(failure) = cx.note(note).await {
            upload.abort().await;
            return Err(failure);
        }
        let bytes = self.publish(upload, &storage, &taken.sha256, cx).await?;
        let proven = async {
            let to = &self.to.storage;
            let counted = (&*chosen, &*counted);
            let read = self.read_back(&server, &storage, &taken, counted, snapshot.server_major, cx).await;
            let (read, rows) =
                read.map_err(|failure| failure.context(format!("read the backup back from {to}")))?;
            if self.verify == Proving::Restore {
                let restored = self.restore(&server, &storage, &read, &snapshot.encoding, version, cx).await;
                restored.map_err(|failure| failure.context(format!("restore the backup in {to} to prove it")))?;
            }
            let globals = match globals {
                Some(content) => Some(self.store_globals(&storage, content, cx).await?),
                None => None,
            };
            let manifest = Manifest {
                lifeboat_manifest: manifest::FORMAT,
                path: self.to.path.clone(),
                bytes,
                sha256: taken.sha256,
                format,
                compression: compression.as_str().to_owned(),
                database: self.database.clone(),
                system_identifier: snapshot.system_identifier,
                server_version: snapshot.server_version,
                tool_version: tool.version.to_string(),
                wal_lsn: snapshot.wal_lsn,
                taken_at: snapshot.taken_at,
                encoding: snapshot.encoding,
                collate: snapshot.collate,
                ctype: snapshot.ctype,
                rows: rows.values().sum(),
                partitioned: read.survey.outline.partitioned(&rows),
                tables: rows,
                hashes: read.survey.hashes,
                partial: self.is_partial(),
                globals,
                run: cx.run.to_string(),
                step: cx.mark(),
            };
            manifest.store(&storage, &writer(cx)).await?;
            Ok::<_, Failure>(done(&manifest))
        };
        match Box::pin(proven).await {
            Ok(done) => Ok(done),
            Err(failure) => Err(self.withdraw(&storage, failure).await),
        }
    }

    async fn after_kill(&self, cx: &RunCx) -> Result<AfterKill, Failure> {
        let storage = cx.services.storage(&self.to.storage)?;
        let Some(object) = storage.stat(&self.to.path).await? else {
            return Ok(AfterKill::DidNotHappen { why: format!("nothing was published as {}", self.to.path) });
        };
        match Manifest::load(&storage, &self.to.path).await? {
            Some(manifest) if self.is_ours(&manifest, cx) => {
                let sha256 = hash(&storage, &self.to.path, cx).await?;
                manifest.check(&self.to.path, object.bytes, &sha256)?;
                Ok(AfterKill::Happened(done(&manifest)))
            }
            Some(manifest) => Ok(AfterKill::CannotTell {
                why: format!("{} is there, but by run {} and step {}", self.to.path, manifest.run, manifest.step),
            }),
            None => Ok(AfterKill::Partly { what: format!("{} is there without its manifest", self.to.path) }),
        }
    }
}

impl Backup {
    fn object(&self) -> Resource {
        Resource::object(&self.to.storage, &self.to.path)
    }

    /// What is asked for, or else what the path says.
    fn chosen(&self) -> (Format, Compression) {
        let named = ending(&self.to.path);
        let archive = [".dump", ".dump.gz", ".dump.zst"].iter().any(|ending| self.to.path.ends_with(ending));
        let format = match self.format {
            Some(FormatChoice::Plain) => Format::Plain,
            None if !archive => Format::Plain,
            _ => Format::Custom,
        };
        let by_default = if format == Format::Plain { Compression::Zstd } else { Compression::Gzip };
        (format, self.compression.or(named).unwrap_or(by_default))
    }

    /// Whether `pg_dump` compresses: an archive with gzip inside stays one that `pg_restore`
    /// takes as it is. Unless its name says that `gzip` is around it.
    fn by_pg_dump(&self) -> bool {
        self.chosen() == (Format::Custom, Compression::Gzip) && ending(&self.to.path).is_none()
    }

    fn arguments(&self, snapshot: &Snapshot, all: &[Table], large: &[Large]) -> Vec<String> {
        let (format, _) = self.chosen();
        let mut arguments = vec![
            "--no-password".to_owned(),
            "--lock-wait-timeout=60000".to_owned(),
            format!("--snapshot={}", snapshot.name),
            format!("--format={}", format.as_str()),
        ];
        if format == Format::Custom {
            let level = if self.by_pg_dump() { self.level.unwrap_or(6).min(9) } else { 0 };
            arguments.push(format!("--compress={level}"));
        }
        // Quoted, a name is no pattern.
        arguments.extend(self.schemas.iter().map(|schema| format!("--schema={}", ident(schema))));
        for (option, names) in [("table", &self.tables), ("exclude-table", &self.exclude)] {
            let named = all.iter().filter(|table| table.is_named(names));
            arguments
                .extend(named.map(|table| format!("--{option}={}.{}", ident(&table.schema), ident(&table.name))));
        }
        let beside =
            |table: &Large| format!("--exclude-table-data={}.{}", ident(&table.schema), ident(&table.name));
        arguments.extend(large.iter().map(beside));
        arguments
    }

    fn connections(&self) -> usize {
        self.jobs.map_or_else(cores, |jobs| jobs as usize)
    }

    /// The tables that are read beside `pg_dump`.
    async fn large(&self, chosen: &[Table], session: &Session, snapshot: &Snapshot) -> Result<Vec<Large>, Failure> {
        if self.chosen().0 != Format::Plain || self.connections() == 1 {
            return Ok(vec![]);
        }
        Large::among(chosen, session, snapshot.server_major, &snapshot.encoding).await
    }

    /// The tables whose rows will be in the dump.
    fn chosen_tables(&self, all: &[Table]) -> Result<Vec<Table>, Failure> {
        for name in self.tables.iter().chain(&self.exclude) {
            if !all.iter().any(|table| table.is_named(std::slice::from_ref(name))) {
                return Err(Failure::permanent(format!(
                    "database {} on {} has no table {name}",
                    self.database, self.target
                )));
            }
        }
        for schema in &self.schemas {
            if !all.iter().any(|table| table.schema == *schema) {
                return Err(Failure::permanent(format!(
                    "database {} on {} has no table in a schema {schema}",
                    self.database, self.target
                )));
            }
        }
        let with_rows = |table: &&Table| !table.partitioned && !table.of_extension && self.has(table);
        Ok(all.iter().filter(with_rows).cloned().collect())
    }

    /// Whether it is of a part of the database.
    fn is_partial(&self) -> bool {
        !(self.schemas.is_empty() && self.tables.is_empty() && self.exclude.is_empty())
    }

    /// Whether a table is in it.
    fn has(&self, table: &Table) -> bool {
        (self.schemas.is_empty() || self.schemas.contains(&table.schema))
            && (self.tables.is_empty() || table.is_named(&self.tables))
            && !table.is_named(&self.exclude)
    }

    fn is_ours(&self, manifest: &Manifest, cx: &RunCx) -> bool {
        manifest.run == cx.run.as_str() && manifest.step == cx.mark() && manifest.path == self.to.path
    }
}

/// The compression that a path's ending promises.
fn ending(path: &str) -> Option<Compression> {
    match path.rsplit_once('.')?.1 {
        "gz" => Some(Compression::Gzip),
        "zst" => Some(Compression::Zstd),
        "sql" => Some(Compression::None),
        _ => None,
    }
}

pub(super) fn writer(cx: &RunCx) -> String {
    format!("{}-{}", cx.run, cx.step)
}

pub(super) async fn hash(storage: &Storage, path: &str, cx: &RunCx) -> Result<String, Failure> {
    let mut source = Source::raw(storage, path, &cx.cancel).await?;
    let total = Some(source.object.bytes);
    let mut buffer = vec![0; PIECE];
    while source.read(&mut buffer).await? > 0 {
        let message = Some("reading it back".to_owned());
        cx.progress(Progress { done: source.checksum.bytes(), total, unit: ProgressUnit::Bytes, message });
    }
    source.read_to_end().await?;
    Ok(source.checksum.hex())
}

fn done(manifest: &Manifest) -> Done {
    Done::new(format!(
        "{}: {}, {}, {}",
        manifest.path,
        Size(manifest.bytes),
        counted(manifest.tables.len() as u64, "table"),
        counted(manifest.rows, "row")
    ))
    .output("path", manifest.path.clone())
    .output("bytes", manifest.bytes)
    .output("sha256", manifest.sha256.clone())
    .output("taken_at", manifest.taken_at.to_string())
    .output("tables", manifest.tables.len())
    .output("rows", manifest.rows)
}
