//! `lifeboat graph`: the picture of a plan.

mod layers;
mod svg;

use std::fmt::Write as _;

use renderdag::{Ancestor, GraphRowRenderer, Renderer};
use serde_json::json;

use self::layers::Drawing;
use super::exit::{Error, Exit};
use super::load::{self, PlanArgs};
use super::out::Out;
use crate::ids::StepId;
use crate::plan::Plan;
use crate::report::text::{Paint, width};

/// Draw a plan's graph
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    plan: PlanArgs,
    /// How to draw it
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Format {
    /// Lines and words
    #[default]
    Text,
    /// For Graphviz
    Dot,
    /// For Markdown pages that draw Mermaid
    Mermaid,
    /// A picture
    Svg,
    /// Steps and what they wait for
    Json,
}

pub fn graph(args: &Args, out: &Out) -> Result<Exit, Error> {
    let Some(plan) = load::look(&args.plan, out)? else { return Ok(Exit::Usage) };
    let drawing = Drawing::of(&plan);
    match args.format {
        Format::Text => out.print(&text(&drawing, out.paint))?,
        Format::Dot => out.print(&dot(&plan.name, &drawing))?,
        Format::Mermaid => out.print(&mermaid(&drawing))?,
        Format::Svg => out.print(&svg::svg(plan.title.as_deref().unwrap_or(&plan.name), &drawing))?,
        Format::Json => out.print_json(&to_json(&plan))?,
    }
    Ok(Exit::Done)
}

/// A step as pictures show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Box {
    pub id: String,
    pub kind: String,
    pub finally: bool,
    pub look: Look,
}

/// What a step's box looks like: its strongest effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Reads,
    Changes,
    Destroys,
    Asks,
}

fn text(drawing: &Drawing, paint: Paint) -> String {
    let mut renderer = GraphRowRenderer::new().output().with_min_row_height(1).build_box_drawing();
    let dependants = drawing.dependants();
    let mut text = String::new();
    for (at, step) in drawing.boxes.iter().enumerate() {
        // The renderer draws towards parents; a plan is drawn towards those that wait.
        let below = dependants[at].iter().map(|other| Ancestor::Parent(*other)).collect();
        let glyph = match (step.look, step.finally) {
            (Look::Destroys, _) => "●",
            (Look::Asks, _) => "?",
            (_, true) => "◇",
            _ => "○",
        };
        let label = format!("{}  {}", step.id, step.kind);
        text.push_str(&renderer.next_row(at, below, glyph.to_owned(), label));
    }
    let mut painted = String::new();
    for line in text.lines() {
        let line = line.trim_end();
        // The label's last word is the type.
        match line.rsplit_once("  ") {
            Some((left, kind)) if paint.color && width(kind) > 0 => {
                let _ = writeln!(painted, "{left}  {}", paint.dim(kind));
            }
            _ => {
                let _ = writeln!(painted, "{line}");
            }
        }
    }
    painted.push_str(&paint.dim("○ step  ● destroys  ? asks a person  ◇ finally\n"));
    painted
}

fn dot(name: &str, drawing: &Drawing) -> String {
    let quote = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut text = format!(
        "digraph {} {{\n  rankdir=TB;\n  node [shape=box, style=rounded, fontname=\"sans-serif\"];\n",
        quote(name)
    );
    for step in &drawing.boxes {
        let label = format!("{}\\n{}", step.id, step.kind);
        let look = match step.look {
            Look::Destroys => ", color=red",
            Look::Asks => ", style=\"rounded,bold\"",
            _ if step.finally => ", style=\"rounded,dashed\"",
            _ => "",
        };
        let _ = writeln!(text, "  {} [label=\"{}\"{look}];", quote(&step.id), label.replace('"', "\\\""));
    }
    for (from, to) in &drawing.edges {
        let _ = writeln!(text, "  {} -> {};", quote(&drawing.boxes[*from].id), quote(&drawing.boxes[*to].id));
    }
    text.push_str("}\n");
    text
}

fn mermaid(drawing: &Drawing) -> String {
    let mut text = "flowchart TD\n".to_owned();
    for (at, step) in drawing.boxes.iter().enumerate() {
        let label = format!("{}<br/><small>{}</small>", step.id.replace('"', "#quot;"), step.kind);
        let (open, close) = match step.look {
            Look::Asks => ("{{", "}}"),
            _ if step.finally => ("([", "])"),
            _ => ("[", "]"),
        };
        let class = if step.look == Look::Destroys { ":::destroys" } else { "" };
        let _ = writeln!(text, "  s{at}{open}\"{label}\"{close}{class}");
    }
    for (from, to) in &drawing.edges {
        let _ = writeln!(text, "  s{from} --> s{to}");
    }
    text.push_str("  classDef destroys stroke:#c00,stroke-width:2px\n");
    text
}

fn to_json(plan: &Plan) -> serde_json::Value {
    let steps: Vec<_> = plan
        .steps
        .iter()
        .map(|step| {
            let needs: Vec<_> = step.needs.iter().map(StepId::as_str).collect();
            json!({ "id": step.id.as_str(), "type": step.info.name, "finally": step.finally, "needs": needs })
        })
        .collect();
    json!({ "plan": plan.name, "steps": steps })
}
