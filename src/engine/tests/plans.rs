//! Plans as people write them, with real processes.

use super::*;
use crate::plan::load::{Options, load_text};

/// Loads a plan's text; `@` in it is the bench's folder.
pub(super) fn loaded(bench: &Bench, text: &str) -> Arc<Plan> {
    let text = text.replace('@', bench.folder.path().to_str().unwrap());
    let loaded = load_text("test.yaml", text.as_bytes(), &Options { complete: true, ..Options::default() });
    let messages: Vec<_> = loaded.problems.iter().filter(|problem| problem.is_error()).collect();
    assert!(messages.is_empty(), "{messages:?}");
    Arc::new(loaded.plan.unwrap())
}

const PLAN: &str = r#"
lifeboat: 1
plan: test
inputs:
  mode: { type: string, default: restore }
steps:
  find:
    exec:
      argv: [echo, "{\"path\": \"daily.sql.gz\"}"]
      outputs: { path: { json: /path } }
      effects: []
  skipped:
    when: eq inputs.mode "drill"
    exec: { argv: [touch, "@/skipped"], effects: [] }
  use:
    exec: { argv: [touch, "@/{{ steps.find.path }}"], effects: [] }
finally:
  tell:
    exec: { argv: [sh, -c, "echo $STATUS > @/told"], env: { STATUS: "{{ run.status }}" }, effects: [] }
"#;

#[tokio::test]
async fn outputs_conditions_and_finally_work_with_real_processes() {
    let bench = Bench::new();
    let plan = loaded(&bench, PLAN);
    let ended = bench.run(&plan).await;
    assert_eq!(ended.state.status, RunStatus::Succeeded, "{:?}", ended.state.first_failure());
    assert!(bench.path("daily.sql.gz").exists() && !bench.path("skipped").exists());
    assert_eq!(outcome(&ended, "skipped"), &Outcome::Skipped { reason: "its `when` is false".to_owned() });
    assert_eq!(lines(&bench.path("told")), ["succeeded"]);
}

#[tokio::test]
async fn a_dry_run_gives_the_same_bytes_and_touches_nothing() {
    let bench = Bench::new();
    let plan = loaded(&bench, PLAN);
    let bytes = async || serde_json::to_vec(&preview(&bench.cx, &plan, Some(&bench.cx.services)).await).unwrap();
    let first = bytes().await;
    assert_eq!(first, bytes().await);
    assert!(!bench.cx.store.root().exists() && !bench.path("told").exists());
    let report: PreviewReport = serde_json::from_slice(&first).unwrap();
    let actions: Vec<_> = report.steps.iter().map(|step| (step.id.as_str(), step.action.as_str())).collect();
    assert_eq!(actions[1], ("skipped", "skip"), "{actions:?}");
    let keys: Vec<_> = serde_json::from_slice::<serde_json::Map<String, Value>>(&first)
        .unwrap()
        .into_iter()
        .map(|(key, _)| key)
        .collect();
    let wanted =
        ["plan", "plan_digest", "environment", "mode", "verdict", "impact", "estimate", "rto", "rpo", "steps"];
    assert_eq!(keys, wanted);
}

#[tokio::test]
async fn a_run_foretells_the_next_ones_duration() {
    let bench = Bench::new();
    let plan = loaded(&bench, PLAN);
    assert_eq!(preview(&bench.cx, &plan, None).await.estimate, None);
    bench.run(&plan).await;
    let estimate = preview(&bench.cx, &plan, None).await.estimate.unwrap();
    assert!(estimate > 0.0 && estimate < 60.0, "{estimate}");
}

#[tokio::test]
async fn a_cancelled_command_is_gone_with_its_children() {
    let bench = Bench::new();
    let plan = loaded(
        &bench,
        "lifeboat: 1\nplan: test\nsteps:\n  a:\n    timeout: 300ms\n    exec: { argv: [sh, -c, 'sleep 61.75 & echo $! > @/child; wait'], effects: [] }\n",
    );
    let ended = bench.run(&plan).await;
    assert!(failure(&ended, "a").contains("within its timeout of 300ms"), "{}", failure(&ended, "a"));
    let child = lines(&bench.path("child"))[0].clone();
    until(|| {
        let status = std::fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
        status.is_empty() || status.contains("State:\tZ")
    })
    .await;
}
