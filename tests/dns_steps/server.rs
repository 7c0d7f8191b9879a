//! BIND that lives as long as its test: own folder, own port, loopback only, no privileges.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lifeboat::service::Target;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use serde_json::{Value, json};

use crate::support::Harness;

/// The key that may change the zone.
pub const SECRET: &str = "bGlmZWJvYXQgdGVzdHMgYW5kIG5vYm9keSBlbHNlISE=";

/// What the zone holds at first. `old` was written in times of long TTLs.
const ZONE: &str = "$ORIGIN sandbox.test.\n$TTL 60\n\
    @ SOA ns1 hostmaster 1 3600 600 86400 60\n@ NS ns1\n@ NS ns2\n@ MX 10 mail\n\
    ns1 A 127.0.0.1\nns2 A 127.0.0.77\nauth A 127.0.0.1\nold 86400 A 127.0.0.1\nwww CNAME auth\n\
    pair A 127.0.0.1\npair A 127.0.0.2\nlocked A 127.0.0.1\nsub NS elsewhere.test.\n";

pub struct Named {
    folder: tempfile::TempDir,
    pub port: u16,
    child: Option<Child>,
}

impl Named {
    /// `config`: its zone, as it stands in the settings.
    fn start(port: u16, config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "options {{ directory \"{0}\"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};\n\
             pid-file none; session-keyfile none; recursion no; dnssec-validation no; notify explicit; }};\n\
             controls {{}};\nkey \"lifeboat.\" {{ algorithm hmac-sha256; secret \"{SECRET}\"; }};\n\
             zone \"sandbox.test\" {{ {config} }};\n",
            folder.path().display()
        );
        std::fs::write(folder.path().join("named.conf"), text).unwrap();
        std::fs::write(folder.path().join("zone"), ZONE).unwrap();
        // Where AppArmor confines BIND to its own folders, a copy in this one isn't.
        std::fs::copy("/usr/sbin/named", folder.path().join("named")).expect("named, from Debian's package bind9");
        let mut named = Self { folder, port, child: None };
        named.up();
        named
    }

    pub fn up(&mut self) {
        let mut command = Command::new(self.file("named"));
        command.args(["-g", "-n", "1", "-c"]).arg(self.file("named.conf"));
        let log = std::fs::File::create(self.file("log")).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        if geteuid().is_root() {
            let nobody = User::from_name("nobody").unwrap().unwrap();
            let (uid, gid) = (nobody.uid.as_raw(), nobody.gid.as_raw());
            for entry in [self.folder.path().to_owned(), self.file("zone"), self.file("named")] {
                std::os::unix::fs::chown(entry, Some(uid), Some(gid)).unwrap();
            }
            command.uid(uid).gid(gid);
        }
        self.child = Some(command.spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.log().contains(" all zones loaded\n") {
            assert!(Instant::now() < deadline, "named did not come up: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn down(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// It neither runs nor ends.
    pub fn freeze(&self, frozen: bool) {
        let signal = if frozen { Signal::SIGSTOP } else { Signal::SIGCONT };
        let pid = self.child.as_ref().unwrap().id();
        kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What it answers, by BIND's own client: `60 127.0.0.1`, sorted.
    pub fn dig(&self, name: &str, kind: &str) -> Vec<String> {
        let port = self.port.to_string();
        let output = Command::new("dig")
            .args(["@127.0.0.1", "-p", &port, "+tcp", "+norecurse", "+noall", "+answer", name, kind])
            .output()
            .expect("dig, from Debian's package bind9-dnsutils");
        let text = String::from_utf8(output.stdout).unwrap();
        let mut answers: Vec<String> = text
            .lines()
            .filter(|line| !line.starts_with(';') && !line.is_empty())
            .map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                format!("{} {}", words[1], words[4..].join(" "))
            })
            .collect();
        answers.sort();
        answers
    }

    /// Changes a record as somebody else would.
    pub fn nsupdate(&self, lines: &str) {
        let script = format!("server 127.0.0.1 {}\nkey hmac-sha256:lifeboat {SECRET}\n{lines}\nsend\n", self.port);
        let mut child = Command::new("nsupdate").stdin(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), script.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        self.down();
    }
}

/// A primary, and a secondary that follows it.
pub struct Zone {
    pub primary: Named,
    pub secondary: Named,
}

impl Zone {
    /// The secondary is told of changes at once.
    pub fn start() -> Self {
        Self::with(true)
    }

    /// `told`: whether the secondary hears of changes before it asks by itself, which it does in an hour.
    pub fn with(told: bool) -> Self {
        // Each is named in the other's settings.
        let ports = [crate::support::ports::free_port(), crate::support::ports::free_port()];
        let notify =
            if told { format!("also-notify {{ 127.0.0.1 port {}; }};", ports[1]) } else { "notify no;".into() };
        let first = Named::start(
            ports[0],
            &format!(
                "type primary; file \"zone\"; {notify} notify-delay 0; allow-transfer {{ key lifeboat.; }};\n\
                 update-policy {{ deny lifeboat. name locked.sandbox.test. A; grant lifeboat. zonesub ANY; }};"
            ),
        );
        let primaries = format!("primaries port {} {{ 127.0.0.1 key lifeboat.; }};", ports[0]);
        let second = Named::start(ports[1], &format!("type secondary; file \"copy\"; {primaries}"));
        let zone = Self { primary: first, secondary: second };
        let deadline = Instant::now() + Duration::from_secs(20);
        while zone.secondary.dig("auth.sandbox.test", "A").is_empty() {
            assert!(Instant::now() < deadline, "no transfer: {}", zone.secondary.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        zone
    }

    /// The target's settings, but for what is given besides.
    pub fn settings(&self, more: Value) -> Value {
        let mut settings = json!({
            "server": self.primary.address(),
            "zone": "sandbox.test",
            "servers": [self.primary.address(), self.secondary.address()],
            "tsig": { "name": "lifeboat", "secret": SECRET },
        });
        for (name, value) in more.as_object().unwrap() {
            settings[name] = value.clone();
        }
        settings
    }

    /// A harness with this zone as `dns`.
    pub fn harness(&self) -> Harness {
        harness(self.settings(json!({})))
    }
}

pub fn harness(settings: Value) -> Harness {
    Harness::with([("dns", Target::Dns(serde_json::from_value(settings).unwrap()))])
}
