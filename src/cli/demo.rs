//! `lifeboat demo`: a whole recovery, from seeding to report, on throwaway services.
//!
//! It plays on a folder and an environment of its own ([`stage`]), runs this very program on the
//! real plans as a person would, and leaves nothing behind, however it ends.

mod act;
mod damage;
mod stage;

use std::time::Instant;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::exit::{Error, Exit};
use super::out::Out;
use crate::report::text::{span, wrap};
use crate::sandbox::container;
use crate::service::{self, DockerSettings};
use stage::{Runs, Stage};

/// Damage a database and recover it, on throwaway services of this machine
///
/// Starts a PostgreSQL cluster and a small auth service of its own, fills it with made-up users,
/// takes a backup, damages the data, recovers it by the plan `database-corruption`, and proves
/// that every row is back. Everything is removed at the end.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leave everything running to look around in
    #[arg(long)]
    keep: bool,
    /// Run the auth service as a process, even with Docker at hand
    #[arg(long)]
    no_docker: bool,
    /// Kill Lifeboat (SIGKILL) when that step of the recovery has started, or when so much of the rows
    /// is restored (`60%`), then resume
    #[arg(long, value_name = "STEP|PERCENT", value_parser = KillAt::parse)]
    kill_at: Option<KillAt>,
}

/// Where Lifeboat is killed.
#[derive(Clone, Debug)]
enum KillAt {
    /// When a step has started.
    Step(String),
    /// When so many hundredths of the rows are restored.
    Restored(u64),
}

impl KillAt {
    fn parse(text: &str) -> Result<Self, String> {
        let Some(percent) = text.strip_suffix('%') else { return Ok(Self::Step(text.to_owned())) };
        match percent.parse() {
            Ok(percent @ 1..=99) => Ok(Self::Restored(percent)),
            _ => Err("write a step's name, or a percentage between 1% and 99%".to_owned()),
        }
    }
}

pub async fn demo(args: &Args, out: &Out) -> Result<Exit, Error> {
    let began = Instant::now();
    let cancel = cancelled_by_signals()?;
    stage::sweep().await;
    out.print(&format!(
        "\n{}\n\n{}\n",
        out.paint.strong("A database is damaged, and comes back whole."),
        wrap(
            "All of this is real, on throwaway services of this machine that are gone afterwards: a PostgreSQL \
             cluster, an auth service that reads it, and this program, run as you would run it. It takes less than a \
             minute.",
            out.paint.width,
            0
        )
    ))?;

    let host = docker_host();
    let engine = DockerSettings { host: host.clone(), tls: None, sandbox: None };
    let mut without = None;
    if args.no_docker {
        without = Some("Docker is left out, as asked".to_owned());
    } else if let Err(failure) = container::reachable(&engine).await {
        without = Some(format!("Docker is not at hand: {}", failure.message));
    }
    let mut runs = if without.is_some() { Runs::Process } else { Runs::Container(&host) };
    let mut stage = Stage::set(runs)?;
    let mut played = Box::pin(act::play(&stage, args, without.as_deref(), out, &cancel)).await;
    if let (Err(act::Ended::NoContainer(why)), Runs::Container(_)) = (&played, runs) {
        // An engine on another machine, or one that may not share this one's network.
        without = Some(format!("Docker is at hand, but can't run the service: {why}"));
        stage.strike().await?;
        runs = Runs::Process;
        stage = Stage::set(runs)?;
        played = Box::pin(act::play(&stage, args, without.as_deref(), out, &cancel)).await;
    }

    if args.keep && !cancel.is_cancelled() {
        stage::keep(&stage);
        out.print(&kept(&stage, out))?;
    } else {
        stage.strike().await.map_err(|failure| {
            let by_hand = format!("what is left lies in {}", stage.folder.display());
            Error::from(failure.context("clean up").help(by_hand))
        })?;
    }
    match played {
        Ok(()) => {
            let ending = if args.keep { "" } else { " Everything is cleaned up." };
            out.print(&format!(
                "{}\n",
                out.paint.dim(&format!("{} in all.{ending}", span(began.elapsed().as_secs_f64())))
            ))?;
            Ok(Exit::Done)
        }
        Err(act::Ended::Cancelled) => {
            out.say("cancelled; everything is cleaned up");
            Ok(Exit::Cancelled)
        }
        Err(act::Ended::NoContainer(why)) => Err(Error::new(Exit::Failed, why)),
        Err(act::Ended::Failed(error)) => Err(error),
    }
}

/// Where Docker's own tools would look.
fn docker_host() -> String {
    std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty()).unwrap_or_else(service::docker_host)
}

/// Ctrl-C, SIGTERM and a closed terminal end the demo, not its cleaning up.
fn cancelled_by_signals() -> Result<CancellationToken, Error> {
    let cancel = CancellationToken::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let mut signals =
            signal(kind).map_err(|error| Error::new(Exit::Defect, format!("listen to signals: {error}")))?;
        let cancel = cancel.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                cancel.cancel();
            }
        });
    }
    Ok(cancel)
}

fn kept(stage: &Stage, out: &Out) -> String {
    format!(
        "\nEverything is still up. Look around:\n\n  cd {}\n  lifeboat sandbox status --env demo\n  lifeboat runs\n  curl {}\n\n\
         and remove it with\n\n  {} && rm -r {}\n\n",
        stage.folder.display(),
        stage.health,
        out.paint.name("lifeboat sandbox down --env demo"),
        stage.folder.display()
    )
}
