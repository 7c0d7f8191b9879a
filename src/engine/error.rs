//! Why the engine could not begin or go on, and which exit code that is.

use crate::failure::Failure;
use crate::ids::StepId;
use crate::record::journal::JournalError;
use crate::record::state::Illegal;
use crate::record::store::StoreError;

use super::preview::PreviewReport;

/// Classes of endings; the command line gives each its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitClass {
    /// 0.
    Done,
    /// 1: a step failed, or the run could not go on.
    Failed,
    /// 2: what was asked for is wrong.
    Usage,
    /// 3: a step is blocked.
    Blocked,
    /// 4: paused, or waiting for a person.
    Unfinished,
    /// 5: somebody else holds the lock.
    Locked,
    /// 70: a defect of Lifeboat itself.
    Defect,
    /// 130.
    Cancelled,
}

impl ExitClass {
    /// The exit code.
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Blocked => 3,
            Self::Unfinished => 4,
            Self::Locked => 5,
            Self::Defect => 70,
            Self::Cancelled => 130,
        }
    }
}

/// Why the engine could not begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The preflight found steps that can't do their work.
    #[error("nothing was touched: {} blocked", blocked(.0))]
    Blocked(Box<PreviewReport>),
    /// What would run is not what was reviewed.
    #[error("this is not what was approved: {}", .0.join("; "))]
    NotApproved(Vec<String>),
    /// A protected environment's name was not typed.
    #[error("`{environment}` is protected, and the plan destroys or displaces {} in it", destroyed.join(", "))]
    Unconfirmed {
        /// The environment.
        environment: String,
        /// What is destroyed or displaced.
        destroyed: Vec<String>,
    },
    /// Somebody else changes the same thing.
    #[error("{resource} is being changed by {holder}")]
    Locked {
        /// What.
        resource: String,
        /// Who, and since when.
        holder: String,
        /// How to look.
        look: String,
    },
    /// A lock could not be asked for.
    #[error("failed to lock {resource}: {failure}")]
    Lock {
        /// What.
        resource: String,
        /// Why.
        failure: Failure,
    },
    /// An operator stopped it before it began.
    #[error("interrupted before anything was touched")]
    Interrupted,
    /// The plan is not the one that the run began with.
    #[error("the run began with another version of the plan{}", changed(.0))]
    PlanChanged(Vec<String>),
    /// A later version's engine walked it.
    #[error("the run was walked by a later engine (walker {found}; this one is {})", super::walk::VERSION)]
    NewerWalker {
        /// Its walker's version.
        found: u32,
    },
    /// Nothing is left to do.
    #[error("run {0} has succeeded: nothing is left to do")]
    Finished(String),
    /// It could not be found out what became of a step in flight.
    #[error("step `{step}` was cut off, and it could not be found out what became of it: {failure}")]
    Undecided {
        /// The step.
        step: StepId,
        /// Why not.
        failure: Failure,
    },
    /// Something else answers now where the run had begun its work.
    #[error("nothing was touched: {}", .0.join("; "))]
    OtherTarget(Vec<String>),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The journal can't be written.
    #[error("the run stopped because its journal can't be written: {0}")]
    Journal(#[from] JournalError),
    /// The engine made an illegal move: a defect.
    #[error("the engine broke its own rules: {0}")]
    Defect(String),
}

impl From<Illegal> for EngineError {
    fn from(illegal: Illegal) -> Self {
        Self::Defect(illegal.to_string())
    }
}

impl EngineError {
    /// What to do next.
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::Blocked(_) => "mend what is in the way, look again with `--dry-run`".to_owned(),
            Self::NotApproved(_) => "make a new preview with `--dry-run --save`, and have it reviewed".to_owned(),
            Self::Unconfirmed { environment, .. } => format!("if that is meant, add `--confirm {environment}`"),
            Self::Locked { look, .. } => look.clone(),
            Self::Lock { failure, .. } | Self::Undecided { failure, .. } => failure
                .help
                .clone()
                .unwrap_or_else(|| "make the system reachable, then try again: nothing was changed".to_owned()),
            Self::Interrupted => return None,
            Self::PlanChanged(_) => {
                "leave the plan's file out: `lifeboat resume` uses the copy kept with the run".to_owned()
            }
            Self::NewerWalker { .. } => "use the version of Lifeboat that began it, or a later one".to_owned(),
            Self::Finished(_) => "look at it with `lifeboat report`".to_owned(),
            Self::OtherTarget(_) => super::target::WAY_OUT.to_owned(),
            Self::Store(error) => return error.help(),
            Self::Journal(error) => error.help(),
            Self::Defect(_) => "please report this with the run's journal".to_owned(),
        })
    }

    /// Its exit code's class.
    pub const fn class(&self) -> ExitClass {
        match self {
            Self::Blocked(_) | Self::OtherTarget(_) => ExitClass::Blocked,
            Self::Locked { .. } | Self::Store(StoreError::Locked { .. }) => ExitClass::Locked,
            Self::NotApproved(_)
            | Self::Unconfirmed { .. }
            | Self::PlanChanged(_)
            | Self::NewerWalker { .. }
            | Self::Finished(_)
            | Self::Store(
                StoreError::Unsupported(_)
                | StoreError::Unknown { .. }
                | StoreError::None(_)
                | StoreError::Ambiguous { .. }
                | StoreError::Exists(_)
                | StoreError::Answer(_),
            ) => ExitClass::Usage,
            Self::Lock { .. } | Self::Undecided { .. } | Self::Store(_) | Self::Journal(_) => ExitClass::Failed,
            Self::Interrupted => ExitClass::Cancelled,
            Self::Defect(_) => ExitClass::Defect,
        }
    }
}

fn blocked(report: &PreviewReport) -> String {
    let ids: Vec<_> = report.blocked().map(|step| format!("`{}`", step.id)).collect();
    format!("{} {}", ids.join(", "), if ids.len() == 1 { "is" } else { "are" })
}

fn changed(steps: &[String]) -> String {
    if steps.is_empty() { String::new() } else { format!(": changed are {}", steps.join(", ")) }
}
