//! How rows are carried over: staged in temporary tables of the destination, completed with
//! what they refer to, inserted with parents before children.

use std::collections::VecDeque;

use futures::{SinkExt, TryStreamExt};
use serde_json::{Map, Value};
use tokio_postgres::CopyInSink;
use tokio_util::bytes::Bytes;

use super::{CopyRows, OnConflict, copied};
use crate::dump::manifest::table_name;
use crate::dump::source::PIECE;
use crate::failure::Failure;
use crate::kill;
use crate::record::event::{Progress, ProgressUnit};
use crate::service::postgres::copy::push_row;
use crate::service::postgres::relation::{Reference, Relation, idents};
use crate::service::postgres::value::Param;
use crate::service::postgres::{Session, ident};
use crate::step::RunCx;
use crate::step::postgres::counted;
use crate::step::postgres::export::find_table;
use crate::step::postgres::import::on_conflict_update;
use crate::step::postgres::query::prepare;

/// How many keys are asked for at once.
const KEYS_AT_ONCE: usize = 5000;

/// A table on both sides, and its rows that are on their way.
struct Staged {
    source: Relation,
    to: Relation,
    columns: Vec<String>,
    /// The temporary table.
    temp: String,
    rows: u64,
}

impl Staged {
    fn is(&self, table: &(String, String)) -> bool {
        (&self.source.schema, &self.source.name) == (&table.0, &table.1)
    }

    fn name(&self) -> String {
        table_name(&self.to.schema, &self.to.name)
    }
}

/// A copy that is under way. The first table is the one whose rows were chosen.
pub(super) struct Carry<'a> {
    step: &'a CopyRows,
    cx: &'a RunCx,
    from: &'a Session,
    to: &'a Session,
    attempted: String,
    staged: Vec<Staged>,
    references: Vec<Reference>,
    total: u64,
}

impl<'a> Carry<'a> {
    pub fn new(step: &'a CopyRows, cx: &'a RunCx, from: &'a Session, to: &'a Session) -> Self {
        let attempted = step.attempted();
        Self { step, cx, from, to, attempted, staged: vec![], references: vec![], total: 0 }
    }

    /// Stages the rows that the step chooses.
    pub async fn chosen(&mut self) -> Result<(), Failure> {
        let source = find_table(self.from, &self.step.from.table).await?;
        let to = find_table(self.to, self.step.to_table()).await?;
        let at = self.open(source, to).await?;
        let params = self.step.params.iter().cloned().map(Param).collect();
        self.fill(at, &format!("(\n{}\n)", self.step.r#where), params).await?;
        Ok(())
    }

    /// Stages the rows that staged rows refer to, until none is missing.
    pub async fn follow(&mut self) -> Result<(), Failure> {
        self.references = self.from.references().await?;
        let mut changed = VecDeque::from([0]);
        while let Some(at) = changed.pop_front() {
            for reference in self.references.clone() {
                if !self.staged[at].is(&reference.from) {
                    continue;
                }
                let found = self.fetch(at, &reference).await?;
                if let Some(parent) = found
                    && !changed.contains(&parent)
                {
                    changed.push_back(parent);
                }
            }
        }
        Ok(())
    }

    /// Inserts everything. Gives what came of it.
    pub async fn insert(&mut self) -> Result<Value, Failure> {
        let (mut rows, mut updated, mut skipped) = (Map::new(), 0, 0);
        for at in self.in_order()? {
            let staged = &self.staged[at];
            let message = Some(format!("inserting into {}", staged.name()));
            let progress =
                Progress { done: self.total, total: Some(self.total), unit: ProgressUnit::Rows, message };
            self.cx.progress(progress);
            let (new, changed) = self.insert_into(staged, at == 0).await?;
            rows.insert(staged.name(), new.into());
            updated += changed;
            skipped += staged.rows - new - changed;
            self.to.advance_sequences(&staged.to).await?;
        }
        let total = rows.values().filter_map(Value::as_u64).sum();
        Ok(copied(&rows, total, updated, skipped))
    }

    /// Makes a place for a table's rows.
    async fn open(&mut self, source: Relation, to: Relation) -> Result<usize, Failure> {
        compare(&source, &to).map_err(|failure| failure.context(&self.attempted))?;
        let columns = source.names();
        let at = self.staged.len();
        let create = format!(
            "CREATE TEMP TABLE lifeboat_rows_{at} ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA",
            idents(&columns),
            to.sql()
        );
        self.to.batch(&self.attempted, &create).await?;
        self.staged.push(Staged { source, to, columns, temp: format!("pg_temp.lifeboat_rows_{at}"), rows: 0 });
        Ok(at)
    }

    /// Stages the source's rows for which `condition` holds. Gives how many they were.
    async fn fill(&mut self, at: usize, condition: &str, params: Vec<Param>) -> Result<u64, Failure> {
        let staged = &self.staged[at];
        let values: Vec<String> = staged.columns.iter().map(|column| format!("{}::text", ident(column))).collect();
        let sql = format!("SELECT {} FROM {} WHERE {condition}", values.join(", "), staged.source.source());
        let unread = |error: tokio_postgres::Error| self.from.failure(&self.attempted, &error);
        let unwritten = |error: tokio_postgres::Error| self.to.failure_without_values(&self.attempted, &error);
        let statement = prepare(self.from, &self.attempted, &sql, params.len()).await?;
        let mut rows = Box::pin(self.from.query_raw(&statement, params).await.map_err(unread)?);
        let copy = format!("COPY {} ({}) FROM STDIN", staged.temp, idents(&staged.columns));
        let sink: CopyInSink<Bytes> = self.to.copy_in(&copy).await.map_err(unwritten)?;
        let mut sink = Box::pin(sink);
        let (mut came, mut piece) = (0, Vec::with_capacity(PIECE));
        while let Some(row) = rows.try_next().await.map_err(unread)? {
            came += 1;
            if let Some(most) = self.step.max_rows
                && self.total + came > most
            {
                return Err(self.step.too_many("there are more rows", most));
            }
            let values: Vec<Option<&str>> =
                (0..row.len()).map(|at| row.try_get(at)).collect::<Result<_, _>>().map_err(unread)?;
            push_row(&mut piece, values.into_iter());
            if piece.len() >= PIECE {
                kill::around("copy a piece", sink.send(std::mem::take(&mut piece).into()))
                    .await
                    .map_err(unwritten)?;
                let message = Some(format!("reading {}", staged.name()));
                let done = self.total + came;
                self.cx.progress(Progress { done, total: None, unit: ProgressUnit::Rows, message });
            }
        }
        if !piece.is_empty() {
            kill::around("copy a piece", sink.send(piece.into())).await.map_err(unwritten)?;
        }
        kill::around("end of copy", sink.as_mut().finish()).await.map_err(unwritten)?;
        self.staged[at].rows += came;
        self.total += came;
        Ok(came)
    }

    /// Stages the rows that the rows of `at` refer to by one foreign key. Gives the table that
    /// got more rows.
    async fn fetch(&mut self, at: usize, reference: &Reference) -> Result<Option<usize>, Failure> {
        let known = self.staged.iter().position(|staged| staged.is(&reference.to));
        let keys = self.missing_keys(at, reference, known).await?;
        if keys.first().is_none_or(Vec::is_empty) {
            return Ok(None);
        }
        let parent = if let Some(parent) = known {
            parent
        } else {
            let name = table_name(&reference.to.0, &reference.to.1);
            let (source, to) = (find_table(self.from, &name).await?, find_table(self.to, &name).await?);
            self.open(source, to).await?
        };
        let source = &self.staged[parent].source;
        let mut values = vec![];
        for (number, column) in reference.to_columns.iter().enumerate() {
            let kind = source.columns.iter().find(|there| there.name == *column).map(|there| there.kind.clone());
            let kind = kind.ok_or_else(|| {
                let name = table_name(&source.schema, &source.name);
                Failure::permanent(format!(
                    "{}: {name} is referred to by the generated column {column}",
                    self.attempted
                ))
                .help("copy its rows in a step before, and this one without `follow`")
            })?;
            values.push(format!("k.c{number}::{kind}"));
        }
        let names: Vec<String> = (0..values.len()).map(|number| format!("c{number}")).collect();
        let arrays: Vec<String> = (1..=values.len()).map(|number| format!("${number}::text[]")).collect();
        let condition = format!(
            "({}) IN (SELECT {} FROM unnest({}) AS k ({}))",
            idents(&reference.to_columns),
            values.join(", "),
            arrays.join(", "),
            names.join(", ")
        );
        let mut came = 0;
        for start in (0..keys[0].len()).step_by(KEYS_AT_ONCE) {
            let params = keys.iter().map(|key| {
                let some: Vec<Value> =
                    key.iter().skip(start).take(KEYS_AT_ONCE).cloned().map(Value::String).collect();
                Param(Value::Array(some))
            });
            came += self.fill(parent, &condition, params.collect()).await?;
        }
        Ok((came > 0).then_some(parent))
    }

    /// The keys, column by column, that the rows of `at` refer to and that are not staged yet.
    async fn missing_keys(
        &self,
        at: usize,
        reference: &Reference,
        known: Option<usize>,
    ) -> Result<Vec<Vec<String>>, Failure> {
        let child = &self.staged[at];
        if let Some(generated) = reference.columns.iter().find(|column| !child.columns.contains(column)) {
            let name = child.name();
            return Err(Failure::permanent(format!(
                "{}: {name} refers to {} by the generated column {generated}",
                self.attempted,
                table_name(&reference.to.0, &reference.to.1)
            ))
            .help("copy those rows in a step before, and these without `follow`"));
        }
        let selected: Vec<String> =
            reference.columns.iter().map(|column| format!("c.{}::text", ident(column))).collect();
        let mut conditions: Vec<String> =
            reference.columns.iter().map(|column| format!("c.{} IS NOT NULL", ident(column))).collect();
        if let Some(parent) = known.map(|parent| &self.staged[parent]) {
            let pairs = reference.columns.iter().zip(&reference.to_columns);
            let same: Vec<String> =
                pairs.map(|(column, key)| format!("p.{} = c.{}", ident(key), ident(column))).collect();
            conditions.push(format!("NOT EXISTS (SELECT FROM {} p WHERE {})", parent.temp, same.join(" AND ")));
        }
        let sql = format!(
            "SELECT DISTINCT {} FROM {} c WHERE {}",
            selected.join(", "),
            child.temp,
            conditions.join(" AND ")
        );
        let rows = self.to.rows(&self.attempted, &sql, &[]).await?;
        Ok((0..selected.len()).map(|column| rows.iter().map(|row| row.get(column)).collect()).collect())
    }

    /// The tables with rows, each after those that it refers to.
    fn in_order(&self) -> Result<Vec<usize>, Failure> {
        let mut left: Vec<usize> = (0..self.staged.len()).collect();
        let mut order = vec![];
        while !left.is_empty() {
            let waits = |at: usize| {
                self.references.iter().any(|reference| {
                    self.staged[at].is(&reference.from)
                        && left.iter().any(|other| *other != at && self.staged[*other].is(&reference.to))
                })
            };
            let Some(next) = left.iter().position(|at| !waits(*at)) else {
                return Err(self.circle(&left));
            };
            order.push(left.remove(next));
        }
        Ok(order)
    }

    /// Names the tables that refer to each other in a circle: those of `left` that can be come
    /// back to.
    fn circle(&self, left: &[usize]) -> Failure {
        let parent = |at: usize| {
            let mut mine = self.references.iter().filter(|reference| self.staged[at].is(&reference.from));
            mine.find_map(|reference| {
                left.iter().copied().find(|to| *to != at && self.staged[*to].is(&reference.to))
            })
        };
        // Everything left waits, so that going from parent to parent must come back.
        let mut path = vec![left[0]];
        let start = loop {
            let Some(next) = path.last().and_then(|at| parent(*at)) else { break 0 };
            if let Some(seen) = path.iter().position(|at| *at == next) {
                path.push(next);
                break seen;
            }
            path.push(next);
        };
        let names: Vec<String> = path[start..].iter().map(|at| self.staged[*at].name()).collect();
        Failure::permanent(format!("{}: rows refer to each other in a circle: {}", self.attempted, names.join(" → ")))
            .help("copy the tables in steps of their own, without `follow`, and set the reference that closes the circle last")
    }

    /// Inserts a table's staged rows. Gives how many are new, and how many were updated.
    async fn insert_into(&self, staged: &Staged, is_chosen: bool) -> Result<(u64, u64), Failure> {
        let columns = idents(&staged.columns);
        let mode = match self.step.on_conflict {
            OnConflict::Fail if !is_chosen => OnConflict::Skip,
            mode => mode,
        };
        let attempted = format!("{}: insert into {}", self.attempted, staged.name());
        let (conflict, mut before) = match (mode, &staged.to.key) {
            (OnConflict::Fail, _) => (String::new(), 0),
            (OnConflict::Skip, Some(key)) => (format!(" ON CONFLICT ({}) DO NOTHING", idents(key)), 0),
            (OnConflict::Skip, None) => (" ON CONFLICT DO NOTHING".to_owned(), 0),
            (OnConflict::Update, Some(key)) => {
                (on_conflict_update(key, &staged.columns), self.there_already(staged, key).await?)
            }
            (OnConflict::Update, None) => {
                return Err(Failure::permanent(format!("{attempted}: it has no primary key to know rows by"))
                    .help("use `on_conflict: fail` or `skip`"));
            }
        };
        let insert = format!(
            "INSERT INTO {} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM {}{conflict}",
            staged.to.sql(),
            staged.temp
        );
        let taken = kill::statement(&insert, self.to.execute(&insert, &[]))
            .await
            .map_err(|error| self.to.failure_without_values(&attempted, &error))?;
        if conflict.ends_with("NOTHING") {
            before = 0;
        } else if taken != staged.rows {
            return Err(Failure::permanent(format!(
                "{attempted}: the table took {taken} of {}",
                counted(staged.rows, "row")
            ))
            .help("a trigger or a rule of the table keeps rows out"));
        }
        Ok((taken.saturating_sub(before), before.min(taken)))
    }

    async fn there_already(&self, staged: &Staged, key: &[String]) -> Result<u64, Failure> {
        let sql = format!("SELECT count(*) FROM {} JOIN {} USING ({})", staged.temp, staged.to.sql(), idents(key));
        let row = self.to.row(&self.attempted, &sql, &[]).await?;
        Ok(row.get::<_, i64>(0).unsigned_abs())
    }
}

/// Refuses tables whose columns differ: a column that nobody copies would be lost without a word.
pub(super) fn compare(source: &Relation, to: &Relation) -> Result<(), Failure> {
    if !to.is_table {
        return Err(Failure::permanent(format!("{}.{} is not a table", to.schema, to.name)));
    }
    let (ours, theirs) = (source.names(), to.names());
    let differ = |from: &[String], other: &[String]| -> Vec<String> {
        from.iter().filter(|column| !other.contains(column)).cloned().collect()
    };
    let (missing, unfilled) = (differ(&ours, &theirs), differ(&theirs, &ours));
    let mut wrong = vec![];
    if !missing.is_empty() {
        wrong.push(format!("the destination has no column {}", missing.join(", ")));
    }
    if !unfilled.is_empty() {
        wrong.push(format!("the source has no column {}", unfilled.join(", ")));
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Failure::permanent(format!("the tables {}.{} differ: {}", to.schema, to.name, wrong.join("; ")))
        .help("bring both to the same schema first, or move the rows with postgres.export and postgres.import"))
}
