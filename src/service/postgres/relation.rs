//! Tables: their columns, keys and references, and the sequences that feed them.

use tokio_postgres::Row;

use super::{Session, ident};
use crate::failure::Failure;

/// A table, or something that reads like one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// Its identity in its database.
    pub oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Whether it is a table that rows can be written to, partitioned or not.
    pub is_table: bool,
    /// Whether it is one of its own, whose heirs' rows are not its own.
    pub is_plain: bool,
    /// Its columns in order, without those that the server generates.
    pub columns: Vec<Column>,
    /// Columns that the server generates from others.
    pub generated: Vec<String>,
    /// The columns of its primary key.
    pub key: Option<Vec<String>>,
    /// The columns of its primary key, or else of a unique index over columns that are never null.
    pub order: Option<Vec<String>>,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type, as SQL names it.
    pub kind: String,
}

/// A foreign key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The table that refers.
    pub from: (String, String),
    /// Its columns.
    pub columns: Vec<String>,
    /// The table that is referred to.
    pub to: (String, String),
    /// Its columns.
    pub to_columns: Vec<String>,
    /// What is done to rows that refer to a deleted one, when that isn't to refuse.
    pub on_delete: Option<&'static str>,
}

impl Relation {
    /// `schema.table` in SQL.
    pub fn sql(&self) -> String {
        format!("{}.{}", ident(&self.schema), ident(&self.name))
    }

    /// As a `FROM` names it: its own rows, without those of tables that inherit from it.
    pub fn source(&self) -> String {
        if self.is_plain { format!("ONLY {}", self.sql()) } else { self.sql() }
    }

    /// The columns' names.
    pub fn names(&self) -> Vec<String> {
        self.columns.iter().map(|column| column.name.clone()).collect()
    }
}

/// Names as a list in SQL.
pub fn idents(names: &[String]) -> String {
    names.iter().map(|name| ident(name)).collect::<Vec<_>>().join(", ")
}

impl Session {
    /// The table or view of that name, if there is one.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn find_relation(&self, schema: &str, name: &str) -> Result<Option<Relation>, Failure> {
        let attempted = format!("look at table {schema}.{name}");
        let sql = "SELECT c.oid, c.relkind IN ('r', 'p'), c.relkind = 'r' \
                   FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                   WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')";
        let Some(row) = self.maybe_row(&attempted, sql, &[&schema, &name]).await? else { return Ok(None) };
        let oid: u32 = row.get(0);
        let sql = "SELECT attname::text, format_type(atttypid, atttypmod), attgenerated <> '' \
                   FROM pg_catalog.pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped \
                   ORDER BY attnum";
        let columns = self.rows(&attempted, sql, &[&oid]).await?;
        let (generated, columns): (Vec<&Row>, Vec<&Row>) = columns.iter().partition(|row| row.get(2));
        let sql = "SELECT i.indisprimary, \
                          array(SELECT a.attname::text FROM unnest(i.indkey) WITH ORDINALITY AS k (attnum, at) \
                                JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum \
                                WHERE k.at <= i.indnkeyatts ORDER BY k.at) \
                   FROM pg_catalog.pg_index i \
                   WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL \
                     AND (i.indisprimary OR NOT EXISTS ( \
                          SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = i.indrelid \
                             AND a.attnum = ANY (i.indkey) AND NOT a.attnotnull)) \
                   ORDER BY i.indisprimary DESC, i.indnkeyatts, i.indexrelid";
        let keys = self.rows(&attempted, sql, &[&oid]).await?;
        let first = keys.first();
        Ok(Some(Relation {
            oid,
            schema: schema.to_owned(),
            name: name.to_owned(),
            is_table: row.get(1),
            is_plain: row.get(2),
            columns: columns.iter().map(|row| Column { name: row.get(0), kind: row.get(1) }).collect(),
            generated: generated.iter().map(|row| row.get(0)).collect(),
            key: first.filter(|row| row.get(0)).map(|row| row.get(1)),
            order: first.map(|row| row.get(1)),
        }))
    }

    /// Every foreign key of the database.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn references(&self) -> Result<Vec<Reference>, Failure> {
        let sql = "SELECT n.nspname::text, t.relname::text, rn.nspname::text, r.relname::text, \
                          array(SELECT a.attname::text FROM unnest(c.conkey) WITH ORDINALITY AS k (attnum, at) \
                                JOIN pg_catalog.pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.attnum ORDER BY k.at), \
                          array(SELECT a.attname::text FROM unnest(c.confkey) WITH ORDINALITY AS k (attnum, at) \
                                JOIN pg_catalog.pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.attnum ORDER BY k.at), \
                          c.confdeltype::text \
                   FROM pg_catalog.pg_constraint c \
                   JOIN pg_catalog.pg_class t ON t.oid = c.conrelid JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace \
                   JOIN pg_catalog.pg_class r ON r.oid = c.confrelid JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace \
                   WHERE c.contype = 'f' AND c.conparentid = 0 ORDER BY 1, 2, 3, 4, c.conname";
        let rows = self.rows("list the foreign keys", sql, &[]).await?;
        Ok(rows
            .iter()
            .map(|row| Reference {
                from: (row.get(0), row.get(1)),
                columns: row.get(4),
                to: (row.get(2), row.get(3)),
                to_columns: row.get(5),
                on_delete: match row.get::<_, &str>(6) {
                    "c" => Some("are deleted with it"),
                    "n" => Some("lose their reference"),
                    "d" => Some("refer to their default then"),
                    _ => None,
                },
            })
            .collect())
    }

    /// Moves the sequences that feed a table's columns ahead of what is in them. Never back.
    /// Sequences know no transactions: one that is moved stays so, which harms nobody.
    ///
    /// # Errors
    /// What the server said.
    pub async fn advance_sequences(&self, table: &Relation) -> Result<(), Failure> {
        let attempted = format!("move the sequences of {}.{} ahead", table.schema, table.name);
        let sql = "SELECT format('SELECT pg_catalog.setval(%s::regclass, (SELECT max(%I)::int8 FROM %s)) FROM %I.%I \
                                  WHERE last_value < (SELECT max(%I)::int8 FROM %s)', \
                                 quote_literal(s.oid::int8), a.attname, $2::text, n.nspname, s.relname, a.attname, $2::text) \
                   FROM pg_catalog.pg_class s JOIN pg_catalog.pg_sequence q ON q.seqrelid = s.oid AND NOT q.seqcycle \
                   JOIN pg_catalog.pg_namespace n ON n.oid = s.relnamespace \
                   JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = s.oid \
                        AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i') \
                   JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid \
                        AND a.atttypid IN (20, 21, 23) \
                   WHERE s.relkind = 'S' AND q.seqincrement > 0 AND d.refobjid = $1";
        for row in self.rows(&attempted, sql, &[&table.oid, &table.sql()]).await? {
            self.rows(&attempted, row.get(0), &[]).await?;
        }
        Ok(())
    }
}

/// Drops the subscriptions of the session's database. Without its slot's name a subscription goes alone: the slot of
/// that name belongs to the database that was dumped.
///
/// # Errors
/// The server's own words.
pub async fn drop_subscriptions(session: &Session) -> Result<(), Failure> {
    let attempted = "drop subscriptions";
    let sql = "SELECT s.subname::text FROM pg_catalog.pg_subscription s \
               JOIN pg_catalog.pg_database d ON d.oid = s.subdbid WHERE d.datname = pg_catalog.current_database()";
    for row in session.rows(attempted, sql, &[]).await? {
        let subscription = ident(row.get(0));
        for sql in ["DISABLE", "SET (slot_name = NONE)"] {
            session.batch(attempted, &format!("ALTER SUBSCRIPTION {subscription} {sql}")).await?;
        }
        session.batch(attempted, &format!("DROP SUBSCRIPTION {subscription}")).await?;
    }
    Ok(())
}
