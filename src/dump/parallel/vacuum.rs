//! Keeps autovacuum away from the tables that are loaded, until all is there. It would hold the lock that each key
//! waits for, until the server's `deadlock_timeout` makes it give way, and read and write rows that are just written.
//!
//! What is turned off is written in the ledger by the transaction that does it, so that it is turned on again whoever
//! ends the restore.

use std::collections::BTreeMap;

use super::ledger::{AUTOVACUUM, SCHEMA};
use super::order::is_small;
use crate::dump::manifest::table_name;
use crate::failure::Failure;
use crate::service::postgres::Session;

/// How the option is set. No dump writes it so: what a dump sets meanwhile is told from it.
const OFF: &str = "autovacuum_enabled=no";

/// Turns it off for tables that aren't small, but for those of which the dump says itself what it wants.
///
/// # Errors
/// What the server said.
pub async fn off(session: &Session, rows: &BTreeMap<String, u64>) -> Result<(), Failure> {
    let sql = "SELECT n.nspname::text, c.relname::text, pg_catalog.format('%I.%I', n.nspname, c.relname), c.oid \
                 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                WHERE c.relkind = 'r' AND pg_catalog.pg_has_role(c.relowner, 'USAGE') \
                  AND NOT EXISTS (SELECT FROM pg_catalog.unnest(c.reloptions) o WHERE o LIKE 'autovacuum_enabled=%')";
    let tables = session.rows("look which tables autovacuum may touch", sql, &[]).await?;
    let tables = tables.iter().filter(|table| {
        let rows = rows.get(&table_name(table.get(0), table.get(1))).copied();
        !is_small(rows.unwrap_or_default())
    });
    let turned_off = tables.map(|table| {
        let (name, oid): (&str, u32) = (table.get(2), table.get(3));
        format!(
            "ALTER TABLE {name} SET ({OFF}); \
             INSERT INTO {SCHEMA}.done VALUES ('{AUTOVACUUM}', {oid}, '');"
        )
    });
    // Several statements at once are one transaction.
    session.batch("keep autovacuum away", &turned_off.collect::<Vec<_>>().concat()).await
}

/// Turns it on again, where [`off`] turned it off, within the transaction that ends the ledger.
///
/// # Errors
/// What the server said.
pub async fn on(session: &Session) -> Result<(), Failure> {
    let sql = format!(
        "SELECT pg_catalog.format('ALTER TABLE %I.%I RESET (autovacuum_enabled);', n.nspname, c.relname) \
           FROM {SCHEMA}.done d JOIN pg_catalog.pg_class c ON c.oid = d.number \
           JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
          WHERE d.what = '{AUTOVACUUM}' AND '{OFF}' = ANY (c.reloptions)"
    );
    let statements = session.rows("look which tables autovacuum is kept from", &sql, &[]).await?;
    let statements: Vec<&str> = statements.iter().map(|row| row.get(0)).collect();
    session.batch("let autovacuum in", &statements.concat()).await
}
