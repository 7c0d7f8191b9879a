//! `postgres.verify`: checks what a database holds, and that its constraints really do.

use std::collections::BTreeMap;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::query::{Answer, rehearse};
use super::{ReadAt, counted, database_resource, server};
use crate::failure::Failure;
use crate::matcher::Matcher;
use crate::record::event::{Progress, ProgressUnit};
use crate::service::postgres::Session;
use crate::step::effect::{Effect, Role};
use crate::step::{Action, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind, output};

mod constraints;

/// Checks what a database holds. Every check is made, and all that fail are named.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Verify {
    /// The server.
    #[schemars(extend("x-target" = "postgres"))]
    target: String,
    /// The database.
    #[schemars(length(min = 1, max = 63))]
    database: String,
    /// Queries by a name of your own, each with what its single value must be.
    #[serde(default)]
    checks: BTreeMap<String, Check>,
    /// Also that foreign keys are validated and hold, indexes are valid, sequences are ahead
    /// of their columns, and extensions are there.
    #[serde(default)]
    constraints: bool,
}

/// One check.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Check {
    /// A query for one value; tables are named with their schema.
    #[schemars(extend("x-sql" = true))]
    sql: String,
    /// What the value must be.
    expect: Matcher,
}

impl StepType for Verify {
    const NAME: &'static str = "postgres.verify";
    const SUMMARY: &'static str =
        "Checks what a database holds, and that its constraints, indexes and sequences are sound.";
    const PROVES_HEALTH: bool = true;

    fn outputs() -> Vec<Output> {
        vec![output("checks", ValueKind::Object, "Each check's value by its name.")]
    }
}

#[async_trait]
impl Step for Verify {
    fn effects(&self) -> Vec<Effect> {
        vec![Effect::read(database_resource(&self.target, Some(&self.database))).role(Role::Verifies)]
    }

    fn check(&self, found: &mut Findings) {
        if self.checks.is_empty() && !self.constraints {
            found.add("", "it would check nothing", Some("give `checks`, or set `constraints: true`".to_owned()));
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let count = self.checks.len() as u64 + u64::from(self.constraints);
        let summary = format!("make {} on {}", counted(count, "check"), self.database);
        let later = Preview::from_effects(&self.effects(), summary);
        if cx.is_unknown("/checks") {
            return later;
        }
        match ReadAt::find(cx, &self.target, Some(&self.database)).await {
            Err(preview) => *preview,
            Ok(ReadAt::Unseen) => later,
            Ok(ReadAt::Later { because, rehearsal, .. }) => {
                let mut later = Preview { summary: format!("{} after step `{because}`", later.summary), ..later };
                if let Some(session) = rehearsal {
                    for check in self.checks.values() {
                        later = rehearse(&session, &check.sql, later).await;
                    }
                }
                later
            }
            Ok(ReadAt::Now(session, certainty)) => match self.look(&session, |_| {}).await {
                Ok(done) => Preview {
                    outputs: done.outputs,
                    ..Preview::new(Action::Read, certainty, done.summary.unwrap_or_default())
                },
                Err(failure) => Preview { certainty, ..Preview::failed(failure) },
            },
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let session = server(cx, &self.target)?.connect(Some(&self.database)).await?;
        self.look(&session, |progress| cx.progress(progress)).await
    }
}

impl Verify {
    async fn look(&self, session: &Session, progress: impl Fn(Progress)) -> Result<Done, Failure> {
        let mut values = Map::new();
        let mut wrong = Vec::new();
        let total = Some(self.checks.len() as u64 + u64::from(self.constraints));
        for (done, (name, check)) in (0..).zip(&self.checks) {
            progress(Progress { done, total, unit: ProgressUnit::Items, message: Some(name.clone()) });
            match Answer::of(session, &check.sql, &[]).await {
                Ok(answer) => {
                    if let Err(failure) = answer.expect(&check.expect) {
                        wrong.push(format!("{name}: {failure}"));
                    }
                    values.insert(name.clone(), answer.value());
                }
                // A connection that broke says nothing about the data.
                Err(failure) if failure.transient => return Err(failure),
                Err(failure) => wrong.push(format!("{name}: {failure}")),
            }
        }
        let mut looked_at = counted(self.checks.len() as u64, "check");
        if self.constraints {
            progress(Progress {
                done: self.checks.len() as u64,
                total,
                unit: ProgressUnit::Items,
                message: Some("constraints".to_owned()),
            });
            let (sound, problems) = constraints::look(session).await?;
            looked_at = format!("{looked_at}, {sound}");
            wrong.extend(problems);
        }
        if !wrong.is_empty() {
            return Err(Failure::permanent(format!("verify {}: {}", self.database, wrong.join("; "))));
        }
        Ok(Done::new(format!("{}: {looked_at} passed", self.database)).output("checks", Value::Object(values)))
    }
}
