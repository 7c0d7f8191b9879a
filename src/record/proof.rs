//! Whether what a run's folder holds is what its journal vouches for.
//!
//! The chain proves the journal ([`super::journal`]); the journal holds digests of the copies of plan, environment
//! and inputs, and of each log that was closed. The head, known from elsewhere, proves the journal's end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::event::{Event, Record};
use super::journal::{Contents, hex};
use super::store::{RunFolder, StoreError, io_error};
use crate::ids::StepId;

/// What is kept of a run besides its journal, and whether it is as it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    /// Files that are as the journal says.
    pub proven: u64,
    /// Files that nothing vouches for: logs that a kill left open, and what an older version kept.
    pub unvouched: Vec<String>,
    /// What is not as it was.
    pub flaws: Vec<Flaw>,
}

/// Something that is not as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// A file below the run's folder, or the journal's end.
    pub what: String,
    /// What differs.
    pub why: String,
}

impl Flaw {
    pub(super) fn new(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.into() }
    }
}

/// Compares a run's files with its journal.
///
/// # Errors
/// When the folder can't be read.
pub fn prove(folder: &RunFolder, contents: &Contents) -> Result<Proof, StoreError> {
    let vouched = vouched(&contents.records);
    let mut proof = Proof::default();
    for (name, digest) in &vouched {
        match file_digest(&folder.path().join(name)) {
            Ok(found) if &found == digest => proof.proven += 1,
            Ok(found) => {
                let why =
                    format!("it is not what the journal vouches for: its SHA-256 was {digest}, and is {found} now");
                proof.flaws.push(Flaw::new(name, why));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                proof.flaws.push(Flaw::new(name, "it is gone; the journal vouches for it"));
            }
            Err(source) => return Err(io_error("read", &folder.path().join(name), source)),
        }
    }
    let old = !contents
        .records
        .first()
        .is_some_and(|record| matches!(&record.event, Event::RunStarted(started) if !started.copies.is_empty()));
    let top = |name: &str| name.split('/').next().unwrap_or_default().trim_end_matches(".json").to_owned();
    let vouched_tops: BTreeSet<String> = vouched.keys().map(|name| top(name)).collect();
    for name in kept(folder)? {
        // An edited plan's copy is kept before its record: a resume that did not come to it leaves the copy.
        let orphan = name.starts_with("plan.") && !vouched_tops.contains(&top(&name));
        if vouched.contains_key(&name) {
        } else if old || orphan || name.starts_with("logs/") {
            proof.unvouched.push(name);
        } else {
            proof.flaws.push(Flaw::new(name, "it is not of this run: the journal knows nothing of it"));
        }
    }
    Ok(proof)
}

/// Whether the journal ends where somebody saw it end.
pub fn ends_at(contents: &Contents, head: &str) -> Option<Flaw> {
    if contents.head.eq_ignore_ascii_case(head) {
        return None;
    }
    let last = contents.records.len().saturating_sub(1);
    let follows = contents.records.iter().find(|record| record.prev.eq_ignore_ascii_case(head) && record.seq > 0);
    Some(match follows {
        Some(next) => {
            let since = contents.records.len() as u64 - next.seq;
            let why = format!(
                "that head is record {}'s: {since} more were written since ({} to {last}); those before are as they were",
                next.seq - 1,
                next.seq
            );
            Flaw::new("the journal's end", why)
        }
        None => Flaw::new(
            "the journal's end",
            format!(
                "no record of it has that head: records after {last} were cut off, or it is another run's; its head is {}",
                contents.head
            ),
        ),
    })
}

/// The files that the journal vouches for: SHA-256 in hex by path.
fn vouched(records: &[Record]) -> BTreeMap<String, String> {
    let mut vouched = BTreeMap::new();
    for record in records {
        match &record.event {
            Event::RunStarted(started) => vouched.extend(started.copies.clone()),
            Event::Steered(steered) => {
                vouched.extend(steered.plan.iter().flat_map(|plan| plan.copies.clone()));
            }
            Event::AttemptFailed { step, attempt, log: Some(log), .. }
            | Event::StepFinished { step, attempt, log: Some(log), .. } => {
                let name = format!("logs/{}.{attempt}.log", StepId::from(step.as_str()).file_stem());
                vouched.insert(name, log.clone());
            }
            _ => {}
        }
    }
    vouched
}

/// Every file that is kept of a run besides the journal, by its path below the folder.
pub(super) fn kept(folder: &RunFolder) -> Result<BTreeSet<String>, StoreError> {
    let mut found = BTreeSet::new();
    let top = std::fs::read_dir(folder.path()).map_err(|source| io_error("read", folder.path(), source))?;
    let mut folders = Vec::new();
    for entry in top {
        let entry = entry.map_err(|source| io_error("read", folder.path(), source))?;
        let name = entry.file_name().display().to_string();
        // The plan it began with, and edited ones that took over: `plan.2` with `plan.2.json`.
        let edited = name.strip_prefix("plan.");
        let numbered = |rest: &str| rest.parse::<u32>().is_ok();
        let manifest = edited.and_then(|rest| rest.strip_suffix(".json")).is_some_and(numbered);
        if manifest || ["run.json", "environment.yaml"].contains(&name.as_str()) {
            found.insert(name);
        } else if edited.is_some_and(numbered) || ["plan", "logs"].contains(&name.as_str()) {
            folders.push(PathBuf::from(name));
        }
    }
    while let Some(below) = folders.pop() {
        let path = folder.path().join(&below);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(io_error("read", &path, source)),
        };
        for entry in entries {
            let failed = |source| io_error("read", &path, source);
            let entry = entry.map_err(failed)?;
            let name = below.join(entry.file_name());
            if entry.file_type().map_err(failed)?.is_dir() {
                folders.push(name);
            } else {
                found.insert(name.display().to_string());
            }
        }
    }
    Ok(found)
}

/// SHA-256 of a file, in hex.
pub(super) fn file_digest(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut piece = vec![0; 64 * 1024];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hex(&digest.finalize())),
            length => digest.update(&piece[..length]),
        }
    }
}
