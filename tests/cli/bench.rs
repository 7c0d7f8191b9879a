//! A folder to work in, and the program in it.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use assert_cmd::cargo::cargo_bin;
use tempfile::TempDir;

/// A plan of every kind of step that needs nothing but this machine: two side by side, a
/// question, one that fails until `mended` is there, and `finally`.
pub const PLAN: &str = r#"
lifeboat: 1
plan: rehearsal
title: Rehearse a recovery
summary: Two looks side by side, a question, a change, and a cleaning up that always comes.
objectives: { rto: 30m, rpo: 24h }
owners:
  - { name: On-call engineer, contact: oncall@example.com }
vars:
  folder: scratch
steps:
  look:
    title: Look around
    exec: { argv: [echo, looked], effects: ["read file:{{ vars.folder }}"] }
  beside:
    needs: []
    exec: { argv: [echo, beside], effects: [] }
  agree:
    needs: [look, beside]
    approve: { message: "Change {{ vars.folder }}?", by: [ines, omar] }
  change:
    title: Change it
    timeout: 1m
    exec: { argv: [test, -f, mended], effects: ["change file:{{ vars.folder }}"] }
  greet:
    exec: { argv: [echo, done], effects: [] }
finally:
  tell:
    title: Say how it went
    exec: { argv: [echo, told], effects: [] }
"#;

/// A temporary folder with the program.
pub struct Bench {
    folder: TempDir,
}

impl Bench {
    /// With these files.
    pub fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Self { folder }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The program, sealed off from this shell's variables.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(cargo_bin("lifeboat"));
        command.args(arguments).current_dir(self.path()).stdin(Stdio::null());
        for name in ["LIFEBOAT_STATE", "LIFEBOAT_LOG", "NO_COLOR", "COLUMNS", "SUDO_USER"] {
            command.env_remove(name);
        }
        command.env("USER", "maria");
        command
    }

    /// Runs it to its end.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        Ran(self.command(arguments).output().unwrap())
    }

    /// Runs it, and insists on the exit code.
    pub fn ends(&self, exit: i32, arguments: &[&str]) -> Ran {
        let ran = self.run(arguments);
        assert_eq!(ran.code(), Some(exit), "lifeboat {}\n{}", arguments.join(" "), ran.all());
        ran
    }

    /// Starts it and doesn't wait.
    pub fn start(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Waits until `lifeboat status --format json` says so of a step.
    pub fn wait_for(&self, step: &str, state: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let ran = self.run(&["status", "--format", "json"]);
            if ran.code() == Some(0) {
                let evidence: serde_json::Value = serde_json::from_str(&ran.stdout()).unwrap();
                let steps = evidence["steps"].as_array().unwrap();
                if steps.iter().any(|other| other["id"] == step && other["state"] == state) {
                    return;
                }
            }
            assert!(Instant::now() < deadline, "`{step}` never was {state}: {}", ran.all());
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// The latest run's id.
    pub fn latest(&self) -> String {
        let runs: serde_json::Value =
            serde_json::from_str(&self.ends(0, &["runs", "--format", "json"]).stdout()).unwrap();
        runs[0]["run"].as_str().unwrap().to_owned()
    }
}

/// What a command did.
pub struct Ran(pub Output);

impl Ran {
    pub fn code(&self) -> Option<i32> {
        self.0.status.code()
    }

    pub fn stdout(&self) -> String {
        String::from_utf8(self.0.stdout.clone()).unwrap()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8(self.0.stderr.clone()).unwrap()
    }

    pub fn all(&self) -> String {
        format!("exit {:?}\n--- stdout\n{}--- stderr\n{}", self.code(), self.stdout(), self.stderr())
    }

    /// The standard output with what differs from run to run masked.
    pub fn page(&self) -> String {
        masked(&self.stdout())
    }
}

/// Masks run ids, times, durations, digests, and who ran it where.
pub fn masked(text: &str) -> String {
    let mut text = text.to_owned();
    for (pattern, with) in [
        (r"\d{8}-\d{6}-[a-z]{4}", "[run]"),
        (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?Z", "[time]"),
        (r"\b\d\d:\d\d:\d\dZ?", "[clock]"),
        (r"[0-9a-f]{64}", "[digest]"),
        (r"`[0-9a-f]{12}`", "`[digest]`"),
        (r"maria@[^\s,]+", "maria@[host]"),
        // With the blanks that align it: a column of durations is as wide as the longest.
        (r"(?m) +\b\d+(\.\d+)?m?s\b( +|$)", " [took] "),
        (r"\b\d+(\.\d+)?m?s\b", "[took]"),
        // Said from one second on, which a slow machine reaches.
        (r", \[took\] of it waiting\s+for\s+people", ""),
        (r"\nRecovery time does not count \[took\][^\n]*\n", ""),
        (r"(?m)^(  [✓✗▸↻?–■·]  \S+) +", "$1 "),
        // Said from a second on, which a slow machine reaches.
        (r",\s+\[took\] of it waiting for\s+people", ""),
        (r"Recovery time does not count \[took\][^\n]*\n\n", ""),
        (r"(?m) +$", ""),
    ] {
        text = regex::Regex::new(pattern).unwrap().replace_all(&text, with).into_owned();
    }
    text
}
