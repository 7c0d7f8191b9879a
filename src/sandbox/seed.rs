//! The auth service's database: made, filled with the same rows each time (but for the key that signs), and told apart row for row.

use std::str::FromStr;

use reqwest::Url;
use tokio_postgres::Config;

use super::Sandbox;
use super::auth::keys;
use crate::failure::Failure;
use crate::secret::Secret;
use crate::service::postgres::{Server, Session, ident, literal, qualified};
use crate::service::{AuthSandbox, Services, Target};

/// The role that the service connects as.
const ROLE: &str = "auth_service";
/// The users that are made up if nobody says how many.
const USERS: u32 = 10_000;
/// The tables of the auth service.
pub const TABLES: [&str; 7] = [
    "auth.organizations",
    "auth.users",
    "auth.sessions",
    "auth.jwks",
    "auth.oauth_applications",
    "auth.verification_tokens",
    "credits.balances",
];

/// Makes and fills the database that an auth service reads, unless it is there, and hands
/// out the service's own way to it.
///
/// # Errors
/// When its server isn't a throwaway one, or refuses.
pub async fn ensure(
    sandbox: &Sandbox,
    settings: &AuthSandbox,
    secret: &Secret,
    client: Option<&Client>,
) -> Result<Secret, Failure> {
    let (target, database) = settings.database.split_once('/').ok_or_else(|| {
        Failure::permanent(format!("`{}` names no database", settings.database))
            .help("write it as `target/database`")
    })?;
    let targets = sandbox.targets();
    let Some(Target::Postgres(postgres)) = targets.get(target) else {
        return Err(Failure::permanent(format!("`{target}` is no postgres target")));
    };
    // Made-up rows must never get into a database that somebody needs.
    let (Some(_), Some(url)) = (&postgres.sandbox, &postgres.url) else {
        return Err(Failure::permanent(format!("`{target}` is no throwaway server"))
            .help("give that target a `sandbox` instead of a `url`"));
    };
    let own = service_url(url, database)?;
    let server = Services::new(targets.clone(), sandbox.redactor.clone()).postgres(target)?;
    let session = server.connect(None).await?;
    if session.find_database(database).await?.is_none() {
        // Under another name until it is whole: a kill in between leaves nothing that looks ready.
        let unfinished = format!("{database}_unfinished");
        create(&session, &unfinished, &own).await?;
        fill(&server, &unfinished, settings.users.unwrap_or(USERS), secret, client).await?;
        let rename = format!("ALTER DATABASE {} RENAME TO {}", ident(&unfinished), ident(database));
        session.batch(format!("create {database}"), &rename).await?;
    }
    Ok(Secret::new(own.to_string()))
}

/// The service's URL: its own role, with the throwaway server's one password.
fn service_url(url: &str, database: &str) -> Result<Url, Failure> {
    let wrong = || Failure::permanent("the throwaway server's URL is not one");
    let mut url = Url::parse(url).map_err(|_| wrong())?;
    url.set_username(ROLE).map_err(|()| wrong())?;
    url.set_path(database);
    Ok(url)
}

/// An empty database with what a recovery must carry over: an owner, privileges, settings.
async fn create(session: &Session, database: &str, own: &Url) -> Result<(), Failure> {
    let database = ident(database);
    let mut statements = vec![format!("DROP DATABASE IF EXISTS {database}")];
    let known = "SELECT 1 FROM pg_roles WHERE rolname = $1";
    for role in [ROLE, "auth_owner"] {
        if session.maybe_row("look for a role", known, &[&role]).await?.is_none() {
            statements.push(format!("CREATE ROLE {role}"));
        }
    }
    let password = Config::from_str(own.as_str())
        .ok()
        .and_then(|config| Some(literal(&String::from_utf8_lossy(config.get_password()?))));
    let password = password.unwrap_or_else(|| "NULL".to_owned());
    statements.extend([
        format!("ALTER ROLE {ROLE} LOGIN PASSWORD {password}"),
        format!("CREATE DATABASE {database} OWNER auth_owner TEMPLATE template0 ENCODING 'UTF8'"),
        format!("REVOKE ALL ON DATABASE {database} FROM PUBLIC"),
        format!("GRANT CONNECT ON DATABASE {database} TO {ROLE}"),
        format!("ALTER DATABASE {database} SET statement_timeout = '30s'"),
    ]);
    for statement in statements {
        session.batch("create the service's database", &statement).await?;
    }
    Ok(())
}

pub(super) async fn fill(
    server: &Server,
    database: &str,
    users: u32,
    secret: &Secret,
    client: Option<&Client>,
) -> Result<(), Failure> {
    let session = server.connect(Some(database)).await?;
    let key = keys::mint(secret).map_err(Failure::permanent)?;
    let seed = include_str!("seed.sql")
        .replace(":users", &users.max(100).to_string())
        .replace(":client", &client.map_or_else(|| "(NULL, NULL::bytea)".to_owned(), Client::sql))
        .replace(":public_key", &literal(&key.public_key))
        .replace(":private_key", &literal(&key.private_key));
    session
        .batch(format!("fill {database}"), &format!("BEGIN; SET LOCAL statement_timeout = 0; {seed}; COMMIT"))
        .await
}

/// Whom the service gives tokens to.
pub struct Client {
    /// Its name.
    pub id: String,
    /// Its secret; the database has a hash.
    pub secret: Secret,
}

impl Client {
    fn sql(&self) -> String {
        format!("({}, sha256({}::bytea))", literal(&self.id), literal(self.secret.expose()))
    }
}

/// What is in a table, told by its every row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// The table.
    pub table: &'static str,
    /// How many rows it has.
    pub rows: i64,
    /// A hash over all of them, whatever their order on disk.
    pub hash: String,
}

/// The fingerprints of all tables, in one snapshot.
///
/// # Errors
/// When the server doesn't answer, or a table is missing.
pub async fn fingerprints(session: &Session) -> Result<Vec<Fingerprint>, Failure> {
    session.batch("read the tables", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let mut found = vec![];
    for table in TABLES {
        let name = qualified(table).map_err(Failure::permanent)?;
        let sql = format!(
            "SELECT count(*), coalesce(md5(string_agg(md5(t::text), '' ORDER BY md5(t::text))), '') FROM {name} t"
        );
        let row = session.row(format!("read {table}"), &sql, &[]).await?;
        found.push(Fingerprint { table, rows: row.get(0), hash: row.get(1) });
    }
    session.batch("read the tables", "COMMIT").await?;
    Ok(found)
}
