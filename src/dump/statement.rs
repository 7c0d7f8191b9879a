//! What one statement of a dump is: enough of its words to count rows, to name roles and
//! extensions, and to leave out what must not be run. Never a parser of SQL.

use super::token::{Token, qualified, tokens};

/// What a statement of a dump does, as far as a restore must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Rows follow for that table (its schema, if it says one).
    Copy {
        /// The schema.
        schema: Option<String>,
        /// The table.
        table: String,
    },
    /// One or more rows for that table, in the statement itself.
    Insert {
        /// The schema.
        schema: Option<String>,
        /// The table.
        table: String,
    },
    /// `SET search_path` or the call for it: the first schema.
    SearchPath(Option<String>),
    /// Creates, changes or drops a whole database.
    Database,
    /// `BEGIN` or `COMMIT`: pg_dump writes them around large objects.
    Transaction,
    /// Ends or leaves a transaction in a way that a dump has no business with.
    Rollback,
    /// Names an owner.
    Owner(String),
    /// Grants to or revokes from roles, or sets default privileges.
    Privileges(Vec<String>),
    /// Needs that extension.
    Extension(String),
    /// Needs these roles, whoever owns what: a policy for them, how one logs in elsewhere.
    Roles(Vec<String>),
    /// Drops what a database has that the dump was restored into before, as `pg_dump --clean` writes it before
    /// anything is made.
    CleanUp,
    /// Makes a schema.
    Schema(String),
    /// Makes a table.
    Table {
        /// Its schema.
        schema: Option<String>,
        /// The table.
        table: String,
        /// Whether it is certainly new, and its rows lie in itself: in no partitions, on no other server.
        plain: bool,
    },
    /// Makes anything else: a sequence or a view in a schema, if it says one.
    Create(Option<String>),
    /// Sets what servers before 17 don't know.
    TransactionTimeout,
    /// `SET client_encoding`.
    ClientEncoding(String),
    /// Anything else.
    Other,
}

/// What a statement does. A statement that was cut short is told by its beginning.
pub fn kind(text: &[u8]) -> Kind {
    let tokens = tokens(text);
    let word = |at: usize, word: &str| tokens.get(at).is_some_and(|token: &Token| token.is(word));
    let Some(Token::Word(first)) = tokens.first() else { return Kind::Other };
    match first.as_str() {
        "copy" => {
            let Some((schema, table, after)) = qualified(&tokens, 1) else { return Kind::Other };
            let mut depth = 0;
            let from_stdin = tokens[after..].windows(2).any(|pair| {
                match pair[0] {
                    Token::Sign('(') => depth += 1,
                    Token::Sign(')') => depth -= 1,
                    _ => {}
                }
                depth == 0 && pair[0].is("from") && pair[1].is("stdin")
            });
            if from_stdin { Kind::Copy { schema, table } } else { Kind::Other }
        }
        "insert" if word(1, "into") => match qualified(&tokens, 2) {
            Some((schema, table, _)) => Kind::Insert { schema, table },
            None => Kind::Other,
        },
        "set" if word(1, "search_path") => Kind::SearchPath(tokens.get(3).and_then(first_schema)),
        "set" if word(1, "transaction_timeout") => Kind::TransactionTimeout,
        "set" if word(1, "client_encoding") => match tokens.get(3) {
            Some(Token::Text(encoding)) => Kind::ClientEncoding(encoding.clone()),
            _ => Kind::Other,
        },
        "set" if word(1, "session") && word(2, "authorization") => match tokens.get(3) {
            Some(Token::Text(role) | Token::Name(role) | Token::Word(role)) => Kind::Owner(role.clone()),
            _ => Kind::Other,
        },
        "select" if tokens.iter().take(4).any(|token| token.is("lo_unlink")) => Kind::CleanUp,
        "select" => search_path_call(&tokens),
        "create" | "alter" | "drop" if word(1, "database") => Kind::Database,
        "comment" if word(1, "on") && word(2, "database") => Kind::Database,
        "security"
            if word(1, "label")
                && tokens.windows(2).take(8).any(|pair| pair[0].is("on") && pair[1].is("database")) =>
        {
            Kind::Database
        }
        "begin" | "commit" if tokens.len() == 2 => Kind::Transaction,
        "begin" | "commit" | "rollback" | "abort" | "end" | "start" | "savepoint" | "release" | "prepare" => {
            Kind::Rollback
        }
        "create" if word(1, "extension") => {
            let at = if word(2, "if") { 5 } else { 2 };
            tokens.get(at).and_then(Token::name).map_or(Kind::Other, |name| Kind::Extension(name.to_owned()))
        }
        "create" if word(1, "policy") => {
            let condition = |token: &Token| token.is("using") || token.is("with");
            let head = tokens.iter().position(condition).unwrap_or(tokens.len());
            Kind::Roles(roles(&tokens[..head]))
        }
        "create" if word(1, "user") && word(2, "mapping") => {
            let at = if word(3, "if") { 7 } else { 4 };
            Kind::Roles(tokens[at.min(tokens.len())..].first().and_then(role).into_iter().collect())
        }
        // `--clean` puts a view that needs a key aside this way.
        "create" if word(1, "or") && word(3, "view") => Kind::CleanUp,
        "create" if word(1, "schema") => {
            let at = if word(2, "if") { 5 } else { 2 };
            let at = if word(at, "authorization") { at + 1 } else { at };
            tokens.get(at).and_then(Token::name).map_or(Kind::Create(None), |name| Kind::Schema(name.to_owned()))
        }
        "create" => made_table(&tokens).unwrap_or_else(|| {
            // What `pg_dump --table` takes besides tables.
            let at = tokens.iter().take(3).position(|token| token.is("sequence") || token.is("view"));
            Kind::Create(at.and_then(|at| qualified(&tokens, at + 1)).and_then(|(schema, ..)| schema))
        }),
        // Which pg_dump before 11 makes anew.
        "drop" if word(1, "schema") && tokens.iter().any(|token| token.is("public")) => Kind::Other,
        // Which drops what isn't there as well.
        "drop" if tokens.windows(2).take(6).any(|pair| pair[0].is("if") && pair[1].is("exists")) => Kind::Other,
        "drop" => Kind::CleanUp,
        "alter" if word(1, "default") && word(2, "privileges") => Kind::Privileges(roles(&tokens)),
        "alter" if word(1, "role") && tokens.windows(2).any(|pair| pair[0].is("in") && pair[1].is("database")) => {
            Kind::Database
        }
        "alter" if word(1, "table") && drops(&tokens) => Kind::CleanUp,
        "alter" => owner(&tokens).map_or(Kind::Other, Kind::Owner),
        "grant" | "revoke" if tokens.windows(2).any(|pair| pair[0].is("on") && pair[1].is("database")) => {
            Kind::Database
        }
        "grant" | "revoke" => Kind::Privileges(roles(&tokens)),
        _ => Kind::Other,
    }
}

/// `SET standard_conforming_strings`, if the statement is that: whether it is on.
pub fn conforming_strings(text: &[u8]) -> Option<bool> {
    if text.len() > 128 || !contains_word(text, b"standard_conforming_strings") {
        return None;
    }
    let tokens = tokens(text);
    if !tokens.first().is_some_and(|first| first.is("set")) {
        return None;
    }
    Some(!tokens.iter().any(|token| match token {
        Token::Word(word) | Token::Text(word) => matches!(word.as_str(), "off" | "false" | "no" | "0"),
        _ => false,
    }))
}

fn contains_word(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word))
}

/// The columns that a COPY names, in their order; none where it names none, or something else.
pub fn copy_columns(text: &[u8]) -> Option<Vec<String>> {
    let tokens = tokens(text);
    let (_, _, at) = qualified(&tokens, 1)?;
    let list = tokens.get(at..)?.strip_prefix(&[Token::Sign('(')])?;
    let end = list.iter().position(|token| *token == Token::Sign(')'))?;
    let name = |token: &Token| token.name().map(str::to_owned);
    list[..end].iter().filter(|token| **token != Token::Sign(',')).map(name).collect()
}

/// `CREATE [UNLOGGED | FOREIGN] TABLE [IF NOT EXISTS] table …`
fn made_table(tokens: &[Token]) -> Option<Kind> {
    let word = |at: usize, word: &str| tokens.get(at).is_some_and(|token| token.is(word));
    let at = 1 + usize::from(word(1, "unlogged") || word(1, "foreign"));
    if !word(at, "table") {
        return None;
    }
    let may_be_there = word(at + 1, "if");
    let (schema, table, _) = qualified(tokens, at + if may_be_there { 4 } else { 1 })?;
    // Of a statement that is longer than what is looked at, nobody knows.
    let whole = tokens.last() == Some(&Token::Sign(';'));
    let parted = tokens.windows(2).any(|pair| pair[0].is("partition") && pair[1].is("by"));
    Some(Kind::Table { schema, table, plain: whole && !parted && !may_be_there && !word(1, "foreign") })
}

fn first_schema(token: &Token) -> Option<String> {
    match token {
        Token::Word(name) | Token::Name(name) | Token::Text(name) if !name.is_empty() => Some(name.clone()),
        _ => None,
    }
}

/// `SELECT pg_catalog.set_config('search_path', '', false)`.
fn search_path_call(tokens: &[Token]) -> Kind {
    let named = |token: &Token| matches!(token, Token::Text(text) if text == "search_path");
    match tokens.iter().position(named) {
        Some(at) if tokens.iter().take(at).any(|token| token.is("set_config")) => {
            let first = match tokens.get(at + 2) {
                Some(Token::Text(path)) => {
                    path.split(',').next().map(|name| name.trim().trim_matches('"').to_owned())
                }
                _ => None,
            };
            Kind::SearchPath(first.filter(|name| !name.is_empty()))
        }
        _ => Kind::Other,
    }
}

/// `ALTER … OWNER TO role;`
pub(super) fn owner(tokens: &[Token]) -> Option<String> {
    match tokens {
        [.., owner, to, role, Token::Sign(';')] if owner.is("owner") && to.is("to") => {
            role.name().map(str::to_owned)
        }
        _ => None,
    }
}

/// `ALTER TABLE … DROP CONSTRAINT …` or `ALTER TABLE … ALTER COLUMN … DROP DEFAULT`, and nothing else.
fn drops(tokens: &[Token]) -> bool {
    let Some((_, _, at)) = qualified(tokens, 2) else { return false };
    let alone = !tokens.contains(&Token::Sign(','));
    let drop = |at: usize, what: &str| {
        tokens.get(at).is_some_and(|token| token.is("drop"))
            && tokens.get(at + 1).is_some_and(|token| token.is(what))
    };
    alone
        && (drop(at, "constraint")
            || (tokens.get(at).is_some_and(|token| token.is("alter")) && drop(at + 3, "default")))
}

/// A role, unless it is one that is always there.
fn role(token: &Token) -> Option<String> {
    match token {
        Token::Word(word)
            if matches!(
                word.as_str(),
                "public" | "group" | "user" | "current_role" | "current_user" | "session_user"
            ) =>
        {
            None
        }
        Token::Word(name) | Token::Name(name) => Some(name.clone()),
        _ => None,
    }
}

/// The roles that a GRANT, a REVOKE, default privileges or a policy name.
pub(super) fn roles(tokens: &[Token]) -> Vec<String> {
    let mut roles = vec![];
    let last = tokens.iter().rposition(|token| token.is("to") || token.is("from"));
    let by = tokens.windows(2).position(|pair| pair[0].is("for") && pair[1].is("role"));
    for start in last.map(|at| at + 1).into_iter().chain(by.map(|at| at + 2)) {
        for token in &tokens[start..] {
            match token {
                Token::Sign(',') => {}
                Token::Word(word)
                    if matches!(word.as_str(), "with" | "granted" | "in" | "grant" | "revoke" | "cascade") =>
                {
                    break;
                }
                Token::Word(_) | Token::Name(_) => roles.extend(role(token)),
                _ => break,
            }
        }
    }
    roles
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pg_dump_writes_is_told_apart() {
        let made = |schema: Option<&str>, table: &str, plain| Kind::Table {
            schema: schema.map(str::to_owned),
            table: table.to_owned(),
            plain,
        };
        let copy = |schema: Option<&str>, table: &str| Kind::Copy {
            schema: schema.map(str::to_owned),
            table: table.to_owned(),
        };
        assert_eq!(
            copy_columns(b"COPY a.b (\"from, x\", id, \"a\"\"b\") FROM stdin;").unwrap(),
            ["from, x", "id", "a\"b"]
        );
        assert_eq!(copy_columns(b"COPY b FROM stdin;"), None);
        for (text, wanted) in [
            ("COPY auth.users (id, name) FROM stdin;", copy(Some("auth"), "users")),
            ("COPY auth.\"we\"\"ird.t\" (\"from\", a) FROM stdin;", copy(Some("auth"), "we\"ird.t")),
            ("COPY users FROM stdin WITH (FORMAT text);", copy(None, "users")),
            ("COPY auth.users TO stdout;", Kind::Other),
            ("SET search_path = auth, pg_catalog;", Kind::SearchPath(Some("auth".to_owned()))),
            ("SELECT pg_catalog.set_config('search_path', '', false);", Kind::SearchPath(None)),
            ("ALTER TABLE auth.users OWNER TO \"Me\";", Kind::Owner("Me".to_owned())),
            ("GRANT SELECT ON TABLE auth.users TO PUBLIC;", Kind::Privileges(vec![])),
            ("GRANT SELECT ON TABLE auth.users TO a WITH GRANT OPTION;", Kind::Privileges(vec!["a".to_owned()])),
            ("GRANT CONNECT ON DATABASE x TO a;", Kind::Database),
            (
                "CREATE EXTENSION IF NOT EXISTS \"uuid-ossp\" WITH SCHEMA public;",
                Kind::Extension("uuid-ossp".to_owned()),
            ),
            ("CREATE DATABASE x WITH TEMPLATE = template0;", Kind::Database),
            ("BEGIN;", Kind::Transaction),
            ("ALTER ROLE a IN DATABASE x SET work_mem TO '5MB';", Kind::Database),
            (
                "CREATE POLICY \"to\" ON a.b FOR SELECT TO c, \"D\" USING ((x TO y));",
                Kind::Roles(vec!["c".into(), "D".into()]),
            ),
            ("CREATE POLICY p ON a.b TO c WITH CHECK (true);", Kind::Roles(vec!["c".into()])),
            ("CREATE POLICY p ON a.b USING (to = 1);", Kind::Roles(vec![])),
            ("CREATE USER MAPPING FOR a SERVER s OPTIONS (password 'x');", Kind::Roles(vec!["a".into()])),
            ("CREATE USER MAPPING FOR PUBLIC SERVER s;", Kind::Roles(vec![])),
            ("DROP TABLE a.b;", Kind::CleanUp),
            ("DROP SCHEMA public;", Kind::Other),
            ("ALTER TABLE ONLY a.b DROP CONSTRAINT c;", Kind::CleanUp),
            ("ALTER TABLE IF EXISTS ONLY a.b DROP CONSTRAINT IF EXISTS c;", Kind::Other),
            ("DROP MATERIALIZED VIEW IF EXISTS a.b;", Kind::Other),
            ("ALTER TABLE a.b ALTER COLUMN c DROP DEFAULT;", Kind::CleanUp),
            ("ALTER TABLE a.b DROP CONSTRAINT c, DROP COLUMN d;", Kind::Other),
            ("CREATE OR REPLACE VIEW a.b AS SELECT NULL::integer AS id;", Kind::CleanUp),
            ("SELECT pg_catalog.lo_unlink('16');", Kind::CleanUp),
            ("CREATE TABLE a.b ();", made(Some("a"), "b", true)),
            ("CREATE UNLOGGED TABLE a.\"B\" (x int);", made(Some("a"), "B", true)),
            ("CREATE TABLE b (x int)\nPARTITION BY RANGE (x);", made(None, "b", false)),
            ("CREATE TABLE IF NOT EXISTS a.b ();", made(Some("a"), "b", false)),
            ("CREATE FOREIGN TABLE a.b (x int) SERVER s;", made(Some("a"), "b", false)),
            ("CREATE TABLE a.b (x int", made(Some("a"), "b", false)),
            ("CREATE VIEW a.b AS SELECT 1;", Kind::Create(Some("a".to_owned()))),
            ("CREATE MATERIALIZED VIEW b AS SELECT 1;", Kind::Create(None)),
            ("CREATE SEQUENCE a.b;", Kind::Create(Some("a".to_owned()))),
            ("CREATE FUNCTION a.b() RETURNS view;", Kind::Create(None)),
            ("CREATE SCHEMA a;", Kind::Schema("a".to_owned())),
            ("CREATE SCHEMA IF NOT EXISTS \"A\";", Kind::Schema("A".to_owned())),
            ("CREATE SCHEMA AUTHORIZATION a;", Kind::Schema("a".to_owned())),
            ("ROLLBACK;", Kind::Rollback),
            (
                "INSERT INTO a.b VALUES ('COPY x FROM stdin');",
                Kind::Insert { schema: Some("a".into()), table: "b".into() },
            ),
            (
                "ALTER DEFAULT PRIVILEGES FOR ROLE a IN SCHEMA s GRANT SELECT ON TABLES TO b;",
                Kind::Privileges(vec!["b".to_owned(), "a".to_owned()]),
            ),
        ] {
            assert_eq!(kind(text.as_bytes()), wanted, "{text}");
        }
        assert_eq!(conforming_strings(b"SET standard_conforming_strings = off;"), Some(false));
        assert_eq!(conforming_strings(b"SET standard_conforming_strings = on;"), Some(true));
    }
}
