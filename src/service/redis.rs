//! A Redis or Valkey server: what it tells of itself, and the orders that a snapshot and a restore need.
//!
//! Knows nothing of plans or steps. The target's URL may hold a password, so no message shows it.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, FromRedisValue, RedisError, ServerErrorKind,
    TlsCertificates,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Services, Target, trust};
use crate::failure::Failure;
use crate::kill;
use crate::secret::Redactor;

/// The bound on coming to a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// The bound on one answer: a server that forks or loads is slow, not dead.
const ANSWER: Duration = Duration::from_secs(30);

/// A Redis or Valkey server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RedisSettings {
    /// As `rediss://:password@host:6379/0` (TLS), or `redis://:password@host:6379/0` (without).
    pub url: String,
    /// A PEM file of authorities to trust instead of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// Lifeboat itself starts a throwaway server at `url`, on loopback, and removes it.
    #[serde(default)]
    pub sandbox: bool,
}

/// A target of kind `redis`, ready to be connected to.
pub struct Server {
    client: Client,
    target: String,
    redactor: Redactor,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({})", self.place())
    }
}

/// A connection to a server.
pub struct Session {
    connection: MultiplexedConnection,
    place: String,
    redactor: Redactor,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({})", self.place)
    }
}

/// What `INFO` tells, by name.
#[derive(Debug)]
pub struct Info {
    facts: HashMap<String, String>,
    place: String,
}

impl Services {
    /// The Redis server that a target names. Makes no contact yet.
    ///
    /// # Errors
    /// When there is no such target of that kind, or its URL is none.
    pub fn redis(&self, target: &str) -> Result<Server, Failure> {
        let Target::Redis(settings) = self.target(target)? else {
            return Err(self.wrong_kind(target, "redis"));
        };
        let in_target = |failure: Failure| failure.context(format!("target {target}"));
        let client = client(settings).map_err(in_target)?;
        if let Some(password) = client.get_connection_info().redis_settings().password() {
            self.redactor().add(password);
        }
        Ok(Server { client, target: target.to_owned(), redactor: self.redactor().clone() })
    }
}

impl Server {
    /// The target and where it is: `cache (127.0.0.1:6379)`.
    pub fn place(&self) -> String {
        format!("{} ({})", self.target, self.client.get_connection_info().addr())
    }

    /// Where it is: `127.0.0.1:6379`, and the number of the database.
    pub fn address(&self) -> String {
        let info = self.client.get_connection_info();
        format!("{}/{}", info.addr(), info.redis_settings().db())
    }

    /// Connects, and is let in.
    ///
    /// # Errors
    /// When nobody answers, or the password is refused.
    pub async fn connect(&self) -> Result<Session, Failure> {
        let place = self.place();
        tracing::debug!(redis = place, "connect");
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(Some(ANSWER));
        match self.client.get_multiplexed_async_connection_with_config(&config).await {
            Ok(connection) => Ok(Session { connection, place, redactor: self.redactor.clone() }),
            Err(error) => Err(failure("connect to", &place, &error, &self.redactor)),
        }
    }
}

impl Session {
    /// The target and where it is.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Sends a command; `attempted` names it for people.
    async fn ask<T: FromRedisValue>(&self, attempted: &str, command: &Cmd) -> Result<T, Failure> {
        // A handle on the one connection: cheap.
        let mut connection = self.connection.clone();
        tracing::debug!(redis = self.place, attempted, "ask");
        command
            .query_async(&mut connection)
            .await
            .map_err(|error| failure(&format!("{attempted} on"), &self.place, &error, &self.redactor))
    }

    /// `PING`: the server takes commands. One that still loads its data doesn't.
    ///
    /// # Errors
    /// When it doesn't answer.
    pub async fn ping(&self) -> Result<(), Failure> {
        self.ask::<String>("PING", &redis::cmd("PING")).await.map(drop)
    }

    /// How many keys the connection's database has.
    ///
    /// # Errors
    /// When the server can't tell.
    pub async fn keys(&self) -> Result<u64, Failure> {
        self.ask("DBSIZE", &redis::cmd("DBSIZE")).await
    }

    /// A section of `INFO`.
    ///
    /// # Errors
    /// When the server can't tell.
    pub async fn info(&self, section: &str) -> Result<Info, Failure> {
        let text: String = self.ask(&format!("INFO {section}"), redis::cmd("INFO").arg(section)).await?;
        let fact =
            |line: &str| line.trim_end().split_once(':').map(|(name, value)| (name.to_owned(), value.to_owned()));
        Ok(Info { facts: text.lines().filter_map(fact).collect(), place: self.place.clone() })
    }

    /// A setting, if the server has one of that name.
    ///
    /// # Errors
    /// When it can't or may not tell.
    pub async fn setting(&self, name: &str) -> Result<Option<String>, Failure> {
        let found: HashMap<String, String> = self
            .ask(&format!("CONFIG GET {name}"), redis::cmd("CONFIG").arg("GET").arg(name))
            .await
            .map_err(|failure| failure.help("let the user run CONFIG GET; managed services often forbid it"))?;
        Ok(found.into_iter().find(|(found, _)| found == name).map(|(_, value)| value))
    }

    /// Changes a setting until the server's next start.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn set(&self, name: &str, value: &str) -> Result<(), Failure> {
        let attempted = format!("CONFIG SET {name} {value}");
        kill::around(
            "redis CONFIG SET",
            self.ask::<String>(&attempted, redis::cmd("CONFIG").arg("SET").arg(name).arg(value)),
        )
        .await
        .map(drop)
    }

    /// `BGSAVE`.
    ///
    /// # Errors
    /// When the server refuses, unless because a save runs.
    pub async fn begin_save(&self) -> Result<Begun, Failure> {
        // While the append-only file is rewritten a save waits its turn.
        match kill::around("redis BGSAVE", self.ask::<String>("BGSAVE", redis::cmd("BGSAVE").arg("SCHEDULE"))).await
        {
            Ok(said) if said.contains("scheduled") => Ok(Begun::Scheduled),
            Ok(_) => Ok(Begun::Started),
            Err(failure) if failure.message.contains("already in progress") => Ok(Begun::Running),
            Err(failure) => Err(failure),
        }
    }
}

/// What a server answers to `BGSAVE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// It saves.
    Started,
    /// It will, after what it does now.
    Scheduled,
    /// It did already.
    Running,
}

impl Begun {
    /// In words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Started => "a save was started",
            Self::Scheduled => "a save waits for the rewrite of the append-only file",
            Self::Running => "a save runs already, and is waited for",
        }
    }
}

impl Info {
    /// A fact as text.
    ///
    /// # Errors
    /// When the server doesn't tell it.
    pub fn text(&self, name: &str) -> Result<&str, Failure> {
        self.facts.get(name).map(String::as_str).ok_or_else(|| {
            Failure::permanent(format!("the INFO of {} has no `{name}`", self.place))
                .help("the server is too old, or a service that hides it")
        })
    }

    /// A fact as a number.
    ///
    /// # Errors
    /// When the server doesn't tell it, or it is none.
    pub fn number(&self, name: &str) -> Result<u64, Failure> {
        let text = self.text(name)?;
        text.parse().map_err(|_| Failure::permanent(format!("the INFO of {}: `{name}` is `{text}`", self.place)))
    }

    /// Whether a fact is told as `1`.
    pub fn is_set(&self, name: &str) -> bool {
        self.facts.get(name).is_some_and(|value| value == "1")
    }

    /// The keys of all databases, of `INFO keyspace`.
    pub fn all_keys(&self) -> u64 {
        let keys = |(name, value): (&String, &String)| {
            let number = name.strip_prefix("db").filter(|number| number.parse::<u32>().is_ok());
            number.and_then(|_| value.strip_prefix("keys=")?.split(',').next()?.parse::<u64>().ok())
        };
        self.facts.iter().filter_map(keys).sum()
    }
}

fn client(settings: &RedisSettings) -> Result<Client, Failure> {
    let client = Client::open(settings.url.as_str()).map_err(|_| {
        // The parser's words may quote the URL.
        Failure::permanent("its `url` is not a Redis server's")
            .help("write `rediss://host:6379/0` (TLS), `redis://host:6379/0`, or `redis+unix:///run/redis.sock`")
    })?;
    let ConnectionAddr::TcpTls { insecure, .. } = client.get_connection_info().addr() else {
        return match settings.ca_file {
            None => Ok(client),
            Some(_) => Err(Failure::permanent("its `url` is without TLS, and it has `ca_file`")
                .help("write `rediss://`, or remove `ca_file`")),
        };
    };
    if *insecure {
        return Err(Failure::permanent("its `url` ends with `#insecure`: certificates are always verified")
            .help("remove that, and name the authority's PEM file in `ca_file`"));
    }
    let Some(path) = &settings.ca_file else { return Ok(client) };
    // Says what is wrong with the file.
    trust::authorities(path)?;
    let pem = std::fs::read(path).map_err(|error| Failure::permanent(format!("read {path}: {error}")))?;
    let certificates = TlsCertificates { client_tls: None, root_cert: Some(pem) };
    Client::build_with_tls(settings.url.as_str(), certificates)
        .map_err(|_| Failure::permanent(format!("{path} holds no authority's certificates")))
}

fn failure(attempted: &str, place: &str, error: &RedisError, redactor: &Redactor) -> Failure {
    let said = error.to_string();
    let message = format!("{attempted} {place}: {}", redactor.redact(said.trim()));
    let passes = error.is_io_error()
        || error.is_timeout()
        || error.is_connection_dropped()
        || matches!(
            error.kind(),
            ErrorKind::Server(
                ServerErrorKind::BusyLoading
                    | ServerErrorKind::TryAgain
                    | ServerErrorKind::MasterDown
                    | ServerErrorKind::ClusterDown
            )
        );
    let code = error.code().unwrap_or_default();
    if error.kind() == ErrorKind::AuthenticationFailed || ["NOAUTH", "WRONGPASS", "NOPERM"].contains(&code) {
        Failure::permanent(message).help("check the user and the password in the target's `url`")
    } else if let Some(help) = trust::way_out(&message, "ca_file") {
        Failure::permanent(message).help(help)
    } else if passes {
        Failure::transient(message)
    } else {
        Failure::permanent(message)
    }
}
