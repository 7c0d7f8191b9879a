//! The journal: an append-only file of records, one JSON object a line, chained by hash.
//!
//! [`Journal::append`] returns only when everything it was given is on disk. A torn
//! last line (a power cut in the middle of a write: its writer was never told that it
//! is kept) is dropped and said; any other damage is refused with the record's number.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::event::{Event, FORMAT, Record};
use crate::kill;

/// `prev` of the first record.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// A journal that is open for writing. One process at a time has one: see [`super::lock`].
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    next: u64,
    head: String,
    /// A write failed: what is on disk is unknown, so nothing may follow it.
    broken: bool,
}

/// What a journal file holds.
#[derive(Clone, Debug)]
pub struct Contents {
    /// Its records, in order; the chain holds.
    pub records: Vec<Record>,
    /// SHA-256 of the last line, in hex: what the next record's `prev` will be.
    pub head: String,
    /// The length of the good part, in bytes.
    pub length: u64,
    /// A torn last line was dropped: how many bytes.
    pub torn: Option<u64>,
}

/// Why a journal can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The system refused.
    #[error("failed to {doing} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A record is not as it was written.
    #[error("{}: record {number} is damaged: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The record, from 0.
        number: u64,
        /// What is wrong with it.
        why: String,
    },
    /// A record is sound, and holds what this version doesn't know.
    #[error("{}: record {number} holds what this version does not know ({what})", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The record, from 0.
        number: u64,
        /// What it is.
        what: String,
    },
    /// A later version wrote it.
    #[error("{} has journal format {found}; this version reads up to {FORMAT}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// Not even the first record was completed: the run never began.
    #[error("{} holds no complete record: the run never began", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file was removed under the run that writes it.
    #[error("{} was deleted while the run went on", path.display())]
    Deleted {
        /// Where it was.
        path: PathBuf,
    },
    /// An earlier write failed.
    #[error("{}: nothing more is written after a failed write", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
    },
}

impl Contents {
    /// What is kept of a torn last line that was dropped.
    pub fn torn_notice(&self) -> Option<Event> {
        let bytes = self.torn?;
        let message = format!("the journal's last line was torn ({bytes} bytes, never acknowledged), and dropped");
        Some(Event::Noticed { step: None, message })
    }
}

impl JournalError {
    /// What to do next.
    pub fn help(&self) -> String {
        match self {
            Self::Io { .. } | Self::Broken { .. } => {
                "make the state folder writable (space, permissions, a healthy disk), then `lifeboat resume`".to_owned()
            }
            Self::Deleted { .. } => {
                "bring the state folder back from a backup; without it only the systems themselves can tell what the \
                 run did: look at them, and begin anew"
                    .to_owned()
            }
            Self::Damaged { .. } => {
                "bring the file back from a backup; what happened before the damage is still readable in it, one JSON \
                 record a line"
                    .to_owned()
            }
            Self::Unknown { .. } => {
                "a later version of Lifeboat wrote it, or it was altered: go on with that version; its `lifeboat audit` \
                 tells which it is"
                    .to_owned()
            }
            Self::Newer { .. } => "use the version of Lifeboat that wrote it, or a later one".to_owned(),
            Self::Empty { .. } => "nothing was touched; run the plan again, and remove the run's folder".to_owned(),
        }
    }
}

impl Journal {
    /// Makes a new journal; an existing file is an error.
    pub fn create(path: &Path) -> Result<Self, JournalError> {
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(|source| io_error("create", path, source))?;
        Ok(Self { file, path: path.to_owned(), next: 0, head: GENESIS.to_owned(), broken: false })
    }

    /// Opens a journal to go on with it: checks it whole, and cuts a torn last line off.
    pub fn open(path: &Path) -> Result<(Self, Contents), JournalError> {
        let contents = read(path)?;
        let file = OpenOptions::new().append(true).open(path);
        let file = file.map_err(|source| io_error("open", path, source))?;
        if contents.torn.is_some() {
            let cut = file.set_len(contents.length).and_then(|()| file.sync_all());
            cut.map_err(|source| io_error("cut the torn last line off", path, source))?;
        }
        let next = contents.records.len() as u64;
        let journal = Self { file, path: path.to_owned(), next, head: contents.head.clone(), broken: false };
        Ok((journal, contents))
    }

    /// Makes the next record of an event without writing it: its number, time and hash are final
    /// once [`Journal::commit`] took it.
    pub fn prepare(&mut self, event: Event, at: Timestamp) -> (Record, Line) {
        let record = Record { seq: self.next, at, prev: self.head.clone(), event };
        // A record holds nothing that JSON can't: string keys, finite numbers.
        let mut text = serde_json::to_vec(&record).unwrap_or_default();
        self.head = sha256_hex(&text);
        self.next += 1;
        text.push(b'\n');
        (record, Line(text))
    }

    /// Writes prepared lines with one write and one sync. When this returns they are on disk.
    pub fn commit(&mut self, lines: &[Line]) -> Result<(), JournalError> {
        if self.broken {
            return Err(JournalError::Broken { path: self.path.clone() });
        }
        let bytes = lines.iter().map(|line| line.0.as_slice()).collect::<Vec<_>>().concat();
        if bytes.is_empty() {
            return Ok(());
        }
        kill::point("journal: before the write");
        let written = self.file.write_all(&bytes);
        kill::point("journal: before the sync");
        let written = written.and_then(|()| self.file.sync_data());
        kill::point("journal: after the sync");
        // After a failed sync the system may have dropped the pages: a second sync would lie.
        self.broken = true;
        let links =
            written.and_then(|()| self.file.metadata()).map_err(|source| io_error("write", &self.path, source))?;
        if links.nlink() == 0 {
            // The system keeps a deleted file for who has it open, and for nobody after that.
            return Err(JournalError::Deleted { path: self.path.clone() });
        }
        self.broken = false;
        Ok(())
    }

    /// Appends events that are ready together; returns when all are on disk.
    pub fn append(&mut self, events: Vec<Event>, at: Timestamp) -> Result<Vec<Record>, JournalError> {
        let (records, lines): (Vec<_>, Vec<_>) = events.into_iter().map(|event| self.prepare(event, at)).unzip();
        self.commit(&lines)?;
        Ok(records)
    }

    /// SHA-256 of the last line, in hex.
    pub fn head(&self) -> &str {
        &self.head
    }
}

/// A record as it is written, its line feed included.
#[derive(Debug)]
pub struct Line(Vec<u8>);

/// Reads and checks a whole journal, without any lock: a writer appends only.
pub fn read(path: &Path) -> Result<Contents, JournalError> {
    let bytes = std::fs::read(path).map_err(|source| io_error("read", path, source))?;
    parse_all(&bytes, path)
}

/// As [`read`], of bytes that were read from `path`.
pub(super) fn parse_all(bytes: &[u8], path: &Path) -> Result<Contents, JournalError> {
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let (mut lines, tail) = bytes.split_at(whole);
    let mut records: Vec<Record> = Vec::new();
    let mut head = GENESIS.to_owned();
    let mut torn = tear(tail).map_err(|why| {
        let number = lines.split_inclusive(|byte| *byte == b'\n').count() as u64;
        JournalError::Damaged { path: path.to_owned(), number, why }
    })?;
    let mut length = 0;
    while let Some(end) = lines.iter().position(|byte| *byte == b'\n') {
        let (line, rest) = (&lines[..end], &lines[end + 1..]);
        if rest.is_empty() && tail.is_empty() && line.contains(&0) {
            // The file grew before its data arrived: the last write was not completed.
            torn = Some(end as u64 + 1);
            break;
        }
        let number = records.len() as u64;
        let record = parse(line, number, path).map_err(|error| altered(error, line, rest))?;
        if record.prev != head {
            return Err(broken_chain(&record, line, rest, path));
        }
        records.push(record);
        head = sha256_hex(line);
        length += end as u64 + 1;
        lines = rest;
    }
    if records.is_empty() {
        return Err(JournalError::Empty { path: path.to_owned() });
    }
    Ok(Contents { records, head, length, torn })
}

/// How many bytes of a torn last line there are. What isn't the beginning of a record
/// was not left by a write that stopped: an error.
fn tear(tail: &[u8]) -> Result<Option<u64>, String> {
    let data = tail.split(|byte| *byte == 0).next().unwrap_or_default();
    if tail.is_empty() {
        return Ok(None);
    }
    match serde_json::from_slice::<Value>(data) {
        Err(error) if !error.is_eof() => Err(format!("its end is missing, and {error}")),
        _ => Ok(Some(tail.len() as u64)),
    }
}

fn parse(line: &[u8], number: u64, path: &Path) -> Result<Record, JournalError> {
    let damaged = |why: String| JournalError::Damaged { path: path.to_owned(), number, why };
    let record: Record = match serde_json::from_slice(line) {
        Ok(record) => record,
        // A newer format may hold what this version can't parse: say that rather than "damaged".
        Err(error) => match (number, format_of(line)) {
            (0, Some(found)) if found > u64::from(FORMAT) => {
                return Err(JournalError::Newer { path: path.to_owned(), found });
            }
            _ => return Err(unknown(&error, number, path).unwrap_or_else(|| damaged(error.to_string()))),
        },
    };
    if record.seq != number {
        return Err(damaged(format!("it is numbered {}", record.seq)));
    }
    match &record.event {
        Event::RunStarted(started) if started.format > FORMAT => {
            Err(JournalError::Newer { path: path.to_owned(), found: started.format.into() })
        }
        _ => Ok(record),
    }
}

/// The chain breaks before `record`: it, or the record before it, was altered. The record after it tells which.
fn broken_chain(record: &Record, line: &[u8], rest: &[u8], path: &Path) -> JournalError {
    let intact = is_vouched_for(line, rest) && record.seq > 0;
    let (number, why) = if intact {
        (record.seq - 1, format!("it is not what record {} was written after", record.seq))
    } else {
        (record.seq, "it does not say which record it was written after".to_owned())
    };
    JournalError::Damaged { path: path.to_owned(), number, why }
}

/// An event, or a word in one, that a later version brought.
fn unknown(error: &serde_json::Error, number: u64, path: &Path) -> Option<JournalError> {
    let said = error.to_string();
    let word = said.strip_prefix("unknown variant `")?.split('`').next()?;
    Some(JournalError::Unknown { path: path.to_owned(), number, what: word.to_owned() })
}

/// What no version wrote, as the record after it was not written after it.
fn altered(error: JournalError, line: &[u8], rest: &[u8]) -> JournalError {
    match error {
        JournalError::Unknown { path, number, what } if !is_vouched_for(line, rest) => {
            JournalError::Damaged { path, number, why: format!("it holds `{what}`, which no version wrote there") }
        }
        error => error,
    }
}

/// Whether the next line, if there is one, was written after this one.
fn is_vouched_for(line: &[u8], rest: &[u8]) -> bool {
    let next = rest.split(|byte| *byte == b'\n').next().filter(|next| !next.is_empty());
    let next: Option<Record> = next.and_then(|next| serde_json::from_slice(next).ok());
    next.is_none_or(|next| next.prev == sha256_hex(line))
}

fn format_of(line: &[u8]) -> Option<u64> {
    serde_json::from_slice::<Value>(line).ok()?.pointer("/event/format")?.as_u64()
}

pub(super) fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a string can't fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn io_error(doing: &'static str, path: &Path, source: io::Error) -> JournalError {
    JournalError::Io { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn notice(message: &str) -> Event {
        Event::Noticed { step: None, message: message.to_owned() }
    }

    fn written(messages: &[&str]) -> (tempfile::TempDir, PathBuf, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.jsonl");
        let mut journal = Journal::create(&path).unwrap();
        for pair in messages.chunks(2) {
            let events = pair.iter().map(|message| notice(message)).collect();
            journal.append(events, Timestamp::UNIX_EPOCH).unwrap();
        }
        let bytes = std::fs::read(&path).unwrap();
        (folder, path, bytes)
    }

    const MESSAGES: [&str; 5] = ["eins", "zwei ●", "", "vier \n \"", "fünf"];

    #[test]
    fn what_is_appended_is_read_and_gone_on_with() {
        let (_folder, path, _) = written(&MESSAGES);
        let (mut journal, contents) = Journal::open(&path).unwrap();
        assert_eq!((contents.records.len(), contents.torn), (5, None));
        assert_eq!(contents.head, journal.head());
        let more = journal.append(vec![notice("sechs")], Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!((more[0].seq, &more[0].prev), (5, &contents.head));
        assert_eq!(read(&path).unwrap().records.len(), 6);
    }

    #[test]
    fn cut_at_any_byte_the_torn_line_is_dropped_and_the_rest_kept() {
        let (_folder, path, bytes) = written(&MESSAGES);
        for length in 0..=bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let whole = bytes[..length].split(|byte| *byte == b'\n').count() - 1;
            if whole == 0 {
                assert!(matches!(read(&path), Err(JournalError::Empty { .. })), "cut at {length}");
                continue;
            }
            let contents = read(&path).unwrap_or_else(|error| panic!("{length}: {error}"));
            assert_eq!(contents.records.len(), whole, "cut at {length}");
            assert_eq!(contents.torn.is_none(), bytes[length - 1] == b'\n', "cut at {length}");
            // Going on is tried less often: each time waits for the disk.
            if length % 23 == 0 {
                let (mut journal, _) = Journal::open(&path).unwrap();
                journal.append(vec![notice("after")], Timestamp::UNIX_EPOCH).unwrap();
                assert_eq!(read(&path).unwrap().records.len(), whole + 1, "cut at {length}");
            }
        }
    }

    #[test]
    fn an_event_of_a_later_version_is_told_from_damage() {
        let (_folder, path, bytes) = written(&MESSAGES);
        let text = String::from_utf8(bytes).unwrap();
        let line = |number: usize| text.lines().nth(number).unwrap();
        // Kept in the chain, as a later version writes it.
        let later = line(2).replace("noticed", "foretold");
        let next = line(3).replace(&sha256_hex(line(2).as_bytes()), &sha256_hex(later.as_bytes()));
        std::fs::write(&path, [line(0), line(1), &later, &next, ""].join("\n")).unwrap();
        let error = read(&path).unwrap_err();
        assert!(matches!(&error, JournalError::Unknown { number: 2, what, .. } if what == "foretold"), "{error}");
        assert!(error.help().contains("later version"), "{}", error.help());
        // Written over.
        std::fs::write(&path, text.replacen(line(2), &later, 1)).unwrap();
        assert!(matches!(read(&path), Err(JournalError::Damaged { number: 2, .. })));
    }

    #[test]
    fn a_write_that_left_only_zeros_is_torn() {
        let (_folder, path, bytes) = written(&MESSAGES);
        for tail in [&b"\0\0\0\0"[..], b"{\"seq\":5\0\0", b"\0\0\0\n"] {
            std::fs::write(&path, [&bytes, tail].concat()).unwrap();
            let contents = read(&path).unwrap();
            assert_eq!((contents.records.len(), contents.torn), (5, Some(tail.len() as u64)));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn a_changed_byte_is_refused_with_the_record_it_is_in(at in 0usize..10_000, to in 1u8..=255) {
            let (_folder, path, mut bytes) = written(&MESSAGES);
            // The last line's own text is vouched for by the head alone, see the next test.
            let last = bytes[..bytes.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap();
            let at = at % last;
            bytes[at] ^= to;
            let record = bytes[..at].split(|byte| *byte == b'\n').count() as u64 - 1;
            std::fs::write(&path, &bytes).unwrap();
            match read(&path) {
                Err(JournalError::Damaged { number, .. }) => prop_assert!(number == record, "{number} for {record}"),
                Err(JournalError::Unknown { number, .. }) => prop_assert!(number == record, "{number} for {record}"),
                Err(JournalError::Newer { .. }) => prop_assert_eq!(record, 0),
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }

    #[test]
    fn a_changed_last_record_changes_the_head() {
        let (_folder, path, bytes) = written(&MESSAGES);
        let head = read(&path).unwrap().head;
        let text = String::from_utf8(bytes).unwrap().replace("fünf", "sechs");
        std::fs::write(&path, text).unwrap();
        assert_ne!(read(&path).unwrap().head, head);
    }

    #[test]
    fn a_journal_that_is_deleted_takes_nothing_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.jsonl");
        let mut journal = Journal::create(&path).unwrap();
        journal.append(vec![notice("x")], Timestamp::UNIX_EPOCH).unwrap();
        std::fs::remove_file(&path).unwrap();
        let lost = journal.append(vec![notice("y")], Timestamp::UNIX_EPOCH);
        assert!(matches!(lost, Err(JournalError::Deleted { .. })), "{lost:?}");
        let second = journal.append(vec![notice("z")], Timestamp::UNIX_EPOCH);
        assert!(matches!(second, Err(JournalError::Broken { .. })), "{second:?}");
    }

    #[test]
    fn a_full_disk_breaks_the_journal_for_good() {
        let full = Path::new("/dev/full");
        let file = OpenOptions::new().write(true).open(full).unwrap();
        let mut journal = Journal { file, path: full.to_owned(), next: 0, head: GENESIS.to_owned(), broken: false };
        let first = journal.append(vec![notice("x")], Timestamp::UNIX_EPOCH);
        assert!(matches!(first, Err(JournalError::Io { .. })), "{first:?}");
        let second = journal.append(vec![notice("x")], Timestamp::UNIX_EPOCH);
        assert!(matches!(second, Err(JournalError::Broken { .. })), "{second:?}");
    }
}
