//! One step's state: where it stands, and which event moves it where.
//!
//! Also the rules of answers: who may give one, and what several come to.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::event::{Answer, ErrorRecord, Outcome, Outputs, Question, QuestionKind, StepHeader};

/// Where one step stands.
#[derive(Clone, Debug)]
pub struct StepState {
    /// What the first record says of it.
    pub header: StepHeader,
    /// Where it stands.
    pub phase: Phase,
    /// The last attempt that started; 0 before the first. Grows over resumes, so that each attempt has its own log.
    pub attempt: u32,
    /// When its first attempt started, or when it began to wait for a person.
    pub started_at: Option<Timestamp>,
    /// When its last attempt started.
    pub attempt_at: Option<Timestamp>,
    /// When it came to its end.
    pub finished_at: Option<Timestamp>,
    /// What it noted before acting, oldest first: attempt and note.
    pub notes: Vec<(u32, Value)>,
    /// The attempts that failed, oldest first.
    pub errors: Vec<(u32, ErrorRecord)>,
    /// Every answer it got, oldest first.
    pub answers: Vec<Answer>,
    /// How long it waited for people.
    pub waited: Duration,
    /// A person said that it may act: its `confirm`, or that it may run again after a kill.
    pub confirmed: bool,
    /// A kill left it open whether it happened, and a person did not let it run again.
    pub unresolved: bool,
    /// The first attempt that counts: what came before was sent back to be run anew.
    pub since: u32,
    /// Its result is that of an earlier definition, whose effects stand in [`super::state::RunState::past`].
    pub taken_over: bool,
    /// The last order that an operator gave.
    pub ordered: Option<super::steering::Ordered>,
    /// Limits that an operator gave it.
    pub adjusted: Option<super::steering::Adjusted>,
}

/// Where a step stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// It has not started, or is to run (again).
    Pending,
    /// An attempt started and did not end. In a dead process's journal: nobody knows what became of it.
    Running,
    /// The last attempt failed and another follows.
    Retrying {
        /// When the next attempt is due.
        until: Timestamp,
    },
    /// It waits for a person.
    Waiting(Waiting),
    /// It came to its end.
    Finished(Outcome),
}

/// A question, and the answers it got so far.
#[derive(Clone, Debug, PartialEq)]
pub struct Waiting {
    /// What is asked.
    pub question: Question,
    /// Since when.
    pub since: Timestamp,
    /// The answers to this question.
    pub answers: Vec<Answer>,
}

/// What the answers to a question come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Enough people said yes.
    Approved,
    /// Somebody said no.
    Rejected,
    /// More answers are needed.
    Open,
}

/// An event that can't follow what happened before it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Illegal(pub(super) String);

impl StepState {
    pub(super) fn new(header: StepHeader) -> Self {
        Self {
            header,
            phase: Phase::Pending,
            attempt: 0,
            started_at: None,
            attempt_at: None,
            finished_at: None,
            notes: Vec::new(),
            errors: Vec::new(),
            answers: Vec::new(),
            waited: Duration::ZERO,
            confirmed: false,
            unresolved: false,
            since: 1,
            taken_over: false,
            ordered: None,
            adjusted: None,
        }
    }

    /// The outcome, once it came to its end.
    pub fn outcome(&self) -> Option<&Outcome> {
        match &self.phase {
            Phase::Finished(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// Its outputs, once it succeeded.
    pub fn outputs(&self) -> Option<&Outputs> {
        match self.outcome() {
            Some(Outcome::Succeeded { outputs, .. }) => Some(outputs),
            _ => None,
        }
    }

    /// Whether what needs it may run: it succeeded or was skipped.
    pub fn is_done(&self) -> bool {
        matches!(self.outcome(), Some(Outcome::Succeeded { .. } | Outcome::Skipped { .. }))
    }

    /// Whether it failed or was cancelled.
    pub fn has_failed(&self) -> bool {
        matches!(self.outcome(), Some(Outcome::Failed { .. } | Outcome::Cancelled { .. }))
    }

    /// How long it took from its first attempt's start to its end.
    pub fn took(&self) -> Option<Duration> {
        Some(span(self.started_at?, self.finished_at?))
    }

    /// Whether its last attempt may have taken effect without anybody knowing: it was cut
    /// off by a kill or cancelled, or it waited for a person's word on that in vain.
    pub fn is_open_ended(&self) -> bool {
        match &self.phase {
            Phase::Running => true,
            Phase::Finished(Outcome::Cancelled { .. }) => self.attempt > 0,
            Phase::Finished(Outcome::Failed { .. }) => self.unresolved,
            _ => false,
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Retrying { .. })
    }

    pub(super) fn is_asking(&self) -> bool {
        matches!(self.phase, Phase::Waiting(_))
    }

    pub(super) fn start(&mut self, attempt: u32, at: Timestamp) -> Result<(), Illegal> {
        if !matches!(self.phase, Phase::Pending | Phase::Retrying { .. }) {
            return self.refuse("starts");
        }
        if attempt != self.attempt + 1 {
            return illegal(format!("step `{}`: attempt {attempt} follows {}", self.header.id, self.attempt));
        }
        self.attempt = attempt;
        self.taken_over = false;
        self.started_at.get_or_insert(at);
        self.attempt_at = Some(at);
        self.unresolved = false;
        self.phase = Phase::Running;
        Ok(())
    }

    pub(super) fn note(&mut self, attempt: u32, note: &Value) -> Result<(), Illegal> {
        self.expect_running(attempt, "notes")?;
        self.notes.push((attempt, note.clone()));
        Ok(())
    }

    pub(super) fn attempt_failed(
        &mut self,
        attempt: u32,
        error: &ErrorRecord,
        retry_in: f64,
        at: Timestamp,
    ) -> Result<(), Illegal> {
        self.expect_running(attempt, "fails")?;
        self.errors.push((attempt, error.clone()));
        let wait = Duration::try_from_secs_f64(retry_in).unwrap_or_default();
        self.phase = Phase::Retrying { until: at.checked_add(wait).unwrap_or(at) };
        Ok(())
    }

    pub(super) fn finish(&mut self, attempt: u32, outcome: &Outcome, at: Timestamp) -> Result<(), Illegal> {
        if matches!(self.phase, Phase::Finished(_)) {
            return self.refuse("finishes");
        }
        if attempt != self.attempt {
            return illegal(format!(
                "step `{}`: attempt {attempt} ends, but {} is the last",
                self.header.id, self.attempt
            ));
        }
        if let Outcome::Failed { error } = outcome
            && self.phase == Phase::Running
        {
            self.errors.push((attempt, error.clone()));
        }
        if let Phase::Waiting(waiting) = &self.phase {
            self.unresolved = waiting.question.kind == QuestionKind::Interrupted;
        }
        self.end_wait(at);
        self.confirmed = false;
        self.finished_at = Some(at);
        self.phase = Phase::Finished(outcome.clone());
        Ok(())
    }

    pub(super) fn wait(&mut self, question: &Question, at: Timestamp) -> Result<(), Illegal> {
        // `Running` is an attempt that a kill cut off: a person is asked what became of it.
        let interrupted = matches!(self.phase, Phase::Running) && question.kind == QuestionKind::Interrupted;
        if !(interrupted || matches!(self.phase, Phase::Pending)) {
            return self.refuse("waits");
        }
        self.started_at.get_or_insert(at);
        self.phase = Phase::Waiting(Waiting { question: question.clone(), since: at, answers: Vec::new() });
        Ok(())
    }

    pub(super) fn answer(&mut self, answer: &Answer, at: Timestamp) -> Result<(), Illegal> {
        let Phase::Waiting(waiting) = &mut self.phase else {
            return self.refuse("is answered");
        };
        waiting.answers.push(answer.clone());
        let goes_on = matches!(waiting.question.kind, QuestionKind::Confirm | QuestionKind::Interrupted)
            && waiting.verdict() == Verdict::Approved;
        self.answers.push(answer.clone());
        if goes_on {
            self.end_wait(at);
            self.confirmed = true;
            self.phase = Phase::Pending;
        }
        Ok(())
    }

    /// Takes it back to where it can start again; what it noted and how often it tried stays.
    pub(super) fn again(&mut self) {
        // A step of `finally` that did its work does it anew: what it noted would have it find that it is done, and
        // nobody told. What it made stays made, and is known by its notes.
        let made = self.header.effects.iter().any(|effect| effect.access == "create");
        if self.outputs().is_some() && !made {
            self.forget();
        }
        if !matches!(self.phase, Phase::Waiting(_)) {
            self.phase = Phase::Pending;
            (self.started_at, self.finished_at) = (None, None);
        }
    }

    /// Opens its end again: what became of its last attempt is being found out.
    pub(super) fn reopen(&mut self) {
        if self.is_open_ended() {
            self.phase = Phase::Running;
            self.finished_at = None;
        }
    }

    pub(super) fn end_wait(&mut self, at: Timestamp) {
        if let Phase::Waiting(waiting) = &self.phase {
            self.waited += span(waiting.since, at);
        }
    }

    fn expect_running(&self, attempt: u32, does: &str) -> Result<(), Illegal> {
        if self.phase == Phase::Running && self.attempt == attempt { Ok(()) } else { self.refuse(does) }
    }

    fn refuse(&self, does: &str) -> Result<(), Illegal> {
        let phase = match &self.phase {
            Phase::Pending => "has not started",
            Phase::Running => "is running",
            Phase::Retrying { .. } => "is between two attempts",
            Phase::Waiting(_) => "waits for a person",
            Phase::Finished(_) => "has come to its end",
        };
        illegal(format!("step `{}` {does}, but it {phase}", self.header.id))
    }
}

impl Waiting {
    /// What the answers come to so far.
    pub fn verdict(&self) -> Verdict {
        if self.answers.iter().any(|answer| !answer.approved) {
            return Verdict::Rejected;
        }
        let people: BTreeSet<_> = self.answers.iter().map(|answer| answer.by.as_str()).collect();
        if people.len() >= self.question.quorum.max(1) as usize { Verdict::Approved } else { Verdict::Open }
    }

    /// Whether `answer` may be given by the one who gives it.
    ///
    /// # Errors
    /// What is wrong, for the one who answers.
    pub fn check(&self, answer: &Answer, requester: &str) -> Result<(), String> {
        let by = &answer.by;
        if self.verdict() != Verdict::Open {
            return Err("it has been answered already".to_owned());
        }
        if !self.question.by.is_empty() && !self.question.by.contains(by) {
            return Err(format!("`{by}` may not answer it: asked are {}", self.question.by.join(", ")));
        }
        if self.question.not_by_requester && by == requester {
            return Err(format!("`{by}` started the run, and somebody else must answer"));
        }
        if self.answers.iter().any(|earlier| &earlier.by == by) {
            return Err(format!("`{by}` has answered it already"));
        }
        if let Some(unknown) = answer.fields.keys().find(|name| !self.question.fields.contains_key(*name)) {
            return Err(format!("it does not ask for `{unknown}`"));
        }
        let missing = self.question.fields.keys().find(|name| !answer.fields.contains_key(*name));
        match missing.filter(|_| answer.approved) {
            Some(name) => Err(format!("it asks for `{name}` as well: give it with `-f {name}=VALUE`")),
            None => Ok(()),
        }
    }
}

/// From one instant to a later one; zero when the clock was set back.
pub(crate) fn span(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

pub(super) fn illegal<T>(why: impl Into<String>) -> Result<T, Illegal> {
    Err(Illegal(why.into()))
}
