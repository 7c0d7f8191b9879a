//! Holders that stand still, terminals that close, machines that start anew.

use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bench::Bench;

/// Goes on when `go` is there.
const PLAN: &str = r#"
lifeboat: 1
plan: gate
steps:
  first:
    exec: { argv: [sh, -c, 'echo first >> world'], effects: ["change file:world"] }
  gate:
    exec: { argv: [sh, -c, 'until test -e go || test ! -e $PWD; do sleep 0.05; done'], effects: [] }
    interrupted: rerun
  last:
    exec: { argv: [sh, -c, 'echo last >> world'], effects: ["change file:world"] }
"#;

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

fn open_the_gate(bench: &Bench) {
    std::fs::write(bench.path().join("go"), "").unwrap();
}

fn world(bench: &Bench) -> String {
    std::fs::read_to_string(bench.path().join("world")).unwrap()
}

#[test]
fn a_holder_that_stands_still_holds_and_goes_on_as_if_nothing_had_been() {
    let bench = Bench::new(&[("gate.yaml", PLAN)]);
    let mut holder = bench.start(&["run", "gate.yaml"]);
    bench.wait_for("gate", "running");
    signal(&holder, Signal::SIGSTOP);
    // Neither this run nor another one that changes the same is taken from it.
    let refused = bench.ends(5, &["resume"]);
    assert!(refused.stderr().contains("is held by maria@"), "{}", refused.all());
    let refused = bench.ends(5, &["run", "gate.yaml"]);
    assert!(refused.stderr().contains("file:world"), "{}", refused.all());
    open_the_gate(&bench);
    signal(&holder, Signal::SIGCONT);
    assert_eq!(holder.wait().unwrap().code(), Some(0));
    assert_eq!(world(&bench), "first\nlast\n");

    // One that is killed where it stands holds nothing.
    std::fs::remove_file(bench.path().join("go")).unwrap();
    let mut holder = bench.start(&["run", "gate.yaml"]);
    bench.wait_for("gate", "running");
    signal(&holder, Signal::SIGSTOP);
    signal(&holder, Signal::SIGKILL);
    holder.wait().unwrap();
    open_the_gate(&bench);
    bench.ends(0, &["resume"]);
    assert_eq!(world(&bench), "first\nlast\nfirst\nlast\n");
}

/// A terminal: its other end, and the end for the program.
fn terminal() -> (OwnedFd, OwnedFd) {
    let pair = nix::pty::openpty(None, None).unwrap();
    (pair.master, pair.slave)
}

#[test]
fn a_terminal_that_closes_does_not_end_a_run() {
    let bench = Bench::new(&[("gate.yaml", PLAN)]);
    let (person, program) = terminal();
    // A session whose terminal it is, so that its end is a hang-up.
    let mut command = Command::new("setsid");
    command.args(["--ctty", "--wait"]).arg(env!("CARGO_BIN_EXE_lifeboat")).args(["run", "gate.yaml"]);
    command.current_dir(bench.path()).env_remove("LIFEBOAT_STATE").env("USER", "maria");
    command.stdin(Stdio::from(program.try_clone().unwrap()));
    command.stdout(Stdio::from(program.try_clone().unwrap())).stderr(Stdio::from(program.try_clone().unwrap()));
    let mut child = command.spawn().unwrap();
    drop((command, program));
    bench.wait_for("gate", "running");
    drop(person);
    // Every write to it fails now.
    std::thread::sleep(Duration::from_millis(200));
    open_the_gate(&bench);
    let end = Instant::now() + Duration::from_secs(30);
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "it hangs without its terminal");
        std::thread::sleep(Duration::from_millis(20));
    }
    let status = bench.ends(0, &["status", "--format", "json"]).stdout();
    assert!(status.contains(r#""status":"succeeded""#) || status.contains(r#""status": "succeeded""#), "{status}");
    assert_eq!(world(&bench), "first\nlast\n");
}

#[test]
fn after_the_machine_started_anew_the_old_process_is_nobody() {
    let bench = Bench::new(&[("gate.yaml", PLAN)]);
    let mut child = bench.start(&["run", "gate.yaml"]);
    bench.wait_for("gate", "running");
    signal(&child, Signal::SIGKILL);
    child.wait().unwrap();
    // As a power cut leaves it: locks that name a process of another boot, whose number somebody else has by now.
    let run = bench.path().join(".lifeboat/runs").join(bench.latest());
    let mut changed = 0;
    for entry in std::fs::read_dir(&run).unwrap().map(|entry| entry.unwrap().path()) {
        let Ok(text) = std::fs::read_to_string(&entry) else { continue };
        let Ok(mut holder) = serde_json::from_str::<serde_json::Value>(&text) else { continue };
        if holder["by"]["pid"].is_number() {
            holder["by"]["pid"] = std::process::id().into();
            holder["by"]["boot"] = "another-boot".into();
            std::fs::write(&entry, holder.to_string()).unwrap();
            changed += 1;
        }
    }
    assert_eq!(changed, 1, "the run's lock names its holder");
    let status = bench.ends(0, &["status"]).stdout();
    assert!(!status.contains(&format!("process {}", std::process::id())), "{status}");
    open_the_gate(&bench);
    bench.ends(0, &["resume"]);
    assert_eq!(world(&bench), "first\nlast\n");
}

/// Writes into a database, then goes on when `go` is there.
const WRITES: &str = r#"
lifeboat: 1
plan: writes
targets: { db: postgres }
steps:
  write:
    postgres.execute: { target: db, database: DB, sql: "INSERT INTO public.t VALUES (1)" }
  gate:
    exec: { argv: [sh, -c, 'until test -e go || test ! -e $PWD; do sleep 0.05; done'], effects: [] }
"#;

#[tokio::test]
async fn two_laptops_do_not_change_one_database() {
    let databases = crate::support::Databases::new("laptops");
    let name = databases.create("app", "CREATE TABLE t (id int)").await;
    let plan = WRITES.replace("DB", &name);
    let environment = "lifeboat: 1\nenvironment: test\ntargets:\n  \
                       db: { postgres: { url: \"{{ env.LIFEBOAT_TEST_POSTGRES }}\" } }\n";
    let laptop = || Bench::new(&[("writes.yaml", &plan), ("environments/test.yaml", environment)]);
    let (first, second) = (laptop(), laptop());
    let run = ["run", "writes.yaml", "--env", "test"];
    let mut holder = first.start(&run);
    first.wait_for("gate", "running");
    let who = format!("postgres:db/{name} is being changed by run {}", first.latest());
    for stopped in [false, true] {
        if stopped {
            signal(&holder, Signal::SIGSTOP);
        }
        let refused = second.run(&run);
        // Lines are broken behind hyphens as well.
        let said = refused.all().split_whitespace().collect::<Vec<_>>().join(" ").replace("- ", "-");
        assert!(matches!(refused.code(), Some(1 | 3 | 5)) && said.contains(&who), "{who}: {said}");
        let rows = crate::support::value(&name, "SELECT count(*) FROM t").await.unwrap();
        assert_eq!(rows, "1", "the second changed nothing: {said}");
    }
    signal(&holder, Signal::SIGCONT);
    open_the_gate(&first);
    assert_eq!(holder.wait().unwrap().code(), Some(0));
    open_the_gate(&second);
    second.ends(0, &run);
    assert_eq!(crate::support::value(&name, "SELECT count(*) FROM t").await.unwrap(), "2");
}
