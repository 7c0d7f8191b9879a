//! `lifeboat steps`: the reference of the step types, from the same source as the schema.

mod reference;

use std::fmt::Write as _;

use serde_json::json;

use self::reference::{Parameter, Reference};
use super::exit::{Error, Exit};
use super::out::Out;
use crate::report::text::{Paint, Table, wrap};
use crate::step::{self, TypeInfo};

/// Show the reference of the step types, or of one
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A step type (`postgres.restore`), or the first part of its name (`postgres`)
    #[arg(value_name = "TYPE")]
    name: Option<String>,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Format {
    #[default]
    Human,
    Json,
    Markdown,
}

pub fn steps(args: &Args, out: &Out) -> Result<Exit, Error> {
    let chosen = choose(args.name.as_deref())?;
    match args.format {
        Format::Json => out.print_json(&chosen.iter().map(|info| to_json(info)).collect::<Vec<_>>())?,
        Format::Markdown => out.print(&to_markdown(&chosen))?,
        Format::Human if chosen.len() == 1 => out.print(&one(&Reference::of(chosen[0]), out.paint))?,
        Format::Human => out.print(&list(&chosen, out.paint))?,
    }
    Ok(Exit::Done)
}

fn choose(name: Option<&str>) -> Result<Vec<&'static TypeInfo>, Error> {
    let Some(name) = name else { return Ok(step::TYPES.iter().collect()) };
    if let Some(info) = step::find(name) {
        return Ok(vec![info]);
    }
    let family: Vec<_> = step::TYPES.iter().filter(|info| info.name.split('.').next() == Some(name)).collect();
    if !family.is_empty() {
        return Ok(family);
    }
    let nearest = step::TYPES
        .iter()
        .map(|info| info.name)
        .max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
    let error = Error::usage(format!("no step type is called `{name}`"));
    Err(match nearest {
        Some(nearest) => error.help(format!("did you mean `{nearest}`? `lifeboat steps` lists them all")),
        None => error,
    })
}

fn list(types: &[&'static TypeInfo], paint: Paint) -> String {
    let mut text = String::new();
    for family in families(types) {
        let mut table = Table::new(2);
        for info in &family {
            // Every family is aligned alike.
            let longest = types.iter().map(|info| info.name.len()).max().unwrap_or(0);
            table.row([paint.name(&format!("{:longest$}", info.name)), info.summary.to_owned()]);
        }
        let _ = write!(text, "{}\n{}\n", paint.strong(title(family[0])), table.render(paint));
    }
    let hint = wrap("`lifeboat steps TYPE` shows the parameters and outputs of one.", paint.width, 0);
    let _ = writeln!(text, "{}", paint.dim(&hint));
    text
}

fn families(types: &[&'static TypeInfo]) -> Vec<Vec<&'static TypeInfo>> {
    let mut families: Vec<Vec<&'static TypeInfo>> = Vec::new();
    for info in types {
        match families.iter_mut().find(|family| title(family[0]) == title(info)) {
            Some(family) => family.push(info),
            None => families.push(vec![info]),
        }
    }
    families
}

fn title(info: &TypeInfo) -> &'static str {
    match info.name.split('.').next().unwrap_or_default() {
        "postgres" => "PostgreSQL",
        "container" => "Containers",
        "storage" => "Storage",
        "redis" => "Redis",
        "http" | "dns" | "notify" => "Network",
        _ => "People, control, host",
    }
}

fn one(reference: &Reference, paint: Paint) -> String {
    let mut text = format!("{}\n  {}\n", paint.strong(reference.name), wrap(reference.summary, paint.width, 2));
    let mut parameters = Table::new(2);
    for parameter in &reference.parameters {
        let name = if parameter.required { paint.name(&parameter.name) } else { parameter.name.clone() };
        parameters.row([name, described(parameter, paint)]);
    }
    if !parameters.is_empty() {
        let _ = write!(text, "\n{}\n{}", paint.strong("Parameters"), parameters.render(paint));
    }
    let mut outputs = Table::new(2);
    for output in &reference.outputs {
        outputs.row([output.name.to_owned(), paint.dim(reference::kind(output.kind)), output.help.to_owned()]);
    }
    if !outputs.is_empty() {
        let _ = write!(text, "\n{}\n{}", paint.strong("Outputs"), outputs.render(paint));
    }
    let _ = write!(text, "\n{}\n  {}\n", paint.strong("After a kill"), wrap(reference.after_kill, paint.width, 2));
    let _ = write!(text, "\n{}\n{}", paint.strong("As written"), reference.example(2));
    text
}

fn described(parameter: &Parameter, paint: Paint) -> String {
    let mut facts = parameter.kind.clone();
    if parameter.required {
        facts.push_str(", required");
    }
    if let Some(default) = &parameter.default {
        let _ = write!(facts, ", by default {default}");
    }
    format!("{}\n{}", paint.dim(&facts), parameter.help)
}

fn to_json(info: &TypeInfo) -> serde_json::Value {
    let outputs: Vec<_> = (info.outputs)()
        .iter()
        .map(|output| json!({ "name": output.name, "type": reference::kind(output.kind), "help": output.help }))
        .collect();
    json!({
        "type": info.name,
        "summary": info.summary,
        "proves_health": info.proves_health,
        "after_kill": info.after_kill,
        "outputs": outputs,
        "parameters": reference::schema_of(info),
    })
}

/// The generated page of the documentation.
fn to_markdown(types: &[&'static TypeInfo]) -> String {
    let mut text = String::from(
        "# Step types\n\n<!-- Generated by `just schemas` from the program. Do not edit. -->\n\n\
         The key of a step is its type; its value is its parameters, those in **bold** are required. How steps are put\n\
         together is told in [writing-plans.md](writing-plans.md). *After a kill* says how a step that was in flight when\n\
         Lifeboat was killed finds out what became of it; see [running-and-resuming.md](running-and-resuming.md).\n",
    );
    for family in families(types) {
        let _ = write!(text, "\n## {}\n", title(family[0]));
        for info in family {
            let reference = Reference::of(info);
            let _ =
                write!(text, "\n### {}\n\n{}\n\n```yaml\n{}```\n", info.name, info.summary, reference.example(0));
            if !reference.parameters.is_empty() {
                text.push_str("\n| parameter | type | |\n| --- | --- | --- |\n");
            }
            for parameter in &reference.parameters {
                let name =
                    if parameter.required { format!("**{}**", parameter.name) } else { parameter.name.clone() };
                let mut help = parameter.help.clone();
                if let Some(default) = &parameter.default {
                    let _ = write!(help, " Default: `{default}`.");
                }
                let _ = writeln!(text, "| {name} | {} | {} |", cell(&parameter.kind), cell(help.trim()));
            }
            if !reference.outputs.is_empty() {
                text.push_str("\n| output | type | |\n| --- | --- | --- |\n");
            }
            for output in &reference.outputs {
                let _ = writeln!(
                    text,
                    "| {} | {} | {} |",
                    output.name,
                    reference::kind(output.kind),
                    cell(output.help)
                );
            }
            let _ = writeln!(text, "\n*After a kill:* {}.", info.after_kill.trim_end_matches('.'));
        }
    }
    text
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
