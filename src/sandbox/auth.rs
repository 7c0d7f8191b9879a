//! A small auth service, to have something real to stop, start and ask.
//!
//! It keeps its database connections open and opens them again when they are lost, as a real
//! service's pool does: a recovery that doesn't fence it off loses the race for the database.
//! `/health/ready` reads the database each time it is asked. It also is an OpenID Connect issuer, whose
//! keys lie in that database: read on in [`issuer`] and [`keys`].

mod issuer;
pub mod keys;

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, Config, NoTls};

use super::served;
use crate::failure::Failure;
use crate::secret::Secret;

/// Connections that are kept open.
const CONNECTIONS: usize = 2;
/// The wait before a lost connection is opened again.
const RECONNECT: Duration = Duration::from_millis(200);
/// The bound on the reads of one health check.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the service can't do without: somebody to let in, and a key to sign with.
const READ: &str = "SELECT (SELECT count(*) FROM auth.users WHERE deleted_at IS NULL), \
     (SELECT count(*) FROM auth.jwks WHERE expires_at IS NULL OR expires_at > now()), \
     (SELECT count(*) FROM credits.balances WHERE amount < 0)";

/// What the service is told when it is started.
pub struct Setup {
    /// Where it listens.
    pub listen: SocketAddr,
    /// What it calls itself in tokens: the URL that others reach it at.
    pub issuer: String,
    /// Its database's URL.
    pub database: Secret,
    /// What its private keys are encrypted with.
    pub secret: Secret,
}

/// What a request has at hand.
#[derive(Clone)]
struct Service {
    pool: Pool,
    issuer: Arc<str>,
    secret: Arc<Secret>,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When the address can't be listened on, or the database's URL isn't one.
pub async fn serve(setup: Setup) -> Result<(), Failure> {
    let mut config: Config = setup
        .database
        .expose()
        .parse()
        .map_err(|_| Failure::permanent("the database's URL is not a PostgreSQL URL"))?;
    config.application_name("auth-service").connect_timeout(PATIENCE);
    let pool = Pool(Arc::new(std::array::from_fn(|_| RwLock::new(Slot::Lost("not connected yet".to_owned())))));
    for slot in 0..CONNECTIONS {
        tokio::spawn(pool.clone().keep(slot, config.clone()));
    }
    // Nobody is told that it is up before it has seen its database, unless that takes too long.
    let _ = timeout(PATIENCE, async {
        while pool.client().is_err() {
            sleep(RECONNECT / 10).await;
        }
    })
    .await;
    let service =
        Service { pool, issuer: setup.issuer.trim_end_matches('/').into(), secret: Arc::new(setup.secret) };
    let router = Router::new()
        .route("/health/ready", get(ready))
        .route("/.well-known/openid-configuration", get(issuer::discovery))
        .route("/jwks", get(issuer::jwks))
        .route("/token", post(issuer::token))
        .with_state(service);
    served(setup.listen, router).await
}

async fn ready(State(service): State<Service>) -> (StatusCode, Json<Value>) {
    let outcome = timeout(PATIENCE, read(&service.pool)).await;
    match outcome.unwrap_or_else(|_| Err("the database does not answer".to_owned())) {
        Ok((users, keys)) => (StatusCode::OK, Json(json!({ "ready": true, "users": users, "keys": keys }))),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "ready": false, "error": error }))),
    }
}

async fn read(pool: &Pool) -> Result<(i64, i64), String> {
    let client = pool.client()?;
    let row = client.query_one(READ, &[]).await.map_err(|error| said(&error))?;
    let (users, keys, overdrawn): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    if keys == 0 {
        return Err("no signing key: every token is refused".to_owned());
    }
    if users == 0 {
        return Err("no users: nobody can log in".to_owned());
    }
    if overdrawn > 0 {
        return Err(format!("{overdrawn} balances are below zero"));
    }
    Ok((users, keys))
}

/// Connections that are opened again whenever they are lost.
#[derive(Clone)]
struct Pool(Arc<[RwLock<Slot>; CONNECTIONS]>);

#[derive(Clone)]
enum Slot {
    Open(Arc<Client>),
    Lost(String),
}

impl Pool {
    fn client(&self) -> Result<Arc<Client>, String> {
        let mut why = String::new();
        for slot in self.0.iter() {
            match &*slot.read().unwrap_or_else(PoisonError::into_inner) {
                Slot::Open(client) if !client.is_closed() => return Ok(Arc::clone(client)),
                Slot::Open(_) => "the connection was lost".clone_into(&mut why),
                Slot::Lost(said) => why.clone_from(said),
            }
        }
        Err(why)
    }

    async fn keep(self, slot: usize, config: Config) {
        let set = |state| *self.0[slot].write().unwrap_or_else(PoisonError::into_inner) = state;
        loop {
            match config.connect(NoTls).await {
                Ok((client, connection)) => {
                    set(Slot::Open(Arc::new(client)));
                    let ended = connection.await;
                    set(Slot::Lost(
                        ended.map_or_else(|error| said(&error), |()| "the connection was closed".to_owned()),
                    ));
                }
                Err(error) => set(Slot::Lost(said(&error))),
            }
            sleep(RECONNECT).await;
        }
    }
}

/// What the server said, or what became of the way to it.
fn said(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), std::error::Error::source(error)) {
        (Some(database), _) => database.message().to_owned(),
        (None, Some(source)) => format!("{error}: {source}"),
        (None, None) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::TcpListener;

    use tokio::time::Instant;

    use super::*;
    use crate::sandbox::seed;
    use crate::secret::Redactor;
    use crate::service::{Services, Target};

    /// Asks until the service says `wanted`, or shows what it said instead.
    async fn until(health: &str, wanted: impl Fn(u16, &Value) -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let said = match reqwest::get(health).await {
                Ok(answer) => (answer.status().as_u16(), answer.json().await.unwrap()),
                Err(error) => (0, Value::from(error.to_string())),
            };
            if wanted(said.0, &said.1) {
                return;
            }
            assert!(Instant::now() < end, "{said:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn health_is_read_from_the_database_through_connections_that_come_back() {
        let url = std::env::var("LIFEBOAT_TEST_POSTGRES").expect("`.ci/services run` sets it");
        let settings = serde_json::from_value(serde_json::json!({ "postgres": { "url": url } })).unwrap();
        let targets = BTreeMap::from([("db".to_owned(), settings)]);
        assert!(matches!(targets["db"], Target::Postgres(_)));
        let server = Services::new(targets, Redactor::default()).postgres("db").unwrap();
        let database = format!("auth_service_{}", std::process::id());
        let admin = server.connect(None).await.unwrap();
        // Another test may have made it.
        let _ = admin.batch("create", "CREATE ROLE auth_service").await;
        admin.batch("create", &format!("CREATE DATABASE {database}")).await.unwrap();
        seed::fill(&server, &database, 100, &Secret::new("test".to_owned()), None).await.unwrap();

        let mut own = reqwest::Url::parse(&url).unwrap();
        own.set_path(&database);
        let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let health = format!("http://{listen}/health/ready");
        let setup = Setup {
            listen,
            issuer: format!("http://{listen}"),
            database: Secret::new(own.to_string()),
            secret: Secret::new("test".to_owned()),
        };
        let service = tokio::spawn(serve(setup));
        until(&health, |status, said| status == 200 && said["ready"] == true && said["keys"] == 1).await;

        let session = server.connect(Some(&database)).await.unwrap();
        let whole = seed::fingerprints(&session).await.unwrap();
        assert_eq!(whole.iter().map(|table| table.rows).collect::<Vec<_>>(), [2, 100, 300, 4, 0, 10, 100]);
        session.batch("damage", "DELETE FROM auth.jwks").await.unwrap();
        until(&health, |status, said| status == 503 && said["error"].to_string().contains("no signing key")).await;
        let damaged = seed::fingerprints(&session).await.unwrap();
        let differ: Vec<&str> =
            whole.iter().zip(&damaged).filter(|(a, b)| a != b).map(|(table, _)| table.table).collect();
        assert_eq!(differ, ["auth.jwks"]);

        // A fence ends its connections; behind it they come back.
        admin.batch("fence", &format!("ALTER DATABASE {database} ALLOW_CONNECTIONS false")).await.unwrap();
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
        admin.rows("end", end, &[&database]).await.unwrap();
        until(&health, |status, said| {
            status == 503 && said["error"].to_string().contains("not currently accepting")
        })
        .await;
        admin.batch("open", &format!("ALTER DATABASE {database} ALLOW_CONNECTIONS true")).await.unwrap();
        until(&health, |status, said| status == 503 && said["error"].to_string().contains("no signing key")).await;

        service.abort();
        admin.batch("drop", &format!("DROP DATABASE {database} WITH (FORCE)")).await.unwrap();
    }
}
