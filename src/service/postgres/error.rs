//! What a server's or a connection's error means: who said what, and if it may pass by itself.

use std::error::Error as _;
use std::fmt::{self, Write as _};
use std::io;

use tokio_postgres::error::{DbError, Error, SqlState};

use crate::failure::Failure;
use crate::secret::Redactor;

/// The failure that `error` is for somebody who attempted something at `place`
/// (`db (127.0.0.1:5432/postgres)`).
pub(super) fn failure(attempted: impl fmt::Display, place: &str, error: &Error, redactor: &Redactor) -> Failure {
    let said = error.as_db_error().map_or_else(|| chain(error), server_words);
    let said = redactor.redact(&said);
    let message = format!("{attempted} at {place}: {said}");
    let mut failure = if is_transient(error) { Failure::transient(message) } else { Failure::permanent(message) };
    if let Some(hint) = error.as_db_error().and_then(DbError::hint) {
        failure = failure.help(format!("the server hints: {}", redactor.redact(hint)));
    } else if let Some(help) = advice(error) {
        failure = failure.help(help);
    }
    failure
}

/// As [`failure`], but without the values that the server quotes from a row that it could not
/// take in: a key or a password may be among them.
pub(super) fn failure_without_values(
    attempted: impl fmt::Display,
    place: &str,
    error: &Error,
    redactor: &Redactor,
) -> Failure {
    let Some(said) = error.as_db_error().filter(|said| said.code().code().starts_with("22")) else {
        return failure(attempted, place, error, redactor);
    };
    // In each of the server's languages a value stands behind a colon.
    let before_value = |text: &str| text.split_once(": ").map_or(text, |(words, _)| words).to_owned();
    let mut words = format!("{} {}: {}", said.severity(), said.code().code(), before_value(said.message()));
    if let Some(context) = said.where_() {
        let _ = write!(words, " [{}]", before_value(context.lines().next().unwrap_or_default()));
    }
    Failure::permanent(redactor.redact(&format!("{attempted} at {place}: {words}")))
}

/// Whether trying again may help by itself.
pub(super) fn is_transient(error: &Error) -> bool {
    if let Some(code) = error.code() {
        return is_transient_state(code);
    }
    let mut source = error.source();
    while let Some(inner) = source {
        // A certificate that is refused comes as an input-output error, too.
        if inner.is::<rustls::Error>() {
            return false;
        }
        if let Some(inner) = inner.downcast_ref::<io::Error>()
            && matches!(
                inner.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::PermissionDenied
            )
        {
            return false;
        }
        source = inner.source();
    }
    // Without a word from the server: closed, refused, reset, unknown host, timed out.
    // The driver keeps its kinds private; its headlines tell them apart.
    let headline = error.to_string();
    [
        "connection closed",
        "error communicating with the server",
        "error connecting to server",
        "timeout waiting for server",
    ]
    .iter()
    .any(|known| headline.starts_with(known))
}

fn is_transient_state(code: &SqlState) -> bool {
    let text = code.code();
    text.starts_with("08")
        || text.starts_with("53")
        || matches!(text, "57P01" | "57P02" | "57P03" | "55P03" | "55006" | "40001" | "40P01" | "57014")
}

/// The server's own words: severity, code, message, detail, and where in the statement.
fn server_words(error: &DbError) -> String {
    let mut words = format!("{} {}: {}", error.severity(), error.code().code(), error.message());
    // A row that breaks a promise is shown whole otherwise, password hashes and keys included.
    let shows_row = matches!(error.code().code(), "23502" | "23514");
    if let Some(detail) = error.detail().filter(|_| !shows_row) {
        let _ = write!(words, " ({detail})");
    }
    if let Some(context) = error.where_() {
        let first = context.lines().next().unwrap_or_default();
        let _ = write!(words, " [{first}]");
    }
    words
}

/// An error and its causes in one line, each said once.
fn chain(error: &Error) -> String {
    let words = error.to_string();
    // To connect is what was attempted: the headline only says it again.
    let mut words = words.strip_prefix("error connecting to server: ").unwrap_or(&words).to_owned();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_words = inner.to_string();
        if !words.contains(&inner_words) {
            let _ = write!(words, ": {inner_words}");
        }
        source = inner.source();
    }
    words
}

fn advice(error: &Error) -> Option<&'static str> {
    let Some(code) = error.code() else {
        let words = chain(error);
        return if words.contains("certificate") && words.contains("expired") {
            Some("renew the server's certificate, or set this machine's clock right")
        } else if words.contains("certificate") && words.contains("not valid for") {
            Some("name the server in the target's url as its certificate does, or set `sslmode=verify-ca`")
        } else if words.contains("certificate") {
            Some(
                "name the authority's file as `sslrootcert` in the target's url, or set `sslmode=prefer` to do without verification",
            )
        } else if words.contains("password missing") {
            Some("put the password into the target's url (from `env.NAME`) or a password file (PGPASSFILE)")
        } else if words.contains("TLS") || words.contains("tls") {
            Some(
                "the server offers no TLS: turn it on there, or set `sslmode=disable` in the target's url if nobody else is on the way",
            )
        } else if is_transient(error) {
            Some("see that the server runs and that host and port in the target's url are right")
        } else {
            None
        };
    };
    match code.code() {
        "28P01" | "28000" => Some("check user and password in the target's url, and the server's pg_hba.conf"),
        "42501" => {
            Some("the role in the target's url lacks this privilege: grant it, or use the owner or a superuser")
        }
        "42P01" | "42883" => Some(
            "write its schema before the name, as in `public.users`: Lifeboat's sessions search no schema but pg_catalog",
        ),
        "3D000" => Some("check the database's name"),
        "53300" => Some("end idle sessions or raise max_connections"),
        "55P03" => Some("another session holds a lock: see pg_locks and pg_stat_activity"),
        "57P03" => {
            Some("the server starts, stops or recovers: try again in a while, or wait with postgres.wait_ready")
        }
        "25006" => Some("the session is read-only: a standby, or a query that writes (use postgres.execute)"),
        _ => None,
    }
}
