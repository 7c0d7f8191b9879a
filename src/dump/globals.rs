//! What `pg_dumpall --globals-only` writes: a server's roles, what they may do, and their memberships.
//!
//! Passwords are in it, as hashes: no text of it gets into a message.

use super::lexer::{Lexer, Listener, Verdict};
use super::token::{Token, tokens};
use crate::failure::Failure;

/// The statements of a dump of globals.
#[derive(Default)]
pub struct Globals {
    statements: Vec<Statement>,
    whole: bool,
    too_long: bool,
}

struct Statement {
    subject: Subject,
    text: String,
}

#[derive(Debug, PartialEq, Eq)]
enum Subject {
    /// Creates a role.
    Create(String),
    /// Says something of a role.
    Role(String),
    /// Grants something, a role by name or a privilege, to a role.
    Grant(Option<String>, String),
    Tablespace(String),
    /// The session's own settings.
    Setting,
    Other,
}

impl std::fmt::Debug for Globals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Globals({} statements)", self.statements.len())
    }
}

impl Globals {
    /// Reads a dump.
    ///
    /// # Errors
    /// When it isn't one, or isn't whole.
    pub fn read(text: &[u8]) -> Result<Self, Failure> {
        let (mut lexer, mut globals) = (Lexer::default(), Self::default());
        lexer.push(text, &mut globals, None)?;
        if lexer.open().is_some() || !globals.whole {
            return Err(Failure::permanent("the dump of roles is not whole")
                .help("it was cut while it was written or copied; use another backup"));
        }
        if globals.too_long {
            return Err(Failure::permanent("a statement in the dump of roles is longer than any role needs"));
        }
        Ok(globals)
    }

    /// The roles that it creates.
    pub fn roles(&self) -> Vec<&str> {
        let created = self.statements.iter().filter_map(|statement| match &statement.subject {
            Subject::Create(role) => Some(role.as_str()),
            _ => None,
        });
        created.collect()
    }

    /// The tablespaces that it creates.
    pub fn tablespaces(&self) -> Vec<&str> {
        let created = self.statements.iter().filter_map(|statement| match &statement.subject {
            Subject::Tablespace(name) => Some(name.as_str()),
            _ => None,
        });
        created.collect()
    }

    /// The statements that make these roles, and nothing of others.
    pub fn of(&self, roles: &[&str]) -> Vec<&str> {
        let wanted = |role: &String| roles.contains(&role.as_str());
        let chosen = self.statements.iter().filter(|statement| match &statement.subject {
            Subject::Create(role) | Subject::Role(role) => wanted(role),
            Subject::Grant(role, to) => wanted(to) || role.as_ref().is_some_and(wanted),
            Subject::Tablespace(_) | Subject::Setting | Subject::Other => false,
        });
        chosen.map(|statement| statement.text.as_str()).collect()
    }
}

impl Listener for Globals {
    fn comment(&mut self, text: &str, _: u64) {
        self.whole |= text.contains("PostgreSQL database cluster dump complete");
    }

    fn statement(&mut self, text: &[u8], _: u64) -> Result<Verdict, Failure> {
        self.too_long |= !text.ends_with(b";");
        let subject = subject(&tokens(text));
        self.statements.push(Statement { subject, text: String::from_utf8_lossy(text).into_owned() });
        Ok(Verdict::Drop)
    }

    fn command(&mut self, _: &str, _: u64) -> Result<bool, Failure> {
        // `\restrict` and its end.
        Ok(false)
    }

    fn row(&mut self) {}
}

fn subject(tokens: &[Token]) -> Subject {
    let word = |at: usize, wanted: &str| tokens.get(at).is_some_and(|token| token.is(wanted));
    let name = |at: usize| tokens.get(at).and_then(Token::name).map(str::to_owned);
    match (name(0).as_deref(), name(1).as_deref()) {
        (Some("create"), Some("role")) => name(2).map_or(Subject::Other, Subject::Create),
        (Some("alter"), Some("role")) => name(2).map_or(Subject::Other, Subject::Role),
        (Some("comment"), Some("on")) if word(2, "role") => name(3).map_or(Subject::Other, Subject::Role),
        (Some("create"), Some("tablespace")) => name(2).map_or(Subject::Other, Subject::Tablespace),
        // `GRANT role TO role …`, or `GRANT … ON PARAMETER … TO role`.
        (Some("grant"), _) => {
            let to = tokens.iter().position(|token| token.is("to"));
            let grantee = to.and_then(|to| name(to + 1));
            let role = (to == Some(2)).then(|| name(1)).flatten();
            grantee.map_or(Subject::Other, |grantee| Subject::Grant(role, grantee))
        }
        (Some("set"), _) => Subject::Setting,
        _ => Subject::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = r#"--
-- PostgreSQL database cluster dump
--

\restrict abc

SET default_transaction_read_only = off;

CREATE ROLE admin;
ALTER ROLE admin WITH SUPERUSER PASSWORD 'SCRAM-SHA-256$4096:a';
CREATE ROLE "odd; name";
ALTER ROLE "odd; name" WITH NOLOGIN;
COMMENT ON ROLE "odd; name" IS 'two
ALTER ROLE admin; lines';
ALTER ROLE "odd; name" SET search_path TO 'x';
GRANT "odd; name" TO app WITH ADMIN OPTION GRANTED BY admin;
GRANT app TO other WITH ADMIN OPTION GRANTED BY admin;

\unrestrict abc

--
-- PostgreSQL database cluster dump complete
--
"#;

    #[test]
    fn what_belongs_to_a_role_comes_with_it_alone() {
        let globals = Globals::read(DUMP.as_bytes()).unwrap();
        assert_eq!(globals.roles(), ["admin", "odd; name"]);
        let made = globals.of(&["odd; name"]);
        assert_eq!(made.len(), 5, "{made:?}");
        assert!(made[2].contains("two\nALTER ROLE admin; lines"), "{made:?}");
        assert!(!made.iter().any(|text| text.contains("SCRAM")), "nothing of a role that is there already");
        assert_eq!(globals.of(&["admin"]).len(), 2, "who granted something to others isn't who got it");
        assert!(globals.of(&[]).is_empty());
        assert!(!format!("{globals:?}").contains("SCRAM"));
    }

    #[test]
    fn a_cut_dump_is_refused() {
        for cut in [DUMP.len() - 60, DUMP.find("two").unwrap(), 0] {
            Globals::read(&DUMP.as_bytes()[..cut]).unwrap_err();
        }
    }
}
