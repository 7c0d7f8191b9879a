//! What bounds a step's attempts, and changes while it runs: an operator may give it other limits.

use std::time::Duration;

use tokio::sync::watch::{self, Receiver};
use tokio::time::{Instant, sleep_until};

use crate::retry::RetryPolicy;

/// What bounds a step's attempts.
#[derive(Clone, Debug, Default)]
pub(super) struct Limits {
    pub(super) retry: RetryPolicy,
    /// The bound on one attempt.
    pub(super) timeout: Option<Duration>,
}

impl Limits {
    /// A bound that stays as it is.
    pub(super) fn fixed(timeout: Option<Duration>) -> Receiver<Self> {
        watch::channel(Self { retry: RetryPolicy::default(), timeout }).1
    }
}

/// Waits until an attempt that began then is over its bound, which may change meanwhile.
pub(super) async fn expiry(mut limits: Receiver<Limits>, begun: Instant) {
    let mut fixed = false;
    loop {
        let timeout = limits.borrow_and_update().timeout;
        let over = async {
            match timeout {
                Some(timeout) => sleep_until(begun + timeout).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => return,
            changed = limits.changed(), if !fixed => fixed = changed.is_err(),
        }
    }
}

/// The wait before the next attempt, after that many that were followed by another; none when there is no next.
pub(super) fn wait(limits: &mut Receiver<Limits>, tried: usize) -> Option<crate::units::Duration> {
    let retry = limits.borrow_and_update().retry.clone();
    retry.waits(rand::random::<f64>).nth(tried)
}

/// Waits for the next attempt after one that failed then; says whether there is one still, as the limits may change
/// meanwhile.
pub(super) async fn pause(limits: &mut Receiver<Limits>, failed: Instant, first: Duration, tried: usize) -> bool {
    let mut due = failed + first;
    let mut fixed = false;
    loop {
        tokio::select! {
            () = sleep_until(due) => return true,
            changed = limits.changed(), if !fixed => fixed = changed.is_err(),
        }
        if !fixed {
            match wait(limits, tried) {
                Some(wait) => due = failed + wait.std(),
                None => return false,
            }
        }
    }
}
