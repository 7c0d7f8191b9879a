//! A run as it happens, on a terminal: what ended stands above, a line for each running step below.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::lines::Lines;
use super::text::Paint;
use crate::record::event::{Event, Progress, ProgressUnit, Record};
use crate::record::state::RunState;

/// The terminal that bars are drawn on. Clones are the same screen.
#[derive(Clone, Debug)]
pub struct Screen {
    bars: MultiProgress,
    /// While somebody else uses the terminal: what is to be said afterwards.
    held: Arc<Mutex<Option<Vec<String>>>>,
}

/// While this lives, nothing is drawn: the terminal is somebody else's.
#[derive(Debug)]
pub struct Hidden(Screen);

/// How often a second the screen is drawn, at most.
const HERTZ: u8 = 12;

impl Default for Screen {
    fn default() -> Self {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(HERTZ));
        Self { bars, held: Arc::default() }
    }
}

impl Screen {
    /// Takes the bars off until the answer is dropped.
    pub fn hide(&self) -> Hidden {
        // A screen that can't be cleared is no reason to stop a recovery.
        let _ = self.bars.clear();
        self.bars.set_draw_target(ProgressDrawTarget::hidden());
        self.held().get_or_insert_default();
        Hidden(self.clone())
    }

    /// A line above the bars, later if the terminal is somebody else's now.
    fn say(&self, line: String) {
        match &mut *self.held() {
            Some(held) => held.push(line),
            None => drop(self.bars.println(line)),
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<Vec<String>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        self.0.bars.set_draw_target(ProgressDrawTarget::stderr_with_hz(HERTZ));
        let held = self.0.held().take();
        for line in held.into_iter().flatten() {
            self.0.say(line);
        }
    }
}

/// The lower part of the screen.
#[derive(Debug)]
pub struct Bars {
    screen: Screen,
    running: BTreeMap<String, Bar>,
    lines: Lines,
    paint: Paint,
}

/// A running step's line.
#[derive(Debug)]
struct Bar {
    bar: ProgressBar,
    /// What it counts now. Time left is reckoned anew when that is another thing.
    counted: Option<(ProgressUnit, Option<u64>)>,
}

/// How often bars move by themselves.
const TICK: Duration = Duration::from_millis(120);

impl Bars {
    /// Bars for the run that `state` is of.
    pub fn new(state: &RunState, screen: Screen, paint: Paint) -> Self {
        Self { screen, running: BTreeMap::new(), lines: Lines::new(state, paint), paint }
    }

    /// Shows a record, `state` being the one after it.
    pub fn record(&mut self, record: &Record, state: &RunState) {
        match &record.event {
            Event::StepStarted { step, attempt } => {
                let again = if *attempt > 1 { format!("attempt {attempt}") } else { String::new() };
                self.start(step, state, again);
            }
            Event::AttemptFailed { step, retry_in, .. } => {
                self.say(record, state);
                if let Some(Bar { bar, .. }) = self.running.get(step) {
                    bar.set_message(format!("again in {}", super::text::span(*retry_in)));
                }
            }
            Event::StepFinished { step, .. } | Event::StepWaiting { step, .. } => {
                self.end(step);
                self.say(record, state);
            }
            Event::RunStopped { .. } => {
                self.clear();
                self.say(record, state);
            }
            _ => self.say(record, state),
        }
    }

    /// Shows how far a step is.
    pub fn progress(&mut self, step: &str, progress: &Progress) {
        let Some(Bar { bar, counted }) = self.running.get_mut(step) else { return };
        let counts = Some((progress.unit, progress.total));
        let another = counted.replace((progress.unit, progress.total)) != counts;
        bar.set_style(style(progress, self.paint));
        if let Some(total) = progress.total {
            bar.set_length(total);
        }
        bar.set_position(progress.done);
        if another {
            bar.reset_eta();
        }
        bar.set_message(progress.message.clone().unwrap_or_default());
    }

    /// Takes the bars off the screen while `talk` uses it.
    pub fn suspend<T>(&self, talk: impl FnOnce() -> T) -> T {
        self.screen.bars.suspend(talk)
    }

    /// Takes all bars off the screen.
    pub fn clear(&mut self) {
        for Bar { bar, .. } in std::mem::take(&mut self.running).into_values() {
            bar.finish_and_clear();
        }
        let _ = self.screen.bars.clear();
    }

    fn start(&mut self, step: &str, state: &RunState, message: String) {
        if let Some(Bar { bar, .. }) = self.running.get(step) {
            bar.set_message(message);
            return;
        }
        let title = state.step(step).and_then(|step| step.header.title.clone()).unwrap_or_default();
        let bar = self.screen.bars.add(ProgressBar::no_length());
        bar.set_style(style(&Progress { unit: ProgressUnit::Seconds, ..Progress::default() }, self.paint));
        bar.set_prefix(step.to_owned());
        bar.set_message(if message.is_empty() { title } else { message });
        bar.enable_steady_tick(TICK);
        self.running.insert(step.to_owned(), Bar { bar, counted: None });
    }

    fn end(&mut self, step: &str) {
        if let Some(Bar { bar, .. }) = self.running.remove(step) {
            bar.finish_and_clear();
            self.screen.bars.remove(&bar);
        }
    }

    fn say(&self, record: &Record, state: &RunState) {
        if let Some(line) = self.lines.line(record, state) {
            self.screen.say(line);
        }
    }
}

fn style(progress: &Progress, paint: Paint) -> ProgressStyle {
    let (spinner, name) =
        if paint.color { ("{spinner:.cyan}", "{prefix:.bold}") } else { ("{spinner}", "{prefix}") };
    let known = progress.total.is_some_and(|total| total > 0);
    let amounts = match (progress.unit, known) {
        (ProgressUnit::Bytes, true) => {
            "{bar:16} {binary_bytes} of {binary_total_bytes}, {percent}%, {binary_bytes_per_sec}, {eta} left"
        }
        (ProgressUnit::Bytes, false) => "{binary_bytes}, {binary_bytes_per_sec}, {elapsed}",
        (ProgressUnit::Rows, true) => "{bar:16} {human_pos} of {human_len} rows, {percent}%, {per_sec}, {eta} left",
        (ProgressUnit::Rows, false) => "{human_pos} rows, {per_sec}, {elapsed}",
        (ProgressUnit::Items, true) => "{bar:16} {human_pos} of {human_len}, {percent}%, {eta} left",
        (ProgressUnit::Items, false) => "{human_pos}, {elapsed}",
        (ProgressUnit::Seconds, true) => "{bar:16} {eta} left",
        (ProgressUnit::Seconds, false) => "{elapsed}",
    };
    let template = format!("         {spinner} {name}  {amounts}  {{wide_msg}}");
    ProgressStyle::with_template(&template)
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
        .progress_chars("━╸─")
        .tick_strings(&["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏", "▸"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_is_one() {
        for unit in [ProgressUnit::Bytes, ProgressUnit::Rows, ProgressUnit::Items, ProgressUnit::Seconds] {
            for total in [None, Some(10)] {
                for color in [false, true] {
                    let progress = Progress { done: 1, total, unit, message: None };
                    let style = style(&progress, Paint { color, width: 80 });
                    drop(style);
                }
            }
        }
    }
}
