//! The state's disk: full, and failing.

use std::fmt::Write as _;
use std::process::Command;

use crate::bench::Bench;

/// How many steps there are: their records fill what is left of the journal's last block.
const STEPS: usize = 40;

/// A plan whose steps each leave a line in the world, the second after it has done `fault`.
fn bench(fault: &str) -> Bench {
    let mut plan = "lifeboat: 1\nplan: lines\nsteps:\n".to_owned();
    for step in 0..STEPS {
        let fault = if step == 1 { fault } else { "true" };
        let _ = write!(
            plan,
            "  s{step}:\n    interrupted: rerun\n    exec:\n      argv: [sh, -c, 'test -e world.{step} || {{ touch world.{step}; {fault}; }}; echo {step} >> world']\n      effects: [\"change file:world\"]\n"
        );
    }
    Bench::new(&[("lines.yaml", &plan)])
}

/// Runs the plan in a namespace of its own, whatever `around` does, and gives what was said.
fn sealed(bench: &Bench, script: &str) -> String {
    let mut command = Command::new("unshare");
    let script = script.replace("lifeboat", &format!("{} --state state", env!("CARGO_BIN_EXE_lifeboat")));
    command.args(["--map-root-user", "--mount", "sh", "-c", &script]).current_dir(bench.path());
    let output = command.env_remove("LIFEBOAT_STATE").env("NO_COLOR", "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    said
}

/// The lines, and which of them is there twice.
fn world(bench: &Bench) -> (usize, Vec<usize>) {
    let text = std::fs::read_to_string(bench.path().join("world")).unwrap();
    let mut lines: Vec<usize> = text.lines().map(|line| line.parse().unwrap()).collect();
    let in_order = lines.is_sorted();
    assert!(in_order, "{lines:?}");
    let twice = lines.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
    lines.dedup();
    (lines.len(), twice)
}

#[test]
fn a_full_disk_under_the_journal_stops_the_run_before_its_next_effect() {
    let bench = bench("cat /dev/zero > state/filler 2>/dev/null");
    std::fs::create_dir(bench.path().join("state")).unwrap();
    let said = sealed(
        &bench,
        r#"
        mount -t tmpfs -o size=512k none state || exit 90
        lifeboat run lines.yaml; echo "exit $?"
        wc -l < world | sed 's/^/lines: /'
        lifeboat status >/dev/null || exit 92
        lifeboat resume; echo "exit $?"
        wc -l < world | sed 's/^/lines: /'
        rm state/filler
        lifeboat resume; echo "exit $?"
        lifeboat audit || exit 93
        "#,
    );
    let of = |what: &str| -> Vec<_> { said.lines().filter_map(|line| line.strip_prefix(what)).collect() };
    assert_eq!(of("exit "), ["1", "1", "0"], "{said}");
    let lines = of("lines: ");
    assert!(lines[0] == lines[1] && lines[0].parse::<usize>().unwrap() < STEPS, "{said}");
    assert!(said.contains("No space left on device"), "{said}");
    // What was in flight when nothing could be written any more is run again, as its plan says.
    let (all, twice) = world(&bench);
    assert!(all == STEPS && twice.len() <= 1, "{twice:?} {said}");
}

#[test]
fn a_journal_that_can_not_be_written_stops_the_run_before_its_next_effect() {
    // From then on no file may grow in the program's hands: each write fails (EFBIG).
    let bench = bench("prlimit --fsize=1 --pid $PPID");
    let said = sealed(
        &bench,
        r#"
        trap '' XFSZ
        lifeboat run lines.yaml; echo "exit $?"
        trap - XFSZ
        wc -l < world | sed 's/^/lines: /'
        lifeboat resume; echo "exit $?"
        lifeboat audit || exit 93
        "#,
    );
    let exits: Vec<_> = said.lines().filter(|line| line.starts_with("exit ")).collect();
    assert_eq!(exits, ["exit 1", "exit 0"], "{said}");
    assert!(said.contains("File too large") && said.contains("lines: 2"), "{said}");
    assert_eq!(world(&bench), (STEPS, vec![1]), "{said}");
}

#[test]
fn a_sync_that_fails_stops_the_run_before_its_next_effect() {
    for after in [3, 4] {
        let bench = bench("true");
        let program = env!("CARGO_BIN_EXE_lifeboat");
        // From that many on, each sync of the journal fails, as on a disk that is going.
        let inject = format!("inject=fdatasync:error=EIO:when={after}+");
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o", "trace.txt", "-e", "trace=fdatasync", "-e", &inject, "--", program]);
        command.args(["--state", "state", "run", "lines.yaml"]).current_dir(bench.path()).env("NO_COLOR", "1");
        let output = command.output().expect("strace");
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("Input/output error") && said.contains("lifeboat resume"), "{said}");
        let trace = std::fs::read_to_string(bench.path().join("trace.txt")).unwrap();
        assert_eq!(trace.matches("(INJECTED)").count(), 1, "nothing more is written after it: {trace}");

        // What was announced by the write whose sync failed did not happen.
        let run = std::fs::read_dir(bench.path().join("state/runs")).unwrap().next().unwrap().unwrap().path();
        let journal = std::fs::read_to_string(run.join("journal.jsonl")).unwrap();
        let started = journal.lines().filter(|line| line.contains("\"type\":\"step_started\"")).count();
        let announced = journal.lines().last().is_some_and(|line| line.contains("\"type\":\"step_started\""));
        let lines = std::fs::read_to_string(bench.path().join("world")).unwrap_or_default().lines().count();
        assert_eq!(lines, started - usize::from(announced), "{journal}");

        bench.ends(0, &["--state", "state", "resume"]);
        bench.ends(0, &["--state", "state", "audit"]);
        let (all, twice) = world(&bench);
        assert!(all == STEPS && twice.len() <= 1, "{twice:?}");
    }
}
