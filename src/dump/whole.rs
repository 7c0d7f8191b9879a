//! What a dump says of its database as a whole, as `pg_dump --create` writes it: how it is
//! made, whose it is, its settings and privileges. A restore chooses the database's name itself.

use super::statement::{owner, roles};
use super::token::{Token, placed};
use crate::service::postgres::ident;

/// What a dump says of its database as a whole. Its comment is not taken over: a restored database bears its marker there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whole {
    /// What `CREATE DATABASE` says besides name, template and tablespace: encoding, locale.
    pub options: Option<String>,
    /// `TABLESPACE = x`.
    pub tablespace: Option<String>,
    /// What is said of it then: in the dump's order, but its owner last, who need not be the one that says it.
    pub said: Vec<Said>,
    /// How many statements about it can't be said again, as they can't be read for certain.
    pub unread: u64,
}

/// A statement about a database, whatever that is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    before: String,
    after: String,
    /// Whether it says who owns the database or may use it.
    pub access: bool,
    owns: bool,
    /// The roles that it names.
    pub roles: Vec<String>,
}

impl Said {
    /// The statement, about that database.
    pub fn of(&self, database: &str) -> String {
        format!("{}{}{}", self.before, ident(database), self.after)
    }
}

impl Whole {
    /// Hears one statement about a database, in UTF-8. What pg_dump doesn't write is left alone:
    /// it could rename the database, or move it. `old_strings`: where a backslash escapes in every string.
    pub(super) fn hear(&mut self, text: &[u8], old_strings: bool) {
        let text = match std::str::from_utf8(text) {
            Ok(text) if !(old_strings && text.contains('\\')) => text,
            _ => {
                self.unread += 1;
                return;
            }
        };
        let placed = placed(text);
        let tokens: Vec<Token> = placed.iter().map(|(_, token)| token.clone()).collect();
        let start = |at: usize| placed[at].0.start;
        let leads = |pair: &[Token]| {
            ["create", "alter", "on", "in"].iter().any(|word| pair[0].is(word)) && pair[1].is("database")
        };
        if tokens.first().is_some_and(|first| first.is("drop") || first.is("comment")) {
            return;
        }
        let (Some(at), Some(Token::Sign(';'))) = (tokens.windows(2).position(leads), tokens.last()) else {
            // One that was cut short has no end.
            self.unread += 1;
            return;
        };
        let (name, rest) = (at + 2, tokens.get(at + 3..).unwrap_or_default());
        let next = |word: &str| rest.first().is_some_and(|token| token.is(word));
        let owns = next("owner");
        let said = |access, roles| Said {
            before: text[..start(name)].to_owned(),
            after: text[placed[name].0.end..].to_owned(),
            access,
            owns,
            roles,
        };
        let first = |word: &str| tokens[0].is(word);
        if first("create") {
            let template = |part: &[Token]| part[0].is("template") && part[1] == Token::Sign('=');
            let (from, to) = (tokens.windows(2).position(template).map(|at| at + 3), tokens.len() - 1);
            let tablespace = tokens.iter().position(|token| token.is("tablespace")).unwrap_or(to);
            let part = |from: usize, to: usize| (from < to).then(|| text[start(from)..start(to)].trim().to_owned());
            self.options = from.and_then(|from| part(from, tablespace));
            self.tablespace = part(tablespace, to);
        } else if first("grant") || first("revoke") {
            self.said.push(said(true, roles(&tokens)));
        } else if first("alter") && tokens[1].is("role") {
            self.said.push(said(false, tokens[2].name().map(str::to_owned).into_iter().collect()));
        } else if first("alter") && owns {
            self.said.push(said(true, owner(&tokens).into_iter().collect()));
        } else if first("security")
            || next("is_template")
            || next("connection")
            || (next("set") && !rest.get(1).is_some_and(|token| token.is("tablespace")))
        {
            self.said.push(said(false, vec![]));
        }
        self.said.sort_by_key(|said| said.owns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_a_database_is_said_of_another() {
        let mut whole = Whole::default();
        for statement in [
            "CREATE DATABASE \"Da \"\"ta\" WITH TEMPLATE = template0 ENCODING = 'UTF8' LOCALE = 'C' TABLESPACE = \"t s\";",
            "ALTER DATABASE \"Da \"\"ta\" CONNECTION LIMIT = 7;",
            "ALTER DATABASE \"Da \"\"ta\" OWNER TO \"Me\";",
            "COMMENT ON DATABASE \"Da \"\"ta\" IS 'on database x';",
            "ALTER DATABASE \"Da \"\"ta\" IS_TEMPLATE = true;",
            "ALTER DATABASE \"Da \"\"ta\" SET search_path TO 'a', 'x';",
            "ALTER ROLE database IN DATABASE \"Da \"\"ta\" SET work_mem TO '5MB';",
            "REVOKE CONNECT,TEMPORARY ON DATABASE \"Da \"\"ta\" FROM PUBLIC;",
            "GRANT CONNECT ON DATABASE \"Da \"\"ta\" TO a;",
            "SECURITY LABEL FOR dummy ON DATABASE \"Da \"\"ta\" IS 'secret';",
            // What no pg_dump says.
            "ALTER DATABASE x RENAME TO y;",
            "ALTER DATABASE x SET TABLESPACE y;",
            "ALTER DATABASE x;",
            "DROP DATABASE x;",
        ] {
            whole.hear(statement.as_bytes(), false);
        }
        assert_eq!(whole.options.as_deref(), Some("ENCODING = 'UTF8' LOCALE = 'C'"));
        assert_eq!(whole.tablespace.as_deref(), Some("TABLESPACE = \"t s\""));
        let said: Vec<String> = whole.said.iter().map(|said| said.of("b\"c")).collect();
        assert_eq!(
            said,
            [
                "ALTER DATABASE \"b\"\"c\" CONNECTION LIMIT = 7;",
                "ALTER DATABASE \"b\"\"c\" IS_TEMPLATE = true;",
                "ALTER DATABASE \"b\"\"c\" SET search_path TO 'a', 'x';",
                "ALTER ROLE database IN DATABASE \"b\"\"c\" SET work_mem TO '5MB';",
                "REVOKE CONNECT,TEMPORARY ON DATABASE \"b\"\"c\" FROM PUBLIC;",
                "GRANT CONNECT ON DATABASE \"b\"\"c\" TO a;",
                "SECURITY LABEL FOR dummy ON DATABASE \"b\"\"c\" IS 'secret';",
                "ALTER DATABASE \"b\"\"c\" OWNER TO \"Me\";",
            ]
        );
        assert_eq!(whole.unread, 0);
        let roles: Vec<_> = whole.said.iter().flat_map(|said| &said.roles).collect();
        assert_eq!(roles, ["database", "a", "Me"]);
        assert_eq!(whole.said.iter().filter(|said| said.access).count(), 3);
    }

    #[test]
    fn a_plain_creation_has_no_options() {
        let mut whole = Whole::default();
        whole.hear(b"CREATE DATABASE x WITH TEMPLATE = template0;", false);
        assert_eq!(whole, Whole::default());
        whole.hear(b"CREATE DATABASE x WITH TEMPLATE = template0 TABLESPACE = t;", false);
        assert_eq!((whole.options, whole.tablespace.as_deref()), (None, Some("TABLESPACE = t")));
    }

    #[test]
    fn what_cannot_be_read_for_certain_is_counted() {
        let mut whole = Whole::default();
        whole.hear(b"ALTER DATABASE x SET work_mem TO '5MB'", false);
        whole.hear(b"ALTER DATABASE \xf6 SET work_mem TO '5MB';", false);
        whole.hear(br"ALTER DATABASE x SET a.b TO 'C:\\x';", true);
        whole.hear(b"ALTER DATABASE x SET work_mem TO '5MB';", true);
        assert_eq!((whole.unread, whole.said.len()), (3, 1));
    }
}
