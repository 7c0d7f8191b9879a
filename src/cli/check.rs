//! `lifeboat check`.

use std::path::{Path, PathBuf};

use super::exit::{Error, Exit};
use super::load;
use super::out::Out;
use super::problem;
use crate::report::finding::{self, CheckedFile, Finding};
use crate::report::text::{Table, plural};

/// Check plans: everything that can be known without contact
///
/// Shape, references, hazards; every problem at once, with the place underlined.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Plan files, or folders: all plans in them
    #[arg(required = true, value_name = "PLAN")]
    plans: Vec<PathBuf>,
    /// The environment to check against: a name (`environments/NAME.yaml` beside the plan) or a file
    #[arg(short, long, value_name = "ENV")]
    env: Option<String>,
    /// How to print what is found
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Format {
    /// For people, the place underlined
    #[default]
    Human,
    /// One object
    Json,
    /// Annotations of a GitHub workflow
    Github,
    /// SARIF 2.1.0, for code scanning
    Sarif,
    /// A JUnit report, a test case for each plan
    Junit,
}

pub fn check(args: &Args, out: &Out) -> Result<Exit, Error> {
    let mut files = Vec::new();
    for path in &args.plans {
        files.extend(plans_of(path)?);
    }
    let mut checked: Vec<CheckedFile> = Vec::new();
    let mut pages = String::new();
    for path in &files {
        let (mut file, problems) = load::check(path, args.env.as_deref());
        // What is wrong in an environment or a called plan is said once, with the first plan that uses it.
        let known = |found: &Finding| checked.iter().any(|other| other.problems.contains(found));
        let new: Vec<bool> = file.problems.iter().map(|found| !known(found)).collect();
        for (problem, _) in problems.iter().zip(&new).filter(|(_, new)| **new) {
            pages.push_str(&problem::page(problem, out.paint));
        }
        let mut new = new.into_iter();
        file.problems.retain(|_| new.next().unwrap_or(true));
        checked.push(file);
    }
    match args.format {
        Format::Human => out.print(&format!("{pages}{}", summary(&checked, out)))?,
        Format::Json => out.print_json(&finding::to_json(&checked))?,
        Format::Github => out.print(&finding::to_github(&checked))?,
        Format::Sarif => out.print_json(&finding::to_sarif(&checked, env!("CARGO_PKG_VERSION")))?,
        Format::Junit => out.print(&finding::to_junit(&checked))?,
    }
    let wrong = checked.iter().any(|file| !file.errors().is_empty());
    Ok(if wrong { Exit::Usage } else { Exit::Done })
}

/// A file is a plan; of a folder every YAML file in it, but not those in its folders.
fn plans_of(path: &Path) -> Result<Vec<PathBuf>, Error> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let failed = |error: std::io::Error| Error::file("read the folder", path, &error);
    let mut plans = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        let yaml = file.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        if yaml && file.is_file() {
            plans.push(file);
        }
    }
    plans.sort();
    if plans.is_empty() {
        return Err(Error::usage(format!("there is no plan (`*.yaml`) in {}", path.display())));
    }
    Ok(plans)
}

fn summary(checked: &[CheckedFile], out: &Out) -> String {
    let mut table = Table::new(0);
    for file in checked {
        let errors = file.errors().len();
        let warnings = file.problems.len() - errors;
        let mut said = Vec::new();
        if errors > 0 {
            said.push(plural(errors, "error"));
        }
        if warnings > 0 {
            said.push(plural(warnings, "warning"));
        }
        if said.is_empty() {
            said.extend(file.steps.map(|steps| plural(steps, "step")));
        }
        let mark = match (errors, warnings) {
            (0, 0) => out.paint.good("✓"),
            (0, _) => out.paint.warn("!"),
            _ => out.paint.bad("✗"),
        };
        table.row([mark, file.file.clone(), said.join(", ")]);
    }
    table.render(out.paint)
}
