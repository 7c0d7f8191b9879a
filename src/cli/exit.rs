//! The exit codes, and the one error that commands end with.

use crate::engine::{EngineError, ExitClass};
use crate::failure::Failure;
use crate::record::store::StoreError;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done; for `check` and `--dry-run`: nothing in the way.
    Done,
    /// The run failed; a failed step; a broken audit chain.
    Failed,
    /// The command line, a plan or an environment is wrong.
    Usage,
    /// The dry-run or the preflight found a step blocked.
    Blocked,
    /// Paused, or waiting for a person.
    Waiting,
    /// Somebody else holds the lock.
    Locked,
    /// A defect of Lifeboat itself.
    Defect,
    /// Cancelled.
    Cancelled,
}

/// Every exit and what it means, as the documentation lists them.
pub const TABLE: [(Exit, &str); 8] = [
    (Exit::Done, "done; for `check` and `--dry-run`: nothing in the way"),
    (Exit::Failed, "the run failed; a failed step; a broken audit chain"),
    (Exit::Usage, "the command line, a plan or an environment is wrong"),
    (Exit::Blocked, "the dry-run or the preflight found a step blocked"),
    (Exit::Waiting, "paused, or waiting for a person"),
    (Exit::Locked, "somebody else holds the lock"),
    (Exit::Defect, "a defect of Lifeboat itself, with what to report"),
    (Exit::Cancelled, "cancelled"),
];

impl Exit {
    /// The number that the shell sees.
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Blocked => 3,
            Self::Waiting => 4,
            Self::Locked => 5,
            Self::Defect => 70,
            Self::Cancelled => 130,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

/// Why a command could not do its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// Something to say, and how to end.
    Message {
        /// How to end.
        exit: Exit,
        /// What was attempted on what, and what stands in the way.
        message: String,
        /// What to do next.
        help: Option<String>,
    },
    /// Nobody reads our output any more: end quietly.
    BrokenPipe,
}

impl Error {
    /// An error that ends the program with `exit`.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self::Message { exit, message: message.into(), help: None }
    }

    /// The command line, a plan or an environment is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Adds what to do next.
    #[must_use]
    pub fn help(mut self, advice: impl Into<String>) -> Self {
        if let Self::Message { help, .. } = &mut self {
            *help = Some(advice.into());
        }
        self
    }

    /// A file that could not be read or written.
    pub fn file(attempted: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::usage(format!("failed to {attempted} {}: {error}", path.display()))
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let exit = match &error {
            StoreError::Locked { .. } => Exit::Locked,
            StoreError::Io { .. } | StoreError::Journal(_) | StoreError::Illegal { .. } => Exit::Failed,
            _ => Exit::Usage,
        };
        Self::Message { exit, message: error.to_string(), help: error.help() }
    }
}

impl From<EngineError> for Error {
    fn from(error: EngineError) -> Self {
        let exit = match error.class() {
            ExitClass::Done => Exit::Done,
            ExitClass::Failed => Exit::Failed,
            ExitClass::Usage => Exit::Usage,
            ExitClass::Blocked => Exit::Blocked,
            ExitClass::Unfinished => Exit::Waiting,
            ExitClass::Locked => Exit::Locked,
            ExitClass::Defect => Exit::Defect,
            ExitClass::Cancelled => Exit::Cancelled,
        };
        Self::Message { exit, message: error.to_string(), help: error.help() }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let again = failure.transient.then(|| "it may pass by itself: try again".to_owned());
        Self::Message { exit: Exit::Failed, message: failure.message, help: failure.help.or(again) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_and_the_table_agree() {
        let page = include_str!("../../docs/exit-codes.md");
        for (exit, meaning) in TABLE {
            let row = format!("| {} | {meaning} |", exit.code());
            assert!(page.contains(&row), "docs/exit-codes.md lacks: {row}");
        }
    }
}
