//! A cluster beside the others, known by its data folder alone: recovered there, reached on
//! loopback, removed again. Its mark is written before anything else and removed last.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::unistd::User;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::tool;
use super::wal::{BaseBackup, control_data, control_field};
use crate::failure::Failure;
use crate::service::sandbox::server::finish;
use crate::service::sandbox::server_user;

/// The mark of a cluster that Lifeboat made.
const MARK: &str = "lifeboat-recovery.json";

/// How long its server may take to stop.
const STOP_SECONDS: u32 = 60;
/// How long it may take to end after it has said that it stopped.
const LAST_BREATH: Duration = Duration::from_secs(10);

/// How far a recovery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The backup is being copied: worth nothing yet.
    Copying,
    /// The server may replay.
    Recovering,
    /// It was at its target.
    Reached,
    /// It is open.
    Open,
}

/// What the mark holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mark {
    /// The run that makes it.
    pub run: String,
    /// The step that makes it.
    pub step: String,
    /// How far it is.
    pub stage: Stage,
    /// The server's programs.
    pub bin_dir: PathBuf,
    /// The last transaction's time, once the target is reached.
    #[serde(default)]
    pub reached_at: Option<String>,
    /// The position, once the target is reached.
    #[serde(default)]
    pub lsn: Option<String>,
}

/// A cluster by its data folder.
#[derive(Clone, Debug)]
pub struct Side {
    data: PathBuf,
}

impl Side {
    /// The cluster of that folder, there or not.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self { data: data.into() }
    }

    /// Its folder; its socket lies there too.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// What the server says.
    pub fn log_file(&self) -> PathBuf {
        self.data.join("lifeboat-recovery.log")
    }

    /// Whether there is nothing in the way.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn is_absent(&self) -> Result<bool, Failure> {
        match fs::read_dir(&self.data) {
            Ok(mut entries) => Ok(entries.next().is_none()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(cannot("list", &self.data)(error)),
        }
    }

    /// Its mark; none for a folder that Lifeboat didn't make.
    pub fn mark(&self) -> Option<Mark> {
        serde_json::from_slice(&fs::read(self.data.join(MARK)).ok()?).ok()
    }

    /// Writes its mark, whole or not at all.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn set_mark(&self, mark: &Mark) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(mark).map_err(|error| Failure::permanent(error.to_string()))?;
        let file = self.data.join(MARK);
        let draft = self.data.join(format!("{MARK}.new"));
        let written = fs::File::create(&draft).and_then(|mut open| {
            open.write_all(text.as_bytes())?;
            open.sync_all()
        });
        written.and_then(|()| fs::rename(&draft, &file)).map_err(cannot("write", &file))
    }

    /// Makes the folder, with its mark.
    ///
    /// # Errors
    /// When that can't be done, or the server's user could not reach it.
    pub async fn begin(&self, mark: &Mark) -> Result<(), Failure> {
        fs::create_dir_all(&self.data).map_err(cannot("create", &self.data))?;
        fs::set_permissions(&self.data, fs::Permissions::from_mode(0o700)).map_err(cannot("close", &self.data))?;
        give(&self.data)?;
        self.set_mark(mark)?;
        may_read(&self.data.join(MARK)).await
    }

    /// Copies a backup in.
    ///
    /// # Errors
    /// When a file can't be copied, or `cancel` was triggered.
    pub async fn copy(&self, backup: &Path, cancel: &CancellationToken) -> Result<(), Failure> {
        let (from, to, cancel) = (backup.to_owned(), self.data.clone(), cancel.clone());
        tokio::task::spawn_blocking(move || copy_folder(&from, &to, &cancel))
            .await
            .map_err(|error| Failure::permanent(format!("copy {}: {error}", backup.display())))?
    }

    /// Configures it to replay from `archive` up to a target and to keep to itself: what the
    /// original's configuration says of archives, addresses and files does not hold here.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn configure(
        &self,
        backup: &BaseBackup,
        archive: &Path,
        port: u16,
        target: Option<(&str, String)>,
    ) -> Result<(), Failure> {
        for name in ["standby.signal", "postmaster.pid"] {
            remove_file(&self.data.join(name))?;
        }
        for name in ["postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf"] {
            let file = self.data.join(name);
            let kept = self.data.join(format!("{name}.original"));
            if file.exists() && !kept.exists() {
                fs::rename(&file, &kept).map_err(cannot("put aside", &file))?;
            }
        }
        // In a shell's single quotes; `%` is the server's own.
        let from = archive.display().to_string().replace('%', "%%").replace('\'', r"'\''");
        let restore = format!("cp -- '{from}/%f' \"%p\"");
        let socket = self.data.display().to_string();
        let mut settings = vec![
            ("listen_addresses", "127.0.0.1".to_owned()),
            ("port", port.to_string()),
            ("unix_socket_directories", format!("\"{}\"", socket.replace('"', "\"\""))),
            ("unix_socket_permissions", "0700".to_owned()),
            ("archive_mode", "off".to_owned()),
            ("hot_standby", "on".to_owned()),
            ("logging_collector", "off".to_owned()),
            ("log_timezone", "UTC".to_owned()),
            ("timezone", "UTC".to_owned()),
            ("restore_command", restore),
            ("recovery_target_timeline", backup.timeline.to_string()),
            ("recovery_target_action", "pause".to_owned()),
        ];
        settings.extend(backup.floors.iter().cloned());
        settings.extend(target);
        let mut text = "# Written by Lifeboat for a recovered cluster.\n".to_owned();
        for (name, value) in settings {
            let _ = writeln!(text, "{name} = '{}'", value.replace('\\', "\\\\").replace('\'', "''"));
        }
        self.write("postgresql.conf", &text)?;
        // Only who may enter the folder reaches the socket: the server's user, and root.
        self.write("pg_hba.conf", "local all all trust\nhost all all 127.0.0.1/32 md5\n")?;
        self.write("pg_ident.conf", "")?;
        self.write("recovery.signal", "")
    }

    /// Starts its server, if it doesn't run, and doesn't wait for it.
    ///
    /// # Errors
    /// When it can't be started.
    pub async fn start(&self, bin_dir: &Path) -> Result<(), Failure> {
        if self.is_up() {
            return Ok(());
        }
        if self.works_here() {
            return Err(Failure::transient(format!(
                "processes of a killed server go on in {}",
                self.data.display()
            )));
        }
        // Of a server that was killed: its pid may be somebody else's by now.
        remove_file(&self.data.join("postmaster.pid"))?;
        let mut command = self.command(bin_dir, "pg_ctl")?;
        command.args(["start", "--no-wait", "--silent", "--pgdata"]).arg(&self.data);
        command.arg("--log").arg(self.log_file());
        let output = finish(command, "pg_ctl start").await?;
        if output.status.success() {
            return Ok(());
        }
        Err(Failure::permanent(format!("start the server: {}", String::from_utf8_lossy(&output.stderr).trim())))
    }

    /// Opens it for writing.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn promote(&self, bin_dir: &Path) -> Result<(), Failure> {
        let mut command = self.command(bin_dir, "pg_ctl")?;
        command.args(["promote", "--no-wait", "--silent", "--pgdata"]).arg(&self.data);
        let output = finish(command, "pg_ctl promote").await?;
        if output.status.success() {
            return Ok(());
        }
        Err(Failure::permanent(format!("promote it: {}", String::from_utf8_lossy(&output.stderr).trim())))
    }

    /// Stops its server; one that doesn't run is fine.
    ///
    /// # Errors
    /// When it doesn't stop.
    pub async fn stop(&self, bin_dir: &Path) -> Result<(), Failure> {
        if self.is_up() {
            let mut command = self.command(bin_dir, "pg_ctl")?;
            command.args(["stop", "--wait", "--silent", "--mode", "fast", "--pgdata"]).arg(&self.data);
            command.args(["--timeout", &STOP_SECONDS.to_string()]);
            let output = finish(command, "pg_ctl stop").await?;
            if self.is_up() {
                let said = String::from_utf8_lossy(&output.stderr);
                return Err(Failure::transient(format!("stop the server: {}", said.trim())));
            }
        }
        Ok(())
    }

    /// Stops its server and removes its folder, the mark last.
    ///
    /// # Errors
    /// When it isn't marked, doesn't stop, or something can't be removed.
    pub async fn remove(&self) -> Result<(), Failure> {
        if self.is_absent()? {
            return Ok(());
        }
        let mark = self.mark().ok_or_else(|| {
            Failure::permanent(format!(
                "{} is no cluster that a recovery made: it has no mark",
                self.data.display()
            ))
            .help("only what postgres.recover_to made is removed")
        })?;
        self.stop(&mark.bin_dir).await?;
        // A server removes its pid file, which is what `pg_ctl stop` waits for, before it has ended.
        let end = Instant::now() + LAST_BREATH;
        while self.works_here() {
            if Instant::now() >= end {
                return Err(Failure::transient(format!("a server still works in {}", self.data.display())));
            }
            sleep(Duration::from_millis(20)).await;
        }
        for entry in fs::read_dir(&self.data).map_err(cannot("list", &self.data))?.flatten() {
            let path = entry.path();
            if entry.file_name() == MARK {
                continue;
            }
            let folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let removed = if folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(cannot("remove", &path))?;
        }
        remove_file(&self.data.join(MARK))?;
        fs::remove_dir(&self.data).map_err(cannot("remove", &self.data))
    }

    /// Whether its server runs: the process that its pid file names works in its folder.
    pub fn is_up(&self) -> bool {
        let Ok(text) = fs::read_to_string(self.data.join("postmaster.pid")) else { return false };
        let Some(pid) = text.lines().next().and_then(|line| line.trim().parse::<u32>().ok()) else { return false };
        let here = fs::canonicalize(&self.data).ok();
        fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|folder| Some(folder) == here)
    }

    /// The cluster's state, as its control file says.
    ///
    /// # Errors
    /// When pg_controldata can't read it.
    pub async fn state(&self, bin_dir: &Path) -> Result<String, Failure> {
        let tool = tool::find("pg_controldata", Some(bin_dir), 0).await?;
        let control = control_data(&tool, &self.data).await?;
        Ok(control_field(&control, "Database cluster state").unwrap_or("unknown").to_owned())
    }

    /// What the server logged that explains an end, and what it said of its target.
    pub fn logged(&self, any: &[&str]) -> Vec<String> {
        let text = fs::read(self.log_file()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        text.lines().filter(|line| any.iter().any(|word| line.contains(word))).map(str::to_owned).collect()
    }

    /// Whether any process has its working folder where the data is.
    fn works_here(&self) -> bool {
        let Ok(data) = fs::canonicalize(&self.data) else { return false };
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        processes
            .map(|process| process.path().join("cwd"))
            .any(|cwd| fs::read_link(cwd).is_ok_and(|cwd| cwd == data))
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Failure> {
        let file = self.data.join(name);
        remove_file(&file)?;
        let open = fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&file);
        open.and_then(|mut open| open.write_all(text.as_bytes())).map_err(cannot("write", &file))?;
        give(&file)
    }

    fn command(&self, bin_dir: &Path, program: &str) -> Result<std::process::Command, Failure> {
        let mut command = std::process::Command::new(bin_dir.join(program));
        command.env_clear().env("LC_ALL", "C").env("PATH", "/usr/bin:/bin").current_dir(&self.data);
        command.stdin(Stdio::null()).process_group(0);
        as_server_user(&mut command)?;
        Ok(command)
    }
}

fn as_server_user(command: &mut std::process::Command) -> Result<(), Failure> {
    if let Some(user) = account()? {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    Ok(())
}

fn account() -> Result<Option<User>, Failure> {
    Ok(server_user()?.and_then(|name| User::from_name(&name).ok().flatten()))
}

fn give(path: &Path) -> Result<(), Failure> {
    let Some(user) = account()? else { return Ok(()) };
    chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).map_err(cannot("hand over", path))
}

/// Whether the user that the server runs as may read something.
///
/// # Errors
/// When it may not.
pub async fn may_read(path: &Path) -> Result<(), Failure> {
    let mut command = std::process::Command::new("/usr/bin/test");
    command.arg("-r").arg(path).env_clear().stdin(Stdio::null());
    as_server_user(&mut command)?;
    if finish(command, "test").await?.status.success() {
        return Ok(());
    }
    let user = server_user()?.unwrap_or_else(|| "this user".to_owned());
    Err(Failure::permanent(format!("{} can't be read by {user}, whom the server runs as", path.display()))
        .help("put it where that user may go, and let it read"))
}

fn copy_folder(from: &Path, to: &Path, cancel: &CancellationToken) -> Result<(), Failure> {
    for entry in fs::read_dir(from).map_err(cannot("list", from))? {
        if cancel.is_cancelled() {
            return Err(Failure::transient(format!("copy {}: cancelled", from.display())));
        }
        let entry = entry.map_err(cannot("list", from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(cannot("look at", &source))?;
        if kind.is_dir() {
            fs::create_dir(&target).map_err(cannot("create", &target))?;
            fs::set_permissions(&target, fs::Permissions::from_mode(0o700)).map_err(cannot("close", &target))?;
            copy_folder(&source, &target, cancel)?;
        } else if kind.is_file() {
            fs::copy(&source, &target).map_err(cannot("copy", &source))?;
            fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).map_err(cannot("close", &target))?;
        } else {
            return Err(Failure::permanent(format!("{} is neither a file nor a folder", source.display()))
                .help("backups with tablespaces of their own can't be recovered beside the original"));
        }
        give(&target)?;
    }
    Ok(())
}

fn remove_file(file: &Path) -> Result<(), Failure> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(cannot("remove", file)(error)),
        _ => Ok(()),
    }
}

fn cannot<'a>(what: &'a str, path: &'a Path) -> impl Fn(io::Error) -> Failure + 'a {
    move |error| Failure::permanent(format!("{what} {}: {error}", path.display()))
}
