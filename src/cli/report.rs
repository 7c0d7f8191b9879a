//! `lifeboat report`.

use std::path::PathBuf;

use super::Common;
use super::exit::{Error, Exit};
use super::out::Out;
use super::run_folder::{self, Found};
use crate::report::markdown::markdown;

/// Print the evidence of a run
///
/// From the journal alone: the same journal gives the same report, on any machine and in any year.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run: its id or the beginning of it; the latest without one
    run: Option<String>,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
    /// Write it to this file
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Format {
    /// Markdown
    #[default]
    Md,
    /// One object, by `lifeboat schema report`
    Json,
}

pub fn report(args: &Args, common: &Common, out: &Out) -> Result<Exit, Error> {
    let store = run_folder::store(common)?;
    let found = Found::read(store.find(args.run.as_deref())?)?;
    let text = match args.format {
        Format::Md => markdown(&found.evidence),
        Format::Json => serde_json::to_string_pretty(&found.evidence)
            .map(|text| text + "\n")
            .map_err(|error| Error::new(Exit::Defect, format!("failed to write JSON: {error}")))?,
    };
    match &args.output {
        None => out.print(&text)?,
        Some(path) => {
            std::fs::write(path, text).map_err(|error| Error::file("write", path, &error))?;
            out.say(&format!("the report of run {} is in {}", found.folder.id, path.display()));
        }
    }
    Ok(Exit::Done)
}
