//! `postgres.verify_counts`: how many rows tables hold, against matchers or a backup's manifest.

use std::borrow::Cow;
use std::collections::BTreeMap;

use async_trait::async_trait;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};
use serde_json::{Map, Value};

use super::{ReadAt, counted, database_resource, server};
use crate::dump::manifest::Manifest;
use crate::dump::rows::canonical;
use crate::failure::Failure;
use crate::matcher::{Matcher, margin};
use crate::record::event::{Progress, ProgressUnit};
use crate::service::Services;
use crate::service::postgres::{Session, qualified};
use crate::step::effect::{Effect, Resource, Role};
use crate::step::{
    Action, Certainty, Done, Findings, Output, Preview, PreviewCx, RunCx, Step, StepType, ValueKind, output,
};

/// Counts tables' rows exactly, all in one snapshot. Every table that is off is named.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyCounts {
    /// The server.
    #[schemars(extend("x-target" = "postgres"))]
    target: String,
    /// The database.
    #[schemars(length(min = 1, max = 63))]
    database: String,
    /// Tables as `schema.table`, each with what its count must be: a matcher, or
    /// `{ matches_backup: true }`, where `within: 1%` allows for a difference.
    #[serde(default)]
    tables: BTreeMap<String, Rule>,
    /// The backup whose manifest is compared with: all of its tables, unless `tables` says otherwise.
    against: Option<Against>,
}

/// A backup that is compared with.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Backup")]
pub(super) struct Against {
    /// The storage.
    #[schemars(extend("x-target" = "storage"))]
    pub storage: String,
    /// Its path.
    #[schemars(length(min = 1))]
    pub path: String,
}

impl Against {
    /// Whether it can't be read yet: a step before makes it, or says which it is.
    pub fn is_to_come(&self, cx: &PreviewCx<'_>) -> bool {
        cx.is_unknown("/against") || cx.world.touching(&Resource::object(&self.storage, &self.path)).is_some()
    }

    /// Its manifest.
    pub async fn manifest(&self, services: &Services) -> Result<Manifest, Failure> {
        let storage = services.storage(&self.storage)?;
        Manifest::load(&storage, &self.path).await?.ok_or_else(|| {
            let (path, storage) = (&self.path, &self.storage);
            Failure::permanent(format!(
                "compare with the backup `{path}` in the storage `{storage}`: it has no manifest"
            ))
            .help("only backups made by postgres.backup have one: give `tables` with matchers to postgres.verify_counts")
        })
    }
}

/// What a table's count must be.
#[derive(Clone, Debug, PartialEq)]
enum Rule {
    /// As a matcher says.
    Matches(Matcher),
    /// As the manifest says, give or take.
    Backup { within: Option<Value> },
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let Some(map) = value.as_object().filter(|map| map.contains_key("matches_backup")) else {
            return Matcher::new(value).map(Self::Matches).map_err(de::Error::custom);
        };
        if let Some(unknown) = map.keys().find(|key| !["matches_backup", "within"].contains(&key.as_str())) {
            return Err(de::Error::custom(format!(
                "`{unknown}` does not go with `matches_backup`, only `within` does"
            )));
        }
        if map["matches_backup"] != true {
            return Err(de::Error::custom("`matches_backup` can only be true: leave the table out otherwise"));
        }
        let within = map.get("within").cloned();
        if let Some(within) = &within {
            margin(within, 1.0).map_err(de::Error::custom)?;
        }
        Ok(Self::Backup { within })
    }
}

impl JsonSchema for Rule {
    fn schema_name() -> Cow<'static, str> {
        "CountRule".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A matcher on the count, or `{ matches_backup: true, within: 1% }`.",
            "anyOf": [
                generator.subschema_for::<Matcher>(),
                {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["matches_backup"],
                    "properties": {
                        "matches_backup": { "description": "The count in the manifest of `against`.", "const": true },
                        "within": {
                            "description": "How far off it may be: a number, or a percentage as `1%`.",
                            "type": ["number", "string"],
                            "pattern": "^[0-9.]+%?$"
                        }
                    }
                }
            ]
        })
    }
}

impl Rule {
    /// Whether a count is as wanted; what was wanted otherwise.
    fn judge(&self, count: u64, in_backup: Option<u64>) -> Result<(), String> {
        match self {
            Self::Matches(matcher) if matcher.accepts(&count.into()) => Ok(()),
            Self::Matches(matcher) => Err(format!("wanted {}", matcher.describe())),
            Self::Backup { within } => {
                let Some(backup) = in_backup else { return Err("the backup has no such table".to_owned()) };
                let room = match within {
                    Some(within) => margin(within, backup as f64)?,
                    None => 0.0,
                };
                if count.abs_diff(backup) as f64 <= room {
                    return Ok(());
                }
                let within = within.as_ref().map_or_else(String::new, |within| {
                    format!(" within {}", within.as_str().map_or_else(|| within.to_string(), str::to_owned))
                });
                Err(format!("the backup has {backup}{within}"))
            }
        }
    }
}

impl StepType for VerifyCounts {
    const NAME: &'static str = "postgres.verify_counts";
    const SUMMARY: &'static str =
        "Counts tables' rows and compares them with what they must be, or with a backup's manifest.";
    const PROVES_HEALTH: bool = true;

    fn outputs() -> Vec<Output> {
        vec![output("tables", ValueKind::Object, "Each table's count by `schema.table`.")]
    }
}

#[async_trait]
impl Step for VerifyCounts {
    fn effects(&self) -> Vec<Effect> {
        let database = database_resource(&self.target, Some(&self.database));
        let mut effects = vec![Effect::read(database).role(Role::Verifies)];
        effects.extend(
            self.against.iter().map(|backup| Effect::read(Resource::object(&backup.storage, &backup.path))),
        );
        effects
    }

    fn check(&self, found: &mut Findings) {
        if self.tables.is_empty() && self.against.is_none() {
            found.add("", "it would count nothing", Some("give `tables`, or a backup as `against`".to_owned()));
        }
        for (table, rule) in &self.tables {
            let pointer = format!("/tables/{}", table.replace('~', "~0").replace('/', "~1"));
            if let Err(message) = qualified(table) {
                found.add(pointer.clone(), message, None);
            }
            if matches!(rule, Rule::Backup { .. }) && self.against.is_none() {
                found.add(
                    pointer,
                    "`matches_backup` needs a backup to compare with",
                    Some("name it: `against: { storage: …, path: … }`".to_owned()),
                );
            }
        }
    }

    async fn preview(&self, cx: &PreviewCx<'_>) -> Preview {
        let what = if self.tables.is_empty() {
            "the backup's tables".to_owned()
        } else {
            counted(self.tables.len() as u64, "table")
        };
        let later = Preview::from_effects(&self.effects(), format!("count {what} of {}", self.database));
        if cx.is_unknown("/tables") {
            return later;
        }
        let backup_known = !self.against.as_ref().is_some_and(|backup| backup.is_to_come(cx));
        let manifest = match cx.services {
            Some(services) if backup_known => match self.manifest(services).await {
                Ok(manifest) => manifest,
                Err(failure) => return Preview::failed(failure),
            },
            _ => None,
        };
        match ReadAt::find(cx, &self.target, Some(&self.database)).await {
            Err(preview) => *preview,
            Ok(ReadAt::Unseen) => later,
            Ok(ReadAt::Later { because, rows: Some(rows), .. }) => {
                self.foretell(&because, &rows, manifest.as_ref(), later)
            }
            Ok(ReadAt::Later { because, rows: None, .. }) => {
                Preview { summary: format!("{} after step `{because}`", later.summary), ..later }
            }
            Ok(ReadAt::Now(..)) if !backup_known => later,
            Ok(ReadAt::Now(session, certainty)) => match self.look(&session, manifest.as_ref(), |_| {}).await {
                Ok(done) => Preview {
                    outputs: done.outputs,
                    ..Preview::new(Action::Read, certainty, done.summary.unwrap_or_default())
                },
                Err(failure) => Preview { certainty, ..Preview::failed(failure) },
            },
        }
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let manifest = self.manifest(&cx.services).await?;
        let session = server(cx, &self.target)?.connect(Some(&self.database)).await?;
        self.look(&session, manifest.as_ref(), |progress| cx.progress(progress)).await
    }
}

impl VerifyCounts {
    /// The manifest of the backup that is compared with.
    async fn manifest(&self, services: &Services) -> Result<Option<Manifest>, Failure> {
        match &self.against {
            Some(backup) => backup.manifest(services).await.map(Some),
            None => Ok(None),
        }
    }

    /// Every table with its rule; the backup's own tables where none is named.
    fn rules(&self, manifest: Option<&Manifest>) -> BTreeMap<String, Rule> {
        if !self.tables.is_empty() {
            return self.tables.clone();
        }
        let tables = manifest.into_iter().flat_map(|manifest| manifest.tables.keys());
        tables.map(|table| (table.clone(), Rule::Backup { within: None })).collect()
    }

    /// Judges the counts that the restored backup's manifest foretells.
    fn foretell(
        &self,
        because: &crate::ids::StepId,
        rows: &BTreeMap<String, u64>,
        manifest: Option<&Manifest>,
        preview: Preview,
    ) -> Preview {
        let mut preview = Preview {
            certainty: Certainty::Assumed,
            summary: format!("{} (foretold by step `{because}`)", preview.summary),
            ..preview
        };
        for (table, rule) in self.rules(manifest) {
            let Some(count) = rows.get(&canonical(&table)) else {
                preview = preview.blocked(
                    format!("{table} is not among the tables that step `{because}` brings"),
                    "check the table's name and schema".to_owned(),
                );
                continue;
            };
            if let Err(wanted) = rule.judge(*count, in_backup(manifest, &table)) {
                preview = preview.blocked(
                    format!("{table} will have {count} rows by step `{because}`: {wanted}"),
                    "restore another backup, or change what is expected".to_owned(),
                );
            }
        }
        preview
    }

    async fn look(
        &self,
        session: &Session,
        manifest: Option<&Manifest>,
        progress: impl Fn(Progress),
    ) -> Result<Done, Failure> {
        let attempted = format!("count rows of {}", self.database);
        // Without row security a policy could hide rows; with it off, the server refuses instead.
        let begin = "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL row_security = off";
        session.batch(&attempted, begin).await?;
        let counted = self.count(session, &attempted, manifest, progress).await;
        let ended = session.batch(&attempted, "ROLLBACK").await;
        let done = counted?;
        ended.map(|()| done)
    }

    async fn count(
        &self,
        session: &Session,
        attempted: &str,
        manifest: Option<&Manifest>,
        progress: impl Fn(Progress),
    ) -> Result<Done, Failure> {
        let rules = self.rules(manifest);
        let total = Some(rules.len() as u64);
        let mut counts = Map::new();
        let mut wrong = Vec::new();
        let mut rows = 0;
        for (done, (table, rule)) in (0..).zip(&rules) {
            progress(Progress { done, total, unit: ProgressUnit::Items, message: Some(table.clone()) });
            let name = qualified(table).map_err(Failure::permanent)?;
            let sql = "SELECT relkind = 'p' FROM pg_catalog.pg_class WHERE oid = to_regclass($1)";
            let Some(there) = session.maybe_row(attempted, sql, &[&name]).await? else {
                wrong.push(format!("{table}: there is no such table"));
                continue;
            };
            // A manifest counts a table's own rows, as a dump holds them, without those of its heirs.
            let own = matches!(rule, Rule::Backup { .. }) && !there.get::<_, bool>(0);
            let only = if own { "ONLY " } else { "" };
            let sql = format!("SELECT count(*) FROM {only}{name}");
            let count: i64 = session.row(format!("{attempted}: {table}"), &sql, &[]).await?.get(0);
            let count = count.unsigned_abs();
            rows += count;
            if let Err(wanted) = rule.judge(count, in_backup(manifest, table)) {
                wrong.push(format!("{table} has {}: {wanted}", counted(count, "row")));
            }
            counts.insert(table.clone(), count.into());
        }
        if !wrong.is_empty() {
            return Err(Failure::permanent(format!("{attempted}: {}", wrong.join("; "))));
        }
        let summary =
            format!("{}: {}, {}", self.database, counted(rules.len() as u64, "table"), counted(rows, "row"));
        Ok(Done::new(summary).output("tables", Value::Object(counts)))
    }
}

fn in_backup(manifest: Option<&Manifest>, table: &str) -> Option<u64> {
    let (manifest, table) = (manifest?, canonical(table));
    manifest.tables.get(&table).or_else(|| manifest.partitioned.get(&table)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rule(value: Value) -> Result<Rule, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn rules_judge_counts() {
        assert!(rule(json!({ "min": 1 })).unwrap().judge(0, None).is_err());
        assert!(rule(json!(3)).unwrap().judge(3, None).is_ok());
        let exact = rule(json!({ "matches_backup": true })).unwrap();
        assert!(exact.judge(100, Some(100)).is_ok() && exact.judge(99, Some(100)).is_err());
        let near = rule(json!({ "matches_backup": true, "within": "1%" })).unwrap();
        assert!(near.judge(99, Some(100)).is_ok() && near.judge(98, Some(100)).is_err());
        assert_eq!(near.judge(5, None), Err("the backup has no such table".to_owned()));
    }

    #[test]
    fn mistakes_in_rules_are_refused() {
        for bad in [
            json!({ "matches_backup": false }),
            json!({ "matches_backup": true, "max": 1 }),
            json!({ "matches_backup": true, "within": "much" }),
            json!({ "minimum": 1 }),
        ] {
            assert!(rule(bad.clone()).is_err(), "{bad}");
        }
    }
}
