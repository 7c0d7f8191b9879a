//! A clock that somebody sets, by hours, forward and back: under a live run, and between two processes.
//!
//! The programs see the clock through Debian's libfaketime, which leaves alone what the machine counts for itself.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::bench::{Bench, Ran};

/// A bench whose programs look at a clock of its own.
struct Machine {
    bench: Bench,
}

/// The library that shows another time.
fn library() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
    let found = folders.map(|folder| folder.join("faketime/libfaketime.so.1")).find(|path| path.exists());
    found.expect("libfaketime: install Debian's `faketime`")
}

impl Machine {
    fn new(plan: &str) -> Self {
        let machine = Self { bench: Bench::new(&[("plan.yaml", plan)]) };
        machine.set("+0h");
        machine
    }

    /// Sets the clock, as an offset from the real one: `+3h`.
    fn set(&self, clock: &str) {
        // In one move: it is read all the time.
        let file = self.bench.path().join("clock");
        std::fs::write(file.with_extension("new"), clock).unwrap();
        std::fs::rename(file.with_extension("new"), file).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.bench.command(arguments);
        command.env("LD_PRELOAD", library()).env("FAKETIME_TIMESTAMP_FILE", self.bench.path().join("clock"));
        for set in ["FAKETIME_NO_CACHE", "FAKETIME_DONT_FAKE_MONOTONIC", "FAKETIME_DISABLE_SHM", "NO_FAKE_STAT"] {
            command.env(set, "1");
        }
        command
    }

    fn ends(&self, exit: i32, arguments: &[&str]) -> Ran {
        let ran = Ran(self.command(arguments).output().unwrap());
        assert_eq!(ran.code(), Some(exit), "lifeboat {}\n{}", arguments.join(" "), ran.all());
        ran
    }

    fn start(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn records(&self) -> Vec<Value> {
        let path = self.bench.path().join(".lifeboat/runs/r/journal.jsonl");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits until the journal has so many records of that kind, with these words.
    fn wait_for(&self, kind: &str, words: &str, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let fits = |record: &&Value| record["event"]["type"] == kind && record.to_string().contains(words);
        while self.records().iter().filter(fits).count() < count {
            assert!(Instant::now() < deadline, "no {kind} with {words}: {:#?}", self.records());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// How a step stands.
    fn state(&self, step: &str) -> String {
        let status: Value =
            serde_json::from_str(&self.ends(0, &["status", "r", "--format", "json"]).stdout()).unwrap();
        let found = status["steps"].as_array().unwrap().iter().find(|other| other["id"] == step).unwrap();
        found["state"].as_str().unwrap().to_owned()
    }
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

const RUN: [&str; 4] = ["run", "plan.yaml", "--run-id", "r"];

const LIVE: &str = "
lifeboat: 1
plan: live
objectives: { rto: 1h, rpo: 24h }
steps:
  agree:
    needs: []
    approve: { message: Go on?, timeout: 1h }
  rest:
    needs: []
    wait: { for: 1h }
  gate:
    needs: []
    exec: { argv: [sh, -c, 'until test -e go || test ! -e $PWD; do sleep 0.05; done'], effects: [] }
  after:
    needs: [agree]
    exec: { argv: [echo, agreed], effects: [] }
";

#[test]
fn a_clock_that_jumps_under_a_run_ends_no_wait_and_loses_no_word() {
    let machine = Machine::new(LIVE);
    let mut run = machine.start(&RUN);
    machine.wait_for("step_waiting", "agree", 1);
    machine.wait_for("step_noted", "rest", 1);
    machine.wait_for("step_started", "gate", 1);
    machine.set("+5h");
    machine.wait_for("noticed", "clock was set forward by 5h", 1);
    assert_eq!((machine.state("agree").as_str(), machine.state("rest").as_str()), ("waiting", "running"));
    machine.set("-5h");
    machine.wait_for("noticed", "clock was set back by", 1);
    assert_eq!((machine.state("agree").as_str(), machine.state("rest").as_str()), ("waiting", "running"));
    // Sent by a clock that is hours behind the run's.
    machine.ends(0, &["approve", "r", "agree", "--by", "omar"]);
    machine.wait_for("step_finished", "after", 1);
    machine.ends(0, &["pause", "r"]);
    machine.wait_for("noticed", "asked for a pause", 1);
    machine.set("+9h");
    machine.ends(130, &["cancel", "r", "--wait", "--because", "enough"]);
    assert_eq!(run.wait().unwrap().code(), Some(130));

    // What the evidence says of times is what passed.
    let times: Vec<_> = machine.records().iter().map(|record| record["at"].as_str().unwrap().to_owned()).collect();
    let times: Vec<jiff::Timestamp> = times.iter().map(|at| at.parse().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert!(times[times.len() - 1].duration_since(times[0]) < jiff::SignedDuration::from_mins(10), "{times:?}");
    assert_eq!(machine.state("agree"), "succeeded");
    machine.ends(0, &["audit", "r"]);
}

const GATE: &str = "
lifeboat: 1
plan: gate
steps:
  agree:
    needs: []
    approve: { message: Go on?, timeout: 1h }
  gate:
    needs: []
    interrupted: rerun
    exec: { argv: [sh, -c, 'until test -e go || test ! -e $PWD; do sleep 0.05; done'], effects: [] }
  after:
    needs: [agree, gate]
    exec: { argv: [echo, agreed], effects: [] }
";

/// Both words reach a process that takes in neither. The answer is the run's; the pause was that process's.
#[test]
fn words_to_a_process_that_died_mean_the_same_whatever_the_clock_shows() {
    for (first, sent, second) in [("+3h", "+3h", "+0h"), ("+0h", "+6h", "-6h"), ("+0h", "-6h", "+6h")] {
        let machine = Machine::new(GATE);
        machine.set(first);
        let mut run = machine.start(&RUN);
        machine.wait_for("step_waiting", "agree", 1);
        machine.wait_for("step_started", "gate", 1);
        signal(&run, Signal::SIGSTOP);
        machine.set(sent);
        machine.ends(0, &["approve", "r", "agree", "--by", "omar"]);
        machine.ends(0, &["pause", "r"]);
        let inbox = std::fs::read_dir(machine.bench.path().join(".lifeboat/runs/r/inbox")).unwrap();
        assert_eq!(inbox.count(), 2, "it took in neither");
        signal(&run, Signal::SIGKILL);
        run.wait().unwrap();
        machine.set(second);
        std::fs::write(machine.bench.path().join("go"), "").unwrap();
        machine.ends(0, &["resume", "r"]);
        assert_eq!(machine.state("after"), "succeeded", "{first} {sent} {second}");
        machine.ends(0, &["audit", "r"]);
    }
}

const ASKS: &str = "
lifeboat: 1
plan: asks
steps:
  agree:
    approve: { message: Go on?, timeout: 1h }
";

#[test]
fn a_question_ends_when_the_clock_shows_its_moment_and_a_late_answer_counts_before_silence() {
    // Nobody answers: over once the clock shows so, and as long as it doesn't the run waits.
    let machine = Machine::new(ASKS);
    machine.ends(4, &RUN);
    machine.set("-5h");
    machine.ends(4, &["resume", "r"]);
    machine.set("+5h");
    let ran = machine.ends(1, &["resume", "r"]);
    assert!(ran.all().contains("silence is a no"), "{}", ran.all());

    // An answer that is kept is not lost to the clock.
    for clock in ["-5h", "+5h"] {
        let machine = Machine::new(ASKS);
        machine.ends(4, &RUN);
        machine.set(clock);
        machine.ends(0, &["approve", "r", "agree", "--by", "omar"]);
        machine.ends(0, &["resume", "r"]);
        machine.ends(0, &["audit", "r"]);
    }
}

#[test]
fn a_length_is_waited_whatever_the_clock_shows_and_a_moment_is_the_clocks() {
    let machine = Machine::new("lifeboat: 1\nplan: rest\nsteps: { rest: { wait: { for: 1h } } }\n");
    let mut run = machine.start(&RUN);
    machine.wait_for("step_noted", "rest", 1);
    signal(&run, Signal::SIGKILL);
    run.wait().unwrap();
    for clock in ["+3h", "-3h"] {
        machine.set(clock);
        let foreseen = machine.ends(0, &["resume", "r", "--dry-run"]);
        assert!(foreseen.all().contains("the wait goes on"), "{}", foreseen.all());
    }

    let moment = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(2);
    let machine =
        Machine::new(&format!("lifeboat: 1\nplan: rest\nsteps: {{ rest: {{ wait: {{ until: '{moment}' }} }} }}\n"));
    let mut run = machine.start(&RUN);
    machine.wait_for("step_noted", "rest", 1);
    machine.set("-2h");
    machine.wait_for("noticed", "clock was set back by", 1);
    assert_eq!(machine.state("rest"), "running");
    machine.set("+3h");
    assert_eq!(run.wait().unwrap().code(), Some(0));
}
