//! Which parts of a plain dump may be loaded side by side, told from each statement's own
//! words: rows of several tables at once, then indexes and keys, then foreign keys.
//!
//! Whatever isn't known for certain keeps its place ([`Part::InOrder`]), or makes the whole
//! dump one that only `psql` restores ([`Part::Unfit`]).

use std::collections::BTreeMap;

use super::lexer::HELD;
use super::manifest::table_name;
use super::statement::Kind;
use super::token::{Token, qualified, tokens};

/// How much of statements, rows left out, is held in memory.
const STATEMENTS: usize = 48 << 20;

/// A relation as a statement names it: its schema, if it says one, and its name.
pub type Name = (Option<String>, String);

/// What a statement is to somebody who would like to run it at another time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Sets that parameter of the session.
    Setting(String),
    /// Sets a sequence: once the sequence is there, at any time.
    Sequence,
    /// Builds an index of a table.
    Index {
        /// The table.
        table: Name,
        /// The index.
        name: String,
    },
    /// Adds a key of a table that an index holds.
    Key {
        /// The table.
        table: Name,
        /// The key.
        name: String,
    },
    /// Adds a foreign key.
    ForeignKey {
        /// The table that refers.
        table: Name,
        /// The key.
        name: String,
        /// The table that it refers to.
        refers: Name,
        /// Whether the table's heirs get it, too.
        heirs: bool,
    },
    /// Makes a table a partition of another one.
    Attach {
        /// The other one.
        table: Name,
        /// The partition.
        partition: Name,
    },
    /// Fills a materialised view.
    Refresh(Name),
    /// Neither makes nor changes what an index, or a key within a table, is built from.
    Late,
    /// Makes a trigger that fires on other statements.
    EventTrigger,
    /// Keeps its place.
    InOrder,
    /// Keeps the dump from being taken apart.
    Unfit(&'static str),
}

/// A dump in outline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// The bytes of rows of each COPY, in the dump's order.
    pub copies: Vec<u64>,
    /// Partitions, and what they are attached to.
    pub attached: Vec<(Name, Name)>,
    /// Materialised views that are filled, in the order that they are.
    pub refreshed: Vec<Name>,
    /// Foreign keys: their tables, their names, what they refer to.
    pub foreign_keys: Vec<(Name, String, Name)>,
    /// Whether rows come for a table without its schema.
    pub bare: bool,
    /// How many indexes and keys are built once the rows are there.
    pub builds: u64,
    /// What keeps the dump from being taken apart.
    pub unfit: Option<&'static str>,
    stage: Stage,
    held: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Before,
    Rows,
    After,
}

impl Outline {
    pub(super) fn statement(&mut self, text: &[u8], kind: &Kind) {
        if self.unfit.is_some() {
            // Whose rows are whose is asked of such a dump, too; a large object isn't taken apart for it.
            if memchr::memmem::find(text, b" ATTACH PARTITION ").is_some()
                && let Part::Attach { table, partition } = part(text)
            {
                self.attached.push((partition, table));
            }
            return;
        }
        self.unfit = match kind {
            Kind::Database | Kind::Rollback => None,
            Kind::Transaction => Some("it begins transactions of its own, as for large objects"),
            Kind::Copy { .. } if self.stage == Stage::After => Some("rows follow what stands after rows elsewhere"),
            Kind::Copy { schema, .. } => {
                self.stage = Stage::Rows;
                self.bare |= schema.is_none();
                self.copies.push(0);
                (copy_without_end(text).is_none()).then_some("a COPY with options")
            }
            _ if text.len() >= HELD => Some("a statement is very long"),
            _ => self.other(text),
        };
    }

    fn other(&mut self, text: &[u8]) -> Option<&'static str> {
        self.held += text.len();
        if self.held > STATEMENTS {
            return Some("it holds very many statements");
        }
        let part = part(text);
        self.builds += u64::from(matches!(part, Part::Index { .. } | Part::Key { .. } | Part::ForeignKey { .. }));
        match &part {
            Part::Attach { table, partition } => self.attached.push((partition.clone(), table.clone())),
            Part::ForeignKey { table, name, refers, .. } => {
                self.foreign_keys.push((table.clone(), name.clone(), refers.clone()));
            }
            Part::Refresh(view) => self.refreshed.push(view.clone()),
            _ => {}
        }
        match part {
            Part::Unfit(why) => return Some(why),
            Part::EventTrigger if self.stage == Stage::Before => return Some("an event trigger comes before rows"),
            Part::ForeignKey { .. } if self.stage == Stage::Before => {
                return Some("a foreign key comes before rows");
            }
            _ if self.stage == Stage::Before && fires(text) => return Some("a trigger or rule comes before rows"),
            Part::Setting(_) | Part::Sequence => {}
            _ if self.stage == Stage::Rows => self.stage = Stage::After,
            _ => {}
        }
        None
    }

    /// What each partition is attached to, by the names that manifests have.
    pub fn parents(&self) -> BTreeMap<String, String> {
        let key = |(schema, table): &Name| table_name(schema.as_deref().unwrap_or("public"), table);
        self.attached.iter().map(|(own, of)| (key(own), key(of))).collect()
    }

    /// How many rows the partitions of each partitioned table have, if `rows` are those of single tables.
    pub fn partitioned(&self, rows: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
        let parents = self.parents();
        let mut found = BTreeMap::new();
        for (table, rows) in rows {
            for above in above(&parents, table) {
                *found.entry(above.clone()).or_default() += rows;
            }
        }
        found
    }

    pub(super) fn data(&mut self, bytes: usize) {
        if let Some(last) = self.copies.last_mut() {
            *last += bytes as u64;
        }
    }
}

/// The tables that a partition is in, the one at the top last.
pub fn above<'a>(parents: &'a BTreeMap<String, String>, table: &str) -> impl Iterator<Item = &'a String> {
    // No table is above itself: as many steps as there are partitions lead to the top.
    std::iter::successors(parents.get(table), |above| parents.get(*above)).take(parents.len())
}

/// Whether it makes something that changes rows on their way.
fn fires(text: &[u8]) -> bool {
    let tokens = tokens(text);
    tokens.first().is_some_and(|first| first.is("create"))
        && tokens.iter().skip(1).take(3).any(|token| token.is("trigger") || token.is("rule"))
}

/// `COPY t (a, b)` of `COPY t (a, b) FROM stdin;`.
pub fn copy_without_end(text: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(text).ok()?;
    let text = text.strip_suffix("FROM stdin;").or_else(|| text.strip_suffix("from stdin;"))?;
    Some(text.trim_end())
}

/// What a statement is.
pub fn part(text: &[u8]) -> Part {
    let tokens = tokens(text);
    let word = |at: usize, word: &str| tokens.get(at).is_some_and(|token| token.is(word));
    let Some(Token::Word(first)) = tokens.first() else { return Part::Unfit("a statement is not understood") };
    if std::str::from_utf8(text).is_err() {
        return Part::Unfit("it is not UTF-8");
    }
    let whole = tokens.last() == Some(&Token::Sign(';'));
    match first.as_str() {
        "set" => setting(&tokens),
        "select" => call(&tokens),
        "create" if word(1, "index") || (word(1, "unique") && word(2, "index")) => index(&tokens),
        "create" if word(1, "event") => Part::EventTrigger,
        "create" if word(1, "trigger") || word(1, "constraint") || word(1, "statistics") || word(1, "policy") => {
            Part::Late
        }
        "alter" if word(1, "index") => Part::Late,
        "alter" if word(1, "event") => Part::EventTrigger,
        "alter" if word(1, "table") && whole => table(&tokens),
        "comment" | "grant" | "revoke" | "security" => Part::Late,
        "create" if whole && let Some(attach) = partition(&tokens) => attach,
        "refresh" if word(1, "materialized") && word(2, "view") => {
            let at = if word(3, "concurrently") { 4 } else { 3 };
            qualified(&tokens, at).map_or(Part::InOrder, |(schema, view, _)| Part::Refresh((schema, view)))
        }
        "create" | "alter" | "drop" | "refresh" => Part::InOrder,
        "insert" => Part::Unfit("its rows come by INSERT"),
        "do" | "call" => Part::Unfit("it runs code of its own"),
        _ => Part::Unfit("it holds statements that pg_dump doesn't write around rows"),
    }
}

fn setting(tokens: &[Token]) -> Part {
    match tokens {
        [_, Token::Word(name), Token::Sign('='), value, ..] if !matches!(name.as_str(), "role" | "local") => {
            let utf8 = |text: &str| matches!(text.to_ascii_uppercase().as_str(), "UTF8" | "UTF-8" | "UNICODE");
            match value {
                Token::Text(encoding) if name == "client_encoding" && !utf8(encoding) => {
                    Part::Unfit("it is not in UTF-8")
                }
                _ => Part::Setting(name.clone()),
            }
        }
        _ => Part::Unfit("it changes its session's role or transaction"),
    }
}

/// `SELECT pg_catalog.set_config('search_path', '', false);` or `SELECT pg_catalog.setval('s', 3, true);`
fn call(tokens: &[Token]) -> Part {
    let [_, schema, Token::Sign('.'), Token::Word(function), Token::Sign('('), Token::Text(first), rest @ ..] =
        tokens
    else {
        return Part::Unfit("it calls functions");
    };
    let plain = |token: &Token| matches!(token, Token::Sign(',' | '-') | Token::Word(_) | Token::Text(_));
    let ends = matches!(rest, [.., Token::Sign(')'), Token::Sign(';')]);
    if !schema.is("pg_catalog") || !ends || !rest[..rest.len() - 2].iter().all(plain) {
        return Part::Unfit("it calls functions");
    }
    match (function.as_str(), &rest[..rest.len() - 2]) {
        ("set_config", [.., last]) if last.is("false") => Part::Setting(first.clone()),
        ("setval", _) => Part::Sequence,
        _ => Part::Unfit("it calls functions"),
    }
}

/// `CREATE [UNIQUE] INDEX name ON [ONLY] table USING …`
fn index(tokens: &[Token]) -> Part {
    let at = if tokens[1].is("unique") { 3 } else { 2 };
    let name = match tokens.get(at) {
        Some(Token::Word(word)) if matches!(word.as_str(), "concurrently" | "if" | "on") => None,
        token => token.and_then(Token::name),
    };
    match (name, tokens.get(at + 1), qualified(tokens, at + 2)) {
        (Some(name), Some(on), Some((schema, table, after)))
            if on.is("on") && tokens.get(after).is_some_and(|token| token.is("using")) =>
        {
            Part::Index { table: (schema, table), name: name.to_owned() }
        }
        _ => Part::InOrder,
    }
}

/// `CREATE [UNLOGGED | FOREIGN] TABLE partition PARTITION OF table …`, as pg_dump 10 wrote it.
fn partition(tokens: &[Token]) -> Option<Part> {
    let at = tokens.iter().take(3).position(|token| token.is("table"))?;
    let (of, partition, at) = qualified(tokens, at + 1)?;
    if !(tokens.get(at)?.is("partition") && tokens.get(at + 1)?.is("of")) {
        return None;
    }
    let (schema, table, _) = qualified(tokens, at + 2)?;
    Some(Part::Attach { table: (schema, table), partition: (of, partition) })
}

/// `ALTER TABLE [ONLY] table …`
fn table(tokens: &[Token]) -> Part {
    let Some((schema, table, at)) = qualified(tokens, 2) else { return Part::InOrder };
    let word = |ahead: usize, word: &str| tokens.get(at + ahead).is_some_and(|token| token.is(word));
    let mut depth = 0;
    let several = tokens.iter().any(|token| {
        match token {
            Token::Sign('(') => depth += 1,
            Token::Sign(')') => depth -= 1,
            _ => {}
        }
        depth == 0 && *token == Token::Sign(',')
    });
    if several {
        return Part::InOrder;
    }
    if word(0, "cluster") || (word(0, "replica") && word(1, "identity")) {
        return Part::Late;
    }
    if (word(0, "enable") || word(0, "disable") || word(0, "force"))
        && (word(1, "row") || word(1, "trigger") || word(1, "always") || word(1, "replica"))
    {
        return Part::Late;
    }
    if word(0, "attach") && word(1, "partition") {
        return match qualified(tokens, at + 2) {
            Some((of, partition, _)) => Part::Attach { table: (schema, table), partition: (of, partition) },
            None => Part::InOrder,
        };
    }
    let (true, true, Some(name)) =
        (word(0, "add"), word(1, "constraint"), tokens.get(at + 2).and_then(Token::name))
    else {
        return Part::InOrder;
    };
    let (table, name) = ((schema, table), name.to_owned());
    if (word(3, "primary") && word(4, "key")) || word(3, "unique") || word(3, "exclude") {
        return Part::Key { table, name };
    }
    let refers = tokens.iter().position(|token| token.is("references")).and_then(|at| qualified(tokens, at + 1));
    match refers {
        Some((schema, refers, _)) if word(3, "foreign") && word(4, "key") => {
            Part::ForeignKey { table, name, refers: (schema, refers), heirs: !tokens[2].is("only") }
        }
        _ => Part::InOrder,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(schema: &str, table: &str) -> Name {
        (Some(schema.to_owned()), table.to_owned())
    }

    #[test]
    fn what_may_move_is_told_from_what_may_not() {
        let index = |table: &str, index: &str| Part::Index { table: name("a", table), name: index.to_owned() };
        let key = |table: &str, key: &str| Part::Key { table: name("a", table), name: key.to_owned() };
        for (text, wanted) in [
            ("SET default_tablespace = '';", Part::Setting("default_tablespace".to_owned())),
            ("SELECT pg_catalog.set_config('search_path', '', false);", Part::Setting("search_path".to_owned())),
            ("SELECT pg_catalog.setval('a.\"S_s\"', -3, true);", Part::Sequence),
            ("CREATE UNIQUE INDEX i ON a.t USING btree (x) WHERE (y > 1);", index("t", "i")),
            ("CREATE INDEX \"I\" ON ONLY a.\"T,\" USING gin (x);", index("T,", "I")),
            ("ALTER TABLE ONLY a.t\n    ADD CONSTRAINT k PRIMARY KEY (x, y);", key("t", "k")),
            (
                "ALTER TABLE ONLY a.t ADD CONSTRAINT k EXCLUDE USING gist (x WITH =, y WITH &&) WHERE ((z = ','));",
                key("t", "k"),
            ),
            (
                "ALTER TABLE ONLY a.t ADD CONSTRAINT f FOREIGN KEY (x) REFERENCES a.r(id) ON DELETE CASCADE;",
                Part::ForeignKey { table: name("a", "t"), name: "f".into(), refers: name("a", "r"), heirs: false },
            ),
            (
                "ALTER TABLE ONLY a.t ATTACH PARTITION b.u FOR VALUES FROM ('x, y') TO (MAXVALUE);",
                Part::Attach { table: name("a", "t"), partition: name("b", "u") },
            ),
            ("ALTER INDEX a.i ATTACH PARTITION a.j;", Part::Late),
            ("COMMENT ON INDEX a.i IS 'CREATE INDEX';", Part::Late),
            ("ALTER TABLE ONLY a.t REPLICA IDENTITY FULL;", Part::Late),
            // What isn't known for certain stays where it is.
            ("CREATE INDEX ON a.t USING btree (x);", Part::InOrder),
            ("CREATE INDEX CONCURRENTLY i ON a.t USING btree (x);", Part::InOrder),
            ("ALTER TABLE ONLY a.t ADD CONSTRAINT c CHECK (a.f(x)) NOT VALID;", Part::InOrder),
            ("ALTER TABLE a.t ADD CONSTRAINT k UNIQUE (x), DROP COLUMN y;", Part::InOrder),
            ("ALTER TABLE a.t ADD COLUMN x int;", Part::InOrder),
            ("CREATE MATERIALIZED VIEW a.m AS SELECT 1;", Part::InOrder),
            ("REFRESH MATERIALIZED VIEW a.m;", Part::Refresh(name("a", "m"))),
            (
                "CREATE UNLOGGED TABLE b.u PARTITION OF a.t (x DEFAULT 1) FOR VALUES IN (1);",
                Part::Attach { table: name("a", "t"), partition: name("b", "u") },
            ),
            ("CREATE TABLE a.t (x int) PARTITION BY LIST (x);", Part::InOrder),
            ("CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION a.f();", Part::EventTrigger),
            ("SET SESSION AUTHORIZATION 'x';", Part::Unfit("it changes its session's role or transaction")),
            ("SET ROLE x;", Part::Unfit("it changes its session's role or transaction")),
            ("SET client_encoding = 'LATIN1';", Part::Unfit("it is not in UTF-8")),
            ("SELECT pg_catalog.lo_create('16');", Part::Unfit("it calls functions")),
            ("SELECT pg_catalog.setval('s', (SELECT 1), true);", Part::Unfit("it calls functions")),
            ("DO $$begin end$$;", Part::Unfit("it runs code of its own")),
            ("INSERT INTO a.t VALUES (1);", Part::Unfit("its rows come by INSERT")),
        ] {
            assert_eq!(part(text.as_bytes()), wanted, "{text}");
        }
    }
}
