//! A journal that can't be gone on with: what every command says of it, and that nothing is run or changed.

use std::path::PathBuf;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::bench::Bench;

/// One step done, one that waits for a person, one to come.
const PLAN: &str = r#"
lifeboat: 1
plan: kept
steps:
  first:
    exec: { argv: [sh, -c, "echo x >> ran"], effects: ["change file:ran"], idempotent: true }
    undo: { exec: { argv: [sh, -c, "echo back >> ran"], effects: ["change file:ran"] } }
  agree:
    approve: { message: "Go on?" }
  last:
    exec: { argv: [sh, -c, "echo y >> ran"], effects: ["change file:ran"], idempotent: true }
"#;

/// A run that waits, and its journal's lines.
struct Kept {
    bench: Bench,
    run: String,
    lines: Vec<Value>,
}

impl Kept {
    fn new() -> Self {
        let bench = Bench::new(&[("plan.yaml", PLAN)]);
        bench.ends(4, &["run", "plan.yaml"]);
        Self::of(bench)
    }

    fn of(bench: Bench) -> Self {
        let run = bench.latest();
        let mut kept = Self { bench, run, lines: Vec::new() };
        let text = std::fs::read_to_string(kept.journal()).unwrap();
        kept.lines = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        kept
    }

    fn journal(&self) -> PathBuf {
        self.bench.path().join(".lifeboat/runs").join(&self.run).join("journal.jsonl")
    }

    /// Writes the records as a version that has them so would: the chain holds.
    fn write(&self) {
        let mut prev = "0".repeat(64);
        let mut text = String::new();
        for (number, line) in self.lines.iter().enumerate() {
            let mut line = line.clone();
            (line["seq"], line["prev"]) = (number.into(), prev.into());
            let line = line.to_string();
            prev = data_encoding::HEXLOWER.encode(&Sha256::digest(line.as_bytes()));
            text.push_str(&line);
            text.push('\n');
        }
        std::fs::write(self.journal(), text).unwrap();
    }

    fn commands(&self) -> [(&'static str, Vec<&str>); 7] {
        [
            ("resume", vec!["resume", &self.run]),
            ("undo", vec!["undo", &self.run]),
            ("status", vec!["status", &self.run]),
            ("approve", vec!["approve", &self.run, "agree"]),
            ("cancel", vec!["cancel", &self.run]),
            ("audit", vec!["audit", &self.run]),
            ("report", vec!["report", &self.run]),
        ]
    }

    /// Every command fails with these words, and leaves all as it was.
    fn all_refuse(&self, words: &[&str]) {
        let before = std::fs::read(self.journal()).unwrap();
        for (name, arguments) in self.commands() {
            let ran = self.bench.run(&arguments);
            let said = flat(&ran.all());
            assert!(!matches!(ran.code(), None | Some(0 | 4)), "{name}: {said}");
            for word in words {
                assert!(said.contains(word), "{name}: `{word}` in {said}");
            }
            assert_eq!(std::fs::read(self.journal()).unwrap(), before, "{name}");
            assert_eq!(self.ran(), "x\n", "{name}");
        }
    }

    fn ran(&self) -> String {
        std::fs::read_to_string(self.bench.path().join("ran")).unwrap()
    }
}

fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_journal_of_a_newer_format_is_refused() {
    let mut kept = Kept::new();
    kept.lines[0]["event"]["format"] = 99.into();
    kept.write();
    kept.all_refuse(&["journal format 99", "this version reads up to 1", "the version of Lifeboat that wrote it"]);
}

#[test]
fn an_event_of_a_newer_version_is_refused_as_such() {
    let mut kept = Kept::new();
    let mut later = kept.lines[2].clone();
    later["event"] = serde_json::json!({ "type": "step_foretold", "step": "first" });
    kept.lines.insert(3, later);
    kept.write();
    kept.all_refuse(&[
        "record 3",
        "what this version does not know (step_foretold)",
        "a later version of Lifeboat",
    ]);
}

#[test]
fn a_run_of_a_newer_walker_is_read_and_not_gone_on_with() {
    let mut kept = Kept::new();
    kept.lines[0]["event"]["walker"] = 99.into();
    kept.write();
    for command in ["resume", "undo"] {
        let said = kept.bench.run(&[command, &kept.run]);
        assert!(!matches!(said.code(), None | Some(0 | 4)), "{}", said.all());
        assert!(flat(&said.all()).contains("walked by a later engine (walker 99"), "{}", said.all());
    }
    for command in ["status", "audit", "report"] {
        kept.bench.ends(0, &[command, &kept.run]);
    }
    // An answer is no step: the later version takes it in.
    kept.bench.ends(0, &["approve", &kept.run, "agree", "--by", "ines"]);
    assert_eq!(kept.ran(), "x\n");
}

#[test]
fn a_damaged_record_is_refused_by_its_number() {
    let kept = Kept::new();
    kept.write();
    let text = std::fs::read_to_string(kept.journal()).unwrap();
    std::fs::write(kept.journal(), text.replacen("\"attempt\":1", "\"attempt\":2", 1)).unwrap();
    let number = kept.lines.iter().position(|line| line["event"]["attempt"] == 1).unwrap();
    kept.all_refuse(&[&format!("record {number} is damaged"), "backup"]);
    // What is no record at all, in the middle.
    let cut = text.lines().enumerate().map(|(at, line)| if at == 2 { &line[..line.len() / 2] } else { line });
    std::fs::write(kept.journal(), cut.map(|line| format!("{line}\n")).collect::<Vec<_>>().concat()).unwrap();
    kept.all_refuse(&["record 2 is damaged"]);
}

#[test]
fn a_torn_last_line_is_said_and_gone_on_after() {
    for first in ["resume", "approve", "cancel", "adjust"] {
        let kept = Kept::new();
        let mut text = std::fs::read_to_string(kept.journal()).unwrap();
        let torn = "{\"seq\":99,\"at\":\"2026-";
        text.push_str(torn);
        std::fs::write(kept.journal(), text).unwrap();
        let lost = format!("torn ({} bytes, never acknowledged)", torn.len());
        for command in ["status", "report"] {
            let said = flat(&kept.bench.ends(0, &[command, &kept.run]).stdout());
            assert!(said.contains(&lost) && said.contains("nothing came of it"), "{command}: {said}");
        }
        let audit = flat(&kept.bench.ends(0, &["audit", &kept.run]).stdout());
        assert!(audit.contains(&format!("{} bytes was cut off", torn.len())), "{audit}");
        match first {
            "resume" => kept.bench.ends(4, &["resume", &kept.run]),
            "approve" => kept.bench.ends(0, &["approve", &kept.run, "agree", "--by", "ines"]),
            "cancel" => kept.bench.ends(0, &["cancel", &kept.run]),
            _ => kept.bench.ends(0, &["adjust", &kept.run, "last", "--timeout", "1m", "--because", "slow"]),
        };
        // Whoever cut it off said so for good.
        let report = flat(&kept.bench.ends(0, &["report", &kept.run]).stdout());
        assert!(report.contains(&lost) && report.contains("and dropped"), "{first}: {report}");
        kept.bench.ends(0, &["audit", &kept.run]);
    }
}

#[test]
fn a_run_whose_machine_was_started_anew_says_so() {
    let sleeps = "lifeboat: 1\nplan: sleeps\nsteps:\n  gate:\n    \
                  exec: { argv: [sh, -c, 'while [ -e $PWD ]; do sleep 0.05; done'], effects: [] }\n";
    let bench = Bench::new(&[("plan.yaml", sleeps)]);
    let mut child = bench.start(&["run", "plan.yaml"]);
    bench.wait_for("gate", "running");
    child.kill().unwrap();
    child.wait().unwrap();
    let mut kept = Kept::of(bench);
    let words = format!("this machine was started anew since maria@{}", host());
    let said = flat(&kept.bench.ends(0, &["status"]).stdout());
    assert!(!said.contains("started anew"), "{said}");
    kept.lines[0]["event"]["by"]["boot"] = "another".into();
    kept.write();
    let said = flat(&kept.bench.ends(0, &["status"]).stdout());
    assert!(said.contains(&words), "{said}");
}

fn host() -> String {
    nix::unistd::gethostname().unwrap().into_string().unwrap()
}
