//! `lifeboat schema`.

use schemars::schema_for;
use serde_json::Value;

use super::exit::{Error, Exit};
use super::out::Out;
use crate::engine::preview::PreviewReport;
use crate::plan;
use crate::record::event::Record;
use crate::report::evidence::Evidence;

/// Print a JSON Schema
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Of what
    #[arg(value_enum)]
    of: Of,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Of {
    /// A plan file
    Plan,
    /// An environment file
    Environment,
    /// A line of a run's journal, and of `--format json`
    Event,
    /// `lifeboat run --dry-run --format json`
    Preview,
    /// `lifeboat report --format json`
    Report,
}

pub fn schema(args: &Args, out: &Out) -> Result<Exit, Error> {
    let (title, mut schema) = match args.of {
        Of::Plan => return print(&plan::schema::plan(), out),
        Of::Environment => return print(&plan::schema::environment(), out),
        Of::Event => ("A record of a Lifeboat run", schema_for!(Record)),
        Of::Preview => ("A dry-run of Lifeboat", schema_for!(PreviewReport)),
        Of::Report => ("The report of a Lifeboat run", schema_for!(Evidence)),
    };
    schema.insert("title".to_owned(), title.into());
    print(&schema.to_value(), out)
}

fn print(schema: &Value, out: &Out) -> Result<Exit, Error> {
    out.print_json(schema)?;
    Ok(Exit::Done)
}
