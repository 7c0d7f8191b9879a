//! `postgres.import`: an object's rows into a table, in one transaction.
//!
//! They go into a temporary table first, so that a bad file never meets the real one. The
//! header must name the columns in order: a file whose columns are swapped would else put
//! private keys where public ones belong.

use async_trait::async_trait;
use futures::SinkExt;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use tokio_postgres::CopyInSink;
use tokio_util::bytes::Bytes;

use super::export::{Format, find_table};
use super::once::{self, Begun, Transaction, lock_timeout, number, rows_note};
use super::{ReadAt, counted, server, table_of};
use crate::dump::source::{PIECE, Source};
use crate::failure::Failure;
use crate::kill;
use crate::record::event::{Progress, ProgressUnit};
use crate::secret::Secret;
use crate::service::Services;
use crate::service::age::MAGIC;
use crate::service::postgres::copy::{PLAIN_FORMS, csv_header};
use crate::service::postgres::relation::{Relation, idents};
use crate::service::postgres::{Session, ident};
use crate::service::storage::Storage;
use crate::step::effect::{Access, Effect, Resource};
use crate::step::storage::object_manifest::ObjectManifest;
use crate::step::storage::{Place, changed_by, check_object_path};
use crate::step::world::Fact;
use crate::step::{
    AfterKill, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind, output,
};
use crate::units::{Duration, Size};

/// The longest header that is read.
const HEADER: usize = 1 << 20;

/// Where the rows wait until they are all there.
const STAGED: &str = "pg_temp.lifeboat_rows";

/// Reads rows from a storage into a table, in one transaction.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Import {
    /// The server.
    #[schemars(extend("x-target" = "postgres"))]
    target: String,
    /// The database.
    #[schemars(length(min = 1, max = 63))]
    database: String,
    /// The table, as `schema.table`.
    table: String,
    /// Where the rows are.
    from: Place,
    /// CSV, or COPY's binary format.
    #[serde(default)]
    format: Format,
    /// Whether the first line of CSV names the columns; `true` unless said otherwise.
    header: Option<bool>,
    /// The file's columns in order. By default all of the table's but generated ones.
    columns: Option<Vec<String>>,
    /// What happens to rows that are there already.
    #[serde(default)]
    mode: Mode,
    /// The columns by which `merge` knows a row again; by default the primary key.
    key: Option<Vec<String>>,
    /// Only an object with the manifest that `postgres.export` writes beside it, which tells a file that
    /// was cut between two rows. Where there is one it must fit in any case.
    #[serde(default)]
    require_manifest: bool,
    /// The identity (`AGE-SECRET-KEY-1…`) that opens an object that was exported with `encrypt_to`. It is a
    /// secret: of an input that is declared as one. Empty is as if it weren't there.
    #[serde(default)]
    identity: Option<Secret>,
    /// The checksum that the object must have, as the export gave it.
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    sha256: Option<String>,
    /// How long it waits for a lock.
    #[serde(default = "lock_timeout")]
    lock_timeout: Duration,
}

/// What an import does with the rows that a table has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Mode {
    /// They stay; a row with the key of another is an error.
    #[default]
    Insert,
    /// They are deleted first.
    Replace,
    /// One with the same key is updated, all others stay.
    Merge,
}

impl StepType for Import {
    const NAME: &'static str = "postgres.import";
    const SUMMARY: &'static str = "Reads rows from a storage into a table, in one transaction, exactly once.";
    const AFTER_KILL: &'static str = "the server says what became of the noted transaction (pg_xact_status)";

    fn outputs() -> Vec<Output> {
        vec![output("rows", ValueKind::Integer, "How many rows it read into the table.")]
    }
}

#[async_trait]
impl Step for Import {
    fn effects(&self) -> Vec<Effect> {
        let access = if self.mode == Mode::Replace { Access::Destroy } else { Access::Change };
        vec![
            Effect::read(Resource::object(&self.from.storage, &self.from.path)),
            Effect::new(access, Resource::table(&self.target, &self.database, &self.table)),
        ]
    }

    fn check(&self, found: &mut Findings) {
        check_object_path(found, "/from/path", &self.from.path);
        if let Err(message) = table_of(&self.table) {
            found.add("/table", message, None);
        }
        if self.header.is_some() && self.format == Format::Binary {
            found.add("/header", "the binary format has no header", None);
        }
        if self.header == Some(false) && self.columns.is_none() {
            found.add(
                "/header",
                "without a header nothing says which value goes where",
                Some("list the file's columns in `columns`".to_owned()),
            );
        }
        if self.key.is_some() && self.mode != Mode::Merge {
            found.add("/key", "only `mode: merge` knows rows by a key", None);
        }
        for (pointer, names) in [("/columns", &self.columns), ("/key", &self.key)] {
            if names.as_ref().is_some_and(Vec::is_empty) {
                found.add(pointer, "it names no column", None);
            }
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let verb = match self.mode {
            Mode::Insert => "import",
            Mode::Replace => "replace the rows of",
            Mode::Merge => "merge into",
        };
        let summary = format!("{verb} {} of {} from {}", self.table, self.database, self.from.path);
        let assumed = Preview::from_effects(&self.effects(), summary.clone())
            .fact(Resource::table(&self.target, &self.database, &self.table), Fact::Changed);
        if cx.is_unknown("/table") {
            return assumed;
        }
        let (session, certainty) = match ReadAt::find(cx, &self.target, Some(&self.database)).await {
            Ok(ReadAt::Now(session, certainty)) => (session, certainty),
            Ok(ReadAt::Later { .. } | ReadAt::Unseen) => return assumed,
            Err(preview) => return *preview,
        };
        let Some(services) = cx.services else { return assumed };
        let preview = Preview { certainty, ..assumed };
        let looked = async {
            let layout = self.layout(&session).await?;
            let storage = services.storage(&self.from.storage)?;
            let object = Resource::object(&self.from.storage, &self.from.path);
            if cx.is_unknown("/from/path") || changed_by(cx.world, &storage, &object).await.is_some() {
                return Ok(None);
            }
            let mut source = self.open(services, &storage).await?;
            self.begin(&mut source, &layout).await?;
            let bytes = source.object.bytes;
            if let Some(manifest) = self.manifest(&storage).await?
                && manifest.bytes != bytes
            {
                // Its checksum is computed when it is read; the size tells as much here.
                manifest.check(&self.from.path, bytes, "of another object")?;
            }
            Ok::<_, Failure>(Some(bytes))
        };
        match looked.await {
            Ok(Some(bytes)) => Preview { summary: format!("{summary} ({})", Size(bytes)), ..preview },
            Ok(None) => preview,
            Err(failure) => preview.blocked(failure.message, failure.help),
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let storage = cx.services.storage(&self.from.storage)?;
        let server = server(cx, &self.target)?;
        let attempted = self.attempted();
        match Transaction::begin(cx, &server, &self.database, &attempted, self.lock_timeout).await? {
            Begun::Happened(note) => Ok(done(&note)),
            Begun::Open(transaction) => {
                let applied = self.apply(cx, &transaction.session, &storage).await;
                transaction.end(cx, applied.map(rows_note)).await.map(|note| done(&note))
            }
        }
    }

    async fn after_kill(&self, cx: &RunCx) -> Result<AfterKill, Failure> {
        once::after_kill(cx, &server(cx, &self.target)?, done).await
    }
}

/// The table, and how the file's columns fit it.
struct Layout {
    table: Relation,
    columns: Vec<String>,
    key: Option<Vec<String>>,
    server_major: u32,
}

impl Import {
    fn attempted(&self) -> String {
        format!("import {} into {} of {}", self.from.path, self.table, self.database)
    }

    fn has_header(&self) -> bool {
        self.format == Format::Csv && self.header.unwrap_or(true)
    }

    async fn open(&self, services: &Services, storage: &Storage) -> Result<Source, Failure> {
        let source = Source::raw(storage, &self.from.path, services.cancel()).await?;
        match self.identity.as_ref().filter(|identity| !identity.expose().is_empty()) {
            Some(identity) => source.unseal(identity, services.redactor()),
            None => Ok(source),
        }
    }

    /// What is known of the object.
    async fn manifest(&self, storage: &Storage) -> Result<Option<ObjectManifest>, Failure> {
        let manifest = ObjectManifest::load(storage, &self.from.path).await?;
        if manifest.is_none() && self.require_manifest {
            return Err(Failure::permanent(format!(
                "{}: `{}` has no manifest, so nothing tells whether it is whole",
                self.attempted(),
                self.from.path
            ))
            .help("take an object that postgres.export finished; `require_manifest: false` believes another one"));
        }
        Ok(manifest)
    }

    async fn layout(&self, session: &Session) -> Result<Layout, Failure> {
        let table = find_table(session, &self.table).await?;
        let wrong = |message: String| Failure::permanent(format!("{}: {message}", self.attempted()));
        if !table.is_table {
            return Err(wrong(format!("{} is not a table", self.table)));
        }
        let there = table.names();
        let columns = self.columns.clone().unwrap_or_else(|| there.clone());
        if let Some(unknown) = columns.iter().find(|column| !there.contains(column)) {
            let why = if table.generated.contains(unknown) { "generates" } else { "has no" };
            return Err(wrong(format!("the table {why} column `{unknown}`")));
        }
        if let Some(twice) = columns.iter().enumerate().find(|(at, column)| columns[..*at].contains(column)) {
            return Err(wrong(format!("column `{}` is named twice", twice.1)));
        }
        let key = self.key.clone().or_else(|| table.key.clone());
        match &key {
            None if self.mode == Mode::Merge => {
                return Err(wrong(format!("{} has no primary key", self.table))
                    .help("name the columns that tell its rows apart in `key`"));
            }
            Some(key) if self.mode == Mode::Merge => {
                if let Some(missing) = key.iter().find(|column| !columns.contains(column)) {
                    return Err(wrong(format!("the file has no column `{missing}` of the key")));
                }
            }
            _ => {}
        }
        // A key that isn't in the file can't be doubled by it.
        let key = key.filter(|key| key.iter().all(|column| columns.contains(column)));
        if self.mode == Mode::Replace {
            let name = (table.schema.clone(), table.name.clone());
            let references = session.references().await?;
            let drawn =
                references.iter().find(|other| other.to == name && other.from != name && other.on_delete.is_some());
            if let Some(drawn) = drawn {
                return Err(wrong(format!(
                    "rows of {}.{} {} when the table's rows are deleted",
                    drawn.from.0,
                    drawn.from.1,
                    drawn.on_delete.unwrap_or_default()
                ))
                .help("use `mode: merge`, which deletes nothing"));
            }
        }
        let server_major = session.server_facts().await?.version.major;
        Ok(Layout { table, columns, key, server_major })
    }

    /// Reads the file's beginning, and refuses one whose header says other columns.
    async fn begin(&self, source: &mut Source, layout: &Layout) -> Result<Vec<u8>, Failure> {
        let path = &self.from.path;
        let mut beginning = vec![];
        let mut buffer = vec![0; PIECE];
        loop {
            let read = source.read(&mut buffer).await?;
            beginning.extend_from_slice(&buffer[..read]);
            if beginning.is_empty() {
                return Err(Failure::permanent(format!("{}: `{path}` is empty", self.attempted()))
                    .help("whatever wrote it failed: take another one"));
            }
            if beginning.starts_with(MAGIC) {
                return Err(Failure::permanent(format!("{}: `{path}` is encrypted", self.attempted()))
                    .help("give the `identity` that opens it"));
            }
            if !self.has_header() {
                return Ok(beginning);
            }
            if let Some(header) = csv_header(&beginning) {
                if header == layout.columns {
                    return Ok(beginning);
                }
                let mut sorted = (header.clone(), layout.columns.clone());
                sorted.0.sort();
                sorted.1.sort();
                let help = if sorted.0 == sorted.1 {
                    "the same columns in another order: if the rows have that order too, list them so in `columns`"
                } else {
                    "list the file's columns in `columns`, or take a file that was made from this table"
                };
                // A file without a header has a row there, which nobody should read here.
                let table = layout.table.names();
                let said: Vec<&str> = header
                    .iter()
                    .map(|name| if table.contains(name) { name.as_str() } else { "(no column of it)" })
                    .take(100)
                    .collect();
                let said = said.join(", ");
                return Err(Failure::permanent(format!(
                    "{}: the header of `{path}` names the columns {said}; expected {}",
                    self.attempted(),
                    layout.columns.join(", ")
                ))
                .help(help));
            }
            if read == 0 || beginning.len() > HEADER {
                return Err(Failure::permanent(format!("{}: `{path}` has no header", self.attempted()))
                    .help("it isn't CSV, or it was cut"));
            }
        }
    }

    /// All but the commit. Gives how many rows were read.
    async fn apply(&self, cx: &RunCx, session: &Session, storage: &Storage) -> Result<u64, Failure> {
        let attempted = self.attempted();
        session.batch(&attempted, PLAIN_FORMS).await?;
        let layout = self.layout(session).await?;
        let columns = idents(&layout.columns);
        let create = format!(
            "CREATE TEMP TABLE lifeboat_rows ON COMMIT DROP AS SELECT {columns} FROM {} WITH NO DATA",
            layout.table.sql()
        );
        session.batch(&attempted, &create).await?;
        let rows = self.load(cx, session, storage, &layout).await?;
        if rows == 0 && self.mode == Mode::Replace {
            return Err(Failure::permanent(format!("{attempted}: there are no rows in it"))
                .help("to empty a table, delete its rows with postgres.execute"));
        }
        if let Some(key) = &layout.key {
            self.refuse_doubles(session, key).await?;
        }
        let table = layout.table.sql();
        if self.mode == Mode::Replace {
            // Rows that others add meanwhile would stay beside those of the file.
            let table = &layout.table;
            let replace =
                format!("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE; DELETE FROM {}", table.sql(), table.source());
            session.batch(&attempted, &replace).await?;
        }
        let conflict = match (&layout.key, self.mode) {
            (Some(key), Mode::Merge) => on_conflict_update(key, &layout.columns),
            _ => String::new(),
        };
        let insert = format!(
            "INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM {STAGED}{conflict}"
        );
        let taken = kill::statement(&insert, session.execute(&insert, &[]))
            .await
            .map_err(|error| session.failure_without_values(&attempted, &error))?;
        if taken != rows && !conflict.ends_with("NOTHING") {
            return Err(Failure::permanent(format!("{attempted}: the table took {taken} of {rows} rows"))
                .help("a trigger or a rule of the table keeps rows out"));
        }
        session.advance_sequences(&layout.table).await?;
        Ok(rows)
    }

    /// Streams the object into the temporary table.
    async fn load(
        &self,
        cx: &RunCx,
        session: &Session,
        storage: &Storage,
        layout: &Layout,
    ) -> Result<u64, Failure> {
        let attempted = self.attempted();
        let manifest = self.manifest(storage).await?;
        let mut source = self.open(&cx.services, storage).await?;
        let beginning = self.begin(&mut source, layout).await?;
        let format = match self.format {
            Format::Binary => "binary".to_owned(),
            Format::Csv => {
                // Older servers only pass over the header; it has been compared above.
                let header = if layout.server_major >= 15 { "match" } else { "true" };
                format!("csv, HEADER {}", if self.has_header() { header } else { "false" })
            }
        };
        let sql = format!("COPY {STAGED} ({}) FROM STDIN (FORMAT {format})", idents(&layout.columns));
        let failed = |error: tokio_postgres::Error| session.failure_without_values(&attempted, &error);
        let sink: CopyInSink<Bytes> = session.copy_in(&sql).await.map_err(failed)?;
        let mut sink = Box::pin(sink);
        kill::around("copy a piece", sink.send(beginning.into())).await.map_err(failed)?;
        let total = Some(source.object.bytes);
        loop {
            let mut piece = vec![0; PIECE];
            let read = source.read(&mut piece).await?;
            if read == 0 {
                break;
            }
            piece.truncate(read);
            kill::around("copy a piece", sink.send(piece.into())).await.map_err(failed)?;
            let done = source.checksum.bytes();
            cx.progress(Progress { done, total, unit: ProgressUnit::Bytes, message: None });
        }
        source.read_to_end().await?;
        // Dropped before its end, COPY fails, and the transaction with it.
        if let Some(expected) = &self.sha256
            && *expected != source.checksum.hex()
        {
            return Err(Failure::permanent(format!(
                "{attempted}: `{}` has the checksum {}, not {expected}",
                self.from.path,
                source.checksum.hex()
            ))
            .help("it is not the object that was exported, or it was damaged"));
        }
        if let Some(manifest) = &manifest {
            manifest.check(&self.from.path, source.checksum.bytes(), &source.checksum.hex())?;
        }
        kill::around("end of copy", sink.as_mut().finish()).await.map_err(failed)
    }

    /// A key that stands twice in the file is a mistake of the file's, whatever the mode.
    async fn refuse_doubles(&self, session: &Session, key: &[String]) -> Result<(), Failure> {
        let attempted = self.attempted();
        let by = idents(key);
        let present = key.iter().map(|column| format!("{} IS NOT NULL", ident(column))).collect::<Vec<_>>();
        let sql = format!(
            "SELECT concat_ws(', ', {by}), count(*) FROM {STAGED} WHERE {} GROUP BY {by} HAVING count(*) > 1 \
             ORDER BY 1 LIMIT 4",
            present.join(" AND ")
        );
        let doubles = session.rows(&attempted, &sql, &[]).await?;
        if doubles.is_empty() {
            return Ok(());
        }
        let mut named: Vec<String> = doubles
            .iter()
            .take(3)
            .map(|row| format!("{} ({} times)", row.get::<_, &str>(0), row.get::<_, i64>(1)))
            .collect();
        if doubles.len() > 3 {
            named.push("…".to_owned());
        }
        Err(Failure::permanent(format!(
            "{attempted}: the file has rows with the same {}: {}",
            key.join(", "),
            named.join(", ")
        ))
        .help("a key names one row: see which of them is right"))
    }
}

/// What to do with a row that is there already: all columns but its key are taken over.
pub(super) fn on_conflict_update(key: &[String], columns: &[String]) -> String {
    let set: Vec<String> = columns
        .iter()
        .filter(|column| !key.contains(column))
        .map(|column| format!("{0} = EXCLUDED.{0}", ident(column)))
        .collect();
    let update = if set.is_empty() { "DO NOTHING".to_owned() } else { format!("DO UPDATE SET {}", set.join(", ")) };
    format!(" ON CONFLICT ({}) {update}", idents(key))
}

fn done(note: &Value) -> Done {
    let rows = number(note, "rows");
    Done::new(counted(rows, "row")).output("rows", rows)
}
