//! `postgres.drop_database`: removes a database, and knows by its oid whether it is gone.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Outlook, blame, check_database_name, end_leftovers, name_some, same_server, server, size_and_sessions,
};
use crate::failure::Failure;
use crate::service::postgres::facts::Database;
use crate::service::postgres::{Server, Session, ident};
use crate::step::effect::{Access, Effect, Resource, Role};
use crate::step::world::Fact;
use crate::step::{Action, AfterKill, Done, Findings, Preview, PreviewCx, RunCx, Step, StepType};

/// Removes a database.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DropDatabase {
    /// The server.
    #[schemars(extend("x-target" = "postgres"))]
    target: String,
    /// The database. Never `postgres` or a template.
    #[schemars(length(min = 1, max = 63))]
    database: String,
    /// End the sessions on it; without, a session is a failure.
    #[serde(default)]
    force: bool,
    /// What to do when it doesn't exist.
    #[serde(default)]
    if_missing: IfMissing,
}

/// What to do when the database doesn't exist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum IfMissing {
    /// That is what was wanted.
    #[default]
    Ok,
    /// Fail.
    Fail,
}

impl StepType for DropDatabase {
    const NAME: &'static str = "postgres.drop_database";
    const SUMMARY: &'static str = "Removes a database.";
    const AFTER_KILL: &'static str = "happened if the noted oid is gone; a half-dropped database is dropped again";
}

#[async_trait]
impl Step for DropDatabase {
    fn effects(&self) -> Vec<Effect> {
        let database = Resource::database(&self.target, &self.database);
        vec![Effect::new(Access::Destroy, database).role(Role::Displaces).leaves("dropped")]
    }

    fn check(&self, found: &mut Findings) {
        check_database_name(found, "/database", &self.database);
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        match self.foresee(cx).await {
            Ok(preview) | Err(preview) => {
                preview.fact(Resource::database(&self.target, &self.database), Fact::Absent)
            }
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let server = server(cx, &self.target)?;
        self.refuse_own(&server)?;
        let session = server.connect(None).await?;
        let system = session.server_facts().await?.system_identifier;
        let noted = cx.notes.last().map(|(_, note)| note);
        if let Some(note) = noted {
            same_server(note, system.as_deref()).map_err(Failure::permanent)?;
        }
        let database = session.find_database(&self.database).await?;
        // The one that an attempt before was about to drop is gone; another one of its
        // name isn't this step's to drop.
        let dropped_before =
            noted.and_then(noted_oid).is_some_and(|oid| database.as_ref().is_none_or(|now| now.oid != oid));
        let Some(database) = database.filter(|_| !dropped_before) else {
            return match self.if_missing {
                _ if dropped_before => Ok(self.done("dropped by the attempt before")),
                IfMissing::Ok => Ok(self.done("did not exist")),
                IfMissing::Fail => Err(self.missing()),
            };
        };
        cx.note(json!({ "system": system, "oid": database.oid })).await?;
        if !self.force && !database.is_half_dropped() {
            let sessions = session.sessions_on(database.oid).await?;
            let clients: Vec<_> = sessions.into_iter().filter(|session| session.is_client).collect();
            if !clients.is_empty() {
                return Err(Failure::transient(format!(
                    "drop database {} on {}: in use by {}",
                    self.database,
                    self.target,
                    name_some(&clients)
                ))
                .help("stop its clients in a step before, or set `force: true` to end their sessions"));
            }
        }
        let force = if self.force { " WITH (FORCE)" } else { "" };
        let sql = format!("DROP DATABASE {}{force}", ident(&self.database));
        session.batch(format!("drop database {}", self.database), &sql).await?;
        Ok(self.done("dropped"))
    }

    async fn after_kill(&self, cx: &RunCx) -> Result<AfterKill, Failure> {
        let session = server(cx, &self.target)?.connect(None).await?;
        let system = session.server_facts().await?.system_identifier;
        let Some((_, note)) = cx.notes.last() else {
            return Ok(AfterKill::DidNotHappen { why: "the attempt ended before it asked the server".to_owned() });
        };
        if let Err(why) = same_server(note, system.as_deref()) {
            return Ok(AfterKill::CannotTell { why });
        }
        if let Some(what) = end_leftovers(&session, cx).await? {
            return Ok(AfterKill::StillGoing { what });
        }
        let Some(oid) = noted_oid(note) else {
            return Ok(AfterKill::CannotTell { why: "the attempt's note has no oid".to_owned() });
        };
        Ok(match session.find_database_by_oid(oid).await? {
            None => AfterKill::Happened(self.done(&format!("oid {oid} is gone"))),
            Some(database) if database.is_half_dropped() => AfterKill::Partly {
                what: format!("database {} is half dropped and takes no connections", self.database),
            },
            Some(_) => AfterKill::DidNotHappen { why: format!("database {} (oid {oid}) is there", self.database) },
        })
    }
}

impl DropDatabase {
    /// The preview; as an error where nothing more can be said.
    async fn foresee(&self, cx: &PreviewCx<'_>) -> Result<Preview, Preview> {
        let dropped = Preview::from_effects(&self.effects(), format!("drop database {}", self.database));
        let (server, session) = match cx.services {
            Some(services) => {
                let server = services.postgres(&self.target).map_err(Preview::failed)?;
                self.refuse_own(&server).map_err(Preview::failed)?;
                let session = server.connect(None).await.map_err(Preview::failed)?;
                (Some(server), Some(session))
            }
            None => (None, None),
        };
        let outlook =
            Outlook::of(cx, session.as_ref(), &self.target, &self.database).await.map_err(Preview::failed)?;
        let certainty = outlook.certainty();
        match outlook {
            Outlook::Unseen | Outlook::Made { .. } => Ok(dropped),
            Outlook::Absent { because } if self.if_missing == IfMissing::Ok => {
                let summary =
                    format!("database {} does not exist{}", self.database, blame(because.as_ref(), "removes it"));
                Ok(Preview::new(Action::None, certainty, summary))
            }
            Outlook::Absent { because } => {
                let message =
                    format!("there is no database {}{}", self.database, blame(because.as_ref(), "removes it"));
                Ok(dropped.blocked(message, "set `if_missing: ok` if that is fine".to_owned()))
            }
            Outlook::There { database, .. } => {
                let dropped = Preview { certainty, ..dropped };
                let (Some(server), Some(session)) = (&server, &session) else { return Ok(dropped) };
                self.prove(cx, server, session, &database, dropped).await.map_err(Preview::failed)
            }
        }
    }

    /// Adds size and sessions, and what would keep the server from doing it.
    async fn prove(
        &self,
        cx: &PreviewCx<'_>,
        server: &Server,
        session: &Session,
        database: &Database,
        mut preview: Preview,
    ) -> Result<Preview, Failure> {
        let sessions = session.sessions_on(database.oid).await?;
        preview.summary = format!("drop database {} ({})", self.database, size_and_sessions(database, &sessions));
        if !database.owned {
            preview = preview.blocked(
                format!("role {} does not own database {} ({} does)", server.user(), self.database, database.owner),
                "use the owner or a superuser in the target's url".to_owned(),
            );
        }
        if database.is_template {
            preview = preview.blocked(
                format!("database {} is a template", self.database),
                format!("ALTER DATABASE {} IS_TEMPLATE false", ident(&self.database)),
            );
        }
        for blocker in session.blockers(&database.name).await? {
            preview = preview.blocked(
                format!("{} `{}` keeps database {} from being dropped", blocker.kind, blocker.name, self.database),
                blocker.remedy,
            );
        }
        let clients: Vec<_> = sessions.into_iter().filter(|session| session.is_client).collect();
        if !self.force && !clients.is_empty() {
            let message = format!("database {} is in use by {}", self.database, name_some(&clients));
            let help = "stop its clients in a step before, or set `force: true` to end their sessions".to_owned();
            preview = if client_will_stop(cx, server) {
                preview.warning(message, help)
            } else {
                preview.blocked(message, help)
            };
        }
        Ok(preview)
    }

    /// The database that Lifeboat itself works from can't go.
    fn refuse_own(&self, server: &Server) -> Result<(), Failure> {
        if self.database == server.settings().maintenance_database {
            return Err(Failure::permanent(format!(
                "database {} is the one that Lifeboat connects to for this work",
                self.database
            ))
            .help("set the target's `maintenance_database` to another one"));
        }
        Ok(())
    }

    fn missing(&self) -> Failure {
        Failure::permanent(format!("drop database {} on {}: it does not exist", self.database, self.target))
            .help("set `if_missing: ok` if that is fine")
    }

    fn done(&self, how: &str) -> Done {
        Done::new(format!("database {}: {how}", self.database))
    }
}

fn noted_oid(note: &Value) -> Option<u32> {
    note["oid"].as_u64().and_then(|oid| u32::try_from(oid).ok())
}

/// Whether a step before stops a declared client of the server.
fn client_will_stop(cx: &PreviewCx<'_>, server: &Server) -> bool {
    server.settings().clients.iter().any(|client| {
        let resource = client.split_once('/').map(|(target, container)| Resource::container(target, container));
        resource
            .and_then(|resource| cx.world.fact(&resource))
            .is_some_and(|foretold| foretold.fact == Fact::Stopped)
    })
}
