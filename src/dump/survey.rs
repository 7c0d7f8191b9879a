//! What a plain SQL dump says while it streams by: whether it is whole, how many rows it
//! has for each table, and what it needs. Leaves out what a restore must not run.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::encoding::decoded;
use super::lexer::{Lexer, Listener, Verdict};
use super::manifest::table_name;
use super::outline::{Name, Outline, above, copy_without_end};
use super::rows::{Hashes, RowSum, RowsHash};
use super::statement::{Kind, conforming_strings, copy_columns, kind};
use super::whole::Whole;
use crate::failure::Failure;
use crate::service::postgres::ident;

/// What is left out of a dump while it is restored, besides commands of `psql`, transactions and what is said of
/// whole databases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Owners and privileges.
    pub owners: bool,
    /// `SET transaction_timeout`, for servers before 17.
    pub transaction_timeout: bool,
}

/// What a dump was found to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Rows by `schema.table`, for tables whose rows come by COPY.
    pub rows: BTreeMap<String, u64>,
    /// What those rows come to, if that was asked for.
    pub hashes: Hashes,
    /// Schemas that it makes.
    pub schemas: BTreeSet<String>,
    /// Schemas that its tables, sequences and views are in.
    pub within: BTreeSet<String>,
    /// Tables that it makes.
    pub tables: BTreeSet<String>,
    /// Tables whose rows come by INSERT: they can't be counted from outside.
    pub inserted: BTreeSet<String>,
    /// Roles that own something or hold privileges.
    pub roles: BTreeSet<String>,
    /// Roles that it needs even where nobody's objects come back: policies are for them.
    pub named_roles: BTreeSet<String>,
    /// Extensions that it creates.
    pub extensions: BTreeSet<String>,
    /// The database it was taken from, where the dump says so.
    pub database: Option<String>,
    /// What it says of that database as a whole.
    pub whole: Whole,
    /// The server it was taken from.
    pub server_version: Option<String>,
    /// The tool that wrote it.
    pub tool_version: Option<String>,
    /// Its encoding, by PostgreSQL's name.
    pub encoding: Option<String>,
    /// Its lines.
    pub lines: u64,
    /// Which of its parts may be loaded side by side.
    pub outline: Outline,
}

impl Survey {
    /// Schemas that its tables are in and that it doesn't make, as `pg_dump --table` leaves them out.
    pub fn schemas_left_out(&self) -> impl Iterator<Item = &str> {
        let schemas = self.within.iter().map(String::as_str);
        schemas.filter(|schema| self.is_left_out(*schema == "public" || self.schemas.contains(*schema)))
    }

    /// Foreign keys to tables that it doesn't make, in words.
    pub fn keys_left_out(&self) -> Vec<String> {
        let key = |(schema, table): &Name| Some(table_name(schema.as_deref()?, table));
        let words = |(table, name, refers): &(Name, String, Name)| {
            let (table, refers) = (key(table)?, key(refers)?);
            self.is_left_out(self.tables.contains(&refers)).then(|| format!("{name} of {table} to {refers}"))
        };
        self.outline.foreign_keys.iter().filter_map(words).collect()
    }

    /// What it doesn't make itself, an extension may.
    fn is_left_out(&self, made: bool) -> bool {
        !made && self.extensions.is_empty()
    }
}

/// Statements that make the schemas a dump leaves out: it is of a part of a database, whose restore needs them.
pub fn create_schemas(survey: &Survey) -> impl Iterator<Item = String> + '_ {
    survey.schemas_left_out().map(|schema| format!("CREATE SCHEMA IF NOT EXISTS {};", ident(schema)))
}

/// Reads a plain SQL dump piece by piece.
#[derive(Debug, Default)]
pub struct PlainReader {
    lexer: Lexer,
    hearer: Hearer,
}

/// What rows come to, and their columns. Those of other columns can't be added.
type Sum = (RowSum, Vec<String>);

/// Hears a dump go by.
#[derive(Debug, Default)]
pub(super) struct Hearer {
    rules: Rules,
    survey: Survey,
    /// The table whose rows go by, and how many did.
    copying: Option<(String, u64)>,
    /// What each table's rows come to so far, if that was asked for.
    sums: Option<BTreeMap<String, Option<Sum>>>,
    /// The same of the rows that go by.
    sum: Option<Sum>,
    search_path: Option<String>,
    /// Whether a backslash escapes in every string.
    old_strings: bool,
    /// Whether something was made: what was dropped before was there in another database.
    made: bool,
    /// Tables that it made: in the transaction that loads them rows may be frozen.
    fresh: BTreeSet<String>,
    headers: u32,
    trailers: u32,
    restricted: Option<String>,
    /// A statement after the trailer.
    after_trailer: Option<u64>,
}

impl PlainReader {
    /// A reader that leaves out what `rules` say.
    pub fn new(rules: Rules) -> Self {
        Self { hearer: Hearer::new(rules), ..Self::default() }
    }

    /// A reader that adds up what the rows of each table come to as well ([`Survey::hashes`]).
    pub fn hashing() -> Self {
        Self { hearer: Hearer { sums: Some(BTreeMap::new()), ..Hearer::default() }, ..Self::default() }
    }

    /// Reads on; what a restore should run is appended to `out`, if that is wanted.
    ///
    /// # Errors
    /// When this is not a dump that can be restored.
    pub fn push(&mut self, piece: &[u8], out: Option<&mut Vec<u8>>) -> Result<(), Failure> {
        self.lexer.push(piece, &mut self.hearer, out)?;
        if self.hearer.headers == 0 && self.lexer.line() > 100 {
            return Err(not_a_dump("it does not begin as pg_dump's output does"));
        }
        Ok(())
    }

    /// What it does now: the table whose rows go by.
    pub fn table(&self) -> Option<&str> {
        self.hearer.copying()
    }

    /// Whether nothing is open where it is: no statement, no quote, no rows.
    pub fn is_between_statements(&self) -> bool {
        self.lexer.open().is_none()
    }

    /// Ends the dump: proves that it is whole.
    ///
    /// # Errors
    /// What is missing.
    pub fn finish(self) -> Result<Survey, Failure> {
        self.hearer.finish(&self.lexer)
    }
}

impl Hearer {
    /// One that leaves out what `rules` say.
    pub(super) fn new(rules: Rules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// The table whose rows go by.
    pub(super) fn copying(&self) -> Option<&str> {
        self.copying.as_ref().map(|(table, _)| table.as_str())
    }

    /// Ends the dump that `lexer` read: proves that it is whole.
    pub(super) fn finish(mut self, lexer: &Lexer) -> Result<Survey, Failure> {
        let line = lexer.line();
        if line == 1 && self.headers == 0 {
            return Err(not_a_dump("it is empty"));
        }
        if self.headers == 0 {
            return Err(not_a_dump("it does not begin as pg_dump's output does"));
        }
        if let Some(open) = lexer.open() {
            let within = self.copying().map_or_else(String::new, |table| format!(" for {table}"));
            return Err(cut(&format!("it ends at line {line} {open}{within}")));
        }
        self.end_copy();
        if self.trailers < self.headers {
            return Err(cut(&format!("it ends at line {line} without pg_dump's \"database dump complete\"")));
        }
        if let Some(line) = self.after_trailer {
            return Err(not_a_dump(&format!(
                "line {line}: a statement follows pg_dump's \"database dump complete\""
            )));
        }
        if self.restricted.is_some() {
            return Err(cut("its \\restrict is never ended"));
        }
        self.survey.lines = line;
        self.gather();
        Ok(self.survey)
    }

    fn end_copy(&mut self) {
        if let Some((table, rows)) = self.copying.take() {
            if let Some(sums) = &mut self.sums {
                add(sums, table.clone(), self.sum.take());
            }
            *self.survey.rows.entry(table).or_default() += rows;
        }
    }

    /// Puts the rows of partitions to those of the table at the top, where it has some: `pg_dump` writes them through
    /// it where a value may belong to another partition elsewhere, and a query finds all of them there.
    fn gather(&mut self) {
        let survey = &mut self.survey;
        let parents = survey.outline.parents();
        let rows = std::mem::take(&mut survey.rows);
        let place = |table: String| {
            above(&parents, &table).filter(|top| rows.contains_key(*top)).last().cloned().unwrap_or(table)
        };
        let mut sums = BTreeMap::new();
        for (table, sum) in self.sums.take().into_iter().flatten() {
            add(&mut sums, place(table), sum);
        }
        let hash = |(table, sum): (String, Option<Sum>)| {
            sum.map(|(sum, columns)| (table, RowsHash { columns, sum: sum.hex() }))
        };
        survey.hashes = sums.into_iter().filter_map(hash).collect();
        for (table, rows) in &rows {
            *survey.rows.entry(place(table.clone())).or_default() += rows;
        }
    }

    fn table(&self, schema: Option<&String>, table: &str) -> String {
        let schema = schema.map(String::as_str).or(self.search_path.as_deref()).unwrap_or("public");
        table_name(schema, table)
    }

    const fn verdict(dropped: bool) -> Verdict {
        if dropped { Verdict::Drop } else { Verdict::Keep }
    }
}

impl Listener for Hearer {
    fn comment(&mut self, text: &str, _line: u64) {
        self.end_copy();
        let text = text.trim();
        match text {
            "PostgreSQL database dump" => self.headers += 1,
            "PostgreSQL database dump complete" => self.trailers += 1,
            _ => {
                if let Some(version) = text.strip_prefix("Dumped from database version ") {
                    self.survey.server_version.get_or_insert_with(|| version.to_owned());
                } else if let Some(version) = text.strip_prefix("Dumped by pg_dump version ") {
                    self.survey.tool_version.get_or_insert_with(|| version.to_owned());
                }
            }
        }
    }

    fn statement(&mut self, text: &[u8], line: u64) -> Result<Verdict, Failure> {
        self.end_copy();
        if self.trailers > 0 && self.trailers == self.headers {
            self.after_trailer.get_or_insert(line);
        }
        let readable = decoded(self.survey.encoding.as_deref(), text);
        let kind = kind(&readable);
        self.survey.outline.statement(text, &kind);
        self.made |= matches!(kind, Kind::Create(_) | Kind::Schema(_) | Kind::Table { .. } | Kind::Extension(_));
        Ok(match kind {
            Kind::Copy { schema, table } => {
                let table = self.table(schema.as_ref(), &table);
                // With options of its own it keeps these.
                let frozen = self.fresh.contains(&table) && copy_without_end(&readable).is_some();
                self.copying = Some((table, 0));
                let hashing = self.sums.is_some();
                self.sum = hashing.then(|| (RowSum::default(), copy_columns(&readable).unwrap_or_default()));
                Verdict::Copy { frozen }
            }
            Kind::Insert { schema, table } => {
                let table = self.table(schema.as_ref(), &table);
                self.survey.inserted.insert(table);
                Verdict::Keep
            }
            Kind::SearchPath(schema) => {
                self.search_path = schema;
                Verdict::Keep
            }
            Kind::ClientEncoding(encoding) => {
                self.survey.encoding.get_or_insert(encoding);
                Verdict::Keep
            }
            // The database to restore into is the step's to choose: it says the same of that one itself.
            Kind::Database => {
                self.survey.whole.hear(&readable, self.old_strings);
                Verdict::Drop
            }
            // Everything is one transaction.
            Kind::Transaction => Verdict::Drop,
            Kind::Rollback => {
                return Err(Failure::permanent(format!("line {line} of the dump ends the restore's transaction"))
                    .help("this is not what pg_dump writes; look at the file before you trust it"));
            }
            Kind::Owner(role) => {
                self.survey.roles.insert(role);
                Self::verdict(self.rules.owners)
            }
            Kind::Privileges(roles) => {
                self.survey.roles.extend(roles);
                Self::verdict(self.rules.owners)
            }
            Kind::Extension(name) => {
                self.survey.extensions.insert(name);
                Verdict::Keep
            }
            Kind::Roles(roles) => {
                self.survey.named_roles.extend(roles);
                Verdict::Keep
            }
            // A restore begins with nothing.
            Kind::CleanUp => Self::verdict(!self.made),
            Kind::TransactionTimeout => Self::verdict(self.rules.transaction_timeout),
            Kind::Other => {
                self.old_strings = conforming_strings(&readable).map_or(self.old_strings, |on| !on);
                Verdict::Keep
            }
            Kind::Schema(name) => {
                self.survey.schemas.insert(name);
                Verdict::Keep
            }
            Kind::Table { schema, table, plain } => {
                let table = self.table(schema.as_ref(), &table);
                if plain {
                    self.fresh.insert(table.clone());
                }
                self.survey.within.extend(schema);
                self.survey.tables.insert(table);
                Verdict::Keep
            }
            Kind::Create(schema) => {
                self.survey.within.extend(schema);
                Verdict::Keep
            }
        })
    }

    fn command(&mut self, text: &str, line: u64) -> Result<bool, Failure> {
        self.end_copy();
        let (name, argument) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let argument = argument.trim();
        match name {
            // Left out: a load puts `psql` under a key of its own ([`super::load`]).
            "\\restrict" | "\\unrestrict" if !is_key(argument) => {
                Err(not_a_dump(&format!("line {line}: {name} with something else than a key")))
            }
            "\\restrict" => {
                self.restricted = Some(argument.to_owned());
                Ok(false)
            }
            "\\unrestrict" => {
                if self.restricted.take().as_deref() != Some(argument) {
                    return Err(not_a_dump(&format!("line {line}: its \\unrestrict does not fit its \\restrict")));
                }
                Ok(false)
            }
            "\\connect" | "\\c" => {
                let database = connect_target(argument);
                match &self.survey.database {
                    Some(known) if *known != database => Err(Failure::permanent(format!(
                        "the dump holds more than one database: `{known}` and, at line {line}, `{database}`"
                    ))
                    .help("restore a dump of one database (pg_dump), not of a whole cluster (pg_dumpall)")),
                    _ => {
                        self.survey.database = Some(database);
                        Ok(false)
                    }
                }
            }
            _ => Err(not_a_dump(&format!("line {line}: the psql command `{name}`, which could do anything"))),
        }
    }

    fn row_piece(&mut self, piece: &[u8]) {
        if let Some((sum, _)) = &mut self.sum {
            sum.piece(piece);
        }
    }

    fn row(&mut self) {
        if let Some((_, rows)) = &mut self.copying {
            *rows += 1;
        }
        if let Some((sum, _)) = &mut self.sum {
            sum.end();
        }
    }

    fn data(&mut self, rows: &[u8]) {
        self.survey.outline.data(rows.len());
    }
}

/// Adds what rows of a table come to.
fn add(sums: &mut BTreeMap<String, Option<Sum>>, table: String, sum: Option<Sum>) {
    match sums.entry(table) {
        Entry::Vacant(first) => drop(first.insert(sum)),
        Entry::Occupied(mut known) => match (known.get_mut(), sum) {
            (Some((before, of)), Some((sum, columns))) if *of == columns => before.join(&sum),
            (known, _) => *known = None,
        },
    }
}

/// Whether it is a key as pg_dump makes them: `psql` would run what follows one on its line.
fn is_key(argument: &str) -> bool {
    !argument.is_empty() && argument.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// The database of `\connect x`, `\connect "x"` or `\connect -reuse-previous=on "dbname='x'"`.
fn connect_target(argument: &str) -> String {
    let argument = argument.strip_prefix("-reuse-previous=on").unwrap_or(argument).trim();
    let unquoted = argument.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let argument = unquoted.map_or_else(|| argument.to_owned(), |name| name.replace("\"\"", "\""));
    match argument.strip_prefix("dbname='").and_then(|rest| rest.strip_suffix('\'')) {
        Some(name) => name.replace("\\'", "'").replace("\\\\", "\\"),
        None => argument,
    }
}

fn not_a_dump(why: &str) -> Failure {
    Failure::permanent(format!("this is not a dump that can be restored: {why}"))
        .help("restore another backup, or look at the file before you trust it")
}

fn cut(why: &str) -> Failure {
    Failure::permanent(format!("the dump is not whole: {why}"))
        .help("it was cut while it was written or copied; restore another backup")
}

#[cfg(test)]
mod tests;
