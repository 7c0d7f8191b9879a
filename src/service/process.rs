//! Child processes: started without a shell, in a process group of their own, ended for real.
//!
//! A child sees a short list of this process's variables and what was declared for it,
//! never the rest: that is where an operator's credentials live. When a command is
//! cancelled or its future is dropped, the whole group goes, grandchildren too.
//! Knows nothing of steps: words go to a plain function, secrets through the redactor.

mod captured;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

pub use captured::Captured;
use captured::Keep;
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{AccessFlags, Pid, access};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::kill;
use crate::secret::Redactor;

/// What a child inherits of this process's environment, besides `LC_*`.
pub const INHERITED: [&str; 10] =
    ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "SSH_AUTH_SOCK"];

/// How much of each stream is kept: of stdout the beginning, of stderr the end.
pub const CAPTURE: usize = 1 << 20;

/// How much a program may write ahead of whoever reads it: what any user may ask of Linux.
#[cfg(target_os = "linux")]
const PIPE: i32 = 1 << 20;

/// A background process may keep the pipes open after its parent's end; it is not waited for longer.
const DRAIN: Duration = Duration::from_secs(1);

/// Takes text that is safe to show, as it comes.
pub type Log<'a> = &'a (dyn Fn(&str) + Send + Sync);

/// A command: program, arguments, environment, folder.
#[derive(Clone)]
pub struct Command {
    program: String,
    args: Vec<OsString>,
    env: Vec<(String, OsString)>,
    cwd: Option<PathBuf>,
    grace: Duration,
}

impl fmt::Debug for Command {
    /// Arguments and variables may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Command({})", self.program)
    }
}

impl Command {
    /// A program by path, or by name to be found on the `PATH`.
    pub fn new(program: impl Into<String>) -> Self {
        let grace = Duration::from_secs(5);
        Self { program: program.into(), args: vec![], env: vec![], cwd: None, grace }
    }

    /// A script for `/bin/sh`.
    pub fn shell(script: &str) -> Self {
        Self::new("/bin/sh").arg("-c").arg(script)
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable: the place for a secret that the program needs.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Sets the folder it runs in.
    #[must_use]
    pub fn cwd(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cwd = Some(folder.into());
        self
    }

    /// How long it has between SIGTERM and SIGKILL when it is cancelled; 5 seconds if not said.
    #[must_use]
    pub const fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Runs it to its end, with `stdin` given and both outputs kept (see [`CAPTURE`]) and
    /// logged, secrets masked. An exit code other than 0 is no failure here.
    ///
    /// # Errors
    /// When it can't be started, or `cancel` was triggered: then nothing of it is left running.
    pub async fn run(
        &self,
        stdin: Option<&[u8]>,
        redactor: &Redactor,
        log: Log<'_>,
        cancel: &CancellationToken,
    ) -> Result<Finished, Failure> {
        let input = if stdin.is_some() { Stdio::piped() } else { Stdio::null() };
        let (mut child, mut group) = self.spawn(input)?;
        let (pipe_in, pipe_out, pipe_err) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let mut stdout = Captured::new(Keep::Beginning);
        let mut stderr = Captured::new(Keep::End);
        let mut open = true;
        let exit = {
            let talk = async {
                let feed = async {
                    if let (Some(mut pipe), Some(bytes)) = (pipe_in, stdin) {
                        // A program need not read all of its input: a broken pipe is its own business.
                        let _ = pipe.write_all(bytes).await;
                    }
                };
                tokio::join!(
                    feed,
                    drain(pipe_out, &mut stdout, redactor, log),
                    drain(pipe_err, &mut stderr, redactor, log)
                );
            };
            tokio::pin!(talk);
            let status = loop {
                tokio::select! {
                    () = &mut talk, if open => open = false,
                    status = child.wait() => break status,
                    () = cancel.cancelled() => {
                        let last_words = async { if open { let _ = timeout(self.grace + DRAIN, &mut talk).await; } };
                        tokio::join!(group.end(&mut child, self.grace), last_words);
                        return Err(self.cancelled());
                    }
                }
            };
            kill::point("process: ended");
            group.disarm();
            if open {
                open = timeout(DRAIN, &mut talk).await.is_err();
            }
            Exit(status.map_err(|error| self.lost(&error))?)
        };
        if open {
            log("[a process left in the background holds the output open; not waiting for it]\n");
        }
        Ok(Finished { exit, stdout, stderr })
    }

    /// Starts it for streaming: with `piped_in` its input is [`Process::stdin`]; its output
    /// is [`Process::stdout`], to be read by the caller. What it writes to stderr is kept
    /// (the end of it) and comes with [`Process::wait`].
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(&self, piped_in: bool, redactor: &Redactor) -> Result<Process, Failure> {
        let input = if piped_in { Stdio::piped() } else { Stdio::null() };
        let (mut child, group) = self.spawn(input)?;
        let (stdin, stdout, pipe_err) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        if let Some(pipe) = &stdout {
            // Fewer turns between the two; as it was where that isn't allowed.
            #[cfg(target_os = "linux")]
            let _ = nix::fcntl::fcntl(pipe, nix::fcntl::FcntlArg::F_SETPIPE_SZ(PIPE));
        }
        let redactor = redactor.clone();
        // A full stderr would block the child while the caller reads its stdout, so it has a task of its own.
        let stderr = tokio::spawn(async move {
            let mut captured = Captured::new(Keep::End);
            drain(pipe_err, &mut captured, &redactor, &|_| ()).await;
            captured
        });
        Ok(Process { group, child, stdin, stdout, stderr, command: self.clone() })
    }

    /// The group is dropped before the child, so that it is killed while the child is still there.
    fn spawn(&self, stdin: Stdio) -> Result<(Child, Group), Failure> {
        if let Some(folder) = &self.cwd
            && !folder.is_dir()
        {
            return Err(Failure::permanent(format!("run `{}`: no folder {}", self.program, folder.display())));
        }
        let mut command = std::process::Command::new(self.located()?);
        {
            use std::os::unix::process::CommandExt;
            command.arg0(&self.program).process_group(0);
        }
        command.args(&self.args).env_clear().envs(inherited());
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some(folder) = &self.cwd {
            command.current_dir(folder);
        }
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        kill::point("process: before its start");
        let child = tokio::process::Command::from(command).spawn().map_err(|error| self.not_started(&error))?;
        tracing::debug!(program = self.program, pid = child.id(), "started a process");
        // A child that was not yet waited for has an id.
        kill::point("process: started");
        let group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
        Ok((child, group))
    }

    /// The program as a path. With one, the standard library takes `posix_spawn`, which
    /// doesn't copy this process's page tables as `fork` does.
    fn located(&self) -> Result<PathBuf, Failure> {
        if self.program.contains('/') {
            return Ok(self.program.as_str().into());
        }
        let path = match self.env.iter().rev().find(|(name, _)| name == "PATH") {
            Some((_, path)) => Some(path.clone()),
            None => std::env::var_os("PATH"),
        };
        find_on(&self.program, path.as_deref()).ok_or_else(|| self.not_started(&ErrorKind::NotFound.into()))
    }

    fn not_started(&self, error: &std::io::Error) -> Failure {
        let attempted = format!("run `{}`", self.program);
        match error.kind() {
            ErrorKind::NotFound if self.program.contains('/') => {
                Failure::permanent("there is no such program, or the interpreter in its first line is missing")
                    .help("check the path, and that the host has it")
            }
            ErrorKind::NotFound => Failure::permanent("there is no such program on the PATH")
                .help("install it, or give its whole path"),
            ErrorKind::PermissionDenied => Failure::permanent("it may not be executed")
                .help("check that it is a program, and its mode and owner"),
            ErrorKind::ArgumentListTooLong => Failure::permanent("its arguments and variables are too long")
                .help("hand large values over by stdin"),
            ErrorKind::OutOfMemory | ErrorKind::WouldBlock | ErrorKind::ExecutableFileBusy => {
                Failure::transient(error.to_string())
            }
            // No descriptor left: passes when other steps end.
            _ if matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EMFILE | Errno::ENFILE)) => {
                Failure::transient(error.to_string())
                    .help("raise the limit of open files (ulimit -n), or lower --jobs")
            }
            _ => Failure::permanent(error.to_string()),
        }
        .context(attempted)
    }

    fn cancelled(&self) -> Failure {
        Failure::transient(format!("`{}` was cancelled; it and its children were stopped", self.program))
    }

    fn lost(&self, error: &std::io::Error) -> Failure {
        Failure::permanent(format!("wait for `{}`: {error}", self.program))
    }
}

/// Where a program is: a path that may be executed, or a name that the `PATH` knows.
pub fn find_program(program: &str, cwd: Option<&Path>) -> Option<PathBuf> {
    if program.contains('/') {
        let path = cwd.unwrap_or_else(|| Path::new("")).join(program);
        return is_program(&path).then_some(path);
    }
    find_on(program, std::env::var_os("PATH").as_deref())
}

fn find_on(program: &str, path: Option<&OsStr>) -> Option<PathBuf> {
    std::env::split_paths(path?).map(|folder| folder.join(program)).find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    path.is_file() && access(path, AccessFlags::X_OK).is_ok()
}

fn inherited() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os()
        .filter(|(name, _)| name.to_str().is_some_and(|name| INHERITED.contains(&name) || name.starts_with("LC_")))
}

/// A process that is streamed to or from. Dropping it kills its whole group.
#[derive(Debug)]
pub struct Process {
    // Dropped first, while the child is still there to be killed.
    group: Group,
    child: Child,
    /// Its input, if that was asked for. Drop it to end the input.
    pub stdin: Option<ChildStdin>,
    /// Its output.
    pub stdout: Option<ChildStdout>,
    stderr: JoinHandle<Captured>,
    command: Command,
}

impl Process {
    /// Closes what is left of input and output and waits for the end: exit and stderr.
    ///
    /// # Errors
    /// When `cancel` was triggered: then nothing of it is left running.
    pub async fn wait(mut self, cancel: &CancellationToken) -> Result<Finished, Failure> {
        drop((self.stdin.take(), self.stdout.take()));
        let status = tokio::select! {
            status = self.child.wait() => status.map_err(|error| self.command.lost(&error))?,
            () = cancel.cancelled() => {
                self.group.end(&mut self.child, self.command.grace).await;
                return Err(self.command.cancelled());
            }
        };
        kill::point("process: ended");
        self.group.disarm();
        let stderr = match timeout(DRAIN, &mut self.stderr).await {
            Ok(Ok(stderr)) => stderr,
            _ => Captured::new(Keep::End),
        };
        Ok(Finished { exit: Exit(status), stdout: Captured::new(Keep::Beginning), stderr })
    }

    /// Ends it and its children: SIGTERM, the grace period, SIGKILL.
    pub async fn stop(mut self) {
        drop((self.stdin.take(), self.stdout.take()));
        self.group.end(&mut self.child, self.command.grace).await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stderr.abort();
    }
}

/// A child's process group, killed when it is dropped before its end was seen.
#[derive(Debug)]
struct Group(Option<Pid>);

impl Group {
    /// The leader ended by itself: what it left in the background on purpose stays.
    const fn disarm(&mut self) {
        self.0 = None;
    }

    /// SIGTERM to all, then SIGKILL to those that are still there after `grace`. The
    /// leader is reaped; the kernel gives its id to nobody while the group has members.
    async fn end(&mut self, child: &mut Child, grace: Duration) {
        let Some(group) = self.0 else { return };
        let _ = killpg(group, Signal::SIGTERM);
        let deadline = Instant::now() + grace;
        let all_gone = async {
            let _ = child.wait().await;
            while killpg(group, None).is_ok() && Instant::now() < deadline {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let _ = tokio::time::timeout_at(deadline, all_gone).await;
        let _ = killpg(group, Signal::SIGKILL);
        let _ = child.wait().await;
        self.disarm();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// A process that came to its end.
#[derive(Debug)]
pub struct Finished {
    /// How.
    pub exit: Exit,
    /// What it wrote (nothing when the caller streamed it).
    pub stdout: Captured,
    /// What it complained.
    pub stderr: Captured,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit(ExitStatus);

impl Exit {
    /// The end of a process elsewhere, of which only the code is known.
    pub fn with_code(code: i32) -> Self {
        Self(ExitStatus::from_raw((code & 0xff) << 8))
    }

    /// Whether it exited with 0.
    pub fn success(self) -> bool {
        self.0.success()
    }

    /// Its exit code; none when a signal ended it.
    pub fn code(self) -> Option<i32> {
        self.0.code()
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.code(), self.0.signal()) {
            (Some(code), _) => write!(f, "exit code {code}"),
            (None, Some(signal)) => match Signal::try_from(signal) {
                Ok(signal) => write!(f, "killed by {signal}"),
                Err(_) => write!(f, "killed by signal {signal}"),
            },
            (None, None) => f.write_str("unknown end"),
        }
    }
}

async fn drain(pipe: Option<impl AsyncRead + Unpin>, into: &mut Captured, redactor: &Redactor, log: Log<'_>) {
    let Some(mut pipe) = pipe else { return };
    let mut masked = redactor.stream();
    let mut buffer = vec![0; 8 * 1024];
    // A pipe that can't be read is as good as closed: the exit tells the rest.
    while let Ok(length @ 1..) = pipe.read(&mut buffer).await {
        into.push(&buffer[..length]);
        say(log, &masked.push(&buffer[..length]));
    }
    say(log, &masked.finish());
}

fn say(log: Log<'_>, text: &str) {
    if !text.is_empty() {
        log(text);
    }
}

#[cfg(test)]
mod tests;
