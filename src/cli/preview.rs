//! What a dry-run found, as a page for a person.

use std::fmt::Write as _;

use crate::engine::preview::{PreviewMode, PreviewReport, StepPreview};
use crate::report::text::{Paint, Table, plural, span, wrap};

/// The whole page.
pub fn page(report: &PreviewReport, paint: Paint) -> String {
    let on = report.environment.as_ref().map(|name| format!(" on {name}")).unwrap_or_default();
    let mode = match report.mode {
        PreviewMode::Live => "looked at the real systems, read-only",
        PreviewMode::Offline => "nothing was contacted: told from the plan alone",
    };
    let mut text = format!("{}{on}  {}\n\n", paint.strong(&format!("Dry-run of {}", report.plan)), paint.dim(mode));
    text.push_str(&steps(report, paint));
    text.push('\n');
    text.push_str(&facts(report, paint));
    text
}

/// A row for each step, with what is in its way.
pub fn steps(report: &PreviewReport, paint: Paint) -> String {
    let mut text = String::new();
    let ids = report.steps.iter().map(|step| step.id.chars().count()).max().unwrap_or(0).min(28);
    for step in &report.steps {
        let mut row = Table::new(2);
        let padded = format!("{:ids$}", step.id);
        row.row([symbol(step, paint), padded, action(step, paint), said(step, paint)]);
        text.push_str(&row.render(paint));
        for problem in &step.problems {
            let margin = ids + 7;
            let mark = if problem.blocks { paint.bad("✗") } else { paint.warn("!") };
            // A blocked step's summary is often the problem itself.
            if problem.message != step.summary || !problem.blocks {
                let _ = writeln!(text, "{:margin$}{mark} {}", "", wrap(&problem.message, paint.width, margin + 2));
            }
            if let Some(help) = &problem.help {
                let label = paint.name("help:");
                let _ = writeln!(text, "{:margin$}{label} {}", "", wrap(help, paint.width, margin + 6));
            }
        }
    }
    text
}

fn symbol(step: &StepPreview, paint: Paint) -> String {
    match (step.action.as_str(), step.certainty.as_str()) {
        ("blocked", _) => paint.bad("✗"),
        ("skip", _) => paint.dim("–"),
        (_, "observed") => paint.good("✓"),
        (_, "assumed") => paint.dim("~"),
        _ => paint.warn("?"),
    }
}

fn action(step: &StepPreview, paint: Paint) -> String {
    let word = format!("{:7}", step.action);
    match step.action.as_str() {
        "blocked" | "destroy" => paint.bad(&word),
        "change" => paint.warn(&word),
        "create" => paint.good(&word),
        "ask" => paint.name(&word),
        _ => paint.dim(&word),
    }
}

fn said(step: &StepPreview, paint: Paint) -> String {
    let unsure = step.certainty == "undetermined" && !matches!(step.action.as_str(), "blocked" | "skip");
    format!("{}{}", step.summary, if unsure { paint.dim(" (undetermined)") } else { String::new() })
}

/// What is touched, how long it takes, and the verdict.
pub fn facts(report: &PreviewReport, paint: Paint) -> String {
    let impact = &report.impact;
    let mut touched = Vec::new();
    let mut add = |count: usize, word: &str, painted: String| {
        if count > 0 {
            touched.push(format!("{count} {}", if painted.is_empty() { word } else { &painted }));
        }
    };
    add(impact.destroy, "", paint.bad("destroyed"));
    add(impact.change, "", paint.warn("changed"));
    add(impact.create, "", paint.good("created"));
    add(impact.undetermined, "", paint.warn("undetermined"));
    add(impact.read, "read", String::new());
    let mut table = Table::new(2);
    let touched = if touched.is_empty() { "nothing is touched".to_owned() } else { touched.join(", ") };
    table.row([paint.dim("impact"), touched]);
    let allowed = report.rto.map(|rto| format!(" of {} allowed", span(rto))).unwrap_or_default();
    match report.estimate {
        Some(estimate) => {
            let late = report.rto.is_some_and(|rto| estimate > rto);
            let mark = if late { format!("  {}", paint.bad("✗ past the objective")) } else { String::new() };
            table
                .row([paint.dim("estimate"), format!("{}{allowed}, told from earlier runs{mark}", span(estimate))]);
        }
        None if report.rto.is_some() => {
            table.row([paint.dim("estimate"), format!("unknown{allowed}: no earlier run tells of every step")]);
        }
        None => {}
    }
    let blocked = report.blocked().count();
    let verdict = if blocked == 0 {
        paint.good("✓ nothing in the way")
    } else {
        let verb = if blocked == 1 { "is" } else { "are" };
        paint.bad(&format!("✗ {} {verb} blocked", plural(blocked, "step")))
    };
    table.row([paint.dim("verdict"), verdict]);
    let mut text = table.render(paint);
    let uncertain = report.steps.iter().any(|step| step.certainty != "observed" && step.action != "blocked");
    if uncertain {
        let legend = "✓ observed  ~ assumed, from the plan or a step before  ? known only in the run";
        let _ = write!(text, "\n  {}\n", paint.dim(&wrap(legend, paint.width, 2)));
    }
    text
}
