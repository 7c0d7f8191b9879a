//! The evidence of a run as a Markdown page: to attach to an incident, to read in a year.

use std::fmt::Write as _;

use super::evidence::{Evidence, Objective, StepEvidence, StepStatus};
use super::text::{moment, plural, span};
use crate::record::event::{DecisionAction, RunStatus, UndoAction};

/// The whole page.
pub fn markdown(evidence: &Evidence) -> String {
    let mut text = header(evidence);
    text.push_str(&objectives(evidence));
    text.push_str(&steps(evidence));
    text.push_str(&undone(evidence));
    text.push_str(&world(evidence));
    text.push_str(&errors(evidence));
    text.push_str(&people(evidence));
    text.push_str(&section("Steered", super::steered::markdown(evidence)));
    text.push_str(&resumes(evidence));
    text.push_str(&notices(evidence));
    let _ = write!(
        text,
        "\n## Journal\n\n{} records; the head of the chain is `{}`. `lifeboat audit {}` checks it.\n",
        evidence.journal.records, evidence.journal.head, evidence.run
    );
    text
}

fn header(evidence: &Evidence) -> String {
    let mut text = format!("# {}\n\n", escape(evidence.title.as_deref().unwrap_or(&evidence.plan)));
    let status = match evidence.status {
        RunStatus::Running => "running, or killed while it ran",
        status => status.as_str(),
    };
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(text, "| {name} | {value} |");
    };
    row("status", &format!("**{status}**"));
    row("---", "---");
    row("run", &format!("`{}`", evidence.run));
    row("plan", &format!("`{}` (`{}`)", evidence.plan, short(&evidence.plan_digest)));
    if let Some(environment) = &evidence.environment {
        let digest = evidence.environment_digest.as_deref().map(short).unwrap_or_default();
        row("environment", &format!("`{environment}` (`{digest}`)"));
    }
    row("started", &moment(evidence.started_at));
    row("last event", &moment(evidence.last_at));
    let waited = if evidence.waited >= 1.0 {
        format!(", {} of it waiting for people", span(evidence.waited))
    } else {
        String::new()
    };
    row("took", &format!("{}{waited}", span(evidence.seconds)));
    row("by", &escape(&format!("{}@{}", evidence.by.user, evidence.by.host)));
    row("Lifeboat", &evidence.version);
    for (name, value) in &evidence.inputs {
        row(
            &format!("input `{name}`"),
            &format!("`{}`", cell(&value.as_str().map_or_else(|| value.to_string(), str::to_owned))),
        );
    }
    if let Some(reason) = &evidence.reason {
        row("stopped", &cell(reason));
    }
    text
}

fn objectives(evidence: &Evidence) -> String {
    let recovery = &evidence.recovery;
    if recovery.time.or(recovery.point).is_none() && recovery.rto.or(recovery.rpo).is_none() {
        return String::new();
    }
    let mut text = "\n## Objectives\n\n| | measured | objective | |\n| --- | --- | --- | --- |\n".to_owned();
    let mut row = |name: &str, measured: Option<f64>, objective: Option<Objective>| {
        if measured.is_none() && objective.is_none() {
            return;
        }
        let verdict = match (measured, objective) {
            (_, None) => "",
            (Some(_), Some(objective)) if objective.met => "**met**",
            (Some(_), Some(_)) => "**missed**",
            (None, Some(_)) => "**not shown**",
        };
        let show = |seconds: Option<f64>| seconds.map_or_else(|| "–".to_owned(), span);
        let _ = writeln!(
            text,
            "| {name} | {} | {} | {verdict} |",
            show(measured),
            show(objective.map(|objective| objective.seconds))
        );
    };
    row("recovery time", recovery.time, recovery.rto);
    row("recovery point", recovery.point, recovery.rpo);
    if recovery.waited >= 1.0 {
        let _ = writeln!(
            text,
            "\nRecovery time does not count {} in which only people were waited for.",
            span(recovery.waited)
        );
    }
    if let Some(at) = recovery.data_of {
        let _ = writeln!(text, "\nThe restored data is of {}.", moment(at));
    }
    text
}

fn steps(evidence: &Evidence) -> String {
    let mut text = "\n## Steps\n\n| | step | type | started | took | attempts | |\n| --- | --- | --- | --- | --- | --- | --- |\n".to_owned();
    for step in &evidence.steps {
        let said = step.summary.as_ref().or(step.reason.as_ref()).map(|said| cell(said)).unwrap_or_default();
        let _ = writeln!(
            text,
            "| {} {} | `{}` | `{}` | {} | {} | {} | {said} |",
            step.state.symbol(),
            step.state.as_str(),
            step.id,
            step.step_type,
            step.started_at.map(|at| moment(at)[11..].to_owned()).unwrap_or_default(),
            step.seconds.map(span).unwrap_or_default(),
            step.attempts,
        );
    }
    text
}

/// What was taken back, and what wasn't.
fn undone(evidence: &Evidence) -> String {
    let Some(undo) = &evidence.undo else { return String::new() };
    let because = undo.because.as_ref().map(|because| format!(": {}", escape(because))).unwrap_or_default();
    let by = escape(&format!("{}@{}", undo.by.user, undo.by.host));
    let mut text = format!("Begun {} by {by}{because}.\n\n", moment(undo.at));
    for decision in undo.decisions.iter().filter(|decision| decision.action != UndoAction::Nothing) {
        let _ =
            writeln!(text, "- `{}`: **{}**, {}", decision.step, decision.action.as_str(), escape(&decision.reason));
    }
    section("Taken back", text)
}

/// How a run that didn't come to a good end left the world.
fn world(evidence: &Evidence) -> String {
    if evidence.status == RunStatus::Succeeded {
        return String::new();
    }
    let mut text = String::new();
    for thing in &evidence.world.things {
        let may = if thing.certain { "is" } else { "**may be**" };
        let said = thing.said.as_ref().map(|said| format!(" ({})", escape(said))).unwrap_or_default();
        let _ = writeln!(text, "- `{}` {may} {}, by `{}`{said}", thing.resource, escape(&thing.state), thing.step);
    }
    if let Some(point) = &evidence.world.no_return {
        let passed = if point.certain { "is" } else { "may be" };
        let _ = writeln!(
            text,
            "\nThe point of no return {passed} passed: nothing brings back `{}`, which `{}` took.",
            point.resource, point.step
        );
    }
    section("What it left", text)
}

fn errors(evidence: &Evidence) -> String {
    let mut text = String::new();
    for step in evidence.steps.iter().filter(|step| !step.errors.is_empty()) {
        for failed in &step.errors {
            let ended = if step.state == StepStatus::Succeeded { ", which later succeeded" } else { "" };
            let _ = write!(text, "\n`{}`, attempt {}{ended}:\n\n", step.id, failed.attempt);
            for line in failed.error.message.lines() {
                let _ = writeln!(text, "> {}", escape(line));
            }
            let again =
                if failed.error.transient { "It may pass by itself." } else { "It does not pass by itself." };
            let _ = writeln!(text, "\n{again}");
            if let Some(help) = &failed.error.help {
                let _ = writeln!(text, "\nHelp: {}", escape(help));
            }
        }
    }
    section("What went wrong", text)
}

fn people(evidence: &Evidence) -> String {
    let mut text = String::new();
    let asked = |step: &&StepEvidence| !step.answers.is_empty() || step.question.is_some() || step.waited > 0.0;
    for step in evidence.steps.iter().filter(asked) {
        let _ = writeln!(text, "- `{}` waited {}", step.id, span(step.waited));
        if let Some(question) = &step.question {
            let _ = writeln!(text, "  - still asked: {}", escape(&question.message.replace('\n', " ")));
        }
        for answer in &step.answers {
            let word = if answer.approved { "yes" } else { "no" };
            let note = answer.note.as_ref().map(|note| format!(": {}", escape(note))).unwrap_or_default();
            let _ = writeln!(text, "  - {}: **{word}** by {}{note}", moment(answer.at), escape(&answer.by));
            for (name, value) in &answer.fields {
                let _ = writeln!(
                    text,
                    "    - {name}: `{}`",
                    cell(&value.as_str().map_or_else(|| value.to_string(), str::to_owned))
                );
            }
        }
    }
    section("People", text)
}

fn resumes(evidence: &Evidence) -> String {
    let mut text = String::new();
    for resume in &evidence.resumes {
        let by = format!("{}@{}", resume.by.user, resume.by.host);
        let kept = resume.decisions.iter().filter(|decision| decision.action == DecisionAction::Keep).count();
        let _ = write!(
            text,
            "\n{} by {} with Lifeboat {}; {} kept.\n\n",
            moment(resume.at),
            escape(&by),
            resume.version,
            plural(kept, "step")
        );
        for decision in resume.decisions.iter().filter(|decision| decision.action != DecisionAction::Keep) {
            let _ = writeln!(
                text,
                "- `{}`: **{}**, {}",
                decision.step,
                action(decision.action),
                escape(&decision.reason)
            );
        }
    }
    section("Resumed", text)
}

fn notices(evidence: &Evidence) -> String {
    let mut text = String::new();
    for notice in &evidence.notices {
        let step = notice.step.as_ref().map(|step| format!("`{step}`: ")).unwrap_or_default();
        let _ = writeln!(text, "- {} {step}{}", moment(notice.at), escape(&notice.message));
    }
    section("Noticed", text)
}

fn section(title: &str, text: String) -> String {
    if text.is_empty() { text } else { format!("\n## {title}\n\n{}", text.trim_start_matches('\n')) }
}

/// The word of a decision.
pub const fn action(action: DecisionAction) -> &'static str {
    match action {
        DecisionAction::Keep => "keep",
        DecisionAction::Run => "run",
        DecisionAction::Continue => "go on",
        DecisionAction::Wait => "wait",
        DecisionAction::Ask => "ask",
        DecisionAction::Skip => "skip",
    }
}

fn short(digest: &str) -> String {
    digest.chars().take(12).collect()
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

/// Text from outside must not turn into markup.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '<' | '>' | '*' | '_' | '[' | ']' | '#' | '|') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}
