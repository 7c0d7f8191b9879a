//! PostgreSQL's client tools: where they are, which version, and how they are told where to connect.
//!
//! Passwords travel in the environment, never in arguments.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::Server;
use super::address::Mode;
use crate::failure::Failure;
use crate::service::process::Command;

/// Where distributions put each major version's tools.
const DISTRIBUTION_FOLDERS: [&str; 3] = ["/usr/lib/postgresql", "/usr/local/lib/postgresql", "/opt/postgresql"];

/// A client or server program of PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tool {
    /// The program.
    pub path: PathBuf,
    /// Its version, as `15.18`.
    pub version: Version,
}

/// A PostgreSQL version: major and minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 13 to 18.
    pub major: u32,
    /// The release within it; 0 for one still in beta.
    pub minor: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Version {
    /// From a server's `server_version_num` (150018).
    pub const fn from_num(num: u32) -> Self {
        Self { major: num / 10_000, minor: num % 10_000 }
    }

    /// From what `--version` prints: `pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
    pub fn parse(printed: &str) -> Option<Self> {
        let (_, rest) = printed.split_once("(PostgreSQL)")?;
        let word = rest.split_whitespace().next()?;
        let digits = |text: &str| {
            let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            text[..end].parse().ok()
        };
        let (major, minor) = word.split_once('.').unwrap_or((word, "0"));
        Some(Self { major: digits(major)?, minor: digits(minor).unwrap_or(0) })
    }
}

/// Finds a program: in `bin_dir` alone when that is given, else on the PATH, else in the
/// distribution's folders, newest first. Only one of at least `major` will do, as an
/// older tool can't read a newer server.
///
/// # Errors
/// When there is none, or only older ones; says where it looked.
pub async fn find(name: &str, bin_dir: Option<&Path>, major: u32) -> Result<Tool, Failure> {
    let mut older = None;
    for path in candidates(name, bin_dir) {
        let Some(tool) = probe(path).await else { continue };
        if tool.version.major >= major {
            return Ok(tool);
        }
        older.get_or_insert(tool);
    }
    let looked = bin_dir
        .map_or_else(|| "the PATH and in /usr/lib/postgresql".to_owned(), |folder| folder.display().to_string());
    let message = match older {
        Some(tool) => format!(
            "{} is version {}, older than the server ({major}): it can't work with it",
            tool.path.display(),
            tool.version
        ),
        None => format!("there is no `{name}` on {looked}"),
    };
    let package = if matches!(name, "initdb" | "postgres" | "pg_ctl") { "postgresql" } else { "postgresql-client" };
    let version = if major == 0 { String::new() } else { format!("-{major}") };
    Err(Failure::permanent(message).help(format!(
        "install it (Debian: `apt-get install {package}{version}`) or name its folder as the target's `bin_dir`"
    )))
}

fn candidates(name: &str, bin_dir: Option<&Path>) -> Vec<PathBuf> {
    if let Some(folder) = bin_dir {
        return vec![folder.join(name)];
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found: Vec<PathBuf> = std::env::split_paths(&path).map(|folder| folder.join(name)).collect();
    let mut installed: Vec<(u32, PathBuf)> = DISTRIBUTION_FOLDERS
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let major = entry.file_name().to_str()?.parse().ok()?;
            Some((major, entry.path().join("bin").join(name)))
        })
        .collect();
    installed.sort_by_key(|(major, _)| std::cmp::Reverse(*major));
    found.extend(installed.into_iter().map(|(_, path)| path));
    found.retain(|path| path.is_file());
    found
}

async fn probe(path: PathBuf) -> Option<Tool> {
    let output = tokio::process::Command::new(&path).arg("--version").kill_on_drop(true).output().await.ok()?;
    let version = Version::parse(&String::from_utf8_lossy(&output.stdout))?;
    Some(Tool { path, version })
}

impl Server {
    /// A client tool of at least the server's major version. See [`find`].
    ///
    /// # Errors
    /// When there is none.
    pub async fn tool(&self, name: &str, server_major: u32) -> Result<Tool, Failure> {
        find(name, self.settings().bin_dir.as_deref().map(Path::new), server_major).await
    }

    /// A command that runs `tool` on `database`: where and as whom to connect is in its
    /// environment, and nothing that the operator's shell sets for psql sends it elsewhere.
    pub fn command(&self, tool: &Tool, database: Option<&str>) -> Command {
        self.tool_env(tool.version.major, database, system_authorities())
            .into_iter()
            .fold(Command::new(tool.path.to_string_lossy()), |command, (name, value)| command.env(name, value))
            .env("LC_ALL", "C.UTF-8")
    }

    /// The environment that tells libpq where and as whom to connect. Holds the password.
    /// `system` is the file of the authorities that this machine trusts.
    fn tool_env(
        &self,
        major: u32,
        database: Option<&str>,
        system: Option<PathBuf>,
    ) -> Vec<(&'static str, OsString)> {
        let address = &self.address;
        let mut env: Vec<(&'static str, OsString)> = vec![
            ("PGHOST", address.host().into()),
            ("PGPORT", address.port().to_string().into()),
            ("PGUSER", self.user().into()),
            ("PGDATABASE", database.unwrap_or(&self.settings().maintenance_database).into()),
            ("PGAPPNAME", self.label().into()),
            ("PGCONNECT_TIMEOUT", "10".into()),
        ];
        // libpq's own `require` verifies nothing.
        let mode = if address.tls.mode == Mode::Require { Mode::VerifyFull } else { address.tls.mode };
        // Where the system keeps its authorities elsewhere, libpq finds them from 16 on; an older one refuses to connect.
        let elsewhere = (mode == Mode::VerifyFull && major >= 16).then(|| PathBuf::from("system"));
        let authorities = address.tls.root_cert.clone().or(system).or(elsewhere);
        env.push(("PGSSLMODE", mode.as_str().into()));
        if let Some(password) = address.config.get_password() {
            env.push(("PGPASSWORD", String::from_utf8_lossy(password).into_owned().into()));
        }
        if let (Some(file), Mode::VerifyCa | Mode::VerifyFull) = (authorities, mode) {
            env.push(("PGSSLROOTCERT", file.into()));
        }
        if let Some((cert, key)) = &address.tls.client_cert {
            env.push(("PGSSLCERT", cert.into()));
            env.push(("PGSSLKEY", key.into()));
        }
        env
    }
}

/// The file of the authorities that this machine trusts, where the usual systems keep it.
fn system_authorities() -> Option<PathBuf> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let usual = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
    named.into_iter().chain(usual.map(PathBuf::from)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::secret::Redactor;
    use crate::service::tls_testing::Tls;
    use crate::service::{Services, Target};

    #[test]
    fn versions_are_read_from_what_tools_print() {
        let debian = "pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n";
        assert_eq!(Version::parse(debian), Some(Version { major: 15, minor: 18 }));
        assert_eq!(Version::parse("psql (PostgreSQL) 18beta2"), Some(Version { major: 18, minor: 0 }));
        assert_eq!(Version::parse("psql 9"), None);
    }

    #[tokio::test]
    async fn a_missing_or_older_tool_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let failure = find("pg_dump", Some(folder.path()), 15).await.unwrap_err();
        assert!(failure.message.contains("no `pg_dump`"), "{failure}");
        let newest = find("pg_dump", None, 0).await.unwrap();
        let failure = find("pg_dump", None, newest.version.major + 80).await.unwrap_err();
        assert!(failure.message.contains("older than the server"), "{failure}");
    }

    /// What libpq is told of TLS: mode and authorities.
    fn told(query: &str, major: u32, system: Option<&str>) -> (String, Option<String>) {
        let settings = serde_json::json!({ "url": format!("postgres://u:p@db.test/app{query}") });
        let target = Target::Postgres(serde_json::from_value(settings).unwrap());
        let services = Services::new(BTreeMap::from([("db".to_owned(), target)]), Redactor::default());
        let env = services.postgres("db").unwrap().tool_env(major, None, system.map(PathBuf::from));
        let find = |name| env.iter().find(|(other, _)| *other == name);
        let text = |name| find(name).map(|(_, value)| value.to_string_lossy().into_owned());
        (text("PGSSLMODE").unwrap(), text("PGSSLROOTCERT"))
    }

    #[test]
    fn tools_verify_what_lifeboat_verifies() {
        let file = "/etc/ssl/ca.crt";
        let tls = Tls::new();
        let its = tls.file("ca.pem").display().to_string();
        let own = &format!("?sslmode=require&sslrootcert={its}");
        for (query, major, system, mode, authorities) in [
            ("", 15, Some(file), "verify-full", Some(file)),
            ("?sslmode=require", 15, Some(file), "verify-full", Some(file)),
            // An older libpq finds no authority then, and refuses.
            ("?sslmode=require", 15, None, "verify-full", None),
            ("?sslmode=require", 16, None, "verify-full", Some("system")),
            (own, 15, None, "verify-full", Some(its.as_str())),
            (own, 16, Some(file), "verify-full", Some(its.as_str())),
            ("?sslmode=verify-full", 15, Some(file), "verify-full", Some(file)),
            ("?sslmode=verify-full", 16, None, "verify-full", Some("system")),
            ("?sslmode=verify-ca", 16, Some(file), "verify-ca", Some(file)),
            ("?sslmode=verify-ca", 16, None, "verify-ca", None),
            ("?sslmode=prefer", 16, Some(file), "prefer", None),
            ("?sslmode=disable", 16, Some(file), "disable", None),
        ] {
            let expected = (mode.to_owned(), authorities.map(str::to_owned));
            assert_eq!(told(query, major, system), expected, "{query} {major} {system:?}");
        }
    }
}
