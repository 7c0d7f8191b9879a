//! Background processes that outlive the command which started them.
//!
//! A file remembers each one by process id, start time and the kernel's boot, so that a later
//! command finds it again, and never ends a stranger that was given the same id since.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::failure::Failure;
use crate::secret::Secret;
use crate::service::process::INHERITED;

/// How often a process that is waited for is looked at.
const POLL: Duration = Duration::from_millis(20);

/// A process, told from every other one that had or will have its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pid: i32,
    /// When it was started, in the kernel's ticks since boot.
    started: u64,
    /// The kernel's boot id.
    boot: String,
}

impl Identity {
    /// The process of that id, if it runs.
    pub fn of(pid: u32) -> Option<Self> {
        let pid = i32::try_from(pid).ok()?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
        Some(Self { pid, started: start_time(pid)?, boot })
    }

    /// Whether it still runs. A zombie doesn't: it is only waiting to be counted.
    pub fn is_alive(&self) -> bool {
        u32::try_from(self.pid).ok().and_then(Self::of).is_some_and(|now| now == *self)
    }

    fn signal(&self, signal: Signal) {
        if self.is_alive() {
            // It may have ended in between: that is what was wanted.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {}", self.pid)
    }
}

/// The start time of a process that runs: field 22 of its `stat`, counted behind its name,
/// which may itself hold spaces and parentheses.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    (!matches!(state, "Z" | "X")).then(|| fields.nth(18)?.parse().ok()).flatten()
}

/// What is started in the background.
pub struct Background<'a> {
    /// What people call it.
    pub name: &'a str,
    /// The program; this one by default.
    pub program: Option<PathBuf>,
    /// The arguments.
    pub args: Vec<String>,
    /// Variables, the place for what is secret.
    pub env: Vec<(&'static str, Secret)>,
    /// Where its pid file and log are.
    pub folder: &'a Path,
}

/// The pid file of a background process.
pub fn pid_file(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.pid"))
}

/// The log of a background process.
pub fn log_file(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.log"))
}

/// The process that a pid file remembers, if it still runs.
pub fn running(folder: &Path, name: &str) -> Option<Identity> {
    let text = fs::read_to_string(pid_file(folder, name)).ok()?;
    serde_json::from_str::<Identity>(&text).ok().filter(Identity::is_alive)
}

impl Background<'_> {
    /// Starts it, unless it runs already. It has its own process group: the terminal's Ctrl-C isn't meant for it.
    ///
    /// # Errors
    /// When it can't be started or remembered; then it isn't left running.
    pub fn start(&self) -> Result<Identity, Failure> {
        if let Some(running) = running(self.folder, self.name) {
            return Ok(running);
        }
        self.spawn().map_err(|error| Failure::permanent(format!("start {}: {error}", self.name)))
    }

    fn spawn(&self) -> io::Result<Identity> {
        let log = File::options().create(true).append(true).open(log_file(self.folder, self.name))?;
        let mut command = Command::new(self.program.clone().map_or_else(std::env::current_exe, Ok)?);
        command.args(&self.args).env_clear().current_dir("/").process_group(0);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.envs(self.env.iter().map(|(name, value)| (name, value.expose())));
        let mut child = command.spawn()?;
        let remembered = Identity::of(child.id())
            .ok_or_else(|| io::Error::other("it ended at once, or this system has no /proc"))
            .and_then(|identity| write(&pid_file(self.folder, self.name), &identity).map(|()| identity));
        if remembered.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        remembered
    }
}

/// Remembers a process that somebody else started.
///
/// # Errors
/// When it doesn't run, or the file can't be written.
pub fn remember(file: &Path, pid: u32) -> io::Result<()> {
    let identity =
        Identity::of(pid).ok_or_else(|| io::Error::other("it does not run, or this system has no /proc"))?;
    write(file, &identity)
}

/// Whole or not at all: half a pid file would lose the process.
fn write(file: &Path, identity: &Identity) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
    temporary.write_all(serde_json::to_string(identity)?.as_bytes())?;
    temporary.persist(file)?;
    Ok(())
}

/// Ends a background process: SIGTERM, `grace`, SIGKILL. Returns whether it ran.
///
/// # Errors
/// When it can't be ended.
pub async fn stop(folder: &Path, name: &str, grace: Duration) -> Result<bool, Failure> {
    let found = running(folder, name);
    if let Some(process) = &found {
        process.signal(Signal::SIGTERM);
        if !ends(process, grace).await {
            process.signal(Signal::SIGKILL);
            if !ends(process, Duration::from_secs(5)).await {
                return Err(Failure::transient(format!("{process} ({name}) does not end, even when killed")));
            }
        }
    }
    let _ = fs::remove_file(pid_file(folder, name));
    Ok(found.is_some())
}

async fn ends(process: &Identity, within: Duration) -> bool {
    let end = Instant::now() + within;
    while process.is_alive() {
        if Instant::now() >= end {
            return false;
        }
        sleep(POLL).await;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_another_that_has_its_id() {
        let me = Identity::of(std::process::id()).unwrap();
        assert!(me.is_alive());
        assert!(!Identity { started: me.started + 1, ..me.clone() }.is_alive(), "started at another time");
        assert!(!Identity { boot: "another".to_owned(), ..me }.is_alive(), "before a reboot");
    }

    #[test]
    fn a_zombie_is_not_alive() {
        let mut child = Command::new("true").spawn().unwrap();
        let identity = Identity::of(child.id());
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while Identity::of(child.id()).is_some() {
            assert!(std::time::Instant::now() < end, "`true` ends");
            std::thread::sleep(POLL);
        }
        assert!(identity.is_none_or(|identity| !identity.is_alive()));
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn only_the_remembered_process_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let identity = Identity::of(child.id()).unwrap();
        let stranger = Identity { started: identity.started + 1, ..identity.clone() };
        write(&pid_file(folder.path(), "x"), &stranger).unwrap();
        assert_eq!(stop(folder.path(), "x", Duration::from_secs(5)).await, Ok(false));
        assert!(identity.is_alive(), "a stranger is left alone");

        write(&pid_file(folder.path(), "x"), &identity).unwrap();
        assert_eq!(stop(folder.path(), "x", Duration::from_secs(5)).await, Ok(true));
        assert!(!identity.is_alive());
        child.wait().unwrap();
    }
}
