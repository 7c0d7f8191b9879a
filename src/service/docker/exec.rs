//! Commands inside a container.
//!
//! The engine gives a command an id before it is started, and knows afterwards what
//! became of it. It can't end one.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use futures::{Stream, StreamExt};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{Engine, Error, status};
use crate::failure::Failure;
use crate::kill;
use crate::service::process::{Captured, Exit, Finished, Log};

/// How often the engine is asked whether a command that says nothing still runs.
const EVERY: Duration = Duration::from_millis(500);

/// A process in the background may keep the streams open after the command's end; it is not waited for longer.
const DRAIN: Duration = Duration::from_secs(1);

/// A command to be run inside a container.
#[derive(Clone)]
pub struct Inside {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables, as `NAME=value`: the place for what is secret.
    pub env: Vec<String>,
    /// The user it runs as; the container's if not said.
    pub user: Option<String>,
    /// The folder it runs in; the container's if not said.
    pub cwd: Option<String>,
}

impl fmt::Debug for Inside {
    /// Arguments and variables may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Inside({})", self.argv.first().map_or("", String::as_str))
    }
}

/// What became of a command inside a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Became {
    /// The engine knows nothing of it (any more).
    Unknown,
    /// It was never started.
    NotStarted,
    /// It runs.
    Running,
    /// It ended with that exit code.
    Ended(i64),
}

impl Engine {
    /// Announces a command to the engine, which doesn't start it yet; gives back the id it gets.
    ///
    /// # Errors
    /// When the engine can't be asked or refuses.
    pub async fn prepare(&self, container: &str, command: Inside) -> Result<String, Failure> {
        tracing::debug!(docker = self.target, container, ?command, "prepare a command");
        let options = CreateExecOptions {
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(command.argv),
            env: Some(command.env),
            user: command.user,
            working_dir: command.cwd,
            ..CreateExecOptions::default()
        };
        kill::around("docker create exec", self.docker.create_exec(container, options))
            .await
            .map(|made| made.id)
            .map_err(|error| self.failure(&error))
    }

    /// What became of a command.
    ///
    /// # Errors
    /// When the engine can't be asked.
    pub async fn became(&self, command: &str) -> Result<Became, Failure> {
        match self.docker.inspect_exec(command).await {
            Ok(found) => Ok(match (found.running, found.exit_code) {
                (Some(true), _) => Became::Running,
                (_, Some(code)) => Became::Ended(code),
                (_, None) => Became::NotStarted,
            }),
            Err(error) if status(&error) == Some(404) => Ok(Became::Unknown),
            Err(error) => Err(self.failure(&error)),
        }
    }

    /// Starts a command and stays with it to its end, both outputs kept and logged, secrets
    /// masked. Gives nothing back when `cancel` was triggered: then it may still run.
    ///
    /// # Errors
    /// When the engine can't be asked, or can't start it.
    pub async fn execute(
        &self,
        command: &str,
        log: Log<'_>,
        cancel: &CancellationToken,
    ) -> Result<Option<Finished>, Failure> {
        let started = tokio::select! {
            started = kill::around("docker start exec", self.docker.start_exec(command, None::<StartExecOptions>)) => started,
            () = cancel.cancelled() => return Ok(None),
        };
        match started.map_err(|error| self.failure(&error))? {
            StartExecResults::Attached { output, .. } => self.attend(command, output, log, cancel).await,
            StartExecResults::Detached => Err(Failure::permanent(format!("{} let go of it", self.target))),
        }
    }

    async fn attend(
        &self,
        command: &str,
        mut output: Pin<Box<dyn Stream<Item = Result<LogOutput, Error>> + Send>>,
        log: Log<'_>,
        cancel: &CancellationToken,
    ) -> Result<Option<Finished>, Failure> {
        let (mut stdout, mut stderr) = (Captured::beginning(), Captured::end());
        let (mut masked_out, mut masked_err) = (self.redactor.stream(), self.redactor.stream());
        let (mut open, mut ended) = (true, None::<(i64, Instant)>);
        let say = |text: String| {
            if !text.is_empty() {
                log(&text);
            }
        };
        let code = loop {
            tokio::select! {
                piece = output.next(), if open => match piece {
                    Some(Ok(LogOutput::StdErr { message })) => {
                        stderr.push(&message);
                        say(masked_err.push(&message));
                    }
                    Some(Ok(LogOutput::StdOut { message } | LogOutput::Console { message })) => {
                        stdout.push(&message);
                        say(masked_out.push(&message));
                    }
                    Some(Ok(LogOutput::StdIn { .. })) => {}
                    // What the engine then says of the command tells the rest.
                    Some(Err(_)) | None => open = false,
                },
                // Asked at once when the streams end: nearly always it has ended then.
                () = sleep(if open { EVERY } else { Duration::from_millis(10) }), if ended.is_none() => {
                    match self.became(command).await? {
                        Became::Ended(code) => ended = Some((code, Instant::now())),
                        Became::Running => {
                            if !open {
                                sleep(EVERY / 5).await;
                            }
                        }
                        Became::Unknown | Became::NotStarted => {
                            return Err(Failure::transient(format!("{} lost sight of it", self.target)));
                        }
                    }
                }
                () = sleep_until(ended.map_or_else(Instant::now, |(_, at)| at + DRAIN)), if ended.is_some() && open => {
                    log("[a process left in the background holds the output open; not waiting for it]\n");
                    open = false;
                }
                () = cancel.cancelled() => return Ok(None),
            }
            kill::point("docker exec: goes on");
            if let Some((code, _)) = ended
                && !open
            {
                break code;
            }
        };
        say(masked_out.finish());
        say(masked_err.finish());
        let exit = Exit::with_code(i32::try_from(code).unwrap_or(-1));
        Ok(Some(Finished { exit, stdout, stderr }))
    }
}
