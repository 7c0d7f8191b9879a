//! Tables made side by side, where a dump makes many in a row. To make one waits for the disk: PostgreSQL writes the
//! index of its long values at once (`smgrimmedsync` in its `nbtsort.c`), so one connection leaves the server idle.
//!
//! Each batch is one transaction, known by the number of its first statement. What needs a table of another batch
//! (a column of its row type) fails there, and is made afterwards in the dump's order.

use std::collections::VecDeque;
use std::ops::Range;

use serde_json::json;
use tokio::sync::Mutex;

use super::super::token::{Token, tokens};
use super::ledger::TABLES;
use super::split::Statement;
use super::{Ordered, Parallel, Stage, connect};
use crate::failure::Failure;
use crate::kill;

/// How many statements one transaction takes, or a few more: none parts what belongs to one table.
const STATEMENTS: usize = 64;

/// Where a dump makes tables and nothing else, each with what belongs to it alone: batches, one after the other.
pub type Stretch = Vec<Range<usize>>;

/// The stretches that are worth several connections.
pub fn stretches(statements: &[Statement]) -> Vec<Stretch> {
    let (mut found, mut stretch) = (vec![], Stretch::new());
    // The first statement of all runs in order, whatever it is: the ledger begins with it.
    for (at, statement) in statements.iter().enumerate().skip(1) {
        let role = Role::of(statement.text.as_bytes());
        match stretch.last_mut() {
            Some(batch) if role != Role::Other && statements[batch.start].settings == statement.settings => {
                if role == Role::Begins && batch.len() >= STATEMENTS {
                    stretch.push(at..at + 1);
                } else {
                    batch.end = at + 1;
                }
            }
            _ => {
                found.push(std::mem::take(&mut stretch));
                if role == Role::Begins {
                    stretch.push(at..at + 1);
                }
            }
        }
    }
    found.push(stretch);
    found.retain(|stretch| stretch.len() > 1);
    found
}

/// What a statement is to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// It makes one that needs no other.
    Begins,
    /// It belongs to the one before it.
    Belongs,
    Other,
}

impl Role {
    fn of(text: &[u8]) -> Self {
        let tokens = tokens(text);
        let words = |wanted: &[&str]| {
            wanted.iter().enumerate().all(|(at, word)| tokens.get(at).is_some_and(|token| token.is(word)))
        };
        let any = |wanted: &[&str]| tokens.iter().any(|token| wanted.iter().any(|word| token.is(word)));
        let ends = |wanted: &[&str]| {
            tokens.windows(wanted.len()).any(|part| part.iter().zip(wanted).all(|(token, word)| token.is(word)))
        };
        // A statement that is longer than what is looked at of it.
        if tokens.last() != Some(&Token::Sign(';')) {
            return Self::Other;
        }
        if words(&["create", "table"]) || words(&["create", "unlogged", "table"]) {
            return if any(&["inherits", "partition", "of", "like"]) { Self::Other } else { Self::Begins };
        }
        let of_table = words(&["alter", "table"]) && (ends(&["owner", "to"]) || ends(&["add", "generated"]));
        let of_sequence = words(&["create", "sequence"])
            || (words(&["alter", "sequence"]) && (ends(&["owner", "to"]) || ends(&["owned", "by"])));
        let told = ["table", "column", "sequence"].iter().any(|what| words(&["comment", "on", what]));
        if of_table || of_sequence || told { Self::Belongs } else { Self::Other }
    }
}

/// Makes a stretch's tables; `ordered` is where it begins.
///
/// # Errors
/// The server's own words with the dump's line.
pub async fn make(
    of: &Parallel<'_>,
    ordered: &mut Ordered<'_>,
    statements: &[Statement],
    stretch: &Stretch,
) -> Result<(), Failure> {
    let (Some(first), Some(last)) = (stretch.first(), stretch.last()) else { return Ok(()) };
    // The number of a batch whose first statement has that place.
    let begun = ordered.run;
    let number = move |batch: &Range<usize>| begun + (batch.start - first.start) as u64;
    ordered.run += (last.end - first.start) as u64;
    if ordered.run <= ordered.skip {
        return Ok(());
    }
    let missing: VecDeque<_> =
        stretch.iter().filter(|batch| !of.done.tables.contains(&number(batch))).cloned().collect();
    let jobs = of.small_jobs.min(missing.len());
    let (missing, left) = (Mutex::new(missing), Mutex::new(vec![]));
    let settings = &statements[first.start].settings;
    let work = async || {
        let session = connect(of.server, of.database).await?;
        session.batch("set up the session", "SET synchronous_commit = off").await?;
        settings.apply(&session).await?;
        loop {
            let Some(batch) = missing.lock().await.pop_front() else { return Ok::<_, Failure>(()) };
            let [done, total] = [batch.start, last.end].map(|at| (at - first.start) as u64);
            of.journal.progress(Stage::Tables { done, total });
            session.batch("begin a transaction", "BEGIN").await?;
            let texts: Vec<&str> =
                statements[batch.clone()].iter().map(|statement| statement.text.as_str()).collect();
            match kill::around("tables", session.batch_execute(&texts.join("\n"))).await {
                Ok(()) => {
                    ordered.ledger.write(&session, TABLES, number(&batch), json!({})).await?;
                    session.batch("commit a transaction", "COMMIT").await?;
                }
                // Not so when the server was told to stop.
                Err(error) if error.code().is_some_and(|code| !code.code().starts_with("57")) => {
                    session.batch("give up the transaction", "ROLLBACK").await?;
                    left.lock().await.push(batch);
                }
                Err(error) => return Err(session.failure(format!("make {} tables", texts.len()), &error)),
            }
        }
    };
    futures::future::try_join_all((0..jobs).map(|_| work())).await?;
    let mut left = left.into_inner();
    left.sort_by_key(|batch| batch.start);
    for batch in left {
        ordered.part(&statements[batch.clone()], TABLES, number(&batch)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::outline::Part;
    use super::super::split::Settings;
    use super::*;

    fn statement(text: &str) -> Statement {
        Statement { text: text.to_owned(), line: 1, part: Part::InOrder, settings: Settings::default() }
    }

    #[test]
    fn what_belongs_to_a_table_stays_with_it() {
        for (text, role) in [
            ("CREATE TABLE a.t (id int, \"like\" text DEFAULT 'of')", Role::Begins),
            ("CREATE UNLOGGED TABLE t (id int)", Role::Begins),
            ("CREATE TABLE t (n int) INHERITS (a)", Role::Other),
            ("CREATE TABLE t PARTITION OF a FOR VALUES IN (1)", Role::Other),
            ("CREATE TABLE t (n int) PARTITION BY LIST (n)", Role::Other),
            ("CREATE TABLE t OF kind", Role::Other),
            ("CREATE FOREIGN TABLE t (n int) SERVER s", Role::Other),
            ("ALTER TABLE a.t OWNER TO me", Role::Belongs),
            ("ALTER TABLE a.t ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (SEQUENCE NAME s)", Role::Belongs),
            ("ALTER TABLE ONLY t ALTER COLUMN id SET DEFAULT nextval('s')", Role::Other),
            ("ALTER TABLE ONLY a ATTACH PARTITION b DEFAULT", Role::Other),
            ("CREATE SEQUENCE s START WITH 1", Role::Belongs),
            ("ALTER SEQUENCE s OWNED BY t.id", Role::Belongs),
            ("COMMENT ON COLUMN t.id IS 'its number'", Role::Belongs),
            ("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'", Role::Other),
            ("CREATE VIEW v AS SELECT 1", Role::Other),
        ] {
            assert_eq!(Role::of(format!("{text};").as_bytes()), role, "{text}");
        }
    }

    #[test]
    fn batches_part_no_table() {
        let table = ["CREATE TABLE t (n int);", "ALTER TABLE t OWNER TO me;", "CREATE SEQUENCE s;"];
        let mut all = vec![statement("CREATE SCHEMA a;"), statement("ALTER TABLE x OWNER TO me;")];
        all.extend(table.iter().cycle().take(3 * 50).map(|text| statement(text)));
        all.push(statement("CREATE VIEW v AS SELECT 1;"));
        all.extend(table.iter().cycle().take(3 * 10).map(|text| statement(text)));
        assert_eq!(stretches(&all), [vec![2..68, 68..134, 134..152]], "ten tables are left to one connection");
        assert!(stretches(&[]).is_empty());
        // Nothing is set before.
        assert_eq!(stretches(&all[2..152]), [vec![3..69, 69..135, 135..150]]);
    }
}
