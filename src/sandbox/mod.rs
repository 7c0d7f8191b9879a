//! A sandbox: the throwaway services of an environment, started and removed by Lifeboat.
//!
//! A PostgreSQL cluster, a small auth service with a filled database, a folder for backups, the
//! other end of a web hook. All of it lies in one folder below the state and listens on loopback;
//! `down` leaves nothing. Knows nothing of plans. Read on in [`auth`], [`container`], [`process`].

pub mod auth;
pub mod consumer;
pub mod container;
mod daemons;
pub mod image;
pub mod process;
pub mod seed;
mod service;
pub mod sink;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use tokio::signal::unix::{SignalKind, signal};

use crate::environment::Environment;
use crate::failure::Failure;
use crate::secret::Redactor;
use crate::service::{Target, sandbox as cluster};
pub use daemons::{mail_server, name_server, object_server, ssh_server};
use service::Throwaway;
pub use service::{DATABASE_VARIABLE, SECRET_VARIABLE, State, redis_server};

/// How long a service's last requests may take when it is told to end.
const LINGER: Duration = Duration::from_secs(3);

/// The throwaway services of one environment.
pub struct Sandbox {
    /// Where they live.
    folder: PathBuf,
    targets: BTreeMap<String, Target>,
    redactor: Redactor,
}

/// A target that is a throwaway service, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The target's name.
    pub target: String,
    /// What it is.
    pub what: &'static str,
    /// Where it is reached, without secrets.
    pub address: String,
    /// Whether it is up.
    pub state: State,
}

impl Sandbox {
    /// The sandbox of an environment, kept below the folder that its runs are kept in;
    /// `None` when none of its targets is a throwaway one.
    ///
    /// # Errors
    /// When a throwaway target's settings don't hold.
    pub fn of(environment: &Environment, state: &Path) -> Result<Option<Self>, Failure> {
        let name = environment.name.as_deref().unwrap_or("sandbox");
        let state = std::path::absolute(state)
            .map_err(|error| Failure::permanent(format!("find {}: {error}", state.display())))?;
        let sandbox = Self {
            folder: state.join("sandboxes").join(name),
            targets: environment.targets.clone(),
            redactor: environment.redactor.clone(),
        };
        Ok((!sandbox.throwaways()?.is_empty()).then_some(sandbox))
    }

    /// Where it lives.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts what isn't up, each after what it reads; what is up stays as it is, and what isn't
    /// installed is left out.
    ///
    /// # Errors
    /// The first service that doesn't come up. What came up before it stays: `down` removes it.
    pub async fn up(&self, say: &(dyn Fn(&str) + Sync)) -> Result<Vec<Standing>, Failure> {
        create_folder(&self.folder)?;
        let mut standing = vec![];
        for throwaway in self.throwaways()? {
            if !throwaway.is_installed() {
                say(&left_out(&throwaway));
            } else if throwaway.state(self).await != State::Up {
                self.start_one(&throwaway, say).await?;
            }
            standing.push(self.standing(&throwaway).await);
        }
        Ok(standing)
    }

    /// Starts what a run can't do without: what isn't there, and clusters that don't run. A service
    /// that was stopped stays stopped: it may be a plan that did it, and is about to go on.
    ///
    /// # Errors
    /// The first service that doesn't come up.
    pub async fn ensure(&self, say: &(dyn Fn(&str) + Sync)) -> Result<(), Failure> {
        create_folder(&self.folder)?;
        for throwaway in self.throwaways()? {
            if !throwaway.is_installed() {
                say(&left_out(&throwaway));
                continue;
            }
            let state = throwaway.state(self).await;
            if state == State::Down || (state == State::Stopped && throwaway.is_cluster()) {
                self.start_one(&throwaway, say).await?;
            }
        }
        Ok(())
    }

    /// Ends and removes everything, data included; what isn't there is fine.
    ///
    /// # Errors
    /// What could not be removed. The rest is removed all the same.
    pub async fn down(&self) -> Result<(), Failure> {
        let mut failed = None;
        for throwaway in self.throwaways()?.iter().rev() {
            if let Err(failure) = throwaway.down(self).await {
                failed.get_or_insert(failure.context(format!("remove {}", throwaway.target)));
            }
        }
        if let Some(failure) = failed {
            return Err(failure);
        }
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Failure::permanent(format!("remove {}: {error}", self.folder.display())));
            }
            _ => {}
        }
        // The folders around it, unless something else is kept there.
        for folder in self.folder.ancestors().skip(1).take(2) {
            let _ = fs::remove_dir(folder);
        }
        Ok(())
    }

    /// Where each service stands.
    ///
    /// # Errors
    /// When a throwaway target's settings don't hold.
    pub async fn status(&self) -> Result<Vec<Standing>, Failure> {
        let mut standing = vec![];
        for throwaway in self.throwaways()? {
            standing.push(self.standing(&throwaway).await);
        }
        Ok(standing)
    }

    /// Stops the service of one target and keeps its data.
    ///
    /// # Errors
    /// When there is no such service, or it can't be stopped alone.
    pub async fn stop(&self, target: &str) -> Result<(), Failure> {
        self.throwaway(target)?.stop(self).await
    }

    /// Starts the service of one target again.
    ///
    /// # Errors
    /// When there is no such service, or it doesn't come up.
    pub async fn start(&self, target: &str) -> Result<(), Failure> {
        self.throwaway(target)?.up(self).await
    }

    /// The environment's targets, with the addresses that only a sandbox that is up knows.
    pub fn targets(&self) -> BTreeMap<String, Target> {
        let mut targets = self.targets.clone();
        for (name, target) in &mut targets {
            if let Target::Postgres(settings) = target
                && settings.url.is_none()
                && settings.sandbox.is_some()
                && let Some(url) = self.cluster(name).url()
            {
                self.redactor.add(url.expose());
                settings.url = Some(url.expose().to_owned());
            }
            if let Target::Ssh(settings) = target
                && settings.sandbox
            {
                let [key, known] = daemons::ssh_files(&self.folder.join(name));
                settings.key_file.get_or_insert(key);
                settings.known_hosts.get_or_insert(known);
            }
        }
        targets
    }

    fn cluster(&self, target: &str) -> cluster::Cluster {
        cluster::Cluster::new(self.folder.join(target))
    }

    async fn start_one(&self, throwaway: &Throwaway, say: &(dyn Fn(&str) + Sync)) -> Result<(), Failure> {
        say(&format!("starting {}: {}", throwaway.target, throwaway.what()));
        throwaway.up(self).await.map_err(|failure| failure.context(format!("start {}", throwaway.target)))
    }

    async fn standing(&self, throwaway: &Throwaway) -> Standing {
        Standing {
            target: throwaway.target.clone(),
            what: throwaway.what(),
            address: throwaway.address(self),
            state: throwaway.state(self).await,
        }
    }

    fn throwaway(&self, target: &str) -> Result<Throwaway, Failure> {
        self.throwaways()?
            .into_iter()
            .find(|throwaway| throwaway.target == target)
            .ok_or_else(|| Failure::permanent(format!("the environment has no throwaway service `{target}`")))
    }
}

fn left_out(throwaway: &Throwaway) -> String {
    format!("{} is left out: {} is not installed", throwaway.target, throwaway.what())
}

/// Below it lie a database and its password.
fn create_folder(folder: &Path) -> Result<(), Failure> {
    fs::create_dir_all(folder).map_err(|error| Failure::permanent(format!("create {}: {error}", folder.display())))
}

/// Serves until SIGTERM or SIGINT, then lets the requests under way finish.
async fn served(listen: SocketAddr, router: Router) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| Failure::permanent(format!("listen on {listen}: {error}"));
    let listener = tokio::net::TcpListener::bind(listen).await.map_err(cannot)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    println!("listening on {listen}");
    let (told, mut hears) = tokio::sync::watch::channel(());
    let until = async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        println!("ending");
        let _ = told.send(());
    };
    let serving = axum::serve(listener, router).with_graceful_shutdown(until);
    let lingering = async {
        let _ = hears.changed().await;
        tokio::time::sleep(LINGER).await;
    };
    tokio::select! { served = serving => served.map_err(cannot), () = lingering => Ok(()) }
}
