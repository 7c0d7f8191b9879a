//! Rows as jobs, each a transaction: a big table in chunks, small ones several at a time.
//!
//! How a dump is cut depends on its bytes and the size of a chunk alone, never on how it
//! was read: a later attempt cuts it the same way.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::super::outline::Name;
use super::super::source::PIECE;
use super::split::{Copy, Settings};
use crate::failure::Failure;

/// How many small tables one transaction takes.
const TABLES: usize = 64;

/// Rows of one table.
#[derive(Debug)]
pub struct Rows {
    /// The COPY statement.
    pub text: Arc<str>,
    /// The table.
    pub table: Name,
    /// The dump's line of the first row.
    pub line: u64,
    /// The rows.
    pub data: Bytes,
    /// Let go with the last rows of their COPY.
    _whole: Arc<Whole>,
}

/// All rows of a COPY: counted as done when the last of them are let go, in whatever order they are loaded.
#[derive(Debug)]
struct Whole(Arc<AtomicU64>);

impl Drop for Whole {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Rows that one transaction loads.
#[derive(Debug)]
pub struct Job {
    /// Its number in the dump.
    pub number: u64,
    /// What was set before its rows.
    pub settings: Settings,
    /// Its rows.
    pub rows: Vec<Rows>,
}

/// Cuts rows.
#[derive(Debug)]
pub struct Cutter<'a> {
    /// The bytes of each COPY.
    copies: &'a [u64],
    chunk: usize,
    begun: usize,
    next: u64,
    /// How many COPYs' rows are all loaded.
    done: Arc<AtomicU64>,
    current: Option<Current>,
    /// How far that was searched for the end of a row: a long one isn't looked through with each piece.
    searched: usize,
    small: Vec<Rows>,
    small_bytes: usize,
    small_settings: Settings,
    /// Jobs to be done.
    pub ready: VecDeque<Job>,
}

/// The COPY that is being read.
#[derive(Debug)]
struct Current {
    copy: Copy,
    whole: Arc<Whole>,
    /// What of it is not in a job yet.
    held: Vec<u8>,
    /// Whether a part of it is.
    cut: bool,
}

impl<'a> Cutter<'a> {
    pub fn new(copies: &'a [u64], chunk: u64) -> Self {
        Self {
            copies,
            chunk: chunk as usize,
            begun: 0,
            next: 0,
            done: Arc::default(),
            current: None,
            searched: 0,
            small: vec![],
            small_bytes: 0,
            small_settings: Settings::default(),
            ready: VecDeque::new(),
        }
    }

    /// How many COPYs' rows are all loaded.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// A COPY begins.
    pub fn begin(&mut self, copy: Copy) -> Result<(), Failure> {
        if self.begun >= self.copies.len() {
            return Err(Failure::permanent("the dump holds more rows than when it was proven"));
        }
        self.begun += 1;
        let whole = Arc::new(Whole(self.done.clone()));
        self.current = Some(Current { copy, whole, held: vec![], cut: false });
        self.searched = 0;
        Ok(())
    }

    /// Rows go by; `ended` when the COPY ends with them.
    pub fn rows(&mut self, rows: Vec<u8>, ended: bool) {
        let Some(mut current) = self.current.take() else { return };
        if current.held.is_empty() {
            current.held = rows;
        } else {
            // At once what a chunk takes: grown bit by bit it would be copied each time, and take up to twice as much.
            let takes =
                self.copies.get(self.begun - 1).map_or(0, |bytes| (*bytes as usize).min(self.chunk + PIECE));
            current.held.reserve(takes.saturating_sub(current.held.len()));
            current.held.extend_from_slice(&rows);
        }
        while let Some(end) = self.end_of_chunk(&current.held) {
            if !current.cut {
                self.end_small();
            }
            current.cut = true;
            let rest = current.held.split_off(end);
            let rows = current.rows(rest);
            current.copy.line += memchr::memchr_iter(b'\n', &rows.data).count() as u64;
            self.job(current.copy.settings.clone(), vec![rows]);
        }
        if !ended {
            self.current = Some(current);
            return;
        }
        let settings = current.copy.settings.clone();
        if current.cut {
            if !current.held.is_empty() {
                self.job(settings, vec![current.rows(vec![])]);
            }
            return;
        }
        let fits = self.small.len() < TABLES
            && self.small_bytes + current.held.len() <= self.chunk / 4
            && self.small_settings == settings;
        if !fits {
            self.end_small();
        }
        self.small_settings = settings;
        self.small_bytes += current.held.len();
        self.small.push(current.rows(vec![]));
    }

    /// No more rows follow.
    pub fn end(&mut self) {
        self.end_small();
    }

    fn end_small(&mut self) {
        if !self.small.is_empty() {
            let small = std::mem::take(&mut self.small);
            self.small_bytes = 0;
            self.job(self.small_settings.clone(), small);
        }
    }

    fn job(&mut self, settings: Settings, rows: Vec<Rows>) {
        let number = self.next;
        self.next += 1;
        self.ready.push_back(Job { number, settings, rows });
    }

    /// Behind the first row that ends at or after the chunk's size.
    fn end_of_chunk(&mut self, held: &[u8]) -> Option<usize> {
        if held.len() <= self.chunk {
            return None;
        }
        let mut from = self.searched.max(self.chunk);
        loop {
            let Some(found) = memchr::memchr(b'\n', &held[from..]) else {
                self.searched = held.len();
                return None;
            };
            let at = from + found;
            // A backslash before a line feed makes it part of a value.
            let backslashes = held[..at].iter().rev().take_while(|byte| **byte == b'\\').count();
            if backslashes % 2 == 0 {
                self.searched = 0;
                return Some(at + 1);
            }
            from = at + 1;
        }
    }
}

impl Current {
    /// The rows that are held; `rest` is held from now on.
    fn rows(&mut self, rest: Vec<u8>) -> Rows {
        let data = std::mem::replace(&mut self.held, rest);
        let Copy { text, table, line, .. } = &self.copy;
        let (text, table) = (text.clone(), table.clone());
        Rows { text, table, line: *line, data: data.into(), _whole: self.whole.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::survey::Rules;
    use super::super::split::{Event, Splitter};
    use super::*;

    /// A table, its first line, its rows.
    type Seen = (String, u64, String);

    /// Jobs as number, tables and rows, however the dump is read.
    fn jobs(dump: &[u8], piece: usize, chunk: u64) -> Vec<(u64, Vec<Seen>)> {
        let copies = [1; 10];
        let mut cutter = Cutter::new(&copies, chunk);
        let mut splitter = Splitter::new(Rules::default(), None);
        for piece in dump.chunks(piece) {
            for event in splitter.push(piece).unwrap() {
                match event {
                    Event::Copy(copy) => cutter.begin(copy).unwrap(),
                    Event::Rows(rows) => cutter.rows(rows, true),
                    Event::Statement(_) => {}
                }
            }
            cutter.rows(splitter.rows(), false);
        }
        cutter.end();
        assert_eq!(cutter.done(), 0, "nothing is loaded");
        let done = cutter.done.clone();
        let all = std::mem::take(&mut cutter.ready);
        drop(cutter);
        let rows = |rows: Rows| (rows.table.1, rows.line, String::from_utf8(rows.data.to_vec()).unwrap());
        let jobs = all.into_iter().map(|job| (job.number, job.rows.into_iter().map(rows).collect())).collect();
        assert_eq!(done.load(Ordering::Relaxed), 4, "all rows of each COPY were let go");
        jobs
    }

    #[test]
    fn a_dump_is_cut_the_same_way_however_it_is_read() {
        let dump = b"SET x = 1;\nCOPY a (b) FROM stdin;\n1\n\\.\nCOPY e (b) FROM stdin;\n\\.\n\
            COPY big (b) FROM stdin;\n1234567\n2\\\\\n3\\\nx\n4\n\\N\n\\.\nCOPY c (b) FROM stdin;\n5\n\\.\n";
        let row = |table: &str, line, text: &str| (table.to_owned(), line, text.to_owned());
        let wanted = vec![
            (0, vec![row("a", 3, "1\n"), row("e", 6, "")]),
            (1, vec![row("big", 8, "1234567\n2\\\\\n")]),
            (2, vec![row("big", 10, "3\\\nx\n4\n\\N\n")]),
            (3, vec![row("c", 16, "5\n")]),
        ];
        for piece in [1, 2, 3, 7, 1000] {
            assert_eq!(jobs(dump, piece, 8), wanted, "read {piece} bytes at a time");
        }
    }
}
