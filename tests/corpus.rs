//! Good and bad plans: what the checker says of each, whole, and that the published schema agrees.
//!
//! `corpus/bad/expected.txt` names, for each bad plan, the environment it is checked with, what
//! the schema says of it, and the codes of its problems. `UPDATE_CORPUS=1` rewrites that file:
//! read the difference before you keep it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what went wrong by panicking, its helpers too")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use lifeboat::plan::load::{self, Loaded, Options};
use lifeboat::plan::{schema, source};
use miette::{GraphicalReportHandler, GraphicalTheme};

const BAD: &str = "tests/corpus/bad";
const GOOD: &str = "tests/corpus/good";

fn plans(folder: &str) -> Vec<PathBuf> {
    let mut plans: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    plans.sort();
    plans
}

fn name(path: &Path) -> String {
    path.file_stem().unwrap().to_string_lossy().into_owned()
}

fn load(path: &Path, environment: Option<&str>) -> Loaded {
    let options = Options { environment: environment.map(str::to_owned), ..Options::default() };
    load::load(path, &options)
}

/// What a person sees, at a fixed width and without colour.
fn rendered(loaded: &Loaded) -> String {
    let handler =
        GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor()).with_width(110).with_links(false);
    let mut text = String::new();
    for problem in &loaded.problems {
        handler.render_report(&mut text, problem).unwrap();
        text.push('\n');
    }
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// Whether the schema accepts a file; none when it is no YAML at all.
fn schema_accepts(validator: &jsonschema::Validator, path: &Path) -> Option<bool> {
    let (source, _) = source::read("x", &std::fs::read(path).unwrap());
    Some(validator.is_valid(&source?.root.to_value()))
}

fn plan_validator() -> jsonschema::Validator {
    jsonschema::validator_for(&schema::plan()).unwrap()
}

#[test]
fn bad_plans_are_told_what_is_wrong() {
    let file = Path::new(BAD).join("expected.txt");
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    let environments: BTreeMap<&str, &str> = expected
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next()?.strip_suffix(':')?;
            Some((name, words.find_map(|word| word.strip_prefix("env="))?))
        })
        .collect();
    let validator = plan_validator();
    let mut found = String::new();
    let mut snapshots = insta::Settings::clone_current();
    snapshots.set_snapshot_path("corpus/snapshots");
    snapshots.set_prepend_module_to_snapshot(false);
    for path in plans(BAD) {
        let name = name(&path);
        let environment = environments.get(name.as_str()).copied();
        let loaded = load(&path, environment);
        write!(found, "{name}:").unwrap();
        if let Some(environment) = environment {
            write!(found, " env={environment}").unwrap();
        }
        let word = match schema_accepts(&validator, &path) {
            Some(true) => "accepts",
            Some(false) => "refuses",
            None => "-",
        };
        write!(found, " schema={word}").unwrap();
        for problem in &loaded.problems {
            let sign = if problem.is_error() { "" } else { "~" };
            write!(found, " {sign}{}", problem.code.strip_prefix("lifeboat::").unwrap()).unwrap();
        }
        found.push('\n');
        assert!(!loaded.problems.is_empty(), "{name} is good");
        // Whatever editors underline, the checker must refuse.
        assert!(word != "refuses" || loaded.has_errors(), "{name}: the schema refuses what the checker accepts");
        snapshots.bind(|| insta::assert_snapshot!(name.as_str(), rendered(&loaded)));
    }
    if std::env::var_os("UPDATE_CORPUS").is_some() {
        std::fs::write(&file, &found).unwrap();
    } else {
        assert_eq!(found, expected, "{}", file.display());
    }
}

#[test]
fn good_plans_load_and_the_schema_accepts_them() {
    let validator = plan_validator();
    for folder in [GOOD, "plans"] {
        for path in plans(folder) {
            let loaded = load(&path, None);
            assert!(!loaded.has_errors(), "{}\n{}", path.display(), rendered(&loaded));
            assert_eq!(schema_accepts(&validator, &path), Some(true), "{}", path.display());
            // The corpus has one environment, made for one plan.
            let environments = if folder == GOOD { Vec::new() } else { load::environments(Path::new(folder)) };
            for environment in environments {
                let loaded = load(&path, Some(&environment));
                assert!(!loaded.has_errors(), "{} with {environment}\n{}", path.display(), rendered(&loaded));
            }
        }
    }
}

#[test]
fn the_example_of_the_language_page_has_nothing_to_tell_in_its_environment() {
    let loaded = load(&Path::new(GOOD).join("the-example.yaml"), Some("production"));
    let told: Vec<_> =
        loaded.problems.iter().filter(|problem| problem.code != "lifeboat::missing_secret").collect();
    assert!(told.is_empty(), "{}", rendered(&loaded));
}

#[test]
fn environments_are_accepted_by_their_schema() {
    let validator = jsonschema::validator_for(&schema::environment()).unwrap();
    for folder in ["plans/environments", "tests/corpus/good/environments"] {
        for path in plans(folder) {
            let (source, _) = source::read("x", &std::fs::read(&path).unwrap());
            let value = source.unwrap().root.to_value();
            let errors: Vec<String> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{}: {errors:#?}", path.display());
        }
    }
    let broken = Path::new(BAD).join("environments/broken.yaml");
    assert_eq!(schema_accepts(&validator, &broken), Some(false));
}

#[test]
fn a_plan_that_is_written_twice_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let plan = "lifeboat: 1\nplan: same\nsteps:\n  a: { wait: { for: 1s } }\n";
    std::fs::write(folder.path().join("a.yaml"), plan).unwrap();
    std::fs::write(folder.path().join("b.yaml"), plan).unwrap();
    let all = load::load_folder(folder.path(), &Options::default()).unwrap();
    let codes: Vec<Vec<&str>> =
        all.iter().map(|(_, loaded)| loaded.problems.iter().map(|problem| problem.code).collect()).collect();
    assert_eq!(codes, [vec![], vec!["lifeboat::duplicate_plan"]]);
}
