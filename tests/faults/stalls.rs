//! An S3 server that goes silent for good, in the middle of an object: the connection stands, and nothing comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lifeboat::secret::Redactor;
use lifeboat::service::storage::Storage;
use lifeboat::service::{StorageSettings, Target};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::bench::Bench;
use crate::support::{Databases, postgres_url, unique, value};

/// Where a connection goes silent.
#[derive(Clone, Copy, Debug)]
enum Silent {
    /// So many bytes into an object that is read; 0: after the answer's head. What is asked for from there on is
    /// answered by a head alone.
    Answer(usize),
    /// So many bytes into each answer.
    EachAnswer(usize),
    /// So many bytes into what is sent.
    Request(usize),
}

/// What stands before the S3 server.
struct Gate {
    url: String,
    /// Whether connections go silent; those that did stay so.
    shut: Arc<AtomicBool>,
    /// How many did.
    silent: Arc<AtomicUsize>,
}

fn endpoint() -> String {
    std::env::var("LIFEBOAT_TEST_S3").expect("`.ci/services run` sets it")
}

/// A gate that is shut.
async fn gate(at: Silent) -> Gate {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (shut, silent) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let gate = Gate { url, shut: shut.clone(), silent: silent.clone() };
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let server = TcpStream::connect(endpoint().trim_start_matches("http://")).await.unwrap();
            tokio::spawn(carry(client, server, at, shut.clone(), silent.clone()));
        }
    });
    gate
}

/// Carries bytes both ways up to the place; from there on nothing, and the connection stands until the client leaves.
async fn carry(
    mut client: TcpStream,
    mut server: TcpStream,
    at: Silent,
    shut: Arc<AtomicBool>,
    silent: Arc<AtomicUsize>,
) -> std::io::Result<()> {
    let (mut asked, mut told) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    // Of the exchange that goes on.
    let (mut sent, mut reads, mut bytes, mut answer) = (0, false, 0, Vec::new());
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let read = read?;
                if read == 0 { return Ok(()) }
                if asked[..read].starts_with(b"GET ") {
                    let has = |words: &[u8]| asked[..read].windows(words.len()).any(|at| at == words);
                    reads = has(b"/a.sql") && !has(b"/a.sql.manifest");
                    bytes = match at {
                        Silent::Answer(_) if has(b"range: bytes=") && !has(b"range: bytes=0-") => 0,
                        Silent::Answer(bytes) | Silent::EachAnswer(bytes) => bytes,
                        Silent::Request(_) => usize::MAX,
                    };
                    answer.clear();
                }
                sent += read;
                if matches!(at, Silent::Request(bytes) if sent > bytes) && shut.load(Ordering::SeqCst) {
                    break;
                }
                server.write_all(&asked[..read]).await?;
            }
            read = server.read(&mut told) => {
                let read = read?;
                if read == 0 { return Ok(()) }
                sent = 0;
                if reads && shut.load(Ordering::SeqCst) {
                    let before = answer.len();
                    answer.extend_from_slice(&told[..read]);
                    let head = answer.windows(4).position(|at| at == b"\r\n\r\n").map_or(usize::MAX, |at| at + 4);
                    let until = head.saturating_add(bytes);
                    if answer.len() >= until {
                        client.write_all(&answer[before..until.max(before)]).await?;
                        break;
                    }
                }
                client.write_all(&told[..read]).await?;
            }
        }
    }
    silent.fetch_add(1, Ordering::SeqCst);
    std::future::pending().await
}

/// What the tests share: a bucket, a database, and plans with the bucket as it is and behind a gate.
struct Place {
    bench: Bench,
    names: Databases,
    live: String,
    settings: StorageSettings,
    gate: Gate,
    /// What its runs' ids begin with: on one server no two may have the same.
    test: String,
}

const PLANS: [(&str, &str); 4] = [
    ("back-up", "postgres.backup: { target: db, database: LIVE, to: { storage: store, path: a.sql } }"),
    (
        "restore",
        "postgres.restore: { target: db, database: NEW, create: true, from: { storage: store, path: a.sql } }",
    ),
    ("verify", "storage.verify: { target: store, path: a.sql, checksum: true }"),
    ("copy", "storage.copy: { from: { storage: store, path: a.sql }, to: { storage: store, path: b.sql } }"),
];

impl Place {
    async fn new(test: &str, at: Silent, timeout: Option<&str>) -> Self {
        let bucket = unique(test).replace('_', "-");
        let made = reqwest::Client::new().put(format!("{}/{bucket}", endpoint())).send().await.unwrap();
        assert!(made.status().is_success(), "{made:?}");
        let names = Databases::new(test);
        // Three parts of an upload.
        let large = "CREATE TABLE large AS SELECT g AS id, md5(g::text) || md5((g+1)::text) AS noise FROM generate_series(1, 250000) g";
        let live = names.create("live", large).await;
        let gate = gate(at).await;
        let store = |endpoint: &str| {
            json!({ "storage": {
                "scheme": "s3", "bucket": bucket, "endpoint": endpoint,
                "access_key_id": "testing", "secret_access_key": "testing", "disable_config_load": true,
            } })
        };
        let db = json!({ "postgres": { "url": postgres_url() } });
        let mut gated = store(&gate.url);
        if let Some(timeout) = timeout {
            gated["storage"]["timeout"] = timeout.into();
        }
        let environment = |store: &Value| {
            json!({ "lifeboat": 1, "environment": "test", "targets": { "db": db, "store": store } }).to_string()
        };
        let Target::Storage(settings) = serde_json::from_value(store(&endpoint())).unwrap() else { unreachable!() };
        let bench =
            Bench::new(&[("gated.yaml", &environment(&gated)), ("sound.yaml", &environment(&store(&endpoint())))]);
        for (name, step) in PLANS {
            let step = step.replace("LIVE", &live).replace("NEW", &names.name("new"));
            let plan = format!(
                "lifeboat: 1\nplan: {name}\ntargets: {{ db: postgres, store: storage }}\nsteps:\n  {name}:\n    \
                 retry: {{ attempts: 9, delay: 100ms, factor: 1 }}\n    {step}\n"
            );
            std::fs::write(bench.path().join(format!("{name}.yaml")), plan).unwrap();
        }
        Self { bench, names, live, settings, gate, test: unique(test) }
    }

    /// The objects in the bucket, asked without the gate.
    async fn objects(&self) -> Vec<String> {
        let store = Storage::new("store", &self.settings, Redactor::default()).unwrap();
        store.list("").await.unwrap().into_iter().map(|object| object.path).collect()
    }

    fn sound(&self, plan: &str) {
        self.bench.ends(0, &["run", &format!("{plan}.yaml"), "--env", "./sound.yaml"]);
    }

    /// The run of a plan.
    fn run(&self, plan: &str) -> String {
        format!("{}-{plan}", self.test)
    }

    fn journal(&self, plan: &str) -> String {
        let path = self.bench.path().join(format!(".lifeboat/runs/{}/journal.jsonl", self.run(plan)));
        std::fs::read_to_string(path).unwrap_or_default()
    }

    fn start(&self, plan: &str) -> std::process::Child {
        let (file, run) = (format!("{plan}.yaml"), self.run(plan));
        self.bench.start(&["run", &file, "--env", "./gated.yaml", "--no-preflight", "--run-id", &run])
    }

    /// What failed attempts of a plan's step said.
    fn failures(&self, plan: &str) -> Vec<Value> {
        let text = self.journal(plan);
        let records = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let failed = records.filter(|record| record["event"]["type"] == "attempt_failed");
        failed.map(|record| record["event"]["error"].clone()).collect()
    }

    async fn restored(&self) {
        let rows = "SELECT count(*) || ' ' || md5(string_agg(noise, ',' ORDER BY id)) FROM large";
        assert_eq!(value(&self.names.name("new"), rows).await, value(&self.live, rows).await);
    }
}

async fn wait_until(what: &str, seconds: u64, so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Runs a plan while the S3 server is silent until an attempt has failed of it; then the server answers again.
async fn comes_through(place: &Place, plan: &str, verbs: &[&str], appears: Option<&str>) {
    place.gate.shut.store(true, Ordering::SeqCst);
    let child = place.start(plan);
    wait_until("an attempt fails", 60, || !place.failures(plan).is_empty()).await;
    let before = place.objects().await;
    assert!(appears.is_none_or(|name| !before.iter().any(|object| object.starts_with(name))), "{before:?}");
    place.gate.shut.store(false, Ordering::SeqCst);
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    for error in place.failures(plan) {
        let message = error["message"].as_str().unwrap();
        assert!(error["transient"] == true && message.contains("the service did nothing for 1s"), "{error}");
        let named = verbs.iter().any(|verb| message.contains(&format!("{verb} `a.sql` in the storage `store`")));
        assert!(named, "{error}");
        assert!(error["help"].as_str().unwrap().contains(&place.gate.url), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_from_a_storage_that_goes_silent_fails_in_time_and_goes_on_when_it_answers() {
    let place = Place::new("fa_body", Silent::Answer(6 << 20), Some("1s")).await;
    place.sound("back-up");
    comes_through(&place, "verify", &["read"], None).await;
    comes_through(&place, "restore", &["read"], None).await;
    place.restored().await;
    comes_through(&place, "copy", &["read"], Some("b.sql")).await;
    let objects = place.objects().await;
    assert_eq!(objects, ["a.sql", "a.sql.manifest.json", "b.sql", "b.sql.manifest.json"]);
    assert!(place.gate.silent.load(Ordering::SeqCst) >= 3 * 5, "each attempt asked again");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_of_which_nothing_comes_but_the_answers_head_fails_in_time() {
    let place = Place::new("fa_head", Silent::Answer(0), Some("1s")).await;
    place.sound("back-up");
    comes_through(&place, "verify", &["read"], None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_whose_connections_go_silent_one_after_the_other_is_read_on() {
    let place = Place::new("fa_each", Silent::EachAnswer(6 << 20), Some("1s")).await;
    place.sound("back-up");
    for plan in ["verify", "restore"] {
        let child = place.start(plan);
        let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(place.failures(plan), [Value::Null; 0], "{plan} went on in the same attempt");
    }
    place.restored().await;
    assert!(place.gate.silent.load(Ordering::SeqCst) >= 2 * 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn writing_to_a_storage_that_goes_silent_fails_in_time_and_goes_on_when_it_answers() {
    let place = Place::new("fa_part", Silent::Request(1 << 20), Some("1s")).await;
    comes_through(&place, "back-up", &["write", "publish"], Some("a.sql")).await;
    assert_eq!(place.objects().await, ["a.sql", "a.sql.manifest.json"]);
    place.sound("verify");
    place.sound("restore");
    place.restored().await;
}

/// With the default `timeout`, of minutes: nothing but the signals ends it.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_waits_for_a_silent_storage_is_cancelled_at_once() {
    let reads = Place::new("fa_int_read", Silent::Answer(6 << 20), None).await;
    reads.sound("back-up");
    let writes = Place::new("fa_int_write", Silent::Request(1 << 20), None).await;
    for (place, plan) in [(&reads, "verify"), (&reads, "restore"), (&reads, "copy"), (&writes, "back-up")] {
        place.gate.shut.store(true, Ordering::SeqCst);
        let seen = place.gate.silent.load(Ordering::SeqCst);
        let mut child = place.start(plan);
        wait_until("it goes silent", 60, || place.gate.silent.load(Ordering::SeqCst) > seen).await;
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let noticed = || place.journal(plan).contains("asked for a pause");
        kill(pid, Signal::SIGINT).unwrap();
        wait_until("it heard the first", 10, noticed).await;
        let told = Instant::now();
        kill(pid, Signal::SIGINT).unwrap();
        let status = tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
        assert_eq!(status.code(), Some(130), "{plan}");
        let records = place.journal(plan);
        assert!(!records.contains("was dropped"), "{plan} did not stop by itself: {records}");
        assert!(told.elapsed() < Duration::from_secs(8), "{plan}: {:?}", told.elapsed());
        let objects = place.objects().await;
        assert!(!objects.iter().any(|object| object.starts_with(if plan == "back-up" { "a" } else { "b" })));
        place.gate.shut.store(false, Ordering::SeqCst);
        place.bench.ends(0, &["resume", &place.run(plan)]);
    }
    reads.restored().await;
    assert_eq!(writes.objects().await, ["a.sql", "a.sql.manifest.json"]);
}
