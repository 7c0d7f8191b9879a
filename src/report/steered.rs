//! What operators ordered, for people.

use std::fmt::Write as _;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::evidence::Evidence;
use super::markdown::escape;
use super::text::{Paint, moment, plural};
use crate::record::event::{Actor, Event, Record};
use crate::record::steering::{Adjustment, Limits, Order, OrderKind, Steered, StepChange};

/// What an operator ordered at one time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Given {
    /// When.
    #[schemars(with = "String")]
    pub at: Timestamp,
    /// Who, and where.
    pub by: Actor,
    /// Why, in their words.
    pub because: String,
    /// What of which step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub orders: Vec<Order>,
    /// The plan that took over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<TakenOver>,
    /// Other limits for a step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adjusted: Option<StepLimits>,
}

/// An edited plan that took over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TakenOver {
    /// SHA-256 of the plan with its sub-plans, in hex.
    pub plan_digest: String,
    /// That of the plan before.
    pub previous_digest: String,
    /// Where the plan's file was.
    pub plan_file: String,
    /// What differs.
    pub changes: Vec<StepChange>,
}

/// Other limits for a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StepLimits {
    /// The step.
    pub step: String,
    /// What is other than the plan says.
    pub limits: Limits,
}

impl Given {
    /// What a record orders, if it does.
    pub fn of(record: &Record) -> Option<Self> {
        match &record.event {
            Event::Steered(steered) => Some(Self {
                at: record.at,
                by: steered.by.clone(),
                because: steered.because.clone(),
                orders: steered.orders.clone(),
                plan: steered.plan.as_ref().map(|plan| TakenOver {
                    plan_digest: plan.plan_digest.clone(),
                    previous_digest: plan.previous_digest.clone(),
                    plan_file: plan.plan_file.clone(),
                    changes: plan.changes.clone(),
                }),
                adjusted: None,
            }),
            Event::StepAdjusted(adjustment) => Some(Self {
                at: record.at,
                by: adjustment.by.clone(),
                because: adjustment.because.clone(),
                orders: Vec::new(),
                plan: None,
                adjusted: Some(StepLimits { step: adjustment.step.clone(), limits: adjustment.limits }),
            }),
            _ => None,
        }
    }
}

/// The orders of a run, as a list.
pub fn markdown(evidence: &Evidence) -> String {
    let mut text = String::new();
    for given in &evidence.steered {
        let _ = writeln!(text, "- {} by {}: {}", moment(given.at), escape(&given.by.who()), escape(&given.because));
        for order in &given.orders {
            let along = order.along_with.as_ref().map(|step| format!(", as it needs `{step}`")).unwrap_or_default();
            let found = order.found.as_ref().map(|found| format!(" ({})", escape(found))).unwrap_or_default();
            let _ = writeln!(text, "  - `{}` {}{along}{found}", order.step, done(order));
        }
        if let Some(plan) = &given.plan {
            let _ = writeln!(
                text,
                "  - an edited plan took over (`{}`)",
                plan.plan_digest.get(..12).unwrap_or_default()
            );
            for change in &plan.changes {
                let note = change.note.as_ref().map(|note| format!(": {}", escape(note))).unwrap_or_default();
                let _ = writeln!(text, "    - `{}` {}{note}", change.step, change.change.as_str());
            }
        }
        if let Some(adjusted) = &given.adjusted {
            let _ = writeln!(text, "  - `{}`: {}", adjusted.step, adjusted.limits.said());
        }
    }
    let gone: Vec<_> =
        evidence.gone.iter().map(|step| format!("`{}` ({})", step.id, step.state.as_str())).collect();
    if !gone.is_empty() {
        let _ = writeln!(text, "- No longer in the plan: {}", gone.join(", "));
    }
    text
}

/// One line of other limits.
pub fn adjusted(adjustment: &Adjustment, paint: Paint) -> String {
    let Adjustment { step, by, because, limits } = adjustment;
    format!("{} {step}: from now on {}, by {}: {because}", paint.warn("!"), limits.said(), by.who())
}

/// One line.
pub fn line(steered: &Steered, paint: Paint) -> String {
    let mut said: Vec<String> = Vec::new();
    if let Some(plan) = &steered.plan {
        said.push(format!("an edited plan takes over ({})", plural(plan.changes.len(), "change")));
    }
    let named = steered.orders.iter().filter(|order| order.along_with.is_none());
    said.extend(named.map(|order| format!("{} {}", order.step, done(order))));
    let along = steered.orders.iter().filter(|order| order.along_with.is_some()).count();
    if along > 0 {
        said.push(format!("{} along with it", plural(along, "step")));
    }
    format!("{} {}, by {}: {}", paint.warn("!"), said.join(", "), steered.by.who(), steered.because)
}

/// What was done with a step: `marked done, unverified`.
pub fn done(order: &Order) -> String {
    let unverified = if order.unverified { ", unverified" } else { "" };
    let again = if order.order == OrderKind::Rerun { "is " } else { "" };
    format!("{again}{}{unverified}", order.order.done())
}
