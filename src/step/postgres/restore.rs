//! `postgres.restore`: a dump, proven whole, into a new or an empty database.
//!
//! A new database is filled under a name of this run's own and gets its real name at the
//! end, in one transaction with its marker: what bears the name is whole, and what an
//! interrupted attempt left is this run's to drop. An empty database is filled in one
//! transaction, by `psql`: it is either still empty or whole.

use std::collections::BTreeMap;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

mod analyze;
mod fill;
mod foresee;
mod progress;
mod resume;
mod throwaway;

use super::{check_database_name, counted, end_leftovers, name_some, same_server, server, yet_to_come};
use crate::dump::choice::{Choice, nothing_of};
use crate::dump::manifest::Format;
use crate::dump::proof::{Proof, Watch, prove};
use crate::dump::proven::proven;
use crate::dump::source::Source;
use crate::dump::whole::Said;
use crate::failure::Failure;
use crate::record::event::{Progress, ProgressUnit};
use crate::service::postgres::tool::Version;
use crate::service::postgres::{Server, Session, name_parts};
use crate::service::process::Command;
use crate::service::storage::Storage;
use crate::step::effect::{Access, Effect, Resource, Role};
use crate::step::storage::{changed_by, check_object_path};
use crate::step::world::Fact;
use crate::step::{
    AfterKill, Certainty, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind, output,
};

/// Restores a dump: plain SQL, plain or compressed with gzip or zstd, a custom archive, or
/// a directory archive on a disk. It is proven whole before anything is touched.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Restore {
    /// The server.
    #[schemars(extend("x-target" = "postgres"))]
    target: String,
    /// The database to restore into.
    #[schemars(length(min = 1, max = 63))]
    database: String,
    /// The dump.
    from: From,
    /// Whether the database is created (it must not exist), with the locale, owner, settings, privileges and
    /// connection limit that a plain dump tells (`pg_dump --create`). Otherwise it must exist and be empty, and all that
    /// stays as it is.
    #[serde(default)]
    create: bool,
    /// How many connections load the dump. A plain dump takes as many as there are processors
    /// here, two to eight, where `create` is set, and twice as many, if the server has them to spare, while it makes
    /// tables and the indexes of small ones, which rather wait for the disk; with 1, and whenever its statements must
    /// keep their order, it goes through `psql` in one transaction. An archive takes as many where it lies
    /// uncompressed on a disk and `create` is set (if that fails, one, in its order), else one; more need a copy of
    /// it in the temporary folder.
    #[schemars(range(min = 1, max = 64))]
    jobs: Option<u32>,
    /// Only these schemas, with what is in them. Of an archive only that; of a plain dump, which needs
    /// `create`, also what it needs elsewhere but tables (types, functions, extensions, the schema
    /// `public`). Foreign keys and views that need other schemas' tables are left out, and told; so are
    /// event triggers, publications and subscriptions, which are the whole database's.
    #[serde(default)]
    schemas: Vec<String>,
    /// Only these tables, as `schema.table`. Of a plain dump, which needs `create`: with partitions,
    /// indexes, constraints, triggers and all else of theirs; other tables and views are left out, with
    /// the foreign keys to them, and told. Of an archive: tables of one schema and their rows, without
    /// indexes and keys, as `pg_restore --table` does.
    #[serde(default)]
    tables: Vec<String>,
    /// Whether statistics are gathered afterwards; without them queries are slow.
    #[serde(default = "yes")]
    analyze: bool,
    /// Whether objects get their owners and privileges back.
    #[serde(default)]
    owner: Owner,
}

/// A dump in a storage.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct From {
    /// The storage.
    #[schemars(extend("x-target" = "storage"))]
    storage: String,
    /// The dump's path.
    path: String,
    /// The database that it must be a dump of. A dump that says it is another one's is refused.
    database: Option<String>,
}

/// What becomes of owners and privileges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Owner {
    /// As in the dump; the roles must exist.
    #[default]
    Keep,
    /// Everything belongs to the connecting role, nobody else gets privileges.
    None,
}

const fn yes() -> bool {
    true
}

/// What a restore came to; noted before it becomes visible.
#[derive(Clone, Debug, PartialEq)]
struct Loaded {
    rows: u64,
    tables: u64,
    bytes: u64,
    taken_at: Option<String>,
}

impl StepType for Restore {
    const NAME: &'static str = "postgres.restore";
    const SUMMARY: &'static str = "Restores a dump into a new or empty database, after proving that it is whole.";
    const AFTER_KILL: &'static str = "a new database bears its name only when it is whole; a half-done one is this run's and is dropped and filled anew";

    fn outputs() -> Vec<Output> {
        vec![
            output("rows", ValueKind::Integer, "How many rows were restored, counted in the database."),
            output("tables", ValueKind::Integer, "How many tables hold them."),
            output("bytes", ValueKind::Integer, "The dump's size."),
            output("taken_at", ValueKind::Timestamp, "When the dump was taken."),
        ]
    }
}

#[async_trait]
impl Step for Restore {
    fn effects(&self) -> Vec<Effect> {
        let access = if self.create { Access::Create } else { Access::Change };
        vec![
            Effect::read(Resource::object(&self.from.storage, &self.from.path)),
            Effect::new(access, self.resource()).role(Role::Plain).leaves("restored"),
        ]
    }

    fn check(&self, found: &mut Findings) {
        check_database_name(found, "/database", &self.database);
        check_object_path(found, "/from/path", &self.from.path);
        if self.jobs > Some(1) && !self.create {
            found.add(
                "/jobs",
                "several connections can't fill a database in one transaction",
                Some("set `create: true`, or leave `jobs` out".to_owned()),
            );
        }
        if !self.schemas.is_empty() && !self.tables.is_empty() {
            found.add("/tables", "`schemas` and `tables` exclude each other", None);
        }
        for (at, name) in self.tables.iter().enumerate() {
            if name_parts(name).is_none() {
                found.add(
                    format!("/tables/{at}"),
                    format!("`{name}` is not a table's name"),
                    Some("write it as schema.table".to_owned()),
                );
            }
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let summary = self.attempted();
        let mut preview = Preview::from_effects(&self.effects(), summary);
        let object = Resource::object(&self.from.storage, &self.from.path);
        let rows = cx.world.fact(&object).and_then(|foretold| match &foretold.fact {
            Fact::Present { rows } => rows.clone(),
            _ => None,
        });
        preview = preview.fact(self.resource(), Fact::Present { rows });
        let Some(services) = cx.services.filter(|_| yet_to_come(cx, &self.target).is_none()) else {
            return preview;
        };
        let look = async {
            let (server, storage) = (services.postgres(&self.target)?, services.storage(&self.from.storage)?);
            let session = server.connect(None).await?;
            let preview = self.foresee_database(cx, &server, &session, preview.clone()).await?;
            // A step before writes the dump: it can't be looked at yet.
            if cx.is_unknown("/from") || changed_by(cx.world, &storage, &object).await.is_some() {
                return Ok(Preview { certainty: preview.certainty.max(Certainty::Assumed), ..preview });
            }
            self.foresee_dump(cx, &server, &session, &storage, preview).await
        };
        look.await.unwrap_or_else(|failure: Failure| Preview::failed(failure.context(self.attempted())))
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let storage = cx.services.storage(&self.from.storage)?;
        let server = server(cx, &self.target)?;
        let session = server.connect(None).await?;
        if let Some(left) = end_leftovers(&session, cx).await? {
            return Err(Failure::transient(left));
        }
        if let AfterKill::Happened(done) = self.settle(&session, cx).await? {
            return Ok(done);
        }
        let version = session.server_facts().await?.version;
        let total = storage.object(&self.from.path).await?.bytes;
        let prove_watch = watch(cx, total, "proving that the dump is whole");
        let proof = self.prove(&server, &storage, version, &prove_watch).await?;
        self.fits_server(&session, &proof, false).await?.into_iter().next().map_or(Ok(()), Err)?;
        if let Some(made) = self.makes_schemas(&proof) {
            cx.log(&format!("{made}\n"));
        }
        let loaded = if self.create {
            self.fill_new(&server, &session, &storage, &proof, version, cx).await
        } else {
            self.fill_empty(&server, &session, &storage, &proof, version, cx).await
        };
        loaded.map(|loaded| self.done(&loaded)).map_err(|failure| failure.context(self.attempted()))
    }

    async fn after_kill(&self, cx: &RunCx) -> Result<AfterKill, Failure> {
        let session = server(cx, &self.target)?.connect(None).await?;
        if let Some(what) = end_leftovers(&session, cx).await? {
            return Ok(AfterKill::StillGoing { what });
        }
        self.settle(&session, cx).await
    }
}

impl Restore {
    fn resource(&self) -> Resource {
        Resource::database(&self.target, &self.database)
    }

    fn attempted(&self) -> String {
        format!("restore {} into {} on {}", self.from.path, self.database, self.target)
    }

    /// What stands in the database's own comment, so that its origin is known for good.
    fn marker(&self, cx: &RunCx, loaded: &Loaded) -> String {
        let taken_at = loaded.taken_at.as_ref().map_or_else(String::new, |at| format!(", taken at {at}"));
        format!("lifeboat:{}:{} restored from {}{taken_at}", cx.run, cx.step, self.from.path)
    }

    /// What became of earlier attempts, from what they noted and what is there.
    async fn settle(&self, session: &Session, cx: &RunCx) -> Result<AfterKill, Failure> {
        let absent = AfterKill::DidNotHappen { why: "the attempt ended before it touched the server".to_owned() };
        // Notes of parts that are loaded stand between.
        let ours = |note: &Value| note.get("working").is_some() || note.get("oid").is_some();
        let Some((_, note)) = cx.notes.iter().rev().find(|(_, note)| ours(note)) else { return Ok(absent) };
        let system = session.server_facts().await?.system_identifier;
        if let Err(why) = same_server(note, system.as_deref()) {
            return Ok(AfterKill::CannotTell { why });
        }
        let loaded = Loaded::of(note);
        let there = session.find_database(&self.database).await?;
        if self.create {
            let ours = format!("lifeboat:{}:{} ", cx.run, cx.step);
            if let (Some(database), Some(loaded)) = (&there, &loaded)
                && database.comment.as_deref().is_some_and(|comment| comment.starts_with(&ours))
            {
                return Ok(AfterKill::Happened(self.done(loaded)));
            }
            let name = working_name(cx);
            return Ok(match session.find_database(&name).await? {
                Some(_) if note["side_by_side"] == true => AfterKill::Partly {
                    what: format!("{name} was not filled to its end; what is loaded is kept, the rest follows"),
                },
                Some(_) => AfterKill::Partly {
                    what: format!("{name} was not filled to its end; it is dropped and filled anew"),
                },
                None => AfterKill::DidNotHappen { why: format!("{name} is not there") },
            });
        }
        match (there, loaded, note["oid"].as_u64()) {
            (Some(database), _, Some(oid)) if u64::from(database.oid) != oid => Ok(AfterKill::CannotTell {
                why: format!("database {} is another one now (oid {}, was {oid})", self.database, database.oid),
            }),
            (None, ..) => Ok(AfterKill::CannotTell { why: format!("database {} is gone", self.database) }),
            (Some(_), Some(loaded), _) => Ok(AfterKill::Happened(self.done(&loaded))),
            // One transaction filled it: what is there is all of it, and is counted by the next attempt.
            (Some(_), None, _) => Ok(AfterKill::Partly {
                what: format!("{} is empty still, or loaded and not yet counted", self.database),
            }),
        }
    }

    async fn prove(
        &self,
        server: &Server,
        storage: &Storage,
        version: Version,
        watch: Watch<'_>,
    ) -> Result<Proof, Failure> {
        let pg_restore = match server.tool("pg_restore", version.major).await {
            Ok(tool) => Some(Command::new(tool.path.to_string_lossy()).args(self.narrowing())),
            // A plain dump needs none.
            Err(failure) => match Source::open(storage, &self.from.path, server.cancel()).await?.format {
                Format::Plain => None,
                Format::Custom | Format::Directory => return Err(failure),
            },
        };
        let (redactor, cancel) = (server.redactor(), server.cancel());
        let proof = match proven(storage, &self.from.path).await? {
            Some(proof) => proof,
            None => prove(storage, &self.from.path, pg_restore.as_ref(), false, redactor, cancel, watch).await?,
        };
        if let Some(wanted) = &self.from.database {
            proof.is_of(wanted)?;
        }
        self.narrows(&proof)?;
        // Of a part that is taken out of plain SQL such keys are left out.
        let keys = proof.survey.keys_left_out();
        if !keys.is_empty() && (self.is_whole() || proof.format != Format::Plain) {
            return Err(Failure::permanent(format!(
                "`{}` can't be restored by itself: it has foreign keys to tables that it doesn't hold: {}",
                self.from.path,
                name_some(&keys)
            ))
            .help("restore a backup that holds these, too, or choose `tables` of a plain one: such keys are left out then"));
        }
        Ok(proof)
    }

    /// `pg_restore`'s arguments for `schemas` and `tables`.
    fn narrowing(&self) -> Vec<String> {
        let tables: Vec<_> = self.tables.iter().filter_map(|name| name_parts(name)).collect();
        let of_tables = tables.first().map(|[schema, _]| schema);
        let schemas = self.schemas.iter().chain(of_tables).map(|schema| format!("--schema={schema}"));
        let tables = tables.iter().map(|[_, table]| format!("--table={table}"));
        schemas.chain(tables).collect()
    }

    fn is_whole(&self) -> bool {
        self.schemas.is_empty() && self.tables.is_empty()
    }

    /// What is taken over of what the dump says of its database as a whole: of a whole dump, by a new database.
    fn takes_over<'a>(&self, proof: &'a Proof) -> impl Iterator<Item = &'a Said> + use<'a> {
        let (whole, access) = (self.create && self.is_whole(), self.owner == Owner::Keep);
        proof.survey.whole.said.iter().filter(move |said| whole && (access || !said.access))
    }

    /// What can't be taken over of that.
    fn unread(&self, proof: &Proof) -> Option<String> {
        let unread = proof.survey.whole.unread;
        (self.create && self.is_whole() && unread > 0).then(|| {
            format!("left out: {unread} statements about the database itself, which can't be read for certain")
        })
    }

    /// The schemas that are made for the dump, in words.
    fn makes_schemas(&self, proof: &Proof) -> Option<String> {
        let schemas: Vec<_> = proof.survey.schemas_left_out().collect();
        (self.is_whole() && !schemas.is_empty()).then(|| {
            let (path, schemas) = (&self.from.path, schemas.join(", "));
            format!("`{path}` is of a part of a database: schemas that it doesn't make are made for it: {schemas}")
        })
    }

    /// What part of a plain dump is restored, if not all of it.
    fn choice(&self, proof: &Proof) -> Result<Option<Choice>, Failure> {
        if self.is_whole() || proof.format != Format::Plain {
            return Ok(None);
        }
        Choice::of(&self.from.path, &proof.survey, &self.schemas, &self.tables).map(Some)
    }

    /// The rows of each table that is restored.
    fn chosen_rows(&self, proof: &Proof) -> Result<BTreeMap<String, u64>, Failure> {
        let mut rows = proof.expected_rows();
        if let Some(choice) = self.choice(proof)? {
            rows.retain(|table, _| choice.has_rows_of(table));
        }
        Ok(rows)
    }

    /// Whether what `schemas` and `tables` name is in the dump, and can be taken out of it.
    fn narrows(&self, proof: &Proof) -> Result<(), Failure> {
        if self.is_whole() {
            return Ok(());
        }
        let path = &self.from.path;
        if proof.format == Format::Plain {
            if !self.create {
                return Err(Failure::permanent(format!(
                    "`{path}` is plain SQL, of which a part goes into a new database only"
                ))
                .help("set `create: true`, or use a custom archive"));
            }
            return self.choice(proof).map(drop);
        }
        let parts: Vec<_> = proof.survey.rows.keys().filter_map(|table| name_parts(table)).collect();
        let mut of = self.tables.iter().filter_map(|name| name_parts(name)).map(|[schema, _]| schema);
        let first = of.next();
        if of.any(|schema| Some(schema) != first) {
            return Err(Failure::permanent("an archive gives tables of one schema only, and these are of several")
                .help("restore those of one schema in one step, or take a plain dump"));
        }
        let missing = self
            .tables
            .iter()
            .find(|name| !name_parts(name).is_some_and(|wanted| parts.contains(&wanted)))
            .or_else(|| self.schemas.iter().find(|schema| !parts.iter().any(|[own, _]| own == *schema)));
        missing.map_or(Ok(()), |missing| Err(nothing_of(path, missing)))
    }

    fn done(&self, loaded: &Loaded) -> Done {
        let Loaded { rows, tables, bytes, taken_at } = loaded;
        let (of, from) = (&self.database, &self.from.path);
        let said = format!("{of} restored from {from}: {}, {}", counted(*tables, "table"), counted(*rows, "row"));
        Done::new(said)
            .output("rows", *rows)
            .output("tables", *tables)
            .output("bytes", *bytes)
            .output("taken_at", taken_at.clone().unwrap_or_default())
    }
}

impl Loaded {
    fn note(&self) -> Value {
        json!({ "rows": self.rows, "tables": self.tables, "bytes": self.bytes, "taken_at": self.taken_at })
    }

    fn of(note: &Value) -> Option<Self> {
        let loaded = note.get("loaded")?;
        let number = |name: &str| loaded[name].as_u64();
        let taken_at = loaded["taken_at"].as_str().map(str::to_owned);
        Some(Self { rows: number("rows")?, tables: number("tables")?, bytes: number("bytes")?, taken_at })
    }
}

/// The name under which a new database is filled: this run's and this step's alone.
fn working_name(cx: &RunCx) -> String {
    let name = format!("lifeboat_{}_{}", cx.run, cx.step);
    if name.len() <= 63 {
        return name;
    }
    let checksum = crate::dump::tap::Checksum::default();
    checksum.update(cx.step.as_str().as_bytes());
    format!("lifeboat_{}_{}", cx.run, &checksum.hex()[..16])
}

/// What a database holds besides what every new one does; nothing when it is empty.
async fn content(session: &Session) -> Result<Option<String>, Failure> {
    let sql = "SELECT what FROM ( \
                 SELECT format('%s.%s', n.nspname, c.relname) AS what \
                   FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                  WHERE n.nspname <> 'information_schema' AND NOT starts_with(n.nspname, 'pg_') \
                    AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e') \
                 UNION ALL \
                 SELECT format('schema %s', nspname) FROM pg_catalog.pg_namespace \
                  WHERE nspname NOT IN ('public', 'information_schema') AND NOT starts_with(nspname, 'pg_') \
                    AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.objid = oid AND d.deptype = 'e')) found \
               ORDER BY 1 LIMIT 1";
    Ok(session.maybe_row("look whether the database is empty", sql, &[]).await?.map(|row| row.get(0)))
}

fn not_empty(database: &str, content: &str) -> Failure {
    Failure::permanent(format!("database {database} is not empty: it holds {content}"))
        .help("restore into a new database (`create: true`) and swap, or drop this one in a step before")
}

/// Shows how much of the dump was read.
fn watch<'a>(cx: &'a RunCx, total: u64, doing: &'a str) -> impl Fn(u64, Option<&str>) + Send + Sync + 'a {
    move |done, table| {
        let message = table.map_or_else(|| doing.to_owned(), |table| format!("{doing}: {table}"));
        cx.progress(Progress { done, total: Some(total), unit: ProgressUnit::Bytes, message: Some(message) });
    }
}
