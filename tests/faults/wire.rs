//! Connections that are lost at the worst moment, to PostgreSQL and to Docker's engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lifeboat::service::{DockerSettings, PostgresSettings, Target};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::bench::Bench;
use crate::support::{Databases, Harness, postgres_url, sql, value};

/// When a connection is lost, of the first one on which the words come by.
#[derive(Clone, Copy)]
enum Lost {
    /// The words never arrive.
    Before,
    /// They arrive, and nobody hears the answer.
    After,
}

/// Carries bytes both ways until the client says `words`; then the wire is cut. Gives whether it was.
async fn carry<C, S>(client: C, server: S, words: &[u8], lost: Lost) -> bool
where
    C: AsyncRead + AsyncWrite,
    S: AsyncRead + AsyncWrite,
{
    let (mut asks, mut hears) = tokio::io::split(client);
    let (mut answers, mut takes) = tokio::io::split(server);
    let asking = async {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let Ok(read @ 1..) = asks.read(&mut buffer).await else { return false };
            let found = buffer[..read].windows(words.len()).any(|window| window == words);
            if found && matches!(lost, Lost::Before) {
                return true;
            }
            if takes.write_all(&buffer[..read]).await.is_err() {
                return false;
            }
            if found {
                return true;
            }
        }
    };
    let cut = {
        let answering = tokio::io::copy(&mut answers, &mut hears);
        tokio::select! { cut = asking => cut, _ = answering => false }
    };
    if cut && matches!(lost, Lost::After) {
        // The other side has done it once it answers.
        let _ = answers.read(&mut [0; 1024]).await;
    }
    cut
}

/// An address that leads to the tests' PostgreSQL, over a wire that is cut `times` times.
async fn postgres_through(words: &'static str, lost: Lost, times: usize) -> (String, Arc<AtomicUsize>) {
    postgres_away(words, lost, times, 0).await
}

/// The same; after the last cut so many connections are refused.
async fn postgres_away(words: &'static str, lost: Lost, times: usize, away: usize) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let url = postgres_url();
    let server = url.rsplit_once('@').unwrap().1.split('/').next().unwrap().to_owned();
    let cuts = Arc::new(AtomicUsize::new(0));
    let (counted, refused) = (cuts.clone(), Arc::new(AtomicUsize::new(0)));
    let through = url.replace(&server, &format!("127.0.0.1:{port}"));
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            if counted.load(Ordering::SeqCst) >= times && refused.fetch_add(1, Ordering::SeqCst) < away {
                continue;
            }
            let mut server = TcpStream::connect(&server).await.unwrap();
            let counted = counted.clone();
            tokio::spawn(async move {
                if counted.load(Ordering::SeqCst) >= times {
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                } else if carry(client, server, words.as_bytes(), lost).await {
                    counted.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    (through, cuts)
}

fn postgres(url: &str) -> Target {
    let settings: PostgresSettings = serde_json::from_value(json!({ "url": url })).unwrap();
    Target::Postgres(settings)
}

/// Runs a step until it is through, as the engine would, and says how often it was run.
async fn insist(harness: &Harness, step: &str, params: Value) -> (usize, lifeboat::step::Done) {
    for attempt in 1..5 {
        match harness.run(step, params.clone()).await {
            Ok(done) => return (attempt, done),
            Err(failure) => assert!(failure.transient, "{failure}"),
        }
    }
    panic!("{step} never came through");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_asked_for_and_not_made_again() {
    let names = Databases::new("fa_commit");
    let database = names.create("db", "CREATE TABLE counter (n int); INSERT INTO counter VALUES (0)").await;
    for (lost, attempts) in [(Lost::After, 1), (Lost::Before, 2)] {
        sql(&database, "UPDATE counter SET n = 0").await;
        let (url, cuts) = postgres_through("COMMIT", lost, 1).await;
        let harness = Harness::with([("db", postgres(&url))]);
        let params = json!({ "target": "db", "database": database, "sql": "UPDATE public.counter SET n = n + 1" });
        let (tried, done) = insist(&harness, "postgres.execute", params).await;
        assert_eq!((tried, &done.outputs["affected"]), (attempts, &json!(1)));
        assert_eq!(cuts.load(Ordering::SeqCst), 1, "the wire was cut");
        assert_eq!(value(&database, "SELECT n FROM counter").await.unwrap(), "1");
    }
}

/// A commit that took effect, an answer that is lost, and a server that can't be asked before the next attempt.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_can_not_be_asked_for_at_once_is_asked_for_before_the_next_attempt() {
    let names = Databases::new("fa_away");
    let database = names.create("db", "CREATE TABLE counter (n int); INSERT INTO counter VALUES (0)").await;
    let (url, cuts) = postgres_away("COMMIT", Lost::After, 1, 2).await;
    let plan = format!(
        "lifeboat: 1\nplan: count\ntargets: {{ db: postgres }}\nsteps:\n  raise:\n    \
         retry: {{ attempts: 9, delay: 200ms, factor: 1 }}\n    postgres.execute: {{ target: db, database: {database}, \
         sql: UPDATE public.counter SET n = n + 1 }}\n"
    );
    let environment =
        json!({ "lifeboat": 1, "environment": "test", "targets": { "db": { "postgres": { "url": url } } } });
    let bench = Bench::new(&[("count.yaml", &plan), ("test.yaml", &environment.to_string())]);
    let ran = bench.ends(0, &["run", "count.yaml", "--env", "./test.yaml"]);
    assert_eq!(cuts.load(Ordering::SeqCst), 1, "the wire was cut");
    assert_eq!(value(&database, "SELECT n FROM counter").await.unwrap(), "1", "{}", ran.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_copied_once_over_a_lost_commit() {
    let names = Databases::new("fa_rows");
    let tables = "CREATE TABLE a (id int PRIMARY KEY, t text)";
    let from = names
        .create("from", &format!("{tables}; INSERT INTO a SELECT g, 'x' FROM generate_series(1, 100) g"))
        .await;
    // Without a key a second copy would show.
    let to = names.create("to", "CREATE TABLE a (id int, t text)").await;
    for lost in [Lost::After, Lost::Before] {
        sql(&to, "DELETE FROM a").await;
        let (url, cuts) = postgres_through("COMMIT", lost, 1).await;
        let harness = Harness::with([("from", postgres(&postgres_url())), ("to", postgres(&url))]);
        let params = json!({
            "from": { "target": "from", "database": from, "table": "public.a" },
            "to": { "target": "to", "database": to, "table": "public.a" },
            "where": "id > $1", "params": [0],
        });
        insist(&harness, "postgres.copy_rows", params).await;
        assert_eq!(cuts.load(Ordering::SeqCst), 1, "the wire was cut");
        assert_eq!(value(&to, "SELECT count(*) FROM a").await.unwrap(), "100");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_loads_no_row_twice_over_a_lost_commit() {
    let names = Databases::new("fa_restore");
    // Without keys a second copy would show; in chunks, of which each is a transaction.
    let live = names
        .create(
            "live",
            "CREATE TABLE big (id int, t text); INSERT INTO big SELECT g, repeat(md5(g::text), 8) FROM generate_series(1, 20000) g; \
             CREATE TABLE small (id int); INSERT INTO small VALUES (1), (2)",
        )
        .await;
    let folder = tempfile::tempdir().unwrap();
    let store = || serde_json::from_value(json!({ "storage": { "scheme": "fs", "root": folder.path() } })).unwrap();
    let harness = Harness::with([("db", postgres(&postgres_url())), ("store", store())]);
    let place = json!({ "storage": "store", "path": "a.sql.zst" });
    harness.run("postgres.backup", json!({ "target": "db", "database": live, "to": place })).await.unwrap();
    for (at, (lost, times)) in
        [(Lost::After, 1), (Lost::Before, 1), (Lost::After, 3), (Lost::Before, 3)].into_iter().enumerate()
    {
        let (url, cuts) = postgres_through("COMMIT", lost, times).await;
        let harness = Harness::with([("db", postgres(&url)), ("store", store())]);
        let new = names.name(&format!("new{at}"));
        let params = json!({ "target": "db", "database": new, "create": true, "jobs": 2, "from": place });
        insist(&harness, "postgres.restore", params).await;
        assert!(cuts.load(Ordering::SeqCst) >= times, "the wire was cut");
        let verify = json!({ "target": "db", "database": new, "against": place });
        harness.run("postgres.verify_rows", verify).await.unwrap();
        assert_eq!(value(&new, "SELECT count(*) FROM big").await.unwrap(), "20000");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_happens_once_over_a_lost_commit() {
    let names = Databases::new("fa_swap");
    for (at, lost) in [Lost::After, Lost::Before].into_iter().enumerate() {
        let live = names.create(&format!("live{at}"), "CREATE TABLE old (a int)").await;
        let new = names.create(&format!("new{at}"), "CREATE TABLE new (a int)").await;
        let (url, cuts) = postgres_through("COMMIT", lost, 1).await;
        let harness = Harness::with([("db", postgres(&url))]);
        let keep = names.name(&format!("kept{at}"));
        let params = json!({ "target": "db", "live": live, "replacement": new, "keep": keep });
        insist(&harness, "postgres.swap_databases", params).await;
        assert_eq!(cuts.load(Ordering::SeqCst), 1, "the wire was cut");
        assert_eq!(
            value(&live, "SELECT relname FROM pg_class WHERE relname IN ('old', 'new')").await.unwrap(),
            "new"
        );
        assert_eq!(
            value(&keep, "SELECT relname FROM pg_class WHERE relname IN ('old', 'new')").await.unwrap(),
            "old"
        );
        let open = "SELECT bool_and(datallowconn) FROM pg_database WHERE datname IN ($live, $keep)";
        let open = open.replace("$live", &format!("'{live}'")).replace("$keep", &format!("'{keep}'"));
        assert_eq!(value(&live, &open).await.unwrap(), "t", "the fence is taken down");
    }
}

/// A container that ends when it is told to, gone with the test; and the engine that runs it.
struct Container {
    socket: String,
    name: String,
}

impl Container {
    fn new() -> Self {
        let socket = std::env::var("LIFEBOAT_TEST_DOCKER").expect("`.ci/services run` sets it");
        let socket = socket.trim_start_matches("unix://").to_owned();
        let container = Self { socket, name: format!("lifeboat-test-{:08x}", rand::random::<u32>()) };
        let ends = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
        let run = ["run", "-d", "--network", "none", "--name", &container.name];
        container.docker(&[run.as_slice(), &["lifeboat-test/busybox:1", "sh", "-c", ends]].concat());
        container
    }

    fn docker(&self, args: &[&str]) -> String {
        let host = format!("unix://{}", self.socket);
        let output = std::process::Command::new("docker").args(["-H", &host]).args(args).output().unwrap();
        assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn is_running(&self) -> bool {
        self.docker(&["inspect", "-f", "{{.State.Running}}", &self.name]) == "true"
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.docker(&["rm", "-f", &self.name]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_goes_away_in_the_middle_of_a_stop() {
    let container = Container::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let (cuts, counted, server) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), container.socket.clone());
    let cut = cuts.clone();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            // Gone: for a while nobody answers at all.
            if cut.load(Ordering::SeqCst) == 1 && counted.fetch_add(1, Ordering::SeqCst) < 2 {
                continue;
            }
            let (mut server, cut) = (UnixStream::connect(&server).await.unwrap(), cut.clone());
            tokio::spawn(async move {
                if cut.load(Ordering::SeqCst) > 0 {
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                } else if carry(client, server, b"/stop", Lost::After).await {
                    cut.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    let settings: DockerSettings =
        serde_json::from_value(json!({ "host": format!("unix://{}", path.display()) })).unwrap();
    let harness = Harness::with([("docker", Target::Docker(settings))]);
    let params = json!({ "target": "docker", "container": container.name, "grace": "5s" });
    let (tried, _) = insist(&harness, "container.stop", params).await;
    assert!(tried > 1 && cuts.load(Ordering::SeqCst) == 1, "it was cut, and tried {tried} times");
    assert!(!container.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_stays_away_ends_the_run_and_a_resume_completes_it() {
    let container = Container::new();
    let name = &container.name;
    let plan = format!(
        "lifeboat: 1\nplan: stop\ntargets: {{ docker: docker }}\nsteps:\n  stop:\n    \
         retry: {{ attempts: 3, delay: 50ms }}\n    container.stop: {{ target: docker, container: {name} }}\n  \
         after:\n    exec: {{ argv: [touch, after], effects: [] }}\n  \
         start:\n    container.start: {{ target: docker, container: {name}, wait: started }}\n"
    );
    let environment = "lifeboat: 1\nenvironment: test\ntargets: { docker: { docker: { host: 'unix://PATH' } } }\n";
    let bench = Bench::new(&[("stop.yaml", &plan)]);
    let path = bench.path().join("engine.sock");
    let environment = environment.replace("PATH", &path.display().to_string());
    std::fs::write(bench.path().join("test.yaml"), environment).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    let gone = Arc::new(AtomicUsize::new(0));
    let (state, server) = (gone.clone(), container.socket.clone());
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let (state, server) = (state.clone(), server.clone());
            tokio::spawn(async move {
                match state.load(Ordering::SeqCst) {
                    // Cut in the middle of the stop; from then on nobody answers.
                    0 => {
                        let server = UnixStream::connect(server).await.unwrap();
                        if carry(client, server, b"/stop", Lost::After).await {
                            state.store(1, Ordering::SeqCst);
                        }
                    }
                    1 => {}
                    _ => {
                        let mut server = UnixStream::connect(server).await.unwrap();
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    }
                }
            });
        }
    });
    let ran = bench.ends(1, &["run", "stop.yaml", "--env", "./test.yaml"]);
    assert!(ran.all().contains("lifeboat resume"), "{}", ran.all());
    assert!(!bench.path().join("after").exists(), "nothing follows it");
    // It stays away: nothing is lost by trying.
    bench.ends(1, &["resume"]);
    gone.store(2, Ordering::SeqCst);
    bench.ends(0, &["resume"]);
    assert!(bench.path().join("after").exists());
    assert!(container.is_running());
}
