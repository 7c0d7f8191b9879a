//! `postgres.copy_rows`: chosen rows from one database to another, on any servers, with the rows
//! that they refer to, in one transaction.
//!
//! Rows that were deleted by mistake come back this way from a database that a backup was
//! restored to. Values travel as text: what one server writes, any other reads.

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::export::find_table;
use super::once::{self, Begun, Transaction, lock_timeout, number};
use super::{ReadAt, counted, database_resource, server, table_of};
use crate::failure::Failure;
use crate::service::postgres::Session;
use crate::service::postgres::copy::PLAIN_FORMS;
use crate::step::effect::{Access, Effect, Resource};
use crate::step::world::Fact;
use crate::step::{
    AfterKill, Certainty, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind, output,
};
use crate::units::Duration;

mod carry;

use carry::{Carry, compare};

/// Copies rows from one database to another.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CopyRows {
    /// Where the rows are.
    from: From,
    /// Where they go.
    to: To,
    /// Which rows: what follows `WHERE`. `true` for all. Values go into `params`.
    #[schemars(extend("x-sql" = true))]
    r#where: String,
    /// Values for `$1`, `$2`…; the server converts them to the types it infers.
    #[serde(default)]
    params: Vec<Value>,
    /// What happens when a row with the same primary key is there already. Rows that are only
    /// referred to stay as they are then, unless they are to be updated.
    #[serde(default)]
    on_conflict: OnConflict,
    /// Whether the rows that they refer to are copied as well, and before them.
    #[serde(default)]
    follow: bool,
    /// How many rows it may copy at most, those that are referred to included.
    #[schemars(range(min = 1))]
    max_rows: Option<u64>,
    /// How long it waits for a lock.
    #[serde(default = "lock_timeout")]
    lock_timeout: Duration,
}

/// A table that rows are read from.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct From {
    /// The server.
    #[schemars(extend("x-target" = "postgres"))]
    target: String,
    /// The database.
    #[schemars(length(min = 1, max = 63))]
    database: String,
    /// The table, as `schema.table`.
    table: String,
}

/// A table that rows are written to.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct To {
    /// The server.
    #[schemars(extend("x-target" = "postgres"))]
    target: String,
    /// The database.
    #[schemars(length(min = 1, max = 63))]
    database: String,
    /// The table; by default the one of the same name.
    table: Option<String>,
}

/// What happens to a row that is there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum OnConflict {
    /// Nothing is copied.
    #[default]
    Fail,
    /// It stays as it is.
    Skip,
    /// It becomes as the copied one.
    Update,
}

impl StepType for CopyRows {
    const NAME: &'static str = "postgres.copy_rows";
    const SUMMARY: &'static str =
        "Copies rows between databases, with the rows that they refer to, in one transaction, exactly once.";
    const AFTER_KILL: &'static str = "the server says what became of the noted transaction (pg_xact_status)";

    fn outputs() -> Vec<Output> {
        vec![
            output("rows", ValueKind::Object, "How many rows were inserted, by table."),
            output("total", ValueKind::Integer, "How many rows were inserted in all."),
            output("updated", ValueKind::Integer, "How many were there already and were updated."),
            output("skipped", ValueKind::Integer, "How many were there already and stayed as they were."),
        ]
    }
}

#[async_trait]
impl Step for CopyRows {
    fn effects(&self) -> Vec<Effect> {
        let (read, write) = if self.follow {
            (
                database_resource(&self.from.target, Some(&self.from.database)),
                database_resource(&self.to.target, Some(&self.to.database)),
            )
        } else {
            (
                Resource::table(&self.from.target, &self.from.database, &self.from.table),
                Resource::table(&self.to.target, &self.to.database, self.to_table()),
            )
        };
        vec![Effect::read(read), Effect::new(Access::Change, write)]
    }

    fn check(&self, found: &mut Findings) {
        for (pointer, table) in [("/from/table", Some(&self.from.table)), ("/to/table", self.to.table.as_ref())] {
            if let Some(Err(message)) = table.map(|table| table_of(table)) {
                found.add(pointer, message, None);
            }
        }
        if self.r#where.trim().is_empty() {
            found.add("/where", "it is empty", Some("write `true` for all rows".to_owned()));
        }
        let same = self.from.target == self.to.target && self.from.database == self.to.database;
        if same && table_of(&self.from.table) == table_of(self.to_table()) {
            found.add("/to", "it is the same table as `from`", None);
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let what = if self.follow { " and what they refer to" } else { "" };
        let summary = |rows: &str| {
            format!("copy {rows} of {}{what} from {} to {}", self.from.table, self.source(), self.destination())
        };
        let written = self.effects().pop().map(|effect| effect.resource);
        let mut assumed = Preview::from_effects(&self.effects(), summary("rows"));
        assumed.facts = written.map(|resource| (resource, Fact::Changed)).into_iter().collect();
        if ["/from", "/to", "/where", "/params"].iter().any(|pointer| cx.is_unknown(pointer)) {
            return assumed;
        }
        let mut sure = Certainty::Observed;
        let mut there = Vec::new();
        for (target, database) in [(&self.from.target, &self.from.database), (&self.to.target, &self.to.database)] {
            match ReadAt::find(cx, target, Some(database)).await {
                Err(preview) => return *preview,
                Ok(ReadAt::Now(session, certainty)) => {
                    sure = sure.max(certainty);
                    there.push(Some(session));
                }
                Ok(ReadAt::Later { .. } | ReadAt::Unseen) => {
                    sure = Certainty::Assumed;
                    there.push(None);
                }
            }
        }
        let (to, from) = (there.pop().flatten(), there.pop().flatten());
        let preview = Preview { certainty: sure, ..assumed };
        match self.foresee(from.as_ref(), to.as_ref()).await {
            Ok(Some(rows)) => Preview { summary: summary(&counted(rows, "row")), ..preview },
            Ok(None) => preview,
            Err(failure) => preview.blocked(failure.message, failure.help),
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let to = server(cx, &self.to.target)?;
        let attempted = self.attempted();
        match Transaction::begin(cx, &to, &self.to.database, &attempted, self.lock_timeout).await? {
            Begun::Happened(note) => Ok(done(&note)),
            Begun::Open(transaction) => {
                let applied = self.apply(cx, &transaction.session).await;
                transaction.end(cx, applied).await.map(|note| done(&note))
            }
        }
    }

    async fn after_kill(&self, cx: &RunCx) -> Result<AfterKill, Failure> {
        once::after_kill(cx, &server(cx, &self.to.target)?, done).await
    }
}

impl CopyRows {
    /// For people: two servers may have databases of the same name.
    fn source(&self) -> String {
        format!("{}/{}", self.from.target, self.from.database)
    }

    fn destination(&self) -> String {
        format!("{}/{}", self.to.target, self.to.database)
    }

    fn to_table(&self) -> &str {
        self.to.table.as_ref().unwrap_or(&self.from.table)
    }

    fn attempted(&self) -> String {
        format!("copy rows of {} from {} to {}", self.from.table, self.source(), self.destination())
    }

    /// How many rows there are to copy, and whether the tables fit each other, where that can be seen.
    async fn foresee(&self, from: Option<&Session>, to: Option<&Session>) -> Result<Option<u64>, Failure> {
        let source = match from {
            Some(session) => Some(find_table(session, &self.from.table).await?),
            None => None,
        };
        if let (Some(source), Some(session)) = (&source, to) {
            let table = find_table(session, self.to_table()).await?;
            compare(source, &table).map_err(|failure| failure.context(self.attempted()))?;
        }
        let (Some(source), Some(session)) = (source, from) else { return Ok(None) };
        let sql = format!("SELECT count(*) FROM {} WHERE (\n{}\n)", source.source(), self.r#where);
        let answer = super::query::Answer::of(session, &sql, &self.params).await?;
        let rows = answer.value().as_u64().unwrap_or(0);
        match self.max_rows {
            Some(most) if rows > most => Err(self.too_many(&counted(rows, "row"), most)),
            _ => Ok(Some(rows)),
        }
    }

    fn too_many(&self, rows: &str, most: u64) -> Failure {
        Failure::permanent(format!("{}: {rows}, and at most {most} may be copied", self.attempted()))
            .help("narrow `where`, or raise `max_rows`")
    }

    /// All but the commit. Gives what is noted of it.
    async fn apply(&self, cx: &RunCx, to: &Session) -> Result<Value, Failure> {
        let attempted = self.attempted();
        let from = server(cx, &self.from.target)?.connect(Some(&self.from.database)).await?;
        let begin = format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {PLAIN_FORMS}");
        from.batch(&attempted, &begin).await?;
        to.batch(&attempted, PLAIN_FORMS).await?;
        let mut carry = Carry::new(self, cx, &from, to);
        carry.chosen().await?;
        if self.follow {
            carry.follow().await?;
        }
        carry.insert().await
    }
}

fn done(note: &Value) -> Done {
    let total = number(note, "total");
    let (updated, skipped) = (number(note, "updated"), number(note, "skipped"));
    let mut summary = format!("{} inserted", counted(total, "row"));
    for (count, what) in [(updated, "updated"), (skipped, "were there already")] {
        if count > 0 {
            summary = format!("{summary}, {count} {what}");
        }
    }
    Done::new(summary)
        .output("rows", note["rows"].clone())
        .output("total", total)
        .output("updated", updated)
        .output("skipped", skipped)
}

/// What a copy came to, for its note.
fn copied(rows: &serde_json::Map<String, Value>, total: u64, updated: u64, skipped: u64) -> Value {
    json!({ "rows": rows, "total": total, "updated": updated, "skipped": skipped })
}
