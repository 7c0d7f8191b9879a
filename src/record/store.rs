//! Where runs are kept: a folder each, with the journal, what was run as it was, and the logs.
//!
//! ```text
//! .lifeboat/runs/<id>/journal.jsonl     what happened
//!                     lock              held by the process that works on the run
//!                     run.json          the main plan's file and the inputs (secrets masked)
//!                     plan/…            the plan and its sub-plans as they were
//!                     environment.yaml  secrets removed
//!                     inbox/            messages from other terminals
//!                     logs/<step>.<attempt>.log
//! .lifeboat/locks/                      one file a resource that a run changes
//! ```
//!
//! Folders are 0700, files 0600. Knows nothing of plans beyond their text.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::Value;

use super::files;
use super::folder::JOURNAL;
pub use super::folder::{Delivered, Manifest, OpenRun, RunFolder};
use super::journal::{Journal, JournalError};
use super::lock::{self, FileLock, Holder, Refused};
use super::state::Illegal;
use crate::ids::RunId;

/// The folder in which runs are kept.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// What a new run keeps of what it runs.
#[derive(Clone, Debug, Default)]
pub struct Copies {
    /// The main plan's file, one of `plans`.
    pub plan: PathBuf,
    /// The text of the plan and of every sub-plan, by file.
    pub plans: Vec<(PathBuf, String)>,
    /// The environment's text, secrets removed.
    pub environment: Option<String>,
    /// The inputs, secrets masked.
    pub inputs: BTreeMap<String, Value>,
}

/// Why the store refused.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system refused.
    #[error("failed to {doing} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The journal can't be read or written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The journal holds events that can't follow each other.
    #[error("the journal of run {run} makes no sense: {why}")]
    Illegal {
        /// The run.
        run: RunId,
        /// What is wrong.
        why: Illegal,
    },
    /// `state: postgres://…`.
    #[error("this version keeps runs in a folder only, not in `{0}`")]
    Unsupported(String),
    /// No run has that id.
    #[error("no run in {} has an id that begins with `{prefix}`", root.display())]
    Unknown {
        /// Where was looked.
        root: PathBuf,
        /// What was asked for.
        prefix: String,
    },
    /// There is no run at all.
    #[error("there is no run in {}", .0.display())]
    None(PathBuf),
    /// Several runs match.
    #[error("`{prefix}` may mean {}", matches.join(", "))]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// The ids that begin so.
        matches: Vec<String>,
    },
    /// The id is taken.
    #[error("run {0} exists already")]
    Exists(RunId),
    /// Another process works on the run.
    #[error("run {run} is held by {}", describe(holder.as_deref()))]
    Locked {
        /// The run.
        run: RunId,
        /// Who, if known.
        holder: Option<Box<Holder>>,
    },
    /// An order that can't be taken.
    #[error("{0}")]
    Refused(String),
    /// An answer that doesn't count.
    #[error("the answer is refused: {0}")]
    Answer(String),
}

impl StoreError {
    /// What to do next.
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::Io { .. } => {
                "make the folder readable and writable, or name another one with `--state`".to_owned()
            }
            Self::Journal(error) => error.help(),
            Self::Unsupported(_) => "write `state: <folder>`, or leave it out for `.lifeboat`".to_owned(),
            Self::Unknown { .. } | Self::Ambiguous { .. } => "`lifeboat runs` lists the runs".to_owned(),
            Self::None(_) => "start one with `lifeboat run PLAN`, or name its folder with `--state`".to_owned(),
            Self::Exists(run) => {
                format!("go on with it by `lifeboat resume {run}`, leave `--run-id` out, or choose another one")
            }
            Self::Locked { run, .. } => {
                format!(
                    "look at it with `lifeboat status {run}`; the lock goes with that process, it needs no cleaning"
                )
            }
            Self::Illegal { .. } | Self::Answer(_) | Self::Refused(_) => return None,
        })
    }
}

/// How often a folder may be gone before it is locked: each time another process gave it up in just that moment.
const VANISHED: u32 = 100;

impl Store {
    /// The store that `state:` names; a folder is relative to the current directory.
    ///
    /// # Errors
    /// When it is no folder: runs in PostgreSQL aren't supported by this version.
    pub fn open(state: &str) -> Result<Self, StoreError> {
        if let Some((scheme, _)) = state.split_once("://") {
            return Err(StoreError::Unsupported(format!("{scheme}://…")));
        }
        Ok(Self { root: PathBuf::from(state) })
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Takes an id for a run that is about to begin: the given one, or one that nobody has.
    ///
    /// The folder is what makes it nobody else's: of all processes only one can make it, and several
    /// that begin in the same second, as jobs of a scheduler do, may well draw the same syllables.
    /// A given id that a process was killed with before its run began is taken again.
    ///
    /// # Errors
    /// When the given one is taken or held, or no folder can be made.
    pub fn claim(&self, given: Option<&RunId>, now: Timestamp) -> Result<Claim, StoreError> {
        let runs = self.root.join("runs");
        files::make_folder(&runs).map_err(|source| io_error("create", &runs, source))?;
        let mut vanished = 0;
        loop {
            let id = given.cloned().unwrap_or_else(|| RunId::generate(now));
            let path = runs.join(id.as_str());
            let folder = RunFolder { id, path };
            let is_new = match files::make_new_folder(&folder.path) {
                Ok(()) => true,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
                Err(error) => return Err(io_error("create", &folder.path, error)),
            };
            if !is_new && given.is_none() {
                continue;
            }
            let lock = match folder.lock(now) {
                // Whoever held it took the folder away.
                Err(StoreError::Io { source, .. })
                    if source.kind() == io::ErrorKind::NotFound && vanished < VANISHED =>
                {
                    vanished += 1;
                    continue;
                }
                locked => locked?,
            };
            if folder.may_have_begun() {
                return Err(StoreError::Exists(folder.id));
            }
            if !is_new {
                folder.clear().map_err(|source| io_error("clear", &folder.path, source))?;
            }
            let unbegun = Unbegun(Some(folder.path.clone()));
            return Ok(Claim { root: self.root.clone(), folder, unbegun, lock });
        }
    }

    /// Every run, the newest first; of runs with hand-made ids, the last in the alphabet.
    pub fn runs(&self) -> Result<Vec<RunFolder>, StoreError> {
        let runs = self.root.join("runs");
        let entries = match std::fs::read_dir(&runs) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(io_error("read", &runs, source)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(|source| io_error("read", &runs, source))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // A folder without a journal is a run that was killed before it began.
            if let Ok(id) = RunId::parse(name)
                && path.join(JOURNAL).metadata().is_ok_and(|journal| journal.len() > 0)
            {
                found.push(RunFolder { id, path });
            }
        }
        found.sort_by(|a, b| b.began().cmp(&a.began()).then_with(|| b.id.cmp(&a.id)));
        Ok(found)
    }

    /// The run whose id begins with `prefix`; the latest without one.
    pub fn find(&self, prefix: Option<&str>) -> Result<RunFolder, StoreError> {
        let runs = self.runs()?;
        let Some(prefix) = prefix else {
            return runs.into_iter().next().ok_or_else(|| StoreError::None(self.root.clone()));
        };
        if let Some(exact) = runs.iter().find(|run| run.id.as_str() == prefix) {
            return Ok(exact.clone());
        }
        let mut matches: Vec<_> = runs.into_iter().filter(|run| run.id.as_str().starts_with(prefix)).collect();
        match matches.len() {
            0 => Err(StoreError::Unknown { root: self.root.clone(), prefix: prefix.to_owned() }),
            1 => Ok(matches.remove(0)),
            _ => {
                let matches = matches.into_iter().map(|run| run.id.to_string()).collect();
                Err(StoreError::Ambiguous { prefix: prefix.to_owned(), matches })
            }
        }
    }

    /// The file that locks a resource of this store's runs.
    pub fn resource_lock(&self, name: &str, holder: &Holder) -> Result<FileLock, Refused> {
        let locks = self.root.join("locks");
        files::make_folder(&locks).map_err(Refused::Io)?;
        lock::acquire(&locks.join(name), holder)
    }
}

/// An id that is taken, and its folder, for a run that hasn't begun. Dropped before that, both are free again.
#[derive(Debug)]
pub struct Claim {
    root: PathBuf,
    folder: RunFolder,
    // Dropped before the lock: nobody else can have begun in the folder.
    unbegun: Unbegun,
    lock: FileLock,
}

impl Claim {
    /// The id.
    pub const fn id(&self) -> &RunId {
        &self.folder.id
    }

    /// Fills the run's folder: the copies, and a journal that is empty yet.
    ///
    /// # Errors
    /// When the folder can't be written.
    pub fn begin(mut self, copies: &Copies) -> Result<OpenRun, StoreError> {
        let folder = self.folder;
        folder.keep(copies)?;
        let journal = Journal::create(&folder.journal_path())?;
        for folder in [&folder.path, &self.root.join("runs"), &self.root] {
            files::sync_folder(folder).map_err(|source| io_error("sync", folder, source))?;
        }
        self.unbegun.0 = None;
        Ok(OpenRun { folder, journal, lock: self.lock })
    }
}

/// The folder of a run that hasn't begun, removed with this.
#[derive(Debug)]
struct Unbegun(Option<PathBuf>);

impl Drop for Unbegun {
    fn drop(&mut self) {
        if let Some(folder) = &self.0 {
            // First of all it gives its name up: who makes a folder of that name meanwhile has another one. What can't
            // be removed is in nobody's way: it holds no record.
            let gone = folder.with_file_name(format!(".gone-{:08x}", rand::random::<u32>()));
            let _ = std::fs::rename(folder, &gone).and_then(|()| std::fs::remove_dir_all(&gone));
        }
    }
}

fn describe(holder: Option<&Holder>) -> String {
    holder.map_or_else(|| "another process".to_owned(), Holder::describe)
}

pub(super) fn io_error(doing: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { doing, path: path.to_owned(), source }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
