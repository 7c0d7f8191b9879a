//! One kind of failure for everything that touches the outside world.

use std::fmt;

use crate::record::event::ErrorRecord;

/// What went wrong: what was attempted on what, what the other side said, whether
/// trying again can help, and what to do next. Never holds a secret: texts from
/// outside pass the run's redactor before they get here or when they are recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// A lower-case fragment that reads well after "failed to"-like words.
    pub message: String,
    /// Whether it may pass by itself: a refused connection, a 503, a lock timeout.
    pub transient: bool,
    /// What to do next.
    pub help: Option<String>,
}

impl Failure {
    /// A failure that trying again doesn't mend: a syntax error, a missing object, a failed expectation.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self { message: message.into(), transient: false, help: None }
    }

    /// A failure that may pass by itself.
    pub fn transient(message: impl Into<String>) -> Self {
        Self { message: message.into(), transient: true, help: None }
    }

    /// Adds what to do next; the first advice given stays.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help.get_or_insert_with(|| help.into());
        self
    }

    /// Puts what was attempted before what the other side said: `connect to db: refused`.
    #[must_use]
    pub fn context(mut self, attempted: impl fmt::Display) -> Self {
        self.message = format!("{attempted}: {}", self.message);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<Failure> for ErrorRecord {
    fn from(failure: Failure) -> Self {
        Self { message: failure.message, transient: failure.transient, help: failure.help }
    }
}
