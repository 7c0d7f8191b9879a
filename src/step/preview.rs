//! What a step would do: a preview's words. The engine's dry-run and preflight carry them.

use serde_json::Value;

use super::effect::{Access, Effect, Resource};
use super::world::Fact;
use crate::failure::Failure;
use crate::record::event::Outputs;

/// What a step would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Bring something into being.
    Create,
    /// Change something.
    Change,
    /// Destroy something.
    Destroy,
    /// Look only.
    Read,
    /// Nothing: things are already as the step wants them.
    None,
    /// Ask a person.
    Ask,
    /// Not run: its `when` is false.
    Skip,
    /// It could not do it.
    Blocked,
}

impl Action {
    /// The word used in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Change => "change",
            Self::Destroy => "destroy",
            Self::Read => "read",
            Self::None => "none",
            Self::Ask => "ask",
            Self::Skip => "skip",
            Self::Blocked => "blocked",
        }
    }
}

/// How sure a preview is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Certainty {
    /// Seen in the real world.
    Observed,
    /// Follows from an earlier step of the plan, or from declarations alone.
    Assumed,
    /// Nobody can foretell it.
    Undetermined,
}

impl Certainty {
    /// The word used in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Observed => "observed",
            Self::Assumed => "assumed",
            Self::Undetermined => "undetermined",
        }
    }
}

/// A preview's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Preview {
    /// What it would do.
    pub action: Action,
    /// How sure that is.
    pub certainty: Certainty,
    /// One line for people: `drop database manacore_auth (1.2 GiB, 3 sessions)`.
    pub summary: String,
    /// Why it is blocked, or what to know before it runs. A problem with `blocks` makes the action [`Action::Blocked`].
    pub problems: Vec<Trouble>,
    /// What will be so after it.
    pub facts: Vec<(Resource, Fact)>,
    /// The outputs that are known before the run; the others are typed unknowns.
    pub outputs: Outputs,
}

/// A problem that a preview saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What is in the way.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// Whether the step can't run because of it.
    pub blocks: bool,
}

impl Preview {
    /// A preview without problems.
    pub fn new(action: Action, certainty: Certainty, summary: impl Into<String>) -> Self {
        Self {
            action,
            certainty,
            summary: summary.into(),
            problems: vec![],
            facts: vec![],
            outputs: Outputs::new(),
        }
    }

    /// What a read-only check or a declared effect comes to when nothing can be looked at:
    /// the strongest access of `effects`, assumed.
    pub fn from_effects(effects: &[Effect], summary: impl Into<String>) -> Self {
        let strongest = effects.iter().map(|effect| effect.access).max().unwrap_or(Access::Read);
        let (action, certainty) = match strongest {
            Access::Read => (Action::Read, Certainty::Assumed),
            Access::Create => (Action::Create, Certainty::Assumed),
            Access::Change => (Action::Change, Certainty::Assumed),
            Access::Destroy => (Action::Destroy, Certainty::Assumed),
            Access::Undetermined => (Action::Change, Certainty::Undetermined),
        };
        Self::new(action, certainty, summary)
    }

    /// Adds a fact that will be so after the step.
    #[must_use]
    pub fn fact(mut self, resource: Resource, fact: Fact) -> Self {
        self.facts.push((resource, fact));
        self
    }

    /// Adds an output known before the run.
    #[must_use]
    pub fn output(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.outputs.insert(name.to_owned(), value.into());
        self
    }

    /// Adds a problem that stands in the way.
    #[must_use]
    pub fn blocked(mut self, message: impl Into<String>, help: impl Into<Option<String>>) -> Self {
        self.action = Action::Blocked;
        self.problems.push(Trouble { message: message.into(), help: help.into(), blocks: true });
        self
    }

    /// Adds something to know before the run.
    #[must_use]
    pub fn warning(mut self, message: impl Into<String>, help: impl Into<Option<String>>) -> Self {
        self.problems.push(Trouble { message: message.into(), help: help.into(), blocks: false });
        self
    }

    /// A preview that failed: the step is blocked by it.
    pub fn failed(failure: Failure) -> Self {
        Self::new(Action::Blocked, Certainty::Observed, failure.message.clone())
            .blocked(failure.message, failure.help)
    }
}
