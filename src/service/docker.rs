//! A Docker engine (or Podman's), by its API: what is needed of a container's life.
//!
//! Knows nothing of steps. Requests go unversioned, so an old engine answers as well.

mod exec;
mod make;

use std::collections::BTreeMap;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{
    ContainerInspectResponse, ContainerStateStatusEnum, HealthStatusEnum, NetworkSettings, RestartPolicyNameEnum,
};
use bollard::query_parameters::{ListContainersOptions, LogsOptions, StopContainerOptions};
pub use exec::{Became, Inside};
use futures::StreamExt;
pub use make::{Image, Port, Restart, Volume, Wanted};

use super::{DockerSettings, Services, Target};
use crate::failure::Failure;
use crate::kill;
use crate::secret::Redactor;

/// The bound on a request that the engine answers at once.
const ANSWER: Duration = Duration::from_secs(20);

/// A container may write lines of any length.
const LINES_CAP: usize = 8 * 1024;

/// A Docker engine.
#[derive(Debug)]
pub struct Engine {
    docker: Docker,
    target: String,
    host: String,
    redactor: Redactor,
}

impl Services {
    /// The Docker engine that a target names. Nothing is contacted yet.
    ///
    /// # Errors
    /// When there is no such target of that kind, or its settings don't fit.
    pub fn docker(&self, target: &str) -> Result<Engine, Failure> {
        let Target::Docker(settings) = self.target(target)? else {
            return Err(self.wrong_kind(target, "docker"));
        };
        let docker = connect(settings).map_err(|failure| failure.context(format!("target {target}")))?;
        Ok(Engine {
            docker,
            target: target.to_owned(),
            host: settings.host.clone(),
            redactor: self.redactor().clone(),
        })
    }
}

/// A client of that engine. Nothing is contacted yet.
///
/// # Errors
/// When the settings don't fit.
pub(crate) fn connect(settings: &DockerSettings) -> Result<Docker, Failure> {
    let version = bollard::API_DEFAULT_VERSION;
    let host = settings.host.as_str();
    let seconds = ANSWER.as_secs();
    let docker = match (host.split_once("://"), &settings.tls) {
        (Some(("unix", _)), _) => Docker::connect_with_unix(host, seconds, version),
        (Some(("tcp" | "https", _)), Some(tls)) => {
            Docker::connect_with_ssl(host, tls.key.as_ref(), tls.cert.as_ref(), tls.ca.as_ref(), seconds, version)
        }
        (Some(("https", _)), None) => {
            return Err(Failure::permanent(format!("`{host}` needs certificates"))
                .help("add `tls: { ca, cert, key }` to the target"));
        }
        (Some(("http", _)), Some(_)) => {
            return Err(Failure::permanent(format!("`{host}` is without TLS, and the target has `tls`"))
                .help("write `https://`, or remove `tls`"));
        }
        (Some(("tcp" | "http", _)), _) => Docker::connect_with_http(host, seconds, version),
        _ => {
            return Err(Failure::permanent(format!("`{host}` is no Docker host")).help(
                "write `unix:///var/run/docker.sock`, `tcp://host:2375`, or `https://host:2376` with `tls`",
            ));
        }
    };
    docker.map_err(|error| match error {
        Error::SocketNotFoundError(path) => Failure::transient(format!("there is no socket {path}"))
            .help("start the Docker daemon, or set the target's `host`"),
        other => Failure::permanent(other.to_string()),
    })
}

impl Engine {
    /// Looks at a container, by name or id.
    ///
    /// # Errors
    /// When the engine can't be asked, or has no such container: then names that are nearly right are told.
    pub async fn container(&self, name: &str) -> Result<Container, Failure> {
        tracing::debug!(docker = self.target, container = name, "look at a container");
        match self.docker.inspect_container(name, None).await {
            Ok(found) => Ok(Container::from(found)),
            Err(error) if status(&error) == Some(404) => Err(self.missing(name).await),
            Err(error) => Err(self.failure(&error).context(format!("look at container {name}"))),
        }
    }

    /// As [`Engine::container`], but a missing one is no failure.
    ///
    /// # Errors
    /// When the engine can't be asked.
    pub async fn find(&self, name: &str) -> Result<Option<Container>, Failure> {
        match self.docker.inspect_container(name, None).await {
            Ok(found) => Ok(Some(Container::from(found))),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(self.failure(&error).context(format!("look at container {name}"))),
        }
    }

    /// Stops a container: SIGTERM, `grace`, SIGKILL; returns when it is stopped. Stopping
    /// a stopped one does nothing. Dropping the future does not take the request back.
    ///
    /// # Errors
    /// When the engine can't be asked or refuses.
    pub async fn stop(&self, id: &str, grace: Duration) -> Result<(), Failure> {
        tracing::debug!(docker = self.target, container = id, "stop a container");
        // The engine counts whole seconds; half a second must not become none.
        let seconds = i32::try_from(grace.as_millis().div_ceil(1000)).unwrap_or(i32::MAX);
        let options = StopContainerOptions { t: Some(seconds), signal: None };
        let patient = self.docker.clone().with_timeout(grace.saturating_add(ANSWER));
        kill::around("docker stop", patient.stop_container(id, Some(options)))
            .await
            .map_err(|error| self.failure(&error))
    }

    /// Starts a container; starting a running one does nothing.
    ///
    /// # Errors
    /// When the engine can't be asked or refuses.
    pub async fn start(&self, id: &str) -> Result<(), Failure> {
        tracing::debug!(docker = self.target, container = id, "start a container");
        kill::around("docker start", self.docker.start_container(id, None))
            .await
            .map_err(|error| self.failure(&error))
    }

    /// The last lines that a container wrote, secrets masked; empty when they can't be had.
    pub async fn last_lines(&self, id: &str, lines: u32) -> String {
        let options = LogsOptions { stdout: true, stderr: true, tail: lines.to_string(), ..LogsOptions::default() };
        let mut stream = self.docker.logs(id, Some(options));
        let mut text = String::new();
        // Logs help to explain a failure; their own failure must not hide it.
        while let Ok(Some(Ok(piece))) = tokio::time::timeout(ANSWER, stream.next()).await {
            text.push_str(&piece.to_string());
            if text.len() > LINES_CAP {
                break;
            }
        }
        self.redactor.redact(text.trim_end()).into_owned()
    }

    async fn missing(&self, name: &str) -> Failure {
        let failure = Failure::permanent(format!("{} has no container `{name}`", self.target));
        let options = ListContainersOptions { all: true, ..ListContainersOptions::default() };
        let Ok(containers) = self.docker.list_containers(Some(options)).await else { return failure };
        let names = containers.into_iter().flat_map(|container| container.names.unwrap_or_default());
        let mut near: Vec<(f64, String)> = names
            .map(|found| found.trim_start_matches('/').to_owned())
            .map(|found| (strsim::jaro_winkler(name, &found), found))
            .filter(|(likeness, found)| *likeness > 0.8 || found.contains(name) || name.contains(found.as_str()))
            .collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        let near: Vec<String> = near.into_iter().take(3).map(|(_, found)| format!("`{found}`")).collect();
        if near.is_empty() {
            failure.help(format!("`docker ps --all` on {} shows what there is", self.host))
        } else {
            failure.help(format!("did you mean {}?", near.join(" or ")))
        }
    }

    /// Classes what the engine, or the way to it, said.
    fn failure(&self, error: &Error) -> Failure {
        let said = self.redactor.redact(&chain(error)).into_owned();
        match error {
            Error::DockerResponseServerError { status_code, message } => {
                let message = self.redactor.redact(message.trim());
                let said = format!("{} said {status_code}: {message}", self.target);
                match status_code {
                    // 409: another request works on the container; 5xx: the engine's own trouble.
                    409 | 429 | 500.. => Failure::transient(said),
                    401 | 403 => Failure::permanent(said)
                        .help("check the target's `tls` certificates and the engine's authorization"),
                    _ => Failure::permanent(said),
                }
            }
            Error::RequestTimeoutError => Failure::transient(format!("{} did not answer in time", self.target))
                .help(format!("check that the Docker daemon at {} is well", self.host)),
            _ if said.contains("ermission denied") => Failure::permanent(format!("{}: {said}", self.target))
                .help(format!("run as a user who may use {} (the group `docker`, or root)", self.host)),
            _ if said.contains("certificate") => {
                Failure::permanent(format!("{}: {said}", self.target)).help("check the target's `tls` files")
            }
            Error::JsonDataError { .. } | Error::JsonSerdeError { .. } => {
                Failure::permanent(format!("{}: {said}", self.target))
                    .help(format!("is {} a Docker engine?", self.host))
            }
            _ => Failure::transient(format!("{}: {said}", self.target))
                .help(format!("is the Docker daemon running at {}?", self.host)),
        }
    }
}

/// The error and its causes: the outermost one alone often says just "client error".
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    // The client's own name for itself tells nobody anything.
    if let Some(inner) = cause.filter(|_| matches!(error, Error::HyperLegacyError { .. })) {
        text = inner.to_string();
        cause = inner.source();
    }
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

const fn status(error: &Error) -> Option<u16> {
    match error {
        Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// What matters of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its id: another one under the same name is another container.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The image it was made of, as it was named then.
    pub image: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Where it is reached from the engine's host: a published port, as `127.0.0.1:8080`, or its own address.
    pub address: Option<String>,
    /// `running`, `exited`, `restarting`…, in the engine's words.
    pub status: String,
    /// Whether its process runs.
    pub running: bool,
    /// Whether it ended and the engine is about to start it again.
    pub restarting: bool,
    /// When its process was last started, as the engine writes it.
    pub started_at: String,
    /// The exit code of its last end.
    pub exit_code: i64,
    /// How often the engine restarted it by itself since it was last started by hand.
    pub restarts: i64,
    /// Its health check's answer; none without a check.
    pub health: Option<Health>,
    /// Its restart policy, if that brings it back (`always`, `unless-stopped`, `on-failure`).
    pub restart_policy: Option<&'static str>,
    /// Whether it is removed when it stops (`--rm`).
    pub removed_when_stopped: bool,
}

/// What a container's health check says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// `starting`, `healthy`, `unhealthy`.
    pub status: String,
    /// Whether it is healthy.
    pub healthy: bool,
    /// What the last probe wrote.
    pub last_output: Option<String>,
}

impl Container {
    /// The id as people see it.
    pub fn short_id(&self) -> &str {
        self.id.get(..12).unwrap_or(&self.id)
    }

    /// Whether it was made and never started.
    pub fn never_ran(&self) -> bool {
        // The zero of the engine's clock.
        self.started_at.is_empty() || self.started_at.starts_with("0001-")
    }
}

impl From<ContainerInspectResponse> for Container {
    fn from(found: ContainerInspectResponse) -> Self {
        let config = found.config.unwrap_or_default();
        let has_check = config
            .healthcheck
            .and_then(|check| check.test)
            .is_some_and(|test| test.first().is_some_and(|kind| kind != "NONE"));
        let state = found.state.unwrap_or_default();
        let host = found.host_config.unwrap_or_default();
        let shares_host = host.network_mode.as_deref() == Some("host");
        let status = state.status.unwrap_or(ContainerStateStatusEnum::EMPTY);
        let health = state.health.and_then(|health| {
            let status = health
                .status
                .filter(|status| !matches!(status, HealthStatusEnum::NONE | HealthStatusEnum::EMPTY))?;
            let last_output = health.log.unwrap_or_default().pop().and_then(|probe| probe.output);
            Some(Health { status: status.to_string(), healthy: status == HealthStatusEnum::HEALTHY, last_output })
        });
        // A container that was never started has a check but no answer yet.
        let unasked = || Health { status: "not asked yet".to_owned(), healthy: false, last_output: None };
        Self {
            id: found.id.unwrap_or_default(),
            name: found.name.unwrap_or_default().trim_start_matches('/').to_owned(),
            image: config.image.unwrap_or_default(),
            labels: config.labels.unwrap_or_default().into_iter().collect(),
            address: if shares_host {
                Some("127.0.0.1".to_owned())
            } else {
                found.network_settings.as_ref().and_then(address)
            },
            status: status.to_string(),
            running: state.running.unwrap_or(false),
            restarting: state.restarting.unwrap_or(false),
            started_at: state.started_at.unwrap_or_default(),
            exit_code: state.exit_code.unwrap_or_default(),
            restarts: found.restart_count.unwrap_or_default(),
            health: health.or_else(|| has_check.then(unasked)),
            restart_policy: match host.restart_policy.and_then(|policy| policy.name) {
                Some(RestartPolicyNameEnum::ALWAYS) => Some("always"),
                Some(RestartPolicyNameEnum::UNLESS_STOPPED) => Some("unless-stopped"),
                Some(RestartPolicyNameEnum::ON_FAILURE) => Some("on-failure"),
                _ => None,
            },
            removed_when_stopped: host.auto_remove.unwrap_or(false),
        }
    }
}

/// The published port of the lowest number in the container, else the first address it has.
fn address(network: &NetworkSettings) -> Option<String> {
    let published = network.ports.iter().flatten().filter_map(|(port, bindings)| {
        let number: u16 = port.split('/').next()?.parse().ok()?;
        let binding = bindings.as_ref()?.first()?;
        let host = match binding.host_ip.as_deref() {
            None | Some("" | "0.0.0.0" | "::") => "127.0.0.1".to_owned(),
            Some(ip) if ip.contains(':') => format!("[{ip}]"),
            Some(ip) => ip.to_owned(),
        };
        Some((number, format!("{host}:{}", binding.host_port.as_deref()?)))
    });
    if let Some((_, address)) = published.min() {
        return Some(address);
    }
    let addresses = network.networks.iter().flatten().filter_map(|(_, network)| network.ip_address.clone());
    addresses.filter(|address| !address.is_empty()).min()
}
