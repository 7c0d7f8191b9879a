//! A run as one page for a person: where it stands, what happened, what went wrong, what to do next.

use std::fmt::Write as _;

use jiff::Timestamp;

use super::evidence::{Evidence, Objective, StepEvidence, StepStatus, seconds};
use super::next::{self, Action};
use super::text::{Paint, Table, moment, plural, span, wrap};
use super::world;
use crate::record::event::RunStatus;

/// Draws the page as of `now`. `holder` names the process that works on the run, if one does.
pub fn page(evidence: &Evidence, now: Timestamp, holder: Option<&str>, actions: &[Action], paint: Paint) -> String {
    let mut text = heading(evidence, holder.is_some(), paint);
    text.push_str(&facts(evidence, now, holder, paint));
    text.push('\n');
    text.push_str(&steps(evidence, now, holder.is_some(), paint));
    if !evidence.gone.is_empty() {
        let gone: Vec<_> =
            evidence.gone.iter().map(|step| format!("{} ({})", step.id, step.state.as_str())).collect();
        let _ =
            writeln!(text, "\n{} {}", paint.dim("no longer in the plan:"), wrap(&gone.join(", "), paint.width, 2));
    }
    text.push_str(&world::undo(evidence.undo.as_ref(), paint));
    // Of a recovery that came to its end, its steps say it all.
    if evidence.status != RunStatus::Succeeded {
        text.push_str(&evidence.world.render(paint));
    }
    for step in &evidence.steps {
        text.push_str(&trouble(step, paint));
        text.push_str(&question(step, paint));
    }
    if !actions.is_empty() {
        let _ = write!(text, "\n{}\n{}", paint.strong("Next"), next::render(actions, paint));
    }
    text
}

/// A run's status as a symbol and a word. `alive`: a process works on it.
pub fn status(status: RunStatus, alive: bool, paint: Paint) -> String {
    match status {
        RunStatus::Running if alive => paint.name("▸ running"),
        RunStatus::Running => paint.bad("✗ interrupted"),
        RunStatus::Succeeded => paint.good("✓ succeeded"),
        RunStatus::Failed => paint.bad("✗ failed"),
        RunStatus::Paused => paint.warn("‖ paused"),
        RunStatus::Waiting => paint.warn("? waits for a person"),
        RunStatus::Cancelled => paint.bad("■ cancelled"),
        RunStatus::Undone => paint.good("↶ undone"),
    }
}

/// A step's symbol, painted.
pub fn symbol(state: StepStatus, paint: Paint) -> String {
    let symbol = state.symbol();
    match state {
        StepStatus::Succeeded => paint.good(symbol),
        StepStatus::Failed | StepStatus::Cancelled => paint.bad(symbol),
        StepStatus::Waiting | StepStatus::Retrying => paint.warn(symbol),
        StepStatus::Running => paint.name(symbol),
        StepStatus::Pending | StepStatus::Skipped | StepStatus::NotRun => paint.dim(symbol),
    }
}

fn heading(evidence: &Evidence, alive: bool, paint: Paint) -> String {
    let on = evidence.environment.as_ref().map(|name| format!(" on {name}")).unwrap_or_default();
    let mut text = format!("{}{on}  {}\n", paint.strong(&evidence.plan), status(evidence.status, alive, paint));
    if let Some(title) = &evidence.title {
        let _ = writeln!(text, "{}", wrap(title, paint.width, 0));
    }
    text
}

fn facts(evidence: &Evidence, now: Timestamp, holder: Option<&str>, paint: Paint) -> String {
    let mut table = Table::new(2);
    let by = &evidence.by;
    table.row([paint.dim("run"), format!("{}, started by {}@{}", evidence.run, by.user, by.host)]);
    let elapsed = if holder.is_some() { seconds(evidence.started_at, now) } else { evidence.seconds };
    let waited = if evidence.waited >= 1.0 {
        format!(", {} of it waiting for people", span(evidence.waited))
    } else {
        String::new()
    };
    table
        .row([paint.dim("time"), format!("began {}, took {}{waited}", moment(evidence.started_at), span(elapsed))]);
    if let Some(holder) = holder {
        table.row([paint.dim("held by"), holder.to_owned()]);
    }
    if !evidence.resumes.is_empty() {
        let last = &evidence.resumes[evidence.resumes.len() - 1];
        let times = if evidence.resumes.len() == 1 {
            "once".to_owned()
        } else {
            format!("{} times", evidence.resumes.len())
        };
        let by = format!("{}@{}", last.by.user, last.by.host);
        table.row([paint.dim("resumed"), format!("{times}, last {} by {by}", moment(last.at))]);
    }
    let recovery = &evidence.recovery;
    if recovery.time.is_some() || recovery.rto.is_some() {
        table.row([
            paint.dim("recovery time"),
            objective(recovery.time, recovery.rto, "health is not proven yet", paint),
        ]);
    }
    if recovery.point.is_some() || recovery.rpo.is_some() {
        let mut line = objective(recovery.point, recovery.rpo, "nothing was restored yet", paint);
        if let Some(at) = recovery.data_of {
            let _ = write!(line, "; data of {}", moment(at));
        }
        table.row([paint.dim("recovery point"), line]);
    }
    if let Some(reason) = &evidence.reason {
        table.row([paint.dim("stopped"), reason.clone()]);
    }
    table.render(paint)
}

fn objective(measured: Option<f64>, objective: Option<Objective>, unknown: &str, paint: Paint) -> String {
    match (measured, objective) {
        (Some(measured), Some(objective)) => {
            let mark = if objective.met { paint.good("✓ met") } else { paint.bad("✗ missed") };
            format!("{} of {} allowed  {mark}", span(measured), span(objective.seconds))
        }
        (Some(measured), None) => span(measured),
        (None, Some(objective)) => format!("{} allowed; {unknown}", span(objective.seconds)),
        (None, None) => unknown.to_owned(),
    }
}

fn steps(evidence: &Evidence, now: Timestamp, alive: bool, paint: Paint) -> String {
    let mut table = Table::new(2).right(&[2]);
    let mut finally = false;
    let mut undo = false;
    for step in &evidence.steps {
        if step.undoes.is_some() && !undo {
            undo = true;
            table.row([paint.dim("undo")]);
        }
        if step.finally && !finally {
            finally = true;
            table.row([paint.dim("finally")]);
        }
        let took = match (step.seconds, step.started_at) {
            (Some(seconds), _) => span(seconds),
            (None, Some(at)) if alive || step.state == StepStatus::Waiting => span(seconds(at, now)),
            (None, _) => String::new(),
        };
        table.row([symbol(step.state, paint), step.id.clone(), paint.dim(&took), said(step, alive, paint)]);
    }
    table.render(paint)
}

/// What the list of steps says of one.
fn said(step: &StepEvidence, alive: bool, paint: Paint) -> String {
    let mut text = match step.state {
        StepStatus::Succeeded => step.summary.clone().unwrap_or_else(|| step.title.clone().unwrap_or_default()),
        StepStatus::Failed => paint.bad("failed"),
        StepStatus::Pending => paint.dim(step.title.as_deref().unwrap_or(&step.step_type)),
        StepStatus::Waiting if step.answered.is_some() => {
            let answer = if step.answered == Some(true) { "yes" } else { "no" };
            let last = step.answers.last().map(|answer| format!(" by {}", answer.by)).unwrap_or_default();
            format!("answered {answer}{last}; a resume takes it in")
        }
        StepStatus::Running if !alive => paint.bad("cut off: what became of it is found out by a resume"),
        StepStatus::Skipped if step.ordered.is_some() => step.reason.clone().unwrap_or_default(),
        state => {
            let why = step.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
            format!("{}{why}", state.as_str())
        }
    };
    if let Some(adjusted) = &step.adjusted {
        let _ = write!(text, " ({} by {})", adjusted.limits.said(), adjusted.by);
    }
    if step.attempts > 1 && step.state == StepStatus::Running {
        let _ = write!(text, " (attempt {})", step.attempts);
    } else if step.attempts > 1 {
        let _ = write!(text, " ({})", plural(step.attempts as usize, "attempt"));
    }
    text
}

/// What went wrong, and whether trying again can help.
fn trouble(step: &StepEvidence, paint: Paint) -> String {
    if !matches!(step.state, StepStatus::Failed | StepStatus::Retrying | StepStatus::Cancelled) {
        return String::new();
    }
    let Some(last) = step.errors.last() else { return String::new() };
    let what = if step.state == StepStatus::Failed { "failed" } else { "stumbled" };
    let attempt = if last.attempt > 1 { format!(", attempt {}", last.attempt) } else { String::new() };
    let mut text = format!("\n{} {}\n", paint.bad("✗"), paint.strong(&format!("{} {what}", step.id)));
    let _ = writeln!(text, "  {}", paint.dim(&format!("{}{attempt}", step.step_type)));
    let _ = writeln!(text, "  {}", wrap(&last.error.message, paint.width, 2));
    let again = if last.error.transient {
        "it may pass by itself: trying again can help"
    } else {
        "trying again alone won't help"
    };
    let _ = writeln!(text, "  {}", paint.dim(again));
    if let Some(help) = &last.error.help {
        let _ = writeln!(text, "  {} {}", paint.name("help:"), wrap(help, paint.width, 8));
    }
    text
}

/// What a person is asked.
fn question(step: &StepEvidence, paint: Paint) -> String {
    let Some(question) = step.question.as_ref().filter(|_| step.answered.is_none()) else { return String::new() };
    let mut text = format!("\n{} {}\n", paint.warn("?"), paint.strong(&format!("{} waits for an answer", step.id)));
    let _ = writeln!(text, "  {}", wrap(&question.message, paint.width, 2));
    for item in &question.checklist {
        let _ = writeln!(text, "  [ ] {}", wrap(item, paint.width, 6));
    }
    for (name, kind) in &question.fields {
        let _ = writeln!(text, "  {name}: {}", paint.dim(kind));
    }
    let mut rules = Vec::new();
    if !question.by.is_empty() {
        rules.push(format!("asked: {}", question.by.join(", ")));
    }
    if question.quorum > 1 {
        rules.push(format!("{} people must agree, {} did so far", question.quorum, step.agreed));
    }
    if question.not_by_requester {
        rules.push("not by the one who started the run".to_owned());
    }
    if let Some(until) = question.until {
        rules.push(format!("silence is a no at {}", moment(until)));
    }
    if !rules.is_empty() {
        let _ = writeln!(text, "  {}", paint.dim(&wrap(&rules.join("; "), paint.width, 2)));
    }
    text
}
