//! Where a run's events go besides the journal: reporters, live or replayed.

use std::time::Duration;

use jiff::Timestamp;

use super::event::{Progress, Record};

/// A reader of one stream of events. The engine and a replay feed it alike.
pub trait Sink: Send {
    /// A record of an earlier process of this run, given before the first new one: to be
    /// folded, not shown.
    fn past(&mut self, record: &Record);

    /// A record that is on disk.
    fn record(&mut self, record: &Record);

    /// How far a running step is. May be lost.
    fn progress(&mut self, _step: &str, _progress: &Progress, _at: Timestamp) {}

    /// How long the rest will take, told from earlier runs. May be lost.
    fn forecast(&mut self, _forecast: &Forecast, _at: Timestamp) {}
}

/// How long the rest of a run will take, told from the durations of earlier runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forecast {
    /// Until the last step that the run waits for.
    pub remaining: Duration,
    /// The steps that decide it, in order.
    pub critical_path: Vec<String>,
    /// How many steps of the rest have never run before: they count as nothing.
    pub unknown: usize,
}
