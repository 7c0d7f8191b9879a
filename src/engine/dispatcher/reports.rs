//! What workers say: notes, failed attempts, ends; and steps that a dead process left going on.

use super::{After, Dispatcher};
use crate::engine::EngineError;
use crate::engine::worker::{self, Report};
use crate::failure::Failure;
use crate::record::event::{ErrorRecord, Event, Outcome};
use crate::record::state::Phase;

impl Dispatcher<'_> {
    pub(super) fn take(&mut self, report: Report) -> Result<(), EngineError> {
        match report {
            Report::Noted { at, attempt, note, ack } => {
                let step = &self.state.steps[at];
                if step.phase != Phase::Running || step.attempt != attempt {
                    // Left over from an attempt that was dropped.
                    let _ = ack.send(Err(Failure::permanent("the attempt has ended, and takes no note")));
                    return Ok(());
                }
                self.emit(Event::StepNoted { step: self.id(at), attempt, note })?;
                self.batch.after.push(After::Acknowledge(ack));
            }
            Report::Seen { at, seen, ack } => {
                for (target, identity) in seen {
                    // A name may be an input's, and that a secret: it is not recognised again then.
                    let target = self.desk.redactor.redact(&target).into_owned();
                    self.emit(Event::TargetSeen { step: self.id(at), target, identity })?;
                }
                self.batch.after.extend(ack.map(After::Acknowledge));
            }
            Report::Failed { at, attempt, error, retry_in, log } => {
                let retry_in = retry_in.as_secs_f64();
                self.emit(Event::AttemptFailed { step: self.id(at), attempt, error, retry_in, log })?;
            }
            Report::Again { at, attempt, ack } => {
                self.emit(Event::StepStarted { step: self.id(at), attempt })?;
                self.batch.after.push(After::Acknowledge(ack));
            }
            Report::Said { at, message } => {
                let message = self.desk.redactor.redact(&message).into_owned();
                self.emit(Event::Noticed { step: Some(self.id(at)), message })?;
            }
            Report::Finished { at, attempt, outcome, log } => {
                self.emit(Event::StepFinished { step: self.id(at), attempt, outcome, log })?;
            }
            Report::Unclear { at, why } => {
                let question = crate::engine::resume::interrupted(&self.plan.steps[at].id, &why);
                self.emit(Event::StepWaiting { step: self.id(at), question })?;
            }
        }
        Ok(())
    }

    /// A worker that panicked: its step fails, the run goes on by its rules.
    pub(super) fn lost_worker(&mut self, error: &tokio::task::JoinError) -> Result<(), EngineError> {
        let Some(at) = self.tasks.remove(&error.id()) else { return Ok(()) };
        if !matches!(self.state.steps[at].phase, Phase::Running | Phase::Retrying { .. }) {
            return Ok(());
        }
        let message = "a defect of Lifeboat: the step's worker panicked".to_owned();
        let help = Some("please report this with the run's journal".to_owned());
        self.finish(at, Outcome::Failed { error: ErrorRecord { message, transient: false, help } })
    }

    /// Goes on waiting for what a dead process left going on in the world.
    pub(super) fn reattach(&mut self) {
        for at in 0..self.state.steps.len() {
            if self.state.steps[at].phase != Phase::Running {
                continue;
            }
            // It was rendered when it was asked what became of it, a moment ago.
            if let Ok(step) = self.turns.step(at) {
                let job = self.job(at, step, self.state.steps[at].attempt);
                let rerun = self.plan.steps[at].rerun_if_interrupted;
                let task = self.workers.spawn(worker::reattach(job, self.desk.clone(), rerun));
                self.tasks.insert(task.id(), at);
            }
        }
    }
}
