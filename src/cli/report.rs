//! `lifeboat report`.

use std::path::PathBuf;

use super::Common;
use super::exit::{Error, Exit};
use super::out::Out;
use super::run_folder::{self, Found};
use crate::record::bundle;
use crate::report::markdown::markdown;

/// Print the evidence of a run
///
/// From the journal alone: the same journal gives the same report, on any machine and in any year.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run: its id or the beginning of it, or a bundle's file; the latest without one
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
    /// One file with the journal, plan, environment, inputs, logs and reports, for `lifeboat audit FILE` elsewhere
    Bundle,
}

pub fn report(args: &Args, common: &Common, out: &Out) -> Result<Exit, Error> {
    let opened = run_folder::open(args.run.as_deref(), common)?;
    if let Some(flaw) = opened.flaws().first() {
        return Err(Error::new(Exit::Failed, format!("the bundle is damaged: {}: {}", flaw.what, flaw.why))
            .help("`lifeboat audit FILE` lists all that is not as it was"));
    }
    let found = Found::read(opened.folder().clone())?;
    let json = || {
        serde_json::to_string_pretty(&found.evidence)
            .map(|text| text + "\n")
            .map_err(|error| Error::new(Exit::Defect, format!("failed to write JSON: {error}")))
    };
    let text = match args.format {
        Format::Md => markdown(&found.evidence),
        Format::Json => json()?,
        Format::Bundle => {
            let Some(path) = &args.output else {
                return Err(Error::usage("a bundle is a file: it isn't printed").help("add `-o FILE`"));
            };
            let reports =
                [("report.json", json()?.into_bytes()), ("report.md", markdown(&found.evidence).into_bytes())];
            let manifest = bundle::write(&found.folder, &reports, path)
                .map_err(|error| Error::new(Exit::Failed, error.to_string()))?;
            out.say(&format!("run {} is in {}; head {}", found.folder.id, path.display(), manifest.head));
            return Ok(Exit::Done);
        }
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
