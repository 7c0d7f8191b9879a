//! How long things take, told from earlier runs: estimate, forecast, critical path.
//!
//! A duration counts for a step of the same definition only. What was measured against
//! the objectives is in [`crate::record::measure`], where reports find it as well.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;

use super::Context;
use super::preview::StepPreview;
use crate::ids::RunId;
use crate::plan::Plan;
use crate::record::event::Outcome;
use crate::record::sink::Forecast;
use crate::record::state::{Phase, RunState, StepState};
use crate::record::store::{RunFolder, Store};
use crate::step::Action;

/// How many earlier runs of a plan are asked.
const RUNS_ASKED: usize = 10;

/// What steps took in earlier runs, by definition: the median.
#[derive(Clone, Debug, Default)]
pub struct Durations(HashMap<String, Duration>);

impl Durations {
    /// From the last runs of a plan, but for `except`. A run that can't be read tells nothing.
    pub fn of(store: &Store, plan: &str, except: Option<&RunId>) -> Self {
        let runs = store.runs().unwrap_or_default();
        let earlier = runs
            .into_iter()
            .filter(|run| Some(&run.id) != except && run.plan_name().is_some_and(|name| name == plan));
        let states = earlier.take(RUNS_ASKED).filter_map(|run| run.state().ok());
        Self::from_states(states)
    }

    fn from_states(states: impl Iterator<Item = RunState>) -> Self {
        let mut taken: HashMap<String, Vec<Duration>> = HashMap::new();
        for state in states {
            for step in &state.steps {
                if let (Some(Outcome::Succeeded { .. }), Some(took)) = (step.outcome(), step.took()) {
                    // People are waited for in the run that comes, too, but not as long as in the last.
                    let took = took.saturating_sub(step.waited);
                    taken.entry(step.header.definition.clone()).or_default().push(took);
                }
            }
        }
        let median = |mut times: Vec<Duration>| {
            times.sort_unstable();
            times[times.len() / 2]
        };
        Self(taken.into_iter().map(|(definition, times)| (definition, median(times))).collect())
    }

    /// How long a run should take, in seconds; nothing unless every step that acts is known.
    pub fn estimate(&self, plan: &Plan, previews: &[StepPreview]) -> Option<f64> {
        let mut ends: HashMap<&str, Duration> = HashMap::new();
        let mut main = Duration::ZERO;
        let mut last = Duration::ZERO;
        for (step, preview) in plan.steps.iter().zip(previews) {
            let idle = preview.action == Action::Skip.as_str();
            let takes = if idle { Duration::ZERO } else { *self.0.get(&step.definition)? };
            let needs = step.needs.iter().filter_map(|need| ends.get(need.as_str())).max().copied();
            let from = needs.unwrap_or_default().max(if step.finally { main } else { Duration::ZERO });
            ends.insert(step.id.as_str(), from + takes);
            last = last.max(from + takes);
            if !step.finally {
                main = main.max(from + takes);
            }
        }
        // To the millisecond: digits beyond tell nothing.
        (!plan.steps.is_empty()).then(|| (last.as_secs_f64() * 1000.0).round() / 1000.0)
    }

    /// How long the rest of a run will take; nothing while no earlier run tells of any step of it.
    pub fn forecast(&self, state: &RunState, now: Timestamp) -> Option<Forecast> {
        if self.0.is_empty() {
            return None;
        }
        let mut ends: HashMap<&str, (Duration, Option<usize>)> = HashMap::new();
        let (mut unknown, mut known) = (0, false);
        let mut last: Option<usize> = None;
        for (at, step) in state.steps.iter().enumerate() {
            let rest = self.rest(step, now);
            known |= rest.is_some() && !matches!(step.phase, Phase::Finished(_));
            unknown += usize::from(rest.is_none());
            let rest = rest.unwrap_or_default();
            let before = step
                .header
                .needs
                .iter()
                .filter_map(|need| state.position(need).zip(ends.get(need.as_str())))
                .max_by_key(|(_, (end, _))| *end);
            let (from, through) = before.map_or((Duration::ZERO, None), |(at, (end, _))| (*end, Some(at)));
            ends.insert(&step.header.id, (from + rest, through));
            if last.is_none_or(|last| ends[state.steps[last].header.id.as_str()].0 < from + rest) {
                last = Some(at);
            }
        }
        let mut path = Vec::new();
        let remaining = last.map_or(Duration::ZERO, |last| ends[state.steps[last].header.id.as_str()].0);
        while let Some(at) = last {
            let step = &state.steps[at];
            if !matches!(step.phase, Phase::Finished(_)) {
                path.push(step.header.id.clone());
            }
            last = ends[step.header.id.as_str()].1;
        }
        path.reverse();
        known.then_some(Forecast { remaining, critical_path: path, unknown })
    }

    fn rest(&self, step: &StepState, now: Timestamp) -> Option<Duration> {
        if matches!(step.phase, Phase::Finished(_)) {
            return Some(Duration::ZERO);
        }
        let takes = *self.0.get(&step.header.definition)?;
        let gone = step.attempt_at.filter(|_| step.phase == Phase::Running).map(|at| now.duration_since(at));
        Some(takes.saturating_sub(gone.and_then(|gone| gone.try_into().ok()).unwrap_or_default()))
    }
}

/// What earlier runs took, asked beside the run so that it need not wait for that.
#[derive(Debug)]
pub(super) struct Earlier {
    answer: Arc<OnceLock<Durations>>,
}

impl Earlier {
    /// Starts asking.
    pub(super) fn ask(cx: &Context, plan: &Plan, run: &RunFolder) -> Self {
        let answer = Arc::new(OnceLock::new());
        let (there, store, plan, run) = (answer.clone(), cx.store.clone(), plan.name.clone(), run.id.clone());
        tokio::task::spawn_blocking(move || there.set(Durations::of(&store, &plan, Some(&run))));
        Self { answer }
    }

    /// The answer, once it is there.
    pub(super) fn get(&self) -> Option<&Durations> {
        self.answer.get()
    }
}

/// What to say when the recovery time objective will be missed.
pub fn warning(state: &RunState, forecast: &Forecast, now: Timestamp) -> Option<String> {
    let rto = Duration::try_from_secs_f64(state.header.rto?).ok()?;
    let passed: Duration = now.duration_since(state.started_at).try_into().unwrap_or_default();
    let foretold = passed.saturating_sub(state.waited) + forecast.remaining;
    let text = |duration: Duration| crate::units::Duration::seconds(duration.as_secs());
    (foretold > rto).then(|| {
        format!(
            "by earlier runs this one will take {}, longer than its objective of {}; what decides it: {}",
            text(foretold),
            text(rto),
            forecast.critical_path.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tests::{needing, plan, records, step};
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    #[test]
    fn the_longest_way_decides() {
        let plan = plan(vec![
            step("a", json!({})),
            needing("short", json!({}), &["a"]),
            needing("long", json!({}), &["a"]),
            needing("end", json!({}), &["short", "long"]),
        ]);
        let took =
            |id: &str, seconds| (plan.step(&id.into()).unwrap().definition.clone(), Duration::from_secs(seconds));
        let durations = Durations([took("a", 10), took("short", 5), took("long", 60), took("end", 1)].into());
        let (state, _) = records(&plan, at(0), &[]);
        let forecast = durations.forecast(&state, at(0)).unwrap();
        assert_eq!(forecast.remaining, Duration::from_secs(71));
        assert_eq!(forecast.critical_path, ["a", "long", "end"]);
        let started = [("a", at(0))];
        let (state, _) = records(&plan, at(0), &started);
        let forecast = durations.forecast(&state, at(4)).unwrap();
        assert_eq!(forecast.remaining, Duration::from_secs(67));
    }

    #[test]
    fn a_missed_objective_is_foretold() {
        let mut plan = plan(vec![step("a", json!({}))]);
        let definition = plan.steps[0].definition.clone();
        std::sync::Arc::get_mut(&mut plan).unwrap().objectives.rto = Some(crate::units::Duration::seconds(30));
        let durations = Durations([(definition, Duration::from_secs(20))].into());
        let (state, _) = records(&plan, at(0), &[]);
        let forecast = durations.forecast(&state, at(5)).unwrap();
        assert_eq!(warning(&state, &forecast, at(5)), None);
        let late = warning(&state, &forecast, at(15)).unwrap();
        assert!(late.contains("35s") && late.contains("30s"), "{late}");
    }
}
