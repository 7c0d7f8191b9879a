//! A run shown while it happens: one [`Sink`] for each way to show it. A replay feeds them alike.

use std::io::Write;
use std::time::Duration;

use jiff::Timestamp;

use super::bars::Bars;
pub use super::bars::Screen;
use super::lines::{Lines, progress};
use super::pace::Paces;
use super::text::{Paint, clock, span, tame};
use crate::record::event::{Event, Progress, Record};
use crate::record::sink::{Forecast, Sink};
use crate::record::state::RunState;

/// How a run is shown.
#[derive(Debug)]
enum View {
    /// Plain lines on standard error.
    Lines(Lines),
    /// Bars on standard error, a terminal.
    Bars(Bars),
}

/// Shows a run to a person, on standard error.
#[derive(Debug)]
pub struct Live {
    paint: Paint,
    /// The terminal, if there is one.
    screen: Option<Screen>,
    state: Option<RunState>,
    view: Option<View>,
    told: Option<Timestamp>,
    paces: Paces,
    forecast: Option<Duration>,
}

/// Plain lines tell progress this often at most: a log is read, not watched.
const PROGRESS_EVERY: f64 = 10.0;

impl Live {
    /// With bars on a terminal, plain lines elsewhere.
    pub fn new(screen: Option<Screen>, paint: Paint) -> Self {
        Self { paint, screen, state: None, view: None, told: None, paces: Paces::default(), forecast: None }
    }

    /// Folds a record; what can't follow is the engine's own mistake and is simply not shown.
    fn fold(&mut self, record: &Record) {
        match &mut self.state {
            None => self.state = RunState::begin(record).ok(),
            Some(state) => drop(state.apply(record)),
        }
    }
}

impl Sink for Live {
    fn past(&mut self, record: &Record) {
        self.fold(record);
    }

    fn record(&mut self, record: &Record) {
        self.fold(record);
        let Some(state) = &self.state else { return };
        let view = self.view.get_or_insert_with(|| match &self.screen {
            Some(screen) => View::Bars(Bars::new(state, screen.clone(), self.paint)),
            None => View::Lines(Lines::new(state, self.paint)),
        });
        match view {
            View::Bars(bars) => bars.record(record, state),
            View::Lines(lines) => {
                if let Some(line) = lines.line(record, state) {
                    say(&line);
                }
            }
        }
    }

    fn progress(&mut self, step: &str, done: &Progress, at: Timestamp) {
        match &mut self.view {
            Some(View::Bars(bars)) => bars.progress(step, done),
            Some(View::Lines(_)) => {
                let pace = self.paces.of(step, done, at);
                let due = self.told.is_none_or(|told| super::evidence::seconds(told, at) >= PROGRESS_EVERY);
                // The first seconds of a short step are no news.
                if due && self.told.replace(at).is_some() {
                    say(&format!(
                        "{} {} {step}  {}",
                        self.paint.dim(&clock(at)),
                        self.paint.name("▸"),
                        progress(done, &pace)
                    ));
                }
            }
            None => {}
        }
    }

    fn forecast(&mut self, forecast: &Forecast, at: Timestamp) {
        let Some(state) = &self.state else { return };
        let passed = super::evidence::seconds(state.started_at, at) - state.waited.as_secs_f64();
        let remaining = forecast.remaining.as_secs_f64();
        let late = state.header.rto.is_some_and(|rto| passed + remaining > rto);
        // Said when it is first known, when it turns late, and when it grows by half.
        let news = self.forecast.is_none_or(|told| remaining > told.as_secs_f64() * 1.5 + 10.0);
        if !news || forecast.remaining.is_zero() {
            return;
        }
        self.forecast = Some(forecast.remaining);
        let path = forecast.critical_path.join(" → ");
        let warning = if late { self.paint.bad(" — past the recovery time objective") } else { String::new() };
        let line = format!("{} about {} to go, by {path}{warning}", self.paint.dim(&clock(at)), span(remaining));
        match &self.view {
            Some(View::Bars(bars)) => bars.suspend(|| say(&line)),
            _ => say(&line),
        }
    }
}

/// Writes the journal's own lines to standard output.
#[derive(Debug, Default)]
pub struct Json;

impl Sink for Json {
    fn past(&mut self, _record: &Record) {}

    fn record(&mut self, record: &Record) {
        if let Ok(line) = serde_json::to_string(record) {
            // When the reader is gone the run goes on: it is in the journal all the same.
            let mut stdout = std::io::stdout().lock();
            let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
        }
    }
}

/// Whether the run has come to its end with this record.
pub const fn ends(record: &Record) -> bool {
    matches!(record.event, Event::RunStopped { .. })
}

fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", tame(line));
}
