//! `lifeboat run`.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::engine::control::signals;
use crate::engine::preview::{PreviewReport, SavedPreview};
use crate::engine::{self, Console, Context, Ended, EngineError, RunOptions};
use crate::ids::RunId;
use crate::plan::{Known, Plan};
use crate::record::sink::Sink;
use crate::record::store::Store;
use crate::report::live::{Json, Live, Screen};
use crate::service::Services;
use crate::step::effect::Access;

use super::exit::{Error, Exit};
use super::load::{self, PlanArgs};
use super::out::{Format, Out};
use super::run_folder::Found;
use super::{Common, ask, preview, run_folder, sandbox, status, trace};

/// Run a plan, or see what it would do
///
/// A run looks at every step first, read-only, and begins only when none is blocked. What it does is journaled before
/// and after, so that a run that is stopped, fails or is killed goes on with `lifeboat resume`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    plan: PlanArgs,
    /// Say what would be done, and touch nothing
    #[arg(long)]
    dry_run: bool,
    /// Contact nothing: a dry-run from the plan alone, as CI without credentials makes it
    #[arg(long, requires = "dry_run")]
    offline: bool,
    /// Keep the dry-run in this file, to be reviewed
    #[arg(long, value_name = "FILE", requires = "dry_run")]
    save: Option<PathBuf>,
    /// Run only what was reviewed: refuses another plan, other inputs, and anything newly destroyed
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dry_run", "no_preflight"])]
    approved: Option<PathBuf>,
    #[command(flatten)]
    how: How,
    /// The environment's name, as a destructive plan on a protected one wants it typed
    #[arg(long, value_name = "ENV", conflicts_with = "dry_run")]
    confirm: Option<String>,
    /// Begin without looking at every step first
    #[arg(long, conflicts_with = "dry_run")]
    no_preflight: bool,
    /// The run's id, instead of a fresh one
    #[arg(long, value_name = "ID", value_parser = run_id, conflicts_with = "dry_run")]
    run_id: Option<RunId>,
    /// `json`: a dry-run's one object, or a run's journal records, one a line
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

/// Flags of `run` and `resume`.
#[derive(Debug, clap::Args)]
pub struct How {
    /// Steps that run side by side, at most
    #[arg(short, long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub jobs: u16,
    /// Answer every `confirm` with yes
    #[arg(short, long)]
    pub yes: bool,
}

fn run_id(text: &str) -> Result<RunId, String> {
    RunId::parse(text)
}

pub fn run(args: &Args, common: &Common, out: &Out) -> Result<Exit, Error> {
    let Some(loaded) = load::ready(&args.plan, out)? else { return Ok(Exit::Usage) };
    let approved = args.approved.as_deref().map(read_preview).transpose()?;
    let plan = Arc::new(loaded.plan);
    if !args.dry_run {
        sandbox::ensure(&plan.environment, common.state.as_deref(), out)?;
    }
    let cx = context(&plan, common)?;
    if args.dry_run {
        return super::block_on(dry_run(args, &cx, &plan, out));
    }
    let mut options = RunOptions {
        jobs: usize::from(args.how.jobs),
        yes: args.how.yes,
        confirm: args.confirm.clone(),
        no_preflight: args.no_preflight,
        run_id: args.run_id.clone(),
        approved,
        steering: None,
        copies: loaded.copies,
    };
    confirm(&plan, &mut options, out)?;
    super::block_on(async {
        let console = console(args.format, out)?;
        conclude(engine::run(&cx, &plan, options, console).await, &cx.store, args.format, out)
    })
}

/// Everything a run of this plan needs.
pub fn context(plan: &Plan, common: &Common) -> Result<Context, Error> {
    let environment = &plan.environment;
    trace::mask(&environment.redactor);
    let state = common.state.as_deref().or(environment.state.as_deref()).unwrap_or(run_folder::DEFAULT);
    let targets = sandbox::targets(environment, common.state.as_deref())?;
    let services = Services::new(targets, environment.redactor.clone());
    Ok(Context::new(Store::open(state)?, services))
}

/// Who watches and steers: the terminal, or plain lines; a person where there is one.
pub fn console(format: Format, out: &Out) -> Result<Console, Error> {
    let screen = Screen::default();
    let terminal = std::io::stderr().is_terminal();
    let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
    if format == Format::Json {
        sinks.push(Box::new(Json));
    } else if !out.quiet {
        sinks.push(Box::new(Live::new(terminal.then(|| screen.clone()), out.talk)));
    }
    let asker = ask::possible().then(|| Arc::new(ask::Terminal::new(screen, out.talk)) as Arc<dyn engine::Asker>);
    let controls =
        signals().map_err(|error| Error::new(Exit::Failed, format!("failed to listen to signals: {error}")))?;
    Ok(Console { sinks, asker, controls: Some(controls) })
}

/// The page at the end, and how the program ends.
pub fn conclude(
    ended: Result<Ended, EngineError>,
    store: &Store,
    format: Format,
    out: &Out,
) -> Result<Exit, Error> {
    let ended = match ended {
        Ok(ended) => ended,
        Err(EngineError::Blocked(report)) => {
            match format {
                Format::Json => out.print_json(&report)?,
                Format::Human => out.print(&preview::page(&report, out.paint))?,
            }
            return Err(EngineError::Blocked(report).into());
        }
        Err(error) => return Err(error.into()),
    };
    if format == Format::Human {
        let mut found = Found::read(ended.folder)?;
        // This process still holds the lock, and is done with it.
        found.held_by = None;
        out.print(&format!("\n{}", status::whole_page(&found, store, out)))?;
    }
    Ok(status::of(ended.state.status))
}

/// Asks for a protected environment's name where somebody can type it.
fn confirm(plan: &Plan, options: &mut RunOptions, out: &Out) -> Result<(), Error> {
    if options.confirm.is_some() || !engine::needs_confirmation(plan) || !ask::possible() {
        return Ok(());
    }
    let name = plan.environment.name.clone().unwrap_or_default();
    if ask::type_name(&name, &destroyed(plan).join(", "), out.talk) {
        options.confirm = Some(name);
        return Ok(());
    }
    Err(Error::usage("nothing was touched: what was typed is not the environment's name"))
}

/// What a plan destroys, as far as its parameters tell before a run.
fn destroyed(plan: &Plan) -> Vec<String> {
    let known = Known::default();
    let steps = plan.steps.iter().filter_map(|step| step.render(&known).ok());
    let mut destroyed: Vec<String> = steps
        .flat_map(|rendered| rendered.step.effects())
        .filter(|effect| effect.access == Access::Destroy)
        .map(|effect| plan.environment.redactor.redact(effect.resource.as_str()).into_owned())
        .collect();
    destroyed.dedup();
    destroyed
}

async fn dry_run(args: &Args, cx: &Context, plan: &Plan, out: &Out) -> Result<Exit, Error> {
    let services = (!args.offline).then_some(&cx.services);
    let report = engine::preview(cx, plan, services).await;
    match args.format {
        Format::Json => out.print_json(&report)?,
        Format::Human => out.print(&preview::page(&report, out.paint))?,
    }
    let blocked = report.is_blocked();
    if let Some(path) = &args.save {
        save(plan, report, path, out)?;
    }
    Ok(if blocked { Exit::Blocked } else { Exit::Done })
}

fn save(plan: &Plan, report: PreviewReport, path: &Path, out: &Out) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(&SavedPreview::new(plan, report))
        .map_err(|error| Error::new(Exit::Defect, format!("failed to write JSON: {error}")))?;
    std::fs::write(path, text + "\n").map_err(|error| Error::file("write", path, &error))?;
    out.say(&format!(
        "kept in {}: `lifeboat run … --approved {}` runs this and nothing else",
        path.display(),
        path.display()
    ));
    Ok(())
}

fn read_preview(path: &Path) -> Result<SavedPreview, Error> {
    let text = std::fs::read(path).map_err(|error| Error::file("read", path, &error))?;
    serde_json::from_slice(&text).map_err(|error| {
        Error::usage(format!("{} is not a saved dry-run: {error}", path.display()))
            .help("make one with `lifeboat run PLAN --dry-run --save FILE`")
    })
}
