//! A part of a plain dump: some schemas, or some tables.
//!
//! Text alone doesn't tell what a table needs. So all that a dump makes before and after its rows is
//! made; only the rows of the part are loaded, and in the end the server, which knows what depends on
//! what, drops the rest ([`super::parallel`]). Here stands what must be known before that.

use std::collections::{BTreeMap, BTreeSet};

use super::manifest::table_name;
use super::outline::{Name, above};
use super::survey::Survey;
use crate::failure::Failure;
use crate::service::postgres::name_parts;

/// A schema, and a table's name in it.
pub type Table = [String; 2];

/// The part of a dump that is restored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Schemas, with all that is in them.
    pub schemas: BTreeSet<String>,
    /// Tables by themselves; those that are partitions of what is chosen are among them.
    pub tables: BTreeSet<Table>,
    /// Tables that aren't chosen, but of which some partitions are, whose own are the keys declared here.
    pub above: BTreeSet<Table>,
    /// Foreign keys that refer to what isn't chosen, in words.
    pub left_out: Vec<String>,
}

impl Choice {
    /// These schemas, or these tables, of the dump at `path`.
    ///
    /// # Errors
    /// When the dump doesn't hold what is named, or no part of it can be restored by itself.
    pub fn of(path: &str, survey: &Survey, schemas: &[String], tables: &[String]) -> Result<Self, Failure> {
        let refused = |why: &str| {
            Failure::permanent(format!("no part of `{path}` can be restored by its name: {why}"))
                .help("leave `schemas` and `tables` out, or use a custom archive (pg_dump -Fc)")
        };
        let outline = &survey.outline;
        if let Some(why) = outline.unfit {
            return Err(refused(why));
        }
        let told = |name: &Name| Some([name.0.clone()?, name.1.clone()]);
        let attached = outline.attached.iter().map(|(child, parent)| Some((told(child)?, told(parent)?)));
        let keys = outline
            .foreign_keys
            .iter()
            .map(|(table, name, refers)| Some((told(table)?, name.as_str(), told(refers)?)));
        let (Some(attached), Some(keys), false) =
            (attached.collect::<Option<Vec<_>>>(), keys.collect::<Option<Vec<_>>>(), outline.bare)
        else {
            return Err(refused("its statements leave schemas out, as pg_dump before 10.3 wrote them"));
        };
        let with_rows = survey.rows.keys().filter_map(|table| name_parts(table));
        let there: BTreeSet<Table> = with_rows.chain(attached.iter().map(|(_, parent)| parent.clone())).collect();
        let wanted: BTreeMap<&String, Table> =
            tables.iter().filter_map(|name| Some((name, name_parts(name)?))).collect();
        let mut choice = Self {
            schemas: schemas.iter().cloned().collect(),
            tables: wanted.values().cloned().collect(),
            above: BTreeSet::new(),
            left_out: vec![],
        };
        let parents = outline.parents();
        for [schema, table] in attached.iter().map(|(child, _)| child).filter(|child| choice.has(child)) {
            let own = table_name(schema, table);
            let through =
                above(&parents, &own).find(|top| survey.rows.contains_key(*top) && !choice.has_rows_of(top));
            if let Some(through) = through {
                return Err(Failure::permanent(format!(
                    "`{path}` holds the rows of {own} among those of {through}"
                ))
                .help(format!("choose {through}, or all of the dump")));
            }
        }
        let missing = schemas.iter().find(|schema| !there.iter().any(|[own, _]| own == *schema));
        let missing =
            missing.or_else(|| wanted.iter().find(|(_, table)| !there.contains(*table)).map(|(name, _)| *name));
        if let Some(missing) = missing {
            return Err(nothing_of(path, missing));
        }
        // Partitions come with what they are attached to, wherever they are, and theirs with them.
        while let Some((child, _)) =
            attached.iter().find(|(child, parent)| choice.has(parent) && !choice.tables.contains(child))
        {
            choice.tables.insert(child.clone());
        }
        while let Some((_, parent)) =
            attached.iter().find(|(child, parent)| choice.has_keys_of(child) && !choice.has_keys_of(parent))
        {
            choice.above.insert(parent.clone());
        }
        let said = |[schema, table]: &Table| format!("{schema}.{table}");
        choice.left_out = keys
            .iter()
            .filter(|(table, _, refers)| choice.has_keys_of(table) && !choice.has(refers))
            .map(|(table, name, refers)| {
                format!("the foreign key {name} of {}: it refers to {}", said(table), said(refers))
            })
            .collect();
        Ok(choice)
    }

    /// Whether a table is chosen.
    pub fn has(&self, table: &Table) -> bool {
        self.schemas.contains(&table[0]) || self.tables.contains(table)
    }

    /// Whether a table's keys are kept: it is chosen, or a partition of it is, which has them, too.
    pub fn has_keys_of(&self, table: &Table) -> bool {
        self.has(table) || self.above.contains(table)
    }

    /// The same of a statement's table.
    pub fn names_keys_of(&self, (schema, table): &Name) -> bool {
        schema.as_ref().is_some_and(|schema| self.has_keys_of(&[schema.clone(), table.clone()]))
    }

    /// The same as [`Self::has`] by a name as in [`Survey::rows`].
    pub fn has_rows_of(&self, table: &str) -> bool {
        name_parts(table).is_some_and(|table| self.has(&table))
    }

    /// Whether a statement's table is chosen.
    pub fn names(&self, (schema, table): &Name) -> bool {
        schema.as_ref().is_some_and(|schema| self.has(&[schema.clone(), table.clone()]))
    }
}

/// Why something can't be restored that a dump doesn't hold.
pub fn nothing_of(path: &str, missing: &str) -> Failure {
    Failure::permanent(format!("`{path}` holds no rows of {missing}"))
        .help("look what it holds with `storage.verify` and `listing: true`")
}
