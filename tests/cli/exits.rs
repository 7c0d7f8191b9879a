//! How the program ends, and what it never says.

use std::process::{Command, Stdio};

use assert_cmd::cargo::cargo_bin;

use crate::bench::{Bench, PLAN};

#[test]
fn a_wrong_command_line_is_2() {
    let bench = Bench::new(&[("rehearsal.yaml", PLAN)]);
    for arguments in [
        &["run"][..],
        &["nonsense"],
        &["run", "missing.yaml"],
        &["run", "rehearsal.yaml", "--offline"],
        &["run", "rehearsal.yaml", "-i", "no-equals-sign"],
        &["run", "rehearsal.yaml", "-i", "unknown=1"],
        &["run", "rehearsal.yaml", "--env", "nowhere"],
        &["run", "rehearsal.yaml", "--run-id", "../escape"],
        &["status", "nothing"],
        &["approve", "nothing", "agree"],
    ] {
        let ran = bench.ends(2, arguments);
        assert_eq!(ran.stdout(), "", "{arguments:?}");
        assert!(!ran.stderr().is_empty(), "{arguments:?}");
    }
    assert!(!bench.path().join(".lifeboat").exists(), "nothing was touched");
}

#[test]
fn a_blocked_step_is_3_and_nothing_begins() {
    let plan = "lifeboat: 1\nplan: blocked\nsteps:\n  first:\n    exec: { argv: [touch, begun], effects: [] }\n  \
                second:\n    exec: { argv: [no-such-program-anywhere], effects: [] }\n";
    let bench = Bench::new(&[("blocked.yaml", plan)]);
    let dry = bench.ends(3, &["run", "blocked.yaml", "--dry-run"]);
    insta::assert_snapshot!("blocked", dry.page());
    bench.ends(3, &["run", "blocked.yaml"]);
    assert!(!bench.path().join("begun").exists());
    bench.ends(1, &["run", "blocked.yaml", "--no-preflight"]);
    assert!(bench.path().join("begun").exists());
}

const DESTROYS: &str = "lifeboat: 1\nplan: destroys\nsteps:\n  gone:\n    \
    allow: [lifeboat::unverified_destruction]\n    because: a test\n    \
    exec: { argv: [rm, -f, precious], effects: [\"destroy file:precious\"] }\n";

#[test]
fn a_protected_environment_wants_its_name() {
    let environment = "lifeboat: 1\nenvironment: production\nprotected: true\n";
    let bench =
        Bench::new(&[("destroys.yaml", DESTROYS), ("environments/production.yaml", environment), ("precious", "")]);
    let run = ["run", "destroys.yaml", "--env", "production"];
    let ran = bench.ends(2, &run);
    assert!(ran.stderr().contains("`production` is protected"), "{}", ran.stderr());
    assert!(ran.stderr().contains("--confirm production"), "{}", ran.stderr());
    bench.ends(2, &[&run[..], &["--yes"]].concat());
    bench.ends(2, &[&run[..], &["--confirm", "staging"]].concat());
    assert!(bench.path().join("precious").exists());
    bench.ends(0, &[&run[..], &["--confirm", "production"]].concat());
    assert!(!bench.path().join("precious").exists());
}

#[test]
fn only_what_was_reviewed_runs() {
    let bench = Bench::new(&[("destroys.yaml", DESTROYS)]);
    bench.ends(0, &["run", "destroys.yaml", "--dry-run", "--save", "reviewed.json"]);
    std::fs::write(bench.path().join("destroys.yaml"), DESTROYS.replace("precious", "everything")).unwrap();
    let ran = bench.ends(2, &["run", "destroys.yaml", "--approved", "reviewed.json"]);
    let said = ran.stderr().split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said.contains("`gone` would now destroy file:everything"), "{said}");
    std::fs::write(bench.path().join("destroys.yaml"), DESTROYS).unwrap();
    bench.ends(0, &["run", "destroys.yaml", "--approved", "reviewed.json"]);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    for arguments in ["steps", "man --format markdown", "completions bash"] {
        let script = format!("'{}' {arguments} | true; exit ${{PIPESTATUS[0]}}", cargo_bin("lifeboat").display());
        let output = Command::new("bash").args(["-c", &script]).stdin(Stdio::null()).output().unwrap();
        assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0), "{arguments}: {output:?}");
    }
}

#[test]
fn verbose_tells_what_happens_inside() {
    let bench = Bench::new(&[("destroys.yaml", DESTROYS)]);
    let said = bench.ends(0, &["run", "destroys.yaml", "-v"]).stderr();
    assert!(said.contains("looked at step=gone"), "{said}");
    assert!(!said.contains("started a process"), "{said}");
    let more = bench.ends(0, &["run", "destroys.yaml", "-vv"]).stderr();
    assert!(more.contains("started a process program=\"rm\""), "{more}");
}

#[test]
fn quiet_is_quiet() {
    let bench = Bench::new(&[("destroys.yaml", DESTROYS)]);
    let ran = bench.ends(0, &["run", "destroys.yaml", "-q"]);
    assert_eq!(ran.stderr(), "");
}

#[test]
fn a_resume_never_takes_a_secrets_default_for_what_was_given() {
    let plan = "lifeboat: 1\nplan: secret\ninputs:\n  token: { type: string, secret: true, default: fallback, help: A token }\nsteps:\n  use:\n    \
                exec: { argv: [sh, -c, 'test \"$TOKEN\" = fallback'], env: { TOKEN: \"{{ inputs.token }}\" }, effects: [] }\n";
    let bench = Bench::new(&[("secret.yaml", plan), ("token.txt", "correct-horse-battery")]);
    bench.ends(1, &["run", "secret.yaml", "-i", "token=@token.txt"]);
    let ran = bench.ends(2, &["resume"]);
    assert!(ran.stderr().contains("-i token=@FILE"), "{}", ran.stderr());
    bench.ends(1, &["resume", "-i", "token=@token.txt"]);
    // Nobody gave one here: the default counts again.
    std::fs::write(bench.path().join("secret.yaml"), plan.replace("= fallback", "= other")).unwrap();
    bench.ends(1, &["run", "secret.yaml"]);
    bench.ends(1, &["resume"]);
}

#[test]
fn a_secret_shows_nowhere() {
    const SECRET: &str = "correct-horse-battery";
    let plan = "lifeboat: 1\nplan: secret\ninputs:\n  token: { type: string, secret: true, help: A token }\nsteps:\n  say:\n    \
                exec: { argv: [sh, -c, 'echo \"$TOKEN\"; echo \"$TOKEN\" >&2; exit 1'], env: { TOKEN: \"{{ inputs.token }}\" }, effects: [] }\n";
    let bench = Bench::new(&[("secret.yaml", plan), ("token.txt", &format!("{SECRET}\n"))]);
    let mut seen = String::new();
    for arguments in [
        &["run", "secret.yaml", "-i", "token=@token.txt", "--dry-run"][..],
        &["run", "secret.yaml", "-i", "token=@token.txt", "-vvv"],
        &["status"],
        &["logs"],
        &["report"],
        &["report", "--format", "json"],
        &["show", "secret.yaml", "-i", "token=@token.txt"],
        // A secret isn't kept, so a resume needs it again.
        &["resume"],
        &["resume", "-i", "token=@token.txt"],
    ] {
        seen.push_str(&bench.run(arguments).all());
    }
    assert!(seen.contains("●●●●"), "{seen}");
    assert!(!seen.contains(SECRET), "{seen}");
    let found = Command::new("grep").args(["-rl", SECRET, ".lifeboat"]).current_dir(bench.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "", "files with the secret in them");
}

#[test]
fn a_secret_that_stands_where_it_does_not_belong_is_not_repeated() {
    const SECRET: &str = "correct-horse-battery-staple-of-more-than-sixty-characters-in-all-of-it";
    let environment = "lifeboat: 1\nenvironment: wrong\ntargets:\n  a: { postgres: \"{{ env.SECRET }}\" }\n  \
                       b: { postgres: \"postgres://app:{{ env.SECRET }}@db/x\" }\n  c: { postgres: 'postgres://app:plain-horse@db/x' }\n  \
                       d: { http: { url: 'http://h', timeout: \"{{ env.SECRET }}\", retries: \"{{ env.SECRET }}\" } }\n";
    let plan = "lifeboat: 1\nplan: x\nsteps:\n  a: { wait: { for: 1s } }\n";
    let bench = Bench::new(&[("plan.yaml", plan), ("environments/wrong.yaml", environment)]);
    for arguments in [
        &["check", "plan.yaml", "--env", "wrong"][..],
        &["check", "plan.yaml", "--env", "wrong", "--format", "json"],
        &["run", "plan.yaml", "--env", "wrong"],
    ] {
        let output = bench.command(arguments).env("SECRET", SECRET).output().unwrap();
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(!output.status.success() && said.contains("postgres"), "{said}");
        assert!(!said.contains("correct-horse") && !said.contains("plain-horse"), "{said}");
    }
}
