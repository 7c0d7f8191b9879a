//! Pages that need no run: check, show, graph, dry-run, steps, and what they print for machines.

use crate::bench::{Bench, PLAN};

const WRONG: &str = "\
lifeboat: 1
plan: wrong
steps:
  look:
    exec: { argv: [echo, looked], efects: [] }
  restore:
    needs: [lok]
    exec: [echo, \"{{ steps.look.stdot }}\"]
  round:
    needs: [trip]
    exec: [echo]
  trip:
    needs: [round]
    exec: [echo]
";

#[test]
fn check_underlines_every_problem_at_once() {
    let bench =
        Bench::new(&[("plans/rehearsal.yaml", PLAN), ("plans/wrong.yaml", WRONG), ("plans/notes.txt", "no plan")]);
    let ran = bench.ends(2, &["check", "plans"]);
    insta::assert_snapshot!("check", ran.stdout());
    assert_eq!(ran.stderr(), "");
    bench.ends(0, &["check", "plans/rehearsal.yaml"]);
}

#[test]
fn check_for_other_tools() {
    let bench = Bench::new(&[("wrong.yaml", WRONG)]);
    let found: serde_json::Value =
        serde_json::from_str(&bench.ends(2, &["check", "wrong.yaml", "--format", "json"]).stdout()).unwrap();
    let problems = found["files"][0]["problems"].as_array().unwrap();
    assert!(problems.len() >= 3 && problems[0]["place"]["line"] == 5, "{found:#}");
    let github = bench.ends(2, &["check", "wrong.yaml", "--format", "github"]).stdout();
    assert_eq!(
        github.lines().filter(|line| line.starts_with("::error file=wrong.yaml,line=")).count(),
        problems.len()
    );
    let sarif: serde_json::Value =
        serde_json::from_str(&bench.ends(2, &["check", "wrong.yaml", "--format", "sarif"]).stdout()).unwrap();
    assert_eq!(sarif["runs"][0]["results"].as_array().unwrap().len(), problems.len());
    let junit = bench.ends(2, &["check", "wrong.yaml", "--format", "junit"]).stdout();
    assert!(junit.contains("tests=\"1\" failures=\"1\"") && junit.ends_with("</testsuites>\n"), "{junit}");
}

#[test]
fn a_plan_told_to_a_person() {
    let bench = Bench::new(&[("rehearsal.yaml", PLAN)]);
    insta::assert_snapshot!("show", bench.ends(0, &["show", "rehearsal.yaml"]).stdout());
    insta::assert_snapshot!("graph", bench.ends(0, &["graph", "rehearsal.yaml"]).stdout());
    insta::assert_snapshot!("graph-dot", bench.ends(0, &["graph", "rehearsal.yaml", "--format", "dot"]).stdout());
    insta::assert_snapshot!(
        "graph-mermaid",
        bench.ends(0, &["graph", "rehearsal.yaml", "--format", "mermaid"]).stdout()
    );
    let svg = bench.ends(0, &["graph", "rehearsal.yaml", "--format", "svg"]).stdout();
    assert!(svg.starts_with("<svg ") && svg.matches("<rect class=\"box").count() == 6, "{svg}");
}

#[test]
fn a_dry_run_says_what_would_be_done_and_writes_nothing() {
    let bench = Bench::new(&[("rehearsal.yaml", PLAN)]);
    let ran = bench.ends(0, &["run", "rehearsal.yaml", "--dry-run"]);
    insta::assert_snapshot!("dry-run", ran.page());
    let first = bench.ends(0, &["run", "rehearsal.yaml", "--dry-run", "--offline", "--format", "json"]).stdout();
    let second = bench.ends(0, &["run", "rehearsal.yaml", "--dry-run", "--offline", "--format", "json"]).stdout();
    assert_eq!(first, second, "the same world gives the same bytes");
    let preview: serde_json::Value = serde_json::from_str(&first).unwrap();
    assert_eq!((&preview["mode"], &preview["verdict"]), (&"offline".into(), &"clear".into()));
    let left: Vec<_> = std::fs::read_dir(bench.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["rehearsal.yaml"]);
}

#[test]
fn narrow_and_wide_pages_keep_to_their_width() {
    let bench = Bench::new(&[("rehearsal.yaml", PLAN), ("wrong.yaml", WRONG)]);
    for width in ["60", "100"] {
        for arguments in [
            vec!["show", "rehearsal.yaml"],
            vec!["run", "rehearsal.yaml", "--dry-run"],
            vec!["steps"],
            vec!["steps", "exec"],
        ] {
            let text = bench.ends(0, &[&arguments[..], &["--width", width]].concat()).stdout();
            let longest = text.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(longest <= width.parse().unwrap(), "{arguments:?} at {width}: {longest}\n{text}");
        }
    }
}

#[test]
fn the_reference_of_a_step() {
    let bench = Bench::new(&[]);
    insta::assert_snapshot!("steps-approve", bench.ends(0, &["steps", "approve"]).stdout());
    let json: serde_json::Value =
        serde_json::from_str(&bench.ends(0, &["steps", "--format", "json"]).stdout()).unwrap();
    assert!(
        json.as_array().unwrap().iter().all(|step| step["parameters"].is_object() && step["summary"].is_string())
    );
    let ran = bench.ends(2, &["steps", "postgres.restor"]);
    assert!(ran.stderr().contains("did you mean `postgres.restore`?"), "{}", ran.all());
}

#[test]
fn colour_only_when_asked_for() {
    let bench = Bench::new(&[("rehearsal.yaml", PLAN)]);
    let show = ["show", "rehearsal.yaml"];
    let plain = bench.ends(0, &show).stdout();
    assert!(!plain.contains('\u{1b}'));
    let painted = bench.ends(0, &[&show[..], &["--color", "always"]].concat()).stdout();
    assert!(painted.contains('\u{1b}'));
    assert_eq!(console::strip_ansi_codes(&painted), plain, "colour adds nothing but colour");
}

#[test]
fn packagers_get_completions_and_manuals() {
    let bench = Bench::new(&[]);
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(bench.ends(0, &["completions", shell]).stdout().contains("resume"), "{shell}");
    }
    assert!(bench.ends(0, &["man"]).stdout().contains(".TH lifeboat 1"));
    bench.ends(0, &["man", "pages"]);
    assert!(bench.path().join("pages/lifeboat-run.1").is_file());
}
