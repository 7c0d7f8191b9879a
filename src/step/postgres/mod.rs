//! The PostgreSQL step types, one file each, and what they share: how a database is
//! foreseen, how a dead attempt's sessions are ended, how names are checked.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::effect::Resource;
use super::world::Fact;
use super::{Certainty, Findings, Preview, PreviewCx, RunCx};
use crate::failure::Failure;
use crate::ids::StepId;
use crate::service::postgres::facts::{Activity, Database};
use crate::service::postgres::{Server, Session, name_parts, session_prefix};
use crate::units::Size;

pub mod backup;
pub mod base_backup;
pub mod copy_rows;
pub mod create_database;
pub mod drop_database;
pub mod execute;
pub mod export;
pub mod folder;
pub mod import;
mod once;
pub mod query;
pub mod recover_to;
pub mod remove_cluster;
pub mod replication;
pub mod restore;
pub mod restore_globals;
pub mod swap_databases;
pub mod verify;
pub mod verify_counts;
pub mod verify_rows;
pub mod wait_ready;

/// How long ended sessions may take to be gone.
const SESSIONS_GONE: Duration = Duration::from_secs(30);

/// The pause between two looks at something that is about to change.
const POLL: Duration = Duration::from_millis(100);

/// How many connections work for a step where the plan doesn't say: more gain nothing on most servers.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8)
}

/// A database as a preview foresees it.
#[derive(Debug)]
enum Outlook {
    /// Offline, and no earlier step says anything.
    Unseen,
    /// Not there: today, or because of a step.
    Absent { because: Option<StepId> },
    /// Not there today; a step brings it into being.
    Made { by: StepId, rows: Option<std::collections::BTreeMap<String, u64>> },
    /// There today, perhaps under another name, and perhaps changed by a step before.
    There { database: Box<Database>, renamed_by: Option<StepId>, changed_by: Option<StepId> },
}

impl Outlook {
    async fn of(cx: &PreviewCx<'_>, session: Option<&Session>, target: &str, name: &str) -> Result<Self, Failure> {
        let resource = Resource::database(target, name);
        let mut today = name.to_owned();
        let (mut renamed_by, mut changed_by) = (None, None);
        match cx.world.fact(&resource) {
            Some(foretold) => match &foretold.fact {
                Fact::Absent => return Ok(Self::Absent { because: Some(foretold.because.clone()) }),
                Fact::Present { rows } => {
                    return Ok(Self::Made { by: foretold.because.clone(), rows: rows.clone() });
                }
                Fact::RenamedFrom(other) => {
                    today = name_of(other, target).unwrap_or(name).to_owned();
                    renamed_by = Some(foretold.because.clone());
                }
                _ => changed_by = Some(foretold.because.clone()),
            },
            None => changed_by = cx.world.touching(&resource).map(|foretold| foretold.because.clone()),
        }
        let Some(session) = session else { return Ok(Self::Unseen) };
        Ok(match session.find_database(&today).await? {
            Some(database) => Self::There { database: Box::new(database), renamed_by, changed_by },
            None => Self::Absent { because: None },
        })
    }

    /// How sure a statement about the database is.
    fn certainty(&self) -> Certainty {
        match self {
            Self::Absent { because: None } | Self::There { renamed_by: None, changed_by: None, .. } => {
                Certainty::Observed
            }
            _ => Certainty::Assumed,
        }
    }
}

/// The database's name in `postgres:<target>/<name>`.
fn name_of<'a>(resource: &'a Resource, target: &str) -> Option<&'a str> {
    resource.as_str().strip_prefix("postgres:")?.strip_prefix(target)?.strip_prefix('/')
}

/// `because step drop removes it`, where a step is to blame.
fn blame(because: Option<&StepId>, does: &str) -> String {
    because.map_or_else(String::new, |step| format!(" (step `{step}` {does})"))
}

/// Where a reading step's preview may look.
enum ReadAt {
    /// Here, now: what it reads is as it will be.
    Now(Session, Certainty),
    /// Nowhere yet: a step before makes or changes it. Statements can be prepared on the
    /// database that has its name today, if there is one.
    Later { because: StepId, rows: Option<std::collections::BTreeMap<String, u64>>, rehearsal: Option<Session> },
    /// Offline.
    Unseen,
}

impl ReadAt {
    /// Where to look for what `database` of `target` will hold.
    ///
    /// # Errors
    /// The preview to answer with when it can't be read at all.
    async fn find(cx: &PreviewCx<'_>, target: &str, database: Option<&str>) -> Result<Self, Box<Preview>> {
        if cx.is_unknown("/target") || cx.is_unknown("/database") {
            return Ok(Self::Unseen);
        }
        let Some(services) = cx.services else { return Ok(Self::Unseen) };
        let failed = |failure| Box::new(Preview::failed(failure));
        if let Some(because) = yet_to_come(cx, target) {
            return Ok(Self::Later { because, rows: None, rehearsal: None });
        }
        let server = services.postgres(target).map_err(failed)?;
        let name = database.unwrap_or(server.default_database());
        let session = server.connect(None).await.map_err(failed)?;
        Ok(match Outlook::of(cx, Some(&session), target, name).await.map_err(failed)? {
            Outlook::Unseen => Self::Unseen,
            Outlook::Absent { because } => {
                let message =
                    format!("there is no database `{name}` on {target}{}", blame(because.as_ref(), "removes it"));
                return Err(failed(Failure::permanent(message).help("check the name, or the order of the steps")));
            }
            Outlook::Made { by, rows } => {
                let rehearsal = server.connect(Some(name)).await.ok();
                Self::Later { because: by, rows, rehearsal }
            }
            Outlook::There { database, renamed_by, changed_by } => {
                let session = server.connect(Some(&database.name)).await.map_err(failed)?;
                match (changed_by, renamed_by) {
                    (Some(because), _) => Self::Later { because, rows: None, rehearsal: Some(session) },
                    (None, Some(_)) => Self::Now(session, Certainty::Assumed),
                    (None, None) => Self::Now(session, Certainty::Observed),
                }
            }
        })
    }
}

/// The step before that brings the whole server into being.
fn yet_to_come(cx: &PreviewCx<'_>, target: &str) -> Option<StepId> {
    let foretold = cx.world.fact(&Resource::server(target))?;
    matches!(foretold.fact, Fact::Present { .. }).then(|| foretold.because.clone())
}

/// The resource that a statement's database is: the whole server where none is named.
fn database_resource(target: &str, database: Option<&str>) -> Resource {
    database.map_or_else(|| Resource::server(target), |database| Resource::database(target, database))
}

/// What a name must be to name a database that Lifeboat makes or removes.
fn check_database_name(found: &mut Findings, pointer: &str, name: &str) {
    if name.is_empty() || name.len() > 63 {
        found.add(pointer, format!("a database's name has 1 to 63 bytes, not {}", name.len()), None);
    } else if ["postgres", "template0", "template1"].contains(&name) {
        found.add(
            pointer,
            format!("`{name}` belongs to the server and is not touched"),
            Some("name the application's database".to_owned()),
        );
    }
}

/// The parts of `schema.table`.
fn table_of(name: &str) -> Result<[String; 2], String> {
    name_parts(name).ok_or_else(|| format!("`{name}` is not a table's name: write it as schema.table"))
}

/// `1.2 GiB, 3 sessions`.
fn size_and_sessions(database: &Database, sessions: &[Activity]) -> String {
    let size = database.size.map_or_else(|| "size unknown".to_owned(), |bytes| Size(bytes).to_string());
    let clients = sessions.iter().filter(|session| session.is_client).count();
    format!("{size}, {}", counted(clients as u64, "session"))
}

/// `1 session`, `3 sessions`.
fn counted(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Up to five by name, and how many more.
fn name_some(all: &[impl ToString]) -> String {
    let named = all.iter().take(5).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if all.len() > 5 { format!("{named} and {} more", all.len() - 5) } else { named }
}

/// Ends what dead attempts of this step left running, and waits until it is gone. In a
/// dry-run of a resume nothing is ended; what still runs is the answer then.
///
/// Call it with the only session that this step has: its others have the same name.
async fn end_leftovers(session: &Session, cx: &RunCx) -> Result<Option<String>, Failure> {
    let prefix = session_prefix(&cx.run, &cx.step);
    let deadline = Instant::now() + SESSIONS_GONE;
    loop {
        let left = session.sessions_named(&prefix).await?;
        if left.is_empty() {
            return Ok(None);
        }
        if cx.services.is_read_only() || Instant::now() > deadline {
            return Ok(Some(format!("sessions of an earlier attempt: {}", name_some(&left))));
        }
        for leftover in &left {
            terminate(session, leftover).await?;
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn terminate(session: &Session, other: &Activity) -> Result<(), Failure> {
    session.row(format!("end session {other}"), "SELECT pg_terminate_backend($1)", &[&other.pid]).await.map(drop)
}

/// The server's identity in a note, so that a resume notices when it talks to another server.
fn same_server(note: &Value, system: Option<&str>) -> Result<(), String> {
    match (note["system"].as_str(), system) {
        (Some(noted), Some(now)) if noted != now => {
            Err(format!("the target is another server now: the attempt ran on the cluster {noted}, this is {now}"))
        }
        _ => Ok(()),
    }
}

/// A note that a transaction is about to be committed.
fn transaction_note(system: Option<&str>, transaction: &str, more: Value) -> Value {
    let mut note = json!({ "system": system, "transaction": transaction });
    if let (Value::Object(note), Value::Object(more)) = (&mut note, more) {
        note.extend(more);
    }
    note
}

/// The server of a run's step.
fn server(cx: &RunCx, target: &str) -> Result<Server, Failure> {
    cx.services.postgres(target)
}
