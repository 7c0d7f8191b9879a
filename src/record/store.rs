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
use std::io::{self, BufRead};
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::event::{Actor, Answer, Event, Record};
use super::files;
use super::inbox::{self, Letter, Message};
use super::journal::{self, Contents, Journal, JournalError};
use super::lock::{self, FileLock, Holder, Refused};
use super::state::{Illegal, RunState};
use crate::ids::{RunId, StepId};

/// The folder in which runs are kept.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// One run's folder.
#[derive(Clone, Debug)]
pub struct RunFolder {
    /// The run.
    pub id: RunId,
    path: PathBuf,
}

/// A run that this process alone works on, from its lock's taking to its dropping.
#[derive(Debug)]
pub struct OpenRun {
    /// The run's folder.
    pub folder: RunFolder,
    /// Its journal, open for writing.
    pub journal: Journal,
    /// Held until this is dropped.
    pub lock: FileLock,
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

/// `run.json`: how to load the copies again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The main plan's copy, below the run's folder.
    pub plan: PathBuf,
    /// The inputs, secrets masked.
    pub inputs: BTreeMap<String, Value>,
}

/// Where an answer went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// Into the journal: no process works on the run; `resume` goes on.
    Journaled,
    /// To the process that works on the run, which journals it.
    Sent(Option<Holder>),
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
    #[error("run {run} is held by {}", describe(holder.as_ref()))]
    Locked {
        /// The run.
        run: RunId,
        /// Who, if known.
        holder: Option<Holder>,
    },
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
            Self::Exists(_) => "leave `--run-id` out, or choose another one".to_owned(),
            Self::Locked { run, .. } => {
                format!(
                    "look at it with `lifeboat status {run}`; the lock goes with that process, it needs no cleaning"
                )
            }
            Self::Illegal { .. } | Self::Answer(_) => return None,
        })
    }
}

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

    /// Makes a run's folder, with its copies, and takes its lock.
    pub fn create(&self, id: &RunId, copies: &Copies, now: Timestamp) -> Result<OpenRun, StoreError> {
        let runs = self.root.join("runs");
        files::make_folder(&runs).map_err(|source| io_error("create", &runs, source))?;
        let folder = RunFolder { id: id.clone(), path: runs.join(id.as_str()) };
        match files::make_new_folder(&folder.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(StoreError::Exists(id.clone()));
            }
            made => made.map_err(|source| io_error("create", &folder.path, source))?,
        }
        let lock = folder.lock(now)?;
        folder.keep(copies)?;
        let journal = Journal::create(&folder.journal_path())?;
        for folder in [&folder.path, &runs, &self.root] {
            files::sync_folder(folder).map_err(|source| io_error("sync", folder, source))?;
        }
        Ok(OpenRun { folder, journal, lock })
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

const JOURNAL: &str = "journal.jsonl";
const MANIFEST: &str = "run.json";

impl RunFolder {
    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads and checks the journal, without a lock.
    pub fn read(&self) -> Result<Contents, StoreError> {
        Ok(journal::read(&self.journal_path())?)
    }

    /// Reads the journal and folds it.
    pub fn state(&self) -> Result<RunState, StoreError> {
        self.fold(&self.read()?.records)
    }

    /// The process that works on the run now: `None` when there is none, so that a run
    /// whose journal says `running` was killed; `Some(None)` when it can't be told who it is.
    pub fn holder(&self) -> Result<Option<Option<Holder>>, StoreError> {
        let path = self.lock_path();
        lock::holder(&path).map_err(|source| io_error("look at", &path, source))
    }

    /// Takes the run's lock and opens its journal to go on with it. The contents say
    /// whether a torn last line was dropped.
    pub fn open(&self, now: Timestamp) -> Result<(OpenRun, Contents, RunState), StoreError> {
        let lock = self.lock(now)?;
        let (journal, contents) = Journal::open(&self.journal_path())?;
        let state = self.fold(&contents.records)?;
        Ok((OpenRun { folder: self.clone(), journal, lock }, contents, state))
    }

    /// Answers a waiting step: into the journal when no process works on the run, to that process otherwise.
    pub fn answer(&self, step: &str, answer: Answer, now: Timestamp) -> Result<Delivered, StoreError> {
        self.state()?.check_answer(step, &answer).map_err(StoreError::Answer)?;
        match self.open(now) {
            Ok((mut run, _, state)) => {
                state.check_answer(step, &answer).map_err(StoreError::Answer)?;
                run.journal.append(vec![Event::StepAnswered { step: step.to_owned(), answer }], now)?;
                Ok(Delivered::Journaled)
            }
            Err(StoreError::Locked { holder, .. }) => {
                self.send(&Message::Answer { step: step.to_owned(), answer }, now)?;
                Ok(Delivered::Sent(holder))
            }
            Err(error) => Err(error),
        }
    }

    /// Keeps a message for the process that works on the run.
    pub fn send(&self, message: &Message, now: Timestamp) -> Result<(), StoreError> {
        let inbox = self.path.join("inbox");
        inbox::send(&inbox, message, now).map_err(|source| io_error("write to", &inbox, source))
    }

    /// The messages that lie there, oldest first.
    pub fn receive(&self) -> Result<Vec<Letter>, StoreError> {
        let inbox = self.path.join("inbox");
        inbox::receive(&inbox).map_err(|source| io_error("read", &inbox, source))
    }

    /// The log of one attempt.
    pub fn log_path(&self, step: &StepId, attempt: u32) -> PathBuf {
        self.path.join("logs").join(format!("{}.{attempt}.log", step.file_stem()))
    }

    /// How the run's own copies of plan and inputs are loaded again.
    pub fn manifest(&self) -> Result<Manifest, StoreError> {
        let path = self.path.join(MANIFEST);
        let text = std::fs::read(&path).map_err(|source| io_error("read", &path, source))?;
        serde_json::from_slice(&text).map_err(|error| io_error("read", &path, error.into()))
    }

    /// The run's own copy of the main plan; those of sub-plans lie beside it as the originals did.
    pub fn plan_copy(&self) -> Result<PathBuf, StoreError> {
        Ok(self.path.join(self.manifest()?.plan))
    }

    /// The run's own copy of the environment, secrets removed.
    pub fn environment_copy(&self) -> PathBuf {
        self.path.join("environment.yaml")
    }

    fn lock(&self, now: Timestamp) -> Result<FileLock, StoreError> {
        let holder = Holder { by: Actor::current(), run: self.id.to_string(), since: now };
        let path = self.lock_path();
        lock::acquire(&path, &holder).map_err(|refused| match refused {
            Refused::Held(holder) => StoreError::Locked { run: self.id.clone(), holder },
            Refused::Io(source) => io_error("lock", &path, source),
        })
    }

    fn keep(&self, copies: &Copies) -> Result<(), StoreError> {
        let write = |below: &Path, text: &[u8]| {
            let path = self.path.join(below);
            let parent = path.parent().unwrap_or(&self.path);
            let written = files::make_folder(parent).and_then(|()| files::write(&path, text));
            written.map_err(|source| io_error("write", &path, source))
        };
        let base = common_folder(copies.plans.iter().map(|(path, _)| path.as_path()));
        let below = |path: &Path| Path::new("plan").join(path.strip_prefix(&base).unwrap_or(path));
        for (path, text) in &copies.plans {
            write(&below(path), text.as_bytes())?;
        }
        if let Some(text) = &copies.environment {
            write(Path::new("environment.yaml"), text.as_bytes())?;
        }
        let manifest = Manifest { plan: below(&copies.plan), inputs: copies.inputs.clone() };
        let text =
            serde_json::to_vec_pretty(&manifest).map_err(|error| io_error("write", &self.path, error.into()))?;
        write(Path::new(MANIFEST), &text)?;
        let logs = self.path.join("logs");
        files::make_folder(&logs).map_err(|source| io_error("create", &logs, source))
    }

    /// The plan's name, by the first record.
    pub fn plan_name(&self) -> Option<String> {
        match self.first()?.event {
            Event::RunStarted(started) => Some(started.plan),
            _ => None,
        }
    }

    /// When the run began, by its first record; runs that can't tell sort last.
    fn began(&self) -> Option<Timestamp> {
        Some(self.first()?.at)
    }

    fn first(&self) -> Option<Record> {
        let mut line = String::new();
        io::BufReader::new(std::fs::File::open(self.journal_path()).ok()?).read_line(&mut line).ok()?;
        serde_json::from_str(&line).ok()
    }

    fn fold(&self, records: &[Record]) -> Result<RunState, StoreError> {
        RunState::fold(records).map_err(|why| StoreError::Illegal { run: self.id.clone(), why })
    }

    fn journal_path(&self) -> PathBuf {
        self.path.join(JOURNAL)
    }

    fn lock_path(&self) -> PathBuf {
        self.path.join("lock")
    }
}

/// The deepest folder that holds all these files; paths that climb are taken from their root.
fn common_folder<'a>(paths: impl Iterator<Item = &'a Path>) -> PathBuf {
    let folders = paths.map(|path| path.parent().unwrap_or(Path::new("")).components().collect::<Vec<Component>>());
    let common = folders.reduce(|a, b| a.into_iter().zip(b).take_while(|(a, b)| a == b).map(|(a, _)| a).collect());
    common.unwrap_or_default().into_iter().collect()
}

fn describe(holder: Option<&Holder>) -> String {
    holder.map_or_else(|| "another process".to_owned(), Holder::describe)
}

fn io_error(doing: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { doing, path: path.to_owned(), source }
}
