//! Steering a resume, on a real PostgreSQL: what is marked done is asked of it, what runs again really does.

use std::process::Command;

use serde_json::Value;

use crate::bench::{Bench, Ran};

const ENVIRONMENT: &str = r#"
lifeboat: 1
environment: test
targets:
  db: { postgres: { url: "{{ env.LIFEBOAT_TEST_POSTGRES }}" } }
"#;

/// A database of this test's own, gone with it, and what is asked of the server beside the program.
struct Database(String);

impl Database {
    fn new(name: &str) -> Self {
        let name = format!("steer_{name}_{}", std::process::id());
        psql("postgres", &format!("CREATE DATABASE {name}"));
        psql(&name, "CREATE TABLE public.acts (what text)");
        Self(name)
    }

    fn acts(&self) -> String {
        psql(&self.0, "SELECT string_agg(what, ' ' ORDER BY what) FROM public.acts")
    }

    /// The plan with `DB` as this database, and the environment.
    fn bench(&self, plan: &str) -> Bench {
        Bench::new(&[("plan.yaml", &self.in_place(plan)), ("environments/test.yaml", ENVIRONMENT)])
    }

    fn in_place(&self, plan: &str) -> String {
        plan.replace("DB", &self.0)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        for name in [self.0.clone(), format!("{}_made", self.0)] {
            psql("postgres", &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
        }
    }
}

fn url(database: &str) -> String {
    let url = std::env::var("LIFEBOAT_TEST_POSTGRES").expect("a superuser's URL, as `just services-up` gives one");
    let (server, _) = url.rsplit_once('/').unwrap();
    format!("{server}/{database}")
}

fn psql(database: &str, sql: &str) -> String {
    let output = Command::new("psql").args(["-qtAX", "-c", sql, &url(database)]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A text without the line breaks of a narrow terminal.
fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Resumes with these arguments and a reason.
fn steer(bench: &Bench, exit: i32, arguments: &[&str]) -> Ran {
    bench.ends(exit, &[&["resume"], arguments, &["--because", "the runbook says so"]].concat())
}

fn step<'a>(evidence: &'a Value, id: &str) -> &'a Value {
    evidence["steps"].as_array().unwrap().iter().find(|step| step["id"] == id).unwrap()
}

fn evidence(bench: &Bench) -> Value {
    serde_json::from_str(&bench.ends(0, &["status", "--format", "json"]).stdout()).unwrap()
}

const INSERTS: &str = r#"
lifeboat: 1
plan: steered
steps:
  insert:
    postgres.execute: { target: db, database: DB, sql: "INSERT INTO public.acts VALUES ('a')", affected: 1 }
  follow:
    postgres.execute: { target: db, database: DB, sql: "INSERT INTO public.acts VALUES ('b')", affected: 1 }
  mend:
    exec: { argv: [test, -f, mended], effects: ["read file:mended"] }
"#;

#[test]
fn a_statement_runs_again_exactly_once_for_each_time_it_is_ordered() {
    let db = Database::new("rerun");
    let bench = db.bench(INSERTS);
    bench.ends(1, &["run", "plan.yaml", "--env", "test"]);
    let dry = steer(&bench, 0, &["--rerun", "insert", "--dry-run"]).stdout();
    assert!(dry.contains("run again by maria@"), "{dry}");
    assert_eq!(db.acts(), "a b", "a dry-run runs nothing");
    steer(&bench, 1, &["--rerun", "insert"]);
    assert_eq!(db.acts(), "a a b b", "what depends on it runs again as well");
    bench.ends(1, &["resume"]);
    assert_eq!(db.acts(), "a a b b", "a plain resume keeps both");
    let evidence = evidence(&bench);
    assert_eq!(
        (&step(&evidence, "insert")["attempts"], &step(&evidence, "follow")["attempts"]),
        (&2.into(), &2.into())
    );
    steer(&bench, 1, &["--rerun", "follow"]);
    assert_eq!(db.acts(), "a a b b b");
    std::fs::write(bench.path().join("mended"), "").unwrap();
    bench.ends(0, &["resume"]);
    let report = bench.ends(0, &["report"]).stdout();
    assert!(report.contains("## Steered") && report.contains("the runbook says so"), "{report}");
    let refused = steer(&bench, 2, &["--rerun", "insert"]);
    assert!(refused.stderr().contains("nothing is left to do"), "{}", refused.stderr());
}

const CREATES: &str = r#"
lifeboat: 1
plan: steered
steps:
  create:
    postgres.create_database: { target: db, database: DB_made, owner: nobody_of_that_name }
  use:
    postgres.query: { target: db, sql: "SELECT datname FROM pg_database WHERE oid = $1", params: ["{{ steps.create.oid }}"] }
"#;

#[test]
fn a_database_made_by_hand_is_marked_done_once_it_is_there() {
    let db = Database::new("mark");
    let bench = db.bench(CREATES);
    bench.ends(1, &["run", "plan.yaml", "--env", "test", "--no-preflight"]);
    let refused = steer(&bench, 3, &["--mark-done", "create"]);
    let missing = db.in_place("there is no database DB_made");
    assert!(flat(&refused.stderr()).contains(&missing), "{}", refused.stderr());
    // On the operator's word alone its oid isn't known, and the next step reads it.
    let refused = steer(&bench, 2, &["--mark-done", "create", "--unverified"]);
    assert!(flat(&refused.stderr()).contains("steps.create.oid"), "{}", refused.stderr());
    psql("postgres", &db.in_place("CREATE DATABASE DB_made"));
    steer(&bench, 0, &["--mark-done", "create", "--dry-run"]);
    steer(&bench, 0, &["--mark-done", "create"]);
    let oid = psql("postgres", &db.in_place("SELECT oid FROM pg_database WHERE datname = 'DB_made'"));
    let evidence = evidence(&bench);
    let create = step(&evidence, "create");
    assert_eq!(create["outputs"]["oid"].to_string(), oid);
    assert_eq!(
        (&create["ordered"]["order"], &create["ordered"]["unverified"]),
        (&"mark_done".into(), &Value::Null)
    );
    let status = bench.ends(0, &["status"]).stdout();
    assert!(flat(&status).contains("marked done by maria@"), "{status}");
}

#[test]
fn a_database_is_not_created_again_over_the_one_that_is_there() {
    let db = Database::new("again");
    let mend = "  mend:\n    exec: { argv: [test, -f, mended], effects: [\"read file:mended\"] }\n";
    let bench = db.bench(&(CREATES.replace(", owner: nobody_of_that_name", "") + mend));
    bench.ends(1, &["run", "plan.yaml", "--env", "test"]);
    let before = psql("postgres", &db.in_place("SELECT oid FROM pg_database WHERE datname = 'DB_made'"));
    let refused = steer(&bench, 3, &["--rerun", "create"]);
    assert!(flat(&refused.all()).contains("exists"), "{}", refused.all());
    assert_eq!(psql("postgres", &db.in_place("SELECT oid FROM pg_database WHERE datname = 'DB_made'")), before);
    psql("postgres", &db.in_place("DROP DATABASE DB_made"));
    steer(&bench, 1, &["--rerun", "create"]);
    let after = psql("postgres", &db.in_place("SELECT oid FROM pg_database WHERE datname = 'DB_made'"));
    assert!(!after.is_empty() && after != before, "{after} {before}");
    assert_eq!(step(&evidence(&bench), "create")["outputs"]["oid"].to_string(), after);
}

const BROKEN: &str = r#"
lifeboat: 1
plan: steered
steps:
  insert:
    postgres.execute: { target: db, database: DB, sql: "INSERT INTO public.acts VALUES ('a')" }
  broken:
    postgres.execute: { target: db, database: DB, sql: "INSERT INTO public.missing VALUES ('b')" }
"#;

#[test]
fn a_statement_that_had_no_effect_is_marked_done_only_visibly_unverified() {
    let db = Database::new("unverified");
    let bench = db.bench(BROKEN);
    bench.ends(1, &["run", "plan.yaml", "--env", "test", "--no-preflight"]);
    let refused = steer(&bench, 3, &["--mark-done", "broken"]);
    assert!(flat(&refused.stderr()).contains("it had no effect"), "{}", refused.stderr());
    steer(&bench, 0, &["--mark-done", "broken", "--unverified"]);
    let (status, report) = (bench.ends(0, &["status"]).stdout(), bench.ends(0, &["report"]).stdout());
    assert!(flat(&status).contains("marked done, unverified, by maria@"), "{status}");
    assert!(report.contains("marked done, unverified, by maria@"), "{report}");
}

#[test]
fn an_edited_plan_takes_over_from_end_to_end() {
    let db = Database::new("edited");
    let bench = db.bench(BROKEN);
    bench.ends(1, &["run", "plan.yaml", "--env", "test", "--no-preflight"]);
    let mended = db.in_place(&BROKEN.replace("public.missing", "public.acts"))
        + &db.in_place("  more:\n    postgres.execute: { target: db, database: DB, sql: \"INSERT INTO public.acts VALUES ('c')\" }\n");
    std::fs::write(bench.path().join("mended.yaml"), &mended).unwrap();
    // Still broken: the walk over what is left stops it before anything is touched.
    std::fs::write(bench.path().join("other.yaml"), db.in_place(&BROKEN.replace("missing", "absent"))).unwrap();
    let blocked = steer(&bench, 3, &["--plan", "other.yaml"]);
    assert!(flat(&blocked.all()).contains("public.absent"), "{}", blocked.all());
    let dry = steer(&bench, 0, &["--plan", "mended.yaml", "--dry-run", "--format", "json"]).stdout();
    let dry: Value = serde_json::from_str(&dry).unwrap();
    let changes: Vec<_> =
        dry["steered"]["plan"]["changes"].as_array().unwrap().iter().map(|it| &it["change"]).collect();
    assert_eq!(changes, ["changed", "new"]);
    steer(&bench, 0, &["--plan", "mended.yaml"]);
    assert_eq!(db.acts(), "a b c");
    let run = bench.path().join(".lifeboat/runs").join(bench.latest());
    assert!(run.join("plan/plan.yaml").exists() && run.join("plan.2/mended.yaml").exists());
    bench.ends(0, &["audit"]);
    let schema = serde_json::from_str(&bench.ends(0, &["schema", "event"]).stdout()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    for line in std::fs::read_to_string(run.join("journal.jsonl")).unwrap().lines() {
        assert!(validator.is_valid(&serde_json::from_str(line).unwrap()), "{line}");
    }
    let report = bench.ends(0, &["report"]).stdout();
    assert!(report.contains("an edited plan took over"), "{report}");
}

#[test]
fn what_is_missing_or_contradicts_is_said_with_what_to_write() {
    let bench = Bench::new(&[("plan.yaml", FAILS)]);
    bench.ends(1, &["run", "plan.yaml"]);
    let said = bench.ends(2, &["resume", "--skip", "first"]).stderr();
    assert!(flat(&said).contains("`--skip` wants a reason") && said.contains("--because '"), "{said}");
    let said = steer(&bench, 2, &["--skip", "frist"]).stderr();
    assert!(flat(&said).contains("did you mean `first`?"), "{said}");
    let said = steer(&bench, 2, &["--skip", "first", "--rerun", "first"]).stderr();
    assert!(flat(&said).contains("named with --skip and with --rerun"), "{said}");
    let said = steer(&bench, 2, &[]).stderr();
    assert!(flat(&said).contains("nothing is ordered"), "{said}");
    steer(&bench, 2, &["--skip", "first", "--unverified"]);
    steer(&bench, 2, &["--accept", "first"]);
    steer(&bench, 0, &["--skip", "first", "--skip", "last"]);
    let status = bench.ends(0, &["status"]).stdout();
    assert!(flat(&status).contains("skipped by maria@"), "{status}");
}

const FAILS: &str = "
lifeboat: 1
plan: fails
steps:
  first:
    timeout: 10m
    exec: { argv: [test, -f, mended], effects: [\"change file:x\"] }
  last:
    exec: { argv: [sleep, '600'], effects: [\"change file:x\"] }
";

#[test]
fn a_running_step_gets_another_timeout_from_another_terminal() {
    let bench = Bench::new(&[("plan.yaml", FAILS), ("mended", "")]);
    let child = bench.start(&["run", "plan.yaml"]);
    bench.wait_for("last", "running");
    let run = bench.latest();
    let said = bench.ends(2, &["adjust", &run, "first", "--timeout", "1m", "--because", "slow"]).stderr();
    assert!(flat(&said).contains("step `first` is done"), "{said}");
    bench.ends(2, &["adjust", &run, "last", "--because", "slow"]);
    bench.ends(2, &["adjust", &run, "last", "--timeout", "200ms"]);
    let said = bench.ends(0, &["adjust", &run, "last", "--timeout", "200ms", "--because", "slow"]).stdout();
    assert!(flat(&said).contains("timeout 200ms") && said.contains("takes it in now"), "{said}");
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let status = bench.ends(0, &["status"]).stdout();
    assert!(status.contains("timeout 200ms by maria@"), "{status}");
    let said = bench.ends(0, &["adjust", &run, "last", "--attempts", "2", "--because", "again"]).stdout();
    assert!(flat(&said).contains("from the next resume on"), "{said}");
    let report = bench.ends(0, &["report"]).stdout();
    assert!(report.contains("`last`: 2 attempts"), "{report}");
}

const SWAPS: &str = r"
lifeboat: 1
plan: swaps
steps:
  swap:
    postgres.swap_databases: { target: db, live: DB, replacement: DB_made, keep: DB_old }
  check:
    postgres.verify: { target: db, database: DB, constraints: true }
";

#[test]
fn what_a_killed_swap_left_behind_its_fence_is_said() {
    let db = Database::new("fence");
    psql("postgres", &db.in_place("CREATE DATABASE DB_made"));
    let bench = db.bench(SWAPS);
    // Holds up the renames, and nothing before.
    let lock = db.in_place("BEGIN; COMMENT ON DATABASE DB IS 'held'; SELECT pg_sleep(600)");
    let mut holder = Command::new("psql").args(["-qtAX", "-c", &lock, &url("postgres")]).spawn().unwrap();
    let held = db.in_place("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%DATABASE DB IS ''held''%' AND wait_event = 'PgSleep'");
    until_told(|| psql("postgres", &held) == "1");
    let mut run = bench.start(&["run", "plan.yaml", "--env", "test"]);
    let waiting = db.in_place("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'ALTER DATABASE \"DB\" RENAME%' AND wait_event_type = 'Lock'");
    until_told(|| psql("postgres", &waiting) == "1");
    run.kill().unwrap();
    run.wait().unwrap();
    let status = flat(&bench.ends(0, &["status"]).stdout());
    for name in [db.0.clone(), format!("{}_made", db.0)] {
        let said = format!("database {name} on db may be fenced: takes no connections by swap");
        assert!(status.contains(&said), "{said}: {status}");
        let open = format!("SELECT datallowconn FROM pg_database WHERE datname = '{name}'");
        assert_eq!(psql("postgres", &open), "f");
    }
    holder.kill().unwrap();
    holder.wait().unwrap();
    psql(
        "postgres",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%IS ''held''%' AND wait_event = 'PgSleep'",
    );
    bench.ends(0, &["resume"]);
    let status = flat(&bench.ends(0, &["status"]).stdout());
    assert!(!status.contains("fenced"), "{status}");
    psql("postgres", &db.in_place("DROP DATABASE DB_old"));
}

fn until_told(mut so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !so() {
        assert!(std::time::Instant::now() < deadline, "waited in vain");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
