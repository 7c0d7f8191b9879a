//! Filling a database with a proven dump, so that it is whole or not there.

use std::pin::pin;

use futures::future::{Either, select};
use serde_json::json;
use tokio::time::Instant;

use super::analyze::analyze;
use super::{Loaded, Owner, Restore, content, not_empty, watch, working_name};
use crate::dump::compression::Compression;
use crate::dump::count::{expect_rows, tables};
use crate::dump::load::{Loader, conninfo, knows_restrict};
use crate::dump::manifest::Format;
use crate::dump::proof::Proof;
use crate::dump::survey::{Rules, create_schemas};
use crate::failure::Failure;
use crate::record::event::{Progress, ProgressUnit};
use crate::service::postgres::relation::drop_subscriptions;
use crate::service::postgres::tool::Version;
use crate::service::postgres::{Server, Session, ident, literal};
use crate::service::process::Command;
use crate::service::storage::Storage;
use crate::step::RunCx;
use crate::step::postgres::{POLL, SESSIONS_GONE, end_leftovers};
use crate::step::storage::taken_at;

/// What a server answers that lacks a locale, a tablespace or an encoding, or doesn't know an option yet:
/// <https://www.postgresql.org/docs/15/errcodes-appendix.html>.
const CANT_BE_MADE: [&str; 5] = ["42809", "22023", "42704", "42601", "0A000"];

impl Restore {
    /// Creates a database under a name of this run's own, fills it, and gives it its name.
    pub(super) async fn fill_new(
        &self,
        server: &Server,
        session: &Session,
        storage: &Storage,
        proof: &Proof,
        version: Version,
        cx: &RunCx,
    ) -> Result<Loaded, Failure> {
        if let Some(database) = session.find_database(&self.database).await? {
            return Err(Failure::permanent(format!(
                "database {} exists (oid {}) and is not this run's",
                self.database, database.oid
            ))
            .help("restore under another name and swap (postgres.swap_databases), or drop it in a step before"));
        }
        let system = session.server_facts().await?.system_identifier;
        let name = working_name(cx);
        let side_by_side = self.side_by_side(session, proof, version, cx).await?;
        let mut note = json!({ "system": system, "working": name, "side_by_side": side_by_side.is_some() });
        let done = match &side_by_side {
            Some(way) => way.recall(server, session, &name, proof, cx).await?,
            None => None,
        };
        if done.is_none() {
            drop_working(server, session, &name).await?;
            cx.note(note.clone()).await?;
            self.create(session, &name, proof, cx).await?;
        }
        let filled = async {
            if let Some(left) = self.unread(proof) {
                cx.log(&format!("{left}\n"));
            }
            self.try_whole(session, &name, proof).await?;
            if let Some(way) = &side_by_side {
                way.load(server, storage, proof, &name, done, cx).await?;
            } else {
                let jobs = self.archive_jobs(storage, proof)?;
                match self.load(server, storage, proof, version, (&name, jobs), cx).await {
                    // Nobody asked for several: what must keep its order fails over them, and isn't damaged.
                    Err(failure) if self.jobs.is_none() && jobs > 1 && in_order_it_may(&failure, cx) => {
                        cx.log(&format!("{failure}: once more over one connection, in the archive's order\n"));
                        end_leftovers(session, cx).await?;
                        drop_working(server, session, &name).await?;
                        self.create(session, &name, proof, cx).await?;
                        self.load(server, storage, proof, version, (&name, 1), cx).await?;
                    }
                    loaded => loaded?,
                }
            }
            let loaded = self.count(server, storage, proof, &name, cx).await?;
            note["loaded"] = loaded.note();
            cx.note(note).await?;
            self.give_name(session, &name, proof, &loaded, cx).await?;
            Ok(loaded)
        };
        let failure: Failure = match filled.await {
            Ok(loaded) => return Ok(loaded),
            Err(failure) => failure,
        };
        // What is loaded stays for the next attempt; not on a disk that is full, which others need as well.
        let full = failure.message.contains("53100");
        if side_by_side.is_some() && failure.transient && !full {
            let session = server.detached().connect(None).await;
            if let Ok(session) = session {
                end_leftovers(&session, cx).await.ok();
            }
            cx.log(&format!("{name} is kept: a further attempt goes on with it\n"));
            return Err(failure);
        }
        // Half a database serves nobody. What can't be dropped now, the next attempt drops.
        let tidy = async {
            let session = server.detached().connect(None).await?;
            end_leftovers(&session, cx).await?;
            drop_working(server, &session, &name).await
        };
        if let Err(left) = tidy.await {
            cx.log(&format!("{name} is left behind: {left}\n"));
        }
        Err(failure)
    }

    pub(super) async fn create(
        &self,
        session: &Session,
        name: &str,
        proof: &Proof,
        cx: &RunCx,
    ) -> Result<(), Failure> {
        let attempted = format!("create database {name} for {}", self.database);
        let said = proof.manifest.as_ref().map(|manifest| &manifest.encoding).or(proof.survey.encoding.as_ref());
        let encoding = said.map(|said| format!("ENCODING {}", literal(said))).unwrap_or_default();
        let mut ways = vec![];
        if let Some(manifest) = &proof.manifest {
            let (collate, ctype) = (literal(&manifest.collate), literal(&manifest.ctype));
            ways.push(format!("{encoding} LC_COLLATE {collate} LC_CTYPE {ctype}"));
        } else {
            let whole = &proof.survey.whole;
            let options = whole.options.clone().unwrap_or_default();
            ways.extend(whole.tablespace.iter().map(|tablespace| format!("{options} {tablespace}")));
            ways.extend(whole.options.clone());
        }
        ways.push(encoding);
        if proof.manifest.is_none() {
            // What the dump is written in, not what it was taken from: the server turns it into its own.
            ways.push(String::new());
        }
        ways.dedup();
        let mut ways = ways.into_iter().peekable();
        loop {
            let way = ways.next().unwrap_or_default();
            let sql = format!("CREATE DATABASE {} TEMPLATE template0 {way}", ident(name));
            match (session.batch(&attempted, &sql).await, ways.peek()) {
                // Another server's tablespace, another system's locale, a client's encoding.
                (Err(failure), Some(next)) if CANT_BE_MADE.iter().any(|code| failure.message.contains(code)) => {
                    let next = if next.is_empty() { "the server's own encoding and locale" } else { next };
                    cx.log(&format!("{failure}: once more with {next}\n"));
                }
                (answered, _) => return answered,
            }
        }
    }

    /// Whether the server takes what the dump says of its database as a whole: seen before anything is loaded,
    /// in force when the database gets its name, so that no setting is in the load's way.
    async fn try_whole(&self, session: &Session, name: &str, proof: &Proof) -> Result<(), Failure> {
        let said = self.said_of(name, proof);
        if said.is_empty() {
            return Ok(());
        }
        let tried =
            session.batch("try the dump's settings of the database", &format!("BEGIN; {said} ROLLBACK")).await;
        tried.map_err(|failure| {
            if failure.transient {
                return failure;
            }
            failure.help(
                "set `owner: none` if it is the owner or a privilege; otherwise restore without `create` into a \
                 database that a step before creates (postgres.create_database): it keeps its own settings then",
            )
        })
    }

    /// What the dump says of its database as a whole, said of that one.
    fn said_of(&self, database: &str, proof: &Proof) -> String {
        self.takes_over(proof).map(|said| said.of(database)).collect::<Vec<_>>().join(" ")
    }

    pub(super) async fn give_name(
        &self,
        session: &Session,
        name: &str,
        proof: &Proof,
        loaded: &Loaded,
        cx: &RunCx,
    ) -> Result<(), Failure> {
        let sql = format!(
            "BEGIN; COMMENT ON DATABASE {working} IS {}; ALTER DATABASE {working} RENAME TO {}; {} COMMIT",
            literal(&self.marker(cx, loaded)),
            ident(&self.database),
            self.said_of(&self.database, proof),
            working = ident(name),
        );
        let deadline = Instant::now() + SESSIONS_GONE;
        loop {
            match session.batch(format!("name the restored database {}", self.database), &sql).await {
                // The sessions that filled it may take a moment to be gone.
                Err(failure) if failure.message.contains("55006") && Instant::now() < deadline => {
                    session.batch("give up the transaction", "ROLLBACK").await?;
                    tokio::time::sleep(POLL).await;
                }
                Err(failure) => {
                    session.batch("give up the transaction", "ROLLBACK").await.ok();
                    return Err(failure);
                }
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Fills a database that is there and empty, in one transaction.
    pub(super) async fn fill_empty(
        &self,
        server: &Server,
        session: &Session,
        storage: &Storage,
        proof: &Proof,
        version: Version,
        cx: &RunCx,
    ) -> Result<Loaded, Failure> {
        let Some(database) = session.find_database(&self.database).await? else {
            return Err(Failure::permanent(format!("there is no database {}", self.database))
                .help("create it in a step before (postgres.create_database), or set `create: true`"));
        };
        let system = session.server_facts().await?.system_identifier;
        let inside = server.connect(Some(&self.database)).await?;
        let content = content(&inside).await?;
        drop(inside);
        if !proof.survey.whole.said.is_empty() {
            cx.log("left out: the owner, settings and privileges that the dump tells of its database\n");
        }
        let ours = cx.notes.last().is_some_and(|(_, note)| note["oid"].as_u64() == Some(u64::from(database.oid)));
        let note = json!({ "system": system, "oid": database.oid });
        match content {
            // An earlier attempt found it empty and loaded all of it.
            Some(_) if ours => cx.log("an earlier attempt loaded it: its rows are counted\n"),
            Some(content) => return Err(not_empty(&self.database, &content)),
            None => {
                cx.note(note.clone()).await?;
                if let Err(failure) = self.load(server, storage, proof, version, (&self.database, 1), cx).await {
                    let session = server.detached().connect(None).await;
                    if let Ok(session) = session {
                        end_leftovers(&session, cx).await.ok();
                    }
                    return Err(failure);
                }
            }
        }
        let loaded = self.count(server, storage, proof, &self.database, cx).await?;
        let mut note = note;
        note["loaded"] = loaded.note();
        cx.note(note).await?;
        Ok(loaded)
    }

    /// Fills `database`, an archive over so many connections.
    pub(super) async fn load(
        &self,
        server: &Server,
        storage: &Storage,
        proof: &Proof,
        version: Version,
        (database, jobs): (&str, u32),
        cx: &RunCx,
    ) -> Result<(), Failure> {
        let watch = watch(cx, proof.object.bytes, "loading");
        let loader = Loader { storage, proof, cancel: &cx.cancel, redactor: &cx.redactor, watch: &watch };
        let psql = server.tool("psql", 0).await;
        let rules = Rules { owners: self.owner == Owner::None, transaction_timeout: version.major < 17 };
        // pg_restore, too, takes a schema's content without the schema.
        let schemas: String = create_schemas(&proof.survey).map(|sql| sql + " ").collect();
        if proof.format == Format::Plain {
            let psql = psql?;
            let restricted = knows_restrict(psql.version);
            return loader.plain(server.command(&psql, Some(database)), rules, restricted, &schemas).await;
        }
        let narrowing = self.narrowing();
        let tool = server.tool("pg_restore", version.major).await?;
        let without = if self.owner == Owner::None { &["--no-owner", "--no-acl"][..] } else { &[] };
        if !self.create {
            let psql = psql?;
            let command = Command::new(tool.path.to_string_lossy()).args(narrowing).args(without);
            let restricted = knows_restrict(psql.version);
            let psql = server.command(&psql, Some(database));
            return loader.archive_in_one(command, psql, rules, restricted, &schemas).await;
        }
        server.connect(Some(database)).await?.batch("create the schemas", &schemas).await?;
        let command = server
            .command(&tool, Some(database))
            .args(["--no-password", "--dbname"])
            .arg(conninfo(database))
            .args(narrowing)
            .args(without);
        if jobs <= 1 && proof.format == Format::Custom {
            return loader.archive_in_order(command).await;
        }
        let watched = pin!(self.watch_archive(server, proof, database, cx));
        let loaded = pin!(loader.archive_side_by_side(command, jobs));
        match select(loaded, watched).await {
            Either::Left((loaded, _)) => loaded,
            Either::Right((failure, _)) => Err(failure),
        }
    }

    /// How many connections load an archive: several where it can be sought in.
    fn archive_jobs(&self, storage: &Storage, proof: &Proof) -> Result<u32, Failure> {
        let seekable = proof.format == Format::Directory
            || (proof.format == Format::Custom
                && proof.compression == Compression::None
                && storage.local_path(&self.from.path)?.is_some());
        Ok(self.jobs.unwrap_or(if seekable { self.connections() as u32 } else { 1 }))
    }

    /// Counts the rows, compares them with the dump's, gathers statistics.
    pub(super) async fn count(
        &self,
        server: &Server,
        storage: &Storage,
        proof: &Proof,
        database: &str,
        cx: &RunCx,
    ) -> Result<Loaded, Failure> {
        let mut expected = self.chosen_rows(proof)?;
        if let Some(manifest) = proof.manifest.as_ref().filter(|_| self.is_whole()) {
            expected.extend(manifest.tables.iter().map(|(table, rows)| (table.clone(), *rows)));
        }
        let total = expected.len() as u64;
        let progress = |done, message| {
            let message = Some(message);
            cx.progress(Progress { done, total: Some(total), unit: ProgressUnit::Items, message });
        };
        let mut sessions = vec![server.connect(Some(database)).await?];
        while sessions.len() < self.connections().min(expected.len()) {
            sessions.push(server.connect(Some(database)).await?);
        }
        let rows =
            expect_rows(&sessions, &expected, &|done, table| progress(done, format!("counting {table}"))).await?;
        if self.analyze {
            progress(total, "ANALYZE".to_owned());
            analyze(&sessions).await?;
        }
        let taken_at = match &proof.manifest {
            Some(manifest) => Some(manifest.taken_at),
            None => taken_at(storage, &self.from.path).await?,
        };
        let tables =
            tables(&sessions[0]).await?.iter().filter(|table| !table.of_extension && !table.partitioned).count()
                as u64;
        Ok(Loaded { rows, tables, bytes: proof.object.bytes, taken_at: taken_at.map(|at| at.to_string()) })
    }
}

/// Whether what failed over several connections may succeed over one.
fn in_order_it_may(failure: &Failure, cx: &RunCx) -> bool {
    !cx.cancel.is_cancelled() && (!failure.transient || failure.message.contains("deadlock detected"))
}

/// Drops what an attempt left, also when this one was cancelled.
pub(super) async fn drop_working(server: &Server, session: &Session, name: &str) -> Result<(), Failure> {
    let attempted = format!("drop the half-filled database {name}");
    // They would keep it from being dropped. Without any nobody connects: what an interrupted DROP left takes nobody.
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_subscription s \
                 JOIN pg_catalog.pg_database d ON d.oid = s.subdbid WHERE d.datname = $1)";
    if session.row(&attempted, sql, &[&name]).await?.get(0) {
        drop_subscriptions(&server.detached().connect(Some(name)).await?).await?;
    }
    session.batch(attempted, &format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", ident(name))).await
}
