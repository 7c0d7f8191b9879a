//! Rows of large tables, read beside `pg_dump` in its snapshot: over several connections, a portion of a table at a
//! time, each made into a compressed stream of its own by whoever reads it.
//!
//! `pg_dump` reads one row after the other over one connection, and a backup waits for it most of its time. It leaves
//! these tables' rows out, and they are put where it would write them, as it would.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::TryStreamExt;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::compression::{Compression, Compressor};
use super::count::Table;
use super::manifest::table_name;
use super::rows::{FORMS, RowSum, RowsHash};
use crate::failure::Failure;
use crate::service::postgres::{Server, Session, literal};

/// Tables of so many bytes are worth it.
const LARGE: u64 = 8 << 20;

/// How much of a table, as it lies on the server's disk, is one portion.
const PORTION: u64 = 16 << 20;

/// How much is compressed at once, and handed on at least.
const PIECE: usize = 128 << 10;

/// How many pieces wait for their turn, over all portions: some 64 MiB.
const WAITING: usize = 512;

/// How many portions are begun for each connection, before the first of them is written.
const AHEAD: usize = 2;

/// How many tables are read here: `pg_dump` looks for each by its name.
const TABLES: usize = 500;

/// How the comment begins that stands before a table's rows, and nowhere else; and those of what follows all rows.
pub const ROWS: &[u8] = b"-- Data for Name: ";
const OTHERS: [&[u8]; 2] = [b"-- Name: ", b"-- PostgreSQL database dump complete"];

/// The first server that finds the rows of some blocks without a look at the others.
const FINDS_BLOCKS: u32 = 14;

/// A table that is read here.
#[derive(Clone, Debug)]
pub struct Large {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    owner: String,
    /// As SQL names it.
    quoted: String,
    /// Its columns that are written, in their order.
    columns: Vec<String>,
    /// As SQL names them.
    list: String,
    /// How many blocks of it one portion has, and how many there are.
    blocks: (u64, u64),
}

impl Large {
    /// `schema.table`, as manifests name it.
    pub fn key(&self) -> String {
        table_name(&self.schema, &self.name)
    }

    /// Which of `chosen` are read here, within a snapshot, in the dump's order. One of them at least is left to
    /// `pg_dump`: its rows show where others belong.
    ///
    /// # Errors
    /// What the server said.
    pub async fn among(
        chosen: &[Table],
        session: &Session,
        major: u32,
        encoding: &str,
    ) -> Result<Vec<Self>, Failure> {
        let large = |table: &&Table| table.bytes >= LARGE;
        // Names are written as they are. What lies in a hash partition may belong to another one elsewhere: `pg_dump`
        // knows when, and what is added up of a table some of whose partitions are such is added up where it is read.
        if major < FINDS_BLOCKS || encoding != "UTF8" || !chosen.iter().any(|table| large(&table)) {
            return Ok(vec![]);
        }
        let sql = "SELECT n.nspname::text, c.relname::text, pg_catalog.pg_get_userbyid(c.relowner)::text, \
                          pg_catalog.format('%I.%I', n.nspname, c.relname), \
                          pg_catalog.pg_relation_size(c.oid) / pg_catalog.current_setting('block_size')::bigint, \
                          x.names, x.list \
                     FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                     JOIN pg_catalog.pg_am m ON m.oid = c.relam, \
                  LATERAL (SELECT pg_catalog.array_agg(a.attname::text ORDER BY a.attnum) AS names, \
                                  pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' ORDER BY a.attnum) AS list \
                             FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 \
                              AND NOT a.attisdropped AND a.attgenerated = '') x \
                    WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND m.amname = 'heap' AND x.list IS NOT NULL \
                      AND NOT EXISTS (SELECT FROM pg_catalog.pg_partition_tree(pg_catalog.pg_partition_root(c.oid)) t \
                                        JOIN pg_catalog.pg_partitioned_table p ON p.partrelid = t.relid AND p.partstrat = 'h') \
                    ORDER BY n.nspname COLLATE \"C\", c.relname COLLATE \"C\"";
        let found = session.rows("look at the large tables", sql, &[]).await?;
        let mut all: Vec<(u64, Self)> = vec![];
        for row in &found {
            let (schema, name): (&str, &str) = (row.get(0), row.get(1));
            let Some(table) =
                chosen.iter().filter(large).find(|table| table.schema == schema && table.name == name)
            else {
                continue;
            };
            let blocks = row.get::<_, i64>(4).unsigned_abs();
            // What lies apart from its row belongs to it.
            let portion = (u128::from(blocks) * u128::from(PORTION) / u128::from(table.bytes.max(1))) as u64;
            let large = Self {
                schema: schema.to_owned(),
                name: name.to_owned(),
                owner: row.get(2),
                quoted: row.get(3),
                columns: row.get(5),
                list: row.get(6),
                blocks: (portion.max(1), blocks),
            };
            all.push((table.bytes, large));
        }
        while all.len() > TABLES.min(chosen.len() - 1)
            && let Some(least) = (0..all.len()).min_by_key(|at| all[*at].0)
        {
            all.remove(least);
        }
        Ok(all.into_iter().map(|(_, large)| large).collect())
    }

    /// Whether its rows stand before what this line among rows, or behind them, begins. `pg_dump` writes rows by the
    /// names of schema and table (`DOTypeNameCompare` in its `pg_dump_sort.c`), and all of them before other things.
    pub fn goes_before(&self, line: &[u8]) -> bool {
        let Some(rows) = line.strip_prefix(ROWS) else { return OTHERS.iter().any(|other| line.starts_with(other)) };
        let text = String::from_utf8_lossy(rows);
        let of_table = text.split_once("; Type: TABLE DATA; Schema: ");
        match of_table.and_then(|(name, rest)| Some((rest.rsplit_once("; Owner: ")?.0, name))) {
            Some(other) => (self.schema.as_str(), self.name.as_str()) < other,
            None => true,
        }
    }

    /// What `pg_dump` writes before its rows, from the second line on, and after them, with the first line of what
    /// follows.
    fn around(&self) -> (String, &'static str) {
        let in_a_line = |name: &str| name.replace(['\n', '\r'], " ");
        let head = format!(
            "-- Data for Name: {}; Type: TABLE DATA; Schema: {}; Owner: {}\n--\n\nCOPY {} ({}) FROM stdin;\n",
            in_a_line(&self.name),
            in_a_line(&self.schema),
            in_a_line(&self.owner),
            self.quoted,
            self.list,
        );
        (head, "\\.\n\n\n--\n")
    }

    /// Its portions: the block each begins with, and the one it ends before, if it isn't the last.
    fn portions(&self) -> impl Iterator<Item = (u64, Option<u64>)> {
        let (step, blocks) = self.blocks;
        (0..blocks.max(1)).step_by(step as usize).map(move |at| (at, Some(at + step).filter(|end| *end < blocks)))
    }
}

/// How rows are read.
#[derive(Debug)]
pub struct Reading<'a> {
    /// The server.
    pub server: &'a Server,
    /// The database.
    pub database: &'a str,
    /// The snapshot's name. It is kept until all is read.
    pub snapshot: &'a str,
    /// The tables, in the dump's order.
    pub tables: &'a [Large],
    /// How many connections.
    pub jobs: usize,
    /// How it is compressed.
    pub compression: Compression,
    /// And at which level.
    pub level: Option<i32>,
}

/// A part of a table.
struct Portion {
    table: usize,
    begin: u64,
    end: Option<u64>,
    out: mpsc::Sender<Result<Part, Failure>>,
}

/// What comes of a portion.
enum Part {
    /// Compressed text, and how much was read for it.
    Piece(Bytes, u64),
    /// All of it came: its rows.
    End(RowSum),
}

/// What connections share.
struct Shared {
    server: Server,
    database: String,
    snapshot: String,
    tables: Vec<Large>,
    compression: Compression,
    level: Option<i32>,
    queue: Mutex<VecDeque<Portion>>,
    /// How many portions may be begun.
    window: Arc<Semaphore>,
    /// How many connections could not be made, of how many.
    failed: AtomicUsize,
    jobs: usize,
}

/// Rows on their way.
pub struct Beside {
    tables: Vec<Large>,
    /// By table, in the dump's order.
    portions: VecDeque<(usize, mpsc::Receiver<Result<Part, Failure>>)>,
    sums: Vec<RowSum>,
    window: Arc<Semaphore>,
    workers: JoinSet<()>,
}

impl Reading<'_> {
    /// Begins to read.
    pub fn begin(&self) -> Beside {
        let window = AHEAD * self.jobs.max(1);
        let (mut queue, mut portions) = (VecDeque::new(), VecDeque::new());
        for (table, large) in self.tables.iter().enumerate() {
            for (begin, end) in large.portions() {
                let (out, come) = mpsc::channel((WAITING / window).max(1));
                queue.push_back(Portion { table, begin, end, out });
                portions.push_back((table, come));
            }
        }
        let jobs = self.jobs.clamp(1, portions.len().max(1));
        let window = Arc::new(Semaphore::new(window));
        let shared = Arc::new(Shared {
            server: self.server.clone(),
            database: self.database.to_owned(),
            snapshot: self.snapshot.to_owned(),
            tables: self.tables.to_vec(),
            compression: self.compression,
            level: self.level,
            queue: Mutex::new(queue),
            window: window.clone(),
            failed: AtomicUsize::new(0),
            jobs,
        });
        let mut workers = JoinSet::new();
        for _ in 0..jobs {
            workers.spawn(shared.clone().work());
        }
        let sums = vec![RowSum::default(); self.tables.len()];
        Beside { tables: self.tables.to_vec(), sums, portions, window, workers }
    }
}

impl Beside {
    /// The table whose rows come next.
    pub fn table(&self) -> Option<&Large> {
        self.portions.front().map(|(table, _)| &self.tables[*table])
    }

    /// Its next compressed piece, and how much text was read for it; nothing at its end.
    ///
    /// # Errors
    /// What the server said to whoever read it.
    pub async fn next(&mut self) -> Result<Option<(Bytes, u64)>, Failure> {
        while let Some((table, portion)) = self.portions.front_mut() {
            let table = *table;
            match portion.recv().await {
                Some(Ok(Part::Piece(piece, read))) => return Ok(Some((piece, read))),
                Some(Ok(Part::End(sum))) => {
                    self.sums[table].join(&sum);
                    self.portions.pop_front();
                    self.window.add_permits(1);
                    if self.portions.front().is_none_or(|(next, _)| *next != table) {
                        return Ok(None);
                    }
                }
                Some(Err(failure)) => return Err(failure),
                None => return Err(self.ended_early().await),
            }
        }
        Ok(None)
    }

    /// What each table's rows came to.
    pub fn sums(self) -> impl Iterator<Item = (String, u64, RowsHash)> {
        self.tables.into_iter().zip(self.sums).map(|(table, sum)| {
            (table.key(), sum.rows(), RowsHash { columns: table.columns.clone(), sum: sum.hex() })
        })
    }

    async fn ended_early(&mut self) -> Failure {
        let mut why = "a connection that reads rows ended early".to_owned();
        // The others may wait for this one's portion.
        self.workers.abort_all();
        while let Some(ended) = self.workers.join_next().await {
            if let Err(error) = ended
                && error.is_panic()
            {
                why = format!("a connection that reads rows ended: {error}");
            }
        }
        Failure::permanent(why)
    }
}

impl Shared {
    /// Reads portions until there are no more. A failure goes the way of the rows; a connection that can't be made is
    /// one unless others are.
    async fn work(self: Arc<Self>) {
        let session = match self.connect().await {
            Ok(session) => Ok(session),
            Err(_) if self.failed.fetch_add(1, Ordering::Relaxed) + 1 < self.jobs => return,
            Err(failure) => Err(failure),
        };
        // Given back by whoever has written a portion to its end.
        while let Ok(permit) = self.window.acquire().await {
            permit.forget();
            let next = self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(portion) = next else { return };
            let read = match &session {
                Ok(session) => self.read(session, &portion).await,
                Err(failure) => Err(failure.clone()),
            };
            if let Err(failure) = read {
                drop(portion.out.send(Err(failure)).await);
                return;
            }
        }
    }

    /// A session in the dump's snapshot. It has its tables for good, as `pg_dump` has them at once: whoever waits to
    /// change one of them would wait for the snapshot's end, and this session, later, for them.
    async fn connect(&self) -> Result<Session, Failure> {
        let session = self.server.connect(Some(&self.database)).await?;
        let tables: Vec<_> = self.tables.iter().map(|table| format!("ONLY {}", table.quoted)).collect();
        let share = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {FORMS}; SET LOCAL lock_timeout = '60s'; \
             SET LOCAL enable_seqscan = off; SET TRANSACTION SNAPSHOT {}; LOCK TABLE {} IN ACCESS SHARE MODE",
            literal(&self.snapshot),
            tables.join(", ")
        );
        session.batch("share the dump's snapshot", &share).await?;
        Ok(session)
    }

    async fn read(&self, session: &Session, portion: &Portion) -> Result<(), Failure> {
        let table = &self.tables[portion.table];
        let attempted = || format!("read the rows of {}", table.key());
        let failed = |error: tokio_postgres::Error| session.failure(attempted(), &error);
        let compressing = |error: std::io::Error| Failure::permanent(format!("{}: {error}", attempted()));
        let before = portion.end.map_or_else(String::new, |end| format!(" AND ctid < '({end},0)'"));
        let sql = format!(
            "COPY (SELECT {} FROM ONLY {} WHERE ctid >= '({},0)'{before}) TO STDOUT (ENCODING 'UTF8')",
            table.list, table.quoted, portion.begin
        );
        let (head, tail) = table.around();
        let mut text = Vec::with_capacity(2 * PIECE);
        if portion.begin == 0 {
            text.extend_from_slice(head.as_bytes());
        }
        let (mut sum, mut read) = (RowSum::default(), 0);
        let mut compressor = Compressor::new(self.compression, self.level, 0).map_err(compressing)?;
        let mut rows = pin!(session.copy_out(&sql).await.map_err(failed)?);
        while let Some(row) = rows.try_next().await.map_err(failed)? {
            sum.text(&row);
            read += row.len() as u64;
            let long = row.len() >= PIECE;
            if !long {
                text.extend_from_slice(&row);
            }
            if long || text.len() >= PIECE {
                compressor.write(&text).map_err(compressing)?;
                text.clear();
                if long {
                    compressor.write(&row).map_err(compressing)?;
                }
                if let Some(piece) = compressor.take(PIECE)
                    && portion.out.send(Ok(Part::Piece(piece, std::mem::take(&mut read)))).await.is_err()
                {
                    // Whoever wanted it is gone.
                    return Ok(());
                }
            }
        }
        if portion.end.is_none() {
            text.extend_from_slice(tail.as_bytes());
        }
        compressor.write(&text).map_err(compressing)?;
        let last = compressor.finish().map_err(compressing)?;
        drop(portion.out.send(Ok(Part::Piece(last, read))).await);
        drop(portion.out.send(Ok(Part::End(sum))).await);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn large(schema: &str, name: &str, blocks: (u64, u64)) -> Large {
        let text = String::new;
        Large {
            schema: schema.to_owned(),
            name: name.to_owned(),
            owner: text(),
            quoted: text(),
            columns: vec![],
            list: text(),
            blocks,
        }
    }

    #[test]
    fn rows_stand_where_pg_dump_would_write_them() {
        let table = large("auth", "Users", (1, 1));
        for (line, before) in [
            ("-- Data for Name: ZZ; Type: TABLE DATA; Schema: auth; Owner: a", true),
            ("-- Data for Name: a; Type: TABLE DATA; Schema: authors; Owner: a", true),
            ("-- Data for Name: T; Type: TABLE DATA; Schema: auth; Owner: z", false),
            ("-- Data for Name: x; Type: TABLE DATA; Schema: Auth; Owner: z", false),
            ("-- Data for Name: BLOBS; Type: BLOBS; Schema: -; Owner: -", true),
            ("-- Name: a_seq; Type: SEQUENCE SET; Schema: a; Owner: a", true),
            ("-- PostgreSQL database dump complete", true),
            ("-- load via partition root public.a", false),
            ("--", false),
            ("1\t-- Name: a", false),
        ] {
            assert_eq!(table.goes_before(format!("{line}\n").as_bytes()), before, "{line}");
        }
    }

    #[test]
    fn portions_leave_no_block_out() {
        let portions = |blocks| large("a", "b", blocks).portions().collect::<Vec<_>>();
        assert_eq!(portions((4, 9)), [(0, Some(4)), (4, Some(8)), (8, None)]);
        assert_eq!(portions((4, 8)), [(0, Some(4)), (4, None)]);
        // Emptied since it was looked at.
        assert_eq!(portions((1, 0)), [(0, None)]);
    }
}
