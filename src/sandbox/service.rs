//! One throwaway service: how each kind is started, stopped, looked at and removed.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::daemons::Daemon;
use super::{Sandbox, container, image, process, seed};
use crate::failure::Failure;
use crate::secret::Secret;
use crate::service::process::find_program;
use crate::service::redis::RedisSettings;
use crate::service::{
    AuthSandbox, ConsumerSandbox, DockerSettings, HttpSettings, ImagesSandbox, PostgresSandbox, Target,
    WebhookSettings,
};

/// The variable that tells the auth service its database.
pub const DATABASE_VARIABLE: &str = "DATABASE_URL";
/// The variable that tells it what its private keys are encrypted with.
pub const SECRET_VARIABLE: &str = "BETTER_AUTH_SECRET";
/// Its value when the environment gives none.
const MADE_UP_SECRET: &str = "a sandbox keeps nothing secret";
/// How long a service may take to answer first.
const COMES_UP: Duration = Duration::from_secs(20);
/// How long it has between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

/// A target that Lifeboat serves itself.
pub struct Throwaway {
    /// The target's name.
    pub target: String,
    kind: Kind,
}

/// In the order in which they are started: each may read what comes before it.
enum Kind {
    /// Backups are kept in this folder, inside the sandbox's own.
    Folder(PathBuf),
    Cluster(PostgresSandbox),
    /// Images of this machine's servers.
    Images {
        docker: DockerSettings,
        settings: ImagesSandbox,
    },
    Sink(SocketAddr),
    Redis(SocketAddr),
    Auth {
        listen: SocketAddr,
        health: String,
        issuer: String,
        settings: AuthSandbox,
    },
    Consumer {
        listen: SocketAddr,
        settings: ConsumerSandbox,
    },
    Daemon {
        listen: SocketAddr,
        daemon: Daemon,
    },
}

/// Whether a service is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It answers.
    Up,
    /// It is there, with its data, but does not run.
    Stopped,
    /// It isn't there.
    Down,
}

impl State {
    /// The word on screens.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Stopped => "stopped",
            Self::Down => "down",
        }
    }
}

impl Sandbox {
    /// The throwaway services, in the order in which they are started.
    pub(super) fn throwaways(&self) -> Result<Vec<Throwaway>, Failure> {
        let mut found = vec![];
        for (target, settings) in &self.targets {
            let kind =
                kind_of(settings, &self.folder).map_err(|failure| failure.context(format!("target {target}")))?;
            found.extend(kind.map(|kind| Throwaway { target: target.clone(), kind }));
        }
        found.sort_by_key(|throwaway| match throwaway.kind {
            Kind::Folder(_) => 0,
            Kind::Cluster(_) => 1,
            Kind::Images { .. } => 2,
            Kind::Sink(_) => 3,
            Kind::Auth { .. } => 4,
            Kind::Consumer { .. } => 5,
            // Last: they may not be installed, and nobody needs them to come up.
            Kind::Redis(_) => 6,
            Kind::Daemon { .. } => 7,
        });
        // A folder of backups alone is no sandbox.
        let only_folders = found.iter().all(|throwaway| matches!(throwaway.kind, Kind::Folder(_)));
        Ok(if only_folders { vec![] } else { found })
    }
}

fn kind_of(target: &Target, folder: &Path) -> Result<Option<Kind>, Failure> {
    Ok(match target {
        Target::Postgres(settings) => settings.sandbox.clone().map(Kind::Cluster),
        Target::Docker(settings) => {
            let docker = settings.clone();
            settings.sandbox.clone().map(|settings| Kind::Images { docker, settings })
        }
        Target::Storage(settings) if settings.scheme == "fs" => settings
            .settings
            .get("root")
            .and_then(|root| std::path::absolute(root).ok())
            // Only what lies inside is the sandbox's to create and to remove.
            .filter(|root| root.starts_with(folder) && root != folder)
            .map(Kind::Folder),
        Target::Webhook(WebhookSettings { sandbox: true, url, .. }) => Some(Kind::Sink(loopback(url)?)),
        Target::Redis(RedisSettings { sandbox: true, url, .. }) => {
            if Url::parse(url).is_ok_and(|url| url.password().is_some()) {
                return Err(Failure::permanent("a sandbox's Redis server has no password")
                    .help("leave it out of `url`, as in `redis://127.0.0.1:28303/0`"));
            }
            Some(Kind::Redis(loopback(url)?))
        }
        Target::Http(HttpSettings { sandbox: Some(settings), base_url, .. }) => {
            let issuer = base_url.trim_end_matches('/').to_owned();
            let health = format!("{issuer}/health/ready");
            Some(Kind::Auth { listen: loopback(base_url)?, health, issuer, settings: settings.clone() })
        }
        Target::Http(HttpSettings { consumer_sandbox: Some(settings), base_url, .. }) => {
            Some(Kind::Consumer { listen: loopback(base_url)?, settings: settings.clone() })
        }
        other => Daemon::of(other)?.map(|(daemon, listen)| Kind::Daemon { listen, daemon }),
    })
}

/// The address of a URL that a throwaway service may listen on: this machine's own.
pub(super) fn loopback(url: &str) -> Result<SocketAddr, Failure> {
    let wrong = || {
        Failure::permanent(format!("a sandbox can't listen at `{url}`"))
            .help("write an address of this machine with a port, as `http://127.0.0.1:28301`")
    };
    let parsed = Url::parse(url).map_err(|_| wrong())?;
    let host = match parsed.host_str() {
        Some("localhost") => IpAddr::from([127, 0, 0, 1]),
        Some(host) => host.trim_matches(['[', ']']).parse().map_err(|_| wrong())?,
        None => return Err(wrong()),
    };
    let port = parsed.port().filter(|_| host.is_loopback()).ok_or_else(wrong)?;
    Ok(SocketAddr::new(host, port))
}

impl Throwaway {
    /// What it is.
    pub const fn what(&self) -> &'static str {
        match &self.kind {
            Kind::Folder(_) => "a folder for backups",
            Kind::Cluster(_) => "a PostgreSQL cluster",
            Kind::Images { .. } => "images of PostgreSQL and Redis",
            Kind::Sink(_) => "the other end of a web hook",
            Kind::Redis(_) => "a Redis server",
            Kind::Auth { settings: AuthSandbox { container: Some(_), .. }, .. } => {
                "an auth service, as a container"
            }
            Kind::Auth { .. } => "an auth service, as a process",
            Kind::Consumer { .. } => "a service that takes its tokens",
            Kind::Daemon { daemon, .. } => daemon.what(),
        }
    }

    /// Whether it is a database server: what the others read.
    pub(super) const fn is_cluster(&self) -> bool {
        matches!(self.kind, Kind::Cluster(_))
    }

    /// Whether this machine has the program that it is.
    pub(super) fn is_installed(&self) -> bool {
        match &self.kind {
            Kind::Redis(_) => redis_server().is_ok(),
            Kind::Daemon { daemon, .. } => daemon.program().is_ok(),
            _ => true,
        }
    }

    /// Where it is reached, without secrets.
    pub fn address(&self, sandbox: &Sandbox) -> String {
        match &self.kind {
            Kind::Folder(folder) => folder.display().to_string(),
            Kind::Cluster(_) => sandbox.cluster(&self.target).address().unwrap_or_default(),
            Kind::Images { docker, .. } => docker.host.clone(),
            Kind::Sink(listen) => format!("http://{listen}"),
            Kind::Redis(listen) => format!("redis://{listen}"),
            Kind::Auth { health, .. } => health.clone(),
            Kind::Consumer { listen, .. } => format!("http://{listen}/me"),
            Kind::Daemon { listen, daemon } => daemon.address(*listen),
        }
    }

    /// Whether it is up.
    pub async fn state(&self, sandbox: &Sandbox) -> State {
        match &self.kind {
            Kind::Folder(folder) if folder.is_dir() => State::Up,
            Kind::Folder(_) => State::Down,
            Kind::Cluster(_) => match sandbox.cluster(&self.target) {
                cluster if cluster.is_up() => State::Up,
                cluster if cluster.url().is_some() => State::Stopped,
                _ => State::Down,
            },
            Kind::Images { docker, settings } => match image::made(docker, &settings.images).await {
                Ok(found) if !found.is_empty() => State::Up,
                _ => State::Down,
            },
            Kind::Sink(listen)
            | Kind::Redis(listen)
            | Kind::Consumer { listen, .. }
            | Kind::Daemon { listen, .. }
            | Kind::Auth { listen, settings: AuthSandbox { container: None, .. }, .. } => {
                let folder = sandbox.folder();
                if process::running(folder, &self.target).is_some() && answers(*listen).await {
                    State::Up
                } else if process::log_file(folder, &self.target).exists() {
                    State::Stopped
                } else {
                    State::Down
                }
            }
            Kind::Auth { settings, .. } => match Self::container(sandbox, settings) {
                Ok(Some((docker, name))) => match container::runs(docker, name).await {
                    Ok(Some(true)) => State::Up,
                    Ok(Some(false)) => State::Stopped,
                    Ok(None) | Err(_) => State::Down,
                },
                Ok(None) | Err(_) => State::Down,
            },
        }
    }

    /// Starts it, unless it is up, and waits until it answers.
    pub(super) async fn up(&self, sandbox: &Sandbox) -> Result<(), Failure> {
        match &self.kind {
            Kind::Folder(folder) => super::create_folder(folder),
            Kind::Cluster(settings) => sandbox.cluster(&self.target).up(settings).await,
            Kind::Images { docker, settings } => {
                container::reachable(docker).await?;
                // As with a container: `down` must know of them even if the next moment is the last.
                let file = self.container_file(sandbox.folder());
                fs::write(&file, "images")
                    .map_err(|error| Failure::permanent(format!("write {}: {error}", file.display())))?;
                image::make(docker, &settings.images, sandbox.folder()).await
            }
            Kind::Sink(listen) => {
                let file = sandbox.folder().join(format!("{}.jsonl", self.target));
                let args = ["sandbox", "serve-sink", "--listen", &listen.to_string(), "--file"];
                let mut args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
                args.push(file.display().to_string());
                self.background(sandbox, *listen, None, args, vec![]).await
            }
            Kind::Redis(listen) => {
                let data = sandbox.folder().join(&self.target);
                super::create_folder(&data)?;
                let (host, port) = (listen.ip().to_string(), listen.port().to_string());
                let folder = data.display().to_string();
                // No save points: what is saved is what a plan asks for.
                let args = ["--bind", &host, "--port", &port, "--dir", &folder, "--save", "", "--daemonize", "no"];
                let args = args.map(str::to_owned).to_vec();
                self.background(sandbox, *listen, Some(redis_server()?), args, vec![]).await
            }
            Kind::Daemon { listen, daemon } => {
                let (program, args) = daemon.prepare(&sandbox.folder().join(&self.target), *listen)?;
                self.background(sandbox, *listen, Some(program), args, vec![]).await?;
                let end = Instant::now() + COMES_UP;
                while !daemon.serves(*listen).await {
                    if Instant::now() >= end {
                        return Err(Failure::permanent(format!("it listens on {listen}, and does not serve")));
                    }
                    sleep(Duration::from_millis(50)).await;
                }
                Ok(())
            }
            Kind::Consumer { listen, settings } => {
                let (address, cache) = (listen.to_string(), settings.cache.to_string());
                let args = ["sandbox", "serve-consumer", "--listen", &address, "--issuer", &settings.issuer];
                let mut args: Vec<String> = args.map(str::to_owned).to_vec();
                args.extend(["--cache".to_owned(), cache]);
                self.background(sandbox, *listen, None, args, vec![]).await
            }
            Kind::Auth { listen, settings, issuer, .. } => {
                let secret = Secret::new(settings.secret.clone().unwrap_or_else(|| MADE_UP_SECRET.to_owned()));
                let client = client_of(sandbox, issuer);
                let database = seed::ensure(sandbox, settings, &secret, client.as_ref()).await?;
                let args = ["sandbox", "serve-auth", "--listen", &listen.to_string(), "--issuer", issuer];
                let args = args.map(str::to_owned).to_vec();
                let env = vec![(DATABASE_VARIABLE, database), (SECRET_VARIABLE, secret)];
                match Self::container(sandbox, settings)? {
                    Some((docker, name)) => {
                        if container::runs(docker, name).await? != Some(true) {
                            self.is_free(*listen).await?;
                        }
                        let folder = sandbox.folder();
                        self.remember_container(folder, name)?;
                        container::start(docker, &container::Wanted { name, args, env, folder }).await?;
                        let runs = async || matches!(container::runs(docker, name).await, Ok(Some(true)));
                        if !comes_up(*listen, runs).await {
                            let said = container::last_line(docker, name).await;
                            container::remove(docker, name, folder).await?;
                            return Err(Failure::permanent(format!("{name} does not answer on {listen}: {said}"))
                                .help("the engine must run on this machine, and give containers its network"));
                        }
                        Ok(())
                    }
                    None => self.background(sandbox, *listen, None, args, env).await,
                }
            }
        }
    }

    /// Stops it and keeps its data.
    pub(super) async fn stop(&self, sandbox: &Sandbox) -> Result<(), Failure> {
        match &self.kind {
            Kind::Sink(_)
            | Kind::Redis(_)
            | Kind::Consumer { .. }
            | Kind::Daemon { .. }
            | Kind::Auth { settings: AuthSandbox { container: None, .. }, .. } => {
                process::stop(sandbox.folder(), &self.target, GRACE).await.map(|_| ())
            }
            Kind::Auth { .. } => Err(Failure::permanent(format!("{} is a container", self.target))
                .help("stop it with `docker stop`, or a plan's `container.stop`")),
            Kind::Cluster(_) => sandbox.cluster(&self.target).stop().await,
            Kind::Folder(_) | Kind::Images { .. } => {
                Err(Failure::permanent(format!("{} is no service", self.target)))
            }
        }
    }

    /// Ends it and removes its data.
    pub(super) async fn down(&self, sandbox: &Sandbox) -> Result<(), Failure> {
        match &self.kind {
            Kind::Folder(folder) => match fs::remove_dir_all(folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(Failure::permanent(format!("remove {}: {error}", folder.display())))
                }
                _ => Ok(()),
            },
            Kind::Cluster(_) => sandbox.cluster(&self.target).down().await,
            // Without that file there were never any: an engine that is away isn't missed.
            Kind::Images { docker, settings } if self.container_file(sandbox.folder()).exists() => {
                image::remove(docker, &settings.images, sandbox.folder()).await
            }
            Kind::Images { .. } => Ok(()),
            Kind::Auth { settings, .. } if settings.container.is_some() => {
                match Self::container(sandbox, settings)? {
                    // Without that file there was never one: an engine that is away isn't missed.
                    Some((docker, name)) if self.container_file(sandbox.folder()).exists() => {
                        container::remove(docker, name, sandbox.folder()).await
                    }
                    _ => Ok(()),
                }
            }
            Kind::Sink(_) | Kind::Redis(_) | Kind::Consumer { .. } | Kind::Daemon { .. } | Kind::Auth { .. } => {
                process::stop(sandbox.folder(), &self.target, GRACE).await.map(|_| ())
            }
        }
    }

    async fn background(
        &self,
        sandbox: &Sandbox,
        listen: SocketAddr,
        program: Option<PathBuf>,
        args: Vec<String>,
        env: Vec<(&'static str, Secret)>,
    ) -> Result<(), Failure> {
        let folder = sandbox.folder();
        if process::running(folder, &self.target).is_none() {
            self.is_free(listen).await?;
        }
        let identity = process::Background { name: &self.target, program, args, env, folder }.start()?;
        if comes_up(listen, async || identity.is_alive()).await {
            return Ok(());
        }
        let log = fs::read_to_string(process::log_file(folder, &self.target)).unwrap_or_default();
        let last = log.lines().last().unwrap_or("it said nothing").to_owned();
        process::stop(folder, &self.target, GRACE).await?;
        Err(Failure::permanent(format!("it does not answer on {listen}: {last}")))
    }

    async fn is_free(&self, listen: SocketAddr) -> Result<(), Failure> {
        if answers(listen).await {
            return Err(Failure::permanent(format!("something else listens on {listen}"))
                .help(format!("end it, or give target `{}` another port", self.target)));
        }
        Ok(())
    }

    fn container_file(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}.container", self.target))
    }

    /// Before there is one: `down` must know of it even if the next moment is the last.
    fn remember_container(&self, folder: &Path, name: &str) -> Result<(), Failure> {
        let file = self.container_file(folder);
        fs::write(&file, name).map_err(|error| Failure::permanent(format!("write {}: {error}", file.display())))
    }

    fn container<'a>(
        sandbox: &'a Sandbox,
        settings: &'a AuthSandbox,
    ) -> Result<Option<(&'a DockerSettings, &'a str)>, Failure> {
        let Some(container) = &settings.container else { return Ok(None) };
        let (target, name) = container.split_once('/').ok_or_else(|| {
            Failure::permanent(format!("`{container}` names no container")).help("write it as `docker/name`")
        })?;
        match sandbox.targets.get(target) {
            Some(Target::Docker(docker)) => Ok(Some((docker, name))),
            _ => Err(Failure::permanent(format!("`{target}` is no docker target"))),
        }
    }
}

/// Who may ask an issuer for tokens: the client of the `oidc` target with its URL.
fn client_of(sandbox: &Sandbox, issuer: &str) -> Option<seed::Client> {
    sandbox.targets.values().find_map(|target| match target {
        Target::Oidc(oidc) if oidc.issuer.trim_end_matches('/') == issuer => {
            Some(seed::Client { id: oidc.client_id.clone()?, secret: Secret::new(oidc.client_secret.clone()?) })
        }
        _ => None,
    })
}

/// Where the server's program is.
///
/// # Errors
/// When it isn't installed.
pub fn redis_server() -> Result<PathBuf, Failure> {
    find_program("redis-server", None).ok_or_else(|| {
        Failure::permanent("redis-server is not installed")
            .help("install it (Debian: `apt-get install redis-server`); plans without Redis run all the same")
    })
}

async fn answers(listen: SocketAddr) -> bool {
    matches!(timeout(Duration::from_secs(1), TcpStream::connect(listen)).await, Ok(Ok(_)))
}

/// Waits until something answers; not longer than the service runs.
async fn comes_up(listen: SocketAddr, runs: impl AsyncFn() -> bool) -> bool {
    let end = Instant::now() + COMES_UP;
    while !answers(listen).await {
        if !runs().await || Instant::now() >= end {
            return false;
        }
        sleep(Duration::from_millis(20)).await;
    }
    true
}
