//! A new server gets what a backup of a database doesn't hold: `postgres.restore_globals`, and
//! `postgres.create_database` with `like`.

use lifeboat::service::{PostgresSandbox, Target};
use lifeboat::step::Action;
use lifeboat::step::world::World;
use serde_json::{Value, json};

use crate::fixture::Stage;
use crate::support::{Harness, postgres};

const GLOBALS: &str = "postgres.restore_globals";
const CREATE: &str = "postgres.create_database";
const BACKUP: &str = "live.sql";

/// A backup of a database with an encoding of its own, and the roles that its server has.
async fn backed_up() -> Stage {
    let stage = Stage::new(PostgresSandbox::default()).await;
    stage
        .sql(
            "CREATE ROLE \"odd; role\"; CREATE ROLE app CONNECTION LIMIT 7; CREATE ROLE other; \
             GRANT \"odd; role\" TO app WITH ADMIN OPTION; GRANT app TO other; \
             COMMENT ON ROLE \"odd; role\" IS 'two\nlines; ALTER ROLE app;'",
        )
        .await;
    stage.sql("CREATE DATABASE live TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'").await;
    let to = json!({ "storage": "backups", "path": BACKUP });
    let params = json!({ "target": "db", "database": "live", "to": to, "format": "plain", "compression": "none", "globals": true });
    stage.harness.run("postgres.backup", params).await.unwrap();
    stage
}

/// A harness on the new server, with the old one's backups.
fn beside(new: &Stage, old: &Stage) -> Harness {
    let backups = json!({ "storage": { "scheme": "fs", "root": old.folder.path().join("backups") } });
    let backups: Target = serde_json::from_value(backups).unwrap();
    Harness::with([("db", postgres(&new.url)), ("backups", backups)])
}

fn globals() -> Value {
    json!({ "target": "db", "from": { "storage": "backups", "path": BACKUP } })
}

#[tokio::test]
async fn roles_that_lack_are_made_and_all_others_left_alone() {
    let (old, new) = (backed_up().await, Stage::new(PostgresSandbox::default()).await);
    // Already there, with a limit and no membership of its own.
    new.sql("CREATE ROLE app CONNECTION LIMIT 3; CREATE ROLE other").await;
    let harness = beside(&new, &old);
    let preview = harness.preview(GLOBALS, globals(), &World::default()).await;
    assert_eq!((preview.action, preview.summary.as_str()), (Action::Create, "create 1 role on db: odd; role"));
    assert_eq!(new.value("SELECT count(*) FROM pg_roles WHERE rolname = 'odd; role'").await, "0");

    let done = harness.run(GLOBALS, globals()).await.unwrap();
    assert_eq!(done.outputs["roles"], json!(["odd; role"]));
    assert_eq!(
        new.value("SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = 'odd; role'").await,
        "two\nlines; ALTER ROLE app;"
    );
    assert_eq!(new.value("SELECT rolconnlimit FROM pg_roles WHERE rolname = 'app'").await, "3");
    let members = "SELECT string_agg(format('%s in %s', member::regrole, roleid::regrole), ', ') \
         FROM pg_auth_members WHERE member::regrole::text IN ('app', 'other')";
    assert_eq!(new.value(members).await, "app in \"odd; role\"", "what was taken from other roles stays taken");

    // Again: nothing to do, and nothing done.
    assert_eq!(harness.preview(GLOBALS, globals(), &World::default()).await.action, Action::None);
    assert_eq!(harness.run(GLOBALS, globals()).await.unwrap().outputs["roles"], json!([]));
}

#[tokio::test]
async fn one_that_fails_makes_none() {
    let (old, new) = (backed_up().await, Stage::new(PostgresSandbox::default()).await);
    let file = old.folder.path().join("backups").join(format!("{BACKUP}.globals.sql"));
    let good = std::fs::read_to_string(&file).unwrap();
    let harness = beside(&new, &old);

    // Changed after it was written: its manifest tells.
    std::fs::write(&file, good.replace("LIMIT 7", "LIMIT 8")).unwrap();
    let failure = harness.run(GLOBALS, globals()).await.unwrap_err();
    assert!(failure.message.contains("is not what its manifest says"), "{failure}");
    assert_eq!(harness.preview(GLOBALS, globals(), &World::default()).await.action, Action::Blocked);
    std::fs::write(&file, &good).unwrap();

    // A role that may not give what the last statements give: the first ones are taken back.
    new.sql("CREATE ROLE weak LOGIN CREATEROLE PASSWORD 'weak-secret'").await;
    let url = crate::support::url_with(&new.url, Some(("weak", "weak-secret")), "postgres");
    let weak = Harness::with([
        ("db", postgres(&url)),
        (
            "backups",
            serde_json::from_value(
                json!({ "storage": { "scheme": "fs", "root": old.folder.path().join("backups") } }),
            )
            .unwrap(),
        ),
    ]);
    weak.run(GLOBALS, globals()).await.unwrap_err();
    assert_eq!(
        new.value("SELECT count(*) FROM pg_roles WHERE rolname IN ('app', 'other', 'odd; role')").await,
        "0"
    );

    let plain = json!({ "target": "db", "database": "postgres", "to": { "storage": "backups", "path": "bare.sql" }, "format": "plain", "compression": "none" });
    harness.run("postgres.backup", plain).await.unwrap();
    let bare = json!({ "target": "db", "from": { "storage": "backups", "path": "bare.sql" } });
    let failure = harness.run(GLOBALS, bare).await.unwrap_err();
    assert!(failure.message.contains("has no roles beside it"), "{failure}");
}

#[tokio::test]
async fn a_database_is_made_like_the_one_that_was_backed_up() {
    let (old, new) = (backed_up().await, Stage::new(PostgresSandbox::default()).await);
    let harness = beside(&new, &old);
    let like =
        |path: &str| json!({ "target": "db", "database": "live", "like": { "storage": "backups", "path": path } });
    let preview = harness.preview(CREATE, like("gone.sql"), &World::default()).await;
    assert_eq!(preview.action, Action::Blocked);
    assert!(preview.problems[0].message.contains("has no manifest"), "{preview:?}");
    harness.run(CREATE, like("gone.sql")).await.unwrap_err();
    assert_eq!(new.value("SELECT count(*) FROM pg_database WHERE datname = 'live'").await, "0");
    harness.run(CREATE, like(BACKUP)).await.unwrap();
    let found = "SELECT concat_ws(' ', pg_encoding_to_char(encoding), datcollate, datctype) FROM pg_database WHERE datname = 'live'";
    assert_eq!(new.value(found).await, "LATIN1 C C");
}
