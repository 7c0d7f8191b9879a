//! Mail servers: one message to one address at a time, by SMTP.
//!
//! Knows nothing of steps. The target's URL may hold a password, so no message shows it.

use std::fmt;
use std::time::Duration;

use lettre::address::Envelope;
use lettre::message::header::{ContentType, Header, HeaderName, HeaderValue};
use lettre::message::{Mailbox, Mailboxes};
use lettre::transport::smtp::authentication::{Credentials, DEFAULT_MECHANISMS};
use lettre::transport::smtp::client::{AsyncSmtpConnection, Certificate, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use reqwest::Url;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::http::{Message, Undelivered, is_loopback};
use super::{Services, Target, Unsound, trust};
use crate::failure::Failure;
use crate::kill;
use crate::secret::Redactor;

/// The bound on coming to a connection that takes messages, and on handing one over: some
/// servers let a stranger wait before they greet.
const PATIENCE: Duration = Duration::from_secs(45);

/// A mail server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SmtpSettings {
    /// As `smtps://user:password@mail.example.com` (TLS from the first byte, port 465), or
    /// `smtp://user:password@mail.example.com` (STARTTLS, port 587).
    pub url: String,
    /// The sender's address, as `lifeboat@example.com` or `Lifeboat <lifeboat@example.com>`.
    pub from: String,
    /// Whether `smtp://` goes over to TLS before anything is said: `true`, but for a server on this
    /// machine, at port 25 then. Only that one may be spoken to without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starttls: Option<bool>,
    /// A PEM file of authorities to trust besides the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// Lifeboat itself starts a throwaway mail server at `url`, on loopback, that keeps what it gets.
    #[serde(default)]
    pub sandbox: bool,
}

/// How a connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Security {
    /// TLS from the first byte.
    Tls,
    /// TLS after a word in the open.
    StartTls,
    /// None; on this machine only.
    Plain,
}

/// Where a mail server is, as its settings say.
struct Place {
    host: String,
    port: u16,
    security: Security,
    from: Mailbox,
    credentials: Option<(String, String)>,
}

impl SmtpSettings {
    /// What is wrong with them, without contact.
    pub(super) fn unsound(&self) -> Option<Unsound> {
        self.place().err()
    }

    fn place(&self) -> Result<Place, Unsound> {
        let in_url = |message: String, help: &str| Unsound {
            setting: "url".to_owned(),
            failure: Failure::permanent(message).help(help),
        };
        // The parser's words may quote the URL, and with it the password.
        let form = "write `smtps://user:password@mail.example.com`, or `smtp://…` for STARTTLS";
        let url = Url::parse(&self.url).map_err(|_| in_url("this is no URL of a mail server".to_owned(), form))?;
        let host = url.host_str().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| in_url("this URL names no host".to_owned(), form))?;
        let starttls = self.starttls.unwrap_or(!is_loopback(host));
        let security = match (url.scheme(), starttls) {
            ("smtps", _) if self.starttls.is_some() => {
                let failure = Failure::permanent("`smtps://` is TLS from the first byte, without STARTTLS")
                    .help("remove `starttls`, or write `smtp://`");
                return Err(Unsound { setting: "starttls".to_owned(), failure });
            }
            ("smtps", _) => Security::Tls,
            ("smtp", true) => Security::StartTls,
            ("smtp", false) if is_loopback(host) => Security::Plain,
            ("smtp", false) => {
                let failure = Failure::permanent(format!("mail to {host} would cross the network unprotected"))
                    .help("remove `starttls: false`, or write `smtps://`");
                return Err(Unsound { setting: "starttls".to_owned(), failure });
            }
            (other, _) => return Err(in_url(format!("`{other}://` is no mail server"), form)),
        };
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(in_url("a mail server's URL ends with its host and port".to_owned(), form));
        }
        let from = self.from.parse().map_err(|_| Unsound {
            setting: "from".to_owned(),
            failure: Failure::permanent(format!("`{}` is no address", self.from))
                .help("write `lifeboat@example.com`, or `Lifeboat <lifeboat@example.com>`"),
        })?;
        let unquoted = |text: &str| {
            percent_decoded(text).ok_or_else(|| in_url("a name or password in it is not UTF-8".to_owned(), form))
        };
        let credentials = match (url.username(), url.password()) {
            ("", None) => None,
            (user, password) => Some((unquoted(user)?, unquoted(password.unwrap_or_default())?)),
        };
        let port = url.port().unwrap_or(match security {
            Security::Tls => 465,
            Security::StartTls => 587,
            Security::Plain => 25,
        });
        Ok(Place { host: host.trim_matches(['[', ']']).to_owned(), port, security, from, credentials })
    }
}

/// `%40` → `@`.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let escaped = (*first == b'%').then(|| after.get(..2)).flatten();
        let byte = escaped.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8(bytes).ok()
}

/// Whether a text is an address that mail can be sent to: `sven@example.com`, `Sven <sven@example.com>`.
pub fn is_address(text: &str) -> bool {
    text.parse::<Mailbox>().is_ok()
}

/// A target of kind `smtp`, ready to be connected to.
pub struct MailServer {
    place: Place,
    tls: Option<TlsParameters>,
    target: String,
    redactor: Redactor,
}

impl fmt::Debug for MailServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MailServer({} at {}:{})", self.target, self.place.host, self.place.port)
    }
}

impl Services {
    /// The mail server that a target names. Makes no contact yet.
    ///
    /// # Errors
    /// When there is no such target of that kind, or its settings don't fit.
    pub fn mail(&self, target: &str) -> Result<MailServer, Failure> {
        let Target::Smtp(settings) = self.target(target)? else {
            return Err(self.wrong_kind(target, "smtp"));
        };
        let in_target = |failure: Failure| failure.context(format!("target {target}"));
        let place = settings.place().map_err(|unsound| in_target(unsound.failure))?;
        if let Some((_, password)) = place.credentials.as_ref().filter(|(_, password)| !password.is_empty()) {
            self.redactor().add(password);
        }
        let tls = match place.security {
            Security::Plain => None,
            Security::Tls | Security::StartTls => {
                Some(tls(&place.host, settings.ca_file.as_deref()).map_err(in_target)?)
            }
        };
        Ok(MailServer { place, tls, target: target.to_owned(), redactor: self.redactor().clone() })
    }
}

fn tls(host: &str, ca_file: Option<&str>) -> Result<TlsParameters, Failure> {
    let mut builder = TlsParameters::builder(host.to_owned());
    if let Some(path) = ca_file {
        let pem = std::fs::read(path).map_err(|error| Failure::permanent(format!("read {path}: {error}")))?;
        let authorities = Certificate::from_pem(&pem)
            .map_err(|_| Failure::permanent(format!("{path} holds no PEM certificates")))?;
        builder = builder.add_root_certificate(authorities);
    }
    builder.build_rustls().map_err(|error| Failure::permanent(format!("set up TLS: {error}")))
}

impl MailServer {
    /// Connects as far as a message could be handed over, and hands over none.
    ///
    /// # Errors
    /// When it can't be reached, or doesn't let this client in.
    pub async fn probe(&self) -> Result<String, Failure> {
        let place = self.shown();
        let mut connection = self.connect().await?;
        if !timeout(PATIENCE, connection.test_connected()).await.unwrap_or(false) {
            return Err(Failure::transient(format!("{place} greets, and then does not answer")));
        }
        let how = match (self.place.security, &self.place.credentials) {
            (Security::Plain, None) => "",
            (Security::Plain, Some(_)) => ", logged in",
            (_, None) => ", by TLS",
            (_, Some(_)) => ", by TLS, logged in",
        };
        let _ = timeout(PATIENCE, connection.quit()).await;
        Ok(format!("{place} takes mail{how}; none was sent"))
    }

    /// Sends a message to one of its recipients, once.
    ///
    /// # Errors
    /// When the server did not take it over.
    pub async fn deliver(&self, message: &Message, to: &str, all: &[String]) -> Result<(), Undelivered> {
        let unsent = |failure: Failure| Undelivered { failure, perhaps_received: false };
        let (envelope, text) = self.written(message, to, all).map_err(unsent)?;
        let mut connection = self.connect().await.map_err(unsent)?;
        let handed_over = kill::around("mail", timeout(PATIENCE, connection.send(&envelope, &text))).await;
        match handed_over {
            Ok(Ok(_)) => {
                // It is the server's by now, whether or not it says goodbye.
                let _ = timeout(PATIENCE, connection.quit()).await;
                Ok(())
            }
            Ok(Err(error)) => Err(Undelivered {
                perhaps_received: error.status().is_none() && !error.is_client(),
                failure: self.refused(&error),
            }),
            Err(_) => Err(Undelivered {
                perhaps_received: true,
                failure: Failure::transient(format!("{} did not take it within {PATIENCE:?}", self.shown())),
            }),
        }
    }

    async fn connect(&self) -> Result<AsyncSmtpConnection, Failure> {
        let Place { host, port, security, credentials, .. } = &self.place;
        tracing::debug!(host, port, "connect to a mail server");
        let me = ClientId::default();
        let opening = async {
            let at_once = self.tls.clone().filter(|_| *security == Security::Tls);
            let at = (host.as_str(), *port);
            let mut connection =
                AsyncSmtpConnection::connect_tokio1(at, Some(PATIENCE), &me, at_once, None).await?;
            if let (Security::StartTls, Some(tls)) = (security, &self.tls) {
                if !connection.can_starttls() {
                    return Ok(None);
                }
                connection.starttls(tls.clone(), &me).await?;
            }
            if let Some((user, password)) = credentials {
                let credentials = Credentials::new(user.clone(), password.clone());
                connection.auth(DEFAULT_MECHANISMS, &credentials).await?;
            }
            Ok(Some(connection))
        };
        match timeout(PATIENCE, opening).await {
            Ok(Ok(Some(connection))) => Ok(connection),
            Ok(Ok(None)) => Err(Failure::permanent(format!("{} does not offer STARTTLS", self.shown()))
                .help("write `smtps://` if it speaks TLS from the first byte")),
            Ok(Err(error)) => Err(self.refused(&error)),
            Err(_) => Err(Failure::transient(format!("{} did not let in within {PATIENCE:?}", self.shown()))),
        }
    }

    /// Where it is, for people.
    fn shown(&self) -> String {
        format!("{}:{}", self.place.host, self.place.port)
    }

    fn refused(&self, error: &lettre::transport::smtp::Error) -> Failure {
        let mut text = error.to_string();
        // The innermost cause is the one that says what happened.
        let mut cause = std::error::Error::source(error);
        while let Some(inner) = cause {
            text = inner.to_string();
            cause = inner.source();
        }
        let text = self.redactor.redact(text.trim()).into_owned();
        let place = self.shown();
        if let Some(code) = error.status() {
            let said = format!("{place} answered {code} {text}");
            return match (error.is_transient(), code.to_string().as_str()) {
                (true, _) => Failure::transient(said),
                (false, "530" | "534" | "535" | "538") => {
                    Failure::permanent(said).help("check the name and password in the target's `url`")
                }
                (false, _) => Failure::permanent(said),
            };
        }
        let said = format!("{place}: {text}");
        if let Some(help) = trust::way_out(&text, "ca_file") {
            Failure::permanent(said).help(help)
        } else if error.is_client() {
            Failure::permanent(said)
        } else {
            Failure::transient(said)
        }
    }

    /// The message as it goes over the wire.
    fn written(&self, message: &Message, to: &str, all: &[String]) -> Result<(Envelope, Vec<u8>), Failure> {
        let mailbox = |text: &str| -> Result<Mailbox, Failure> {
            text.parse().map_err(|_| Failure::permanent(format!("`{text}` is no address")))
        };
        let cannot = |error: &dyn fmt::Display| Failure::permanent(format!("write the message: {error}"));
        let recipients = all.iter().map(|one| mailbox(one)).collect::<Result<Mailboxes, _>>()?;
        let from = &self.place.from;
        let id = format!("<{}@{}>", atom(&message.key()), from.email.domain());
        let mut mail = lettre::Message::builder()
            .from(from.clone())
            .mailbox(lettre::message::header::To::from(recipients))
            .subject(message.headline())
            // A server or reader that knows it drops the repetition.
            .message_id(Some(id))
            .header(AutoSubmitted)
            .header(ContentType::TEXT_PLAIN);
        if message.severity == "critical" {
            mail = mail.header(Importance);
        }
        let mail = mail.body(message.letter()).map_err(|error| cannot(&error))?;
        let envelope =
            Envelope::new(Some(from.email.clone()), vec![mailbox(to)?.email]).map_err(|error| cannot(&error))?;
        Ok((envelope, mail.formatted()))
    }
}

/// What may stand on the left of a message's id.
fn atom(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).collect()
}

impl Message {
    /// One line that says what it is about.
    fn headline(&self) -> String {
        let text = self.subject.as_deref().unwrap_or_else(|| self.text.trim().lines().next().unwrap_or_default());
        let severity = if self.severity == "info" { String::new() } else { format!("[{}] ", self.severity) };
        let repeated = if self.repeated { " (possibly repeated)" } else { "" };
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        match text.char_indices().nth(150) {
            Some((end, _)) => format!("{severity}{}…{repeated}", &text[..end]),
            None => format!("{severity}{text}{repeated}"),
        }
    }

    fn letter(&self) -> String {
        let repeated =
            if self.repeated { "Possibly repeated: an earlier attempt may have sent this.\n\n" } else { "" };
        format!("{repeated}{}\n\n-- \nLifeboat, run {}, step {}\n", self.text.trim_end(), self.run, self.step)
    }
}

/// A header that always says the same.
macro_rules! fixed_header {
    ($(#[$doc:meta])* $type:ident, $name:literal, $value:literal) => {
        $(#[$doc])*
        #[derive(Clone)]
        struct $type;

        impl Header for $type {
            fn name() -> HeaderName {
                HeaderName::new_from_ascii_str($name)
            }

            fn parse(_: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
                Ok(Self)
            }

            fn display(&self) -> HeaderValue {
                HeaderValue::new(Self::name(), $value.to_owned())
            }
        }
    };
}

fixed_header!(
    /// No machine shall answer this one (RFC 3834).
    AutoSubmitted, "Auto-Submitted", "auto-generated"
);
fixed_header!(Importance, "Importance", "high");

#[cfg(test)]
mod tests;
