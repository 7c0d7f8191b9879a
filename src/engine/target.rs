//! The guard on targets: a run goes on only where it began.
//!
//! Who is behind each name is noted before a step's first effect on it, and compared whenever the run comes to it
//! again: another cluster at the same address, another container under the same name, is refused before anything
//! in it is touched. What a step replaces itself is noted anew after it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::EngineError;
use crate::failure::Failure;
use crate::record::state::RunState;
use crate::service::Services;
use crate::service::identity::{self, Identity};
use crate::step::effect::{Access, Effect, Role};

/// What to do when another one is there.
pub(super) const WAY_OUT: &str = "give the target the address of the one that the run began on (`--env`), and go on; if what is \
     there now is meant, run the step that noted the other one again (`lifeboat resume --rerun STEP --because '…'`; \
     `lifeboat undo --leave STEP --because '…'` while the run is taken back), or begin a new run: what this one knows is of the other";

type Seen = BTreeMap<String, Identity>;

/// Who is behind the names that this run touched.
#[derive(Debug, Default)]
pub(super) struct Targets {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    seen: Seen,
    /// What a step was about to replace, and nobody saw again since.
    replaced: BTreeSet<String>,
}

impl Targets {
    /// What the journal knows.
    pub(super) fn new(state: &RunState) -> Self {
        Self { known: Mutex::new(Known { seen: noted(state), replaced: BTreeSet::new() }) }
    }

    /// What a step's attempt must note before it acts.
    ///
    /// # Errors
    /// When something else is there than the run began on.
    pub(super) async fn before(
        &self,
        services: &Services,
        effects: &[Effect],
    ) -> Result<Vec<(String, Identity)>, Failure> {
        let names = effects.iter().flat_map(|effect| identity::names(effect.resource.as_str())).collect();
        let found = services.identities(&names).await;
        let mut known = self.known();
        let differ = differences(&known.seen, &found, |_| None);
        if !differ.is_empty() {
            let message = format!("nothing was touched: {}", differ.join("; "));
            return Err(Failure::permanent(message).help(WAY_OUT));
        }
        let mut notes: Vec<_> = found.into_iter().filter(|(name, _)| !known.seen.contains_key(name)).collect();
        known.learn(&notes);
        let replaced: Vec<_> = known.seen.keys().filter(|name| replaces(effects, name)).cloned().collect();
        for name in replaced {
            known.seen.remove(&name);
            known.replaced.insert(name.clone());
            notes.push((name, Identity::new()));
        }
        Ok(notes)
    }

    /// What a step's attempt leaves behind in place of what it replaced.
    pub(super) async fn after(&self, services: &Services, effects: &[Effect]) -> Vec<(String, Identity)> {
        let written = effects.iter().filter(|effect| effect.access.writes());
        let names = written.flat_map(|effect| identity::names(effect.resource.as_str()));
        let names = names.chain(self.known().replaced.iter().cloned().collect::<Vec<_>>());
        let replaced: BTreeSet<_> = names.filter(|name| replaces(effects, name)).collect();
        if replaced.is_empty() {
            return Vec::new();
        }
        let found: Vec<_> = services.identities(&replaced).await.into_iter().collect();
        self.known().learn(&found);
        found
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn learn(&mut self, found: &[(String, Identity)]) {
        for (name, identity) in found {
            self.replaced.remove(name);
            self.seen.insert(name.clone(), identity.clone());
        }
    }
}

/// Whether what the run touched is still what is there, of the names that `counts` says yes to, with who noted them.
/// What can't be asked now fails its steps, in its own words.
///
/// # Errors
/// With each that is another one.
pub(super) async fn unchanged(
    services: &Services,
    state: &RunState,
    counts: impl Fn(&str, &str) -> bool,
) -> Result<(), EngineError> {
    let mut seen = noted(state);
    seen.retain(|name, _| state.seen.get(name).is_some_and(|seen| counts(name, &seen.step)));
    let found = services.identities(&seen.keys().cloned().collect()).await;
    let differ = differences(&seen, &found, |name| state.seen.get(name).map(|seen| seen.step.as_str()));
    if differ.is_empty() { Ok(()) } else { Err(EngineError::OtherTarget(differ)) }
}

fn noted(state: &RunState) -> Seen {
    state.seen.iter().map(|(name, seen)| (name.clone(), seen.identity.clone())).collect()
}

/// What is another one now, in words. A database of another server is not told apart from that server.
fn differences<'a>(seen: &Seen, found: &Seen, by: impl Fn(&str) -> Option<&'a str>) -> Vec<String> {
    let other = |name: &str| match (seen.get(name), found.get(name)) {
        // A right that was granted or taken since says nothing of the server.
        (Some(then), Some(now)) => then != now && !identity::is_untold(then) && !identity::is_untold(now),
        _ => false,
    };
    let differ = found.keys().filter(|name| other(name));
    let widest = differ.filter(|name| name.rsplit_once('/').is_none_or(|(server, _)| !other(server)));
    widest
        .map(|name| {
            let by = by(name).map(|step| format!(", as step `{step}` noted")).unwrap_or_default();
            let (then, now) = (&seen[name], &found[name]);
            let names: BTreeSet<_> = then.keys().chain(now.keys()).collect();
            let value = |of: &Identity, what: &str| of.get(what).map_or("none", String::as_str).to_owned();
            let said: Vec<_> = names
                .into_iter()
                .filter(|what| then.get(*what) != now.get(*what))
                .map(|what| {
                    let (then, now) = (value(then, what), value(now, what));
                    format!("its {} was {then}, and is {now} now", what.replace('_', " "))
                })
                .collect();
            format!("{name} is not what this run began on{by}: {}", said.join(", "))
        })
        .collect()
}

/// Whether these effects may put something else behind the name.
fn replaces(effects: &[Effect], name: &str) -> bool {
    effects.iter().any(|effect| {
        let made = matches!(effect.access, Access::Create | Access::Destroy) || effect.role == Role::Displaces;
        let resource = effect.resource.as_str();
        let kind = name.split(':').next().unwrap_or_default();
        match resource.split(':').next().unwrap_or_default() {
            // Nobody knows what it does.
            _ if effect.access == Access::Undetermined => kind != "storage" && kind != "redis",
            // Servers may live in containers.
            "container" => (made && kind == "postgres") || (effect.access.writes() && resource == name),
            // A whole server takes its databases with it; a table leaves its database the same.
            "postgres" => {
                made && (resource == name || name.strip_prefix(resource).is_some_and(|rest| rest.starts_with('/')))
            }
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::effect::Resource;

    fn may_replace(access: Access, resource: Resource, name: &str) -> bool {
        replaces(&[Effect::new(access, resource)], name)
    }

    #[test]
    fn who_may_be_another_one_after_a_step() {
        let database = || Resource::database("db", "app");
        assert!(may_replace(Access::Destroy, database(), "postgres:db/app"));
        assert!(!may_replace(Access::Destroy, database(), "postgres:db"));
        assert!(!may_replace(Access::Destroy, database(), "postgres:db/app_old"));
        assert!(!may_replace(Access::Change, database(), "postgres:db/app"));
        assert!(!may_replace(Access::Destroy, Resource::table("db", "app", "t"), "postgres:db/app"));
        assert!(may_replace(Access::Create, Resource::server("db"), "postgres:db/app"));
        assert!(may_replace(Access::Create, Resource::container("docker", "x"), "postgres:db/app"));
        assert!(!may_replace(Access::Change, Resource::container("docker", "x"), "postgres:db"));
        assert!(may_replace(Access::Undetermined, Resource::other("process", "x"), "container:docker/x"));
        assert!(!may_replace(Access::Read, database(), "postgres:db/app"));
    }
}
