//! A database server that is restarted under a step.

use serde_json::{Value, json};

use crate::bench::Bench;

const RESTART: &str = "
lifeboat: 1
plan: count
targets: { db: postgres }
steps:
  make:
    postgres.execute: { target: db, sql: 'CREATE TABLE public.counter AS SELECT 0 AS n' }
  slow:
    retry: { attempts: 20, delay: 200ms, factor: 1 }
    postgres.execute:
      target: db
      sql: UPDATE public.counter SET n = n + 1 WHERE pg_catalog.pg_sleep(1.5) IS NOT NULL
  look:
    postgres.query: { target: db, sql: SELECT n FROM public.counter, expect: 1 }
";

#[test]
fn a_server_that_is_restarted_mid_step_applies_it_once() {
    let environment = json!({
        "lifeboat": 1, "environment": "here",
        "targets": { "db": { "postgres": { "sandbox": {} } } },
    });
    let bench = Bench::new(&[("count.yaml", RESTART), ("environments/here.yaml", &environment.to_string())]);
    bench.ends(0, &["sandbox", "up", "--env", "environments/here.yaml"]);
    let child = bench.start(&["run", "count.yaml", "--env", "environments/here.yaml"]);
    bench.wait_for("slow", "running");
    bench.ends(0, &["sandbox", "stop", "db", "--env", "environments/here.yaml"]);
    bench.ends(0, &["sandbox", "up", "--env", "environments/here.yaml"]);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let report: Value = serde_json::from_str(&bench.ends(0, &["status", "--format", "json"]).stdout()).unwrap();
    let slow = report["steps"].as_array().unwrap().iter().find(|step| step["id"] == "slow").unwrap();
    assert!(slow["attempts"].as_u64().unwrap() > 1, "the restart was felt: {slow}");
    bench.ends(0, &["sandbox", "down", "--env", "environments/here.yaml"]);
}
