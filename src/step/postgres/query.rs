//! `postgres.query`: reads, and compares what it reads.

use async_trait::async_trait;
use futures::TryStreamExt;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{ReadAt, database_resource, server};
use crate::failure::Failure;
use crate::matcher::Matcher;
use crate::record::event::Outputs;
use crate::service::postgres::Session;
use crate::service::postgres::value::{Param, row_values};
use crate::step::effect::Effect;
use crate::step::{Action, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind, output};

/// Runs a query in a read-only transaction, and compares what it gives.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Query {
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
    /// What the single value must be: one row, one column.
    expect: Option<Matcher>,
    /// How many rows there must be.
    rows: Option<Matcher>,
}

impl StepType for Query {
    const NAME: &'static str = "postgres.query";
    const SUMMARY: &'static str = "Runs a query in a read-only transaction, and compares what it gives.";

    fn outputs() -> Vec<Output> {
        vec![
            output("value", ValueKind::Any, "The first row's first value; null without rows."),
            output("rows", ValueKind::Integer, "How many rows there were."),
            output("columns", ValueKind::Object, "The first row's values by column name."),
        ]
    }
}

#[async_trait]
impl Step for Query {
    fn effects(&self) -> Vec<Effect> {
        vec![Effect::read(database_resource(&self.target, self.database.as_deref()))]
    }

    fn check(&self, found: &mut Findings) {
        if self.sql.trim().is_empty() {
            found.add("/sql", "there is no statement", None);
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let at = self.database.as_deref().unwrap_or(&self.target);
        let later = Preview::from_effects(&self.effects(), format!("query {at}"));
        if cx.is_unknown("/sql") || cx.is_unknown("/params") {
            return later;
        }
        match ReadAt::find(cx, &self.target, self.database.as_deref()).await {
            Err(preview) => *preview,
            Ok(ReadAt::Unseen) => later,
            Ok(ReadAt::Later { because, rehearsal, .. }) => {
                let later = Preview { summary: format!("query {at} after step `{because}`"), ..later };
                match rehearsal {
                    Some(session) => rehearse(&session, &self.sql, later).await,
                    None => later,
                }
            }
            Ok(ReadAt::Now(session, certainty)) => match self.ask(&session).await {
                Ok(done) => Preview {
                    outputs: done.outputs,
                    ..Preview::new(
                        Action::Read,
                        certainty,
                        format!("query {at}: {}", done.summary.unwrap_or_default()),
                    )
                },
                Err(failure) => Preview { certainty, ..Preview::failed(failure) },
            },
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let server = server(cx, &self.target)?;
        let session = server.connect(Some(self.database.as_deref().unwrap_or(server.default_database()))).await?;
        let done = self.ask(&session).await;
        for notice in session.take_notices() {
            cx.log(&format!("{notice}\n"));
        }
        done
    }
}

impl Query {
    async fn ask(&self, session: &Session) -> Result<Done, Failure> {
        let answer = Answer::of(session, &self.sql, &self.params).await?;
        if let Some(rows) = &self.rows
            && !rows.accepts(&answer.rows.into())
        {
            return Err(Failure::permanent(format!(
                "query {}: expected {} rows, got {}",
                session.database(),
                rows.describe(),
                answer.rows
            )));
        }
        if let Some(expect) = &self.expect {
            answer
                .expect(expect)
                .map_err(|failure| failure.context(format_args!("query {}", session.database())))?;
        }
        let summary = match &answer.first {
            Some(first) if answer.rows == 1 && first.len() == 1 => answer.value().to_string(),
            _ => super::counted(answer.rows, "row"),
        };
        let outputs = Outputs::from([
            ("value".to_owned(), answer.value()),
            ("rows".to_owned(), answer.rows.into()),
            ("columns".to_owned(), Value::Object(answer.first.unwrap_or_default())),
        ]);
        Ok(Done { outputs, summary: Some(summary) })
    }
}

/// What a query gave: how many rows, and the first.
pub(super) struct Answer {
    pub rows: u64,
    pub first: Option<Map<String, Value>>,
}

impl Answer {
    /// Runs one statement in a read-only transaction of its own. Rows beyond the first are only counted.
    pub async fn of(session: &Session, sql: &str, params: &[Value]) -> Result<Self, Failure> {
        let attempted = format!("query {}", session.database());
        session.batch(&attempted, "BEGIN TRANSACTION READ ONLY").await?;
        let answer = read(session, &attempted, sql, params).await;
        let ended = session.batch(&attempted, "ROLLBACK").await;
        let answer = answer?;
        ended.map(|()| answer)
    }

    pub fn value(&self) -> Value {
        self.first.as_ref().and_then(|first| first.values().next().cloned()).unwrap_or(Value::Null)
    }

    /// Whether its single value is as wanted.
    pub fn expect(&self, wanted: &Matcher) -> Result<(), Failure> {
        match &self.first {
            Some(first) if self.rows == 1 && first.len() == 1 => {
                let value = self.value();
                if wanted.accepts(&value) {
                    return Ok(());
                }
                Err(Failure::permanent(format!("expected {}, got {value}", wanted.describe())))
            }
            first => {
                let columns = first.as_ref().map_or(0, Map::len) as u64;
                let got = format!("{} of {}", super::counted(self.rows, "row"), super::counted(columns, "column"));
                Err(Failure::permanent(format!("`expect` compares a single value, and got {got}"))
                    .help("select one column of one row, as `SELECT count(*) …`"))
            }
        }
    }
}

async fn read(session: &Session, attempted: &str, sql: &str, params: &[Value]) -> Result<Answer, Failure> {
    let failed = |error: tokio_postgres::Error| session.failure(attempted, &error);
    let statement = prepare(session, attempted, sql, params.len()).await?;
    let rows = session.query_raw(&statement, params.iter().cloned().map(Param)).await.map_err(failed)?;
    tokio::pin!(rows);
    let mut answer = Answer { rows: 0, first: None };
    while let Some(row) = rows.try_next().await.map_err(failed)? {
        if answer.first.is_none() {
            let names = row.columns().iter().map(|column| column.name().to_owned());
            answer.first = Some(names.zip(row_values(&row)?).collect());
        }
        answer.rows += 1;
    }
    Ok(answer)
}

/// Prepares one statement, and compares how many parameters it takes with how many there are.
pub(super) async fn prepare(
    session: &Session,
    attempted: &str,
    sql: &str,
    given: usize,
) -> Result<tokio_postgres::Statement, Failure> {
    let statement = session.prepare(sql).await.map_err(|error| {
        let several = error.as_db_error().is_some_and(|error| error.message().contains("multiple commands"));
        let failure = session.failure(attempted, &error);
        if several {
            failure.help("write one statement a step, or put several into a `DO $$ … $$` block")
        } else {
            failure
        }
    })?;
    let wanted = statement.params().len();
    if wanted != given {
        return Err(Failure::permanent(format!(
            "{attempted}: the statement takes {}, `params` gives {given}",
            super::counted(wanted as u64, "parameter")
        )));
    }
    Ok(statement)
}

/// Prepares a statement on a database that resembles the one it is meant for. What doesn't
/// fit is only a warning: that one may be of another schema.
pub(super) async fn rehearse(session: &Session, sql: &str, preview: Preview) -> Preview {
    match session.prepare(sql).await {
        Ok(_) => preview,
        Err(error) => {
            let failure = session.failure("prepare the statement on today's database", &error);
            preview.warning(failure.message, failure.help)
        }
    }
}
