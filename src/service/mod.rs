//! The outside world, one file a system, and the targets' settings.
//!
//! Knows nothing of plans or steps. Settings are parsed here (an environment's
//! `targets`), connections are made here, and failures are classed here.

pub mod age;
pub mod disk;
pub mod dns;
pub mod docker;
pub mod http;
pub mod identity;
pub mod mail;
pub mod oidc;
pub mod postgres;
pub mod process;
pub mod redis;
pub mod sandbox;
pub mod ssh;
pub mod storage;
#[cfg(test)]
pub(crate) mod tls_testing;
mod trust;

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::secret::Redactor;
use crate::units::Duration;

/// A target's kind and settings, as an environment (or a plan's default) gives them:
/// `postgres: { url: … }`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// A PostgreSQL server.
    Postgres(PostgresSettings),
    /// A Docker engine.
    Docker(DockerSettings),
    /// A storage.
    Storage(StorageSettings),
    /// An HTTP service.
    Http(HttpSettings),
    /// A web hook.
    Webhook(WebhookSettings),
    /// A Redis or Valkey server.
    Redis(redis::RedisSettings),
    /// An OpenID Connect provider.
    Oidc(oidc::OidcSettings),
    /// A DNS zone that can be updated.
    Dns(dns::DnsSettings),
    /// A mail server.
    Smtp(mail::SmtpSettings),
    /// A host that is reached by SSH.
    Ssh(ssh::SshSettings),
}

/// The kinds of targets, as plans name them.
pub const KINDS: [&str; 10] =
    ["postgres", "docker", "storage", "http", "webhook", "redis", "oidc", "dns", "smtp", "ssh"];

impl Target {
    /// The kind's name.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgres",
            Self::Docker(_) => "docker",
            Self::Storage(_) => "storage",
            Self::Http(_) => "http",
            Self::Webhook(_) => "webhook",
            Self::Redis(_) => "redis",
            Self::Oidc(_) => "oidc",
            Self::Dns(_) => "dns",
            Self::Smtp(_) => "smtp",
            Self::Ssh(_) => "ssh",
        }
    }

    /// What is wrong with its settings, as far as that shows without contact.
    pub fn unsound(&self) -> Vec<Unsound> {
        match self {
            Self::Dns(settings) => settings.unsound().into_iter().collect(),
            Self::Smtp(settings) => settings.unsound().into_iter().collect(),
            Self::Storage(settings) => settings.unsound(),
            _ => vec![],
        }
    }
}

/// A setting that can't be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsound {
    /// Which one.
    pub setting: String,
    /// What is wrong with it. Shows no secret.
    pub failure: Failure,
}

/// How to reach a PostgreSQL server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostgresSettings {
    /// A libpq connection URI, as `postgres://user:password@host:5432/postgres`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The database to connect to for work on other databases.
    #[serde(default = "maintenance_database")]
    pub maintenance_database: String,
    /// The folder of `pg_dump`, `pg_restore` and `psql`; otherwise they are looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bin_dir: Option<String>,
    /// Containers that use its databases, as `docker/mana-core-auth`.
    #[serde(default)]
    pub clients: Vec<String>,
    /// Instead of `url`: a throwaway cluster that Lifeboat starts and removes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<PostgresSandbox>,
    /// Instead of `url`: a cluster on this machine with the roles and passwords of another target's:
    /// one that `postgres.recover_to` makes, or a sandbox's standby.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<BesideSettings>,
}

/// Where a cluster beside another one is reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BesideSettings {
    /// The target whose role and password are used.
    pub like: String,
    /// The port on 127.0.0.1.
    pub port: u16,
}

/// A throwaway PostgreSQL cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PostgresSandbox {
    /// The server's major version; by default the newest that is installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// The port on 127.0.0.1; by default a free one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Its superuser's password, of letters, digits and `-`; by default made up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// Whether it archives its WAL, into `archive` in the target's folder of the sandbox; base
    /// backups can then be taken of it.
    #[serde(skip_serializing_if = "is_false")]
    pub archive: bool,
    /// The port on 127.0.0.1 of a standby that follows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standby: Option<u16>,
    /// Server settings (`shared_buffers: 64MB`).
    pub settings: BTreeMap<String, String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference over")]
const fn is_false(truth: &bool) -> bool {
    !*truth
}

fn maintenance_database() -> String {
    "postgres".to_owned()
}

/// How to reach a Docker engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DockerSettings {
    /// `unix:///var/run/docker.sock`, `tcp://host:2375`, or `https://host:2376` with `tls`.
    #[serde(default = "docker_host")]
    pub host: String,
    /// Certificates for a TLS-protected engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<DockerTls>,
    /// Lifeboat makes images there of the PostgreSQL and Redis servers that this machine has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<ImagesSandbox>,
}

/// Throwaway images, for engines that can pull none. They are used as the official ones are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImagesSandbox {
    /// What their names begin with: `name-postgres` and `name-redis`. No other sandbox may have it.
    pub images: String,
}

/// The local engine's socket.
pub fn docker_host() -> String {
    "unix:///var/run/docker.sock".to_owned()
}

/// Certificate files, as Docker's own `DOCKER_CERT_PATH` holds them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DockerTls {
    /// The authority's certificate.
    pub ca: String,
    /// The client's certificate.
    pub cert: String,
    /// The client's key.
    pub key: String,
}

/// A storage: an opendal scheme and that service's own settings; of `s3` also `ca_file`, a PEM file of authorities to
/// trust besides the system's, and `timeout`, how long the service may be silent before it is asked again (`2m`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StorageSettings {
    /// `fs`, `s3`.
    pub scheme: String,
    /// The service's settings, by opendal's names (`root`, `bucket`, `endpoint`, `region`, `access_key_id`…).
    #[serde(flatten, deserialize_with = "texts")]
    #[schemars(with = "BTreeMap<String, Setting>")]
    pub settings: BTreeMap<String, String>,
}

/// A storage's setting as people write it: opendal takes them all as text.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum Setting {
    Text(String),
    Truth(bool),
    Number(serde_json::Number),
}

fn texts<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let settings = BTreeMap::<String, Setting>::deserialize(deserializer)?;
    let text = |setting| match setting {
        Setting::Text(text) => text,
        Setting::Truth(truth) => truth.to_string(),
        Setting::Number(number) => number.to_string(),
    };
    Ok(settings.into_iter().map(|(name, setting)| (name, text(setting))).collect())
}

/// An HTTP service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpSettings {
    /// What paths are appended to, as `http://localhost:3001`.
    pub base_url: String,
    /// Sent with each request.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The bound on one request.
    #[serde(default = "http_timeout")]
    pub timeout: Duration,
    /// A PEM file of authorities to trust besides the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// Credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<HttpAuth>,
    /// Lifeboat itself serves `base_url`, on loopback: a small auth service that it starts and removes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<AuthSandbox>,
    /// Lifeboat itself serves `base_url`, on loopback: a service that others' tokens are shown to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer_sandbox: Option<ConsumerSandbox>,
}

/// A throwaway auth service that reads its database whenever it is asked if it is ready, and an OpenID
/// Connect issuer with its keys in that database. The `oidc` target of the same URL names its client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuthSandbox {
    /// The database it reads, as `target/database`.
    pub database: String,
    /// The container it runs in, as `target/container`; without one it is a process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// How many users are made up to fill its database; 10,000 if not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<u32>,
    /// What it encrypts its private keys with (Better Auth: `BETTER_AUTH_SECRET`); made up if not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

/// A throwaway service that validates tokens at `GET /me`, and caches the issuer's keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsumerSandbox {
    /// The URL of the issuer whose tokens it takes.
    pub issuer: String,
    /// How long it trusts keys without asking again; jose's 10 minutes if not said.
    #[serde(default = "ten_minutes")]
    pub cache: Duration,
}

fn ten_minutes() -> Duration {
    Duration::seconds(600)
}

fn http_timeout() -> Duration {
    Duration::seconds(10)
}

/// HTTP credentials.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum HttpAuth {
    /// Name and password.
    Basic {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// A token.
    Bearer(String),
}

/// A web hook.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookSettings {
    /// Where to POST.
    pub url: String,
    /// The body's form.
    #[serde(default)]
    pub format: WebhookFormat,
    /// Sent with each request.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// A PEM file of authorities to trust besides the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// Lifeboat itself listens at `url`, on loopback, and keeps what it gets.
    #[serde(default)]
    pub sandbox: bool,
}

/// The body of a web hook's request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WebhookFormat {
    /// One JSON object with everything known.
    #[default]
    Json,
    /// `{ "text": … }`, as Slack and those like it take it.
    Slack,
}

/// The targets of a run, ready to be reached. Cheap to clone; clones share connections'
/// settings. [`Services::for_attempt`] gives one attempt its own label and cancellation.
#[derive(Clone, Debug)]
pub struct Services {
    targets: Arc<BTreeMap<String, Target>>,
    redactor: Redactor,
    /// `lifeboat:<run>:<step>:<attempt>`: the application name of database sessions.
    label: Arc<str>,
    cancel: CancellationToken,
    /// Database sessions of a dry-run can't write.
    read_only: bool,
}

impl Services {
    /// Services for these targets.
    pub fn new(targets: BTreeMap<String, Target>, redactor: Redactor) -> Self {
        Self {
            targets: Arc::new(targets),
            redactor,
            label: "lifeboat".into(),
            cancel: CancellationToken::new(),
            read_only: false,
        }
    }

    /// The same targets for one attempt of a step.
    #[must_use]
    pub fn for_attempt(&self, label: &str, cancel: CancellationToken) -> Self {
        Self { label: label.into(), cancel, ..self.clone() }
    }

    /// The same targets for a dry-run: database sessions are `default_transaction_read_only`.
    #[must_use]
    pub fn read_only(&self) -> Self {
        Self { read_only: true, ..self.clone() }
    }

    /// Whether these are a dry-run's.
    pub const fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The application name of database sessions.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Triggered when the attempt must end.
    pub const fn cancel(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Masks secrets in texts from outside.
    pub const fn redactor(&self) -> &Redactor {
        &self.redactor
    }

    /// A target's settings.
    ///
    /// # Errors
    /// When the environment has no target of that name.
    pub fn target(&self, name: &str) -> Result<&Target, Failure> {
        self.targets.get(name).ok_or_else(|| {
            Failure::permanent(format!("the environment has no target `{name}`"))
                .help(format!("add `{name}` under `targets` in the environment file"))
        })
    }

    /// The failure of a target that is of another kind than the one asked for.
    fn wrong_kind(&self, target: &str, wanted: &str) -> Failure {
        let kind = self.targets.get(target).map_or("unknown", Target::kind);
        Failure::permanent(format!("target `{target}` is of kind {kind}; this step takes one of kind {wanted}"))
    }
}
