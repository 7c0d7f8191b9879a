//! Exact row counts, by table.

use std::collections::BTreeMap;

use super::manifest::table_name;
use super::rows::canonical;
use crate::failure::Failure;
use crate::service::postgres::session::ask_all;
use crate::service::postgres::{Session, ident};

/// A table whose rows a dump holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Its size on the server's disk.
    pub bytes: u64,
    /// Whether its rows are in its partitions.
    pub partitioned: bool,
    /// The tables that it is a partition of, as manifests name them; the one at the top is the last.
    pub within: Vec<String>,
    /// Whether it belongs to an extension: its rows are the extension's business.
    pub of_extension: bool,
}

impl Table {
    /// `schema.table`, as manifests name it.
    pub fn key(&self) -> String {
        table_name(&self.schema, &self.name)
    }

    /// Whether `names` has it, or a table that it is a partition of.
    pub fn is_named(&self, names: &[String]) -> bool {
        let own = self.key();
        names.iter().any(|name| {
            let name = canonical(name);
            name == own || self.within.contains(&name)
        })
    }

    /// Its rows, exactly, as the session sees them.
    ///
    /// # Errors
    /// What the server said.
    pub async fn count(&self, session: &Session) -> Result<u64, Failure> {
        let row = session.row(format!("count the rows of {}", self.key()), &self.counting(0), &[]).await?;
        Ok(row.get::<_, i64>(1).unsigned_abs())
    }

    /// Gives the number, too: the server may answer several in any order.
    fn counting(&self, number: usize) -> String {
        // A table's own rows without those of its heirs, as COPY dumps them.
        let only = if self.partitioned { "" } else { "ONLY " };
        format!("SELECT {number}, count(*) FROM {only}{}.{}", ident(&self.schema), ident(&self.name))
    }
}

/// The user's tables in the session's database.
///
/// # Errors
/// What the server said.
pub async fn tables(session: &Session) -> Result<Vec<Table>, Failure> {
    let sql = "SELECT n.nspname::text, c.relname::text, pg_catalog.pg_table_size(c.oid), c.relkind = 'p', \
                      EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass \
                              AND d.objid = c.oid AND d.deptype = 'e'), \
                      ARRAY(SELECT name FROM pg_catalog.pg_partition_ancestors(c.oid) WITH ORDINALITY a (oid, at) \
                              JOIN pg_catalog.pg_class ac ON ac.oid = a.oid \
                              JOIN pg_catalog.pg_namespace an ON an.oid = ac.relnamespace, \
                           LATERAL (VALUES (1, an.nspname::text), (2, ac.relname::text)) p (part, name) \
                             WHERE a.oid <> c.oid ORDER BY a.at, part) \
               FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
               WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' \
                 AND n.nspname <> 'information_schema' AND NOT starts_with(n.nspname, 'pg_') \
               ORDER BY 1, 2";
    let rows = session.rows("list the tables", sql, &[]).await?;
    Ok(rows
        .iter()
        .map(|row| Table {
            schema: row.get(0),
            name: row.get(1),
            bytes: row.get::<_, Option<i64>>(2).unwrap_or(0).unsigned_abs(),
            partitioned: row.get(3),
            of_extension: row.get(4),
            within: row
                .get::<_, Vec<String>>(5)
                .chunks_exact(2)
                .map(|name| table_name(&name[0], &name[1]))
                .collect(),
        })
        .collect())
}

/// How many small tables one query counts.
const TABLES: usize = 64;

/// Tables of so many bytes have a query of their own.
const LARGE: u64 = 8 << 20;

/// Refuses a database whose tables don't hold the rows that are expected. Gives how many rows were counted, over all
/// of `sessions`. `watch` is told how many tables are counted, and one that is about to be.
///
/// # Errors
/// The tables that differ.
pub async fn expect_rows(
    sessions: &[Session],
    expected: &BTreeMap<String, u64>,
    watch: &(dyn Fn(u64, &str) + Sync),
) -> Result<u64, Failure> {
    let Some(session) = sessions.first() else { return Ok(0) };
    let there: BTreeMap<String, Table> =
        tables(session).await?.into_iter().map(|table| (table.key(), table)).collect();
    let mut wrong: Vec<_> = expected
        .keys()
        .filter(|name| !there.contains_key(*name))
        .map(|name| format!("{name} is missing"))
        .collect();
    let mut counted: Vec<&Table> =
        there.values().filter(|table| !table.of_extension && expected.contains_key(&table.key())).collect();
    counted.sort_by_key(|table| std::cmp::Reverse(table.bytes));
    let (large, small) = counted.split_at(counted.partition_point(|table| table.bytes >= LARGE));
    let groups: Vec<&[&Table]> = large.chunks(1).chain(small.chunks(TABLES)).collect();
    let statement = |group: &&[&Table]| {
        group.iter().enumerate().map(|(at, table)| table.counting(at)).collect::<Vec<_>>().join(" UNION ALL ")
    };
    let statements: Vec<String> = groups.iter().map(statement).collect();
    let begins: Vec<u64> =
        groups.iter().scan(0, |begun, group| Some(std::mem::replace(begun, *begun + group.len() as u64))).collect();
    let about_to = |at: usize| watch(begins[at], &groups[at][0].key());
    let answers = ask_all(sessions, "count the rows", &statements, &about_to).await?;
    let mut total = 0;
    for (group, rows) in groups.iter().zip(&answers) {
        for row in rows {
            let number = usize::try_from(row.get::<_, i32>(0)).unwrap_or_default();
            let (name, counted) = (group[number].key(), row.get::<_, i64>(1).unsigned_abs());
            total += counted;
            let wanted = expected.get(&name).copied().unwrap_or_default();
            if counted != wanted {
                wrong.push(format!("{name} has {counted} rows instead of {wanted}"));
            }
        }
    }
    wrong.sort();
    if wrong.is_empty() {
        return Ok(total);
    }
    let more = wrong.len().saturating_sub(5);
    wrong.truncate(5);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Err(Failure::permanent(format!(
        "the rows of database {} differ from the backup's: {}{more}",
        session.database(),
        wrong.join(", ")
    ))
    .help("something else wrote there meanwhile, or a rule or trigger changed what was loaded"))
}
