//! A PostgreSQL server of a test's own: one that may be killed, or whose whole a plan may change.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A program of the test server's version.
pub fn tool(name: &str) -> PathBuf {
    Path::new(&std::env::var("LIFEBOAT_TEST_POSTGRES_BIN").expect("LIFEBOAT_TEST_POSTGRES_BIN")).join(name)
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
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let password = super::unique("password");
        let server = Self { folder, port, password };
        let file = server.path("password");
        std::fs::write(&file, &server.password).unwrap();
        // PostgreSQL refuses to be run by root.
        let made =
            Command::new("install").args(["-d", "-o", "postgres", "-m", "700", &server.path("data")]).status();
        assert!(made.unwrap().success());
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
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(tool(program)).args(["-D", &self.path("data")]).current_dir("/");
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
