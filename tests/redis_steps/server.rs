//! A Redis server that lives as long as its test: own folder, own port, loopback only.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lifeboat::service::redis::RedisSettings;
use lifeboat::service::{StorageSettings, Target};
use serde_json::json;

use crate::support::Harness;

pub struct Redis {
    pub folder: tempfile::TempDir,
    pub port: u16,
    /// Further settings, as `redis-server` takes them.
    pub options: Vec<String>,
    child: Option<Child>,
}

impl Redis {
    pub fn start(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut redis = Self { folder, port: crate::support::ports::free_port(), options, child: None };
        redis.up();
        redis
    }

    /// The program and its arguments.
    pub fn argv(&self) -> Vec<String> {
        let folder = self.folder.path().to_str().unwrap();
        let port = self.port.to_string();
        let mut argv: Vec<String> =
            ["redis-server", "--bind", "127.0.0.1", "--port", &port, "--dir", folder, "--save", ""]
                .iter()
                .map(|arg| (*arg).to_owned())
                .collect();
        argv.extend(["--logfile".to_owned(), format!("{folder}/log")]);
        argv.extend(self.options.iter().cloned());
        argv
    }

    pub fn up(&mut self) {
        let argv = self.argv();
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(command.spawn().expect("redis-server, from Debian's package of that name"));
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < deadline, "redis-server did not come up: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills what the test itself started.
    pub fn down(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        } else {
            // A daemon by now.
            let _ = Command::new("redis-cli").args(self.stop_argv().iter().skip(1)).output();
        }
    }

    /// Stops the child and starts a daemon in its place: what a service manager would do.
    pub fn hand_over(&mut self) {
        run(&self.stop_argv());
        if let Some(mut child) = self.child.take() {
            child.wait().unwrap();
        }
        run(&self.daemon_argv());
        self.wait_up();
    }

    pub fn stop_argv(&self) -> Vec<String> {
        ["redis-cli", "-p", &self.port.to_string(), "shutdown"].iter().map(|arg| (*arg).to_owned()).collect()
    }

    pub fn daemon_argv(&self) -> Vec<String> {
        let mut argv = self.argv();
        argv.extend(["--daemonize".to_owned(), "yes".to_owned()]);
        argv
    }

    /// Waits until it answers, its data loaded.
    pub fn wait_up(&self) {
        self.wait("up", |answers| answers);
    }

    pub fn wait_down(&self) {
        self.wait("down", |answers| !answers);
    }

    fn wait(&self, what: &str, wanted: impl Fn(bool) -> bool) {
        let answers = || {
            let mut connection = redis::Client::open(self.url()).ok()?.get_connection().ok()?;
            redis::cmd("PING").query::<String>(&mut connection).ok()
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !wanted(answers().is_some()) {
            assert!(Instant::now() < deadline, "never {what}: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The names in its folder.
    pub fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    /// Runs a command as a client of the server would.
    pub fn ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let mut connection = redis::Client::open(self.url()).unwrap().get_connection().unwrap();
        redis::cmd(command[0]).arg(&command[1..]).query(&mut connection).unwrap()
    }

    /// Makes that many keys, by number.
    pub fn fill(&self, keys: u32) {
        let script = "for i = 1, tonumber(ARGV[1]) do redis.call('SET', 'key:' .. i, string.rep('x', 50)) end";
        self.ask::<()>(&["EVAL", script, "0", &keys.to_string()]);
    }

    /// A harness with this server as `cache` and a folder of it as `store`.
    pub fn harness(&self) -> Harness {
        std::fs::create_dir_all(self.file("store")).unwrap();
        Harness::with([("cache", target(&self.url())), ("store", store(self.file("store").to_str().unwrap()))])
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.down();
    }
}

pub fn target(url: &str) -> Target {
    Target::Redis(RedisSettings { url: url.to_owned(), ca_file: None, sandbox: false })
}

pub fn store(root: &str) -> Target {
    let settings: StorageSettings = serde_json::from_value(json!({ "scheme": "fs", "root": root })).unwrap();
    Target::Storage(settings)
}

/// Runs a command to its end, which must be good.
pub fn run(argv: &[String]) {
    let output = Command::new(&argv[0]).args(&argv[1..]).output().unwrap();
    assert!(output.status.success(), "{argv:?}: {output:?}");
}
