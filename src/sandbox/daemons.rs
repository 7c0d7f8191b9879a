//! Servers of this machine's own packages that a sandbox runs: a name server with a zone, an SSH server
//! with one user, and a mail server that keeps what it gets. Where one is not installed, a sandbox comes up without it.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::service::loopback;
use crate::failure::Failure;
use crate::secret::Redactor;
use crate::service::dns::{DnsSettings, canonical_name};
use crate::service::process::find_program;
use crate::service::{Services, Target};

/// A server, and what it needs to know.
pub enum Daemon {
    /// BIND, for one zone.
    Names(DnsSettings),
    /// aiosmtpd, which keeps mail in a folder.
    Mail,
    /// moto, with one bucket.
    Objects(String),
    /// OpenSSH's server, for the user that this process runs as.
    Ssh,
}

impl Daemon {
    /// The throwaway server that a target is, and where it listens.
    pub fn of(target: &Target) -> Result<Option<(Self, SocketAddr)>, Failure> {
        match target {
            Target::Dns(settings) if settings.sandbox => {
                let listen = settings.server.parse::<SocketAddr>().ok();
                let listen = listen.filter(|listen| listen.ip().is_loopback()).ok_or_else(|| {
                    Failure::permanent(format!("a sandbox can't listen at `{}`", settings.server))
                        .help("write an address of this machine with a port, as `127.0.0.1:28304`")
                })?;
                // Its settings become those of the server.
                match target.unsound().into_iter().next() {
                    Some(unsound) => Err(unsound.failure),
                    None => Ok(Some((Self::Names(settings.clone()), listen))),
                }
            }
            Target::Smtp(settings) if settings.sandbox => {
                let listen = settings.url.strip_prefix("smtp://").and_then(|place| {
                    place.trim_end_matches('/').replace("localhost", "127.0.0.1").parse::<SocketAddr>().ok()
                });
                let listen = listen.filter(|listen| listen.ip().is_loopback()).ok_or_else(|| {
                    Failure::permanent("a sandbox's mail server speaks plain SMTP on this machine, without a login")
                        .help("write `url: smtp://127.0.0.1:28305`")
                })?;
                Ok(Some((Self::Mail, listen)))
            }
            Target::Storage(settings) => match settings.sandbox() {
                Some((bucket, endpoint)) => Ok(Some((Self::Objects(bucket.to_owned()), loopback(endpoint)?))),
                None => Ok(None),
            },
            Target::Ssh(settings) if settings.sandbox => {
                let listen = settings.host.parse::<SocketAddr>().ok();
                let listen = listen.filter(|listen| listen.ip().is_loopback()).ok_or_else(|| {
                    Failure::permanent(format!("a sandbox can't listen at `{}`", settings.host))
                        .help("write an address of this machine with a port, as `127.0.0.1:28307`")
                })?;
                Ok(Some((Self::Ssh, listen)))
            }
            _ => Ok(None),
        }
    }

    /// What it is.
    pub const fn what(&self) -> &'static str {
        match self {
            Self::Names(_) => "a name server",
            Self::Mail => "a mail server",
            Self::Ssh => "an SSH server",
            Self::Objects(_) => "an S3 server",
        }
    }

    /// Where it is reached.
    pub fn address(&self, listen: SocketAddr) -> String {
        match self {
            Self::Names(settings) => format!("{listen}, zone {}", settings.zone),
            Self::Mail => format!("smtp://{listen}"),
            Self::Ssh => format!("ssh://{listen}"),
            Self::Objects(bucket) => format!("http://{listen}/{bucket}"),
        }
    }

    /// Where its program is.
    pub fn program(&self) -> Result<PathBuf, Failure> {
        match self {
            Self::Names(_) => name_server(),
            Self::Mail => mail_server(),
            Self::Ssh => ssh_server(),
            Self::Objects(_) => object_server(),
        }
    }

    /// Writes what it needs into `folder`: the program to run, and its arguments.
    pub fn prepare(&self, folder: &Path, listen: SocketAddr) -> Result<(PathBuf, Vec<String>), Failure> {
        let program = self.program()?;
        match self {
            Self::Names(settings) => {
                let cannot =
                    |error: std::io::Error| Failure::permanent(format!("write {}: {error}", folder.display()));
                super::create_folder(folder)?;
                let (settings_file, zone_file) = (folder.join("named.conf"), folder.join("zone"));
                write_private(&settings_file, &configuration(settings, folder, listen)).map_err(cannot)?;
                // What a plan made of it survives that it is stopped and started.
                if !zone_file.exists() {
                    write_private(&zone_file, ZONE).map_err(cannot)?;
                }
                // AppArmor may confine the installed one to its own folders.
                let own = folder.join("named");
                fs::copy(&program, &own).map_err(cannot)?;
                let args = ["-g", "-n", "1", "-c", &settings_file.display().to_string()].map(str::to_owned);
                Ok((own, args.to_vec()))
            }
            Self::Mail => {
                let (listen, folder) = (listen.to_string(), folder.display().to_string());
                let args = ["-n", "-c", "aiosmtpd.handlers.Mailbox", "-l", &listen, &folder].map(str::to_owned);
                Ok((program, args.to_vec()))
            }
            Self::Objects(_) => {
                let (ip, port) = (listen.ip().to_string(), listen.port().to_string());
                Ok((program, ["-H", &ip, "-p", &port].map(str::to_owned).to_vec()))
            }
            Self::Ssh => {
                let cannot =
                    |error: std::io::Error| Failure::permanent(format!("write {}: {error}", folder.display()));
                super::create_folder(folder)?;
                let settings = folder.join("sshd_config");
                prepare_ssh(folder, listen).map_err(cannot)?;
                let args = ["-D", "-e", "-f", &settings.display().to_string()].map(str::to_owned);
                Ok((program, args.to_vec()))
            }
        }
    }

    /// Whether it does its work, rather than only listens. A bucket is made where there is none.
    pub async fn serves(&self, listen: SocketAddr) -> bool {
        if let Self::Objects(bucket) = self {
            let client = reqwest::Client::builder().no_proxy().build();
            let Ok(client) = client else { return false };
            let made = client.put(format!("http://{listen}/{bucket}")).send().await;
            return made.is_ok_and(|answer| answer.status().is_success() || answer.status().as_u16() == 409);
        }
        let Self::Names(settings) = self else { return true };
        let targets = [("it".to_owned(), Target::Dns(settings.clone()))].into();
        match Services::new(targets, Redactor::default()).dns("it") {
            Ok(zone) => zone.probe().await.is_ok(),
            Err(_) => false,
        }
    }
}

/// The client's key, and the file that knows the server's, of an SSH server in that folder.
pub fn ssh_files(folder: &Path) -> [String; 2] {
    ["user", "known_hosts"].map(|name| folder.join(name).display().to_string())
}

/// Keys for the server and its one client, and the server's settings.
fn prepare_ssh(folder: &Path, listen: SocketAddr) -> std::io::Result<()> {
    let path = |name: &str| folder.join(name);
    for key in ["host", "user"] {
        if !path(key).exists() {
            let mut keygen = std::process::Command::new(keygen()?);
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", key, "-f"]).arg(path(key)).stdin(Stdio::null());
            let output = keygen.output()?;
            if !output.status.success() {
                return Err(std::io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
            }
        }
    }
    fs::copy(path("user.pub"), path("authorized_keys"))?;
    let known = format!("[{}]:{} {}", listen.ip(), listen.port(), fs::read_to_string(path("host.pub"))?);
    fs::write(path("known_hosts"), known)?;
    if nix::unistd::geteuid().is_root() {
        // Where its privileges end. Debian makes it when the system's own server starts.
        fs::create_dir_all("/run/sshd")?;
    }
    let (host, authorized) = (path("host"), path("authorized_keys"));
    let settings = format!(
        "Port {}\nListenAddress {}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\nUsePAM no\n\
         PasswordAuthentication no\nKbdInteractiveAuthentication no\nPrintMotd no\n",
        listen.port(),
        listen.ip(),
        host.display(),
        authorized.display()
    );
    write_private(&path("sshd_config"), &settings)
}

fn keygen() -> std::io::Result<PathBuf> {
    let found = find_program("ssh-keygen", None).or_else(|| find_program("/usr/bin/ssh-keygen", None));
    found.ok_or_else(|| std::io::Error::other("ssh-keygen is not installed (Debian: openssh-client)"))
}

/// What its zone holds at first; names without a dot at the end are below the zone.
const ZONE: &str = "$TTL 60\n\
    @ SOA ns hostmaster 1 3600 600 86400 60\n\
    @ NS ns\n\
    ns A 127.0.0.1\n\
    auth A 127.0.0.1\n";

/// BIND's settings, with the target's, which were checked.
fn configuration(settings: &DnsSettings, folder: &Path, listen: SocketAddr) -> String {
    let (ip, port, folder) = (listen.ip(), listen.port(), folder.display());
    let (v4, v6) = if listen.is_ipv4() { (ip.to_string(), "none".into()) } else { ("none".into(), ip.to_string()) };
    let (key, may) = match &settings.tsig {
        None => (String::new(), ip.to_string()),
        Some(tsig) => {
            let name = canonical_name(&tsig.name).unwrap_or_default();
            let (algorithm, secret) = (tsig.algorithm.to_lowercase(), tsig.secret.trim());
            (
                format!("key \"{name}\" {{ algorithm {algorithm}; secret \"{secret}\"; }};\n"),
                format!("key \"{name}\""),
            )
        }
    };
    format!(
        "options {{\n  directory \"{folder}\";\n  listen-on port {port} {{ {v4}; }};\n  \
         listen-on-v6 port {port} {{ {v6}; }};\n  pid-file none;\n  session-keyfile none;\n  recursion no;\n  \
         dnssec-validation no;\n  notify no;\n  allow-transfer {{ none; }};\n}};\ncontrols {{}};\n{key}\
         zone \"{}\" {{ type primary; file \"zone\"; allow-update {{ {may}; }}; }};\n",
        canonical_name(&settings.zone).unwrap_or_default()
    )
}

/// It may hold a key.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())
}

/// Where BIND's program is; it is not on everybody's PATH.
///
/// # Errors
/// When it isn't installed.
pub fn name_server() -> Result<PathBuf, Failure> {
    find_program("named", None).or_else(|| find_program("/usr/sbin/named", None)).ok_or_else(|| {
        Failure::permanent("named is not installed")
            .help("install it (Debian: `apt-get install bind9`); plans without DNS run all the same")
    })
}

/// Where the SSH server's program is; it is not on everybody's PATH.
///
/// # Errors
/// When it isn't installed.
pub fn ssh_server() -> Result<PathBuf, Failure> {
    find_program("sshd", None).or_else(|| find_program("/usr/sbin/sshd", None)).ok_or_else(|| {
        Failure::permanent("sshd is not installed")
            .help("install it (Debian: `apt-get install openssh-server`); plans without SSH run all the same")
    })
}

/// Where the S3 server's program is.
///
/// # Errors
/// When it isn't installed.
pub fn object_server() -> Result<PathBuf, Failure> {
    find_program("moto_server", None).ok_or_else(|| {
        Failure::permanent("moto_server is not installed")
            .help("install it (PyPI: `pip install \"moto[server]\"`); plans without S3 run all the same")
    })
}

/// Where the mail server's program is.
///
/// # Errors
/// When it isn't installed.
pub fn mail_server() -> Result<PathBuf, Failure> {
    find_program("aiosmtpd", None).ok_or_else(|| {
        Failure::permanent("aiosmtpd is not installed")
            .help("install it (Debian: `apt-get install python3-aiosmtpd`); plans without mail run all the same")
    })
}
