//! The limits of a step's attempts: the plan's, and what an operator said since.

use std::time::Duration;

use tokio::sync::watch;

use super::Dispatcher;
use crate::engine::EngineError;
use crate::engine::limits::Limits;
use crate::record::event::Event;
use crate::record::steering::Adjustment;

impl Dispatcher<'_> {
    /// A step's limits, told anew when they change.
    pub(super) fn limits(&mut self, at: usize) -> watch::Receiver<Limits> {
        let (sender, receiver) = watch::channel(self.limits_now(at));
        self.limits.insert(at, sender);
        receiver
    }

    /// Takes in what was sent from another terminal.
    pub(super) fn adjust(&mut self, adjustment: &Adjustment) -> Result<(), EngineError> {
        if let Err(why) = self.state.check_adjustment(&adjustment.step) {
            let known = self.state.position(&adjustment.step).map(|_| adjustment.step.clone());
            let message = format!("other limits by {} don't count: {why}", adjustment.by.who());
            return self.emit(Event::Noticed { step: known, message });
        }
        let because = self.desk.redactor.redact(&adjustment.because).into_owned();
        self.emit(Event::StepAdjusted(Box::new(Adjustment { because, ..adjustment.clone() })))?;
        if let Some(at) = self.state.position(&adjustment.step) {
            let limits = self.limits_now(at);
            if let Some(sender) = self.limits.get(&at) {
                sender.send_replace(limits);
            }
        }
        Ok(())
    }

    fn limits_now(&self, at: usize) -> Limits {
        let planned = &self.plan.steps[at];
        let adjusted = self.state.steps[at].adjusted.as_ref().map(|adjusted| adjusted.limits).unwrap_or_default();
        let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let mut retry = planned.retry.clone();
        if let Some(attempts) = adjusted.attempts {
            retry.attempts = attempts;
        }
        if let Some(delay) = adjusted.delay {
            retry.delay = crate::units::Duration(seconds(delay));
            retry.max_delay = crate::units::Duration(retry.max_delay.std().max(seconds(delay)));
        }
        let timeout = adjusted.timeout.map(seconds).or(planned.timeout.map(crate::units::Duration::std));
        Limits { retry, timeout }
    }
}
