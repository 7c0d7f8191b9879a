//! A PostgreSQL server of a test's own: one that may be killed, or whose whole a plan may change.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A program of the test server's version.
pub fn tool(name: &str) -> PathBuf {
    Path::new(&std::env::var("LIFEBOAT_TEST_POSTGRES_BIN").expect("LIFEBOAT_TEST_POSTGRES_BIN")).join(name)
}

/// Who runs it, if this is root: PostgreSQL refuses to be run by that one.
fn user() -> Option<nix::unistd::User> {
    let root = nix::unistd::geteuid().is_root();
    root.then(|| nix::unistd::User::from_name("postgres").unwrap().expect("a user postgres"))
}

/// A server that asks its superuser for a password, gone with the test.
pub struct Server {
    folder: tempfile::TempDir,
    port: u16,
    pub password: String,
}

impl Server {
    /// A server that runs.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let port = super::ports::free_port();
        let password = super::unique("password");
        let server = Self { folder, port, password };
        let file = server.path("password");
        std::fs::write(&file, &server.password).unwrap();
        std::fs::create_dir(server.path("data")).unwrap();
        if let Some(user) = user() {
            nix::unistd::chown(Path::new(&server.path("data")), Some(user.uid), Some(user.gid)).unwrap();
        }
        let login = ["-A", "scram-sha-256", "-U", "postgres", "--pwfile", &file];
        server.call("initdb", &[&login[..], &["--no-sync"]].concat());
        server.start();
        server
    }

    fn path(&self, below: &str) -> String {
        self.folder.path().join(below).to_str().unwrap().to_owned()
    }

    /// A program that is told the server's folder.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(tool(program));
        command.args(["-D", &self.path("data")]).current_dir("/");
        if let Some(user) = user() {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        // A server would keep what it inherits open.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn call(&self, program: &str, arguments: &[&str]) {
        let status = self.command(program).args(arguments).status();
        assert!(status.unwrap().success(), "{program} {arguments:?}");
    }

    /// Starts it again.
    pub fn start(&self) {
        let options = format!("-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''", self.port);
        self.call("pg_ctl", &["-o", &options, "-l", &self.path("data/log"), "-w", "start"]);
    }

    /// As if its machine had lost power: nothing is written any more.
    pub fn die(&self) {
        self.call("pg_ctl", &["-m", "immediate", "-w", "stop"]);
    }

    /// The superuser's URL of a database.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres:{}@127.0.0.1:{}/{database}", self.password, self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.command("pg_ctl").args(["-m", "immediate", "stop"]).status());
    }
}
