//! A mail server that lives as long as its test: own folder, own port, loopback only.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lifeboat::service::Target;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

use crate::support::Harness;

/// How connections are protected.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    None,
    Start,
    Whole,
}

pub struct Mail {
    pub folder: tempfile::TempDir,
    pub port: u16,
    tls: Tls,
    login: Option<&'static str>,
    child: Option<Child>,
}

impl Mail {
    pub fn start() -> Self {
        Self::with(Tls::None, None)
    }

    /// With TLS by an authority of its own (`ca.pem`), and a name and password to log in with.
    pub fn with(tls: Tls, login: Option<&'static str>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut mail = Self { folder, port: crate::support::ports::free_port(), tls, login, child: None };
        mail.certificates();
        mail.up();
        mail
    }

    fn certificates(&self) {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned()];
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
        std::fs::write(self.file("ca.pem"), authority.pem()).unwrap();
        std::fs::write(self.file("cert.pem"), certificate.pem()).unwrap();
        std::fs::write(self.file("key.pem"), key.serialize_pem()).unwrap();
    }

    pub fn up(&mut self) {
        let mut command = Command::new("aiosmtpd");
        command.args(["-n", "-c", "policy.Policy", "-l", &format!("127.0.0.1:{}", self.port)]);
        let files = match self.tls {
            Tls::None => None,
            Tls::Start => Some(["--tlscert", "--tlskey"]),
            Tls::Whole => Some(["--smtpscert", "--smtpskey"]),
        };
        for (option, file) in files.into_iter().flatten().zip(["cert.pem", "key.pem"]) {
            command.arg(option).arg(self.file(file));
        }
        command.arg(self.file("mail")).env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mail_steps"));
        command.env("PYTHONDONTWRITEBYTECODE", "1").envs(self.login.map(|login| ("LOGIN", login)));
        let log = std::fs::File::create(self.file("log")).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().expect("aiosmtpd, from Debian's package python3-aiosmtpd"));
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let log = std::fs::read_to_string(self.file("log")).unwrap();
            assert!(Instant::now() < deadline, "aiosmtpd did not come up: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn down(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What it kept, oldest first.
    pub fn kept(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.file("mail/new")) else { return vec![] };
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort_by_key(|file| std::fs::metadata(file).unwrap().modified().unwrap());
        files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect()
    }

    /// Whom it kept mail for.
    pub fn recipients(&self) -> Vec<String> {
        let mut all: Vec<String> = self.kept().iter().map(|mail| header(mail, "X-RcptTo")).collect();
        all.sort();
        all
    }

    /// The target's settings, but for what is given besides.
    pub fn settings(&self, scheme: &str, more: Value) -> Value {
        let url = format!("{scheme}localhost:{}", self.port);
        let mut settings = json!({ "url": url, "from": "Lifeboat <lifeboat@sandbox.test>" });
        for (name, value) in more.as_object().unwrap() {
            settings[name] = value.clone();
        }
        settings
    }

    /// A harness with this server as `mail`.
    pub fn harness(&self) -> Harness {
        harness(self.settings("smtp://", json!({})))
    }
}

impl Drop for Mail {
    fn drop(&mut self) {
        self.down();
    }
}

pub fn harness(settings: Value) -> Harness {
    Harness::with([("mail", Target::Smtp(serde_json::from_value(settings).unwrap()))])
}

/// A header of a mail, unfolded.
pub fn header(mail: &str, name: &str) -> String {
    let head = mail.split("\n\n").next().unwrap().replace("\n ", " ");
    let line = head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
    line.unwrap_or_else(|| panic!("no {name} in {mail}")).to_owned()
}
