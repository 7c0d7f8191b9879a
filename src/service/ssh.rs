//! A host that is reached by SSH: OpenSSH's own client, so that keys, agents, jump hosts and
//! `~/.ssh/config` work as they do for people.
//!
//! Knows nothing of steps. The far side first says that it is ready, and waits to be told to go
//! on: when the connection fails before that, nothing was started for sure. Variables go
//! through its input, so that they are in no process's arguments, here or there.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shlex::try_quote;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::ChildStdout;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::process::{self, Captured, Command, Finished, Log};
use super::{Services, Target};
use crate::failure::Failure;
use crate::secret::Redactor;

/// What the far side says when it is ready. What was said before is of its login, and dropped.
const READY: &str = "lifeboat: ready\n";

/// What it is told then.
const GO: &str = "go\n";

/// The bound on logging in, until it is ready.
const LOGIN: Duration = Duration::from_mins(1);

/// The client's exit code when it is the connection that failed.
const BROKEN: i32 = 255;

/// The far side's exit codes when a look found no such program, or folder.
const NO_PROGRAM: i32 = 3;

/// Said to every connection: nothing is asked of people, unknown hosts are refused, a dead
/// connection is seen within a minute, and what `~/.ssh/config` adds for people stays out.
const OPTIONS: [&str; 11] = [
    "-T",
    "-oBatchMode=yes",
    "-oStrictHostKeyChecking=yes",
    "-oUpdateHostKeys=no",
    "-oConnectTimeout=15",
    "-oServerAliveInterval=15",
    "-oServerAliveCountMax=4",
    "-oLogLevel=ERROR",
    "-oClearAllForwardings=yes",
    "-oPermitLocalCommand=no",
    "-oRemoteCommand=none",
];

/// A host that is reached by SSH.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SshSettings {
    /// As `host` or `host:22`, or a `Host` of `~/.ssh/config`.
    pub host: String,
    /// The user to log in as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The private key's file; by default the agent's keys and those in `~/.ssh`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<String>,
    /// The file of known hosts; by default `~/.ssh/known_hosts` and the system's. An unknown host is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_hosts: Option<String>,
    /// Lifeboat itself starts a throwaway SSH server at `host`, on loopback, for this machine's user, and makes the keys.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sandbox: bool,
}

/// A target of kind `ssh`. Nothing is connected until something is run.
pub struct Host {
    settings: SshSettings,
    name: String,
    port: Option<u16>,
    redactor: Redactor,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Host({})", self.place())
    }
}

/// A command for the far side.
#[derive(Clone, Default)]
pub struct Remote {
    /// Program and arguments, run without a shell; or else `shell` is.
    pub argv: Vec<String>,
    /// A script for `/bin/sh`.
    pub shell: Option<String>,
    /// Variables, the place for what is secret. The names must be a shell's.
    pub env: Vec<(String, String)>,
    /// The folder it runs in; the user's home if not said.
    pub cwd: Option<String>,
    /// Its input.
    pub stdin: Option<String>,
}

impl fmt::Debug for Remote {
    /// All of it may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remote")
    }
}

/// How a command on the far side went.
#[derive(Debug)]
pub enum Went {
    /// It was not started, for sure.
    NotStarted(Failure),
    /// It ended.
    Ended(Finished),
    /// It was started; then the connection broke, or it was killed, or ended with 255 itself: in the client's words.
    Broken(Finished),
    /// `cancel` was triggered: the connection is closed, and it may go on there.
    Cancelled,
}

impl Services {
    /// The host that a target names. Nothing is contacted yet.
    ///
    /// # Errors
    /// When there is no such target of that kind, its settings don't fit, or there is no SSH client.
    pub fn ssh(&self, target: &str) -> Result<Host, Failure> {
        let Target::Ssh(settings) = self.target(target)? else {
            return Err(self.wrong_kind(target, "ssh"));
        };
        let in_target = |failure: Failure| failure.context(format!("target {target}"));
        let (name, port) = host_and_port(&settings.host).map_err(in_target)?;
        for file in [&settings.key_file, &settings.known_hosts].into_iter().flatten() {
            // The client knows what `~` is.
            if !file.starts_with('~') && !Path::new(file).is_file() {
                return Err(in_target(Failure::permanent(format!("there is no file {file}"))));
            }
        }
        if process::find_program("ssh", None).is_none() {
            let help = "install OpenSSH's client (Debian: openssh-client)";
            return Err(in_target(Failure::permanent("there is no program `ssh` on the PATH").help(help)));
        }
        Ok(Host { settings: settings.clone(), name, port, redactor: self.redactor().clone() })
    }
}

fn host_and_port(text: &str) -> Result<(String, Option<u16>), Failure> {
    let wrong =
        || Failure::permanent(format!("`{text}` is no host")).help("write `host` or `host:22`, and the user apart");
    let (name, port) = match text.rsplit_once(':') {
        // An IPv6 address, without a port unless it stands in brackets.
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => (name, Some(port)),
        _ => (text, None),
    };
    let port = port.map(|port| port.parse::<u16>().map_err(|_| wrong())).transpose()?;
    let name = name.trim_start_matches('[').trim_end_matches(']');
    // The client would take `-x` for an option.
    if name.is_empty() || name.starts_with('-') || name.contains(|c: char| c.is_whitespace() || "@/".contains(c)) {
        return Err(wrong());
    }
    Ok((name.to_owned(), port))
}

impl Host {
    /// `user@host:port`, as far as the settings say.
    pub fn place(&self) -> String {
        let user = self.settings.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        format!("{user}{}{port}", self.name)
    }

    /// Logs in and runs a command. `marks` are variables of the client as well, by which it
    /// can be found again.
    ///
    /// # Errors
    /// When the client can't be started, or the command can't be written down for the far side.
    pub async fn run(
        &self,
        remote: &Remote,
        marks: &[(&str, String)],
        log: Log<'_>,
        cancel: &CancellationToken,
    ) -> Result<Went, Failure> {
        let (line, input) = remote.written(marks).map_err(|failure| failure.context(self.place()))?;
        let command = self.client().arg(line);
        let command = marks.iter().fold(command, |command, (name, value)| command.env(*name, value));
        tracing::debug!(ssh = self.place(), ?remote, "run a command");
        let mut process = command.start(true, &self.redactor)?;
        let (Some(mut stdin), Some(mut stdout)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(Failure::permanent("the client's input or output is missing"));
        };
        let ready = tokio::select! {
            ready = timeout(LOGIN, until_ready(&mut stdout)) => ready,
            () = cancel.cancelled() => {
                process.stop().await;
                let message = format!("log in to {}: it was cancelled", self.place());
                return Ok(Went::NotStarted(Failure::transient(message)));
            }
        };
        let first = match ready {
            Ok(Ok(first)) => first,
            Ok(Err(said)) => {
                drop((stdin, stdout));
                let finished = process.wait(cancel).await?;
                return Ok(Went::NotStarted(self.refused(&finished, &said)));
            }
            Err(_) => {
                process.stop().await;
                let message = format!("log in to {}: it was not ready within a minute", self.place());
                return Ok(Went::NotStarted(Failure::transient(message)));
            }
        };
        let mut kept = Captured::beginning();
        let mut masked = self.redactor.stream();
        let mut take = |piece: &[u8]| {
            kept.push(piece);
            say(log, &masked.push(piece));
        };
        let feed = async {
            // It need not read all of its input: a broken pipe is its own business.
            let _ = stdin.write_all(&input).await;
            drop(stdin);
        };
        let read = async {
            take(&first);
            let mut buffer = vec![0; 8 * 1024];
            while let Ok(length @ 1..) = stdout.read(&mut buffer).await {
                take(&buffer[..length]);
            }
        };
        let is_cut_off = tokio::select! {
            _ = async { tokio::join!(feed, read) } => false,
            () = cancel.cancelled() => true,
        };
        say(log, &masked.finish());
        if is_cut_off {
            process.stop().await;
            return Ok(Went::Cancelled);
        }
        let mut finished = match process.wait(cancel).await {
            Ok(finished) => finished,
            Err(_) if cancel.is_cancelled() => return Ok(Went::Cancelled),
            Err(failure) => return Err(failure),
        };
        finished.stdout = kept;
        say(log, &self.redactor.redact(&finished.stderr.text()));
        Ok(match finished.exit.code() {
            Some(code) if code != BROKEN => Went::Ended(finished),
            _ => Went::Broken(finished),
        })
    }

    /// Logs in, and looks for the folder and the program, changing nothing. Whether the program is there.
    ///
    /// # Errors
    /// When it can't log in, or there is no such folder.
    pub async fn probe(
        &self,
        program: Option<&str>,
        cwd: Option<&str>,
        cancel: &CancellationToken,
    ) -> Result<bool, Failure> {
        let script = match program.map(quoted).transpose()? {
            Some(program) => format!("command -v {program} >/dev/null 2>&1 || exit {NO_PROGRAM}"),
            None => "true".to_owned(),
        };
        let look = Remote { shell: Some(script), cwd: cwd.map(str::to_owned), ..Remote::default() };
        match self.run(&look, &[], &|_| (), cancel).await? {
            Went::NotStarted(failure) => Err(failure),
            Went::Ended(finished) => Ok(finished.exit.code() != Some(NO_PROGRAM)),
            Went::Broken(_) | Went::Cancelled => {
                Err(Failure::transient(format!("look at {}: the connection was closed", self.place())))
            }
        }
    }

    fn client(&self) -> Command {
        let mut command = Command::new("ssh").args(OPTIONS);
        if let Some(port) = self.port {
            command = command.arg(format!("-p{port}"));
        }
        if let Some(user) = &self.settings.user {
            command = command.arg(format!("-l{user}"));
        }
        if let Some(file) = &self.settings.key_file {
            // None of an agent's many keys, of which the host would refuse the sixth.
            command = command.arg(format!("-i{file}")).arg("-oIdentitiesOnly=yes");
        }
        if let Some(file) = &self.settings.known_hosts {
            command = command.arg(format!("-oUserKnownHostsFile=\"{file}\"")).arg("-oGlobalKnownHostsFile=none");
        }
        command.arg("--").arg(&self.name)
    }

    /// Why nothing was started, by what the client said.
    fn refused(&self, finished: &Finished, stdout: &Captured) -> Failure {
        if finished.exit.code().is_some_and(|code| code != BROKEN) {
            let said = [&finished.stderr, stdout].map(|stream| stream.last_lines(3, &self.redactor));
            let message = format!(
                "{} did not run the command it was given ({}): {}",
                self.place(),
                finished.exit,
                said.join("\n").trim()
            );
            return Failure::permanent(message)
                .help("the user needs a login shell like sh, and a key without a forced command");
        }
        let whole = finished.stderr.text();
        let said = finished.stderr.last_lines(3, &self.redactor);
        let place = self.place();
        let known_hosts = self.settings.known_hosts.as_deref().unwrap_or("~/.ssh/known_hosts");
        let (port, named) = match self.port {
            Some(port) if port != 22 => (format!("-p {port} "), format!("[{}]:{port}", self.name)),
            _ => (String::new(), self.name.clone()),
        };
        if whole.contains("HOST IDENTIFICATION HAS CHANGED") {
            return Failure::permanent(format!("{place} shows another host key than the one that is known")).help(
                format!(
                    "unless it was set up anew, somebody else answers there; if it was, forget the old one with \
                 `ssh-keygen -f {known_hosts} -R '{named}'` and add the new one"
                ),
            );
        }
        if whole.contains("Host key verification failed") || whole.contains("host key is known") {
            return Failure::permanent(format!("the host key of {place} is not known")).help(format!(
                "compare what `ssh-keyscan {port}{}` prints with the host's own, and add it to {known_hosts}",
                self.name
            ));
        }
        if whole.contains("Permission denied (") {
            return Failure::permanent(format!("log in to {place}: {said}")).help(
                "check the target's `user` and `key_file`, and the user's authorized_keys on the host; a key with a \
                 passphrase needs an agent",
            );
        }
        if whole.contains("Could not resolve hostname") {
            let failure = if whole.contains("Temporary failure") { Failure::transient } else { Failure::permanent };
            return failure(format!("connect to {place}: {said}")).help("check the target's `host`");
        }
        if whole.contains("cd: ") {
            return Failure::permanent(format!("{place}: {said}")).help("check `cwd`, or make the folder before");
        }
        let said = if said.is_empty() { finished.exit.to_string() } else { said };
        Failure::transient(format!("connect to {place}: {said}")).help(format!(
            "check that the host is up and that its SSH server answers on port {}",
            self.port.unwrap_or(22)
        ))
    }
}

impl Remote {
    /// As a line for the far side's login shell, and what is written to its input once it is ready.
    fn written(&self, marks: &[(&str, String)]) -> Result<(String, Vec<u8>), Failure> {
        let mut script = Vec::new();
        if let Some(folder) = &self.cwd {
            script.push(format!("cd {} || exit {BROKEN}", quoted(folder)?));
        }
        for (name, value) in marks {
            script.push(format!("export {name}={}", quoted(value)?));
        }
        script.push(format!("echo {}", quoted(READY.trim_end())?));
        script.push(format!("read -r lifeboat_go && [ \"$lifeboat_go\" = {} ] || exit {BROKEN}", GO.trim_end()));
        let mut input = GO.to_owned();
        if !self.env.is_empty() {
            let exports = self.env.iter().map(|(name, value)| Ok(format!("export {name}={}\n", quoted(value)?)));
            let mut exports = exports.collect::<Result<String, Failure>>()?;
            // Without it the input broke off, and variables may be missing.
            exports.push_str("lifeboat_whole=1\n");
            script.push(format!("eval \"$(dd bs=1 count={} 2>/dev/null)\"", exports.len()));
            script.push(format!("[ \"$lifeboat_whole\" ] || exit {BROKEN}"));
            input.push_str(&exports);
        }
        input.push_str(self.stdin.as_deref().unwrap_or_default());
        script.push(if let Some(shell) = &self.shell {
            format!("exec /bin/sh -c {}", quoted(shell)?)
        } else {
            let words = self.argv.iter().map(|word| quoted(word)).collect::<Result<Vec<_>, _>>()?;
            format!("exec {}", words.join(" "))
        });
        Ok((format!("exec /bin/sh -c {}", quoted(&script.join("\n"))?), input.into_bytes()))
    }
}

/// Reads until the far side is ready; gives back what came after that in the same piece, or
/// else all that was said instead.
async fn until_ready(stdout: &mut ChildStdout) -> Result<Vec<u8>, Captured> {
    let (mut said, mut buffer) = (Vec::new(), vec![0; 8 * 1024]);
    loop {
        let length = stdout.read(&mut buffer).await.unwrap_or(0);
        said.extend_from_slice(&buffer[..length]);
        if let Some(at) = memchr::memmem::find(&said, READY.as_bytes()) {
            return Ok(said.split_off(at + READY.len()));
        }
        if length == 0 || said.len() > process::CAPTURE {
            let mut kept = Captured::end();
            kept.push(&said);
            return Err(kept);
        }
    }
}

fn say(log: Log<'_>, text: &str) {
    if !text.is_empty() {
        log(text);
    }
}

fn quoted(text: &str) -> Result<String, Failure> {
    let nul = |_| Failure::permanent("a text with a zero byte can't be handed to a shell");
    Ok(try_quote(text).map_err(nul)?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_with_and_without_a_port() {
        let read = |text: &str| host_and_port(text).unwrap();
        assert_eq!(read("db1"), ("db1".to_owned(), None));
        assert_eq!(read("db1:2222"), ("db1".to_owned(), Some(2222)));
        assert_eq!(read("::1"), ("::1".to_owned(), None));
        assert_eq!(read("[::1]:22"), ("::1".to_owned(), Some(22)));
        for bad in ["", "-oProxyCommand=x", "a b", "root@db1", "db1:ssh", "ssh://db1"] {
            assert!(host_and_port(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn values_are_in_the_input_and_never_in_the_line() {
        let remote = Remote {
            argv: vec!["echo".to_owned(), "it's".to_owned()],
            env: vec![("PASSWORD".to_owned(), "correct horse".to_owned())],
            stdin: Some("rest".to_owned()),
            ..Remote::default()
        };
        let (line, stdin) = remote.written(&[]).unwrap();
        assert!(!line.contains("horse") && line.starts_with("exec /bin/sh -c "), "{line}");
        assert!(String::from_utf8(stdin).unwrap().ends_with("lifeboat_whole=1\nrest"));
    }
}
