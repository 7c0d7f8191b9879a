//! Moments that an archive doesn't lead to, and folders that are somebody else's.

use lifeboat::step::Action;
use lifeboat::step::world::World;
use serde_json::{Value, json};

use crate::fixture::{RECOVER, REMOVE, Stage, names};

/// Both the preview and the run refuse, and nothing is made.
async fn refused(stage: &Stage, to: &Value, words: &[&str]) {
    let preview = stage.harness.preview(RECOVER, stage.recover(to), &World::default()).await;
    assert_eq!(preview.action, Action::Blocked, "{to}: {preview:?}");
    let failure = stage.harness.run(RECOVER, stage.recover(to)).await.unwrap_err();
    assert!(!failure.transient && failure.help.is_some(), "{failure}");
    for word in words {
        assert!(failure.message.contains(word), "{to}: {word}: {failure}");
        assert!(preview.problems.iter().any(|it| it.message.contains(word)), "{to}: {word}: {preview:?}");
    }
    assert!(!stage.side().data().exists());
}

#[tokio::test]
async fn moments_outside_of_backup_and_archive() {
    let (stage, moments) = Stage::with_history().await;
    // Read in the server's zone, it would be hours off.
    let naive = stage.recover(&json!({ "time": moments.time }));
    let error = (lifeboat::step::find(RECOVER).unwrap().parse)(naive).unwrap_err();
    assert!(error.message.contains("offset"), "{error:?}");

    refused(&stage, &json!({ "time": "2020-01-01T00:00:00Z" }), &["before the end of the backup"]).await;
    refused(&stage, &json!({ "lsn": "0/1000000" }), &["before the end of the backup"]).await;
    refused(&stage, &json!({ "time": "2099-01-01T00:00:00Z" }), &["does not lead to", "last transaction"]).await;
    refused(&stage, &json!({ "lsn": "FF/0" }), &["does not lead to"]).await;
    refused(&stage, &json!({ "name": "never" }), &["does not lead to", "`never`"]).await;
}

#[tokio::test]
async fn a_gap_is_named_and_another_timeline_too() {
    let (stage, moments) = Stage::with_history().await;
    stage.sql("INSERT INTO t VALUES (5)").await;
    stage.archive_all().await;
    stage.sql("INSERT INTO t VALUES (6)").await;
    stage.archive_all().await;
    let archive = std::fs::canonicalize(stage.archive()).unwrap();
    let segments: Vec<_> = names(&archive).into_iter().filter(|name| name.len() == 24).collect();
    let lost = &segments[segments.len() - 2];
    std::fs::rename(archive.join(lost), stage.folder.path().join("lost")).unwrap();
    refused(&stage, &json!("latest"), &["missing", lost]).await;
    refused(&stage, &json!({ "time": "2099-01-01T00:00:00Z" }), &["missing", lost]).await;
    // What lies before the gap can be reached, and the preview tells of it.
    let preview = stage.harness.preview(RECOVER, stage.recover(&moments.time()), &World::default()).await;
    assert!(preview.action == Action::Create && preview.summary.contains(lost), "{preview:?}");

    std::fs::write(archive.join("00000002.history"), "1\t0/5000000\tno recovery target specified\n").unwrap();
    refused(&stage, &json!("latest"), &["timeline 2", lost]).await;
    let preview = stage.harness.preview(RECOVER, stage.recover(&moments.time()), &World::default()).await;
    assert!(preview.problems.iter().any(|it| !it.blocks && it.message.contains("timeline 2")), "{preview:?}");
}

#[tokio::test]
async fn a_damaged_backup_and_a_folder_in_use() {
    let (stage, moments) = Stage::with_history().await;
    let side = stage.side();
    std::fs::create_dir(side.data()).unwrap();
    std::fs::write(side.data().join("precious"), "x").unwrap();
    let failure = stage.harness.run(RECOVER, stage.recover(&moments.time())).await.unwrap_err();
    assert!(failure.message.contains("not empty"), "{failure}");
    let failure = stage.harness.run(REMOVE, stage.remove()).await.unwrap_err();
    assert!(failure.message.contains("no mark"), "{failure}");
    let preview = stage.harness.preview(REMOVE, stage.remove(), &World::default()).await;
    assert_eq!(preview.action, Action::Blocked);
    std::fs::remove_dir_all(side.data()).unwrap();

    let file = stage.folder.path().join("backups/base/base/1/PG_VERSION");
    std::fs::write(file, "x").unwrap();
    let failure = stage.harness.run(RECOVER, stage.recover(&moments.time())).await.unwrap_err();
    assert!(failure.message.contains("verify") && failure.message.contains("PG_VERSION"), "{failure}");
    assert!(!side.data().exists());
}
