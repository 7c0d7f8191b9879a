//! Whether a database's own promises hold: foreign keys, indexes, sequences, extensions.
//!
//! A foreign key that is marked valid can still be broken (by rows loaded with triggers
//! off, or by a damaged index), so its rows are really joined.

use crate::failure::Failure;
use crate::service::postgres::Session;

/// How many things were looked at, in words, and everything that is wrong.
pub(super) async fn look(session: &Session) -> Result<(String, Vec<String>), Failure> {
    let attempted = format!("verify constraints of {}", session.database());
    session
        .batch(
            &attempted,
            "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL row_security = off",
        )
        .await?;
    let found = look_inside(session, &attempted).await;
    let ended = session.batch(&attempted, "ROLLBACK").await;
    let found = found?;
    ended.map(|()| found)
}

async fn look_inside(session: &Session, attempted: &str) -> Result<(String, Vec<String>), Failure> {
    let mut wrong = Vec::new();
    for sql in [UNVALIDATED, INVALID_INDEXES, MISSING_EXTENSIONS] {
        for row in session.rows(attempted, sql, &[]).await? {
            wrong.push(row.get(0));
        }
    }
    let keys = session.rows(attempted, FOREIGN_KEYS, &[]).await?;
    for key in &keys {
        let (name, sql): (&str, &str) = (key.get(0), key.get(1));
        let orphans: i64 = session.row(format!("{attempted}: {name}"), sql, &[]).await?.get(0);
        if orphans > 0 {
            let orphans = super::counted(orphans.unsigned_abs(), "row");
            wrong.push(format!("foreign key {name}: {orphans} without a parent"));
        }
    }
    let sequences = session.rows(attempted, SEQUENCES, &[]).await?;
    for sequence in &sequences {
        let (name, sql): (&str, &str) = (sequence.get(0), sequence.get(1));
        if session.row(format!("{attempted}: {name}"), sql, &[]).await?.get(0) {
            wrong.push(format!("sequence {name} would give values that exist"));
        }
    }
    let sound = format!(
        "{} and {}",
        super::counted(keys.len() as u64, "foreign key"),
        super::counted(sequences.len() as u64, "sequence")
    );
    Ok((sound, wrong))
}

const UNVALIDATED: &str = "\
SELECT format('constraint %I on %I.%I is not validated', c.conname, n.nspname, t.relname)
FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid JOIN pg_namespace n ON n.oid = t.relnamespace
WHERE NOT c.convalidated AND n.nspname NOT IN ('pg_catalog', 'information_schema')
ORDER BY 1";

const INVALID_INDEXES: &str = "\
SELECT format('index %I.%I is not valid', n.nspname, x.relname)
FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_namespace n ON n.oid = x.relnamespace
WHERE NOT (i.indisvalid AND i.indisready) AND n.nspname <> 'pg_toast'
ORDER BY 1";

const MISSING_EXTENSIONS: &str = "\
SELECT format('extension %I is used, but not installed on this server', e.extname)
FROM pg_extension e
WHERE NOT EXISTS (SELECT FROM pg_available_extensions a WHERE a.name = e.extname)
ORDER BY 1";

/// Each foreign key with a query that counts its orphans, compared by the key's own operators.
/// Keys over periods (PostgreSQL 18) compare ranges and are left to the server.
const FOREIGN_KEYS: &str = "\
SELECT format('%I on %I.%I', c.conname, n.nspname, t.relname),
       format('SELECT count(*) FROM %I.%I c WHERE %s AND NOT EXISTS (SELECT FROM %I.%I p WHERE %s)',
              n.nspname, t.relname,
              string_agg(format('c.%I IS NOT NULL', a.attname), ' AND ' ORDER BY k.position),
              pn.nspname, p.relname,
              string_agg(format('p.%I OPERATOR(%I.%s) c.%I', pa.attname, opn.nspname, op.oprname, a.attname),
                         ' AND ' ORDER BY k.position))
FROM pg_constraint c
JOIN pg_class t ON t.oid = c.conrelid JOIN pg_namespace n ON n.oid = t.relnamespace
JOIN pg_class p ON p.oid = c.confrelid JOIN pg_namespace pn ON pn.oid = p.relnamespace
CROSS JOIN LATERAL unnest(c.conkey, c.confkey, c.conpfeqop) WITH ORDINALITY k(child, parent, operator, position)
JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.child
JOIN pg_attribute pa ON pa.attrelid = c.confrelid AND pa.attnum = k.parent
JOIN pg_operator op ON op.oid = k.operator JOIN pg_namespace opn ON opn.oid = op.oprnamespace
WHERE c.contype = 'f' AND c.conparentid = 0 AND coalesce((to_jsonb(c) ->> 'conperiod')::boolean, false) = false
GROUP BY c.oid, c.conname, n.nspname, t.relname, pn.nspname, p.relname
ORDER BY 1";

/// Each sequence that feeds a column, with a query that tells whether the next value
/// isn't beyond what the column holds.
const SEQUENCES: &str = "\
SELECT format('%I.%I', n.nspname, s.relname),
       CASE WHEN q.seqincrement > 0
       THEN format('SELECT coalesce((SELECT max(%I) FROM %I.%I) >= last_value + CASE WHEN is_called THEN %s ELSE 0 END, false) FROM %I.%I',
                   a.attname, tn.nspname, t.relname, q.seqincrement, n.nspname, s.relname)
       ELSE format('SELECT coalesce((SELECT min(%I) FROM %I.%I) <= last_value + CASE WHEN is_called THEN %s ELSE 0 END, false) FROM %I.%I',
                   a.attname, tn.nspname, t.relname, q.seqincrement, n.nspname, s.relname)
       END
FROM pg_class s
JOIN pg_sequence q ON q.seqrelid = s.oid AND NOT q.seqcycle
JOIN pg_namespace n ON n.oid = s.relnamespace
JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = s.oid AND d.refclassid = 'pg_class'::regclass
                AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
JOIN pg_class t ON t.oid = d.refobjid AND t.relkind IN ('r', 'p') JOIN pg_namespace tn ON tn.oid = t.relnamespace
JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid AND a.atttypid IN (20, 21, 23)
WHERE s.relkind = 'S'
ORDER BY 1";
