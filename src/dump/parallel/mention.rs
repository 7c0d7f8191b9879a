//! What functions' texts name: the server doesn't know what such a text uses. A name that stands in one, in whatever
//! sense, counts as used.

use std::collections::{BTreeMap, BTreeSet};

use crate::failure::Failure;
use crate::service::postgres::Session;

/// Words of functions' texts, by the functions' schemas; and names of what schemas hold that texts may name.
pub struct Mentions {
    words: BTreeMap<String, BTreeSet<String>>,
    names: BTreeMap<String, Vec<String>>,
}

impl Mentions {
    /// Those of the session's database, without what extensions brought.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn of(session: &Session) -> Result<Self, Failure> {
        let attempted = "look what functions use";
        let own = "NOT EXISTS (SELECT FROM pg_catalog.pg_depend e WHERE e.classid = o.tableoid AND e.objid = o.oid AND e.deptype = 'e') \
                   AND n.nspname <> 'information_schema' AND NOT starts_with(n.nspname::text, 'pg_')";
        let texts = format!(
            "SELECT n.nspname::text, o.prosrc FROM pg_catalog.pg_proc o JOIN pg_catalog.pg_namespace n ON n.oid = o.pronamespace \
               JOIN pg_catalog.pg_language l ON l.oid = o.prolang WHERE l.lanname NOT IN ('c', 'internal') AND {own}"
        );
        let mut words: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for row in session.rows(attempted, &texts, &[]).await? {
            words.entry(row.get(0)).or_default().extend(pieces(row.get(1)));
        }
        let named = format!(
            "SELECT n.nspname::text, o.name FROM ( \
                SELECT tableoid, oid, pronamespace AS space, proname::text AS name FROM pg_catalog.pg_proc \
                UNION ALL SELECT tableoid, oid, relnamespace, relname::text FROM pg_catalog.pg_class WHERE relkind IN ('S', 'c') \
                UNION ALL SELECT tableoid, oid, typnamespace, typname::text FROM pg_catalog.pg_type WHERE typtype IN ('d', 'e', 'r')) o \
               JOIN pg_catalog.pg_namespace n ON n.oid = o.space WHERE {own}"
        );
        let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for row in session.rows(attempted, &named, &[]).await? {
            names.entry(row.get(0)).or_default().push(row.get(1));
        }
        Ok(Self { words, names })
    }

    /// Whether any text has that name.
    pub fn has(&self, name: &str) -> bool {
        self.words.values().any(|words| has(words, name))
    }

    /// Whether a text outside that schema has its name, or that of something in it.
    pub fn has_of_schema(&self, schema: &str) -> bool {
        let names = self.names.get(schema).into_iter().flatten().map(String::as_str);
        let mut all = std::iter::once(schema).chain(names);
        all.any(|name| self.words.iter().any(|(of, words)| of != schema && has(words, name)))
    }

    /// The schema is gone, with the texts in it.
    pub fn forget(&mut self, schema: &str) {
        self.words.remove(schema);
    }
}

/// A quoted name may be of several pieces.
fn has(words: &BTreeSet<String>, name: &str) -> bool {
    pieces(name).all(|piece| words.contains(&piece))
}

fn pieces(text: &str) -> impl Iterator<Item = String> {
    let ends = |c: char| !(c.is_alphanumeric() || c == '_' || c == '$');
    text.split(ends).filter(|piece| !piece.is_empty()).map(str::to_lowercase)
}
