//! `storage.find`, `storage.verify`, `storage.copy`, `storage.prune` on a disk.

use std::time::{Duration, SystemTime};

use lifeboat::failure::Failure;
use lifeboat::step::effect::Resource;
use lifeboat::step::world::{Fact, World};
use lifeboat::step::{Action, AfterKill, Certainty, Done, Findings, find as find_type};
use serde_json::{Value, json};

use crate::fixture::{Place, gzip, storage};
use crate::support::Harness;

/// What the static check finds, as `pointer: message`.
pub fn findings(name: &str, params: Value) -> Vec<String> {
    let step = (find_type(name).unwrap().parse)(params).unwrap_or_else(|error| panic!("{error:?}"));
    let mut found = Findings::default();
    step.check(&mut found);
    found.found.into_iter().map(|finding| format!("{}: {}", finding.pointer, finding.message)).collect()
}

const DUMP: &str = "--\n-- PostgreSQL database dump\n--\n\nCOPY auth.users (id) FROM stdin;\n1\n2\n\\.\n\n--\n-- PostgreSQL database dump complete\n--\n\n";

fn put(place: &Place, path: &str, bytes: &[u8], age: Duration) {
    let path = place.path(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, bytes).unwrap();
    std::fs::File::open(path).unwrap().set_modified(SystemTime::now() - age).unwrap();
}

/// A backup with a manifest, as Lifeboat would have left it.
fn put_whole(place: &Place, path: &str, taken_at: &str, database: &str) {
    let bytes = gzip(DUMP.as_bytes());
    let checksum = lifeboat::dump::tap::Checksum::default();
    checksum.update(&bytes);
    let manifest = json!({
        "lifeboat_manifest": 1, "path": path, "bytes": bytes.len(), "sha256": checksum.hex(), "format": "plain",
        "compression": "gzip", "database": database, "system_identifier": "1", "server_version": "15", "tool_version": "15.18",
        "wal_lsn": "0/1", "taken_at": taken_at, "encoding": "UTF8", "collate": "C", "ctype": "C",
        "tables": { "auth.users": 2 }, "rows": 2, "partial": false, "run": "r", "step": "s"
    });
    put(place, path, &bytes, Duration::ZERO);
    put(place, &format!("{path}.manifest.json"), manifest.to_string().as_bytes(), Duration::ZERO);
}

async fn find(place: &Place, more: Value) -> Result<Done, Failure> {
    let mut params = json!({ "target": "store" });
    params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    place.harness.run("storage.find", params).await
}

async fn found(place: &Place, more: Value) -> String {
    find(place, more).await.unwrap().outputs["path"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_newest_is_told_by_manifest_then_by_name_then_by_time_of_writing() {
    let place = Place::new("st_find");
    let dump = gzip(DUMP.as_bytes());
    put(&place, "d/a_20240201T100000Z.sql.gz", &dump, Duration::ZERO);
    put(&place, "d/a_20240202_090000.sql.gz", &dump, Duration::from_mins(150));
    put(&place, "d/a_20240131.sql.gz", &dump, Duration::from_secs(10));
    put(&place, "d/.a_20250101.sql.gz.other.partial", &dump, Duration::ZERO);
    assert_eq!(found(&place, json!({ "prefix": "d/a_" })).await, "d/a_20240202_090000.sql.gz");
    assert_eq!(
        found(&place, json!({ "prefix": "d/a_", "before": "2024-02-01T23:00:00Z" })).await,
        "d/a_20240201T100000Z.sql.gz"
    );
    // A day alone may mean its end.
    let failure = find(&place, json!({ "prefix": "d/a_", "before": "2024-01-31T12:00:00Z" })).await.unwrap_err();
    assert!(failure.message.contains("no backup d/a_*"), "{failure}");

    put_whole(&place, "d/a_x.sql.gz", "2024-03-01T00:00:00Z", "auth");
    put_whole(&place, "d/a_y.sql.gz", "2024-02-20T00:00:00Z", "other");
    let done = find(&place, json!({ "prefix": "d/a_", "require_manifest": true })).await.unwrap();
    assert_eq!(done.outputs["path"], "d/a_x.sql.gz");
    assert_eq!(done.outputs["taken_at"], "2024-03-01T00:00:00Z");
    assert_eq!(done.outputs["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(
        found(&place, json!({ "prefix": "d/", "require_manifest": true, "database": "other" })).await,
        "d/a_y.sql.gz"
    );
    for pick in ["a_x.sql.gz", "x.sql.gz", "d/a_x.sql.gz"] {
        assert_eq!(found(&place, json!({ "prefix": "d/a_", "pick": pick })).await, "d/a_x.sql.gz");
    }
    assert_eq!(found(&place, json!({ "path": "d/a_20240131.sql.gz" })).await, "d/a_20240131.sql.gz");

    let failure = find(&place, json!({ "prefix": "d/a_", "max_age": "26h" })).await.unwrap_err();
    assert!(failure.message.contains("more than") && failure.message.contains("d/a_x.sql.gz"), "{failure}");
    let failure = find(&place, json!({ "prefix": "d/a_", "min_size": "1MiB" })).await.unwrap_err();
    assert!(failure.message.contains("less than 1.0 MiB"), "{failure}");
    let failure = find(&place, json!({ "prefix": "d/a_", "pick": "a_nope" })).await.unwrap_err();
    assert!(failure.message.contains("no backup `a_nope`"), "{failure}");
    let failure = find(&place, json!({ "path": "d/a_x.sql.gz.manifest.json" })).await.unwrap_err();
    assert!(failure.help.unwrap().contains("name the backup itself"));

    // Damage that shows from outside: the newest is passed over, and that is said.
    let mut bytes = std::fs::read(place.path("d/a_x.sql.gz")).unwrap();
    bytes.pop();
    put(&place, "d/a_x.sql.gz", &bytes, Duration::ZERO);
    let done = find(&place, json!({ "prefix": "d/a_", "require_manifest": true })).await.unwrap();
    assert_eq!(done.outputs["path"], "d/a_y.sql.gz");
    assert!(done.summary.unwrap().contains("passed over: d/a_x.sql.gz"));
    assert!(
        find(&place, json!({ "path": "d/a_x.sql.gz" })).await.unwrap_err().message.contains("its manifest says")
    );
}

#[tokio::test]
async fn ties_and_folders() {
    let place = Place::new("st_ties");
    put_whole(&place, "a1.sql.gz", "2024-03-01T00:00:00Z", "auth");
    put_whole(&place, "a2.sql.gz", "2024-03-01T00:00:00Z", "auth");
    assert_eq!(found(&place, json!({ "prefix": "a" })).await, "a2.sql.gz");
    put(&place, "b_20240505/toc.dat", b"PGDMP", Duration::ZERO);
    put(&place, "b_20240505/1.dat", b"x", Duration::ZERO);
    let done = find(&place, json!({ "prefix": "b" })).await.unwrap();
    assert_eq!((&done.outputs["path"], &done.outputs["bytes"]), (&json!("b_20240505"), &json!(6)));
}

#[tokio::test]
async fn a_preview_finds_now_or_waits_for_the_step_that_changes_it() {
    let place = Place::new("st_preview");
    put_whole(&place, "d/a.sql.gz", "2024-03-01T00:00:00Z", "auth");
    let params = json!({ "target": "store", "prefix": "d/" });
    let preview = place.harness.preview("storage.find", params.clone(), &World::default()).await;
    assert_eq!((preview.action, preview.certainty), (Action::Read, Certainty::Observed), "{preview:?}");
    assert_eq!(preview.outputs["path"], "d/a.sql.gz");
    // Found is not changed: what follows looks at it all the same.
    let mut world = World::default();
    for (resource, fact) in preview.facts.clone() {
        world.foretell(resource, fact, &"find".into());
    }
    let verify = json!({ "target": "store", "path": "d/a.sql.gz" });
    let verified = place.harness.preview("storage.verify", verify, &world).await;
    assert_eq!(verified.certainty, Certainty::Observed, "{verified:?}");
    let rows = Some([("auth.users".to_owned(), 2)].into());
    assert_eq!(preview.facts, [(Resource::object("store", "d/a.sql.gz"), Fact::Present { rows })]);
    let mut world = World::default();
    world.foretell(Resource::object("store", "d/new.dump"), Fact::Present { rows: None }, &"backup".into());
    let preview = place.harness.preview("storage.find", params.clone(), &world).await;
    assert!(preview.certainty == Certainty::Assumed && preview.outputs.is_empty(), "{preview:?}");
    let preview = place
        .harness
        .preview("storage.find", json!({ "target": "store", "prefix": "none_" }), &World::default())
        .await;
    assert_eq!(preview.action, Action::Blocked);
    let preview = place.harness.preview_offline("storage.find", params, &World::default()).await;
    assert_eq!(preview.certainty, Certainty::Assumed);
}

#[tokio::test]
async fn settings_and_paths_are_checked() {
    assert!(findings("storage.find", json!({ "target": "s" }))[0].contains("`prefix` or `path`"));
    assert!(findings("storage.find", json!({ "target": "s", "prefix": "../x" }))[0].contains("`..`"));
    assert!(findings("storage.verify", json!({ "target": "s", "path": "/etc/passwd" }))[0].contains("absolute"));
    assert!(
        findings("storage.prune", json!({ "target": "s", "prefix": "a", "keep": {} }))[0]
            .contains("nothing to keep")
    );
    for (target, said) in [
        (storage("ftp", &[]), "`fs` or `s3`"),
        (storage("fs", &[("rot", "/x")]), "no setting `rot`"),
        (storage("s3", &[("root", "/x")]), "needs the setting `bucket`"),
    ] {
        let failure = Harness::with([("store", target)])
            .run("storage.verify", json!({ "target": "store", "path": "a" }))
            .await;
        assert!(failure.as_ref().unwrap_err().message.contains(said), "{failure:?}");
    }
    // A path that only the run knows is checked there.
    let place = Place::new("st_paths");
    let store = place.harness.services.storage("store").unwrap();
    for bad in ["../x", "a/../../x", "/etc/passwd", "", "a//b", "./a", "a\nb"] {
        assert!(store.stat(bad).await.is_err() && store.delete(bad).await.is_err(), "{bad}");
    }
}

#[tokio::test]
async fn anything_can_be_verified() {
    let place = Place::new("st_verify");
    put(&place, "keys.csv.gz", &gzip(b"id,key\n1,x\n"), Duration::ZERO);
    put(&place, "cut.csv.gz", &gzip(b"id,key\n1,x\n")[..20], Duration::ZERO);
    put_whole(&place, "a.sql.gz", "2024-03-01T00:00:00Z", "auth");
    let verify = |path: &str| json!({ "target": "store", "path": path, "listing": true });
    let done = place.harness.run("storage.verify", verify("a.sql.gz")).await.unwrap();
    assert!(done.summary.unwrap().contains("a whole dump with 1 tables and 2 rows, as its manifest says"));
    assert!(place.harness.journal.log_text().contains("auth.users\t2 rows"));
    place.harness.run("storage.verify", verify("keys.csv.gz")).await.unwrap();
    let failure = place.harness.run("storage.verify", verify("cut.csv.gz")).await.unwrap_err();
    assert!(failure.message.contains("stops before its end"), "{failure}");
    let unread = json!({ "target": "store", "path": "cut.csv.gz", "readable": false });
    assert_eq!(place.harness.run("storage.verify", unread).await.unwrap().outputs["bytes"], 20);
}

#[tokio::test]
async fn a_copy_is_the_same_or_is_refused() {
    let place = Place::new("st_copy");
    put_whole(&place, "a.sql.gz", "2024-03-01T00:00:00Z", "auth");
    let params = json!({ "from": { "storage": "store", "path": "a.sql.gz" }, "to": { "storage": "store", "path": "offsite/b.sql.gz" } });
    let preview = place.harness.preview("storage.copy", params.clone(), &World::default()).await;
    assert_eq!((preview.action, preview.certainty), (Action::Create, Certainty::Observed), "{preview:?}");
    let done = place.harness.run("storage.copy", params.clone()).await.unwrap();
    assert_eq!(
        std::fs::read(place.path("offsite/b.sql.gz")).unwrap(),
        std::fs::read(place.path("a.sql.gz")).unwrap()
    );
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(place.path("offsite/b.sql.gz.manifest.json")).unwrap()).unwrap();
    assert_eq!((&manifest["path"], &manifest["sha256"]), (&json!("offsite/b.sql.gz"), &done.outputs["sha256"]));
    let after = place.harness.after_kill("storage.copy", params.clone()).await;
    assert!(matches!(after, AfterKill::RunAgain { .. }));
    assert_eq!(place.harness.run("storage.copy", params.clone()).await.unwrap().outputs, done.outputs);
    put(&place, "offsite/b.sql.gz", b"something else", Duration::ZERO);
    let failure = place.harness.run("storage.copy", params.clone()).await.unwrap_err();
    assert!(failure.message.contains("has the checksum"), "{failure}");
    let preview = place.harness.preview("storage.copy", params, &World::default()).await;
    assert_eq!(preview.action, Action::Blocked);
    assert_eq!(std::fs::read(place.path("offsite/b.sql.gz")).unwrap(), b"something else");
}

#[tokio::test]
async fn pruning_keeps_what_it_says_and_the_newest_good_one() {
    let place = Place::new("st_prune");
    for day in 1..=28 {
        put_whole(
            &place,
            &format!("d/a_202402{day:02}T100000Z.sql.gz"),
            &format!("2024-02-{day:02}T10:00:00Z"),
            "auth",
        );
    }
    for month in 1..=12 {
        put_whole(
            &place,
            &format!("d/a_2023{month:02}15T100000Z.sql.gz"),
            &format!("2023-{month:02}-15T10:00:00Z"),
            "auth",
        );
    }
    put_whole(&place, "other_20200101.sql.gz", "2020-01-01T00:00:00Z", "auth");
    put(&place, "d/a_gone.sql.gz.manifest.json", b"{}", Duration::ZERO);
    let params =
        json!({ "target": "store", "prefix": "d/a_", "keep": { "last": 2, "days": 3, "weekly": 2, "monthly": 3 } });
    let before = place.files().len();
    let preview = place.harness.preview("storage.prune", params.clone(), &World::default()).await;
    assert_eq!((preview.action, preview.certainty), (Action::Destroy, Certainty::Observed), "{preview:?}");
    assert_eq!(place.files().len(), before, "a preview removes nothing");
    let done = place.harness.run("storage.prune", params.clone()).await.unwrap();
    let kept: Vec<&str> =
        done.outputs["kept"].as_array().unwrap().iter().map(|path| &path.as_str().unwrap()[4..12]).collect();
    assert_eq!(kept, ["20240228", "20240227", "20240226", "20240225", "20231215", "20231115"]);
    assert_eq!(done.outputs["removed"].as_array().unwrap().len() + kept.len(), 40);
    let mut left = crate::fixture::files(&place.path("d"));
    left.retain(|file| !file.ends_with(".manifest.json"));
    assert_eq!(left.len(), kept.len());
    assert_eq!(crate::fixture::files(&place.path("d")).len(), 2 * kept.len(), "manifests go with their backups");
    assert!(place.path("other_20200101.sql.gz").exists());
    let preview = place.harness.preview("storage.prune", params, &World::default()).await;
    assert_eq!(preview.action, Action::None);
}

#[tokio::test]
async fn pruning_never_trusts_a_damaged_newest() {
    let place = Place::new("st_prune_bad");
    for day in 1..=5 {
        put_whole(&place, &format!("a_2024020{day}T100000Z.sql.gz"), &format!("2024-02-0{day}T10:00:00Z"), "auth");
    }
    // The newest two are rotten inside, which their size doesn't tell.
    for day in 4..=5 {
        let path = place.path(&format!("a_2024020{day}T100000Z.sql.gz"));
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.len() - 6;
        bytes[at] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }
    let params = json!({ "target": "store", "prefix": "a_", "keep": { "last": 1 } });
    let done = place.harness.run("storage.prune", params.clone()).await.unwrap();
    assert_eq!(done.outputs["removed"], json!(["a_20240202T100000Z.sql.gz", "a_20240201T100000Z.sql.gz"]));
    assert!(place.path("a_20240203T100000Z.sql.gz").exists());
    let path = place.path("a_20240203T100000Z.sql.gz");
    std::fs::write(&path, &std::fs::read(&path).unwrap()[1..]).unwrap();
    let failure = place.harness.run("storage.prune", params).await.unwrap_err();
    assert!(failure.message.contains("is good, so none is removed"), "{failure}");
    assert_eq!(place.files().len(), 6);
}

/// Damages a file so that its size doesn't tell.
fn rot(place: &Place, path: &str) {
    let mut bytes = std::fs::read(place.path(path)).unwrap();
    let at = bytes.len() - 6;
    bytes[at] ^= 1;
    std::fs::write(place.path(path), bytes).unwrap();
}

#[tokio::test]
async fn only_good_backups_are_counted_when_old_ones_go() {
    let place = Place::new("st_prune_count");
    let name = |day: u32| format!("a_2024020{day}T100000Z.sql.gz");
    for day in 1..=6 {
        put_whole(&place, &name(day), &format!("2024-02-0{day}T10:00:00Z"), "auth");
    }
    rot(&place, &name(6));
    rot(&place, &name(5));
    // A dump of another program's, the oldest of all, and one that is being written, the newest.
    let dump = gzip(DUMP.as_bytes());
    put(&place, "a_20240101T100000Z.sql.gz", &dump, Duration::ZERO);
    put(&place, "a_20240203T120000Z.sql.gz", &dump, Duration::ZERO);
    put(&place, "a_20240207T100000Z.sql.gz", &dump[..30], Duration::ZERO);
    let params = json!({ "target": "store", "prefix": "a_", "keep": { "last": 2 } });
    let done = place.harness.run("storage.prune", params.clone()).await.unwrap();
    assert_eq!(done.outputs["removed"], json!([name(2), name(1), "a_20240101T100000Z.sql.gz"]));
    let kept =
        json!(["a_20240207T100000Z.sql.gz", name(6), name(5), name(4), "a_20240203T120000Z.sql.gz", name(3)]);
    assert_eq!(done.outputs["kept"], kept);
    assert_eq!(place.harness.run("storage.prune", params).await.unwrap().outputs["kept"], kept);
    // Weeks and days are those of good ones, too.
    let params = json!({ "target": "store", "prefix": "a_", "keep": { "weekly": 1, "days": 1 } });
    let done = place.harness.run("storage.prune", params).await.unwrap();
    assert_eq!(done.outputs["kept"], kept, "the day before the newest good one stays: {done:?}");
}

#[tokio::test]
async fn a_newer_object_without_a_manifest_takes_nobodys_place() {
    let place = Place::new("st_prune_bare");
    for day in 1..=3 {
        put_whole(&place, &format!("a_2024020{day}T100000Z.sql.gz"), &format!("2024-02-0{day}T10:00:00Z"), "auth");
    }
    for day in 4..=9 {
        put(&place, &format!("a_2024020{day}T100000Z.sql.gz"), &gzip(DUMP.as_bytes()), Duration::ZERO);
    }
    for keep in [json!({ "last": 3 }), json!({ "days": 3 }), json!({ "weekly": 1, "last": 3 })] {
        let params = json!({ "target": "store", "prefix": "a_", "keep": keep });
        let preview = place.harness.preview("storage.prune", params.clone(), &World::default()).await;
        assert_eq!(preview.action, Action::None, "{preview:?}");
        let done = place.harness.run("storage.prune", params).await.unwrap();
        assert_eq!(done.outputs["removed"], json!([]), "{keep}");
    }
    // Where nothing has one, nothing goes.
    let bare = Place::new("st_prune_none");
    for day in 1..=3 {
        put(&bare, &format!("a_2024020{day}.sql.gz"), &gzip(DUMP.as_bytes()), Duration::ZERO);
    }
    let params = json!({ "target": "store", "prefix": "a_", "keep": { "last": 1 } });
    assert_eq!(bare.harness.run("storage.prune", params).await.unwrap().outputs["removed"], json!([]));
    assert_eq!(bare.files().len(), 3);
}

#[tokio::test]
async fn other_objects_with_a_manifest_are_pruned_with_it() {
    let place = Place::new("st_prune_objects");
    for day in 1..=3 {
        let (path, bytes) = (format!("r_{day}.rdb"), gzip(b"REDIS"));
        let checksum = lifeboat::dump::tap::Checksum::default();
        checksum.update(&bytes);
        let manifest = json!({
            "lifeboat_object": 1, "path": path, "bytes": bytes.len(), "sha256": checksum.hex(), "count": 1,
            "taken_at": format!("2024-02-0{day}T10:00:00Z"), "server_version": "7", "run": "r", "step": "s"
        });
        put(&place, &path, &bytes, Duration::ZERO);
        put(&place, &format!("{path}.object.json"), manifest.to_string().as_bytes(), Duration::ZERO);
    }
    rot(&place, "r_3.rdb");
    let params = json!({ "target": "store", "prefix": "r_", "keep": { "last": 1 } });
    let done = place.harness.run("storage.prune", params).await.unwrap();
    assert_eq!(done.outputs["kept"], json!(["r_3.rdb", "r_2.rdb"]));
    assert_eq!(place.files(), ["r_2.rdb", "r_2.rdb.object.json", "r_3.rdb", "r_3.rdb.object.json"]);
}
