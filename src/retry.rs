//! When to try again: the `retry` of a step, and its waits as an iterator.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::Duration;

/// A step's `retry`: how often, how long apart, on which failures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RetryPolicy {
    /// Attempts in all, the first one counted.
    #[schemars(range(min = 1, max = 10_000))]
    pub attempts: u32,
    /// The wait before the second attempt.
    pub delay: Duration,
    /// What each further wait is multiplied by.
    #[schemars(range(min = 1.0, max = 100.0))]
    pub factor: f64,
    /// No wait is longer than this.
    pub max_delay: Duration,
    /// Whether waits vary by up to half, so that many clients don't knock at once.
    pub jitter: bool,
    /// Which failures are worth another attempt.
    pub on: RetryOn,
}

/// Which failures are retried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RetryOn {
    /// Those that may pass by themselves: a refused connection, a 503, a lock timeout.
    #[default]
    Transient,
    /// Every failure.
    Any,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 1,
            delay: Duration::seconds(1),
            factor: 2.0,
            max_delay: Duration::seconds(60),
            jitter: true,
            on: RetryOn::Transient,
        }
    }
}

impl RetryPolicy {
    /// The wait before each further attempt, in order; ends when the attempts are used up.
    /// `random` gives numbers in `0.0..1.0` for the jitter.
    pub fn waits<'a>(&'a self, mut random: impl FnMut() -> f64 + 'a) -> impl Iterator<Item = Duration> + 'a {
        let mut delay = self.delay.std().min(self.max_delay.std()).as_secs_f64();
        (1..self.attempts).map(move |_| {
            let wait = if self.jitter { delay * (0.5 + random()) } else { delay };
            let longest = self.max_delay.std().as_secs_f64();
            delay = (delay * self.factor).min(longest);
            Duration(std::time::Duration::from_secs_f64(wait.min(longest)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_bound() {
        let policy =
            RetryPolicy { attempts: 5, jitter: false, max_delay: Duration::seconds(3), ..RetryPolicy::default() };
        let waits: Vec<_> = policy.waits(|| 0.0).map(|wait| wait.to_string()).collect();
        assert_eq!(waits, ["1s", "2s", "3s", "3s"]);
    }

    #[test]
    fn one_attempt_means_no_wait() {
        assert_eq!(RetryPolicy::default().waits(|| 0.5).count(), 0);
    }
}
