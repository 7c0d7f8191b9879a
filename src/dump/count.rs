//! Exact row counts, by table.

use std::collections::BTreeMap;

use super::manifest::table_name;
use crate::failure::Failure;
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
    /// Whether it belongs to an extension: its rows are the extension's business.
    pub of_extension: bool,
}

impl Table {
    /// `schema.table`, as manifests name it.
    pub fn key(&self) -> String {
        table_name(&self.schema, &self.name)
    }

    /// Its rows, exactly, as the session sees them.
    ///
    /// # Errors
    /// What the server said.
    pub async fn count(&self, session: &Session) -> Result<u64, Failure> {
        // A table's own rows without those of its heirs, as COPY dumps them.
        let only = if self.partitioned { "" } else { "ONLY " };
        let sql = format!("SELECT count(*) FROM {only}{}.{}", ident(&self.schema), ident(&self.name));
        let row = session.row(format!("count the rows of {}", self.key()), &sql, &[]).await?;
        Ok(row.get::<_, i64>(0).unsigned_abs())
    }
}

/// The user's tables in the session's database.
///
/// # Errors
/// What the server said.
pub async fn tables(session: &Session) -> Result<Vec<Table>, Failure> {
    let sql = "SELECT n.nspname::text, c.relname::text, pg_catalog.pg_table_size(c.oid), c.relkind = 'p', \
                      EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass \
                              AND d.objid = c.oid AND d.deptype = 'e') \
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
        })
        .collect())
}

/// Refuses a database whose tables don't hold the rows that are expected. Gives how many
/// rows were counted. `watch` is told each table before it is counted.
///
/// # Errors
/// The tables that differ.
pub async fn expect_rows(
    session: &Session,
    expected: &BTreeMap<String, u64>,
    mut watch: impl FnMut(&str),
) -> Result<u64, Failure> {
    let there: BTreeMap<String, Table> =
        tables(session).await?.into_iter().map(|table| (table.key(), table)).collect();
    let mut total = 0;
    let mut wrong = vec![];
    for (name, rows) in expected {
        watch(name);
        match there.get(name) {
            Some(table) if table.of_extension => {}
            Some(table) => {
                let counted = table.count(session).await?;
                total += counted;
                if counted != *rows {
                    wrong.push(format!("{name} has {counted} rows instead of {rows}"));
                }
            }
            None => wrong.push(format!("{name} is missing")),
        }
    }
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
