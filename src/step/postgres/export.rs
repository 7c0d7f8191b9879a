//! `postgres.export`: a table's or a query's rows as one object: CSV, or COPY's binary format.
//!
//! The rows come to this machine and go on to the storage: the server writes no file. They are
//! read in one snapshot, and the object appears whole or not at all, its manifest last.

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures::TryStreamExt;
use futures::future::try_join;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::backup::{hash, writer};
use super::{ReadAt, blame, counted, database_resource, end_leftovers, server, table_of};
use crate::dump::source::PIECE;
use crate::dump::tap::Checksum;
use crate::failure::Failure;
use crate::record::event::{Progress, ProgressUnit};
use crate::service::postgres::Session;
use crate::service::postgres::copy::{PLAIN_FORMS, RowCount};
use crate::service::postgres::relation::{Relation, idents};
use crate::service::storage::{Storage, Upload, UploadOptions};
use crate::service::{Services, age};
use crate::step::effect::{Access, Effect, Resource};
use crate::step::storage::object_manifest::ObjectManifest;
use crate::step::storage::{Place, check_object_path};
use crate::step::world::Fact;
use crate::step::{
    AfterKill, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind, output,
};
use crate::units::Size;

/// Writes a table's or a query's rows to a storage.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// The server.
    #[schemars(extend("x-target" = "postgres"))]
    target: String,
    /// The database.
    #[schemars(length(min = 1, max = 63))]
    database: String,
    /// The table (or view), as `schema.table`: all of its columns but generated ones, in the
    /// order of its primary key.
    table: Option<String>,
    /// Or a query, run in a read-only transaction; tables are named with their schema.
    #[schemars(extend("x-sql" = true))]
    sql: Option<String>,
    /// Where the rows go. Nothing may be there: put the time into the path.
    to: Place,
    /// CSV, or COPY's binary format.
    #[serde(default)]
    format: Format,
    /// Whether the first line of CSV names the columns; `true` unless said otherwise.
    header: Option<bool>,
    /// Whom it is encrypted for, by the program `age`: recipients as `age1…` or an SSH public key. Whoever has
    /// the identity of one of them reads it.
    #[serde(default)]
    encrypt_to: Vec<String>,
}

/// A format of COPY's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Format {
    /// Comma-separated values in UTF-8: what is empty without quotes is null.
    #[default]
    Csv,
    /// Quicker; reads back into the same types only.
    Binary,
}

impl Format {
    pub const fn count(self) -> RowCount {
        match self {
            Self::Csv => RowCount::csv(),
            Self::Binary => RowCount::binary(),
        }
    }
}

impl StepType for Export {
    const NAME: &'static str = "postgres.export";
    const SUMMARY: &'static str = "Writes a table's or a query's rows to a storage, as CSV or binary.";
    const AFTER_KILL: &'static str =
        "happened if the object is there with the noted checksum; otherwise nothing was published: run again";

    fn outputs() -> Vec<Output> {
        vec![
            output("rows", ValueKind::Integer, "How many rows it holds."),
            output("path", ValueKind::String, "The object's path in the storage."),
            output("sha256", ValueKind::String, "Its checksum."),
        ]
    }
}

#[async_trait]
impl Step for Export {
    fn effects(&self) -> Vec<Effect> {
        let read = match &self.table {
            Some(table) => Resource::table(&self.target, &self.database, table),
            None => database_resource(&self.target, Some(&self.database)),
        };
        vec![Effect::read(read), Effect::new(Access::Create, self.object())]
    }

    fn check(&self, found: &mut Findings) {
        check_object_path(found, "/to/path", &self.to.path);
        match (&self.table, &self.sql) {
            (Some(table), None) => {
                if let Err(message) = table_of(table) {
                    found.add("/table", message, None);
                }
            }
            (None, Some(sql)) if sql.trim().is_empty() => found.add("/sql", "there is no statement", None),
            (None, Some(_)) => {}
            (Some(_), Some(_)) => found.add("/sql", "`table` and `sql` exclude each other", None),
            (None, None) => found.add("", "neither `table` nor `sql` says what to export", None),
        }
        if self.header.is_some() && self.format == Format::Binary {
            found.add("/header", "the binary format has no header", None);
        }
        for (at, recipient) in self.encrypt_to.iter().enumerate() {
            if !age::is_recipient(recipient) {
                let help = "write `age1…`, or an SSH public key as `ssh-ed25519 …`".to_owned();
                found.add(format!("/encrypt_to/{at}"), "this is no recipient of age's", help);
            }
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let summary = format!("export {} to {} in {}", self.what(), self.to.path, self.to.storage);
        let assumed = Preview::from_effects(&self.effects(), summary.clone())
            .fact(self.object(), Fact::Present { rows: None })
            .output("path", self.to.path.clone());
        if cx.is_unknown("/to/path") || cx.is_unknown("/sql") || cx.is_unknown("/table") {
            return Preview { outputs: BTreeMap::default(), ..assumed };
        }
        let (session, certainty) = match ReadAt::find(cx, &self.target, Some(&self.database)).await {
            Ok(ReadAt::Now(session, certainty)) => (session, certainty),
            Ok(ReadAt::Later { .. } | ReadAt::Unseen) => return assumed,
            Err(preview) => return *preview,
        };
        let Some(services) = cx.services else { return assumed };
        let looked = async {
            self.select(&session).await?;
            self.try_recipients(services).await?;
            let storage = services.storage(&self.to.storage)?;
            Ok::<_, Failure>(storage.stat(&self.to.path).await?.is_some())
        };
        let preview = Preview { certainty, ..assumed };
        let because = cx.world.fact(&self.object()).map(|foretold| foretold.because.clone());
        match looked.await {
            Err(failure) => preview.blocked(failure.message, failure.help),
            Ok(there) if there || because.is_some() => preview.blocked(
                format!(
                    "the storage `{}` already has an object `{}`{}",
                    self.to.storage,
                    self.to.path,
                    blame(because.as_ref(), "makes it")
                ),
                "objects are never overwritten: choose another path, one with the time in it".to_owned(),
            ),
            Ok(_) => preview,
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let storage = cx.services.storage(&self.to.storage)?;
        if let Some(manifest) = self.published(&storage, cx).await? {
            manifest.store(&storage, &writer(cx)).await?;
            return Ok(done(&manifest));
        }
        let session = server(cx, &self.target)?.connect(Some(&self.database)).await?;
        if let Some(left) = end_leftovers(&session, cx).await? {
            return Err(Failure::transient(left));
        }
        storage.remove_leftover(&self.to.path, &writer(cx)).await?;
        let attempted = format!("export {} of {} to {}", self.what(), self.target, self.to.path);
        let begin = format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {PLAIN_FORMS}");
        session.batch(&attempted, &begin).await?;
        let taken_at = jiff::Timestamp::now();
        let select = self.select(&session).await?;
        self.try_recipients(&cx.services).await?;
        let server_version = session.server_facts().await?.version.to_string();
        // No more than a guess, to make parts large enough.
        let size = session.row(&attempted, "SELECT pg_database_size(current_database())", &[]).await?;
        let expected_bytes = size.get::<_, i64>(0).unsigned_abs();
        let options = UploadOptions { writer: &writer(cx), expected_bytes, replace: false };
        let mut upload = storage.upload(&self.to.path, options).await?;
        let noted = match self.stream(cx, &session, &attempted, &select, &mut upload).await {
            Ok((rows, sha256)) => {
                let whole = (upload.bytes(), sha256);
                let manifest = ObjectManifest::new(cx, &self.to.path, whole, rows, taken_at, server_version);
                cx.note(json!({ "manifest": manifest })).await.map(|()| manifest)
            }
            Err(failure) => Err(failure),
        };
        let manifest = match noted {
            Ok(manifest) => manifest,
            Err(failure) => {
                upload.abort().await;
                return Err(failure);
            }
        };
        upload.publish().await?;
        let there = hash(&storage, &self.to.path, cx).await?;
        if manifest.sha256 != there {
            storage.delete(&self.to.path).await?;
            return Err(Failure::permanent(format!("`{}` came out with the checksum {there}", self.to.path))
                .help("the storage damaged it, or something else writes there"));
        }
        manifest.store(&storage, &writer(cx)).await?;
        Ok(done(&manifest))
    }

    async fn after_kill(&self, cx: &RunCx) -> Result<AfterKill, Failure> {
        let storage = cx.services.storage(&self.to.storage)?;
        if let Some(manifest) = self.published(&storage, cx).await? {
            return Ok(match ObjectManifest::load(&storage, &self.to.path).await? {
                Some(_) => AfterKill::Happened(done(&manifest)),
                None => AfterKill::Partly { what: format!("{} is there without its manifest", self.to.path) },
            });
        }
        let why = match storage.stat(&self.to.path).await? {
            None => format!("nothing was published as {}", self.to.path),
            Some(_) => format!("{} is there, and not by this step", self.to.path),
        };
        Ok(AfterKill::DidNotHappen { why })
    }
}

impl Export {
    fn object(&self) -> Resource {
        Resource::object(&self.to.storage, &self.to.path)
    }

    fn what(&self) -> String {
        match &self.table {
            Some(table) => format!("{table} of {}", self.database),
            None => format!("a query on {}", self.database),
        }
    }

    /// The query that COPY runs, proven to be one statement that gives rows.
    async fn select(&self, session: &Session) -> Result<String, Failure> {
        let attempted = format!("export {}", self.what());
        if let Some(table) = &self.table {
            return Ok(in_order(&find_table(session, table).await?));
        }
        let sql = self.sql.as_deref().unwrap_or_default().trim_end().trim_end_matches(';');
        let statement = super::query::prepare(session, &attempted, sql, 0).await?;
        if statement.columns().is_empty() {
            return Err(Failure::permanent(format!("{attempted}: the statement gives no rows"))
                .help("write a SELECT, or name a `table`"));
        }
        Ok(sql.to_owned())
    }

    async fn try_recipients(&self, services: &Services) -> Result<(), Failure> {
        if self.encrypt_to.is_empty() {
            return Ok(());
        }
        age::try_recipients(&self.encrypt_to, services.redactor(), services.cancel()).await
    }

    /// Streams the rows into the storage, encrypted if so wanted. Gives their number, and the checksum of
    /// what the storage got.
    async fn stream(
        &self,
        cx: &RunCx,
        session: &Session,
        attempted: &str,
        select: &str,
        upload: &mut Upload,
    ) -> Result<(u64, String), Failure> {
        if self.encrypt_to.is_empty() {
            let (into, from) = tokio::io::duplex(PIECE);
            return try_join(self.pump(session, attempted, select, into), store(cx, from, upload)).await;
        }
        let mut process = age::seal(&self.encrypt_to, &cx.redactor)?;
        let (Some(into), Some(from)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(Failure::permanent(format!("{attempted}: age has no input or no output")));
        };
        let done = try_join(self.pump(session, attempted, select, into), store(cx, from, upload)).await?;
        age::ended_well(&process.wait(&cx.cancel).await?, &cx.redactor)
            .map_err(|failure| failure.context(attempted))?;
        Ok(done)
    }

    /// Gives the rows, as COPY writes them, and closes what they go into. Gives their number.
    async fn pump(
        &self,
        session: &Session,
        attempted: &str,
        select: &str,
        mut into: impl AsyncWrite + Send + Unpin,
    ) -> Result<u64, Failure> {
        let header = self.format == Format::Csv && self.header.unwrap_or(true);
        let format = match self.format {
            Format::Csv => format!("csv, HEADER {header}"),
            Format::Binary => "binary".to_owned(),
        };
        // On a line of its own: the query may end in a comment.
        let sql = format!("COPY ({select}\n) TO STDOUT (FORMAT {format})");
        let failed = |error: tokio_postgres::Error| session.failure(attempted, &error);
        let mut stream = Box::pin(session.copy_out(&sql).await.map_err(failed)?);
        let mut count = self.format.count();
        while let Some(bytes) = stream.try_next().await.map_err(failed)? {
            count.update(&bytes);
            into.write_all(&bytes).await.map_err(|error| lost(&error))?;
        }
        if !count.is_whole() {
            return Err(Failure::permanent(format!("{attempted}: what the server sent is not whole")));
        }
        Ok(count.rows() - u64::from(header))
    }

    /// What the attempt noted that published what is there.
    async fn published(&self, storage: &Storage, cx: &RunCx) -> Result<Option<ObjectManifest>, Failure> {
        let Some((_, note)) = cx.notes.last() else { return Ok(None) };
        let Ok(manifest) = serde_json::from_value::<ObjectManifest>(note["manifest"].clone()) else {
            return Ok(None);
        };
        let there = manifest.path == self.to.path
            && storage.stat(&self.to.path).await?.is_some_and(|object| manifest.bytes == object.bytes)
            && manifest.sha256 == hash(storage, &self.to.path, cx).await?;
        Ok(there.then_some(manifest))
    }
}

/// A table's rows, in an order that is the same each time where it has a key.
fn in_order(table: &Relation) -> String {
    let order = table.order.as_ref().map_or_else(String::new, |key| format!(" ORDER BY {}", idents(key)));
    format!("SELECT {} FROM {}{order}", idents(&table.names()), table.source())
}

/// The table of that name, which must be there.
pub(super) async fn find_table(session: &Session, table: &str) -> Result<Relation, Failure> {
    let [schema, name] = table_of(table).map_err(Failure::permanent)?;
    session.find_relation(&schema, &name).await?.ok_or_else(|| {
        Failure::permanent(format!("database {} has no table {table} at {}", session.database(), session.place()))
            .help("write its schema before the name, as `auth.users`")
    })
}

/// Writes what comes into the storage. Gives its checksum.
async fn store(cx: &RunCx, from: impl AsyncRead + Send + Unpin, upload: &mut Upload) -> Result<String, Failure> {
    let checksum = Checksum::default();
    let mut from = checksum.tap(from);
    loop {
        // As full as it gets: a storage takes few large pieces more gladly than many small ones.
        let mut piece = Vec::with_capacity(PIECE);
        (&mut from).take(PIECE as u64).read_to_end(&mut piece).await.map_err(|error| lost(&error))?;
        if piece.is_empty() {
            return Ok(checksum.hex());
        }
        upload.write(piece.into()).await?;
        let done = checksum.bytes();
        cx.progress(Progress { done, total: None, unit: ProgressUnit::Bytes, message: None });
    }
}

fn lost(error: &std::io::Error) -> Failure {
    Failure::transient(format!("pass the rows on: {error}"))
}

fn done(manifest: &ObjectManifest) -> Done {
    let rows = counted(manifest.count, "row");
    Done::new(format!("{}: {rows}, {}", manifest.path, Size(manifest.bytes)))
        .output("rows", manifest.count)
        .output("path", manifest.path.clone())
        .output("sha256", manifest.sha256.clone())
}
