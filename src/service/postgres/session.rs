//! One connection to one database, that ends when its step must end.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, Connection, Row, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::sync::CancellationToken;

use super::error;
use crate::failure::Failure;
use crate::kill;
use crate::secret::Redactor;

/// How long a cancelled statement may take to end before its connection is closed.
const CANCEL_GRACE: Duration = Duration::from_secs(5);

/// How many of a statement's notices are kept.
const NOTICES_KEPT: usize = 200;

/// A connection. Dropping it ends the server's session (a statement still running there
/// is not cancelled by that: trigger the token for it).
pub struct Session {
    client: Client,
    place: String,
    database: String,
    redactor: Redactor,
    cancel: CancellationToken,
    notices: Notices,
}

type Notices = Arc<Mutex<Vec<String>>>;

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({})", self.place)
    }
}

/// The driver's client, for what the methods here don't do (COPY, transactions, pipelining);
/// turn its errors into failures with [`Session::failure`].
impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Session {
    /// Wraps a fresh connection and keeps it going in a task of its own.
    pub(super) fn start<S>(
        client: Client,
        connection: Connection<Socket, S>,
        tls: MakeRustlsConnect,
        place: String,
        database: String,
        redactor: Redactor,
        cancel: CancellationToken,
    ) -> Self
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let notices = Notices::default();
        tokio::spawn(drive(connection, client.cancel_token(), tls, cancel.clone(), notices.clone()));
        Self { client, place, database, redactor, cancel, notices }
    }

    /// The database it is connected to.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// Where it is connected to, without credentials, for messages.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// What a driver's error means to somebody who attempted `attempted`
    /// (`drop database "auth"`).
    pub fn failure(&self, attempted: impl fmt::Display, error: &tokio_postgres::Error) -> Failure {
        if self.cancel.is_cancelled() {
            return Failure::transient(format!("{attempted} at {}: cancelled", self.place));
        }
        error::failure(attempted, &self.place, error, &self.redactor)
    }

    /// As [`Session::failure`], for rows that nobody should read in a message: values that the
    /// server quotes are left out.
    pub fn failure_without_values(&self, attempted: impl fmt::Display, error: &tokio_postgres::Error) -> Failure {
        if self.cancel.is_cancelled() {
            return self.failure(attempted, error);
        }
        error::failure_without_values(attempted, &self.place, error, &self.redactor)
    }

    /// Runs statements without parameters, their results thrown away.
    ///
    /// # Errors
    /// What the server said.
    pub async fn batch(&self, attempted: impl fmt::Display, sql: &str) -> Result<(), Failure> {
        kill::statement(sql, self.client.batch_execute(sql)).await.map_err(|error| self.failure(attempted, &error))
    }

    /// Runs one statement.
    ///
    /// # Errors
    /// What the server said.
    pub async fn rows(
        &self,
        attempted: impl fmt::Display,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Failure> {
        kill::statement(sql, self.client.query(sql, params)).await.map_err(|error| self.failure(attempted, &error))
    }

    /// Runs one statement that gives one row.
    ///
    /// # Errors
    /// What the server said, or that it gave no row or several.
    pub async fn row(
        &self,
        attempted: impl fmt::Display,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Row, Failure> {
        kill::statement(sql, self.client.query_one(sql, params))
            .await
            .map_err(|error| self.failure(attempted, &error))
    }

    /// Runs one statement that gives at most one row.
    ///
    /// # Errors
    /// What the server said, or that it gave several rows.
    pub async fn maybe_row(
        &self,
        attempted: impl fmt::Display,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, Failure> {
        kill::statement(sql, self.client.query_opt(sql, params))
            .await
            .map_err(|error| self.failure(attempted, &error))
    }

    /// What the server remarked (`NOTICE`, `WARNING`) since this was last asked, secrets masked.
    pub fn take_notices(&self) -> Vec<String> {
        let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        notices.drain(..).map(|notice| self.redactor.redact(&notice).into_owned()).collect()
    }
}

/// Reads and writes for one client until either side ends, or cancels what it runs.
async fn drive<S>(
    mut connection: Connection<Socket, S>,
    token: tokio_postgres::CancelToken,
    tls: MakeRustlsConnect,
    cancel: CancellationToken,
    notices: Notices,
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    MakeRustlsConnect: MakeTlsConnect<Socket>,
{
    let pump = async {
        loop {
            // An error reaches whoever waits for an answer through the client.
            match std::future::poll_fn(|cx| connection.poll_message(cx)).await {
                Some(Ok(AsyncMessage::Notice(notice))) => {
                    let mut kept = notices.lock().unwrap_or_else(PoisonError::into_inner);
                    if kept.len() < NOTICES_KEPT {
                        kept.push(format!("{}: {}", notice.severity(), notice.message()));
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => break,
            }
        }
    };
    tokio::pin!(pump);
    tokio::select! {
        () = &mut pump => return,
        () = cancel.cancelled() => {}
    }
    let ask = async {
        // When the request doesn't get through, closing the connection below is what is left.
        let _ = token.cancel_query(tls).await;
        // Ends early when the client, told of the cancellation, lets go.
        std::future::pending::<()>().await;
    };
    let _ = tokio::time::timeout(CANCEL_GRACE, async {
        tokio::select! { () = &mut pump => {}, () = ask => {} }
    })
    .await;
}

/// Asks all of `statements`, over several sessions of one database. Gives the rows of each; `watch` is told which one
/// is begun.
///
/// # Errors
/// The server's own words for the first that failed.
pub async fn ask_all(
    sessions: &[Session],
    attempted: &str,
    statements: &[String],
    watch: &(dyn Fn(usize) + Sync),
) -> Result<Vec<Vec<Row>>, Failure> {
    let next = AtomicUsize::new(0);
    let asked = sessions.iter().map(|session| async {
        let mut answers = vec![];
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(statement) = statements.get(at) else { return Ok::<_, Failure>(answers) };
            watch(at);
            answers.push((at, session.rows(attempted, statement, &[]).await?));
        }
    });
    let mut answers: Vec<_> = futures::future::try_join_all(asked).await?.into_iter().flatten().collect();
    answers.sort_by_key(|(at, _)| *at);
    Ok(answers.into_iter().map(|(_, rows)| rows).collect())
}
