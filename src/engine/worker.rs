//! One step's attempts: each under its timeout, cancelled for real, retried where that helps.
//!
//! The first attempt is on disk when the worker starts; each further one is announced
//! and waited for. Knows nothing of the run's other steps.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use data_encoding::HEXLOWER;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::guard::Guards;
use super::limits::{self, Limits};
use super::notes::Notes;
use super::target::Targets;
use crate::failure::Failure;
use crate::ids::{RunId, StepId};
use crate::kill;
use crate::record::event::{ErrorRecord, Outcome, Progress};
use crate::record::files;
use crate::record::store::RunFolder;
use crate::retry::RetryOn;
use crate::secret::{RedactStream, Redactor};
use crate::service::Services;
use crate::service::identity::{self, Identity};
use crate::step::effect::Effect;
use crate::step::{AfterKill, Done, Reporter, RunCx, Step};
use crate::units::Size;

/// How long a cancelled attempt may take to stop by itself.
pub(super) const GRACE: Duration = if cfg!(test) { Duration::from_millis(500) } else { Duration::from_secs(10) };

/// What a step's outputs may take in the journal.
const OUTPUTS_CAP: usize = 256 * 1024;

/// What one attempt's log may take: a child that goes wild must not fill the journal's disk.
const LOG_CAP: u64 = 64 << 20;

/// A step whose first attempt is announced.
pub(super) struct Job {
    pub(super) at: usize,
    pub(super) id: StepId,
    pub(super) step: Arc<dyn Step>,
    /// The announced attempt.
    pub(super) attempt: u32,
    /// The first attempt that counts.
    pub(super) since: u32,
    pub(super) notes: Notes,
    /// May change while it runs.
    pub(super) limits: watch::Receiver<Limits>,
    pub(super) cancel: CancellationToken,
}

/// What every worker of a run shares.
#[derive(Clone)]
pub(super) struct Desk {
    pub(super) run: RunId,
    pub(super) folder: RunFolder,
    pub(super) services: Services,
    pub(super) redactor: Redactor,
    pub(super) guards: Arc<Guards>,
    pub(super) targets: Arc<Targets>,
    pub(super) reports: mpsc::Sender<Report>,
    pub(super) progress: mpsc::Sender<(StepId, Progress)>,
}

/// Answered when the record is on disk, with an error when it can't be.
pub(super) type Ack = oneshot::Sender<Result<(), Failure>>;

/// What a worker tells the dispatcher.
pub(super) enum Report {
    /// A note that must be on disk before the step acts.
    Noted { at: usize, attempt: u32, note: Value, ack: Ack },
    /// Who is behind the names that the step touches.
    Seen { at: usize, seen: Vec<(String, Identity)>, ack: Option<Ack> },
    /// An attempt failed; the next is due after the wait.
    Failed { at: usize, attempt: u32, error: ErrorRecord, retry_in: Duration, log: Option<String> },
    /// The next attempt is about to touch the world.
    Again { at: usize, attempt: u32, ack: Ack },
    /// Something worth keeping.
    Said { at: usize, message: String },
    /// The step came to its end.
    Finished { at: usize, attempt: u32, outcome: Outcome, log: Option<String> },
    /// An attempt of a dead process: nobody can tell what became of it; why.
    Unclear { at: usize, why: String },
}

/// Runs a step to its end.
pub(super) async fn work(mut job: Job, desk: Desk) {
    let mut tried = 0;
    loop {
        let (result, log) = attempt(&job, &desk).await;
        let failure = match result {
            Ok(done) => return desk.finish(&job, done, log).await,
            Err(Stopped::Cancelled(reason)) => return desk.end(&job, Outcome::Cancelled { reason }, log).await,
            Err(Stopped::Failed(failure)) => failure,
        };
        let failed = Instant::now();
        let on = job.limits.borrow().retry.on;
        let again = failure.transient || on == RetryOn::Any;
        let error = desk.error(failure);
        let wait = limits::wait(&mut job.limits, tried);
        let Some(wait) = wait.filter(|_| again && !job.cancel.is_cancelled()) else {
            return desk.end(&job, Outcome::Failed { error }, log).await;
        };
        let retry_in = wait.std();
        let report = Report::Failed { at: job.at, attempt: job.attempt, error: error.clone(), retry_in, log };
        if desk.reports.send(report).await.is_err() {
            return;
        }
        let another = tokio::select! {
            another = limits::pause(&mut job.limits, failed, retry_in, tried) => another,
            // Nothing is under way between two attempts: it failed, and that is all.
            () = job.cancel.cancelled() => false,
        };
        if !another {
            return desk.end(&job, Outcome::Failed { error }, None).await;
        }
        tried += 1;
        job.attempt += 1;
        let (ack, acknowledged) = oneshot::channel();
        let again = Report::Again { at: job.at, attempt: job.attempt, ack };
        if desk.reports.send(again).await.is_err() || !matches!(acknowledged.await, Ok(Ok(()))) {
            return;
        }
    }
}

/// Waits for what a dead process left going on in the world, and tells what became of it. `rerun`: where nobody can
/// tell, it runs again, as the plan says.
pub(super) async fn reattach(job: Job, desk: Desk, rerun: bool) {
    let attempt = job.attempt;
    let failed = |message: String| ErrorRecord { message, transient: true, help: None };
    let mut pause = Duration::from_millis(500);
    loop {
        let answer = match ask(job.step.clone(), desk.probe(&job)).await {
            Ok(AfterKill::CannotTell { why }) if rerun => Ok(AfterKill::RunAgain { why: rerun_anyway(&why) }),
            answer => answer,
        };
        let report = match answer {
            Ok(AfterKill::StillGoing { what }) => {
                desk.tell(&job.id, &what);
                None
            }
            // A system that can't be asked now may answer later; the step's end is not known before.
            Err(failure) if failure.transient => {
                desk.tell(&job.id, &failure.message);
                None
            }
            Err(failure) => {
                Some(Report::Unclear { at: job.at, why: desk.redactor.redact(&failure.message).into() })
            }
            Ok(AfterKill::CannotTell { why }) => {
                Some(Report::Unclear { at: job.at, why: desk.redactor.redact(&why).into() })
            }
            Ok(AfterKill::Happened(done)) => return desk.finish(&job, done, None).await,
            Ok(AfterKill::DidNotHappen { why } | AfterKill::RunAgain { why } | AfterKill::Partly { what: why }) => {
                let error = failed(format!("cut off by a kill: {}", desk.redactor.redact(&why)));
                let report = Report::Failed { at: job.at, attempt, error, retry_in: Duration::ZERO, log: None };
                let (ack, acknowledged) = oneshot::channel();
                let again = Report::Again { at: job.at, attempt: attempt + 1, ack };
                if desk.reports.send(report).await.is_ok()
                    && desk.reports.send(again).await.is_ok()
                    && matches!(acknowledged.await, Ok(Ok(())))
                {
                    return work(Job { attempt: attempt + 1, ..job }, desk).await;
                }
                return;
            }
        };
        if let Some(report) = report {
            // An error means that the run has stopped already.
            let _ = desk.reports.send(report).await;
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_secs(10)),
            () = job.cancel.cancelled() => {
                let reason = "the run was cancelled while it waited for what a kill had cut off".to_owned();
                return desk.end(&job, Outcome::Cancelled { reason }, None).await;
            }
        }
    }
}

/// Why a step runs again of which nobody can tell whether it happened.
pub(super) fn rerun_anyway(why: &str) -> String {
    format!("nobody can tell what became of it ({why}); the plan says `interrupted: rerun`")
}

/// Asks a step what became of a cut-off attempt. A panic in it is a failure.
pub(super) async fn ask(step: Arc<dyn Step>, cx: RunCx) -> Result<AfterKill, Failure> {
    tokio::spawn(async move { step.after_kill(&cx).await }).await.unwrap_or_else(|error| Err(defect(&error)))
}

enum Stopped {
    Failed(Failure),
    Cancelled(String),
}

/// One attempt, and the digest of its log.
async fn attempt(job: &Job, desk: &Desk) -> (Result<Done, Stopped>, Option<String>) {
    let begun = std::time::Instant::now();
    let log = Arc::new(Log::new(desk.folder.log_path(&job.id, job.attempt), &desk.redactor));
    let result = bounded(job, desk, &log).await;
    let seen = desk.targets.after(&desk.looking(job), &job.step.effects()).await;
    if !seen.is_empty() {
        // An error means that the run has stopped already.
        let _ = desk.reports.send(Report::Seen { at: job.at, seen, ack: None }).await;
    }
    let took = begun.elapsed();
    match &result {
        Ok(_) => tracing::info!(step = %job.id, attempt = job.attempt, ?took, "through"),
        Err(Stopped::Failed(failure)) => {
            tracing::info!(step = %job.id, attempt = job.attempt, ?took, transient = failure.transient, "failed");
        }
        Err(Stopped::Cancelled(_)) => tracing::info!(step = %job.id, attempt = job.attempt, ?took, "cancelled"),
    }
    (result, log.finish())
}

/// One attempt under its timeout.
async fn bounded(job: &Job, desk: &Desk, log: &Arc<Log>) -> Result<Done, Stopped> {
    let timeout = job.limits.borrow().timeout;
    tracing::info!(step = %job.id, attempt = job.attempt, ?timeout, "begins");
    let begun = Instant::now();
    let cancel = CancellationToken::new();
    let cx = desk.context(job, "lifeboat", cancel.clone(), log.clone());
    let (step, desk_of_task, at, looking) = (job.step.clone(), desk.clone(), job.at, desk.looking(job));
    let mut task = tokio::spawn(async move {
        let effects = step.effects();
        if let Some(message) = desk_of_task.guards.ensure(&effects).await? {
            // An error means that the run has stopped already, and with it this attempt.
            let _ = desk_of_task.reports.send(Report::Said { at, message }).await;
        }
        desk_of_task.see(at, &looking, &effects).await?;
        kill::around("step run", step.run(&cx)).await
    });
    let timeout = limits::expiry(job.limits.clone(), begun);
    let cancelled = tokio::select! {
        result = &mut task => return outcome(result).map_err(Stopped::Failed),
        () = job.cancel.cancelled() => true,
        () = timeout => false,
    };
    cancel.cancel();
    let result = tokio::time::timeout(GRACE, &mut task).await.ok().map(outcome);
    let mut dropped = String::new();
    if result.is_none() {
        task.abort();
        dropped = format!("; it did not stop within {} and was dropped", crate::units::Duration(GRACE));
    }
    match (result, cancelled) {
        // It was through before it heard of it: what happened, happened.
        (Some(Ok(done)), _) => Ok(done),
        (_, true) => Err(Stopped::Cancelled(format!("the run was cancelled{dropped}"))),
        (result, false) => {
            let bound = job.limits.borrow().timeout.map(crate::units::Duration).unwrap_or_default();
            let said = result.and_then(Result::err).map(|failure| format!(" ({failure})")).unwrap_or_default();
            Err(Stopped::Failed(
                Failure::transient(format!(
                    "not through within its timeout of {bound}, and cancelled{dropped}{said}"
                ))
                .help("give it a longer `timeout`, or find out what holds it up"),
            ))
        }
    }
}

fn outcome(result: Result<Result<Done, Failure>, JoinError>) -> Result<Done, Failure> {
    result.unwrap_or_else(|error| Err(defect(&error)))
}

fn defect(error: &JoinError) -> Failure {
    let what = if error.is_panic() { "it panicked" } else { "its task was dropped" };
    Failure::permanent(format!("a defect of Lifeboat: {what}"))
        .help("please report this with the run's journal; the text on stderr says where it happened")
}

impl Desk {
    async fn finish(&self, job: &Job, done: Done, log: Option<String>) {
        let outcome = match self.kept(done) {
            Ok(outcome) => outcome,
            Err(failure) => Outcome::Failed { error: self.error(failure) },
        };
        self.end(job, outcome, log).await;
    }

    /// Notes who is behind what the step is about to touch, on disk; refuses another one than the run began on.
    async fn see(&self, at: usize, services: &Services, effects: &[Effect]) -> Result<(), Failure> {
        let seen = self.targets.before(services, effects).await?;
        if seen.is_empty() {
            return Ok(());
        }
        for (name, _) in seen.iter().filter(|(_, identity)| identity::is_untold(identity)) {
            let message = format!(
                "the role of {name} may not ask who the server is: another one at its address would not be noticed \
                 (`GRANT EXECUTE ON FUNCTION pg_control_system() TO …`)"
            );
            // An error means that the run has stopped already.
            let _ = self.reports.send(Report::Said { at, message }).await;
        }
        let (ack, acknowledged) = oneshot::channel();
        let stopped = || Failure::permanent("the run has stopped, and takes no note");
        let report = Report::Seen { at, seen, ack: Some(ack) };
        self.reports.send(report).await.map_err(|_| stopped())?;
        acknowledged.await.map_err(|_| stopped())?
    }

    /// What looks at targets uses. Its sessions are not named like the attempt's, which looks for leftovers of its own.
    fn looking(&self, job: &Job) -> Services {
        self.services.for_attempt(&format!("lifeboat-guard:{}", self.run), job.cancel.child_token())
    }

    async fn end(&self, job: &Job, outcome: Outcome, log: Option<String>) {
        kill::point("step end: before its report");
        // An error means that the run has stopped already, and the journal says what it knew.
        let _ = self.reports.send(Report::Finished { at: job.at, attempt: job.attempt, outcome, log }).await;
    }

    /// What the journal keeps of a success: secrets masked, and not too much.
    pub(super) fn kept(&self, done: Done) -> Result<Outcome, Failure> {
        let outputs: crate::record::event::Outputs =
            done.outputs.into_iter().map(|(name, value)| (name, self.redactor.redact_json(value))).collect();
        let size = serde_json::to_vec(&outputs).map_or(0, |bytes| bytes.len());
        if size > OUTPUTS_CAP {
            let (size, cap) = (Size(size as u64), Size(OUTPUTS_CAP as u64));
            return Err(Failure::permanent(format!(
                "it did its work, but its outputs take {size}, more than {cap}"
            ))
            .help("put what is big into a storage and hand its path on; then run the step again"));
        }
        let summary = done.summary.map(|summary| self.redactor.redact(&summary).into_owned());
        Ok(Outcome::Succeeded { outputs, summary })
    }

    pub(super) fn error(&self, failure: Failure) -> ErrorRecord {
        let redact = |text: String| self.redactor.redact(&text).into_owned();
        ErrorRecord {
            message: redact(failure.message),
            transient: failure.transient,
            help: failure.help.map(redact),
        }
    }

    fn tell(&self, step: &StepId, message: &str) {
        let message = Some(self.redactor.redact(message).into_owned());
        let _ = self.progress.try_send((step.clone(), Progress { message, ..Progress::default() }));
    }

    /// What a question to the world may use. Its sessions are not named like the attempt's,
    /// whose leftovers may be what it looks for.
    pub(super) fn probe(&self, job: &Job) -> RunCx {
        let log = Arc::new(Log::new(self.folder.asked_path(&job.id, job.attempt), &self.redactor));
        self.context(job, "lifeboat-probe", job.cancel.child_token(), log)
    }

    fn context(&self, job: &Job, name: &str, cancel: CancellationToken, log: Arc<Log>) -> RunCx {
        let label = format!("{name}:{}:{}:{}", self.run, job.id, job.attempt);
        RunCx {
            run: self.run.clone(),
            step: job.id.clone(),
            attempt: job.attempt,
            since: job.since,
            services: self.services.for_attempt(&label, cancel.clone()),
            notes: job.notes.now(),
            reporter: Arc::new(Wire {
                at: job.at,
                id: job.id.clone(),
                attempt: job.attempt,
                notes: job.notes.clone(),
                desk: self.clone(),
                log,
            }),
            cancel,
            redactor: self.redactor.clone(),
        }
    }
}

/// A running step's way to the dispatcher and to its log.
struct Wire {
    at: usize,
    id: StepId,
    attempt: u32,
    notes: Notes,
    desk: Desk,
    log: Arc<Log>,
}

#[async_trait]
impl Reporter for Wire {
    async fn note(&self, note: Value) -> Result<(), Failure> {
        kill::point("note: before");
        let note = self.desk.redactor.redact_json(note);
        let (ack, acknowledged) = oneshot::channel();
        let report = Report::Noted { at: self.at, attempt: self.attempt, note: note.clone(), ack };
        let stopped = || Failure::permanent("the run has stopped, and takes no note");
        self.desk.reports.send(report).await.map_err(|_| stopped())?;
        let kept = acknowledged.await.map_err(|_| stopped())?;
        kill::point("note: acknowledged");
        kept?;
        self.notes.add(self.attempt, note);
        Ok(())
    }

    fn progress(&self, progress: Progress) {
        let message = progress.message.map(|message| self.desk.redactor.redact(&message).into_owned());
        // A full channel loses it: progress may be lost.
        let _ = self.desk.progress.try_send((self.id.clone(), Progress { message, ..progress }));
    }

    fn log(&self, text: &str) {
        self.log.add(text);
    }
}

/// An attempt's log file, made when there is something to keep.
struct Log {
    path: PathBuf,
    inner: Mutex<LogState>,
}

struct LogState {
    stream: RedactStream,
    file: Option<File>,
    written: u64,
    digest: Sha256,
}

impl Log {
    fn new(path: PathBuf, redactor: &Redactor) -> Self {
        let inner = LogState { stream: redactor.stream(), file: None, written: 0, digest: Sha256::new() };
        Self { path, inner: Mutex::new(inner) }
    }

    fn add(&self, text: &str) {
        let mut state = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = state.stream.push(text.as_bytes());
        self.write(&mut state, &ready);
    }

    /// Closes it; SHA-256 of what it holds, in hex.
    fn finish(&self) -> Option<String> {
        let mut state = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = state.stream.finish();
        self.write(&mut state, &rest);
        state.file.take()?;
        // Whoever still writes was dropped, and is heard no more.
        state.written = u64::MAX;
        Some(HEXLOWER.encode(&state.digest.finalize_reset()))
    }

    /// A log that can't be written costs the log, not the recovery.
    fn write(&self, state: &mut LogState, text: &str) {
        if text.is_empty() || state.written > LOG_CAP {
            return;
        }
        if state.file.is_none() {
            state.file = files::append(&self.path).ok();
        }
        state.written += text.len() as u64;
        let more: &[u8] = if state.written > LOG_CAP { b"\n(more than is kept)\n" } else { b"" };
        if let Some(file) = &mut state.file {
            for bytes in [text.as_bytes(), more] {
                if file.write_all(bytes).is_ok() {
                    state.digest.update(bytes);
                }
            }
        }
    }
}
