//! One run's folder: its journal, lock, inbox, copies and logs.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::event::{Actor, Answer, Event, Record, RunStatus};
use super::files;
use super::inbox::{self, Letter, Message};
use super::journal::{self, Contents, Journal, JournalError};
use super::lock::{self, FileLock, Holder, Refused};
use super::state::RunState;
use super::steering::Adjustment;
use super::store::{Copies, StoreError, io_error};
use crate::ids::{RunId, StepId};

/// One run's folder.
#[derive(Clone, Debug)]
pub struct RunFolder {
    /// The run.
    pub id: RunId,
    pub(super) path: PathBuf,
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
    Sent(Option<Box<Holder>>),
}

pub(super) const JOURNAL: &str = "journal.jsonl";
const MANIFEST: &str = "run.json";
const ENVIRONMENT: &str = "environment.yaml";

impl RunFolder {
    /// A run's files that lie elsewhere than in a store.
    pub(super) const fn at(id: RunId, path: PathBuf) -> Self {
        Self { id, path }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads and checks the journal, without a lock.
    pub fn read(&self) -> Result<Contents, StoreError> {
        Ok(journal::read(&self.journal_path())?)
    }

    /// Whether a record was written, so that something may have been done: a process that is killed before
    /// leaves a folder without one.
    pub(super) fn may_have_begun(&self) -> bool {
        match journal::read(&self.journal_path()) {
            Err(JournalError::Empty { .. }) => false,
            Err(JournalError::Io { source, .. }) => source.kind() != io::ErrorKind::NotFound,
            Ok(_) | Err(_) => true,
        }
    }

    /// Removes what a process left that was killed before the run began; the lock, which is held, stays.
    pub(super) fn clear(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.path() == self.lock_path() {
                continue;
            }
            if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())?;
            } else {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
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
            Ok((mut run, contents, state)) => {
                state.check_answer(step, &answer).map_err(StoreError::Answer)?;
                let answered = Event::StepAnswered { step: step.to_owned(), answer };
                run.journal.append(contents.torn_notice().into_iter().chain([answered]).collect(), now)?;
                Ok(Delivered::Journaled)
            }
            Err(StoreError::Locked { holder, .. }) => {
                self.send(&Message::Answer { step: step.to_owned(), answer }, now)?;
                Ok(Delivered::Sent(holder))
            }
            Err(error) => Err(error),
        }
    }

    /// Gives a step other limits: into the journal when no process works on the run, to that process otherwise.
    pub fn adjust(&self, adjustment: &Adjustment, now: Timestamp) -> Result<Delivered, StoreError> {
        self.state()?.check_adjustment(&adjustment.step).map_err(StoreError::Refused)?;
        match self.open(now) {
            Ok((mut run, contents, state)) => {
                state.check_adjustment(&adjustment.step).map_err(StoreError::Refused)?;
                let adjusted = Event::StepAdjusted(Box::new(adjustment.clone()));
                run.journal.append(contents.torn_notice().into_iter().chain([adjusted]).collect(), now)?;
                Ok(Delivered::Journaled)
            }
            Err(StoreError::Locked { holder, .. }) => {
                self.send(&Message::Adjust(adjustment.clone()), now)?;
                Ok(Delivered::Sent(holder))
            }
            Err(error) => Err(error),
        }
    }

    /// Calls off a run that nobody works on: one that waits for a person gives up its claim, and one whose process
    /// died is known to have stopped. Its status, and whether it was changed.
    pub fn call_off(&self, reason: String, now: Timestamp) -> Result<(RunStatus, bool), StoreError> {
        let (mut run, contents, state) = self.open(now)?;
        if !matches!(state.status, RunStatus::Waiting | RunStatus::Paused | RunStatus::Running) {
            return Ok((state.status, false));
        }
        let stopped = Event::RunStopped { status: RunStatus::Cancelled, reason: Some(reason) };
        run.journal.append(contents.torn_notice().into_iter().chain([stopped]).collect(), now)?;
        Ok((RunStatus::Cancelled, true))
    }

    /// Keeps a message for the process that works on the run.
    pub fn send(&self, message: &Message, now: Timestamp) -> Result<(), StoreError> {
        let inbox = self.path.join("inbox");
        inbox::send(&inbox, lock::named(&self.lock_path()), message.clone(), now)
            .map_err(|source| io_error("write to", &inbox, source))
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

    /// What a step said when it was asked what became of that attempt. Apart from the attempt's own log, which may be
    /// closed and vouched for.
    pub fn asked_path(&self, step: &StepId, attempt: u32) -> PathBuf {
        self.log_path(step, attempt).with_extension("asked.log")
    }

    /// How the run's own copies of plan and inputs are loaded again.
    pub fn manifest(&self) -> Result<Manifest, StoreError> {
        let edited = match self.state() {
            Ok(state) => state.plan_copy.map(|copy| format!("{copy}.json")),
            // Copies are kept before the first record.
            Err(StoreError::Journal(JournalError::Empty { .. })) => None,
            Err(error) => return Err(error),
        };
        let path = self.path.join(edited.as_deref().unwrap_or(MANIFEST));
        let text = std::fs::read(&path).map_err(|source| io_error("read", &path, source))?;
        serde_json::from_slice(&text).map_err(|error| io_error("read", &path, error.into()))
    }

    /// The run's own copy of the main plan; those of sub-plans lie beside it as the originals did.
    pub fn plan_copy(&self) -> Result<PathBuf, StoreError> {
        Ok(self.path.join(self.manifest()?.plan))
    }

    /// The name for the next edited plan's copy: `plan.2`, below the run's folder.
    pub fn next_copy(&self) -> String {
        let mut number = 2;
        while self.path.join(format!("plan.{number}")).exists() {
            number += 1;
        }
        format!("plan.{number}")
    }

    /// Keeps an edited plan beside the one before, which stays.
    pub fn keep_edited(&self, name: &str, copies: &Copies) -> Result<(), StoreError> {
        for (path, text) in copies.plan_files(name, &format!("{name}.json")) {
            self.write(&path, &text)?;
        }
        files::sync_folder(&self.path).map_err(|source| io_error("sync", &self.path, source))
    }

    /// The run's own copy of the environment, secrets removed.
    pub fn environment_copy(&self) -> PathBuf {
        self.path.join(ENVIRONMENT)
    }

    pub(super) fn lock(&self, now: Timestamp) -> Result<FileLock, StoreError> {
        let holder = Holder { by: Actor::current(), run: self.id.to_string(), since: now };
        let path = self.lock_path();
        lock::acquire(&path, &holder).map_err(|refused| match refused {
            Refused::Held(holder) => StoreError::Locked { run: self.id.clone(), holder },
            Refused::Io(source) => io_error("lock", &path, source),
        })
    }

    pub(super) fn keep(&self, copies: &Copies) -> Result<(), StoreError> {
        for (path, text) in copies.files() {
            self.write(&path, &text)?;
        }
        let logs = self.path.join("logs");
        files::make_folder(&logs).map_err(|source| io_error("create", &logs, source))
    }

    fn write(&self, below: &Path, text: &[u8]) -> Result<(), StoreError> {
        let path = self.path.join(below);
        let parent = path.parent().unwrap_or(&self.path);
        let written = files::make_folder(parent).and_then(|()| files::write(&path, text));
        written.map_err(|source| io_error("write", &path, source))
    }

    /// What the run's last record on its status says, read from the journal's end without
    /// checking it whole; for a quick look over many runs.
    pub fn last_status(&self) -> Option<RunStatus> {
        const ENOUGH: u64 = 64 * 1024;
        let mut file = std::fs::File::open(self.journal_path()).ok()?;
        let from = file.metadata().ok()?.len().saturating_sub(ENOUGH);
        file.seek(SeekFrom::Start(from)).ok()?;
        let mut end = Vec::new();
        file.read_to_end(&mut end).ok()?;
        let records =
            end.rsplit(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Record>(line).ok());
        records.map(|record| record.event).find_map(|event| match event {
            Event::RunStopped { status, .. } => Some(status),
            // Answers and notices may follow a stop; anything else means that a process went on.
            Event::StepAnswered { .. } | Event::StepAdjusted(_) | Event::Noticed { .. } | Event::Steered(_) => None,
            _ => Some(RunStatus::Running),
        })
    }

    /// The plan's name, by the first record.
    pub fn plan_name(&self) -> Option<String> {
        match self.first()?.event {
            Event::RunStarted(started) => Some(started.plan),
            _ => None,
        }
    }

    /// When the run began, by its first record; runs that can't tell sort last.
    pub(super) fn began(&self) -> Option<Timestamp> {
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

    pub(super) fn journal_path(&self) -> PathBuf {
        self.path.join(JOURNAL)
    }

    fn lock_path(&self) -> PathBuf {
        self.path.join("lock")
    }
}

impl Copies {
    /// The files that a run's folder keeps: path below it, and text.
    pub(super) fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files = self.plan_files("plan", MANIFEST);
        files.extend(self.environment.iter().map(|text| (PathBuf::from(ENVIRONMENT), text.clone().into_bytes())));
        files
    }

    /// The plans' texts below `name`, and how they are loaded again.
    fn plan_files(&self, name: &str, manifest_name: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let base = common_folder(self.plans.iter().map(|(path, _)| path.as_path()));
        let below = |path: &Path| Path::new(name).join(path.strip_prefix(&base).unwrap_or(path));
        let mut files: Vec<_> =
            self.plans.iter().map(|(path, text)| (below(path), text.clone().into_bytes())).collect();
        let manifest = Manifest { plan: below(&self.plan), inputs: self.inputs.clone() };
        // Paths come from texts, and the rest is JSON already.
        files.push((PathBuf::from(manifest_name), serde_json::to_vec_pretty(&manifest).unwrap_or_default()));
        files
    }

    /// SHA-256 in hex of each, by its path.
    pub fn digests(&self) -> BTreeMap<String, String> {
        digests(self.files())
    }

    /// The same of an edited plan that is kept under this name ([`RunFolder::keep_edited`]).
    pub fn edited_digests(&self, name: &str) -> BTreeMap<String, String> {
        digests(self.plan_files(name, &format!("{name}.json")))
    }
}

fn digests(files: Vec<(PathBuf, Vec<u8>)>) -> BTreeMap<String, String> {
    files.into_iter().map(|(path, text)| (path.display().to_string(), journal::sha256_hex(&text))).collect()
}

/// The deepest folder that holds all these files; paths that climb are taken from their root.
fn common_folder<'a>(paths: impl Iterator<Item = &'a Path>) -> PathBuf {
    let folders = paths.map(|path| path.parent().unwrap_or(Path::new("")).components().collect::<Vec<Component>>());
    let common = folders.reduce(|a, b| a.into_iter().zip(b).take_while(|(a, b)| a == b).map(|(a, _)| a).collect());
    common.unwrap_or_default().into_iter().collect()
}
