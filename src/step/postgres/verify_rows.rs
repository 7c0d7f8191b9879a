//! `postgres.verify_rows`: a database holds exactly the rows of a backup.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::verify_counts::Against;
use super::{ReadAt, check_database_name, counted, database_resource, server};
use crate::dump::count::{Table, tables};
use crate::dump::manifest::Manifest;
use crate::dump::rows::{FORMS, canonical, compare};
use crate::failure::Failure;
use crate::record::event::{Progress, ProgressUnit};
use crate::service::postgres::{Session, qualified};
use crate::step::effect::{Effect, Resource, Role};
use crate::step::{
    Action, Certainty, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind, output,
};

/// How many tables that differ are named.
const NAMED: usize = 20;

/// Reads tables to their last row and compares each with what a backup's manifest says its rows
/// come to: one altered, lost or doubled row is found, where a count would be the same.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyRows {
    /// The server.
    #[schemars(extend("x-target" = "postgres"))]
    target: String,
    /// The database.
    #[schemars(length(min = 1, max = 63))]
    database: String,
    /// The backup whose manifest is compared with.
    against: Against,
    /// Only these tables, as `schema.table`; without it all of the backup's, and no others may be there.
    #[serde(default)]
    tables: Vec<String>,
    /// Not these tables, as `schema.table`.
    #[serde(default)]
    except: Vec<String>,
}

impl StepType for VerifyRows {
    const NAME: &'static str = "postgres.verify_rows";
    const SUMMARY: &'static str = "Compares every row of a database with a backup, by each table's checksum.";
    const PROVES_HEALTH: bool = true;

    fn outputs() -> Vec<Output> {
        vec![
            output("rows", ValueKind::Integer, "How many rows were compared."),
            output("tables", ValueKind::Object, "Each table's count by `schema.table`."),
        ]
    }
}

#[async_trait]
impl Step for VerifyRows {
    fn effects(&self) -> Vec<Effect> {
        vec![
            Effect::read(database_resource(&self.target, Some(&self.database))).role(Role::Verifies),
            Effect::read(Resource::object(&self.against.storage, &self.against.path)),
        ]
    }

    fn check(&self, found: &mut Findings) {
        check_database_name(found, "/database", &self.database);
        for (pointer, names) in [("tables", &self.tables), ("except", &self.except)] {
            for (at, name) in names.iter().enumerate() {
                if let Err(message) = qualified(name) {
                    found.add(format!("/{pointer}/{at}"), message, None);
                }
            }
        }
        if !self.tables.is_empty() && !self.except.is_empty() {
            found.add(
                "/except",
                "`tables` and `except` exclude each other",
                Some("name the tables that are compared, or those that are not".to_owned()),
            );
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let what = match self.tables.len() {
            0 => "every row".to_owned(),
            tables => format!("the rows of {}", counted(tables as u64, "table")),
        };
        let summary = format!("compare {what} of {} with the backup", self.database);
        let later = Preview::from_effects(&self.effects(), summary);
        if cx.is_unknown("/tables") || cx.is_unknown("/except") || self.against.is_to_come(cx) {
            return later;
        }
        let Some(services) = cx.services else { return later };
        let manifest = match self.against.manifest(services).await {
            Ok(manifest) => manifest,
            Err(failure) => return Preview::failed(failure),
        };
        let wanted = match self.wanted(&manifest) {
            Ok(wanted) => wanted,
            Err(failure) => return Preview::failed(failure),
        };
        match ReadAt::find(cx, &self.target, Some(&self.database)).await {
            Err(preview) => *preview,
            Ok(ReadAt::Unseen) => later,
            Ok(ReadAt::Later { because, rows, .. }) => {
                let summary = format!("{} after step `{because}`", later.summary);
                let mut later = Preview { certainty: Certainty::Assumed, summary, ..later };
                let rows = rows.unwrap_or_default();
                for (table, count) in wanted.iter().filter(|_| !rows.is_empty()) {
                    let there = rows.get(table);
                    if there != Some(count) {
                        let there = there.map_or_else(|| "no rows".to_owned(), |rows| counted(*rows, "row"));
                        later = later.blocked(
                            format!("{table} will have {there} by step `{because}`, the backup has {count}"),
                            "compare with the backup that is restored".to_owned(),
                        );
                    }
                }
                later
            }
            // Reading it all may take long, and the run does it: here the rows are counted.
            Ok(ReadAt::Now(session, certainty)) => match self.miscounted(&session, &wanted).await {
                Ok(wrong) if wrong.is_empty() => Preview::new(Action::Read, certainty, later.summary),
                Ok(wrong) => later.blocked(
                    format!("database {}: {}", self.database, wrong.join("; ")),
                    "it is not what was backed up: restore the backup, or name another database".to_owned(),
                ),
                Err(failure) => Preview { certainty, ..Preview::failed(failure) },
            },
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let manifest = self.against.manifest(&cx.services).await?;
        let session = server(cx, &self.target)?.connect(Some(&self.database)).await?;
        let attempted = format!("compare the rows of {} with {}", self.database, manifest.path);
        let begin = format!("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY; {FORMS}");
        session.batch(&attempted, &begin).await?;
        self.compare(&session, &attempted, &manifest, cx).await
    }
}

impl VerifyRows {
    /// The tables that are compared, with their counts.
    fn wanted(&self, manifest: &Manifest) -> Result<BTreeMap<String, u64>, Failure> {
        let path = &manifest.path;
        if manifest.hashes.is_empty() && !manifest.tables.is_empty() {
            return Err(Failure::permanent(format!("the manifest of `{path}` doesn't say what its rows come to"))
                .help("it was written by an older version: compare the counts, with postgres.verify_counts"));
        }
        let named: BTreeSet<String> = self.tables.iter().map(|table| canonical(table)).collect();
        let except: BTreeSet<String> = self.except.iter().map(|table| canonical(table)).collect();
        if let Some(unknown) = named.iter().chain(&except).find(|table| !manifest.hashes.contains_key(*table)) {
            if manifest.partitioned.contains_key(unknown) {
                return Err(Failure::permanent(format!("{unknown} is partitioned, and has no rows of its own"))
                    .help("name its partitions, as the backup holds them"));
            }
            return Err(Failure::permanent(format!("the backup `{path}` has no table {unknown}"))
                .help("see what it holds with `storage.verify` and `listing: true`"));
        }
        let chosen = manifest
            .tables
            .iter()
            .filter(|(table, _)| !except.contains(*table) && (named.is_empty() || named.contains(*table)));
        Ok(chosen.map(|(table, rows)| (table.clone(), *rows)).collect())
    }

    /// The tables that aren't in the database, or have another number of rows there.
    async fn miscounted(&self, session: &Session, wanted: &BTreeMap<String, u64>) -> Result<Vec<String>, Failure> {
        let there: BTreeMap<_, _> = tables(session).await?.into_iter().map(|table| (table.key(), table)).collect();
        let mut wrong = Vec::new();
        for (name, rows) in wanted {
            match there.get(name) {
                None => wrong.push(format!("there is no table {name}")),
                Some(table) if table.of_extension => {}
                Some(table) => {
                    let found = table.count(session).await?;
                    if found != *rows {
                        wrong.push(format!("{name} has {}, the backup has {rows}", counted(found, "row")));
                    }
                }
            }
        }
        wrong.truncate(NAMED);
        Ok(wrong)
    }

    async fn compare(
        &self,
        session: &Session,
        attempted: &str,
        manifest: &Manifest,
        cx: &RunCx,
    ) -> Result<Done, Failure> {
        let wanted = self.wanted(manifest)?;
        let there: BTreeMap<_, _> = tables(session).await?.into_iter().map(|table| (table.key(), table)).collect();
        let mut wrong = Vec::new();
        if self.tables.is_empty() && !manifest.partial {
            let in_backup = |table: &Table| {
                std::iter::once(&table.key()).chain(&table.within).any(|name| manifest.tables.contains_key(name))
            };
            let of_the_user = there.values().filter(|table| !table.of_extension && !table.partitioned);
            let more = of_the_user.filter(|table| !in_backup(table));
            wrong.extend(more.map(|table| format!("{} is not in the backup", table.key())));
        }
        let total = Some(wanted.values().sum());
        let watch = |table: &str, done: u64| {
            cx.progress(Progress { done, total, unit: ProgressUnit::Rows, message: Some(table.to_owned()) });
        };
        let compared = compare(session, &wanted, &manifest.hashes, &manifest.encoding, watch).await;
        let compared = compared.map_err(|failure| failure.context(attempted))?;
        wrong.extend(compared.wrong);
        if !wrong.is_empty() {
            let more = wrong.len().saturating_sub(NAMED);
            wrong.truncate(NAMED);
            let more = if more > 0 { format!("; and {more} more") } else { String::new() };
            return Err(Failure::permanent(format!("{attempted}: {}{more}", wrong.join("; ")))
                .help("it is not what was backed up: don't let it serve before you know why"));
        }
        let rows: u64 = wanted.values().sum();
        let summary = format!(
            "{}: {}, {}, each as in the backup",
            self.database,
            counted(wanted.len() as u64, "table"),
            counted(rows, "row")
        );
        Ok(Done::new(summary).output("rows", rows).output("tables", json!(compared.counts)))
    }
}
