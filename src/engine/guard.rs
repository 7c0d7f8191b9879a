//! Locks on what a run changes, so that a second run is refused and told who holds it.
//!
//! Databases are locked on their own server (an advisory lock, held by a session for
//! the whole run), so that other machines see it; other things by a file in the state
//! folder. Each dies with its process; none needs cleaning by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{Context, EngineError};
use crate::failure::Failure;
use crate::ids::RunId;
use crate::plan::{Known, Plan};
use crate::record::event::RunStatus;
use crate::record::lock::{FileLock, Holder, Refused};
use crate::record::state::Verdict;
use crate::service::postgres::{Server, Session};
use crate::step::effect::{Access, Effect, Resource, Role};

/// How long a lock that is held is asked for again: a killed holder's session may take a moment to end.
const PATIENCE: Duration = Duration::from_secs(2);

/// The locks of one run; dropping them lets them go.
#[derive(Debug, Default)]
pub(super) struct Guards {
    _files: Vec<FileLock>,
    servers: BTreeMap<String, ServerGuard>,
}

/// The locks on one PostgreSQL server's databases.
#[derive(Debug)]
struct ServerGuard {
    server: Server,
    run: RunId,
    locks: Vec<Lock>,
    /// None until the server can be reached: nobody else can lock on it before, either.
    session: Mutex<Option<Session>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Lock {
    /// What is locked, for people.
    resource: String,
    key: i64,
    shared: bool,
}

/// Who holds a database's lock.
struct Rival {
    pid: i32,
    application: String,
    text: String,
}

impl Guards {
    /// No locks, for questions that change nothing.
    pub(super) fn none() -> Self {
        Self::default()
    }

    /// Takes a lock on everything that the plan changes.
    ///
    /// # Errors
    /// When somebody else holds one, with who it is.
    pub(super) async fn acquire(cx: &Context, plan: &Plan, run: &RunId) -> Result<Self, EngineError> {
        let written: Vec<Effect> = effects(plan).into_iter().filter(|effect| effect.access.writes()).collect();
        let lasting = written.iter().filter(|effect| !makes_or_removes_server(effect));
        let on_servers: BTreeSet<Resource> = lasting.map(|effect| effect.resource.clone()).collect();
        let changed: BTreeSet<Resource> = written.into_iter().map(|effect| effect.resource).collect();
        claimed(cx, run, &changed)?;
        let files = changed.iter().filter_map(|resource| file_lock(cx, plan, run, resource).transpose());
        let files = files.collect::<Result<_, _>>()?;
        let mut guards = Self { _files: files, servers: BTreeMap::new() };
        for (target, locks) in databases(&on_servers) {
            // A target that can't be used fails its steps, with a better message than a lock's.
            let label = label(cx, run);
            let services = cx.services.for_attempt(&label, CancellationToken::new());
            let Ok(server) = services.postgres(&target) else { continue };
            let guard = ServerGuard { server, run: run.clone(), locks, session: Mutex::new(None) };
            if let Ok(session) = guard.server.connect(None).await {
                guard.lock(&session).await?;
                *guard.session.lock().await = Some(session);
            }
            guards.servers.insert(target, guard);
        }
        Ok(guards)
    }

    /// Makes sure, before an effect, that the locks on what it changes are held; takes
    /// again what a lost connection let go, and says so.
    ///
    /// # Errors
    /// When the server can't be reached, or somebody else has taken the lock.
    pub(super) async fn ensure(&self, effects: &[Effect]) -> Result<Option<String>, Failure> {
        let written = effects.iter().filter(|effect| effect.access.writes() && !makes_or_removes_server(effect));
        let targets: BTreeSet<_> =
            written.filter_map(|effect| database(&effect.resource)).map(|(at, _)| at).collect();
        let mut said = None;
        for guard in targets.iter().filter_map(|target| self.servers.get(*target)) {
            let mut held = guard.session.lock().await;
            if held.as_ref().is_some_and(|session| !session.is_closed()) {
                continue;
            }
            let lost = held.take().is_some();
            let session = guard.server.connect(None).await?;
            guard.lock(&session).await.map_err(|error| {
                let lost = if lost { "the lock's connection was lost, and " } else { "" };
                let failure = Failure::permanent(format!("{lost}{error}"));
                error.help().map_or(failure.clone(), |help| failure.help(help))
            })?;
            *held = Some(session);
            if lost {
                said = Some(format!(
                    "the connection that held the lock on {} was lost; it is locked again",
                    guard.server.target()
                ));
            }
        }
        Ok(said)
    }
}

/// A run that waits for a person holds its claim in the state store, not by a process:
/// what it changes is not changed by another one meanwhile. A no gives the claim up.
fn claimed(cx: &Context, run: &RunId, changed: &BTreeSet<Resource>) -> Result<(), EngineError> {
    for other in cx.store.runs()? {
        if &other.id == run || other.last_status() != Some(RunStatus::Waiting) {
            continue;
        }
        // A journal that can't be read is the business of those who look at that run.
        let Ok(state) = other.state() else { continue };
        let written = state.steps.iter().filter(|step| !step.is_done()).flat_map(|step| &step.header.effects);
        let mut written = written.filter(|effect| effect.access != Access::Read.as_str());
        let shared =
            written.find(|effect| changed.iter().any(|mine| mine.overlaps(&effect.resource.as_str().into())));
        let waits =
            state.waiting().find(|_| state.waiting().all(|(_, waiting)| waiting.verdict() != Verdict::Rejected));
        if let (Some(shared), Some((step, waiting))) = (shared, waits) {
            let (id, step) = (&other.id, &step.header.id);
            return Err(EngineError::Locked {
                resource: shared.resource.clone(),
                holder: format!(
                    "run {id}, whose step `{step}` waits for a person since {}",
                    waiting.since.strftime("%Y-%m-%d %H:%M:%SZ")
                ),
                look: format!(
                    "look at it with `lifeboat status {id}`; `lifeboat approve {id} {step}` and `lifeboat resume {id}` \
                     let it go on, `lifeboat reject {id} {step}` gives its claim up"
                ),
            });
        }
    }
    Ok(())
}

/// A server that a step makes or removes isn't there to be locked on: its folder is locked instead.
fn makes_or_removes_server(effect: &Effect) -> bool {
    matches!(effect.access, Access::Create | Access::Destroy)
        && database(&effect.resource).is_some_and(|(_, database)| database.is_none())
}

/// Whether an effect takes something away from those who use it.
pub(super) fn destroys(effect: &Effect) -> bool {
    effect.access == Access::Destroy || effect.role == Role::Displaces
}

/// What the plan's steps do, as far as it is known before the run.
pub(super) fn effects(plan: &Plan) -> Vec<Effect> {
    let known = Known::default();
    let rendered = plan.steps.iter().filter_map(|step| step.render(&known).ok());
    rendered.flat_map(|rendered| rendered.step.effects()).collect()
}

impl ServerGuard {
    async fn lock(&self, session: &Session) -> Result<(), EngineError> {
        for lock in &self.locks {
            let failed = |failure| EngineError::Lock { resource: lock.resource.clone(), failure };
            let deadline = tokio::time::Instant::now() + PATIENCE;
            loop {
                if lock.take(session).await.map_err(failed)? {
                    break;
                }
                let rival = lock.holder(session).await.map_err(failed)?;
                if let Some(rival) = &rival
                    && rival.application.starts_with(&prefix(&self.run))
                {
                    // This run's own session, of a process that died or a connection that was lost.
                    let end = "SELECT pg_catalog.pg_terminate_backend($1)";
                    session.rows("end the lock's old session", end, &[&rival.pid]).await.map_err(failed)?;
                }
                if tokio::time::Instant::now() >= deadline {
                    return Err(self.refused(lock, rival));
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        Ok(())
    }

    fn refused(&self, lock: &Lock, rival: Option<Rival>) -> EngineError {
        let (holder, look) = match rival {
            Some(Rival { pid, text, .. }) => {
                let look = format!(
                    "wait for it, or look: `SELECT * FROM pg_stat_activity WHERE pid = {pid}` on {}; the lock goes with \
                     that session",
                    self.server.host_and_port()
                );
                (text, look)
            }
            None => ("a session that has just ended".to_owned(), "try again".to_owned()),
        };
        EngineError::Locked { resource: lock.resource.clone(), holder, look }
    }
}

impl Lock {
    async fn take(&self, session: &Session) -> Result<bool, Failure> {
        let sql = if self.shared {
            "SELECT pg_catalog.pg_try_advisory_lock_shared($1)"
        } else {
            "SELECT pg_catalog.pg_try_advisory_lock($1)"
        };
        Ok(session.row(format!("lock {}", self.resource), sql, &[&self.key]).await?.get(0))
    }

    async fn holder(&self, session: &Session) -> Result<Option<Rival>, Failure> {
        let sql = "SELECT a.pid, coalesce(a.application_name, ''), coalesce(a.usename::text, 'somebody'), \
                          coalesce(host(a.client_addr), 'the server itself'), \
                          to_char(a.backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') \
                   FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
                   WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.pid <> pg_backend_pid() \
                     AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()) \
                     AND ((l.classid::bigint << 32) | l.objid::bigint) = $1 \
                   ORDER BY a.backend_start LIMIT 1";
        let row = session.maybe_row(format!("see who locks {}", self.resource), sql, &[&self.key]).await?;
        Ok(row.map(|row| {
            let (application, user, from): (String, String, String) = (row.get(1), row.get(2), row.get(3));
            // `lifeboat-lock:<run>:<user>@<host>`; a null start means that this role may not see it.
            let since: Option<String> = row.get(4);
            let who = match application.strip_prefix("lifeboat-lock:").and_then(|rest| rest.split_once(':')) {
                Some((run, person)) => format!("run {run} of {person}"),
                None => format!("`{application}`"),
            };
            let since = since.map(|since| format!(", since {since}Z")).unwrap_or_default();
            let text = format!("{who} (role {user}, from {from}{since})");
            Rival { pid: row.get(0), application, text }
        }))
    }
}

/// `(target, database)` of a PostgreSQL resource; no database when it is the whole server.
fn database(resource: &Resource) -> Option<(&str, Option<&str>)> {
    let rest = resource.as_str().strip_prefix("postgres:")?;
    Some(match rest.split_once('/') {
        Some((target, below)) => (target, below.split('/').next()),
        None => (rest, None),
    })
}

/// The locks for the databases among these resources, by target. Whoever changes a whole
/// server, or what is not named yet, excludes all others; changing a database is shared there.
fn databases(changed: &BTreeSet<Resource>) -> BTreeMap<String, Vec<Lock>> {
    let mut found: BTreeMap<String, BTreeSet<Option<&str>>> = BTreeMap::new();
    for (target, database) in changed.iter().filter_map(database) {
        let named = database.filter(|database| !database.contains('‹'));
        found.entry(target.to_owned()).or_default().insert(named);
    }
    let locks = |target: &str, names: BTreeSet<Option<&str>>| {
        let server =
            Lock { resource: format!("postgres:{target}"), key: key("server"), shared: !names.contains(&None) };
        let databases = names.into_iter().flatten().map(|name| Lock {
            resource: format!("postgres:{target}/{name}"),
            key: key(&format!("database {name}")),
            shared: false,
        });
        std::iter::once(server).chain(databases).collect()
    };
    found
        .into_iter()
        .map(|(target, names)| {
            let locks = locks(&target, names);
            (target, locks)
        })
        .collect()
}

/// A lock's number on the server: the same from every machine, whatever its target is called there.
pub(super) fn key(what: &str) -> i64 {
    let digest = Sha256::digest(format!("lifeboat lock: {what}"));
    digest.iter().take(8).fold(0, |key, byte| (key << 8) | i64::from(*byte))
}

fn prefix(run: &RunId) -> String {
    format!("lifeboat-lock:{run}:")
}

/// The lock session's name; the server cuts it to 63 bytes.
fn label(cx: &Context, run: &RunId) -> String {
    format!("{}{}@{}", prefix(run), cx.by.user, cx.by.host)
}

fn file_lock(cx: &Context, plan: &Plan, run: &RunId, resource: &Resource) -> Result<Option<FileLock>, EngineError> {
    let Some((kind, name)) = resource.as_str().split_once(':') else { return Ok(None) };
    if !["container", "object", "file", "cluster"].contains(&kind) || name.contains('‹') {
        return Ok(None);
    }
    // The same name on another engine or storage is another thing.
    let target = name.split('/').next().and_then(|target| plan.environment.targets.get(target));
    let place = serde_json::to_string(&target).unwrap_or_default();
    let digest = Sha256::digest(format!("{place} {resource}"));
    let file = digest.iter().take(12).fold(kind.to_owned() + "-", |file, byte| format!("{file}{byte:02x}"));
    let holder = Holder { by: cx.by.clone(), run: run.to_string(), since: cx.now() };
    match cx.store.resource_lock(&file, &holder) {
        Ok(lock) => Ok(Some(lock)),
        Err(Refused::Held(holder)) => {
            let run = holder.as_ref().map(|holder| holder.run.clone()).unwrap_or_default();
            Err(EngineError::Locked {
                resource: resource.to_string(),
                holder: holder.map_or_else(|| "another process".to_owned(), |holder| holder.describe()),
                look: format!("wait for it, or look at it with `lifeboat status {run}`"),
            })
        }
        Err(Refused::Io(error)) => Err(EngineError::Lock {
            resource: resource.to_string(),
            failure: Failure::permanent(error.to_string()).help("make the state folder writable"),
        }),
    }
}
