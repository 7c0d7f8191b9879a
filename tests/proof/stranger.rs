//! A stranger's plan can be looked at without running or contacting anything: proven on the system's calls.

use std::process::Command;

use assert_cmd::cargo::cargo_bin;

use crate::bench::Bench;

/// Lines of the trace that start a program, make a process, or talk to anybody.
fn acts(trace: &str) -> Vec<&str> {
    let starts = |line: &str| line.contains("execve(") || line.contains("fork(");
    // A thread of its own is no process.
    let forks =
        |line: &str| (line.contains("clone(") || line.contains("clone3(")) && !line.contains("CLONE_THREAD");
    let talks = |line: &str| {
        // Threads wake each other by socket pairs; whether a name service runs here is a question to a local file.
        ["socket(", "connect(", "sendto(", "sendmsg(", "bind("].iter().any(|call| line.contains(call))
            && !line.contains("socketpair(")
            && !line.contains("/var/run/nscd/socket")
            && !line.contains("socket(AF_UNIX")
    };
    trace.lines().filter(|line| starts(line) || forks(line) || talks(line)).collect()
}

fn trace(bench: &Bench, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new("strace")
        .args(["-f", "-qq", "-e", "trace=network,process", "-o", "trace.txt", "--"])
        .arg(cargo_bin("lifeboat"))
        .args(arguments)
        .current_dir(bench.path())
        .output()
        .expect("strace");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), said, std::fs::read_to_string(bench.path().join("trace.txt")).unwrap())
}

#[test]
fn looking_at_plans_neither_runs_nor_contacts_anything() {
    let plans: Vec<_> = std::fs::read_dir("plans")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .map(|path| {
            (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read_to_string(&path).unwrap())
        })
        .collect();
    assert!(plans.len() > 10);
    let files: Vec<_> = plans.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let bench = Bench::new(&files);
    for (name, _) in &plans {
        for arguments in
            [&["check", name][..], &["show", name], &["graph", name], &["run", name, "--dry-run", "--offline"]]
        {
            let (code, said, trace) = trace(&bench, arguments);
            assert!(matches!(code, Some(0 | 2 | 3)), "{arguments:?}: {code:?} {said}");
            let acts = acts(&trace);
            // The first is the program itself.
            assert_eq!(acts.len(), 1, "lifeboat {}: {acts:#?}", arguments.join(" "));
        }
    }
    assert!(!bench.path().join(".lifeboat").exists(), "nothing is written");
}

#[test]
fn the_proof_would_see_a_command_and_a_connection() {
    let bench = Bench::new(&[
        (
            "acts.yaml",
            "lifeboat: 1\nplan: acts\ntargets: { web: http }\nsteps:\n  run:\n    exec: { argv: [echo, x], effects: [] }\n  \
             ask:\n    needs: []\n    http.check: { target: web, path: /, within: 1s }\n",
        ),
        (
            "environments/test.yaml",
            "lifeboat: 1\nenvironment: test\ntargets: { web: { http: { base_url: \"http://127.0.0.1:1\" } } }\n",
        ),
    ]);
    let (_, said, trace) = trace(&bench, &["run", "acts.yaml", "--env", "test", "--no-preflight"]);
    let acts = acts(&trace).join("\n");
    assert!(acts.matches("execve(").count() > 1 && acts.contains("connect("), "{acts}\n{said}");
}
