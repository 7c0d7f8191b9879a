//! A resume where something else answers than the run began on: refused before anything is touched.

use std::process::Command;

use lifeboat::service::PostgresSandbox;
use lifeboat::service::sandbox::Cluster;
use serde_json::{Value, json};

use crate::bench::Bench;
use crate::support::{Databases, postgres_url, sql};

/// Looks at something, then fails until `mended` is there.
fn plan(steps: &str, targets: &str) -> String {
    format!(
        "lifeboat: 1\nplan: guarded\nsteps:\n{steps}  mend:\n    exec: {{ argv: [test, -f, mended], effects: [] }}\n\
         {targets}"
    )
}

fn bench(steps: &str, kinds: &str, targets: &Value) -> Bench {
    let bench = Bench::new(&[("guarded.yaml", &plan(steps, &format!("targets: {kinds}\n")))]);
    environment(&bench, targets);
    bench
}

fn environment(bench: &Bench, targets: &Value) {
    let text = json!({ "lifeboat": 1, "environment": "test", "targets": targets }).to_string();
    std::fs::create_dir_all(bench.path().join("environments")).unwrap();
    std::fs::write(bench.path().join("environments/test.yaml"), text).unwrap();
}

fn begin(bench: &Bench) {
    bench.ends(1, &["run", "guarded.yaml", "--env", "test", "--no-preflight"]);
}

/// Neither a resume nor a look at one goes on; both say why. Nothing is written.
fn refused(bench: &Bench, words: &[&str]) {
    let journal = || std::fs::read(bench.path().join(".lifeboat/runs").join(bench.latest()).join("journal.jsonl"));
    let before = journal().unwrap();
    for arguments in [&["resume", "--dry-run"][..], &["resume"]] {
        let ran = bench.ends(3, arguments);
        let said = ran.stderr().split_whitespace().collect::<Vec<_>>().join(" ");
        for word in words.iter().chain(&["nothing was touched", "as step `look` noted", "begin a new run"]) {
            assert!(said.contains(word), "{word} is not in {said}");
        }
    }
    assert_eq!(journal().unwrap(), before);
}

fn mended(bench: &Bench) {
    std::fs::write(bench.path().join("mended"), "").unwrap();
    bench.ends(0, &["resume"]);
}

const LOOK: &str = "  look:\n    postgres.query: { target: db, sql: \"SELECT 1\" }\n";
const WORK: &str = "  after:\n    postgres.query: { target: db, sql: \"SELECT 2\" }\n";

#[tokio::test]
async fn another_cluster_at_the_same_address() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [old, new] = [0, 1].map(|at| Cluster::new(folders[at].path().join("cluster")));
    let port = crate::support::ports::free_port();
    let settings =
        PostgresSandbox { port: Some(port), password: Some("same-for-both".into()), ..PostgresSandbox::default() };
    old.up(&settings).await.unwrap();
    let url = format!("postgres://postgres:same-for-both@127.0.0.1:{port}/postgres");
    let targets = json!({ "db": { "postgres": { "url": url } } });
    let steps = plan(LOOK, "").replace("  mend:", "  mend:\n    needs: [look]") + WORK;
    let bench = Bench::new(&[("guarded.yaml", &format!("{steps}targets: {{ db: postgres }}\n"))]);
    environment(&bench, &targets);
    begin(&bench);

    old.stop().await.unwrap();
    // Nobody is there: the step says so in its own words.
    std::fs::write(bench.path().join("mended"), "").unwrap();
    let ran = bench.ends(1, &["resume"]);
    assert!(ran.all().contains("refused") && !ran.all().contains("is not what this run began on"), "{}", ran.all());

    new.up(&settings).await.unwrap();
    refused(&bench, &["postgres:db is not what this run began on", "its system identifier was"]);
    new.stop().await.unwrap();

    old.up(&settings).await.unwrap();
    mended(&bench);
    for cluster in [&old, &new] {
        cluster.down().await.unwrap();
    }
}

#[tokio::test]
async fn a_database_that_somebody_dropped_and_made_anew() {
    let databases = Databases::new("guard");
    let name = databases.name("app");
    sql("postgres", &format!("CREATE DATABASE {name}")).await;
    let steps = format!(
        "  look:\n    postgres.execute: {{ target: db, database: {name}, sql: \"CREATE TABLE public.t (id int)\" }}\n"
    );
    let bench = bench(&steps, "{ db: postgres }", &json!({ "db": { "postgres": { "url": postgres_url() } } }));
    begin(&bench);
    sql("postgres", &format!("DROP DATABASE {name} WITH (FORCE)")).await;
    sql("postgres", &format!("CREATE DATABASE {name}")).await;
    refused(&bench, &[&format!("postgres:db/{name} is not what this run began on"), "its oid was"]);
}

#[tokio::test]
async fn what_the_run_itself_replaces_is_its_own_work() {
    let databases = Databases::new("own");
    let name = databases.name("app");
    sql("postgres", &format!("CREATE DATABASE {name}")).await;
    let steps = format!(
        "  look:\n    postgres.query: {{ target: db, database: {name}, sql: \"SELECT 1\" }}\n  \
           drop:\n    allow: [unverified_destruction, client_running, unproven_backup]\n    because: a test\n    \
             postgres.drop_database: {{ target: db, database: {name} }}\n  \
           create:\n    postgres.create_database: {{ target: db, database: {name} }}\n  \
           use:\n    postgres.query: {{ target: db, database: {name}, sql: \"SELECT 1\" }}\n"
    );
    let bench = bench(&steps, "{ db: postgres }", &json!({ "db": { "postgres": { "url": postgres_url() } } }));
    begin(&bench);
    mended(&bench);
}

#[test]
fn a_container_that_was_made_anew_under_its_name() {
    let name = crate::support::unique("guard").replace('_', "-");
    let host = std::env::var("LIFEBOAT_TEST_DOCKER").unwrap();
    let docker = |arguments: &[&str]| {
        let output = Command::new("docker").args(["-H", &host]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let run = || {
        docker(&[
            "run",
            "-d",
            "--network",
            "none",
            "--name",
            &name,
            "lifeboat-test/busybox:1",
            "/bin/busybox",
            "sh",
            "-c",
            "trap 'exit 0' TERM; while :; do /bin/busybox sleep 0.05; done",
        ]);
    };
    run();
    let steps = format!("  look:\n    container.restart: {{ target: docker, container: {name}, wait: started }}\n");
    let bench = bench(&steps, "{ docker: docker }", &json!({ "docker": { "docker": { "host": host } } }));
    begin(&bench);
    docker(&["rm", "-f", &name]);
    run();
    refused(&bench, &[&format!("container:docker/{name} is not what this run began on"), "its id was", "--rerun"]);
    // What noted it takes what is there now, when it is told to run again.
    bench.ends(1, &["resume", "--rerun", "look", "--because", "it was made anew on purpose"]);
    bench.ends(1, &["resume"]);
    docker(&["rm", "-f", &name]);
    run();
    refused(&bench, &["its id was"]);
    docker(&["rm", "-f", &name]);
    // Nothing is there: that is for the steps to say, and none needs it any more.
    mended(&bench);
}

#[test]
fn a_storage_whose_place_was_changed() {
    let steps = "  look:\n    storage.find: { target: backups, path: app_20240201T100000Z.sql.gz }\n";
    let place = |root: &str| json!({ "backups": { "storage": { "scheme": "fs", "root": root } } });
    let bench = bench(steps, "{ backups: storage }", &place("here"));
    for root in ["here", "there"] {
        std::fs::create_dir(bench.path().join(root)).unwrap();
        std::fs::write(bench.path().join(root).join("app_20240201T100000Z.sql.gz"), "x").unwrap();
    }
    begin(&bench);
    environment(&bench, &place("there"));
    refused(&bench, &["storage:backups is not what this run began on", "its root was"]);
    environment(&bench, &place("here"));
    mended(&bench);
}

#[test]
fn a_bucket_at_another_endpoint() {
    let steps = "  look:\n    \
                 storage.find: { target: backups, path: app_20240201T100000Z.sql.gz }\n";
    let place = |endpoint: &str| {
        json!({ "backups": { "storage": {
            "scheme": "s3", "bucket": "b", "endpoint": endpoint, "access_key_id": "k", "secret_access_key": "s3cret-value",
        } } })
    };
    let bench = bench(steps, "{ backups: storage }", &place("http://127.0.0.1:1"));
    begin(&bench);
    environment(&bench, &place("http://127.0.0.1:2"));
    refused(&bench, &["storage:backups is not what this run began on", "its endpoint was http://127.0.0.1:1"]);
}

#[test]
fn a_redis_at_another_address() {
    let place = |port: u16| json!({ "cache": { "redis": { "url": format!("redis://127.0.0.1:{port}/0") } } });
    let bench = bench("  look:\n    redis.check: { target: cache }\n", "{ cache: redis }", &place(1));
    begin(&bench);
    environment(&bench, &place(2));
    refused(&bench, &["redis:cache is not what this run began on", "its address was", "127.0.0.1:1"]);
}

#[tokio::test]
async fn a_database_that_is_replaced_between_two_steps_of_one_run() {
    let databases = Databases::new("between");
    let name = databases.create("app", "CREATE TABLE t (id int)").await;
    let insert =
        format!("postgres.execute: {{ target: db, database: {name}, sql: \"INSERT INTO public.t VALUES (1)\" }}");
    let steps = format!(
        "  look:\n    {insert}\n  gate:\n    exec: {{ argv: [sh, -c, \"until [ -f go ] || [ ! -e $PWD ]; do sleep 0.05; done\"], \
         effects: [] }}\n  again:\n    {insert}\n"
    );
    let bench = bench(&steps, "{ db: postgres }", &json!({ "db": { "postgres": { "url": postgres_url() } } }));
    let child = bench.start(&["run", "guarded.yaml", "--env", "test", "--no-preflight"]);
    bench.wait_for("gate", "running");
    sql("postgres", &format!("DROP DATABASE {name} WITH (FORCE)")).await;
    sql("postgres", &format!("CREATE DATABASE {name}")).await;
    sql(&name, "CREATE TABLE t (id int)").await;
    std::fs::write(bench.path().join("go"), "").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report = bench.ends(0, &["report", "--format", "json"]).stdout();
    let words = format!("nothing was touched: postgres:db/{name} is not what this run began on");
    assert!(report.contains(&words), "{report}");
    assert_eq!(crate::support::value(&name, "SELECT count(*) FROM t").await.unwrap(), "0");
}

#[test]
fn an_undo_refuses_another_container_and_leaves_it_when_told_to() {
    let name = crate::support::unique("undone").replace('_', "-");
    let host = std::env::var("LIFEBOAT_TEST_DOCKER").unwrap();
    let docker = |arguments: &[&str]| {
        let output = Command::new("docker").args(["-H", &host]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let make = |verb: &str| {
        let image = "lifeboat-test/busybox:1";
        let trap = "trap 'exit 0' TERM; while :; do /bin/busybox sleep 0.05; done";
        let mut arguments = verb.split(' ').collect::<Vec<_>>();
        arguments.extend(["--network", "none", "--name", &name, image, "/bin/busybox", "sh", "-c", trap]);
        docker(&arguments);
    };
    make("run -d");
    let steps = format!(
        "  touch:\n    exec: {{ argv: [touch, made], effects: [\"change file:made\"] }}\n    \
         undo: {{ exec: {{ argv: [rm, made], effects: [\"change file:made\"] }} }}\n  \
         look:\n    allow: [never_started]\n    because: a test\n    \
         container.stop: {{ target: docker, container: {name} }}\n    \
         undo: {{ container.start: {{ target: docker, container: {name}, wait: started }} }}\n"
    );
    let bench = bench(&steps, "{ docker: docker }", &json!({ "docker": { "docker": { "host": host } } }));
    begin(&bench);
    docker(&["rm", "-f", &name]);
    make("create");
    let ran = bench.ends(3, &["undo"]);
    let said = ran.stderr().split_whitespace().collect::<Vec<_>>().join(" ");
    for word in [&format!("container:docker/{name} is not what this run began on"), "its id was", "--leave"] {
        assert!(said.contains(word), "{word} is not in {said}");
    }
    let running = || docker(&["inspect", "-f", "{{.State.Running}}", &name]);
    assert_eq!(running(), "false", "it was not started");
    bench.ends(0, &["undo", "--leave", "look", "--because", "it is another one"]);
    assert_eq!(running(), "false");
    assert!(!bench.path().join("made").exists(), "the rest is taken back");
    let status = bench.ends(0, &["status"]).stdout();
    assert!(status.contains("it is another one"), "{status}");
    docker(&["rm", "-f", &name]);
}

#[tokio::test]
async fn a_server_that_does_not_say_who_it_is_is_told_of() {
    let databases = Databases::new("untold");
    // The right is a database's own.
    let name = databases.create("app", "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM public").await;
    let role = crate::support::unique("untold_role");
    sql("postgres", &format!("CREATE ROLE {role} LOGIN PASSWORD 'untold-password'")).await;
    let url = crate::support::url_with(&postgres_url(), Some((&role, "untold-password")), &name);
    let target = json!({ "db": { "postgres": { "url": url, "maintenance_database": name } } });
    let bench = bench(LOOK, "{ db: postgres }", &target);
    begin(&bench);
    let report = bench.ends(0, &["report", "--format", "json"]).stdout();
    assert!(report.contains("the role of postgres:db may not ask who the server is"), "{report}");
    // Once it may, nothing is taken for another server.
    sql(&name, &format!("GRANT EXECUTE ON FUNCTION pg_control_system() TO {role}")).await;
    mended(&bench);
    sql(&name, &format!("DROP OWNED BY {role}")).await;
    sql("postgres", &format!("DROP ROLE {role}")).await;
}
