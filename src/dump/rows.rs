//! What a table's rows come to, in whatever order they go by: a dump and a database are
//! compared by it, table by table.
//!
//! Each row is hashed as COPY's text form writes it, and the hashes are added up: the sum is
//! the same in any order, and another one when a row is lost, changed or doubled. It finds
//! mistakes; against people who mean harm there is the SHA-256 of the whole object.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::count::{Table, tables};
use super::manifest::table_name;
use crate::failure::Failure;
use crate::service::postgres::{Session, ident, literal, name_parts};

/// What a session's COPY must be set to, so that the same rows are the same text wherever they
/// lie. `pg_dump` sets the first three itself (and `extra_float_digits` to 3).
pub const FORMS: &str = "SET LOCAL DateStyle = 'ISO'; SET LOCAL IntervalStyle = 'postgres'; \
     SET LOCAL extra_float_digits = 3; SET LOCAL TimeZone = 'UTC'; SET LOCAL bytea_output = 'hex'; \
     SET LOCAL row_security = off";

/// The same for `pg_dump`, which leaves these to the database's own settings: libpq's `PGOPTIONS`.
pub const DUMP_OPTIONS: &str = "-c TimeZone=UTC -c bytea_output=hex";

/// A table's rows in a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowsHash {
    /// The columns that were written, in their order.
    pub columns: Vec<String>,
    /// The sum, modulo 2^256, of each row's SHA-256; in hex.
    pub sum: String,
}

/// Adds rows up.
#[derive(Clone, Debug, Default)]
pub struct RowSum {
    sum: [u64; 4],
    row: Sha256,
    rows: u64,
}

impl RowSum {
    /// Takes a piece of a row, without the line feed that ends it.
    pub fn piece(&mut self, piece: &[u8]) {
        self.row.update(piece);
    }

    /// Ends the row.
    pub fn end(&mut self) {
        let digest = self.row.finalize_reset();
        let mut words = digest.chunks_exact(8);
        let words = std::array::from_fn(|_| {
            words.next().unwrap_or_default().iter().fold(0, |word, byte| (word << 8) | u64::from(*byte))
        });
        self.add(words);
        self.rows += 1;
    }

    /// Takes what other rows of the table come to.
    pub fn join(&mut self, other: &Self) {
        self.add(other.sum);
        self.rows += other.rows;
    }

    fn add(&mut self, words: [u64; 4]) {
        let mut carry = false;
        for (sum, word) in self.sum.iter_mut().zip(words) {
            let (added, over) = sum.overflowing_add(word);
            let (added, more) = added.overflowing_add(u64::from(carry));
            *sum = added;
            carry = over || more;
        }
    }

    /// How many rows were ended.
    pub const fn rows(&self) -> u64 {
        self.rows
    }

    /// The sum in hex.
    pub fn hex(&self) -> String {
        let [a, b, c, d] = self.sum;
        format!("{d:016x}{c:016x}{b:016x}{a:016x}")
    }

    /// Takes COPY's text as it comes, in pieces that end anywhere.
    pub fn text(&mut self, mut piece: &[u8]) {
        while let Some(end) = memchr::memchr(b'\n', piece) {
            self.piece(&piece[..end]);
            self.end();
            piece = &piece[end + 1..];
        }
        self.piece(piece);
    }
}

/// Adds a table's rows up, as the session sees them, written in `encoding`. The session is
/// within a transaction that has set [`FORMS`].
///
/// # Errors
/// What the server said.
async fn sum_of(session: &Session, table: &Table, columns: &[String], encoding: &str) -> Result<RowSum, Failure> {
    let attempted = format!("read the rows of {}", table.key());
    let name = format!("{}.{}", ident(&table.schema), ident(&table.name));
    let columns = columns.iter().map(|column| ident(column)).collect::<Vec<_>>().join(", ");
    let rows = match columns.as_str() {
        // COPY reads no partitions by their table's name.
        columns if table.partitioned => format!("(SELECT {columns} FROM {name})"),
        // A table without columns takes no list.
        "" => name,
        columns => format!("{name} ({columns})"),
    };
    let sql = format!("COPY {rows} TO STDOUT (ENCODING {})", literal(encoding));
    let failed = |error: tokio_postgres::Error| session.failure(&attempted, &error);
    let mut stream = Box::pin(session.copy_out(&sql).await.map_err(failed)?);
    let mut sum = RowSum::default();
    while let Some(bytes) = stream.try_next().await.map_err(failed)? {
        sum.text(&bytes);
    }
    Ok(sum)
}

/// What came out when a dump's rows were compared with a database's.
#[derive(Debug, Default)]
pub struct Compared {
    /// What differs, table by table.
    pub wrong: Vec<String>,
    /// The rows that were read, by table.
    pub counts: BTreeMap<String, u64>,
}

/// Compares a dump's tables, with how many rows each has and what they come to, with those of a session's database,
/// within a transaction that has set [`FORMS`]. `watch` is told each table, and how many rows were compared before it.
///
/// # Errors
/// What the server said.
pub async fn compare(
    session: &Session,
    rows: &BTreeMap<String, u64>,
    hashes: &Hashes,
    encoding: &str,
    watch: impl Fn(&str, u64),
) -> Result<Compared, Failure> {
    let there: BTreeMap<_, _> = tables(session).await?.into_iter().map(|table| (table.key(), table)).collect();
    let (mut compared, mut done) = (Compared::default(), 0);
    for (table, rows) in rows {
        watch(table, done);
        done += rows;
        match (there.get(table), hashes.get(table)) {
            (None, _) => compared.wrong.push(format!("there is no table {table}")),
            // Of an extension's table a dump has a part of the rows; the others are the extension's business.
            (Some(table), _) if table.of_extension => {}
            (Some(_), None) => {
                compared.wrong.push(format!("the backup doesn't say what the rows of {table} come to"));
            }
            (Some(there), Some(hash)) => {
                let found = sum_of(session, there, &hash.columns, encoding).await?;
                compared.wrong.extend(difference(table, *rows, hash, &found));
                compared.counts.insert(table.clone(), found.rows());
            }
        }
    }
    Ok(compared)
}

/// What differs between a backup's table and a database's; nothing when they are the same.
fn difference(table: &str, rows: u64, hash: &RowsHash, found: &RowSum) -> Option<String> {
    if found.rows() != rows {
        return Some(format!("{table} has {} rows, the backup has {rows}", found.rows()));
    }
    (found.hex() != hash.sum).then(|| format!("{table} has {rows} rows as the backup, but not the same ones"))
}

/// The hashes of a dump's tables, by `schema.table`.
pub type Hashes = BTreeMap<String, RowsHash>;

/// A table's name as manifests write it.
pub fn canonical(table: &str) -> String {
    name_parts(table).map_or_else(|| table.to_owned(), |[schema, name]| table_name(&schema, &name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(text: &[u8], piece: usize) -> (u64, String) {
        let mut sum = RowSum::default();
        for piece in text.chunks(piece) {
            sum.text(piece);
        }
        (sum.rows(), sum.hex())
    }

    #[test]
    fn the_same_rows_in_any_order_and_any_pieces_are_the_same() {
        let one = sum(b"1\ta\n2\tb\n2\tb\n\n", 1000);
        for piece in 1..12 {
            assert_eq!(sum(b"\n2\tb\n1\ta\n2\tb\n", piece), one);
        }
        assert_eq!(one.0, 4);
        // In parts, too.
        let mut parts = RowSum::default();
        for part in [b"2\tb\n\n".as_slice(), b"", b"2\tb\n1\ta\n"] {
            let mut sum = RowSum::default();
            sum.text(part);
            parts.join(&sum);
        }
        assert_eq!((parts.rows(), parts.hex()), one);
        for other in [b"1\ta\n2\tb\n2\tc\n\n".as_slice(), b"1\ta\n2\tb\n\n\n", b"1\ta2\tb\n2\tb\n\n\n"] {
            assert_ne!(sum(other, 1000).1, one.1);
        }
        // Twice the same row is not nothing, as it would be with exclusive or.
        assert_ne!(sum(b"x\nx\n", 9).1, sum(b"", 9).1);
    }
}
