//! Problems of files in the forms that other tools read: GitHub's annotations, SARIF, JUnit, JSON.
//!
//! The page for people, with the line underlined, is drawn by the command line.

use std::fmt::Write as _;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

/// One problem, with its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Finding {
    /// Stable: `lifeboat::unknown_step`.
    pub code: String,
    /// Whether it stands in the way.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// The file.
    pub file: String,
    /// From 1; none when the file as a whole is meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
}

/// A range in a file: lines and columns from 1, in characters, the end exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Place {
    /// Where it begins.
    pub line: usize,
    /// Where it begins.
    pub column: usize,
    /// Where it ends.
    pub end_line: usize,
    /// Where it ends.
    pub end_column: usize,
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth a look.
    Warning,
    /// In the way.
    Error,
}

/// One file that was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct CheckedFile {
    /// The file.
    pub file: String,
    /// The plan's name, when it could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// How many steps it has, `for_each` and sub-plans expanded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// What was found.
    pub problems: Vec<Finding>,
}

impl Place {
    /// The place of `span` (bytes) in `text`.
    pub fn of(text: &str, start: usize, length: usize) -> Self {
        let (line, column) = position(text, start);
        let (end_line, end_column) = position(text, start + length);
        Self { line, column, end_line, end_column }
    }
}

fn position(text: &str, at: usize) -> (usize, usize) {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    let before = &text[..at];
    let start = before.rfind('\n').map_or(0, |feed| feed + 1);
    (before.matches('\n').count() + 1, before[start..].chars().count() + 1)
}

/// `{"ok": …, "files": […]}`.
pub fn to_json(files: &[CheckedFile]) -> Value {
    let ok = files.iter().flat_map(|file| &file.problems).all(|problem| problem.severity < Severity::Error);
    json!({ "ok": ok, "files": files })
}

/// Workflow commands that GitHub turns into annotations on the changed lines.
pub fn to_github(files: &[CheckedFile]) -> String {
    let mut text = String::new();
    for problem in files.iter().flat_map(|file| &file.problems) {
        let level = if problem.severity == Severity::Error { "error" } else { "warning" };
        let mut properties = vec![format!("file={}", github_property(&problem.file))];
        if let Some(place) = problem.place {
            properties.push(format!("line={},endLine={}", place.line, place.end_line));
            // GitHub drops an annotation with columns that spans lines.
            if place.line == place.end_line {
                properties.push(format!("col={},endColumn={}", place.column, place.end_column));
            }
        }
        properties.push(format!("title={}", github_property(&problem.code)));
        let message = github_data(&problem.full_message());
        let _ = writeln!(text, "::{level} {}::{message}", properties.join(","));
    }
    text
}

fn github_data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

fn github_property(text: &str) -> String {
    github_data(text).replace(':', "%3A").replace(',', "%2C")
}

impl Finding {
    fn full_message(&self) -> String {
        match &self.help {
            Some(help) => format!("{}\n{help}", self.message),
            None => self.message.clone(),
        }
    }
}

/// A SARIF 2.1.0 log, as code scanning services take it.
pub fn to_sarif(files: &[CheckedFile], version: &str) -> Value {
    let problems: Vec<&Finding> = files.iter().flat_map(|file| &file.problems).collect();
    let mut codes: Vec<&str> = problems.iter().map(|problem| problem.code.as_str()).collect();
    codes.sort_unstable();
    codes.dedup();
    let results: Vec<Value> = problems
        .iter()
        .map(|problem| {
            let mut physical = json!({ "artifactLocation": { "uri": uri(&problem.file) } });
            if let Some(place) = problem.place {
                physical["region"] = json!({
                    "startLine": place.line, "startColumn": place.column,
                    "endLine": place.end_line, "endColumn": place.end_column,
                });
            }
            json!({
                "ruleId": problem.code,
                "ruleIndex": codes.binary_search(&problem.code.as_str()).unwrap_or(0),
                "level": problem.severity,
                "message": { "text": problem.full_message() },
                "locations": [{ "physicalLocation": physical }],
            })
        })
        .collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "lifeboat",
                "version": version,
                "rules": codes.iter().map(|code| json!({ "id": code })).collect::<Vec<_>>(),
            }},
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    })
}

/// A path as a relative URI reference.
fn uri(path: &str) -> String {
    let mut text = String::new();
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// A JUnit report: a test case for each file, failing on its first error.
pub fn to_junit(files: &[CheckedFile]) -> String {
    let failed = files.iter().filter(|file| !file.errors().is_empty()).count();
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"lifeboat check\" tests=\"{0}\" failures=\"{failed}\">\n  \
         <testsuite name=\"lifeboat check\" tests=\"{0}\" failures=\"{failed}\" errors=\"0\">\n",
        files.len()
    );
    for file in files {
        let errors = file.errors();
        let name = xml(file.plan.as_deref().unwrap_or(&file.file));
        let _ = write!(text, "    <testcase classname=\"{}\" name=\"{name}\"", xml(&file.file));
        if file.problems.is_empty() {
            text.push_str("/>\n");
            continue;
        }
        text.push_str(">\n");
        if let Some(first) = errors.first() {
            let _ = writeln!(
                text,
                "      <failure type=\"{}\" message=\"{}\">{}</failure>",
                xml(&first.code),
                xml(&first.message),
                xml(&lines(&errors))
            );
        }
        let warnings: Vec<&Finding> =
            file.problems.iter().filter(|problem| problem.severity == Severity::Warning).collect();
        if !warnings.is_empty() {
            let _ = writeln!(text, "      <system-out>{}</system-out>", xml(&lines(&warnings)));
        }
        text.push_str("    </testcase>\n");
    }
    text.push_str("  </testsuite>\n</testsuites>\n");
    text
}

impl CheckedFile {
    /// The problems that stand in the way.
    pub fn errors(&self) -> Vec<&Finding> {
        self.problems.iter().filter(|problem| problem.severity == Severity::Error).collect()
    }
}

fn lines(problems: &[&Finding]) -> String {
    let line = |problem: &&Finding| {
        let place = problem.place.map(|place| format!(":{}:{}", place.line, place.column)).unwrap_or_default();
        format!("{}{place}: {} [{}]", problem.file, problem.full_message().replace('\n', ": "), problem.code)
    };
    problems.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push_str("&#10;"),
            // XML 1.0 has no way to write the other control characters.
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> Vec<CheckedFile> {
        let text = "steps:\n  rëstore: { postgres.restor: {} }\n";
        let at = text.find("postgres.restor").unwrap();
        vec![
            CheckedFile {
                file: "plans/good.yaml".into(),
                plan: Some("good".into()),
                steps: Some(2),
                problems: vec![],
            },
            CheckedFile {
                file: "plans/a b.yaml".into(),
                plan: None,
                steps: None,
                problems: vec![Finding {
                    code: "lifeboat::unknown_step_type".into(),
                    severity: Severity::Error,
                    message: "no step type is called `postgres.restor`".into(),
                    help: Some("did you mean `postgres.restore`?".into()),
                    file: "plans/a b.yaml".into(),
                    place: Some(Place::of(text, at, "postgres.restor".len())),
                }],
            },
        ]
    }

    #[test]
    fn places_count_characters() {
        let place = files()[1].problems[0].place.unwrap();
        assert_eq!((place.line, place.column, place.end_line, place.end_column), (2, 14, 2, 29));
    }

    #[test]
    fn forms_for_other_tools() {
        insta::assert_snapshot!("github", to_github(&files()));
        insta::assert_snapshot!("junit", to_junit(&files()));
        insta::assert_snapshot!("sarif", format!("{:#}", to_sarif(&files(), "0.1.0")));
        insta::assert_snapshot!("json", format!("{:#}", to_json(&files())));
    }
}
