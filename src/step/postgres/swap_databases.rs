//! `postgres.swap_databases`: puts one database in another's place, behind a fence.
//!
//! The fence (`ALLOW_CONNECTIONS false` on both) comes first, then sessions are ended:
//! ended alone, a reconnecting pool is back before the rename. Both renames, all that is
//! carried over and the reopening are one transaction, so there is no state between. What
//! is carried over is in [`carry`], the preview in [`foresee`]. Until that transaction, giving up reopens the fence.

use std::collections::BTreeMap;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

use super::{
    POLL, SESSIONS_GONE, check_database_name, end_leftovers, name_some, same_server, server, terminate,
    transaction_note,
};
use crate::failure::Failure;
use crate::ids::RunId;
use crate::record::event::{Progress, ProgressUnit};
use crate::service::postgres::facts::{Activity, Database};
use crate::service::postgres::{Server, Session, ident, literal};
use crate::step::effect::{Access, Effect, Resource, Role};
use crate::step::{
    AfterKill, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind, output,
};

mod carry;
mod foresee;

/// Puts one database in another's place; the old one is kept under a new name.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SwapDatabases {
    /// The server.
    #[schemars(extend("x-target" = "postgres"))]
    target: String,
    /// The database that clients use, by the name that they use.
    #[schemars(length(min = 1, max = 63))]
    live: String,
    /// The database that takes its place.
    #[schemars(length(min = 1, max = 63))]
    replacement: String,
    /// The old one's new name; by default `<live>_before_<run>`. It takes connections again
    /// under that name as it did before.
    #[schemars(length(min = 1, max = 63))]
    keep: Option<String>,
}

impl StepType for SwapDatabases {
    const NAME: &'static str = "postgres.swap_databases";
    const SUMMARY: &'static str = "Puts a database in another's place, behind a fence and in one transaction.";
    const AFTER_KILL: &'static str = "the databases' oids tell; an abandoned fence is reopened";

    fn outputs() -> Vec<Output> {
        vec![output("kept", ValueKind::String, "The name under which the old database is kept.")]
    }
}

/// How a database stands behind the fence.
const FENCED: &str = "fenced: takes no connections";

/// What an attempt notes before it closes the fence: who is who, and how the doors stood.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Noted {
    system: Option<String>,
    live: Door,
    replacement: Door,
    /// What stands of both should the attempt be cut off behind the fence.
    #[serde(default)]
    leaves: BTreeMap<String, String>,
}

/// A database by its oid, and whether it took connections before.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Door {
    oid: u32,
    open: bool,
}

/// What the oids say.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    Swapped,
    NotSwapped,
    Otherwise(String),
}

#[async_trait]
impl Step for SwapDatabases {
    fn effects(&self) -> Vec<Effect> {
        let resource = |name: &str| Resource::database(&self.target, name);
        let kept = self.keep.clone().unwrap_or_else(|| format!("{}_before_‹run.id›", self.live));
        vec![
            Effect::new(Access::Change, resource(&self.live)).role(Role::Displaces).leaves("another database now"),
            Effect::new(Access::Change, resource(&self.replacement)).leaves("gone: it has the live one's name"),
            Effect::new(Access::Create, resource(&kept)).leaves("the one that was live before"),
        ]
    }

    fn check(&self, found: &mut Findings) {
        check_database_name(found, "/live", &self.live);
        check_database_name(found, "/replacement", &self.replacement);
        if self.live == self.replacement {
            found.add("/replacement", "a database can't replace itself", None);
        }
        if let Some(keep) = &self.keep {
            check_database_name(found, "/keep", keep);
            if *keep == self.live || *keep == self.replacement {
                found.add("/keep", "the old database needs a name of its own", None);
            }
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        self.foresee(cx).await.unwrap_or_else(Preview::failed)
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let server = server(cx, &self.target)?;
        self.refuse_own(&server)?;
        let session = server.connect(None).await?;
        let system = session.server_facts().await?.system_identifier;
        let kept = self.kept_name(&cx.run);
        let before = noted(cx);
        if let Some(before) = &before {
            same_server(&json!({ "system": before.system }), system.as_deref()).map_err(Failure::permanent)?;
            match self.standing(&session, before, &kept).await? {
                // A database of the replacement's name is a new one, restored since, to be swapped in.
                Standing::Swapped if session.find_database(&self.replacement).await?.is_none() => {
                    return Ok(self.done(&kept));
                }
                Standing::Swapped | Standing::NotSwapped => {}
                Standing::Otherwise(what) => return Err(Failure::permanent(format!("swap databases: {what}"))),
            }
        }
        let (live, replacement) = self.both(&session, &kept).await?;
        // The fence of an attempt before may be closed still: how it found the doors counts.
        let doors = before.iter().flat_map(|noted| [noted.live, noted.replacement]).collect::<Vec<_>>();
        let door = |database: &Database| {
            let before = doors.iter().find(|door| door.oid == database.oid).copied();
            before.unwrap_or(Door { oid: database.oid, open: database.allow_connections })
        };
        let leaves = [&self.live, &self.replacement]
            .map(|name| (Resource::database(&self.target, name).to_string(), FENCED.to_owned()));
        let note = Noted { system, live: door(&live), replacement: door(&replacement), leaves: leaves.into() };
        cx.note(json!(note)).await?;
        match self.fence_and_swap(cx, &session, &note, (&live, &replacement), &kept).await {
            Ok(()) => Ok(self.done(&kept)),
            Err(failure) => self.recover(&server, &note, &kept, failure).await,
        }
    }

    async fn after_kill(&self, cx: &RunCx) -> Result<AfterKill, Failure> {
        let session = server(cx, &self.target)?.connect(None).await?;
        let system = session.server_facts().await?.system_identifier;
        let Some(note) = noted(cx) else {
            return Ok(AfterKill::DidNotHappen { why: "the attempt ended before it closed the fence".to_owned() });
        };
        if let Err(why) = same_server(&json!({ "system": note.system }), system.as_deref()) {
            return Ok(AfterKill::CannotTell { why });
        }
        if let Some(what) = end_leftovers(&session, cx).await? {
            return Ok(AfterKill::StillGoing { what });
        }
        let kept = self.kept_name(&cx.run);
        Ok(match self.standing(&session, &note, &kept).await? {
            Standing::Swapped => AfterKill::Happened(self.done(&kept)),
            Standing::NotSwapped => {
                let fence = if cx.services.is_read_only() {
                    "the fence is reopened when the run goes on"
                } else if reopen(&session, &note).await? {
                    "its abandoned fence was reopened"
                } else {
                    "the fence is open"
                };
                let why = format!("oid {} is still called {}; {fence}", note.live.oid, self.live);
                AfterKill::DidNotHappen { why }
            }
            Standing::Otherwise(why) => AfterKill::CannotTell { why },
        })
    }
}

impl SwapDatabases {
    /// The old database's new name, cut so that the run's id always fits.
    fn kept_name(&self, run: &RunId) -> String {
        self.keep.clone().unwrap_or_else(|| {
            let ending = format!("_before_{run}");
            let room = self.live.floor_char_boundary(63usize.saturating_sub(ending.len()));
            format!("{}{ending}", &self.live[..room])
        })
    }

    fn done(&self, kept: &str) -> Done {
        Done::new(format!("{} took the place of {}, kept as {kept}", self.replacement, self.live))
            .output("kept", kept)
    }

    async fn both(&self, session: &Session, kept: &str) -> Result<(Database, Database), Failure> {
        let missing = |name: &str| {
            Failure::permanent(format!("swap databases on {}: there is no database {name}", self.target))
                .help("check the names, and that the step that restores it succeeded")
        };
        let live = session.find_database(&self.live).await?.ok_or_else(|| missing(&self.live))?;
        let replacement =
            session.find_database(&self.replacement).await?.ok_or_else(|| missing(&self.replacement))?;
        if session.find_database(kept).await?.is_some() {
            return Err(Failure::permanent(format!(
                "swap databases on {}: there is a database {kept} already",
                self.target
            ))
            .help("drop it in a step before (postgres.drop_database), or give another name as `keep`"));
        }
        for database in [&live, &replacement] {
            if database.is_half_dropped() {
                return Err(Failure::permanent(format!("database {} is half dropped", database.name))
                    .help("drop it (postgres.drop_database) and restore it again"));
            }
            if let Some(blocker) = session.blockers(&database.name).await?.first() {
                return Err(Failure::permanent(format!(
                    "{} `{}` keeps database {} from being renamed",
                    blocker.kind, blocker.name, database.name
                ))
                .help(format!("judge it, then: {}", blocker.remedy)));
            }
        }
        Ok((live, replacement))
    }

    async fn fence_and_swap(
        &self,
        cx: &RunCx,
        session: &Session,
        note: &Noted,
        (live, replacement): (&Database, &Database),
        kept: &str,
    ) -> Result<(), Failure> {
        progress(cx, 0, "closing the fence");
        let fence = [live, replacement].map(|database| allow_connections(&database.name, false)).join("; ");
        session.batch("close the fence", &fence).await?;
        progress(cx, 1, "ending sessions");
        end_sessions(session, [live.oid, replacement.oid]).await?;
        progress(cx, 2, "renaming");
        let carried = carry::statements(session, live, replacement).await?;
        session.batch("begin", "BEGIN").await?;
        let transaction: String = session.row("begin", "SELECT pg_current_xact_id()::text", &[]).await?.get(0);
        let rename = format!(
            "ALTER DATABASE {} RENAME TO {}; ALTER DATABASE {} RENAME TO {}",
            ident(&self.live),
            ident(kept),
            ident(&self.replacement),
            ident(&self.live)
        );
        session.batch(format!("rename {} and {}", self.live, self.replacement), &rename).await?;
        for sql in carried {
            session.batch(format!("carry over to {}: {sql}", self.live), &sql).await?;
        }
        let marker = format!("kept by lifeboat run {} step {}: it was {}", cx.run, cx.step, self.live);
        let marker = live.comment.as_ref().map_or(marker.clone(), |comment| format!("{marker}\n{comment}"));
        let finish = [
            format!("COMMENT ON DATABASE {} IS {}", ident(kept), literal(&marker)),
            allow_connections(kept, note.live.open),
            allow_connections(&self.live, note.live.open),
        ];
        session.batch("mark and reopen the databases", &finish.join("; ")).await?;
        cx.note(transaction_note(note.system.as_deref(), &transaction, json!(note))).await?;
        session.batch("commit the swap", "COMMIT").await
    }

    /// After a failure: finds out whether the swap was committed all the same, and reopens the fence.
    /// Works on a session that outlives the step's cancellation.
    async fn recover(&self, server: &Server, note: &Noted, kept: &str, failure: Failure) -> Result<Done, Failure> {
        let closed = |error: &Failure| {
            failure.clone().help(format!(
                "the fence may be closed ({error}); reopen it with: {}; {}",
                allow_connections(&self.live, note.live.open),
                allow_connections(&self.replacement, note.replacement.open)
            ))
        };
        let attempt = async {
            let session = server.detached().connect(None).await?;
            // The failed attempt's session may be in its transaction still.
            let deadline = Instant::now() + SESSIONS_GONE;
            while !others(&session, server.label()).await?.is_empty() && Instant::now() < deadline {
                for left in others(&session, server.label()).await? {
                    terminate(&session, &left).await?;
                }
                tokio::time::sleep(POLL).await;
            }
            let standing = self.standing(&session, note, kept).await?;
            if standing != Standing::Swapped {
                reopen(&session, note).await?;
            }
            Ok(standing)
        };
        match attempt.await {
            Ok(Standing::Swapped) => Ok(self.done(kept)),
            Ok(_) => Err(failure),
            Err(error) => Err(closed(&error)),
        }
    }

    async fn standing(&self, session: &Session, note: &Noted, kept: &str) -> Result<Standing, Failure> {
        let live = session.find_database_by_oid(note.live.oid).await?.map(|database| database.name);
        let replacement = session.find_database_by_oid(note.replacement.oid).await?.map(|database| database.name);
        let said = |name: &Option<String>| name.clone().unwrap_or_else(|| "gone".to_owned());
        Ok(match (live.as_deref(), replacement.as_deref()) {
            (Some(live), Some(replacement)) if live == kept && replacement == self.live => Standing::Swapped,
            (Some(live), _) if live == self.live => Standing::NotSwapped,
            _ => Standing::Otherwise(format!(
                "the old database (oid {}) is {}, the replacement (oid {}) is {}: look with \
                 `SELECT oid, datname, datallowconn FROM pg_database` and mark the step by hand",
                note.live.oid,
                said(&live),
                note.replacement.oid,
                said(&replacement)
            )),
        })
    }

    fn refuse_own(&self, server: &Server) -> Result<(), Failure> {
        let own = &server.settings().maintenance_database;
        if *own == self.live || *own == self.replacement {
            return Err(Failure::permanent(format!(
                "database {own} is the one that Lifeboat connects to for this work"
            ))
            .help("set the target's `maintenance_database` to another one"));
        }
        Ok(())
    }
}

/// The first note of the latest attempt that got so far: the doors as they stood before any fence.
fn noted(cx: &RunCx) -> Option<Noted> {
    cx.notes.iter().find_map(|(_, note)| serde_json::from_value(note.clone()).ok())
}

fn allow_connections(database: &str, open: bool) -> String {
    format!("ALTER DATABASE {} ALLOW_CONNECTIONS {open}", ident(database))
}

/// Reopens what a fence closed, whatever the databases are called now. Says whether it had to.
async fn reopen(session: &Session, note: &Noted) -> Result<bool, Failure> {
    let mut had_to = false;
    for door in [note.live, note.replacement] {
        if let Some(database) = session.find_database_by_oid(door.oid).await?
            && database.allow_connections != door.open
        {
            session
                .batch(format!("reopen database {}", database.name), &allow_connections(&database.name, door.open))
                .await?;
            had_to = true;
        }
    }
    Ok(had_to)
}

/// Ends all sessions on the databases and waits until they are gone. Autovacuum's workers
/// are left alone: the rename itself ends them.
async fn end_sessions(session: &Session, databases: [u32; 2]) -> Result<(), Failure> {
    let deadline = Instant::now() + SESSIONS_GONE;
    loop {
        let mut left: Vec<Activity> = Vec::new();
        for oid in databases {
            left.extend(session.sessions_on(oid).await?);
        }
        left.retain(|session| session.state != "autovacuum worker");
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Failure::transient(format!("sessions that don't end: {}", name_some(&left))));
        }
        for other in &left {
            terminate(session, other).await?;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The sessions of this very attempt, but this one.
async fn others(session: &Session, label: &str) -> Result<Vec<Activity>, Failure> {
    session.sessions_named(&crate::service::postgres::application_name(label)).await
}

fn progress(cx: &RunCx, done: u64, message: &str) {
    let message = Some(message.to_owned());
    cx.progress(Progress { done, total: Some(3), unit: ProgressUnit::Items, message });
}
