//! `postgres.create_database`: brings an empty database into being.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::{Outlook, blame, check_database_name, end_leftovers, same_server, server, yet_to_come};
use crate::dump::manifest::Manifest;
use crate::failure::Failure;
use crate::service::Services;
use crate::service::postgres::{Session, ident, literal};
use crate::step::effect::{Access, Effect, Resource};
use crate::step::storage::Place;
use crate::step::world::Fact;
use crate::step::{
    Action, AfterKill, Certainty, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind,
    output,
};

/// Creates an empty database.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateDatabase {
    /// The server.
    #[schemars(extend("x-target" = "postgres"))]
    target: String,
    /// The new database.
    #[schemars(length(min = 1, max = 63))]
    database: String,
    /// Its owner; by default the connecting role.
    owner: Option<String>,
    /// What it is copied from.
    #[serde(default = "template")]
    template: String,
    /// Its encoding, as `UTF8`; by default the template's.
    encoding: Option<String>,
    /// Its collation and character classification, as `C.UTF-8`; by default the template's.
    locale: Option<String>,
    /// A backup by `postgres.backup`, whose database's encoding and locale it gets.
    like: Option<Place>,
    /// What to do when it exists.
    #[serde(default)]
    if_exists: IfExists,
}

/// What to do when the database exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum IfExists {
    /// Fail: whatever it holds isn't this plan's.
    #[default]
    Fail,
    /// Keep it as it is.
    Keep,
}

fn template() -> String {
    "template0".to_owned()
}

impl StepType for CreateDatabase {
    const NAME: &'static str = "postgres.create_database";
    const SUMMARY: &'static str = "Creates an empty database.";
    const AFTER_KILL: &'static str = "happened if it exists now and was noted as absent before";

    fn outputs() -> Vec<Output> {
        vec![output("oid", ValueKind::Integer, "The database's oid.")]
    }
}

#[async_trait]
impl Step for CreateDatabase {
    fn effects(&self) -> Vec<Effect> {
        vec![Effect::new(Access::Create, Resource::database(&self.target, &self.database))]
    }

    fn check(&self, found: &mut Findings) {
        check_database_name(found, "/database", &self.database);
        if self.like.is_some() && (self.encoding.is_some() || self.locale.is_some()) {
            found.add("/like", "`like` says the encoding and the locale", "leave out either".to_owned());
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let created = Preview::from_effects(&self.effects(), format!("create database {}", self.database))
            .fact(Resource::database(&self.target, &self.database), Fact::Present { rows: None });
        if let (Some(services), Some(_), false) = (cx.services, &self.like, cx.is_unknown("/like"))
            && let Err(failure) = self.sql(services).await
        {
            return created.blocked(failure.message, failure.help);
        }
        let session = match cx.services.filter(|_| yet_to_come(cx, &self.target).is_none()) {
            Some(services) => match connect(services, &self.target).await {
                Ok(session) => Some(session),
                Err(failure) => return Preview::failed(failure),
            },
            None => None,
        };
        let outlook = match Outlook::of(cx, session.as_ref(), &self.target, &self.database).await {
            Ok(outlook) => outlook,
            Err(failure) => return Preview::failed(failure),
        };
        let certainty = outlook.certainty();
        let created = match outlook {
            Outlook::Unseen => created,
            Outlook::Absent { .. } => Preview { certainty, ..created },
            Outlook::Made { .. } | Outlook::There { .. } if self.if_exists == IfExists::Keep => {
                let kept =
                    Preview::new(Action::None, certainty, format!("database {} exists: kept", self.database));
                return match outlook {
                    Outlook::There { database, .. } => kept.output("oid", database.oid),
                    _ => kept,
                };
            }
            Outlook::Made { by, .. } => {
                return created.blocked(
                    format!("database {} will exist{}", self.database, blame(Some(&by), "creates it")),
                    "leave one of the steps out, or set `if_exists: keep`".to_owned(),
                );
            }
            Outlook::There { .. } => {
                return created.blocked(
                    format!("database {} exists on {}", self.database, self.target),
                    "drop it in a step before (postgres.drop_database), name another one, or set `if_exists: keep`"
                        .to_owned(),
                );
            }
        };
        match &session {
            Some(session) => self.prove(session, created).await.unwrap_or_else(Preview::failed),
            None => created,
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let session = server(cx, &self.target)?.connect(None).await?;
        let system = session.server_facts().await?.system_identifier;
        if let Some(database) = session.find_database(&self.database).await? {
            // An attempt whose answer was lost made it.
            let ours = cx
                .notes
                .last()
                .is_some_and(|(_, note)| note["absent"] == true && same_server(note, system.as_deref()).is_ok());
            return match self.if_exists {
                _ if ours => Ok(self.done(database.oid, "created by the attempt before")),
                IfExists::Keep => Ok(self.done(database.oid, "existed: kept")),
                IfExists::Fail => Err(Failure::permanent(format!(
                    "create database {} on {}: it exists (oid {})",
                    self.database, self.target, database.oid
                ))
                .help(
                    "drop it in a step before (postgres.drop_database), name another one, or set `if_exists: keep`",
                )),
            };
        }
        let sql = self.sql(&cx.services).await?;
        cx.note(json!({ "system": system, "absent": true })).await?;
        session.batch(format!("create database {}", self.database), &sql).await?;
        let oid = session.find_database(&self.database).await?.map(|database| database.oid).ok_or_else(|| {
            Failure::permanent(format!("create database {}: it was created and is gone again", self.database))
        })?;
        Ok(self.done(oid, "created"))
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
        Ok(match session.find_database(&self.database).await? {
            Some(database) => AfterKill::Happened(self.done(database.oid, "it exists and did not before")),
            None => AfterKill::DidNotHappen { why: format!("there is no database {}", self.database) },
        })
    }
}

impl CreateDatabase {
    async fn sql(&self, services: &Services) -> Result<String, Failure> {
        let manifest = match &self.like {
            Some(Place { storage, path }) => {
                let storage = services.storage(storage)?;
                let manifest = Manifest::load(&storage, path).await?.ok_or_else(|| {
                    Failure::permanent(format!("`{path}` has no manifest that says its encoding and locale"))
                        .help("name a backup of postgres.backup, or say `encoding` and `locale`")
                })?;
                Some(manifest)
            }
            None => None,
        };
        let mut sql = format!("CREATE DATABASE {} TEMPLATE {}", ident(&self.database), ident(&self.template));
        let options = [
            self.owner.as_deref().map(|owner| format!(" OWNER {}", ident(owner))),
            self.encoding.as_deref().map(|encoding| format!(" ENCODING {}", literal(encoding))),
            self.locale.as_deref().map(|locale| format!(" LOCALE {}", literal(locale))),
            manifest.as_ref().map(|like| {
                let [encoding, collate, ctype] =
                    [&like.encoding, &like.collate, &like.ctype].map(|text| literal(text));
                format!(" ENCODING {encoding} LC_COLLATE {collate} LC_CTYPE {ctype}")
            }),
        ];
        sql.extend(options.into_iter().flatten());
        Ok(sql)
    }

    fn done(&self, oid: u32, how: &str) -> Done {
        Done::new(format!("database {}: {how}", self.database)).output("oid", oid)
    }

    /// Adds what would keep the server from doing it.
    async fn prove(&self, session: &Session, mut preview: Preview) -> Result<Preview, Failure> {
        let role = session.role().await?;
        if session.server_facts().await?.in_recovery {
            preview = preview.blocked(
                format!("{} is a standby or recovers: nothing can be created there", self.target),
                "point the target at the primary".to_owned(),
            );
        }
        if !role.create_db {
            preview = preview.blocked(
                format!("role {} may not create databases on {}", role.name, self.target),
                format!("ALTER ROLE {} CREATEDB, or use a role that may", ident(&role.name)),
            );
        }
        if let Some(owner) = &self.owner {
            let sql = "SELECT pg_has_role(oid, 'USAGE') FROM pg_catalog.pg_roles WHERE rolname = $1";
            match session.maybe_row("look for the owner", sql, &[owner]).await?.map(|row| row.get::<_, bool>(0)) {
                None => {
                    preview = preview.blocked(format!("there is no role {owner}"), "create it first".to_owned());
                }
                Some(false) => {
                    preview = preview.blocked(
                        format!("role {} is no member of {owner} and can't give it a database", role.name),
                        format!("GRANT {} TO {}", ident(owner), ident(&role.name)),
                    );
                }
                Some(true) => {}
            }
        }
        if session.find_database(&self.template).await?.is_none() {
            preview = preview.blocked(format!("there is no template database {}", self.template), None);
        }
        if preview.certainty == Certainty::Observed {
            preview.summary = format!("create database {} on {} (absent now)", self.database, self.target);
        }
        Ok(preview)
    }
}

async fn connect(services: &crate::service::Services, target: &str) -> Result<Session, Failure> {
    services.postgres(target)?.connect(None).await
}
