//! `lifeboat show`: a plan told to a person.

use std::fmt::Write as _;

use serde_json::json;

use super::exit::{Error, Exit};
use super::load::{self, PlanArgs};
use super::out::{Format, Out};
use crate::engine::preview::masked_inputs;
use crate::ids::StepId;
use crate::plan::{Known, Plan, PlannedStep};
use crate::report::text::{Paint, Table, plural, width, wrap};
use crate::retry::RetryPolicy;
use crate::secret::Redactor;
use crate::step::effect::{Access, Effect};

/// Tell a plan: the order, what waits for what, what each step does to what
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    plan: PlanArgs,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

pub fn show(args: &Args, out: &Out) -> Result<Exit, Error> {
    let Some(plan) = load::look(&args.plan, out)? else { return Ok(Exit::Usage) };
    match args.format {
        Format::Json => out.print_json(&to_json(&plan))?,
        Format::Human => out.print(&page(&plan, out.paint))?,
    }
    Ok(Exit::Done)
}

fn page(plan: &Plan, paint: Paint) -> String {
    let on = plan.environment.name.as_ref().map(|name| format!(" on {name}")).unwrap_or_default();
    let mut text = format!("{}{on}\n", paint.strong(&plan.name));
    for line in [&plan.title, &plan.summary].into_iter().flatten() {
        let _ = writeln!(text, "{}", wrap(line, paint.width, 0));
    }
    text.push_str(&facts(plan, paint));
    let columns = (widest(plan, |step| step.id.as_str()), widest(plan, |step| step.info.name));
    let mut finally = false;
    for (at, step) in plan.steps.iter().enumerate() {
        if step.finally && !finally {
            finally = true;
            let _ = write!(text, "\n{}\n", paint.strong("Finally, whatever the outcome"));
        } else if at == 0 {
            let _ = write!(text, "\n{}\n", paint.strong("Steps"));
        }
        text.push_str(&one(plan, at, step, columns, paint));
    }
    text
}

fn facts(plan: &Plan, paint: Paint) -> String {
    let mut table = Table::new(2);
    let mut objectives = Vec::new();
    objectives.extend(plan.objectives.rto.map(|rto| format!("back within {rto}")));
    objectives.extend(plan.objectives.rpo.map(|rpo| format!("no more than {rpo} of data lost")));
    if !objectives.is_empty() {
        table.row([paint.dim("objectives"), objectives.join(", ")]);
    }
    for (name, contact) in &plan.owners {
        table.row([paint.dim("owner"), format!("{name} <{contact}>")]);
    }
    for (name, value) in masked_inputs(plan) {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        table.row([paint.dim("input"), format!("{name} = {value}")]);
    }
    for name in plan.scope.unknown.keys().filter_map(|path| path.strip_prefix("inputs.")) {
        let secret = if plan.secret_inputs.iter().any(|secret| secret == name) { ", a secret" } else { "" };
        table.row([paint.dim("input"), format!("{name}{secret}: has to be given with `-i`")]);
    }
    for (name, target) in &plan.environment.targets {
        table.row([paint.dim("target"), format!("{name} ({})", target.kind())]);
    }
    if plan.environment.protected {
        table.row([paint.dim("protected"), "destructive plans need the environment's name typed".to_owned()]);
    }
    table.render(paint)
}

fn one(plan: &Plan, at: usize, step: &PlannedStep, (ids, kinds): (usize, usize), paint: Paint) -> String {
    let id = padded(paint.strong(step.id.as_str()), ids);
    let kind = padded(paint.dim(step.info.name), kinds);
    let mut table = Table::new(0);
    table.row([paint.dim(&format!("{:>3}", at + 1)), id, kind, paint.dim(&after(plan, at, step))]);
    let mut text = table.render(paint);
    let title = title(plan, step);
    for line in title.iter().chain(&step.summary) {
        let _ = writeln!(text, "     {}", wrap(line, paint.width, 5));
    }
    let mut table = Table::new(5);
    for effect in effects(step) {
        table.row([
            access(effect.access, paint),
            plan.environment.redactor.redact(effect.resource.as_str()).into_owned(),
        ]);
    }
    for (name, value) in manners(step, &plan.environment.redactor) {
        table.row([paint.dim(name), value]);
    }
    text.push_str(&table.render(paint));
    text
}

/// A painted text with blanks up to a width.
fn padded(text: String, columns: usize) -> String {
    let blanks = columns.saturating_sub(width(&text));
    text + &" ".repeat(blanks)
}

/// How wide a column of the steps is; what is longer sticks out.
fn widest(plan: &Plan, of: impl Fn(&PlannedStep) -> &str) -> usize {
    plan.steps.iter().map(|step| of(step).chars().count()).max().unwrap_or(0).min(28)
}

/// What a step waits for, unless it is what everybody expects: the step above it.
fn after(plan: &Plan, at: usize, step: &PlannedStep) -> String {
    let above = at.checked_sub(1).map(|above| &plan.steps[above]).filter(|above| above.finally == step.finally);
    match (&step.needs[..], above) {
        ([only], Some(above)) if only == &above.id => String::new(),
        ([], _) if step.finally => String::new(),
        ([], None) => String::new(),
        ([], _) => "starts at once".to_owned(),
        (needs, _) => {
            let shown: Vec<&str> = needs.iter().take(6).map(StepId::as_str).collect();
            let more = needs.len().saturating_sub(6);
            let more = if more > 0 { format!(" and {}", plural(more, "other")) } else { String::new() };
            format!("after {}{more}", shown.join(", "))
        }
    }
}

/// The effects of a step, as far as they are known before a run.
fn effects(step: &PlannedStep) -> Vec<Effect> {
    step.render(&Known::default()).map(|rendered| rendered.step.effects()).unwrap_or_default()
}

fn access(access: Access, paint: Paint) -> String {
    match access {
        Access::Read => paint.dim("reads"),
        Access::Create => paint.good("creates"),
        Access::Change => paint.warn("changes"),
        Access::Destroy => paint.bad("destroys"),
        Access::Undetermined => paint.warn("may touch"),
    }
}

fn title(plan: &Plan, step: &PlannedStep) -> Option<String> {
    let title = step.title.as_ref()?;
    step.text(title, &Known::default(), &plan.environment.redactor).ok()
}

/// How a step runs, where it differs from what is usual.
fn manners(step: &PlannedStep, redactor: &Redactor) -> Vec<(&'static str, String)> {
    let mut manners = Vec::new();
    for guard in &step.when {
        manners.push(("when", guard.condition.source().to_owned()));
    }
    if step.retry != RetryPolicy::default() && step.retry.attempts > 1 {
        let retry = &step.retry;
        manners.push(("retries", format!("{} attempts, {} apart at first", retry.attempts, retry.delay)));
    }
    if let Some(timeout) = step.timeout {
        manners.push(("timeout", timeout.to_string()));
    }
    if let Some(confirm) = &step.confirm {
        let question = step.text(confirm, &Known::default(), redactor).unwrap_or_default();
        manners.push(("asks first", question));
    }
    if step.continue_on_failure {
        manners.push(("if it fails", "the rest goes on".to_owned()));
    }
    if step.rerun_if_interrupted {
        manners.push(("after a kill", "runs again if nobody can tell".to_owned()));
    }
    if let Some(valid_for) = step.valid_for {
        manners.push(("proof", format!("good for {valid_for}; a later resume runs it again")));
    }
    if let Some((info, _)) = &step.undo {
        manners.push(("undone by", info.name.to_owned()));
    }
    for allowed in &step.allowed {
        let code = allowed.code.trim_start_matches("lifeboat::");
        manners.push(("allows", format!("{code}, because {}", redactor.redact(&allowed.because))));
    }
    manners
}

fn to_json(plan: &Plan) -> serde_json::Value {
    let steps: Vec<_> = plan
        .steps
        .iter()
        .map(|step| {
            let redact = |text: &str| plan.environment.redactor.redact(text).into_owned();
            let effects: Vec<_> = effects(step)
                .iter()
                .map(|effect| json!({ "access": effect.access.as_str(), "resource": redact(effect.resource.as_str()) }))
                .collect();
            json!({
                "id": step.id.as_str(),
                "type": step.info.name,
                "title": title(plan, step),
                "needs": step.needs.iter().map(StepId::as_str).collect::<Vec<_>>(),
                "finally": step.finally,
                "definition": step.definition,
                "effects": effects,
                "allowed": step.allowed.iter().map(|allowed| json!({ "code": allowed.code, "because": redact(&allowed.because) })).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({
        "plan": plan.name,
        "title": plan.title,
        "summary": plan.summary,
        "plan_digest": plan.digest,
        "environment": plan.environment.name,
        "rto": plan.objectives.rto.map(|rto| rto.std().as_secs_f64()),
        "rpo": plan.objectives.rpo.map(|rpo| rpo.std().as_secs_f64()),
        "inputs": masked_inputs(plan),
        "steps": steps,
    })
}
