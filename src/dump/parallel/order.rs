//! What follows the rows, arranged: what may be built side by side, and what keeps its place.

use std::collections::{BTreeMap, BTreeSet};

use super::super::manifest::table_name;
use super::super::outline::{Name, Part};
use super::split::Statement;
use crate::service::postgres::ident;

/// What is done next, all of it before what follows.
#[derive(Debug)]
pub enum Task {
    /// Indexes and keys that they hold, in any order.
    Indexes(Vec<Build>),
    /// Foreign keys; those of one table in their order.
    ForeignKeys(Vec<Build>),
    /// Statements one after the other.
    Ordered(Vec<Statement>),
    /// The last statements, one after the other.
    Last(Vec<Statement>),
}

/// Whether a table of so many rows is small: what is built of it takes less than to ask for it.
pub const fn is_small(rows: u64) -> bool {
    rows < 10_000
}

/// A statement that may run beside others, in a transaction of its own or with others of small tables.
#[derive(Debug)]
pub struct Build {
    /// The statement.
    pub statement: Statement,
    /// Its table.
    pub table: Name,
    /// What it makes.
    pub name: String,
    /// The tables that nothing else may be done with meanwhile.
    pub locks: Vec<Name>,
    /// Whether others may be built on its table meanwhile.
    pub shares: bool,
    /// Whether it must be alone.
    pub alone: bool,
    /// Rows of its table, if they are known.
    pub rows: Option<u64>,
    /// Whether it is one of those that the restore tells of.
    pub counts: bool,
}

impl Build {
    /// Whether its table is known to be small.
    pub fn is_small(&self) -> bool {
        self.rows.is_some_and(is_small)
    }

    /// Whether it sorts its rows: a B-tree does, however it is asked for.
    pub fn is_sorted(&self) -> bool {
        [" USING btree (", " PRIMARY KEY (", " UNIQUE ("].iter().any(|kind| self.statement.text.contains(kind))
    }

    /// Leaves a foreign key's rows unlooked at, and gives the statement that looks through them, unless its tables have
    /// partitions, aren't told by their schemas, or the dump leaves it so itself.
    pub fn apart(&mut self, partitioned: &BTreeSet<(String, String)>) -> Option<Self> {
        let whole = |(schema, table): &Name| {
            schema.as_ref().is_some_and(|schema| !partitioned.contains(&(schema.clone(), table.clone())))
        };
        if self.alone || !self.locks.iter().all(whole) {
            return None;
        }
        let text = self.statement.text.trim_end().strip_suffix(';')?;
        if text.ends_with("NOT VALID") {
            return None;
        }
        let (schema, table) = (self.table.0.as_ref()?, &self.table.1);
        let look = format!(
            "ALTER TABLE ONLY {}.{} VALIDATE CONSTRAINT {};",
            ident(schema),
            ident(table),
            ident(&self.name)
        );
        let look = Self {
            statement: Statement { text: look, ..self.statement.clone() },
            table: self.table.clone(),
            name: self.name.clone(),
            locks: vec![self.table.clone()],
            ..*self
        };
        self.statement.text = format!("{text} NOT VALID;");
        Some(look)
    }
}

impl Task {
    /// How many it builds.
    pub fn builds(&self) -> u64 {
        match self {
            Self::Indexes(builds) | Self::ForeignKeys(builds) => builds.len() as u64,
            Self::Ordered(_) | Self::Last(_) => 0,
        }
    }
}

/// Statements between two that keep their place.
#[derive(Default)]
struct Stretch {
    indexes: Vec<Build>,
    /// What comes before the first foreign key.
    late: Vec<Statement>,
    foreign: Vec<Build>,
    later: Vec<Statement>,
}

/// Arranges what follows the rows. `rows` counts those of each table.
pub fn arrange(statements: Vec<Statement>, rows: &BTreeMap<String, u64>) -> Vec<Task> {
    let mut tasks = vec![];
    let mut stretch = Stretch::default();
    let mut statements = statements.into_iter().peekable();
    // From an event trigger on everything keeps its place: it may fire on it.
    while let Some(statement) = statements.next_if(|next| !next.is_event_trigger()) {
        match statement.part.clone() {
            Part::Setting(_) => {}
            Part::Index { table, name } => {
                stretch.indexes.push(build(statement, table, name, None, true, rows));
            }
            Part::Key { table, name } => stretch.indexes.push(build(statement, table, name, None, false, rows)),
            Part::ForeignKey { table, name, refers, heirs } => {
                let build = build(statement, table, name, Some(refers), false, rows);
                stretch.foreign.push(Build { alone: heirs, ..build });
            }
            Part::Late | Part::Sequence if stretch.foreign.is_empty() => stretch.late.push(statement),
            Part::Late | Part::Sequence => stretch.later.push(statement),
            Part::InOrder | Part::Attach { .. } | Part::Refresh(_) | Part::EventTrigger | Part::Unfit(_) => {
                std::mem::take(&mut stretch).end(&mut tasks);
                ordered(&mut tasks, vec![statement]);
            }
        }
    }
    stretch.end(&mut tasks);
    let mut last: Vec<_> = statements.collect();
    if let Some(Task::Ordered(_)) = tasks.last()
        && let Some(Task::Ordered(before)) = tasks.pop()
    {
        last.splice(0..0, before);
    }
    tasks.push(Task::Last(last));
    tasks
}

impl Stretch {
    fn end(mut self, tasks: &mut Vec<Task>) {
        if !self.indexes.is_empty() {
            // The longest first, so that none is left alone at the end.
            self.indexes
                .sort_by_key(|build| std::cmp::Reverse(build.rows.unwrap_or_default() * weight(&build.statement)));
            tasks.push(Task::Indexes(self.indexes));
        }
        ordered(tasks, self.late);
        if !self.foreign.is_empty() {
            tasks.push(Task::ForeignKeys(self.foreign));
        }
        ordered(tasks, self.later);
    }
}

/// How long an index takes beside a B-tree of as many rows, roughly.
fn weight(statement: &Statement) -> u64 {
    let text = &statement.text;
    if ["USING gin ", "USING gist ", "USING spgist "].iter().any(|method| text.contains(method)) { 8 } else { 1 }
}

fn ordered(tasks: &mut Vec<Task>, mut more: Vec<Statement>) {
    match tasks.last_mut() {
        _ if more.is_empty() => {}
        Some(Task::Ordered(statements)) => statements.append(&mut more),
        _ => tasks.push(Task::Ordered(more)),
    }
}

fn build(
    statement: Statement,
    table: Name,
    name: String,
    refers: Option<Name>,
    shares: bool,
    rows: &BTreeMap<String, u64>,
) -> Build {
    let key = table_name(table.0.as_deref().unwrap_or("public"), &table.1);
    let rows = rows.get(&key).copied();
    let locks = std::iter::once(table.clone()).chain(refers).collect();
    Build { statement, table, name, locks, shares, alone: false, rows, counts: true }
}

#[cfg(test)]
mod tests {
    use super::super::super::outline::part;
    use super::super::split::Settings;
    use super::*;

    fn arranged(texts: &[&str]) -> Vec<(&'static str, Vec<String>)> {
        let statement = |text: &&str| Statement {
            text: (*text).to_owned(),
            line: 1,
            part: part(text.as_bytes()),
            settings: Settings::default(),
        };
        let rows = BTreeMap::from([("a.big".to_owned(), 100), ("a.small".to_owned(), 1)]);
        let built = |builds: Vec<Build>| builds.into_iter().map(|build| build.name).collect();
        let said = |statements: Vec<Statement>| statements.into_iter().map(|statement| statement.text).collect();
        arrange(texts.iter().map(statement).collect(), &rows)
            .into_iter()
            .map(|task| match task {
                Task::Indexes(builds) => ("indexes", built(builds)),
                Task::ForeignKeys(builds) => ("foreign", built(builds)),
                Task::Ordered(statements) => ("ordered", said(statements)),
                Task::Last(statements) => ("last", said(statements)),
            })
            .collect()
    }

    #[test]
    fn a_foreign_key_is_made_first_and_looked_through_later_where_that_comes_to_the_same() {
        let key = |table: &str, end: &str| {
            let text =
                format!("ALTER TABLE {table} ADD CONSTRAINT \"F\" FOREIGN KEY (x) REFERENCES a.big(x){end};");
            let part = part(text.as_bytes());
            let Part::ForeignKey { table, name, refers, heirs } = part.clone() else { panic!("{part:?}") };
            let statement = Statement { text, line: 1, part, settings: Settings::default() };
            Build { alone: heirs, ..build(statement, table, name, Some(refers), false, &BTreeMap::new()) }
        };
        let parted = |name: &str| BTreeSet::from([("a".to_owned(), name.to_owned())]);
        let mut made = key("ONLY a.small", " DEFERRABLE");
        let look = made.apart(&parted("other")).unwrap();
        assert!(
            made.statement.text.ends_with("REFERENCES a.big(x) DEFERRABLE NOT VALID;"),
            "{}",
            made.statement.text
        );
        assert_eq!(look.statement.text, "ALTER TABLE ONLY \"a\".\"small\" VALIDATE CONSTRAINT \"F\";");
        assert_eq!(look.locks, [(Some("a".to_owned()), "small".to_owned())]);
        for (mut whole, parted) in [
            (key("ONLY a.small", ""), parted("big")),
            (key("ONLY a.small", ""), parted("small")),
            (key("a.small", ""), parted("other")),
            (key("ONLY small", ""), parted("other")),
            (key("ONLY a.small", " NOT VALID"), parted("other")),
        ] {
            let before = whole.statement.text.clone();
            assert!(whole.apart(&parted).is_none(), "{before}");
            assert_eq!(whole.statement.text, before);
        }
    }

    #[test]
    fn only_what_is_known_moves() {
        let small = "CREATE INDEX small ON a.small USING btree (x);";
        let big = "CREATE INDEX big ON a.big USING btree (x);";
        let key = "ALTER TABLE ONLY a.small ADD CONSTRAINT f FOREIGN KEY (x) REFERENCES a.big(x);";
        let (about, about_key) = ("COMMENT ON INDEX a.big IS '';", "COMMENT ON CONSTRAINT f ON a.small IS '';");
        let view = "CREATE MATERIALIZED VIEW a.m AS SELECT 1 AS x;";
        let event = "CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION a.f();";
        let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            arranged(&[small, about, big, key, about_key]),
            [
                ("indexes", own(&["big", "small"])),
                ("ordered", own(&[about])),
                ("foreign", own(&["f"])),
                ("last", own(&[about_key])),
            ]
        );
        assert_eq!(
            arranged(&[small, view, big, event, key]),
            [
                ("indexes", own(&["small"])),
                ("ordered", own(&[view])),
                ("indexes", own(&["big"])),
                ("last", own(&[event, key])),
            ]
        );
        assert_eq!(arranged(&[]), [("last", vec![])]);
    }
}
