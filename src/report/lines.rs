//! A run as it happens, as plain lines with timestamps: for logs, CI, and terminals that are none.

use super::evidence::StepStatus;
use super::page::symbol;
use super::text::{Paint, clock, plural, span};
use crate::record::event::{DecisionAction, Event, Outcome, Progress, ProgressUnit, Record, RunStatus};
use crate::record::state::{RunState, StepState};
use crate::units::Size;

/// Turns records into lines.
#[derive(Clone, Debug)]
pub struct Lines {
    paint: Paint,
    longest: usize,
}

impl Lines {
    /// For steps of the run that `state` is of.
    pub fn new(state: &RunState, paint: Paint) -> Self {
        let longest = state.steps.iter().map(|step| super::text::width(&step.header.id)).max().unwrap_or(0);
        Self { paint, longest: longest.min(28) }
    }

    /// The line of a record, `state` being the one after it; none for what nobody needs to read.
    pub fn line(&self, record: &Record, state: &RunState) -> Option<String> {
        let said = self.said(&record.event, state)?;
        Some(format!("{} {said}", self.paint.dim(&clock(record.at))))
    }

    /// The same without the time, for a screen that shows the passing of time itself.
    pub fn said(&self, event: &Event, state: &RunState) -> Option<String> {
        let paint = self.paint;
        Some(match event {
            Event::RunStarted(run) => {
                let on = run.environment.as_ref().map(|name| format!(" on {name}")).unwrap_or_default();
                format!(
                    "{} {}{on}: run {} begins, {}",
                    paint.name("▸"),
                    paint.strong(&run.plan),
                    run.run,
                    plural(run.steps.len(), "step")
                )
            }
            Event::RunResumed { by, decisions, .. } => {
                let kept = decisions.iter().filter(|decision| decision.action == DecisionAction::Keep).count();
                let who = format!("{}@{}", by.user, by.host);
                format!(
                    "{} run {} goes on, by {who}; {} kept",
                    paint.name("▸"),
                    state.header.run,
                    plural(kept, "step")
                )
            }
            Event::UndoStarted { by, because, steps, .. } => {
                let because = because.as_ref().map(|because| format!(": {because}")).unwrap_or_default();
                let (who, steps) = (format!("{}@{}", by.user, by.host), plural(steps.len(), "step"));
                format!("{} run {} is taken back, by {who}{because}; {steps}", paint.name("▸"), state.header.run)
            }
            Event::StepStarted { step, attempt } => {
                let header = &state.step(step)?.header;
                let again = if *attempt > 1 { format!(" (attempt {attempt})") } else { String::new() };
                let what = header.title.as_deref().unwrap_or(&header.step_type);
                self.step(StepStatus::Running, step, &format!("{}{again}", paint.dim(what)))
            }
            Event::StepNoted { .. } | Event::TargetSeen { .. } | Event::Progress { .. } => return None,
            Event::AttemptFailed { step, attempt, error, retry_in, .. } => self.step(
                StepStatus::Retrying,
                step,
                &format!("attempt {attempt} failed: {}; again in {}", error.message, span(*retry_in)),
            ),
            Event::StepFinished { step, outcome, .. } => {
                let status = StepStatus::of(state.step(step)?);
                let took = state.step(step).and_then(StepState::took).map(|took| span(took.as_secs_f64()));
                let took = took.map(|took| paint.dim(&format!("  {took}"))).unwrap_or_default();
                let said = match outcome {
                    Outcome::Succeeded { summary, .. } => {
                        format!("{}{took}", summary.as_deref().unwrap_or("done"))
                    }
                    Outcome::Failed { error } => format!("{} {}{took}", paint.bad("failed:"), error.message),
                    Outcome::Skipped { reason } => format!("skipped: {reason}"),
                    Outcome::Cancelled { reason } => format!("{} {reason}{took}", paint.bad("cancelled:")),
                    Outcome::NotRun { reason } => paint.dim(&format!("not run: {reason}")),
                };
                self.step(status, step, &said)
            }
            Event::StepWaiting { step, question } => {
                let first = question.message.lines().next().unwrap_or_default();
                self.step(StepStatus::Waiting, step, &format!("waits for a person: {first}"))
            }
            Event::StepAnswered { step, answer } => {
                let word = if answer.approved { paint.good("yes") } else { paint.bad("no") };
                let note = answer.note.as_ref().map(|note| format!(": {note}")).unwrap_or_default();
                self.step(StepStatus::of(state.step(step)?), step, &format!("{word} by {}{note}", answer.by))
            }
            Event::StepAdjusted(adjustment) => super::steered::adjusted(adjustment, paint),
            Event::Steered(steered) => super::steered::line(steered, paint),
            Event::Noticed { step, message } => match step {
                Some(step) => format!("{} {step}: {message}", paint.warn("!")),
                None => format!("{} {message}", paint.warn("!")),
            },
            Event::RunStopped { status, reason } => {
                let alive = *status != RunStatus::Running;
                let reason = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
                let word = super::page::status(*status, alive, paint);
                format!("{word}{reason}, {}", span(super::evidence::seconds(state.started_at, state.last_at)))
            }
        })
    }

    fn step(&self, status: StepStatus, id: &str, said: &str) -> String {
        format!("{} {id:longest$}  {said}", symbol(status, self.paint), longest = self.longest)
    }
}

/// How far a step is, in words: `12.3 MiB of 40.0 MiB, 31%, 1.2 MiB/s, 23s left, auth.users`. `pace` is what
/// [`super::pace::Paces::of`] says of it.
pub fn progress(progress: &Progress, pace: &str) -> String {
    let amount = |number: u64| amount(progress.unit, number);
    let mut text = match progress.total {
        Some(total) if total > 0 => {
            let percent = progress.done.saturating_mul(100) / total;
            format!("{} of {}, {}%", amount(progress.done), amount(total), percent.min(100))
        }
        _ => amount(progress.done),
    };
    text.push_str(pace);
    if let Some(message) = &progress.message {
        text.extend([", ", message]);
    }
    text
}

/// So much of what is counted, in words.
pub(super) fn amount(unit: ProgressUnit, number: u64) -> String {
    match unit {
        ProgressUnit::Bytes => Size(number).to_string(),
        ProgressUnit::Rows => format!("{} rows", super::text::count(number)),
        ProgressUnit::Items => super::text::count(number),
        ProgressUnit::Seconds => span(number as f64),
    }
}
