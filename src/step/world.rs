//! The dry-run's world: facts foretold by the steps of a plan.
//!
//! After `drop_database` it holds "absent, because of step drop", so that what follows
//! is previewed against the world as it will be, not as it is.

use std::collections::BTreeMap;

use super::effect::{Access, Effect, Resource, Role};
use crate::ids::StepId;

/// How something will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// It will not be there.
    Absent,
    /// A database or an object that will be there.
    Present {
        /// Row counts by `schema.table`, where a manifest foretells them.
        rows: Option<BTreeMap<String, u64>>,
    },
    /// A database that was renamed: what is known of it stands under this name today.
    RenamedFrom(Resource),
    /// A service that will run.
    Running,
    /// A service that will be stopped.
    Stopped,
    /// Touched in a way that nobody foretells.
    Changed,
}

impl Fact {
    /// What will be so after an effect that a plan declares.
    pub const fn after(effect: &Effect) -> Option<Self> {
        match (effect.access, effect.role) {
            (_, Role::Stops) => Some(Self::Stopped),
            (_, Role::Starts) => Some(Self::Running),
            (Access::Read | Access::Undetermined, _) => None,
            (Access::Create, _) => Some(Self::Present { rows: None }),
            (Access::Change, _) => Some(Self::Changed),
            (Access::Destroy, _) => Some(Self::Absent),
        }
    }
}

/// A fact, and the step that makes it so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foretold {
    /// How it will be.
    pub fact: Fact,
    /// Because of which step.
    pub because: StepId,
}

/// All that the steps walked so far foretell.
#[derive(Clone, Debug, Default)]
pub struct World {
    facts: BTreeMap<Resource, Foretold>,
}

impl World {
    /// Adds a fact; a later one replaces an earlier one, and those on what the resource holds.
    /// What is made by one step and changed by the next is still there.
    pub fn foretell(&mut self, resource: Resource, fact: Fact, because: &StepId) {
        let fact = match (fact, self.fact(&resource).map(|foretold| &foretold.fact)) {
            (Fact::Changed, Some(Fact::Present { .. })) => Fact::Present { rows: None },
            (fact, _) => fact,
        };
        self.facts.retain(|other, _| !(other != &resource && other.as_str().starts_with(&format!("{resource}/"))));
        self.facts.insert(resource, Foretold { fact, because: because.clone() });
    }

    /// All that is foretold.
    pub fn iter(&self) -> impl Iterator<Item = (&Resource, &Foretold)> {
        self.facts.iter()
    }

    /// What is foretold of exactly this resource.
    pub fn fact(&self, resource: &Resource) -> Option<&Foretold> {
        self.facts.get(resource)
    }

    /// What is foretold of this resource, or of anything that holds it or that it holds:
    /// if there is something, looking at the real world now doesn't tell how it will be.
    pub fn touching(&self, resource: &Resource) -> Option<&Foretold> {
        self.fact(resource)
            .or_else(|| self.facts.iter().find(|(other, _)| other.overlaps(resource)).map(|(_, foretold)| foretold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_is_there_after_a_change_too() {
        let (mut world, database) = (World::default(), Resource::database("db", "new"));
        world.foretell(database.clone(), Fact::Present { rows: Some(BTreeMap::new()) }, &StepId::new("create"));
        world.foretell(database.clone(), Fact::Changed, &StepId::new("fill"));
        let foretold = world.fact(&database).unwrap();
        assert_eq!(foretold.fact, Fact::Present { rows: None }, "how many rows it has is no longer known");
        assert_eq!(foretold.because, StepId::new("fill"));
    }
}
