//! Time that nobody sets: the system's clock may jump, what has passed since the machine started does not.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};

use crate::units;

/// How far the system's clock may be set without a word: time servers do so all day.
const UNSAID: SignedDuration = SignedDuration::from_secs(5);

/// What counts on while a laptop sleeps, and has nothing to do with the hour.
#[cfg(target_os = "linux")]
const CLOCK: ClockId = ClockId::CLOCK_BOOTTIME;
#[cfg(not(target_os = "linux"))]
const CLOCK: ClockId = ClockId::CLOCK_MONOTONIC;

/// How long the machine has run.
pub fn since_boot() -> Duration {
    // It fails for clocks that a system doesn't have.
    clock_gettime(CLOCK).map(Duration::from).unwrap_or_default()
}

/// A clock that shows the system's time now, and goes on from there whatever the system's is set to.
pub fn steady() -> impl Fn() -> Timestamp + Send + Sync {
    let (time, boot) = (Timestamp::now(), since_boot());
    move || time.checked_add(since_boot().saturating_sub(boot)).unwrap_or(time)
}

/// The system's clock, watched beside another one.
#[derive(Debug)]
pub struct SystemClock {
    ahead: SignedDuration,
}

impl SystemClock {
    /// Beside a clock that shows `now`.
    pub fn beside(now: Timestamp) -> Self {
        Self { ahead: Timestamp::now().duration_since(now) }
    }

    /// Says so when it was set since it was last looked at.
    pub fn set(&mut self, now: Timestamp) -> Option<String> {
        let ahead = Timestamp::now().duration_since(now);
        let by = ahead - self.ahead;
        if by.abs() < UNSAID {
            return None;
        }
        self.ahead = ahead;
        let way = if by.is_positive() { "forward" } else { "back" };
        let by = units::Duration::seconds(by.abs().as_secs_f64().round() as u64);
        Some(format!("the machine's clock was set {way} by {by}; the run goes on by the time it began with"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_clock_goes_on() {
        let (clock, began) = (steady(), std::time::Instant::now());
        let first = clock();
        assert!(Timestamp::now().duration_since(first).abs() < SignedDuration::from_secs(1));
        std::thread::sleep(Duration::from_millis(20));
        let passed = clock().duration_since(first);
        assert!(
            passed >= SignedDuration::from_millis(19) && passed.unsigned_abs() <= began.elapsed(),
            "{passed:?}"
        );
    }

    #[test]
    fn a_clock_that_is_set_is_told_once() {
        // The other one jumps back: as if the system's were set forward.
        let now = Timestamp::now();
        let mut system = SystemClock::beside(now);
        assert_eq!(system.set(now), None);
        let hour = SignedDuration::from_hours(1);
        assert!(system.set(now - hour).unwrap().contains("set forward by 1h"));
        assert_eq!(system.set(now - hour), None);
        assert!(system.set(now).unwrap().contains("set back by"));
    }
}
