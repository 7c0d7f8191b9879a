//! A throwaway PostgreSQL cluster: made, started, stopped and removed by its folder.
//!
//! The folder's `cluster.json` is written before anything else is made, so that a process
//! killed at any moment leaves nothing that [`Cluster::down`] doesn't find. Servers refuse
//! to run as root: then the cluster belongs to another user, and lies where that user can
//! reach it. Knows nothing of environments or of other throwaway services.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{Uid, User, geteuid};

pub(crate) mod server;

use super::PostgresSandbox;
use super::postgres::tool;
use crate::failure::Failure;
use crate::secret::Secret;
use server::{State, finish, succeeded, write_private};

/// How often another free port is tried.
const PORTS_TRIED: usize = 5;

/// A throwaway cluster, known by the folder that its state is kept in.
#[derive(Clone, Debug)]
pub struct Cluster {
    folder: PathBuf,
}

impl Cluster {
    /// The cluster of that folder, made or not.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Its superuser's URL, when the cluster was made.
    pub fn url(&self) -> Option<Secret> {
        let state = self.state().ok().flatten()?;
        // Nothing in the password needs escaping.
        Some(Secret::new(format!(
            "postgres://postgres:{}@127.0.0.1:{}/postgres?sslmode=disable",
            state.password, state.port
        )))
    }

    /// `127.0.0.1:port`, when the cluster was made.
    pub fn address(&self) -> Option<String> {
        self.state().ok().flatten().map(|state| match state.standby {
            Some(standby) => format!("127.0.0.1:{}, its standby at 127.0.0.1:{standby}", state.port),
            None => format!("127.0.0.1:{}", state.port),
        })
    }

    /// Whether its server runs, and its standby's where it has one.
    pub fn is_up(&self) -> bool {
        self.state().ok().flatten().is_some_and(|state| state.all_up())
    }

    /// Where it archives its WAL when it was made to: a link to where its server can write.
    pub fn archive(&self) -> PathBuf {
        self.folder.join("archive")
    }

    /// Makes the cluster if need be and starts its server; one that runs is left as it is.
    ///
    /// # Errors
    /// When the server's programs are missing, or it doesn't start: with what it logged.
    pub async fn up(&self, settings: &PostgresSandbox) -> Result<(), Failure> {
        let _lock = self.lock().await?;
        let made = match self.state()? {
            Some(state) if state.all_up() => return Ok(()),
            Some(state) if state.is_up() => return self.start_standby(&state).await,
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
        self.start(state, settings.port.is_none()).await?;
        match self.state()? {
            Some(state) => self.start_standby(&state).await,
            None => Ok(()),
        }
    }

    /// Makes the standby if need be, and starts it.
    async fn start_standby(&self, state: &State) -> Result<(), Failure> {
        let Some(standby) = state.standby() else { return Ok(()) };
        if standby.is_up() {
            return Ok(());
        }
        // Written at the copy's end.
        if !standby.is_followed() {
            standby.follow(state).await?;
        }
        self.start(standby, false).await
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
            Some(state) => stop_all(&state).await,
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
            stop_all(&state).await?;
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
        // A link may stand alone on the PATH; the other programs are where it leads.
        let program = fs::canonicalize(&initdb.path).map_err(cannot("find", &initdb.path))?;
        let state = State {
            home,
            bin_dir: program.parent().unwrap_or(Path::new("/")).to_owned(),
            port: settings.port.map_or_else(free_port, Ok)?,
            password: password(settings)?,
            standby: settings.standby,
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
        if settings.archive {
            let link = self.archive();
            std::os::unix::fs::symlink(state.archive(), &link).map_err(cannot("link", &link))?;
        }
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
        let link = self.archive();
        if link.is_symlink() {
            fs::remove_file(&link).map_err(cannot("remove", &link))?;
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

/// The standby first, so that it doesn't miss its primary.
async fn stop_all(state: &State) -> Result<(), Failure> {
    if let Some(standby) = state.standby() {
        standby.stop().await?;
    }
    state.stop().await
}

/// Whom the server runs as when this process is root's, as servers refuse to be: `postgres`, else `nobody`.
pub(crate) fn server_user() -> Result<Option<String>, Failure> {
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

/// A port on 127.0.0.1 that nobody listens on, below those that the kernel hands to outgoing
/// connections (`ip_local_port_range`): one of these could be taken again before it is used.
///
/// # Errors
/// When no port can be listened on.
pub fn free_port() -> Result<u16, Failure> {
    let mut refused = None;
    for _ in 0..100 {
        let port = rand::random_range(15_000..32_000);
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => return Ok(port),
            Err(error) => refused = Some(error),
        }
    }
    let why = refused.map_or_else(String::new, |error| format!(": {error}"));
    Err(Failure::permanent(format!("find a free port on 127.0.0.1{why}")))
}

fn password(settings: &PostgresSandbox) -> Result<String, Failure> {
    match &settings.password {
        None => Ok(random_text(32)),
        Some(own) if !own.is_empty() && own.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') => {
            Ok(own.clone())
        }
        Some(_) => Err(Failure::permanent("a sandbox's password has letters, digits and `-` only")),
    }
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
            standby: None,
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
