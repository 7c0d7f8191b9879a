//! What to do next, as commands to paste.

use super::evidence::{Evidence, StepEvidence, StepStatus};
use super::text::{Paint, Table};
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
        RunStatus::Waiting if evidence.steps.iter().any(|step| open(&step)) => {
            add(format!("resume {run}"), "go on, once it is answered");
        }
        RunStatus::Waiting => add(format!("resume {run}"), "go on: it is answered"),
        RunStatus::Succeeded => add(format!("report {run} -o {run}.md"), "keep the evidence"),
        _ => {
            let failed = |step: &&StepEvidence| step.state == StepStatus::Failed && printed(step);
            if let Some(step) = evidence.steps.iter().find(failed) {
                add(format!("logs {run} {}", quote(&step.id)), "what the failed step printed");
            }
            add(format!("resume {run} --dry-run"), "what going on would do, and why");
            add(format!("resume {run}"), "go on; what succeeded is kept");
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
    actions
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
