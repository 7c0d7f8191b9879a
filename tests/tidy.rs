//! Rules of the source that no compiler knows: which way imports run, and how long a file may grow.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what went wrong by panicking, its helpers too")]

use std::path::{Path, PathBuf};

/// The modules from the lowest to the highest; each may import those before it and itself.
/// Modules of one group may import each other.
const LAYERS: &[&[&str]] = &[
    &["ids", "units", "secret", "retry", "matcher", "template", "kill"],
    // A failure becomes a record, so these two know each other.
    &["failure", "record"],
    &["service"],
    &["dump"],
    &["step"],
    &["environment"],
    &["sandbox"],
    &["plan"],
    &["engine"],
    &["cli"],
];

/// Besides the small words of the domain, reports know records alone.
const REPORT_MAY: &[&str] = &["ids", "units", "secret", "failure", "record", "report"];

/// A file of more lines hides something.
const LONGEST: usize = 500;

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// Every `crate::module` that a file names outside comments.
fn imports(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        for (at, _) in code.match_indices("crate::") {
            let rest = &code[at + "crate::".len()..];
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
            found.push((number + 1, &rest[..end]));
        }
    }
    found
}

#[test]
fn imports_run_downwards_only() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for path in sources(&src) {
        let below = path.strip_prefix(&src).unwrap();
        let module = below.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs");
        if matches!(module, "lib" | "main") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for (line, used) in imports(&text) {
            let allowed = match module {
                "report" => REPORT_MAY.contains(&used),
                "cli" => true,
                _ => {
                    let mine = layer(module).unwrap_or_else(|| panic!("say in which layer `{module}` is"));
                    layer(used).is_some_and(|theirs| theirs <= mine)
                }
            };
            if !allowed {
                wrong.push(format!("src/{}:{line}: `{module}` may not use `{used}`", below.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_stay_short() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut wrong = Vec::new();
    for path in sources(&root.join("src")).into_iter().chain(sources(&root.join("tests"))) {
        let name = path.strip_prefix(root).unwrap().display().to_string();
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        if lines > LONGEST {
            wrong.push(format!("{name} has {lines} lines: split it by concept"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
