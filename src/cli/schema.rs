//! `lifeboat schema`.

use schemars::{Schema, schema_for};

use super::exit::{Error, Exit};
use super::out::Out;
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
    /// A line of a run's journal, and of `--format json`
    Event,
    /// `lifeboat report --format json`
    Report,
}

pub fn schema(args: &Args, out: &Out) -> Result<Exit, Error> {
    let (title, mut schema) = match args.of {
        Of::Event => ("A record of a Lifeboat run", schema_for!(Record)),
        Of::Report => ("The report of a Lifeboat run", schema_for!(Evidence)),
    };
    name(&mut schema, title);
    out.print_json(&schema)?;
    Ok(Exit::Done)
}

fn name(schema: &mut Schema, title: &str) {
    schema.insert("title".to_owned(), title.into());
}
