//! What to do next, as commands to paste.

use super::evidence::{Evidence, StepEvidence, StepStatus};
use super::text::{Paint, Table, plural};
use crate::record::event::{QuestionKind, RunStatus};

/// A command, and what it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// To paste.
    pub command: String,
    /// What for.
    pub why: String,
}

/// The next actions of a run. `alive`: a process works on it now. `flags` is what every
/// command needs to find the run again (`--state …`), or nothing. `printed` tells whether a step has a log to show.
pub fn actions(
    evidence: &Evidence,
    alive: bool,
    flags: &str,
    printed: impl Fn(&StepEvidence) -> bool,
) -> Vec<Action> {
    let run = &evidence.run;
    let mut actions = Vec::new();
    let mut add = |command: String, why: &str| {
        let flags = if flags.is_empty() { String::new() } else { format!(" {flags}") };
        actions.push(Action { command: format!("lifeboat {command}{flags}"), why: why.to_owned() });
    };
    let open = |step: &&StepEvidence| step.state == StepStatus::Waiting && step.answered.is_none();
    for step in evidence.steps.iter().filter(open) {
        let cut_off = step.question.as_ref().is_some_and(|question| question.kind == QuestionKind::Interrupted);
        let (yes, no) = if cut_off {
            ("run it again", "leave it as it is; the run ends as failed")
        } else {
            ("answer yes", "answer no")
        };
        let id = quote(&step.id);
        let mut words = vec![format!("approve {run} {id}")];
        words.extend(
            step.question.iter().flat_map(|question| question.fields.keys()).map(|name| format!("-f {name}=…")),
        );
        add(words.join(" "), yes);
        add(format!("reject {run} {id} --note '…'"), no);
    }
    match evidence.status {
        RunStatus::Running if alive => add(format!("status {run} --follow"), "watch it"),
        status if evidence.undo.is_some() && status != RunStatus::Undone => {
            let left = evidence.steps.iter().filter(|step| step.undoes.is_some() && !is_done(step));
            let left: Vec<&str> = left.filter_map(|step| step.undoes.as_deref()).collect();
            let failed = |step: &&StepEvidence| step.undoes.is_some() && step.state == StepStatus::Failed;
            let failed = evidence.steps.iter().find(failed);
            if let Some(step) = failed.filter(|step| printed(step)) {
                add(format!("logs {run} {}", quote(&step.id)), "what the failed step printed");
            }
            add(format!("undo {run} --dry-run"), "what going on with the undo would do");
            add(format!("undo {run}"), &format!("go on taking back: {}", listed(&left)));
            if let Some(step) = failed.and_then(|step| step.undoes.as_ref()) {
                let leave = format!("undo {run} --leave {} --because '…'", quote(step));
                add(leave, "go on, and leave what can't be taken back as it is");
            }
        }
        RunStatus::Waiting if evidence.steps.iter().any(|step| open(&step)) => {
            add(format!("resume {run}"), "go on, once it is answered");
        }
        RunStatus::Waiting => add(format!("resume {run}"), "go on: it is answered"),
        RunStatus::Succeeded | RunStatus::Undone => add(format!("report {run} -o {run}.md"), "keep the evidence"),
        _ => {
            let failed = |step: &&StepEvidence| step.state == StepStatus::Failed && printed(step);
            if let Some(step) = evidence.steps.iter().find(failed) {
                add(format!("logs {run} {}", quote(&step.id)), "what the failed step printed");
            }
            add(format!("resume {run} --dry-run"), "what going on would do, and why");
            let left: Vec<&str> =
                evidence.steps.iter().filter(|step| !is_done(step)).map(|step| step.id.as_str()).collect();
            let runs = match left.as_slice() {
                [] => "go on".to_owned(),
                [one] => format!("go on: runs {one}; what succeeded is kept"),
                [first, ..] => {
                    format!(
                        "go on: runs {}, starting with {first}; what succeeded is kept",
                        plural(left.len(), "step")
                    )
                }
            };
            add(format!("resume {run}"), &runs);
            let stuck = |step: &&StepEvidence| {
                step.state == StepStatus::Failed
                    && !step.finally
                    && step.answers.is_empty()
                    && step.errors.last().is_some_and(|last| !last.error.transient)
            };
            // Trying again alone won't help: somebody does it by hand, or mends the plan.
            if let Some(step) = evidence.steps.iter().find(stuck) {
                let id = quote(&step.id);
                add(
                    format!("resume {run} --mark-done {id} --because '…'"),
                    "go on once it is done by hand; the real systems must agree",
                );
                add(
                    format!("resume {run} --plan FILE --because '…'"),
                    "go on with a mended plan; what succeeded is kept",
                );
            }
        }
    }
    let stopped = !alive && evidence.undo.is_none() && evidence.status != RunStatus::Succeeded;
    let back: Vec<&str> =
        evidence.steps.iter().rev().filter(|step| may_be_undone(step)).map(|step| step.id.as_str()).collect();
    if stopped && !back.is_empty() {
        let stays = if evidence.world.things.iter().any(|thing| !thing.undoable) {
            "; the rest stays as it is"
        } else {
            ""
        };
        add(format!("undo {run}"), &format!("take back {}{stays}", listed(&back)));
    }
    actions
}

fn is_done(step: &StepEvidence) -> bool {
    matches!(step.state, StepStatus::Succeeded | StepStatus::Skipped)
}

/// Whether an undo would take the step back, as far as the journal tells.
fn may_be_undone(step: &StepEvidence) -> bool {
    let untouched = matches!(step.state, StepStatus::Skipped | StepStatus::NotRun | StepStatus::Waiting);
    step.undo.is_some() && step.attempts > 0 && !untouched
}

/// The first few, and how many more.
fn listed(steps: &[&str]) -> String {
    match steps {
        [] => "nothing".to_owned(),
        [one, two, three, rest @ ..] if !rest.is_empty() => {
            format!("{one}, {two}, {three} and {}", plural(rest.len(), "more step"))
        }
        few => few.join(", "),
    }
}

/// The actions as a block of a page; the reasons are shell comments, so that a whole line can be pasted.
pub fn render(actions: &[Action], paint: Paint) -> String {
    let mut table = Table::new(2);
    for action in actions {
        table.row([paint.name(&action.command), paint.dim(&format!("# {}", action.why))]);
    }
    // A command is never wrapped: a broken line can't be pasted.
    table.render(Paint { width: usize::MAX / 2, ..paint })
}

/// A word for a shell.
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}
