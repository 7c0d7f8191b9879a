//! A database server that is restarted under a step.

use serde_json::{Value, json};

use crate::bench::Bench;
use crate::support::{connect_to, until};

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

const SWAP: &str = "
lifeboat: 1
plan: swap
targets: { db: postgres }
steps:
  swap:
    retry: { attempts: 20, delay: 200ms, factor: 1 }
    postgres.swap_databases: { target: db, live: app, replacement: app_new, keep: app_old }
  check:
    postgres.verify: { target: db, database: app, checks: { it: { sql: SELECT n FROM public.who, expect: 2 } } }
";

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_restarted_behind_a_fence_swaps_once_and_opens_it() {
    let port = crate::support::ports::free_port();
    let sandbox = json!({ "port": port, "password": "fence-test" });
    let environment = json!({
        "lifeboat": 1, "environment": "here", "targets": { "db": { "postgres": { "sandbox": sandbox } } },
    });
    let bench = Bench::new(&[("swap.yaml", SWAP), ("environments/here.yaml", &environment.to_string())]);
    let here = ["--env", "environments/here.yaml"];
    bench.ends(0, &[&["sandbox", "up"], &here[..]].concat());
    let url = |database: &str| format!("postgres://postgres:fence-test@127.0.0.1:{port}/{database}");
    let server = connect_to(&url("postgres")).await.unwrap();
    for (name, value) in [("app", 1), ("app_new", 2)] {
        server.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        let table = format!("CREATE TABLE who AS SELECT {value} AS n");
        connect_to(&url(name)).await.unwrap().batch_execute(&table).await.unwrap();
    }
    // Holds up the renames, and nothing before them.
    let holder = connect_to(&url("postgres")).await.unwrap();
    holder.batch_execute("BEGIN; COMMENT ON DATABASE app IS 'held'").await.unwrap();
    let child = bench.start(&[&["run", "swap.yaml"], &here[..]].concat());
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'ALTER DATABASE%RENAME%' AND wait_event_type = 'Lock'";
    until("the swap waits behind its fence", || async {
        server.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    bench.ends(0, &[&["sandbox", "stop", "db"], &here[..]].concat());
    bench.ends(0, &[&["sandbox", "up"], &here[..]].concat());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let server = connect_to(&url("postgres")).await.unwrap();
    let open = "SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database WHERE datallowconn AND datname LIKE 'app%'";
    assert_eq!(server.query_one(open, &[]).await.unwrap().get::<_, &str>(0), "app app_old");
    bench.ends(0, &[&["sandbox", "down"], &here[..]].concat());
}
