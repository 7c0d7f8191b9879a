//! What a run took against its objectives: recovery time and recovery point, from the state alone.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::state::{RunState, StepState};
use super::step_state::span;

/// A run's figures against its objectives.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Start to the success of the last step that proves health; `None` while health is not proven.
    pub recovery_time: Option<Duration>,
    /// How long people were waited for in that time, apart from it.
    pub waited: Duration,
    /// How old the restored data was when the run started; `None` when nothing tells.
    pub recovery_point: Option<Duration>,
    /// The instant that the restored data is of.
    pub taken_at: Option<Timestamp>,
    /// The recovery time objective, and whether it was met; not met while health is not proven.
    pub rto: Option<(Duration, bool)>,
    /// The recovery point objective, and whether it was met; not met while nothing tells.
    pub rpo: Option<(Duration, bool)>,
}

/// Measures a run as far as it is.
pub fn measure(state: &RunState) -> Measured {
    let unproven = state.steps.iter().any(|step| step.header.proves_health && !step.is_done());
    let healthy = state.healthy.filter(|_| !unproven);
    let waited = healthy.map_or(state.waited, |(_, waited)| waited);
    let recovery_time = healthy.map(|(at, waited)| span(state.started_at, at).saturating_sub(waited));
    let taken_at = taken_at(state);
    let recovery_point = taken_at.map(|taken_at| span(taken_at, state.started_at));
    let against = |objective: Option<f64>, measured: Option<Duration>| {
        let objective = Duration::try_from_secs_f64(objective?).ok()?;
        Some((objective, measured.is_some_and(|measured| measured <= objective)))
    };
    Measured {
        recovery_time,
        waited,
        recovery_point,
        taken_at,
        rto: against(state.header.rto, recovery_time),
        rpo: against(state.header.rpo, recovery_point),
    }
}

/// The instant of the data that was restored: what a restore says; else what the backup it
/// was found as says. Of several restores the oldest data counts.
fn taken_at(state: &RunState) -> Option<Timestamp> {
    let restored = |step: &&StepState| step.header.step_type == "postgres.restore";
    let found = |step: &&StepState| step.header.step_type == "storage.find";
    // Without a restore nothing was taken back in time.
    state.steps.iter().find(restored)?;
    let oldest = |steps: &mut dyn Iterator<Item = &StepState>| steps.filter_map(stamp).min();
    oldest(&mut state.steps.iter().filter(restored)).or_else(|| oldest(&mut state.steps.iter().filter(found)))
}

fn stamp(step: &StepState) -> Option<Timestamp> {
    step.outputs()?.get("taken_at").and_then(Value::as_str)?.parse().ok()
}
