//! `lifeboat sandbox`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::exit::{Error, Exit};
use super::out::Out;
use super::run_folder;
use crate::environment::Environment;
use crate::plan::load;
use crate::report::text::Table;
use crate::sandbox::{DATABASE_VARIABLE, SECRET_VARIABLE, Sandbox, Standing, State, auth, consumer, sink};
use crate::secret::Secret;
use crate::service::Target;
use crate::units::Duration;

/// The throwaway services of an environment: start them, look at them, remove them
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Start what is not up yet
    Up(Which),
    /// End and remove everything, data included
    Down(Which),
    /// Tell where each service stands
    Status(Which),
    /// Stop one service and keep its data
    Stop(One),
    /// Start one service again
    Start(One),
    /// The auth service itself
    #[command(hide = true)]
    ServeAuth {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        issuer: String,
    },
    /// The service that takes tokens itself
    #[command(hide = true)]
    ServeConsumer {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        issuer: String,
        #[arg(long)]
        cache: Duration,
    },
    /// The other end of a web hook itself
    #[command(hide = true)]
    ServeSink {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        file: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct Which {
    /// The environment: a name, or a file's path
    #[arg(long, value_name = "ENVIRONMENT", default_value = "sandbox")]
    env: String,
    /// The folder of the plans that the environment belongs to
    #[arg(long, value_name = "FOLDER", default_value = "plans")]
    plans: PathBuf,
}

#[derive(Debug, clap::Args)]
struct One {
    /// The service's target
    target: String,
    #[command(flatten)]
    which: Which,
}

impl Which {
    fn sandbox(&self, state: Option<&str>) -> Result<Sandbox, Error> {
        let environment = environment(&self.plans, &self.env)?;
        of(&environment, state)?.ok_or_else(|| {
            Error::usage(format!("environment {} has no throwaway services", self.env))
                .help("a target with `sandbox` is one")
        })
    }
}

/// An environment on its own, without a plan; what is wrong with it is shown.
pub fn environment(plans: &Path, named: &str) -> Result<Environment, Error> {
    load::environment(plans, named, true).map(|(environment, _)| environment).map_err(|problems| {
        let found: Vec<String> = problems.iter().map(|problem| problem.message.clone()).collect();
        let error = Error::usage(format!("environment {named}: {}", found.join("; ")));
        match problems.into_iter().find_map(|problem| problem.help) {
            Some(help) => error.help(help),
            None => error,
        }
    })
}

/// The sandbox of an environment, if it has throwaway services.
fn of(environment: &Environment, state: Option<&str>) -> Result<Option<Sandbox>, Error> {
    let state = state.or(environment.state.as_deref()).unwrap_or(run_folder::DEFAULT);
    // Runs may be kept elsewhere; services live on this machine.
    let folder = if state.contains("://") { run_folder::DEFAULT } else { state };
    Ok(Sandbox::of(environment, Path::new(folder))?)
}

/// Starts the throwaway services that a run can't do without and that aren't there.
pub fn ensure(environment: &Environment, state: Option<&str>, out: &Out) -> Result<(), Error> {
    let Some(sandbox) = of(environment, state)? else { return Ok(()) };
    super::block_on(async { Ok(sandbox.ensure(&|said| out.say(said)).await?) })
}

/// The environment's targets, with the addresses of the throwaway services that are up.
pub fn targets(environment: &Environment, state: Option<&str>) -> Result<BTreeMap<String, Target>, Error> {
    Ok(of(environment, state)?.map_or_else(|| environment.targets.clone(), |sandbox| sandbox.targets()))
}

pub async fn sandbox(args: Args, state: Option<&str>, out: &Out) -> Result<Exit, Error> {
    match args.verb {
        Verb::Up(which) => {
            let up = which.sandbox(state)?.up(&|said| out.say(said)).await?;
            out.print(&told(&up, out))?;
        }
        Verb::Down(which) => which.sandbox(state)?.down().await?,
        Verb::Status(which) => {
            let standing = which.sandbox(state)?.status().await?;
            out.print(&told(&standing, out))?;
        }
        Verb::Stop(one) => one.which.sandbox(state)?.stop(&one.target).await?,
        Verb::Start(one) => one.which.sandbox(state)?.start(&one.target).await?,
        Verb::ServeAuth { listen, issuer } => {
            let told = |name| std::env::var(name).map_err(|_| Error::usage(format!("{name} is not set")));
            let setup = auth::Setup {
                listen,
                issuer,
                database: Secret::new(told(DATABASE_VARIABLE)?),
                secret: Secret::new(told(SECRET_VARIABLE)?),
            };
            auth::serve(setup).await?;
        }
        Verb::ServeConsumer { listen, issuer, cache } => consumer::serve(listen, issuer, cache.std()).await?,
        Verb::ServeSink { listen, file } => sink::serve(listen, file).await?,
    }
    Ok(Exit::Done)
}

/// Where services stand, a line each.
pub fn told(standing: &[Standing], out: &Out) -> String {
    let mut table = Table::new(0);
    for service in standing {
        let state = match service.state {
            State::Up => out.paint.good(service.state.as_str()),
            State::Stopped => out.paint.warn(service.state.as_str()),
            State::Down => out.paint.dim(service.state.as_str()),
        };
        table.row([out.paint.name(&service.target), state, service.what.to_owned(), service.address.clone()]);
    }
    table.render(out.paint)
}
