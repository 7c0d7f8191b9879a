//! How fast a step goes, and how long it still takes, out of what it told of itself.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::evidence::seconds;
use super::lines::amount;
use super::text::span;
use crate::record::event::{Progress, ProgressUnit};

/// A pace from less than that would be a guess.
const ENOUGH: f64 = 2.0;

/// The paces of the steps that run.
#[derive(Clone, Debug, Default)]
pub struct Paces(BTreeMap<String, Begun>);

/// Where what is counted now began.
#[derive(Clone, Copy, Debug)]
struct Begun {
    at: Timestamp,
    done: u64,
    last: u64,
    unit: ProgressUnit,
    total: Option<u64>,
}

impl Paces {
    /// What a step's progress comes to at that time: `, 12.3 MiB/s, 40s left`, or nothing yet.
    pub fn of(&mut self, step: &str, progress: &Progress, at: Timestamp) -> String {
        let &Progress { done, unit, total, .. } = progress;
        let begun = self.0.entry(step.to_owned()).or_insert(Begun { at, done, last: done, unit, total });
        // Something else is counted from here on.
        if (begun.unit, begun.total) != (unit, total) || done < begun.last {
            *begun = Begun { at, done, last: done, unit, total };
        }
        begun.last = done;
        let took = seconds(begun.at, at);
        let came = done - begun.done;
        if took < ENOUGH || came == 0 || unit == ProgressUnit::Seconds {
            return String::new();
        }
        let rate = came as f64 / took;
        let speed = match unit {
            ProgressUnit::Bytes | ProgressUnit::Rows if rate >= 1.0 => format!(", {}/s", amount(unit, rate as u64)),
            _ => String::new(),
        };
        match total.filter(|total| *total > done) {
            Some(total) => format!("{speed}, {} left", span((total - done) as f64 / rate)),
            None => speed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_told_once_it_is_known_and_begins_anew_with_what_is_counted() {
        let mut paces = Paces::default();
        let start: Timestamp = "2024-02-01T10:00:00Z".parse().unwrap();
        let mut told = |after: i64, done, total, unit| {
            let at = start.checked_add(jiff::SignedDuration::from_secs(after)).unwrap();
            paces.of("restore", &Progress { done, total, unit, message: None }, at)
        };
        let (bytes, items, rows) = (ProgressUnit::Bytes, ProgressUnit::Items, ProgressUnit::Rows);
        // Resumed in the middle: only what came since is speed.
        assert_eq!(told(0, 50 << 20, Some(100 << 20), bytes), "");
        assert_eq!(told(1, 51 << 20, Some(100 << 20), bytes), "");
        assert_eq!(told(10, 60 << 20, Some(100 << 20), bytes), ", 1.0 MiB/s, 40s left");
        assert_eq!(told(50, 100 << 20, Some(100 << 20), bytes), ", 1.0 MiB/s");
        // Indexes after rows: another count.
        assert_eq!(told(51, 1, Some(9), items), "");
        assert_eq!(told(55, 5, Some(9), items), ", 4.0s left");
        assert_eq!(told(60, 1000, None, rows), "");
        assert_eq!(told(70, 6000, None, rows), ", 500 rows/s");
        // A second attempt begins at nothing again.
        assert_eq!(told(80, 0, None, rows), "");
    }
}
