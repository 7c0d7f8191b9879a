//! Drops what of a restored dump isn't chosen. The server knows what depends on what; so nothing is
//! dropped that the chosen part needs, and what of it must go is told.

use std::collections::BTreeSet;

use super::super::choice::Choice;
use super::super::outline::Name;
use super::Journal;
use super::mention::Mentions;
use crate::failure::Failure;
use crate::kill;
use crate::service::postgres::relation::drop_subscriptions;
use crate::service::postgres::{Session, ident};

/// How many relations one transaction drops: each locks several.
const RELATIONS: usize = 100;

/// The chosen relations, of `$1` schemas, and of `$2` and `$3` tables' schemas and names.
const CHOSEN: &str = "WITH chosen AS ( \
       SELECT c.oid, c.relkind FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
        WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') \
          AND (n.nspname::text = ANY ($1::text[]) \
               OR (n.nspname::text, c.relname::text) IN (SELECT * FROM unnest($2::text[], $3::text[]))))";

/// What an extension made, or PostgreSQL's own; `{class}` and `{oid}` name the object.
fn is_own(class: &str, oid: &str) -> String {
    format!(
        "NOT EXISTS (SELECT FROM pg_catalog.pg_depend e WHERE e.classid = 'pg_catalog.{class}'::regclass \
                        AND e.objid = {oid} AND e.deptype = 'e')"
    )
}

/// See the module.
pub struct Narrow<'a> {
    session: &'a Session,
    schemas: Vec<&'a str>,
    /// Schemas and names of tables.
    of: Vec<&'a str>,
    tables: Vec<&'a str>,
    journal: &'a dyn Journal,
}

/// A chosen table, its columns, keys and triggers, a view, a function: what it is, and its name.
type Object = (String, String);

impl<'a> Narrow<'a> {
    pub fn new(session: &'a Session, choice: &'a Choice, journal: &'a dyn Journal) -> Self {
        Self {
            session,
            schemas: choice.schemas.iter().map(String::as_str).collect(),
            of: choice.tables.iter().map(|[schema, _]| schema.as_str()).collect(),
            tables: choice.tables.iter().map(|[_, table]| table.as_str()).collect(),
            journal,
        }
    }

    /// Drops the rest; what an earlier attempt dropped of it is gone. What of the chosen part has to go with it is told.
    ///
    /// # Errors
    /// When a chosen table can't be without something that isn't chosen.
    pub async fn run(&self) -> Result<(), Failure> {
        // Names come with their schemas.
        self.session.batch("set up the session", "SET search_path = ''").await?;
        self.drop_all("pg_event_trigger", "evtname", "EVENT TRIGGER").await?;
        self.drop_all("pg_publication", "pubname", "PUBLICATION").await?;
        self.subscriptions().await?;
        let mut there = self.chosen().await?;
        let detach = self.detach().await?;
        let relations = self.relations().await?;
        for some in detach.chunks(RELATIONS).chain(relations.chunks(RELATIONS)) {
            self.without(&some.concat(), &mut there).await?;
        }
        self.schemas(&there).await?;
        self.sequences().await
    }

    /// Fills those materialised views of a dump that are there.
    ///
    /// # Errors
    /// The server's own words.
    pub async fn refresh(&self, views: &[Name]) -> Result<(), Failure> {
        let sql = "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c \
                     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                    WHERE c.relkind = 'm' AND NOT c.relispopulated AND c.oid IN (SELECT oid FROM chosen)";
        let empty = self.rows("look which materialised views are empty", sql).await?;
        for (schema, view) in views {
            let Some(schema) = schema else { continue };
            if empty.iter().any(|row| row[0] == *schema && row[1] == *view) {
                let refresh = format!("REFRESH MATERIALIZED VIEW {}.{}", ident(schema), ident(view));
                kill::around("narrow", self.session.batch(format!("fill {schema}.{view}"), &refresh)).await?;
            }
        }
        Ok(())
    }

    /// Runs that in one transaction, unless a chosen table or column would go with it. What else goes of the chosen part
    /// is told.
    async fn without(&self, sql: &str, there: &mut BTreeSet<Object>) -> Result<(), Failure> {
        self.session.batch("begin a transaction", "BEGIN").await?;
        self.session.batch("drop what is not chosen", sql).await?;
        let left = self.chosen().await?;
        let gone: BTreeSet<Object> = there.difference(&left).cloned().collect();
        let rows = ["table", "table column", "foreign table", "foreign table column"];
        if let Some((what, name)) = gone.iter().find(|(what, _)| rows.contains(&what.as_str())) {
            self.session.batch("give up the transaction", "ROLLBACK").await?;
            return Err(Failure::permanent(format!("the {what} {name} can't be without what is not chosen"))
                .help("add what it needs to `schemas` or `tables`: a table whose row type it has, say"));
        }
        // Told before it is done: nobody could tell it after a kill.
        for (what, name) in gone {
            self.journal.left_out(&format!("the {what} {name}: it needs what is not chosen"));
        }
        kill::around("narrow", self.session.batch("commit a transaction", "COMMIT")).await?;
        *there = left;
        Ok(())
    }

    async fn rows(&self, what: &str, sql: &str) -> Result<Vec<Vec<String>>, Failure> {
        let sql = format!("{CHOSEN} {sql}");
        let found = self.session.rows(what, &sql, &[&self.schemas, &self.of, &self.tables]).await?;
        Ok(found.iter().map(|row| (0..row.len()).map(|at| row.get(at)).collect()).collect())
    }

    /// Objects of the whole database, of a kind that belongs to no schema.
    async fn drop_all(&self, catalog: &str, name: &str, kind: &str) -> Result<(), Failure> {
        let sql = format!("SELECT {name}::text FROM pg_catalog.{catalog} c WHERE {}", is_own(catalog, "c.oid"));
        for row in self.session.rows("look what is not chosen", &sql, &[]).await? {
            let name: &str = row.get(0);
            let drop = format!("DROP {kind} {}", ident(name));
            self.journal.left_out(&format!("the {} {name}: it is the whole database's", kind.to_lowercase()));
            self.session.batch("drop what is not chosen", &drop).await?;
        }
        Ok(())
    }

    async fn subscriptions(&self) -> Result<(), Failure> {
        let sql = "SELECT s.subname::text FROM pg_catalog.pg_subscription s \
                     JOIN pg_catalog.pg_database d ON d.oid = s.subdbid WHERE d.datname = pg_catalog.current_database()";
        for row in self.session.rows("look what is not chosen", sql, &[]).await? {
            self.journal
                .left_out(&format!("the subscription {}: it is the whole database's", row.get::<_, &str>(0)));
        }
        drop_subscriptions(self.session).await
    }

    /// The statements that take chosen tables from parents that aren't.
    async fn detach(&self) -> Result<Vec<String>, Failure> {
        let sql = "SELECT CASE WHEN c.relispartition \
                     THEN format('ALTER TABLE %s DETACH PARTITION %s;', i.inhparent::regclass, c.oid::regclass) \
                     ELSE format('ALTER TABLE %s NO INHERIT %s;', c.oid::regclass, i.inhparent::regclass) END \
                     FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid \
                    WHERE c.relkind IN ('r', 'p', 'f') AND i.inhrelid IN (SELECT oid FROM chosen) \
                      AND i.inhparent NOT IN (SELECT oid FROM chosen)";
        Ok(self.rows("look what is not chosen", sql).await?.concat())
    }

    /// The statements that drop relations which aren't chosen.
    async fn relations(&self) -> Result<Vec<String>, Failure> {
        let sql = format!(
            "SELECT format('DROP %s IF EXISTS %I.%I CASCADE;', \
                      CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' \
                                     WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END, n.nspname, c.relname) \
               FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
              WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.oid NOT IN (SELECT oid FROM chosen) \
                AND n.nspname <> 'information_schema' AND NOT starts_with(n.nspname::text, 'pg_') AND {} \
              ORDER BY c.oid DESC",
            is_own("pg_class", "c.oid")
        );
        Ok(self.rows("look what is not chosen", &sql).await?.concat())
    }

    /// Drops sequences that nothing of what is left counts with, and no function's text names.
    async fn sequences(&self) -> Result<(), Failure> {
        let mentions = Mentions::of(self.session).await?;
        let sql = format!(
            "SELECT format('DROP SEQUENCE %I.%I;', n.nspname, c.relname), c.relname::text \
               FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
              WHERE c.relkind = 'S' AND c.oid NOT IN (SELECT oid FROM chosen) \
                AND n.nspname <> 'information_schema' AND NOT starts_with(n.nspname::text, 'pg_') AND {} \
                AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass \
                                   AND d.objid = c.oid AND d.deptype IN ('a', 'i')) \
                AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.refclassid = 'pg_catalog.pg_class'::regclass \
                                   AND d.refobjid = c.oid AND d.deptype = 'n')",
            is_own("pg_class", "c.oid")
        );
        let found = self.rows("look what is not chosen", &sql).await?;
        let drops: Vec<&str> =
            found.iter().filter(|row| !mentions.has(&row[1])).map(|row| row[0].as_str()).collect();
        for drops in drops.chunks(RELATIONS) {
            self.session.batch("drop what is not chosen", &drops.concat()).await?;
        }
        Ok(())
    }

    /// Drops schemas of which the chosen part needs nothing: no type, no function, nothing that a function's text outside
    /// it names. One that holds an extension stays, whatever of it such a text calls.
    async fn schemas(&self, there: &BTreeSet<Object>) -> Result<(), Failure> {
        let mut mentions = Mentions::of(self.session).await?;
        let sql = format!(
            "SELECT format('DROP SCHEMA %I CASCADE', n.nspname), n.nspname::text FROM pg_catalog.pg_namespace n \
              WHERE n.nspname NOT IN ('public', 'information_schema') AND NOT starts_with(n.nspname::text, 'pg_') \
                AND n.nspname::text <> ALL ($1::text[] || $2::text[]) AND $3::text[] IS NOT NULL \
                AND NOT EXISTS (SELECT FROM pg_catalog.pg_extension e WHERE e.extnamespace = n.oid) AND {}",
            is_own("pg_namespace", "n.oid")
        );
        for drop in self.rows("look what is not chosen", &sql).await? {
            if mentions.has_of_schema(&drop[1]) {
                continue;
            }
            self.session.batch("begin a transaction", "BEGIN").await?;
            self.session.batch("drop what is not chosen", &drop[0]).await?;
            let goes = there.is_subset(&self.chosen().await?);
            let ends = if goes { "COMMIT" } else { "ROLLBACK" };
            kill::around("narrow", self.session.batch("end a transaction", ends)).await?;
            if goes {
                mentions.forget(&drop[1]);
            }
        }
        Ok(())
    }

    /// All that belongs to the chosen part.
    async fn chosen(&self) -> Result<BTreeSet<Object>, Failure> {
        let sql = "SELECT i.type, i.identity FROM ( \
                     SELECT 'pg_catalog.pg_class'::regclass::oid AS class, oid, 0 AS sub FROM chosen \
                     UNION ALL SELECT 'pg_catalog.pg_class'::regclass, a.attrelid, a.attnum \
                                 FROM pg_catalog.pg_attribute a JOIN chosen ON chosen.oid = a.attrelid \
                                WHERE chosen.relkind IN ('r', 'p', 'f') AND a.attnum > 0 AND NOT a.attisdropped \
                     UNION ALL SELECT 'pg_catalog.pg_constraint'::regclass, c.oid, 0 \
                                 FROM pg_catalog.pg_constraint c JOIN chosen ON chosen.oid = c.conrelid \
                     UNION ALL SELECT 'pg_catalog.pg_class'::regclass, x.indexrelid, 0 \
                                 FROM pg_catalog.pg_index x JOIN chosen ON chosen.oid = x.indrelid \
                                WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_constraint c WHERE c.conindid = x.indexrelid AND c.conrelid = x.indrelid) \
                     UNION ALL SELECT 'pg_catalog.pg_statistic_ext'::regclass, s.oid, 0 \
                                 FROM pg_catalog.pg_statistic_ext s JOIN chosen ON chosen.oid = s.stxrelid \
                     UNION ALL SELECT 'pg_catalog.pg_attrdef'::regclass, d.oid, 0 \
                                 FROM pg_catalog.pg_attrdef d JOIN chosen ON chosen.oid = d.adrelid \
                     UNION ALL SELECT 'pg_catalog.pg_trigger'::regclass, t.oid, 0 \
                                 FROM pg_catalog.pg_trigger t JOIN chosen ON chosen.oid = t.tgrelid WHERE NOT t.tgisinternal \
                     UNION ALL SELECT 'pg_catalog.pg_policy'::regclass, p.oid, 0 \
                                 FROM pg_catalog.pg_policy p JOIN chosen ON chosen.oid = p.polrelid \
                     UNION ALL SELECT 'pg_catalog.pg_rewrite'::regclass, r.oid, 0 \
                                 FROM pg_catalog.pg_rewrite r JOIN chosen ON chosen.oid = r.ev_class WHERE r.rulename <> '_RETURN' \
                     UNION ALL SELECT d.classid, d.objid, 0 FROM pg_catalog.pg_depend d \
                                 JOIN pg_catalog.pg_namespace n ON n.oid = d.refobjid \
                                WHERE d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.deptype = 'n' \
                                  AND d.classid <> 'pg_catalog.pg_class'::regclass AND n.nspname::text = ANY ($1::text[])) o, \
                   LATERAL pg_catalog.pg_identify_object(o.class, o.oid, o.sub) i WHERE i.identity IS NOT NULL";
        let found = self.rows("look what is chosen", sql).await?;
        Ok(found
            .into_iter()
            .filter_map(|row| row.try_into().ok())
            .map(|[what, name]: [String; 2]| (what, name))
            .collect())
    }
}
