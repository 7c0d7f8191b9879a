//! Where a server is and how its connection is protected, read from a libpq URI.
//!
//! The driver's own parser takes most of it; what it doesn't know (`verify-full`,
//! `sslrootcert`, password files) is read here and taken out of the URI before.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use tokio_postgres::config::{Config, Host, SslMode};

/// A parsed connection URI.
#[derive(Clone)]
pub(super) struct Address {
    /// For the driver: hosts, user, password, timeouts.
    pub config: Config,
    /// How the connection is protected.
    pub tls: TlsSettings,
}

/// How a connection is protected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TlsSettings {
    /// `sslmode`.
    pub mode: Mode,
    /// `sslrootcert`: authorities to trust instead of the system's.
    pub root_cert: Option<PathBuf>,
    /// `sslcert` and `sslkey`: what the server may ask for.
    pub client_cert: Option<(PathBuf, PathBuf)>,
}

/// libpq's `sslmode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mode {
    /// Never protected.
    Disable,
    /// Protected where the server can, without knowing who answers: libpq's default, and ours on this machine.
    #[default]
    Prefer,
    /// Protected, by a server whose certificate and name are right: the default elsewhere.
    Require,
    /// Protected, by a server whose certificate is right, whatever its name.
    VerifyCa,
    /// The same as `require` here: Lifeboat verifies by default.
    VerifyFull,
}

impl Mode {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(match text {
            "disable" => Self::Disable,
            "allow" | "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => {
                return Err(format!(
                    "`sslmode={text}`: it is one of disable, prefer, require, verify-ca, verify-full"
                ));
            }
        })
    }

    /// The word that libpq's tools know it by.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

/// Whether all of its hosts are this machine.
fn is_near(config: &Config) -> bool {
    let hosts = config.get_hosts().iter().all(|host| match host {
        Host::Tcp(name) => name == "localhost" || name.parse().is_ok_and(|address: IpAddr| address.is_loopback()),
        Host::Unix(_) => true,
    });
    let addresses = config.get_hostaddrs();
    if addresses.is_empty() { hosts } else { addresses.iter().all(IpAddr::is_loopback) }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place())
    }
}

impl Address {
    /// Reads a URI. The error never quotes it: it may hold a password.
    pub fn parse(uri: &str) -> Result<Self, String> {
        if !uri.starts_with("postgres://") && !uri.starts_with("postgresql://") {
            return Err("`url` must be a URI as postgres://user:password@host:5432/postgres".to_owned());
        }
        let (base, query) = uri.split_once('?').unwrap_or((uri, ""));
        let mut tls = TlsSettings::default();
        let mut mode = None;
        let mut pass_file = std::env::var_os("PGPASSFILE").map(PathBuf::from);
        let (mut cert, mut key) = (None, None);
        let mut rest = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, raw) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode(raw);
            match name {
                "sslmode" => mode = Some(Mode::parse(&value)?),
                "sslrootcert" if value == "system" => tls.root_cert = None,
                "sslrootcert" => tls.root_cert = Some(PathBuf::from(value)),
                "sslcert" => cert = Some(PathBuf::from(value)),
                "sslkey" => key = Some(PathBuf::from(value)),
                "passfile" => pass_file = Some(PathBuf::from(value)),
                // Lifeboat names its sessions itself, and the driver has no GSS encryption.
                "application_name" | "fallback_application_name" | "gssencmode" => {}
                _ => rest.push(pair),
            }
        }
        tls.client_cert = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err("`sslcert` and `sslkey` come together".to_owned()),
        };
        let plain = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
        let mut config: Config = plain
            .parse()
            .map_err(|error: tokio_postgres::Error| format!("`url` is not a connection URI: {}", cause(&error)))?;
        // Verified unless the url says otherwise; what never leaves this machine need not be.
        tls.mode = mode.unwrap_or(if is_near(&config) { Mode::Prefer } else { Mode::Require });
        config.ssl_mode(match tls.mode {
            Mode::Disable => SslMode::Disable,
            Mode::Prefer => SslMode::Prefer,
            Mode::Require | Mode::VerifyCa | Mode::VerifyFull => SslMode::Require,
        });
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            config.host("localhost");
        }
        if config.get_user().is_none() {
            config.user(std::env::var("USER").unwrap_or_else(|_| "postgres".to_owned()));
        }
        let mut address = Self { config, tls };
        if address.config.get_password().is_none()
            && let Some(password) = pass_file.or_else(home_pass_file).and_then(|file| address.password_from(&file))
        {
            address.config.password(password);
        }
        Ok(address)
    }

    /// `host:port` of the first host: what messages say.
    pub fn place(&self) -> String {
        format!("{}:{}", self.host(), self.port())
    }

    /// The first host, or the folder of its socket.
    pub fn host(&self) -> String {
        match (self.config.get_hosts().first(), self.config.get_hostaddrs().first()) {
            (Some(Host::Tcp(host)), _) => host.clone(),
            (Some(Host::Unix(folder)), _) => folder.display().to_string(),
            (None, Some(address)) => address.to_string(),
            (None, None) => "localhost".to_owned(),
        }
    }

    /// The first port.
    pub fn port(&self) -> u16 {
        self.config.get_ports().first().copied().unwrap_or(5432)
    }

    /// The password of a password file's first fitting line (`host:port:database:user:password`).
    fn password_from(&self, file: &Path) -> Option<String> {
        let text = std::fs::read_to_string(file).ok()?;
        let (host, port) = (self.host(), self.port().to_string());
        let wanted = [host.as_str(), &port, self.config.get_dbname().unwrap_or("*"), self.config.get_user()?];
        text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
            let fields = pass_fields(line);
            let [keys @ .., password] = fields.as_slice() else { return None };
            let fits = keys.len() == 4
                && keys.iter().zip(wanted).all(|(key, wanted)| key == "*" || wanted == "*" || key == wanted);
            fits.then(|| password.clone())
        })
    }
}

/// A password file's fields: `:` separates, `\` takes the next character as it is.
fn pass_fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            ':' if fields.len() < 5 => fields.push(String::new()),
            '\\' => fields.last_mut().into_iter().for_each(|field| field.extend(characters.next())),
            _ => fields.last_mut().into_iter().for_each(|field| field.push(character)),
        }
    }
    fields
}

fn home_pass_file() -> Option<PathBuf> {
    std::env::home_dir().map(|home| home.join(".pgpass"))
}

/// What a driver's error says below its headline.
fn cause(error: &tokio_postgres::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let pair = tail.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
        if let (b'%', Some(byte)) = (first, pair.and_then(|pair| u8::from_str_radix(pair, 16).ok())) {
            bytes.push(byte);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_parameters_are_taken_out_of_the_uri() {
        let address = Address::parse(
            "postgres://u:p@db.example:6432/x?sslmode=verify-full&sslrootcert=/etc/a%20b.pem&connect_timeout=3",
        )
        .unwrap();
        assert_eq!(address.tls.mode, Mode::VerifyFull);
        assert_eq!(address.tls.root_cert, Some(PathBuf::from("/etc/a b.pem")));
        assert_eq!(address.config.get_connect_timeout(), Some(&std::time::Duration::from_secs(3)));
        assert_eq!(address.place(), "db.example:6432");
    }

    #[test]
    fn a_server_elsewhere_is_verified_unless_the_uri_says_otherwise() {
        for (uri, mode) in [
            ("postgres://u@db.example/x", Mode::Require),
            ("postgres://u@192.0.2.1/x", Mode::Require),
            ("postgres://u@127.0.0.1,db.example/x", Mode::Require),
            ("postgres://u@localhost/x?hostaddr=192.0.2.1", Mode::Require),
            ("postgres://u@db.example/x?sslmode=prefer", Mode::Prefer),
            ("postgres://u@localhost/x", Mode::Prefer),
            ("postgres://u@[::1]/x", Mode::Prefer),
            ("postgres://u@%2Frun%2Fpostgresql/x", Mode::Prefer),
            ("postgres:///x", Mode::Prefer),
        ] {
            assert_eq!(Address::parse(uri).unwrap().tls.mode, mode, "{uri}");
        }
    }

    #[test]
    fn mistakes_never_quote_the_password() {
        for bad in [
            "postgres://u:hunter2@h/x?sslmode=maybe",
            "postgres://u:hunter2@h:port/x",
            "postgres://u:hunter2@h/x?colour=red",
            "host=h password=hunter2",
        ] {
            let error = Address::parse(bad).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_password_file_gives_the_first_line_that_fits() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pass");
        std::fs::write(&file, "# comment\nother:*:*:*:no\nh:5432:*:u:a\\:b\\\\c\n*:*:*:*:late\n").unwrap();
        let address = Address::parse(&format!("postgres://u@h/x?passfile={}", file.display())).unwrap();
        assert_eq!(address.config.get_password(), Some(&b"a:b\\c"[..]));
    }
}
