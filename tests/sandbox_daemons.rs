//! A sandbox's name, mail, SSH and S3 servers: real ones, that a plan uses and `down` removes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what went wrong by panicking"
)]

#[path = "support/ports.rs"]
mod ports;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::json;

const PLAN: &str = "lifeboat: 1\nplan: move\ntargets: { dns: dns, mail: smtp }\nsteps:\n\
    \x20 move:\n    dns.update: { target: dns, name: auth.sandbox.test, type: A, values: [ 127.0.0.2 ] }\n\
    \x20 look:\n    dns.check: { target: dns, name: auth.sandbox.test, expect: 127.0.0.2 }\n\
    \x20 tell:\n    notify:\n      target: mail\n      to: [ sven@example.com ]\n\
    \x20     message: \"it was {{ steps.move.previous }}\"\n";

const COPY: &str = "lifeboat: 1\nplan: copy\ntargets: { here: storage, there: storage, host: ssh }\nsteps:\n\
    \x20 copy:\n    storage.copy:\n      from: { storage: here, path: keys.csv }\n\
    \x20     to: { storage: there, path: keys.csv }\n\
    \x20 look:\n    storage.verify: { target: there, path: keys.csv }\n\
    \x20 ask:\n    ssh.exec: { target: host, argv: [ test, -d, / ], effects: [] }\n";

/// The folder of a project with a sandbox, taken down also when the test fails.
struct Project(tempfile::TempDir);

impl Project {
    fn new() -> Self {
        let project = Self(tempfile::tempdir().unwrap());
        let [dns, mail, objects, ssh] = std::array::from_fn(|_| ports::free_port());
        let tsig = json!({ "name": "lifeboat", "secret": "Zm9yIHRoZSBzYW5kYm94LCBubyBzZWNyZXQgYXQgYWxs" });
        // JSON is YAML.
        let environment = json!({ "lifeboat": 1, "environment": "it", "targets": {
            "dns": { "dns": {
                "server": format!("127.0.0.1:{dns}"), "zone": "sandbox.test", "tsig": tsig, "sandbox": true,
            } },
            "mail": { "smtp": {
                "url": format!("smtp://127.0.0.1:{mail}"), "from": "lifeboat@sandbox.test", "sandbox": true,
            } },
            "here": { "storage": { "scheme": "fs", "root": project.path("here") } },
            "there": { "storage": {
                "scheme": "s3", "bucket": "offsite", "endpoint": format!("http://127.0.0.1:{objects}"),
                "access_key_id": "any", "secret_access_key": "any", "sandbox": true,
            } },
            "host": { "ssh": { "host": format!("127.0.0.1:{ssh}"), "sandbox": true } },
        } });
        std::fs::create_dir_all(project.path("plans/environments")).unwrap();
        std::fs::write(project.path("plans/environments/it.yaml"), environment.to_string()).unwrap();
        std::fs::write(project.path("plans/move.yaml"), PLAN).unwrap();
        std::fs::write(project.path("plans/copy.yaml"), COPY).unwrap();
        std::fs::create_dir(project.path("here")).unwrap();
        std::fs::write(project.path("here/keys.csv"), "id\n1\n").unwrap();
        project
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command.args(args).args(["--env", "it"]).current_dir(self.0.path()).env("NO_COLOR", "1");
        command.env_remove("LIFEBOAT_STATE");
        // moto is where `.ci/just` installed it.
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}/target/venv/bin:{path}", env!("CARGO_MANIFEST_DIR")));
        command
    }

    fn good(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", said(&output));
        said(&output)
    }

    fn mails(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(".lifeboat/sandboxes/it/mail/new")) else { return vec![] };
        entries.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap()).collect()
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        let _ = self.command(&["sandbox", "down"]).output();
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_plan_points_a_name_elsewhere_and_tells_people() {
    let project = Project::new();
    let up = project.good(&["sandbox", "up"]);
    assert!(
        up.contains("a name server") && up.contains("zone sandbox.test") && up.contains("a mail server"),
        "{up}"
    );
    let doctor = project.good(&["doctor"]);
    assert!(doctor.contains("named") && doctor.contains("aiosmtpd"), "{doctor}");

    let dry = project.good(&["run", "plans/move.yaml", "--dry-run"]);
    assert!(dry.contains("A auth.sandbox.test: 127.0.0.1 → 127.0.0.2"), "{dry}");
    assert!(project.mails().is_empty());
    project.good(&["run", "plans/move.yaml"]);
    let mails = project.mails();
    assert_eq!(mails.len(), 1);
    assert!(mails[0].contains("127.0.0.1") && mails[0].contains("X-RcptTo: sven@example.com"), "{}", mails[0]);

    // What the plan made of it survives a restart.
    project.good(&["sandbox", "stop", "dns"]);
    assert!(project.good(&["sandbox", "status"]).contains("stopped"));
    project.good(&["sandbox", "start", "dns"]);
    let dry = project.good(&["run", "plans/move.yaml", "--dry-run"]);
    assert!(dry.contains("127.0.0.2 already"), "{dry}");

    project.good(&["sandbox", "down"]);
    assert!(!project.path(".lifeboat/sandboxes").exists());
}

#[test]
fn a_plan_copies_to_a_bucket_and_asks_a_host() {
    let project = Project::new();
    let up = project.good(&["sandbox", "up"]);
    assert!(up.contains("an S3 server") && up.contains("an SSH server"), "{up}");
    let doctor = project.good(&["doctor"]);
    assert!(doctor.contains("moto_server") && doctor.contains("sshd"), "{doctor}");
    project.good(&["run", "plans/copy.yaml"]);
    // It is there, and the same.
    project.good(&["run", "plans/copy.yaml"]);
    project.good(&["sandbox", "down"]);
    assert!(!project.path(".lifeboat/sandboxes").exists());
}

#[test]
fn what_is_not_installed_is_left_out_and_said() {
    let project = Project::new();
    // On this PATH there is no aiosmtpd.
    let elsewhere = |args: &[&str]| project.command(args).env("PATH", "/nowhere").output().unwrap();
    let up = elsewhere(&["sandbox", "up"]);
    assert!(
        up.status.success() && said(&up).contains("mail is left out: a mail server is not installed"),
        "{}",
        said(&up)
    );
    assert!(said(&up).contains("a name server"), "{}", said(&up));
    let doctor = elsewhere(&["doctor"]);
    assert!(!doctor.status.success() && said(&doctor).contains("aiosmtpd is not installed"), "{}", said(&doctor));
    assert!(Path::new("/usr/sbin/named").exists(), "it is found where it is on nobody's PATH");
}

#[test]
fn without_an_engine_nothing_is_made_and_down_misses_none() {
    let project = Project::new();
    let docker = json!({ "docker": { "host": "unix:///nowhere/docker.sock", "sandbox": { "images": "none" } } });
    let environment = json!({ "lifeboat": 1, "environment": "it", "targets": { "docker": docker } });
    std::fs::write(project.path("plans/environments/it.yaml"), environment.to_string()).unwrap();
    let up = project.command(&["sandbox", "up"]).output().unwrap();
    assert!(!up.status.success() && said(&up).contains("there is no socket"), "{}", said(&up));
    project.good(&["sandbox", "down"]);
    assert!(!project.path(".lifeboat/sandboxes").exists());
}
