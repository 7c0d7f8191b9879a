//! `postgres.restore_globals`: the roles that a backup knows and a server lacks.
//!
//! A dump of a database names roles and holds none: on a new server it can't be restored before they
//! are there. They are made in one transaction. Roles that the server has stay as they are, passwords
//! too: the one that connects is among them.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{ReadAt, counted, end_leftovers, server};
use crate::dump::globals::Globals;
use crate::dump::manifest::{Companion, Manifest};
use crate::dump::tap::Checksum;
use crate::failure::Failure;
use crate::service::postgres::Session;
use crate::service::storage::Storage;
use crate::step::effect::{Access, Effect, Resource};
use crate::step::storage::{Place, changed_by, check_object_path};
use crate::step::world::Fact;
use crate::step::{
    Action, Certainty, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind, output,
};

/// No server has more roles.
const LIMIT: u64 = 64 << 20;

/// Creates the roles that a backup has beside it, by `globals`, and that the server lacks.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreGlobals {
    /// The server.
    #[schemars(extend("x-target" = "postgres"))]
    target: String,
    /// The backup: of `postgres.backup` with `globals: true`.
    from: Place,
}

impl StepType for RestoreGlobals {
    const NAME: &'static str = "postgres.restore_globals";
    const SUMMARY: &'static str = "Creates the roles that a backup knows and a server lacks, in one transaction.";
    const AFTER_KILL: &'static str = "run again: roles that are there are left alone";

    fn outputs() -> Vec<Output> {
        vec![output("roles", ValueKind::List, "The roles that it created.")]
    }
}

#[async_trait]
impl Step for RestoreGlobals {
    fn effects(&self) -> Vec<Effect> {
        vec![
            Effect::read(Resource::object(&self.from.storage, &self.from.path)),
            Effect::new(Access::Create, roles_of(&self.target)),
        ]
    }

    fn check(&self, found: &mut Findings) {
        check_object_path(found, "/from/path", &self.from.path);
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let summary = format!("create the roles of {} that {} lacks", self.from.path, self.target);
        let assumed = Preview::from_effects(&self.effects(), summary)
            .fact(roles_of(&self.target), Fact::Present { rows: None });
        let Some(services) = cx.services else { return assumed };
        let storage = match services.storage(&self.from.storage) {
            Ok(storage) => storage,
            Err(failure) => return Preview::failed(failure),
        };
        let object = Resource::object(&self.from.storage, &self.from.path);
        if cx.is_unknown("/from") || changed_by(cx.world, &storage, &object).await.is_some() {
            return assumed;
        }
        let globals = match self.globals(&storage).await {
            Ok(globals) => globals,
            Err(failure) => return assumed.blocked(failure.message, failure.help),
        };
        let session = match ReadAt::find(cx, &self.target, None).await {
            Ok(ReadAt::Now(session, _)) => session,
            Ok(ReadAt::Later { .. } | ReadAt::Unseen) => return assumed,
            Err(preview) => return *preview,
        };
        match self.missing(&session, &globals).await {
            Ok(missing) if missing.is_empty() => Preview {
                action: Action::None,
                certainty: Certainty::Observed,
                summary: format!("{} has every role of {}", self.target, self.from.path),
                ..assumed
            },
            Ok(missing) => Preview {
                certainty: Certainty::Observed,
                summary: format!(
                    "create {} on {}: {}",
                    counted(missing.len() as u64, "role"),
                    self.target,
                    missing.join(", ")
                ),
                ..assumed
            },
            Err(failure) => assumed.blocked(failure.message, failure.help),
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let globals = self.globals(&cx.services.storage(&self.from.storage)?).await?;
        let session = server(cx, &self.target)?.connect(None).await?;
        if let Some(left) = end_leftovers(&session, cx).await? {
            return Err(Failure::transient(left));
        }
        let missing = self.missing(&session, &globals).await?;
        let attempted = format!("create the roles of {} on {}", self.from.path, self.target);
        session.batch(&attempted, "BEGIN").await?;
        for statement in globals.of(&missing) {
            session.batch(&attempted, statement).await?;
        }
        session.batch(&attempted, "COMMIT").await?;
        let summary = match missing.len() {
            0 => "every role is there".to_owned(),
            count => format!("{} created: {}", counted(count as u64, "role"), missing.join(", ")),
        };
        Ok(Done::new(summary).output("roles", missing))
    }
}

impl RestoreGlobals {
    /// The dump of roles, which must be the one that the backup's manifest describes.
    async fn globals(&self, storage: &Storage) -> Result<Globals, Failure> {
        let path = &self.from.path;
        let manifest = Manifest::load(storage, path).await?.and_then(|manifest| manifest.globals);
        let Companion { path, bytes, sha256 } = manifest.ok_or_else(|| {
            Failure::permanent(format!("the backup `{path}` has no roles beside it"))
                .help("take backups with `globals: true`; create the roles by hand, or restore with `owner: none`")
        })?;
        let content = storage.read_small(&path, LIMIT).await?.ok_or_else(|| storage.missing(&path))?;
        let checksum = Checksum::default();
        checksum.update(&content);
        if (content.len() as u64, checksum.hex()) != (bytes, sha256) {
            return Err(Failure::permanent(format!("`{path}` is not what its manifest says"))
                .help("it was changed or damaged after it was written; use another backup"));
        }
        Globals::read(&content).map_err(|failure| failure.context(path))
    }

    /// The roles that the server lacks.
    async fn missing<'a>(&self, session: &Session, globals: &'a Globals) -> Result<Vec<&'a str>, Failure> {
        let tablespaces = globals.tablespaces();
        let sql = "SELECT t FROM unnest($1::text[]) t WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_tablespace WHERE spcname = t)";
        let rows = session.rows("look for tablespaces", sql, &[&tablespaces]).await?;
        if let Some(row) = rows.first() {
            let name: &str = row.get(0);
            return Err(Failure::permanent(format!(
                "{} has no tablespace {name}, which the backup's server had",
                self.target
            ))
            .help(
                "make its folder on the server's host, and CREATE TABLESPACE: no transaction can take that back",
            ));
        }
        let roles = globals.roles();
        let sql = "SELECT rolname::text FROM pg_catalog.pg_roles WHERE rolname = ANY($1::text[])";
        let rows = session.rows("look for roles", sql, &[&roles]).await?;
        let there: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
        Ok(roles.into_iter().filter(|role| !there.contains(role)).collect())
    }
}

/// A server's roles.
pub(super) fn roles_of(target: &str) -> Resource {
    Resource::other("roles", target)
}
