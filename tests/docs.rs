//! The documentation does what it says: its commands run, and its generated pages are the program's.
//!
//! A `yaml` block that begins with `# name.yaml` becomes that file; each line `$ command` of a
//! `console` block runs in the same folder, in order, and ends with 0, or as `# exit N` says.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what went wrong by panicking, its helpers too")]

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// One thing to do, in the order of the page.
enum Piece {
    File(String, String),
    Command { line: usize, text: String, exit: i32 },
}

fn pieces(page: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut lines = page.lines().enumerate();
    while let Some((_, line)) = lines.next() {
        let Some(language) = line.strip_prefix("```").filter(|language| !language.is_empty()) else { continue };
        let block: Vec<(usize, &str)> = lines.by_ref().take_while(|(_, line)| !line.starts_with("```")).collect();
        match language {
            "yaml" => {
                let name = block.first().and_then(|(_, first)| first.strip_prefix("# "));
                if let Some(name) = name.filter(|name| Path::new(name).extension().is_some_and(|it| it == "yaml")) {
                    let text: Vec<&str> = block.iter().map(|(_, line)| *line).collect();
                    pieces.push(Piece::File(name.to_owned(), text.join("\n") + "\n"));
                }
            }
            "console" => {
                for (number, line) in block {
                    let Some(command) = line.strip_prefix("$ ") else { continue };
                    let (text, exit) = match command.rsplit_once("# exit ") {
                        Some((text, code)) => (text.trim(), code.trim().parse().unwrap()),
                        None => (command, 0),
                    };
                    pieces.push(Piece::Command { line: number + 1, text: text.to_owned(), exit });
                }
            }
            _ => {}
        }
    }
    pieces
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// Runs every command of a page in a folder that has the repository's plans.
fn follow(page: &str) {
    let text = std::fs::read_to_string(root().join(page)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    copy(&root().join("plans"), &folder.path().join("plans"));
    let program = PathBuf::from(env!("CARGO_BIN_EXE_lifeboat"));
    let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut ran = 0;
    for piece in pieces(&text) {
        match piece {
            Piece::File(name, text) => std::fs::write(folder.path().join(name), text).unwrap(),
            Piece::Command { line, text, exit } => {
                ran += 1;
                let output = Command::new("bash")
                    .args(["-o", "pipefail", "-c", &text])
                    .current_dir(folder.path())
                    .env("PATH", &path)
                    .env_remove("LIFEBOAT_STATE")
                    .env_remove("LIFEBOAT_LOG")
                    // Made-up secrets of `plans/environments/production.yaml`; nothing here makes contact with it.
                    .env("DATABASE_ADMIN_URL", "postgres://admin:made-up@127.0.0.1:1/postgres")
                    .env("S3_ENDPOINT", "http://127.0.0.1:1")
                    .env("S3_ACCESS_KEY_ID", "made-up-id")
                    .env("S3_SECRET_ACCESS_KEY", "made-up-key")
                    .env("ONCALL_WEBHOOK", "http://127.0.0.1:1/hook")
                    .output()
                    .unwrap();
                assert_eq!(
                    output.status.code(),
                    Some(exit),
                    "{page}:{line}: $ {text}\n{}{}",
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr)
                );
            }
        }
    }
    assert!(ran > 0, "{page} has no command: it needs no test");
}

#[test]
fn readme() {
    follow("README.md");
}

#[test]
fn getting_started() {
    follow("docs/getting-started.md");
}

#[test]
fn writing_plans() {
    follow("docs/writing-plans.md");
}

#[test]
fn running_and_resuming() {
    follow("docs/running-and-resuming.md");
}

#[test]
fn environments_and_secrets() {
    follow("docs/environments-and-secrets.md");
}

#[test]
fn journal() {
    follow("docs/design/journal.md");
}

#[test]
fn every_page_with_commands_is_followed() {
    let tests = include_str!("docs.rs");
    let mut pages = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    for folder in ["docs", "docs/design"] {
        pages.extend(std::fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path()));
    }
    for page in pages.iter().filter(|page| page.extension().is_some_and(|extension| extension == "md")) {
        let name = page.strip_prefix(root()).unwrap().display().to_string();
        if std::fs::read_to_string(page).unwrap().contains("\n```console") {
            assert!(tests.contains(&format!("follow(\"{name}\")")), "{name} has commands that no test runs");
        }
    }
}

#[test]
fn generated_files_are_what_the_program_says() {
    let mut wrong = Vec::new();
    let schemas = ["plan", "environment", "event", "preview", "report"];
    let mut files: Vec<(String, Vec<&str>)> =
        schemas.iter().map(|of| (format!("schemas/{of}.schema.json"), vec!["schema", of])).collect();
    files.push(("docs/steps.md".to_owned(), vec!["steps", "--format", "markdown"]));
    files.push(("docs/commands.md".to_owned(), vec!["man", "--format", "markdown"]));
    for (file, arguments) in files {
        let output = Command::new(env!("CARGO_BIN_EXE_lifeboat")).args(&arguments).output().unwrap();
        assert!(output.status.success(), "lifeboat {}", arguments.join(" "));
        if std::fs::read(root().join(&file)).unwrap_or_default() != output.stdout {
            wrong.push(file);
        }
    }
    assert!(wrong.is_empty(), "out of date, run `just schemas`: {}", wrong.join(", "));
}

/// Links between pages lead to files that exist.
#[test]
fn links_lead_somewhere() {
    let mut pages =
        vec![PathBuf::from("README.md"), PathBuf::from("CONTRIBUTING.md"), PathBuf::from("CHANGELOG.md")];
    for folder in ["docs", "docs/design"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            pages.push(entry.unwrap().path().strip_prefix(root()).unwrap().to_owned());
        }
    }
    let mut wrong = Vec::new();
    for page in pages.iter().filter(|page| page.extension().is_some_and(|extension| extension == "md")) {
        let text = std::fs::read_to_string(root().join(page)).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            let outside = target.contains("://") || target.is_empty();
            if !outside && !root().join(page).parent().unwrap().join(target).exists() {
                wrong.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
