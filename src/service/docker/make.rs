//! Making and removing containers, and having their images.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use bollard::errors::Error;
use bollard::models::{
    ContainerCreateBody, CreateImageInfo, HostConfig, Mount, MountType, PortBinding, RestartPolicy,
    RestartPolicyNameEnum,
};
use bollard::query_parameters::{CreateContainerOptions, CreateImageOptions, RemoveContainerOptions};
use futures::StreamExt;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::{ANSWER, Engine, status};
use crate::failure::Failure;
use crate::kill;

/// A registry that is silent for so long is taken for gone.
const SILENCE: Duration = Duration::from_mins(2);

/// A container to be made.
#[derive(Clone, Serialize)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// The image, as the engine knows it.
    pub image: String,
    /// Program and arguments; empty for the image's own.
    pub command: Vec<String>,
    /// Variables, the place for what is secret.
    pub env: BTreeMap<String, String>,
    /// Ports of it that the engine's host publishes.
    pub ports: Vec<Port>,
    /// Folders and volumes in it.
    pub volumes: Vec<Volume>,
    /// Its network; the engine's own choice if not said.
    pub network: Option<String>,
    /// The user it runs as; the image's if not said.
    pub user: Option<String>,
    /// When the engine starts it again by itself.
    pub restart: Restart,
}

impl fmt::Debug for Wanted {
    /// Variables may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wanted({} of {})", self.name, self.image)
    }
}

/// What matters of an image.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its id.
    pub id: String,
    /// Whether it brings a health check.
    pub has_check: bool,
}

/// When the engine starts a container again by itself.
#[derive(Clone, Copy, Debug, Serialize)]
pub enum Restart {
    /// Never.
    No,
    /// Whenever it ended, and when the engine starts.
    Always,
    /// As `Always`, but not after it was stopped.
    UnlessStopped,
    /// When it ended with another exit code than 0.
    OnFailure,
}

/// A port that is published: `127.0.0.1:8080:80/tcp`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Port {
    /// The host's address; all of them if not said.
    pub ip: Option<IpAddr>,
    /// The host's port; a free one if not said.
    pub host: Option<u16>,
    /// The port in the container.
    pub container: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
}

impl Port {
    /// Reads `[[address:][port]:]port[/protocol]`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (text, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        if !["tcp", "udp", "sctp"].contains(&protocol) {
            return Err(format!("`{protocol}` is none of tcp, udp, sctp"));
        }
        let port = |text: &str| match text.parse::<u16>() {
            Ok(port @ 1..) => Ok(port),
            _ => Err(format!("`{text}` is no port")),
        };
        let (rest, container) = text.rsplit_once(':').map_or((None, text), |(rest, port)| (Some(rest), port));
        let (ip, host) = match rest {
            None => (None, None),
            Some(rest) => match rest.rsplit_once(':') {
                None => (None, Some(rest)),
                Some((ip, host)) => (Some(ip), Some(host)),
            },
        };
        let ip = match ip.map(|ip| ip.trim_start_matches('[').trim_end_matches(']')) {
            None => None,
            Some(ip) => Some(ip.parse::<IpAddr>().map_err(|_| format!("`{ip}` is no IP address"))?),
        };
        // `127.0.0.1::80`: on any free port of that address.
        let host = match host.filter(|host| !host.is_empty()) {
            Some(host) => Some(port(host)?),
            None if rest.is_some() && ip.is_none() => return Err("the host's port is missing".to_owned()),
            None => None,
        };
        Ok(Self { ip, host, container: port(container)?, protocol: protocol.to_owned() })
    }

    fn key(&self) -> String {
        format!("{}/{}", self.container, self.protocol)
    }
}

/// Something mounted into a container: `/host:/in:ro`, or a volume's name instead of the folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Volume {
    /// A folder or file of the engine's host, or a volume's name.
    pub source: String,
    /// Where it is in the container.
    pub target: String,
    /// Whether the container can't write to it.
    pub read_only: bool,
}

impl Volume {
    /// Reads `source:target[:ro|rw]`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let (source, target, read_only) = match parts.as_slice() {
            [source, target] | [source, target, "rw"] => (*source, *target, false),
            [source, target, "ro"] => (*source, *target, true),
            [_, _, other] => return Err(format!("`{other}` is none of ro, rw")),
            _ => return Err(format!("`{text}` is not `source:target`")),
        };
        if !target.starts_with('/') {
            return Err(format!("`{target}` is no absolute path in the container"));
        }
        let is_name = source.starts_with(|c: char| c.is_ascii_alphanumeric())
            && source.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
        if !is_name && !source.starts_with('/') {
            return Err(format!("`{source}` is neither an absolute path nor a volume's name"));
        }
        Ok(Self { source: source.to_owned(), target: target.to_owned(), read_only })
    }
}

impl Wanted {
    /// Tells this container from one made with anything else; `image_id` since a tag can move.
    pub fn digest(&self, image_id: &str) -> String {
        // It serializes without fail: texts, numbers, lists.
        let text = serde_json::to_string(&(self, image_id)).unwrap_or_default();
        Sha256::digest(text).iter().take(8).fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
    }

    fn body(&self, labels: BTreeMap<String, String>) -> ContainerCreateBody {
        let some = |list: Vec<String>| (!list.is_empty()).then_some(list);
        let mut bindings: HashMap<String, Option<Vec<PortBinding>>> = HashMap::new();
        for port in &self.ports {
            let binding = PortBinding {
                host_ip: port.ip.map(|ip| ip.to_string()),
                host_port: port.host.map(|port| port.to_string()),
            };
            bindings.entry(port.key()).or_default().get_or_insert_default().push(binding);
        }
        let mount = |volume: &Volume| Mount {
            source: Some(volume.source.clone()),
            target: Some(volume.target.clone()),
            // Unlike a bind by text, a mount never makes the missing folder of a mistyped path.
            typ: Some(if volume.source.starts_with('/') { MountType::BIND } else { MountType::VOLUME }),
            read_only: Some(volume.read_only),
            ..Mount::default()
        };
        let restart = match self.restart {
            Restart::No => RestartPolicyNameEnum::NO,
            Restart::Always => RestartPolicyNameEnum::ALWAYS,
            Restart::UnlessStopped => RestartPolicyNameEnum::UNLESS_STOPPED,
            Restart::OnFailure => RestartPolicyNameEnum::ON_FAILURE,
        };
        ContainerCreateBody {
            image: Some(self.image.clone()),
            cmd: some(self.command.clone()),
            env: some(self.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
            user: self.user.clone(),
            exposed_ports: some(self.ports.iter().map(Port::key).collect()),
            labels: Some(labels.into_iter().collect()),
            host_config: Some(HostConfig {
                port_bindings: (!bindings.is_empty()).then_some(bindings),
                mounts: (!self.volumes.is_empty()).then(|| self.volumes.iter().map(mount).collect()),
                network_mode: self.network.clone(),
                restart_policy: Some(RestartPolicy { name: Some(restart), maximum_retry_count: None }),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        }
    }
}

impl Engine {
    /// An image that the engine has; none when it hasn't.
    ///
    /// # Errors
    /// When the engine can't be asked.
    pub async fn image(&self, image: &str) -> Result<Option<Image>, Failure> {
        match self.docker.inspect_image(image).await {
            Ok(found) => {
                let check = found.config.and_then(|config| config.healthcheck).and_then(|check| check.test);
                let has_check = check.is_some_and(|test| test.first().is_some_and(|kind| kind != "NONE"));
                Ok(Some(Image { id: found.id.unwrap_or_default(), has_check }))
            }
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(self.failure(&error).context(format!("look at image {image}"))),
        }
    }

    /// Has the engine fetch an image from its registry, without credentials; tells what it says.
    ///
    /// # Errors
    /// When the engine can't be asked, or the registry doesn't give it.
    pub async fn pull(&self, image: &str, told: &(dyn Fn(&str) + Send + Sync)) -> Result<(), Failure> {
        tracing::debug!(docker = self.target, image, "pull an image");
        // Without a tag the engine would fetch all of them.
        let name = image.rsplit('/').next().unwrap_or(image);
        let from = if name.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") };
        let options = CreateImageOptions { from_image: Some(from), ..CreateImageOptions::default() };
        let patient = self.docker.clone().with_timeout(SILENCE);
        let mut stream = std::pin::pin!(patient.create_image(Some(options), None, None));
        loop {
            match timeout(SILENCE, stream.next()).await {
                Ok(None) => return Ok(()),
                Ok(Some(Ok(CreateImageInfo { id, status, .. }))) => {
                    let said: Vec<String> = id.into_iter().chain(status).collect();
                    told(&said.join(": "));
                }
                Ok(Some(Err(error))) => return Err(self.not_pulled(image, &error)),
                Err(_) => {
                    return Err(Failure::transient(format!("pull {image}: nothing was heard for 2 minutes")));
                }
            }
        }
    }

    fn not_pulled(&self, image: &str, error: &Error) -> Failure {
        let said = match error {
            Error::DockerStreamError { error } => error.as_str(),
            Error::DockerResponseServerError { message, .. } => message.as_str(),
            _ => return self.failure(error).context(format!("pull {image}")),
        };
        let said = self.redactor.redact(said.trim());
        let message = format!("pull {image}: {said}");
        let is_refused = ["not found", "unknown", "denied", "unauthorized", "invalid reference", "no basic auth"]
            .iter()
            .any(|word| said.contains(word));
        if is_refused {
            let help = format!("check its name; a private one needs a `docker login` and `docker pull {image}`");
            return Failure::permanent(message).help(help);
        }
        Failure::transient(message).help(format!("check that {} reaches the image's registry", self.host))
    }

    /// Makes a container, which isn't started; gives back its id.
    ///
    /// # Errors
    /// When the engine can't be asked or refuses.
    pub async fn create(&self, wanted: &Wanted, labels: BTreeMap<String, String>) -> Result<String, Failure> {
        tracing::debug!(docker = self.target, container = wanted.name, "create a container");
        let options =
            CreateContainerOptions { name: Some(wanted.name.clone()), ..CreateContainerOptions::default() };
        let patient = self.docker.clone().with_timeout(2 * ANSWER);
        match kill::around("docker create", patient.create_container(Some(options), wanted.body(labels))).await {
            Ok(created) => Ok(created.id),
            Err(error) => {
                let mut failure = self.failure(&error);
                // The name: somebody took it meanwhile, and will not give it back by itself.
                failure.transient &= status(&error) != Some(409);
                Err(failure.context(format!("create container {}", wanted.name)))
            }
        }
    }

    /// Removes a container, and tells whether it was there. `force` kills one that runs;
    /// `volumes` takes its unnamed volumes with it.
    ///
    /// # Errors
    /// When the engine can't be asked or refuses.
    pub async fn remove(&self, id: &str, force: bool, volumes: bool) -> Result<bool, Failure> {
        tracing::debug!(docker = self.target, container = id, "remove a container");
        let options = RemoveContainerOptions { force, v: volumes, link: false };
        let patient = self.docker.clone().with_timeout(3 * ANSWER);
        match kill::around("docker remove", patient.remove_container(id, Some(options))).await {
            Ok(()) => Ok(true),
            Err(error) if status(&error) == Some(404) => Ok(false),
            Err(error) => Err(self.failure(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(text: &str) -> Port {
        Port::parse(text).unwrap()
    }

    #[test]
    fn ports_are_read_as_docker_reads_them() {
        let whole = port("127.0.0.1:8080:80/udp");
        assert_eq!((whole.ip.unwrap().to_string().as_str(), whole.host), ("127.0.0.1", Some(8080)));
        assert_eq!((whole.container, whole.protocol.as_str()), (80, "udp"));
        assert_eq!((port("8080:80").ip, port("8080:80").host), (None, Some(8080)));
        assert_eq!((port("80").host, port("80").key().as_str()), (None, "80/tcp"));
        assert_eq!((port("127.0.0.1::80").host, port("[::1]:8080:80").ip), (None, "::1".parse().ok()));
        for bad in ["", "x", "0:80", "70000:80", ":80", "localhost:8080:80", "80/icmp", "8080:", "8000-8010:80"] {
            assert!(Port::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn volumes_are_folders_or_names() {
        let folder = Volume::parse("/srv/keys:/keys:ro").unwrap();
        assert!(folder.read_only && folder.target == "/keys");
        assert!(!Volume::parse("data:/var/lib/data").unwrap().read_only);
        for bad in ["/keys", "keys:keys", "./keys:/keys", "a:/b:rx", "a:/b:ro:z", ":/b"] {
            assert!(Volume::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_request_says_all_that_was_asked_for() {
        let wanted = Wanted {
            name: "auth".to_owned(),
            image: "auth:1".to_owned(),
            command: vec![],
            env: BTreeMap::from([("A".to_owned(), "b=c".to_owned())]),
            ports: vec![port("127.0.0.1:8080:80"), port("[::1]:8080:80"), port("53/udp")],
            volumes: vec![Volume::parse("/srv:/srv:ro").unwrap(), Volume::parse("data:/data").unwrap()],
            network: Some("front".to_owned()),
            user: Some("1000".to_owned()),
            restart: Restart::UnlessStopped,
        };
        let body = serde_json::to_value(wanted.body(BTreeMap::from([("l".to_owned(), "1".to_owned())]))).unwrap();
        assert_eq!((&body["Env"][0], &body["User"]), (&"A=b=c".into(), &"1000".into()));
        assert!(body.get("Cmd").is_none(), "the image's own");
        assert_eq!(body["Labels"]["l"], "1");
        assert!(body["ExposedPorts"]["80/tcp"].is_object() && body["ExposedPorts"]["53/udp"].is_object());
        let host = &body["HostConfig"];
        let both = serde_json::json!([
            { "HostIp": "127.0.0.1", "HostPort": "8080" }, { "HostIp": "::1", "HostPort": "8080" }
        ]);
        assert_eq!(host["PortBindings"]["80/tcp"], both);
        assert_eq!(host["PortBindings"]["53/udp"], serde_json::json!([{}]));
        assert_eq!((&host["Mounts"][0]["Type"], &host["Mounts"][0]["ReadOnly"]), (&"bind".into(), &true.into()));
        assert_eq!((&host["Mounts"][1]["Type"], &host["Mounts"][1]["ReadOnly"]), (&"volume".into(), &false.into()));
        assert_eq!(host["NetworkMode"], "front");
        assert_eq!(host["RestartPolicy"]["Name"], "unless-stopped");
        assert_ne!(wanted.digest("sha256:a"), wanted.digest("sha256:b"));
        assert_eq!(wanted.digest("sha256:a"), wanted.clone().digest("sha256:a"));
        assert!(!format!("{wanted:?}").contains("b=c"));
    }
}
