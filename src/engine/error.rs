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
    /// An operator ordered what can't be ordered.
    #[error("{message}")]
    Order {
        /// What, and why not.
        message: String,
        /// What to order instead.
        help: Option<String>,
    },
    /// The real systems don't agree with what an operator says of a step.
    #[error("step `{step}`: {why}; nothing was touched")]
    Refused {
        /// The step.
        step: StepId,
        /// What they say.
        why: String,
        /// What to do.
        help: String,
    },
    /// A later version's engine walked it.
    #[error("the run was walked by a later engine (walker {found}; this one is {})", super::walk::VERSION)]
    NewerWalker {
        /// Its walker's version.
        found: u32,
    },
    /// Nothing is left to do.
    #[error("run {0} has succeeded: nothing is left to do")]
    Finished(String),
    /// The run is being taken back, or has been.
    #[error("run {0} is being taken back, or has been, and can't be resumed")]
    BeingUndone(String),
    /// All that could be taken back was.
    #[error("run {0} has been undone: nothing is left to take back")]
    Undone(String),
    /// No step has an `undo` that could be run.
    #[error("run {0} did nothing that `lifeboat undo` can take back")]
    NothingToUndo(String),
    /// A step that a kill cut off still goes on in the world.
    #[error("step `{step}` was cut off, and still goes on: {what}")]
    StillGoing {
        /// The step.
        step: StepId,
        /// What goes on.
        what: String,
    },
    /// A step to leave as it is that isn't taken back.
    #[error("{0}")]
    Leave(String),
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
            Self::Order { help, .. } => return help.clone(),
            Self::Refused { help, .. } => help.clone(),
            Self::PlanChanged(_) => {
                "`lifeboat resume` alone goes on with the copy kept with the run; `--plan FILE` lets an edited plan take over".to_owned()
            }
            Self::NewerWalker { .. } => "use the version of Lifeboat that began it, or a later one".to_owned(),
            Self::BeingUndone(run) => format!("go on with `lifeboat undo {run}`, or start a new run"),
            Self::Undone(_) => "start a new run with `lifeboat run`".to_owned(),
            Self::NothingToUndo(run) => {
                format!(
                    "`lifeboat status {run}` says what it left; `undo:` in the plan says how to take a step back"
                )
            }
            Self::StillGoing { .. } => "wait until it has ended, then try again: nothing was changed".to_owned(),
            Self::Leave(_) => "`lifeboat undo --dry-run` lists what is taken back".to_owned(),
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
            Self::Blocked(_) | Self::Refused { .. } | Self::OtherTarget(_) => ExitClass::Blocked,
            Self::Locked { .. } | Self::Store(StoreError::Locked { .. }) => ExitClass::Locked,
            Self::NotApproved(_)
            | Self::Unconfirmed { .. }
            | Self::PlanChanged(_)
            | Self::Order { .. }
            | Self::NewerWalker { .. }
            | Self::Finished(_)
            | Self::BeingUndone(_)
            | Self::Undone(_)
            | Self::NothingToUndo(_)
            | Self::Leave(_)
            | Self::Store(
                StoreError::Unsupported(_)
                | StoreError::Unknown { .. }
                | StoreError::None(_)
                | StoreError::Ambiguous { .. }
                | StoreError::Exists(_)
                | StoreError::Answer(_)
                | StoreError::Refused(_),
            ) => ExitClass::Usage,
            Self::Lock { .. }
            | Self::Undecided { .. }
            | Self::StillGoing { .. }
            | Self::Store(_)
            | Self::Journal(_) => ExitClass::Failed,
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
