//! A throwaway PostgreSQL cluster: made, started, stopped and removed by its folder.
//!
//! The folder's `cluster.json` is written before anything else is made, so that a process
//! killed at any moment leaves nothing that [`Cluster::down`] doesn't find. Servers refuse
//! to run as root: then the cluster belongs to another user, and lies where that user can
//! reach it. Knows nothing of environments or of other throwaway services.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::{Uid, User, geteuid};
use serde::{Deserialize, Serialize};

use super::PostgresSandbox;
use super::postgres::tool;
use crate::failure::Failure;
use crate::secret::Secret;

/// How long the server may take to start or to stop.
const WITHIN_SECONDS: u32 = 60;

/// How often another free port is tried.
const PORTS_TRIED: usize = 5;

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

/// A throwaway cluster, known by the folder that its state is kept in.
#[derive(Clone, Debug)]
pub struct Cluster {
    folder: PathBuf,
}

/// What `cluster.json` holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct State {
    /// Where data, log and socket are.
    home: PathBuf,
    /// The server's programs.
    bin_dir: PathBuf,
    port: u16,
    password: String,
    /// The user it runs as, when that is not the one who calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
}

impl Cluster {
    /// The cluster of that folder, made or not.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Its superuser's URL, when the cluster was made.
    pub fn url(&self) -> Option<Secret> {
        let state = self.state().ok().flatten()?;
        // The password is made of letters and digits: nothing in it needs escaping.
        Some(Secret::new(format!(
            "postgres://postgres:{}@127.0.0.1:{}/postgres?sslmode=disable",
            state.password, state.port
        )))
    }

    /// `127.0.0.1:port`, when the cluster was made.
    pub fn address(&self) -> Option<String> {
        self.state().ok().flatten().map(|state| format!("127.0.0.1:{}", state.port))
    }

    /// Whether its server runs.
    pub fn is_up(&self) -> bool {
        self.state().ok().flatten().is_some_and(|state| state.is_up())
    }

    /// Makes the cluster if need be and starts its server; one that runs is left as it is.
    ///
    /// # Errors
    /// When the server's programs are missing, or it doesn't start: with what it logged.
    pub async fn up(&self, settings: &PostgresSandbox) -> Result<(), Failure> {
        let _lock = self.lock().await?;
        let made = match self.state()? {
            Some(state) if state.is_up() => return Ok(()),
            Some(state) if state.data().join("PG_VERSION").is_file() && state.is_configured() => Some(state),
            // Left by a process that was killed while it made the cluster.
            Some(state) => {
                self.remove(&state)?;
                None
            }
            None => None,
        };
        let state = match made {
            Some(state) => state,
            None => self.make(settings).await?,
        };
        self.start(state, settings.port.is_none()).await
    }

    /// Stops its server and keeps its data. One that doesn't run is fine.
    ///
    /// # Errors
    /// When the server doesn't stop.
    pub async fn stop(&self) -> Result<(), Failure> {
        if !self.folder.exists() {
            return Ok(());
        }
        let _lock = self.lock().await?;
        match self.state()? {
            Some(state) => state.stop().await,
            None => Ok(()),
        }
    }

    /// Stops its server and removes everything. A cluster that was never made is fine.
    ///
    /// # Errors
    /// When the server doesn't stop, or something can't be removed.
    pub async fn down(&self) -> Result<(), Failure> {
        if !self.folder.exists() {
            return Ok(());
        }
        let lock = self.lock().await?;
        if let Some(state) = self.state()? {
            state.stop().await?;
            self.remove(&state)?;
        }
        let removed = fs::remove_file(self.lock_file()).and_then(|()| fs::remove_dir(&self.folder));
        drop(lock);
        match removed {
            // What others keep in the folder isn't ours to remove.
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => {
                Err(cannot("remove", &self.folder)(error))
            }
            _ => Ok(()),
        }
    }

    /// `initdb`, with a password and settings, in a place that the server's user can reach.
    async fn make(&self, settings: &PostgresSandbox) -> Result<State, Failure> {
        let initdb = match settings.version {
            // The PATH may know a newer one.
            Some(version) => {
                let folder = PathBuf::from(format!("/usr/lib/postgresql/{version}/bin"));
                match tool::find("initdb", Some(&folder), version).await {
                    Ok(initdb) => initdb,
                    Err(_) => tool::find("initdb", None, version).await?,
                }
            }
            None => tool::find("initdb", None, 0).await?,
        };
        if let Some(wanted) = settings.version
            && initdb.version.major != wanted
        {
            return Err(Failure::permanent(format!(
                "the sandbox wants PostgreSQL {wanted}, and the nearest that is installed is {}",
                initdb.version
            ))
            .help(format!("install it (Debian: `apt-get install postgresql-{wanted}`), or leave `version` out")));
        }
        let user = server_user()?;
        let home = match &user {
            None => self.folder.join("cluster"),
            Some(_) => Path::new("/var/tmp").join(format!("lifeboat-{}", random_text(12))),
        };
        let state = State {
            home,
            bin_dir: initdb.path.parent().unwrap_or(Path::new("/")).to_owned(),
            port: settings.port.map_or_else(free_port, Ok)?,
            password: random_text(32),
            user,
        };
        self.write(&state)?;
        let home = &state.home;
        // A folder of that name that is there already is somebody else's.
        fs::create_dir(home).map_err(cannot("create", home))?;
        fs::set_permissions(home, Permissions::from_mode(0o700)).map_err(cannot("close", home))?;
        state.give(home)?;
        let password_file = home.join("password");
        write_private(&password_file, &state.password)?;
        state.give(&password_file)?;
        let mut command = state.command("initdb");
        command
            .args(["--username=postgres", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"])
            .arg("--no-instructions")
            .arg(format!("--pwfile={}", password_file.display()))
            .arg(format!("--pgdata={}", state.data().display()));
        let output = finish(command, "initdb").await?;
        fs::remove_file(&password_file).map_err(cannot("remove", &password_file))?;
        succeeded(&output, "initdb", None)?;
        state.configure(settings)?;
        Ok(state)
    }

    /// Starts the server; on another port when the one that was free is taken meanwhile.
    async fn start(&self, mut state: State, any_port: bool) -> Result<(), Failure> {
        state.clear_after_a_crash().await?;
        for left in (0..PORTS_TRIED).rev() {
            let log = state.home.join("log");
            // The log of an earlier start says nothing about this one.
            let _ = fs::remove_file(&log);
            let mut command = state.pg_ctl("start");
            command.arg("--log").arg(&log).arg("--options").arg(format!("-p {}", state.port));
            let output = finish(command, "pg_ctl start").await?;
            let failure = match succeeded(&output, "start the sandbox's server", Some(&log)) {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, state.port)).is_err();
            if !taken || left == 0 {
                return Err(failure);
            }
            if !any_port {
                return Err(failure.help(format!("port {} is taken: free it, or leave `port` out", state.port)));
            }
            state.port = free_port()?;
            self.write(&state)?;
        }
        Ok(())
    }

    fn state_file(&self) -> PathBuf {
        self.folder.join("cluster.json")
    }

    fn lock_file(&self) -> PathBuf {
        self.folder.join("cluster.lock")
    }

    fn state(&self) -> Result<Option<State>, Failure> {
        let file = self.state_file();
        match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| {
                Failure::permanent(format!("{} can't be read: {error}", file.display()))
                    .help("see whether its server runs, stop it, and remove the file")
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(cannot("read", &file)(error)),
        }
    }

    /// Whole or not at all: whoever reads it while it is written sees the one before.
    fn write(&self, state: &State) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(state).map_err(|error| Failure::permanent(error.to_string()))?;
        let file = self.state_file();
        let draft = file.with_extension("json.new");
        write_private(&draft, &text)?;
        fs::rename(&draft, &file).map_err(cannot("write", &file))
    }

    fn remove(&self, state: &State) -> Result<(), Failure> {
        match fs::remove_dir_all(&state.home) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(cannot("remove", &state.home)(error));
            }
            _ => {}
        }
        // Last: until here another try finds what is left.
        let file = self.state_file();
        fs::remove_file(&file).map_err(cannot("remove", &file))
    }

    /// One process at a time makes or removes it. Ends with the process.
    async fn lock(&self) -> Result<File, Failure> {
        fs::create_dir_all(&self.folder).map_err(cannot("create", &self.folder))?;
        let path = self.lock_file();
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .map_err(cannot("open", &path))?;
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(fs::TryLockError::WouldBlock) => tokio::time::sleep(Duration::from_millis(100)).await,
                Err(fs::TryLockError::Error(error)) => return Err(cannot("lock", &path)(error)),
            }
        }
    }
}

impl State {
    fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    fn configuration(&self) -> PathBuf {
        self.data().join("postgresql.conf")
    }

    fn is_configured(&self) -> bool {
        fs::read_to_string(self.configuration()).is_ok_and(|text| text.contains(SETTINGS))
    }

    fn configure(&self, settings: &PostgresSandbox) -> Result<(), Failure> {
        let quoted = |text: &str| text.replace('\'', "''");
        let socket = self.home.display().to_string();
        let socket = if socket.len() < SOCKET_ROOM { socket } else { String::new() };
        let mut text = format!("\n{SETTINGS}unix_socket_directories = '{}'\n", quoted(&socket));
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
    fn is_up(&self) -> bool {
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
    async fn clear_after_a_crash(&self) -> Result<(), Failure> {
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

    async fn stop(&self) -> Result<(), Failure> {
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

    fn pg_ctl(&self, action: &str) -> std::process::Command {
        let mut command = self.command("pg_ctl");
        command.arg(action).arg("--pgdata").arg(self.data());
        command.args(["--wait", "--silent", "--timeout", &WITHIN_SECONDS.to_string()]);
        command
    }

    /// One of the server's programs, run as its user, free of what this process's terminal does.
    fn command(&self, program: &str) -> std::process::Command {
        let mut command = std::process::Command::new(self.bin_dir.join(program));
        command.current_dir(&self.home).env_clear().env("LC_ALL", "C").env("PATH", "/usr/bin:/bin");
        command.stdin(Stdio::null()).process_group(0);
        if let Some(user) = self.user() {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }

    /// Hands a file or folder to the server's user.
    fn give(&self, path: &Path) -> Result<(), Failure> {
        let Some(user) = self.user() else { return Ok(()) };
        chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).map_err(cannot("hand over", path))
    }

    fn user(&self) -> Option<User> {
        User::from_name(self.user.as_deref()?).ok().flatten()
    }
}

/// Whom the server runs as when this process is root's, as servers refuse to be: `postgres`, else `nobody`.
fn server_user() -> Result<Option<String>, Failure> {
    if geteuid() != Uid::from_raw(0) {
        return Ok(None);
    }
    let found = ["postgres", "nobody"].into_iter().find(|name| matches!(User::from_name(name), Ok(Some(_))));
    found.map(|name| Some(name.to_owned())).ok_or_else(|| {
        Failure::permanent(
            "a PostgreSQL server does not run as root, and there is neither a user postgres nor nobody",
        )
        .help("run Lifeboat as another user, or add one: `useradd --system postgres`")
    })
}

/// Runs a command to its end. What it leaves running (the server) has let go of the pipes.
async fn finish(mut command: std::process::Command, name: &str) -> Result<Output, Failure> {
    let failed = |error: io::Error| Failure::permanent(format!("run {name}: {error}"));
    // The server inherits pg_ctl's output; through a pipe it would never be closed.
    let mut said = tempfile::tempfile().map_err(failed)?;
    command.stdout(said.try_clone().map_err(failed)?).stderr(said.try_clone().map_err(failed)?);
    let status = tokio::process::Command::from(command).status().await.map_err(failed)?;
    let mut stderr = Vec::new();
    io::Seek::rewind(&mut said).and_then(|()| io::Read::read_to_end(&mut said, &mut stderr)).map_err(failed)?;
    Ok(Output { status, stdout: Vec::new(), stderr })
}

fn succeeded(output: &Output, attempted: &str, log: Option<&Path>) -> Result<(), Failure> {
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

fn write_private(path: &Path, text: &str) -> Result<(), Failure> {
    let open = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path);
    open.and_then(|mut file| file.write_all(text.as_bytes())).map_err(cannot("write", path))
}

fn free_port() -> Result<u16, Failure> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|error| Failure::permanent(format!("find a free port on 127.0.0.1: {error}")))
}

fn random_text(length: usize) -> String {
    const LETTERS: &[u8] = b"abcdefghijkmnpqrstuvwxyz23456789";
    (0..length).map(|_| char::from(LETTERS[rand::random_range(0..LETTERS.len())])).collect()
}

fn cannot<'a>(what: &'a str, path: &'a Path) -> impl Fn(io::Error) -> Failure + 'a {
    move |error| Failure::permanent(format!("{what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::secret::Redactor;
    use crate::service::{PostgresSettings, Services, Target};

    /// Takes the cluster down also when the test fails.
    struct Down(Cluster);

    impl Drop for Down {
        fn drop(&mut self) {
            let cluster = self.0.clone();
            let ending = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(cluster.down())
            });
            let _ = ending.join();
        }
    }

    async fn ask(cluster: &Cluster, sql: &str) -> Result<String, Failure> {
        let url = cluster.url().unwrap().expose().to_owned();
        let settings: PostgresSettings = serde_json::from_value(serde_json::json!({ "url": url })).unwrap();
        let targets = BTreeMap::from([("db".to_owned(), Target::Postgres(settings))]);
        let session = Services::new(targets, Redactor::default()).postgres("db")?.connect(None).await?;
        Ok(session.row("ask", sql, &[]).await?.get(0))
    }

    #[tokio::test]
    async fn a_cluster_comes_up_survives_its_maker_and_goes_without_a_trace() {
        let folder = tempfile::tempdir().unwrap();
        let cluster = Cluster::new(folder.path().join("db"));
        let _down = Down(cluster.clone());
        assert!(!cluster.is_up() && cluster.url().is_none());
        cluster.down().await.unwrap();
        let settings = PostgresSandbox {
            settings: BTreeMap::from([("work_mem".to_owned(), "9MB".to_owned())]),
            ..PostgresSandbox::default()
        };
        cluster.up(&settings).await.unwrap();
        let mode = fs::metadata(cluster.state_file()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "it holds the password");
        assert_eq!(ask(&cluster, "SHOW work_mem").await.unwrap(), "9MB");

        // Another process knows it by its folder, and starting it again changes nothing.
        let again = Cluster::new(folder.path().join("db"));
        again.up(&settings).await.unwrap();
        assert_eq!(again.address(), cluster.address());
        ask(&again, "SELECT set_config('lifeboat.x', '1', false)").await.unwrap();
        again.stop().await.unwrap();
        assert!(!again.is_up() && again.url().is_some());
        assert!(ask(&again, "SELECT 'x'").await.unwrap_err().transient);
        again.up(&settings).await.unwrap();
        assert_eq!(ask(&again, "SHOW password_encryption").await.unwrap(), "scram-sha-256");

        let state = again.state().unwrap().unwrap();
        // As after a power cut: a pid file and nobody.
        let pid = fs::read_to_string(state.data().join("postmaster.pid")).unwrap();
        let pid: i32 = pid.lines().next().unwrap().parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        while state.is_up() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        again.up(&settings).await.unwrap();
        again.down().await.unwrap();
        assert!(!state.home.exists() && !folder.path().join("db").exists() && !state.is_up());
    }

    #[tokio::test]
    async fn a_half_made_cluster_is_made_again_or_removed() {
        let folder = tempfile::tempdir().unwrap();
        let cluster = Cluster::new(folder.path());
        fs::create_dir(folder.path().join("half")).unwrap();
        let state = State {
            home: folder.path().join("half"),
            bin_dir: "/nowhere".into(),
            port: 1,
            password: "x".into(),
            user: None,
        };
        cluster.write(&state).unwrap();
        assert!(!cluster.is_up());
        cluster.down().await.unwrap();
        assert!(!state.home.exists() && cluster.url().is_none());
    }

    #[tokio::test]
    async fn a_version_that_is_not_installed_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let settings = PostgresSandbox { version: Some(99), ..PostgresSandbox::default() };
        let failure = Cluster::new(folder.path().join("x")).up(&settings).await.unwrap_err();
        assert!(failure.message.contains("99") && failure.help.is_some(), "{failure}");
    }
}
