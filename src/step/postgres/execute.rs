//! `postgres.execute`: changes data in one transaction, applied exactly once.
//!
//! The transaction's id is in the journal before the commit; after a kill or a lost
//! answer the server says what became of it.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::once::{self, Begun, Transaction, lock_timeout, number};
use super::query::prepare;
use super::{ReadAt, counted, database_resource, server};
use crate::failure::Failure;
use crate::matcher::Matcher;
use crate::service::postgres::Session;
use crate::service::postgres::value::Param;
use crate::step::effect::{Access, Effect, Resource};
use crate::step::world::Fact;
use crate::step::{
    AfterKill, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind, output,
};
use crate::units::Duration;

/// Runs one statement in a transaction of its own.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Execute {
    /// The server.
    #[schemars(extend("x-target" = "postgres"))]
    target: String,
    /// One statement. Values go into `params`, never into the text; tables are named with
    /// their schema (`auth.users`), as the search path is empty.
    #[schemars(extend("x-sql" = true))]
    sql: String,
    /// The database; by default the one in the target's url.
    database: Option<String>,
    /// Values for `$1`, `$2`…; the server converts them to the types it infers.
    #[serde(default)]
    params: Vec<Value>,
    /// How many rows it must affect; otherwise it is rolled back.
    affected: Option<Matcher>,
    /// How long it waits for a lock.
    #[serde(default = "lock_timeout")]
    lock_timeout: Duration,
}

impl StepType for Execute {
    const NAME: &'static str = "postgres.execute";
    const SUMMARY: &'static str = "Runs a statement that changes data, in one transaction, exactly once.";
    const AFTER_KILL: &'static str = "the server says what became of the noted transaction (pg_xact_status)";

    fn outputs() -> Vec<Output> {
        vec![output("affected", ValueKind::Integer, "How many rows it affected.")]
    }
}

#[async_trait]
impl Step for Execute {
    fn effects(&self) -> Vec<Effect> {
        vec![Effect::new(Access::Change, database_resource(&self.target, self.database.as_deref()))]
    }

    fn check(&self, found: &mut Findings) {
        const CONTROL: [&str; 10] =
            ["begin", "start", "commit", "end", "rollback", "abort", "savepoint", "release", "prepare", "set"];
        match verb(&self.sql) {
            None => found.add("/sql", "there is no statement", None),
            Some(verb) if CONTROL.contains(&verb.as_str()) => found.add(
                "/sql",
                format!(
                    "`{}` controls the transaction or the session, which this step does itself",
                    verb.to_uppercase()
                ),
                Some("write the statement alone: it is run in a transaction of its own".to_owned()),
            ),
            Some(_) => {}
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let at = self.database.as_deref().unwrap_or(&self.target);
        let what = verb(&self.sql).unwrap_or_default().to_uppercase();
        let preview = Preview::from_effects(&self.effects(), format!("{what} in {at}"));
        let preview = match ReadAt::find(cx, &self.target, self.database.as_deref()).await {
            Err(preview) => *preview,
            Ok(ReadAt::Unseen) => preview,
            Ok(ReadAt::Later { because, rehearsal, .. }) => {
                let preview = Preview { summary: format!("{what} in {at} after step `{because}`"), ..preview };
                match rehearsal {
                    Some(session) if !cx.is_unknown("/sql") => {
                        super::query::rehearse(&session, &self.sql, preview).await
                    }
                    _ => preview,
                }
            }
            Ok(ReadAt::Now(session, certainty)) => {
                let preview = Preview { certainty, ..preview };
                if cx.is_unknown("/sql") || cx.is_unknown("/params") {
                    preview
                } else {
                    match self.estimate(&session).await {
                        Ok(Some(rows)) => Preview {
                            summary: format!("{what} in {at} (about {})", counted(rows, "row")),
                            ..preview
                        },
                        Ok(None) => preview,
                        Err(failure) => preview.blocked(failure.message, failure.help),
                    }
                }
            }
        };
        // Steps that come later see that it changes, whether they name the database or mean the target's own.
        let own = || Some(cx.services?.postgres(&self.target).ok()?.default_database().to_owned());
        match self.database.clone().or_else(own) {
            Some(database) => preview.fact(Resource::database(&self.target, &database), Fact::Changed),
            None => preview,
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let server = server(cx, &self.target)?;
        let database = self.database.as_deref().unwrap_or(server.default_database());
        let attempted = self.attempted();
        let transaction = match Transaction::begin(cx, &server, database, &attempted, self.lock_timeout).await? {
            Begun::Open(transaction) => transaction,
            Begun::Happened(note) => return Ok(done(&note)),
        };
        let applied = self.apply(&transaction.session, &attempted).await;
        let applied = applied.map(|affected| json!({ "affected": affected }));
        transaction.end(cx, applied).await.map(|note| done(&note))
    }

    async fn after_kill(&self, cx: &RunCx) -> Result<AfterKill, Failure> {
        once::after_kill(cx, &server(cx, &self.target)?, done).await
    }
}

impl Execute {
    fn attempted(&self) -> String {
        let verb = verb(&self.sql).unwrap_or_default().to_uppercase();
        format!("execute {verb} …")
    }

    /// Runs the statement, and makes sure that it affects what it may.
    async fn apply(&self, session: &Session, attempted: &str) -> Result<u64, Failure> {
        let statement = prepare(session, attempted, &self.sql, self.params.len()).await?;
        let params = self.params.iter().cloned().map(Param);
        let affected =
            session.execute_raw(&statement, params).await.map_err(|error| session.failure(attempted, &error))?;
        if let Some(wanted) = &self.affected
            && !wanted.accepts(&affected.into())
        {
            return Err(Failure::permanent(format!(
                "{attempted}: it would affect {}, wanted {}: rolled back",
                counted(affected, "row"),
                wanted.describe()
            )));
        }
        Ok(affected)
    }

    /// What the server's planner thinks of it; also proves privileges, tables and columns.
    async fn estimate(&self, session: &Session) -> Result<Option<u64>, Failure> {
        if !matches!(verb(&self.sql).as_deref(), Some("insert" | "update" | "delete" | "merge" | "with" | "select"))
        {
            return Ok(None);
        }
        let attempted = self.attempted();
        let sql = format!("EXPLAIN (FORMAT JSON) {}", self.sql);
        let statement = prepare(session, &attempted, &sql, self.params.len()).await?;
        let rows: Vec<_> = {
            use futures::TryStreamExt;
            let params = self.params.iter().cloned().map(Param);
            let stream =
                session.query_raw(&statement, params).await.map_err(|error| session.failure(&attempted, &error))?;
            stream.try_collect().await.map_err(|error| session.failure(&attempted, &error))?
        };
        let plan: Option<Value> = rows.first().and_then(|row| row.try_get(0).ok());
        let plan = plan.map(|plan| plan[0]["Plan"].clone()).unwrap_or_default();
        // A change's own node gives no rows; what it is fed says how many.
        let fed = &plan["Plans"][0]["Plan Rows"];
        Ok(fed.as_u64().or_else(|| plan["Plan Rows"].as_u64()))
    }
}

fn done(note: &Value) -> Done {
    let affected = number(note, "affected");
    Done::new(format!("{} affected", counted(affected, "row"))).output("affected", affected)
}

/// A statement's first word in lower case, comments passed over.
fn verb(sql: &str) -> Option<String> {
    let mut rest = sql.trim_start();
    loop {
        rest = if let Some(comment) = rest.strip_prefix("--") {
            comment.split_once('\n').map_or("", |(_, rest)| rest)
        } else if let Some(comment) = rest.strip_prefix("/*") {
            comment.split_once("*/").map_or("", |(_, rest)| rest)
        } else {
            break;
        }
        .trim_start();
    }
    let word: String = rest.chars().take_while(char::is_ascii_alphabetic).collect();
    (!word.is_empty()).then(|| word.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_is_found_behind_comments() {
        assert_eq!(verb("-- why\n /* how */ UPDATE x").as_deref(), Some("update"));
        assert_eq!(verb("-- nothing"), None);
    }
}
