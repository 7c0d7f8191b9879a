//! Hazards: what could lose data or leave a service down, found from declared effects alone.
//!
//! Knows steps only as [`Subject`]s: an id, effects, and an order among them. Where data
//! could be lost without anybody noticing, a hazard is an error; otherwise a warning.
//! A step's `allow` silences one; that is the caller's business.

use std::collections::BTreeMap;

use crate::ids::StepId;
use crate::step::effect::{Access, Effect, Resource, Role};

/// Two steps that nothing orders touch the same thing, and at least one changes it.
pub const UNORDERED_ACCESS: &str = "lifeboat::unordered_access";
/// A database is dropped or overwritten, and no step before it proves a backup.
pub const UNPROVEN_BACKUP: &str = "lifeboat::unproven_backup";
/// A database is dropped or swapped while a declared client may use it.
pub const CLIENT_RUNNING: &str = "lifeboat::client_running";
/// A service is stopped and not started again on every path.
pub const NEVER_STARTED: &str = "lifeboat::never_started";
/// Data is destroyed or replaced, and nothing after it is verified.
pub const UNVERIFIED: &str = "lifeboat::unverified_destruction";
/// A secret reaches a process's arguments, where every user of the machine can read it.
pub const SECRET_IN_ARGUMENTS: &str = "lifeboat::secret_in_arguments";

/// Every hazard's code, for `allow`.
pub const CODES: [&str; 6] =
    [UNORDERED_ACCESS, UNPROVEN_BACKUP, CLIENT_RUNNING, NEVER_STARTED, UNVERIFIED, SECRET_IN_ARGUMENTS];

/// A step as the hazard checks see it.
#[derive(Debug)]
pub struct Subject<'a> {
    /// Its id.
    pub id: &'a StepId,
    /// Its effects.
    pub effects: Vec<Effect>,
    /// Whether it belongs to `finally`: it then runs after all that doesn't.
    pub finally: bool,
    /// Its `when`, as written: steps with the same one run together or not at all.
    pub when: Option<&'a str>,
}

/// The steps of a plan with their order.
pub struct Order<'a> {
    /// The steps.
    pub subjects: &'a [Subject<'a>],
    /// Positions in `subjects`, each after all that it waits for.
    pub topological: &'a [usize],
    /// Whether the second step waits, directly or not, for the first.
    pub before: &'a dyn Fn(usize, usize) -> bool,
}

impl std::fmt::Debug for Order<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Order of {} steps", self.subjects.len())
    }
}

/// One hazard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hazard {
    /// One of [`CODES`].
    pub code: &'static str,
    /// Whether data could be lost.
    pub error: bool,
    /// The step it belongs to, by position.
    pub step: usize,
    /// Another step that has part in it.
    pub other: Option<usize>,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub help: String,
}

/// Finds every hazard but secrets. `clients` names, for each PostgreSQL server, the
/// containers that use its databases.
pub fn find(order: &Order<'_>, clients: &BTreeMap<Resource, Vec<Resource>>) -> Vec<Hazard> {
    let mut found = unordered(order);
    for (index, subject) in order.subjects.iter().enumerate() {
        for effect in &subject.effects {
            if takes_data(effect) && !made_by_plan(order, index, &effect.resource) {
                found.extend(unproven_backup(order, index, effect));
                found.extend(running_clients(order, index, effect, clients));
                found.extend(unverified(order, index, effect));
            }
            if effect.role == Role::Stops {
                found.extend(never_started(order, index, effect));
            }
        }
    }
    found.sort_by_key(|hazard| (hazard.step, hazard.code));
    found.dedup();
    found
}

impl Order<'_> {
    fn runs_before(&self, first: usize, second: usize) -> bool {
        let (a, b) = (&self.subjects[first], &self.subjects[second]);
        if a.finally == b.finally { (self.before)(first, second) } else { b.finally }
    }

    /// Whether `helper` runs whenever `step` does, as far as `when` tells.
    fn runs_with(&self, helper: usize, step: usize) -> bool {
        let when = self.subjects[helper].when;
        when.is_none() || when == self.subjects[step].when
    }

    /// The positions of steps that have an effect like that.
    fn having(&self, like: impl Fn(&Effect) -> bool) -> impl Iterator<Item = usize> {
        self.subjects
            .iter()
            .enumerate()
            .filter(move |(_, subject)| subject.effects.iter().any(&like))
            .map(|(index, _)| index)
    }
}

/// Whether data goes away, or another database takes its place.
fn takes_data(effect: &Effect) -> bool {
    let data = is_data(&effect.resource) && !effect.resource.as_str().starts_with("object:");
    data && (effect.access == Access::Destroy || effect.role == Role::Displaces)
}

fn is_data(resource: &Resource) -> bool {
    ["postgres:", "object:", "redis:"].iter().any(|kind| resource.as_str().starts_with(kind))
}

/// Whether a step before created the same thing: what a plan made, it may unmake.
fn made_by_plan(order: &Order<'_>, step: usize, resource: &Resource) -> bool {
    order
        .having(|effect| effect.access == Access::Create && &effect.resource == resource)
        .any(|maker| maker != step && order.runs_before(maker, step))
}

fn unproven_backup(order: &Order<'_>, step: usize, effect: &Effect) -> Option<Hazard> {
    if effect.access != Access::Destroy {
        return None;
    }
    let proven = order
        .having(|effect| effect.role == Role::ProvesBackup)
        .any(|proof| order.runs_before(proof, step) && order.runs_with(proof, step));
    (!proven).then(|| Hazard {
        code: UNPROVEN_BACKUP,
        error: true,
        step,
        other: None,
        message: format!(
            "`{}` destroys {}, and no step before it proves a backup",
            order.subjects[step].id, effect.resource
        ),
        help:
            "put a `storage.find`, `storage.verify` or `postgres.backup` before it, and let it wait for that step"
                .to_owned(),
    })
}

fn running_clients(
    order: &Order<'_>,
    step: usize,
    effect: &Effect,
    clients: &BTreeMap<Resource, Vec<Resource>>,
) -> Vec<Hazard> {
    if effect.role != Role::Displaces {
        return Vec::new();
    }
    let using = clients.iter().filter(|(server, _)| server.overlaps(&effect.resource)).flat_map(|(_, using)| using);
    let running = using.filter(|client| {
        let with_role = |role: Role| order.having(move |effect| effect.role == role && &effect.resource == *client);
        let mut stops =
            with_role(Role::Stops).filter(|stop| order.runs_before(*stop, step) && order.runs_with(*stop, step));
        !stops.any(|stop| {
            !with_role(Role::Starts).any(|start| order.runs_before(stop, start) && order.runs_before(start, step))
        })
    });
    running
        .map(|client| Hazard {
            code: CLIENT_RUNNING,
            error: true,
            step,
            other: None,
            message: format!(
                "`{}` takes {} away while its client {client} may be running",
                order.subjects[step].id, effect.resource
            ),
            help: format!("stop {client} with `container.stop` in a step before it"),
        })
        .collect()
}

fn unverified(order: &Order<'_>, step: usize, effect: &Effect) -> Option<Hazard> {
    let verified = order
        .having(|effect| effect.role == Role::Verifies)
        .any(|check| order.runs_before(step, check) && order.runs_with(check, step));
    (!verified).then(|| Hazard {
        code: UNVERIFIED,
        error: true,
        step,
        other: None,
        message: format!(
            "`{}` replaces or destroys {}, and nothing is verified after it",
            order.subjects[step].id, effect.resource
        ),
        help: "let a check follow it: `postgres.verify_rows`, `postgres.verify`, `http.check`".to_owned(),
    })
}

fn never_started(order: &Order<'_>, step: usize, effect: &Effect) -> Option<Hazard> {
    let starts: Vec<usize> = order
        .having(|start| start.role == Role::Starts && start.resource == effect.resource)
        .filter(|start| order.runs_before(step, *start))
        .collect();
    if starts.iter().any(|start| order.runs_with(*start, step)) {
        return None;
    }
    let (other, why) = match starts.first() {
        Some(start) => {
            (Some(*start), format!("only `{}` starts it again, under a condition", order.subjects[*start].id))
        }
        None => (None, "no step after it starts it again".to_owned()),
    };
    Some(Hazard {
        code: NEVER_STARTED,
        error: false,
        step,
        other,
        message: format!("`{}` stops {}, and {why}", order.subjects[step].id, effect.resource),
        help: "start it in a step that waits for the work, or in `finally`".to_owned(),
    })
}

/// One touch of a resource by a step.
#[derive(Clone, Copy)]
struct Touch<'a> {
    step: usize,
    effect: &'a Effect,
}

/// Conflicting accesses that nothing orders. In topological order it is enough to compare
/// neighbours: what lies further apart is ordered through those between, or one of
/// them is reported.
fn unordered(order: &Order<'_>) -> Vec<Hazard> {
    let mut touches: BTreeMap<&Resource, Vec<Touch<'_>>> = BTreeMap::new();
    let (main, last): (Vec<usize>, Vec<usize>) =
        order.topological.iter().partition(|index| !order.subjects[**index].finally);
    for step in main.into_iter().chain(last) {
        for effect in &order.subjects[step].effects {
            if effect.is_contended() {
                touches.entry(&effect.resource).or_default().push(Touch { step, effect });
            }
        }
    }
    let mut found = Vec::new();
    for (resource, own) in &touches {
        neighbours(order, own, &mut found);
        for (other, theirs) in held_by(&touches, resource) {
            debug_assert!(other.overlaps(resource));
            for (first, second) in own.iter().flat_map(|one| theirs.iter().map(move |two| (*one, *two))) {
                found.extend(conflict(order, first, second));
            }
        }
    }
    found
}

/// Resources that `resource` holds: they sort right behind it, but for names in between
/// that merely begin alike.
fn held_by<'m, 'a>(
    touches: &'m BTreeMap<&'a Resource, Vec<Touch<'a>>>,
    resource: &'a Resource,
) -> impl Iterator<Item = (&'a Resource, &'m Vec<Touch<'a>>)> {
    let prefix = resource.as_str().trim_end_matches('*');
    touches
        .range::<&'a Resource, _>((std::ops::Bound::Excluded(resource), std::ops::Bound::Unbounded))
        .map(|(other, theirs)| (*other, theirs))
        .take_while(move |(other, _)| other.as_str().starts_with(prefix))
        .filter(move |(other, _)| other.overlaps(resource))
}

/// Each write must be ordered with the accesses on either side up to the next write.
fn neighbours(order: &Order<'_>, touches: &[Touch<'_>], found: &mut Vec<Hazard>) {
    let mut last_write: Option<Touch<'_>> = None;
    let mut reads_since: Vec<Touch<'_>> = Vec::new();
    for touch in touches {
        if touch.effect.access.writes() {
            if reads_since.is_empty() {
                found.extend(last_write.and_then(|write| conflict(order, write, *touch)));
            }
            found.extend(reads_since.drain(..).filter_map(|read| conflict(order, read, *touch)));
            last_write = Some(*touch);
        } else {
            found.extend(last_write.and_then(|write| conflict(order, write, *touch)));
            reads_since.push(*touch);
        }
    }
}

fn conflict(order: &Order<'_>, first: Touch<'_>, second: Touch<'_>) -> Option<Hazard> {
    let (a, b) = (first.step, second.step);
    let writes = first.effect.access.writes() || second.effect.access.writes();
    if a == b || !writes || order.runs_before(a, b) || order.runs_before(b, a) {
        return None;
    }
    let (a, b) = (a.min(b), a.max(b));
    let (reads, changes) = (&order.subjects[a].id, &order.subjects[b].id);
    let resource = if first.effect.resource.as_str().len() >= second.effect.resource.as_str().len() {
        &first.effect.resource
    } else {
        &second.effect.resource
    };
    Some(Hazard {
        code: UNORDERED_ACCESS,
        error: is_data(resource),
        step: b,
        other: Some(a),
        message: format!(
            "`{reads}` and `{changes}` touch {resource} in no certain order, and one of them changes it"
        ),
        help: format!("let one wait for the other: `needs: [{reads}]` on `{changes}`"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Id, effects, needs, finally, when.
    type Row = (StepId, Vec<Effect>, Vec<usize>, bool, Option<&'static str>);

    struct Plan(Vec<Row>);

    impl Plan {
        fn step(mut self, id: &str, needs: &[usize], effects: &[Effect]) -> Self {
            self.0.push((id.into(), effects.to_vec(), needs.to_vec(), false, None));
            self
        }

        fn when(mut self, when: &'static str) -> Self {
            self.0.last_mut().unwrap().4 = Some(when);
            self
        }

        fn finally(mut self) -> Self {
            self.0.last_mut().unwrap().3 = true;
            self
        }

        fn hazards(&self) -> Vec<(&'static str, bool, String)> {
            let subjects: Vec<_> = self
                .0
                .iter()
                .map(|(id, effects, _, finally, when)| Subject {
                    id,
                    effects: effects.clone(),
                    finally: *finally,
                    when: *when,
                })
                .collect();
            let topological: Vec<usize> = (0..subjects.len()).collect();
            let before = |first: usize, second: usize| self.reaches(second, first);
            let order = Order { subjects: &subjects, topological: &topological, before: &before };
            let client = Resource::container("docker", "auth");
            let clients = BTreeMap::from([(Resource::server("db"), vec![client])]);
            find(&order, &clients)
                .into_iter()
                .map(|hazard| (hazard.code, hazard.error, subjects[hazard.step].id.to_string()))
                .collect()
        }

        fn reaches(&self, from: usize, to: usize) -> bool {
            self.0[from].2.iter().any(|next| *next == to || self.reaches(*next, to))
        }
    }

    fn live() -> Resource {
        Resource::database("db", "live")
    }

    fn drop_live() -> Effect {
        Effect::new(Access::Destroy, live()).role(Role::Displaces)
    }

    fn stop() -> Effect {
        Effect::new(Access::Change, Resource::container("docker", "auth")).role(Role::Stops)
    }

    fn start() -> Effect {
        Effect::new(Access::Change, Resource::container("docker", "auth")).role(Role::Starts)
    }

    fn proof() -> Effect {
        Effect::read(Resource::object("backups", "x")).role(Role::ProvesBackup)
    }

    fn verify() -> Effect {
        Effect::read(Resource::other("http", "auth")).role(Role::Verifies)
    }

    #[test]
    fn a_drop_done_right_has_no_hazard() {
        let plan = Plan(vec![])
            .step("find", &[], &[proof()])
            .step("stop", &[0], &[stop()])
            .step("drop", &[1], &[drop_live()])
            .step("start", &[2], &[start()])
            .step("healthy", &[3], &[verify()]);
        assert_eq!(plan.hazards(), []);
    }

    #[test]
    fn a_bare_drop_has_them_all() {
        let plan = Plan(vec![]).step("drop", &[], &[drop_live()]);
        assert_eq!(
            plan.hazards(),
            [
                (CLIENT_RUNNING, true, "drop".to_owned()),
                (UNPROVEN_BACKUP, true, "drop".to_owned()),
                (UNVERIFIED, true, "drop".to_owned())
            ]
        );
    }

    #[test]
    fn a_proof_that_may_be_skipped_is_none() {
        let plan = Plan(vec![])
            .step("find", &[], &[proof()])
            .when("inputs.check")
            .step("stop", &[0], &[stop()])
            .step("drop", &[1], &[drop_live()])
            .step("start", &[2], &[start(), verify()]);
        assert_eq!(plan.hazards(), [(UNPROVEN_BACKUP, true, "drop".to_owned())]);
    }

    #[test]
    fn what_the_plan_made_it_may_drop() {
        let plan = Plan(vec![]).step("create", &[], &[Effect::new(Access::Create, live())]).step(
            "drop",
            &[0],
            &[drop_live()],
        );
        assert_eq!(plan.hazards(), []);
    }

    #[test]
    fn a_service_started_too_early_or_never() {
        let plan = Plan(vec![])
            .step("find", &[], &[proof()])
            .step("stop", &[0], &[stop()])
            .step("start", &[1], &[start()])
            .step("drop", &[2], &[drop_live()])
            .step("verify", &[3], &[verify()]);
        assert_eq!(plan.hazards(), [(CLIENT_RUNNING, true, "drop".to_owned())]);
        let never = Plan(vec![]).step("stop", &[], &[stop()]);
        assert_eq!(never.hazards(), [(NEVER_STARTED, false, "stop".to_owned())]);
        let sometimes = Plan(vec![]).step("stop", &[], &[stop()]).step("start", &[0], &[start()]).when("inputs.x");
        assert_eq!(sometimes.hazards(), [(NEVER_STARTED, false, "stop".to_owned())]);
        let at_last = Plan(vec![]).step("stop", &[], &[stop()]).step("start", &[], &[start()]).finally();
        assert_eq!(at_last.hazards(), []);
    }

    #[test]
    fn unordered_steps_on_one_thing() {
        let write = || [Effect::new(Access::Change, live())];
        let read_table = [Effect::read(Resource::table("db", "live", "auth.users"))];
        let plan = Plan(vec![]).step("a", &[], &write()).step("b", &[], &write()).step("c", &[0, 1], &read_table);
        assert_eq!(plan.hazards(), [(UNORDERED_ACCESS, true, "b".to_owned())]);
        let plan = Plan(vec![]).step("a", &[], &write()).step("c", &[], &read_table);
        assert_eq!(plan.hazards(), [(UNORDERED_ACCESS, true, "c".to_owned())]);
        let both_read = Plan(vec![]).step("a", &[], &read_table).step("b", &[], &read_table);
        assert_eq!(both_read.hazards(), []);
        let reader_between =
            Plan(vec![]).step("a", &[], &write()).step("r", &[0], &read_table[..]).step("b", &[0], &write());
        assert_eq!(reader_between.hazards(), [(UNORDERED_ACCESS, true, "b".to_owned())]);
        let namesake = Plan(vec![]).step("a", &[], &write()).step(
            "b",
            &[],
            &[Effect::new(Access::Change, Resource::database("db", "live_old"))],
        );
        assert_eq!(namesake.hazards(), []);
    }
}
