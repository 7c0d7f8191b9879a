//! PostgreSQL: connections, what a server tells about itself, its client tools.
//!
//! Knows nothing of plans or steps. Read on in [`session`] (a connection), [`facts`]
//! (databases, roles, sessions), [`value`] (rows as JSON), [`tool`] (`pg_dump` and its kin).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

mod address;
pub mod copy;
mod error;
pub mod facts;
pub mod relation;
pub mod session;
pub mod side;
mod tls;
pub mod tool;
pub mod value;
pub mod wal;

pub use session::Session;

use super::{BesideSettings, PostgresSettings, Services, Target};
use crate::failure::Failure;
use crate::ids::{RunId, StepId};
use crate::secret::Redactor;
use address::Address;

/// How long a connection may take to come about, unless the URI says `connect_timeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a statement waits for a lock, unless a step says otherwise.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);

/// A PostgreSQL target, ready to be connected to. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    target: Arc<str>,
    settings: Arc<PostgresSettings>,
    address: Arc<Address>,
    tls: tokio_postgres_rustls::MakeRustlsConnect,
    label: Arc<str>,
    cancel: CancellationToken,
    read_only: bool,
    redactor: Redactor,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({} at {})", self.target, self.address.place())
    }
}

impl Services {
    /// The PostgreSQL server that a target names. Makes no contact yet.
    ///
    /// # Errors
    /// When there is no such target, it is of another kind, or its settings don't hold.
    pub fn postgres(&self, target: &str) -> Result<Server, Failure> {
        let settings = match self.target(target)? {
            Target::Postgres(settings) => settings,
            other => {
                return Err(Failure::permanent(format!("target `{target}` is a {}, not a postgres", other.kind())));
            }
        };
        if let (None, Some(beside)) = (&settings.url, &settings.beside) {
            return self.beside(target, settings, beside);
        }
        let Some(url) = &settings.url else {
            return Err(match settings.sandbox {
                Some(_) => Failure::permanent(format!("the sandbox of target `{target}` is not up"))
                    .help("start it with `lifeboat sandbox up`"),
                None => Failure::permanent(format!("target `{target}` has neither `url` nor `sandbox`")),
            });
        };
        let wrong = |message: String| {
            Failure::permanent(self.redactor.redact(&format!("target `{target}`: {message}")).into_owned())
        };
        let address = Address::parse(url).map_err(wrong)?;
        if let Some(password) = address.config.get_password() {
            self.redactor.add(&String::from_utf8_lossy(password));
        }
        Ok(Server {
            target: target.into(),
            tls: tls::connector(&address.tls).map_err(wrong)?,
            settings: Arc::new(settings.clone()),
            address: Arc::new(address),
            label: self.label.clone(),
            cancel: self.cancel.clone(),
            read_only: self.read_only,
            redactor: self.redactor.clone(),
        })
    }

    /// The same role and password as another target's, on a port of this machine.
    fn beside(
        &self,
        target: &str,
        settings: &PostgresSettings,
        beside: &BesideSettings,
    ) -> Result<Server, Failure> {
        match self.target(&beside.like)? {
            Target::Postgres(original) if original.beside.is_none() => {}
            _ => {
                return Err(Failure::permanent(format!(
                    "target `{target}` is like `{}`, which is no postgres with a server of its own",
                    beside.like
                )));
            }
        }
        let like = self.postgres(&beside.like)?;
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(beside.port).user(like.user());
        config.ssl_mode(tokio_postgres::config::SslMode::Disable);
        if let Some(password) = like.address.config.get_password() {
            config.password(password);
        }
        if let Some(database) = like.address.config.get_dbname() {
            config.dbname(database);
        }
        let settings = PostgresSettings {
            maintenance_database: like.settings.maintenance_database.clone(),
            bin_dir: settings.bin_dir.clone().or_else(|| like.settings.bin_dir.clone()),
            ..settings.clone()
        };
        let address =
            Address { config, tls: address::TlsSettings { mode: address::Mode::Disable, ..Default::default() } };
        Ok(Server { target: target.into(), settings: Arc::new(settings), address: Arc::new(address), ..like })
    }
}

impl Server {
    /// The target's name.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Its settings.
    pub fn settings(&self) -> &PostgresSettings {
        &self.settings
    }

    /// `host:port`, for messages.
    pub fn host_and_port(&self) -> String {
        self.address.place()
    }

    /// The port on this machine's loopback that it is reached at, if that is where it is.
    pub fn loopback_port(&self) -> Option<u16> {
        let host = self.address.host();
        ["127.0.0.1", "localhost"].contains(&host.as_str()).then(|| self.address.port())
    }

    /// The same server through a socket in `folder`: without a password, and without TLS.
    #[must_use]
    pub fn through_socket(&self, folder: &std::path::Path) -> Self {
        let mut config = tokio_postgres::Config::new();
        config.host_path(folder).port(self.address.port()).user(self.user());
        config.ssl_mode(tokio_postgres::config::SslMode::Disable);
        let tls = address::TlsSettings { mode: address::Mode::Disable, ..Default::default() };
        Self { address: Arc::new(Address { config, tls }), ..self.clone() }
    }

    /// The role that connects.
    pub fn user(&self) -> &str {
        self.address.config.get_user().unwrap_or("postgres")
    }

    /// The application name of its sessions.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Triggered when its sessions must end.
    pub const fn cancel(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Masks secrets in texts from outside.
    pub const fn redactor(&self) -> &Redactor {
        &self.redactor
    }

    /// The database that statements go to when a step names none: the URI's, else the maintenance database.
    pub fn default_database(&self) -> &str {
        self.address.config.get_dbname().unwrap_or(&self.settings.maintenance_database)
    }

    /// The same server for what must still be done when the step is cancelled: its
    /// sessions outlive the cancellation, so bound what they do.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self { cancel: CancellationToken::new(), ..self.clone() }
    }

    /// Connects to `database`, or to the maintenance database.
    ///
    /// The session is named after the attempt, has an empty `search_path`, UTC, a lock
    /// timeout, no statement timeout of the role's, and is read-only in a dry-run.
    ///
    /// # Errors
    /// When the server can't be reached or refuses; transient where that may pass.
    pub async fn connect(&self, database: Option<&str>) -> Result<Session, Failure> {
        let database = database.unwrap_or(&self.settings.maintenance_database);
        let place = format!("{} ({}/{database})", self.target, self.address.place());
        let mut config = self.address.config.clone();
        config.dbname(database).application_name(application_name(&self.label));
        let bound = config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT);
        config.connect_timeout(bound);
        let connected = tokio::select! {
            () = self.cancel.cancelled() => return Err(Failure::transient(format!("connect to {place}: cancelled"))),
            connected = tokio::time::timeout(bound, config.connect(self.tls.clone())) => connected,
        };
        let (client, connection) = connected
            .map_err(|_| {
                Failure::transient(format!("connect to {place}: no answer within {}s", bound.as_secs_f64()))
                    .help("see that the server runs and that host and port in the target's url are right")
            })?
            .map_err(|error| error::failure("connect", &place, &error, &self.redactor))?;
        tracing::debug!(%place, "connected");
        let session = Session::start(
            client,
            connection,
            self.tls.clone(),
            place,
            database.to_owned(),
            self.redactor.clone(),
            self.cancel.clone(),
        );
        let mut setup = format!(
            "SET search_path = ''; SET TimeZone = 'UTC'; SET lock_timeout = {}; \
             SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0; \
             SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings \
              WHERE name = 'idle_session_timeout'",
            LOCK_TIMEOUT.as_millis()
        );
        if self.read_only {
            setup.push_str("; SET default_transaction_read_only = on");
        }
        session.batch("set up the session", &setup).await?;
        Ok(session)
    }
}

/// The name that all sessions of a step's attempts begin with.
pub fn session_prefix(run: &RunId, step: &StepId) -> String {
    format!("{}:", shortened(&format!("lifeboat:{run}:{step}")))
}

/// A label as the server keeps it, in 63 bytes at most, so that [`session_prefix`] finds it.
pub(crate) fn application_name(label: &str) -> String {
    match label.rsplit_once(':') {
        Some((step, attempt)) => format!("{}:{attempt}", shortened(step)),
        None => label.to_owned(),
    }
}

/// A long text cut, with a digest in place of the rest: steps whose ids begin alike stay apart.
fn shortened(text: &str) -> String {
    const ROOM: usize = 56;
    if text.len() <= ROOM {
        return text.to_owned();
    }
    let digest = Sha256::digest(text.as_bytes());
    let cut = text.floor_char_boundary(ROOM - 9);
    let [a, b, c, d] = [digest[0], digest[1], digest[2], digest[3]];
    format!("{}~{a:02x}{b:02x}{c:02x}{d:02x}", &text[..cut])
}

/// An identifier, quoted for SQL.
pub fn ident(name: &str) -> String {
    postgres_protocol::escape::escape_identifier(name)
}

/// A text, quoted for SQL. The escape form it uses for backslashes begins with a space.
pub fn literal(text: &str) -> String {
    postgres_protocol::escape::escape_literal(text)
}

/// `schema.table` as SQL names it: each part is quoted where it isn't already.
///
/// # Errors
/// When it isn't made of one or two parts.
pub fn qualified(name: &str) -> Result<String, String> {
    let parts =
        name_parts(name).ok_or_else(|| format!("`{name}` is not a table's name: write it as schema.table"))?;
    Ok(parts.iter().map(|part| ident(part)).collect::<Vec<_>>().join("."))
}

/// The parts of `schema.table` or `"we.ird".table`, without quotes; a lone name is in `public`.
pub fn name_parts(name: &str) -> Option<[String; 2]> {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    let mut characters = name.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                parts.last_mut()?.push('"');
            }
            '"' => quoted = !quoted,
            '.' if !quoted => parts.push(String::new()),
            _ => parts.last_mut()?.push(character),
        }
    }
    if quoted || parts.iter().any(String::is_empty) {
        return None;
    }
    match parts.len() {
        1 => Some(["public".to_owned(), parts.remove(0)]),
        2 => <[String; 2]>::try_from(parts).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_steps_sessions_are_found_by_their_prefix() {
        let run = RunId::parse("20261124-062329-bako").unwrap();
        for id in ["swap", &format!("restore/{}", "x".repeat(100))] {
            let name = application_name(&format!("lifeboat:{run}:{id}:12"));
            assert!(name.len() <= 63 && name.starts_with(&session_prefix(&run, &id.into())), "{name}");
            let other = application_name(&format!("lifeboat:{run}:{id}y:12"));
            assert!(!other.starts_with(&session_prefix(&run, &id.into())), "{other}");
        }
    }

    #[test]
    fn names_are_taken_apart_and_quoted() {
        assert_eq!(qualified("auth.users").unwrap(), r#""auth"."users""#);
        assert_eq!(qualified("users").unwrap(), r#""public"."users""#);
        assert_eq!(qualified(r#""we.ird"."a""b""#).unwrap(), r#""we.ird"."a""b""#);
        for bad in ["", "a.b.c", ".x", "\"open"] {
            assert!(qualified(bad).is_err(), "{bad}");
        }
    }
}
