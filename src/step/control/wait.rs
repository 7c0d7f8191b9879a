//! `wait`: lets time pass.
//!
//! The moment at which it ends is noted, so that after a kill only what is left is waited.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::record::clock::since_boot;
use crate::record::event::{Actor, Progress, ProgressUnit};
use crate::step::effect::Effect;
use crate::step::{Action, AfterKill, Certainty, Done, Findings, Preview, PreviewCx, RunCx, Step, StepType};
use crate::units;

/// Lets time pass: `for` a while, or `until` a moment.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Wait {
    /// How long, whatever the machine's clock is set to meanwhile.
    #[serde(default)]
    pub r#for: Option<units::Duration>,
    /// Until the machine's clock shows when, as RFC 3339 with an offset.
    #[serde(default)]
    pub until: Option<units::Timestamp>,
}

impl StepType for Wait {
    const NAME: &'static str = "wait";
    const SUMMARY: &'static str = "Lets time pass";
    const AFTER_KILL: &'static str = "waits for what is left";
}

#[async_trait]
impl Step for Wait {
    fn effects(&self) -> Vec<Effect> {
        vec![]
    }

    fn check(&self, found: &mut Findings) {
        let help = || "write `for: 5m` or `until: 2024-02-01T10:00:00Z`".to_owned();
        match (&self.r#for, &self.until) {
            (None, None) => found.add("", "`wait` needs to know how long", help()),
            (Some(_), Some(_)) => found.add("/until", "`for` and `until` can't both be given", help()),
            _ => {}
        }
    }

    async fn preview(&self, _cx: &PreviewCx<'_>) -> Preview {
        let summary = match (&self.r#for, &self.until) {
            (Some(length), _) => format!("wait {length}"),
            (None, Some(moment)) => format!("wait until {moment}"),
            (None, None) => "wait".to_owned(),
        };
        Preview::new(Action::None, Certainty::Observed, summary)
    }

    async fn run(&self, cx: &RunCx) -> Result<Done, Failure> {
        let (end, unfinished) = match unfinished(cx) {
            Some(end) => (end, true),
            None => (self.end()?, false),
        };
        if !unfinished {
            cx.note(end.note()).await?;
        }
        let began = since_boot();
        let end = self.bounded(end, began);
        let total = end.left();
        loop {
            // Short naps: the clock may be set, and a laptop may sleep.
            let left = end.left();
            if left <= 0.0 {
                break;
            }
            cx.progress(Progress {
                done: (total - left).max(0.0) as u64,
                total: Some(total.ceil() as u64),
                unit: ProgressUnit::Seconds,
                message: Some(format!("until {}", end.until)),
            });
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs_f64(left.min(1.0))) => {}
                () = cx.cancel.cancelled() => return Err(Failure::transient("the wait was cancelled")),
            }
        }
        // Told apart from a wait that a kill cut short, should the step be run anew.
        cx.note(json!({ "over": true })).await?;
        let waited = since_boot().saturating_sub(began);
        Ok(Done::new(format!("waited {}", units::Duration::seconds(waited.as_secs_f64().round() as u64))))
    }

    async fn after_kill(&self, cx: &RunCx) -> Result<AfterKill, Failure> {
        Ok(match unfinished(cx) {
            None if cx.notes.is_empty() => AfterKill::DidNotHappen { why: "the wait had not begun".to_owned() },
            None => AfterKill::Happened(Done::new("the wait was over")),
            Some(end) if end.left() <= 0.0 => {
                AfterKill::Happened(Done::new(format!("the wait was over at {}", end.until)))
            }
            Some(end) => AfterKill::Partly { what: format!("the wait goes on until {}", end.until) },
        })
    }
}

impl Wait {
    fn end(&self) -> Result<End, Failure> {
        match (&self.r#for, &self.until) {
            (Some(length), _) => {
                let until = Timestamp::now().checked_add(length.std());
                let until = until.map_err(|error| Failure::permanent(error.to_string()))?;
                Ok(End { until, since_boot: Some(since_boot() + length.std()) })
            }
            (None, Some(moment)) => Ok(End { until: moment.0, since_boot: None }),
            (None, None) => Err(Failure::permanent("`wait` needs `for` or `until`")),
        }
    }

    /// A length passes whatever the clock shows meanwhile, and is never exceeded; a moment is the clock's.
    fn bounded(&self, end: End, now: Duration) -> End {
        let Some(length) = self.r#for else { return end };
        let left = Duration::try_from_secs_f64(end.left()).unwrap_or_default().min(length.std());
        End { since_boot: Some(now + left), ..end }
    }
}

/// When a wait is over.
#[derive(Clone, Copy, Debug)]
struct End {
    /// By the clock.
    until: Timestamp,
    /// By the machine's own count, which nobody sets; for as long as it isn't started anew.
    since_boot: Option<Duration>,
}

impl End {
    /// Seconds.
    fn left(&self) -> f64 {
        match self.since_boot {
            Some(end) => end.as_secs_f64() - since_boot().as_secs_f64(),
            None => self.until.duration_since(Timestamp::now()).as_secs_f64(),
        }
    }

    fn note(&self) -> Value {
        let mut note = json!({ "until": self.until.to_string() });
        if let Some(end) = self.since_boot {
            note["boot"] = json!({ "id": Actor::current().boot, "seconds": end.as_secs_f64() });
        }
        note
    }
}

/// The end of a wait that was cut short.
fn unfinished(cx: &RunCx) -> Option<End> {
    let (_, note) = cx.notes.last()?;
    let boot = &note["boot"];
    let same_boot = boot["id"].as_str().is_some_and(|id| id == Actor::current().boot && id != "unknown");
    let since_boot = boot["seconds"].as_f64().filter(|_| same_boot);
    Some(End {
        until: note["until"].as_str()?.parse().ok()?,
        since_boot: since_boot.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::testing::{cx, cx_after, findings, services, step};

    #[tokio::test]
    async fn waits_and_notes_its_end_first() {
        let services = services(json!({}));
        let (cx, recorder) = cx(&services);
        let began = std::time::Instant::now();
        step("wait", json!({ "for": "150ms" })).run(&cx).await.unwrap();
        assert!(began.elapsed().as_millis() >= 150);
        let noted: Timestamp = recorder.notes()[0]["until"].as_str().unwrap().parse().unwrap();
        assert!(noted <= Timestamp::now());
    }

    #[tokio::test]
    async fn after_a_kill_only_what_is_left_is_waited() {
        let services = services(json!({}));
        let wait = step("wait", json!({ "for": "1h" }));
        let soon = Timestamp::now() + std::time::Duration::from_millis(100);
        let (cx, _) = cx_after(&services, vec![json!({ "until": soon.to_string() })]);
        assert!(matches!(wait.after_kill(&cx).await.unwrap(), AfterKill::Partly { .. }));
        wait.run(&cx).await.unwrap();
        assert!(matches!(wait.after_kill(&cx).await.unwrap(), AfterKill::Happened(_)));

        let (cx, _) = cx_after(&services, vec![]);
        assert!(matches!(wait.after_kill(&cx).await.unwrap(), AfterKill::DidNotHappen { .. }));
    }

    #[tokio::test]
    async fn a_clock_that_was_set_back_does_not_make_a_length_longer() {
        let services = services(json!({}));
        let hence = Timestamp::now() + std::time::Duration::from_hours(1);
        let (cx, _) = cx_after(&services, vec![json!({ "until": hence.to_string() })]);
        let wait = step("wait", json!({ "for": "150ms" }));
        tokio::time::timeout(std::time::Duration::from_secs(20), wait.run(&cx)).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_wait_can_be_cancelled_and_the_past_is_over_at_once() {
        let services = services(json!({}));
        let (cx, _) = cx(&services);
        let wait = step("wait", json!({ "for": "1h" }));
        let (result, ()) = tokio::join!(wait.run(&cx), async { cx.cancel.cancel() });
        assert!(result.is_err());
        let (cx, _) = super::tests::cx(&services);
        step("wait", json!({ "until": "2024-02-01T10:00:00Z" })).run(&cx).await.unwrap();
    }

    #[test]
    fn exactly_one_of_for_and_until() {
        assert_eq!(findings("wait", json!({})).len(), 1);
        assert_eq!(findings("wait", json!({ "for": "1s", "until": "2024-02-01T10:00:00Z" })).len(), 1);
        assert!(findings("wait", json!({ "for": "1s" })).is_empty());
    }
}
