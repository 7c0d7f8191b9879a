//! What operators say while a run goes on: answers, pause, cancel, and their silence.

use std::collections::BTreeMap;

use super::{After, Dispatcher};
use crate::engine::EngineError;
use crate::engine::control::Control;
use crate::engine::objective;
use crate::engine::walk::Mode;
use crate::record::event::{Answer, ErrorRecord, Event, Outcome, QuestionKind};
use crate::record::inbox::Message;
use crate::record::state::{Phase, Verdict, Waiting};

impl Dispatcher<'_> {
    /// Asks the person at the terminal about the first open question; false when nobody is there to ask.
    pub(super) fn ask_terminal(&mut self) -> bool {
        if self.asking.is_some() {
            return true;
        }
        let Some(asker) = self.console.asker.clone().filter(|_| !self.declined) else { return false };
        let open = self.state.waiting().find(|(_, waiting)| waiting.verdict() == Verdict::Open);
        let Some((step, question)) = open.map(|(step, waiting)| (step.header.id.clone(), waiting.question.clone()))
        else {
            return false;
        };
        let Some(at) = self.state.position(&step) else { return false };
        let task = tokio::spawn(async move { asker.ask(&step, &question).await });
        self.asking = Some((at, task));
        true
    }

    /// `--yes` answers each `confirm`, also those left open by an earlier process; nothing else.
    pub(super) fn confirm_open(&mut self) -> Result<(), EngineError> {
        let open = |waiting: &Waiting| {
            waiting.question.kind == QuestionKind::Confirm && waiting.verdict() == Verdict::Open
        };
        let open: Vec<_> = self.state.waiting().filter(|(_, waiting)| open(waiting)).collect();
        let open: Vec<_> = open.into_iter().filter_map(|(step, _)| self.state.position(&step.header.id)).collect();
        open.into_iter().try_for_each(|at| self.confirm(at))
    }

    /// Answers a `confirm` if `--yes` was given.
    pub(super) fn confirm(&mut self, at: usize) -> Result<(), EngineError> {
        if !self.options.yes {
            return Ok(());
        }
        let answer = Answer {
            approved: true,
            by: self.cx.by.user.clone(),
            at: self.cx.now(),
            note: Some("--yes".to_owned()),
            fields: BTreeMap::default(),
        };
        self.emit(Event::StepAnswered { step: self.id(at), answer })
    }

    pub(super) fn control(&mut self, control: Control, by: Option<String>) -> Result<(), EngineError> {
        let mode = match control {
            Control::Pause => Mode::Pause,
            Control::Cancel => Mode::Cancel,
            Control::Abort => Mode::Abort,
        };
        if mode <= self.mode {
            return Ok(());
        }
        self.mode = mode;
        if mode >= Mode::Cancel {
            self.cancel[0].cancel();
        }
        if mode == Mode::Abort {
            self.cancel[1].cancel();
        }
        let what = match mode {
            Mode::Pause => "asked for a pause: no new steps start, running ones finish; once more cancels them",
            Mode::Cancel => "cancelled the run: running steps are cancelled, then `finally` runs",
            _ => "cancelled the run and its `finally`",
        };
        let by = by.unwrap_or_else(|| self.cx.by.user.clone());
        self.emit(Event::Noticed { step: None, message: format!("{by} {what}") })
    }

    /// An operator's word from another terminal.
    fn told(&mut self, control: Control, by: &str, because: Option<&str>) -> Result<(), EngineError> {
        let because = because.map(|because| format!(" ({})", self.desk.redactor.redact(because)));
        self.control(control, Some(format!("{by}{}", because.unwrap_or_default())))
    }

    /// Throws away what was sent to stop a process that is gone: this one goes on because somebody wants it to.
    pub(super) fn forget_stale(&self) -> Result<(), EngineError> {
        let Some(Some(this)) = self.folder.holder()? else { return Ok(()) };
        for letter in self.folder.receive()? {
            if letter.is_stale(&this) {
                // What can't be removed is taken in as a new one.
                let _ = letter.done();
            }
        }
        Ok(())
    }

    pub(super) fn answered_here(&mut self, answer: Option<Answer>) -> Result<(), EngineError> {
        let Some((at, _)) = self.asking.take() else { return Ok(()) };
        let Some(answer) = answer else {
            self.declined = true;
            return Ok(());
        };
        self.answer(&self.id(at), answer)
    }

    /// An answer that doesn't count is noticed, not lost.
    fn answer(&mut self, step: &str, answer: Answer) -> Result<(), EngineError> {
        match self.state.check_answer(step, &answer) {
            Ok(()) => self.emit(Event::StepAnswered { step: step.to_owned(), answer: self.masked(answer) }),
            Err(why) => {
                let known = self.state.position(step).map(|_| step.to_owned());
                let message = format!("an answer by {} to step `{step}` does not count: {why}", answer.by);
                self.emit(Event::Noticed { step: known, message })
            }
        }
    }

    /// What is looked at every half second.
    pub(super) fn tick(&mut self) -> Result<(), EngineError> {
        self.see_clock()?;
        self.read_inbox()?;
        self.silence()?;
        self.withdraw();
        self.forecast()
    }

    /// Notices when somebody sets the machine's clock: the run's own goes on, and the times it tells differ from then on.
    fn see_clock(&mut self) -> Result<(), EngineError> {
        let Some(message) = self.system_clock.set(self.cx.now()) else { return Ok(()) };
        self.emit(Event::Noticed { step: None, message })
    }

    /// Takes in what was sent from other terminals.
    pub(super) fn read_inbox(&mut self) -> Result<(), EngineError> {
        for letter in self.folder.receive()? {
            match &letter.message {
                Ok(Message::Answer { step, answer }) => self.answer(step, answer.clone())?,
                Ok(Message::Adjust(adjustment)) => self.adjust(adjustment)?,
                Ok(Message::Pause { by, because }) => self.told(Control::Pause, by, because.as_deref())?,
                Ok(Message::Cancel { by, because }) => self.told(Control::Cancel, by, because.as_deref())?,
                Err(why) => {
                    let message = format!("a message in the run's inbox can't be read: {why}");
                    self.emit(Event::Noticed { step: None, message })?;
                }
            }
            self.batch.after.push(After::Remove(letter));
        }
        Ok(())
    }

    /// Silence rejects: a question whose time is over ends its step.
    pub(super) fn silence(&mut self) -> Result<(), EngineError> {
        let now = self.cx.now();
        let late = |waiting: &Waiting| waiting.question.until.filter(|until| *until <= now);
        let silent: Vec<_> = self
            .state
            .waiting()
            .filter(|(_, waiting)| waiting.verdict() == Verdict::Open)
            .filter_map(|(step, waiting)| Some((self.state.position(&step.header.id)?, late(waiting)?)))
            .collect();
        for (at, until) in silent {
            let message = format!("nobody answered by {until}, and silence is a no");
            let help = Some(asks_again(self.state.undo.is_some()));
            self.finish(at, Outcome::Failed { error: ErrorRecord { message, transient: false, help } })?;
        }
        Ok(())
    }

    /// A question at the terminal that somebody else has answered is taken back.
    fn withdraw(&mut self) {
        let open = |at: usize| match &self.state.steps[at].phase {
            Phase::Waiting(waiting) => waiting.verdict() == Verdict::Open,
            _ => false,
        };
        if let Some((_, task)) = self.asking.take_if(|(at, _)| !open(*at)) {
            task.abort();
        }
    }

    /// Tells how long the rest will take, and warns once before the objective is missed.
    fn forecast(&mut self) -> Result<(), EngineError> {
        // Earlier runs tell nothing of taking back, and there is no objective for it.
        if self.state.undo.is_some() {
            return Ok(());
        }
        let now = self.cx.now();
        let Some(forecast) = self.durations.get().and_then(|durations| durations.forecast(&self.state, now)) else {
            return Ok(());
        };
        self.console.sinks.iter_mut().for_each(|sink| sink.forecast(&forecast, now));
        let Some(warning) = objective::warning(&self.state, &forecast, now).filter(|_| !self.warned) else {
            return Ok(());
        };
        self.warned = true;
        self.emit(Event::Noticed { step: None, message: warning })
    }

    fn masked(&self, answer: Answer) -> Answer {
        let redactor = &self.desk.redactor;
        Answer {
            note: answer.note.map(|note| redactor.redact(&note).into_owned()),
            fields: answer.fields.into_iter().map(|(name, value)| (name, redactor.redact_json(value))).collect(),
            ..answer
        }
    }
}

/// Why a step failed that somebody said no to.
pub(super) fn rejected(waiting: &Waiting, undoing: bool) -> ErrorRecord {
    let no = waiting.answers.iter().find(|answer| !answer.approved);
    let (by, note) = no.map_or(("nobody", None), |answer| (answer.by.as_str(), answer.note.as_deref()));
    let note = note.map(|note| format!(": {note}")).unwrap_or_default();
    let message = match waiting.question.kind {
        QuestionKind::Interrupted => format!("{by} did not let it run again after it was cut off{note}"),
        _ => format!("{by} said no{note}"),
    };
    ErrorRecord { message, transient: false, help: Some(asks_again(undoing)) }
}

fn asks_again(undoing: bool) -> String {
    format!("`lifeboat {}` asks again", if undoing { "undo" } else { "resume" })
}
