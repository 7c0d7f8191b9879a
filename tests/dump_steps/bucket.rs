//! The same in a bucket: parts, faults of the connection, nothing by halves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lifeboat::service::storage::UploadOptions;
use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::faulty::{Fault, proxy};
use crate::fixture::{CONTENT, likeness, storage};
use crate::support::{Databases, Harness, postgres, postgres_url, unique};

pub fn endpoint() -> String {
    std::env::var("LIFEBOAT_TEST_S3")
        .expect("LIFEBOAT_TEST_S3 must name an S3 endpoint: start the services with `just services-up`")
}

/// A bucket of the test's own.
async fn bucket(test: &str) -> String {
    let bucket = unique(test).replace('_', "-");
    let made = reqwest::Client::new().put(format!("{}/{bucket}", endpoint())).send().await.unwrap();
    assert!(made.status().is_success(), "{made:?}");
    bucket
}

/// A harness with a bucket that is reached through an endpoint.
fn harness_of(bucket: &str, through: &str) -> Harness {
    let settings = [
        ("bucket", bucket),
        ("root", "/backups"),
        ("endpoint", through),
        ("access_key_id", "testing"),
        ("secret_access_key", "testing"),
        ("disable_config_load", "true"),
    ];
    Harness::with([("db", postgres(&postgres_url())), ("store", storage("s3", &settings))])
}

/// The same with a bucket of the test's own.
async fn harness(test: &str, through: &str) -> Harness {
    harness_of(&bucket(test).await, through)
}

/// The objects in a bucket, asked without detours.
async fn listing(bucket: &str) -> Vec<String> {
    let store = harness_of(bucket, &endpoint()).services.storage("store").unwrap();
    store.list("").await.unwrap().into_iter().map(|object| object.path).collect()
}

/// Every row of a restored database is as the backup's manifest says: several connections change their order.
async fn same_rows(bucket: &str, restored: &str) {
    let against = json!({ "storage": "store", "path": "a.sql" });
    let params = json!({ "target": "db", "database": restored, "against": against });
    harness_of(bucket, &endpoint()).run("postgres.verify_rows", params).await.unwrap();
}

const LARGE: &str = "CREATE TABLE large AS SELECT g AS id, md5(g::text) || md5((g+1)::text) AS noise FROM generate_series(1, 250000) g;";

#[tokio::test]
async fn a_backup_of_several_parts_comes_back_the_same() {
    let harness = harness("parts", &endpoint()).await;
    let names = Databases::new("s3_parts");
    let database = names.create("live", &format!("{CONTENT} {LARGE}")).await;
    for (at, path) in ["d/a_20240201T100000Z.sql", "d/b.dump", "d/c.sql.zst"].into_iter().enumerate() {
        let backup = json!({ "target": "db", "database": database, "to": { "storage": "store", "path": path } });
        let done = harness.run("postgres.backup", backup.clone()).await.unwrap();
        if at == 0 {
            assert!(done.outputs["bytes"].as_u64().unwrap() > 16 << 20, "three parts: {:?}", done.outputs["bytes"]);
            let again = harness.run("postgres.backup", backup).await.unwrap();
            assert_eq!(again.outputs, done.outputs, "the same step's next attempt finds that it is done");
            let options = UploadOptions { writer: "t", expected_bytes: 0, replace: false };
            let store = harness.services.storage("store").unwrap();
            let failure = store.put(path, vec![7; 20], options).await.unwrap_err();
            assert!(failure.message.contains("already has an object"), "{failure}");
        }
        let found =
            harness.run("storage.find", json!({ "target": "store", "prefix": "d/", "pick": path })).await.unwrap();
        assert_eq!(found.outputs["sha256"], done.outputs["sha256"]);
        let restored = names.name(&format!("r{at}"));
        let jobs = if path == "d/b.dump" { Some(2) } else { None };
        let params = json!({ "target": "db", "database": restored, "create": true, "jobs": jobs.unwrap_or(1), "from": { "storage": "store", "path": path } });
        harness.run("postgres.restore", params).await.unwrap();
        assert_eq!(likeness(&restored), likeness(&database), "{path}");
    }
    let copy = json!({ "from": { "storage": "store", "path": "d/b.dump" }, "to": { "storage": "store", "path": "offsite/b.dump" } });
    harness.run("storage.copy", copy).await.unwrap();
    let prune = json!({ "target": "store", "prefix": "d/", "keep": { "last": 1 } });
    let done = harness.run("storage.prune", prune).await.unwrap();
    assert_eq!(done.outputs["kept"], json!(["d/c.sql.zst"]));
    let store = harness.services.storage("store").unwrap();
    let left: Vec<_> = store.list("").await.unwrap().into_iter().map(|object| object.path).collect();
    assert_eq!(
        left,
        ["d/c.sql.zst", "d/c.sql.zst.manifest.json", "offsite/b.dump", "offsite/b.dump.manifest.json"]
    );
}

#[tokio::test]
async fn connections_that_break_are_tried_again() {
    let faults = |connection| match connection {
        0 | 3 => Fault::Refuse,
        1 => Fault::CutRequest(3 << 20),
        2 | 5 => Fault::CutAnswer(100),
        _ => Fault::None,
    };
    let (through, connections) = proxy(faults).await;
    let harness = harness("faults", &through).await;
    let store = harness.services.storage("store").unwrap();
    let content: Vec<u8> = (0..20_000_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let options = UploadOptions { writer: "t", expected_bytes: 0, replace: false };
    store.put("x.bin", content.clone(), options).await.unwrap();
    let mut back = vec![];
    store.read("x.bin").await.unwrap().read_to_end(&mut back).await.unwrap();
    assert!(back == content);
    assert!(connections.load(Ordering::SeqCst) > 5);
}

/// Two harnesses on one bucket: as it is, and through faults.
async fn both(
    test: &str,
    fault: impl Fn(usize) -> Fault + Send + Sync + 'static,
) -> (Harness, Harness, Arc<AtomicUsize>) {
    let sound = harness(test, &endpoint()).await;
    let (through, connections) = proxy(fault).await;
    let lifeboat::service::Target::Storage(mut settings) = sound.services.target("store").unwrap().clone() else {
        panic!("a storage")
    };
    settings.settings.insert("endpoint".to_owned(), through);
    let store = lifeboat::service::Target::Storage(settings);
    (sound, Harness::with([("db", postgres(&postgres_url())), ("store", store)]), connections)
}

#[tokio::test]
async fn bodies_that_are_cut_in_their_middle_are_read_on() {
    let (sound, harness, connections) = both("cut", |_| Fault::CutAnswer(6 << 20)).await;
    let names = Databases::new("s3_cut");
    let database = names.create("live", &format!("{CONTENT} {LARGE}")).await;
    let backup = json!({ "target": "db", "database": database, "to": { "storage": "store", "path": "d/a.sql" } });
    sound.run("postgres.backup", backup).await.unwrap();
    let mut whole = vec![];
    let read = async |harness: &Harness, into: &mut Vec<u8>| {
        let store = harness.services.storage("store").unwrap();
        store.read("d/a.sql").await.unwrap().read_to_end(into).await.unwrap();
    };
    read(&sound, &mut whole).await;
    assert!(whole.len() > 16 << 20);
    let mut back = vec![];
    read(&harness, &mut back).await;
    assert!(back == whole);
    let before = connections.load(Ordering::SeqCst);
    assert!(before >= 3, "it was cut");

    let restored = names.name("restored");
    let params = json!({ "target": "db", "database": restored, "create": true, "from": { "storage": "store", "path": "d/a.sql" } });
    harness.run("postgres.restore", params).await.unwrap();
    assert_eq!(likeness(&restored), likeness(&database));
    let copy = json!({ "from": { "storage": "store", "path": "d/a.sql" }, "to": { "storage": "store", "path": "d/b.sql" } });
    harness.run("storage.copy", copy).await.unwrap();
    sound.run("storage.verify", json!({ "target": "store", "path": "d/b.sql" })).await.unwrap();
    assert!(connections.load(Ordering::SeqCst) >= before + 4, "they were cut as well");
}

#[tokio::test]
async fn half_a_body_that_looks_whole_is_not_taken_for_the_object() {
    let (sound, harness, _) = both("half", |_| Fault::Half).await;
    let names = Databases::new("s3_half");
    let database = names.create("live", LARGE).await;
    let backup = json!({ "target": "db", "database": database, "to": { "storage": "store", "path": "a.sql.gz" } });
    sound.run("postgres.backup", backup).await.unwrap();
    let from = json!({ "storage": "store", "path": "a.sql.gz" });
    let restored = names.name("restored");
    for (step, params) in [
        ("storage.verify", json!({ "target": "store", "path": "a.sql.gz", "checksum": true })),
        ("storage.copy", json!({ "from": from, "to": { "storage": "store", "path": "b.sql.gz" } })),
        ("postgres.restore", json!({ "target": "db", "database": restored, "create": true, "from": from })),
    ] {
        let ended = tokio::time::timeout(Duration::from_mins(2), harness.run(step, params)).await.unwrap();
        println!("{step}: {ended:?}");
        assert!(ended.is_err(), "{step}");
    }
    assert!(sound.services.storage("store").unwrap().stat("b.sql.gz").await.unwrap().is_none(), "no half a copy");
}

#[tokio::test]
async fn an_endpoint_that_is_busy_or_slow_is_tried_again_and_one_that_stays_so_is_given_up() {
    let busy = |connection| match connection {
        0 => Fault::Answer(503),
        1 => Fault::Answer(500),
        2 => Fault::Slow,
        _ => Fault::None,
    };
    let (through, connections) = proxy(busy).await;
    let (harness, content) = (harness("busy", &through).await, vec![7; 12_000_000]);
    let store = harness.services.storage("store").unwrap();
    let options = UploadOptions { writer: "t", expected_bytes: 0, replace: false };
    store.put("x.bin", content.clone(), options).await.unwrap();
    let mut back = vec![];
    store.read("x.bin").await.unwrap().read_to_end(&mut back).await.unwrap();
    assert!(back == content && connections.load(Ordering::SeqCst) > 3);

    let (through, _) = proxy(|_| Fault::Answer(503)).await;
    let harness = self::harness("shut", &through).await;
    let verify = harness.run("storage.verify", json!({ "target": "store", "path": "x.bin" }));
    let failure = tokio::time::timeout(Duration::from_mins(2), verify).await.unwrap().unwrap_err();
    assert!(failure.transient, "{failure}");
}

#[tokio::test]
async fn what_stays_broken_is_transient_and_nothing_appears() {
    // The first connections do; then every one breaks.
    let (through, _) =
        proxy(|connection| if connection < 1 { Fault::None } else { Fault::CutRequest(1 << 20) }).await;
    let harness = harness("broken", &through).await;
    let store = harness.services.storage("store").unwrap();
    let options = UploadOptions { writer: "t", expected_bytes: 0, replace: false };
    let put = store.put("x.bin", vec![7; 20_000_000], options);
    let failure = tokio::time::timeout(Duration::from_mins(2), put).await.unwrap().unwrap_err();
    assert!(failure.transient, "{failure}");
    let nobody = Harness::with([(
        "store",
        storage(
            "s3",
            &[
                ("bucket", "b"),
                ("endpoint", "http://127.0.0.1:1"),
                ("access_key_id", "a"),
                ("secret_access_key", "s3cr3t"),
                ("disable_config_load", "true"),
            ],
        ),
    )]);
    let failure = nobody.run("storage.find", json!({ "target": "store", "prefix": "x" })).await.unwrap_err();
    assert!(failure.transient && !failure.message.contains("s3cr3t"), "{failure}");
}

#[tokio::test]
async fn a_backup_comes_through_cut_requests_once() {
    let names = Databases::new("s3_cut");
    let database = names.create("live", &format!("{CONTENT} {LARGE}")).await;
    let backup = json!({ "target": "db", "database": database, "to": { "storage": "store", "path": "a.sql" } });
    let cut = |connection| match connection {
        1 => Fault::CutRequest(3 << 20),
        2 | 4 => Fault::CutAnswer(100),
        3 => Fault::Refuse,
        _ => Fault::None,
    };
    let bucket = bucket("cut").await;
    let (through, connections) = proxy(cut).await;
    let harness = harness_of(&bucket, &through);
    let done = harness.run("postgres.backup", backup.clone()).await.unwrap();
    assert!(connections.load(Ordering::SeqCst) > 4, "{connections:?}");
    assert_eq!(listing(&bucket).await, ["a.sql", "a.sql.manifest.json"]);
    let direct = harness_of(&bucket, &endpoint());
    let verified = direct.run("storage.verify", json!({ "target": "store", "path": "a.sql" })).await.unwrap();
    assert_eq!(verified.outputs["sha256"], done.outputs["sha256"]);
}

#[tokio::test]
async fn a_backup_whose_publishing_is_not_answered_is_published_once() {
    let names = Databases::new("s3_lost");
    let large = names.create("large", &format!("{CONTENT} {LARGE}")).await;
    let small = names.create("small", "CREATE TABLE a (a int); INSERT INTO a VALUES (1)").await;
    for (database, words) in [(&large, "<CompleteMultipartUpload"), (&small, "PUT ")] {
        let bucket = bucket("lost-answer").await;
        let lost = Arc::new(AtomicUsize::new(0));
        let counted = lost.clone();
        let (through, _) = proxy(move |_| Fault::LoseAnswer(words, counted.clone())).await;
        let harness = harness_of(&bucket, &through);
        let backup = json!({ "target": "db", "database": database, "to": { "storage": "store", "path": "a.sql" } });
        let done = harness.run("postgres.backup", backup).await.unwrap();
        assert!(lost.load(Ordering::SeqCst) > 0, "{words}");
        assert_eq!(listing(&bucket).await, ["a.sql", "a.sql.manifest.json"], "{words}");
        let verify = json!({ "target": "store", "path": "a.sql" });
        let verified = harness_of(&bucket, &endpoint()).run("storage.verify", verify).await.unwrap();
        assert_eq!(verified.outputs["sha256"], done.outputs["sha256"], "{words}");
    }
}

#[tokio::test]
async fn a_backup_over_a_connection_that_stays_broken_leaves_nothing() {
    let names = Databases::new("s3_broken");
    let database = names.create("live", &format!("{CONTENT} {LARGE}")).await;
    let backup = json!({ "target": "db", "database": database, "to": { "storage": "store", "path": "a.sql" } });
    let bucket = bucket("stays").await;
    let (through, _) = proxy(|_| Fault::CutRequest(1 << 20)).await;
    let harness = harness_of(&bucket, &through);
    let run = harness.run("postgres.backup", backup);
    let failure = tokio::time::timeout(Duration::from_mins(2), run).await.unwrap().unwrap_err();
    assert!(failure.transient, "{failure}");
    assert_eq!(listing(&bucket).await, [""; 0]);
}

#[tokio::test]
async fn a_backup_that_the_storage_damages_is_read_back_and_removed() {
    let names = Databases::new("s3_damage");
    let database = names.create("live", &format!("{CONTENT} {LARGE}")).await;
    let backup = json!({ "target": "db", "database": database, "to": { "storage": "store", "path": "a.sql" } });
    let bucket = bucket("damage").await;
    let (through, _) = proxy(|_| Fault::Damage(1 << 20)).await;
    let failure = harness_of(&bucket, &through).run("postgres.backup", backup).await.unwrap_err();
    assert!(failure.message.contains("came out with the checksum") && !failure.transient, "{failure}");
    assert!(failure.help.unwrap().contains("the storage damaged it"));
    assert_eq!(listing(&bucket).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_whose_body_is_cut_comes_through_or_goes_on() {
    let names = Databases::new("s3_body");
    // Without large objects: those keep a dump from being taken apart.
    let database = names.create("live", LARGE).await;
    let bucket = bucket("body").await;
    let backup = json!({ "target": "db", "database": database, "to": { "storage": "store", "path": "a.sql" } });
    harness_of(&bucket, &endpoint()).run("postgres.backup", backup).await.unwrap();
    let restore = |name: &str| json!({ "target": "db", "database": name, "create": true, "jobs": 3, "from": { "storage": "store", "path": "a.sql" } });
    // Now and then a body stops in the middle: what is missing is asked for.
    let (through, connections) =
        proxy(|connection| if connection % 2 == 0 { Fault::CutAnswer(5 << 20) } else { Fault::None }).await;
    let harness = harness_of(&bucket, &through);
    let restored = names.name("cut");
    harness.run("postgres.restore", restore(&restored)).await.unwrap();
    assert!(connections.load(Ordering::SeqCst) > 1);
    same_rows(&bucket, &restored).await;
    // One that stays away is given up; what was loaded is kept, and a further attempt goes on.
    let broken = Arc::new(AtomicUsize::new(0));
    let stays = broken.clone();
    let (through, _) = proxy(move |_| match stays.load(Ordering::SeqCst) {
        0 => Fault::CutAnswer(3 << 20),
        _ => Fault::Refuse,
    })
    .await;
    let harness = harness_of(&bucket, &through);
    let restored = names.name("broken");
    let (step, cx) = (harness.step("postgres.restore", restore(&restored)), harness.next_attempt());
    let running = tokio::spawn(async move { step.run(&cx).await });
    let loads = || harness.journal.notes().iter().any(|(_, note)| note.get("chunk").is_some());
    while !loads() {
        assert!(!running.is_finished(), "it was through before it was seen to load");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    broken.store(1, Ordering::SeqCst);
    let failure = tokio::time::timeout(Duration::from_mins(2), running).await.unwrap().unwrap().unwrap_err();
    assert!(failure.transient, "{failure}");
    broken.store(0, Ordering::SeqCst);
    harness.run("postgres.restore", restore(&restored)).await.unwrap();
    same_rows(&bucket, &restored).await;
}

#[tokio::test]
async fn a_lost_object_or_bucket_is_no_passing_trouble() {
    let harness = harness("lost", &endpoint()).await;
    let failure =
        harness.run("storage.verify", json!({ "target": "store", "path": "nothing.dump" })).await.unwrap_err();
    assert!(!failure.transient && failure.message.contains("no object"), "{failure}");
    let other = Harness::with([(
        "store",
        storage(
            "s3",
            &[
                ("bucket", "no-such-bucket-here"),
                ("endpoint", &endpoint()),
                ("access_key_id", "a"),
                ("secret_access_key", "b"),
                ("disable_config_load", "true"),
            ],
        ),
    )]);
    let failure = other.run("storage.find", json!({ "target": "store", "prefix": "x" })).await.unwrap_err();
    assert!(!failure.transient && failure.message.contains("bucket"), "{failure}");
}
