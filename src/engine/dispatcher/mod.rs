//! The one loop that orders every change of a run.
//!
//! Each change takes the same moves: the fold allows it, it is on disk, the reporters
//! hear of it, whoever waits for it is told. Changes that are ready together share one
//! write and one sync. Commands come from the pure [`walk`](super::walk); workers act.
//! Read next: [`reports`] for what workers say, [`people`] for what operators say meanwhile.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{Id, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

mod limits;
mod people;
mod reports;

use super::guard::Guards;
use super::limits::Limits;
use super::objective::Earlier;
use super::target::Targets;
use super::turn::Turns;
use super::walk::{Command, Mode, Walker};
use super::worker::{self, Ack, Desk, Job, Report};
use super::{Console, Context, Ended, EngineError, RunOptions};
use crate::failure::Failure;
use crate::ids::StepId;
use crate::plan::Plan;
use crate::record::clock::SystemClock;
use crate::record::event::{Answer, ErrorRecord, Event, Outcome, Progress, QuestionKind, Record, RunStatus};
use crate::record::inbox::Letter;
use crate::record::journal::{Journal, Line};
use crate::record::lock::FileLock;
use crate::record::state::{Phase, RunState, Verdict};
use crate::record::store::{OpenRun, RunFolder};
use crate::step::Done;

/// How often the inbox, silent questions and the forecast are looked at.
const TICK: Duration = Duration::from_millis(500);

/// Runs what is left of a run, whether it has just begun or is resumed.
pub(super) async fn drive(
    cx: &Context,
    plan: &Arc<Plan>,
    run: OpenRun,
    state: RunState,
    guards: Guards,
    options: RunOptions,
    console: Console,
) -> Result<Ended, EngineError> {
    let mut dispatcher = Dispatcher::new(cx, plan, run, state, guards, options, console);
    match dispatcher.work().await {
        Ok(()) => Ok(dispatcher.ended()),
        Err(error) => {
            dispatcher.abandon().await;
            Err(error)
        }
    }
}

struct Dispatcher<'a> {
    cx: &'a Context,
    plan: &'a Arc<Plan>,
    folder: RunFolder,
    /// Away while a batch is written.
    journal: Option<Journal>,
    _lock: FileLock,
    state: RunState,
    walker: Walker,
    turns: Turns,
    mode: Mode,
    options: RunOptions,
    console: Console,
    desk: Desk,
    reports: mpsc::Receiver<Report>,
    progress: mpsc::Receiver<(StepId, Progress)>,
    workers: JoinSet<()>,
    tasks: HashMap<Id, usize>,
    cancel: [CancellationToken; 2],
    batch: Batch,
    asking: Option<(usize, JoinHandle<Option<Answer>>)>,
    /// The person at the terminal left a question open.
    declined: bool,
    durations: Earlier,
    /// The limits of the steps that run.
    limits: HashMap<usize, tokio::sync::watch::Sender<Limits>>,
    warned: bool,
    system_clock: SystemClock,
}

/// Changes that will be on disk together, and what is done then.
#[derive(Default)]
struct Batch {
    records: Vec<Record>,
    lines: Vec<Line>,
    after: Vec<After>,
}

enum After {
    Start(Job),
    Acknowledge(Ack),
    Remove(Letter),
}

impl<'a> Dispatcher<'a> {
    fn new(
        cx: &'a Context,
        plan: &'a Arc<Plan>,
        run: OpenRun,
        state: RunState,
        guards: Guards,
        options: RunOptions,
        console: Console,
    ) -> Self {
        let (reports_in, reports) = mpsc::channel(1024);
        let (progress_in, progress) = mpsc::channel(256);
        let desk = Desk {
            run: run.folder.id.clone(),
            folder: run.folder.clone(),
            services: cx.services.clone(),
            redactor: plan.environment.redactor.clone(),
            guards: Arc::new(guards),
            targets: Arc::new(Targets::new(&state)),
            reports: reports_in,
            progress: progress_in,
        };
        Self {
            cx,
            plan,
            walker: Walker::new(&plan.steps, &state),
            turns: Turns::new(plan, &state),
            durations: Earlier::ask(cx, plan, &run.folder),
            folder: run.folder,
            journal: Some(run.journal),
            _lock: run.lock,
            state,
            mode: Mode::Go,
            options,
            console,
            desk,
            reports,
            progress,
            workers: JoinSet::new(),
            tasks: HashMap::new(),
            cancel: [CancellationToken::new(), CancellationToken::new()],
            batch: Batch::default(),
            asking: None,
            declined: false,
            warned: false,
            limits: HashMap::new(),
            system_clock: SystemClock::beside(cx.now()),
        }
    }

    async fn work(&mut self) -> Result<(), EngineError> {
        self.reattach();
        self.forget_stale()?;
        self.read_inbox()?;
        self.silence()?;
        self.confirm_open()?;
        let mut tick = tokio::time::interval(TICK);
        loop {
            let stopped = self.walk()?;
            self.commit().await?;
            if stopped {
                return Ok(());
            }
            self.wait(&mut tick).await?;
        }
    }

    /// Turns the walker's commands into changes until it has none.
    fn walk(&mut self) -> Result<bool, EngineError> {
        loop {
            let now = self.cx.now();
            self.turns.at(&self.state, self.walker.outcome(self.mode), now);
            let free = self.options.jobs.max(1).saturating_sub(self.walker.busy());
            let (turns, steps) = (&self.turns, &self.state.steps);
            let commands = self.walker.next(self.mode, free, |at| turns.turn(at, &steps[at], now));
            if commands.is_empty() {
                return Ok(false);
            }
            for command in commands {
                match command {
                    Command::Start(at) => self.start(at)?,
                    Command::Ask(at) => self.ask(at)?,
                    Command::Conclude(at) => self.conclude(at)?,
                    Command::Skip(at, reason) => self.finish(at, Outcome::Skipped { reason })?,
                    Command::NotRun(at, reason) => self.finish(at, Outcome::NotRun { reason })?,
                    Command::Fail(at, error) => self.finish(at, Outcome::Failed { error })?,
                    Command::Stop(RunStatus::Waiting, _) if self.ask_terminal() => return Ok(false),
                    Command::Stop(status, reason) => {
                        self.emit(Event::RunStopped { status, reason })?;
                        return Ok(true);
                    }
                }
            }
        }
    }

    fn start(&mut self, at: usize) -> Result<(), EngineError> {
        let step = match self.turns.step(at) {
            Ok(step) => step,
            Err(failure) => return self.finish(at, Outcome::Failed { error: self.error(failure) }),
        };
        let attempt = self.state.steps[at].attempt + 1;
        let job = self.job(at, step, attempt);
        self.emit(Event::StepStarted { step: job.id.to_string(), attempt })?;
        self.batch.after.push(After::Start(job));
        Ok(())
    }

    fn job(&mut self, at: usize, step: Arc<dyn crate::step::Step>, attempt: u32) -> Job {
        let limits = self.limits(at);
        let planned = &self.plan.steps[at];
        Job {
            at,
            id: planned.id.clone(),
            step,
            attempt,
            since: self.state.steps[at].since,
            notes: (&self.state.steps[at].notes).into(),
            limits,
            cancel: self.cancel[usize::from(planned.finally)].clone(),
        }
    }

    fn ask(&mut self, at: usize) -> Result<(), EngineError> {
        let question = match self.turns.question(at, self.cx.now()) {
            Ok(Some(question)) => question,
            // The walker asks only for steps with a question.
            Ok(None) => return Err(EngineError::Defect(format!("step `{}` has no question", self.id(at)))),
            Err(failure) => return self.finish(at, Outcome::Failed { error: self.error(failure) }),
        };
        let confirm = question.kind == QuestionKind::Confirm;
        self.emit(Event::StepWaiting { step: self.id(at), question })?;
        if confirm { self.confirm(at) } else { Ok(()) }
    }

    /// Ends a step by its answers.
    fn conclude(&mut self, at: usize) -> Result<(), EngineError> {
        let Phase::Waiting(waiting) = self.state.steps[at].phase.clone() else {
            return Err(EngineError::Defect(format!("step `{}` does not wait", self.id(at))));
        };
        let outcome = match waiting.verdict() {
            Verdict::Approved => match self.turns.step(at) {
                Ok(step) => {
                    let people: Vec<_> = waiting.answers.iter().map(|answer| answer.by.as_str()).collect();
                    let summary = Some(format!("yes from {}", people.join(", ")));
                    let done = Done { outputs: step.answered(&waiting.answers), summary };
                    self.desk.kept(done).unwrap_or_else(|failure| Outcome::Failed { error: self.error(failure) })
                }
                Err(failure) => Outcome::Failed { error: self.error(failure) },
            },
            Verdict::Rejected | Verdict::Open => {
                Outcome::Failed { error: people::rejected(&waiting, self.state.undo.is_some()) }
            }
        };
        self.finish(at, outcome)
    }

    fn finish(&mut self, at: usize, outcome: Outcome) -> Result<(), EngineError> {
        let attempt = self.state.steps[at].attempt;
        self.emit(Event::StepFinished { step: self.id(at), attempt, outcome, log: None })
    }

    /// The first half of a change: the fold allows it, and the walker knows.
    fn emit(&mut self, event: Event) -> Result<(), EngineError> {
        let Some(journal) = &mut self.journal else {
            return Err(EngineError::Defect("a change while a batch is written".to_owned()));
        };
        let (record, line) = journal.prepare(event, self.cx.now());
        self.state.apply(&record)?;
        if let Some(at) = record.event.step().and_then(|step| self.state.position(step)) {
            self.walker.observe(at, &self.state.steps[at]);
            if matches!(record.event, Event::StepFinished { .. }) {
                self.turns.learn(at, &self.state.steps[at]);
            }
        }
        tracing::trace!(seq = record.seq, step = record.event.step(), "record");
        self.batch.records.push(record);
        self.batch.lines.push(line);
        Ok(())
    }

    /// The second half: on disk, then the reporters, then whoever waits.
    async fn commit(&mut self) -> Result<(), EngineError> {
        let batch = std::mem::take(&mut self.batch);
        if batch.lines.is_empty() && batch.after.is_empty() {
            return Ok(());
        }
        let Some(mut journal) = self.journal.take() else {
            return Err(EngineError::Defect("two batches at once".to_owned()));
        };
        let lines = batch.lines;
        let written = tokio::task::spawn_blocking(move || {
            let result = journal.commit(&lines);
            (journal, result)
        });
        let (journal, result) =
            written.await.map_err(|error| EngineError::Defect(format!("the journal's writer: {error}")))?;
        self.journal = Some(journal);
        if let Err(error) = result {
            for after in batch.after {
                if let After::Acknowledge(ack) = after {
                    // Nobody listens when the worker is gone.
                    let _ = ack.send(Err(Failure::permanent(error.to_string()).help(error.help())));
                }
            }
            return Err(error.into());
        }
        for record in &batch.records {
            self.console.sinks.iter_mut().for_each(|sink| sink.record(record));
        }
        for after in batch.after {
            match after {
                After::Start(job) => {
                    let at = job.at;
                    let task = self.workers.spawn(worker::work(job, self.desk.clone()));
                    self.tasks.insert(task.id(), at);
                }
                After::Acknowledge(ack) => {
                    let _ = ack.send(Ok(()));
                }
                // What stays is refused as a second answer later.
                After::Remove(letter) => {
                    let _ = letter.done();
                }
            }
        }
        Ok(())
    }

    /// Waits for something to happen, and takes in all that has happened.
    async fn wait(&mut self, tick: &mut tokio::time::Interval) -> Result<(), EngineError> {
        let controls = async {
            match &mut self.console.controls {
                Some(controls) => match controls.recv().await {
                    Some(control) => control,
                    None => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        };
        let answered = async {
            match &mut self.asking {
                Some((_, task)) => task.await.ok().flatten(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(report) = self.reports.recv() => self.take(report)?,
            Some(ended) = self.workers.join_next_with_id(), if !self.workers.is_empty() => {
                match ended {
                    Ok((id, ())) => { self.tasks.remove(&id); }
                    Err(error) => self.lost_worker(&error)?,
                }
            }
            control = controls => self.control(control, None)?,
            answer = answered => self.answered_here(answer)?,
            Some((step, progress)) = self.progress.recv() => {
                let now = self.cx.now();
                self.console.sinks.iter_mut().for_each(|sink| sink.progress(step.as_str(), &progress, now));
            }
            _ = tick.tick() => self.tick()?,
        }
        while let Ok(report) = self.reports.try_recv() {
            self.take(report)?;
        }
        Ok(())
    }

    /// The journal is lost: what runs is cancelled, since nothing of it can be kept.
    async fn abandon(&mut self) {
        self.cancel.iter().for_each(CancellationToken::cancel);
        self.reports.close();
        while self.reports.try_recv().is_ok() {}
        let all_ended = async { while self.workers.join_next().await.is_some() {} };
        // Workers end by themselves within their own grace.
        let _ = tokio::time::timeout(worker::GRACE * 2, all_ended).await;
    }

    fn ended(self) -> Ended {
        let head = self.journal.as_ref().map(|journal| journal.head().to_owned()).unwrap_or_default();
        Ended { folder: self.folder, state: self.state, head }
    }

    fn id(&self, at: usize) -> String {
        self.plan.steps[at].id.to_string()
    }

    fn error(&self, failure: Failure) -> ErrorRecord {
        self.desk.error(failure)
    }
}
