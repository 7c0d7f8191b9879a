//! Problems of files, drawn for a person or handed on to other tools.

use miette::{GraphicalReportHandler, GraphicalTheme, ThemeCharacters, ThemeStyles};

use crate::plan::problem::{Problem, Severity as PlanSeverity};
use crate::report::finding::{Finding, Place, Severity};
use crate::report::text::Paint;

/// A problem with its place underlined.
pub fn page(problem: &Problem, paint: Paint) -> String {
    let theme = GraphicalTheme {
        characters: ThemeCharacters::unicode(),
        styles: if paint.color { ThemeStyles::ansi() } else { ThemeStyles::none() },
    };
    let handler = GraphicalReportHandler::new_themed(theme).with_width(paint.width).with_links(false);
    let mut text = String::new();
    // Writing to a string fails for nobody; should drawing fail, the words are left.
    if handler.render_report(&mut text, problem).is_err() {
        text = format!("{}: {}\n", problem.code, problem.message);
    }
    text + "\n"
}

/// A problem as other tools take it; `file` where it names none.
pub fn finding(problem: &Problem, file: &str) -> Finding {
    let place = problem
        .file
        .as_ref()
        .zip(problem.labels.first())
        .map(|(file, (span, _))| Place::of(file.inner(), span.start, span.end.saturating_sub(span.start)));
    Finding {
        code: problem.code.to_owned(),
        severity: match problem.severity {
            PlanSeverity::Error => Severity::Error,
            PlanSeverity::Warning => Severity::Warning,
        },
        message: problem.message.clone(),
        help: problem.help.clone(),
        file: problem.file.as_ref().map_or_else(|| file.to_owned(), |file| file.name().to_owned()),
        place,
    }
}
