//! What a backup of a part of a database leaves out although the part needs it: then it can't be restored by itself.
//!
//! `pg_dump` takes tables and schemas without what they depend on, and says nothing of it
//! (<https://www.postgresql.org/docs/15/app-pgdump.html>, at `--table`). A schema alone is no such thing: a restore
//! makes it.

use super::Backup;
use crate::dump::count::Table;
use crate::failure::Failure;
use crate::service::postgres::{Session, ident};

/// `$1`: the tables in the backup. `$2`: its schemas, if it is of some. `$3`: whether it is of some schemas or tables;
/// otherwise all is in it but some tables.
///
/// What tables consist of, and views, depends on objects; those that PostgreSQL brings itself have oids below 16384.
const LEFT_OUT: &str = "\
    WITH own AS (SELECT pg_catalog.to_regclass(name)::oid AS oid FROM pg_catalog.unnest($1::text[]) name), \
    part (classid, objid, of) AS ( \
        SELECT 'pg_catalog.pg_class'::regclass, oid, oid FROM own \
        UNION ALL SELECT 'pg_catalog.pg_class'::regclass, indexrelid, indrelid FROM pg_catalog.pg_index \
        UNION ALL SELECT 'pg_catalog.pg_attrdef'::regclass, oid, adrelid FROM pg_catalog.pg_attrdef \
        UNION ALL SELECT 'pg_catalog.pg_constraint'::regclass, oid, conrelid FROM pg_catalog.pg_constraint \
        UNION ALL SELECT 'pg_catalog.pg_trigger'::regclass, oid, tgrelid FROM pg_catalog.pg_trigger WHERE NOT tgisinternal \
        UNION ALL SELECT 'pg_catalog.pg_policy'::regclass, oid, polrelid FROM pg_catalog.pg_policy), \
    view (classid, objid, of) AS ( \
        SELECT 'pg_catalog.pg_rewrite'::regclass, r.oid, v.oid FROM pg_catalog.pg_rewrite r \
          JOIN pg_catalog.pg_class v ON v.oid = r.ev_class AND v.oid >= 16384 AND v.relkind IN ('v', 'm') \
          JOIN pg_catalog.pg_namespace n ON n.oid = v.relnamespace \
         WHERE (NOT $3 OR n.nspname = ANY ($2::text[])) AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend e \
               WHERE e.classid = 'pg_catalog.pg_class'::regclass AND e.objid = v.oid AND e.deptype = 'e')), \
    needed AS ( \
        SELECT d.refclassid, d.refobjid, pg_catalog.min(p.of::regclass::text) AS by \
          FROM (SELECT * FROM part WHERE of IN (SELECT oid FROM own) UNION ALL SELECT * FROM view) p \
          JOIN pg_catalog.pg_depend d ON d.classid = p.classid AND d.objid = p.objid AND d.refobjid >= 16384 \
         WHERE d.deptype <> 'e' AND d.refobjid <> p.of \
         GROUP BY 1, 2) \
    SELECT pg_catalog.format('%s %s (for %s)', i.type, i.identity, n.by) \
      FROM needed n \
      JOIN LATERAL pg_catalog.pg_identify_object(n.refclassid, n.refobjid, 0) i ON true \
      LEFT JOIN pg_catalog.pg_class c ON n.refclassid = 'pg_catalog.pg_class'::regclass AND c.oid = n.refobjid \
      LEFT JOIN pg_catalog.pg_type t ON n.refclassid = 'pg_catalog.pg_type'::regclass AND t.oid = n.refobjid \
      LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem \
     WHERE CASE WHEN c.relkind IN ('r', 'p') THEN c.oid NOT IN (SELECT oid FROM own) \
                     AND ($3 OR NOT EXISTS (SELECT FROM pg_catalog.pg_depend e WHERE e.classid = n.refclassid \
                                                AND e.objid = c.oid AND e.deptype = 'e')) \
                WHEN NOT $3 OR c.relkind IN ('i', 'I') THEN false \
                WHEN c.relkind = 'S' AND EXISTS (SELECT FROM pg_catalog.pg_depend o WHERE o.classid = n.refclassid \
                         AND o.objid = c.oid AND o.deptype IN ('a', 'i') AND o.refobjid IN (SELECT oid FROM own)) THEN false \
                WHEN t.typrelid IN (SELECT oid FROM own) OR e.typrelid IN (SELECT oid FROM own) THEN false \
                WHEN n.refclassid IN ('pg_catalog.pg_class'::regclass, 'pg_catalog.pg_type'::regclass, \
                         'pg_catalog.pg_proc'::regclass, 'pg_catalog.pg_collation'::regclass, \
                         'pg_catalog.pg_opclass'::regclass, 'pg_catalog.pg_operator'::regclass, \
                         'pg_catalog.pg_ts_config'::regclass) \
                THEN i.schema <> ALL ($2::text[]) OR EXISTS (SELECT FROM pg_catalog.pg_depend e \
                         WHERE e.classid = n.refclassid AND e.objid = n.refobjid AND e.deptype = 'e') \
                ELSE false END \
     ORDER BY 1";

impl Backup {
    /// What the backup leaves out that it needs, in words, if it is of a part of the database.
    ///
    /// # Errors
    /// What the server said.
    pub(super) async fn left_out(&self, session: &Session, all: &[Table]) -> Result<Vec<String>, Failure> {
        if !self.is_partial() {
            return Ok(vec![]);
        }
        let own = all.iter().filter(|table| self.has(table));
        let own: Vec<String> =
            own.map(|table| format!("{}.{}", ident(&table.schema), ident(&table.name))).collect();
        let named = !(self.schemas.is_empty() && self.tables.is_empty());
        let rows = session.rows("look what the part needs", LEFT_OUT, &[&own, &self.schemas, &named]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}
