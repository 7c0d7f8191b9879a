//! What a run has made of the world so far, told from its journal alone: what is stopped,
//! dropped, restored or swapped, by which step, and whether there is a way back.

use std::fmt::Write as _;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::text::{Paint, Table, moment, wrap};
use crate::record::event::{Actor, EffectRecord, Outcome, UndoAction, UndoDecision};
use crate::record::state::{Phase, RunState, StepState};

/// What a run has made of the world so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct World {
    /// Everything it touched, in the order of the last touch.
    pub things: Vec<Thing>,
    /// The first thing that was destroyed or displaced and that no `undo` brings back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_return: Option<NoReturn>,
}

/// Something that a run touched, and how it stands since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Thing {
    /// The resource, as effects name it.
    pub resource: String,
    /// How it stands, in a word or two: `stopped`, `created`, `destroyed`.
    pub state: String,
    /// The step that left it so.
    pub step: String,
    /// What that step said of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<String>,
    /// Whether that is sure: a step that was cut off or failed may not have come to it.
    pub certain: bool,
    /// Whether `lifeboat undo` takes that step back.
    pub undoable: bool,
}

/// The point of no return.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NoReturn {
    /// The step that went past it.
    pub step: String,
    /// What is gone.
    pub resource: String,
    /// Whether that is sure.
    pub certain: bool,
}

/// An undo of a run, as reports tell it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UndoEvidence {
    /// When it began.
    #[schemars(with = "String")]
    pub at: jiff::Timestamp,
    /// By whom.
    pub by: Actor,
    /// Why, if that was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
    /// What is done about each step of the run, and why.
    pub decisions: Vec<UndoDecision>,
}

impl UndoEvidence {
    /// Of a run's state, once its undo has begun.
    pub fn of(state: &RunState) -> Option<Self> {
        let undo = state.undo.as_ref()?;
        Some(Self {
            at: undo.since,
            by: undo.by.clone(),
            because: undo.because.clone(),
            decisions: undo.decisions.iter().cloned().chain(state.left_behind()).collect(),
        })
    }
}

impl World {
    /// The world as a run has left it so far.
    pub fn of(state: &RunState) -> Self {
        let mut world = Self::default();
        let mut created: Vec<&str> = Vec::new();
        let past = state.past.iter().chain(&state.gone);
        let steps = past.map(|step| (step, false)).chain(state.steps.iter().map(|step| (step, true)));
        let mut steps: Vec<(&StepState, bool)> = steps.filter(|(step, _)| step.acted().is_some()).collect();
        // What ended later was done later; what is under way, last of all. The plan's order among equals.
        steps.sort_by_key(|(step, now)| (*now && step.finished_at.is_none(), step.finished_at.or(step.attempt_at)));
        for (step, now) in steps {
            let certain = step.acted().unwrap_or_default();
            // An undo takes back what the present plan's steps did, and what they did before they were sent back.
            let has_undo = step.header.undo.is_some() && (now || state.defines(step));
            let back = has_undo && !is_left(state, &step.header.id);
            for effect in step.header.effects.iter().filter(|effect| effect.access != "read") {
                let gone = effect.access == "destroy" || effect.displaces;
                // What the run had made itself is no loss.
                let lost = gone && !created.contains(&effect.resource.as_str());
                if lost && world.no_return.is_none() && step.header.undoes.is_none() {
                    world.no_return = (!back).then(|| NoReturn {
                        step: step.header.id.clone(),
                        resource: effect.resource.clone(),
                        certain,
                    });
                }
                if effect.access == "create" {
                    created.push(&effect.resource);
                }
                let below = format!("{}/", effect.resource);
                world.things.retain(|thing| {
                    thing.resource != effect.resource && !(gone && thing.resource.starts_with(&below))
                });
                world.things.push(Thing {
                    resource: effect.resource.clone(),
                    state: cut_off(step, &effect.resource).unwrap_or_else(|| word(effect)).to_owned(),
                    step: step.header.id.clone(),
                    said: said(step),
                    certain,
                    undoable: has_undo && state.undo.is_none(),
                });
            }
        }
        world
    }

    /// As a block of a page; empty when nothing was touched.
    pub fn render(&self, paint: Paint) -> String {
        if self.things.is_empty() {
            return String::new();
        }
        let mut table = Table::new(2);
        for thing in &self.things {
            let (mark, state) =
                if thing.certain { (" ", thing.state.clone()) } else { ("?", format!("may be {}", thing.state)) };
            let said = thing.said.as_ref().map(|said| format!(": {said}")).unwrap_or_default();
            let way = if thing.undoable { " (can be undone)" } else { "" };
            table.row([
                paint.warn(mark),
                name(&thing.resource),
                if thing.certain { state } else { paint.warn(&state) },
                format!("by {}{said}{}", thing.step, paint.dim(way)),
            ]);
        }
        let mut text = format!("\n{}\n{}", paint.strong("What it left"), table.render(paint));
        if let Some(point) = &self.no_return {
            let passed = if point.certain { "is passed" } else { "may be passed" };
            let line = format!(
                "the point of no return {passed}: nothing brings back {}, which step `{}` took",
                name(&point.resource),
                point.step
            );
            let _ = writeln!(text, "  {} {}", paint.bad("!"), wrap(&line, paint.width, 4));
        }
        text
    }
}

/// Whether the run's undo leaves this step as it is.
fn is_left(state: &RunState, id: &str) -> bool {
    let Some(undo) = &state.undo else { return false };
    let undoes = |step: &&StepState| step.header.undoes.as_deref() == Some(id);
    let skipped = |step: &StepState| matches!(step.outcome(), Some(Outcome::Skipped { .. }));
    undo.decisions.iter().any(|decision| decision.step == id && !decision.action.acts())
        || state.steps.iter().find(undoes).is_some_and(skipped)
}

/// What a step said of what it did, in short.
fn said(step: &StepState) -> Option<String> {
    match &step.phase {
        Phase::Finished(Outcome::Succeeded { summary, .. }) => summary.clone(),
        Phase::Finished(Outcome::Failed { .. }) => Some("failed".to_owned()),
        Phase::Finished(Outcome::Skipped { .. }) => Some("begun, and then skipped".to_owned()),
        Phase::Finished(_) => Some("was stopped in the middle".to_owned()),
        Phase::Retrying { .. } => Some("tries again".to_owned()),
        _ => Some("under way, or cut off".to_owned()),
    }
}

/// How something stands in the middle of an attempt that nobody heard of again, as it noted before.
fn cut_off<'a>(step: &'a StepState, resource: &str) -> Option<&'a str> {
    let (attempt, note) = step.notes.iter().rev().find(|(_, note)| note.get("leaves").is_some())?;
    if *attempt != step.attempt || !step.is_open_ended() {
        return None;
    }
    note["leaves"][resource].as_str()
}

/// How something stands after an effect.
fn word(effect: &EffectRecord) -> &str {
    match (&effect.leaves, effect.access.as_str()) {
        (Some(leaves), _) => leaves,
        (None, "create") => "created",
        (None, "change") => "changed",
        (None, "destroy") => "destroyed",
        _ => "touched, and nobody can tell how",
    }
}

/// A resource for people: `database manacore_auth on db`.
pub fn name(resource: &str) -> String {
    let Some((kind, rest)) = resource.split_once(':') else { return resource.to_owned() };
    if kind != "postgres" {
        return format!("{kind} {rest}");
    }
    let mut parts = rest.splitn(3, '/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(target), Some(database), Some(table)) => format!("table {table} in {database} on {target}"),
        (Some(target), Some(database), None) => format!("database {database} on {target}"),
        _ => format!("server {rest}"),
    }
}

/// What was done about the steps of a run that is taken back, as a block of a page.
pub fn undo(evidence: Option<&UndoEvidence>, paint: Paint) -> String {
    let Some(undo) = evidence else { return String::new() };
    let because = undo.because.as_ref().map(|because| format!(": {because}")).unwrap_or_default();
    let line = format!("since {} by {}@{}{because}", moment(undo.at), undo.by.user, undo.by.host);
    let mut text = format!("\n{}\n  {}\n", paint.strong("Taken back"), wrap(&line, paint.width, 2));
    let mut table = Table::new(2);
    for decision in undo.decisions.iter().filter(|decision| decision.action == UndoAction::Stays) {
        table.row([paint.warn("!"), decision.step.clone(), format!("stays as it is: {}", decision.reason)]);
    }
    text.push_str(&table.render(paint));
    text
}

#[cfg(test)]
#[path = "world_tests.rs"]
mod tests;
