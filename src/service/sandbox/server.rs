//! A throwaway cluster's server: its files, its user, its programs, whether it runs.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::User;
use serde::{Deserialize, Serialize};

use super::cannot;
use crate::failure::Failure;
use crate::service::PostgresSandbox;

/// How long the server may take to start or to stop.
const WITHIN_SECONDS: u32 = 60;

/// A socket's path has room for about that many bytes.
const SOCKET_ROOM: usize = 90;

/// What makes a cluster quick to start and to throw away; an environment's settings come after.
const SETTINGS: &str = "\
listen_addresses = '127.0.0.1'
max_connections = 50
fsync = off
shared_buffers = 32MB
wal_level = minimal
max_wal_senders = 0
";

/// What base backups and standbys need besides.
const REPLICATION: &str = "\
wal_level = replica
max_wal_senders = 10
wal_keep_size = 64MB
";

/// What `cluster.json` holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct State {
    /// Where data, log and socket are.
    pub home: PathBuf,
    /// The server's programs.
    pub bin_dir: PathBuf,
    pub port: u16,
    pub password: String,
    /// The port of its standby, which lies in its home.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby: Option<u16>,
    /// The user it runs as, when that is not the one who calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

impl State {
    pub fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// Where it archives its WAL, if it does.
    pub fn archive(&self) -> PathBuf {
        self.home.join("archive")
    }

    /// Its standby, as a cluster of its own.
    pub fn standby(&self) -> Option<Self> {
        let port = self.standby?;
        Some(Self { home: self.home.join("standby"), port, standby: None, ..self.clone() })
    }

    /// Whether its server runs, and its standby's where there is one.
    pub fn all_up(&self) -> bool {
        self.is_up() && self.standby().is_none_or(|standby| standby.is_up())
    }

    /// Whether the copy came to its end: what it is to follow, and as whom, is written last.
    pub fn is_followed(&self) -> bool {
        let socket = format!("unix_socket_directories = '{}'", self.socket_folder().replace('\'', "''"));
        self.data().join("standby.signal").is_file()
            && fs::read_to_string(self.configuration()).is_ok_and(|text| text.contains(&socket))
    }

    /// Copies the cluster that runs into this one's folder, to follow it.
    pub async fn follow(&self, primary: &Self) -> Result<(), Failure> {
        if self.home.exists() {
            fs::remove_dir_all(&self.home).map_err(cannot("remove", &self.home))?;
        }
        fs::create_dir(&self.home).map_err(cannot("create", &self.home))?;
        self.give(&self.home)?;
        let mut command = self.command("pg_basebackup");
        command.args([
            "--host=127.0.0.1",
            "--username=postgres",
            "--no-password",
            "--checkpoint=fast",
            "--no-sync",
        ]);
        command.args(["--write-recovery-conf", "--pgdata"]).arg(self.data());
        command.arg(format!("--port={}", primary.port)).env("PGPASSWORD", &primary.password);
        succeeded(&finish(command, "pg_basebackup").await?, "copy the sandbox's cluster for its standby", None)?;
        let file = self.configuration();
        let mut open = OpenOptions::new().append(true).open(&file).map_err(cannot("open", &file))?;
        let socket = self.socket_folder();
        writeln!(open, "unix_socket_directories = '{}'", socket.replace('\'', "''")).map_err(cannot("write", &file))
    }

    fn socket_folder(&self) -> String {
        let socket = self.home.display().to_string();
        if socket.len() < SOCKET_ROOM { socket } else { String::new() }
    }

    fn configuration(&self) -> PathBuf {
        self.data().join("postgresql.conf")
    }

    pub fn is_configured(&self) -> bool {
        fs::read_to_string(self.configuration()).is_ok_and(|text| text.contains(SETTINGS))
    }

    pub fn configure(&self, settings: &PostgresSandbox) -> Result<(), Failure> {
        let quoted = |text: &str| text.replace('\'', "''");
        let mut text = format!("\n{SETTINGS}unix_socket_directories = '{}'\n", quoted(&self.socket_folder()));
        if settings.archive || settings.standby.is_some() {
            text.push_str(REPLICATION);
        }
        if settings.archive {
            let archive = self.archive();
            fs::create_dir(&archive).map_err(cannot("create", &archive))?;
            self.give(&archive)?;
            let command = quoted(&archive_command(&archive));
            let _ = writeln!(text, "archive_mode = on\narchive_command = '{command}'");
        }
        for (name, value) in &settings.settings {
            if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.') {
                return Err(Failure::permanent(format!("`{name}` can't name a server setting")));
            }
            let _ = writeln!(text, "{name} = '{}'", quoted(value));
        }
        let file = self.configuration();
        let mut open = OpenOptions::new().append(true).open(&file).map_err(cannot("open", &file))?;
        open.write_all(text.as_bytes()).map_err(cannot("write", &file))
    }

    /// Whether the process that its pid file names is there and works in its folder.
    pub fn is_up(&self) -> bool {
        let Ok(text) = fs::read_to_string(self.data().join("postmaster.pid")) else { return false };
        let Some(pid) = text.lines().next().and_then(|line| line.trim().parse::<u32>().ok()) else { return false };
        // A pid file outlives a killed server, and its pid may be another's by now.
        match fs::read_link(format!("/proc/{pid}/cwd")) {
            Ok(folder) => folder == self.data() || fs::canonicalize(self.data()).is_ok_and(|data| data == folder),
            Err(_) => false,
        }
    }

    /// Takes away the pid and lock files of a server that was killed: their pid may be a zombie's
    /// or somebody else's, and the server would refuse to start. Its last children go first.
    pub async fn clear_after_a_crash(&self) -> Result<(), Failure> {
        let file = self.data().join("postmaster.pid");
        let deadline = Instant::now() + Duration::from_secs(10);
        while file.exists() && self.works_here() {
            if Instant::now() > deadline {
                return Err(Failure::permanent(format!(
                    "processes of a killed server go on in {}",
                    self.home.display()
                ))
                .help("end them, then try again"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let in_home = fs::read_dir(&self.home).map_err(cannot("list", &self.home))?.flatten();
        let sockets = in_home.filter(|entry| entry.file_name().to_string_lossy().starts_with(".s.PGSQL."));
        for stale in sockets.map(|entry| entry.path()).chain([file]) {
            match fs::remove_file(&stale) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(cannot("remove", &stale)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether any process has its working folder where the data is.
    fn works_here(&self) -> bool {
        let Ok(data) = fs::canonicalize(self.data()) else { return false };
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        processes
            .map(|process| process.path().join("cwd"))
            .any(|cwd| fs::read_link(cwd).is_ok_and(|cwd| cwd == data))
    }

    pub async fn stop(&self) -> Result<(), Failure> {
        if !self.is_up() {
            return Ok(());
        }
        let mut command = self.pg_ctl("stop");
        command.args(["--mode", "fast"]);
        let output = finish(command, "pg_ctl stop").await?;
        if !self.is_up() {
            return Ok(());
        }
        succeeded(&output, "stop the sandbox's server", Some(&self.home.join("log")))
    }

    pub fn pg_ctl(&self, action: &str) -> std::process::Command {
        let mut command = self.command("pg_ctl");
        command.arg(action).arg("--pgdata").arg(self.data());
        command.args(["--wait", "--silent", "--timeout", &WITHIN_SECONDS.to_string()]);
        command
    }

    /// One of the server's programs, run as its user, free of what this process's terminal does.
    pub fn command(&self, program: &str) -> std::process::Command {
        let mut command = std::process::Command::new(self.bin_dir.join(program));
        command.current_dir(&self.home).env_clear().env("LC_ALL", "C").env("PATH", "/usr/bin:/bin");
        command.stdin(Stdio::null()).process_group(0);
        if let Some(user) = self.user() {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }

    /// Hands a file or folder to the server's user.
    pub fn give(&self, path: &Path) -> Result<(), Failure> {
        let Some(user) = self.user() else { return Ok(()) };
        chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).map_err(cannot("hand over", path))
    }

    fn user(&self) -> Option<User> {
        User::from_name(self.user.as_deref()?).ok().flatten()
    }
}

/// Copies a segment in whole or not at all; one that is there already must be the same.
fn archive_command(archive: &Path) -> String {
    let folder = archive.display().to_string().replace('%', "%%").replace('\'', r"'\''");
    format!(
        "cd '{folder}' && if [ -f '%f' ]; then cmp -s \"$OLDPWD/%p\" '%f'; else \
         cp \"$OLDPWD/%p\" '.%f.new' && sync '.%f.new' && mv '.%f.new' '%f' && sync .; fi"
    )
}

/// Runs a command to its end. What it leaves running (the server) has let go of the pipes.
pub(crate) async fn finish(mut command: std::process::Command, name: &str) -> Result<Output, Failure> {
    let failed = |error: io::Error| Failure::permanent(format!("run {name}: {error}"));
    // The server inherits pg_ctl's output; through a pipe it would never be closed.
    let mut said = tempfile::tempfile().map_err(failed)?;
    command.stdout(said.try_clone().map_err(failed)?).stderr(said.try_clone().map_err(failed)?);
    let status = tokio::process::Command::from(command).status().await.map_err(failed)?;
    let mut stderr = Vec::new();
    io::Seek::rewind(&mut said).and_then(|()| io::Read::read_to_end(&mut said, &mut stderr)).map_err(failed)?;
    Ok(Output { status, stdout: Vec::new(), stderr })
}

pub(super) fn succeeded(output: &Output, attempted: &str, log: Option<&Path>) -> Result<(), Failure> {
    if output.status.success() {
        return Ok(());
    }
    let mut said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let logged = log.and_then(|log| fs::read_to_string(log).ok()).unwrap_or_default();
    let last: Vec<_> = logged.lines().filter(|line| line.contains("FATAL") || line.contains("ERROR")).collect();
    for line in last {
        let _ = write!(said, "; {line}");
    }
    Err(Failure::permanent(format!("{attempted}: {said}")))
}

pub(super) fn write_private(path: &Path, text: &str) -> Result<(), Failure> {
    let open = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path);
    open.and_then(|mut file| file.write_all(text.as_bytes())).map_err(cannot("write", path))
}
